"""Write taken rows as units: a shard, then the manifest whose appearance is the unit's commit, as for bought draws."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from ...catalogs.files import disk_errors
from ...catalogs.manifests import SCHEMA_VERSION, UnitSummary, manifest_name, read_manifest, unit_stem, write_manifest
from ...catalogs.project import Project
from ...catalogs.shards import Shard, ShardWriter
from ..run_unit import shard_digest
from .conditions import SeedFacts

_UNIT = re.compile(r"/unit-(\d+)(?:-[0-9a-f]{16})?\.(?:tar|parquet)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenRow:
    """One sample to be written: its id, its seed, its number there, its label, and its encoded members in order."""

    sample_id: str
    seed: SeedFacts
    k: int
    outcome: str | None
    members: Sequence[tuple[str, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitFacts:
    """What all samples of an ingest share."""

    plan_id: str
    source: str
    purpose: str
    kind: str
    teacher_hash: str


def write_unit(project: Project, facts: UnitFacts, unit: int, rows: Sequence[TakenRow]) -> None:
    """Commit the rows as unit number `unit`; a unit that an interrupted ingest left is kept where it holds them."""
    storage = project.storage
    name = manifest_name(facts.plan_id, unit, 0)
    if storage.exists(name):
        table, _ = read_manifest(storage, name)
        there = list(zip(table["sample_id"].to_pylist(), table["k"].to_pylist(), strict=True))
        if there == [(r.sample_id, r.k) for r in rows]:
            return
        storage.remove(name)  # nothing refers to it: its ingest has no event yet
    shard_name, shard = _write_shard(project, facts, unit, rows)
    summary = UnitSummary(
        plan_id=facts.plan_id, unit=unit, attempt=0, replaces=False, manifest=name, shard=shard_name,
        shard_bytes=shard.n_bytes, shard_digest=shard_digest(shard), n_ok=len(rows), n_failed=0, gpu_s=0.0, usd=0.0,
        in_doubt_usd=0.0, wall_s=0.0,
    )  # fmt: skip
    write_manifest(storage, _columns(facts, rows, shard_name, shard), summary)


def _write_shard(project: Project, facts: UnitFacts, unit: int, rows: Sequence[TakenRow]) -> tuple[str, Shard]:
    storage = project.storage
    stem = f"{facts.plan_id}/{unit_stem(unit, 0)}"
    path = storage.build_path(f"{stem}.tar")
    try:
        with disk_errors(path), open(path, "wb") as f:
            writer = ShardWriter(f, digests="samples")
            for row in rows:
                writer.add(row.sample_id, row.members)
            shard = writer.finish()
            name = f"{stem}-{shard_digest(shard)}.tar"
            storage.commit(f, path, name, "shard")
    finally:
        path.unlink(missing_ok=True)
    return name, shard


def _columns(facts: UnitFacts, rows: Sequence[TakenRow], shard_name: str, shard: Shard) -> dict[str, Any]:
    """Return the manifest's columns: no price, since nobody paid here, and no weight, which a plan decides."""
    return {
        "sample_id": [r.sample_id for r in rows],
        "status": "ok",
        "failure": None,
        "reason": None,
        "tries": 0,
        "seed_id": [r.seed.seed_id for r in rows],
        "k": [r.k for r in rows],
        "n_k": [r.seed.k_seed for r in rows],
        "cell": [r.seed.cell for r in rows],
        "split": [r.seed.split for r in rows],
        "source": facts.source,
        "purpose": facts.purpose,
        "decision_point": [r.seed.decision_point for r in rows],
        "pi": [1.0 if r.seed.in_frame and facts.purpose == "byproduct" else 0.0 for r in rows],
        "weight": 0.0,
        "rng_seed": 0,
        "control_axis": [r.seed.control_axis for r in rows],
        "control_value": [r.seed.control_value for r in rows],
        "kind": facts.kind,
        "outcome": [r.outcome for r in rows],
        "shard": shard_name,
        "offset": [e.offset for e in shard.entries],
        "n_bytes": [e.n_bytes for e in shard.entries],
        "sha256": [e.sha256 for e in shard.entries],
        "gpu_s": None,
        "usd": None,
        "paid_gpu_s": 0.0,
        "paid_usd": 0.0,
        "in_doubt_usd": 0.0,
        "plan_id": facts.plan_id,
        "teacher_hash": facts.teacher_hash,
        "schema_version": SCHEMA_VERSION,
    }


def remove_beyond(project: Project, plan_id: str, n_units: int) -> None:
    """Remove what interrupted ingests left in the folder besides the first `n_units` units and their shards."""
    storage = project.storage
    storage.clean_temporaries(plan_id)
    used: set[str] = set()
    for unit in range(n_units):
        name = manifest_name(plan_id, unit, 0)
        table, _ = read_manifest(storage, name)
        used |= {name, *pc.unique(table["shard"]).to_pylist()}
    for file in storage.list(plan_id):
        if _UNIT.search(file.name) and file.name not in used:
            storage.remove(file.name)
