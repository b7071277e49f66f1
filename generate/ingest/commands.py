"""The commands of `distdata ingest`: parse, call one function, print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...catalogs.console import AsJson, DryRun, ProjectDir, emit, open_here, say
from ...catalogs.errors import DistdataError

if TYPE_CHECKING:
    from .outcome import IngestResult

ingest_app = typer.Typer(
    no_args_is_help=True, help="Take in what nobody bought here: byproducts, verdicts, divergence cases, clean targets."
)

Files = Annotated[list[Path], typer.Argument(help="WebDataset .tar, .parquet, .jsonl, or a folder of log_byproduct.")]
File = Annotated[Path, typer.Argument(help="A .parquet, .jsonl or .csv file.")]
Mapping = Annotated[Path | None, typer.Option("--mapping", "-m", help="A TOML file: which column is what.")]
Map = Annotated[list[str] | None, typer.Option("--map", help="FIELD=COLUMN, for example seed_id=key; may be repeated.")]


@ingest_app.command()
def byproduct(
    files: Files,
    kind: Annotated[str, typer.Option(help="golden, audit or arbitration.")] = "golden",
    mapping: Mapping = None,
    options: Map = None,
    dry_run: DryRun = False,
    project: ProjectDir = Path(),
    as_json: AsJson = False,
) -> None:
    """Take in samples of the teacher that somebody else paid for; they lower what a plan buys."""
    from .byproducts import ingest_byproduct

    here = open_here(project)
    _tell(
        as_json,
        ingest_byproduct(
            here, files, kind=kind, mapping=mapping, options=options or [], dry_run=dry_run, say=say
        ),
    )  # fmt: skip


@ingest_app.command()
def clean(
    files: Files,
    case: Annotated[str | None, typer.Option(help="The teacher_wrong case that these samples correct.")] = None,
    mapping: Mapping = None,
    options: Map = None,
    dry_run: DryRun = False,
    project: ProjectDir = Path(),
    as_json: AsJson = False,
) -> None:
    """Take in samples that no teacher made: human targets, real video."""
    from .byproducts import ingest_clean

    here = open_here(project)
    _tell(
        as_json,
        ingest_clean(here, files, case=case, mapping=mapping, options=options or [], dry_run=dry_run, say=say),
    )


@ingest_app.command()
def divergence(
    file: Annotated[Path | None, typer.Argument(help="A .parquet, .jsonl or .csv file.")] = None,
    kind: Annotated[
        str | None, typer.Option(help="teacher_wrong or student_diverged, for rows that don't say theirs.")
    ] = None,
    close: Annotated[
        list[str] | None, typer.Option(help="Give up this case instead of reading a file; may be repeated.")
    ] = None,
    reason: Annotated[str | None, typer.Option(help="Why the case is given up.")] = None,
    mapping: Mapping = None,
    options: Map = None,
    dry_run: DryRun = False,
    project: ProjectDir = Path(),
    as_json: AsJson = False,
) -> None:
    """Take cases into the divergence queue; open ones become seeds of the next plan."""
    from .divergence import give_up, ingest_divergence

    if (file is None) == (not close) or (reason is None) != (not close):
        raise DistdataError("ingest divergence: give a FILE of cases, or --close CASE_ID with --reason TEXT.")
    here = open_here(project)
    if file is None:
        _tell(as_json, give_up(here, close or [], reason or "", dry_run=dry_run))
        return
    _tell(
        as_json,
        ingest_divergence(here, file, kind=kind, mapping=mapping, options=options or [], dry_run=dry_run),
    )


@ingest_app.command()
def rejects(
    file: File,
    stage: Annotated[str, typer.Option(help="Which verifier this is.")] = "verify",
    partial: Annotated[
        bool, typer.Option("--partial", help="The verifier saw only the samples that the file names.")
    ] = False,
    all_seen: Annotated[
        bool,
        typer.Option(
            "--all-seen", help="The verifier saw everything, although the file names samples that are not here."
        ),
    ] = False,
    dry_run: DryRun = False,
    project: ProjectDir = Path(),
    as_json: AsJson = False,
) -> None:
    """Take in a verifier's rejects: they are exported no more, and the next plan buys what is short."""
    from .rejects import ingest_rejects

    here = open_here(project)
    _tell(as_json, ingest_rejects(here, file, stage=stage, partial=partial, all_seen=all_seen, dry_run=dry_run))


def _tell(as_json: bool, done: IngestResult) -> None:
    emit(as_json, done.as_dict(), lambda: "\n".join(done.lines()))
    if done.n_refused and not done.n_taken + done.n_known:
        raise DistdataError(f"ingest: every row was refused ({done.n_refused:,}); nothing was taken.")
