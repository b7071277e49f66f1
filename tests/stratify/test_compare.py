"""Policies side by side: the same purchase under each, counted by hand."""

import math
from collections.abc import Callable
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distdata.catalogs.comparison import Comparison
from distdata.catalogs.config import Policy
from distdata.catalogs.errors import DistdataError
from distdata.stratify.budget import parse_budget
from distdata.stratify.compare import compare_policies, effective_n, needed_draws, parse_policies
from distdata.stratify.minima import GateAims
from distdata.stratify.plan import make_plan
from distdata.stratify.request import Plan, PlanRequest, Rates

NOTHING = pl.DataFrame(schema={"seed_id": pl.String, "k": pl.Int32})

CELLS = pl.DataFrame(
    {
        "cell_id": pl.Series([0, 1, 2, 3, 4], dtype=pl.Int32),
        "cell": ["day/cross", "day/follow", "night/cross", "night/follow", "night/fly"],
        "slice": ["day", "day", "night", "night", "night"],
        "scenario": ["cross", "follow", "cross", "follow", "fly"],
        "layer": ["long_tail", "core", "long_tail", "core", "core"],
        "feasible": [True, True, True, True, False],
        "band": [0.1, 0.1, 0.05, 0.1, 0.1],
        "fleet_share": [0.1, 0.6, 0.06, 0.24, 0.0],
        "k": pl.Series([1] * 5, dtype=pl.Int32),
    }
)  # fmt: skip
SEEDS = pl.DataFrame(
    {
        "seed_id": [f"c{c}-{i}" for c in range(4) for i in range(400)],
        "cell_id": pl.Series([c for c in range(4) for _ in range(400)], dtype=pl.Int32),
        "grp": [f"g{c}-{i}" for c in range(4) for i in range(400)],
        "split": ["train"] * 1600,
        "prn": [(i + 0.5) / 400 for _ in range(4) for i in range(400)],
        "decision_point": [False] * 1600,
        "k": pl.Series([None] * 1600, dtype=pl.Int32),
    }
)
BOUGHT = pl.DataFrame({"seed_id": ["c1-0", "c1-1"], "k": pl.Series([0, 0], dtype=pl.Int32)})


def _planner(
    bought: pl.DataFrame = NOTHING, cells: pl.DataFrame = CELLS, **changes: object
) -> Callable[[Policy], Plan]:
    """Return what plans 700 samples under a policy; 0.5 dollars and 36 s (0.01 GPU-h) a draw."""
    rules: dict[str, object] = {
        "purpose": "train", "held_out": (), "floor_seeds": 0, "budget": parse_budget("700samples"),
    }  # fmt: skip
    request = PlanRequest(**(rules | changes))  # type: ignore[arg-type]

    def plan_for(policy: Policy) -> Plan:
        return make_plan(replace(request, policy=policy), cells, SEEDS, bought, Rates(usd=0.5, gpu_s=36.0))

    return plan_for


def _compare(**changes: object) -> Comparison:
    return compare_policies(("fleet", "uniform", "gate"), _planner(**changes), needed={"day": 360, "night": 350})  # type: ignore[arg-type]


def test_cells_by_hand() -> None:
    """700 samples: fleet by share up to a cell's 400 seeds, uniform alike, gate four to one at half the band."""
    c = _compare()
    # fleet: 700 x 0.6 = 420, but 400 is its ceiling; the 300 left by 0.24 : 0.1 : 0.06 are 180, 75, 45
    # uniform: 175 each. gate: weights 1, 1, 1, 4 of 7: 100, 100, 100, 400
    assert [cell.cell for cell in c.cells] == ["day/follow", "night/follow", "day/cross", "night/cross"]
    assert [cell.target for cell in c.cells] == [(400, 175, 100), (180, 175, 100), (75, 175, 100), (45, 175, 400)]
    assert all(cell.fresh == cell.target for cell in c.cells)
    assert c.budget == "700 samples"


def test_figures_by_hand() -> None:
    """Layers, slices, cost, the smallest cell and the bounds of each policy are those of its cells."""
    c = _compare()
    fleet, uniform, gate = c.policies
    assert c.layers == ("core", "long_tail")
    assert c.fleet_by_layer == pytest.approx((0.84, 0.16))
    assert uniform.layer_share == (0.5, 0.5)
    assert gate.layer_share == pytest.approx((200 / 700, 500 / 700))
    # slices day, night: uniform 350, 350 (day short of 360); gate 200, 500; fleet 475, 225
    assert [(s.slice, s.needed, s.target) for s in c.slices] == [
        ("day", 360, (475, 350, 200)),
        ("night", 350, (225, 350, 500)),
    ]
    assert [p.n_gate_worth for p in c.policies] == [1, 1, 1]
    assert [(p.n_target, p.n_fresh, p.usd, p.gpu_h) for p in c.policies] == [(700, 700, 350.0, pytest.approx(7.0))] * 3
    assert (fleet.smallest_cell, fleet.smallest_n, gate.smallest_n) == ("night/cross", 45, 100)
    assert [p.n_at_ceiling for p in c.policies] == [1, 0, 1]  # 400 seeds: fleet's day/follow, gate's night/cross
    # uniform: 1 / ((0.36 + 0.0576 + 0.01 + 0.0036) / 175) = 175 / 0.4312
    assert uniform.effective_n == pytest.approx(175 / 0.4312)
    assert [p.unseen_share for p in c.policies] == [0.0, 0.0, 0.0]


def test_floors_and_credits() -> None:
    """Cells at their floor are counted, and what exists lowers the purchase but not the target."""
    c = _compare(bought=BOUGHT, floor_seeds=60)
    # fleet's night/cross would get 45: the floor of 60 seeds holds it up; no other cell of any policy is that low
    assert [p.n_at_floor for p in c.policies] == [1, 0, 0]
    assert [(p.n_credit, p.n_fresh, p.usd) for p in c.policies] == [(2, 698, 349.0)] * 3
    assert c.cells[0].fresh == tuple(n - 2 for n in c.cells[0].target)


def test_caps_and_pins_count_as_ceilings() -> None:
    """A cell that a rule's cap or pin holds back counts like one whose seeds do."""
    rules = CELLS.with_columns(
        cap=pl.Series([None, 300, None, None, None], dtype=pl.Int64),
        pin=pl.Series([None, None, 50, None, None], dtype=pl.Int64),
    )
    c = compare_policies(("fleet", "uniform"), _planner(cells=rules))
    # the pin takes 50. fleet: day/follow stops at its cap of 300, 350 left by 0.24 : 0.1 = 247.06, 102.94.
    # uniform: 650 in three parts, the odd two where the order of equals puts them: no cap is reached
    assert [cell.target[0] for cell in c.cells] == [300, 247, 103, 50]
    assert [p.n_at_ceiling for p in c.policies] == [2, 1]


def test_unknown_minima_are_not_counted() -> None:
    """Without minima no policy claims a slice with a gate's worth; with some only those count."""
    bare = compare_policies(("fleet", "gate"), _planner())
    assert [p.n_gate_worth for p in bare.policies] == [None, None]
    some = compare_policies(("fleet", "gate"), _planner(), needed={"night": 226})
    assert ([p.n_gate_worth for p in some.policies], some.n_gate_worth_of) == ([0, 1], 1)


def test_effective_sample_size() -> None:
    """Proportional samples are worth their number; others less; the unseen part of the fleet is told apart."""
    share = np.array([0.5, 0.25, 0.25, 0.0])
    assert effective_n(share, np.array([50, 25, 25, 0])) == (pytest.approx(100), 0.0)
    # 1 / (0.25 / 20 + 0.0625 / 40 + 0.0625 / 40) = 1 / 0.015625 = 64
    assert effective_n(share, np.array([20, 40, 40, 900])) == (pytest.approx(64), 0.0)
    # the first two are 0.75 of the fleet: 0.75^2 / (0.25 / 20 + 0.0625 / 40) = 0.5625 / 0.0140625 = 40
    assert effective_n(share, np.array([20, 40, 0, 0])) == (pytest.approx(40), 0.25)
    assert effective_n(share, np.array([0, 0, 0, 7])) == (0.0, 1.0)
    assert effective_n(np.zeros(2), np.array([1, 2])) == (0.0, 0.0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 1), st.integers(1, 5000)), min_size=1, max_size=12))
def test_effective_sample_size_is_at_most_the_sample(cells: list[tuple[float, int]]) -> None:
    """By Cauchy and Schwarz no way of spreading n samples is worth more than n for the fleet's mean."""
    share, n = np.array([f for f, _ in cells]), np.array([m for _, m in cells])
    assert effective_n(share, n)[0] <= n.sum() * (1 + 1e-9)


def test_effective_sample_size_is_a_variance() -> None:
    """The stratified mean's variance over 20,000 simulated samples is that of effective_n independent draws.

    Fixed seed; the ratio of variances has a standard error of sqrt(2 / 20,000) = 1%, so 4% false-alarms at 6e-5.
    """
    rng = np.random.default_rng(11)
    share, n = np.array([0.7, 0.2, 0.1]), np.array([10, 40, 5])
    means = np.stack([rng.normal(size=(20_000, m)).mean(axis=1) for m in n], axis=1) @ share
    assert means.var() * effective_n(share, n)[0] == pytest.approx(1.0, abs=0.04)


def test_needed_draws_by_formula() -> None:
    """A slice needs what its tightest band needs, beta shared among the slices, at least 20 seeds' draws."""
    needed = needed_draws(CELLS, GateAims(), 8)
    z = NormalDist().inv_cdf
    # 2 sigma^2 = 0.5; alpha 0.05, beta 0.1 / 2 slices; half a band of room: 0.05 for day, 0.025 for night; K = 1
    for name, room in (("day", 0.05), ("night", 0.025)):
        by_hand = 0.5 * ((z(0.95) + z(0.95)) / room) ** 2 + z(0.95) ** 2 / 2
        assert needed[name] == math.ceil(by_hand)
    # bands as wide as the statistic: 20 seeds of K 8 where the cell leaves K open
    wide = CELLS.with_columns(band=pl.lit(10.0), k=pl.lit(None, dtype=pl.Int32))
    assert needed_draws(wide, GateAims(), 8) == {"day": 160, "night": 160}
    # half the measured spread wants a quarter of the leading term; NaN falls back to the aims' sigma
    measured = CELLS.with_columns(sigma=pl.Series([0.25, 0.25, math.nan, None, 0.1], dtype=pl.Float64))
    assert needed_draws(measured, GateAims(), 8) == {
        "day": math.ceil(0.125 * (2 * z(0.95) / 0.05) ** 2 + z(0.95) ** 2 / 2),
        "night": needed["night"],
    }


def test_policies_are_read() -> None:
    """Names in any order, with spaces; at least two, each known and once."""
    assert parse_policies("fleet, uniform,gate") == ("fleet", "uniform", "gate")
    for text, message in (
        ("fleet,unifrom", "no policy 'unifrom'. Did you mean 'uniform'\\?$"),
        ("fleet,xyz", "no policy 'xyz'. Known: gate, uniform, fleet, neyman.$"),  # what is known is said once
        ("gate,gate", "gate is named twice"),
        ("gate", "at least two of gate, uniform, fleet, neyman"),
        ("", "at least two"),
    ):
        with pytest.raises(DistdataError, match=message):
            parse_policies(text)


def test_errors_name_the_policy() -> None:
    """A plan that one policy can't make stops the comparison with that policy's name and the plan's own words."""
    with pytest.raises(DistdataError, match=r"compare, policy fleet: .*floor"):
        compare_policies(("fleet", "gate"), _planner(floor_seeds=300))


def test_plans_must_be_alike() -> None:
    """Plans that differ in more than the policy, or in cells, are not compared."""
    small, large = _planner(), _planner(budget=parse_budget("800samples"))
    with pytest.raises(DistdataError, match="policy gate differs from the first in more than its policy"):
        compare_policies(("fleet", "gate"), lambda p: small(p) if p == "fleet" else large(p))
    with pytest.raises(DistdataError, match="policy gate differs"):
        compare_policies(("fleet", "gate"), lambda _: small("fleet"))


def test_money_and_gpu_hours_are_written_out() -> None:
    """The budget is told in its own unit."""
    told = [compare_policies(("fleet", "gate"), _planner(budget=parse_budget(b))).budget for b in ("60usd", "2.5gpuh")]
    assert told == ["$60.00", "2.5 GPU-hours"]
