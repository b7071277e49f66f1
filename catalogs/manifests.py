"""Manifests: one Parquet row per draw of a unit; the file's appearance is the unit's commit."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from .errors import DistdataError
from .events import read_sealed, write_sealed
from .files import disk_errors
from .storage import Storage

SCHEMA_VERSION = 1

ROW_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("status", pa.string()),  # ok | failed
        ("failure", pa.string()),  # error | timeout | refused | invalid
        ("reason", pa.string()),
        ("tries", pa.int32()),
        ("seed_id", pa.string()),
        ("k", pa.int16()),
        ("n_k", pa.int16()),
        ("cell", pa.string()),
        ("split", pa.string()),
        ("source", pa.string()),
        ("purpose", pa.string()),
        ("decision_point", pa.bool_()),
        ("pi", pa.float64()),
        ("weight", pa.float64()),
        ("rng_seed", pa.uint64()),
        ("control_axis", pa.string()),
        ("control_value", pa.float64()),
        ("kind", pa.string()),
        ("outcome", pa.string()),
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("n_bytes", pa.int64()),
        ("sha256", pa.string()),
        ("gpu_s", pa.float64()),  # seconds of teacher time behind the sample
        ("usd", pa.float64()),  # price of the sample
        ("paid_gpu_s", pa.float64()),  # what this attempt took, failed tries included, salvaged draws excluded
        ("paid_usd", pa.float64()),
        ("in_doubt_usd", pa.float64()),  # asked for before a crash, answer unknown
        ("plan_id", pa.string()),
        ("teacher_hash", pa.string()),
        ("schema_version", pa.int16()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSummary:
    """What a manifest says of its unit as a whole.

    `attempt` 0 is the planned run; later attempts ask failed draws again, or with `replaces` stand in for
    everything that earlier attempts of the unit delivered (a repair). `shard` is null when no draw is ok.
    """

    plan_id: str
    unit: int
    attempt: int
    replaces: bool
    manifest: str
    shard: str | None
    shard_bytes: int
    shard_digest: str | None
    n_ok: int
    n_failed: int
    gpu_s: float
    usd: float
    in_doubt_usd: float
    wall_s: float


def manifest_name(plan_id: str, unit: int, attempt: int) -> str:
    """Return the storage name of a unit's manifest."""
    return f"{plan_id}/{unit_stem(unit, attempt)}.parquet"


def unit_stem(unit: int, attempt: int) -> str:
    """Return the common beginning of a unit's file names: ``unit-000012``, ``unit-000012-r1``."""
    return f"unit-{unit:06d}" + (f"-r{attempt}" if attempt else "")


def attempt_order(name: str) -> tuple[str, int]:
    """Return the sort key of a manifest's name that puts a unit's attempts in the order in which they were made."""
    stem, _, attempt = name.removesuffix(".parquet").partition("-r")
    return stem, int(attempt) if attempt.isdigit() else 0


def write_manifest(storage: Storage, columns: dict[str, Any], summary: UnitSummary) -> None:
    """Commit a unit: write its manifest durably. The first committer wins; raises FileExistsError for a second.

    `columns` has every column of `ROW_SCHEMA`, as an array or list with one value per draw, or as one value
    for all of them.
    """
    n = summary.n_ok + summary.n_failed
    arrays = [_array(columns[f.name], f.type, n) for f in ROW_SCHEMA]
    table = pa.Table.from_arrays(arrays, schema=ROW_SCHEMA)
    path = storage.build_path(summary.manifest)
    try:
        with disk_errors(path), open(path, "wb") as f:
            write_sealed(table, asdict(summary), f)
            storage.commit(f, path, summary.manifest, "manifest", exclusive=True)
    finally:
        path.unlink(missing_ok=True)


def _array(values: Any, kind: pa.DataType, n: int) -> Any:
    if isinstance(values, pa.ChunkedArray):
        return values.cast(kind)
    if isinstance(values, list):
        return pa.array(values, kind)
    return pa.repeat(pa.scalar(values, kind), n)


def read_manifest(storage: Storage, name: str) -> tuple[pa.Table, UnitSummary]:
    """Read a manifest back; raises DistdataError when it is damaged."""
    try:
        with storage.open(name) as f:
            # whole in memory first: Arrow's own threads must not read through a Python file
            table, meta = read_sealed(pa.BufferReader(f.read()))
        return table, UnitSummary(**meta)
    except (OSError, KeyError, ValueError, TypeError) as e:
        raise DistdataError(
            f"{storage.address(name)}: this manifest is damaged or missing ({e}). Delete it if it is there and run "
            "`distdata generate`: the unit is then made again."
        ) from None
