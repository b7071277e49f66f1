"""The append-only event files: small, numbered, written once; the catalog is rebuilt from them.

An event is ``events/00000012-import.parquet`` (or ``.json``). Its number gives the order; its content
says what happened. Kinds: ``cells`` (the cell table in force from here on), ``import`` (seeds), ``plan``
(a plan's header) and ``compact`` (shards that were joined).
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from .errors import DistdataError
from .files import exclusive_lock, write_atomic

_NAME = re.compile(r"^(\d{8})-(cells|import|plan|compact)\.(parquet|json)$")
META_KEY = b"distdata"
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
    schema_meta = {META_KEY: json.dumps(meta, sort_keys=True).encode()}
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(schema_meta), buffer, compression="zstd", write_page_checksum=True)
    return _append(folder, kind, "parquet", buffer.getvalue())


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
        table = pq.read_table(event.path, page_checksum_verification=True)
        return table, json.loads((table.schema.metadata or {})[META_KEY])
    except (OSError, pa.ArrowInvalid, KeyError, ValueError) as e:
        raise DistdataError(f"{event.path}: damaged ({e}). Restore this file from a backup.") from None


def read_json(event: Event) -> dict[str, Any]:
    """Read a JSON event back."""
    try:
        data = json.loads(event.path.read_bytes())
        if not isinstance(data, dict):
            raise ValueError(f"holds no object but {type(data).__name__}")
        return data
    except (OSError, ValueError) as e:
        raise DistdataError(f"{event.path}: damaged ({e}). Restore this file from a backup.") from None
