"""A teacher's own service keeps what it answers anyway: one call per answer, ready to be ingested.

    from distdata import log_byproduct

    log_byproduct("/var/log/distdata", seed_id="s42", outcome="braked", teacher_hash=HASH,
                  members={"x.npy": array}, score=0.93)

Every process appends to files of its own, so that neither processes nor machines share one. A record is handed to the
operating system whole before the call returns: it survives the death of the process, SIGKILL included; a power cut may
take what the system had not written yet (some 30 s), unless `sync` is given. Nothing is queued, so memory stays what
the arguments take. A file is ``frame | head (JSON) | members``, see `FRAME`; only the standard library is imported,
unless an array is given.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import struct
import sys
import threading
import time
import weakref
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...catalogs.errors import DistdataError

if TYPE_CHECKING:
    from ...catalogs.protocol import Member

FRAME = struct.Struct("<4sIQII")
"""Mark, bytes of the head, bytes of the members, CRC-32 of head and members, CRC-32 of the frame before it."""
MARK = b"DDby"
LOG_ENDING = ".ddlog"
FILE_BYTES = 256 << 20
SAY_EVERY_S = 60.0
MAX_PIECES = 512


class ByproductLog:
    """An open log folder; safe for threads, and after a fork each process goes on in a file of its own.

    `file_bytes` is the size from which on the next file is begun. `sync` waits for the disk at every call. `strict`
    raises where the disk refuses (full, gone), instead of returning False and counting it in `n_dropped`.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, file_bytes: int = FILE_BYTES, sync: bool = False, strict: bool = False
    ) -> None:
        if "://" in os.fspath(folder):
            raise DistdataError(
                f"log_byproduct: {os.fspath(folder)} is no folder of this machine. Object stores can't append; log to "
                "a local folder and copy its files from there."
            )
        self.folder = Path(folder)
        self.n_dropped = 0
        self._file_bytes, self._sync, self._strict = file_bytes, sync, strict
        self._said_s = -SAY_EVERY_S
        self._fd = -1
        self._size = 0
        self._forget()
        _open_logs.add(self)

    def write(
        self,
        *,
        members: Mapping[str, Member],
        seed_id: str | None = None,
        axes: Mapping[str, str] | None = None,
        scenario: str | None = None,
        params: Mapping[str, Any] | None = None,
        outcome: str | None = None,
        teacher_hash: str | None = None,
        teacher_version: str | None = None,
        group: str | None = None,
        key: str | None = None,
        **quality: Any,
    ) -> bool:
        """Keep one answer of the teacher; return whether it is kept.

        The condition is a seed's id, or axes, scenario and params. `key` names the answer once and for all, so that a
        repetition counts once (default: every call is an answer of its own). `quality` are values that the rules of
        an ingest mapping look at. An array goes to a ``.npy`` member, a mapping of arrays to ``.npz``; ``.json`` and
        ``.txt`` take what they say; bytes are taken as encoded already.

        Raises:
            ValueError, TypeError: arguments that no ingest could ever take (no condition, no teacher, a member that
                does not fit its name). Raised at once, whether the disk works or not.
            OSError: with `strict`, the disk refused.
        """
        if seed_id is None and (not axes or scenario is None):
            raise ValueError("log_byproduct: give seed_id, or axes and scenario")
        if teacher_hash is None and teacher_version is None:
            raise ValueError("log_byproduct: give teacher_hash or teacher_version")
        body = [_encode(name, value) for name, value in members.items()]
        if not body:
            raise ValueError("log_byproduct: no members")
        facts = {
            "key": key, "seed_id": seed_id, "axes": axes, "scenario": scenario, "params": params, "outcome": outcome,
            "teacher_hash": teacher_hash, "teacher_version": teacher_version, "group": group,
        }  # fmt: skip
        head: dict[str, Any] = {name: value for name, value in facts.items() if value is not None}
        head["quality"] = quality
        head["members"] = [[name, len(data)] for name, data in zip(members, body, strict=True)]
        return self._append(head, body)

    def flush(self) -> None:
        """Wait until everything written so far is on the disk."""
        with self._lock:
            if self._fd >= 0:
                os.fsync(self._fd)

    def close(self) -> None:
        """Close the current file; the next call begins another."""
        with self._lock:
            self._close()

    def _append(self, head: dict[str, Any], body: Sequence[bytes]) -> bool:
        with self._lock:
            if "key" not in head:
                head["key"] = f"{self._token}-{self._n_records}"
            self._n_records += 1
            text = _head_json(head)
            crc = zlib.crc32(text)
            for data in body:
                crc = zlib.crc32(data, crc)
            frame = FRAME.pack(MARK, len(text), sum(map(len, body)), crc, 0)[:-4]
            try:
                self._put([frame + zlib.crc32(frame).to_bytes(4, "little") + text, *body])
            except OSError as e:
                self.n_dropped += 1
                self._complain(e)
                if self._strict:
                    raise
                return False
        return True

    def _put(self, pieces: Sequence[bytes]) -> None:
        """Append all pieces or, whatever happens, none of them."""
        if self._fd < 0 or self._size >= self._file_bytes or os.fstat(self._fd).st_nlink == 0:
            self._begin()  # a file that somebody removed would take records and give none back
        if len(pieces) > MAX_PIECES:
            pieces = [b"".join(pieces)]
        start = self._size
        try:
            n_left = sum(map(len, pieces))
            n_written = os.writev(self._fd, pieces)
            if n_written < n_left:
                rest = memoryview(b"".join(pieces))[n_written:]
                while len(rest):
                    rest = rest[os.write(self._fd, rest) :]
            self._size = start + n_left
            if self._sync:
                os.fdatasync(self._fd)
        except BaseException:  # Ctrl-C too: what is half written must not stand before what follows
            self._take_back(start)
            raise

    def _take_back(self, start: int) -> None:
        try:
            os.ftruncate(self._fd, start)
            os.lseek(self._fd, start, os.SEEK_SET)
            self._size = start
        except OSError:
            self._close()  # its torn end is the end of that file

    def _begin(self) -> None:
        self._close()
        self.folder.mkdir(parents=True, exist_ok=True)
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        path = self.folder / f"{stamp}-{os.getpid()}-{self._token}-{self._n_files:05d}{LOG_ENDING}"
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._size = 0
        self._n_files += 1
        if self._sync:
            folder = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _forget(self) -> None:
        """Begin anew: at the start, and in the child of a fork, whose lock nobody is left to release."""
        self._lock = threading.Lock()
        self._token = secrets.token_hex(8)
        self._n_records = self._n_files = self._size = 0
        self._close()

    def _complain(self, error: OSError) -> None:
        """Say on stderr, at most once a minute, that answers are lost."""
        if time.monotonic() - self._said_s >= SAY_EVERY_S:
            self._said_s = time.monotonic()
            print(
                f"distdata: log_byproduct: {self.folder}: {error.strerror or error}: {self.n_dropped:,} answers were "
                "not kept so far",
                file=sys.stderr,
            )


_open_logs: weakref.WeakSet[ByproductLog] = weakref.WeakSet()
_by_folder: dict[tuple[str, bool, bool], ByproductLog] = {}
_choosing = threading.Lock()


def log_byproduct(folder: str | os.PathLike[str], *, sync: bool = False, strict: bool = False, **answer: Any) -> bool:
    """Keep one answer of a teacher in the log `folder`; return whether it is kept.

    See `ByproductLog.write` for what an answer is, and `ByproductLog` for `sync` and `strict`. Once it has returned
    True, `distdata ingest byproduct FOLDER` finds the answer, however the process ends.
    """
    name = (os.fspath(folder), sync, strict)
    log = _by_folder.get(name)
    if log is None:
        with _choosing:
            log = _by_folder.setdefault(name, ByproductLog(folder, sync=sync, strict=strict))
    return log.write(**answer)


def _after_fork() -> None:
    global _choosing
    _choosing = threading.Lock()
    for log in list(_open_logs):
        log._forget()


os.register_at_fork(after_in_child=_after_fork)


# as `catalogs.codec` has it, which loads numpy
_MEMBER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*\.[A-Za-z0-9]+")
_MAGIC = {"npy": b"\x93NUMPY", "npz": b"PK"}


def _head_json(head: Mapping[str, Any]) -> bytes:
    """Write a head; numbers and arrays of numpy as the numbers and lists that they are."""
    try:
        text = json.dumps(head, separators=(",", ":"), allow_nan=False, default=_as_plain)
        if "\\ud" in text:  # most often a character that JSON writes as two halves
            json.dumps(head, ensure_ascii=False, default=_as_plain).encode()
    except (TypeError, ValueError):
        for name, value in {**head, **head["quality"]}.items():
            try:
                json.dumps(value, ensure_ascii=False, allow_nan=False, default=_as_plain).encode()
            except (TypeError, ValueError) as e:
                if name != "quality":
                    raise _named(name, e) from None
        raise
    return text.encode()


def _as_plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is nothing that JSON has")


def _named(name: str, error: Exception) -> Exception:
    kind = TypeError if isinstance(error, TypeError) else ValueError
    return kind(f"log_byproduct: {name}: {error}")


def _encode(name: str, value: Member) -> bytes:
    """Encode a member as `catalogs.codec` does, which is imported for arrays alone."""
    if not _MEMBER.fullmatch(name) or name.lower() == "meta.json":
        raise ValueError(f"log_byproduct: member {name!r}: want name.ending, and not meta.json, which is written here")
    ending = name.rpartition(".")[2].lower()
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
        if not data.startswith(_MAGIC.get(ending, b"")):
            raise ValueError(f"log_byproduct: member {name}: these bytes are no .{ending} file")
        return data
    try:
        if ending == "txt" and isinstance(value, str):
            return value.encode()
        if ending == "json":
            return json.dumps(
                value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False, default=_as_plain
            ).encode()
    except (TypeError, ValueError) as e:
        raise _named(f"member {name}", e) from None
    from ...catalogs.codec import encode_member

    return encode_member(name, value)
