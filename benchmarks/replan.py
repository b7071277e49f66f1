"""The same plan again after 1% more seeds, when the draws of the first plan all exist, against that first plan.

Both are timed as in `plan`: each in a process of its own, from the catalog on disk to the computed plan. The replan
aims at the first plan's corpus, 1% larger; that every old draw counts and none is bought twice is checked in the
process that planned. `same_money_s` is the harder case: the first plan's money once more, so a corpus twice as large.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from shutil import copytree, rmtree

from .plan import N_VALUES, Run, build, buy, grown_target, import_more, run_plan
from .report import emit, small, versions

BAR = 1 / 3
ROUNDS = 3


def main() -> None:
    n = 300_000 if small() else 10_000_000
    budget = f"${n // 10}"
    with tempfile.TemporaryDirectory() as folder:
        before, after, cache = Path(folder, "before"), Path(folder, "after"), Path(folder, "cache")
        build(before, n)
        run_plan(before, budget)
        copytree(before, after)
        old = buy(after, budget)
        import_more(after, n)
        copytree(after / "cache", cache)
        rounds = [_round(before, after, cache, budget, n, old) for _ in range(ROUNDS)]
    first_s, again_s = (statistics.median(r[i].wall_s for r in rounds) for i in (0, 1))
    ratios = [first.wall_s / again.wall_s for first, again, _ in rounds]
    ratio = statistics.median(ratios)
    first, again, double = rounds[0]
    emit(
        "replan",
        figure=again_s,
        unit="s",
        rival="the first plan over the same seeds, before any were added or drawn",
        rival_figure=first_s,
        ratio=ratio,
        bar=f"at most 1/3 of the first plan, all old draws kept; median of {ROUNDS} rounds",
        met=ratio >= 1 / BAR,
        sizes={"n_seeds": n, "n_more": n // 100, "n_cells": N_VALUES**4, "n_old_draws": first.n_draws,
               "n_new_draws": again.n_draws, "ratio_low_high": [min(ratios), max(ratios)]},
        versions=versions("polars", "numpy", "duckdb", "pyarrow"),
        peak_bytes=max(run.peak_bytes for _, *runs in rounds for run in runs),
        same_money_s=statistics.median(run.wall_s for _, _, run in rounds),
        same_money_draws=double.n_draws,
    )  # fmt: skip


def _round(before: Path, after: Path, cache: Path, budget: str, n: int, old: Path) -> tuple[Run, Run, Run]:
    """Plan for the first time, then after 1% more seeds, then that with the same money; each finds what it would."""
    rmtree(before / "cache")
    first = run_plan(before, budget)
    runs = []
    for wanted in (grown_target(n), budget):
        rmtree(after / "cache")
        copytree(cache, after / "cache")
        runs.append(run_plan(after, wanted, old))
    return first, runs[0], runs[1]


if __name__ == "__main__":
    main()
