"""Write and read shards: plain ustar archives whose bytes depend on nothing but the samples.

A sample is a run of entries ``{key}.{member}``; webdataset, datasets, tar and Python's tarfile read them.
The writer records where each sample lies and the SHA-256 of exactly those bytes, headers included, so
that one sample is read without the rest and damage is found wherever it is. The layout itself is
`ustar`'s, durability (temporary name, fsync, rename) is `files.atomic_file`'s.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, NamedTuple, Self

from .errors import DistdataError
from .files import atomic_file
from .ustar import (
    ADVICE,
    BLOCK_BYTES,
    END_OF_ARCHIVE,
    KEY_PATTERN,
    TarBreak,
    name_and_size,
    padded,
    parse_sample,
    tar_pieces,
    walk_archive,
)

Digests = Literal["both", "samples", "none"]

_FLUSH_BYTES = 1 << 20
_DIRECT_BYTES = 1 << 16  # samples from here on go to the file without a copy, smaller ones many at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Where one sample lies: `n_bytes` from `offset`, the first header to the last padding byte.

    `sha256` is the hex digest of that range; empty when the writer was told not to compute it.
    """

    key: str
    offset: int
    n_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A finished shard: its entries in order, its size, and the hex SHA-256 of the whole file (or empty)."""

    entries: tuple[Entry, ...]
    n_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What a shard holds judged by itself: `entries` are whole, `n_intact_bytes` ends the last of them.

    `broken` says where and why reading stopped; None when the shard is complete.
    """

    entries: tuple[Entry, ...]
    n_intact_bytes: int
    broken: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """One sample that is not what its manifest says."""

    key: str
    offset: int
    reason: str


class StoredSample(NamedTuple):
    """One sample read in sequence: its key and its encoded members, in their order."""

    key: str
    members: dict[str, bytes]


class MemberRange(NamedTuple):
    """Where the bytes of one member lie in the file, header and padding left out."""

    offset: int
    n_bytes: int


class ShardWriter:
    """Append samples to an open, buffered binary file; nothing but `finish` makes it a complete archive.

    There is no ``with`` form on purpose: an exception must not leave an archive that looks finished.
    `digests` says which SHA-256 are computed: ``both`` of every sample and of the whole file (two passes),
    ``samples`` one pass, ``none`` no pass, for exports that need none. A pass runs at about 1.6 GB/s where
    the processor helps, a third of what writing alone does: beyond some 10 KB a sample it is most of the
    cost. It lets other threads run.
    """

    def __init__(self, file: BinaryIO, *, digests: Digests = "both") -> None:
        self._file = file
        self._hash_samples = digests != "none"
        self._shard_hash = hashlib.sha256() if digests == "both" else None
        self._entries: list[Entry] = []
        self._keys: set[str] = set()
        self._pending: list[bytes] = []
        self._n_pending_bytes = 0
        self._offset = 0

    def add(self, key: str, members: Sequence[tuple[str, bytes]]) -> Entry:
        """Append a sample with its encoded members in the given order, and return where it lies.

        Raises ValueError, with the file unchanged, for a key that is malformed or already in the shard, no
        members, a bad, repeated or overlong member name, or a member over 8 GiB.
        """
        if not KEY_PATTERN.fullmatch(key):
            raise ValueError(f"sample key {key!r} is not made of letters, digits, '_' and '-' (a dot would split it)")
        if key in self._keys:
            raise ValueError(f"sample key {key!r} is already in this shard")
        pieces, n_bytes = tar_pieces(key, members)
        sha256 = ""
        if self._hash_samples:
            digest = hashlib.sha256(pieces[0])
            for piece in pieces[1:]:
                digest.update(piece)
            sha256 = digest.hexdigest()
        entry = Entry(key=key, offset=self._offset, n_bytes=n_bytes, sha256=sha256)
        self._put(pieces, n_bytes)
        self._keys.add(key)
        self._entries.append(entry)
        return entry

    def finish(self) -> Shard:
        """Write what is pending and the end of the archive; the writer takes nothing more after that."""
        self._put([END_OF_ARCHIVE], len(END_OF_ARCHIVE))
        self._flush()
        sha256 = self._shard_hash.hexdigest() if self._shard_hash is not None else ""
        return Shard(entries=tuple(self._entries), n_bytes=self._offset, sha256=sha256)

    @property
    def n_bytes(self) -> int:
        """Bytes of the samples so far, so that a caller can start another shard in time."""
        return self._offset

    def _put(self, pieces: list[bytes], n_bytes: int) -> None:
        if n_bytes < _DIRECT_BYTES:
            self._pending.extend(pieces)
            self._n_pending_bytes += n_bytes
            if self._n_pending_bytes >= _FLUSH_BYTES:
                self._flush()
        else:
            self._flush()
            for piece in pieces:
                self._write(piece)
        self._offset += n_bytes

    def _flush(self) -> None:
        if self._pending:
            self._write(b"".join(self._pending))
            self._pending.clear()
            self._n_pending_bytes = 0

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        if self._shard_hash is not None:
            self._shard_hash.update(data)


def write_shard(
    path: Path,
    samples: Iterable[tuple[str, Sequence[tuple[str, bytes]]]],
    *,
    point: str = "shard",
    digests: Digests = "both",
) -> Shard:
    """Write samples (key, encoded members) to a new shard at `path`, durably: complete or not there at all.

    `point` names the effects (see `files.atomic_file`). Raises as `ShardWriter.add` and `atomic_file` do.
    """
    with atomic_file(path, point) as f:
        writer = ShardWriter(f, digests=digests)
        for key, members in samples:
            writer.add(key, members)
        return writer.finish()


class ShardReader:
    """Read single samples out of a shard by offset and size; safe to share between threads.

    It reads with ``pread`` and not through a memory map: a map of a file that shrinks or sits on a failing
    disk kills the process instead of raising.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY)
        except OSError as e:
            raise _unreadable(path, e) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self, offset: int, n_bytes: int) -> dict[str, bytes]:
        """Return the encoded members of the sample at `offset`, in their order.

        Raises DistdataError when the range is not whole entries of one sample. Contents are not compared
        with a digest here; `verify_entries` does that.
        """
        try:
            data = os.pread(self._fd, n_bytes, offset)
        except OSError as e:
            raise _unreadable(self.path, e) from None
        if len(data) != n_bytes:
            data = self._pread(offset, n_bytes)
        return parse_sample(data, self.path, offset)

    def ranges(self, offset: int, n_bytes: int) -> dict[str, MemberRange]:
        """Return where each member of the sample at `offset` lies, reading its headers only."""
        found = {}
        position, end = offset, offset + n_bytes
        while position < end:
            name, size = name_and_size(self._pread(position, BLOCK_BYTES), self.path, position)
            found[name.partition(".")[2]] = MemberRange(position + BLOCK_BYTES, size)
            position += BLOCK_BYTES + padded(size)
        if position != end:
            raise DistdataError(f"{self.path}, byte {offset:,}: {n_bytes:,} bytes are not a whole sample. {ADVICE}")
        return found

    def read_range(self, member: MemberRange) -> bytes:
        """Return the encoded bytes of one member (see `ranges`)."""
        return self._pread(member.offset, member.n_bytes)

    def iterate(self) -> Iterator[StoredSample]:
        """Yield all samples in order, checking every header.

        Raises DistdataError at the first damaged or missing byte of the layout, after the whole samples
        before it.
        """
        with _open(self.path) as f:  # a file position of its own
            key, members = "", dict[str, bytes]()
            for item in walk_archive(f):
                if isinstance(item, TarBreak):
                    raise DistdataError(f"{self.path}: {item.reason} at byte {item.offset:,}. {ADVICE}")
                if item.key != key and members:
                    yield StoredSample(key, members)
                    members = {}
                key = item.key
                members[item.member] = item.data
            if members:
                yield StoredSample(key, members)

    def _pread(self, offset: int, n_bytes: int) -> bytes:
        try:
            data = os.pread(self._fd, n_bytes, offset)
            while len(data) < n_bytes:  # the system hands out at most 2 GiB at a time
                more = os.pread(self._fd, n_bytes - len(data), offset + len(data))
                if not more:
                    raise _too_short(self.path, offset, n_bytes, os.fstat(self._fd).st_size)
                data += more
        except OSError as e:
            raise _unreadable(self.path, e) from None
        return data


def read_sample(source: Path | BinaryIO, offset: int, n_bytes: int) -> dict[str, bytes]:
    """Read one sample from a path or from any seekable binary file (an object store's, say).

    See `ShardReader.read`; to read several from one path, keep a `ShardReader`.
    """
    if isinstance(source, Path):
        with ShardReader(source) as reader:
            return reader.read(offset, n_bytes)
    name = getattr(source, "name", "open file")
    source.seek(offset)
    data = source.read(n_bytes)
    if len(data) < n_bytes:
        raise _too_short(name, offset, n_bytes, offset + len(data))
    return parse_sample(data, name, offset)


def scan(path: Path) -> Scan:
    """Find the samples of a shard without a manifest, with their digests, up to the first damage.

    Payload bytes that were altered in place are not noticed (that takes `verify_entries`). Without the
    end of the archive the last sample is left out, since it may lack members. Raises DistdataError only
    when the file can't be opened.
    """
    entries: list[Entry] = []
    key, start, position, digest = "", 0, 0, hashlib.sha256()
    broken: str | None = None

    def close_sample() -> None:
        if key:
            entries.append(Entry(key=key, offset=start, n_bytes=position - start, sha256=digest.hexdigest()))

    with _open(path) as f:
        for item in walk_archive(f):
            if isinstance(item, TarBreak):
                broken = f"{item.reason} at byte {item.offset:,}"
                break
            if item.key != key:
                close_sample()
                key, start, digest = item.key, position, hashlib.sha256()
            padding = padded(len(item.data)) - len(item.data)
            for piece in (item.header, item.data, bytes(padding)):
                digest.update(piece)
            position += BLOCK_BYTES + len(item.data) + padding
    if broken is None:
        close_sample()
    n_intact = entries[-1].offset + entries[-1].n_bytes if entries else 0
    return Scan(entries=tuple(entries), n_intact_bytes=n_intact, broken=broken)


def verify_entries(path: Path, entries: Iterable[Entry]) -> list[Damage]:
    """Compare a shard with its manifest, byte for byte of every entry; an empty list is a clean bill.

    Finds missing and unreadable files, truncation and any altered byte inside an entry. Raises ValueError
    for an entry without digest.
    """
    entries = list(entries)
    for entry in entries:
        if not entry.sha256:
            raise ValueError(f"sample {entry.key!r} has no sha256 to verify against")
    try:
        f = open(path, "rb", buffering=0)  # noqa: SIM115 - closed below; the opening alone is guarded
    except OSError as e:
        reason = "missing file" if isinstance(e, FileNotFoundError) else f"unreadable file: {os.strerror(e.errno or 0)}"
        return [Damage(key=entry.key, offset=entry.offset, reason=reason) for entry in entries]
    found = []
    with f:
        size = os.fstat(f.fileno()).st_size
        for entry in entries:
            damage = _entry_damage(f.fileno(), size, entry)
            if damage is not None:
                found.append(Damage(key=entry.key, offset=entry.offset, reason=damage))
    return found


def _entry_damage(fd: int, size: int, entry: Entry) -> str | None:
    end = entry.offset + entry.n_bytes
    if end > size:
        return f"truncated: ends at byte {end:,}, the file at {size:,}"
    digest = hashlib.sha256()
    position = entry.offset
    try:
        while position < end:
            data = os.pread(fd, min(end - position, _FLUSH_BYTES), position)
            if not data:
                return f"truncated: ends at byte {end:,}, the file at {position:,}"
            digest.update(data)
            position += len(data)
    except OSError as e:
        return f"unreadable: {os.strerror(e.errno or 0)}"
    got = digest.hexdigest()
    return None if got == entry.sha256 else f"altered: sha256 {got[:16]}, want {entry.sha256[:16]}"


def _open(path: Path) -> BinaryIO:
    try:
        return open(path, "rb", buffering=_FLUSH_BYTES)
    except OSError as e:
        raise _unreadable(path, e) from None


def _too_short(source: object, offset: int, n_bytes: int, size: int) -> DistdataError:
    return DistdataError(
        f"{source}: wanted bytes {offset:,} to {offset + n_bytes:,}, the file ends at {size:,}. {ADVICE}"
    )


def _unreadable(path: Path, e: OSError) -> DistdataError:
    if isinstance(e, FileNotFoundError):
        return DistdataError(f"{path}: the shard is missing. {ADVICE}")
    return DistdataError(f"{path}: can't be read ({os.strerror(e.errno or 0)}). {ADVICE}")
