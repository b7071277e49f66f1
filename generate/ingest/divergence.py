"""Divergence cases come in: the teacher was wrong, or a student left the teacher's distribution.

A row has `kind` (teacher_wrong or student_diverged), the condition (seed_id, or axes, scenario and params, with group;
of a teacher_wrong case its sample_id says it too), and optionally case_id, priority in [0, 1], note, student, sample_id
(one, or several with commas or as a list) and teacher_hash. A row without case_id gets one from what it says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.compute as pc

from ...catalogs import store
from ...catalogs.cases import CaseKind, case_seed_id, close_cases, read_cases
from ...catalogs.errors import DistdataError, nearest
from ...catalogs.events import append_table
from ...catalogs.hashing import content_hash, unit_interval
from ...catalogs.plans import load_plan, open_plans
from ...catalogs.project import Project
from ...catalogs.register import catch_up
from ...catalogs.register_ingest import CASE_SCHEMA
from ..teachers.registry import make_teacher, teacher_info
from .byproducts import ingest_lock
from .conditions import HELD_OUT, Conditions, LookUp, SeedFacts
from .mapping import load_mapping
from .outcome import CLOSED, IngestResult
from .records import Records, earlier_ingest, read_records
from .rows import RowFacts, RowReader, RowRefusedError
from .sources import SourceRow

PRIORITY = 0.5
MAX_CASE_ID_CHARS = 128
KINDS = get_args(CaseKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One row as it says of itself."""

    place: str
    facts: RowFacts
    kind: str
    case_id: str | None
    priority: float
    note: str
    student: str
    sample_ids: tuple[str, ...]
    teacher_hash: str | None


def ingest_divergence(
    project: Project,
    path: Path,
    *,
    kind: str | None = None,
    mapping: Path | None = None,
    options: Sequence[str] = (),
    dry_run: bool = False,
) -> IngestResult:
    """Take cases into the divergence queue; the same case twice is one. `kind` is that of rows which don't say theirs.

    A case that is there already may change its priority and note while it is open or planned; with another condition
    or other samples it is refused, since it would be another case.

    Raises:
        DistdataError: the file can't be read, or an unknown `kind`.
    """
    if kind is not None and kind not in KINDS:
        raise DistdataError(f"ingest divergence: no kind {kind!r}.{nearest(kind, KINDS)}")
    reader = RowReader(load_mapping(mapping, options), list(project.config.axes))
    records = read_records(path)
    info = teacher_info(make_teacher(project.config.teacher, project.root), project.config.teacher)
    result = IngestResult(kind="divergence", sources=[records.label], n_rows=len(records.rows), dry_run=dry_run)
    with ingest_lock(project):
        catch_up(project)
        rows = _Queue(project, info.content_hash, result).rows(_read(records, reader, kind, result))
        result.n_new_seeds = sum(r.get("new_seed_id") is not None for r in rows)
        ingest_id = f"cases-{records.sha256[:16]}"
        # what was refused is kept too, once: the same file again has nothing new to say
        if not dry_run and (rows or (result.n_refused and earlier_ingest(project, ingest_id) != result.n_refused)):
            meta = {
                "source": records.label,
                "ingest": {
                    "ingest_id": ingest_id, "kind": result.kind, "source": records.label,
                    "sha256": records.sha256, "n_rows": result.n_rows, "n_taken": result.n_taken, "n_credit": 0,
                    "n_refused": result.n_refused, "created": _now(),
                },
                "refusals": result.refusals.rows(),
            }  # fmt: skip
            append_table(project.events_dir, "case", pa.Table.from_pylist(rows, CASE_SCHEMA), meta)
            catch_up(project)
    return result


def give_up(project: Project, case_ids: Sequence[str], reason: str, *, dry_run: bool = False) -> IngestResult:
    """Close cases for good, whatever they wait for. What the teacher got wrong stays dropped and blocked.

    Raises:
        DistdataError: no reason, or an unknown case; none is closed then.
    """
    if not reason.strip():
        raise DistdataError("ingest divergence --close: say why, with --reason TEXT.")
    result = IngestResult(kind=CLOSED, sources=list(dict.fromkeys(case_ids)), dry_run=dry_run)
    result.n_rows = len(result.sources)
    with ingest_lock(project):
        catch_up(project)
        result.n_taken = close_cases(project, result.sources, reason, dry_run=dry_run)
    result.n_known = result.n_rows - result.n_taken
    return result


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read(records: Records, reader: RowReader, kind: str | None, result: IngestResult) -> list[_Case]:
    cases = []
    for place, record in records.rows:
        row = SourceRow(place, record, record)
        try:
            cases.append(_case(row, reader, kind))
        except RowRefusedError as e:
            result.refusals.add(f"{records.label} {place}", e.refused)
    return cases


def _without_samples(row: SourceRow) -> SourceRow:
    """Hide the samples that a case names: elsewhere a sample's id is the row's own key."""
    return replace(row, facts={name: value for name, value in row.facts.items() if name != "sample_id"})


def _case(row: SourceRow, reader: RowReader, default_kind: str | None) -> _Case:
    facts = reader.facts(_without_samples(row))
    kind = reader.text_of(row, "kind") or default_kind or ""
    if kind not in KINDS:
        words = f"kind = {kind!r}.{nearest(kind, KINDS)}" if kind else "no kind."
        raise RowRefusedError("unknown kind of case", words, "Say teacher_wrong or student_diverged, or give --kind.")
    case_id = facts.case_id
    if case_id is not None and not (0 < len(case_id) <= MAX_CASE_ID_CHARS and case_id.isprintable()):
        raise RowRefusedError("bad case_id", f"case_id = {case_id!r}.", f"Use 1 to {MAX_CASE_ID_CHARS} characters.")
    return _Case(
        place=row.place,
        facts=facts,
        kind=kind,
        case_id=case_id,
        priority=_priority(row.fact("priority")),
        note=reader.text_of(row, "note") or "",
        student=reader.text_of(row, "student") or "",
        sample_ids=_sample_ids(row.fact("sample_id")),
        teacher_hash=reader.text_of(row, "teacher_hash") or None,
    )


def _priority(value: Any) -> float:
    if value is None or value == "":
        return PRIORITY
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= 1:
        raise RowRefusedError("priority outside 0 to 1", f"priority = {value!r}.", "1 is bought first, 0 last.")
    return number


def _sample_ids(value: Any) -> tuple[str, ...]:
    parts = value if isinstance(value, list) else str(value or "").split(",")
    return tuple(sorted({str(p).strip() for p in parts if str(p).strip()}))


class _Queue:
    """Turns cases into rows of the event, against the queue and the catalog as they are."""

    def __init__(self, project: Project, teacher_hash: str, result: IngestResult) -> None:
        self._project, self._teacher_hash, self._result = project, teacher_hash, result
        self._conditions = Conditions(project, None, "divergence")
        self._salt = project.config.project.salt
        self._known = {r["case_id"]: r for r in read_cases(project).iter_rows(named=True)}

    def rows(self, cases: Sequence[_Case]) -> list[dict[str, Any]]:
        """Return what changes: cases to open with the samples they drop, and updates of cases that are there."""
        samples = self._samples(cases)
        cases = [_with_seed(c, samples) for c in cases]
        known = self._conditions.look_up([c.facts for c in cases])
        opened: list[dict[str, Any]] = []
        updated: list[dict[str, Any]] = []
        for case in cases:
            try:
                row = self._row(case, samples, known)
                change = self._against_queue(row)
            except RowRefusedError as e:
                self._result.refusals.add(f"{self._result.sources[0]} {case.place}", e.refused)
                continue
            if change is None:
                self._result.n_known += 1
                continue
            self._result.n_taken += 1
            (opened if change["change"] == "open" else updated).append(change)
            self._known[row["case_id"]] = {**self._known.get(row["case_id"], {}), **row}
        return [*opened, *updated, *self._drops(opened)]

    def _samples(self, cases: Sequence[_Case]) -> dict[str, tuple[str, str]]:
        """Return the seed and teacher of every sample that the cases name."""
        ids = [s for c in cases for s in c.sample_ids]
        with store.read(self._project.catalog_path) as con:
            rows = con.execute(
                "SELECT sample_id, seed_id, teacher_hash FROM samples JOIN plans USING (plan_no) "
                "WHERE sample_id IN (SELECT unnest(?::VARCHAR[]))",
                [ids],
            ).fetchall()
        return {sample_id: (seed_id, teacher) for sample_id, seed_id, teacher in rows}

    def _row(self, case: _Case, samples: Mapping[str, tuple[str, str]], known: LookUp) -> dict[str, Any]:
        unknown = [s for s in case.sample_ids if s not in samples]
        if unknown:
            raise RowRefusedError("unknown sample", f"sample_id {unknown[0]!r}.", "Name samples of this catalog.")
        seed = self._conditions.seed_of(case.facts, known)
        if case.kind == "student_diverged":
            self._conditions.check_split(case.facts, seed, known)
        teachers = {samples[s][1] for s in case.sample_ids}
        strangers = [s for s in case.sample_ids if samples[s][0] != seed.seed_id]
        if strangers or len(teachers) > 1:
            words = (
                f"{strangers[0]} is of seed {samples[strangers[0]][0]}, the case of {seed.seed_id}."
                if strangers
                else (f"samples of {len(teachers)} teacher versions.")
            )
            raise RowRefusedError("samples of another seed or teacher", words, "One case is one seed and one teacher.")
        teacher = next(iter(teachers), None) or case.teacher_hash or self._teacher_hash
        condition = case.facts.seed_id or [seed.cell, seed.params]
        derived = content_hash([case.kind, condition, list(case.sample_ids), case.student, teacher])
        case_id = case.case_id or f"case-{derived}"
        twin = case_seed_id(case_id)
        held_out = seed.split in HELD_OUT or known.splits.get(case.facts.group or "") in HELD_OUT
        note = f"student {case.student}: {case.note}".rstrip(": ") if case.student else case.note
        return {
            "change": "open", "case_id": case_id, "kind": case.kind, "cell_id": seed.cell_id,
            "seed_id": twin if seed.is_new else seed.seed_id, "priority": case.priority, "state": "open",
            "note": note, "sample_id": ",".join(case.sample_ids) or None, "teacher_hash": teacher, "opened": _now(),
            "student": case.student or None,
            **({} if held_out else self._twin(seed, twin, case.facts)),
        }  # fmt: skip

    def _twin(self, seed: SeedFacts, twin: str, facts: RowFacts) -> dict[str, Any]:
        """Return the seed that the case brings: the same condition and group, outside the frame."""
        return {
            "new_seed_id": twin, "grp": twin if seed.is_new and facts.group is None else seed.group, "split": "train",
            "prn": unit_interval("prn", self._salt, twin), "decision_point": seed.decision_point, "k": seed.k,
            "control_axis": seed.control_axis, "control_value": seed.control_value, "params": seed.params,
        }  # fmt: skip

    def _against_queue(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """Return the change that a row asks for: a new case, an update of one that waits, or none."""
        old = self._known.get(row["case_id"])
        if old is None:
            return row
        if old["seed_id"] == case_seed_id(row["case_id"]):
            row = {**row, "seed_id": old["seed_id"]}  # its condition has become a seed of the catalog since
        for name in ("kind", "seed_id", "sample_id", "teacher_hash"):
            if old[name] != row[name]:
                raise RowRefusedError(
                    "this case_id is another case",
                    f"case {row['case_id']}: {name} is {old[name]!r} in the queue, {row[name]!r} here.",
                    "A case keeps its condition and samples; give the new one an id of its own.",
                )
        if old["priority"] == row["priority"] and (old["note"] or "") == row["note"]:
            return None
        if old["state"] not in ("open", "planned"):
            return None  # what is over stays as it was
        return {"change": "update", **{n: row[n] for n in ("case_id", "priority", "note")}}

    def _drops(self, opened: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the samples that are no targets any more: those named, or else all of the seed by that teacher.

        Draws of the seed that an open plan is still to make are among them.
        """
        wrong = [r for r in opened if r["kind"] == "teacher_wrong"]
        whole = {(r["seed_id"], r["teacher_hash"]) for r in wrong if r["sample_id"] is None}
        ids = _draws_of(self._project, whole) if whole else {}
        drops = []
        for r in wrong:
            named = r["sample_id"].split(",") if r["sample_id"] else ids.get((r["seed_id"], r["teacher_hash"]), [])
            reason = f"the teacher was wrong: case {r['case_id']}" + (f": {r['note']}" if r["note"] else "")
            drops += [{"change": "drop", "case_id": r["case_id"], "sample_id": s, "note": reason} for s in named]
        return drops


def _with_seed(case: _Case, samples: Mapping[str, tuple[str, str]]) -> _Case:
    """Take the seed of a case's samples for one that says no condition."""
    if case.facts.seed_id is None and not case.facts.axes and case.sample_ids and case.sample_ids[0] in samples:
        return replace(case, facts=replace(case.facts, seed_id=samples[case.sample_ids[0]][0]))
    return case


def _draws_of(project: Project, wanted: set[tuple[str, str]]) -> dict[tuple[str, str], list[str]]:
    """List the samples of these (seed, teacher hash): those that exist, and those that open plans will make."""
    seeds = sorted({seed for seed, _ in wanted})
    with store.read(project.catalog_path) as con:
        rows = con.execute(
            "SELECT seed_id, teacher_hash, sample_id FROM samples JOIN plans USING (plan_no) "
            "WHERE seed_id IN (SELECT unnest(?::VARCHAR[]))",
            [seeds],
        ).fetchall()
    for plan in open_plans(project):
        if plan["purpose"] in ("byproduct", "clean"):
            continue
        draws = load_plan(project, plan["plan_id"]).draws.select(["seed_id", "sample_id"])
        mine = draws.filter(pc.is_in(draws["seed_id"], pa.array(seeds, pa.string())))
        pairs = zip(mine["seed_id"].to_pylist(), mine["sample_id"].to_pylist(), strict=True)
        rows += [(seed, plan["teacher_hash"], sample) for seed, sample in pairs]
    found: dict[tuple[str, str], set[str]] = {}
    for seed, teacher, sample in rows:
        if (seed, teacher) in wanted:
            found.setdefault((seed, teacher), set()).add(sample)
    return {key: sorted(ids) for key, ids in found.items()}
