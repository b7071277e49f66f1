"""Write a query's result in the form asked for, to stdout or a file."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .errors import DistdataError, nearest
from .files import write_atomic
from .tables import render_rows


def write_result(table: pa.Table, kind: str, out: Path | None, *, width: int, color: bool) -> None:
    """Write `table` as table, csv, json (an array of objects), parquet or arrow (an IPC stream).

    Raises DistdataError for an unknown form, and for binary ones on a terminal.
    """
    forms: dict[str, Callable[[], bytes]] = {
        "table": lambda: _text(table, width, color and out is None).encode(),
        "csv": lambda: _csv(table),
        "json": lambda: (json.dumps(_plain(table.to_pylist()), default=str) + "\n").encode(),
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
    return (
        render_rows(
            table.column_names, zip(*(c.to_pylist() for c in table.columns), strict=True), width=width, color=color
        )
        + "\n"
    )


def _csv(table: pa.Table) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.column_names)
    for row in zip(*(c.to_pylist() for c in table.columns), strict=True):
        writer.writerow(["" if v is None else v for v in row])
    return text.getvalue().encode()


def _plain(value: Any) -> Any:
    """Replace NaN and infinities, which JSON can't hold, by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def _arrow(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
