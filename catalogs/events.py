"""The append-only event files: small, numbered, written once; the catalog is rebuilt from them.

An event is ``events/00000012-import.parquet`` (or ``.json``). Its number gives the order; its content
says what happened. Kinds: ``cells`` (the cell table in force from here on), ``import`` (seeds), ``plan``
(a plan's header), ``compact`` (shards that were joined), ``spend`` (answers written off), ``ingest`` (samples that
nobody bought here), ``verdict`` (what a verifier rejected) and ``case`` (the divergence queue); of the loop ``release``
(a teacher version first seen), ``snapshot``, ``student``, ``gate``, ``causes`` and ``promotion``.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from .errors import DistdataError
from .files import exclusive_lock, write_atomic
from .hashing import content_hash

_NAME = re.compile(
    r"^(\d{8})-(cells|import|plan|compact|spend|ingest|verdict|case|release|snapshot|student|gate|causes|promotion)"
    r"\.(parquet|json)$"
)
_META = b"distdata"
_CHECK = b"distdata-check"
LOCK_WAIT_S = 10.0


class Event(NamedTuple):
    """One event file: its number, kind and path."""

    number: int
    kind: str
    path: Path


def list_events(folder: Path, after: int = 0) -> list[Event]:
    """List the events numbered above `after`, in order."""
    if not folder.is_dir():
        return []
    found = []
    for path in folder.iterdir():
        if match := _NAME.match(path.name):
            found.append(Event(int(match[1]), match[2], path))
    return sorted(e for e in found if e.number > after)


def append_table(folder: Path, kind: str, table: pa.Table, meta: dict[str, Any]) -> Event:
    """Append a Parquet event holding `table` and the JSON-able `meta`."""
    buffer = io.BytesIO()
    write_sealed(table, meta, buffer)
    return _append(folder, kind, "parquet", buffer.getvalue())


def write_sealed(table: pa.Table, meta: dict[str, Any], sink: BinaryIO) -> None:
    """Write a Parquet file in which `read_sealed` notices every altered byte that matters.

    Parquet's checksums cover the pages alone, so the columns' names and types and `meta` get a hash of their own.
    """
    text = json.dumps(meta, sort_keys=True)
    seal = {_META: text.encode(), _CHECK: _seal_of(text, table)}
    pq.write_table(table.replace_schema_metadata(seal), sink, compression="zstd", write_page_checksum=True)


def read_sealed(source: Path | pa.NativeFile) -> tuple[pa.Table, dict[str, Any]]:
    """Read a table and its `meta`; raises OSError, ValueError or KeyError for a file that is not as it was written."""
    try:
        # not read_table, which imports pyarrow.dataset and pandas: a third of a second in every command
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            table = file.read(use_threads=False)
    except pa.ArrowException as e:
        raise ValueError(str(e)) from None
    seal = table.schema.metadata or {}
    text = seal[_META].decode()
    if seal[_CHECK] != _seal_of(text, table):
        raise ValueError("names or description altered")
    return table, json.loads(text)


def _seal_of(text: str, table: pa.Table) -> bytes:
    return content_hash([text, *(f"{field.name}: {field.type}" for field in table.schema)]).encode()


def append_json(folder: Path, kind: str, data: dict[str, Any]) -> Event:
    """Append a JSON event."""
    return _append(folder, kind, "json", json.dumps(data, sort_keys=True, indent=1).encode())


def _append(folder: Path, kind: str, ending: str, data: bytes) -> Event:
    busy = f"{folder}: process {{holder}} is writing an event; try again."
    with exclusive_lock(folder / ".lock", busy, LOCK_WAIT_S):
        last = list_events(folder)
        number = last[-1].number + 1 if last else 1
        event = Event(number, kind, folder / f"{number:08d}-{kind}.{ending}")
        write_atomic(event.path, data, f"event.{kind}")
        return event


def read_table(event: Event) -> tuple[pa.Table, dict[str, Any]]:
    """Read a Parquet event back: its table and its `meta`."""
    try:
        return read_sealed(event.path)
    except (OSError, KeyError, ValueError) as e:
        raise DistdataError(f"{event.path}: damaged ({e}). Restore this file from a backup.") from None


def plan_of(event: Event) -> dict[str, Any]:
    """Read the header of a plan from its event."""
    header = read_json(event)
    if "plan_id" not in header:
        raise DistdataError(f"{event.path}: damaged (it has no plan_id). Restore this file from a backup.")
    return header


def read_json(event: Event) -> dict[str, Any]:
    """Read a JSON event back."""
    try:
        data = json.loads(event.path.read_bytes())
        if not isinstance(data, dict):
            raise ValueError(f"holds no object but {type(data).__name__}")
        return data
    except (OSError, ValueError) as e:
        raise DistdataError(f"{event.path}: damaged ({e}). Restore this file from a backup.") from None
