"""Compaction of a project: join the small shards of its plans, move the catalog over, remove the old files."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pyarrow as pa

from . import store
from .check import damaged_entries, manifest_entries
from .compact import TARGET_BYTES, Group, ShardPart, join_shards, plan_compaction
from .effects import effect
from .errors import DistdataError
from .events import append_table
from .files import disk_errors, exclusive_lock
from .hashing import bytes_hash
from .project import Project
from .register import catch_up

_SHARD_TAIL = re.compile(r"-[0-9a-f]{16}\.tar$")
_MOVES = pa.schema(
    [
        ("manifest", pa.string()),
        ("new_shard", pa.string()),
        ("delta", pa.int64()),
        ("new_bytes", pa.int64()),
        ("new_digest", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactResult:
    """How many shards became how many, and the bytes that were copied."""

    n_before: int
    n_after: int
    n_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unit:
    manifest: str
    shard: str
    shard_offset: int
    n_bytes: int
    digest: str


def compact_project(project: Project, target_bytes: int = TARGET_BYTES, *, dry_run: bool = False) -> CompactResult:
    """Join neighbouring small shards of each plan into ones of about `target_bytes`.

    Every sample is checked against its digest before it is copied. The new shard is complete and the event
    that names it durable before an old shard is removed, so a crash at any point loses nothing; running it
    again finishes the job.

    Raises:
        DistdataError: a shard is damaged, generation is running, or the storage is no local folder.
    """
    root = project.storage.root
    if root is None:
        raise DistdataError(
            f"compact: works on a local storage folder; this project's is {project.storage.location}. Set [generate] "
            "shard_mb so that shards come out large in the first place."
        )
    busy = f"{project.root}: process {{holder}} is generating here; compact when it is done."
    with exclusive_lock(project.spool_dir / "generate.lock", busy):
        catch_up(project)
        remove_replaced(project)
        before = after = n_bytes = 0
        for plan_id, units in _units_by_plan(project).items():
            project.storage.clean_temporaries(plan_id)
            shards = {u.shard: u for u in units}
            parts = [ShardPart(path=root / u.shard, n_bytes=u.n_bytes) for u in shards.values()]
            groups = plan_compaction(parts, target_bytes)
            before += len(shards)
            after += len(shards) - sum(len(g.parts) for g in groups) + len(groups)
            n_bytes += sum(g.n_bytes for g in groups)
            if dry_run or not groups:
                continue
            moves = [move for g in groups for move in _join(project, plan_id, g, units)]
            append_table(project.events_dir, "compact", pa.Table.from_pylist(moves, _MOVES), {"plan_id": plan_id})
            catch_up(project)
            remove_replaced(project)
    return CompactResult(n_before=before, n_after=after, n_bytes=n_bytes)


def _units_by_plan(project: Project) -> dict[str, list[_Unit]]:
    with store.read(project.catalog_path) as con:
        rows = con.execute(
            """SELECT plan_id, manifest, shard, shard_offset, shard_bytes, shard_digest
            FROM units JOIN plans USING (plan_no) WHERE shard IS NOT NULL ORDER BY plan_no, unit, attempt"""
        ).fetchall()
    plans: dict[str, list[_Unit]] = {}
    for plan_id, manifest, shard, shard_offset, n_bytes, digest in rows:
        unit = _Unit(manifest=manifest, shard=shard, shard_offset=shard_offset, n_bytes=n_bytes, digest=digest)
        plans.setdefault(plan_id, []).append(unit)
    return plans


def _join(project: Project, plan_id: str, group: Group, units: list[_Unit]) -> list[dict[str, object]]:
    """Write one joined shard and return where each manifest's samples lie in it."""
    root, storage = project.storage.root, project.storage
    assert root is not None, "checked by the caller"
    names = [str(p.path.relative_to(root)) for p in group.parts]
    inside = [u for u in units if u.shard in names]
    for u in inside:
        damaged = damaged_entries(storage, u.shard, manifest_entries(storage, u.manifest, u.shard_offset))
        if damaged:
            key, reason = next(iter(damaged.items()))
            raise DistdataError(
                f"{storage.address(u.shard)}: sample {key} is damaged ({reason}), so it was not joined. Run "
                "`distdata generate --repair` first; nothing was changed."
            )
    digest = bytes_hash(u.digest.encode() for u in inside)
    name = f"{plan_id}/pack-{digest}.tar"
    path = storage.build_path(name)
    try:
        with disk_errors(path), open(path, "wb") as f:
            joined = join_shards(group.parts, f)
            storage.commit(f, path, name, "pack")
    finally:
        path.unlink(missing_ok=True)
    delta = dict(zip(names, joined.deltas, strict=True))
    return [
        {
            "manifest": u.manifest, "new_shard": name, "delta": u.shard_offset + delta[u.shard],
            "new_bytes": joined.n_bytes, "new_digest": digest,
        }
        for u in inside
    ]  # fmt: skip


def remove_replaced(project: Project) -> None:
    """Remove shards that a joined shard or a repair stands in for, and joined ones that no event names.

    Call with the catalog caught up and `generate.lock` held. A unit's shard without a registered manifest
    stays: a worker may be about to commit it.
    """
    with store.read(project.catalog_path) as con:
        rows = con.execute("SELECT manifest, shard FROM units").fetchall()
        plans = [r[0] for r in con.execute("SELECT plan_id FROM plans").fetchall()]
    used = {shard for _, shard in rows}
    stems = {manifest.removesuffix(".parquet") for manifest, _ in rows}
    for plan_id in plans:
        for f in project.storage.list(plan_id):
            stem = _SHARD_TAIL.sub("", f.name)
            replaced = stem in stems or stem == f"{plan_id}/pack"
            if stem != f.name and replaced and f.name not in used:
                project.storage.remove(f.name)
                effect("pack.remove")
