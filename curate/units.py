"""The units of plans with their kept samples, and what was measured of them before.

What was measured is kept in ``metrics/PLAN/`` of the project, one file per attempt of a unit and set of metrics:
derived, so it can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ..catalogs import store
from ..catalogs.errors import DistdataError, nearest
from ..catalogs.files import write_atomic
from ..catalogs.hashing import content_hash
from ..catalogs.manifests import unit_stem
from ..catalogs.project import Project
from .metric_table import Metric, code_hash, columns_schema
from .pieces import Piece

ROWS_AT_ONCE = 20_000
_KEPT = """FROM samples s JOIN plans p USING (plan_no) JOIN units u USING (plan_no, unit, attempt)
    JOIN cells c USING (cell_id) LEFT JOIN seeds d ON d.seed_id = s.seed_id
    WHERE p.plan_id IN (SELECT unnest($plans)) AND s.sample_id NOT IN (SELECT sample_id FROM drops)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """The kept samples of one attempt of a unit, as `FACTS` plus kind, offset, n_bytes and gpu_s, in stored order.

    `cache` is where their columns are kept.
    """

    plan_id: str
    unit: int
    attempt: int
    shard: str
    rows: pl.DataFrame
    cache: Path


def cache_key(metrics: Sequence[Metric], scorer: str = "") -> str:
    """Return 16 hex digits that change with the set of metrics, their code, and the model that scored."""
    return content_hash({"metrics": sorted(m.module for m in metrics), "code": code_hash(), "scorer": scorer})


def units_of(project: Project, plan_ids: Sequence[str], seed_ids: Sequence[str] | None, key: str) -> list[Unit]:
    """List the units of these plans that hold kept samples, with those samples, in order of plan and unit."""
    with store.read(project.catalog_path) as con:
        known = [r[0] for r in con.execute("SELECT plan_id FROM plans").fetchall()]
        for plan_id in plan_ids:
            if plan_id not in known:
                raise DistdataError(f"measure: no plan {plan_id!r} in the catalog.{nearest(plan_id, known)}")
        found = con.sql(
            f"""SELECT p.plan_id, s.unit, s.attempt, u.shard, s.sample_id, s.seed_id, s.k, c.cell, c.slice, c.scenario,
                s.outcome, d.control_axis, d.control_value, s.kind, s."offset" + u.shard_offset AS "offset", s.n_bytes,
                s.gpu_s
            {_KEPT} ORDER BY p.plan_no, s.unit, s.attempt, "offset" """,
            params={"plans": list(plan_ids)},
        ).pl()
    if seed_ids is not None:
        found = found.filter(pl.col("seed_id").is_in(list(seed_ids)))
    units = []
    for part in found.partition_by("plan_id", "unit", "attempt", "shard", maintain_order=True):
        plan_id, unit, attempt, shard = part.select("plan_id", "unit", "attempt", "shard").row(0)
        cache = project.root / "metrics" / plan_id / f"{unit_stem(unit, attempt)}-{key}.parquet"
        rows = part.drop("plan_id", "unit", "attempt", "shard")
        units.append(Unit(plan_id=plan_id, unit=unit, attempt=attempt, shard=shard, rows=rows, cache=cache))
    return units


def read_cache(unit: Unit, metrics: Sequence[Metric]) -> pl.DataFrame:
    """Read what is kept of a unit's columns; no rows where nothing is, or what is there is damaged."""
    schema = {"sample_id": pl.String(), **columns_schema(metrics)}
    if unit.cache.is_file():
        with contextlib.suppress(OSError, pl.exceptions.PolarsError):
            kept = pl.read_parquet(unit.cache)
            if dict(kept.schema) == schema:
                return kept
    return pl.DataFrame(schema=schema)


def write_cache(unit: Unit, columns: pl.DataFrame) -> None:
    """Keep a unit's columns; a project that can't be written to is measured anew each time."""
    buffer = io.BytesIO()
    columns.write_parquet(buffer)
    with contextlib.suppress(OSError, DistdataError):
        write_atomic(unit.cache, buffer.getvalue(), "metrics.unit")


def make_pieces(project: Project, units: Sequence[Unit]) -> Iterator[Piece]:
    """Add what the seeds say (axes, params) to each unit's rows, a few units at a time."""
    for group in _batches(units):
        ids = pl.concat([u.rows.select("seed_id") for u in group]).unique()
        with store.read(project.catalog_path) as con:
            pairs = ", ".join(f"'{a}', c.\"{a}\"" for a in project.config.axes)
            con.register("wanted", ids.to_arrow())
            seeds = con.sql(
                f"""SELECT s.seed_id, json_object({pairs})::VARCHAR AS axes, s.params
                FROM seeds s JOIN cells c USING (cell_id) SEMI JOIN wanted w ON s.seed_id = w.seed_id"""
            ).pl()
        for u in group:
            rows = u.rows.join(seeds, on="seed_id", how="left", maintain_order="left")
            yield Piece(plan_id=u.plan_id, unit=u.unit, attempt=u.attempt, shard=u.shard, rows=rows)


def _batches(units: Sequence[Unit]) -> Iterator[list[Unit]]:
    group: list[Unit] = []
    for unit in units:
        group.append(unit)
        if sum(u.rows.height for u in group) >= ROWS_AT_ONCE:
            yield group
            group = []
    if group:
        yield group
