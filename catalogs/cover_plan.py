"""Which cells a plan under ``[cover]`` buys when its budget can't pay the floors of all of them.

Greedy for the most fleet share in combinations that no sample holds yet, per draw spent: what comes first is worth the
most, wherever the budget ends. Greedy choice comes within 1 - 1/e of the best that as many cells of one price can
cover (Nemhauser, Wolsey and Fisher 1978).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from .cells import cell_codes, cover_factors
from .config import Config
from .cover import combination_weights, uncovered
from .hashing import unit_intervals
from .possible import Factors, ascending_sets, possible_combinations

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

MAX_NAMES = 3
_CHUNK = 1 << 22
_WORK = 1e8
"""Values compared after which combinations are not covered a further time; cells then come by fleet share."""


def reachable_cells(
    config: Config,
    root: Path,
    cells: pl.DataFrame,
    *,
    floor: Ints,
    cost: Ints,
    stocked: Bools,
    held: Bools,
    keep: Bools,
    budget: float | Mapping[str, float] | None,
) -> tuple[pl.DataFrame, str]:
    """Leave cells without seeds out of a plan, and those whose floor the budget can't pay; say so in a note.

    `cells` are the planner's: cell, layer, feasible, fleet_share, optional pin, floor, cap and rule. Arrays are [H] in
    their order: `floor` kept samples that a cell is planned with at least (0: nothing can be had there), `cost` what
    this takes of the `budget` in draws, `stocked` cells with seeds or samples, `held` cells with samples that count,
    `keep` cells that stay whatever they cost. A budget goes by layer where layers share it; with None all cells stay.

    Without seeds: `feasible` becomes False. Beyond the budget: `cap` becomes 0. What draws are left for one cell more,
    too few for its floor, becomes its cap. Cells with samples go before new ones, then those that add the most fleet
    share in uncovered combinations per draw, ties by a salted hash of the name; once nothing is left to cover,
    everything is covered once more. Without ``[plan] floor_seeds`` chosen cells get a floor of one sample, or weights
    could pass them over.

    Returns `cells` and an empty note without ``[cover]``, and where no cell has seeds.
    """
    feasible = cells["feasible"].to_numpy()
    if config.cover is None or not (feasible & stocked).any():
        return cells, ""
    usable = feasible & stocked & (floor > 0)
    caps = np.full(cells.height, -1, np.int64)
    notes = []
    layer, rooms = _rooms(cells, budget)
    bound = np.bincount(layer[usable], weights=cost[usable], minlength=len(rooms)) > rooms
    if bound.any():
        names = cells["cell"].to_list()
        codes = cell_codes(config, names)
        choice = _Choice(cover_factors(config, root), config.cover.strength, codes, cost, layer, rooms)
        choice.ties = unit_intervals("cover", config.project.salt, names)
        choice.shares = cells["fleet_share"].cast(pl.Float64).fill_null(0.0).to_numpy()
        choice.take(np.flatnonzero(usable & (keep | ~bound[layer])))
        choice.deal(usable & held)
        choice.start(held | choice.taken)
        choice.deal(usable)
        caps = np.where(feasible & stocked & ~keep & ~choice.taken, 0, -1)
        for h in choice.next_best(usable):
            caps[h] = max(floor[h] * choice.rooms[layer[h]] // max(cost[h], 1), 0)
        notes.append(_budget_note(config, choice, usable, caps))
    lacking = feasible & ~stocked
    if lacking.any():
        notes.append(_lacking_note(cells.filter(pl.Series(lacking))["cell"].to_list()))
    return _adjusted(cells, lacking, caps, usable & bound[layer] & (config.plan.floor_seeds == 0)), " ".join(notes)


def _rooms(cells: pl.DataFrame, budget: float | Mapping[str, float] | None) -> tuple[Ints, Floats]:
    """Return each cell's part of the budget, int64 [H], and the draws of every part."""
    if not isinstance(budget, Mapping):
        return np.zeros(cells.height, np.int64), np.array([np.inf if budget is None else budget])
    names = sorted({*budget, *cells["layer"].to_list()})
    index = {name: i for i, name in enumerate(names)}
    layer = np.array([index[name] for name in cells["layer"].to_list()], np.int64)
    return layer, np.array([float(budget.get(name, 0)) for name in names])


class _Choice:
    """A greedy choice of cells: the weights not covered yet, what every cell would cover of them, and the room left."""

    ties: Floats
    shares: Floats

    def __init__(self, factors: Factors, strength: int, codes: Ints, cost: Ints, layer: Ints, rooms: Floats) -> None:
        self.factors, self.codes, self.cost, self.layer = factors, codes, cost, layer
        self.strength = min(strength, len(factors.names))
        self.possible = possible_combinations(factors, self.strength)
        # one more entry (0) per axis, for a value that is no more
        self.weights = np.pad(combination_weights(factors, self.possible), [(0, 1)] * self.strength)
        self.ids = np.where(codes < 0, factors.starts[-1], codes + factors.starts[:-1])
        self.sets = ascending_sets(len(factors.names), self.strength)
        self.narrow = np.asfortranarray(codes.astype(np.int16 if max(factors.sizes) < 1 << 15 else np.int64))
        self.taken = np.zeros(len(codes), np.bool_)
        self.rooms = rooms.copy()
        self.work = 0.0
        self.start(self.taken)

    def take(self, cells: Ints) -> None:
        """Choose these, whatever they cost."""
        self.taken[cells] = True
        np.subtract.at(self.rooms, self.layer[cells], self.cost[cells])
        self.start(self.taken)

    def start(self, covered: Bools) -> None:
        """Begin with what the `covered` cells hold."""
        self.left = self.weights.copy()
        for ids in self.ids[covered]:
            self.left[np.ix_(*[ids] * self.strength)] = 0
        self.gains = self._count()

    def deal(self, among: Bools) -> None:
        """Choose cells of `among` while one fits into what is left."""
        recounted = False
        while len(at := self._fitting(among)):
            best = self._best(at)
            if self.gains[best] > 0:
                self._choose(best, at)
                recounted = False
            elif self.work < _WORK and not recounted:
                self.start(np.zeros_like(self.taken))
                recounted = True
            else:
                self._fill(at)

    def next_best(self, among: Bools) -> list[int]:
        """Return, per part of the budget with draws left, the best cell that they don't pay in full."""
        self.gains = self._count()
        open_ = among & ~self.taken & (self.rooms[self.layer] >= 1)
        parts = np.unique(self.layer[open_]).tolist()
        return [self._best(np.flatnonzero(open_ & (self.layer == part))) for part in parts]

    def _fitting(self, among: Bools) -> Ints:
        return np.flatnonzero(among & ~self.taken & (self.cost <= self.rooms[self.layer]))

    def _best(self, at: Ints) -> int:
        score = self.gains[at] / np.maximum(self.cost[at], 1e-3)
        first = at[score == score.max()]
        return int(first[np.argmin(self.ties[first])])

    def _choose(self, best: int, at: Ints) -> None:
        """Choose one, and lower the gains of those `at` that hold combinations which are now covered."""
        self.taken[best] = True
        self.rooms[self.layer[best]] -= self.cost[best]
        covered = np.ix_(*[self.ids[best]] * self.strength)
        news = self.left[covered].astype(np.float64)
        self.left[covered] = 0
        novel = np.flatnonzero(news.any(axis=tuple(range(1, self.strength))))
        news = news[np.ix_(*[novel] * self.strength)]
        same = self.narrow[at][:, novel] == self.narrow[best, novel]
        self.work += same.size
        self.gains[at] -= _held(same, news)

    def _fill(self, at: Ints) -> None:
        """Choose the rest by fleet share as far as it fits."""
        for h in at[np.lexsort((self.ties[at], -self.shares[at]))].tolist():
            if self.cost[h] <= self.rooms[self.layer[h]]:
                self.taken[h] = True
                self.rooms[self.layer[h]] -= self.cost[h]

    def _count(self) -> Floats:
        """Return what each cell would cover, float64 [H]; whole numbers."""
        gains = np.empty(len(self.ids))
        step = max(1, _CHUNK // len(self.sets))
        for begin in range(0, len(self.ids), step):
            ids = self.ids[begin : begin + step]
            gains[begin : begin + step] = self.left[tuple(ids[:, s] for s in self.sets.T)].sum(axis=1)
        return gains


def _held(same: Bools, news: Floats) -> Floats:
    """Add up the weights `news`, [n_factors] * strength, of what each row of `same` [n, n_factors] holds.

    Whole numbers below 2**53, so exact. Float64 [n].
    """
    row, f = np.nonzero(same)  # by row, and factors ascending in it: partners stand a few places further on
    total = np.zeros(len(same))
    first = np.arange(len(row))
    for step in range(1, same.shape[1]):
        first = first[first + step < len(row)]
        first = first[row[first] == row[first + step]]
        if not len(first):
            break
        if news.ndim == 2:
            total += np.bincount(row[first], news[f[first], f[first + step]], len(same))
            continue
        both = first
        for further in range(step + 1, same.shape[1]):
            both = both[both + further < len(row)]
            both = both[row[both] == row[both + further]]
            if not len(both):
                break
            total += np.bincount(row[both], news[f[both], f[both + step], f[both + further]], len(same))
    return total


def _adjusted(cells: pl.DataFrame, lacking: Bools, caps: Ints, floored: Bools) -> pl.DataFrame:
    """Write what was decided into feasible, cap, floor and rule."""
    given = {"pin": pl.Int64, "floor": pl.Int64, "cap": pl.Int64, "rule": pl.String}
    cells = cells.with_columns(pl.lit(None, dtype=t).alias(c) for c, t in given.items() if c not in cells.columns)
    cap, left_out = pl.Series(caps), pl.Series(lacking)
    text = (
        pl.when(left_out)
        .then(pl.lit("left out: no seeds ([cover])"))
        .when(cap == 0)
        .then(pl.lit("cap 0 ([cover]: beyond the budget)"))
        .when(cap > 0)
        .then(pl.format("cap {} ([cover]: the end of the budget)", cap))
    )
    one = pl.Series(floored & (caps != 0))
    return cells.with_columns(
        feasible=pl.col("feasible") & ~left_out,
        floor=pl.when(one & pl.col("pin").is_null()).then(pl.max_horizontal("floor", 1)).otherwise("floor"),
        cap=pl.when(cap >= 0).then(pl.min_horizontal("cap", cap)).otherwise("cap"),
        rule=pl.concat_str(pl.col("rule").replace("", None), text, separator="; ", ignore_nulls=True).replace("", None),
    )


def _budget_note(config: Config, choice: _Choice, usable: Bools, caps: Ints) -> str:
    what = "pairs" if choice.strength == 2 else "triples"
    chosen = usable & (caps != 0)
    rows = choice.codes[chosen]
    share = uncovered(choice.factors, rows, choice.strength, 0).share_covered
    floors = f"floors ({config.plan.floor_seeds} seeds each)" if config.plan.floor_seeds else "first draws"
    return (
        f"[cover]: the budget pays the {floors} of {int(chosen.sum()):,} of {int(usable.sum()):,} cells with seeds. "
        f"They are chosen by the {what} of values that they hold, {share:.1%} of the fleet's; the others get nothing "
        "in this plan."
    )


def _lacking_note(names: list[str]) -> str:
    n = len(names)
    shown = ", ".join(names[:MAX_NAMES]) + (f" and {n - MAX_NAMES:,} more" if n > MAX_NAMES else "")
    what = "cell has no seeds and is" if n == 1 else "cells have no seeds and are"
    return f"[cover]: {n:,} {what} left out: {shown}."
