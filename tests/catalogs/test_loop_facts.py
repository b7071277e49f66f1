"""`status` says where the loop stands: lag in days from fixed dates, who serves, what is red, what comes next."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from distdata.catalogs import loop_events
from distdata.catalogs.events import append_json
from distdata.catalogs.loop_events import note_release, record_causes, record_gate, record_promotion, record_student
from distdata.catalogs.loop_facts import FINISHED, loop_facts
from distdata.catalogs.project import Project
from distdata.catalogs.register import catch_up
from distdata.catalogs.register_loop import GATE_ROW_SCHEMA
from distdata.cycle.training import current_teacher

DAY = date(2026, 3, 11)
TEACHER = "00000000000000aa"


@pytest.fixture
def project(tiny: Any, tmp_path: Path) -> Project:
    """A project whose teacher was released on the first of March 2026."""
    made: Project = tiny.build(tmp_path / "p", plan=False)
    path = made.root / "distdata.toml"
    path.write_text(path.read_text().replace("gpu_s_per_draw", "released = 2026-03-01\ngpu_s_per_draw"))
    project = Project.open(made.root)
    note_release(project, current_teacher(project))
    return project


def student(project: Project, student_id: str = "aa11000000000000", teacher_hash: str = TEACHER) -> None:
    record_student(
        project,
        loop_events.StudentRecord(
            student_id=student_id, folder="f", recipe="capacity", precision="float32", role="candidate",
            snapshot_id="5" * 16, teacher_hash=teacher_hash, parent=None, seed=0, created="2026-03-02T00:00:00+00:00",
            change="{}",
        ),
    )  # fmt: skip


def gate(project: Project, gate_id: str, split: str, **verdicts: str) -> None:
    rows = pl.DataFrame(
        [{"slice": s, "metric": "outcome", "contrast": "c", "side": "both", "verdict": v, "n_seeds": 20, "n_draws": 40}
         for s, v in verdicts.items()],
    )  # fmt: skip
    empty = pl.from_arrow(GATE_ROW_SCHEMA.empty_table())
    assert isinstance(empty, pl.DataFrame)
    whole = "fail" if "fail" in verdicts.values() else "pass"
    header = {
        "gate_id": gate_id, "student_id": "aa11000000000000", "teacher_hash": TEACHER, "split": split,
        "role": "candidate", "candidate": 1, "alpha": 0.025, "verdict": whole, "n_draws": 80, "n_unpaired": 0,
        "student_plan": "0" * 12, "created": "2026-03-03T00:00:00+00:00",
    }  # fmt: skip
    record_gate(project, header, pl.concat([empty, rows], how="diagonal_relaxed"))


def promote(project: Project, stage: str) -> None:
    said = {
        "student_id": "aa11000000000000",
        "teacher_hash": TEACHER,
        "stage": stage,
        "gate_id": "g",
        "confirm_id": "c",
    }
    record_promotion(project, {**said, "note": ""}, [])


def test_every_station_names_its_next_command(project: Project) -> None:
    """Each thing that is there moves the next command on, in the order of the loop."""

    def following(catalog_says: str = FINISHED) -> str:
        return str(loop_facts(project, DAY, catalog_says)["next"])

    assert following("distdata generate") == "distdata generate"
    assert following() == "distdata train"
    snapshot = {"snapshot_id": "5" * 16, "name": "v1", "teacher_hash": TEACHER, "n_samples": 3, "n_dropped": 0}
    append_json(project.events_dir, "snapshot", {**snapshot, "created": "2026-03-02"})
    catch_up(project)
    assert following() == "distdata train"
    student(project)
    assert following() == "distdata gate"
    gate(project, "g1", "gate", a="fail", b="pass")
    assert following() == "distdata diagnose"
    record_causes(project, "g1", [{"slice": "a", "cause": "coverage", "remedy": "buy", "evidence": []}])
    assert following() == "distdata cycle"
    gate(project, "g2", "gate", a="pass", b="pass")
    assert following() == "distdata gate --confirm"
    gate(project, "g3", "confirm", a="pass", b="pass")
    for stage in ("shadow", "canary", "bulk"):
        assert following() == "distdata promote"
        promote(project, stage)
    assert following() == FINISHED


def test_the_next_command_is_about_the_newest_candidate(project: Project, tiny: Any, tmp_path: Path) -> None:
    """Another candidate than the one that was gated is to be gated; draws of another teacher begin the loop anew."""
    snapshot = {"snapshot_id": "5" * 16, "name": "v1", "teacher_hash": TEACHER, "n_samples": 3, "n_dropped": 0}
    append_json(project.events_dir, "snapshot", {**snapshot, "created": "2026-03-02"})
    student(project)
    gate(project, "g1", "gate", a="pass")
    student(project, "bb22000000000000")
    assert loop_facts(project, DAY, FINISHED)["next"] == "distdata gate"
    bought = tiny.build(tmp_path / "bought")  # with a train plan
    append_json(bought.events_dir, "snapshot", {**snapshot, "created": "2026-03-02"})
    student(bought, teacher_hash="f" * 16)
    assert "draws of another teacher version" in loop_facts(bought, DAY, FINISHED)["next"]


def test_the_lag_counts_days_from_the_release(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten days without a student on the 11th; promoted to the bulk on the 8th it is seven, whatever the day."""
    assert loop_facts(project, DAY, FINISHED)["lag"] == (
        "tiny 1 (00000000): released 2026-03-01, 10 days without a student"
    )
    monkeypatch.setattr(loop_events, "now_text", lambda: "2026-03-05T12:00:00+00:00")
    promote(project, "canary")
    assert "10 days without a student" in loop_facts(project, DAY, FINISHED)["lag"]
    monkeypatch.setattr(loop_events, "now_text", lambda: "2026-03-08T12:00:00+00:00")
    promote(project, "bulk")
    told = loop_facts(project, DAY, FINISHED)
    assert told["lag"] == "tiny 1 (00000000): 7 days from its release to its student"
    assert told["promoted"] == "student aa110000: bulk, 2026-03-08"


def test_red_slices_causes_and_what_follows(project: Project) -> None:
    """A red gate names its slices and, once diagnosed, its causes; probes' gates are not told."""
    student(project)
    gate(project, "g1", "gate", a="fail", b="pass", c="undecided")
    told = loop_facts(project, DAY, FINISHED)
    assert told["gate"] == "g1 on gate seeds of student aa110000: fail (1 red, 1 green, 1 undecided)"
    assert (told["red slices"], told["undecided"]) == ("a", "c")
    record_causes(project, "g1", [{"slice": "a", "cause": "coverage", "remedy": "buy", "evidence": []}])
    assert loop_facts(project, DAY, FINISHED)["causes"] == "1 coverage"


def test_no_facts_of_a_loop_that_never_ran(tiny: Any, tmp_path: Path) -> None:
    """Without a release, a snapshot or a gate there is only what comes next."""
    assert list(loop_facts(tiny.build(tmp_path / "p", plan=False), DAY, FINISHED)) == ["next"]
