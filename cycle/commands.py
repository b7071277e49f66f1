"""The commands of the loop: curate, train, gate, diagnose, refresh, promote, cycle. Parse, call one function, print."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..catalogs.console import AsJson, ProjectDir, emit, open_here, say, screen
from ..catalogs.errors import DistdataError

if TYPE_CHECKING:
    from ..catalogs.project import Project
    from .gating import Gate

loop_app = typer.Typer()
RED = 3
"""Exit code of a gate that is red or undecided."""

Student = Annotated[
    str | None, typer.Option("--student", help="A student's id or its beginning (default: the newest).")
]


@loop_app.command()
def curate(project: ProjectDir = Path(), as_json: AsJson = False) -> None:
    """Freeze the kept training samples as an immutable snapshot, and say what was dropped and why."""
    from .training import curate as freeze

    taken = freeze(open_here(project))
    facts = {k: taken.header[k] for k in ("name", "snapshot_id", "teacher_hash", "n_samples", "n_dropped", "dropped")}
    lines = [f"snapshot {taken.name} ({taken.header['snapshot_id']}): {taken.frame.height:,} samples of "
             f"{len(taken.header['cells']):,} cells, {taken.header['n_dropped']:,} dropped"]  # fmt: skip
    lines += [f"  {n:,} x {reason}" for reason, n in taken.header["dropped"].items()]
    emit(as_json, {**facts, "cells": taken.header["cells"]}, lambda: "\n".join([*lines, "Next: distdata train"]))


@loop_app.command()
def train(
    recipe: Annotated[
        str | None, typer.Option(help="capacity, regression, word_kd or seq_kd (default: distdata.toml).")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE of the recipe; may be repeated.")
    ] = None,
    snapshot: Annotated[str | None, typer.Option(help="Its name or id (default: what is kept now).")] = None,
    parent: Annotated[
        str | None, typer.Option(help="A student it follows (its weights with --set warm_start=true).")
    ] = None,
    sweep: Annotated[
        list[str] | None, typer.Option(help="NAME=V1,V2,...: train one student per combination and compare them.")
    ] = None,
    project: ProjectDir = Path(),
    as_json: AsJson = False,
) -> None:
    """Train a thin student on a snapshot. Run it again to resume; the same training twice costs nothing."""
    from ..train_min.curves import ShowTraining
    from ..train_min.sweep import sweep_table
    from .training import curate as freeze
    from .training import shipped, sweep_students, train_student

    here = open_here(project)
    name = snapshot or freeze(here).name
    if sweep:
        grid = _grid(sweep)
        made_all = sweep_students(
            here, ShowTraining(), grid, recipe=recipe, settings=_settings(settings), snapshot=name, parent=parent
        )
        told = [{"student": t.artefact, "validation_loss": t.validation_loss, "settings": t.header["settings"]}
                for t in made_all]  # fmt: skip
        emit(as_json, told, lambda: sweep_table(made_all, list(grid), **screen()))
        return
    made = train_student(
        here, ShowTraining(), recipe=recipe, settings=_settings(settings), snapshot=name, parent=parent
    )  # fmt: skip
    ships = shipped(here, made)
    emit(
        as_json,
        {"student": ships.student_id, "snapshot": name, "recipe": ships.recipe,
         "artefacts": {m.precision: {"student": m.student_id, "folder": m.folder} for m in made}},
        lambda: "\n".join(
            [f"student {m.student_id} ({m.precision}{', ships' if m == ships else ''}): "
             f"{here.students_dir / m.folder}" for m in made] + [f"Next: distdata gate{_which(here, ships.student_id)}"]
        ),
    )  # fmt: skip


def _which(here: Project, student_id: str) -> str:
    """Return the option that names a student where `distdata gate` would take another one, the newest."""
    from ..catalogs.loop_events import find_student

    newest = find_student(here, None, here.config.train.ship).student_id
    return "" if newest == student_id else f" --student {student_id}"


@loop_app.command()
def gate(
    student: Student = None,
    confirm: Annotated[
        bool, typer.Option("--confirm", help="On the untouched confirm seeds, for a student that is green.")
    ] = False,
    project: ProjectDir = Path(),
    as_json: AsJson = False,
) -> None:
    """Compare student and teacher slice by slice, with error bars; exit 3 unless every gate passes."""
    from ..catalogs.loop_events import find_student
    from ..generate.progress import ShowProgress
    from .gating import gate_student

    here = open_here(project)
    one = find_student(here, student, here.config.train.ship)
    done = gate_student(here, ShowProgress(), one, split="confirm" if confirm else "gate")
    _show_gate(done, _next(here, done), as_json)
    if done.record.verdict != "pass":
        raise typer.Exit(RED)


def _show_gate(done: Gate, following: str, as_json: bool) -> None:
    from ..catalogs.gate_table import gate_table

    record = done.record
    head = (
        f"gate {record.gate_id} on {record.split} seeds: student {record.student_id}, candidate {record.candidate} "
        f"against teacher {record.teacher_hash[:8]}, {record.n_draws:,} draws a side, alpha {record.alpha:.3g}"
    )
    data = {
        "gate": record.gate_id, "student": record.student_id, "split": record.split, "verdict": record.verdict,
        "candidate": record.candidate, "alpha": record.alpha, "n_draws": record.n_draws, "rows": done.rows.to_dicts(),
    }  # fmt: skip
    lines = [head, "", gate_table(done.rows, **screen()), "", f"verdict: {record.verdict}",
             f"Next: {following}"]  # fmt: skip
    emit(as_json, data, lambda: "\n".join(lines))


def _next(here: Project, done: Gate) -> str:
    """Say what follows a gate: explain it, confirm it, promote its student, or nothing."""
    from .diagnosis import slices_to_explain
    from .promotion import NOT_CONFIRMED, after_green

    confirm = done.record.split == "confirm"
    if done.record.n_unpaired:
        return f"distdata generate --plan {done.record.student_plan} --retry-failed, then this gate again"
    if done.record.verdict == "pass":
        following = after_green(here, done.record.student_id)
        return following + (_which(here, done.record.student_id) if following.startswith("distdata") else "")
    if confirm:
        return NOT_CONFIRMED
    if slices_to_explain(done, here.config.gates.expected_difference):
        return "distdata diagnose"
    return "no slice is far off: import more seeds, or distdata plan --purpose gate --budget ... for the next student"


@loop_app.command()
def diagnose(project: ProjectDir = Path(), as_json: AsJson = False) -> None:
    """Find out by intervention why slices are red: retrain with other weights, part of the data, a wider student."""
    from ..generate.progress import ShowProgress
    from ..train_min.curves import ShowTraining
    from .diagnosis import diagnose as explain
    from .diagnosis import last_gate

    here = open_here(project)
    found = explain(here, ShowProgress(), ShowTraining(), last_gate(here))
    emit(as_json, _cause_data(found.causes), lambda: "\n".join(cause_lines(found.causes)))


def _cause_data(causes: Any) -> dict[str, Any]:
    return {
        "causes": [
            {"slice": c.slice, "cause": c.cause, "remedy": c.remedy, "evidence": list(c.evidence)} for c in causes
        ]
    }


def cause_lines(causes: Any) -> list[str]:
    """Tell each slice's cause with what it stands on, in lines."""
    lines = []
    for c in causes:
        lines += [f"{c.slice}: {c.cause}. {c.remedy[0].upper()}{c.remedy[1:]}.", *(f"    {e}" for e in c.evidence)]
    return lines


@loop_app.command()
def refresh(
    max_usd: Annotated[float | None, typer.Option("--max-usd", help="The most to spend.", min=0)] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Find the causes, which trains probes, and save no plan.")
    ] = False,
    project: ProjectDir = Path(),
    as_json: AsJson = False,
) -> None:
    """Plan new draws for the slices that failed for lack of coverage, and for no others."""
    from ..generate.progress import ShowProgress
    from ..train_min.curves import ShowTraining
    from .diagnosis import last_gate
    from .loop import fleet_words
    from .loop import refresh as plan_refresh

    here = open_here(project)
    done = plan_refresh(
        here, ShowProgress(), ShowTraining(), last_gate(here), max_usd=max_usd, dry_run=dry_run
    )  # fmt: skip
    data, lines = _cause_data(done.finding.causes), cause_lines(done.finding.causes)
    if done.growth is None or done.purchase is None:
        lines.append("Nothing is bought: no red slice lacks coverage.")
    else:
        plan = done.purchase.plan
        lines += [f"{s.slice}: {s.n_have:,} -> {s.n_target:,} samples ({s.why})" for s in done.growth.slices]
        bought = f"{plan.n_fresh:,} draws for ${plan.usd:.4g}"
        if done.saved:
            lines += [
                f"plan {done.purchase.plan_id} buys {bought}; every other slice gets exactly 0{fleet_words(done)}.",
                "Next: distdata generate, distdata train, distdata gate (or all of it: distdata cycle)",
            ]
        elif not plan.n_fresh:
            limit = "" if max_usd is None else f" or --max-usd {max_usd:g} allows none"
            lines.append(f"Nothing is bought: these slices' seeds give no more draws{limit}.")
        elif dry_run:
            lines.append(f"Dry run: would buy {bought}; every other slice gets exactly 0. Nothing was saved.")
        else:
            lines.append(f"Nothing is bought: the least is {bought}, and --max-usd is {max_usd:g}.")
        data |= {
            "plan": done.purchase.plan_id, "n_draws": plan.n_fresh, "usd": plan.usd, "saved": done.saved,
            "n_as_fleet": done.n_as_fleet,
            "slices": [{"slice": s.slice, "have": s.n_have, "target": s.n_target} for s in done.growth.slices],
        }  # fmt: skip
    emit(as_json, data, lambda: "\n".join(lines))


@loop_app.command()
def promote(
    student: Student = None,
    stage: Annotated[str | None, typer.Option(help="shadow, canary or bulk (default: the next one).")] = None,
    partial: Annotated[
        bool,
        typer.Option("--partial", help="Promote what is green; the rest stays with the old student or the teacher."),
    ] = False,
    rollback: Annotated[str | None, typer.Option("--rollback", help="Take the last promotion back, and why.")] = None,
    project: ProjectDir = Path(),
    as_json: AsJson = False,
) -> None:
    """Promote a student that is green and confirmed, one stage at a time; write the routing table."""
    from ..catalogs.gate_table import routing_table
    from .promotion import promote as move_on
    from .promotion import roll_back

    here = open_here(project)
    if rollback is not None:
        if student or stage or partial:
            raise typer.BadParameter(
                "--rollback takes no --student, --stage or --partial: it undoes the last promotion."
            )
        done = roll_back(here, rollback)
    else:
        done = move_on(here, student_id=student, stage=stage, partial=partial)
    emit(
        as_json,
        {"student": done.student_id, "stage": done.stage, "routes": done.routes},
        lambda: f"student {done.student_id}: {done.stage}\n\n" + routing_table(done.routes, **screen()),
    )


@loop_app.command()
def cycle(
    budget: Annotated[str | None, typer.Option(help="Of the first train plan: 2000samples, 400gpuh or $800.")] = None,
    max_cycles: Annotated[int | None, typer.Option("--max-cycles", help="Turns of the wheel at most.", min=1)] = None,
    max_usd: Annotated[
        float | None, typer.Option("--max-usd", help="What this call's new plans may spend at most.", min=0)
    ] = None,
    project: ProjectDir = Path(),
    as_json: AsJson = False,
) -> None:
    """Plan, generate, train, gate, diagnose and refresh until a student is promoted (0) or a person is needed (3)."""
    from ..generate.progress import ShowProgress
    from ..train_min.curves import ShowTraining
    from .loop import run_cycle

    here = open_here(project)
    done = run_cycle(
        here, ShowProgress(), ShowTraining(), say, budget=budget, max_cycles=max_cycles, max_usd=max_usd
    )  # fmt: skip
    emit(
        as_json,
        {"ended": done.ended, "reason": done.reason, "turns": done.turns, "usd": done.usd, "student": done.student_id,
         "story": done.story},
        lambda: f"{'promoted' if done.ended == 'promoted' else 'a person is needed'}: {done.reason}",
    )  # fmt: skip
    if done.exit_code:
        raise typer.Exit(done.exit_code)


def show_forecast(project: Project, as_json: bool) -> None:
    """Print what it would take to turn every slice green (`distdata plan --to-green`)."""
    from ..generate.progress import ShowProgress
    from ..stratify.to_green import to_green_words
    from ..train_min.curves import ShowTraining
    from .forecast import forecast

    found = forecast(project, ShowProgress(), ShowTraining())
    data = {
        "dollars": {f"{chance:g}": _finite(amount) for chance, amount in found.dollars.items()},
        "table": found.table.to_dicts(),
        "needs": [{name: _finite(value) for name, value in row.items()} for row in found.needs.iter_rows(named=True)],
    }  # fmt: skip
    emit(as_json, data, lambda: "\n".join(to_green_words(found)))


def _finite(value: Any) -> Any:
    """Return a number, or None for one that JSON has no word for: no amount is enough."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _settings(texts: list[str] | None) -> dict[str, Any]:
    return {key: _value(text) for key, text in map(_pair, texts or [])}


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise DistdataError(f"train: {text!r}: write NAME=VALUE, for example width=512.")
    return name, value


def _grid(texts: list[str]) -> dict[str, list[Any]]:
    """Gather the values of each name, in their order and each once, however many times the name is given."""
    grid: dict[str, dict[str, Any]] = {}
    for key, text in map(_pair, texts):
        grid.setdefault(key, {}).update({repr(v): v for v in map(_value, text.split(","))})
    return {key: list(values.values()) for key, values in grid.items()}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
