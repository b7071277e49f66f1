"""Whole plans worked by hand: every number of the purchase is derived in the comment above its case.

Three slices a, b, c with one cell each, bands 0.1, fleet shares 0.6, 0.3 and 0.1, 100 seeds each, K 1, unless a case
says otherwise. Webster deals the next sample to the cell with the largest weight / (n + 1/2).
"""

from dataclasses import dataclass, field
from typing import Any

import polars as pl
import pytest

from distdata.stratify.budget import parse_budget
from distdata.stratify.minima import GateAims
from distdata.stratify.plan import make_plan
from distdata.stratify.request import PlanRequest


@dataclass(frozen=True, kw_only=True)
class Case:
    """A plan to make and the counts that come out, cell by cell."""

    budget: str | None
    target: list[int]
    fresh: list[int]
    usd: float | None = None
    cells: dict[str, list[Any]] = field(default_factory=dict)
    seeds: tuple[int, int, int] = (100, 100, 100)
    k: int = 1
    bought: list[tuple[str, int, str]] = field(default_factory=list)
    request: dict[str, Any] = field(default_factory=dict)
    goals: list[int] | None = None
    outside: list[int] | None = None
    prices: tuple[float, float, float] = (1.0, 1.0, 1.0)


CASES = {
    # weights 1 each (uniform over conditions): 30 samples are 10 each
    "equal_bands": Case(budget="30samples", target=[10, 10, 10], fresh=[10, 10, 10], usd=30),
    # half the band of b: (0.1 / 0.05)^2 = 4, weights 1 4 1 of 60: 10, 40, 10
    "half_the_band": Case(
        budget="60samples", cells={"band": [0.1, 0.05, 0.1]}, target=[10, 40, 10], fresh=[10, 40, 10]
    ),
    # gamma 1: weights 1 2 1 of 60: 15, 30, 15
    "gamma_one": Case(
        budget="60samples",
        cells={"band": [0.1, 0.05, 0.1]},
        request={"gamma": 1.0},
        target=[15, 30, 15],
        fresh=[15, 30, 15],
    ),
    # fleet shares 0.6 0.3 0.1 of 50: 30, 15, 5
    "fleet": Case(budget="50samples", request={"policy": "fleet"}, target=[30, 15, 5], fresh=[30, 15, 5]),
    # half uniform, half fleet: 1/6 + 0.3, 1/6 + 0.15, 1/6 + 0.05 = 0.4667 0.3167 0.2167; of 60: 28, 19, 13
    "blend": Case(budget="60samples", request={"fleet_blend": 0.5}, target=[28, 19, 13], fresh=[28, 19, 13]),
    # f sigma / sqrt(c): 0.6 x 0.1 / 1, 0.3 x 0.4 / 2, 0.1 x 0.6 / 1 = 0.06 each: 10 each of 30; 10 + 40 + 10 dollars
    "neyman": Case(
        budget="30samples",
        request={"policy": "neyman"},
        cells={"within_others": [0.01, 0.06, 0.26], "between_others": [0.0, 0.1, 0.1]},  # K = 1: 0.1^2, 0.4^2, 0.6^2
        prices=(1.0, 4.0, 1.0),
        target=[10, 10, 10],
        fresh=[10, 10, 10],
        usd=60,
    ),
    # c pinned to 25; 45 - 25 = 20 over two equal cells
    "pin": Case(budget="45samples", cells={"pin": [None, None, 25]}, target=[10, 10, 25], fresh=[10, 10, 25]),
    # a capped at 4, b at least 20: 40 - 4 - 20 = 16 goes to c, whose 15.5th would beat b's 20.5th
    "cap_and_floor": Case(
        budget="40samples",
        cells={"cap": [4, None, None], "floor": [None, 20, None]},
        target=[4, 20, 16],
        fresh=[4, 20, 16],
    ),
    # a rule's boost of 2 and a request's of 3 on the same cell: weights 6 1 1 of 32: 24, 4, 4
    "boosts_multiply": Case(
        budget="32samples",
        cells={"rule_boost": [2.0, 1.0, 1.0]},
        request={"boosts": {"a": 3.0}},
        target=[24, 4, 4],
        fresh=[24, 4, 4],
    ),
    # floors of 2 seeds x K 4 = 8; c's 2 seeds can give 8; 34 - 8 = 26 for a and b: 13 each
    "floor_seeds_and_ceiling": Case(
        budget="34samples", k=4, seeds=(100, 100, 2), request={"floor_seeds": 2}, target=[13, 13, 8], fresh=[13, 13, 8]
    ),
    # layers a: core 1/2, b: failure mode 1/4, c: long tail 1/4 of 40, though c's weight alone is 100 times the others'
    "layers": Case(
        budget="40samples",
        cells={"band": [0.1, 0.1, 0.01], "layer": ["core", "failure_mode", "long_tail"]},
        request={"layers": {"core": 0.5, "failure_mode": 0.25, "long_tail": 0.25}},
        target=[20, 10, 10],
        fresh=[20, 10, 10],
    ),
    # the same shares for 30 dollars at 1, 2 and 3 a draw: 16 samples are 8, 4 and 4 and cost 28; the 17th goes to a
    # (0.5 / 8.5 = 0.0588 against 0.25 / 4.5 = 0.0556), 29 dollars; the 18th to b (a: 0.5 / 9.5 = 0.0526), 31: too much
    "money_in_layers": Case(
        budget="30usd",
        cells={"layer": ["core", "failure_mode", "long_tail"]},
        prices=(1.0, 2.0, 3.0),
        request={"layers": {"core": 0.5, "failure_mode": 0.25, "long_tail": 0.25}},
        target=[9, 4, 4],
        fresh=[9, 4, 4],
        usd=29,
    ),
    # 10 kept samples each at a yield of 0.8 are 12.5, 13 draws
    "expected_yield": Case(
        budget="30samples", request={"expected_yield": 0.8}, target=[10, 10, 10], fresh=[13, 13, 13], usd=39
    ),
    # a: 15 of 20 kept against 1.0: (15 + 20) / 40 = 0.875, so (20 - 15) / 0.875 = 5.7, 6 draws. b: one draw without a
    # verdict, worth 1 of 20: 19 draws. c: nothing: 20
    "measured_yield": Case(
        budget="60samples",
        cells={"yield_kept": [15, 0, 0], "yield_verified": [20, 0, 0]},
        bought=[(f"a{i:03d}", 0, "rejected" if i < 5 else "kept") for i in range(20)] + [("b000", 0, "unverified")],
        target=[20, 20, 20],
        fresh=[6, 19, 20],
    ),
    # credits one for one up to K = 4: b000 has six draws, of which four count, b001 one: 10 - 5 = 5 more
    "credits_up_to_k": Case(
        budget="30samples",
        k=4,
        bought=[("b000", k, "unverified") for k in range(6)] + [("b001", 2, "unverified")],
        target=[10, 10, 10],
        fresh=[10, 5, 10],
    ),
    # six samples of c lie outside the frame: 10 - 6 = 4
    "outside_credits": Case(budget="30samples", outside=[0, 0, 6], target=[10, 10, 10], fresh=[10, 10, 4]),
    # 9 dollars, a's first five draws exist: in turn a b c, where a costs nothing up to 5. Four turns cost 8, a's fifth
    # nothing, b's fifth the ninth dollar
    "money_walks_past_credits": Case(
        budget="9usd",
        bought=[(f"a{i:03d}", 0, "unverified") for i in range(5)],
        target=[5, 5, 4],
        fresh=[0, 5, 4],
        usd=9,
    ),
    # 0.12 GPU-hours at 36 s, 0.01 GPU-hours a draw: 12 draws, 4 each
    "gpu_hours": Case(budget="0.12gpuh", target=[4, 4, 4], fresh=[4, 4, 4]),
    # goals 10 8 0: a kept 5 of 6 of its draws: (5 + 20) / 26 = 0.9615, 5 / 0.9615 = 5.2, 6 draws; b is full; c has none
    "top_up": Case(
        budget=None,
        request={"top_up": True},
        goals=[10, 8, 0],
        cells={"yield_kept": [5, 8, 0], "yield_verified": [6, 8, 0]},
        bought=[(f"a{i:03d}", 0, "rejected" if i == 3 else "kept") for i in range(6)]
        + [(f"b{i:03d}", 0, "kept") for i in range(8)],
        target=[10, 8, 0],
        fresh=[6, 0, 0],
    ),
    # beta = 0.1 / 3, z_0.96667 = 1.8339, z_0.95 = 1.6449: 2 x 0.01 x 3.4788^2 / (0.05)^2 = 96.8, + 1.6449^2 / 2 = 1.35:
    # 98.2, so 99 for bands of 0.1; the 0.2 of b: 24.2 + 1.35 = 25.6, so 26
    "gate_minima": Case(
        budget=None,
        request={"purpose": "gate", "held_out": ("gate",), "aims": GateAims(sigma=0.1)},
        cells={"band": [0.1, 0.2, 0.1]},
        target=[99, 26, 99],
        fresh=[99, 26, 99],
    ),
    # twelve seeds a cell, four draws of each
    "pilot": Case(budget=None, request={"purpose": "pilot"}, k=4, target=[48, 48, 48], fresh=[48, 48, 48]),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_plans_worked_by_hand(case: Case) -> None:
    """Targets, draws to buy and the bill equal what is derived in the comment of the case."""
    bounds = dict.fromkeys(("pin", "cap", "floor"), pl.Int64)
    cells = pl.DataFrame(
        {
            "cell_id": pl.Series(range(3), dtype=pl.Int32),
            "cell": ["a/x", "b/x", "c/x"],
            "slice": ["a", "b", "c"],
            "scenario": ["x"] * 3,
            "layer": ["core"] * 3,
            "feasible": [True] * 3,
            "band": [0.1] * 3,
            "fleet_share": [0.6, 0.3, 0.1],
            "k": pl.Series([case.k] * 3, dtype=pl.Int32),
        }
    ).with_columns(pl.Series(name, values, dtype=bounds.get(name)) for name, values in case.cells.items())
    request = PlanRequest(
        budget=parse_budget(case.budget) if case.budget else None,
        **({"purpose": "train", "held_out": (), "floor_seeds": 0, "min_groups": 0} | case.request),  # type: ignore[arg-type]
    )
    split = "gate" if request.purpose == "gate" else "train"
    rows = [
        (f"{'abc'[c]}{i:03d}", c, f"g{c}-{i}", split, (i + 0.5) / n) for c, n in enumerate(case.seeds) for i in range(n)
    ]
    schema = {"seed_id": pl.String, "cell_id": pl.Int32, "grp": pl.String, "split": pl.String, "prn": pl.Float64}
    seeds = pl.DataFrame(rows, schema=schema, orient="row").with_columns(
        decision_point=pl.lit(case.k > 1), k=pl.lit(None, dtype=pl.Int32)
    )
    plan = make_plan(
        request,
        cells,
        seeds,
        pl.DataFrame(case.bought, schema={"seed_id": pl.String, "k": pl.Int32, "state": pl.String}, orient="row"),
        pl.DataFrame({"cell_id": [0, 1, 2], "usd": case.prices, "gpu_s": [36.0] * 3}),
        outside=None if case.outside is None else pl.DataFrame({"cell_id": [0, 1, 2], "n": case.outside}),
        goals=None if case.goals is None else pl.DataFrame({"cell_id": [0, 1, 2], "target": case.goals}),
    )
    assert plan.cells["target"].to_list() == case.target
    assert plan.cells["fresh"].to_list() == case.fresh
    per_cell = dict(plan.draws.group_by("cell_id").len().iter_rows())
    assert [per_cell.get(c, 0) for c in range(3)] == case.fresh
    if case.usd is not None:
        assert plan.usd == pytest.approx(case.usd)
