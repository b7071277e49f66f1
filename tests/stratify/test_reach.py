"""Plans under [cover] whose budget can't pay every cell, through make_plan."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from distdata.catalogs.cells import build_cells, cell_codes, cover_factors, rule_columns
from distdata.catalogs.config import Config
from distdata.catalogs.cover import cover_rows, uncovered
from distdata.catalogs.frames import Candidates, candidates_of
from distdata.stratify.budget import parse_budget
from distdata.stratify.plan import make_plan
from distdata.stratify.reach import within_reach
from distdata.stratify.request import Plan, PlanRequest, Rates

RATES = Rates(usd=0.5, gpu_s=1.0)
NOTHING = {
    "corpus": pl.DataFrame(schema={"seed_id": pl.String, "k_seed": pl.Int32, "k_counted": pl.Int32}),
    "outside": pl.DataFrame(schema={"cell_id": pl.Int32, "n": pl.Int64}),
    "cases": pl.DataFrame(),
    "blocked": pl.Series([], dtype=pl.String),
}
DRAWS = {"seed_id": pl.String, "k": pl.Int32, "state": pl.String}


def _config(n_axes: int, n_values: int, **plan: object) -> Config:
    return Config.model_validate(
        {
            "project": {"name": "p", "salt": "s"},
            "axes": {f"a{i}": {"values": [f"v{j}" for j in range(n_values)]} for i in range(n_axes)},
            "scenarios": {"s": {"layer": "core"}, "t": {"layer": "long_tail"}},
            "infeasible": [{"when": {"a0": "v0", "a1": "v0"}, "reason": "no"}],
            "bands": {"default": 0.1},
            "cover": {"strength": 2},
            "plan": plan,
            "teacher": {"kind": "crossing"},
        }
    )


@cache
def _world(n_axes: int, n_values: int, n_seeds: int) -> tuple[pl.DataFrame, Candidates]:
    """Random seeds, most of them alone in their cell, beside the rows that [cover] chose and that have no seeds."""
    config = _config(n_axes, n_values)
    random = np.random.default_rng(11)
    codes = random.integers(0, n_values, (n_seeds * 2, n_axes))
    codes = codes[(codes[:, 0] > 0) | (codes[:, 1] > 0)][:n_seeds]
    names = [",".join(f"v{v}" for v in row) + f"/{'st'[i % 2]}" for i, row in enumerate(codes.tolist())]
    cells = build_cells(config, {}, dict.fromkeys(names, 1), Path())
    known = dict(cells.select("cell", "cell_id").iter_rows())
    seeds = pl.DataFrame(
        {
            "seed_id": [f"seed{i}" for i in range(n_seeds)],
            "cell_id": pl.Series([known[n] for n in names], dtype=pl.Int32),
            "split": "train",
            "prn": random.random(n_seeds),
            "decision_point": True,
            "k": pl.Series([None] * n_seeds, dtype=pl.Int16),
        }
    )
    return cells, candidates_of(seeds, "train")


def _plan(
    config: Config, world: tuple[pl.DataFrame, Candidates], budget: str, bought: pl.DataFrame | None = None
) -> tuple[Plan, str]:
    cells, candidates = world
    rules = config.plan
    request = PlanRequest(
        purpose="train", budget=parse_budget(budget), k=int(rules.k), floor_seeds=rules.floor_seeds, held_out=(),
        layers=rules.layers,
    )  # fmt: skip
    bought = pl.DataFrame(schema=DRAWS) if bought is None else bought
    planned = cells.select(
        "cell_id", "cell", "slice", "scenario", "layer", "feasible", "band", "fleet_share", "k"
    ).with_columns(k=pl.lit(None, dtype=pl.Int32))
    planned = planned.join(rule_columns(config, cells), on="cell_id").sort("cell_id")
    chosen, note = within_reach(config, Path(), request, planned, candidates, bought, RATES, **NOTHING)
    groups = pl.DataFrame(schema={"slice": pl.String, "split": pl.String, "n_groups": pl.Int64})
    return make_plan(request, chosen, candidates, bought, RATES, groups=groups), note


def _held(config: Config, plan: Plan) -> np.ndarray:
    return cell_codes(config, plan.cells.filter(pl.col("target") > 0)["cell"].to_list())


@pytest.mark.parametrize("floor_seeds", [0, 1])
def test_thirty_axes_and_a_small_budget(floor_seeds: int) -> None:
    """30 axes of 6 values, 2,906 seeds: 60 and 200 samples cover nearly what rows chosen freely would cover.

    Greedy promises 1 - 1/e of the best choice. Rows chosen freely are no worse than the best of 2,906 given ones can
    be, so 92% of them (63.2% are promised) and all pairs but a handful at 200 are bounds that cell order can't reach.
    """
    config = _config(30, 6, k=1, floor_seeds=floor_seeds)
    world = _world(30, 6, 2906)
    factors = cover_factors(config, Path())
    free = cover_rows(factors, 2, 60)
    plan, note = _plan(config, world, "60samples")
    held = _held(config, plan)
    assert (plan.n_fresh, len(held), plan.shortfall) == (60, 60, 0)
    assert uncovered(factors, held, 2, 0).n_covered >= 0.92 * uncovered(factors, free, 2, 0).n_covered
    assert np.bincount(held[:, 0], minlength=6).min() >= 6
    assert "of 2,906 cells with seeds" in note
    assert "have no seeds and are left out" in note
    plan, _ = _plan(config, world, "200samples")
    held = _held(config, plan)
    assert (plan.n_fresh, len(held)) == (200, 200)
    status = uncovered(factors, held, 2, 0)
    assert status.n_possible - status.n_covered <= 5
    assert np.bincount(held[:, 0], minlength=6).min() >= 20
    assert (plan.cells.filter(pl.col("target") == 0)["rule"] != "").all()


def test_a_growing_corpus_keeps_its_cells() -> None:
    """Bought cells stay in a larger plan, count for its budget, and new ones cover what they don't."""
    config, world = _config(6, 4, k=4, floor_seeds=1), _world(6, 4, 300)
    first, _ = _plan(config, world, "40samples")
    bought = first.draws.select("seed_id", "k").with_columns(state=pl.lit("unverified"))
    second, _ = _plan(config, world, "80samples", bought)
    cells = [set(p.cells.filter(pl.col("target") > 0)["cell"]) for p in (first, second)]
    assert [len(c) for c in cells] == [10, 20]
    assert cells[0] < cells[1]
    assert second.n_fresh == 40
    # dollars buy new draws only: 20.5 are 41 draws at 0.5, ten new cells of 4 and one draw more
    third, _ = _plan(config, world, "$20.5", bought)
    assert third.n_fresh == 41
    assert third.cells.filter(pl.col("fresh") > 0).height == 11
    assert set(third.cells.filter(pl.col("credit") > 0)["cell"]) == cells[0]


def test_layers_and_pins_hold() -> None:
    """Shares of the layers hold to the sample, and a pinned cell is planned in any case."""
    config = _config(6, 4, k=4, floor_seeds=1, layers={"core": 0.7, "long_tail": 0.3})
    plan, _ = _plan(config, _world(6, 4, 300), "61samples")
    sums = dict(plan.cells.group_by("layer").agg(pl.col("target").sum()).iter_rows())
    # 61 x 0.7 = 42.7 and 61 x 0.3 = 18.3
    assert sums == {"core": 43, "long_tail": 18}
    world = _world(6, 4, 300)
    last = world[0].filter(cell_id=int(world[1].cell_id[-1]))
    when = {f"a{i}": last[f"a{i}"][0] for i in range(6)} | {"scenario": last["scenario"][0]}
    pinned, _ = _plan(_config(6, 4, k=4, floor_seeds=1, rules=[{"when": when, "pin": 3}]), world, "43samples")
    assert pinned.cells.filter(cell=last["cell"][0])["target"].to_list() == [3]
    assert (pinned.n_fresh, pinned.cells.filter(pl.col("target") > 0).height) == (43, 11)
