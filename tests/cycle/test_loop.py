"""The cycle asks what is missing and does it, until a student serves or a person is needed."""

from __future__ import annotations

import json
import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from distdata.catalogs.errors import DistdataError
from distdata.catalogs.events import list_events
from distdata.catalogs.loop_events import causes_of, gates, promotions, routing, students
from distdata.catalogs.loop_facts import FINISHED, loop_facts
from distdata.catalogs.project import Project
from distdata.cycle.diagnosis import last_gate
from distdata.cycle.loop import refresh, run_cycle
from distdata.cycle.promotion import promote
from distdata.cycle.training import current_teacher
from distdata.generate.ingest.rejects import ingest_rejects


def state(project: Project) -> list[tuple[int, str]]:
    return [(e.number, e.kind) for e in list_events(project.events_dir)]


def test_an_easy_world_ends_promoted(still: Project, worlds: Any, tmp_path: Path) -> None:
    """One command plans, draws, trains, gates, confirms and promotes to the stage that the project names."""
    told = worlds.easy_story()
    assert (told.ended, told.exit_code, told.turns) == ("promoted", 0, 1)
    assert [(g.split, g.verdict, g.candidate) for g in gates(still)] == [("gate", "pass", 1), ("confirm", "pass", 1)]
    assert [p["stage"] for p in promotions(still)] == ["shadow", "canary", "bulk"]
    assert {p["student_id"] for p in promotions(still)} == {told.student_id}
    assert {(r["student_id"], r["share"]) for r in routing(still)} == {(told.student_id, 1.0)}
    assert told.usd == pytest.approx(0.001 * (800 + sum(g.n_draws for g in gates(still))))


def test_the_second_call_changes_nothing(easy: Project, heard: Any) -> None:
    """Once promoted, the same command writes no event, asks no teacher and trains nothing."""
    before = state(easy)
    done = run_cycle(easy, heard, heard, heard)
    assert (done.ended, done.exit_code, done.usd) == ("promoted", 0, 0.0)
    assert done.reason.endswith("serves already; nothing changed since.")
    assert state(easy) == before
    assert (heard.n_draws, heard.n_trainings) == (0, 0)


def test_a_first_plan_needs_a_budget(worlds: Any, heard: Any, tmp_path: Path) -> None:
    """Without a plan and without a budget nothing is guessed."""
    project = worlds.raw(tmp_path / "p", n_seeds=320)
    with pytest.raises(DistdataError, match="how much for the first train plan"):
        run_cycle(project, heard, heard, heard)
    assert heard.n_draws == 0


def test_max_cycles_is_the_most_turns(worlds: Any, tmp_path: Path) -> None:
    """After as many turns as allowed a person is called, and nothing was trained or bought for another."""
    project, told = worlds.red(tmp_path / "p")
    assert (told.ended, told.exit_code, told.turns) == ("paged", 3, 1)
    assert "night,wet" in told.reason
    assert "--max-cycles allows no more" in told.reason
    assert [(g.role, g.verdict != "pass") for g in gates(project)] == [("candidate", True)]


def test_lack_of_coverage_buys_in_that_slice_alone(worlds: Any, tiny: Any, tmp_path: Path) -> None:
    """The slice that lacked seeds gets more draws, every other exactly none; the student of the next turn is green."""
    project, told = worlds.starved(tmp_path / "p")
    first = gates(project)[0]
    assert causes_of(project, first.gate_id).select("slice", "cause").rows() == [("night,wet", "coverage")]
    plans = tiny.sql(
        project,
        """SELECT p.plan_no, c.slice, sum(k.fresh)::INTEGER FROM plan_cells k JOIN plans p USING (plan_no)
        JOIN cells c USING (cell_id) WHERE p.purpose = 'train' GROUP BY ALL ORDER BY 1, 2""",
    )
    last = max(no for no, _, _ in plans)
    bought = {name: n for no, name, n in plans if no == last}
    assert bought["night,wet"] > 0
    assert {n for name, n in bought.items() if name != "night,wet"} == {0}
    kept = dict(tiny.sql(project, "SELECT slice, sum(kept)::INTEGER FROM coverage GROUP BY 1"))
    assert kept == {"day,dry": 96, "day,wet": 96, "night,dry": 96, "night,wet": 96 + bought["night,wet"]}
    second = [g for g in gates(project) if g.role == "candidate" and g.split == "gate"][1]
    assert (second.candidate, second.verdict) == (2, "pass")
    assert second.gate_no == max(g.gate_no for g in gates(project) if g.split == "gate")
    assert told.turns == 2
    assert tiny.sql(project, "SELECT adaptive FROM plans WHERE purpose = 'train' ORDER BY plan_no") == [
        (False,),
        (True,),
    ]


def test_a_refresh_stays_within_its_dollars(worlds: Any, heard: Any, tmp_path: Path) -> None:
    """With less money than wanted it buys what that pays for; with too little nothing, and a person is called."""
    project, _ = worlds.explained(tmp_path / "p")
    gate, before = last_gate(project), state(project)
    done = refresh(project, heard, heard, gate, dry_run=True)
    growth, wanted = done.growth, done.purchase
    assert not done.saved
    assert growth is not None
    assert wanted is not None
    assert wanted.plan.usd > 0.1
    some = refresh(project, heard, heard, gate, max_usd=0.1, dry_run=True).purchase
    assert some is not None
    assert 0 < some.plan.usd <= 0.1
    assert state(project) == before
    assert (heard.n_draws, heard.n_trainings) == (0, 0)
    done = run_cycle(project, heard, heard, heard, max_usd=0.0005)
    assert (done.ended, done.exit_code) == ("paged", 3)
    assert heard.n_draws == 0
    assert state(project) == before


def test_a_first_plan_beyond_the_dollars_is_not_bought(worlds: Any, heard: Any, tmp_path: Path) -> None:
    """`max_usd` holds for all plans of a call: with less than the first one costs nothing is saved or drawn."""
    project = worlds.raw(tmp_path / "p", **worlds.WORLDS["easy"])
    done = run_cycle(project, heard, heard, heard, budget="800samples", max_usd=1e-6)
    assert (done.ended, done.exit_code, done.usd) == ("paged", 3, 0.0)
    assert re.search(r"the train plan needs \$[0-9.e-]+, and --max-usd leaves \$1e-06", done.reason)
    assert heard.n_draws == 0
    assert "plan" not in {kind for _, kind in state(project)}


def test_an_unknown_cause_calls_a_person(worlds: Any, tmp_path: Path) -> None:
    """Where nothing helps nothing is bought: the hook gets project, reason and student as JSON, and the exit is 3."""
    project, told = worlds.hopeless(tmp_path / "p")
    assert (told.ended, told.exit_code) == ("paged", 3)
    causes = causes_of(project, gates(project)[0].gate_id)
    assert set(causes["cause"]) == {"unknown"}
    said = json.loads((project.root / "red.json").read_text())
    assert said["reason"] == told.reason
    assert said["student"] == told.student_id
    assert Path(said["project"]).name == "hopeless"
    assert "unknown" in told.reason
    assert not promotions(project)


def test_wrong_teacher_outputs_call_a_person(worlds: Any, heard: Any, tiny: Any, tmp_path: Path) -> None:
    """Where a verifier found the teacher wrong, more of the same is not bought: the cause is the teacher's."""
    project, _ = worlds.hopeless(tmp_path / "p")
    wrong = tiny.sql(
        project, "SELECT sample_id FROM samples_wide WHERE split = 'train' AND slice = 'day,dry' ORDER BY 1 LIMIT 40"
    )
    path = project.root / "rejects.csv"
    path.write_text("sample_id,reason\n" + "".join(f"{s},wrong\n" for (s,) in wrong))
    ingest_rejects(project, path)
    (project.root / "red.json").unlink()
    done = run_cycle(project, heard, heard, heard)
    assert (done.ended, done.exit_code) == ("paged", 3)
    causes = dict(causes_of(project, last_gate(project).record.gate_id).select("slice", "cause").iter_rows())
    assert causes["day,dry"] == "teacher"
    assert "day,dry: teacher" in json.loads((project.root / "red.json").read_text())["reason"]
    assert tiny.sql(project, "SELECT count(*) FROM plans WHERE purpose = 'train'") == [(1,)]


def test_a_broken_hook_is_told_and_changes_nothing(worlds: Any, heard: Any, tmp_path: Path) -> None:
    """A hook that fails or isn't there is a line of the story; the cycle ends as it would have."""
    project, told = worlds.hopeless(tmp_path / "p")
    for command, said in (
        ('"sh", "-c", "echo no >&2; exit 7"', "ended with 7: no"),
        ('"no-such-hook"', "could not be"),
    ):
        path = project.root / "distdata.toml"
        lines = [f"on_red = [{command}]" if x.startswith("on_red") else x for x in path.read_text().splitlines()]
        path.write_text("\n".join(lines) + "\n")
        done = run_cycle(Project.open(project.root), heard, heard, heard)
        assert (done.ended, done.reason) == ("paged", told.reason)
        assert any(said in note for note in heard.notes)


def test_a_new_teacher_version_gets_a_student_of_its_own(easy: Project, worlds: Any, heard: Any, tiny: Any) -> None:
    """No gate of the old version promotes; the old student serves till the new one does; the lag is counted in days."""
    old = students(easy)[-1]
    new = worlds.new_teacher(easy, released="2026-01-05")
    with pytest.raises(DistdataError, match="Old gates don't promote under a new teacher"):
        promote(new, student_id=old.student_id)
    before = {g.gate_id for g in gates(new)}
    assert {r["student_id"] for r in routing(new)} == {old.student_id}
    done = run_cycle(new, heard, heard, heard)
    info = current_teacher(new)
    assert done.ended == "promoted"
    assert done.student_id != old.student_id
    assert heard.n_draws > 800
    fresh = [g for g in gates(new) if g.gate_id not in before]
    assert {g.teacher_hash for g in fresh} == {info.content_hash}
    assert [(g.split, g.candidate, g.verdict) for g in fresh] == [("gate", 1, "pass"), ("confirm", 1, "pass")]
    assert {r["student_id"] for r in routing(new)} == {done.student_id}
    rows = tiny.sql(new, "SELECT teacher_version, released, promoted, days FROM lag")
    assert [(v, r) for v, r, _, _ in rows][1] == ("2", "2026-01-05")
    day = date.fromisoformat(rows[1][2][:10])
    assert rows[1][3] == (day - date(2026, 1, 5)).days
    assert (
        f"two_modes 2 ({info.content_hash[:8]}): {rows[1][3]} days from its release to its student"
        in (loop_facts(new, day, FINISHED)["lag"])
    )
