"""What enters the catalog from outside: the cell table of distdata.toml, and scenario seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from . import store
from .cells import build_cells, extend_cells
from .config import Config
from .errors import DistdataError
from .events import append_table, list_events, read_table
from .files import exclusive_lock, sha256_file
from .hashing import bytes_hash, content_hash
from .project import Project
from .register import catch_up, catch_up_if_free
from .seeds import check_seeds, read_seed_file, with_permanent_numbers

AssignSplits = Callable[[pl.DataFrame, pl.DataFrame], pl.DataFrame]
"""(seeds with seed_id, slice, grp; splits in force with grp, split) -> every group with its split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportResult:
    """What an import brought: seeds in all and per split. `known` marks a file that was there already."""

    source: str
    n_seeds: int
    per_split: dict[str, int]
    known: bool = False


def open_project(root: Path) -> Project:
    """Open the project in `root` with its catalog caught up; a distdata.toml without a catalog gets one."""
    project = Project.open(root)
    if any(e.kind == "cells" for e in list_events(project.events_dir)):
        catch_up_if_free(project)
    else:
        define_cells(project)
    return project


def define_cells(project: Project) -> bool:
    """Bring the catalog's cell table in line with distdata.toml; return whether it changed.

    Raises:
        DistdataError: the change would orphan seeds (an axis added or removed, or a value in use removed).
    """
    catch_up(project)
    changed = changed_cells(project)
    if changed is None:
        return False
    cells, meta = changed
    append_table(project.events_dir, "cells", cells.to_arrow(), meta)
    catch_up(project)
    return True


def changed_cells(project: Project) -> tuple[pl.DataFrame, dict[str, Any]] | None:
    """Compute the cell table that distdata.toml now asks for, with its event's meta data; None when it is in force.

    Raises DistdataError as `define_cells` does.
    """
    last = [e for e in list_events(project.events_dir) if e.kind == "cells"]
    by_seeds = project.config.fleet.source == "seeds"  # only then do the cells depend on how many seeds each has
    if last:
        _, meta = read_table(last[-1])
        counts = _seed_counts(project) if by_seeds else {}
        if meta["fingerprint"] == _fingerprint(project, counts):
            return None
        with store.read(project.catalog_path) as con:
            known = dict(con.execute("SELECT cell, cell_id FROM cells").fetchall())
        counts = counts or _seed_counts(project)
        n_seeds = sum(counts.values())
        axes_then = [name for name, _ in meta["axes"]]
        if n_seeds and axes_then != list(project.config.axes):
            raise DistdataError(
                f"distdata.toml: the axes are now {', '.join(project.config.axes)}; the {n_seeds:,} seeds of this "
                f"catalog were imported under {', '.join(axes_then)}. Start a new project (distdata init) and "
                "import them again."
            )
    else:
        known, counts = {}, {}
    cells = build_cells(project.config, known, counts, project.root)
    still_there = set(cells["cell"])
    orphans = {c: n for c, n in counts.items() if c not in still_there}
    if orphans:
        cell, n = next(iter(orphans.items()))
        raise DistdataError(
            f"distdata.toml: {len(orphans)} cell(s) with seeds would vanish ({cell}: {n} seeds, ...). Keep the value "
            "or scenario type, and declare its cells [[infeasible]] if nothing shall be bought there."
        )
    return cells, _meta(project, _fingerprint(project, counts))


def _seed_counts(project: Project) -> dict[str, int]:
    with store.read(project.catalog_path) as con:
        return dict(
            con.execute("SELECT cell, count(*) FROM seeds JOIN cells USING (cell_id) GROUP BY ALL").fetchall()
        )  # fmt: skip


def _meta(project: Project, fingerprint: str) -> dict[str, Any]:
    axes = [[name, axis.values] for name, axis in project.config.axes.items()]
    return {"axes": axes, "fingerprint": fingerprint}


def _with_new_combinations(project: Project, cells: pl.DataFrame, raw: pl.DataFrame) -> pl.DataFrame:
    """Return `cells`, with ``[cover]`` also those that seeds bring along; their columns are checked later."""
    if project.config.cover is None or not {*project.config.axes, "scenario"} <= set(raw.columns):
        return cells
    return extend_cells(project.config, cells, raw, project.root)


def _names(raw: pl.DataFrame) -> pl.DataFrame:
    """Return the ids and groups that seeds bring, as far as they have any: what may be in the catalog already."""
    text = {c: pl.col(c).cast(pl.String) if c in raw.columns else pl.lit(None, pl.String) for c in ("seed_id", "group")}
    return raw.select(seed_id=text["seed_id"], grp=pl.coalesce(text["group"], text["seed_id"]))


def _append_cells(project: Project, cells: pl.DataFrame) -> None:
    last = [e for e in list_events(project.events_dir) if e.kind == "cells"][-1]
    _, meta = read_table(last)
    append_table(project.events_dir, "cells", cells.to_arrow(), _meta(project, meta["fingerprint"]))
    catch_up(project)


def _fingerprint(project: Project, counts: dict[str, int]) -> str:
    c: Config = project.config
    parts = c.model_dump(mode="json", include={"axes", "scenarios", "infeasible", "bands", "fleet", "cover"})
    parts["k"] = c.plan.k
    if c.fleet.source == "seeds":
        parts["seeds"] = counts
    if c.fleet.table:
        path = project.root / c.fleet.table
        parts["table"] = bytes_hash([path.read_bytes()]) if path.exists() else "missing"
    return content_hash(parts)


def import_file(project: Project, path: Path, assign: AssignSplits) -> ImportResult:
    """Import a seed file; the same bytes a second time change nothing. Raises DistdataError (see `seeds`)."""
    raw = read_seed_file(path)
    return import_seeds(project, raw, path.name, sha256_file(path), assign)


def import_seeds(project: Project, raw: pl.DataFrame, source: str, sha256: str, assign: AssignSplits) -> ImportResult:
    """Check seeds, give them permanent random numbers and splits, and append them to the catalog.

    All or nothing: when any seed is refused, none is imported.
    """
    busy = f"{project.root}: process {{holder}} is importing seeds; wait for it."
    with exclusive_lock(project.events_dir / ".import-lock", busy):
        define_cells(project)
        with store.read(project.catalog_path) as con:
            cells = con.sql("SELECT * FROM cells").pl()
            con.register("incoming", _names(raw).to_arrow())
            existing = con.sql("SELECT s.seed_id FROM seeds s SEMI JOIN incoming i ON i.seed_id = s.seed_id").pl()
            used = con.sql("SELECT DISTINCT s.grp, split FROM seeds s SEMI JOIN incoming i ON i.grp = s.grp").pl()
            same = store.first(con.execute("SELECT n_seeds FROM imports WHERE sha256 = ?", [sha256]))
        if same:
            return ImportResult(source=source, n_seeds=same[0], per_split={}, known=True)
        wider = _with_new_combinations(project, cells, raw)
        seeds = check_seeds(raw, wider, list(project.config.axes), existing["seed_id"], source)
        if wider is not cells:
            _append_cells(project, wider)
        splits = assign(seeds.select("seed_id", "slice", "grp"), used)
        seeds = seeds.join(splits.select("grp", "split"), on="grp", how="left", maintain_order="left")
        seeds = with_permanent_numbers(seeds, project.config.project.salt).drop("slice")
        table: pa.Table = seeds.to_arrow()
        append_table(project.events_dir, "import", table, {"source": source, "sha256": sha256})
        catch_up(project)
        if project.config.fleet.source == "seeds":
            define_cells(project)
    per_split = dict(seeds.group_by("split").len().sort("split").iter_rows())
    return ImportResult(source=source, n_seeds=len(seeds), per_split=per_split)
