"""Train students from a snapshot: candidates, and probes that find out why a slice is red."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from ..catalogs.errors import DistdataError, nearest
from ..catalogs.hashing import content_hash
from ..catalogs.loop_events import StudentRecord, find_student, note_release, now_text, record_student, students
from ..catalogs.project import Project
from ..catalogs.protocol import TeacherInfo, TokenTeacher
from ..catalogs.snapshots import Snapshot, load_snapshot, make_snapshot
from ..generate.teachers.registry import make_teacher, teacher_info
from ..generate.worker import limit_threads
from ..stratify.interventions import thinned
from ..train_min.checkpoint import read_student
from ..train_min.job import Trained, TrainJob, TrainReporter, WeightColumn
from ..train_min.loop import train
from ..train_min.recipes import find_recipe, resolve_settings
from ..train_min.sweep import sweep


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a training does differently: factors on slices' weights, shares of slices' seeds that are kept.

    `settings` override the recipe's; `seed` is added to the project's. `remedies` are those of the settings that a
    diagnosis asked for: they stay with the students that follow, where the others are the project's at the time.
    """

    name: str = ""
    factors: Mapping[str, float] = field(default_factory=dict)
    keep: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    remedies: Mapping[str, Any] = field(default_factory=dict)


AS_IT_IS = Change()


def current_teacher(project: Project) -> TeacherInfo:
    """Describe the teacher that distdata.toml names now."""
    return teacher_info(make_teacher(project.config.teacher, project.root), project.config.teacher)


def curate(project: Project) -> Snapshot:
    """Freeze what is kept of the present teacher's training samples (see `catalogs.snapshots.make_snapshot`)."""
    teacher = make_teacher(project.config.teacher, project.root)
    info = teacher_info(teacher, project.config.teacher)
    note_release(project, info)
    about = {}
    if isinstance(teacher, TokenTeacher):
        spec = teacher.vocabulary()
        about = {"vocabulary": spec.size, "tokenizer": spec.tokenizer_hash}
    return make_snapshot(project, info, about)


def train_student(
    project: Project,
    reporter: TrainReporter,
    *,
    recipe: str | None = None,
    settings: Mapping[str, Any] | None = None,
    snapshot: str | None = None,
    parent: str | None = None,
    role: str = "candidate",
    change: Change = AS_IT_IS,
) -> list[StudentRecord]:
    """Train a student and write down its artefacts; the same training again only reads them.

    Raises:
        DistdataError: no snapshot, one of another teacher version than the present one, an unknown recipe, setting or
            slice, settings that don't give the precision that ships, or a training that failed.
    """
    base = _project_base(project, recipe)
    planned = _planned(project, base, settings, snapshot, parent, change)
    if project.config.train.ship == "int8" and not planned.settings["int8"]:
        raise DistdataError(
            'train: int8 = false leaves no int8 artefact, and ship = "int8" serves one. Change either under [train] in '
            "distdata.toml, or leave out --set int8=false."
        )
    if role == "candidate":
        planned, change = _no_probe(project, base, settings, snapshot, parent, change)
    return _trained(project, reporter, planned, role, change)


def candidate_folder(
    project: Project, recipe: str | None, settings: Mapping[str, Any], snapshot: str, parent: str | None
) -> str:  # fmt: skip
    """Return the folder below `students/` of the candidate that `train_student` makes with these; trains nothing.

    Raises DistdataError as `train_student` does.
    """
    base = _project_base(project, recipe)
    return _no_probe(project, base, settings, snapshot, parent, AS_IT_IS)[0].identity


def _no_probe(
    project: Project, base: _Base, settings: Mapping[str, Any] | None, snapshot: str | None, parent: str | None,
    change: Change,
) -> tuple[_Planned, Change]:  # fmt: skip
    """Settle a candidate's training: a probe was looked at on the gate's seeds, so it gets a seed of its own."""
    planned = _planned(project, base, settings, snapshot, parent, change)
    while _is_probe(project, planned.identity):
        change = replace(change, seed=change.seed + 1)
        planned = _planned(project, base, settings, snapshot, parent, change)
    return planned, change


def train_like(
    project: Project, reporter: TrainReporter, student: StudentRecord, change: Change
) -> list[StudentRecord]:
    """Train a probe as `student` was trained, whatever ``[train]`` says by now.

    Data, recipe, settings, weights and parent are the student's. `change` has all its factors and shares, settings on
    top of the student's, and a seed that counts from where that of the student's own change does. Raises DistdataError
    as `train_student` does, and where the student's files are missing or altered.
    """
    planned = _planned(project, _base_of(project, student), {}, student.snapshot_id, student.parent, change)
    return _trained(project, reporter, planned, "probe", change)


def _trained(
    project: Project, reporter: TrainReporter, planned: _Planned, role: str, change: Change
) -> list[StudentRecord]:
    known = [s for s in students(project) if s.folder.partition("/")[0] == planned.identity]
    wanted = {"candidate"} if role == "candidate" else {"candidate", "probe"}
    places = (planned.identity, f"{planned.identity}/int8")
    there = {place for place in places if (project.students_dir / place / "student.json").exists()}
    # a crash may have come between the records of the two precisions
    if there and {s.folder for s in known} == there and {s.role for s in known} <= wanted:
        return sorted(known, key=lambda s: s.precision == project.config.train.ship)
    limit_threads(project.config.train.threads)
    train(planned.job, reporter)
    return _written_down(project, planned, role, change)


def sweep_students(
    project: Project,
    reporter: TrainReporter,
    grid: Mapping[str, Sequence[Any]],
    *,
    recipe: str | None = None,
    settings: Mapping[str, Any] | None = None,
    snapshot: str | None = None,
    parent: str | None = None,
) -> list[Trained]:
    """Train one student per combination of settings on most groups and compare them on the others, best first.

    What the grid doesn't name is as `train_student` would have it. They are for comparison, not for gates: `train`
    makes the candidate with the settings chosen. Raises DistdataError as `train_student` does.
    """
    planned = _planned(project, _project_base(project, recipe), settings, snapshot, parent, AS_IT_IS)
    job = replace(planned.job, out=project.students_dir / f"sweep-{planned.identity}")
    limit_threads(project.config.train.threads)
    return sweep(job, grid, reporter)


def _is_probe(project: Project, identity: str) -> bool:
    return any(s.role == "probe" for s in students(project) if s.folder.partition("/")[0] == identity)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Planned:
    """A training that is settled: its job, what it is trained on, and the 12 hex digits that name it."""

    job: TrainJob
    snapshot: Snapshot
    identity: str
    mother: StudentRecord | None
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Base:
    """What a training starts from before any change: of the project as it is now, or of a student as it was made."""

    recipe: str
    settings: Mapping[str, Any]
    seed: int
    weights: WeightColumn


def _project_base(project: Project, recipe: str | None) -> _Base:
    rules = project.config.train
    own = rules.settings if recipe in (None, rules.recipe) else {}
    return _Base(recipe=recipe or rules.recipe, settings=own, seed=rules.seed, weights=rules.weights)


def _base_of(project: Project, student: StudentRecord) -> _Base:
    made = change_of(student)
    return _Base(
        recipe=student.recipe, settings=made.settings, seed=student.seed - made.seed,
        weights=weights_of(project, student),
    )  # fmt: skip


def weights_of(project: Project, student: StudentRecord) -> WeightColumn:
    """Return the weights that a student's samples were drawn by; ``[train]``'s where its files are gone or silent."""
    header = read_student(project.students_dir / student.folder) or {}
    said: WeightColumn = header.get("weights", project.config.train.weights)  # who trains elsewhere need not say
    return said


def _planned(
    project: Project, base: _Base, settings: Mapping[str, Any] | None, snapshot: str | None, parent: str | None,
    change: Change,
) -> _Planned:  # fmt: skip
    taken = load_snapshot(project, snapshot)
    info = current_teacher(project)
    if taken.header["teacher_hash"] != info.content_hash:
        raise DistdataError(
            f"train: snapshot {taken.name} holds samples of teacher {taken.header['teacher_hash']}; distdata.toml now "
            f"gives {info.id} {info.version} ({info.content_hash}). A student is distilled from one version: buy "
            "samples of this one and run distdata curate, or restore the old teacher."
        )
    table = find_recipe(base.recipe)
    chosen = resolve_settings(table, {**base.settings, **(settings or {}), **change.settings})
    mother = find_student(project, parent) if parent else None
    seed = base.seed + change.seed
    identity = content_hash(
        [taken.header["snapshot_id"], table.name, chosen, seed, base.weights, change.factors, change.keep,
         mother.student_id if mother else None]
    )[:12]  # fmt: skip
    job = TrainJob(
        out=project.students_dir / identity, storage=project.storage, frame=changed(taken.frame, change),
        header=taken.header, recipe=table, settings=chosen, seed=seed, weights=base.weights,
        device=project.config.train.device, parent=project.students_dir / mother.folder if mother else None,
    )  # fmt: skip
    return _Planned(job=job, snapshot=taken, identity=identity, mother=mother, settings=chosen)


def _written_down(project: Project, planned: _Planned, role: str, change: Change) -> list[StudentRecord]:
    """Write down both precisions of what was trained, the one that ships last."""
    done = replace(change, settings=planned.settings)
    found = []
    for place in (Path(planned.identity), Path(planned.identity) / "int8"):
        header = read_student(project.students_dir / place)
        if header is None:
            continue
        found.append(
            StudentRecord(
                student_id=str(header["artefact"]), folder=place.as_posix(), recipe=str(header["recipe"]),
                precision=str(header["precision"]), role=role,
                snapshot_id=str(planned.snapshot.header["snapshot_id"]),
                teacher_hash=str(planned.snapshot.header["teacher_hash"]),
                parent=planned.mother.student_id if planned.mother else None, seed=planned.job.seed,
                created=now_text(), change=json.dumps(asdict(done), sort_keys=True),
            )
        )  # fmt: skip
    found.sort(key=lambda r: r.precision == project.config.train.ship)
    for record in found:
        record_student(project, record)
    return found


def change_of(student: StudentRecord) -> Change:
    """Return how a student's training differed from a plain one; its `settings` are all that held."""
    return Change(**json.loads(student.change))


def changed(frame: pl.DataFrame, change: Change) -> pl.DataFrame:
    """Apply a change to a snapshot's frame: slices thinned at their full weight, then weights multiplied.

    Raises:
        DistdataError: a slice that the frame has no sample of.
    """
    slices = frame["slice"].unique().to_list()
    for name in (*change.factors, *change.keep):
        if name not in slices:
            raise DistdataError(f"train: no sample of slice {name!r} in this snapshot.{nearest(name, slices)}")
    for share in sorted(set(change.keep.values())):
        names, salt = [n for n, s in change.keep.items() if s == share], str(change.seed)
        fleet = thinned(frame.with_columns(weight="fleet_weight"), names, share, salt=salt)["weight"]
        frame = thinned(frame, names, share, salt=salt).with_columns(fleet_weight=fleet)
    if change.factors:
        factor = pl.col("slice").replace_strict(dict(change.factors), default=1.0, return_dtype=pl.Float64)
        frame = frame.with_columns(weight=pl.col("weight") * factor, fleet_weight=pl.col("fleet_weight") * factor)
    return frame.sort("sample_id")


def shipped(project: Project, made: list[StudentRecord], precision: str | None = None) -> StudentRecord:
    """Return the artefact that is served, by ``[train] ship`` unless a `precision` is asked for.

    Raises:
        DistdataError: the recipe gave none of that precision.
    """
    wanted = precision or project.config.train.ship
    for record in made:
        if record.precision == wanted:
            return record
    raise DistdataError(
        f"train: no {wanted} artefact of student {made[0].student_id}; set [train] ship in distdata.toml."
    )
