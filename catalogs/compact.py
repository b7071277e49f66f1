"""Join small shards into larger ones: which, by a plan that repeats itself; and how, without re-encoding.

Units of a minute would end as millions of small files. Joining copies the samples' bytes as they are, so
every digest stays valid and only offsets move, by one number for all samples of a shard. Registering the
new shard and removing the old ones is the catalog's work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .errors import DistdataError
from .ustar import END_OF_ARCHIVE

TARGET_BYTES = 256 * 10**6
_COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPart:
    """A finished shard that may be joined: its whole size and the hex SHA-256 of the file, as its manifest says.

    An empty `sha256` leaves the copied bytes unchecked.
    """

    path: Path
    n_bytes: int
    sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Shards to join, two or more, in their order; `n_bytes` is the size of the result."""

    parts: tuple[ShardPart, ...]
    n_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A joined shard: `deltas[i]` is what to add to every offset of part i; size and hex SHA-256 of the file."""

    deltas: tuple[int, ...]
    n_bytes: int
    sha256: str


def plan_compaction(shards: Sequence[ShardPart], target_bytes: int = TARGET_BYTES) -> list[Group]:
    """Choose which neighbours to join into shards of at most `target_bytes`; the order of samples is kept.

    Shards of at least half the target stay as they are, so that what was joined once is not copied again
    each time a few small ones follow. The same list gives the same groups, and the plan of a list whose
    groups were joined is empty.
    """
    groups: list[Group] = []
    run: list[ShardPart] = []
    n_run_bytes = 0

    def close_run() -> None:
        if len(run) > 1:
            groups.append(Group(parts=tuple(run), n_bytes=n_run_bytes + len(END_OF_ARCHIVE)))
        run.clear()

    for part in shards:
        n_data_bytes = part.n_bytes - len(END_OF_ARCHIVE)
        if 2 * part.n_bytes >= target_bytes:
            close_run()
            continue
        if run and n_run_bytes + n_data_bytes + len(END_OF_ARCHIVE) > target_bytes:
            close_run()
        if not run:
            n_run_bytes = 0
        run.append(part)
        n_run_bytes += n_data_bytes
    close_run()
    return groups


def join_shards(parts: Sequence[ShardPart], out: BinaryIO) -> Joined:
    """Write the samples of all parts to `out` one after the other, as one archive, in constant memory.

    Raises DistdataError when a part is missing, has another size than stated, does not end like a shard,
    or has other bytes than its digest says: damage must not be copied under a fresh digest. What was
    written to `out` is then no archive; the caller drops it (`files.atomic_file` does).
    """
    whole = hashlib.sha256()
    deltas: list[int] = []
    n_bytes = 0
    for part in parts:
        deltas.append(n_bytes)
        n_bytes += _copy_samples(part, out, whole)
    out.write(END_OF_ARCHIVE)
    whole.update(END_OF_ARCHIVE)
    return Joined(deltas=tuple(deltas), n_bytes=n_bytes + len(END_OF_ARCHIVE), sha256=whole.hexdigest())


def _copy_samples(part: ShardPart, out: BinaryIO, whole: hashlib._Hash) -> int:
    """Copy a shard without its end of archive, check it against what `part` says, and return the size copied."""
    own = hashlib.sha256() if part.sha256 else None
    left = part.n_bytes - len(END_OF_ARCHIVE)
    try:
        source = open(part.path, "rb", buffering=0)  # noqa: SIM115 - closed below; the opening alone is guarded
    except FileNotFoundError:
        raise DistdataError(f"{part.path}: the shard to join is missing. Run `distdata catalog check` first.") from None
    with source:
        size = source.seek(0, 2)
        if size != part.n_bytes:
            raise DistdataError(
                f"{part.path}: {size:,} bytes, its manifest says {part.n_bytes:,}. Run `distdata catalog check` first."
            )
        source.seek(0)
        while left > 0:
            data = source.read(min(left, _COPY_BYTES))
            if not data:
                raise DistdataError(f"{part.path}: shrank while it was read. Run `distdata catalog check` first.")
            out.write(data)
            whole.update(data)
            if own is not None:
                own.update(data)
            left -= len(data)
        end = source.read()
    if end != END_OF_ARCHIVE:
        raise DistdataError(f"{part.path}: does not end like a shard. Run `distdata catalog check` first.")
    if own is not None:
        own.update(end)
        if own.hexdigest() != part.sha256:
            raise DistdataError(
                f"{part.path}: sha256 {own.hexdigest()[:16]}, its manifest says {part.sha256[:16]}. "
                "Run `distdata catalog check` to see which samples are damaged; nothing was joined."
            )
    return part.n_bytes - len(END_OF_ARCHIVE)
