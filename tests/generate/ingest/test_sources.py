"""Files that are torn, damaged or of another kind stop with their name and the reason; nothing is half in."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distdata.catalogs.errors import DistdataError
from distdata.catalogs.files import TMP_PREFIX
from distdata.catalogs.project import Project
from distdata.catalogs.protocol import MemberSpec
from distdata.catalogs.shards import write_shard
from distdata.generate.ingest import samples
from distdata.generate.ingest.byproducts import ingest_byproduct
from distdata.generate.ingest.mapping import MemberRule
from distdata.generate.ingest.sources import open_source
from distdata.generate.ingest.values import member_value


def good_tar(world: Any, path: Path, n: int) -> Path:
    """Write an archive of n good samples."""
    facts = {"outcome": "low", "teacher_version": "1"}
    entries = [
        (
            f"g{i}",
            [("meta.json", json.dumps({**facts, "seed_id": f"s{i:02d}"}).encode()), ("x.npy", npy(world.answer(i)))],
        )
        for i in range(n)
    ]
    write_shard(path, entries)
    return path


def npy(array: Any) -> bytes:
    """Encode an array."""
    from distdata.catalogs.codec import encode_member

    return encode_member("x.npy", array)


def assert_untouched(world: Any, project: Project) -> None:
    """Assert that nothing was ingested and nothing is left lying about."""
    assert world.sql(project, "SELECT (SELECT count(*) FROM samples), (SELECT count(*) FROM ingests)") == [(0, 0)]
    assert [p for p in project.root.rglob("*") if "in-" in p.name or p.name.startswith(TMP_PREFIX)] == []


def test_a_torn_archive(world: Any, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut anywhere, between two members too, an archive is refused whole, although units of it were written already."""
    monkeypatch.setattr(samples, "BATCH_ROWS", 1)
    path = good_tar(world, tmp_path / "a.tar", 3)
    data = path.read_bytes()
    for cut, words in (
        (len(data) - 1024, "without an end of archive"), (4 * 1024, "ends at byte 4,096, after g1.x.npy"),
        (2 * 1024 + 700, "the file at 2,748: it was cut off"),
    ):  # fmt: skip
        path.write_bytes(data[:cut])
        with pytest.raises(DistdataError, match=rf"a\.tar: .*{words}"):
            ingest_byproduct(project, [path])
    damaged = bytearray(data)
    damaged[5 * 1024] ^= 0xFF  # the header of the third sample's array, which tarfile would take for the end
    path.write_bytes(damaged)
    with pytest.raises(DistdataError, match=r"a\.tar: byte 5,120, after g2\.meta\.json: no header.*try again"):
        ingest_byproduct(project, [path])
    assert_untouched(world, project)
    path.write_bytes(data)
    assert ingest_byproduct(project, [path]).n_taken == 3


def test_a_compressed_archive_that_is_cut(world: Any, project: Project, tmp_path: Path) -> None:
    """The end of a gzip stream is checked by gzip itself."""
    import gzip

    path = good_tar(world, tmp_path / "a.tar", 3)
    cut = gzip.compress(path.read_bytes())[:-200]
    (tmp_path / "b.tar.gz").write_bytes(cut)
    with pytest.raises(DistdataError, match=r"b\.tar\.gz: .*Nothing of this file was ingested"):
        ingest_byproduct(project, [tmp_path / "b.tar.gz"])
    assert_untouched(world, project)


def test_a_damaged_parquet_file(world: Any, project: Project, tmp_path: Path) -> None:
    """An altered page is found by its checksum, a missing end at once."""
    frame = pl.DataFrame({"seed_id": ["s00"] * 100, "x": [[float(i)] * 5 for i in range(100)]})
    path = tmp_path / "a.parquet"
    pq.write_table(frame.to_arrow(), path, write_page_checksum=True, compression="none")
    data = bytearray(path.read_bytes())
    data[data.index(b"s00") + 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DistdataError, match=r"a\.parquet: after row 0: .*"):
        ingest_byproduct(project, [path])
    path.write_bytes(data[:500])
    with pytest.raises(DistdataError, match=r"a\.parquet: after row 0: .*"):
        ingest_byproduct(project, [path])
    assert_untouched(world, project)


def test_bad_jsonl_names_the_line(world: Any, project: Project, tmp_path: Path) -> None:
    """A line that is no JSON object, or not text, stops the file; so does a file without rows."""
    path = tmp_path / "a.jsonl"
    for text, words in (
        (b'{"seed_id": "s00"}\n{"seed', "line 2: not valid JSON.*get it whole"),
        (b'{"seed_id": "s00"}\n[1]\n', "line 2: a row must be an object, got list"),
        (b'{"a": 1,}\n{"b": 2}\n', "line 1: not valid JSON.*every line is one JSON object"),
        (b'{"a": "caf\xe9"}\n', r"line 1: byte 11 is no UTF-8.*iconv -f latin1"),
        (b"\n\n", "holds no row"),
    ):
        path.write_bytes(text)
        with pytest.raises(DistdataError, match=f"a.jsonl: .*{words}"):
            ingest_byproduct(project, [path])
    assert_untouched(world, project)


def test_a_number_that_json_does_not_have_is_a_row_s_fault(world: Any, project: Project, tmp_path: Path) -> None:
    """NaN refuses its row alone; a byte order mark is no part of the first."""
    row = {"seed_id": "s00", "x": world.answer(0).tolist(), "outcome": "low", "teacher_version": "1"}
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row).encode() + b'\n{"x": [NaN]}\n')
    done = ingest_byproduct(project, [path])
    (group,) = done.refusals.groups.values()
    assert (done.n_taken, done.n_refused, group.first_row) == (1, 1, "a.jsonl line 2")
    assert group.example == "NaN is no JSON number."


def test_two_entries_of_one_name(project: Project, tmp_path: Path) -> None:
    """An archive that is whole but says one key twice is told so, by the key."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("d/same.x.npy", "d/same.x.npy"):
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(DistdataError, match=r"a\.tar: key 'd/same' comes twice.*give each sample a key of its own"):
        ingest_byproduct(project, [path])


def test_what_is_not_there_or_of_another_kind(project: Project, tmp_path: Path) -> None:
    """A missing file, an unknown ending and a folder without logs are named with what would do."""
    (tmp_path / "a.xml").write_text("")
    (tmp_path / "empty").mkdir()
    for name, words in (
        ("none.tar", "none.tar: not found"), ("a.xml", "unknown ending '.xml'. Read are .tar,"),
        ("empty", "empty: holds no log of log_byproduct"),
    ):  # fmt: skip
        with pytest.raises(DistdataError, match=words):
            ingest_byproduct(project, [tmp_path / name])


def test_files_before_a_torn_one_are_in(world: Any, project: Project, tmp_path: Path) -> None:
    """Each file is all or nothing by itself."""
    good, torn = good_tar(world, tmp_path / "a.tar", 2), good_tar(world, tmp_path / "b.tar", 4)
    torn.write_bytes(torn.read_bytes()[:-20_000])
    with pytest.raises(DistdataError, match=r"b\.tar"):
        ingest_byproduct(project, [good, torn])
    assert world.sql(project, "SELECT count(*) FROM samples") == [(2,)]


def test_a_file_that_grows_while_it_is_read(world: Any, tmp_path: Path) -> None:
    """What was read is not what was named by its content: the file is refused."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n' * 3)
    source = open_source(path, {})
    rows = source.rows()
    next(rows)
    with open(path, "a") as f:
        f.write('{"a": 2}\n')
    with pytest.raises(DistdataError, match="was changed while it was read"):
        list(rows)


F32 = MemberSpec(dtype="float32", shape=(None,))


@pytest.mark.parametrize(
    ("raw", "rule", "expected"),
    [
        ([1, 2], None, np.array([1, 2], np.float32)),
        (np.array([1.5]).tolist(), MemberRule.model_validate({"from": "a", "dtype": "float64"}), np.array([1.5])),
        (npy(np.array([3], np.int8)), None, np.array([3], np.int8)),
        ("AQI=", MemberRule.model_validate({"from": "a", "encoding": "base64"}), None),
        (pa.scalar([1.0, 2.0]), None, np.array([1, 2], np.float32)),
        (pa.scalar([[1, 2], [3, 4]]), None, np.array([[1, 2], [3, 4]], np.float32)),
        (pa.scalar({"values": [1, 2, 3, 4], "shape": [2, 2]}), None, np.array([[1, 2], [3, 4]], np.float32)),
    ],
)
def test_arrays_come_in_every_form(raw: Any, rule: MemberRule | None, expected: Any) -> None:
    """Nested lists, Arrow's and JSON's, `datasets`' flat form, a .npy's bytes: the same array of the stated dtype."""
    if expected is None:
        assert member_value("x.bin", raw, rule, None) == b"\x01\x02"
        return
    value = member_value("x.npy", raw, rule, F32)
    assert isinstance(value, np.ndarray)
    assert value.dtype == expected.dtype
    np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize(
    ("name", "raw", "spec", "words"),
    [
        ("x.npy", [1, 2], None, "JSON says no dtype"),
        ("x.npy", [1, [2]], F32, "no array"),
        ("x.npy", pa.scalar([[1], [2, 3]]), F32, "lists of 2 different lengths"),
        ("x.npy", pa.scalar([1, None]), F32, "1 of 2 numbers are missing"),
        ("x.npy", [300], MemberSpec(dtype="uint8", shape=(1,)), "values don't fit uint8"),
        ("x.npy", [1.5], MemberSpec(dtype="int32", shape=(1,)), "values don't fit int32"),
        ("t.txt", 5, None, "got int, want text"),
        ("v.mp4", "abc", None, "want bytes"),
    ],
)
def test_what_does_not_fit_is_said(name: str, raw: Any, spec: MemberSpec | None, words: str) -> None:
    """A value is never bent into its member: the error has the member's name and what is wrong."""
    with pytest.raises(ValueError, match=words):
        member_value(name, raw, None, spec)
