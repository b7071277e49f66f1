"""Gate a student: draw on the held-out seeds under the teacher's noise, measure both, judge, write the verdict down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import polars as pl

from ..catalogs import store
from ..catalogs.config import TeacherConfig
from ..catalogs.errors import DistdataError
from ..catalogs.hashing import content_hash
from ..catalogs.intake import define_cells
from ..catalogs.loop_events import GateRecord, StudentRecord, gate_rows, gates, now_text, record_gate
from ..catalogs.plans import plan_in_force, save_plan
from ..catalogs.project import Project
from ..catalogs.protocol import Scorer, TeacherInfo
from ..catalogs.register import catch_up
from ..curate.measure import defaults_for
from ..curate.pairs import measure_pair
from ..generate.run import Reporter, generate
from ..generate.teachers.registry import make_teacher
from ..stratify.gate_metrics import METRICS
from ..stratify.horizon import N_TIMES, trusted_horizon
from ..stratify.spending import spent_alpha
from ..stratify.verdict import judge
from .artefacts import check_artefact, is_there
from .gate_rules import check_gate_rules, gate_settings, settings_key
from .gate_turns import take_turn
from .training import current_teacher

SPLITS = ("gate", "confirm")
_TEACHER_DRAWS = """FROM samples s JOIN plans p USING (plan_no) JOIN cells c USING (cell_id)
    WHERE c.feasible AND s.split = $split AND p.teacher_hash = $teacher AND p.purpose IN ('gate', 'confirm')
        AND s.sample_id NOT IN (SELECT sample_id FROM drops)"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gate:
    """A gate and its rows (see `catalogs.register_loop.GATE_ROW_SCHEMA`); `fresh`: it was judged just now."""

    record: GateRecord
    rows: pl.DataFrame
    fresh: bool

    @property
    def red(self) -> list[str]:
        """Slices that failed, sorted."""
        return sorted(self.rows.filter(pl.col("verdict") == "fail")["slice"].unique())

    @property
    def undecided(self) -> list[str]:
        """Slices that neither failed nor passed, sorted."""
        open_ = self.rows.filter(pl.col("verdict") == "undecided")["slice"].unique()
        return sorted(set(open_) - set(self.red))


class Telling(Reporter, Protocol):
    """Who is told how a gate goes: as for `generate`."""


def gate_student(
    project: Project,
    reporter: Telling,
    student: StudentRecord,
    *,
    split: str = "gate",
    slices: Sequence[str] | None = None,
) -> Gate:
    """Judge a student on `split`; a gate that was judged before on the same draws is read back, not looked at again.

    `slices` limits it to some, for probes; a candidate is judged on all.

    Raises:
        DistdataError: the student was made from another teacher version, its artefact is not the one that was written
            down, the teacher has no draws on the split's seeds yet, `[gates]` asks for what can't be judged, or the
            student has no look left.
    """
    info = current_teacher(project)
    _check_teacher(student, info)
    check_gate_rules(project, info.kind)
    define_cells(project)
    draws = _teacher_draws(project, info, split, slices)
    plan_id, said = _plan_id(student, info, split, draws), settings_key(project)
    subject = content_hash([plan_id, draws["sample_id"].to_list(), said, slices])
    gate_id = content_hash([subject, _n_answered(project, plan_id)])[:12]
    earlier = [g for g in gates(project, info.content_hash) if g.gate_id == gate_id]
    if not earlier or is_there(project, student):  # a verdict holds though the files are gone; others in place don't
        check_artefact(project, student, "gate")
    if earlier:
        return Gate(record=earlier[-1], rows=gate_rows(project, gate_id), fresh=False)
    turn = take_turn(project, student, split, subject)
    settings = replace(gate_settings(project), alpha=turn.alpha)
    _freeze(project, student, info, split, draws, plan_id)
    generate(project, reporter, plan_id=plan_id)
    gate_id = content_hash([subject, _n_answered(project, plan_id)])[:12]
    paired, missing = _paired(project, reporter, student, info, draws, plan_id)
    alpha = spent_alpha(turn.alpha, candidate=turn.candidate, look=turn.look, n_looks=turn.n_looks)
    result = judge(
        paired, _cells(project, slices), settings, candidate=turn.candidate, look=turn.look, n_looks=turn.n_looks
    )
    rows = _without_gaps(result.rows, missing, plan_id)
    header = {
        "gate_id": gate_id, "student_id": student.student_id, "teacher_hash": info.content_hash, "split": split,
        "role": student.role, "candidate": turn.candidate, "alpha": alpha, "verdict": _whole(rows),
        "n_draws": draws.height, "n_unpaired": sum(missing.values()), "student_plan": plan_id,
        "created": now_text(), "look": turn.look, "n_looks": turn.n_looks, "subject": subject, "settings": said,
        "slices": list(slices) if slices is not None else None,
    }  # fmt: skip
    rows = pl.concat([rows, _horizons(project, paired, rows, alpha)])
    return Gate(record=record_gate(project, header, rows), rows=gate_rows(project, gate_id), fresh=True)


def _n_answered(project: Project, plan_id: str) -> int:
    """Count what the student has answered: a draw asked again that comes out is another gate."""
    with store.read(project.catalog_path) as con:
        row = store.first(
            con.execute("SELECT sum(n_ok)::BIGINT FROM units JOIN plans USING (plan_no) WHERE plan_id = ?", [plan_id])
        )
    return int(row[0] or 0) if row else 0


def _check_teacher(student: StudentRecord, info: TeacherInfo) -> None:
    if student.teacher_hash != info.content_hash:
        raise DistdataError(
            f"gate: student {student.student_id} was distilled from teacher {student.teacher_hash}; distdata.toml now "
            f"gives {info.id} {info.version} ({info.content_hash}). A student meets only its own teacher: its "
            "old gates stand while it serves. Train a student of this version: distdata cycle"
        )


def student_config(project: Project, student: StudentRecord) -> TeacherConfig:
    """Return the student as a model that `generate` runs, decoded and labelled by the project's own teacher."""
    teacher = project.config.teacher
    options = dict(teacher.options)
    if teacher.kind in ("markov", "transformers") and "probabilities" in options:
        options["probabilities"] = "none"  # a student's answers need none of the teacher's laws
    return TeacherConfig(
        kind="student", batch=teacher.batch, threads=teacher.threads, gpus=teacher.gpus, timeout_s=teacher.timeout_s,
        options={
            "path": str((project.students_dir / student.folder).relative_to(project.root)),
            "teacher": {"kind": teacher.kind, "options": options},
            "usd_per_gpuh": 0.0,  # what a student costs to run is no teacher spend
        },
    )  # fmt: skip


def _teacher_draws(project: Project, info: TeacherInfo, split: str, slices: Sequence[str] | None) -> pl.DataFrame:
    """Read the teacher's kept draws on the split: what a student has to answer, in the order of their cells."""
    with store.read(project.catalog_path) as con:
        draws: pl.DataFrame = con.sql(
            f"""SELECT s.sample_id, s.seed_id, s.cell_id, s.k::INTEGER AS k, s.n_k::INTEGER AS n_k, s.decision_point,
                c.slice, p.plan_id, s.gpu_s {_TEACHER_DRAWS} ORDER BY s.cell_id, s.seed_id, s.k""",
            params={"split": split, "teacher": info.content_hash},
        ).pl()
    if slices is not None:
        draws = draws.filter(pl.col("slice").is_in(list(slices)))
    if draws.is_empty():
        saved = plan_in_force(project, split) or {}
        if saved.get("teacher_hash") == info.content_hash:
            way_out = f"Plan {saved['plan_id']} buys them: distdata generate --plan {saved['plan_id']}"
        else:
            way_out = f"Buy them once, for all students: distdata plan --purpose {split}, then distdata generate."
        raise DistdataError(
            f"gate: teacher {info.id} {info.version} ({info.content_hash}) has no draws on {split} seeds yet. {way_out}"
        )
    return draws


def _plan_id(student: StudentRecord, info: TeacherInfo, split: str, draws: pl.DataFrame) -> str:
    """Return the id of the plan of a student's answers to these draws; the same ones again are the same plan."""
    return content_hash([student.student_id, info.content_hash, split, draws.select("seed_id", "k").rows()])[:12]


def _freeze(
    project: Project, student: StudentRecord, info: TeacherInfo, split: str, draws: pl.DataFrame, plan_id: str
) -> None:
    """Freeze the student's answers to these draws as a plan, unless that is there."""
    with store.read(project.catalog_path) as con:
        if con.execute("SELECT 1 FROM plans WHERE plan_id = ?", [plan_id]).fetchall():
            return
    model = student_config(project, student)
    header = {
        "plan_id": plan_id, "purpose": "student", "split": split, "policy": "", "adaptive": False, "budget": "",
        "created": now_text(), "teacher": "student", "teacher_version": student.student_id[:8],
        "teacher_hash": student.student_id, "usd_per_gpuh": 0.0, "gpu_s_per_draw": float(draws["gpu_s"].mean() or 0.0),  # type: ignore[arg-type]
        "usd_per_draw": 0.0, "n_draws": draws.height, "usd": 0.0, "gpu_s": 0.0, "supersedes": [],
        "of_teacher": info.content_hash, "model": model.model_dump(mode="json", exclude_none=True),
    }  # fmt: skip
    zero = pl.lit(0, pl.Int64)
    cells = draws.group_by("cell_id", maintain_order=True).agg(
        target=pl.len().cast(pl.Int64), n_seeds_taken=pl.col("seed_id").n_unique().cast(pl.Int64)
    ).with_columns(
        credit=zero, fresh=pl.col("target"), n_seeds_frame=pl.col("n_seeds_taken"), weight=pl.lit(0.0), floor=zero,
        ceiling=pl.col("target"), usd=pl.lit(0.0), mark=pl.lit(""),
    )  # fmt: skip
    wanted = draws.select(
        "seed_id", "cell_id", "k", "n_k", pi=pl.lit(0.0), weight=pl.lit(0.0), decision_point="decision_point"
    )
    save_plan(project, header, cells, wanted)


def _paired(
    project: Project, reporter: Telling, student: StudentRecord, info: TeacherInfo, draws: pl.DataFrame, plan_id: str
) -> tuple[pl.DataFrame, Mapping[str, int]]:
    """Measure both sides on the seeds of `draws` and pair them; also count, by slice, what has no counterpart."""
    catch_up(project)
    kind = info.kind
    wanted = project.config.gates.metrics or defaults_for(kind)
    model = make_teacher(student_config(project, student), project.root)
    pairs = measure_pair(
        project, draws["plan_id"].unique(maintain_order=True).to_list(), [plan_id], wanted, reporter=reporter,
        seed_ids=draws["seed_id"].unique(maintain_order=True).to_list(),
        scorer=model if isinstance(model, Scorer) else None,
    )  # fmt: skip
    there = draws.join(pairs.frame.select("seed_id", "k").cast({"k": pl.Int32}), on=["seed_id", "k"], how="anti")
    return pairs.frame, dict(there.group_by("slice").len().iter_rows())


def _cells(project: Project, slices: Sequence[str] | None) -> pl.DataFrame:
    """Read the cells to be gated: of these slices, or all, so that a slice without draws is undecided."""
    with store.read(project.catalog_path) as con:
        cells: pl.DataFrame = con.sql(
            "SELECT cell_id, cell, slice, scenario, layer, feasible, band, fleet_share FROM cells ORDER BY cell_id"
        ).pl()
    return cells if slices is None else cells.filter(pl.col("slice").is_in(list(slices)))


def _horizons(project: Project, paired: pl.DataFrame, rows: pl.DataFrame, alpha: float) -> pl.DataFrame:
    """Return rows of information: how many seconds each slice's rollouts can be trusted; none without tracks."""
    if not {"teacher_track", "student_track", "teacher_track_s"} <= set(paired.columns):
        return rows.clear()
    tracked = paired.filter(pl.col("teacher_track_s").is_not_null())
    if tracked.is_empty():
        return rows.clear()
    band = project.config.gates.bands.get("drift", METRICS["drift"].band or 0.0)
    lengths = tracked["teacher_track_s"].unique()
    if len(lengths) != 1:
        return rows.clear()
    found = trusted_horizon(tracked, threshold=band, step_s=float(lengths[0]) / N_TIMES, alpha=alpha)
    n_draws = dict(paired.group_by("slice").len().iter_rows())
    return pl.DataFrame(
        [
            {"slice": r["slice"], "metric": "horizon", "contrast": f"seconds within {band:g} m",
             "n_seeds": r["n_seeds"], "n_draws": n_draws[r["slice"]], "estimate": r["horizon_s"], "low": r["low_s"],
             "high": r["high_s"],
             "side": "none", "verdict": "pass", "reason": r["reason"] or "information only"}
            for r in found.iter_rows(named=True)
        ], schema=rows.schema,
    )  # fmt: skip


def _without_gaps(rows: pl.DataFrame, missing: Mapping[str, int], student_plan: str) -> pl.DataFrame:
    """Take every pass away where draws of the student are missing: those that it could not answer may be other ones.

    In slices without a gap too: the gate is made again for nothing once the gaps are filled (`gate_turns`), so nothing
    of it may count before.
    """
    if not missing:
        return rows
    lost = pl.col("slice").replace_strict(dict(missing), default=0, return_dtype=pl.Int64)
    total, where = sum(missing.values()), ", ".join(sorted(missing)[:3]) + (", ..." if len(missing) > 3 else "")
    again = f"distdata generate --plan {student_plan} --retry-failed"
    why = f"draws have no counterpart of the student: {again}, then gate again"
    reason = (
        pl.when(lost > 0)
        .then(pl.concat_str(lost, pl.lit(f" {why}")))
        .otherwise(pl.lit(f"of other slices ({where}) {total} {why}"))
    )
    gap = (pl.col("verdict") == "pass") & (pl.col("side") != "none")
    return rows.with_columns(
        verdict=pl.when(gap).then(pl.lit("undecided")).otherwise("verdict"),
        reason=pl.when(gap).then(reason).otherwise("reason"),
    )


def _whole(rows: pl.DataFrame) -> str:
    """Return the gate's verdict: fail if anything failed, pass if all passed, else undecided."""
    said = set(rows.filter(pl.col("side") != "none")["verdict"])
    if "fail" in said:
        return "fail"
    return "pass" if said == {"pass"} else "undecided"
