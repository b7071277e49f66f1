"""Promote a student that is green and confirmed: shadow, canary, bulk; roll back; say who answers where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from ..catalogs.errors import DistdataError, nearest
from ..catalogs.intake import define_cells
from ..catalogs.loop_events import (
    STAGES,
    GateRecord,
    StudentRecord,
    find_student,
    gate_header,
    gate_rows,
    gates,
    promotions,
    record_promotion,
    routes_of,
    routing,
    students,
)
from ..catalogs.project import Project
from .artefacts import check_artefact
from .gate_rules import changed_settings, settings_key
from .training import current_teacher

TEACHER = "teacher"


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """What a promotion came to: the student, its stage, and the routing table that holds now."""

    student_id: str
    stage: str
    routes: list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A promotion that holds: who, how far, and the routing table it left."""

    student_id: str
    stage: str
    event: int


NOT_CONFIRMED = "a person looks: the student was green and is not confirmed. More data: distdata plan --budget ..."


def standings(project: Project) -> list[Standing]:
    """Return the promotions that hold, oldest first: a rollback takes the newest away, with all its stages."""
    stack: list[Standing] = []
    for p in promotions(project):
        if p["stage"] == "rollback":
            stack = stack[:-1]
            continue
        # a student stands once, with its last stage: others may have come between two of its stages
        stack = [s for s in stack if s.student_id != p["student_id"]]
        stack.append(Standing(student_id=p["student_id"], stage=p["stage"], event=p["event"]))
    return stack


def serving(project: Project) -> StudentRecord | None:
    """Return the student that has the bulk of the traffic now; None where the teacher has it."""
    bulk = [s.student_id for s in standings(project) if s.stage == STAGES[-1]]
    known = {s.student_id: s for s in students(project)}
    return known.get(bulk[-1]) if bulk else None


def rolled_back(project: Project, student_id: str) -> str | None:
    """Return why a student was last rolled back; None where it never was."""
    notes = [p["note"] for p in promotions(project) if p["stage"] == "rollback" and p["student_id"] == student_id]
    return notes[-1] if notes else None


def promote(
    project: Project, *, student_id: str | None = None, stage: str | None = None, partial: bool = False
) -> Promotion:
    """Move a student one stage on (or, with `stage`, to the one named if it is the next).

    With `partial`, slices that are not green and confirmed stay with the old student or the teacher, and the others
    are promoted.

    Raises:
        DistdataError: the student was made from another teacher version, its files are gone or others, it has no green
            gate or no green confirming gate for this very artefact on today's terms, or the stage is not its next one.
    """
    student = find_student(project, student_id, project.config.train.ship)
    info = current_teacher(project)
    if student.teacher_hash != info.content_hash:
        raise DistdataError(
            f"promote: student {student.student_id} was distilled from teacher {student.teacher_hash}, and the teacher "
            f"is now {info.content_hash}. Old gates don't promote under a new teacher: distdata cycle"
        )
    if student.role != "candidate":
        raise DistdataError(
            f"promote: {student.student_id} was trained as a probe, to find a cause. Train a candidate: distdata train"
        )
    wanted = _next_stage(project, student, stage)
    check_artefact(project, student, "promote")
    define_cells(project)
    gate = _green(project, student, "gate", partial)
    confirm = _green(project, student, "confirm", partial)
    routes = _routes(project, student, wanted, gate, confirm)
    if partial and not any(r["student_id"] == student.student_id for r in routes):
        raise DistdataError(f"promote: no slice of student {student.student_id} is green in both gates.")
    said = {
        "student_id": student.student_id, "teacher_hash": info.content_hash, "stage": wanted,
        "gate_id": gate.gate_id, "confirm_id": confirm.gate_id, "note": "partial" if partial else "",
    }  # fmt: skip
    record_promotion(project, said, routes)
    return Promotion(student_id=student.student_id, stage=wanted, routes=routing(project))


def roll_back(project: Project, why: str) -> Promotion:
    """Take the last promotion back, with all its stages: the routing table before it holds again.

    Raises:
        DistdataError: nothing is promoted, or no reason is given.
    """
    if not why.strip():
        raise DistdataError('promote --rollback: why? The reason is kept: distdata promote --rollback "too cautious"')
    stack = standings(project)
    if not stack:
        raise DistdataError("promote --rollback: no student is promoted. See distdata status.")
    last, below = stack[-1], stack[:-1]
    teacher_hash = next(s.teacher_hash for s in students(project) if s.student_id == last.student_id)
    slices = [r["slice"] for r in routes_of(project, last.event)]
    before = _answers_without(project, below, last.student_id)
    reason = f"student {last.student_id[:8]} was rolled back from {last.stage}: {why}"
    routes = [{**before.get(name, _teacher_answers(name)), "reason": reason} for name in slices]
    said = {
        "student_id": last.student_id, "teacher_hash": teacher_hash, "stage": "rollback", "gate_id": None,
        "confirm_id": None, "note": why,
    }  # fmt: skip
    record_promotion(project, said, routes)
    return Promotion(student_id=last.student_id, stage="rollback", routes=routing(project))


def _answers_without(project: Project, stack: Sequence[Standing], student_id: str) -> dict[str, dict[str, Any]]:
    """Return by slice the route that holds under `stack` and doesn't name this student; none: the teacher answers.

    A table written between two stages of a student may name it: a slice that was red there was left with it.
    """
    found: dict[str, dict[str, Any]] = {}
    for standing in reversed(stack):
        for route in routes_of(project, standing.event):
            if student_id not in (route["student_id"], route["fallback"]):
                found.setdefault(route["slice"], route)
    return found


def _teacher_answers(name: str) -> dict[str, Any]:
    return {"slice": name, "student_id": None, "share": 0.0, "fallback": TEACHER, "horizon_s": None, "reason": ""}


def after_green(project: Project, student_id: str) -> str:
    """Return the command that follows a green gate of a student: confirm it, promote it, or see how it serves."""
    confirming = [g for g in gates(project) if (g.student_id, g.split) == (student_id, "confirm")]
    if not confirming:
        return "distdata gate --confirm"
    if confirming[-1].verdict != "pass":
        return NOT_CONFIRMED
    if any((s.student_id, s.stage) == (student_id, STAGES[-1]) for s in standings(project)):
        return "nothing: this student has the bulk of the traffic (distdata status)"
    return "distdata promote"


def _next_stage(project: Project, student: StudentRecord, stage: str | None) -> str:
    reached = next((s.stage for s in standings(project) if s.student_id == student.student_id), None)
    if reached == STAGES[-1]:
        raise DistdataError(f"promote: student {student.student_id} has the bulk of the traffic already.")
    following = STAGES[0] if reached is None else STAGES[STAGES.index(reached) + 1]
    if stage is not None and stage not in STAGES:
        raise DistdataError(f"promote: no stage {stage!r}.{nearest(stage, STAGES)}")
    if stage is not None and stage != following:
        where = "not promoted yet" if reached is None else f"in {reached}"
        raise DistdataError(f"promote: student {student.student_id} is {where}; its next stage is {following}.")
    return following


def _green(project: Project, student: StudentRecord, split: str, partial: bool) -> GateRecord:
    """Return the student's newest gate on a split if it may be promoted on it."""
    record = _last_gate(project, student, split)
    header = gate_header(project, record)
    if changed := changed_settings(header.get("settings", {}), settings_key(project)):
        told = "; ".join([*changed[:3], *(["..."] if len(changed) > 3 else [])])
        left = header.get("n_looks", 1) - header.get("look", 1)
        if left > 0:
            option = " --confirm" if split == "confirm" else ""
            again = f"Gate again, which takes one of the {left} looks that it has left: distdata gate{option}."
        else:
            again = (
                "It has no look left (as [gates] looks stood at its first gate), so these terms take another "
                "candidate: distdata train."
            )
        raise DistdataError(
            f"promote: the {split} gate {record.gate_id} of student {student.student_id} was judged on other terms "
            f"than distdata.toml has now ({told}). {again} Or set these back."
        )
    if record.verdict != "pass" and not partial:
        part = ""
        if _gated(project, student, "confirm"):
            part = " Or promote what is green and leave the rest where it is: distdata promote --partial"
        raise DistdataError(
            f"promote: the {split} gate {record.gate_id} of student {student.student_id} is {record.verdict}: "
            f"{_not_green(project, record)}. Find out why: distdata diagnose.{part}"
        )
    return record


def _gated(project: Project, student: StudentRecord, split: str) -> list[GateRecord]:
    return [g for g in gates(project, student.teacher_hash) if (g.student_id, g.split) == (student.student_id, split)]


def _last_gate(project: Project, student: StudentRecord, split: str) -> GateRecord:
    if found := _gated(project, student, split):
        return found[-1]
    others = {g.student_id for g in gates(project, student.teacher_hash) if g.split == split}
    mine = [s for s in students(project) if s.folder.partition("/")[0] == student.folder.partition("/")[0]]
    hint = next((s for s in mine if s.student_id in others), None)
    if hint is not None:
        raise DistdataError(
            f"promote: the {split} gate was passed by the {hint.precision} artefact {hint.student_id}; what ships is "
            f"{student.student_id} ({student.precision}), another artefact. Gate it: distdata gate"
        )
    option = " --confirm" if split == "confirm" else ""
    raise DistdataError(
        f"promote: student {student.student_id} was not gated on {split} seeds yet: distdata gate{option}"
    )


def _not_green(project: Project, record: GateRecord) -> str:
    rows = gate_rows(project, record.gate_id).filter(pl.col("verdict") != "pass")
    slices = sorted(rows["slice"].unique())
    return f"{len(slices)} slices ({', '.join(slices[:4])}{', ...' if len(slices) > 4 else ''})"


def _verdicts(project: Project, record: GateRecord) -> dict[str, str]:
    """Return each slice's verdict in a gate."""
    rows = gate_rows(project, record.gate_id).filter(pl.col("side") != "none")
    found: dict[str, str] = {}
    for name, said in rows.group_by("slice").agg(pl.col("verdict")).iter_rows():
        found[name] = "fail" if "fail" in said else "pass" if set(said) == {"pass"} else "undecided"
    return found


def _routes(
    project: Project, student: StudentRecord, stage: str, gate: GateRecord, confirm: GateRecord
) -> list[dict[str, Any]]:
    """Say for every gated slice who answers: one that is not green in both gates keeps who answered it before."""
    share = {"shadow": 0.0, "canary": project.config.loop.canary_share, "bulk": 1.0}[stage]
    others = [s for s in standings(project) if s.student_id != student.student_id]
    before = _answers_without(project, others, student.student_id)
    one, two = _verdicts(project, gate), _verdicts(project, confirm)
    horizons = _horizons(gate_rows(project, gate.gate_id), sorted(one))
    routes = []
    for name in sorted(one):
        old = before.get(name, _teacher_answers(name))
        if not one[name] == two.get(name) == "pass":
            reason = f"gate {one[name]}, confirm {two.get(name, 'not gated')}: as before"
            routes.append({**old, "reason": reason})
            continue
        # who has the bulk: the student below where it has all, else the one that it shares with in turn
        has_bulk = old["student_id"] if old["share"] == 1.0 else old["fallback"]
        routes.append(
            {"slice": name, "student_id": student.student_id, "share": share, "fallback": has_bulk,
             "horizon_s": horizons.get(name),
             "reason": f"green in gate {gate.gate_id} and confirmed in {confirm.gate_id}"}
        )  # fmt: skip
    return routes


def _horizons(rows: pl.DataFrame, slices: Sequence[str]) -> Mapping[str, float]:
    """Return how far, in seconds, the student's rollouts can be trusted in each slice that has a drift metric."""
    told = rows.filter(
        (pl.col("metric") == "horizon") & pl.col("slice").is_in(list(slices)) & pl.col("low").is_finite()
    )
    return dict(told.select("slice", "low").iter_rows())
