"""The command line: parse, call one function, print. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from . import __version__
from .catalogs.errors import DistdataError

if TYPE_CHECKING:
    from .catalogs.project import Project
    from .cycle import Purchase
    from .generate.run import RunResult

app = typer.Typer(
    name="distdata",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Decide which teacher samples to buy, buy each exactly once, and see what they cover.",
)
catalog_app = typer.Typer(no_args_is_help=True, help="Look after the catalog: seeds in, tables out, checks, rebuild.")
export_app = typer.Typer(no_args_is_help=True, help="Write the corpus in the form that other tools read.")
app.add_typer(catalog_app, name="catalog")
app.add_typer(export_app, name="export")

INTERRUPTED = 130

ProjectDir = Annotated[Path, typer.Option("--project", "-p", help="Folder of the project.", show_default="here")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would happen; spend and write nothing.")]


def main() -> NoReturn:
    """Run the command line; an error of the user or the system is one message and exit code 1, Ctrl-C is 130."""
    try:
        code = app(standalone_mode=False)  # the code of a typer.Exit, else what the command returned: None
        if code == INTERRUPTED:  # typer's own way of reporting Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code or 0)
    except DistdataError as e:
        _fail(str(e), 1)
    except typer.Exit as e:
        sys.exit(e.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        _fail("Stopped. What was committed is safe; the same command goes on from there.", INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except OSError as e:
        place = f"{e.filename}: " if e.filename is not None else ""
        number = f" (errno {e.errno})" if e.errno is not None else ""
        _fail(f"{place}{e.strerror or e}{number}.", 1)
    except Exception as e:
        if hasattr(e, "show") and hasattr(e, "exit_code"):  # click's own usage errors
            e.show()
            sys.exit(e.exit_code)
        raise


def run() -> NoReturn:
    """Run `main` as a process of its own and leave without the libraries' exit-time teardown.

    Thread pools of native libraries (Arrow, DuckDB, Polars) now and then abort a process that is already done while
    they are destroyed on a busy machine; by then everything is written and synced, so nothing is left to tear down.
    """
    code: object = 0
    try:
        main()
    except SystemExit as e:
        code = e.code
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a closed pipe has nobody to tell
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _fail(text: str, code: int) -> NoReturn:
    print(("" if code == INTERRUPTED else "error: ") + text, file=sys.stderr)
    sys.exit(code)


def _open(project_dir: Path) -> Project:
    from .catalogs.intake import open_project

    return open_project(project_dir)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _emit(as_json: bool, data: Any, text: Callable[[], str]) -> None:
    print(json.dumps(data, default=str) if as_json else text())


def _screen() -> dict[str, Any]:
    import shutil

    tty = sys.stdout.isatty()
    return {"width": shutil.get_terminal_size((100, 24)).columns if tty else 100, "color": tty}


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"distdata {__version__}")
        raise typer.Exit


@app.command()
def init(
    preset: Annotated[str, typer.Option(help="driving, highway, or the path of a distdata.toml.")] = "driving",
    seeds: Annotated[int | None, typer.Option(help="How many seeds the preset generates.", min=0)] = None,
    project: ProjectDir = Path(),
    as_json: AsJson = False,
) -> None:
    """Make a project here: distdata.toml, the catalog, and a preset's seeds."""
    from .cycle import init_project

    done = init_project(project, preset, seeds)
    n = done.n_seeds if done else 0
    splits = ", ".join(f"{count:,} {split}" for split, count in (done.per_split if done else {}).items())
    _emit(
        as_json,
        {"project": str(project.resolve()), "preset": preset, "n_seeds": n, "splits": done.per_split if done else {}},
        lambda: (
            f"{project.resolve()}: distdata.toml and catalog.duckdb written"
            + (f", {n:,} seeds imported ({splits})" if n else "; now import seeds: distdata catalog import FILE")
            + ".\nNext: distdata plan --budget 2000samples"
        ),
    )


@catalog_app.command("import")
def catalog_import(
    source: Annotated[str, typer.Argument(help="A .parquet, .jsonl or .csv file; with --n, a generator's name.")],
    n: Annotated[int | None, typer.Option("--n", help="Let the generator SOURCE make this many seeds.", min=1)] = None,
    project: ProjectDir = Path(),
    as_json: AsJson = False,
) -> None:
    """Import scenario seeds: from a file, or from a generator (crossing, highway, module:function)."""
    from .cycle import import_generated, import_seed_file

    here = _open(project)
    done = import_generated(here, source, n, {}) if n is not None else import_seed_file(here, Path(source))
    splits = ", ".join(f"{count:,} {split}" for split, count in done.per_split.items())
    known = f"{done.source}: imported before, nothing to do."
    _emit(
        as_json,
        {"source": done.source, "n_seeds": done.n_seeds, "splits": done.per_split, "known": done.known},
        lambda: known if done.known else f"{done.source}: {done.n_seeds:,} seeds imported ({splits}).",
    )


@catalog_app.command("show")
def catalog_show(project: ProjectDir = Path(), as_json: AsJson = False) -> None:
    """Show what the catalog holds: axes, scenario types, seeds per split, plans, coverage."""
    from .catalogs.gather import catalog_facts, coverage_cells
    from .catalogs.tables import coverage_table

    here = _open(project)
    facts = catalog_facts(here)
    _emit(
        as_json,
        facts,
        lambda: (
            "\n".join(f"{k:<16}{v}" for k, v in facts.items())
            + "\n\n"
            + coverage_table(coverage_cells(here), "coverage: kept of target", **_screen())
        ),
    )


@catalog_app.command("rebuild")
def catalog_rebuild(project: ProjectDir = Path(), as_json: AsJson = False) -> None:
    """Delete catalog.duckdb and make it anew from events, plans and manifests."""
    from .catalogs.gather import catalog_facts
    from .catalogs.project import Project
    from .catalogs.register import rebuild

    here = Project.open(project)
    rebuild(here)
    facts = catalog_facts(here)
    _emit(as_json, facts, lambda: f"{here.catalog_path}: rebuilt. {facts['samples']} samples, {facts['seeds']} seeds.")


@catalog_app.command("check")
def catalog_check(project: ProjectDir = Path(), as_json: AsJson = False) -> None:
    """Compare every stored sample with its manifest, byte for byte; exit 1 when something is damaged."""
    from .catalogs.check import check_project
    from .catalogs.tables import size

    found = check_project(_open(project))
    lines = [f"{d.shard}: {d.text}" for d in found.damaged]
    strays = [
        f"{name}: no manifest names it (left by a crash; the next generate removes it)" for name in found.unreferenced
    ]
    data = {
        "n_units": found.n_units,
        "n_samples": found.n_samples,
        "n_bytes": found.n_bytes,
        "unreferenced": found.unreferenced,
        "damaged": [asdict(d) for d in found.damaged],
    }
    _emit(
        as_json,
        data,
        lambda: "\n".join(
            [*strays, f"{found.n_samples:,} samples in {found.n_units:,} units, {size(found.n_bytes)}: "
             + ("all as committed." if not lines else f"{len(lines)} shard(s) damaged.")]
        ),
    )  # fmt: skip
    if lines:
        raise DistdataError("\n".join([*lines, "Run `distdata generate --repair` to make just these draws again."]))


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help="One SQL query over the catalog's tables and views.")],
    format: Annotated[
        str | None,
        typer.Option(
            "--format", "-f", help="table, csv, json, parquet or arrow [default: table on a terminal, else csv]."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write to this file instead of stdout.")] = None,
    project: ProjectDir = Path(),
    as_json: AsJson = False,
) -> None:
    """Ask the catalog in SQL; it can't be changed this way, and no other file can be read."""
    from .catalogs import store
    from .catalogs.output import write_result

    table = store.query(_open(project).catalog_path, query)
    chosen = "json" if as_json else format or ("table" if sys.stdout.isatty() and out is None else "csv")
    write_result(table, chosen, out, **_screen())


@app.command()
def plan(
    budget: Annotated[str | None, typer.Option(help="20000samples, 400gpuh or $800.")] = None,
    purpose: Annotated[str, typer.Option(help="train, gate, confirm or pilot.")] = "train",
    policy: Annotated[str | None, typer.Option(help="gate, uniform, fleet or neyman [default: distdata.toml].")] = None,
    explain: Annotated[
        str | None, typer.Option(help="Say why a cell or slice gets its number, and plan nothing.")
    ] = None,
    boost: Annotated[list[str] | None, typer.Option(help="CELL_OR_SLICE=FACTOR; may be repeated.")] = None,
    allow_undecidable: Annotated[
        bool, typer.Option("--allow-undecidable", help="Plan around what can't be met.")
    ] = False,
    dry_run: DryRun = False,
    project: ProjectDir = Path(),
    as_json: AsJson = False,
) -> None:
    """Decide what to buy within a budget: samples per cell, seeds, K draws each, and the cost."""
    from .catalogs.plans import open_plans
    from .catalogs.tables import plan_table
    from .cycle import parse_boosts, plan_purchase, plan_table_rows, save_purchase
    from .stratify.explain import explain as explain_plan

    here = _open(project)
    if budget is None:
        same = [p for p in open_plans(here) if p["purpose"] == purpose] if explain else []
        if not same:
            raise DistdataError("plan: how much? Give --budget 2000samples, 400gpuh or $800.")
        budget = str(same[-1]["budget"])
    bought = plan_purchase(
        here, budget=budget, purpose=purpose, policy=policy, boosts=parse_boosts(boost or []),  # type: ignore[arg-type]
        allow_undecidable=allow_undecidable, dry_run=dry_run or explain is not None,
    )  # fmt: skip
    if explain is not None:
        lines = explain_plan(bought.plan, explain)
        _emit(as_json, {"explain": lines}, lambda: "\n".join(lines))
        return
    saved = not dry_run and bought.plan.n_fresh > 0 and save_purchase(here, bought)
    _emit(
        as_json,
        {**bought.header, "saved": saved, "known": bought.known, "shortfall": bought.plan.shortfall,
         "cells": bought.plan.cells.to_dicts()},
        lambda: plan_table(plan_table_rows(bought.plan), **_screen()) + "\n" + _plan_words(bought, saved, dry_run),
    )  # fmt: skip


def _plan_words(bought: Purchase, saved: bool, dry_run: bool) -> str:
    from .catalogs.tables import count, duration, usd
    from .cycle import layer_shares

    p = bought.plan
    n_seeds = p.draws["seed_id"].n_unique()
    lines = [
        f"{count(p.n_target)} samples aimed at: {count(p.n_credit)} are there, {count(p.n_fresh)} to buy from "
        f"{count(n_seeds)} seeds, {usd(p.usd)} ({duration(p.gpu_s)} of teacher time)."
    ]
    lines.append(f"By layer, of the samples and of what the fleet meets: {layer_shares(p)}.")
    if p.shortfall:
        lines.append(f"The budget exceeds what the seeds can give by {p.shortfall:,.6g}; import more seeds to use it.")
    if p.n_marked:
        lines.append(f"{p.n_marked} cells are marked undecidable; --explain CELL says why.")
    if not p.n_fresh:
        lines.append("Nothing to buy: every target is met by what is there.")
    elif dry_run:
        lines.append("Dry run: nothing was saved.")
    else:
        state = "saved" if saved else "is saved already"
        lines.append(f"Plan {bought.plan_id} {state}. Next: distdata generate")
    return "\n".join(lines)


@app.command()
def generate(
    plan_id: Annotated[str | None, typer.Option("--plan", help="The plan to run [default: the newest].")] = None,
    engine: Annotated[str | None, typer.Option(help="auto, inprocess or ray [default: distdata.toml].")] = None,
    workers: Annotated[int | None, typer.Option(help="Ray workers [default: one per core].", min=1)] = None,
    address: Annotated[
        str | None, typer.Option(help="A Ray cluster's address; a local Ray is started without it.")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask the draws again that failed.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Make damaged samples again, and only those.")] = False,
    only_started: Annotated[
        bool, typer.Option("--only-started", help="Finish interrupted units, start no new one.")
    ] = False,
    dry_run: DryRun = False,
    project: ProjectDir = Path(),
    as_json: AsJson = False,
) -> None:
    """Run a plan on the teacher. Run it again to resume; a finished plan costs nothing."""
    from .catalogs.gather import kept_by_cell
    from .generate.progress import ShowProgress
    from .generate.run import choose_mode, generate, outlook

    here = _open(project)
    mode = choose_mode(retry_failed=retry_failed, repair=repair, only_started=only_started)
    if dry_run:
        facts = outlook(here, plan_id=plan_id, engine=engine, workers=workers, address=address, mode=mode)  # type: ignore[arg-type]
        _emit(as_json, facts, lambda: "\n".join(f"{k:<12}{v}" for k, v in facts.items()))
        return
    before = kept_by_cell(here)
    done = generate(
        here, ShowProgress(), plan_id=plan_id, engine=engine, workers=workers, address=address, mode=mode,  # type: ignore[arg-type]
    )  # fmt: skip
    _emit(as_json, done.as_dict(), lambda: _run_words(here, done, before))
    if done.failures:
        _say("Ask the failed draws again with: distdata generate --retry-failed")


def _run_words(project: Project, done: RunResult, before: dict[str, int]) -> str:
    from .catalogs.gather import coverage_cells
    from .catalogs.tables import count, coverage_table, usd

    lines = [*done.damaged]
    if done.asked:
        lines.append(coverage_table(coverage_cells(project, before), "coverage, before and now", **_screen()) + "\n")
    if done.asked == 0 and not done.damaged:
        lines.append(
            f"plan {done.plan_id}: nothing to do, {count(done.generated)} of {count(done.total)} draws are there."
        )
    else:
        doubt = f" (and {usd(done.in_doubt_usd)} in doubt after a crash)" if done.in_doubt_usd else ""
        lines.append(
            f"plan {done.plan_id}: {count(done.generated)} of {count(done.total)} draws are there; this run spent "
            f"{usd(done.usd)}{doubt}."
        )
    lines += [f"  failed: {n:,} x {kind}: {reason}" for kind, reason, n in done.failures]
    if done.unregistered:
        lines.append(
            f"{done.unregistered} units are committed and not yet in the catalog (busy); the next command adds them."
        )
    lines.append(f"Shards: {project.storage.address(done.plan_id)}")
    return "\n".join(lines)


@app.command()
def compact(
    target_mb: Annotated[float, typer.Option(help="Size of a joined shard, in megabytes.", min=1, max=1e6)] = 256,
    dry_run: DryRun = False,
    project: ProjectDir = Path(),
    as_json: AsJson = False,
) -> None:
    """Join small shards into large ones; every sample stays where the catalog says."""
    from .catalogs.packing import compact_project
    from .catalogs.tables import size

    done = compact_project(_open(project), int(target_mb * 1e6), dry_run=dry_run)
    would = "would become" if dry_run else "became"
    _emit(
        as_json,
        {"n_before": done.n_before, "n_after": done.n_after, "n_bytes": done.n_bytes, "dry_run": dry_run},
        lambda: f"{done.n_before:,} shards {would} {done.n_after:,} ({size(done.n_bytes)} copied).",
    )


@app.command()
def verify(
    replay: Annotated[str, typer.Option(help="Share of the samples to draw again: 0.1% or 0.001.")] = "0.1%",
    project: ProjectDir = Path(),
    as_json: AsJson = False,
) -> None:
    """Draw some samples again and compare them with what is stored; exit 1 when one differs."""
    from .generate.verify import parse_share
    from .generate.verify import replay as run_replay

    done = run_replay(_open(project), parse_share(replay))
    _emit(
        as_json,
        {"compared": done.n_compared, "equal": done.n_equal, "different": done.different, "promise": done.reproducible},
        lambda: (
            f"{done.n_equal:,} of {done.n_compared:,} samples drawn again came out the same "
            + ("to the byte." if done.reproducible == "exact" else "within tolerance.")
        ),
    )
    if done.different:
        shown = "\n".join(f"{s}: {reason}" for s, reason in done.different[:10])
        raise DistdataError(
            f"{len(done.different)} sample(s) differ:\n{shown}\nWas the teacher, its library or the machine changed?"
        )


@app.command()
def why(
    sample_id: Annotated[str, typer.Argument(help="A sample's id (its WebDataset key).")],
    project: ProjectDir = Path(),
    as_json: AsJson = False,
) -> None:
    """Tell the life of one sample: its plan, weight, price, teacher, seed, siblings and place on disk."""
    from .catalogs.lives import life_of

    facts = life_of(_open(project), sample_id)
    _emit(as_json, facts, lambda: "\n".join(f"{k:<16}{v}" for k, v in facts.items()))


@app.command()
def status(project: ProjectDir = Path(), as_json: AsJson = False) -> None:
    """Show where the project stands: plans, draws made, spend, failures, what to do next."""
    from .catalogs.gather import catalog_facts

    facts = catalog_facts(_open(project))
    _emit(as_json, facts, lambda: "\n".join(f"{k:<16}{v}" for k, v in facts.items()))


@app.command()
def report(
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML file to write.")] = Path("report.html"),
    project: ProjectDir = Path(),
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML page: coverage, spend, samples to look at."""
    from .cycle import write_report

    path = write_report(_open(project), out)
    _emit(as_json, {"report": str(path)}, lambda: f"{path} written; open it in a browser.")


@export_app.command("hf")
def export_hf(
    out: Annotated[Path, typer.Argument(help="The folder to write; load_dataset(FOLDER) reads it.")],
    layout: Annotated[str, typer.Option(help="parquet or webdataset.")] = "parquet",
    push: Annotated[str | None, typer.Option(help="Upload to this dataset repository: ORG/NAME.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a pushed repository public.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
    project: ProjectDir = Path(),
    as_json: AsJson = False,
) -> None:
    """Write the training corpus as a Hugging Face dataset, with a card that shows its coverage."""
    from .cycle import export_dataset

    done = export_dataset(_open(project), out, layout=layout, push=push, public=public, overwrite=overwrite, say=_say)
    _emit(as_json, done, lambda: "\n".join(f"{k:<12}{v}" for k, v in done.items()))
