"""The seeds of one split in candidate order: by cell, then by rank, then by id.

`rank` is the seed's permanent random number over its size, so that a beginning of a cell's list is a random sample
of it (see `stratify.frame`). Only seeds of the frame are candidates: those of byproducts and divergence cases have no
probability of being drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from .seed_keys import IdColumn, SeedKeys, Slots, build_index

FRAME = "frame"
_COLUMNS = ("seed_id", "cell_id", "prn", "decision_point", "k")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """The seeds of one split, arrays [N] in candidate order, perhaps mapped from a file: not to be written to.

    `size` is None when every seed has size 1; `rank` is prn / size. `decision` is 1 or 0 where the seed says whether
    it is a decision point, and -1 where it doesn't; `k` is the seed's own K, 0 where it has none.
    """

    cell_id: NDArray[np.int32]
    prn: NDArray[np.float64]
    size: NDArray[np.float64] | None
    rank: NDArray[np.float64]
    decision: NDArray[np.int8]
    k: NDArray[np.int16]
    keys: SeedKeys

    def ids(self, positions: NDArray[np.int64]) -> pl.Series:
        """Return the seed ids at these positions."""
        return self.keys.at(positions)

    def find(self, seed_ids: pl.Series) -> NDArray[np.int64]:
        """Return the positions of these seeds, int64 [M]; -1 for one that is not here."""
        return self.keys.find(seed_ids)


def candidates_of(seeds: pl.DataFrame, split: str) -> Candidates:
    """Sort the seeds of one split into candidate order.

    `seeds` has seed_id (unique), cell_id, split, prn in [0, 1), decision_point and k (null: unsaid); optionally size
    (null: 1) and origin (null: frame).
    """
    of_split = pl.col("split") == split
    if "origin" in seeds.columns:
        of_split &= pl.col("origin").fill_null(FRAME) == FRAME
    columns = [*_COLUMNS, *(["size"] if "size" in seeds.columns else [])]
    return arrange(seeds.lazy().filter(of_split).select(columns).collect())


def arrange(seeds: pl.DataFrame) -> Candidates:
    """Sort seeds [seed_id, cell_id, prn, decision_point, k, perhaps size] into candidate order."""
    seeds = seeds.rechunk()
    cell_id = seeds["cell_id"].cast(pl.Int32).to_numpy()
    prn = seeds["prn"].to_numpy()
    size = seeds["size"].cast(pl.Float64).fill_null(1.0).to_numpy() if "size" in seeds.columns else None
    if size is not None and np.all(size == 1):
        size = None
    rank = rank_of(prn, size)
    row = _order(cell_id, rank, seeds["seed_id"])
    sorted_prn = prn[row]
    return Candidates(
        cell_id=cell_id[row],
        prn=sorted_prn,
        size=None if size is None else size[row],
        rank=sorted_prn if size is None else rank[row],
        decision=seeds["decision_point"].cast(pl.Int8).fill_null(-1).to_numpy()[row],
        k=seeds["k"].fill_null(0).cast(pl.Int16).to_numpy()[row],
        keys=SeedKeys(IdColumn.of(seeds["seed_id"]), row),
    )


def rank_of(prn: NDArray[np.float64], size: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Return prn over size, float64 [N]; a size of None is 1."""
    if size is None:
        return prn
    with np.errstate(over="ignore"):  # beside a size next to nothing any number is large
        return prn / size


def _order(cell_id: NDArray[np.int32], rank: NDArray[np.float64], seed_ids: pl.Series) -> NDArray[np.int32]:
    """Return the rows in order of cell, rank and id, int32 [N].

    One 64-bit key per seed is sorted, three times faster than by columns: the cell's bits, then as many leading bits
    of the rank as fit (the bits of floats >= 0 ascend with them). Rows whose keys are equal are then put in order.
    """
    n_bits = int(cell_id.max(initial=0)).bit_length()
    key = (rank + 0.0).view(np.uint64) << np.uint64(1) >> np.uint64(n_bits)  # no sign bit; -0.0 becomes 0.0
    if n_bits:
        key |= cell_id.astype(np.uint64) << np.uint64(64 - n_bits)
    order = np.argsort(key).astype(np.int32)
    key = key[order]
    tie = key[1:] == key[:-1]
    if np.any(tie):
        tied = np.flatnonzero(np.concatenate([tie, [False]]) | np.concatenate([[False], tie]))
        rows = order[tied]
        among = pl.DataFrame({"cell": cell_id[rows], "rank": rank[rows], "seed_id": seed_ids.gather(rows)})
        order[tied] = rows[among.select(pl.arg_sort_by("cell", "rank", "seed_id")).to_series().to_numpy()]
    return order


def merge(old: Candidates, fresh: Candidates) -> Candidates | None:
    """Put two lists of different seeds into one; None when ranks tie, which is left to sorting."""
    n_old = len(old.prn)
    at = _places_among(old, fresh)
    if at is None:
        return None
    slots = Slots.of(at, n_old)
    size = None
    if old.size is not None or fresh.size is not None:
        size = slots.merge(_sizes(old), _sizes(fresh))
    prn = slots.merge(old.prn, fresh.prn)
    row = slots.merge(old.keys.row, fresh.keys.row + np.int32(n_old))
    ids = IdColumn([*old.keys.ids.pieces, *fresh.keys.ids.pieces])
    return Candidates(
        cell_id=slots.merge(old.cell_id, fresh.cell_id),
        prn=prn,
        size=size,
        rank=rank_of(prn, size),
        decision=slots.merge(old.decision, fresh.decision),
        k=slots.merge(old.k, fresh.k),
        keys=SeedKeys(ids, row, [*old.keys.indexes, build_index(fresh.keys.ids.series(), n_old)]),
    )


def _places_among(old: Candidates, fresh: Candidates) -> NDArray[np.int64] | None:
    """Return before which old seed each fresh one goes, int64 [M]; None if a rank in a cell comes twice.

    All fresh seeds are bisected at once, each inside its own cell.
    """
    low = np.searchsorted(old.cell_id, fresh.cell_id, side="left")
    end = np.searchsorted(old.cell_id, fresh.cell_id, side="right")
    high = end.copy()
    while np.any(open_ := low < high):
        middle = (low + high) // 2
        below = np.zeros(len(low), dtype=np.bool_)
        below[open_] = old.rank[middle[open_]] < fresh.rank[open_]
        low = np.where(open_ & below, middle + 1, low)
        high = np.where(open_ & ~below, middle, high)
    inside = low < end
    if np.any(old.rank[low[inside]] == fresh.rank[inside]):
        return None
    return low


def _sizes(candidates: Candidates) -> NDArray[np.float64]:
    return np.ones(len(candidates.prn)) if candidates.size is None else candidates.size
