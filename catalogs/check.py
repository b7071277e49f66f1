"""Compare what is on disk with what was committed, byte for byte."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow.compute as pc

from . import store
from .manifests import read_manifest
from .project import Project
from .register_ingest import INGEST_PREFIX
from .shards import Entry, verify_entries
from .storage import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitDamage:
    """One shard that is not what its manifest says: which samples, and what is wrong with the first."""

    plan_id: str
    unit: int
    shard: str
    sample_ids: tuple[str, ...]
    text: str

    @property
    def n_draws(self) -> int:
        """How many samples are lost."""
        return len(self.sample_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """What `check_project` looked at and found."""

    n_units: int
    n_samples: int
    n_bytes: int
    damaged: list[UnitDamage]
    unreferenced: list[str]

    @property
    def advice(self) -> str:
        """Say how what is damaged comes back: draws can be made again, what was ingested can't."""
        ingested = [d for d in self.damaged if d.plan_id.startswith(INGEST_PREFIX)]
        ways = []
        if len(ingested) < len(self.damaged):
            ways.append("Run `distdata generate --repair` to make just these draws again.")
        if ingested:
            ways.append(f"Restore the shards of ingested samples from a backup, {ingested[0].shard} the first.")
        return " ".join(ways)


def check_project(project: Project) -> CheckResult:
    """Verify every registered sample of every plan against the digest in its manifest, and look for strays."""
    with store.read(project.catalog_path) as con:
        plans = [r[0] for r in con.execute("SELECT plan_id FROM plans ORDER BY plan_no").fetchall()]
        totals = store.first(
            con.execute(
                """SELECT count(*), coalesce(sum(n_ok), 0),
                    (SELECT coalesce(sum(b), 0) FROM (SELECT DISTINCT shard, shard_bytes AS b FROM units) one)
                FROM units WHERE shard IS NOT NULL"""
            )
        )
        used = {r[0] for r in con.execute("SELECT DISTINCT shard FROM units WHERE shard IS NOT NULL").fetchall()}
    damaged = [d for plan_id in plans for d in damaged_units(project, plan_id)]
    files = [f.name for plan_id in plans for f in project.storage.list(plan_id) if f.name.endswith(".tar")]
    n_units, n_samples, n_bytes = totals or (0, 0, 0)
    return CheckResult(
        n_units=n_units,
        n_samples=n_samples,
        n_bytes=n_bytes,
        damaged=damaged,
        unreferenced=[project.storage.address(name) for name in files if name not in used],
    )


def damaged_units(project: Project, plan_id: str) -> list[UnitDamage]:
    """List the units of a plan whose shard is missing, truncated or altered, with the samples that are lost."""
    with store.read(project.catalog_path) as con:
        rows = con.execute(
            """SELECT unit, manifest, shard, shard_offset FROM units JOIN plans USING (plan_no)
            WHERE plan_id = ? AND shard IS NOT NULL ORDER BY unit, attempt""",
            [plan_id],
        ).fetchall()
    found = []
    for unit, manifest, shard, shard_offset in rows:
        entries = manifest_entries(project.storage, manifest, shard_offset)
        bad = damaged_entries(project.storage, shard, entries)
        if bad:
            key, text = next(iter(bad.items()))
            found.append(
                UnitDamage(
                    plan_id=plan_id,
                    unit=unit,
                    shard=project.storage.address(shard),
                    sample_ids=tuple(bad),
                    text=f"{len(bad)} sample(s) lost, {key} the first: {text}",
                )
            )
    return found


def manifest_entries(storage: Storage, manifest: str, shard_offset: int) -> list[Entry]:
    """List the samples of a manifest where they lie now; `shard_offset` is what compaction moved them by."""
    table, _ = read_manifest(storage, manifest)
    rows = table.filter(pc.equal(table["status"], "ok")).select(["sample_id", "offset", "n_bytes", "sha256"])
    return [
        Entry(key=key, offset=offset + shard_offset, n_bytes=n_bytes, sha256=sha256)
        for key, offset, n_bytes, sha256 in zip(*(c.to_pylist() for c in rows.columns), strict=True)
    ]


def damaged_entries(storage: Storage, shard: str, entries: list[Entry]) -> dict[str, str]:
    """Return what is wrong with each damaged sample of a shard: sample id -> reason."""
    if storage.root is not None:
        return {d.key: d.reason for d in verify_entries(storage.root / shard, entries)}
    try:
        with storage.open(shard) as f:
            return {e.key: reason for e in entries if (reason := _remote_damage(f, e))}
    except OSError as e:
        return {entry.key: f"unreadable file: {e}" for entry in entries}


def _remote_damage(f: BinaryIO, entry: Entry) -> str | None:
    f.seek(entry.offset)
    data = f.read(entry.n_bytes)
    if len(data) < entry.n_bytes:
        return f"truncated: ends at byte {entry.offset + entry.n_bytes:,}, the file at {entry.offset + len(data):,}"
    got = hashlib.sha256(data).hexdigest()
    return None if got == entry.sha256 else f"altered: sha256 {got[:16]}, want {entry.sha256[:16]}"
