"""Drift: where the ego and the road user that acts are, at twelve times of the rollout.

`track`, metres, float32 [12 times, A agents, 2 coordinates] laid flat, time first: the difference of two models' mean
tracks, by time, is the curve of their divergence. A is 2 where the record tells of other agents (``agents.npy`` [T, N,
4], ego first, then who acts), 1 where it holds the ego's poses alone. The times lie evenly over the recorded steps and
end with the last; a rollout of fewer than 12 steps has fewer times. None for a record of neither, or one that holds a
value that is not finite. `track_s` is how many seconds it covers, where the record's meta says `dt_s`, its step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from .seed_view import SeedView

MEMBERS: tuple[str, ...] = ()
OPTIONAL: tuple[str, ...] = ("agents.npy", "pose.npy", "meta.json")
KINDS: tuple[str, ...] = ("rollout",)
COLUMNS: Mapping[str, type[pl.DataType] | pl.DataType] = {"track": pl.List(pl.Float32), "track_s": pl.Float64}
N_TIMES = 12
N_AGENTS = 2
_STATE = 4  # x, y, vx, vy: the layout of agents.npy that has the ego first


def columns(members: Mapping[str, Any], seed: SeedView) -> dict[str, list[float] | float | None]:  # noqa: ARG001
    """Return `track` of one rollout."""
    positions = positions_m(members)
    if positions is None or not len(positions) or not np.isfinite(positions).all():
        return {"track": None, "track_s": None}
    step = (members.get("meta.json") or {}).get("dt_s")
    told = step is not None and isinstance(step, int | float) and step > 0 and len(positions) >= N_TIMES
    track = positions[times(len(positions)), :N_AGENTS].ravel().tolist()
    return {"track": track, "track_s": float(step or 0) * len(positions) if told else None}


def positions_m(members: Mapping[str, Any]) -> NDArray[np.float32] | None:
    """Return all agents' positions, float32 [T, N, 2], metres, ego first; None where the record has none."""
    agents, pose = members.get("agents.npy"), members.get("pose.npy")
    if agents is not None and agents.ndim == 3 and agents.shape[2] == _STATE:
        return np.asarray(agents[:, :, :2], np.float32)
    if pose is not None:
        return np.asarray(pose[:, None, :2], np.float32)
    return None


def times(n_steps: int) -> NDArray[np.int64]:
    """Return the steps at which a track is taken: at most 12, evenly, the last one included."""
    n = min(N_TIMES, n_steps)
    return np.asarray(np.round(np.arange(1, n + 1) * n_steps / n).astype(np.int64) - 1)
