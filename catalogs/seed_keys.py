"""Seed ids of many millions of seeds, looked up both ways: which ids stand at these places, and where these ids stand.

Ids stay in the order in which they were read (`row`), so that more of them are only appended; the place of a row in
candidate order is a permutation. The index is one sorted 64-bit hash per id, under a hash seed with which no two ids
collide; what it finds is compared with the id itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from .errors import DistdataError

Rows = NDArray[np.int32]
Number = TypeVar("Number", bound=np.generic)
MAX_HASH_SEEDS = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HashIndex:
    """Hashes of all ids, uint64 [N] strictly ascending, and the row of each, int32 [N]; `seed` is the hash's own."""

    seed: int
    hashes: NDArray[np.uint64]
    rows: Rows


class IdColumn:
    """A column of ids in one or a few pieces, perhaps mapped from files; only what is asked for is read."""

    def __init__(self, pieces: Sequence[pa.Array]) -> None:
        self.pieces = [piece.cast(pa.large_string()) for piece in pieces if len(piece)]
        self._ends = np.cumsum([len(piece) for piece in self.pieces])

    @classmethod
    def of(cls, ids: pl.Series) -> IdColumn:
        """Make a column of one piece."""
        return cls([ids.cast(pl.String).rechunk().to_arrow()])

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.pieces else 0

    def take(self, rows: Rows) -> pa.Array:
        """Return the ids in these rows."""
        if len(self.pieces) == 1:
            return self.pieces[0].take(pa.array(rows))
        of_piece = np.searchsorted(self._ends, rows, side="right")
        parts, places = [pa.array([], pa.large_string())], [np.zeros(0, dtype=np.int64)]
        for i, piece in enumerate(self.pieces):
            mine = np.flatnonzero(of_piece == i)
            parts.append(piece.take(pa.array(rows[mine] - (self._ends[i] - len(piece)))))
            places.append(mine)
        back = np.empty(len(rows), dtype=np.int64)
        back[np.concatenate(places)] = np.arange(len(rows))
        return pa.concat_arrays(parts).take(pa.array(back))

    def series(self, first: int = 0) -> pl.Series:
        """Return all ids from row `first` on."""
        rows = pa.chunked_array(self.pieces, pa.large_string()).slice(first)
        series = pl.from_arrow(rows)
        assert isinstance(series, pl.Series), "a column becomes a series"
        return series


class SeedKeys:
    """The ids of N seeds: `ids` in the order of their rows, `row` int32 [N] the row at each place.

    Rows that came later may have an index of their own, so that the large one need not be made again for a few.
    """

    def __init__(self, ids: IdColumn, row: Rows, indexes: Sequence[HashIndex] = ()) -> None:
        self.ids = ids
        self.row = row
        self._indexes = list(indexes)
        self._place: Rows | None = None

    @property
    def indexes(self) -> list[HashIndex]:
        """The indexes by hash, one over all ids if none was given; made when they are first needed."""
        if not self._indexes:
            self._indexes = [build_index(self.ids.series())]
        return self._indexes

    def at(self, places: NDArray[np.int64]) -> pl.Series:
        """Return the ids at these places."""
        return pl.Series("seed_id", self.ids.take(self.row[places]), dtype=pl.String)

    def find(self, seed_ids: pl.Series) -> NDArray[np.int64]:
        """Return the places of these ids, int64 [M]; -1 for one that is not here."""
        found = np.full(len(seed_ids), -1, dtype=np.int64)
        if not len(seed_ids) or not len(self.row):
            return found
        left = np.arange(len(seed_ids))
        for index in self.indexes:
            if len(left) and len(index.rows):
                rows = self._rows(seed_ids if len(left) == len(seed_ids) else seed_ids.gather(left), index)
                there = rows >= 0
                found[left[there]] = self._places()[rows[there]]
                left = left[~there]
        return found

    def _rows(self, seed_ids: pl.Series, index: HashIndex) -> Rows:
        """Return the rows that one index knows for these ids, -1 where it knows none; int32 [M]."""
        found = np.full(len(seed_ids), -1, dtype=np.int32)
        hashes = hash_ids(seed_ids, index.seed)
        query = np.argsort(hashes)  # neighbours in the index are asked for together
        slot = np.minimum(np.searchsorted(index.hashes, hashes[query]), len(index.rows) - 1)
        hit = index.hashes[slot] == hashes[query]
        query, rows = query[hit], index.rows[slot[hit]]
        asked = seed_ids.cast(pl.String).rechunk().to_arrow().cast(pa.large_string())
        same = pc.equal(self.ids.take(rows), asked.take(pa.array(query))).to_numpy(zero_copy_only=False)
        found[query[same]] = rows[same]
        return found

    def _places(self) -> Rows:
        """Return the place of each row, int32 [N]."""
        if self._place is None:
            self._place = np.empty(len(self.row), dtype=np.int32)
            self._place[self.row] = np.arange(len(self.row), dtype=np.int32)
        return self._place


def hash_ids(seed_ids: pl.Series, seed: int) -> NDArray[np.uint64]:
    """Hash ids to uint64 [N]; equal over processes, not over versions of polars (see `hash_probe`)."""
    return seed_ids.cast(pl.String).hash(seed).to_numpy()


def hash_probe(seed: int) -> list[str]:
    """Return what this installation's hash makes of a few texts, to be compared with what another one made."""
    return [str(h) for h in hash_ids(pl.Series(["", "seed", "a-much-longer-seed-id-of-some-log-0123456789"]), seed)]


def build_index(ids: pl.Series, first_row: int = 0) -> HashIndex:
    """Hash and sort all ids, which are unique, under the first hash seed that keeps them apart."""
    for seed in range(MAX_HASH_SEEDS):
        hashes = hash_ids(ids, seed)
        rows = np.argsort(hashes).astype(np.int32)
        hashes = hashes[rows]
        if not np.any(hashes[1:] == hashes[:-1]):
            return HashIndex(seed=seed, hashes=hashes, rows=rows + np.int32(first_row))
    again = ids.filter(ids.is_duplicated())
    raise DistdataError(f"seeds: id {again[0] if len(again) else ids[0]!r} comes twice; seed ids must be unique.")


def join_indexes(indexes: Sequence[HashIndex], ids: IdColumn) -> HashIndex:
    """Make one index of several that cover `ids` together; hashed anew if two ids collide or the hashes differ."""
    first, *others = indexes
    for other in others:
        at = np.searchsorted(first.hashes, other.hashes)
        beside = np.minimum(at, max(len(first.hashes) - 1, 0))
        if other.seed != first.seed or (len(first.hashes) and np.any(first.hashes[beside] == other.hashes)):
            return build_index(ids.series())
        slots = Slots.of(at, len(first.hashes))
        hashes, rows = slots.merge(first.hashes, other.hashes), slots.merge(first.rows, other.rows)
        first = HashIndex(seed=first.seed, hashes=hashes, rows=rows)
    return first


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slots:
    """Where M new entries go among N old ones: `fresh` int64 [M], their places in the whole; `old` bool [N + M]."""

    fresh: NDArray[np.int64]
    old: NDArray[np.bool_]

    @classmethod
    def of(cls, at: NDArray[np.int64], n_old: int) -> Slots:
        """Make room before the old entries `at` [M], which ascend."""
        fresh = at + np.arange(len(at))
        old = np.ones(n_old + len(at), dtype=np.bool_)
        old[fresh] = False
        return cls(fresh=fresh, old=old)

    def merge(self, before: NDArray[Number], fresh: NDArray[Number]) -> NDArray[Number]:
        """Put old and new values together."""
        whole = np.empty(len(self.old), dtype=before.dtype)
        whole[self.old] = before
        whole[self.fresh] = fresh
        return whole
