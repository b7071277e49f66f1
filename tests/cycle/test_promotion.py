"""Who answers where: nothing that is not green and confirmed, under this teacher and for this very artefact."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from distdata.catalogs import store
from distdata.catalogs.errors import DistdataError
from distdata.catalogs.loop_events import (
    StudentRecord,
    promotions,
    record_gate,
    record_student,
    routing,
    students,
)
from distdata.catalogs.project import Project
from distdata.catalogs.register_loop import GATE_ROW_SCHEMA
from distdata.cycle import promotion
from distdata.cycle.gate_rules import settings_key
from distdata.cycle.promotion import NOT_CONFIRMED, after_green, promote, roll_back, serving, standings
from distdata.cycle.training import current_teacher

SLICES = ("day,dry", "day,wet", "night,dry", "night,wet")
GREEN = dict.fromkeys(SLICES, "pass")
STAGES = ("shadow", "canary", "bulk")


@pytest.fixture
def project(worlds: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with seeds, and neither student nor gate.

    Students here are names without files; that files are looked at is tested on trained ones (`test_gating`).
    """
    monkeypatch.setattr(promotion, "check_artefact", lambda *_: None)
    made: Project = worlds.raw(tmp_path / "p", n_seeds=320)
    return made


def add_student(project: Project, student_id: str, **other: str) -> str:
    record_student(
        project,
        StudentRecord(**{
            "student_id": student_id, "folder": student_id, "recipe": "capacity", "precision": "float32",
            "role": "candidate", "snapshot_id": "5" * 16, "teacher_hash": current_teacher(project).content_hash,
            "parent": None, "seed": 0, "created": "2026-01-01T00:00:00+00:00", "change": "{}", **other,
        }),
    )  # fmt: skip
    return student_id


def add_gate(project: Project, student_id: str, split: str, verdicts: Mapping[str, str], **more: Any) -> str:
    """Write a gate down in which each slice has two rows: one that passes, and one with the slice's verdict."""
    rows = pl.DataFrame(
        [{"slice": s, "metric": m, "contrast": "c", "side": "both", "verdict": v, "n_seeds": 20, "n_draws": 40}
         for s, said in verdicts.items() for m, v in (("outcome", "pass"), ("distance", said))]
        + [{"slice": s, "metric": "horizon", "contrast": "seconds", "side": "none", "verdict": "pass", "low": 1.5,
            "estimate": 2.0, "high": 2.5} for s in more.get("horizons", ())]
    )  # fmt: skip
    empty = pl.from_arrow(GATE_ROW_SCHEMA.empty_table())
    assert isinstance(empty, pl.DataFrame)
    said = set(verdicts.values())
    whole = "fail" if "fail" in said else "pass" if said == {"pass"} else "undecided"
    n = len(list(project.events_dir.glob("*-gate.parquet")))
    header = {
        "gate_id": f"g{n}", "student_id": student_id, "teacher_hash": current_teacher(project).content_hash,
        "split": split, "role": "candidate", "candidate": 1, "alpha": 0.025, "verdict": whole, "n_draws": 80,
        "n_unpaired": 0, "student_plan": "0" * 12, "created": "2026-01-03T00:00:00+00:00",
        "look": 1, "n_looks": 1, "settings": settings_key(project),
    }  # fmt: skip
    record_gate(project, header, pl.concat([empty, rows], how="diagonal_relaxed"))
    return f"g{n}"


def green(project: Project, student_id: str) -> str:
    add_student(project, student_id)
    for split in ("gate", "confirm"):
        add_gate(project, student_id, split, GREEN)
    return student_id


def answers(project: Project) -> dict[str, tuple[str | None, float, str]]:
    return {r["slice"]: (r["student_id"], r["share"], r["fallback"]) for r in routing(project)}


def test_stages_come_in_order(project: Project) -> None:
    """Shadow, canary, bulk, one at a time; a skipped stage, an unknown one and a fourth are refused."""
    one = green(project, "one")
    with pytest.raises(DistdataError, match="student one is not promoted yet; its next stage is shadow"):
        promote(project, stage="bulk")
    with pytest.raises(DistdataError, match=r"no stage 'shadw'\..*shadow"):
        promote(project, stage="shadw")
    # share of the traffic: none beside, 5% of [loop] canary_share's default, all
    for stage, share in zip(STAGES, (0.0, 0.05, 1.0), strict=True):
        assert serving(project) is None
        done = promote(project)
        assert done.stage == stage
        assert answers(project) == dict.fromkeys(SLICES, (one, share, "teacher"))
        assert done.routes == routing(project)
    now = serving(project)
    assert now is not None
    assert now.student_id == one
    with pytest.raises(DistdataError, match="student one has the bulk of the traffic already"):
        promote(project)


def test_what_follows_a_green_gate(project: Project) -> None:
    """Confirm it, ask a person where that failed, promote stage by stage, and nothing once it has the bulk."""
    add_student(project, "one")
    add_gate(project, "one", "gate", GREEN)
    assert after_green(project, "one") == "distdata gate --confirm"
    add_gate(project, "one", "confirm", {**GREEN, "night,wet": "fail"})
    assert after_green(project, "one") == NOT_CONFIRMED
    add_gate(project, "one", "confirm", GREEN)
    for stage in STAGES:
        assert after_green(project, "one") == "distdata promote"
        promote(project, student_id="one", stage=stage)
    assert after_green(project, "one").startswith("nothing: ")


@pytest.mark.parametrize("split", ["gate", "confirm"])
@pytest.mark.parametrize("said", ["fail", "undecided", None])
def test_only_green_and_confirmed(project: Project, split: str, said: str | None) -> None:
    """A gate that failed, is undecided or was never held stops a promotion, and the message says which."""
    add_student(project, "one")
    for s in ("gate", "confirm"):
        if s != split or said is not None:
            add_gate(project, "one", s, {**GREEN, "night,wet": said or "pass"} if s == split else GREEN)
    words = (
        f"was not gated on {split} seeds yet: distdata gate"
        if said is None
        else rf"the {split} gate g\d of student one is {said}"
    )
    with pytest.raises(DistdataError, match=words):
        promote(project)
    assert routing(project) == []


def test_the_newest_gate_counts(project: Project) -> None:
    """A student that was green once and is red now is not promoted."""
    green(project, "one")
    add_gate(project, "one", "gate", {**GREEN, "day,dry": "fail"})
    with pytest.raises(DistdataError, match=r"1 slices .day,dry.*distdata diagnose.*--partial"):
        promote(project)


def test_gates_of_another_precision_are_no_gates(project: Project) -> None:
    """What ships is the artefact that was gated: the int8 twin's green gates don't promote the float32 one."""
    add_student(project, "small", folder="f/int8", precision="int8")
    add_student(project, "large", folder="f")
    for split in ("gate", "confirm"):
        add_gate(project, "small", split, GREEN)
    with pytest.raises(DistdataError, match="the gate gate was passed by the int8 artefact small; what ships is large"):
        promote(project)
    assert promote(project, student_id="small").stage == "shadow"


def test_probes_and_students_of_another_teacher_are_refused(project: Project, worlds: Any) -> None:
    """Neither a training that looked for a cause nor an old teacher's student is promoted, whatever its gates say."""
    add_student(project, "probe", role="probe")
    for split in ("gate", "confirm"):
        add_gate(project, "probe", split, GREEN)
    with pytest.raises(DistdataError, match="probe was trained as a probe"):
        promote(project, student_id="probe")
    green(project, "one")
    new = worlds.new_teacher(project)
    with pytest.raises(DistdataError, match="Old gates don't promote under a new teacher: distdata cycle"):
        promote(new, student_id="one")
    assert promotions(new) == []


def test_a_partial_promotion_leaves_red_slices_where_they_are(project: Project) -> None:
    """Red slices keep the student that has them or, without one, the teacher; with nothing green there is nothing."""
    old = green(project, "old")
    for _ in STAGES:
        promote(project)
    add_student(project, "new")
    add_gate(project, "new", "gate", {**GREEN, "night,wet": "fail"})
    add_gate(project, "new", "confirm", {**GREEN, "night,dry": "undecided"})
    with pytest.raises(DistdataError, match="--partial"):
        promote(project, student_id="new")
    for share in (0.0, 0.05, 1.0):
        promote(project, student_id="new", partial=True)
        now = answers(project)
        assert now["day,dry"] == now["day,wet"] == ("new", share, old)
        assert now["night,wet"] == now["night,dry"] == (old, 1.0, "teacher")
    add_student(project, "bad")
    for split in ("gate", "confirm"):
        add_gate(project, "bad", split, dict.fromkeys(SLICES, "fail"))
    with pytest.raises(DistdataError, match="no slice of student bad is green in both gates"):
        promote(project, student_id="bad", partial=True)


def test_rolling_back_restores_what_was(project: Project) -> None:
    """Each rollback brings back who answered before, slice by slice; the reason is kept; then it can go on again."""
    with pytest.raises(DistdataError, match="no student is promoted"):
        roll_back(project, "why")
    green(project, "old")
    for _ in STAGES:
        promote(project)
    before = answers(project)
    green(project, "new")
    promote(project)
    with pytest.raises(DistdataError, match="why"):
        roll_back(project, " ")
    for n in (1, 2, 3):  # from shadow, from canary, from bulk
        for _ in range(n if n > 1 else 0):
            promote(project)
        assert roll_back(project, "too cautious").student_id == "new"
        assert answers(project) == before
        now = serving(project)
        assert now is not None
        assert now.student_id == "old"
    assert promotions(project)[-1]["note"] == "too cautious"
    assert roll_back(project, "also").student_id == "old"
    assert serving(project) is None
    assert {a[0] for a in answers(project).values()} == {None}


def test_a_third_student_falls_back_on_the_bulk(project: Project) -> None:
    """Over a student in shadow or canary a newcomer's fallback is who has the bulk, not the teacher; slice by slice."""
    green(project, "a")
    for _ in STAGES:
        promote(project)
    add_student(project, "b")
    for split in ("gate", "confirm"):
        add_gate(project, "b", split, {**GREEN, "night,wet": "undecided"})
    for n, name in enumerate(("c", "d"), 1):  # b in shadow, then in canary
        promote(project, student_id="b", partial=True)
        green(project, name)
        promote(project, student_id=name)
        assert answers(project) == dict.fromkeys(SLICES, (name, 0.0, "a")), n
        roll_back(project, "next")
        share = (0.0, 0.05)[n - 1]
        assert answers(project) == {**dict.fromkeys(SLICES, ("b", share, "a")), "night,wet": ("a", 1.0, "teacher")}


def test_students_that_overtake_each_other_get_on(project: Project) -> None:
    """With another student promoted in between, the first goes on to canary and bulk; taken back it is gone wholly.

    The table that the other left names the first in a slice where the other is red: a rollback doesn't bring it back.
    """
    green(project, "a")
    add_student(project, "b")
    for split in ("gate", "confirm"):
        add_gate(project, "b", split, {**GREEN, "day,dry": "fail"})
    promote(project, student_id="a")
    promote(project, student_id="b", partial=True)
    assert answers(project)["day,dry"] == ("a", 0.0, "teacher")
    assert promote(project, student_id="a").stage == "canary"
    assert [(s.student_id, s.stage) for s in standings(project)] == [("b", "shadow"), ("a", "canary")]
    assert promote(project, student_id="a").stage == "bulk"
    assert answers(project) == dict.fromkeys(SLICES, ("a", 1.0, "teacher"))
    assert promote(project, student_id="b", partial=True).stage == "canary"
    assert answers(project) == {**dict.fromkeys(SLICES, ("b", 0.05, "a")), "day,dry": ("a", 1.0, "teacher")}
    roll_back(project, "b is worse")
    assert answers(project) == dict.fromkeys(SLICES, ("a", 1.0, "teacher"))
    promote(project, student_id="b", partial=True)
    assert [(s.student_id, s.stage) for s in standings(project)] == [("a", "bulk"), ("b", "shadow")]


def test_a_rollback_leaves_no_trace_of_a_student(project: Project) -> None:
    """A student that others were promoted beside is taken back from the slices that those had left with it, too."""
    green(project, "a")
    add_student(project, "b")
    for split in ("gate", "confirm"):
        add_gate(project, "b", split, {**GREEN, "day,dry": "fail"})
    promote(project, student_id="a")
    promote(project, student_id="b", partial=True)
    promote(project, student_id="a")
    roll_back(project, "too cautious")
    assert answers(project) == {
        **dict.fromkeys(SLICES, ("b", 0.0, "teacher")), "day,dry": (None, 0.0, "teacher"),
    }  # fmt: skip


def test_a_horizon_comes_from_the_gate(project: Project) -> None:
    """How far rollouts are trusted is the lower bound of the gate's own row, for the slices that have one."""
    add_student(project, "one")
    add_gate(project, "one", "gate", GREEN, horizons=["day,dry"])
    add_gate(project, "one", "confirm", GREEN)
    promote(project)
    assert {r["slice"]: r["horizon_s"] for r in routing(project)} == {**dict.fromkeys(SLICES), "day,dry": 1.5}


VERDICTS = st.fixed_dictionaries(dict.fromkeys(SLICES, st.sampled_from(["pass", "fail", "undecided"])))


TURNS = st.lists(st.tuples(VERDICTS, VERDICTS, st.integers(1, 3), st.booleans()), min_size=1, max_size=2)
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=2, deadline=None, derandomize=True, suppress_health_check=QUIET, phases=[Phase.generate])
@given(TURNS)
def test_a_red_slice_never_gets_the_student(project: Project, turns: list[Any]) -> None:
    """Whatever the verdicts of students that follow each other, no route gives a slice to one that isn't green there.

    The examples follow each other in one project, so each finds what the ones before it left.
    """
    _take(project, turns)


@pytest.mark.prove
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=QUIET, phases=[Phase.generate])
@given(TURNS)
def test_a_red_slice_never_gets_the_student_long(project: Project, turns: list[Any]) -> None:
    """The same with thirty times as many."""
    _take(project, turns)


def _take(project: Project, turns: list[Any]) -> None:
    for gate, confirm, n_stages, back in turns:
        name = add_student(project, f"s{len(students(project))}")
        add_gate(project, name, "gate", gate)
        add_gate(project, name, "confirm", confirm)
        both = [s for s in SLICES if gate[s] == confirm[s] == "pass"]
        if len(both) < len(SLICES):
            with pytest.raises(DistdataError):
                promote(project, student_id=name)
        for _ in range(n_stages if both else 0):
            promote(project, student_id=name, partial=True)
            _check(project)
        if back and both:
            roll_back(project, "test")
            _check(project)


def _check(project: Project) -> None:
    """Hold the routing table against the verdicts as they lie in the gates' own rows."""
    with store.read(project.catalog_path) as con:
        rows = con.execute(
            """SELECT g.student_id, r.slice FROM gates g JOIN gate_rows r USING (gate_no)
            GROUP BY ALL HAVING bool_and(r.verdict = 'pass') AND count(DISTINCT g.split) = 2"""
        ).fetchall()
    allowed = set(rows)
    for route in routing(project):
        for who in (route["student_id"], None if route["fallback"] == "teacher" else route["fallback"]):
            assert who is None or (who, route["slice"]) in allowed
        assert route["fallback"] is not None
        assert 0 <= route["share"] <= 1
