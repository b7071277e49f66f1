"""The same plan again after 1% more seeds, when the draws of the first plan all exist, against that first plan.

Both are timed as in `plan`: each in a process of its own, from the catalog on disk to the computed plan. The replan
aims at the first plan's corpus, 1% larger; that every old draw counts and none is bought twice is checked in the
process that planned. `same_money_s` is the harder case: the first plan's money once more, so a corpus twice as large.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from shutil import copytree, rmtree

from .plan import N_VALUES, build, buy, grown_target, import_more, run_plan
from .report import emit, small, versions

BAR = 1 / 3


def main() -> None:
    n = 300_000 if small() else 10_000_000
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "project")
        build(root, n)
        budget = f"${n // 10}"
        first = run_plan(root, budget)
        old = buy(root, budget)
        import_more(root, n)
        copytree(root / "cache", Path(folder, "cache"))
        again = run_plan(root, grown_target(n), old)
        rmtree(root / "cache")
        copytree(Path(folder, "cache"), root / "cache")
        double = run_plan(root, budget, old)
    emit(
        "replan",
        figure=again.wall_s,
        unit="s",
        rival="the first plan over the same seeds, before any were added or drawn",
        rival_figure=first.wall_s,
        ratio=first.wall_s / again.wall_s,
        bar="at most 1/3 of the first plan, all old draws kept",
        met=again.wall_s <= BAR * first.wall_s,
        sizes={"n_seeds": n, "n_more": n // 100, "n_cells": N_VALUES**4, "n_old_draws": first.n_draws,
               "n_new_draws": again.n_draws},
        versions=versions("polars", "numpy", "duckdb", "pyarrow"),
        peak_bytes=max(again.peak_bytes, double.peak_bytes),
        same_money_s=double.wall_s,
        same_money_draws=double.n_draws,
    )  # fmt: skip


if __name__ == "__main__":
    main()
