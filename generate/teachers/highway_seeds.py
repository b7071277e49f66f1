"""Scenario seeds for the `highway` teacher, spread the way a fleet's log would be.

Every feasible cell gets seeds in proportion to `fleet_share` (common conditions are common), after a floor
of up to `FLOOR` seeds per cell (as many as `n` allows for all alike). Within a slice seeds belong to groups
(the drives they were logged on) that may span scenario types: one seed per group up to 45 groups, then up to
four seeds per group. With `n` of 2,430 and more (9 for each of the 270 feasible cells), every slice has at
least 45 groups.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...catalogs.errors import DistdataError
from ...catalogs.hashing import hash64
from .highway_tables import AXES, INFEASIBLE, SCENARIOS

if TYPE_CHECKING:
    import pyarrow as pa

FLOOR = 20
"""Seeds that every feasible cell gets before the rest is spread by fleet share."""

GROUPS_PER_SLICE = 45
SEEDS_PER_GROUP = 4

FLEET: Mapping[str, Mapping[str, float]] = {
    "density": {"sparse": 0.65, "dense": 0.35},
    "speed": {"slow": 0.4, "fast": 0.6},
    "drivers": {"calm": 0.3, "normal": 0.58, "aggressive": 0.12},
    "ego": {"keep": 0.6, "faster": 0.14, "slower": 0.14, "change_lane": 0.12},
    "scenario": {
        "highway": 0.5, "merge": 0.2, "intersection": 0.15, "roundabout": 0.1, "two-way": 0.03, "u-turn": 0.02,
    },
}  # fmt: skip
"""How often the fleet meets each value; the preset's fleet shares are the same numbers."""


def feasible_cells() -> list[dict[str, str]]:
    """List the feasible cells as axis -> value with `scenario`, in a fixed order."""
    names = [*AXES, "scenario"]
    cells = [dict(zip(names, c, strict=True)) for c in itertools.product(*AXES.values(), SCENARIOS)]
    return [c for c in cells if not any(all(c[k] == v for k, v in when.items()) for when, _ in INFEASIBLE)]


def fleet_share(cell: Mapping[str, str]) -> float:
    """Return a cell's fleet weight: the product of its values' shares (not normalised over feasible cells)."""
    return float(np.prod([FLEET[name][value] for name, value in cell.items()]))


def is_decision_point(cell: Mapping[str, str]) -> bool:
    """Tell whether the futures of a cell's seeds usually have more than one outcome.

    A rule, from pilots: calm drivers settle the outcome by the initial state, except at the roundabout where
    everyone meets everyone; an ego that slows down ends up waiting, whatever the others do.
    """
    return cell["scenario"] == "roundabout" or (cell["drivers"] != "calm" and cell["ego"] != "slower")


def seeds(n: int, salt: str) -> pa.Table:
    """Make `n` seeds, the same for the same `n` and `salt`; another `n` or `salt` gives other ids and drives.

    Columns: seed_id, one per axis, scenario, group (strings); decision_point bool; control_axis string and
    control_value float64 (the commanded change of the ego's target speed, m/s); params, the JSON text of
    `state_seed` and `speed_step_mps`.

    Raises:
        DistdataError: `n` is below the number of feasible cells, so that some would be empty.
    """
    import pyarrow as pa

    cells = feasible_cells()
    if n < len(cells):
        raise DistdataError(
            f"highway: {n:,} seeds can't fill {len(cells)} feasible cells. Ask for at least {len(cells)} seeds."
        )
    counts = _spread(n, np.array([fleet_share(c) for c in cells]))
    by_slice: dict[str, list[Mapping[str, str]]] = {}
    for cell, count in zip(cells, counts, strict=True):
        slice_ = "-".join(cell[a] for a in AXES)
        by_slice.setdefault(slice_, []).extend([cell] * int(count))
    rows = []
    # two imports into one catalog must not meet in an id, nor share a drive
    batch = f"{hash64('highway/batch', salt, n):016x}"[:6]
    for slice_, members in by_slice.items():
        rng = np.random.Generator(np.random.Philox(hash64("highway/seeds", salt, n, slice_)))
        rows += _slice_rows(f"{batch}-{slice_}", members, rng)
    rows.sort(key=lambda row: str(row["seed_id"]))
    return pa.Table.from_pylist(rows)


def _spread(n: int, shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Split `n` seeds: the floor for every cell, the rest by share with the largest remainders rounded up."""
    floor = min(FLOOR, n // len(shares))
    rest = n - floor * len(shares)
    exact = rest * shares / shares.sum()
    counts = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - counts), kind="stable")
    counts[order[: rest - int(counts.sum())]] += 1
    spread: NDArray[np.int64] = counts + floor
    return spread


def _slice_rows(prefix: str, members: list[Mapping[str, str]], rng: np.random.Generator) -> list[dict[str, object]]:
    n_groups = max(min(GROUPS_PER_SLICE, len(members)), len(members) // SEEDS_PER_GROUP)
    # a shuffled deal: every group gets a seed, and drives mix scenario types
    groups = rng.permutation(np.arange(len(members)) % n_groups)
    state_seeds = rng.integers(0, 2**48, len(members))
    fractions = rng.uniform(0.15, 0.3, len(members))
    rows: list[dict[str, object]] = []
    for i, cell in enumerate(members):
        world = SCENARIOS[cell["scenario"]]
        step_mps = round(float(fractions[i]) * world.ego_mps[cell["speed"]], 3)
        sign = {"faster": 1.0, "slower": -1.0}.get(cell["ego"], 0.0)
        rows.append(
            {
                "seed_id": f"hw-{prefix}-{i:05d}",
                **cell,
                "group": f"{prefix}-drive{int(groups[i]):04d}",
                "decision_point": is_decision_point(cell),
                "control_axis": "ego_target_speed_mps",
                "control_value": sign * step_mps,
                "params": json.dumps({"speed_step_mps": step_mps, "state_seed": int(state_seeds[i])}),
            }
        )
    return rows
