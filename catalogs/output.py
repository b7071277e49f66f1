"""Write a query's result in the form asked for, to stdout or a file."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .errors import DistdataError, nearest
from .files import write_atomic
from .tables import render_rows

_ENDLESS = {2**63 - 1: "infinity", 1 - 2**63: "-infinity"}
_ENDLESS_DAYS = {2**31 - 1: "infinity", 1 - 2**31: "-infinity"}


def write_result(table: pa.Table, kind: str, out: Path | None, *, width: int, color: bool) -> None:
    """Write `table` as table, csv, json (an array of objects), parquet or arrow (an IPC stream).

    Every form but arrow shows what Python or Parquet has no value for as DuckDB writes it: infinite timestamps,
    intervals, bytes.

    Raises:
        DistdataError: an unknown form, a binary one on a terminal, two columns of one name in json or parquet, or a
            value that the form can't hold; the message names the column and the cast that helps.
    """
    forms: dict[str, Callable[[], bytes]] = {
        "table": lambda: _text(table, width, color and out is None).encode(),
        "csv": lambda: _csv(table),
        "json": lambda: _json(table),
        "parquet": lambda: _parquet(table),
        "arrow": lambda: _arrow(table),
    }
    if kind not in forms:
        raise DistdataError(f"--format {kind}: unknown.{nearest(kind, forms)}")
    if kind in ("parquet", "arrow") and out is None and sys.stdout.isatty():
        raise DistdataError(f"--format {kind} is binary: name a file with --out FILE, or pipe it somewhere.")
    data = forms[kind]()
    if out is not None:
        write_atomic(out, data, "sql.out")
        return
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _text(table: pa.Table, width: int, color: bool) -> str:
    rows = zip(*([_worded(v) for v in column] for column in _columns(table)), strict=True)
    return render_rows(table.column_names, rows, width=width, color=color) + "\n"


def _csv(table: pa.Table) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.column_names)
    for row in zip(*_columns(table), strict=True):
        writer.writerow(["" if v is None else _bytes_text(v) if isinstance(v, bytes) else _worded(v) for v in row])
    return text.getvalue().encode()


def _json(table: pa.Table) -> bytes:
    names = _distinct_names(table, "json")
    rows = zip(*([_plain(v) for v in column] for column in _columns(table)), strict=True)
    return (json.dumps([dict(zip(names, row, strict=True)) for row in rows], default=str) + "\n").encode()


def _parquet(table: pa.Table) -> bytes:
    _distinct_names(table, "parquet")
    try:
        return _parquet_bytes(table)
    except pa.ArrowException:
        columns = {}
        for name, column in zip(table.column_names, table.columns, strict=True):
            columns[name] = column if _fits_parquet(name, column) else _as_text(name, column)
        return _parquet_bytes(pa.table(columns))


def _parquet_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def _fits_parquet(name: str, column: pa.ChunkedArray) -> bool:
    try:
        _parquet_bytes(pa.table({name: column}))
    except pa.ArrowException:
        return False
    return True


def _arrow(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _distinct_names(table: pa.Table, kind: str) -> list[str]:
    names = [str(name) for name in table.column_names]
    for name in names:
        if names.count(name) > 1:
            raise DistdataError(f"sql: two columns are called {name!r}; name them apart with AS for --format {kind}.")
    return names


def _columns(table: pa.Table) -> list[list[Any]]:
    return [_values(name, column) for name, column in zip(table.column_names, table.columns, strict=True)]


def _values(name: str, column: pa.ChunkedArray) -> list[Any]:
    """Return a column's values; those that Python has none for (a timestamp without end) as text."""
    if isinstance(column.type, pa.BaseExtensionType):  # DuckDB's own encoding of a number: no value for others
        raise _no_form(name, column.type)
    if column.type != pa.timestamp("ns"):  # of those an endless one would pass as a day in 2262
        try:
            return list(column.to_pylist())
        except (OverflowError, ValueError, pa.ArrowException):
            pass
    return [_value(name, scalar) for scalar in column]


def _value(name: str, scalar: Any) -> Any:
    endless = _ENDLESS_DAYS if isinstance(scalar, pa.Date32Scalar) else _ENDLESS
    if isinstance(scalar, pa.TimestampScalar | pa.Date32Scalar) and scalar.value in endless:
        return endless[scalar.value]
    try:
        return scalar.as_py()
    except (OverflowError, ValueError, pa.ArrowException):
        pass
    try:
        text = scalar.cast(pa.string()).as_py()
    except pa.ArrowException:
        text = None
    if text is None or text.startswith("<"):  # "<value out of range: ...>"
        raise _no_form(name, scalar.type)
    return text


def _as_text(name: str, column: pa.ChunkedArray) -> pa.Array:
    """Turn a column into text; raises DistdataError for one whose values are lists, objects or of several types."""
    if pa.types.is_nested(column.type):
        raise _no_form(name, column.type)
    values = [_worded(v) for v in _values(name, column)]
    return pa.array([None if v is None else str(v) for v in values], pa.string())


def _no_form(name: str, kind: pa.DataType) -> DistdataError:
    return DistdataError(
        f"sql: column {name!r} ({kind}) holds values that this form can't hold. Cast it in the query: "
        f"{name}::varchar, or a part of it; --format arrow keeps it as it is."
    )


def _worded(value: Any) -> Any:
    """Write an interval, a list or an object as text, for forms without such values."""
    if isinstance(value, pa.MonthDayNano):
        return _interval_text(value)
    if isinstance(value, dict | list | tuple):
        return json.dumps(_plain(value), default=str, ensure_ascii=False)
    return value


def _plain(value: Any) -> Any:
    """Turn a value into what JSON has: NaN and infinities become null, whole decimals numbers, bytes text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return _number(value)
    if isinstance(value, bytes):
        return _bytes_text(value)
    if isinstance(value, pa.MonthDayNano):
        return _interval_text(value)
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _number(value: Decimal) -> int | float | str:
    """Return a decimal as a JSON number where that shows all of its digits, else as text."""
    if value == value.to_integral_value():
        return int(value)
    return float(value) if Decimal(repr(float(value))) == value else str(value)


def _bytes_text(value: bytes) -> str:
    r"""Write bytes as DuckDB does: ``\xFFab``."""
    return "".join(chr(b) if 32 <= b < 127 and b not in b"\\\"'" else f"\\x{b:02X}" for b in value)


def _interval_text(value: Any) -> str:
    """Write an interval so that DuckDB reads it back: ``14 months 3 days 4.5 seconds``."""
    seconds = Decimal(value.nanoseconds) / 10**9
    parts = [(value.months, "months"), (value.days, "days"), (seconds.normalize(), "seconds")]
    return " ".join(f"{n:f} {unit}" if unit == "seconds" else f"{n} {unit}" for n, unit in parts if n) or "0 seconds"
