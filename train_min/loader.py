"""Read the samples of a snapshot in a weighted random order that can be taken up at any step.

**Order.** Weights act on how often a sample is drawn, not on its loss: a batch of B samples is then B samples' worth
of gradient, where loss weights of a fleet's spread (1 to 1,000) would leave a handful that count. An epoch has as many
places as there are samples, and sample i gets floor or ceil of n w_i / sum(w) of them by systematic sampling (Madow
1949): one uniform offset over the randomly permuted samples, so that the expected number is exactly n w_i / sum(w).
With equal weights every sample comes exactly once. The order is a function of (seed, epoch), so that a step's batch
depends on nothing but the step.

**Reading.** Only the members that are asked for leave the disk: where they lie is guessed from the sample before,
and the guess is checked against the entry's own header, which names sample and member.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..catalogs.codec import decode_member
from ..catalogs.errors import DistdataError
from ..catalogs.hashing import hash64
from ..catalogs.storage import Storage
from ..catalogs.ustar import ADVICE, BLOCK_BYTES, name_and_size, padded, parse_sample
from .job import WeightColumn, clean_rows

WEIGHT_COLUMNS: Mapping[WeightColumn, str] = {"plan": "weight", "fleet": "fleet_weight"}
_LEAD = 2  # batches that each worker may be ahead
_GIVE_UP = 64
_MAX_LAYOUTS = 4096
WHOLE_BELOW_BYTES = 8192
"""Samples smaller than that are read whole: a guess that fails costs a second read, and there is little to save."""
_SIZE_AT = 124  # of a header: its size field


class Place(NamedTuple):
    """Where an order stands: `position` places of `epoch` are gone."""

    epoch: int
    position: int


class _PlacedMember(NamedTuple):
    """One member in a layout; `suffix` is what its name in the archive ends with, its zero byte included."""

    member: str
    suffix: bytes
    at: int
    size: int
    size_field: bytes


class Layout(NamedTuple):
    """Where the members lie in a sample, from its start; `first` and `end` enclose them."""

    first: int
    end: int
    places: tuple[_PlacedMember, ...]


class Order:
    """An endless order over N samples in which sample i's share of every epoch is w_i / sum(w).

    An epoch has as many places as samples of positive weight. `weights`: float64 [N], finite, not negative.
    Not for several threads at once.
    """

    def __init__(self, weights: NDArray[np.float64], seed: int, name: str = "samples") -> None:
        self._rows = np.flatnonzero(weights > 0)
        self._weights = weights[self._rows]
        self._seed, self._name = seed, name
        self._epoch, self._order = -1, self._rows
        self._even = self._weights.size > 0 and bool((self._weights == self._weights[0]).all())

    def __len__(self) -> int:
        return int(self._rows.size)

    def place(self, n_drawn: int) -> Place:
        """Return where the order stands after `n_drawn` places."""
        return Place(*divmod(n_drawn, len(self)))

    def rows(self, n_drawn: int, n: int) -> NDArray[np.int64]:
        """Return the `n` rows that follow the first `n_drawn`, int64 [n]; a batch may cross epochs."""
        parts = []
        while n > 0:
            epoch, position = self.place(n_drawn)
            part = self.epoch(epoch)[position : position + n]
            parts.append(part)
            n_drawn, n = n_drawn + part.size, n - part.size
        return np.concatenate(parts) if len(parts) != 1 else parts[0]

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Return an epoch's rows in their order, int64 [len]."""
        if epoch != self._epoch:
            rng = np.random.Generator(np.random.Philox(hash64("train/order", self._name, self._seed, epoch)))
            shuffled = rng.permutation(self._rows.size)
            if not self._even:
                shuffled = rng.permutation(_systematic(self._weights[shuffled], shuffled, rng.random()))
            self._epoch, self._order = epoch, self._rows[shuffled]
        return self._order


def _systematic(weights: NDArray[np.float64], items: NDArray[np.int64], offset: float) -> NDArray[np.int64]:
    """Return len(items) of `items` in proportion to their weights, by one offset in [0, 1)."""
    n = items.size
    ends = np.cumsum(weights)
    picks = np.searchsorted(ends * (n / ends[-1]), np.arange(n) + offset, side="right")
    return items[np.minimum(picks, n - 1)]  # rounding may leave the last end a bit below n


class _Layouts:
    """Where members lay in samples read before: a guess at where they lie in the next one.

    A layout is, for each member, where its header begins from the sample's start, and its size. Samples of the same
    size mostly have the same layout; else the last one is tried, as long as that pays.
    """

    def __init__(self) -> None:
        self._by_size: dict[int, Layout] = {}
        self._last: Layout | None = None
        self._balance = 0

    def guesses(self, n_bytes: int) -> Iterator[Layout]:
        same = self._by_size.get(n_bytes)
        if same is not None:
            yield same
        last = self._last
        if last is not None and last is not same and self._balance > -_GIVE_UP:
            self._balance -= 1
            yield last

    def learn(self, n_bytes: int, layout: Layout) -> None:
        if layout is self._last:
            self._balance = min(self._balance + 2, _GIVE_UP)
        elif len(self._by_size) < _MAX_LAYOUTS:
            self._by_size[n_bytes] = layout
        self._last = layout


class StoredSamples:
    """The decoded members of a frame's samples: each shard opened once, what fits kept in memory.

    `members` are the ones read; a sample that lacks one is damaged. Arrays are read-only. Safe to share between
    threads.
    """

    def __init__(
        self, storage: Storage, frame: pl.DataFrame, members: Sequence[str], *, cache_bytes: int = 2 << 30
    ) -> None:
        self.frame, self.members = frame, tuple(dict.fromkeys(members))
        self.clean = clean_rows(frame)
        self._files = _Shards(storage)
        columns = frame.select("sample_id", "shard", "offset", "n_bytes")
        self._where: list[tuple[str, str, int, int]] = list(columns.iter_rows())
        self._layouts = _Layouts()
        self._cache: dict[int, dict[str, Any]] = {}
        self._room_bytes = cache_bytes
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Return the sample of a row: its members by name, `weight` 1.0, `clean`, `row`.

        Raises DistdataError naming sample and shard when it is not there as the frame says.
        """
        members = self._cache.get(row)
        if members is None:
            encoded = self.read(row)
            members = self._decoded(row, encoded)
            self._keep(row, members, sum(map(len, encoded.values())))
        return {**members, "weight": 1.0, "clean": bool(self.clean[row]), "row": row}

    def _keep(self, row: int, members: dict[str, Any], n_bytes: int) -> None:
        with self._lock:
            if n_bytes <= self._room_bytes and row not in self._cache:
                self._room_bytes -= n_bytes
                self._cache[row] = members

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield all samples in the frame's order."""
        return (self[row] for row in range(len(self)))

    def whole(self, row: int) -> dict[str, Any]:
        """Return all members of one sample, decoded, whatever `members` are."""
        return self._decoded(row, self._parse(row))

    def read(self, row: int) -> dict[str, bytes]:
        """Return the encoded members of one sample, past the cache."""
        _, _, start, n_bytes = self._where[row]
        for layout in self._layouts.guesses(n_bytes) if n_bytes >= WHOLE_BELOW_BYTES else ():
            found = self._try(row, start, n_bytes, layout)
            if found is not None:
                self._layouts.learn(n_bytes, layout)
                return found
        whole = self._parse(row)
        missing = [member for member in self.members if member not in whole]
        if missing:
            raise self._damaged(row, f"no member {missing[0]}; it has {', '.join(whole)}")
        found = {member: whole[member] for member in self.members}
        self._layouts.learn(n_bytes, _layout(whole, self.members))
        return found

    def _try(self, row: int, start: int, n_bytes: int, layout: Layout) -> dict[str, bytes] | None:
        """Read the members where `layout` has them, in one piece; None when their headers are not there."""
        first, end = layout.first, layout.end
        if end > n_bytes:
            return None
        data = self._bytes(row, start + first, end - first)
        prefix = f"{self._where[row][0]}.".encode()
        found = {}
        for member, suffix, at, size, size_field in layout.places:
            header = at - first
            name = prefix + suffix
            if not data.startswith(name, header) or not data.startswith(size_field, header + _SIZE_AT):
                return None
            found[member] = data[header + BLOCK_BYTES : header + BLOCK_BYTES + size]
        return found

    def _parse(self, row: int) -> dict[str, bytes]:
        """Read a whole sample and check all its entries."""
        sample_id, _, start, n_bytes = self._where[row]
        data = self._bytes(row, start, n_bytes)
        try:
            found = parse_sample(data, "", start)
            key = name_and_size(data[:BLOCK_BYTES])[0].partition(".")[0]
        except DistdataError as e:
            raise self._damaged(row, _first_sentence(e)) from None
        if key != sample_id:
            raise self._damaged(row, f"sample {key} lies there")
        return found

    def _bytes(self, row: int, offset: int, n_bytes: int) -> bytes:
        shard = self._where[row][1]
        try:
            data = self._files.read(shard, offset, n_bytes)
        except FileNotFoundError:
            raise self._damaged(row, "the shard is missing") from None
        except OSError as e:
            raise self._damaged(row, f"the shard can't be read ({e.strerror or e})") from None
        if len(data) < n_bytes:
            raise self._damaged(row, f"the shard ends at byte {offset + len(data):,}, the sample later")
        return data

    def _decoded(self, row: int, encoded: Mapping[str, bytes]) -> dict[str, Any]:
        try:
            return {member: decode_member(member, data) for member, data in encoded.items()}
        except ValueError as e:
            raise self._damaged(row, str(e)) from None

    def _damaged(self, row: int, what: str) -> DistdataError:
        sample_id, shard, offset, _ = self._where[row]
        return DistdataError(
            f"sample {sample_id} can't be read from {self._files.storage.address(shard)} at byte {offset:,}: {what}. "
            f"{ADVICE}"
        )


def _layout(whole: Mapping[str, bytes], members: Sequence[str]) -> Layout:
    """Return where `members` lie in a sample whose entries are `whole`, in their order."""
    at, starts = 0, {}
    for member, data in whole.items():
        starts[member] = at
        at += BLOCK_BYTES + padded(len(data))
    places = tuple(
        _PlacedMember(m, f"{m}\x00".encode(), starts[m], len(whole[m]), b"%011o" % len(whole[m])) for m in members
    )
    first = min((p.at for p in places), default=0)
    return Layout(first, max((p.at + BLOCK_BYTES + p.size for p in places), default=0), places)


def _first_sentence(error: DistdataError) -> str:
    """Return what is wrong, without the place and the advice that the message around it gives."""
    return str(error).lstrip(", ").removesuffix(ADVICE).rstrip(". ")


class _Shards:
    """Open shards by name, each once; past the system's limit the one that was used longest ago is closed."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._open: OrderedDict[str, _OpenShard] = OrderedDict()
        self._lock = threading.Lock()
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._limit = max(8, (soft if soft > 0 else 1024) // 2)

    def read(self, shard: str, offset: int, n_bytes: int) -> bytes:
        with self._lock:
            file = self._open.get(shard)
            if file is None:
                file = self._open[shard] = _OpenShard(self.storage.open(shard))
                if len(self._open) > self._limit:
                    self._open.popitem(last=False)  # closes when its last reader lets go of it
            elif len(self._open) >= self._limit:
                self._open.move_to_end(shard)
        return file.read(offset, n_bytes)


class _OpenShard:
    """An open shard: by `pread` where it is a file of the system's, else by seeking under a lock."""

    def __init__(self, file: BinaryIO) -> None:
        self._fd = -1
        self._file = file
        self._lock = threading.Lock()
        with contextlib.suppress(OSError, AttributeError):
            self._fd = os.dup(file.fileno())
            file.close()

    def read(self, offset: int, n_bytes: int) -> bytes:
        if self._fd < 0:
            with self._lock:
                self._file.seek(offset)
                return self._file.read(n_bytes)
        data = os.pread(self._fd, n_bytes, offset)
        while len(data) < n_bytes:  # the system hands out at most 2 GiB at a time
            more = os.pread(self._fd, n_bytes - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


class Batches:
    """Batches of samples by step: `n_clean` of each are clean ones, in an order of their own.

    Raises DistdataError when the frame has no samples to draw, weights that are none, or a `clean_share` without clean
    samples.
    """

    def __init__(
        self, frame: pl.DataFrame, *, batch: int, seed: int, weights: WeightColumn = "plan", clean_share: float = 0.0
    ) -> None:
        clean = clean_rows(frame)
        values = sample_weights(frame, weights)
        self.n_clean = _n_clean(batch, clean_share)
        self.n_teacher = batch - self.n_clean
        self.teacher = Order(np.where(clean, 0.0, values), seed, "teacher")
        self.clean = Order(np.where(clean, values, 0.0), seed, "clean")
        if self.n_teacher and not len(self.teacher):
            raise DistdataError(
                f"none of the {frame.height:,} samples is a teacher's draw of positive {WEIGHT_COLUMNS[weights]}. "
                "Train from another snapshot, or with clean_share = 1."
            )
        if self.n_clean and not len(self.clean):
            raise DistdataError(
                f"clean_share = {clean_share:g}, but none of the {frame.height:,} samples is clean (source 'clean', "
                f"positive {WEIGHT_COLUMNS[weights]}). Add clean targets to the snapshot, or set clean_share = 0."
            )

    def rows(self, step: int) -> NDArray[np.int64]:
        """Return the rows of one step's batch, teacher draws first, int64 [batch]."""
        parts = []
        if self.n_teacher:
            parts.append(self.teacher.rows(step * self.n_teacher, self.n_teacher))
        if self.n_clean:
            parts.append(self.clean.rows(step * self.n_clean, self.n_clean))
        return np.concatenate(parts)


def _n_clean(batch: int, clean_share: float) -> int:
    """Return how many of a batch are clean: in proportion to what they weigh, at least one of each kind there is."""
    if clean_share <= 0 or clean_share >= 1:
        return batch if clean_share >= 1 else 0
    if batch < 2:
        raise DistdataError(f"batch = {batch} can't hold a teacher's draw and a clean one; set batch to 2 or more.")
    return min(max(round(batch * clean_share), 1), batch - 1)


def sample_weights(frame: pl.DataFrame, weights: WeightColumn) -> NDArray[np.float64]:
    """Return the weights of a frame's samples, float64 [N].

    Raises DistdataError for a missing, NaN, infinite or negative one.
    """
    column = WEIGHT_COLUMNS[weights]
    values = frame[column].cast(pl.Float64).fill_null(math.nan).to_numpy()
    bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if bad.size:
        i = int(bad[0])
        shown = frame[column][i]
        raise DistdataError(
            f"{bad.size:,} of {frame.height:,} samples have no usable {column}; {frame['sample_id'][i]} has "
            f"{'none' if shown is None else shown}. It must be a finite number, 0 or more."
            + (" Train with plan weights instead." if weights == "fleet" else "")
        )
    return np.asarray(values, np.float64)


def read_ahead(
    samples: StoredSamples,
    rows_of: Callable[[int], NDArray[np.int64]],
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
    start: int,
    stop: int,
    n_workers: int,
) -> Generator[dict[str, Any], None, None]:
    """Yield the collated batches of steps `start` to `stop`, in order, read ahead by threads (0: by none).

    Threads and not processes: reading and numpy's and torch's copies let others run, and nothing has to be
    sent from one process to another.
    """

    def make(rows: list[int]) -> dict[str, Any]:
        return collate([samples[row] for row in rows])

    if n_workers == 0:
        for step in range(start, stop):
            yield make(rows_of(step).tolist())
        return
    pool = ThreadPoolExecutor(n_workers, thread_name_prefix="loader")
    waiting: deque[Future[dict[str, Any]]] = deque()
    try:
        for step in range(start, stop):
            waiting.append(pool.submit(make, rows_of(step).tolist()))
            if len(waiting) >= _LEAD * n_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
