"""Measure the samples of plans: metric columns from their shards, in this process or on Ray.

What was measured is kept beside the catalog (see `units`), so a second call with the same metrics opens no shard.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal, Protocol

import polars as pl

from ..catalogs.errors import DistdataError
from ..catalogs.project import Project
from .metric_table import FACTS, METRICS, Metric, columns_of, columns_schema, defaults_for, find_metrics
from .pieces import measure_piece
from .units import Unit, cache_key, make_pieces, read_cache, units_of, write_cache

__all__ = ["METRICS", "Reporter", "columns_of", "defaults_for", "measure"]

Engine = Literal["auto", "inprocess", "ray"]
Numbered = tuple[int, pl.DataFrame]

INPROCESS_BELOW_S = 60.0
PROBE_SAMPLES = 32
SAY_EVERY_S = 5.0


class Reporter(Protocol):
    """Who is told how measuring goes."""

    def note(self, text: str) -> None:
        """Hear something worth a line."""


def measure(
    project: Project,
    plan_ids: Sequence[str],
    metrics: Sequence[str],
    *,
    reporter: Reporter | None = None,
    engine: Engine = "auto",
    seed_ids: Sequence[str] | None = None,
) -> pl.DataFrame:
    """Return one row per kept sample of these plans (of these seeds only): `FACTS`, then the metrics' columns.

    Dropped samples are left out. A metric that is not for a sample's kind gives nulls there. Rows are in the order of
    plan, unit and place in the shard. ``auto`` goes to Ray when the work would take more than a minute here.

    Raises:
        DistdataError: an unknown plan or metric, a metric for none of the plans' records or that needs a student's
            scores, a damaged sample (which it names), a sample that lacks what a metric reads.
    """
    chosen = find_metrics(metrics)
    unscored = [m.names[0] for m in chosen if m.scored is not None]
    if unscored:
        raise DistdataError(f"metric {unscored[0]}: compares two models, so it is measured on pairs (in a gate).")

    return measure_by(project, plan_ids, chosen, reporter=reporter, engine=engine, seed_ids=seed_ids)


def measure_by(
    project: Project,
    plan_ids: Sequence[str],
    metrics: Sequence[Metric],
    *,
    reporter: Reporter | None,
    engine: Engine,
    seed_ids: Sequence[str] | None,
) -> pl.DataFrame:
    """Do as `measure` by metrics that were found already."""

    def work(units: Sequence[Unit]) -> Iterator[Numbered]:
        return _measured(project, units, metrics, engine, reporter)

    return fill(units_of(project, plan_ids, seed_ids, cache_key(metrics)), metrics, work)


def fill(
    units: Sequence[Unit], metrics: Sequence[Metric], work: Callable[[Sequence[Unit]], Iterator[Numbered]]
) -> pl.DataFrame:
    """Return the columns of all units' samples: those that were kept from before, and `work` for what is missing."""
    _check_kinds(metrics, units)
    schema = {**FACTS, **columns_schema(metrics)}
    if not units:
        return pl.DataFrame(schema=schema)
    if not metrics:
        return pl.concat([u.rows.select(*schema) for u in units])
    frames = [read_cache(unit, metrics) for unit in units]
    missing = []
    for at, unit in enumerate(units):
        lacking = unit.rows.join(frames[at], on="sample_id", how="anti", maintain_order="left")
        if lacking.height:
            missing.append((at, replace(unit, rows=lacking)))
    if missing:
        for number, fresh in work([unit for _, unit in missing]):
            at = missing[number][0]
            frames[at] = pl.concat([frames[at], fresh])
            write_cache(units[at], frames[at])
    joined = zip(units, frames, strict=True)
    return pl.concat(
        [u.rows.join(f, on="sample_id", how="left", maintain_order="left").select(*schema) for u, f in joined]
    )


def _check_kinds(metrics: Sequence[Metric], units: Sequence[Unit]) -> None:
    kinds = sorted({k for u in units for k in u.rows["kind"].unique().to_list()})
    for metric in metrics:
        if kinds and not any(metric.is_for(kind) for kind in kinds):
            fitting = dict.fromkeys(n for kind in kinds for n in defaults_for(kind))
            raise DistdataError(
                f"metric {metric.names[0]}: made for records of kind {', '.join(metric.kinds)}; these plans hold "
                f"{', '.join(kinds)}. For those there are {', '.join(fitting)}."
            )


def _measured(
    project: Project, units: Sequence[Unit], metrics: Sequence[Metric], engine: Engine, reporter: Reporter | None
) -> Iterator[Numbered]:
    """Yield each unit's number and columns, in any order, measured here or on Ray."""
    total = sum(u.rows.height for u in units)
    on_ray = engine == "ray"
    if engine == "auto" and (os.cpu_count() or 1) > 1:
        on_ray = _probe(project, units[0], metrics) * total > INPROCESS_BELOW_S
    where = "on Ray" if on_ray else "in this process"
    note(reporter, f"measuring {total:,} samples in {len(units):,} units, {where}")
    pieces = make_pieces(project, units)
    if on_ray:
        from .ray_stage import measure_on_ray

        results = measure_on_ray(project, pieces, metrics)
    else:
        results = enumerate(measure_piece(piece, project.storage, metrics) for piece in pieces)
    yield from told(results, total, reporter)


def told(results: Iterable[Numbered], total: int, reporter: Reporter | None) -> Iterator[Numbered]:
    """Pass results on and tell the reporter every few seconds how many samples they are."""
    done, said = 0, time.monotonic()
    for number, frame in results:
        yield number, frame
        done += frame.height
        if time.monotonic() - said >= SAY_EVERY_S:
            said = time.monotonic()
            note(reporter, f"  {done:,} of {total:,} samples measured")


def _probe(project: Project, unit: Unit, metrics: Sequence[Metric]) -> float:
    """Return the seconds that one sample takes: by a few of a unit, after one that may have loaded things."""
    n = min(PROBE_SAMPLES, unit.rows.height)
    piece = next(make_pieces(project, [replace(unit, rows=unit.rows.head(n))]))
    measure_piece(replace(piece, rows=piece.rows.head(1)), project.storage, metrics)
    start = time.perf_counter()
    measure_piece(piece, project.storage, metrics)
    return (time.perf_counter() - start) / n


def note(reporter: Reporter | None, text: str) -> None:
    """Tell a reporter, where there is one."""
    if reporter is not None:
        reporter.note(text)
