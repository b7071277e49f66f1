"""Frozen plans on disk: what to buy, in which order, under which random seeds; written once.

A plan is the folder ``plans/ID``: ``plan.json`` (the header), ``cells.parquet`` (the chain behind every
cell's number), ``draws.arrow`` (one row per draw in the order of generation) and ``seeds.arrow`` (the
seeds' own state). The header holds the digests of the other files. The plan exists from the moment its event
is written.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from . import store
from .errors import DistdataError, nearest
from .events import append_json
from .files import check_digests, write_atomic
from .hashing import draw_rng_seed
from .project import Project
from .register import catch_up
from .views import BOUGHT

PURPOSES = ("train", "gate", "confirm", "pilot")
CORPUS = ("seed_id", "cell_id", "k_seed", "k_counted", "share", "pi")


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedPlan:
    """A plan read back: its header, and its draws and seeds as memory-mapped tables."""

    plan_id: str
    header: dict[str, Any]
    draws: pa.Table
    seeds: pa.Table

    @property
    def n_draws(self) -> int:
        """How many draws the plan buys."""
        return len(self.draws)


def catalog_state(project: Project) -> tuple[int, ...]:
    """Count what planning depends on: events and units in the catalog."""
    with store.read(project.catalog_path) as con:
        tables = ("events", "units")
        return tuple(con.execute(f"SELECT count(*) FROM {t}").fetchall()[0][0] for t in tables)


def sample_id(seed_id: str, k: int, teacher_hash: str) -> str:
    """Return the key of a draw: unique, since one teacher version gives each (seed, k) once."""
    return f"{seed_id}-k{k:03d}-{teacher_hash[:8]}"


def sample_ids(seed_id: str, k: str, teacher_hash: str) -> pl.Expr:
    """Return `sample_id` of whole columns, named `seed_id` and `k`."""
    number = pl.col(k).cast(pl.String).str.zfill(3)
    return pl.concat_str([pl.col(seed_id), pl.lit("-k"), number, pl.lit(f"-{teacher_hash[:8]}")])


def save_plan(
    project: Project,
    header: dict[str, Any],
    cells: pl.DataFrame,
    draws: pl.DataFrame,
    corpus: pl.DataFrame | None = None,
    more: Mapping[str, pl.DataFrame] | None = None,
) -> None:
    """Freeze a plan: write its folder, then its event. Saving the same plan again changes nothing.

    `draws` needs seed_id, cell_id, k, n_k, pi, weight, decision_point in generation order. Sample ids and
    random seeds are added here, the seeds' own state is copied from the catalog. `corpus` has seed_id, cell_id, k_seed,
    k_counted, share and pi of every seed with draws, old ones included: with it the catalog weighs all of them anew.
    `more` are further tables, kept beside these by name.
    """
    folder = project.plans_dir / header["plan_id"]
    salt, teacher_hash = project.config.project.salt, header["teacher_hash"]
    keys = draws.select("seed_id", "k").iter_rows()
    with store.read(project.catalog_path) as con:
        axes = list(project.config.axes)
        axis_json = ", ".join(f"'{a}', c.\"{a}\"" for a in axes)
        con.register("wanted", draws.select("seed_id").unique().to_arrow())
        seeds = con.sql(
            f"""SELECT s.seed_id, c.cell, c.scenario, s.split, json_object({axis_json})::VARCHAR AS axes, s.params,
                s.control_axis, s.control_value
            FROM seeds s JOIN cells c USING (cell_id) SEMI JOIN wanted w ON s.seed_id = w.seed_id ORDER BY s.seed_id"""
        ).to_arrow_table()
        frame = con.sql("SELECT cell_id, cell FROM cells").pl()
    rows = pl.DataFrame({"seed_id": pl.from_arrow(seeds["seed_id"])}).with_row_index("seed_row")
    full = draws.join(frame, on="cell_id", how="left", maintain_order="left")
    full = full.join(rows, on="seed_id", how="left", maintain_order="left").with_columns(
        sample_id=sample_ids("seed_id", "k", teacher_hash),
        rng_seed=pl.Series(np.fromiter((draw_rng_seed(salt, s, k) for s, k in keys), np.uint64, draws.height)),
    )
    table = full.select(
        "sample_id", "seed_id", "cell", pl.col("k").cast(pl.Int16), pl.col("n_k").cast(pl.Int16), "rng_seed",
        "decision_point", "pi", "weight", "seed_row",
    ).to_arrow()  # fmt: skip
    files = {"cells.parquet": _parquet(cells), "draws.arrow": _ipc(table), "seeds.arrow": _ipc(seeds)}
    if corpus is not None:
        files["corpus.parquet"] = _parquet(corpus.select(*CORPUS))
    files |= {f"{name}.parquet": _parquet(frame) for name, frame in (more or {}).items()}
    for name, data in files.items():
        write_atomic(folder / name, data, f"plan.{name.partition('.')[0]}")
    header = {**header, "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}}
    write_atomic(folder / "plan.json", json.dumps(header, indent=1, sort_keys=True).encode(), "plan.header")
    append_json(project.events_dir, "plan", header)
    catch_up(project)


def _parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def _ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks(), max_chunksize=65536)
    return bytes(sink.getvalue())


def load_plan(project: Project, plan_id: str) -> SavedPlan:
    """Read a frozen plan back, memory-mapped.

    Raises:
        DistdataError: a file is missing, damaged or altered.
    """
    folder = project.plans_dir / plan_id
    try:
        header = json.loads((folder / "plan.json").read_bytes())
        check_digests(folder, header.get("sha256", {}), "draws.arrow", "seeds.arrow")
        draws = pa.ipc.open_file(pa.memory_map(str(folder / "draws.arrow"))).read_all()
        seeds = pa.ipc.open_file(pa.memory_map(str(folder / "seeds.arrow"))).read_all()
    except (OSError, ValueError, AttributeError, pa.ArrowInvalid) as e:
        raise DistdataError(
            f"{folder}: damaged ({e}). Restore it from a backup, or make a new plan with another budget."
        ) from None
    return SavedPlan(plan_id=plan_id, header=header, draws=draws, seeds=seeds)


def plan_in_force(project: Project, purpose: str) -> dict[str, Any] | None:
    """Read the header of the newest open plan for `purpose`; None without one."""
    same = [str(p["plan_id"]) for p in open_plans(project) if p["purpose"] == purpose]
    return load_plan(project, same[-1]).header if same else None


def plan_frames(project: Project, header: Mapping[str, Any]) -> dict[str, pl.DataFrame]:
    """Read the small tables of a saved plan by name: ``cells``, ``prices``, ``minima``.

    Raises DistdataError for a file that is missing, damaged or altered.
    """
    folder = project.plans_dir / header["plan_id"]
    names = [n for n in ("cells.parquet", "prices.parquet", "minima.parquet") if n in header.get("sha256", {})]
    try:
        check_digests(folder, header["sha256"], *names)
        return {n.removesuffix(".parquet"): pl.read_parquet(folder / n) for n in names}
    except (OSError, ValueError, pl.exceptions.PolarsError) as e:
        raise DistdataError(f"{folder}: damaged ({e}). Restore it from a backup, or plan again.") from None


def open_plans(project: Project) -> list[dict[str, Any]]:
    """List the plans not superseded, oldest first: plan_id, purpose, n_draws, generated, failed."""
    with store.read(project.catalog_path) as con:
        plans: list[dict[str, Any]] = (
            con.sql(
                f"""SELECT plan_id, purpose, policy, budget, teacher, teacher_hash, n_draws, usd,
                coalesce(sum(u.n_ok), 0)::BIGINT AS generated
            FROM plans p LEFT JOIN (SELECT plan_no, n_ok FROM units) u USING (plan_no)
            WHERE superseded_by IS NULL AND {BOUGHT} GROUP BY ALL ORDER BY min(plan_no)"""
            )
            .pl()
            .to_dicts()
        )
        return plans


def corpus_size(project: Project) -> str | None:
    """Return the size of training corpus that is aimed at, as a budget in samples; None before the first plan."""
    with store.read(project.catalog_path) as con:
        row = store.first(con.execute("SELECT sum(target)::BIGINT FROM coverage"))
    return f"{row[0]}samples" if row and row[0] else None


def find_plan(project: Project, plan_id: str | None) -> str:
    """Resolve a plan id or its unique beginning; None means the newest open plan.

    Raises:
        DistdataError: there is none, several match, or the one named was superseded.
    """
    if plan_id is None:
        plans = open_plans(project)
        if not plans:
            raise DistdataError("There is no plan yet. Make one: distdata plan --budget 2000samples")
        return str(plans[-1]["plan_id"])
    with store.read(project.catalog_path) as con:
        rows = con.execute(
            "SELECT plan_id, superseded_by FROM plans WHERE purpose NOT IN ('byproduct', 'clean') ORDER BY plan_no"
        ).fetchall()
    hits = [r for r in rows if r[0].startswith(plan_id)]
    if len(hits) != 1:
        what = "no plan begins" if not hits else f"{len(hits)} plans begin"
        raise DistdataError(f"{what} with {plan_id!r}.{nearest(plan_id, [r[0] for r in rows])}")
    if hits[0][1]:
        raise DistdataError(
            f"plan {hits[0][0]} was superseded by {hits[0][1]}: what it had bought counts there as credit. "
            "Run `distdata generate` without --plan for the plan in force."
        )
    return str(hits[0][0])
