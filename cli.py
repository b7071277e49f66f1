"""The command line: parse, call one function, print. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from . import __version__
from .catalogs.console import AsJson, DryRun, ProjectDir, emit, open_here, say, screen
from .catalogs.errors import DistdataError
from .cycle.commands import loop_app, show_forecast
from .generate.ingest.commands import ingest_app

if TYPE_CHECKING:
    from .catalogs.comparison import Comparison
    from .catalogs.project import Project
    from .cycle.purchases import Purchase

app = typer.Typer(
    name="distdata",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Decide which teacher samples to buy, buy each exactly once, and prove what the student kept.",
)
catalog_app = typer.Typer(no_args_is_help=True, help="Look after the catalog: seeds in, tables out, checks, rebuild.")
export_app = typer.Typer(no_args_is_help=True, help="Write the corpus in the form that other tools read.")
app.add_typer(catalog_app, name="catalog")
app.add_typer(ingest_app, name="ingest")
app.add_typer(export_app, name="export")
app.add_typer(loop_app)

INTERRUPTED = 130


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


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"distdata {__version__}")
        raise typer.Exit


@app.command()
def init(
    preset: Annotated[
        str, typer.Option(help="driving, driving-mini, language, highway, or a distdata.toml.")
    ] = "driving",
    seeds: Annotated[int | None, typer.Option(help="How many seeds the preset generates.", min=0)] = None,
    project: ProjectDir = Path(),
    as_json: AsJson = False,
) -> None:
    """Make a project here: distdata.toml, the catalog, and a preset's seeds."""
    from .generate.presets import first_budget
    from .projects import init_project

    done = init_project(project, preset, seeds)
    n = done.n_seeds if done else 0
    splits = ", ".join(f"{count:,} {split}" for split, count in (done.per_split if done else {}).items())
    emit(
        as_json,
        {"project": str(project.resolve()), "preset": preset, "n_seeds": n, "splits": done.per_split if done else {}},
        lambda: (
            f"{project.resolve()}: distdata.toml and catalog.duckdb written"
            + (f", {n:,} seeds imported ({splits})" if n else "; now import seeds: distdata catalog import FILE")
            + f".\nNext: distdata plan --budget {first_budget(preset)}"
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
    from .projects import import_generated, import_seed_file

    here = open_here(project)
    done = import_generated(here, source, n, {}) if n is not None else import_seed_file(here, Path(source))
    splits = ", ".join(f"{count:,} {split}" for split, count in done.per_split.items())
    known = f"{done.source}: imported before, nothing to do."
    emit(
        as_json,
        {"source": done.source, "n_seeds": done.n_seeds, "splits": done.per_split, "known": done.known},
        lambda: known if done.known else f"{done.source}: {done.n_seeds:,} seeds imported ({splits}).",
    )


@catalog_app.command("show")
def catalog_show(project: ProjectDir = Path(), as_json: AsJson = False) -> None:
    """Show what the catalog holds: axes, scenario types, seeds per split, plans, coverage."""
    from .catalogs.gather import catalog_facts, coverage_cells
    from .catalogs.tables import coverage_table

    here = open_here(project)
    facts = catalog_facts(here)
    emit(
        as_json,
        facts,
        lambda: (
            "\n".join(f"{k:<16}{v}" for k, v in facts.items())
            + "\n\n"
            + coverage_table(coverage_cells(here), "coverage: kept of target", **screen())
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
    emit(as_json, facts, lambda: f"{here.catalog_path}: rebuilt. {facts['samples']} samples, {facts['seeds']} seeds.")


@catalog_app.command("check")
def catalog_check(project: ProjectDir = Path(), as_json: AsJson = False) -> None:
    """Compare every stored sample with its manifest, byte for byte; exit 1 when something is damaged."""
    from .catalogs.check import check_project
    from .catalogs.tables import size

    found = check_project(open_here(project))
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
    emit(
        as_json,
        data,
        lambda: "\n".join(
            [*strays, f"{found.n_samples:,} samples in {found.n_units:,} units, {size(found.n_bytes)}: "
             + ("all as committed." if not lines else f"{len(lines)} shard(s) damaged.")]
        ),
    )  # fmt: skip
    if lines:
        raise DistdataError("\n".join([*lines, found.advice]))


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help="One SQL query over the catalog's tables and views.")],
    format: Annotated[
        str | None,
        typer.Option(
            "--format", "-f", help="table, csv, json, parquet or arrow (default: table on a terminal, else csv)."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write to this file instead of stdout.")] = None,
    project: ProjectDir = Path(),
    as_json: AsJson = False,
) -> None:
    """Ask the catalog in SQL; it can't be changed this way, and no other file can be read."""
    from .catalogs import store
    from .catalogs.output import write_result

    table = store.query(open_here(project).catalog_path, query)
    chosen = "json" if as_json else format or ("table" if sys.stdout.isatty() and out is None else "csv")
    write_result(table, chosen, out, **screen())


@app.command()
def plan(
    budget: Annotated[
        str | None,
        typer.Option(help="20000samples, 400gpuh or $800; a gate plan without one buys what its gates need."),
    ] = None,
    purpose: Annotated[str, typer.Option(help="train, gate, confirm or pilot.")] = "train",
    policy: Annotated[str | None, typer.Option(help="gate, uniform, fleet or neyman (default: distdata.toml).")] = None,
    top_up: Annotated[
        bool, typer.Option("--top-up", help="Keep the targets in force; buy what verifiers' rejections left short.")
    ] = False,
    explain: Annotated[
        str | None, typer.Option(help="Say why a cell or slice gets its number, and plan nothing.")
    ] = None,
    compare: Annotated[
        str | None, typer.Option(help="Put policies side by side, as in fleet,uniform,gate, and plan nothing.")
    ] = None,
    cost: Annotated[
        bool, typer.Option("--cost", help="Price the programme of the costs table, and plan nothing.")
    ] = False,
    to_green: Annotated[
        bool, typer.Option("--to-green", help="Say what green slices would cost, from retraining on subsets.")
    ] = False,
    boost: Annotated[list[str] | None, typer.Option(help="CELL_OR_SLICE=FACTOR; may be repeated.")] = None,
    allow_undecidable: Annotated[
        bool, typer.Option("--allow-undecidable", help="Plan around what can't be met.")
    ] = False,
    dry_run: DryRun = False,
    project: ProjectDir = Path(),
    as_json: AsJson = False,
) -> None:
    """Decide what to buy within a budget: samples per cell, seeds, K draws each, and the cost."""
    from .cycle import purchases

    given = {"--explain": explain, "--compare": compare, "--cost": cost, "--budget": budget, "--policy": policy,
             "--top-up": top_up, "--boost": boost, "--to-green": to_green}  # fmt: skip
    _refuse_idle(given, "--to-green", ())
    _refuse_idle(given, "--cost", ())
    _refuse_idle(given, "--compare", ("--budget",))
    _refuse_idle(given, "--top-up", ("--budget", "--explain"))
    here = open_here(project)
    if cost:
        _show_costs(here, as_json)
    elif to_green:
        show_forecast(here, as_json)
    elif compare is not None:
        found = purchases.compare_plans(
            here, budget=budget, policies=compare, purpose=purpose, allow_undecidable=allow_undecidable,  # type: ignore[arg-type]
        )  # fmt: skip
        _show_comparison(found, as_json)
    elif explain is not None and not (budget or policy or boost or top_up or allow_undecidable):
        lines = purchases.explain_in_force(here, purpose, explain)
        emit(as_json, {"explain": lines}, lambda: "\n".join(lines))
    else:
        bought = purchases.plan_purchase(
            here, budget=budget, purpose=purpose, policy=policy, boosts=purchases.parse_boosts(boost or []),  # type: ignore[arg-type]
            top_up=top_up, allow_undecidable=allow_undecidable, dry_run=dry_run or explain is not None,
        )  # fmt: skip
        _show_plan(here, bought, explain, dry_run, as_json)


def _refuse_idle(given: Mapping[str, object], option: str, goes_with: tuple[str, ...]) -> None:
    """Refuse options that `option` would leave without effect."""
    idle = [name for name, value in given.items() if value and name not in (option, *goes_with)]
    if given[option] and idle:
        raise typer.BadParameter(f"{option} takes no {' or '.join(idle)}: it would have no effect.")


def _show_plan(project: Project, bought: Purchase, explain: str | None, dry_run: bool, as_json: bool) -> None:
    from .cycle.purchases import save_purchase
    from .stratify.explain import explain as explain_plan
    from .stratify.words import plan_facts, plan_words

    if explain is not None:
        lines = explain_plan(bought.plan, explain)
        emit(as_json, {"explain": lines}, lambda: "\n".join(lines))
        return
    saved = not dry_run and bought.plan.n_fresh > 0 and save_purchase(project, bought)
    emit(
        as_json,
        {**bought.header, "saved": saved, "known": bought.known, **plan_facts(bought.plan)},
        lambda: plan_words(bought.plan, bought.plan_id, saved=saved, dry_run=dry_run, **screen()),
    )


def _show_comparison(found: Comparison, as_json: bool) -> None:
    from .catalogs.compare_table import compare_table

    size = screen()
    emit(as_json, found.as_dict(), lambda: compare_table(found, size["width"], size["color"]))


def _show_costs(project: Project, as_json: bool) -> None:
    from .catalogs.cost_table import cost_words
    from .cycle.purchases import programme_costs

    table, size = programme_costs(project), screen()
    emit(as_json, table.as_dict(), lambda: cost_words(table, size["width"], size["color"]))


@app.command()
def generate(
    plan_id: Annotated[str | None, typer.Option("--plan", help="The plan to run (default: the newest).")] = None,
    engine: Annotated[str | None, typer.Option(help="auto, inprocess or ray (default: distdata.toml).")] = None,
    workers: Annotated[int | None, typer.Option(help="Ray workers (default: one per core).", min=1)] = None,
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
    from .generate.words import run_words

    here = open_here(project)
    mode = choose_mode(retry_failed=retry_failed, repair=repair, only_started=only_started)
    if dry_run:
        facts = outlook(here, plan_id=plan_id, engine=engine, workers=workers, address=address, mode=mode)  # type: ignore[arg-type]
        emit(as_json, facts, lambda: "\n".join(f"{k:<12}{v}" for k, v in facts.items()))
        return
    before = kept_by_cell(here)
    done = generate(
        here, ShowProgress(), plan_id=plan_id, engine=engine, workers=workers, address=address, mode=mode,  # type: ignore[arg-type]
    )  # fmt: skip
    emit(as_json, done.as_dict(), lambda: run_words(here, done, before, **screen()))
    if done.failures:
        say(f"Ask them again: distdata generate{f' --plan {plan_id}' if plan_id else ''} --retry-failed")


@app.command()
def estimate(
    expr: Annotated[str, typer.Argument(help="An SQL expression over a draw's columns: gpu_s, outcome = 'stops'.")],
    by: Annotated[str | None, typer.Option(help="Axes, scenario, layer, cell or slice: weather,light.")] = None,
    where: Annotated[str | None, typer.Option(help="Only draws for which this SQL condition holds.")] = None,
    total: Annotated[bool, typer.Option("--total", help="The sum over the frame's seeds instead of the mean.")] = False,
    form: Annotated[str, typer.Option(help="ratio or ht (Horvitz-Thompson).")] = "ratio",
    target: Annotated[
        str, typer.Option(help="superpopulation, or frame: the imported seeds alone.")
    ] = "superpopulation",
    purpose: Annotated[str, typer.Option(help="Whose seeds: train, gate or confirm.")] = "train",
    teacher: Annotated[str | None, typer.Option(help="A version or hash (default: the newest).")] = None,
    project: ProjectDir = Path(),
    as_json: AsJson = False,
) -> None:
    """Estimate a fleet-level mean, share or total from the weighted draws, with its error."""
    from .cycle.outputs import estimate_fleet
    from .stratify.estimate_words import estimate_words

    found, remarks = estimate_fleet(
        open_here(project), expr, by=by, where=where, total=total, form=form, target=target, purpose=purpose,
        teacher=teacher,
    )  # fmt: skip
    data = {"estimates": found.table.to_dicts(), "about": [*found.words(), *remarks]}
    emit(as_json, data, lambda: estimate_words(found, remarks, **screen()))


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

    done = compact_project(open_here(project), int(target_mb * 1e6), dry_run=dry_run)
    would = "would become" if dry_run else "became"
    emit(
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

    done = run_replay(open_here(project), parse_share(replay))
    emit(
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

    facts = life_of(open_here(project), sample_id)
    emit(as_json, facts, lambda: "\n".join(f"{k:<16}{v}" for k, v in facts.items()))


@app.command()
def status(project: ProjectDir = Path(), as_json: AsJson = False) -> None:
    """Show where the project stands: plans, draws, spend, the lag, red slices, what to do next."""
    from .catalogs.gather import catalog_facts
    from .catalogs.loop_facts import loop_facts

    here = open_here(project)
    facts = catalog_facts(here)
    facts |= loop_facts(here, date.today(), facts.pop("next"))
    emit(as_json, facts, lambda: "\n".join(f"{k:<16}{v}" for k, v in facts.items()))


@app.command()
def report(
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML file to write.")] = Path("report.html"),
    project: ProjectDir = Path(),
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML page: coverage, spend, samples to look at."""
    from .cycle.outputs import write_report

    path = write_report(open_here(project), out, say)
    emit(as_json, {"report": str(path)}, lambda: f"{path} written; open it in a browser.")


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
    from .cycle.outputs import export_dataset

    done = export_dataset(
        open_here(project), out, layout=layout, push=push, public=public, overwrite=overwrite, say=say
    )
    emit(as_json, done, lambda: "\n".join(f"{k:<12}{v}" for k, v in done.items()))
