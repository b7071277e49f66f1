"""Measure one piece of work: the samples of one unit, read from its shard one after another.

Both engines call this; a piece needs no catalog, so a worker on another machine can have it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import polars as pl

from ..catalogs.codec import decode_member
from ..catalogs.errors import DistdataError
from ..catalogs.register_ingest import INGEST_PREFIX
from ..catalogs.samples import read_stored
from ..catalogs.shards import ShardReader
from ..catalogs.storage import Storage
from .metric_table import Metric, columns_schema
from .metrics.seed_view import SeedView

READ_WHOLE_BYTES = 1 << 17
"""Samples up to here are read in one go: jumping over what isn't wanted costs more than reading it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Samples of one attempt of a unit, to be measured together.

    `rows` has sample_id, seed_id, k, kind, scenario, axes (JSON), params (JSON), outcome, control_axis, control_value,
    gpu_s, offset and n_bytes, in the order in which they lie in `shard`.
    """

    plan_id: str
    unit: int
    attempt: int
    shard: str
    rows: pl.DataFrame


def measure_piece(piece: Piece, storage: Storage, metrics: Sequence[Metric]) -> pl.DataFrame:
    """Return sample_id and the columns of `metrics` for every row of the piece, in its order.

    Raises DistdataError for a sample that can't be read, lacks a member, or is not what a metric expects.
    """
    schema = {"sample_id": pl.String(), **columns_schema(metrics)}
    rows = []
    for row, members in read_piece(piece, storage, metrics):
        values = {"sample_id": row["sample_id"]}
        for metric in metrics:
            values |= _values(metric, row, members, piece, storage)
        rows.append(values)
    return pl.DataFrame(rows, schema=schema)


def read_piece(
    piece: Piece, storage: Storage, metrics: Sequence[Metric]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield every row with the decoded members that these metrics read; others are not decoded, large ones not read.

    A piece whose metrics read no member is answered without opening its shard.
    """
    with ExitStack() as stack:
        reader: ShardReader | None = None
        for row in piece.rows.iter_rows(named=True):
            wanted = wanted_members(metrics, row["kind"])
            if not wanted:
                yield row, {}
                continue
            try:
                if reader is None and storage.root is not None:
                    reader = stack.enter_context(ShardReader(storage.root / piece.shard))
                raw = _raw_members(reader, storage, piece.shard, row, wanted)
                yield row, {name: decode_member(name, data) for name, data in raw.items()}
            except (DistdataError, ValueError) as e:
                raise damaged(piece, storage, row["sample_id"], e) from None


def wanted_members(metrics: Sequence[Metric], kind: str) -> frozenset[str]:
    """Return the members that these metrics read of a record of this kind, whether it must have them or may."""
    return frozenset(n for m in metrics if m.is_for(kind) for n in (*m.members, *m.optional))


def _raw_members(
    reader: ShardReader | None, storage: Storage, shard: str, row: Mapping[str, Any], wanted: frozenset[str]
) -> dict[str, bytes]:
    offset, n_bytes = row["offset"], row["n_bytes"]
    if reader is None:
        found = read_stored(storage, shard, offset, n_bytes)
    elif n_bytes <= READ_WHOLE_BYTES:
        found = reader.read(offset, n_bytes)
    else:
        ranges = reader.ranges(offset, n_bytes)
        return {name: reader.read_range(at) for name, at in ranges.items() if name in wanted}
    return {name: data for name, data in found.items() if name in wanted}


def _values(
    metric: Metric, row: Mapping[str, Any], members: Mapping[str, Any], piece: Piece, storage: Storage
) -> dict[str, Any]:
    if not metric.is_for(row["kind"]) or metric.step is None:
        return dict.fromkeys(metric.schema)
    check_members(metric, row, members)
    try:
        given = metric.step(members, seed_view(row))
        return {column: given[column] for column in metric.schema}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as e:
        raise not_as_expected(metric, row, storage.address(piece.shard), e) from e


def check_members(metric: Metric, row: Mapping[str, Any], members: Mapping[str, Any]) -> None:
    """Raise DistdataError when a sample lacks a member that the metric must read."""
    lacking = [n for n in metric.members if n not in members]
    if lacking:
        raise DistdataError(
            f"metric {metric.names[0]}: sample {row['sample_id']} (kind {row['kind']}) has no {', '.join(lacking)}. "
            "Leave the metric out, or have the teacher put that member into its draws."
        )


def not_as_expected(metric: Metric, row: Mapping[str, Any], address: str, e: Exception) -> DistdataError:
    """Say that a sample's members are there and well-formed, but not what the metric works on."""
    return DistdataError(
        f"metric {metric.names[0]}: sample {row['sample_id']} in {address} can't be measured "
        f"({type(e).__name__}: {e}). Its members or its seed's params are not what the metric is made for; leave the "
        "metric out, or correct the teacher."
    )


def damaged(piece: Piece, storage: Storage, sample_id: str, e: Exception) -> DistdataError:
    """Say that a sample can't be read back, and how it comes back."""
    said = str(e).partition(" Run `distdata")[0].rstrip(".")
    ingested = piece.plan_id.startswith(INGEST_PREFIX)
    again = f"Make it again: distdata generate --repair --plan {piece.plan_id}"
    way = "Restore that shard from a backup." if ingested else again
    return DistdataError(
        f"sample {sample_id} of plan {piece.plan_id}, unit {piece.unit}, in {storage.address(piece.shard)} is damaged: "
        f"{said}. {way}"
    )


def seed_view(row: Mapping[str, Any]) -> SeedView:
    """Build what a metric is told of a sample from its row (see `Piece`)."""
    return SeedView(
        seed_id=row["seed_id"],
        k=row["k"],
        axes=parse_axes(row["axes"]),
        scenario=row["scenario"],
        params=json.loads(row["params"]) if row["params"] else {},
        outcome=row["outcome"],
        control_axis=row["control_axis"],
        control_value=row["control_value"],
        gpu_s=row["gpu_s"],
    )


@lru_cache(maxsize=65536)
def parse_axes(text: str) -> Mapping[str, str]:
    """Read a cell's axis values from JSON; the result is shared, so nobody may change it."""
    return MappingProxyType(json.loads(text))
