"""Lay one record kind out as WebDataset shards: the catalog's own shards where every sample in them counts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..catalogs.effects import effect
from ..catalogs.errors import DistdataError
from ..catalogs.files import sync_file
from ..catalogs.project import Project
from ..catalogs.shards import ShardWriter
from ..catalogs.ustar import END_OF_ARCHIVE
from .export_arrow import feature, nested_lists
from .export_parquet import Tick
from .export_read import Choice, ExportUnit, read_facts, read_samples
from .export_types import IMAGE_ENDINGS, NPY, ColumnType, Fields, Plain, Tensor, ending_of

METADATA_FOLDER = "metadata"
_TYPED_ENDINGS = frozenset(["npy", "npz", "json", "txt", "bin"]) | IMAGE_ENDINGS


def write_webdataset(
    project: Project, choice: Choice, kind: str, data: Path, metadata: Path, stem: str, tick: Tick
) -> list[Path]:
    """Write the shards of `kind` as ``{stem}-00000.tar`` and its samples' facts as ``{stem}.parquet``.

    A shard all of whose samples are exported is linked (or copied, where the file system can't link); of
    one that also holds others, such as samples that a repair replaced, only the exported ones are written.

    Raises DistdataError when a shard can't be read or the catalog has changed.
    """
    shards: dict[str, list[ExportUnit]] = {}
    for unit in choice.of_kind(kind):
        shards.setdefault(unit.shard, []).append(unit)
    paths: dict[str, Path] = {}
    for i, (shard, units) in enumerate(shards.items()):
        paths[shard] = data / f"{stem}-{i:05d}.tar"
        if _whole(project, units):
            _link(project, shard, paths[shard])
        else:
            _rewrite(project, choice, units, paths[shard])
        effect("export.file")
        tick(sum(u.n_samples for u in units))
    metadata.mkdir(exist_ok=True)
    facts_path = metadata / f"{stem}.parquet"
    schema = pa.schema([*choice.fact_fields, pa.field("file", pa.string())])
    with open(facts_path, "wb") as f:
        with pq.ParquetWriter(f, schema, compression="zstd") as writer:
            for unit, rows in read_facts(project, choice, choice.of_kind(kind)):
                name = paths[unit.shard].name
                writer.write_table(pa.Table.from_pylist([{**row, "file": name} for row in rows], schema))
        sync_file(f)
    return [*paths.values(), facts_path]


def _whole(project: Project, units: Sequence[ExportUnit]) -> bool:
    """Tell whether the exported samples are all that a shard's file holds."""
    n_bytes = sum(u.n_bytes for u in units) + len(END_OF_ARCHIVE)
    root = project.storage.root
    return n_bytes == (units[0].shard_bytes if root is None else (root / units[0].shard).stat().st_size)


def _link(project: Project, shard: str, path: Path) -> None:
    root = project.storage.root
    if root is not None:
        try:
            os.link(root / shard, path)
            return
        except OSError:
            pass  # another file system, or one without links
    with project.storage.open(shard) as source, open(path, "wb") as f:
        shutil.copyfileobj(source, f, 1 << 20)
        sync_file(f)


def _rewrite(project: Project, choice: Choice, units: Sequence[ExportUnit], path: Path) -> None:
    with open(path, "wb") as f:
        writer = ShardWriter(f, digests="none")
        for sample in read_samples(project, choice, units, check=False):
            writer.add(sample.facts["sample_id"], list(sample.members.items()))
        writer.finish()
        sync_file(f)


def webdataset_features(kind: str, members: dict[str, ColumnType]) -> dict[str, Any] | None:
    """Return what the card declares as a kind's features, or None to let `datasets` look for itself.

    It looks at the first five samples only, and at endings that it decodes in its own way (videos, class
    numbers) better than a declaration could say.

    Raises DistdataError for arrays that its loader has no type for.
    """
    for name, column in members.items():
        if column == NPY or (isinstance(column, Fields) and any(part == NPY for _, part in column.parts)):
            raise DistdataError(
                f"export: member {name} of kind {kind} holds arrays of a dtype that Arrow has not, or whose dtype or "
                "number of dimensions differs between samples; datasets can't load that from WebDataset shards. Use "
                "--layout parquet, which stores them as the bytes of .npy files."
            )
    if any(ending_of(name) not in _TYPED_ENDINGS for name in members):
        return None
    text = {"dtype": "string", "_type": "Value"}
    return {"__key__": text, "__url__": text, **{name: _as_decoded(column) for name, column in members.items()}}


def _as_decoded(column: ColumnType) -> dict[str, Any]:
    """Return the feature of a member as the loader decodes it: arrays stay arrays, JSON that varies is Json."""
    if isinstance(column, Tensor) and column.form == "pictures":
        shape, fixed = list(column.shape), None not in column.shape[1:] and not column.optional
        return {"shape": shape, "dtype": "uint8", "_type": f"Array{len(shape)}D"} if fixed else nested_lists(column)
    if isinstance(column, Tensor):
        return feature(column) if column.form == "array" else nested_lists(column)
    if isinstance(column, Fields) and column.from_npz:
        return {key: _as_decoded(part) for key, part in column.parts}
    return {"_type": "Json"} if column == Plain("json") else feature(column)
