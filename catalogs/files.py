"""Durable local files: written whole or not at all, locked while in use.

The rule everywhere: temporary name -> write -> fsync -> rename -> fsync of the folder. Temporary names
start with ``.tmp-`` and are the only files that may ever be deleted without asking.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import BinaryIO

from .effects import effect
from .errors import BusyError, DistdataError

TMP_PREFIX = ".tmp-"
_NO_SUCH_PLACE = (
    errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ENOENT, errno.EBUSY, errno.EINVAL, errno.ELOOP,
)  # fmt: skip


@contextlib.contextmanager
def atomic_file(path: Path, point: str) -> Iterator[BinaryIO]:
    """Yield a file that appears under `path` complete and synced, or not at all.

    `point` names the effects (``{point}.write``, ``.fsync``, ``.rename``). A symbolic link stays one, and what it
    points to is replaced; a device or a pipe (``/dev/stdout``) is written to as it is, without effects. Raises
    DistdataError for a full disk or a place that can't be written, after removing the temporary file.
    """
    with disk_errors(path):
        if _is_device(path):
            with open(path, "wb") as f:
                yield f
            return
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        path = Path(os.path.realpath(path)) if path.is_symlink() else path
        tmp = temporary_beside(path)
        try:
            with open(tmp, "wb") as f:
                yield f
                effect(f"{point}.write")
                sync_file(f)
                effect(f"{point}.fsync")
            tmp.replace(path)
            effect(f"{point}.rename")
            sync_folder(path.parent)
        except BaseException:
            tmp.unlink(missing_ok=True)
            raise


def write_atomic(path: Path, data: bytes, point: str) -> None:
    """Write `data` to `path` durably (see `atomic_file`)."""
    with atomic_file(path, point) as f:
        f.write(data)


def temporary_beside(path: Path) -> Path:
    """Return an unused temporary name in the folder of `path`, which is made if it is missing."""
    make_folder(path.parent)
    return path.parent / f"{TMP_PREFIX}{os.getpid()}-{secrets.token_hex(4)}-{path.name}"


def make_folder(folder: Path) -> None:
    """Make a folder and the ones above it, unless they are there; raises NotADirectoryError where a file is."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None


def _is_device(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (S_ISREG(mode) or S_ISDIR(mode))


def sync_file(f: BinaryIO) -> None:
    """Flush a file's bytes to the disk."""
    f.flush()
    os.fsync(f.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename in it survives a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the system's refusals (full, read-only, not allowed, no such place) into a DistdataError naming `path`.

    FileExistsError passes: an exclusive commit means it.
    """
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DistdataError(
                f"{path}: the disk is full ({_free_bytes(path):,} bytes free in {path.parent}). Everything committed "
                "before is safe; free some space and run the same command again to go on."
            ) from e
        if e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise DistdataError(f"{path}: can't be written ({os.strerror(e.errno)}). Check the folder's owner.") from e
        if e.errno in _NO_SUCH_PLACE:
            raise DistdataError(f"{path}: can't be written ({os.strerror(e.errno)}). Name another file.") from e
        raise


def _free_bytes(path: Path) -> int:
    for folder in path.parents:
        if folder.exists():
            stat = os.statvfs(folder)
            return stat.f_bavail * stat.f_frsize
    return 0


@contextlib.contextmanager
def exclusive_lock(path: Path, busy: str, wait_s: float = 0.2) -> Iterator[None]:
    """Hold `path` locked against other processes; the lock dies with its holder, however that ends.

    Raises BusyError with the text `busy` (in which ``{holder}`` is replaced by the holder's process id)
    when another process still has it after `wait_s` seconds; never wait less than a moment, since `is_locked`
    holds the lock while it looks.
    """
    deadline = time.monotonic() + wait_s
    with disk_errors(path):
        make_folder(path.parent)
        f = open(path, "a+")  # noqa: SIM115 - closed just below; the opening alone is guarded
    with f:
        while True:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= deadline:
                    f.seek(0)
                    raise BusyError(busy.replace("{holder}", f.read().strip() or "unknown")) from None
                time.sleep(0.02)
        f.truncate(0)
        f.write(str(os.getpid()))
        f.flush()
        yield


def is_locked(path: Path) -> bool:
    """Tell whether a process holds `path` by `exclusive_lock` now."""
    try:
        with open(path) as f:
            fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file's bytes."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def check_digests(folder: Path, digests: Mapping[str, str], *names: str) -> None:
    """Raise ValueError when a file's SHA-256 is not the one in `digests`; a name not in there is not checked."""
    for name in names:
        if name in digests and sha256_file(folder / name) != digests[name]:
            raise ValueError(f"{name} does not match its digest")
