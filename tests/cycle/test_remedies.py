"""A probe is the candidate's training with one thing changed; the next candidate is [train]'s with the remedies."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from distdata.catalogs.loop_events import StudentRecord, find_student, record_causes, students
from distdata.catalogs.project import Project
from distdata.catalogs.snapshots import load_snapshot
from distdata.cycle.diagnosis import Probes, clean_weight, last_gate, raised, remedies
from distdata.cycle.training import AS_IT_IS, Change, change_of, curate, shipped, train_like, train_student
from distdata.train_min.checkpoint import read_student

RECIPE = 'recipe = "capacity"'


def found(project: Project, *causes: tuple[str, str]) -> None:
    """Write causes down for the newest candidate's gate."""
    rows = [{"slice": name, "cause": cause, "remedy": "", "evidence": []} for name, cause in causes]
    record_causes(project, last_gate(project).record.gate_id, rows)


def following(project: Project, heard: Any, before: StudentRecord) -> StudentRecord:
    """Train the next candidate as the cycle does."""
    taken = curate(project)
    change = remedies(project, before, taken)
    return shipped(project, train_student(project, heard, snapshot=taken.name, change=change))


def test_a_following_student_obeys_train_and_the_remedies(easy: Project, worlds: Any, heard: Any) -> None:
    """Twice the width and the factors stay through the turns; every other setting is the one in distdata.toml now."""
    first = find_student(easy, None, "float32")
    found(easy, ("night,wet", "capacity"), ("day,dry", "weighting"))
    change = remedies(easy, first, curate(easy))
    assert (change.settings, change.factors) == ({"width": 64}, {"day,dry": 4.0})
    project = worlds.edit(worlds.edit(easy, "lr = 0.005", "lr = 0.004"), "steps = 200", "steps = 5")
    second = following(project, heard, first)
    third = following(worlds.edit(project, "lr = 0.004", "lr = 0.003"), heard, second)
    for student, lr in ((second, 0.004), (third, 0.003)):
        made = change_of(student)
        assert made.settings["lr"] == lr
        assert (made.settings["width"], made.settings["steps"], made.factors) == (64, 5, {"day,dry": 4.0})
    wider = following(worlds.edit(project, "width = 32", "width = 72"), heard, second)
    assert change_of(wider).settings["width"] == 72
    narrower = following(worlds.edit(project, "width = 72", "width = 16"), heard, wider)
    assert change_of(narrower).settings["width"] == 64


def test_another_recipe_starts_from_its_own_settings(easy: Project, worlds: Any, heard: Any) -> None:
    """After a change of recipe the next training has its defaults and [train.settings], nothing of the last recipe."""
    first = find_student(easy, None, "float32")
    found(easy, ("night,wet", "capacity"), ("day,dry", "weighting"))
    project = worlds.edit(worlds.edit(easy, RECIPE, 'recipe = "regression"'), "sampler_steps = 12\n", "")
    project = worlds.edit(project, "steps = 200", "steps = 5")
    second = following(project, heard, first)
    made = change_of(second)
    assert second.recipe == "regression"
    assert (made.settings["width"], made.factors) == (32, {"day,dry": 4.0})
    assert "cond_noise" not in made.settings


def test_probes_are_trained_as_the_candidate_was(easy: Project, worlds: Any, heard: Any) -> None:
    """Whatever [train] says after the training, "the same data, seed 1" is the candidate's training with seed 1."""
    mine, gate = find_student(easy, None, "float32"), last_gate(easy)
    rows = Probes(easy, heard, heard, mine, gate, change_of(mine), ["day,dry"]).run("the same data, seed 1", seed=1)
    assert heard.n_trainings == 1
    edited = worlds.edit(easy, RECIPE, 'recipe = "word_kd"\nseed = 7\nweights = "fleet"\nship = "int8"')
    edited = worlds.edit(edited, "lr = 0.005", "lr = 0.5")
    again = Probes(edited, heard, heard, mine, gate, change_of(mine), ["day,dry"]).run("the same data, seed 1", seed=1)
    assert heard.n_trainings == 1
    assert again.equals(rows)
    probe = next(s for s in students(edited) if (s.role, s.precision) == ("probe", "float32"))
    own, other = (read_student(edited.students_dir / s.folder) for s in (mine, probe))
    assert own is not None
    assert other is not None
    assert (own["seed"], other["seed"]) == (0, 1)
    assert {key for key in own if own[key] != other[key]} == {"artefact", "seed"}


def test_a_probe_of_a_fleet_student_is_drawn_by_the_fleet(easy: Project, worlds: Any, heard: Any) -> None:
    """Seeds count from the candidate's, weights are the candidate's, and so are the factors that weight a slice up."""
    fleet = worlds.edit(easy, RECIPE, f'{RECIPE}\nseed = 5\nweights = "fleet"')
    mine = train_student(fleet, heard, settings={"steps": 5, "int8": False}, change=Change(seed=2))[0]
    assert mine.seed == 7
    plain = worlds.edit(fleet, 'seed = 5\nweights = "fleet"', "seed = 1")
    change = Change(name="the same data, seed 1", seed=change_of(mine).seed + 1)
    header = read_student(plain.students_dir / train_like(plain, heard, mine, change)[0].folder)
    assert header is not None
    assert (header["seed"], header["weights"], header["settings"]["steps"]) == (8, "fleet", 5)


def test_factors_follow_the_weights_that_samples_are_drawn_by(still: Project) -> None:
    """A slice of a twentieth of the fleet gets x5 to be a mean slice of it, and x4 where all slices weigh alike.

    Weights 1, 1, 1 and 0.1577 by slice: the mean is 0.789 and 5 times the last.
    """
    taken = load_snapshot(still)
    small = pl.when(pl.col("slice") == "night,wet").then(3 / 19 / 200).otherwise(1 / 200)
    taken = type(taken)(name=taken.name, header=taken.header, frame=taken.frame.with_columns(fleet_weight=small))
    assert raised(taken, AS_IT_IS, ["night,wet"], "plan") == {"night,wet": 4.0}
    assert raised(taken, AS_IT_IS, ["night,wet"], "fleet") == {"night,wet": pytest.approx(5.0)}


def test_corrections_count_as_much_as_draws() -> None:
    """Cells of fleet shares 0.8 and 0.2; in the second 30 draws and 10 corrections.

    By plan 10 of 80 samples are clean; by the fleet they are a quarter of the second cell's 0.2: 0.05.
    """
    cells = ["a"] * 40 + ["b"] * 40
    source = ["planned"] * 70 + ["clean"] * 10
    weight = [0.8 / 40] * 40 + [0.2 / 30] * 30 + [0.2 / 10] * 10
    frame = pl.DataFrame({"cell": cells, "source": source, "weight": [1.0] * 80, "fleet_weight": weight})
    assert clean_weight(frame, "plan") == pytest.approx(0.125)
    assert clean_weight(frame, "fleet") == pytest.approx(0.05)
    assert clean_weight(frame.filter(pl.col("source") != "clean"), "fleet") == 0.0
