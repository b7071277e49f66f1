"""A query's result in every form, to stdout and to a file."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distdata.catalogs.errors import DistdataError
from distdata.catalogs.output import write_result

TABLE = pa.table({"cell": ["night,rain/cross", 'a "quoted" one', None], "n": [3, None, 0], "p": [0.5, float("nan"), 1]})


def _write(kind: str, out: Path | None, table: pa.Table = TABLE) -> None:
    write_result(table, kind, out, width=100, color=False)


def test_csv_reads_back(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Commas and quotes survive, null is an empty field, the header comes first."""
    _write("csv", None)
    rows = list(csv.reader(io.StringIO(capfdbinary.readouterr().out.decode())))
    assert rows == [
        ["cell", "n", "p"],
        ["night,rain/cross", "3", "0.5"],
        ['a "quoted" one', "", "nan"],
        ["", "0", "1.0"],
    ]


def test_json_is_strict(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """JSON is an array of objects that any parser takes: NaN and infinity become null, also inside lists."""
    nested = pa.table({"v": [[1.0, float("inf")], None], "s": [{"x": float("nan")}, {"x": 2.0}]})
    _write("json", None)
    _write("json", None, nested)
    first, second = capfdbinary.readouterr().out.decode().splitlines()
    assert json.loads(first, parse_constant=_refuse) == [
        {"cell": "night,rain/cross", "n": 3, "p": 0.5},
        {"cell": 'a "quoted" one', "n": None, "p": None},
        {"cell": None, "n": 0, "p": 1.0},
    ]
    assert json.loads(second, parse_constant=_refuse) == [
        {"v": [1.0, None], "s": {"x": None}},
        {"v": None, "s": {"x": 2.0}},
    ]


def _refuse(word: str) -> float:
    raise AssertionError(f"{word} is not JSON")


def test_table_shows_every_row(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """The text table has the header and each value."""
    _write("table", None)
    text = capfdbinary.readouterr().out.decode()
    for word in ("cell", "night,rain/cross", 'a "quoted" one', "0.5"):
        assert word in text


def test_parquet_and_arrow_files_read_back(tmp_path: Path) -> None:
    """Binary forms written to a file hold the same table."""
    _write("parquet", tmp_path / "new" / "a.parquet")
    _write("arrow", tmp_path / "a.arrow")
    assert pq.read_table(tmp_path / "new" / "a.parquet").to_pylist()[0] == TABLE.to_pylist()[0]
    assert pa.ipc.open_stream((tmp_path / "a.arrow").read_bytes()).read_all().schema == TABLE.schema


def test_empty_result(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """A result without rows is a header in CSV and an empty array in JSON."""
    empty = TABLE.slice(0, 0)
    _write("csv", None, empty)
    _write("json", None, empty)
    _write("table", None, empty)
    assert capfdbinary.readouterr().out.decode().startswith("cell,n,p\n[]\n")


def test_unknown_form_is_refused(tmp_path: Path) -> None:
    """An unknown form names the nearest, and no file appears."""
    with pytest.raises(DistdataError, match=r"--format parket: unknown\. Did you mean 'parquet'\?"):
        _write("parket", tmp_path / "a")
    assert not list(tmp_path.iterdir())
