"""Read the logs of `log_byproduct`: whole records only, also while processes still write."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ...catalogs.errors import DistdataError
from .log import FRAME, LOG_ENDING, MARK

LOG_DEPTH = 2
"""How many folders down logs are looked for: one per service and machine, not a whole disk."""


class LogRecord(NamedTuple):
    """One whole record: where it lies, its head, and its encoded members; `wrong` says why it can't be read."""

    start: int
    stop: int
    head: dict[str, Any]
    members: dict[str, bytes]
    wrong: str | None = None


class TornEnd(NamedTuple):
    """What follows the last whole record of a file: a record that is being written, or that a kill cut off."""

    start: int
    n_bytes: int


def log_files(folder: Path) -> list[Path]:
    """List the log files of a folder and of those up to `LOG_DEPTH` below it, by path."""
    patterns = ["*/" * depth + f"*{LOG_ENDING}" for depth in range(LOG_DEPTH + 1)]
    return sorted(path for pattern in patterns for path in folder.glob(pattern))


def read_log(path: Path, start: int, stop: int) -> Iterator[LogRecord | TornEnd]:
    """Yield the records of a file from byte `start` that end at or before `stop`, then its torn end if it has one.

    A record whose bytes do not match their checksum is yielded with `wrong`: its frame says where the next one is.
    Without a valid frame nothing after it can be found, so that is where the file ends.

    Raises:
        DistdataError: the file can't be read.
    """
    try:
        with open(path, "rb") as f:
            f.seek(start)
            at = start
            while at + FRAME.size <= stop:
                mark, n_head, n_body, crc, frame_crc = FRAME.unpack(frame := f.read(FRAME.size))
                if mark != MARK or zlib.crc32(frame[:-4]) != frame_crc:
                    break
                end = at + FRAME.size + n_head + n_body
                if end > stop:
                    break
                yield _record(at, end, n_head, crc, f.read(n_head + n_body))
                at = end
    except OSError as e:
        raise DistdataError(f"{path}: can't be read ({os.strerror(e.errno or 0)}).") from None
    if at < stop:
        yield TornEnd(at, stop - at)


def _record(start: int, end: int, n_head: int, crc: int, data: bytes) -> LogRecord:
    if zlib.crc32(data) != crc:
        return LogRecord(start, end, {}, {}, "its bytes do not match their checksum")
    head = json.loads(data[:n_head])
    members, at = {}, n_head
    for name, n_bytes in head.pop("members"):
        members[name] = data[at : at + n_bytes]
        at += n_bytes
    return LogRecord(start, end, head, members)
