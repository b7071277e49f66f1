"""Byproducts: samples of the teacher that somebody else has paid for already, and that need not be bought again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from ...catalogs.cases import close_cases, read_cases
from ...catalogs.errors import DistdataError, nearest
from ...catalogs.files import exclusive_lock
from ...catalogs.project import Project
from ...catalogs.protocol import TeacherInfo
from ...catalogs.register import catch_up
from ..teachers.registry import make_teacher, teacher_info
from .mapping import load_mapping
from .members import wanted_members
from .outcome import CREDIT_KINDS, IngestResult, Say
from .samples import Intake, log_progress, take_in
from .sources import open_source, source_paths

INGEST_LOCK = ".ingest-lock"


def ingest_byproduct(
    project: Project,
    paths: Sequence[Path],
    *,
    kind: str = "golden",
    mapping: Path | None = None,
    options: Sequence[str] = (),
    dry_run: bool = False,
    say: Say = lambda _: None,
) -> IngestResult:
    """Take in samples that the project's teacher made elsewhere; rows that can't count are refused with their reasons.

    `paths` are WebDataset archives, Parquet or JSONL files, folders of `log_byproduct`, or exports; each file comes
    in whole or not at all, and in the order given. `mapping` and `options` say what their columns mean (`mapping`).

    Raises:
        DistdataError: an unknown kind, a mapping that doesn't fit, or a file that is torn; files before it are in.
    """
    if kind not in CREDIT_KINDS:
        raise DistdataError(f"ingest byproduct: no kind {kind!r}.{nearest(kind, CREDIT_KINDS)}")
    rules = load_mapping(mapping, options)
    info = teacher_info(make_teacher(project.config.teacher, project.root), project.config.teacher)
    if rules.kind not in (None, info.kind):
        raise DistdataError(
            f"ingest mapping: kind = {rules.kind!r}: the samples of teacher {info.id} are {info.kind!r}, and a "
            "byproduct has its teacher's kind."
        )
    total = IngestResult(kind=kind, dry_run=dry_run)
    with ingest_lock(project):
        for path in source_paths(paths):
            catch_up(project)
            intake = Intake(source=kind, info=info, mapping=rules, wanted=wanted_members(project, info, rules))
            source = open_source(path, log_progress(project, clean=False))
            total.add(take_in(project, source, intake, dry_run=dry_run, say=say))
    return total


def ingest_clean(
    project: Project,
    paths: Sequence[Path],
    *,
    case: str | None = None,
    mapping: Path | None = None,
    options: Sequence[str] = (),
    dry_run: bool = False,
    say: Say = lambda _: None,
) -> IngestResult:
    """Take in samples that no teacher made: human targets, real video. They cost nothing and earn no credit.

    A row with a `case_id` (or all of them, with `case`) corrects that teacher_wrong case, which is closed. Another
    record kind than the teacher's is said in the mapping (``kind = "human"``), with its members.

    Raises:
        DistdataError: an unknown case, a mapping that doesn't fit, or a file that is torn; files before it are in.
    """
    rules = load_mapping(mapping, options)
    if case is not None:
        rules = rules.model_copy(update={"constants": {**rules.constants, "case_id": case}})
    teacher = teacher_info(make_teacher(project.config.teacher, project.root), project.config.teacher)
    own_kind = rules.kind not in (None, teacher.kind)
    info = TeacherInfo(
        id="", version="", content_hash="", kind=rules.kind or teacher.kind, members={} if own_kind else teacher.members
    )
    total = IngestResult(kind="clean", dry_run=dry_run)
    with ingest_lock(project):
        for path in source_paths(paths):
            catch_up(project)
            queue = read_cases(project).filter(kind="teacher_wrong")
            cases = dict(queue.select("case_id", "seed_id").iter_rows())
            if case is not None and case not in cases:
                raise DistdataError(f"ingest clean: --case {case}: no such teacher_wrong case.{nearest(case, cases)}")
            intake = Intake(
                source="clean", info=info, mapping=rules, cases=cases,
                wanted=wanted_members(project, info, rules, any_teacher=True),
            )  # fmt: skip
            source = open_source(path, log_progress(project, clean=True))
            done = take_in(project, source, intake, dry_run=dry_run, say=say)
            total.add(done)
            if done.corrects and not dry_run:
                n_closed = close_cases(project, sorted(set(done.corrects)), "corrected")
                total.notes.append(f"{n_closed} case(s) closed as corrected.")
    return total


def ingest_lock(project: Project) -> AbstractContextManager[None]:
    """Hold other ingests of this project off."""
    busy = f"{project.root}: process {{holder}} is ingesting here; wait for it."
    return exclusive_lock(project.events_dir / INGEST_LOCK, busy)
