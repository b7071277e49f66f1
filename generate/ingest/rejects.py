"""Verdicts of a verifier, whichever it is: the samples that it rejects, and which units it has looked at."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...catalogs import store
from ...catalogs.errors import DistdataError, nearest
from ...catalogs.events import append_table
from ...catalogs.hashing import content_hash
from ...catalogs.project import Project
from ...catalogs.register import catch_up
from ...catalogs.register_ingest import CASE_STAGE, VERDICT_SCHEMA
from .byproducts import ingest_lock
from .outcome import IngestResult, Refused
from .records import Records, earlier_ingest, read_records

STAGE = "verify"
REASON = "rejected"
UNKNOWN_SAMPLE = "unknown sample"


def ingest_rejects(
    project: Project,
    path: Path,
    *,
    stage: str = STAGE,
    partial: bool = False,
    all_seen: bool = False,
    dry_run: bool = False,
) -> IngestResult:
    """Take in the rejects of a verifier: columns sample_id, reason (optional) and stage (optional).

    The verifier is taken to have seen every sample that is registered now, so what it doesn't name is kept; with
    `partial` it has seen only what it names, and the others stay unverified. A file that names samples which are not
    here may be another project's: it verifies nothing, unless `all_seen` says that everything here was looked at. The
    same file a second time changes nothing: what was made since then, it has not seen.

    Raises:
        DistdataError: the file can't be read, is empty, or has no sample_id; `partial` and `all_seen` both.
    """
    if partial and all_seen:
        raise DistdataError("ingest rejects: --partial and --all-seen contradict each other. Give one of them.")
    records = read_records(path)
    if not records.columns and not all_seen:
        raise DistdataError(
            f"{path}: is empty. A verifier that rejects nothing writes a file with the header sample_id and no row, or "
            "say --all-seen. Nothing was ingested."
        )
    if records.columns and "sample_id" not in records.columns:
        raise DistdataError(f"{path}: column 'sample_id' is missing.{nearest('sample_id', records.columns)}")
    result = IngestResult(kind="rejects", sources=[records.label], n_rows=len(records.rows), dry_run=dry_run)
    with ingest_lock(project):
        catch_up(project)
        ingest_id = f"rejects-{content_hash([records.sha256, stage, partial, *['all seen'] * all_seen])}"
        refused_before = earlier_ingest(project, ingest_id)
        if refused_before == 0:
            result.n_known = result.n_rows
            result.notes.append("Ingested before, byte for byte: nothing to do.")
            return result
        drops = _drops(project, records, stage, result)
        stages = sorted({stage, *(d["stage"] for d in drops)})
        is_foreign = UNKNOWN_SAMPLE in result.refusals.groups and not all_seen
        units = [] if partial or is_foreign or refused_before is not None else _unseen_units(project, stages)
        result.n_taken = len(drops)
        if partial:
            result.notes.append("Partial: what this file doesn't name stays unverified.")
        elif is_foreign:
            result.notes.append(
                "No unit counts as verified: the file names samples that are not here, so it may be about another "
                "project. If the verifier has seen everything here, say --all-seen."
            )
        elif refused_before is None:
            if not records.rows:
                result.notes.append(f"{path.name} has no row: this verifier rejects nothing.")
            n_units = len({(u["plan_id"], u["unit"], u["attempt"]) for u in units})
            result.notes.append(
                f"{n_units:,} units count as verified from now on: what was not rejected in them is kept."
            )
        if not dry_run and (drops or units or refused_before is None):
            meta = {"ingest": _facts(records, ingest_id, result), "refusals": result.refusals.rows()}
            table = pa.Table.from_pylist([*drops, *units], VERDICT_SCHEMA)
            append_table(project.events_dir, "verdict", table, meta)
            catch_up(project)
    return result


def _facts(records: Records, ingest_id: str, result: IngestResult) -> dict[str, Any]:
    return {
        "ingest_id": ingest_id, "kind": result.kind, "source": records.label, "sha256": records.sha256,
        "n_rows": result.n_rows, "n_taken": result.n_taken, "n_credit": 0, "n_refused": result.n_refused,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def _drops(project: Project, records: Records, stage: str, result: IngestResult) -> list[dict[str, Any]]:
    """Return the rows of the event: new rejections of samples that there are."""
    ids = [str(row["sample_id"]) for _, row in records.rows if row.get("sample_id") is not None]
    with store.read(project.catalog_path) as con:
        there = {
            r[0]
            for r in con.execute(
                "SELECT sample_id FROM samples SEMI JOIN (SELECT unnest(?::VARCHAR[]) AS sample_id) USING (sample_id)",
                [ids],
            ).fetchall()
        }
        known = set(con.execute("SELECT sample_id, stage FROM drops").fetchall())
    drops = []
    for place, row in records.rows:
        sample_id, at = row.get("sample_id"), str(row.get("stage") or stage)
        if sample_id is None or str(sample_id) not in there:
            advice = "Verdicts are about samples of this catalog: distdata sql 'select sample_id from samples'."
            words = "sample_id is missing." if sample_id is None else f"sample_id {sample_id!r}."
            result.refusals.add(f"{records.label} {place}", Refused(UNKNOWN_SAMPLE, words, advice))
        elif at == CASE_STAGE:
            advice = "Tell of a wrong teacher output as a case: distdata ingest divergence."
            result.refusals.add(f"{records.label} {place}", Refused("reserved stage", f"stage {at!r}.", advice))
        elif (sample_id, at) in known:
            result.n_known += 1
        else:
            known.add((sample_id, at))
            drops.append({"sample_id": str(sample_id), "stage": at, "reason": str(row.get("reason") or REASON)})
    return drops


def _unseen_units(project: Project, stages: list[str]) -> list[dict[str, Any]]:
    """List the units with samples that no verifier of these stages has seen."""
    with store.read(project.catalog_path) as con:
        rows = con.execute(
            """SELECT stage, plan_id, unit, attempt FROM units JOIN plans USING (plan_no)
                CROSS JOIN (SELECT unnest(?::VARCHAR[]) AS stage)
                ANTI JOIN verified_units USING (plan_no, unit, attempt, stage)
            WHERE n_ok > 0 ORDER BY ALL""",
            [stages],
        ).fetchall()
    return [{"stage": s, "plan_id": p, "unit": u, "attempt": a} for s, p, u, a in rows]
