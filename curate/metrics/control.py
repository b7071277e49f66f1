"""Control response: how much the ego speeds up over the rollout, to be set against what it was told to do.

`response`, m/s^2, any sign: the acceleration of the parabola through the ego's way, by least squares. Over the seeds of
a slice its slope per unit of `control_value` is the control gain, whatever the scatter and the speeds: the fit is
linear in the positions, so a commanded acceleration c that the road gives back with gain g adds exactly g c. Outcomes
that depend on the command bend that slope (who brakes for a crossing adds his braking); both models alike.

None where the record doesn't say its time step (``dt_s`` in ``calib.json`` or ``meta.json``), has fewer than 4 poses,
or holds a pose that is not finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from .seed_view import SeedView

MEMBERS: tuple[str, ...] = ("pose.npy",)
OPTIONAL: tuple[str, ...] = ("calib.json", "meta.json")
KINDS: tuple[str, ...] = ("rollout",)
COLUMNS: Mapping[str, type[pl.DataType]] = {"response": pl.Float64}
MIN_POSES = 4
"""Three poses are met by a parabola exactly, whatever they are."""


def columns(members: Mapping[str, Any], seed: SeedView) -> dict[str, float | None]:  # noqa: ARG001
    """Return `response` of one rollout."""
    pose, dt_s = members["pose.npy"], time_step_s(members)
    if dt_s is None or len(pose) < MIN_POSES or not np.isfinite(pose).all():
        return {"response": None}
    return {"response": fitted_acceleration(way_m(np.asarray(pose, np.float64)), dt_s)}


def time_step_s(members: Mapping[str, Any]) -> float | None:
    """Return the seconds between two poses; None where the record doesn't say."""
    for name in ("calib.json", "meta.json"):
        value = (members.get(name) or {}).get("dt_s")
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf"):
            return float(value)
    return None


def way_m(pose: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the ego's positions along its mean heading, float64 [T], metres; `pose` is [T, 7] (x, y, z, quaternion).

    The headings are averaged as unit vectors; the quaternions are turns about z only.
    """
    yaw = 2 * np.arctan2(pose[:, 5], pose[:, 6])
    ahead = np.array([np.cos(yaw).mean(), np.sin(yaw).mean()])
    length = float(np.hypot(*ahead))
    return np.asarray(pose[:, :2] @ (ahead / length if length > 0 else np.array([1.0, 0.0])))


def fitted_acceleration(way: NDArray[np.float64], dt_s: float) -> float:
    """Return the acceleration a of the least-squares fit way = x0 + v0 t + a t^2 / 2."""
    t = np.arange(len(way)) * dt_s
    basis = np.stack([np.ones_like(t), t, t * t / 2], axis=1)
    return float(np.linalg.lstsq(basis, way, rcond=None)[0][2])
