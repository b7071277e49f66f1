"""The seeds that a purpose may buy, cell by cell in candidate order, with the K that each of them has.

Taking seeds in the order of a stored uniform number is simple random sampling without replacement, and a larger
number of draws only extends the list (Ohlsson 1995, permanent random numbers); with a size measure x the order is
by u/x (Duffield, Lund and Thorup 2007, priority sampling). Everything here works on whole columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..catalogs.frames import Candidates

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
RUN_SEEDS = 1 << 18
Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """The seeds a purpose buys from, in candidate order: by cell, then rank, then seed id.

    Arrays are [N] in candidate order. `cell` indexes the plan's cells, and `start` is [H+1]: cell h holds the
    positions start[h] to start[h+1]. `size` is None when every seed has size 1, and `rank` is prn / size. `decision`
    says whether the seed's future is open; `k_seed` is how many kept draws it offers, 0 where nothing may be bought.
    `at` maps a position to one in `candidates`, None when they are the same. `frozen_at` holds the positions of the
    seeds whose K was frozen, as they were given, -1 for one that is not in the frame.
    """

    candidates: Candidates
    at: Ints | None
    cell: NDArray[np.int32]
    prn: Floats
    rank: Floats
    size: Floats | None
    decision: Bools
    k_seed: NDArray[np.int32]
    start: Ints
    frozen_at: Ints

    @property
    def n_seeds(self) -> Ints:
        """Seeds per cell, int64 [H]."""
        return np.diff(self.start)

    def ids(self, positions: Ints) -> pl.Series:
        """Return the seed ids at these positions."""
        return self.candidates.ids(positions if self.at is None else self.at[positions])

    def find(self, seed_ids: pl.Series) -> Ints:
        """Return the positions of these seeds, int64 [M]; -1 for one that is not in the frame."""
        return _inside(self.at, self.candidates.find(seed_ids))


def build_frame(
    candidates: Candidates,
    cell_ids: NDArray[np.int32],
    planned: Bools,
    cell_k: Ints,
    *,
    cell_decision: Bools,
    frozen: pl.DataFrame | None = None,
    blocked: pl.Series | None = None,
) -> Frame:
    """Cut the candidates of one split down to the cells that are planned, and settle each seed's K.

    `cell_ids` [H] ascends; seeds of cells that are not `planned` [H], or not known, are left out. K is 1 where the
    future is not open (the seed says so, or says nothing and `cell_decision` [H] doesn't either), else the seed's own
    k, else `cell_k` [H]. A K in `frozen` [seed_id, k_seed] wins; seeds in `blocked` get 0: nothing may be bought there.
    """
    at, start = _keep_planned(candidates, cell_ids, planned)
    n_seeds = np.diff(start)
    cell = np.repeat(np.arange(len(cell_ids), dtype=np.int32), n_seeds)
    decision, k_seed = _settle(candidates, at, n_seeds, cell_k, cell_decision)
    frozen_at = np.zeros(0, dtype=np.int64)
    if frozen is not None and frozen.height:
        frozen_at = _inside(at, candidates.find(frozen["seed_id"]))
        there = frozen_at >= 0
        k_seed[frozen_at[there]] = frozen["k_seed"].to_numpy()[there]
    if blocked is not None and len(blocked):
        found = _inside(at, candidates.find(blocked))
        k_seed[found[found >= 0]] = 0
    return Frame(
        candidates=candidates,
        at=at,
        cell=cell,
        prn=_cut(candidates.prn, at),
        rank=_cut(candidates.rank, at),
        size=None if candidates.size is None else _cut(candidates.size, at),
        decision=decision,
        k_seed=k_seed,
        start=start,
        frozen_at=frozen_at,
    )


def _settle(
    candidates: Candidates, at: Ints | None, n_seeds: Ints, cell_k: Ints, cell_decision: Bools
) -> tuple[Bools, NDArray[np.int32]]:
    """Return which seeds are open, and the K of each; as few passes over all seeds as there is something to settle."""
    said, k_own = _cut(candidates.decision, at), _cut(candidates.k, at)
    decision = said > 0
    if cell_decision.any():
        decision |= (said < 0) & np.repeat(cell_decision, n_seeds)
    k_seed = np.repeat(cell_k.astype(np.int32), n_seeds)
    if k_own.any():
        np.copyto(k_seed, k_own, where=k_own > 0)
    np.copyto(k_seed, 1, where=~decision)
    return decision, k_seed


def _keep_planned(candidates: Candidates, cell_ids: NDArray[np.int32], planned: Bools) -> tuple[Ints | None, Ints]:
    """Return the candidates of planned cells (None for all of them) and where each cell's begin, [H+1]."""
    low = np.searchsorted(candidates.cell_id, cell_ids, side="left")
    n_seeds = np.where(planned, np.searchsorted(candidates.cell_id, cell_ids, side="right") - low, 0)
    start = np.concatenate([[0], np.cumsum(n_seeds)]).astype(np.int64)
    if start[-1] == len(candidates.cell_id):
        return None, start
    return np.arange(start[-1]) + np.repeat(low - start[:-1], n_seeds), start


def _cut(values: NDArray[Number], at: Ints | None) -> NDArray[Number]:
    return values if at is None else values[at]


def _inside(at: Ints | None, found: Ints) -> Ints:
    """Turn positions in the candidates into positions in the frame; -1 stays, and is what the frame left out gets."""
    if at is None or len(at) == 0:
        return found if at is None else np.full_like(found, -1)
    slot = np.minimum(np.searchsorted(at, found), len(at) - 1)
    return np.where(at[slot] == found, slot, -1)


def cell_runs(start: Ints) -> Iterator[tuple[int, int]]:
    """Cut the cells into runs [low, high) of some hundred thousand seeds, or of one cell that has more.

    Work on one run at a time stays in the processor's cache, where work on all seeds waits for memory.
    """
    low, n_cells = 0, len(start) - 1
    while low < n_cells:
        high = max(int(np.searchsorted(start, start[low] + RUN_SEEDS, side="right")) - 1, low + 1)
        yield low, high
        low = high


def sum_by_cell(frame: Frame, values: NDArray[np.integer] | Bools) -> Ints:
    """Add up a per-seed integer [N] over each cell; exact, int64 [H]."""
    total = np.zeros(len(frame.start) - 1, dtype=np.int64)
    for low, high in cell_runs(frame.start):
        begin = frame.start[low:high]
        filled = begin < frame.start[low + 1 : high + 1]  # one without seeds would get its neighbour's
        if filled.any():
            part = values[begin[0] : frame.start[high]].astype(np.int64)
            total[low:high][filled] = np.add.reduceat(part, begin[filled] - begin[0])
    return total


def running_total(values: NDArray[np.integer] | Bools) -> Ints:
    """Add up the values [N] before each place and before the end, int64 [N+1]."""
    total = np.empty(len(values) + 1, dtype=np.int64)
    total[0] = 0
    np.cumsum(values, dtype=np.int64, out=total[1:])
    return total


def slots(positions: Ints, of: Ints) -> Ints:
    """Return where each of the positions `of` stands in `positions`, which ascend and hold them all."""
    table = np.zeros(int(positions[-1]) + 1 if len(positions) else 0, dtype=np.int32)
    table[positions] = np.arange(len(positions), dtype=np.int32)
    at: Ints = table[of].astype(np.int64)
    return at


def first_seeds(frame: Frame, n: int) -> Ints:
    """Return the draws (K of each) of the first `n` seeds of every cell that offer any, int64 [H]."""
    begin, stop = frame.start[:-1], np.minimum(frame.start[:-1] + n, frame.start[1:])
    if not frame.k_seed.all():
        offers = running_total(frame.k_seed > 0)
        stop = np.clip(np.searchsorted(offers, offers[begin] + n), begin, frame.start[1:])
    counts = stop - begin
    last = np.cumsum(counts)
    positions = np.arange(int(counts.sum())) + np.repeat(begin - (last - counts), counts)
    total = running_total(frame.k_seed[positions])
    draws: Ints = total[last] - total[last - counts]
    return draws


def order_by_prn(frame: Frame, positions: Ints) -> Ints:
    """Return the order of these positions by prn, ties by seed id.

    Ties among 53-bit numbers are rare, so ids are compared only if there are any.
    """
    prn = frame.prn[positions]
    order: Ints = np.argsort(prn)
    ascending = prn[order]
    if np.any(ascending[1:] == ascending[:-1]):
        both = pl.DataFrame({"prn": prn, "seed_id": frame.ids(positions)})
        order = both.select(pl.arg_sort_by("prn", "seed_id")).to_series().to_numpy().astype(np.int64)
    return order
