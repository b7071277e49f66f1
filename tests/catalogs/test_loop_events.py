"""What the loop writes down is written once, read back as it was, and survives a rebuild of the catalog."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from distdata.catalogs.errors import DistdataError
from distdata.catalogs.loop_events import (
    StudentRecord,
    causes_of,
    find_student,
    gate_rows,
    gates,
    note_release,
    promotions,
    record_causes,
    record_gate,
    record_promotion,
    record_student,
    routing,
    students,
)
from distdata.catalogs.project import Project
from distdata.catalogs.register_loop import GATE_COLUMNS, GATE_ROW_SCHEMA
from distdata.cycle.training import current_teacher

ONE = StudentRecord(
    student_id="aa11000000000000", folder="f1", recipe="capacity", precision="float32", role="candidate",
    snapshot_id="5" * 16, teacher_hash="00000000000000aa", parent=None, seed=0, created="2026-01-01T00:00:00+00:00",
    change="{}",
)  # fmt: skip
HEADER = {
    "gate_id": "g1", "student_id": ONE.student_id, "teacher_hash": ONE.teacher_hash, "split": "gate",
    "role": "candidate", "candidate": 1, "alpha": 0.025, "verdict": "fail", "n_draws": 40, "n_unpaired": 0,
    "student_plan": "0" * 12, "created": "2026-01-02T00:00:00+00:00",
}  # fmt: skip


@pytest.fixture
def project(tiny: Any, tmp_path: Path) -> Project:
    """A project with seeds and no plan."""
    made: Project = tiny.build(tmp_path / "p", plan=False)
    return made


def rows(*verdicts: str) -> pl.DataFrame:
    """Return one gate row per verdict, of slices a, b, ...; numbers that floats hold exactly, and nulls."""
    table = [
        {"slice": "abc"[i], "metric": "outcome", "contrast": "turn: left", "n_seeds": 20, "n_draws": 40,
         "estimate": 0.25, "low": -0.5, "high": None, "band": 0.125, "side": "both", "verdict": v, "reason": "",
         "needed_draws": None, "alpha": 0.025, "p_fail": 0.5, "p_holm": 1.0}
        for i, v in enumerate(verdicts)
    ]  # fmt: skip
    return pl.DataFrame(table, schema=pl.from_arrow(GATE_ROW_SCHEMA.empty_table()).schema)  # type: ignore[union-attr]


def n_events(project: Project) -> int:
    return len(list(project.events_dir.glob("0*")))


def test_a_student_is_written_once_and_a_probe_may_become_a_candidate(project: Project) -> None:
    """The same record twice is one event; probe to candidate is a second, which wins; the reverse is none."""
    before = n_events(project)
    probe = replace(ONE, role="probe")
    for _ in range(2):
        record_student(project, probe)
    assert (students(project), n_events(project)) == ([probe], before + 1)
    record_student(project, ONE)
    record_student(project, probe)
    assert (students(project), n_events(project)) == ([ONE], before + 2)


def test_students_are_found_by_their_beginning(project: Project) -> None:
    """The newest candidate of a precision by default; a beginning that fits none or two is refused with a word."""
    with pytest.raises(DistdataError, match=r"no student yet.*distdata train"):
        find_student(project, None)
    two = replace(ONE, student_id="aa22000000000000", precision="int8")
    for one in (ONE, two, replace(ONE, student_id="bb00000000000000", role="probe")):
        record_student(project, one)
    assert find_student(project, None) == two
    assert find_student(project, None, "float32") == ONE
    assert find_student(project, "aa1") == ONE
    assert find_student(project, "bb").role == "probe"
    with pytest.raises(DistdataError, match="2 students begin with 'aa'"):
        find_student(project, "aa")
    with pytest.raises(DistdataError, match="no student begins with 'cc'"):
        find_student(project, "cc")


def test_a_gate_is_read_back_as_it_was(project: Project) -> None:
    """Header and rows come back equal, nulls included, numbered in order and by teacher version."""
    first = record_gate(project, HEADER, rows("fail", "pass"))
    assert {name: getattr(first, name) for name in GATE_COLUMNS if hasattr(first, name)} == {
        name: HEADER[name] for name in GATE_COLUMNS if hasattr(first, name)
    }
    assert gate_rows(project, "g1").sort("slice").equals(rows("fail", "pass"))
    second = record_gate(project, {**HEADER, "gate_id": "g2", "teacher_hash": "b"}, rows("pass"))
    assert [g.gate_id for g in gates(project)] == ["g1", "g2"]
    assert first.gate_no < second.gate_no
    assert gates(project, "b") == [second]
    assert gate_rows(project, "none").is_empty()


def test_the_newest_cause_of_a_slice_holds(project: Project) -> None:
    """A second finding of a slice replaces the first; other slices keep theirs; evidence stays a list in order."""
    say = {"remedy": "buy", "evidence": ["one", "two"]}
    record_causes(
        project, "g1", [{"slice": "a", "cause": "coverage", **say}, {"slice": "b", "cause": "unknown", **say}]
    )
    record_causes(project, "g1", [{"slice": "a", "cause": "capacity", **say}])
    assert causes_of(project, "g1").select("slice", "cause").rows() == [("a", "capacity"), ("b", "unknown")]
    assert causes_of(project, "g1")["evidence"][0] == '["one", "two"]'
    assert causes_of(project, "g2").is_empty()


def test_the_last_promotion_decides_the_routing(project: Project) -> None:
    """The routing table is the one that came with the newest promotion, whole."""
    assert routing(project) == []
    said = {
        "student_id": ONE.student_id,
        "teacher_hash": ONE.teacher_hash,
        "gate_id": "g1",
        "confirm_id": "g2",
        "note": "",
    }
    route = {"student_id": ONE.student_id, "share": 0.5, "fallback": "teacher", "horizon_s": None, "reason": "green"}
    record_promotion(project, {**said, "stage": "shadow"}, [{"slice": s, **route} for s in "ab"])
    record_promotion(project, {**said, "stage": "canary"}, [{"slice": "a", **route}])
    assert [r["slice"] for r in routing(project)] == ["a"]
    assert [p["stage"] for p in promotions(project)] == ["shadow", "canary"]


def test_a_release_is_noted_once(project: Project, tiny: Any) -> None:
    """A teacher version is released once, however often it is seen."""
    info = current_teacher(project)
    note_release(project, info)
    n = n_events(project)
    note_release(project, info)
    assert n_events(project) == n
    assert tiny.sql(project, "SELECT teacher, teacher_hash FROM releases") == [("tiny", info.content_hash)]


def test_a_rebuild_gives_equal_tables(project: Project, tiny: Any) -> None:
    """Releases, students, gates, rows, causes, promotions and routes are the same in a catalog made anew."""
    note_release(project, current_teacher(project))
    record_student(project, replace(ONE, role="probe"))
    record_student(project, ONE)
    record_gate(project, HEADER, rows("fail", "pass"))
    record_causes(project, "g1", [{"slice": "a", "cause": "coverage", "remedy": "buy", "evidence": []}])
    said = {"student_id": ONE.student_id, "teacher_hash": "b", "gate_id": "g1", "confirm_id": None, "note": "x"}
    route = {"slice": "a", "student_id": None, "share": 0.0, "fallback": "teacher", "horizon_s": 1.5, "reason": "why"}
    record_promotion(project, {**said, "stage": "rollback"}, [route])
    tables = tiny.tables(project)
    for name in ("releases", "students", "gates", "gate_rows", "causes", "promotions", "routes"):
        assert tables[name], name
    assert tiny.rebuilt_tables(project) == tables


@pytest.mark.parametrize("kind", ["student", "promotion"])
def test_a_damaged_event_is_named(project: Project, tiny: Any, kind: str) -> None:
    """An event that lacks a column ends a rebuild with its path and what to do."""
    from distdata.catalogs.events import append_json

    append_json(project.events_dir, kind, {"student_id": "x"})
    with pytest.raises(DistdataError, match=rf"-{kind}\.json: damaged \(it has no .*\)\. Restore this file"):
        tiny.rebuilt_tables(project)
