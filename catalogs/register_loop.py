"""Registration of the loop's events: releases, snapshots, students, gates, causes and promotions.

Each is written once by the stage that made it (`catalogs.loop_events`); here its rows reach the catalog.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from . import store
from .errors import DistdataError
from .events import Event, read_json, read_table
from .project import Project

STUDENT_COLUMNS = (
    "student_id", "folder", "recipe", "precision", "role", "snapshot_id", "teacher_hash", "parent", "seed", "created",
    "change",
)  # fmt: skip
GATE_COLUMNS = (
    "gate_id", "student_id", "teacher_hash", "split", "role", "candidate", "alpha", "verdict", "n_draws",
    "n_unpaired", "student_plan", "created",
)  # fmt: skip
GATE_ROW_SCHEMA = pa.schema(
    [
        ("slice", pa.string()),
        ("metric", pa.string()),
        ("contrast", pa.string()),
        ("n_seeds", pa.int64()),
        ("n_draws", pa.int64()),
        ("estimate", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("band", pa.float64()),
        ("side", pa.string()),
        ("verdict", pa.string()),
        ("reason", pa.string()),
        ("needed_draws", pa.int64()),
        ("alpha", pa.float64()),
        ("p_fail", pa.float64()),
        ("p_holm", pa.float64()),
    ]
)
"""One row per slice, metric and contrast, as `stratify.verdict.judge` gives them."""


def _apply_release(con: Any, _project: Project, event: Event) -> None:
    _insert(con, event, "releases", "event", ("teacher", "teacher_version", "teacher_hash", "released"))


def _apply_snapshot(con: Any, _project: Project, event: Event) -> None:
    columns = ("snapshot_id", "name", "teacher_hash", "n_samples", "n_dropped", "created")
    _insert(con, event, "snapshots", "event", columns)


def _apply_student(con: Any, _project: Project, event: Event) -> None:
    said = read_json(event)
    con.execute(
        "DELETE FROM students WHERE student_id = ?", [said.get("student_id")]
    )  # a probe that became a candidate
    _insert(con, event, "students", "event", STUDENT_COLUMNS, said)


def _apply_gate(con: Any, _project: Project, event: Event) -> None:
    rows, header = read_table(event)
    _insert(con, event, "gates", "gate_no", GATE_COLUMNS, header)
    con.register("rows", rows)
    con.execute("INSERT INTO gate_rows BY NAME SELECT ?::INTEGER AS gate_no, * FROM rows", [event.number])
    con.unregister("rows")


def _apply_causes(con: Any, _project: Project, event: Event) -> None:
    said = read_json(event)
    rows = [
        {
            "event": event.number,
            "gate_id": said["gate_id"],
            "slice": c["slice"],
            "cause": c["cause"],
            "remedy": c["remedy"],
            "evidence": json.dumps(c["evidence"]),
            "created": said["created"],
        }
        for c in said["causes"]
    ]
    if rows:
        store.insert(con, "causes", pa.Table.from_pylist(rows))


def _apply_promotion(con: Any, _project: Project, event: Event) -> None:
    columns = ("student_id", "teacher_hash", "stage", "gate_id", "confirm_id", "created", "note")
    said = _insert(con, event, "promotions", "event", columns)
    routes = [{"event": event.number, **r} for r in said["routes"]]
    if routes:
        store.insert(con, "routes", pa.Table.from_pylist(routes))


def _insert(
    con: Any, event: Event, table: str, number: str, columns: tuple[str, ...], said: Mapping[str, Any] | None = None
) -> Mapping[str, Any]:
    """Insert an event's own columns as one row of `table`, with the event's number in the column `number`."""
    said = read_json(event) if said is None else said
    missing = [name for name in columns if name not in said]
    if missing:
        raise DistdataError(f"{event.path}: damaged (it has no {', '.join(missing)}). Restore this file from a backup.")
    marks = ", ".join(["?"] * (len(columns) + 1))
    names = ", ".join([number, *columns])
    con.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", [event.number, *(said[c] for c in columns)])
    return said


APPLY: Mapping[str, Callable[[Any, Project, Event], None]] = {
    "release": _apply_release,
    "snapshot": _apply_snapshot,
    "student": _apply_student,
    "gate": _apply_gate,
    "causes": _apply_causes,
    "promotion": _apply_promotion,
}
"""What registers each kind of event."""
