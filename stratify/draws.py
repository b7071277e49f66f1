"""Which draws a plan buys: seeds in the order of their permanent random numbers, K draws of each.

Taking seeds in the order of a stored uniform number is simple random sampling without replacement, and a larger
number of draws only extends the list (Ohlsson 1995, permanent random numbers). Everything here works on whole
columns: a frame of ten million seeds is sorted once and walked by cumulative sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SEED_COLUMNS = ("seed_id", "cell_id", "prn", "decision_point", "k")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """The seeds a purpose buys from, in candidate order: by cell, then prn, then seed id.

    Arrays are [N] in candidate order. `start` is [H+1]: cell h holds the positions start[h] to start[h+1].
    `row` is the position of a seed in `seed_ids` and `decision_points`, which keep the order of the input.
    """

    seed_ids: pl.Series
    decision_points: NDArray[np.bool_]
    row: Ints
    cell: NDArray[np.int32]
    prn: Floats
    k_seed: NDArray[np.int32]
    start: Ints

    @property
    def n_seeds(self) -> Ints:
        """Seeds per cell, int64 [H]."""
        return np.diff(self.start)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Credits:
    """Draws that exist already, on seeds of the frame.

    `per_seed` int64 [N] counts them and `counted` caps that at K. `certain` bool [N] marks the seeds with a draw
    that no plan of ours asked for. `position` and `k` list each existing draw with k below the seed's K, sorted.
    """

    per_seed: Ints
    counted: Ints
    certain: NDArray[np.bool_]
    position: Ints
    k: Ints


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Taken:
    """The chosen draws: `fresh` int64 [N] per seed, and one entry per draw in generation order.

    Generation order is by prn over all cells (so any prefix is a balanced sample), a seed's draws together
    and ascending in k.
    """

    fresh: Ints
    position: Ints
    k: Ints


def build_frame(seeds: pl.DataFrame, cell_ids: NDArray[np.int32], planned: NDArray[np.bool_], cell_k: Ints) -> Frame:
    """Sort the seeds of one split [SEED_COLUMNS] into candidate order.

    `cell_ids` [H] ascends; seeds of cells that are not `planned` [H], or not known, are left out. K is 1 where the
    future is not multimodal, else the seed's own k, else `cell_k` [H].
    """
    seeds = seeds.select(SEED_COLUMNS).rechunk()
    raw_cell = seeds["cell_id"].to_numpy()
    cell = np.minimum(np.searchsorted(cell_ids, raw_cell), len(cell_ids) - 1).astype(np.int32)
    wanted = (cell_ids[cell] == raw_cell) & planned[cell]
    if not wanted.all():
        seeds, cell = seeds.filter(pl.Series(wanted)), cell[wanted]
    prn = seeds["prn"].to_numpy()
    by_prn = _order_by_prn(prn, seeds["seed_id"])
    row = by_prn[_stable_by_cell(cell[by_prn], len(cell_ids))]
    decision = seeds["decision_point"].to_numpy()
    k_own = seeds["k"].fill_null(0).cast(pl.Int32).to_numpy()
    k_seed = np.where(decision, np.where(k_own > 0, k_own, cell_k[cell]), 1).astype(np.int32)
    n_seeds = np.bincount(cell, minlength=len(cell_ids))
    return Frame(
        seed_ids=seeds["seed_id"],
        decision_points=decision,
        row=row,
        cell=cell[row],
        prn=prn[row],
        k_seed=k_seed[row],
        start=np.concatenate([[0], np.cumsum(n_seeds)]).astype(np.int64),
    )


def _order_by_prn(prn: Floats, seed_ids: pl.Series) -> Ints:
    """Sort by prn, ties by seed id. Ties among 53-bit numbers are rare, so ids are compared only if there are any."""
    order: Ints = np.argsort(prn)
    ascending = prn[order]
    if np.any(ascending[1:] == ascending[:-1]):
        both = pl.DataFrame({"prn": prn, "seed_id": seed_ids})
        order = both.select(pl.arg_sort_by("prn", "seed_id")).to_series().to_numpy()
    return order


def _stable_by_cell(cell: NDArray[np.int32], n_cells: int) -> Ints:
    """Sort stably by cell; 16-bit keys get numpy's radix sort, six times faster than the general one."""
    keys = cell.astype(np.uint16) if n_cells < 2**16 else cell
    order: Ints = np.argsort(keys, kind="stable")
    return order


def sum_by_cell(frame: Frame, values: NDArray[np.integer]) -> Ints:
    """Add up a per-seed integer [N] over each cell; exact, int64 [H]."""
    total: Ints = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    return total[frame.start[1:]] - total[frame.start[:-1]]


def first_seeds(frame: Frame, n: int) -> Ints:
    """Return the draws (K of each) of the first `n` seeds of every cell, int64 [H]."""
    total: Ints = np.concatenate([[0], np.cumsum(frame.k_seed, dtype=np.int64)])
    stop = np.minimum(frame.start[:-1] + n, frame.start[1:])
    return total[stop] - total[frame.start[:-1]]


def find_credits(frame: Frame, bought: pl.DataFrame) -> Credits:
    """Match existing draws [seed_id, k] to the frame; draws of other seeds and repeated rows count nothing.

    A column `planned` (true where absent) tells draws bought by plans from byproducts, which come from seeds that
    somebody else chose.
    """
    n = len(frame.row)
    nothing = np.zeros(0, dtype=np.int64)
    certain = np.zeros(n, dtype=np.bool_)
    if bought.height == 0:
        zeros = np.zeros(n, dtype=np.int64)
        return Credits(per_seed=zeros, counted=zeros, certain=certain, position=nothing, k=nothing)
    position_of_row = np.empty(n, dtype=np.int64)
    position_of_row[frame.row] = np.arange(n)
    index = pl.DataFrame({"seed_id": frame.seed_ids, "position": position_of_row})
    planned = pl.col("planned") if "planned" in bought.columns else pl.lit(True)
    draws = bought.lazy().select("seed_id", pl.col("k").cast(pl.Int64), planned=planned)
    draws = draws.group_by("seed_id", "k").agg(pl.col("planned").all())
    found = draws.collect().join(index, on="seed_id").sort("position", "k")
    certain[found.filter(~pl.col("planned"))["position"].to_numpy()] = True
    position, k = found["position"].to_numpy(), found["k"].to_numpy()
    per_seed = np.bincount(position, minlength=n)
    below = k < frame.k_seed[position]
    return Credits(
        per_seed=per_seed,
        counted=np.minimum(per_seed, frame.k_seed),
        certain=certain,
        position=position[below],
        k=k[below],
    )


def take_fresh(frame: Frame, credits: Credits, n_fresh: Ints) -> Taken:
    """Choose the first `n_fresh` [H] draws of each cell, in candidate order, that don't exist yet.

    A seed offers its K less the draws that exist of it; the last seed of a cell may give fewer than it offers,
    and a larger plan takes the rest of it first.
    """
    open_draws = frame.k_seed - credits.counted
    before = np.cumsum(open_draws) - open_draws
    first = np.concatenate([before, [0]])[np.minimum(frame.start[:-1], len(before))]
    left = np.repeat(n_fresh + first, frame.n_seeds) - before
    fresh = np.clip(left, 0, open_draws)
    seeds = np.flatnonzero(fresh)
    seeds = seeds[_order_by_prn(frame.prn[seeds], frame.seed_ids.gather(frame.row[seeds]))]
    counts = fresh[seeds]
    position = np.repeat(seeds, counts)
    k = np.arange(len(position)) - np.repeat(np.cumsum(counts) - counts, counts)
    partly = credits.per_seed[position] > 0
    if partly.any():
        k[partly] = _kth_open(frame, credits, position[partly], k[partly])
    return Taken(fresh=fresh, position=position, k=k)


def _kth_open(frame: Frame, credits: Credits, position: Ints, rank: Ints) -> Ints:
    """Return, for seeds that own draws already, the k of the `rank`-th one that doesn't exist yet."""
    seeds = np.unique(position)
    sizes = frame.k_seed[seeds].astype(np.int64)
    offset = np.cumsum(sizes) - sizes
    exists = np.zeros(int(sizes.sum()), dtype=np.bool_)
    at = np.searchsorted(seeds, credits.position)
    known = seeds[np.minimum(at, len(seeds) - 1)] == credits.position
    exists[offset[at[known]] + credits.k[known]] = True
    open_at = np.flatnonzero(~exists)  # ascending by seed, then k
    opens_before = np.searchsorted(open_at, offset)
    which = np.searchsorted(seeds, position)
    return np.asarray(open_at[opens_before[which] + rank] - offset[which], dtype=np.int64)
