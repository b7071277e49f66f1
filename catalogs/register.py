"""Registration: apply events and manifests that the catalog does not know yet. Rebuild is this from nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa

from . import register_ingest, register_loop, store
from .effects import effect
from .errors import BusyError, DistdataError
from .events import Event, list_events, plan_of, read_json, read_table
from .files import TMP_PREFIX, check_digests, is_locked
from .macros import macro_statements
from .manifests import UnitSummary, attempt_order, read_manifest
from .project import Project
from .views import view_statements

BATCH = 256
AFTER_MANIFESTS = ("compact", "verdict", "case")
"""Kinds of events that speak of units, and so come after the units' manifests."""
FLUSH_EVERY_S = 2.0
GLANCE_S = 0.2


def catch_up(project: Project, wait_s: float = store.WRITE_WAIT_S) -> int:
    """Register everything that is on disk and not in the catalog; return how many events and manifests were new.

    Raises BusyError when the catalog stays locked for `wait_s`; what was not registered then is registered
    by a later call, nothing is lost.
    """
    n_new = 0
    events, manifests = _missing(project, wait_s)
    if not project.catalog_path.exists() or events:
        with store.write(project.catalog_path, wait_s) as con:
            known = _known_events(con)  # asked again inside: another process may have been faster
            fresh = [e for e in events if e.number not in known]
            for event in (e for e in fresh if e.kind not in AFTER_MANIFESTS):
                _apply_event(con, project, event)
            n_new += len(fresh)
    elif not store.is_current(project.catalog_path, wait_s):
        with store.write(project.catalog_path, wait_s):
            pass  # opening it to write brings its schema up to date
    for start in range(0, len(manifests), BATCH):
        n_new += register_manifests(project, manifests[start : start + BATCH], wait_s)
    late = [e for e in events if e.kind in AFTER_MANIFESTS]
    if late:
        with store.write(project.catalog_path, wait_s) as con:
            known = _known_events(con)
            for event in (e for e in late if e.number not in known):
                _apply_event(con, project, event)
            refresh_drops(con)
    return n_new


def refresh_drops(con: duckdb.DuckDBPyConnection) -> None:
    """Count the dropped samples of each plan and cell anew, after verdicts or the samples they are about changed."""
    con.execute("DELETE FROM drop_cells")
    con.execute(
        "INSERT INTO drop_cells SELECT plan_no, cell_id, count(*) FROM samples SEMI JOIN drops USING (sample_id) "
        "GROUP BY ALL ORDER BY ALL"
    )


def catch_up_if_free(project: Project) -> None:
    """Register what is missing if that is possible at once; a query must not wait for it.

    Does nothing while a `generate` runs here: that registers what it makes, and a writer in every query would
    stand in its way and in that of all other queries.
    """
    there = project.catalog_path.exists()
    if there and is_locked(project.spool_dir / "generate.lock"):
        return
    try:
        if not there or any(_missing(project, GLANCE_S)) or not store.is_current(project.catalog_path, GLANCE_S):
            catch_up(project, wait_s=GLANCE_S if there else store.WRITE_WAIT_S)
    except BusyError:
        pass


def rebuild(project: Project) -> None:
    """Make the catalog file anew from events, plans and manifests; the old one stays until the new one is complete.

    Raises BusyError when another process has the catalog open, DistdataError for a damaged event, plan or
    manifest or a catalog written by a newer version; the old catalog is then still there.
    """
    path = project.catalog_path
    if path.exists():
        with contextlib.suppress(store.DamagedCatalogError), store.write(path):
            pass  # nobody else has it open; a newer catalog is refused here instead of being replaced
    aside = dataclasses.replace(project, catalog_name=f"{TMP_PREFIX}{path.name}")
    _remove_catalog(aside.catalog_path)
    try:
        catch_up(aside)
        path.with_name(path.name + ".wal").unlink(missing_ok=True)
        aside.catalog_path.replace(path)
    finally:
        _remove_catalog(aside.catalog_path)


def _remove_catalog(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_name(path.name + ".wal").unlink(missing_ok=True)


def register_manifests(project: Project, names: Sequence[str], wait_s: float) -> int:
    """Register these manifests in one transaction, skipping known ones; return how many were new."""
    if not names:
        return 0
    read = [read_manifest(project.storage, name) for name in names]
    with store.write(project.catalog_path, wait_s) as con:
        known = {r[0] for r in con.execute("SELECT manifest FROM units").fetchall()}
        plans = dict(con.execute("SELECT plan_id, plan_no FROM plans").fetchall())
        fresh = sorted(((t, s) for t, s in read if s.manifest not in known), key=lambda p: (p[1].unit, p[1].attempt))
        for _, summary in fresh:
            if summary.plan_id not in plans:
                raise DistdataError(
                    f"{project.storage.address(summary.manifest)}: belongs to plan {summary.plan_id}, which is not in "
                    f"{project.events_dir}. Move it away, or restore that plan's event."
                )
        _insert_units(con, fresh, plans)
        if any(s.replaces for _, s in fresh):
            refresh_drops(con)
        effect("register.units")
    effect("register.done")
    return len(fresh)


def _missing(project: Project, wait_s: float = store.READ_WAIT_S) -> tuple[list[Event], list[str]]:
    on_disk = list_events(project.events_dir)
    folders = [plan_of(e)["plan_id"] for e in on_disk if e.kind in ("plan", "ingest")]
    found = [f.name for d in dict.fromkeys(folders) for f in project.storage.list(d) if f.name.endswith(".parquet")]
    names = sorted(found, key=attempt_order)  # a repair must come after what it replaces, in whichever batch
    if not project.catalog_path.exists():
        return on_disk, names
    with store.read(project.catalog_path, wait_s) as con:
        tables = {r[0] for r in con.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        if "units" not in tables:
            return on_disk, names
        known_units = {r[0] for r in con.execute("SELECT manifest FROM units").fetchall()}
        known_events = _known_events(con)
    return [e for e in on_disk if e.number not in known_events], [n for n in names if n not in known_units]


def _known_events(con: duckdb.DuckDBPyConnection) -> set[int]:
    return {r[0] for r in con.execute("SELECT number FROM events").fetchall()}


def _apply_event(con: duckdb.DuckDBPyConnection, project: Project, event: Event) -> None:
    apply = {
        "cells": _apply_cells,
        "import": _apply_import,
        "plan": _apply_plan,
        "spend": _apply_spend,
        "compact": _apply_compact,
        "ingest": register_ingest.apply_ingest,
        "verdict": register_ingest.apply_verdict,
        "case": register_ingest.apply_case,
        **register_loop.APPLY,
    }
    apply[event.kind](con, project, event)
    con.execute("INSERT INTO events VALUES (?, ?, ?)", [event.number, event.kind, event.path.name])


def _apply_cells(con: duckdb.DuckDBPyConnection, _project: Project, event: Event) -> None:
    table, meta = read_table(event)
    con.register("incoming", table)
    con.execute("CREATE OR REPLACE TABLE cells AS SELECT * FROM incoming")
    con.unregister("incoming")
    con.execute("DELETE FROM axes")
    rows = [
        {"axis": axis, "position": i, "value": value, "value_position": j}
        for i, (axis, values) in enumerate(meta["axes"])
        for j, value in enumerate(values)
    ]
    store.insert(con, "axes", pa.Table.from_pylist(rows))
    for statement in [*view_statements([axis for axis, _ in meta["axes"]]), *macro_statements()]:
        con.execute(statement)


def _apply_import(con: duckdb.DuckDBPyConnection, _project: Project, event: Event) -> None:
    table, meta = read_table(event)
    con.execute("INSERT INTO imports VALUES (?, ?, ?, ?)", [event.number, meta["source"], meta["sha256"], len(table)])
    constant = pa.array([event.number], pa.int32()).take(pa.array([0] * len(table), pa.int32()))
    store.insert(con, "seeds", table.append_column("import_id", constant))


def _apply_plan(con: duckdb.DuckDBPyConnection, project: Project, event: Event) -> None:
    header = plan_of(event)
    folder = project.plans_dir / header["plan_id"]
    cells = _plan_frame(folder, header, "cells.parquet")
    _make_way_for_same_plan(con, header["plan_id"], event.number)
    row = {k: header[k] for k in (
        "plan_id", "purpose", "policy", "budget", "created", "teacher", "teacher_version", "teacher_hash", "n_draws",
        "usd", "gpu_s",
    )}  # fmt: skip
    adaptive = bool(header.get("adaptive", False))
    values = {"plan_no": event.number, **row, "superseded_by": None, "adaptive": adaptive}
    store.insert(con, "plans", pa.Table.from_pylist([values]))
    con.execute("UPDATE plans SET superseded_by = ? WHERE plan_id IN (SELECT unnest(?))",
                [header["plan_id"], header["supersedes"]])  # fmt: skip
    optional = {"n_before": "n_before", "pi_round": "pi_round", "yield": "expected_yield"}
    rounds = [pl.col(c).alias(name) for c, name in optional.items() if c in cells.columns]  # older plans have none
    kept = cells.select(
        pl.lit(event.number, pl.Int32).alias("plan_no"), "cell_id", "target", "credit", "fresh",
        pl.col("n_seeds_frame").alias("n_frame"), pl.col("n_seeds_taken").alias("n_taken"), "weight", "floor",
        "ceiling", "usd", "mark", *rounds,
    )  # fmt: skip
    store.insert(con, "plan_cells", kept.to_arrow())
    if "corpus.parquet" in header.get("sha256", {}):
        key = [header["split"], header["teacher_hash"]]
        con.execute("DELETE FROM corpus WHERE split = ? AND teacher_hash = ?", key)
        corpus = _plan_frame(folder, header, "corpus.parquet")
        split, teacher = (
            pl.lit(text, pl.String).alias(n) for n, text in zip(("split", "teacher_hash"), key, strict=True)
        )
        store.insert(con, "corpus", corpus.with_columns(split, teacher).to_arrow())


def _plan_frame(folder: Path, header: dict[str, Any], name: str) -> pl.DataFrame:
    try:
        check_digests(folder, header.get("sha256", {}), name)
        return pl.read_parquet(folder / name)
    except (OSError, ValueError, pl.exceptions.PolarsError) as e:
        raise DistdataError(f"{folder / name}: damaged ({e}). Restore this file from a backup.") from None


def _make_way_for_same_plan(con: duckdb.DuckDBPyConnection, plan_id: str, plan_no: int) -> None:
    """Move a superseded plan that is chosen again to its new number, with all that was made for it."""
    earlier = store.first(con.execute("SELECT plan_no FROM plans WHERE plan_id = ?", [plan_id]))
    if earlier is None:
        return
    con.execute("DELETE FROM plans WHERE plan_id = ?", [plan_id])
    con.execute("DELETE FROM plan_cells WHERE plan_no = ?", list(earlier))
    for table in ("units", "unit_cells", "samples", "attempts", "other_spend", "verified_units", "drop_cells"):
        con.execute(f"UPDATE {table} SET plan_no = ? WHERE plan_no = ?", [plan_no, *earlier])


def _apply_spend(con: duckdb.DuckDBPyConnection, _project: Project, event: Event) -> None:
    said = read_json(event)
    con.execute(
        "INSERT INTO other_spend SELECT plan_no, $1, $2, $3, $4 FROM plans WHERE plan_id = $5",
        [said["known_usd"], said["in_doubt_usd"], said["gpu_s"], said["note"], said["plan_id"]],
    )


def _apply_compact(con: duckdb.DuckDBPyConnection, _project: Project, event: Event) -> None:
    moves, _ = read_table(event)
    con.register("moves", moves)
    con.execute(
        # a unit that was repaired since has no shard of its own any more, whichever is applied first
        "UPDATE units SET shard = if(units.shard IS NULL, NULL, m.new_shard), shard_offset = m.delta, "
        "shard_bytes = m.new_bytes, shard_digest = m.new_digest "
        "FROM moves m WHERE units.manifest = m.manifest"
    )
    con.unregister("moves")


def _insert_units(
    con: duckdb.DuckDBPyConnection, fresh: Iterable[tuple[pa.Table, UnitSummary]], plans: dict[str, int]
) -> None:
    tables, units = [], []
    for table, s in fresh:
        units.append(_unit_row(s, plans[s.plan_id]))
        constants = {"plan_no": plans[s.plan_id], "unit": s.unit, "attempt": s.attempt}
        for name, value in constants.items():
            table = table.append_column(
                name, pa.array([value], pa.int32()).take(pa.array([0] * len(table), pa.int32()))
            )
        tables.append(table.replace_schema_metadata(None))
        if s.replaces:
            _retire_earlier(con, s, plans[s.plan_id], tables[:-1], units[:-1])
            tables, units = [table.replace_schema_metadata(None)], [units[-1]]
    _insert_rows(con, tables, units)


def _unit_row(s: UnitSummary, plan_no: int) -> dict[str, Any]:
    return {
        "plan_no": plan_no, "unit": s.unit, "attempt": s.attempt, "manifest": s.manifest, "shard": s.shard,
        "shard_offset": 0, "shard_bytes": s.shard_bytes, "shard_digest": s.shard_digest, "n_ok": s.n_ok,
        "n_failed": s.n_failed, "gpu_s": s.gpu_s, "usd": s.usd, "in_doubt_usd": s.in_doubt_usd, "wall_s": s.wall_s,
    }  # fmt: skip


def _retire_earlier(
    con: duckdb.DuckDBPyConnection, s: UnitSummary, plan_no: int, tables: list[pa.Table], units: list[dict[str, Any]]
) -> None:
    """Let a repair stand in for the unit's earlier attempts: their samples go, what they cost stays."""
    _insert_rows(con, tables, units)
    key = [plan_no, s.unit, s.attempt]
    con.execute("DELETE FROM samples WHERE plan_no = ? AND unit = ? AND attempt < ?", key)
    con.execute(
        "UPDATE unit_cells SET generated = 0, n_bytes = 0, weight_sum = 0, weight_sq_sum = 0 "
        "WHERE plan_no = ? AND unit = ? AND attempt < ?", key,
    )  # fmt: skip
    con.execute("UPDATE units SET n_ok = 0, shard = NULL WHERE plan_no = ? AND unit = ? AND attempt < ?", key)


def _insert_rows(con: duckdb.DuckDBPyConnection, tables: list[pa.Table], units: list[dict[str, Any]]) -> None:
    if not tables:
        return
    schema = con.sql("SELECT * FROM units LIMIT 0").to_arrow_table().schema
    store.insert(con, "units", pa.Table.from_pylist(units, schema))
    con.register("draws", pa.concat_tables(tables))
    con.execute(
        """INSERT INTO unit_cells BY NAME
        SELECT plan_no, unit, attempt, c.cell_id, count(*) FILTER (status = 'ok') AS generated,
            count(*) FILTER (status = 'failed') AS failed, sum(paid_gpu_s) AS gpu_s, sum(paid_usd) AS usd,
            sum(in_doubt_usd) AS in_doubt_usd, coalesce(sum(n_bytes), 0) AS n_bytes,
            coalesce(sum(weight) FILTER (status = 'ok'), 0) AS weight_sum,
            coalesce(sum(weight * weight) FILTER (status = 'ok'), 0) AS weight_sq_sum
        FROM draws d JOIN (SELECT cell, cell_id FROM cells) c USING (cell) GROUP BY ALL ORDER BY ALL"""
    )
    con.execute(
        """INSERT INTO samples BY NAME
        SELECT sample_id, plan_no, unit, attempt, c.cell_id, seed_id, d.k, n_k, kind, split, source, decision_point, pi,
            weight, outcome, "offset", n_bytes, gpu_s, usd
        FROM draws d JOIN (SELECT cell, cell_id FROM cells) c USING (cell) WHERE status = 'ok'"""
    )
    con.execute(
        """INSERT INTO attempts BY NAME
        SELECT plan_no, unit, attempt, c.cell_id, seed_id, d.k, failure, reason, tries, paid_usd AS usd, in_doubt_usd
        FROM draws d JOIN (SELECT cell, cell_id FROM cells) c USING (cell) WHERE status = 'failed'"""
    )
    con.unregister("draws")


class Registrar:
    """Registers manifests as they arrive, about every two seconds, and never makes generation wait."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._waiting: list[str] = []
        self._flushed = time.monotonic()

    def add(self, manifest: str) -> None:
        """Remember a committed manifest for the next `flush`."""
        self._waiting.append(manifest)

    def flush_now_and_then(self) -> None:
        """Register what waits if the last time was a while ago and the catalog is free."""
        if time.monotonic() - self._flushed >= FLUSH_EVERY_S:
            self.flush()

    def flush(self, wait_s: float = 0.05) -> int:
        """Register what waits, unless the catalog is busy; return how many manifests still wait."""
        try:
            while self._waiting:
                register_manifests(self._project, self._waiting[:BATCH], wait_s)
                del self._waiting[:BATCH]
        except BusyError:
            pass
        self._flushed = time.monotonic()
        return len(self._waiting)
