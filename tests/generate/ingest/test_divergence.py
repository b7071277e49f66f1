"""The divergence queue: cases come in once, a wrong teacher output is no target, and each case is consumed once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from distdata.catalogs.cases import (
    blocked_seeds,
    case_seed_id,
    close_cases,
    mark_planned,
    open_cases,
    read_cases,
    settle_cases,
)
from distdata.catalogs.errors import DistdataError
from distdata.catalogs.project import Project
from distdata.generate.ingest.byproducts import ingest_byproduct, ingest_clean
from distdata.generate.ingest.commands import ingest_app
from distdata.generate.ingest.divergence import give_up, ingest_divergence


def write(path: Path, *rows: dict[str, Any]) -> Path:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def diverged(**more: Any) -> dict[str, Any]:
    """Return a case of a student on seed s00."""
    return {"kind": "student_diverged", "seed_id": "s00", "case_id": "A", **more}


def states(project: Project) -> dict[str, str]:
    """Return the state of every case."""
    return dict(read_cases(project).select("case_id", "state").iter_rows())


def test_a_student_case_brings_a_seed_outside_the_frame(world: Any, project: Project, tmp_path: Path) -> None:
    """A twin of its seed in the same cell and group, bought with K draws by priority; the frame stays as it was."""
    rows = [
        diverged(priority=0.2, student="st-1", note="ran wide"),
        {"kind": "student_diverged", "priority": 1, "weather": "rain", "light": "night", "scenario": "cut_in",
         "params": {"v": -1}, "group": "drive-77", "decision_point": False},
    ]  # fmt: skip
    done = ingest_divergence(project, write(tmp_path / "a.jsonl", *rows))
    assert (done.n_taken, done.n_new_seeds, done.n_refused) == (2, 2, 0)
    cases = open_cases(project, world.HASH)
    assert cases["priority"].to_list() == [1.0, 0.2]
    assert cases["k_seed"].to_list() == [1, 2]
    assert cases["missing"].to_list() == [[0], [0, 1]]
    assert cases["seed_id"][1] == case_seed_id("A")
    columns = 'cell, "group", split, origin, params'
    twins = world.sql(project, f"SELECT {columns} FROM seeds_wide WHERE origin <> 'frame' ORDER BY cell")
    assert twins == [
        ("clear,day/cross", "drive-00", "train", "divergence", '{"v": 0}'),
        ("rain,night/cut_in", "drive-77", "train", "divergence", '{"v": -1}'),
    ]
    (case,) = read_cases(project).filter(case_id="A").to_dicts()
    assert (case["seed_id"], case["note"]) == ("s00", "student st-1: ran wide")
    world.assert_rebuilds(project)


def test_a_case_comes_once(world: Any, project: Project, tmp_path: Path) -> None:
    """The same case again, in this file or another, changes nothing, with or without an id of its own."""
    nameless = {k: v for k, v in diverged().items() if k != "case_id"}
    place = {"kind": "student_diverged", "weather": "rain", "light": "day", "scenario": "cut_in"}
    path = write(tmp_path / "a.jsonl", diverged(), diverged(), nameless, nameless, place, place)
    done = ingest_divergence(project, path)
    assert (done.n_taken, done.n_known) == (3, 3)
    before = world.tables(project)
    again = ingest_divergence(project, write(tmp_path / "b.jsonl", place, nameless, diverged()))
    assert (again.n_taken, again.n_known) == (0, 3)
    assert world.tables(project) == before


def test_a_waiting_case_changes_priority_and_note_only(world: Any, project: Project, tmp_path: Path) -> None:
    """Another condition under the same id is refused; priority and note follow the last word until it is over."""
    ingest_divergence(project, write(tmp_path / "a.jsonl", diverged()))
    done = ingest_divergence(project, write(tmp_path / "b.jsonl", diverged(priority=0.9, note="again")))
    assert (done.n_taken, done.n_known) == (1, 0)
    assert open_cases(project, world.HASH)["priority"].to_list() == [0.9]
    done = ingest_divergence(
        project, write(tmp_path / "c.jsonl", diverged(seed_id="s02"), diverged(kind="teacher_wrong"))
    )
    (group,) = done.refusals.groups.values()
    assert (group.reason, group.n_rows) == ("this case_id is another case", 2)
    assert group.example == "case A: seed_id is 's00' in the queue, 's02' here."
    close_cases(project, ["A"], "not worth it")
    done = ingest_divergence(project, write(tmp_path / "d.jsonl", diverged(priority=0.1)))
    assert (done.n_taken, done.n_known) == (0, 1)
    world.assert_rebuilds(project)


def test_what_is_no_text_is_refused_by_row(world: Any, project: Project, tmp_path: Path) -> None:
    """One bad value costs its row, not the file; a file of which all is refused leaves its trace, once."""
    bad = [diverged(case_id=c, **{c: v}) for c, v in (("teacher_hash", {"a": 1}), ("note", [1]), ("student", "\ud800"))]
    path = write(tmp_path / "a.jsonl", *bad)
    for _ in range(2):
        done = ingest_divergence(project, path)
        assert set(done.refusals.groups) == {"teacher_hash is no text", "note is no text", "student is no text"}
        assert world.sql(project, "SELECT kind, n_taken, n_refused FROM ingests") == [("divergence", 0, 3)]
        assert world.sql(project, "SELECT sum(n_rows) FROM refusals") == [(3,)]
    assert ingest_divergence(project, write(tmp_path / "b.jsonl", *bad, diverged())).n_taken == 1
    world.assert_rebuilds(project)


def test_a_case_is_given_up(world: Any, project: Project, tmp_path: Path) -> None:
    """It is closed with its reason and never bought; the second time it is over already; an unknown one is named."""
    ingest_divergence(project, write(tmp_path / "a.jsonl", diverged(), diverged(case_id="B", seed_id="s02")))
    assert give_up(project, ["A"], "no budget", dry_run=True).n_taken == 1
    assert states(project) == {"A": "open", "B": "open"}
    arguments = ["divergence", "--close", "A", "--reason", "no budget", "--project", str(project.root)]
    ran = CliRunner().invoke(ingest_app, arguments)
    assert (ran.exit_code, ran.stdout) == (0, "A: 1 of 1 cases closed.\n")
    assert states(project) == {"A": "closed", "B": "open"}
    assert read_cases(project).filter(case_id="A")["note"].to_list() == ["closed: no budget"]
    assert open_cases(project, world.HASH)["case_id"].to_list() == ["B"]
    assert give_up(project, ["A", "A"], "again").lines() == ["A: 0 of 1 cases closed; 1 were over already."]
    with pytest.raises(DistdataError, match="case C: not in the divergence queue"):
        give_up(project, ["B", "C"], "x")
    for wrong in (["divergence"], ["divergence", "--close", "B"], ["divergence", "a.jsonl", "--close", "B"]):
        assert isinstance(CliRunner().invoke(ingest_app, wrong).exception, DistdataError)
    world.assert_rebuilds(project)


def test_a_case_is_planned_then_consumed(world: Any, project: Project, tmp_path: Path) -> None:
    """It stays on offer until its draws exist, so that a later plan takes it over; then never again."""
    ingest_divergence(project, write(tmp_path / "a.jsonl", diverged()))
    seed = case_seed_id("A")
    mark_planned(project, ["A"], "plan-1")
    mark_planned(project, ["A"], "plan-1")
    assert states(project) == {"A": "planned"}
    assert open_cases(project, world.HASH)["case_id"].to_list() == ["A"]
    world.buy(project, [(seed, 0)])
    assert settle_cases(project, world.HASH) == 0
    assert open_cases(project, world.HASH)["missing"].to_list() == [[1]]
    world.buy(project, [(seed, 1)])
    assert open_cases(project, world.HASH).is_empty()
    assert settle_cases(project, world.HASH) == 0  # generate has settled it
    assert states(project) == {"A": "consumed"}
    with pytest.raises(DistdataError, match="case A: is consumed and can't be planned again"):
        mark_planned(project, ["A"], "plan-2")
    with pytest.raises(DistdataError, match="case B: not in the divergence queue"):
        mark_planned(project, ["B"], "plan-2")
    world.assert_rebuilds(project)


def test_a_wrong_teacher_output_is_no_target(world: Any, project: Project, tmp_path: Path) -> None:
    """Named samples are dropped, else all of the seed, those of an open plan too; and the seeds are blocked."""
    world.buy(project, [("s00", 0), ("s00", 1), ("s02", 0)])
    world.buy(project, [("s02", 1)], make=False)
    rows = [
        {"kind": "teacher_wrong", "sample_id": "s00-k001-00000000", "note": "ghost"},
        {"kind": "teacher_wrong", "seed_id": "s02", "case_id": "whole"},
        {"kind": "teacher_wrong", "seed_id": "s21", "case_id": "gate"},
    ]
    done = ingest_divergence(project, write(tmp_path / "a.jsonl", *rows))
    assert (done.n_taken, done.n_new_seeds) == (3, 2)  # a held-out seed gets no twin to train on
    assert world.sql(project, "SELECT sample_id, stage FROM drops ORDER BY 1") == [
        ("s00-k001-00000000", "divergence"), ("s02-k000-00000000", "divergence"), ("s02-k001-00000000", "divergence"),
    ]  # fmt: skip
    assert blocked_seeds(project, world.HASH).to_list() == ["s00", "s02", "s21"]
    assert blocked_seeds(project, "another").to_list() == []
    assert open_cases(project, world.HASH).is_empty()
    assert world.sql(project, "SELECT sum(generated), sum(kept) FROM coverage") == [(3, 1)]
    other = open_cases(project, "another")  # the next teacher version is asked on the two that may be trained on
    assert sorted(other["case_id"].to_list()) == sorted(set(states(project)) - {"gate"})
    world.assert_rebuilds(project)


def test_answers_where_the_teacher_is_wrong_are_refused(world: Any, project: Project, tmp_path: Path) -> None:
    """A byproduct of a blocked seed earns nothing."""
    ingest_divergence(project, write(tmp_path / "a.jsonl", {"kind": "teacher_wrong", "seed_id": "s02"}))
    row = {"seed_id": "s02", "x": world.answer(1).tolist(), "outcome": "low", "teacher_version": "1"}
    done = ingest_byproduct(project, [write(tmp_path / "b.jsonl", row)])
    assert set(done.refusals.groups) == {"the teacher is known wrong there"}


def test_a_correction_closes_its_case(world: Any, project: Project, tmp_path: Path) -> None:
    """A clean sample needs no condition beside the case; the seed stays blocked and the wrong draw dropped."""
    world.buy(project, [("s02", 0)])
    ingest_divergence(project, write(tmp_path / "a.jsonl", {"kind": "teacher_wrong", "seed_id": "s02", "case_id": "A"}))
    row = {"x": world.answer(1).tolist(), "outcome": "swerved", "case_id": "A"}
    path = write(tmp_path / "c.jsonl", row, {**row, "case_id": "nobody"})
    done = ingest_clean(project, [path])
    assert (done.n_taken, done.n_credit, set(done.refusals.groups)) == (1, 0, {"unknown case"})
    query = "SELECT seed_id, k, source, purpose, teacher_hash, outcome, split, pi, weight FROM samples_wide WHERE k > 0"
    assert world.sql(project, query) == [("s02", 1000, "clean", "clean", "", "swerved", "train", 0.0, 0.0)]
    assert states(project) == {"A": "closed"}
    assert blocked_seeds(project, world.HASH).to_list() == ["s02"]
    assert world.sql(project, "SELECT sum(known_usd) FROM spend") == [(0.25,)]  # what the one bought draw cost
    assert world.sql(project, "SELECT sum(generated), sum(kept) FROM coverage") == [(1, 0)]
    with pytest.raises(DistdataError, match="--case B: no such teacher_wrong case"):
        ingest_clean(project, [path], case="B")
    world.assert_rebuilds(project)


def test_clean_samples_respect_splits_and_kinds(world: Any, project: Project, tmp_path: Path) -> None:
    """Held-out groups are refused; another record kind has the members that the mapping says."""
    rows = [{"seed_id": s, "caption": f"text {s}"} for s in ("s00", "s21")]
    done = ingest_clean(project, [write(tmp_path / "a.jsonl", *rows)], options=["kind=human", "t.txt=caption"])
    assert (done.n_taken, set(done.refusals.groups)) == (1, {"held out"})
    ((sample_id, kind),) = world.sql(project, "SELECT sample_id, kind FROM samples")
    assert kind == "human"
    assert world.members(project, sample_id)["t.txt"] == b"text s00"
    assert done.lines()[0] == "a.jsonl: 1 of 2 clean samples taken; 1 refused."
    world.buy(project, [("s00", 0)])  # a human target is no draw of the teacher: k = 0 is still to be had
    assert world.sql(project, "SELECT k, source FROM samples ORDER BY k") == [(0, "planned"), (1000, "clean")]


REFUSED = [
    ({"kind": "teacher_rong"}, "unknown kind of case", "kind = 'teacher_rong'. Did you mean 'teacher_wrong'?"),
    ({"kind": None}, "unknown kind of case", "no kind."),
    ({"priority": 2}, "priority outside 0 to 1", "priority = 2."),
    ({"priority": "high"}, "priority outside 0 to 1", "priority = 'high'."),
    ({"case_id": "x" * 200}, "bad case_id", "case_id = 'xxx"),
    ({"seed_id": "s22"}, "held out", "group drive-22 is in the split confirm."),
    ({"seed_id": "zz"}, "unknown seed", "seed_id 'zz' is not in the catalog"),
    ({"sample_id": "zz"}, "unknown sample", "sample_id 'zz'."),
    (
        {"kind": "teacher_wrong", "sample_id": "s02-k000-00000000"}, "samples of another seed or teacher",
        "s02-k000-00000000 is of seed s02, the case of s00.",
    ),
]  # fmt: skip


def test_a_refused_case_says_why(world: Any, project: Project, tmp_path: Path) -> None:
    """Each with the reason, the value, and the case beside it taken."""
    world.buy(project, [("s02", 0)])
    for more, reason, example in REFUSED:
        path = write(tmp_path / "a.jsonl", diverged(), {**diverged(case_id="B"), **more})
        done = ingest_divergence(project, path, dry_run=True)
        assert done.n_taken == 1
        (group,) = done.refusals.groups.values()
        assert (group.reason, group.n_rows, group.first_row) == (reason, 1, "a.jsonl line 2")
        assert example in group.example
    assert states(project) == {}
    with pytest.raises(DistdataError, match=r"no kind 'x'\. Known: teacher_wrong, student_diverged"):
        ingest_divergence(project, path, kind="x")
