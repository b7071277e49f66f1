"""The candidate order kept on disk, so that it is neither read from the catalog nor sorted at every plan.

One folder per split, ``cache/seeds-train``, and in it one folder per state of the seeds, named by what it was made
from: the imports, how many of the split's seeds each brought, and a checksum over them. So a stale order is never
found; an older one whose imports are all still there is extended by merging, and written anew when it has grown by
more than a thirty-second. Folders are written under a temporary name and renamed, and everything in them is checked
by its CRC before it is used. All of it may be deleted at any time: processes that have a file mapped keep it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from .candidates import Candidates, rank_of
from .effects import effect
from .files import TMP_PREFIX, make_folder
from .hashing import content_hash
from .seed_keys import HashIndex, IdColumn, SeedKeys, hash_probe, join_indexes

VERSION = 1
HEADER = "header.json"
ORDER, INDEX = "order.arrow", "index.arrow"
MAX_ID_FILES = 16
WRITE_AGAIN_AT = 32
"""An order is written anew when it has grown by more than one in so many."""
TMP_OLD_S = 3600.0
UNUSABLE = (OSError, ValueError, KeyError, TypeError, IndexError, pa.ArrowException, pl.exceptions.PolarsError)
"""What opening a cache can raise when it is gone, cut off, altered, or of another make."""


class Batch(NamedTuple):
    """What one import brought to a split: its number, how many seeds, and a checksum over them."""

    import_id: int
    n_seeds: int
    checksum: str


class Kept(NamedTuple):
    """An order found on disk, what it was made from, and the files of ids it consists of with their CRC's."""

    candidates: Candidates
    batches: list[Batch]
    id_files: dict[Path, int]


def read_kept(folder: Path, batches: Sequence[Batch]) -> Kept | None:
    """Find the order of exactly these `batches`, or else the largest one made from some of them; None without any."""
    for path in _usable_first(folder, batches):
        with contextlib.suppress(*UNUSABLE):
            return _open(path)
    return None


def is_worth_writing(candidates: Candidates, known: Kept | None) -> bool:
    """Tell whether an order has grown enough: merging a few seeds again costs less than writing all of them."""
    return known is None or len(candidates.prn) > (1 + 1 / WRITE_AGAIN_AT) * len(known.candidates.prn)


def write_kept(folder: Path, candidates: Candidates, batches: Sequence[Batch], known: Kept | None = None) -> None:
    """Keep an order; one that extends `known` shares its files of ids. Where nothing can be written, nothing is.

    Orders made from less are removed, and so are leftovers of a crash that are an hour old.
    """
    target = folder / _name(batches)
    tmp = folder / f"{TMP_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        make_folder(tmp)
        _write_files(tmp, candidates, batches, known)
        effect("cache.write")
        if target.exists():  # damaged, or another process was faster
            target.rename(folder / f"{tmp.name}-old")
        tmp.rename(target)
        effect("cache.rename")
        for path in _others(folder, target):
            shutil.rmtree(path, ignore_errors=True)
    except OSError:
        pass
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def _name(batches: Sequence[Batch]) -> str:
    return content_hash([VERSION, pl.__version__, list(batches)])


def _usable_first(folder: Path, batches: Sequence[Batch]) -> Iterator[Path]:
    """List the folders made from nothing but these batches, the largest first."""
    there = {tuple(b) for b in batches}
    found = []
    exact = folder / _name(batches)
    paths = [exact] if (exact / HEADER).exists() else [p.parent for p in folder.glob(f"*/{HEADER}")]
    for path in paths:
        with contextlib.suppress(*UNUSABLE):
            made_from = {tuple(b) for b in _header(path)["batches"]}
            if made_from <= there and not path.name.startswith(TMP_PREFIX):
                found.append((sum(b[1] for b in made_from), path))
    return (path for _, path in sorted(found, reverse=True))


def _others(folder: Path, keep: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        in_work = path.name.startswith(TMP_PREFIX) and not path.name.endswith("-old")
        if path != keep and not (in_work and time.time() - path.stat().st_mtime < TMP_OLD_S):
            yield path


def _header(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((path / HEADER).read_bytes())
    if data.pop("check") != content_hash(data) or data["version"] != VERSION:
        raise ValueError(f"{path}: altered, or of another version")
    return data


def _open(path: Path) -> Kept:
    """Map an order after checking every byte of it; raises one of `UNUSABLE` when it is not as it was written."""
    header = _header(path)
    if header["hash_probe"] != hash_probe(header["hash_seed"]):
        raise ValueError(f"{path}: ids were hashed by another version")
    with ThreadPoolExecutor(2) as pool:
        for name, crc in zip(header["files"], pool.map(_crc, (path / f for f in header["files"])), strict=True):
            if crc != header["files"][name]:
                raise ValueError(f"{path / name}: altered")
    order, index = _columns(path / ORDER), _columns(path / INDEX)
    id_files = {path / name: header["files"][name] for name in header["id_files"]}
    ids = IdColumn([_table(f).column(0) for f in id_files])
    prn, size = order["prn"], order.get("size")
    keys = SeedKeys(ids, order["row"], [HashIndex(seed=header["hash_seed"], hashes=index["hash"], rows=index["row"])])
    candidates = Candidates(
        cell_id=order["cell_id"], prn=prn, size=size, rank=rank_of(prn, size), decision=order["decision"], k=order["k"],
        keys=keys,
    )  # fmt: skip
    return Kept(candidates=candidates, batches=[Batch(*b) for b in header["batches"]], id_files=id_files)


def _write_files(folder: Path, candidates: Candidates, batches: Sequence[Batch], known: Kept | None) -> None:
    keys = candidates.keys
    index = join_indexes(keys.indexes, keys.ids)
    order = {
        "cell_id": candidates.cell_id, "prn": candidates.prn, "decision": candidates.decision, "k": candidates.k,
        "row": keys.row,
    }  # fmt: skip
    if candidates.size is not None:
        order["size"] = candidates.size
    _write_columns(folder / ORDER, {name: pa.array(values) for name, values in order.items()})
    _write_columns(folder / INDEX, {"hash": pa.array(index.hashes), "row": pa.array(index.rows)})
    id_files = _write_ids(folder, keys.ids, {} if known is None else known.id_files)
    header: dict[str, Any] = {
        "version": VERSION,
        "batches": [list(b) for b in batches],
        "hash_seed": index.seed,
        "hash_probe": hash_probe(index.seed),
        "id_files": list(id_files),
        "files": {**{name: _crc(folder / name) for name in (ORDER, INDEX)}, **id_files},
    }
    (folder / HEADER).write_text(json.dumps({**header, "check": content_hash(header)}))


def _write_ids(folder: Path, ids: IdColumn, known: Mapping[Path, int]) -> dict[str, int]:
    """Write the ids that no file of `known` holds, and give those files a second name here; return names and CRC's."""
    if len(known) >= MAX_ID_FILES:
        known = {}
    for path in known:
        os.link(path, folder / path.name)
    n_known = sum(len(_table(path)) for path in known)
    name = f"ids-{len(known):03d}.arrow"
    _write_columns(folder / name, {"seed_id": _one_piece(ids, n_known)})
    return {**{path.name: crc for path, crc in known.items()}, name: _crc(folder / name)}


def _write_columns(path: Path, columns: dict[str, pa.Array]) -> None:
    batch = pa.record_batch(columns)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def _table(path: Path) -> pa.RecordBatch:
    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)


def _columns(path: Path) -> dict[str, NDArray[Any]]:
    batch = _table(path)
    return {name: np.asarray(batch.column(name).to_numpy()) for name in batch.schema.names}


def _one_piece(ids: IdColumn, first: int) -> pa.Array:
    """Return the ids from row `first` on as one array."""
    rows = pa.chunked_array(ids.pieces, pa.large_string()).slice(first)
    return rows.chunk(0) if rows.num_chunks == 1 else pa.concat_arrays(rows.chunks)


def _crc(path: Path) -> int:
    with pa.memory_map(str(path)) as source:
        return zlib.crc32(source.read_buffer())
