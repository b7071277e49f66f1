"""What a plan costs: seeds over 10,000 cells, a money budget of a tenth of the seeds in draws, everything checked.

Timed is the call behind ``distdata plan --dry-run`` in a process of its own, from the catalog on disk to the computed
plan: reading, candidate order, splits, credits, allocation, draws, weights and prices. The first plan after an import
also makes the cache. The rival is what a user would write by hand: one SQL window query in the same catalog that takes
the first seeds of each cell, without K, credits, bounds or weights.

Growth is measured for a first plan, the same plan again, and a plan for 1% more samples after 1% more seeds, when all
draws of the first plan exist; ``docs/scale.svg`` is drawn from it at full size.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from distdata.catalogs import store
from distdata.catalogs.project import Project
from distdata.cycle.purchases import plan_purchase, save_purchase
from distdata.projects import import_seed_file, init_project

from .report import emit, small, versions
from .scale_picture import scale_picture

BAR_S = 15.0
BAR_BYTES = 4e9
N_VALUES = 10
MORE = 100  # one seed in so many comes later
PICTURE = Path(__file__).resolve().parent.parent / "docs" / "scale.svg"
HEAD = """
[project]
name = "scale"
salt = "scale"
[bands]
default = 0.1
[[bands.rules]]
when = { light = "v0" }
band = 0.05
[splits]
min_groups = 2
[teacher]
kind = "python"
gpu_s_per_draw = 3600.0
usd_per_gpuh = 1.0
[teacher.options]
class = "distdata.benchmarks.generate_overhead:NoOp"
"""
AXES = ("weather", "light", "city")
PLAN = """
import json, re, sys, time
from pathlib import Path
import polars as pl
from distdata.catalogs.project import Project
from distdata.cycle.purchases import plan_purchase
root, budget, old = sys.argv[1:]
start = time.perf_counter()
plan = plan_purchase(Project.open(Path(root)), budget=budget, allow_undecidable=True, dry_run=True).plan
wall_s = time.perf_counter() - start
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
if old:
    before = pl.read_parquet(old)
    assert before.join(plan.seeds, on="seed_id", how="anti").is_empty(), "a seed of an old draw left the corpus"
    assert before.join(plan.draws, on=["seed_id", "k"], how="semi").is_empty(), "an old draw would be bought again"
    assert plan.n_credit == before.height, f"{plan.n_credit} of {before.height} old draws count"
print(json.dumps({"wall_s": wall_s, "peak_bytes": peak, "n_draws": plan.n_fresh, "usd": plan.usd}))
"""


class Run(NamedTuple):
    """One plan in a process of its own; `process_s` is the whole process, start and imports included."""

    wall_s: float
    peak_bytes: int
    n_draws: int
    process_s: float


class Growth(NamedTuple):
    """What was measured at one size, in seconds of planning but for the import."""

    n_seeds: int
    first: Run
    again: Run
    more: Run
    import_s: float
    rival_s: float


def main() -> None:
    sizes = [30_000, 300_000] if small() else [100_000, 1_000_000, 10_000_000]
    measured = [measure(n) for n in sizes]
    last = measured[-1]
    grown = last.first.wall_s / measured[0].first.wall_s
    allowed = _n_log_n(sizes[-1]) / _n_log_n(sizes[0])
    if not small():
        lines = {
            "first plan": [(m.n_seeds, m.first.wall_s) for m in measured],
            "after 1% more seeds": [(m.n_seeds, m.more.wall_s) for m in measured],
            "the same again": [(m.n_seeds, m.again.wall_s) for m in measured],
        }
        PICTURE.write_text(scale_picture(lines, f"distdata plan, {N_VALUES**4:,} cells, two cores"))
    emit(
        "plan",
        figure=last.first.wall_s,
        unit="s",
        rival="one SQL window query in the same catalog: the first seeds of each cell, no K, credits, weights",
        rival_figure=last.rival_s,
        ratio=last.rival_s / last.first.wall_s,
        bar=f"at most {BAR_S:g} s and {BAR_BYTES / 1e9:g} GB; growth from {sizes[0]:,} at most that of n log n",
        met=last.first.wall_s <= BAR_S and last.first.peak_bytes <= BAR_BYTES and grown <= allowed,
        sizes={"n_seeds": last.n_seeds, "n_cells": N_VALUES**4, "n_draws": last.first.n_draws},
        versions=versions("polars", "numpy", "duckdb", "pyarrow"),
        peak_bytes=last.first.peak_bytes,
        process_s=last.first.process_s,
        growth=grown,
        growth_n_log_n=allowed,
        by_size=[_row(m) for m in measured],
    )


def measure(n: int) -> Growth:
    """Import `n` seeds, plan, plan again, enter the plan's draws as made, import 1% more and plan once more."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "project")
        import_s = build(root, n)
        budget = f"${n // 10}"
        first = run_plan(root, budget)
        again = run_plan(root, budget)
        rival_s = _by_hand(root, n // 10 // N_VALUES**4)
        old = buy(root, budget)
        import_more(root, n)
        more = run_plan(root, grown_target(n), old)
    print(f"{n:,} seeds: import {import_s:.1f} s, {first=}, {again=}, {more=}", file=sys.stderr, flush=True)
    return Growth(n, first, again, more, import_s, rival_s)


def build(root: Path, n: int) -> float:
    """Make a project of `n` seeds by the command line's own import; return the seconds which that took."""
    root.mkdir()
    values = json.dumps([f"v{i}" for i in range(N_VALUES)])
    parts = [HEAD, *(f"[axes.{a}]\nvalues = {values}" for a in AXES)]
    parts += [f'[scenarios.s{i}]\nlayer = "core"' for i in range(N_VALUES)]
    preset = root / "preset.toml"
    preset.write_text("\n".join(parts))
    init_project(root, str(preset))
    return _import(root, 0, n)


def import_more(root: Path, n: int) -> None:
    """Import 1% more seeds."""
    _import(root, n, n // MORE)


def grown_target(n: int) -> str:
    """Return the budget of a corpus that is 1% larger than the one that the first plan's money bought."""
    return f"{n // 10 + n // 10 // MORE}samples"


def _import(root: Path, first: int, n: int) -> float:
    """Import seeds in groups of 20: half of them evenly over the cells, half by a law that favours low numbers."""
    rng = np.random.default_rng(first)
    number = np.arange(first, first + n)
    share = 1 / np.arange(1, N_VALUES + 1)
    digits = {}
    for i, name in enumerate((*AXES, "scenario")):
        skewed = rng.choice(N_VALUES, n, p=share / share.sum())
        digits[name] = np.where(number % 2, skewed, number // 2 // N_VALUES**i % N_VALUES)
    at = pl.Series(number)
    columns = {a: pl.format("v{}", pl.lit(pl.Series(digits[a]))) for a in AXES}
    seeds = pl.select(
        seed_id=pl.format("drive{}-{}", pl.lit(at // 20), pl.lit(at)),
        group=pl.format("drive{}", pl.lit(at // 20)),
        **columns,
        scenario=pl.format("s{}", pl.lit(pl.Series(digits["scenario"]))),
        decision_point=pl.lit(pl.Series(rng.random(n) < 0.1)),
        speed=pl.lit(pl.Series(rng.random(n).round(3))),
    )
    path = root / f"seeds-{first}.parquet"
    seeds.write_parquet(path)
    del seeds
    start = time.perf_counter()
    import_seed_file(Project.open(root), path)
    return time.perf_counter() - start


def run_plan(root: Path, budget: str, old: Path | None = None) -> Run:
    """Plan in a process of its own, and have it check that the draws of `old` are kept."""
    line = [sys.executable, "-c", PLAN, str(root), budget, str(old or "")]
    start = time.perf_counter()
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    return Run(said["wall_s"], said["peak_bytes"], said["n_draws"], time.perf_counter() - start)


def buy(root: Path, budget: str) -> Path:
    """Save the plan and enter all its draws in the catalog as if they had been made; return their file."""
    project = Project.open(root)
    purchase = plan_purchase(project, budget=budget, allow_undecidable=True)
    save_purchase(project, purchase)
    draws = purchase.plan.draws.with_columns(pl.col("k").cast(pl.Int16))
    with store.write(project.catalog_path) as con:
        con.register("drawn", draws.to_arrow())
        con.execute(
            """INSERT INTO samples BY NAME SELECT seed_id || '-k' || k AS sample_id, plan_no, 0 AS unit, 0 AS attempt,
                d.cell_id, d.seed_id, d.k, d.k_total AS n_k, 'array' AS kind, 'train' AS split, 'plan' AS source,
                d.decision_point, d.pi, d.weight, 'ok' AS outcome, 0 AS "offset", 0 AS n_bytes, 3600.0 AS gpu_s,
                1.0 AS usd
            FROM drawn d CROSS JOIN (SELECT max(plan_no) AS plan_no FROM plans)"""
        )
        con.unregister("drawn")
    path = root / "old.parquet"
    draws.select("seed_id", pl.col("k").cast(pl.Int32)).write_parquet(path)
    return path


def _by_hand(root: Path, n_each: int) -> float:
    """Take the first seeds of every cell by SQL; return the seconds."""
    start = time.perf_counter()
    with store.read(Project.open(root).catalog_path) as con:
        con.sql(
            f"""SELECT seed_id, cell_id FROM seeds WHERE split = 'train'
            QUALIFY row_number() OVER (PARTITION BY cell_id ORDER BY prn, seed_id) <= {max(n_each, 1)}"""
        ).pl()
    return time.perf_counter() - start


def _n_log_n(n: int) -> float:
    return n * math.log(n)


def _row(m: Growth) -> dict[str, Any]:
    return {
        "n_seeds": m.n_seeds, "first_s": m.first.wall_s, "again_s": m.again.wall_s, "after_1pct_s": m.more.wall_s,
        "peak_bytes": m.first.peak_bytes, "peak_bytes_after_1pct": m.more.peak_bytes, "import_s": m.import_s,
        "by_hand_s": m.rival_s,
    }  # fmt: skip


if __name__ == "__main__":
    main()
