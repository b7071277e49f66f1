"""Snapshots: immutable manifests of the training samples that were kept, from which students are trained.

A snapshot is the folder ``snapshots/NAME``: ``samples.parquet`` (one row per sample, with its digest and lineage) and
its event, the header. It holds no bytes of samples: those stay in their shards, and where a shard lies is asked of the
catalog when the snapshot is read, so that joining shards changes no snapshot.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from . import store
from .errors import DistdataError, nearest
from .events import append_json, list_events, read_json, read_sealed, write_sealed
from .files import disk_errors, write_atomic
from .hashing import content_hash
from .intake import define_cells
from .manifests import read_manifest
from .project import Project
from .protocol import TeacherInfo
from .register import catch_up

FILE = "samples.parquet"
COLUMNS = (
    "sample_id", "cell_id", "cell", "slice", "scenario", "seed_id", "grp", "k", "outcome", "source", "kind", "weight",
    "fleet_weight", "sha256",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Snapshot:
    """An immutable set of training samples.

    `header`: snapshot_id (16 hex digits over what it holds), name, teacher (id, version, content_hash), created,
    n_samples, n_dropped, cells (cell -> kept samples), dropped (reason -> samples). `frame`: one row per sample,
    `COLUMNS` and the place of its bytes now: shard, offset, n_bytes. Its `fleet_weight` is for training: the cell's
    fleet share over its draws, those bought after looking included, and likewise over its clean samples, which a
    training meets beside the draws; estimates have weights of their own.
    """

    name: str
    header: Mapping[str, Any]
    frame: pl.DataFrame


def make_snapshot(project: Project, info: TeacherInfo, about: Mapping[str, Any] | None = None) -> Snapshot:
    """Freeze the kept training samples of the teacher version `info` (and clean ones); the same set is the same one.

    Where the project trains by the fleet's weights, the shares that distdata.toml gives now count, and other weights
    make another snapshot; elsewhere they decide nothing, and the same samples stay the same one. A file that was lost
    or damaged is written again if it is this one's. `about` is added to what the header says of the teacher (the size
    of its vocabulary, for one).

    Raises:
        DistdataError: there is nothing to freeze, or new shares come with axes that don't fit the seeds.
    """
    by_fleet = project.config.train.weights == "fleet"
    if by_fleet:
        define_cells(project)  # their shares may have changed in distdata.toml since the last plan
    else:
        catch_up(project)
    frame, dropped = _kept(project, info)
    if frame.is_empty():
        raise DistdataError(
            f"curate: no kept training sample of teacher {info.id} {info.version} ({info.content_hash}). "
            "Buy some first: distdata plan --budget 2000samples, then distdata generate."
        )
    frame = frame.join(_digests(project, frame), on="sample_id", how="left").select(COLUMNS).sort("sample_id")
    identity = _identity(frame, info, by_fleet=by_fleet)
    known = {h["snapshot_id"]: h["name"] for h in _headers(project)}
    if identity in known:
        path = project.snapshots_dir / known[identity] / FILE
        if not _is_whole(path, identity):
            _write(path, frame.to_arrow(), identity)
        return load_snapshot(project, known[identity])
    name = f"v{len(known) + 1}"
    path = project.snapshots_dir / name / FILE
    _write(path, frame.to_arrow(), identity)
    cells = frame.group_by("cell").len().sort("cell")
    append_json(
        project.events_dir, "snapshot",
        {"snapshot_id": identity, "name": name, "teacher_hash": info.content_hash,
         "teacher": {"id": info.id, "version": info.version, "content_hash": info.content_hash, **(about or {})},
         "n_samples": frame.height, "n_dropped": sum(dropped.values()), "dropped": dropped,
         "cells": dict(cells.iter_rows()), "created": datetime.now(UTC).isoformat(timespec="seconds")},
    )  # fmt: skip
    catch_up(project)
    return load_snapshot(project, name)


def load_snapshot(project: Project, name: str | None = None) -> Snapshot:
    """Read a snapshot by name or id, the newest without one, and find where its samples lie now.

    Raises:
        DistdataError: there is no such snapshot, its file is damaged, or the catalog has lost one of its samples.
    """
    headers = _headers(project)
    if not headers:
        raise DistdataError("There is no snapshot yet. Make one of the kept samples: distdata curate")
    found = [h for h in headers if name is None or name in (h["name"], h["snapshot_id"])]
    if not found:
        raise DistdataError(f"snapshot {name!r}: there is none.{nearest(str(name), [h['name'] for h in headers])}")
    header = found[-1]
    path = project.snapshots_dir / header["name"] / FILE
    try:
        table, meta = read_sealed(path)
    except (OSError, KeyError, ValueError) as e:
        raise DistdataError(f"{path}: damaged ({e}). Restore this file from a backup, or curate again.") from None
    if meta.get("snapshot_id") != header["snapshot_id"]:
        raise DistdataError(
            f"{path}: is not the file of snapshot {header['name']}. Restore it from a backup, or curate again."
        )
    frame = pl.DataFrame(table)
    with store.read(project.catalog_path) as con:
        con.register("wanted", frame.select("sample_id").to_arrow())
        places = con.sql(
            'SELECT sample_id, shard, "offset", n_bytes FROM all_samples SEMI JOIN wanted USING (sample_id)'
        ).pl()
    placed = frame.join(places, on="sample_id", how="left", maintain_order="left")
    lost = placed.filter(pl.col("shard").is_null())
    if lost.height:
        raise DistdataError(
            f"snapshot {header['name']}: {lost.height:,} of its samples are not in the catalog, the first one is "
            f"{lost['sample_id'][0]}. Restore {project.config.project.storage} from a backup, or curate again."
        )
    return Snapshot(name=header["name"], header=header, frame=placed)


def _identity(frame: pl.DataFrame, info: TeacherInfo, *, by_fleet: bool) -> str:
    """Return the 16 hex digits over teacher and samples, with `by_fleet` over their weights too (to 12 digits)."""
    rows = frame.select(pl.concat_str("sample_id", pl.col("sha256").fill_null(""), separator=" ")).to_series().to_list()
    if by_fleet:
        weights = [f"{w:.12g}" for w in frame["fleet_weight"].cast(pl.Float64).fill_null(0.0)]
        return content_hash([info.content_hash, rows, weights])
    return content_hash([info.content_hash, rows])


def _is_whole(path: Path, identity: str) -> bool:
    try:
        _, meta = read_sealed(path)
    except (OSError, KeyError, ValueError):
        return False
    return meta.get("snapshot_id") == identity


def _headers(project: Project) -> list[dict[str, Any]]:
    return [read_json(e) for e in list_events(project.events_dir) if e.kind == "snapshot"]


def _kept(project: Project, info: TeacherInfo) -> tuple[pl.DataFrame, dict[str, int]]:
    """Read the training samples that count, and how many were dropped for which reason."""
    with store.read(project.catalog_path) as con:
        rows = con.sql(
            """SELECT w.sample_id, c.cell_id, w.cell, w.slice, w.scenario, w.seed_id, s.grp, w.k::INTEGER AS k,
                w.outcome, CASE WHEN w.purpose = 'clean' THEN 'clean' ELSE w.source END AS source, w.kind,
                1.0::DOUBLE AS weight, w.kept, w.drop_reason,
                c.fleet_share / count(*) FILTER (w.kept) OVER (PARTITION BY cell, w.purpose = 'clean') AS fleet_weight
            FROM samples_weighted w JOIN cells c USING (cell) JOIN seeds s USING (seed_id)
            WHERE w.split = 'train' AND (w.purpose = 'clean' OR w.teacher_hash = $teacher)""",
            params={"teacher": info.content_hash},
        ).pl()
    gone = rows.filter(~pl.col("kept")).group_by("drop_reason").len().sort("drop_reason")
    return rows.filter("kept").drop("kept", "drop_reason"), dict(gone.iter_rows())


def _digests(project: Project, frame: pl.DataFrame) -> pl.DataFrame:
    """Read the samples' digests [sample_id, sha256] from the manifests of their units."""
    with store.read(project.catalog_path) as con:
        con.register("wanted", frame.select("sample_id").to_arrow())
        names = con.execute(
            """SELECT DISTINCT manifest FROM units JOIN samples USING (plan_no, unit, attempt)
            SEMI JOIN wanted USING (sample_id) ORDER BY 1"""
        ).fetchall()
    parts = [pl.DataFrame(read_manifest(project.storage, n)[0].select(["sample_id", "sha256"])) for (n,) in names]
    return pl.concat(parts).drop_nulls().unique("sample_id", keep="last", maintain_order=True)


def _write(path: Path, table: pa.Table, identity: str) -> None:
    buffer = io.BytesIO()
    write_sealed(table, {"snapshot_id": identity}, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors(path):
        write_atomic(path, buffer.getvalue(), "snapshot")
