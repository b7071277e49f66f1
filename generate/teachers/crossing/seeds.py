"""Seeds of the crossing world, spread over the cells as a fleet's log would be.

Counts follow the fleet's shares on top of a floor: every feasible cell gets at least min(60, n // 276)
seeds (1 where n has room for that), so from n = 16,560 on each has 60. A drive (the group) belongs to one
slice: its first 60 drives hold up to one seed of every scenario type, later ones four seeds of one type, so
that each slice then has at least 60 groups. A cell's first seeds stay the same when n grows.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ....catalogs.errors import DistdataError, nearest
from ....catalogs.hashing import hash64, unit_interval
from .law import outcome_probabilities
from .world import AXES, FLEET, SCENARIO_FLEET, WORLD, feasible

if TYPE_CHECKING:
    import pyarrow as pa

COMMITTED_SHARE = 0.2
"""Share of a decision scenario's seeds in which the actor has already decided: no decision point."""
CONTROLS = (-1.2, -0.6, 0.0, 0.6, 1.2)
"""Commanded ego accelerations, m/s^2."""
CONTROL_SHARES = (0.12, 0.22, 0.32, 0.22, 0.12)
_MIXED_DRIVES, _LATER_SEEDS = 60, 4

Within = Mapping[str, Sequence[str]]
"""Axis name, or ``scenario``, to the values that are wanted; all of an axis that is not named."""
Cell = tuple[str, str, str, str]
"""Weather, light, district and scenario type."""


def cells(within: Within | None = None) -> dict[Cell, float]:
    """Return the feasible cells (of the values that `within` allows) with their fleet shares, which sum to 1.

    Raises:
        DistdataError: a value that this world doesn't have, or no cell is left.
    """
    allowed = {name: list(values) for name, values in (within or {}).items()}
    known = {**AXES, "scenario": tuple(SCENARIO_FLEET)}
    for name, values in allowed.items():
        for value in values:
            if value not in known.get(name, ()):
                raise DistdataError(f"crossing seeds: no {name} {value!r}.{nearest(value, known.get(name, ()))}")
    shares = {
        (w, light, d, s): fw * fl * fd * fs
        for (w, fw), (light, fl), (d, fd) in itertools.product(*(zip(AXES[a], FLEET[a], strict=True) for a in AXES))
        for s, fs in SCENARIO_FLEET.items()
        if feasible({"weather": w, "light": light, "district": d}, s)
        and all(
            v in allowed.get(n, (v,)) for n, v in {"weather": w, "light": light, "district": d, "scenario": s}.items()
        )
    }
    if not shares:
        raise DistdataError("crossing seeds: no feasible cell is left of the axes and scenario types that are allowed.")
    total = sum(shares.values())
    return {cell: share / total for cell, share in shares.items()}


def seed_counts(n: int, within: Within | None = None) -> dict[Cell, int]:
    """Return how many of `n` seeds each cell gets: a floor, then the fleet's shares by largest remainder."""
    shares = cells(within)
    floor = min(60, n // (2 * len(shares))) or int(n >= len(shares))
    rest = n - floor * len(shares)
    exact = {cell: rest * share for cell, share in shares.items()}
    counts = {cell: floor + math.floor(e) for cell, e in exact.items()}
    by_remainder = sorted(exact, key=lambda cell: (math.floor(exact[cell]) - exact[cell], cell))
    for cell in by_remainder[: n - sum(counts.values())]:
        counts[cell] += 1
    return counts


def seeds(n: int, salt: str, within: Within | None = None) -> pa.Table:
    """Return `n` seeds, deterministic in `salt`, of the values that `within` allows by axis (and ``scenario``).

    Columns: seed_id, weather, light, district, scenario, group, decision_point, control_axis,
    control_value (m/s^2), params (a JSON object, see `law.STATE_KEYS`).

    Raises:
        DistdataError: `n` is not positive, or `within` names what this world doesn't have.
    """
    import pyarrow as pa

    if n < 1:
        raise DistdataError(f"crossing seeds: n is {n}; ask for at least 1.")
    rows = [row for cell, count in seed_counts(n, within).items() for row in _cell_rows(cell, count, salt)]
    text = ("seed_id", *AXES, "scenario", "group")
    types: dict[str, pa.DataType] = {
        **dict.fromkeys(text, pa.string()),
        "decision_point": pa.bool_(),
        "control_axis": pa.string(),
        "control_value": pa.float64(),
        "params": pa.string(),
    }
    return pa.Table.from_pylist(rows, schema=pa.schema(types))


def _cell_rows(cell: Cell, count: int, salt: str) -> list[dict[str, Any]]:
    axes = dict(zip(AXES, cell, strict=False))
    scenario = cell[3]
    stream = np.random.Generator(np.random.Philox(hash64("crossing/seeds", salt, *cell)))
    uniform = stream.random((count, 12))
    rows = []
    for i in range(count):
        drive = i if i < _MIXED_DRIVES else _MIXED_DRIVES + (i - _MIXED_DRIVES) // _LATER_SEEDS
        # later drives hold one scenario type each, the first 60 a seed of every type
        group = "-".join([*cell[:3], f"{drive:05d}"] if i < _MIXED_DRIVES else [*cell, f"{drive:05d}"])
        params = _params(scenario, uniform[i], salt, group)
        params["committed"] = _committed(axes, scenario, params, uniform[i, 10:])
        rows.append(
            {
                "seed_id": f"cx-{hash64('crossing/seed', salt, *cell, i):016x}",
                **axes,
                "scenario": scenario,
                "group": group,
                "decision_point": params["committed"] is None and len(WORLD.scenarios[scenario].outcomes) > 1,
                "control_axis": "ego_accel",
                "control_value": params["ego_accel"],
                "params": json.dumps(params, separators=(",", ":")),
            }
        )
    return rows


def _params(scenario: str, u: NDArray[np.float64], salt: str, group: str) -> dict[str, Any]:
    """Return one seed's state from 12 uniforms; street and habitual speed are its drive's."""
    ego_speed = 7.5 + 2.5 * unit_interval("crossing/drive-speed", salt, group) + 1.0 * u[0]
    side = 1.0 if u[1] < 0.75 else -1.0
    kerb_y = -3.0 - 0.5 * u[2] if side > 0 else 6.3 + 0.5 * u[2]
    on_foot = {"actor_x": 20 + 12 * u[3], "actor_y": kerb_y, "actor_vx": 0.0, "actor_vy": 0.3 * side, "side": side}
    oncoming = {"other_x": 36 + 24 * u[4], "other_y": 3.5, "other_vx": -6.5 - 3 * u[5]}
    parked = {"other_x": 20 + 18 * u[4], "other_y": -3.1, "other_vx": 0.0}
    occluded_x = 20 + 9 * u[3]
    car = {"actor_vy": 0.0, "side": 1.0}
    states: Mapping[str, dict[str, float]] = {
        "car_following": {
            "actor_x": 13 + 10 * u[3],
            "actor_y": 0.0,
            "actor_vx": ego_speed - 1.5 * u[6],
            **car,
            **parked,
        },
        "pedestrian_crossing": {**on_foot, **oncoming},
        "unprotected_turn": {"actor_x": 28 + 12 * u[3], "actor_y": 3.5, "actor_vx": -5 - 2 * u[6], **car, **parked},
        "cut_in": {
            "actor_x": 6 + 8 * u[3],
            "actor_y": 3.4,
            "actor_vx": ego_speed - 0.5 + 1.5 * u[6],
            **car,
            "other_x": 28 + 16 * u[4],
            "other_y": 0.0,
            "other_vx": ego_speed + 0.5 * u[5],
        },
        "occluded_pedestrian": {
            "actor_x": occluded_x,
            "actor_y": -3.2,
            "actor_vx": 0.0,
            "actor_vy": 0.3,
            "side": 1.0,
            "other_x": occluded_x - 3.4 - 0.8 * u[4],
            "other_y": -3.1,
            "other_vx": 0.0,
        },
        "cyclist_swerve": {"actor_x": 10 + 7 * u[3], "actor_y": -1.6, "actor_vx": 4 + 1.2 * u[6], **car, **oncoming},
        "animal_on_road": {**on_foot, **oncoming},
    }
    state = states[scenario]
    state |= {"ego_speed": ego_speed, "pace": 1.1 + 0.6 * u[7]}
    state["ego_accel"] = CONTROLS[int(np.searchsorted(np.cumsum(CONTROL_SHARES[:-1]), u[8], side="right"))]
    found: dict[str, Any] = {key: round(float(value), 4) for key, value in sorted(state.items())}
    found["street"] = hash64("crossing/drive-street", salt, group) >> 33
    return found


def _committed(axes: Mapping[str, str], scenario: str, params: Mapping[str, Any], u: NDArray[np.float64]) -> str | None:
    """Return the outcome that the actor has already chosen, None where it is still open."""
    if len(WORLD.scenarios[scenario].outcomes) == 1 or u[0] >= COMMITTED_SHARE:
        return None
    probs = outcome_probabilities(axes, scenario, params)
    at = int(np.searchsorted(np.cumsum(list(probs.values()))[:-1], u[1], side="right"))
    return list(probs)[at]
