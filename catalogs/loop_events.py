"""What the loop writes down and reads back: releases, students, gates, causes, promotions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl
import pyarrow as pa

from . import store
from .errors import DistdataError, nearest
from .events import append_json, append_table, list_events, read_table
from .project import Project
from .protocol import TeacherInfo
from .register import catch_up
from .register_loop import GATE_ROW_SCHEMA

STAGES = ("shadow", "canary", "bulk")
"""How a promoted student takes over: beside the old one, for a little traffic, for all of it."""


def now_text() -> str:
    """Return the time of day as events keep it: ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentRecord:
    """A trained artefact: its hash, where it lies, from what it was made.

    `role`: ``candidate``, or ``probe`` for one that was trained to find a cause and is never promoted. `change`: JSON,
    what its training did to the snapshot, and its settings.
    """

    student_id: str
    folder: str
    recipe: str
    precision: str
    role: str
    snapshot_id: str
    teacher_hash: str
    parent: str | None
    seed: int
    created: str
    change: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRecord:
    """One gate as it was judged: who met which teacher version on which split, and the verdict of the whole."""

    gate_no: int
    gate_id: str
    student_id: str
    teacher_hash: str
    split: str
    role: str
    candidate: int
    alpha: float
    verdict: str
    n_draws: int
    n_unpaired: int
    student_plan: str
    created: str


def note_release(project: Project, info: TeacherInfo) -> None:
    """Write down that this teacher version is there, if that is new: the lag to its student starts here."""
    with store.read(project.catalog_path) as con:
        known = con.execute("SELECT 1 FROM releases WHERE teacher_hash = ?", [info.content_hash]).fetchall()
    if known:
        return
    day = project.config.teacher.released
    append_json(
        project.events_dir, "release",
        {"teacher": info.id, "teacher_version": info.version, "teacher_hash": info.content_hash,
         "released": day.isoformat() if day else now_text()[:10]},
    )  # fmt: skip
    catch_up(project)


def record_student(project: Project, made: StudentRecord) -> None:
    """Write down a trained artefact, once; a probe may become a candidate, never the reverse."""
    if any(s.student_id == made.student_id and s.role in (made.role, "candidate") for s in students(project)):
        return
    append_json(project.events_dir, "student", {name: getattr(made, name) for name in made.__dataclass_fields__})
    catch_up(project)


def students(project: Project) -> list[StudentRecord]:
    """List the artefacts, oldest first."""
    names = ", ".join(StudentRecord.__dataclass_fields__)
    with store.read(project.catalog_path) as con:
        rows = con.execute(f"SELECT {names} FROM students ORDER BY event").fetchall()
    return [StudentRecord(**dict(zip(StudentRecord.__dataclass_fields__, r, strict=True))) for r in rows]


def find_student(project: Project, student_id: str | None, precision: str | None = None) -> StudentRecord:
    """Resolve a student's id or its unique beginning; None means the newest candidate (of that precision).

    Raises:
        DistdataError: there is none, or several match.
    """
    known = students(project)
    if student_id is None:
        mine = [s for s in known if s.role == "candidate" and precision in (None, s.precision)]
        if not mine:
            raise DistdataError("There is no student yet. Train one: distdata train")
        return mine[-1]
    found = [s for s in known if s.student_id.startswith(student_id)]
    if len(found) != 1:
        what = "no student begins" if not found else f"{len(found)} students begin"
        raise DistdataError(f"{what} with {student_id!r}.{nearest(student_id, [s.student_id for s in known])}")
    return found[0]


def record_gate(project: Project, header: Mapping[str, Any], rows: pl.DataFrame) -> GateRecord:
    """Write down a judged gate; `rows` has the columns of `GATE_ROW_SCHEMA`. Returns it with its number."""
    table = rows.select(GATE_ROW_SCHEMA.names).to_arrow().cast(GATE_ROW_SCHEMA)
    append_table(project.events_dir, "gate", table, dict(header))
    catch_up(project)
    return next(g for g in gates(project) if g.gate_id == header["gate_id"])


def gates(project: Project, teacher_hash: str | None = None) -> list[GateRecord]:
    """List the gates, oldest first; with `teacher_hash` those against that version."""
    names = ", ".join(GateRecord.__dataclass_fields__)
    with store.read(project.catalog_path) as con:
        rows = con.execute(
            f"SELECT {names} FROM gates WHERE ?1 IS NULL OR teacher_hash = ?1 ORDER BY gate_no", [teacher_hash]
        ).fetchall()
    return [GateRecord(**dict(zip(GateRecord.__dataclass_fields__, r, strict=True))) for r in rows]


def gate_header(project: Project, record: GateRecord) -> dict[str, Any]:
    """Read all that a gate wrote down beside its rows: as `GateRecord`, and look, n_looks, subject and settings."""
    event = next(e for e in list_events(project.events_dir) if e.number == record.gate_no)
    return read_table(event)[1]


def gate_rows(project: Project, gate_id: str) -> pl.DataFrame:
    """Read a gate's rows, `GATE_ROW_SCHEMA`."""
    with store.read(project.catalog_path) as con:
        rows: pl.DataFrame = con.sql(
            "SELECT r.* EXCLUDE (gate_no) FROM gate_rows r JOIN gates g USING (gate_no) WHERE g.gate_id = $1",
            params=[gate_id],
        ).pl()
    return rows


def record_causes(project: Project, gate_id: str, causes: Sequence[Mapping[str, Any]]) -> None:
    """Write down why slices are red: slice, cause, remedy and evidence (lines of text) each."""
    append_json(
        project.events_dir, "causes", {"gate_id": gate_id, "created": now_text(), "causes": [dict(c) for c in causes]}
    )
    catch_up(project)


def causes_of(project: Project, gate_id: str) -> pl.DataFrame:
    """Read what was found for a gate: slice, cause, remedy, evidence (JSON list); the newest finding of each slice."""
    with store.read(project.catalog_path) as con:
        rows: pl.DataFrame = con.sql(
            """SELECT slice, cause, remedy, evidence FROM causes WHERE gate_id = $1
            QUALIFY row_number() OVER (PARTITION BY slice ORDER BY event DESC) = 1 ORDER BY slice""",
            params=[gate_id],
        ).pl()
    return rows


def record_promotion(project: Project, said: Mapping[str, Any], routes: Sequence[Mapping[str, Any]]) -> None:
    """Write down a stage of a promotion, or a rollback, with the routing table that holds from here on."""
    append_json(project.events_dir, "promotion", {**said, "created": now_text(), "routes": [dict(r) for r in routes]})
    catch_up(project)


def promotions(project: Project) -> list[dict[str, Any]]:
    """List the promotions and rollbacks, oldest first."""
    with store.read(project.catalog_path) as con:
        table: pa.Table = con.sql("SELECT * FROM promotions ORDER BY event").to_arrow_table()
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def routes_of(project: Project, event: int) -> list[dict[str, Any]]:
    """Read the routing table that the promotion with this event number left: as `routing`."""
    with store.read(project.catalog_path) as con:
        table: pa.Table = con.sql(
            "SELECT * EXCLUDE (event) FROM routes WHERE event = $1 ORDER BY slice", params=[event]
        ).to_arrow_table()
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def routing(project: Project) -> list[dict[str, Any]]:
    """Read the routing table in force: slice, student_id, share, fallback, horizon_s, reason."""
    with store.read(project.catalog_path) as con:
        table: pa.Table = con.sql("FROM routing ORDER BY slice").to_arrow_table()
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows
