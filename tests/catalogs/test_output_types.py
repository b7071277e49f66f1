"""Every type that a query can give is written in every form, or refused with the cast that helps."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distdata.catalogs.errors import DistdataError
from distdata.catalogs.output import write_result


def _ask(sql: str) -> pa.Table:
    with duckdb.connect() as con:
        return con.sql(sql).to_arrow_table()


def _bytes(table: pa.Table, kind: str, folder: Path) -> bytes:
    write_result(table, kind, folder / "out", width=200, color=False)
    return (folder / "out").read_bytes()


def _cells(table: pa.Table, folder: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(_bytes(table, "csv", folder).decode())))[1:]


def _objects(table: pa.Table, folder: Path) -> Any:
    return json.loads(_bytes(table, "json", folder))


def _parquet(table: pa.Table, folder: Path) -> pa.Table:
    return pq.read_table(io.BytesIO(_bytes(table, "parquet", folder)))


TEXTS = {
    "'infinity'::timestamp": "infinity",
    "'-infinity'::timestamp": "-infinity",
    "'infinity'::timestamptz": "infinity",
    "'-infinity'::timestamptz": "-infinity",
    "'infinity'::timestamp_s": "infinity",
    "'infinity'::timestamp_ns": "infinity",
    "'infinity'::date": "infinity",
    "'-infinity'::date": "-infinity",
    "date '0044-03-15 (BC)'": "-0043-03-15",
    "date '12345-01-01'": "12345-01-01",
    "timestamp '12345-01-01 06:00:00'": "12345-01-01 06:00:00.000000",
    "interval '14 months 3 days 4.5 seconds'": "14 months 3 days 4.5 seconds",
    "interval '-2 days'": "-2 days",
    "interval '0 days'": "0 seconds",
    "'100000 seconds'::interval": "100000 seconds",
    "date '2026-11-22'": "2026-11-22",
    "timestamp '2026-11-22 01:02:03'": "2026-11-22 01:02:03",
    "time '12:00:01'": "12:00:01",
    r"'\xFF\x00ab\x22'::blob": r"\xFF\x00ab\x22",
    "'plain'::blob": "plain",
}


@pytest.mark.parametrize("value", TEXTS)
def test_a_value_is_written_as_text(tmp_path: Path, value: str) -> None:
    """Dates, times, intervals and bytes of any kind have one text in CSV and JSON, beside a null and a usual value."""
    table = _ask(f"select {value} a union all select null")
    assert _cells(table, tmp_path) == [[TEXTS[value]], [""]]
    assert _objects(table, tmp_path) == [{"a": TEXTS[value]}, {"a": None}]
    assert _bytes(table, "table", tmp_path)
    assert len(_parquet(table, tmp_path)) == 2
    assert _bytes(table, "arrow", tmp_path)


@pytest.mark.parametrize(
    "value", [v for v in TEXTS if "interval" in v or ("blob" in v) or v.startswith("'infinity'::date")]
)
def test_the_text_is_duckdbs_own(value: str) -> None:
    """DuckDB reads the text of an interval, of bytes and of an endless date back as the very same value."""
    kind = value.rpartition("::")[2] if "::" in value else "interval"
    text = TEXTS[value].replace("'", "''")
    with duckdb.connect() as con:
        assert con.sql(f"select '{text}'::{kind} = {value}").fetchall() == [(True,)]


def test_endless_among_usual_timestamps(tmp_path: Path) -> None:
    """A timestamp without end changes no other value of its column."""
    table = _ask("select unnest(['infinity'::timestamp, timestamp '2026-01-02 03:04:05', null]) a")
    assert _cells(table, tmp_path) == [["infinity"], ["2026-01-02 03:04:05"], [""]]
    assert _objects(table, tmp_path)[1] == {"a": "2026-01-02 03:04:05"}


def test_intervals_in_parquet_are_text(tmp_path: Path) -> None:
    """Parquet has no interval: the column becomes text, and the others keep their types."""
    table = _ask("select 1 n, interval 3 day a, 2.5::double x union all select 2, null, 1")
    back = _parquet(table, tmp_path)
    assert back.schema.types == [pa.int32(), pa.string(), pa.float64()]
    assert back.to_pylist() == [{"n": 1, "a": "3 days", "x": 2.5}, {"n": 2, "a": None, "x": 1.0}]


def test_decimals_are_numbers(tmp_path: Path) -> None:
    """A sum of whole numbers is a whole JSON number of any size; a decimal is a number unless digits would be lost."""
    table = _ask(
        "select sum(x) s, 170141183460469231731687303715884105727::hugeint h, 1.50::decimal(10, 2) d, "
        "0.12345678901234567890::decimal(30, 20) f from (values (1), (2)) t(x)"
    )
    assert _objects(table, tmp_path) == [
        {"s": 3, "h": 170141183460469231731687303715884105727, "d": 1.5, "f": "0.12345678901234567890"}
    ]
    assert _cells(table, tmp_path)[0][:3] == ["3", "170141183460469231731687303715884105727", "1.50"]


def test_nested_values_are_json(tmp_path: Path) -> None:
    """Lists, objects and maps are JSON in CSV too, with NaN as null and dates as text inside."""
    table = _ask("select {'d': date '2026-01-02', 'x': [1.5, 'nan'::double]} s, map {'a': interval 1 day} m")
    assert [json.loads(c) for c in _cells(table, tmp_path)[0]] == [
        {"d": "2026-01-02", "x": [1.5, None]},
        [["a", "1 days"]],
    ]
    assert _objects(table, tmp_path) == [{"s": {"d": "2026-01-02", "x": [1.5, None]}, "m": [["a", "1 days"]]}]


@pytest.mark.parametrize(
    ("value", "kinds"),
    [
        ("[interval 1 day]", ["parquet"]),
        ("{'t': 'infinity'::timestamp}", ["csv", "json", "table"]),
        ("timestamp '290000-01-01'", ["csv", "json", "table"]),
        ("union_value(x := 1)", ["parquet"]),
        ("'123'::bignum", ["csv", "json", "table"]),
    ],
)
def test_what_a_form_can_not_hold_is_refused(tmp_path: Path, value: str, kinds: list[str]) -> None:
    """A value without a form is refused by the name of its column, with the cast that helps, and no file appears."""
    for kind in kinds:
        with pytest.raises(DistdataError, match=r"column 'a' \(.*can't hold\. Cast it in the query: a::varchar"):
            _bytes(_ask(f"select 1 b, {value} a"), kind, tmp_path)
        assert list(tmp_path.iterdir()) == []
        assert _bytes(_ask(f"select 1 b, ({value})::varchar a"), kind, tmp_path)
        (tmp_path / "out").unlink()


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, kind: str) -> None:
    """An object has one value per name: rather than losing a column, the query is refused; CSV shows both."""
    table = _ask("select 1 a, 2 a")
    with pytest.raises(DistdataError, match=r"two columns are called 'a'; name them apart with AS"):
        _bytes(table, kind, tmp_path)
    assert _cells(table, tmp_path) == [["1", "2"]]
