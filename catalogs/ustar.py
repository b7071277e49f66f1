"""The layout of a shard: plain ustar entries ``{key}.{member}``, in bytes that depend on nothing else.

Mode is 0644; what a machine could put into a header (owner, time) is zero. Headers are laid out here and
not by `tarfile`, which costs 25 us an entry: of a header only name, size and checksum change, and the rest
is summed once.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import BinaryIO, NamedTuple

from .codec import member_order
from .errors import DistdataError

KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]+")
BLOCK_BYTES = 512
END_OF_ARCHIVE = bytes(2 * BLOCK_BYTES)
MAX_NAME_BYTES = 100  # the prefix field of ustar would only help names with a '/'
MAX_MEMBER_BYTES = 8**11 - 1  # eleven octal digits

ADVICE = "Run `distdata catalog check` to see what is lost, then `distdata generate --repair`."

_HEADER = struct.Struct("100s 24x 11s 122x 5s 250x")  # name, size in octal, magic
_OWNER = b"0000644\x00" + b"0000000\x00" * 2
_TIME = b"00000000000\x00"
_AFTER_CHECKSUM = b"0" + bytes(100) + b"ustar\x0000" + bytes(247)  # a regular file, no link, no owner's name
_CHECKSUM_BASE = sum(_OWNER) + sum(_TIME) + sum(_AFTER_CHECKSUM) + 8 * 0x20  # its own field counts as spaces


def parse_sample(data: bytes, source: object = "sample", offset: int = 0) -> dict[str, bytes]:
    """Split the bytes of one sample's range into its encoded members.

    `source` and `offset` say where `data` comes from. Raises DistdataError naming them when `data` is cut
    inside an entry or holds anything but entries of one key.
    """
    members: dict[str, bytes] = {}
    position, end, sample = 0, len(data), b""
    try:
        while position < end:
            # name_and_size, inlined: this loop is what random access costs beside the system's read
            name, size, magic = _HEADER.unpack_from(data, position)
            if magic != b"ustar":
                raise ValueError
            key, _, member = name.rstrip(b"\x00").partition(b".")
            if key != sample:
                if sample:
                    raise DistdataError(
                        f"{source}, byte {offset:,}: the range of sample {sample.decode()!r} runs into another's, "
                        f"{key.decode()!r}. {ADVICE}"
                    )
                sample = key
            start = position + BLOCK_BYTES
            position = start + int(size, 8)
            if position < start:
                raise ValueError
            members[member.decode()] = data[start:position]
            position = (position + BLOCK_BYTES - 1) & -BLOCK_BYTES
    except (ValueError, struct.error):
        raise _no_header(source, offset + position) from None
    if position != end or not sample:
        raise DistdataError(
            f"{source}, byte {offset:,}: {end:,} bytes are not a whole sample; its entries take {position:,}. {ADVICE}"
        )
    return members


class TarItem(NamedTuple):
    """One entry of an archive: its sample's key, its member, its header and its data (padding is zero)."""

    key: str
    member: str
    header: bytes
    data: bytes


class TarBreak(NamedTuple):
    """Where and why an archive can't be read on."""

    offset: int
    reason: str


def walk_archive(f: BinaryIO) -> Iterator[TarItem | TarBreak]:
    """Yield the archive's entries in order, and one `TarBreak` last if it is not whole."""
    offset = 0
    while True:
        header = f.read(BLOCK_BYTES)
        if len(header) < BLOCK_BYTES:
            yield TarBreak(offset, "no end of archive: the file is truncated")
            return
        if header.count(0) == BLOCK_BYTES:
            return
        if header[257:262] != b"ustar" or header[148:156] != b"%06o\x00 " % _checksum(header):
            yield TarBreak(offset, "no valid tar header")
            return
        if header[156:157] != b"0":
            yield TarBreak(offset, "an entry that is no plain file, which no shard holds,")
            return
        try:
            name, size = name_and_size(header)
        except DistdataError:
            yield TarBreak(offset, "no valid tar header")
            return
        data = f.read(size)
        padding = f.read(padded(size) - size)
        if len(data) + len(padding) < padded(size):
            yield TarBreak(offset, f"{name} is truncated")
            return
        if padding.count(0) < len(padding):
            yield TarBreak(offset, f"{name} has a damaged padding")
            return
        key, _, member = name.partition(".")
        yield TarItem(key, member, header, data)
        offset += BLOCK_BYTES + padded(size)


def tar_pieces(key: str, members: Sequence[tuple[str, bytes]]) -> tuple[list[bytes], int]:
    """Lay a sample out as tar: headers, data and paddings to write one after the other, and their total size.

    Raises ValueError for no members, a bad, repeated or overlong member name, or a member over 8 GiB.
    """
    if not members:
        raise ValueError(f"sample {key!r} has no members")
    _check_names(tuple([name for name, _ in members]))
    key_name = key.encode()
    key_sum = sum(key_name)
    pieces: list[bytes] = []
    n_bytes = 0
    for member, data in members:
        size = len(data)
        ending, middle, fixed_sum = _header_parts(member, size)
        name = key_name + ending
        if len(name) > MAX_NAME_BYTES:
            raise ValueError(
                f"{key}.{member}: {len(name)} bytes, a tar name holds {MAX_NAME_BYTES}; shorten one of both"
            )
        pieces.append(b"%b%b%06o\x00 %b" % (name.ljust(100, b"\x00"), middle, key_sum + fixed_sum, _AFTER_CHECKSUM))
        pieces.append(data)
        padding = -size % BLOCK_BYTES
        if padding:
            pieces.append(bytes(padding))
        n_bytes += BLOCK_BYTES + size + padding
    return pieces, n_bytes


@lru_cache(maxsize=4096)
def _header_parts(member: str, size: int) -> tuple[bytes, bytes, int]:
    """Return what a header says of a member of this size: its ending, the fields up to the checksum, their sum."""
    if size > MAX_MEMBER_BYTES:
        raise ValueError(f"{member}: {size:,} bytes, a tar member holds {MAX_MEMBER_BYTES:,}; split it")
    ending = f".{member}".encode()
    size_field = b"%011o\x00" % size
    return ending, _OWNER + size_field + _TIME, sum(ending) + sum(size_field) + _CHECKSUM_BASE


@lru_cache(maxsize=1024)
def _check_names(names: tuple[str, ...]) -> None:
    member_order(names)  # raises for what readers would not give back
    if len(set(names)) < len(names):
        raise ValueError(f"a member is there twice: {', '.join(names)}")


def name_and_size(header: bytes, source: object = "", offset: int = 0) -> tuple[str, int]:
    """Read the name and size out of a header; the magic is checked, the checksum is not.

    Raises DistdataError naming `source` and `offset` in it.
    """
    try:
        name, size, magic = _HEADER.unpack(header)
        n_bytes = int(size, 8)
        if magic != b"ustar" or n_bytes < 0:
            raise ValueError
        return name.rstrip(b"\x00").decode("ascii"), n_bytes
    except (ValueError, struct.error):
        raise _no_header(source, offset) from None


def _no_header(source: object, offset: int) -> DistdataError:
    return DistdataError(f"{source}, byte {offset:,}: no tar header where an entry should start. {ADVICE}")


def _checksum(header: bytes) -> int:
    return sum(header) - sum(header[148:156]) + 8 * 0x20


def padded(size: int) -> int:
    """Round a size up to whole tar blocks."""
    return (size + BLOCK_BYTES - 1) & -BLOCK_BYTES
