"""A training is named by all that decides it, so the same one costs nothing and another one is another student."""

from __future__ import annotations

import json
from typing import Any

import pytest

from distdata.catalogs.errors import DistdataError
from distdata.catalogs.loop_events import students
from distdata.catalogs.project import Project
from distdata.catalogs.snapshots import load_snapshot
from distdata.cycle.training import (
    Change,
    change_of,
    changed,
    curate,
    current_teacher,
    shipped,
    sweep_students,
    train_student,
)
from distdata.train_min.checkpoint import read_student

QUICK = {"steps": 20, "width": 8}


def test_the_same_training_is_read_back(easy: Project, heard: Any) -> None:
    """The second call trains nothing and writes nothing; another seed, setting or change is another student."""
    made = train_student(easy, heard, settings=QUICK)
    n = len(list(easy.events_dir.iterdir()))
    assert heard.n_trainings == 1
    assert train_student(easy, heard, settings=QUICK) == made
    assert (heard.n_trainings, len(list(easy.events_dir.iterdir()))) == (1, n)
    others = [
        train_student(easy, heard, settings=QUICK, change=change)
        for change in (Change(seed=1), Change(factors={"day,dry": 2.0}), Change(keep={"day,dry": 0.5}))
    ]
    ids = {s.student_id for student in (made, *others) for s in student}
    assert len(ids) == 2 * 4
    assert heard.n_trainings == 4


def test_a_student_that_was_deleted_is_trained_again_to_the_same_artefact(easy: Project, heard: Any) -> None:
    """Training is exact: the weights that were lost come back under the same hash."""
    import shutil

    made = train_student(easy, heard, settings=QUICK)
    shutil.rmtree(easy.students_dir / made[0].folder.partition("/")[0])
    again = train_student(easy, heard, settings=QUICK)
    assert [s.student_id for s in again] == [s.student_id for s in made]
    assert heard.n_trainings == 2


def test_both_precisions_have_hashes_of_their_own(easy: Project, heard: Any) -> None:
    """The float32 and the int8 artefact are two records that name the files on disk; [train] ship picks one."""
    made = train_student(easy, heard, settings=QUICK)
    assert {s.precision for s in made} == {"float32", "int8"}
    assert len({s.student_id for s in made}) == 2
    for s in made:
        header = read_student(easy.students_dir / s.folder)
        assert header is not None
        assert (header["artefact"], header["precision"]) == (s.student_id, s.precision)
    assert shipped(easy, made).precision == "float32"
    other = easy.root / "distdata.toml"
    other.write_text(other.read_text().replace("[train]\n", '[train]\nship = "int8"\n'))
    again = Project.open(easy.root)
    assert shipped(again, made).precision == "int8"
    with pytest.raises(DistdataError, match=r"no int8 artefact of student .*\[train\] ship"):
        shipped(again, [s for s in made if s.precision == "float32"])


def test_a_training_without_what_ships_never_starts(easy: Project, worlds: Any, heard: Any) -> None:
    """With ship = "int8" a training of int8 = false is refused before its first step, and leaves no candidate."""
    project = worlds.edit(easy, 'recipe = "capacity"', 'recipe = "capacity"\nship = "int8"')
    before = students(project)
    with pytest.raises(DistdataError, match='train: int8 = false leaves no int8 artefact, and ship = "int8"'):
        train_student(project, heard, settings={**QUICK, "int8": False})
    assert heard.n_trainings == 0
    assert students(project) == before


def test_a_change_thins_whole_seeds_at_full_weight_and_multiplies_weights(still: Project) -> None:
    """Half of a slice's seeds carry the weight of all; factors multiply; other slices are as they were."""
    frame = load_snapshot(still).frame
    n_seeds = dict(frame.group_by("slice").agg(n=frame["seed_id"].n_unique()).iter_rows())
    assert len(n_seeds) == 4
    there = frame.filter(frame["slice"] == "day,dry")
    out = changed(frame, Change(keep={"day,dry": 0.5}, factors={"night,wet": 3.0}))
    left = out.filter(out["slice"] == "day,dry")
    assert left["seed_id"].n_unique() == -(-there["seed_id"].n_unique() // 2)
    assert left.height == there.filter(there["seed_id"].is_in(left["seed_id"].implode())).height
    for weight in ("weight", "fleet_weight"):  # whichever the samples are drawn by
        assert left[weight].sum() == pytest.approx(there[weight].sum())
    assert set(out.filter(out["slice"] == "night,wet")["weight"]) == {3.0}
    assert set(out.filter(out["slice"] == "night,dry")["weight"]) == {1.0}
    assert out.filter(out["slice"] != "day,dry").height == frame.height - there.height


def test_a_change_is_kept_with_its_student(easy: Project, heard: Any) -> None:
    """What was different about a training is read back from its record, all settings resolved."""
    change = Change(name="half", keep={"day,dry": 0.5}, factors={"day,wet": 4.0}, seed=3)
    made = train_student(easy, heard, settings=QUICK, change=change)[0]
    back = change_of(made)
    assert (back.name, back.keep, back.factors, back.seed) == ("half", {"day,dry": 0.5}, {"day,wet": 4.0}, 3)
    assert back.settings["steps"] == 20
    assert "ema" in back.settings
    assert made.seed == 3


def test_a_candidate_is_never_a_training_that_a_probe_was(easy: Project, heard: Any) -> None:
    """A probe was looked at on the gate's seeds, so the candidate of the same recipe gets the next seed."""
    probe = train_student(easy, heard, settings=QUICK, role="probe")
    assert {s.role for s in probe} == {"probe"}
    made = train_student(easy, heard, settings=QUICK)
    assert {s.role for s in made} == {"candidate"}
    assert {s.seed for s in made} == {probe[0].seed + 1}
    assert not {s.student_id for s in made} & {s.student_id for s in probe}
    assert train_student(easy, heard, settings=QUICK) == made
    assert train_student(easy, heard, settings=QUICK, role="probe") == probe
    assert heard.n_trainings == 2


def test_a_crash_between_the_records_of_two_precisions_loses_none(
    easy: Project, heard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after the first of two records, the same command writes the second and trains nothing again."""
    from distdata.cycle import training

    write = training.record_student

    def stop_after_one(project: Project, record: Any) -> None:
        write(project, record)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "record_student", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        train_student(easy, heard, settings=QUICK)
    monkeypatch.undo()
    made = train_student(easy, heard, settings=QUICK)
    assert {s.precision for s in made} == {"float32", "int8"}
    assert shipped(easy, made).precision == "float32"
    assert {s.student_id for s in made} <= {s.student_id for s in students(easy)}
    assert heard.n_trainings == 1


def test_a_parent_is_lineage_and_with_warm_start_the_beginning(easy: Project, heard: Any) -> None:
    """A student knows its parent; with warm_start and one tiny step it has nearly the parent's weights."""
    from distdata.train_min.checkpoint import student_weights

    small = {**QUICK, "int8": False}
    mother = train_student(easy, heard, settings=small)[0]
    still_ = {**small, "steps": 1, "lr": 1e-9, "ema": 0.0}
    child = train_student(easy, heard, settings={**still_, "warm_start": True}, parent=mother.student_id[:6])[0]
    stranger = train_student(easy, heard, settings=still_, parent=mother.student_id)[0]
    assert child.parent == stranger.parent == mother.student_id
    first, own, other = (student_weights(easy.students_dir / s.folder) for s in (mother, child, stranger))
    assert all(bool((first[n] - own[n]).abs().max() < 1e-4) for n in first)
    assert any(bool((first[n] - other[n]).abs().max() > 1e-2) for n in first)


def test_another_teacher_version_is_refused(easy: Project, worlds: Any, heard: Any) -> None:
    """A snapshot of the old version trains no student under the new one; curate has nothing to freeze yet."""
    old = current_teacher(easy).content_hash
    new = worlds.new_teacher(easy)
    with pytest.raises(DistdataError, match=rf"train: snapshot v1 holds samples of teacher {old}; distdata\.toml now"):
        train_student(new, heard, snapshot="v1")
    with pytest.raises(DistdataError, match="curate: no kept training sample of teacher two_modes 2"):
        curate(new)
    assert heard.n_trainings == 0


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"settings": {"stepz": 3}}, "recipe capacity: no setting 'stepz'.*steps"),
        ({"settings": {"steps": "many"}}, "steps = 'many' is no int"),
        ({"settings": {"steps": 0}}, "steps = 0; it must be at least 1"),
        ({"recipe": "capacityy"}, "recipe 'capacityy' is not known.*capacity"),
        ({"snapshot": "v9"}, "snapshot 'v9': there is none"),
        ({"parent": "zz"}, "no student begins with 'zz'"),
        ({"change": Change(keep={"day,drY": 0.5})}, "train: no sample of slice 'day,drY'.*day,dry"),
        ({"change": Change(factors={"fog": 2.0})}, "train: no sample of slice 'fog'"),
    ],
)
def test_wrong_words_are_told_before_anything_is_trained(
    still: Project, heard: Any, how: dict[str, Any], said: str
) -> None:
    """An unknown setting, value, recipe, snapshot, parent or slice is one message with the nearest word."""
    with pytest.raises(DistdataError, match=said):
        train_student(still, heard, **how)
    assert heard.n_trainings == 0


def test_a_sweep_compares_and_makes_no_candidate(easy: Project, heard: Any) -> None:
    """Each setting is trained once and held against groups none saw, best first; no student is written down."""
    before = students(easy)
    grid = {"width": [4, 8], "lr": [0.001]}
    made = sweep_students(easy, heard, grid, settings={"steps": 20})
    losses = [t.validation_loss for t in made]
    assert losses == sorted(losses, key=lambda x: (x is None, x))
    assert sorted(t.header["settings"]["width"] for t in made) == [4, 8]
    assert students(easy) == before
    again = sweep_students(easy, heard, grid, settings={"steps": 20})
    assert [t.artefact for t in again] == [t.artefact for t in made]
    assert not any(t.fresh for t in again)


def test_a_sweep_trains_as_train_does(easy: Project, heard: Any) -> None:
    """What the grid leaves open is as in [train.settings], below --set; a parent is each student's parent."""
    mother = students(easy)[-1]
    (one,) = sweep_students(
        easy, heard, {"lr": [0.001]}, settings={"steps": 10, "warm_start": True}, parent=mother.student_id
    )
    settings = one.header["settings"]
    rules = easy.config.train.settings
    assert (rules["width"], rules["batch"], rules["steps"], rules["lr"]) == (32, 128, 200, 0.005)
    assert (settings["width"], settings["batch"], settings["steps"], settings["lr"]) == (32, 128, 10, 0.001)
    assert one.header["parent"] == mother.student_id


def test_the_change_of_a_plain_training_is_none(still: Project) -> None:
    """The candidate that the cycle trained first was trained as it is: no factors, nothing left out."""
    first = students(still)[-1]
    said = json.loads(first.change)
    assert (said["factors"], said["keep"], said["seed"], said["name"]) == ({}, {}, 0, "")
