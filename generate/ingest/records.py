"""Small tables that people and tools hand in: Parquet, JSONL or CSV, read whole."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from ...catalogs.errors import DistdataError
from ...catalogs.project import Project
from ...catalogs.store import read as read_catalog


class Records(NamedTuple):
    """The rows of a file, each with its place, the hex SHA-256 of its bytes, and the names of its columns."""

    label: str
    sha256: str
    rows: list[tuple[str, dict[str, Any]]]
    columns: list[str]


def read_records(path: Path) -> Records:
    """Read a file by its ending (.parquet, .jsonl, .csv); of CSV every value is text.

    Raises:
        DistdataError: missing, unreadable or of another kind; JSONL errors name the line.
    """
    try:
        data = path.read_bytes()
        if path.suffix in (".parquet", ".csv"):
            frame = pl.DataFrame()
            if path.suffix == ".parquet" or data.strip():
                frame = pl.read_parquet(data) if path.suffix == ".parquet" else pl.read_csv(data, infer_schema=False)
            rows = [(f"row {i:,}", r) for i, r in enumerate(frame.iter_rows(named=True), start=1)]
            columns = frame.columns
        elif path.suffix in (".jsonl", ".ndjson"):
            rows = _jsonl(path, data)
            columns = list(dict.fromkeys(name for _, row in rows for name in row))
        else:
            raise DistdataError(f"{path}: unknown ending {path.suffix!r}. Read are .parquet, .jsonl and .csv.")
    except FileNotFoundError:
        raise DistdataError(f"{path}: not found.") from None
    except (OSError, pl.exceptions.PolarsError, UnicodeDecodeError) as e:
        raise DistdataError(f"{path}: can't be read: {str(e).strip().partition(chr(10))[0]}") from None
    return Records(path.name, hashlib.sha256(data).hexdigest(), rows, columns)


def _jsonl(path: Path, data: bytes) -> list[tuple[str, dict[str, Any]]]:
    rows = []
    for number, line in enumerate(data.decode("utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as e:
            raise DistdataError(f"{path}: line {number:,}: not valid JSON: {e}. Nothing was ingested.") from None
        if not isinstance(record, dict):
            raise DistdataError(f"{path}: line {number:,}: must be an object, got {type(record).__name__}.")
        rows.append((f"line {number:,}", record))
    return rows


def earlier_ingest(project: Project, ingest_id: str) -> int | None:
    """Return how many rows of an earlier ingest under this id were refused; None if there was none."""
    with read_catalog(project.catalog_path) as con:
        rows = con.execute(
            "SELECT n_refused FROM ingests WHERE ingest_id = ? ORDER BY ingest_no DESC LIMIT 1", [ingest_id]
        ).fetchall()
    return int(rows[0][0]) if rows else None
