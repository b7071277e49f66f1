"""Events are numbered without gaps whoever writes, read back as written, and damage is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distdata.catalogs.errors import DistdataError
from distdata.catalogs.events import Event, append_json, append_table, list_events, read_json, read_table

TABLE = pa.table({"cell": ["a", "b"], "n": [1, 2]})
APPEND = """
import sys
from pathlib import Path
from distdata.catalogs.events import append_json
for i in range(int(sys.argv[3])):
    append_json(Path(sys.argv[1]), "plan", {"writer": sys.argv[2], "i": i})
"""


def test_events_are_numbered_and_read_back(tmp_path: Path) -> None:
    """Numbers go up from 1, names tell number and kind, tables and JSON come back with their meta."""
    first = append_table(tmp_path, "import", TABLE, {"source": "s.csv", "n": 2})
    second = append_json(tmp_path, "plan", {"plan_id": "p"})
    assert [first.path.name, second.path.name] == ["00000001-import.parquet", "00000002-plan.json"]
    assert list_events(tmp_path) == [first, second]
    assert list_events(tmp_path, after=1) == [second]
    table, meta = read_table(first)
    assert table.to_pylist() == TABLE.to_pylist()
    assert meta == {"source": "s.csv", "n": 2}
    assert read_json(second) == {"plan_id": "p"}


def test_missing_folder_holds_no_events(tmp_path: Path) -> None:
    """A folder that is not there has no events, and other files in it are none."""
    assert list_events(tmp_path / "no") == []
    for name in ("00000001-import.txt", "1-plan.json", ".tmp-1-00000001-plan.json", "00000002-other.json"):
        (tmp_path / name).touch()
    assert list_events(tmp_path) == []


def test_four_writers_leave_no_gap_and_lose_nothing(tmp_path: Path) -> None:
    """Four processes appending 15 events each make the numbers 1 to 60, every one's own in its order."""
    writers = [subprocess.Popen([sys.executable, "-c", APPEND, str(tmp_path), str(w), "15"]) for w in range(4)]
    assert [w.wait() for w in writers] == [0, 0, 0, 0]
    events = list_events(tmp_path)
    assert [e.number for e in events] == list(range(1, 61))
    seen = [read_json(e) for e in events]
    for w in range(4):
        assert [d["i"] for d in seen if d["writer"] == str(w)] == list(range(15))


@settings(deadline=None, derandomize=True, max_examples=150)
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_no_altered_byte_of_a_table_goes_unnoticed(
    tmp_path_factory: pytest.TempPathFactory, where: float, flip: int
) -> None:
    """Any changed byte of a Parquet event is an error that names the file, or changes nothing that is read."""
    event = append_table(tmp_path_factory.mktemp("events"), "cells", TABLE, {"axes": [["a", ["b"]]]})
    data = bytearray(event.path.read_bytes())
    data[int(where * len(data))] ^= flip
    event.path.write_bytes(data)
    try:
        table, meta = read_table(event)
        seen: object = (table.to_pylist(), meta)
    except DistdataError as e:
        seen = str(e)
    same = seen == (TABLE.to_pylist(), {"axes": [["a", ["b"]]]})
    assert same or (str(event.path) in str(seen) and "Restore this file from a backup" in str(seen))


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\x00" * 40, b"\xff\xfe"])
def test_damaged_json_is_named(tmp_path: Path, content: bytes) -> None:
    """An event that is empty, cut off, zeroed or no object is an error that names the file and the way out."""
    path = tmp_path / "00000001-plan.json"
    path.write_bytes(content)
    with pytest.raises(DistdataError, match=r"00000001-plan.json: damaged .* Restore this file from a backup"):
        read_json(Event(1, "plan", path))


@pytest.mark.parametrize("keep", [0, 4, 100])
def test_truncated_table_is_named(tmp_path: Path, keep: int) -> None:
    """A Parquet event that was cut off is an error that names the file."""
    event = append_table(tmp_path, "import", TABLE, {})
    event.path.write_bytes(event.path.read_bytes()[:keep])
    with pytest.raises(DistdataError, match=r"00000001-import.parquet: damaged"):
        read_table(event)
