"""What planning reads of the seeds: the candidates of a split, and how many groups each slice has.

Both are derived from the catalog and kept in ``cache/`` of the project (see `frame_cache`), where they can be deleted
at any time; a project that can't be written to is planned without.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any

import polars as pl

from . import store
from .candidates import FRAME, Candidates, arrange, candidates_of, merge
from .errors import DistdataError
from .files import write_atomic
from .frame_cache import UNUSABLE, VERSION, Batch, is_worth_writing, read_kept, write_kept
from .hashing import content_hash
from .project import Project

__all__ = ["Candidates", "candidates_of", "group_counts", "load_candidates"]

_IN_FRAME = f"coalesce(origin, '{FRAME}') = '{FRAME}'"
_GROUPS = {"slice": pl.String, "split": pl.String, "n_groups": pl.Int64}


def load_candidates(project: Project, split: str) -> Candidates:
    """Return the candidates of one split, as the catalog has them."""
    folder = project.root / "cache" / f"seeds-{split}"
    with store.read(project.catalog_path) as con:
        where = f"split = '{split}' AND {_IN_FRAME}"
        batches = _batches(con, where, "cell_id, prn, decision_point, k, size")
        known = read_kept(folder, batches)
        if known is not None and len(known.batches) == len(batches):
            return known.candidates
        fresh = _rows(con, where, _missing(batches, known.batches if known else []))
        merged = None
        if known is not None:
            merged = merge(known.candidates, arrange(fresh))
            if merged is None:
                known, fresh = None, _rows(con, where, batches)
    candidates = arrange(fresh) if merged is None else merged
    if len(candidates.prn) and is_worth_writing(candidates, known):
        write_kept(folder, candidates, batches, known)
    return candidates


def _batches(con: Any, where: str, columns: str) -> list[Batch]:
    """Say what each import brought, with a checksum over these columns of its seeds, in whatever order they are."""
    rows = con.execute(
        f"SELECT import_id, count(*), sum(hash({columns}))::VARCHAR FROM seeds WHERE {where} GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    return [Batch(*row) for row in rows]


def _missing(batches: Sequence[Batch], known: Sequence[Batch]) -> list[Batch]:
    return [b for b in batches if b not in set(known)]


def _rows(con: Any, where: str, batches: Sequence[Batch]) -> pl.DataFrame:
    sql = f"SELECT seed_id, cell_id, prn, decision_point, k, size FROM seeds WHERE {where} AND {_brought_by(batches)}"
    frame: pl.DataFrame = con.sql(sql).pl()
    return frame


def _brought_by(batches: Sequence[Batch]) -> str:
    numbers = ", ".join(str(b.import_id) for b in batches)
    return f"import_id IN ({numbers})" if numbers else "false"


def group_counts(project: Project) -> pl.DataFrame:
    """Count the distinct groups of every slice in every split: [slice, split, n_groups], sorted."""
    path = project.root / "cache" / "groups.json"
    with store.read(project.catalog_path) as con:
        batches = _batches(con, _IN_FRAME, "cell_id, split, grp")
        known, counts = _read_groups(path.read_bytes() if path.is_file() else b"", batches)
        fresh = _missing(batches, known)
        if not fresh:
            return counts
        new: pl.DataFrame = con.sql(_new_groups(fresh, bool(known))).pl()
    counts = (
        pl.concat([counts, new.cast(_GROUPS)])  # type: ignore[arg-type]
        .group_by("slice", "split")
        .agg(pl.col("n_groups").sum())
        .sort("slice", "split")
    )
    data: dict[str, Any] = {"version": VERSION, "batches": batches, "counts": counts.to_dict(as_series=False)}
    with contextlib.suppress(OSError, DistdataError):
        write_atomic(path, json.dumps({**data, "check": content_hash(data)}).encode(), "cache.groups")
    return counts


def _read_groups(text: bytes, batches: Sequence[Batch]) -> tuple[list[Batch], pl.DataFrame]:
    """Read kept counts; none when there are none, they are damaged, or were made from seeds that are not there."""
    with contextlib.suppress(*UNUSABLE):
        data = json.loads(text)
        known = [Batch(*b) for b in data["batches"]]
        whole = data.pop("check") == content_hash(data) and data["version"] == VERSION
        if whole and set(known) <= set(batches):
            return known, pl.DataFrame(data["counts"], schema=_GROUPS)
    return [], pl.DataFrame(schema=_GROUPS)


def _new_groups(fresh: Sequence[Batch], some_known: bool) -> str:
    """Count the groups that the imports `fresh` brought and that no other import had brought to their slice before.

    Few groups are new, so theirs are looked for among all, and not all among theirs.
    """
    brought = _brought_by(fresh)
    new = f"SELECT DISTINCT slice, split, grp FROM seeds JOIN cells USING (cell_id) WHERE {_IN_FRAME} AND {brought}"
    if not some_known:
        return f"SELECT slice, split, count(*) AS n_groups FROM ({new}) GROUP BY ALL"
    return f"""WITH fresh AS MATERIALIZED ({new}), seen AS (
            SELECT DISTINCT c.slice, s.split, s.grp FROM seeds s JOIN (SELECT DISTINCT grp FROM fresh) USING (grp)
            JOIN cells c USING (cell_id) WHERE {_IN_FRAME} AND NOT {brought}
        ) SELECT slice, split, count(*) AS n_groups FROM fresh ANTI JOIN seen USING (slice, split, grp) GROUP BY ALL"""
