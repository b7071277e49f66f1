"""A folder and a URI behave the same: files appear whole, are listed sorted, and can be found by people."""

from __future__ import annotations

import hashlib
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
