"""A gate compares like with like, spends its alpha once, and believes no artefact but the one that ships."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from distdata.catalogs.errors import DistdataError
from distdata.catalogs.events import list_events
from distdata.catalogs.loop_events import find_student, gate_rows, gates
from distdata.catalogs.project import Project
from distdata.curate.pairs import measure_pair
from distdata.cycle.diagnosis import last_gate
from distdata.cycle.gating import gate_settings, gate_student
from distdata.cycle.outputs import estimate_fleet, export_dataset
from distdata.cycle.purchases import plan_purchase, save_purchase
from distdata.cycle.training import train_student
from distdata.stratify.verdict import judge

QUICK = {"steps": 20, "width": 8, "int8": False}


def test_both_sides_have_the_same_noise(still: Project, tiny: Any) -> None:
    """Every student draw of the gate has the random seed of the teacher's draw of that seed and k."""
    from distdata.catalogs.manifests import read_manifest

    gate = gates(still)[0]
    seeds: dict[bool, dict[tuple[str, int], int]] = {True: {}, False: {}}
    of_student = dict(
        tiny.sql(still, "SELECT DISTINCT plan_id, purpose = 'student' FROM all_samples WHERE split = 'gate'")
    )
    for plan_id, by_student in of_student.items():
        for f in still.storage.list(plan_id):
            if f.name.endswith(".parquet"):
                rows = read_manifest(still.storage, f.name)[0].select(["seed_id", "k", "rng_seed"]).to_pylist()
                seeds[by_student] |= {(r["seed_id"], r["k"]): r["rng_seed"] for r in rows}
    assert len(seeds[True]) == gate.n_draws
    assert seeds[True] == seeds[False]


def test_a_teacher_against_itself_is_no_difference(still: Project, tiny: Any) -> None:
    """Paired with itself through the same code, every estimate is exactly 0 and everything passes."""
    (plan,) = tiny.sql(still, "SELECT plan_id FROM plans WHERE purpose = 'gate'")[0]
    pairs = measure_pair(still, [plan], [plan], ["outcome", "distance"])
    assert pairs.n_teacher_only == pairs.n_student_only == 0
    cells = pl.DataFrame({"slice": pairs.frame["slice"].unique().sort(), "band": 0.3})
    result = judge(pairs.frame, cells, gate_settings(still), candidate=1)
    shares = result.rows.filter(pl.col("metric") == "outcome")
    assert set(shares["estimate"]) == {0.0}
    # the energy distance leaves out pairs of one k: of one sample with itself it is 0 on the average, not below by much
    assert result.rows.filter(pl.col("metric") == "distance")["estimate"].max() <= 0
    assert result.verdict == "pass"


def test_a_gate_judged_before_is_read_back(easy: Project, heard: Any) -> None:
    """The second call draws nothing, writes nothing and spends no alpha: it is the same gate."""
    student = find_student(easy, None, "float32")
    n = len(list_events(easy.events_dir))
    again = gate_student(easy, heard, student)
    assert not again.fresh
    assert again.record == gates(easy)[0]
    assert again.rows.sort("slice", "metric").equals(gate_rows(easy, again.record.gate_id).sort("slice", "metric"))
    assert (heard.n_draws, len(list_events(easy.events_dir))) == (0, n)


def test_candidates_are_counted_and_spend_alpha(easy: Project, heard: Any) -> None:
    """Candidate c spends alpha / (c (c + 1)): 0.05 / 2, 0.05 / 6; each precision that is gated is a candidate."""
    assert [(g.candidate, g.alpha) for g in gates(easy)] == [(1, 0.025), (1, 0.025)]
    made = train_student(easy, heard, settings=QUICK)[0]
    second = gate_student(easy, heard, made).record
    assert (second.candidate, second.alpha) == (2, pytest.approx(0.05 / 6))
    int8 = next(s for s in _students(easy) if s.precision == "int8")
    third = gate_student(easy, heard, int8).record
    assert (third.candidate, third.alpha) == (3, pytest.approx(0.05 / 12))
    assert gate_student(easy, heard, made).record == second


def _students(project: Project) -> list[Any]:
    from distdata.catalogs.loop_events import students

    return students(project)


def test_probes_of_some_slices_are_no_candidates(easy: Project, heard: Any) -> None:
    """A probe's gate on one slice has that slice's rows alone, candidate 1's alpha, and moves nobody's count."""
    probe = train_student(easy, heard, settings=QUICK, role="probe")[0]
    newest = last_gate(easy).record
    done = gate_student(easy, heard, probe, slices=["night,wet"])
    assert set(done.rows["slice"]) == {"night,wet"}
    assert (done.record.role, done.record.candidate, done.record.alpha) == ("probe", 1, 0.025)
    assert last_gate(easy).record == newest
    n_asked = heard.n_draws
    assert gate_student(easy, heard, probe, slices=["night,wet"]).record == done.record
    assert heard.n_draws == n_asked
    candidate = train_student(easy, heard, settings=QUICK)[0]
    assert gate_student(easy, heard, candidate).record.candidate == 2


def test_a_second_look_needs_to_be_allowed(easy: Project, worlds: Any, heard: Any) -> None:
    """With [gates] looks = 2 a gate on other terms is the second look at half the alpha; a third has none left."""
    text = 'metrics = ["outcome", "distance"]'
    student = find_student(easy, None, "float32")
    other = worlds.edit(easy, text, 'metrics = ["outcome"]')
    with pytest.raises(DistdataError, match="look"):
        gate_student(other, heard, student)
    assert heard.n_draws == 0
    other = worlds.edit(other, 'metrics = ["outcome"]', 'looks = 2\nmetrics = ["outcome"]')
    done = gate_student(other, heard, student)
    assert (done.record.candidate, done.record.alpha) == (1, 0.0125)
    other = worlds.edit(other, 'metrics = ["outcome"]', 'metrics = ["distance"]')
    with pytest.raises(DistdataError, match="look"):
        gate_student(other, heard, student)


def test_a_students_missing_draws_take_a_pass_away(easy: Project, worlds: Any, heard: Any, tiny: Any) -> None:
    """Where the student left one draw of 160 unanswered its slice can't pass; the reason says so and what to do."""
    (seed, slice_), *_ = tiny.sql(
        easy, "SELECT seed_id, slice FROM student_samples WHERE split = 'gate' ORDER BY seed_id LIMIT 1"
    )
    # the world's decoder, which student and teacher share, refuses this draw from now on
    path = easy.root / "two_modes.py"
    empty = "REFUSED: frozenset[tuple[str, int]] = frozenset()"
    assert empty in path.read_text()
    path.write_text(path.read_text().replace(empty, f"REFUSED = {{({seed!r}, 3)}}"))
    student = train_student(easy, heard, settings={"steps": 250, "int8": False})[0]
    done = gate_student(easy, heard, student)
    mine = done.rows.filter(pl.col("slice") == slice_)
    assert set(mine["verdict"]) <= {"undecided", "fail"}
    assert any("1 draws have no counterpart of the student" in r for r in mine["reason"])
    assert done.record.verdict != "pass"
    assert done.record.n_unpaired == 1
    others = done.rows.filter(pl.col("slice") != slice_)
    assert set(others["verdict"]) == {"pass"}


def test_an_altered_artefact_is_refused(easy: Project, heard: Any) -> None:
    """One flipped bit in the weights, or another student's files in its place, and no verdict is given."""
    student = find_student(easy, None, "float32")
    weights = easy.students_dir / student.folder / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DistdataError, match="artefact"):
        gate_student(easy, heard, student)
    weights.write_bytes(whole)
    other = train_student(easy, heard, settings=QUICK)[0]
    for name in ("weights.safetensors", "student.json"):
        source, target = (easy.students_dir / s.folder / name for s in (other, student))
        target.write_bytes(source.read_bytes())
    with pytest.raises(DistdataError, match=f"now holds artefact {other.student_id}, not {student.student_id}"):
        gate_student(easy, heard, student)
    assert heard.n_draws == 0


def test_a_student_meets_its_own_teacher_only(easy: Project, worlds: Any, heard: Any) -> None:
    """Under a new teacher version the old student is not gated: its old gates stand, and none is added."""
    student = find_student(easy, None, "float32")
    new = worlds.new_teacher(easy)
    with pytest.raises(
        DistdataError, match=rf"student {student.student_id} was distilled from teacher .*distdata cycle"
    ):
        gate_student(new, heard, student)
    assert len(gates(new)) == 2


def test_without_teacher_draws_the_command_is_named(easy: Project, heard: Any, tiny: Any) -> None:
    """A split without draws of this teacher says which plan to make, or to run where it is made already."""
    student = replace(find_student(easy, None, "float32"))
    with pytest.raises(DistdataError, match=r"has no draws on pilot seeds yet.*distdata plan --purpose pilot"):
        gate_student(easy, heard, student, split="pilot")
    pilot = plan_purchase(easy, budget=None, purpose="pilot")
    save_purchase(easy, pilot)
    with pytest.raises(DistdataError, match=rf"Plan {pilot.plan_id} buys them: distdata generate --plan"):
        gate_student(easy, heard, student, split="pilot")


def test_students_draws_are_no_samples_of_the_teacher(easy: Project, tiny: Any, tmp_path: Path) -> None:
    """They are in student_samples and nowhere else: not in samples, coverage, spend, estimates, exports or credit."""
    n_gate, n_confirm = (g.n_draws for g in gates(easy))
    ((n_student,),) = tiny.sql(easy, "SELECT count(*) FROM student_samples")
    assert n_student == n_gate + n_confirm
    by = dict(tiny.sql(easy, "SELECT purpose, count(*) FROM samples_wide GROUP BY 1"))
    assert by == {"train": 800, "gate": n_gate, "confirm": n_confirm}
    bought = 800 + n_gate + n_confirm
    assert tiny.sql(easy, "SELECT sum(generated) FROM spend") == [(bought,)]
    ((usd,),) = tiny.sql(easy, "SELECT sum(known_usd) FROM spend_by_cell")
    assert usd == pytest.approx(0.001 * bought)
    counts = "SELECT sum(generated), sum(kept), sum(target) FROM coverage"
    assert tiny.sql(easy, counts) == [(800, 800, 800)]
    assert tiny.sql(easy, "SELECT DISTINCT purpose FROM coverage_by_purpose ORDER BY 1") == [
        ("confirm",), ("gate",), ("train",)
    ]  # fmt: skip
    found, _ = estimate_fleet(easy, "outcome = 'left'")
    assert found.table["n_draws"].to_list() == [800]
    done = export_dataset(
        easy, tmp_path / "out", layout="parquet", push=None, public=False, overwrite=False, say=lambda _: None
    )
    assert done["samples"] == 800
    more = plan_purchase(easy, budget="900samples", dry_run=True)
    assert more.plan.cells["credit"].sum() == 800
    assert more.plan.n_fresh == 100
