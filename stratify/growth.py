"""What a refresh buys: more samples for slices that lack coverage, sized by their learning curves, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..catalogs.errors import DistdataError
from .allocate import allocate
from .causes import Cause
from .learning_curves import Curves

Ints = NDArray[np.int64]

LEAST, MOST = 1.25, 4.0
"""Between which factors one turn lets a slice grow: less is within the noise, more trusts the curve too far."""
GOAL = 0.6
"""The score aimed at, in bands: a gate can pass what lies well inside the band only."""
CONFIDENCE = 0.6
"""Probability of reaching the goal that a purchase is sized for; the next turn buys what is still missing."""
BLIND = 2.0
"""Growth of a slice that has no curve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceGrowth:
    """How far one slice grows: kept samples it has and is to have, and in words why so many."""

    slice: str
    n_have: int
    n_target: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Growth:
    """The goals of a refresh.

    - `goals`: one row per cell: cell_id, target (kept samples), closed (true: nothing is bought there, whatever
      verdicts have said or will say; see `plan.make_plan`).
    - `slices`: the slices that grow.
    """

    goals: pl.DataFrame
    slices: tuple[SliceGrowth, ...]

    @property
    def n_wanted(self) -> int:
        """Kept samples to add."""
        return sum(s.n_target - s.n_have for s in self.slices)


def refresh_goals(
    cells: pl.DataFrame,
    have: Mapping[int, int],
    causes: Sequence[Cause],
    curves: Curves | None,
    *,
    goal: float = GOAL,
    max_draws: int | None = None,
) -> Growth:
    """Set the targets of the plan that answers a diagnosis.

    A slice whose cause is `coverage` grows to the size at which its curve reaches `goal` with probability 0.6, at least
    x1.25 and at most x4 (x2 without a curve). What is added goes to its feasible cells so that they come as close to
    their weights as their bounds let them (Webster's method). Every other cell is closed at what it has.

    - `cells`: cell_id, slice, feasible, weight (the plan's); optionally ceiling (kept samples that its seeds can give).
    - `have`: kept samples by cell_id, 0 for those that are missing.
    - `max_draws`: the most samples to add; slices share it in proportion to what they want.

    Raises:
        DistdataError: a coverage slice that no feasible cell belongs to, or negative counts.
    """
    cells = cells.sort("cell_id")
    held = np.array([int(have.get(int(c), 0)) for c in cells["cell_id"]], dtype=np.int64)
    if (held < 0).any() or (max_draws is not None and max_draws < 0):
        raise DistdataError("refresh: counts of samples must be at least 0.")
    ceiling = _ceiling(cells, held)
    rows = {c.slice: np.flatnonzero(_cells_of(cells, c.slice)) for c in causes if c.spends}
    wanted = {name: _wanted(name, at, held, ceiling, curves, goal) for name, at in rows.items()}
    extra = _within(np.array([w[0] for w in wanted.values()], dtype=np.int64), max_draws)
    target, closed, grown = held.copy(), np.ones(len(held), dtype=np.bool_), []
    for n, (name, at) in zip(extra.tolist(), rows.items(), strict=True):
        n_have = int(held[at].sum())
        why = wanted[name][1]
        if n < wanted[name][0]:
            why += f"; limited to {n:,} more of {wanted[name][0]:,}"
        grown.append(SliceGrowth(slice=name, n_have=n_have, n_target=n_have + n, why=why))
        if n:
            weight = _weights(cells, at)
            target[at] = allocate(weight, held[at], ceiling[at], n_have + n)
            closed[at] = target[at] == held[at]
    goals = cells.select("cell_id").with_columns(target=pl.Series(target), closed=pl.Series(closed))
    return Growth(goals=goals, slices=tuple(grown))


def as_the_fleet(growth: Growth, fleet: Mapping[str, float]) -> int | None:
    """Return how many draws, dealt as the fleet meets its slices, bring every growing slice what it gets here.

    That is what a refresh saves one from: the largest of (samples to add) / (share of the fleet).

    - `fleet`: each slice's share of the fleet, in [0, 1].

    None where nothing grows, or the fleet never meets a slice that does.
    """
    grown = [s for s in growth.slices if s.n_target > s.n_have]
    shares = [fleet.get(s.slice, 0.0) for s in grown]
    if not grown or not all(shares):
        return None
    return max(math.ceil((s.n_target - s.n_have) / share) for s, share in zip(grown, shares, strict=True))


def _cells_of(cells: pl.DataFrame, name: str) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = ((cells["slice"] == name) & cells["feasible"]).to_numpy()
    if not found.any():
        raise DistdataError(f"refresh: slice {name} is to grow and has no feasible cell. Check [[cells]] and the axes.")
    return found


def _ceiling(cells: pl.DataFrame, held: Ints) -> Ints:
    if "ceiling" not in cells.columns:
        return np.full(len(held), 2**40, dtype=np.int64)
    ceiling: Ints = np.maximum(cells["ceiling"].cast(pl.Int64).to_numpy(), held)
    return ceiling


def _weights(cells: pl.DataFrame, at: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the cells' weights scaled to a largest of 1; equal ones where all are 0."""
    weight: NDArray[np.float64] = cells["weight"].cast(pl.Float64).to_numpy()[at]
    return weight / weight.max() if weight.max() > 0 else np.ones(len(at))


def _wanted(
    name: str, at: NDArray[np.intp], held: Ints, ceiling: Ints, curves: Curves | None, goal: float
) -> tuple[int, str]:
    """Return the kept samples to add to a slice, and why so many."""
    n_have = int(held[at].sum())
    if n_have == 0:
        raise DistdataError(
            f"refresh: slice {name} has no sample to grow from. Plan it first: distdata plan --budget N"
        )
    low, high = math.ceil(n_have * LEAST), math.floor(n_have * MOST)
    if curves is None or name not in curves.slices:
        total, why = math.ceil(n_have * BLIND), f"x{BLIND:g}: it has no learning curve yet"
    else:
        need = float(np.quantile(curves.needed(name, goal), CONFIDENCE, method="inverted_cdf"))
        factor = need / curves.n_now[curves.at(name)]
        total = int(min(max(math.ceil(min(n_have * factor, 1e15)), low), high))
        why = f"x{total / n_have:.3g}: {CONFIDENCE:.0%} of its likely learning curves are at {goal:g} of the band there"
        if n_have * factor > high:
            why = f"x{MOST:g}, the most for one turn: its learning curve asks for " + (
                f"x{factor:.3g}" if factor < 1e6 else "more than any purchase gives"
            )
        elif n_have * factor < low:
            why = f"x{LEAST:g}, the least for one turn: its learning curve asks for x{factor:.3g}"
    most = int(ceiling[at].sum())
    if total > most:
        why += f"; its seeds give no more than {most:,}"
    return max(min(total, most) - n_have, 0), why


def _within(wanted: Ints, most: int | None) -> Ints:
    """Scale what slices want down to `most` in all."""
    if most is None or int(wanted.sum()) <= most:
        return wanted
    return allocate(wanted.astype(np.float64), np.zeros_like(wanted), wanted, most)
