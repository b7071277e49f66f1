"""A gate compares like with like, spends its alpha once, and believes no artefact but the one that ships."""

from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from distdata.catalogs.errors import DistdataError
from distdata.catalogs.events import list_events
from distdata.catalogs.loop_events import find_student, gate_rows, gates
from distdata.catalogs.project import Project
from distdata.catalogs.snapshots import load_snapshot
from distdata.curate.pairs import measure_pair
from distdata.cycle.artefacts import remade_by
from distdata.cycle.diagnosis import last_gate
from distdata.cycle.gate_rules import gate_settings
from distdata.cycle.gating import gate_student
from distdata.cycle.loop import run_cycle
from distdata.cycle.outputs import estimate_fleet, export_dataset
from distdata.cycle.promotion import promote, roll_back
from distdata.cycle.purchases import plan_purchase, save_purchase
from distdata.cycle.training import Change, train_student
from distdata.generate.run import generate
from distdata.stratify.verdict import judge

METRICS = 'metrics = ["outcome", "distance"]'
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


def test_looks_are_those_of_the_first_gate(easy: Project, worlds: Any, heard: Any) -> None:
    """A student judged once with looks = 1 has spent its alpha: raising looks afterwards buys it no second look."""
    student = find_student(easy, None, "float32")
    other = worlds.edit(easy, METRICS, 'metrics = ["outcome"]')
    with pytest.raises(DistdataError, match=r"judged 1 times on gate seeds, and it may be judged 1 times.*looks"):
        gate_student(other, heard, student)
    other = worlds.edit(other, 'metrics = ["outcome"]', 'looks = 2\nalpha = 0.2\nmetrics = ["outcome"]')
    with pytest.raises(DistdataError, match=r"before its first gate \(now 2\)"):
        gate_student(other, heard, student)
    assert heard.n_draws == 0
    assert len(gates(easy)) == 2


def test_all_looks_together_spend_a_candidates_alpha(easy: Project, worlds: Any, heard: Any) -> None:
    """With looks = 2 before its first gate each look has half, whatever alpha and looks say later; a third has none.

    Candidate 2 may spend 0.05 / 6 in all, so 0.05 / 12 a look.
    """
    two = worlds.edit(easy, METRICS, f"looks = 2\n{METRICS}")
    student = train_student(two, heard, settings=QUICK)[0]
    share = pytest.approx(0.05 / 12)
    assert gate_student(two, heard, student).record.alpha == share
    more = worlds.edit(two, "looks = 2\n" + METRICS, 'looks = 1\nalpha = 0.4\nmetrics = ["outcome"]')
    done = gate_student(more, heard, student)
    assert (done.record.candidate, done.record.alpha) == (2, share)
    third = worlds.edit(more, 'looks = 1\nalpha = 0.4\nmetrics = ["outcome"]', 'looks = 9\nmetrics = ["distance"]')
    with pytest.raises(DistdataError, match="judged 2 times"):
        gate_student(third, heard, student)


def test_missing_draws_take_every_pass_away_until_they_come(easy: Project, worlds: Any, heard: Any, tiny: Any) -> None:
    """With one draw of 160 unanswered no slice passes, so nothing is cashed in; filled, the same look is made again.

    On other terms it would be a second look, gap or not.
    """
    (seed, slice_), *_ = tiny.sql(
        easy, "SELECT seed_id, slice FROM student_samples WHERE split = 'gate' ORDER BY seed_id LIMIT 1"
    )
    # the world's decoder, which student and teacher share, refuses this draw from now on
    path = easy.root / "two_modes.py"
    whole, empty = path.read_text(), "REFUSED: frozenset[tuple[str, int]] = frozenset()"
    assert empty in whole
    path.write_text(whole.replace(empty, f"REFUSED = {{({seed!r}, 3)}}"))
    student = train_student(easy, heard, settings={"steps": 250, "int8": False})[0]
    done = gate_student(easy, heard, student)
    assert (done.record.n_unpaired, done.record.verdict) == (1, "undecided")
    assert set(done.rows["verdict"]) == {"undecided"}
    mine, others = (done.rows.filter((pl.col("slice") == slice_) == here) for here in (True, False))
    assert {r[:40] for r in mine["reason"]} == {"1 draws have no counterpart of the stude"}
    assert {r[:40] for r in others["reason"]} == {f"of other slices ({slice_}) 1 draws have no"[:40]}
    with pytest.raises(DistdataError, match="judged 1 times"):
        gate_student(worlds.edit(easy, METRICS, 'metrics = ["outcome"]'), heard, student)
    easy = worlds.edit(easy, 'metrics = ["outcome"]', METRICS)
    assert not gate_student(easy, heard, student).fresh
    path.write_text(whole)
    sys.modules.pop("two_modes")
    generate(easy, heard, plan_id=done.record.student_plan, mode="retry-failed")
    again = gate_student(easy, heard, student)
    assert again.fresh
    assert (again.record.n_unpaired, again.record.verdict) == (0, "pass")
    assert (again.record.candidate, again.record.alpha) == (done.record.candidate, done.record.alpha)
    with pytest.raises(DistdataError, match="judged 1 times"):
        gate_student(worlds.edit(easy, METRICS, 'metrics = ["outcome"]'), heard, student)


def test_a_slice_made_infeasible_is_left_out(easy: Project, worlds: Any, heard: Any) -> None:
    """Its teacher draws are there and are left out before a student draws; the gate is another one."""
    rule = '[[infeasible]]\nwhen = { light = "night", road = "wet" }\nreason = "closed"\n[scenarios.turn]'
    less = worlds.edit(easy, "[scenarios.turn]", rule)
    made = train_student(easy, heard, settings=QUICK)[0]
    n_draws = gates(easy)[0].n_draws
    done = gate_student(less, heard, made)
    assert set(done.rows["slice"]) == {"day,dry", "day,wet", "night,dry"}
    assert done.record.n_draws == heard.n_draws < n_draws
    with pytest.raises(DistdataError, match="look"):  # the first student's gate covered all four
        gate_student(less, heard, find_student(easy, gates(easy)[0].student_id, "float32"))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("METRICS", 'metrics = ["outcom"]', r"no metric 'outcom'\. Did you mean 'outcome'"),
        ("METRICS", 'metrics = ["outcome", "drift"]', "metrics: drift can't be measured on records of kind kd_pair"),
        ("distance = 0.2", "distence = 0.2", r"gates.bands: no metric 'distence'\. Did you mean 'distance'"),
        ("distance = 0.2", "outcome = 0.2", r"outcome takes no band here.*\[bands\]"),
    ],
)
def test_what_cant_be_judged_is_refused_before_a_draw(
    still: Project, worlds: Any, heard: Any, tmp_path: Path, old: str, new: str, said: str
) -> None:
    """Wrong metrics and bands stop a gate and the plans for it, with the nearest name, and nothing is written."""
    shutil.copytree(still.root, tmp_path / "p")
    bad = worlds.edit(Project.open(tmp_path / "p"), METRICS if old == "METRICS" else old, new)
    n = len(list_events(bad.events_dir))
    for purpose in ("gate", "confirm"):
        with pytest.raises(DistdataError, match=said):
            plan_purchase(bad, budget=None, purpose=purpose)
    with pytest.raises(DistdataError, match=said):
        gate_student(bad, heard, find_student(bad, None, "float32"))
    assert (heard.n_draws, len(list_events(bad.events_dir))) == (0, n)
    assert plan_purchase(bad, budget="900samples", dry_run=True).plan.n_fresh == 100


def test_a_student_that_is_not_green_is_not_confirmed(easy: Project, worlds: Any, heard: Any) -> None:
    """Red or undecided on gate seeds, or never gated: no draw and no candidate of the confirm seeds is spent on it."""
    easy = worlds.edit(easy, "default = 0.3", "default = 0.02")  # which so few seeds can't tell
    made = train_student(easy, heard, settings=QUICK)[0]
    with pytest.raises(DistdataError, match="has no gate yet"):
        gate_student(easy, heard, made, split="confirm")
    assert gate_student(easy, heard, made).record.verdict != "pass"
    n = heard.n_draws
    with pytest.raises(DistdataError, match=f"the newest gate .* of student {made.student_id} is (fail|undecided)"):
        gate_student(easy, heard, made, split="confirm")
    assert heard.n_draws == n
    assert [g.student_id for g in gates(easy) if g.split == "confirm"] == [gates(easy)[0].student_id]


def test_a_deleted_students_verdicts_stay(easy: Project, worlds: Any, heard: Any) -> None:
    """Without its files a student's gates are read back; what needs them names the command that makes them again."""
    student = find_student(easy, None, "float32")
    shutil.rmtree(easy.students_dir / student.folder)
    assert not gate_student(easy, heard, student).fresh
    assert run_cycle(easy, heard, heard, heard).ended == "promoted"
    assert heard.n_trainings == 0
    other = worlds.edit(easy, METRICS, 'looks = 2\nmetrics = ["outcome"]')
    command = f"distdata train --snapshot {load_snapshot(easy, student.snapshot_id).name}"
    with pytest.raises(DistdataError, match=f"gone from .*This makes the same student again: {command}$"):
        gate_student(other, heard, student)
    roll_back(easy, "to try")
    with pytest.raises(DistdataError, match=f"promote: the files of student .* are gone.*{command}$"):
        promote(easy, student_id=student.student_id)
    again = train_student(easy, heard, snapshot=command.rpartition(" ")[2])
    assert student.student_id in {s.student_id for s in again}
    assert promote(easy, student_id=student.student_id).stage == "shadow"


def test_remaking_names_the_settings_that_are_not_the_projects(easy: Project, heard: Any) -> None:
    """Trained with other settings, the command has them all; weighted by a remedy, no command makes it again."""
    made = train_student(easy, heard, settings=QUICK)[0]
    command = remade_by(easy, made)
    assert command is not None
    words = shlex.split(command)
    assert words[:2] == ["distdata", "train"]
    assert {"width=8", "steps=20", "int8=false"} <= set(words)
    lighter = train_student(easy, heard, settings=QUICK, change=Change(factors={"day,dry": 2.0}))[0]
    assert remade_by(easy, lighter) is None


def test_old_gates_promote_under_their_own_terms_alone(easy: Project, worlds: Any, heard: Any) -> None:
    """With a band tightened since, or a metric added, promote names what changed and what another gate costs."""
    roll_back(easy, "to try")
    student = find_student(easy, None, "float32")
    tight = worlds.edit(easy, "default = 0.3", "default = 0.1")
    with pytest.raises(DistdataError, match=r"the band of slice day,dry: 0\.3, now 0\.1.*no look left.*distdata train"):
        promote(tight, student_id=student.student_id)
    back = worlds.edit(tight, "default = 0.1", "default = 0.3")
    other = worlds.edit(back, "distance = 0.2", "distance = 0.05")
    with pytest.raises(DistdataError, match=r"gates\.bands distance: 0\.2, now 0\.05"):
        promote(other, student_id=student.student_id, partial=True)
    assert promote(worlds.edit(other, "distance = 0.05", "distance = 0.2")).stage == "shadow"


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
    roll_back(easy, "to try")
    for use in (gate_student, lambda project, _, student: promote(project, student_id=student.student_id)):
        with pytest.raises(DistdataError, match=f"now holds artefact {other.student_id}, not {student.student_id}"):
            use(easy, heard, student)
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
