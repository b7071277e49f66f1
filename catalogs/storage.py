"""Where shards and manifests live: a local folder, or any URI that pyarrow or fsspec opens.

Locally a file is built beside its final name, synced and renamed. On an object store it is built in a
local scratch folder and uploaded; the store makes it visible whole when the upload completes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from .effects import effect
from .errors import DistdataError
from .files import TMP_PREFIX, disk_errors, exclusive_lock, sync_file, sync_folder, temporary_beside

_URI = re.compile(r"^[a-z][a-z0-9+.-]+://")
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
COMMIT_WAIT_S = 30.0


class StoredFile(NamedTuple):
    """One file in a storage: its name relative to the storage's root, and its size in bytes."""

    name: str
    n_bytes: int


class Storage:
    """A folder of immutable files, addressed by names with ``/`` relative to its root.

    `location` is a path (relative ones are taken from `base`) or a URI such as ``s3://bucket/prefix``.
    """

    def __init__(self, location: str, base: Path, scratch: Path) -> None:
        self.location = location
        self._scratch = scratch
        self._remote: Any = None
        if _URI.match(location):
            self._remote, self._prefix = _open_filesystem(location)
            self.root: Path | None = None
        else:
            self.root = (base / location).resolve()

    def build_path(self, name: str) -> Path:
        """Return the unused local path at which to build the file `name` before `commit`."""
        path = self._scratch / Path(name).name if self.root is None else self.root / name
        with disk_errors(path):
            return temporary_beside(path)

    def commit(self, built: BinaryIO, built_path: Path, name: str, point: str, *, exclusive: bool = False) -> None:
        """Sync the open file `built` (at `built_path`) and make it appear as `name`, whole or not at all.

        With `exclusive` an existing `name` is kept and FileExistsError raised: the first committer wins
        (local storage only; an object store lets the last one win). Effects: ``{point}.write``,
        ``.fsync``, ``.rename`` or ``.put``.
        """
        with disk_errors(Path(name) if self.root is None else self.root / name):
            effect(f"{point}.write")
            sync_file(built)
            effect(f"{point}.fsync")
            if self.root is None:
                self._upload(built_path, name)
                effect(f"{point}.put")
                return
            target = self.root / name
            if exclusive:
                self._place_first(built_path, target)
            else:
                built_path.replace(target)
            effect(f"{point}.rename")
            sync_folder(target.parent)

    def _place_first(self, built_path: Path, target: Path) -> None:
        """Give a built file its final name unless that is taken; raises FileExistsError then.

        Where the file system has no hard links (FAT, some network and FUSE mounts), a lock in the scratch folder
        stands in for the link, so that a name never shows an empty file, whoever crashes.
        """
        try:
            os.link(built_path, target)
        except OSError as e:
            if e.errno not in _NO_LINKS:
                raise
        else:
            built_path.unlink()
            return
        lock = self._scratch / f"{hashlib.sha256(os.fsencode(target)).hexdigest()[:16]}.commit-lock"
        with exclusive_lock(lock, f"{target}: process {{holder}} is committing it; try again.", COMMIT_WAIT_S):
            taken = target.exists()
            if not taken:
                built_path.replace(target)
            lock.unlink(missing_ok=True)  # only now: whoever waits for it, or makes it anew, finds the name taken
        if taken:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))

    def _upload(self, source: Path, name: str) -> None:
        self._remote.create_dir(f"{self._prefix}/{name}".rsplit("/", 1)[0], recursive=True)
        with open(source, "rb") as src, self._remote.open_output_stream(f"{self._prefix}/{name}") as out:
            shutil.copyfileobj(src, out, 1 << 20)
        source.unlink()

    def open(self, name: str) -> BinaryIO:
        """Open `name` for reading with seeks; raises FileNotFoundError."""
        if self.root is not None:
            return open(self.root / name, "rb")
        return cast(BinaryIO, self._remote.open_input_file(f"{self._prefix}/{name}"))

    def list(self, folder: str) -> list[StoredFile]:
        """List the files directly in `folder`, sorted by name, without temporary ones; empty when missing."""
        if self.root is not None:
            path = self.root / folder
            if not path.is_dir():
                return []
            with os.scandir(path) as entries:
                found = [
                    StoredFile(f"{folder}/{e.name}", e.stat().st_size)
                    for e in entries
                    if e.is_file() and not e.name.startswith(TMP_PREFIX)
                ]
            return sorted(found)
        from pyarrow import fs

        selector = fs.FileSelector(f"{self._prefix}/{folder}", allow_not_found=True)
        infos = [i for i in self._remote.get_file_info(selector) if i.type == fs.FileType.File]
        return sorted(StoredFile(f"{folder}/{i.base_name}", i.size) for i in infos)

    def exists(self, name: str) -> bool:
        """Tell whether `name` is there."""
        if self.root is not None:
            return (self.root / name).exists()
        from pyarrow import fs

        return bool(self._remote.get_file_info(f"{self._prefix}/{name}").type == fs.FileType.File)

    def remove(self, name: str) -> None:
        """Delete `name`; nothing happens when it is gone already."""
        if self.root is not None:
            (self.root / name).unlink(missing_ok=True)
        elif self.exists(name):
            self._remote.delete_file(f"{self._prefix}/{name}")

    def sha256(self, name: str) -> str:
        """Return the hex SHA-256 of a stored file's bytes."""
        with self.open(name) as f:
            h = hashlib.sha256()
            while chunk := f.read(1 << 20):
                h.update(chunk)
            return h.hexdigest()

    def clean_temporaries(self, folder: str) -> None:
        """Remove what crashed writers left half-built in `folder`; call only while nobody writes there."""
        if self.root is not None and (self.root / folder).is_dir():
            for path in (self.root / folder).glob(f"{TMP_PREFIX}*"):
                path.unlink(missing_ok=True)

    def address(self, name: str) -> str:
        """Return the path or URI at which a person or another tool finds `name`."""
        if self.root is not None:
            return str(self.root / name)
        return f"{self.location.rstrip('/')}/{name}"


def _open_filesystem(uri: str) -> tuple[Any, str]:
    from pyarrow import ArrowInvalid, fs

    try:
        filesystem, prefix = fs.FileSystem.from_uri(uri)
        return filesystem, str(prefix).rstrip("/")
    except (ArrowInvalid, ValueError, OSError) as native:
        try:
            import fsspec  # type: ignore[import-untyped]

            filesystem, prefix = fsspec.core.url_to_fs(uri)
        except (ImportError, ValueError, OSError) as e:
            raise DistdataError(
                f"storage {uri}: can't be opened ({native}; {e}). Use a folder, or a URI that pyarrow.fs or fsspec "
                "knows, with its driver installed."
            ) from None
        return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), str(prefix).rstrip("/")
