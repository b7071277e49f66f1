"""Planner: how a standard driver would have fared among the road users that a draw tells of (see `curate.planner`).

It starts where and as fast as the ego does (the seed's ``ego_speed`` where it states one, else the first recorded
speed) and keeps to the line ahead, x of the record's world. The others move as the draw says.

- `planner_min_gap_m`: least distance from bumper to bumper to who is ahead in the lane, in [0, 30]; 0 is a collision,
  30 is nobody there or farther.
- `planner_hard_brake`: 1 where it had to ask for 4 m/s^2 or more, else 0.
- `planner_progress_m`: metres driven.
- `planner_ttc_s`: least time to collision, in [0, 10]; 10 is nothing closing in.

All None where the record has no ``agents.npy`` with the ego first as [T, N, 4] (x, y, vx, vy), doesn't say its time
step, or holds a value that is not finite.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from ..planner import Driver, drive
from .control import time_step_s
from .seed_view import SeedView

MEMBERS: tuple[str, ...] = ()
OPTIONAL: tuple[str, ...] = ("agents.npy", "calib.json", "meta.json")
KINDS: tuple[str, ...] = ("rollout",)
COLUMNS: Mapping[str, type[pl.DataType]] = {
    "planner_min_gap_m": pl.Float64,
    "planner_hard_brake": pl.Int8,
    "planner_progress_m": pl.Float64,
    "planner_ttc_s": pl.Float64,
}
DRIVER = Driver()
LENGTH_WIDTH_M: Mapping[str, tuple[float, float]] = {
    "pedestrian": (0.5, 0.6),
    "cyclist": (1.7, 0.6),
    "animal": (1.5, 0.5),
    "van": (5.2, 2.0),
    "truck": (8.0, 2.5),
}
"""Sizes by the names that ``meta.json`` gives under ``agents``; who isn't listed is as large as a car."""
_CAR = (4.4, 1.85)
_NOTHING: Mapping[str, None] = dict.fromkeys(COLUMNS)


def columns(members: Mapping[str, Any], seed: SeedView) -> dict[str, float | int | None]:
    """Return the four columns of one rollout."""
    agents, dt_s = members.get("agents.npy"), time_step_s(members)
    if agents is None or dt_s is None or agents.ndim != 3 or agents.shape[2] != 4 or not agents.shape[0]:
        return dict(_NOTHING)
    state = np.asarray(agents, np.float64)[None]
    ego = state[:, 0, 0]
    stated = seed.params.get("ego_speed")
    told = isinstance(stated, int | float) and not isinstance(stated, bool)
    speed = np.array([float(stated)]) if told else np.hypot(ego[:, 2], ego[:, 3])  # type: ignore[arg-type]
    found = drive(
        state[:, :, 1:, :2], state[:, :, 1:, 2:], _sizes(members, agents.shape[1] - 1), ego[:, :2], speed, dt_s, DRIVER
    )
    if not np.isfinite(found.progress_m[0]):
        return dict(_NOTHING)
    return {
        "planner_min_gap_m": float(found.min_gap_m[0]),
        "planner_hard_brake": int(found.most_brake_mps2[0] >= DRIVER.hard_brake_mps2),
        "planner_progress_m": float(found.progress_m[0]),
        "planner_ttc_s": float(found.min_ttc_s[0]),
    }


def _sizes(members: Mapping[str, Any], n_others: int) -> Any:
    """Return length and width of the others, float64 [1, n, 2], by their names in ``meta.json`` (ego first)."""
    names: Sequence[Any] = (members.get("meta.json") or {}).get("agents") or ()
    kinds = [names[i + 1] if i + 1 < len(names) else None for i in range(n_others)]
    return np.array([LENGTH_WIDTH_M.get(str(kind), _CAR) for kind in kinds], np.float64).reshape(1, n_others, 2)
