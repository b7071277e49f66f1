"""Pair the draws of two models: what a gate judges, measured alike on both sides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import polars as pl

from ..catalogs.errors import DistdataError
from ..catalogs.project import Project
from ..catalogs.protocol import Scorer
from .measure import Engine, Numbered, Reporter, fill, measure_by, note, told
from .metric_table import FACTS, LABELLER, Metric, columns_schema, find_metrics, read_metric
from .scored import score_piece, scorer_key
from .units import Unit, cache_key, make_pieces, units_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """The draws that two models made from the same seed and the same noise.

    `frame` has slice, cell, scenario, seed_id, k, control_axis, control_value and, of each model, its sample_id,
    outcome and every measured column, behind ``teacher_`` and ``student_``; sorted by slice, seed and k. `unpaired`
    has, for every slice, n_pairs, n_teacher_only and n_student_only: draws of one model that the other lacks or lost.
    """

    frame: pl.DataFrame
    unpaired: pl.DataFrame

    @property
    def n_teacher_only(self) -> int:
        """How many teacher draws have no student draw."""
        return int(self.unpaired["n_teacher_only"].sum())

    @property
    def n_student_only(self) -> int:
        """How many student draws have no teacher draw."""
        return int(self.unpaired["n_student_only"].sum())


def measure_pair(
    project: Project,
    teacher_plan_ids: Sequence[str],
    student_plan_ids: Sequence[str],
    metrics: Sequence[str],
    *,
    reporter: Reporter | None = None,
    engine: Engine = "auto",
    seed_ids: Sequence[str] | None = None,
    scorer: Scorer | None = None,
    reference_plan_ids: Sequence[str] | None = None,
) -> Pairs:
    """Measure a teacher's and a student's draws alike and pair them by seed and k.

    Metrics that compare with a reference set take the teacher's draws of `reference_plan_ids` (default: of
    `teacher_plan_ids`) for it, whatever `seed_ids` says. Those that need the student's view of the teacher's
    completions ask `scorer`, and have a ``teacher_`` column only. Where outcomes are asked for and draws came without
    label, the teacher's labelled draws label them (see `metrics.outcome`).

    Raises:
        DistdataError: as `measure`; a metric that needs a scorer without one; a model with two draws of one seed and k
            (the plans mix versions of it).
    """
    chosen = find_metrics(metrics)
    scored = [m for m in chosen if m.scored is not None]
    if scored and scorer is None:
        raise DistdataError(
            f"metric {scored[0].names[0]}: needs a student that can say how probable the teacher's completions are to "
            "it. Give one, or leave the metric out."
        )
    chosen = [m for m in chosen if m.scored is None]
    references = reference_plan_ids or teacher_plan_ids
    labeller = read_metric(LABELLER, (LABELLER,))
    bare = {k for ids in (teacher_plan_ids, student_plan_ids) for k in _unlabelled(project, ids, seed_ids)}
    if {"outcome", "recall"} & set(metrics) and any(labeller.is_for(kind) for kind in bare):
        chosen.insert(0, labeller)

    def side(plan_ids: Sequence[str], seeds: Sequence[str] | None) -> pl.DataFrame:
        return measure_by(project, plan_ids, chosen, reporter=reporter, engine=engine, seed_ids=seeds)

    teacher, student = side(teacher_plan_ids, seed_ids), side(student_plan_ids, seed_ids)
    if any(m.against for m in chosen):
        whole = side(references, None)
        reference = teacher if whole["sample_id"].equals(teacher["sample_id"]) else whole
        for metric in chosen:
            reference, teacher, student = _second_step(metric, reference, teacher, student)
    if scored and scorer is not None:
        said = _scored(project, teacher_plan_ids, scored, scorer, reporter, seed_ids)
        teacher = teacher.join(said, on="sample_id", how="left", maintain_order="left")
    return _pair(teacher, student)


def _unlabelled(project: Project, plan_ids: Sequence[str], seed_ids: Sequence[str] | None) -> set[str]:
    """Return the record kinds of the draws that came without an outcome."""
    rows = [u.rows.filter(pl.col("outcome").is_null())["kind"] for u in units_of(project, plan_ids, seed_ids, "")]
    return {kind for column in rows for kind in column.unique().to_list()}


def _second_step(
    metric: Metric, reference: pl.DataFrame, teacher: pl.DataFrame, student: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Add a metric's derived columns to both sides, in place of what they have under these names.

    The reference gets those that stand for facts of the catalog (labels), which later metrics read there.
    """
    if metric.against is None:
        return reference, teacher, student
    # together: what the step learns of the reference it need learn but once
    both = pl.concat([teacher, student])
    found = metric.against(reference, both)
    assert found["sample_id"].equals(both["sample_id"]), f"{metric.module} keeps the order of rows"
    both = both.with_columns(found.select(*metric.derived).get_columns())
    seen, drawn = both.head(teacher.height), both.tail(student.height)
    if reference is teacher:
        return seen, seen, drawn
    if set(metric.derived) & set(FACTS):
        reference = reference.with_columns(metric.against(reference, reference).select(*metric.derived).get_columns())
    return reference, seen, drawn


def _scored(
    project: Project, plan_ids: Sequence[str], metrics: Sequence[Metric], scorer: Scorer, reporter: Reporter | None,
    seed_ids: Sequence[str] | None,
) -> pl.DataFrame:  # fmt: skip
    """Return sample_id and the columns that need `scorer`, for the samples of these plans."""

    def work(units: Sequence[Unit]) -> Iterator[Numbered]:
        total = sum(u.rows.height for u in units)
        note(reporter, f"asking the student about {total:,} of the teacher's completions")
        pieces = make_pieces(project, units)
        results = enumerate(
            score_piece(p, project.storage, metrics, scorer, project.config.project.salt) for p in pieces
        )
        return told(results, total, reporter)

    units = units_of(project, plan_ids, seed_ids, cache_key(metrics, scorer_key(scorer)))
    return fill(units, metrics, work).select("sample_id", *columns_schema(metrics))


def _pair(teacher: pl.DataFrame, student: pl.DataFrame) -> Pairs:
    keys = ["seed_id", "k"]
    shared = ["slice", "cell", "scenario", *keys, "control_axis", "control_value"]
    sides = {"teacher": teacher, "student": student}
    for side, frame in sides.items():
        twice = frame.filter(frame.select(keys).is_duplicated()).sort(keys)
        if twice.height:
            a, b = twice["sample_id"][:2]
            raise DistdataError(
                f"pairing: the {side}'s plans hold {twice.height} draws that are not alone with their seed and k; {a} "
                f"and {b} are the first. They are of two versions of it; name the plans of one."
            )
    left, right = (f.rename({c: f"{s}_{c}" for c in f.columns if c not in shared}) for s, f in sides.items())
    frame = left.join(right.drop([c for c in shared if c not in keys]), on=keys, how="inner")
    frame = frame.select(*shared, pl.exclude(shared)).sort("slice", *keys)
    counts = [
        teacher.join(student, on=keys, how="semi").group_by("slice").len("n_pairs"),
        teacher.join(student, on=keys, how="anti").group_by("slice").len("n_teacher_only"),
        student.join(teacher, on=keys, how="anti").group_by("slice").len("n_student_only"),
    ]
    slices = pl.concat([teacher["slice"], student["slice"]]).unique().sort().to_frame()
    for n in counts:
        slices = slices.join(n, on="slice", how="left", maintain_order="left")
    return Pairs(frame=frame, unpaired=slices.with_columns(pl.exclude("slice").fill_null(0).cast(pl.Int64)))
