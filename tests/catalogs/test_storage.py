"""A folder and a URI behave the same: files appear whole, are listed sorted, and can be found by people."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from distdata.catalogs.errors import DistdataError
from distdata.catalogs.storage import Storage, StoredFile


@pytest.fixture(params=["folder", "uri", "fsspec"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    place = tmp_path / "data"
    location = {"folder": "data", "uri": f"file://{place}", "fsspec": f"local://{place}"}[request.param]
    return Storage(location, tmp_path, tmp_path / "scratch")


def _put(storage: Storage, name: str, data: bytes, *, exclusive: bool = False) -> None:
    path = storage.build_path(name)
    try:
        with open(path, "wb") as f:
            f.write(data)
            storage.commit(f, path, name, "it", exclusive=exclusive)
    finally:
        path.unlink(missing_ok=True)


def _no_links(*_: object, code: int = errno.EPERM) -> None:
    raise OSError(code, os.strerror(code))


def test_what_is_committed_is_there(storage: Storage, tmp_path: Path) -> None:
    """A committed file is listed, opened with seeks, hashed and addressed; its scratch copy is gone."""
    _put(storage, "plan/b.tar", b"0123456789")
    _put(storage, "plan/a.parquet", b"xy")
    _put(storage, "other/c", b"")
    assert storage.list("plan") == [StoredFile("plan/a.parquet", 2), StoredFile("plan/b.tar", 10)]
    assert (storage.exists("plan/b.tar"), storage.exists("plan/no")) == (True, False)
    with storage.open("plan/b.tar") as f:
        f.seek(4)
        assert f.read(3) == b"456"
    assert storage.sha256("plan/b.tar") == hashlib.sha256(b"0123456789").hexdigest()
    assert (tmp_path / "data" / "plan" / "b.tar").read_bytes() == b"0123456789"
    assert storage.address("plan/b.tar").endswith("data/plan/b.tar")
    assert [p for p in tmp_path.rglob("*") if p.is_file() and p.name.startswith(".tmp-")] == []


def test_what_is_removed_is_gone(storage: Storage) -> None:
    """Removing works, also of what is not there, and an absent folder is empty."""
    _put(storage, "plan/a", b"1")
    storage.remove("plan/a")
    storage.remove("plan/a")
    assert not storage.exists("plan/a")
    assert storage.list("plan") == []
    assert storage.list("never") == []


def test_opening_what_is_missing(storage: Storage) -> None:
    """A missing file is a FileNotFoundError, whatever holds it."""
    with pytest.raises(FileNotFoundError):
        storage.open("plan/no")


def test_the_first_committer_wins(tmp_path: Path) -> None:
    """With `exclusive`, a second commit of the same name is refused and the first one's bytes stay."""
    storage = Storage("data", tmp_path, tmp_path / "scratch")
    _put(storage, "plan/u.parquet", b"first", exclusive=True)
    with pytest.raises(FileExistsError):
        _put(storage, "plan/u.parquet", b"second", exclusive=True)
    assert (tmp_path / "data/plan/u.parquet").read_bytes() == b"first"
    _put(storage, "plan/u.parquet", b"third")
    assert (tmp_path / "data/plan/u.parquet").read_bytes() == b"third"
    assert [p.name for p in (tmp_path / "data/plan").iterdir()] == ["u.parquet"]


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_the_first_committer_wins_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """On a file system that refuses hard links an exclusive commit still keeps the first file, and leaves no other."""

    monkeypatch.setattr(os, "link", lambda *_: _no_links(code=code))
    storage = Storage("data", tmp_path, tmp_path / "scratch")
    _put(storage, "plan/u.parquet", b"first", exclusive=True)
    with pytest.raises(FileExistsError):
        _put(storage, "plan/u.parquet", b"second", exclusive=True)
    _put(storage, "plan/v.parquet", b"other", exclusive=True)
    files = {p.name: p.read_bytes() for p in (tmp_path / "data/plan").iterdir()}
    assert files == {"u.parquet": b"first", "v.parquet": b"other"}
    assert list((tmp_path / "scratch").iterdir()) == []


def test_many_commit_at_once_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 24 threads that commit one name on such a file system one wins, and the file is its own, whole."""
    monkeypatch.setattr(os, "link", _no_links)
    storage = Storage("data", tmp_path, tmp_path / "scratch")
    start = threading.Barrier(24)

    def commit(i: int) -> int | None:
        start.wait()
        try:
            _put(storage, "plan/u.parquet", bytes([i]) * 70_000, exclusive=True)
        except FileExistsError:
            return None
        return i

    with ThreadPoolExecutor(24) as pool:
        won = [i for i in pool.map(commit, range(24)) if i is not None]
    assert len(won) == 1
    assert (tmp_path / "data/plan/u.parquet").read_bytes() == bytes(won) * 70_000
    assert [p.name for p in (tmp_path / "data/plan").iterdir()] == ["u.parquet"]


def test_other_refusals_of_a_link_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk at the link is no missing feature: it is told, and nothing appears."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    storage = Storage("data", tmp_path, tmp_path / "scratch")
    with pytest.raises(DistdataError, match=r"the disk is full"):
        _put(storage, "plan/u", b"1", exclusive=True)
    assert list((tmp_path / "data/plan").iterdir()) == []


def test_half_built_files_are_hidden_and_cleaned(tmp_path: Path) -> None:
    """A temporary file is not listed, and cleaning removes it and nothing else."""
    storage = Storage("data", tmp_path, tmp_path / "scratch")
    _put(storage, "plan/a", b"1")
    half = storage.build_path("plan/b")
    half.write_bytes(b"half")
    assert storage.list("plan") == [StoredFile("plan/a", 1)]
    storage.clean_temporaries("plan")
    assert not half.exists()
    assert storage.exists("plan/a")


def test_an_absolute_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    """An absolute location does not depend on the project's folder."""
    storage = Storage(str(tmp_path / "far"), tmp_path / "project", tmp_path / "scratch")
    _put(storage, "a", b"1")
    assert (tmp_path / "far" / "a").read_bytes() == b"1"


@pytest.mark.parametrize("location", ["nosuch://bucket/x", "s4://bucket"])
def test_an_unknown_uri_is_refused(tmp_path: Path, location: str) -> None:
    """A URI that nothing opens is named, with what would work."""
    with pytest.raises(DistdataError, match=rf"storage {location}: can't be opened .*Use a folder, or a URI that"):
        Storage(location, tmp_path, tmp_path / "scratch")
