"""One stored sample is read back from any storage, or refused by the address of its shard."""

from __future__ import annotations

from pathlib import Path

import pytest

from distdata.catalogs.errors import DistdataError
from distdata.catalogs.samples import read_stored
from distdata.catalogs.shards import write_shard
from distdata.catalogs.storage import Storage

FIRST = [("a.txt", b"one"), ("b.bin", bytes(600))]
SECOND = [("a.txt", b"two")]


@pytest.fixture(params=["folder", "uri", "fsspec"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    place = tmp_path / "data"
    location = {"folder": "data", "uri": f"file://{place}", "fsspec": f"local://{place}"}[request.param]
    return Storage(location, tmp_path, tmp_path / "scratch")


def test_each_sample_is_read_by_its_place(storage: Storage, tmp_path: Path) -> None:
    """The members come back in their order, of the one sample that was asked for."""
    shard = write_shard(tmp_path / "data/p/s.tar", [("x", FIRST), ("y", SECOND)])
    for entry, members in zip(shard.entries, (FIRST, SECOND), strict=True):
        found = read_stored(storage, "p/s.tar", entry.offset, entry.n_bytes)
        assert list(found.items()) == members


def test_what_can_not_be_read_is_named(storage: Storage, tmp_path: Path) -> None:
    """A missing, short or foreign shard is refused with its address and the commands that mend it."""
    path = tmp_path / "data/p/s.tar"
    entry = write_shard(path, [("x", FIRST)]).entries[0]
    whole = path.read_bytes()
    for data, offset, said in (
        (whole[:700], 0, r"is too short: wanted 2,560 bytes from byte 0, got 700\."),
        (whole, 512 * 40, r"is too short"),
        (bytes(len(whole)), 0, r"no tar header where an entry should start"),
        (None, 0, r"is missing\."),
    ):
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(DistdataError, match=said) as caught:
            read_stored(storage, "p/s.tar", offset, entry.n_bytes)
        assert f"shard {storage.address('p/s.tar')}" in str(caught.value)
        assert str(caught.value).endswith(
            "Run `distdata catalog check` to see what is lost, then `distdata generate --repair`."
        )
        path.write_bytes(whole)
