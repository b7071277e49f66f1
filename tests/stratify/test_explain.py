"""What a person is told about a plan."""

import polars as pl
import pytest

from distdata.catalogs.errors import DistdataError
from distdata.stratify.budget import parse_budget
from distdata.stratify.explain import MAX_CELLS, explain
from distdata.stratify.minima import GateAims
from distdata.stratify.plan import make_plan
from distdata.stratify.request import Plan, PlanRequest, Rates
from distdata.stratify.words import plan_words


def _plan(budget: str = "40samples", n_values: int = 2, **changes: object) -> Plan:
    """Plan slices (day|night) x (dry|rain...) with two scenario types: night,rain bands 0.05, one cell infeasible."""
    rows = [
        (f"{light},{ground}", scenario)
        for light in ("day", "night")
        for ground in ["dry", "rain", *[f"wet{i}" for i in range(n_values - 2)]]
        for scenario in ("cross", "wait")
    ]
    n = len(rows)
    cells = pl.DataFrame(
        {
            "cell_id": pl.Series(range(n), dtype=pl.Int32),
            "cell": [f"{slice_name}/{scenario}" for slice_name, scenario in rows],
            "slice": [slice_name for slice_name, _ in rows],
            "scenario": [scenario for _, scenario in rows],
            "layer": ["long_tail" if scenario == "cross" else "core" for _, scenario in rows],
            "feasible": [row != ("day,dry", "wait") for row in rows],
            "band": [0.05 if row == ("night,rain", "cross") else 0.1 for row in rows],
            "fleet_share": [0.0 if row == ("day,dry", "wait") else 1 / (n - 1) for row in rows],
            "k": pl.Series([4] * n, dtype=pl.Int32),
        }
    )
    seeds = pl.DataFrame(
        {
            "seed_id": [f"c{c}-{i}" for c in range(n) for i in range(5)],
            "cell_id": pl.Series([c for c in range(n) for _ in range(5)], dtype=pl.Int32),
            "grp": [f"g{i}" for i in range(5 * n)],
            "split": ["train"] * (5 * n),
            "prn": [(i + 0.5) / (5 * n) for i in range(5 * n)],
            "decision_point": [True] * (5 * n),
            "k": pl.Series([None] * (5 * n), dtype=pl.Int32),
        }
    )
    rules: dict[str, object] = {"purpose": "train", "held_out": (), "floor_seeds": 1, "min_groups": 0}
    request = PlanRequest(budget=parse_budget(budget), **(rules | changes))  # type: ignore[arg-type]
    bought = pl.DataFrame({"seed_id": ["c6-0"], "k": pl.Series([0], dtype=pl.Int32)})  # c6 is night,rain/cross
    return make_plan(request, cells, seeds, bought, Rates(usd=0.5, gpu_s=36.0))


def test_the_chain_of_a_cell_is_told_in_numbers() -> None:
    """Every step of one cell's number appears: base, band, weight, bounds, target, credit, price, seeds."""
    # 7 feasible cells, weights 1/7 and once 4/7: 4/10 of all; floors 4 x 7 = 28, 12 more to give: the heavy cell has
    # 4/7 / (n + 1/2) until its 16th (4/15.5 = 0.258 > 1/4.5 = 0.222): 16 = 4 + 12, all of them
    assert explain(_plan(), "night,rain/cross") == [
        "night,rain/cross (long_tail)",
        "  base 0.1429: one of 7 feasible cells, all alike",
        "  band 0.05, the widest is 0.1: (0.1 / 0.05)^2 = x 4",
        "  boost none",
        "  weight 0.5714: 40.00% of all weight",
        "  floor 4 (K draws of its first 1), ceiling 20 (5 seeds x 4 draws): target 16 kept samples "
        "(its weight alone: 16.0 of 40)",
        "  existing draws 1: buy 15 for $7.50 and 0.15 GPU-hours; the corpus then rests on 4 of 5 seeds",
        # the next draw would go to itself at 4/7 / 16.5; with (1 / 0.9)^2 = 1.235 times the weight it gets
        # 1.235 x 16.5 - 0.5 = 19.9, so 20, and night,rain/wait 1.235 / 7 / (4/7 / 16.5) - 0.5 = 4.6, so 5: 4 + 1 more
        "  price of bands 10% tighter in night,rain: 5 more draws, $2.50, 0.05 GPU-hours",
    ]


@pytest.mark.parametrize(
    ("pattern", "cells"),
    [
        ("night,rain", ["night,rain/cross", "night,rain/wait"]),
        ("rain,night", ["night,rain/cross", "night,rain/wait"]),
        (" rain , night / wait ", ["night,rain/wait"]),
        ("rain/cross", ["day,rain/cross", "night,rain/cross"]),
        ("night", ["night,dry/cross", "night,dry/wait", "night,rain/cross", "night,rain/wait"]),
        ("wait", ["day,dry/wait", "day,rain/wait", "night,dry/wait", "night,rain/wait"]),
        ("/wait", ["day,dry/wait", "day,rain/wait", "night,dry/wait", "night,rain/wait"]),
    ],
)
def test_patterns_name_cells(pattern: str, cells: list[str]) -> None:
    """Values in any order, some of the values, a scenario type, or both: exactly the cells that fit."""
    heads = [line.split(" (")[0] for line in explain(_plan(), pattern) if not line.startswith(" ")]
    assert heads == cells


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("nigth,rain", "no axis value 'nigth'. Did you mean 'night'"),
        ("night,rain/corss", "no scenario type 'corss'. Did you mean 'cross'"),
        ("day,night", "no cell has all"),
        ("rain,rain", "no cell has all"),
    ],
)
def test_unknown_patterns_get_the_nearest(pattern: str, reason: str) -> None:
    """A typing error is answered with the nearest name, and an impossible combination said to be one."""
    with pytest.raises(DistdataError, match=reason):
        explain(_plan(), pattern)


def test_bounds_marks_and_infeasible_cells_are_said() -> None:
    """The text says when a floor or a ceiling decided, when a cell is infeasible, and why one is marked."""
    assert explain(_plan(), "day,dry/wait")[1:] == ["  declared infeasible: it is not planned"]
    full = "\n".join(explain(_plan("1000samples"), "night,rain/cross"))
    assert "target 20 kept samples" in full
    assert "held by the ceiling" in full
    raised = "\n".join(explain(_plan("29samples", gamma=4.0), "day,rain/cross"))
    assert "target 4 kept samples" in raised
    assert "raised to the floor" in raised
    scaled = "\n".join(explain(_plan("14samples", allow_undecidable=True), "day,rain/cross"))
    assert "all that the budget leaves of the floor" in scaled
    assert "marked: its floor of 4 could not be met" in scaled
    half = "\n".join(explain(_plan(expected_yield=0.5), "night,rain/cross"))
    # 16 kept samples at a yield of 0.5 are 32 draws, but its 5 seeds offer 19 more; the one there is counts half
    assert "yield 50.0%, expected: nothing was verified here yet" in half
    assert "existing draws 1 are worth 0.5 kept samples: buy 19 for" in half


@pytest.mark.parametrize(
    ("policy", "changes", "text"),
    [
        ("uniform", {}, "band 0.05: not used by policy uniform"),
        ("fleet", {}, "base 0.1429: its fleet share 0.1429"),
        ("neyman", {}, "its fleet share 0.1429 x spread / root of price"),
        ("gate", {"fleet_blend": 0.25}, "75% of 1/7 + 25% of its fleet share 0.1429"),
        ("gate", {"boosts": {"night,rain": 3.0}}, "boost x 3"),
    ],
)
def test_each_policy_explains_itself(policy: str, changes: dict[str, object], text: str) -> None:
    """The base and band sentences follow the policy that was used."""
    assert text in "\n".join(explain(_plan(policy=policy, **changes), "night,rain/cross"))


def _small(request: PlanRequest, cells: pl.DataFrame, split: str, **more: object) -> Plan:
    """Plan two cells with 60 seeds each."""
    seeds = pl.DataFrame(
        {
            "seed_id": [f"c{c}-{i:02d}" for c in range(2) for i in range(60)],
            "cell_id": pl.Series([c for c in range(2) for _ in range(60)], dtype=pl.Int32),
            "grp": [f"g{i}" for i in range(120)],
            "split": [split] * 120,
            "prn": [(i % 60 + 0.5) / 60 for i in range(120)],
            "decision_point": [False] * 120,
            "k": pl.Series([None] * 120, dtype=pl.Int32),
        }
    )
    bought = more.pop("bought", pl.DataFrame(schema={"seed_id": pl.String, "k": pl.Int32}))
    return make_plan(request, cells, seeds, bought, Rates(usd=0.5, gpu_s=36.0), **more)  # type: ignore[arg-type]


def _two(**columns: list[object]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "cell_id": pl.Series([0, 1], dtype=pl.Int32),
            "cell": ["day/x", "night/x"],
            "slice": ["day", "night"],
            "scenario": ["x", "x"],
            "layer": ["core", "long_tail"],
            "feasible": [True, True],
            "band": [0.1, 0.1],
            "fleet_share": [0.5, 0.5],
            "k": pl.Series([1, 1], dtype=pl.Int32),
        }
    ).with_columns(pl.Series(name, values) for name, values in columns.items())


def test_rules_layers_verdicts_and_unfillable_cells_are_said() -> None:
    """Pins, caps, the rules' own words, a layer's part, a measured yield and what can't be filled are told."""
    cells = _two(
        pin=[None, 70], cap=[12, None], rule=["cap 12 (plan.rules[0]: slice=day)", None],
        k_source=["8: within 0.31, between 0.05, from 12 pilot seeds of the cell", None],
        yield_kept=[0, 12], yield_verified=[30, 20],
    )  # fmt: skip
    verdicts = pl.DataFrame(
        {"seed_id": [f"c1-{i:02d}" for i in range(20)], "k": [0] * 20, "state": ["kept"] * 12 + ["rejected"] * 8}
    )
    request = PlanRequest(
        purpose="train", budget=parse_budget("72samples"), held_out=(), floor_seeds=0, allow_undecidable=True,
        layers={"core": 1 / 6, "long_tail": 5 / 6},
    )  # fmt: skip
    plan = _small(request, cells, "train", bought=verdicts)
    day, night = "\n".join(explain(plan, "day")), "\n".join(explain(plan, "night"))
    assert "rules: cap 12 (plan.rules[0]: slice=day)" in day
    assert "  K 8: within 0.31, between 0.05, from 12 pilot seeds of the cell" in day
    assert "layer core: 0.1667 of 72 samples = 12 for all its cells" in day
    assert ", capped at 12 by the rules: target 12 kept samples" in day
    assert ", held by the cap" in day
    assert "unfillable: verifiers kept none of 20 draws or more; no top-up will reach 12" in day
    assert "pinned to 70 by the rules, ceiling 60 (60 seeds x 1 draws): target 60 kept samples, all that there" in night
    assert "yield 80.0%, measured by its verdicts" in night  # (12 + 20) / (20 + 20)
    assert "existing draws 12 (8 more were rejected) are worth 12.0 kept samples: buy 48 for $24.00" in night
    assert night.count("existing draws") == 1
    assert "marked: its floor of 70 could not be met" in night


def test_a_floor_by_rule_is_said_to_be_one() -> None:
    """A rule's floor of 30 is the rule's, and the floor of the other cell that of its seeds."""
    request = PlanRequest(purpose="train", budget=parse_budget("40samples"), held_out=(), floor_seeds=2)
    plan = _small(request, _two(floor=[30, None]), "train")
    assert "floor 30 (by the rules), ceiling" in "\n".join(explain(plan, "day"))
    assert "floor 2 (K draws of its first 2), ceiling" in "\n".join(explain(plan, "night"))


def test_gate_plans_say_their_minimum_and_price() -> None:
    """The gate's line gives what is needed, and the price what a tighter band or missing seeds would mean."""
    aims = GateAims(sigma=0.1)
    request = PlanRequest(purpose="gate", held_out=("gate",), min_groups=0, aims=aims, allow_undecidable=True)
    plan = _small(request, _two(band=[0.15, 0.1]), "gate")
    # day: 2 x 0.01 x (2 x 1.64485)^2 / 0.075^2 + 1.353 = 38.48 + 1.35 = 39.8; at 0.135: 47.51 + 1.35 = 48.9
    day = explain(plan, "day")
    assert (
        "  gate of day: 40 draws a side tell a difference of 0.5 bands from one of a whole band (band 0.15, K 1, sigma "
        "0.1); planned 40" in day
    )
    assert "  price of bands 10% tighter in day: 9 more draws, $4.50, 0.09 GPU-hours" in day
    # night: 86.58 + 1.35 = 87.9 of 60; at 0.09: 106.9 + 1.35 = 108.2, 49 more than the seeds give
    night = "\n".join(explain(plan, "night"))
    assert "price of bands 10% tighter in night: 49 samples are not to be had from its seeds" in night
    assert "marked: its slice gets less than its decidable minimum; its gate will stay undecided" in night


def test_top_ups_and_other_policies_explain_themselves() -> None:
    """A top-up's target is that of the plan in force; a policy that ignores bands has no price for them."""
    goals = pl.DataFrame({"cell_id": [0], "target": [3]})
    top_up = _small(PlanRequest(purpose="train", held_out=(), top_up=True), _two(), "train", goals=goals)
    assert explain(top_up, "day")[1:3] == [
        "  top-up: its target is that of the plan in force",
        "  ceiling 60 (60 seeds x 1 draws): target 3 kept samples",
    ]
    assert "price of bands 10% tighter: none, policy fleet does not look" in "\n".join(
        explain(_plan(policy="fleet"), "rain")
    )


def test_many_cells_are_cut_with_a_count() -> None:
    """More than 20 matching cells end in a line that says how many are left out."""
    plan = _plan("400samples", n_values=14)
    lines = explain(plan, "night")
    assert sum(not line.startswith(" ") for line in lines) == MAX_CELLS + 1
    assert lines[-1].startswith("... and 8 more cells match 'night'")


def test_a_plan_is_told_in_plain_words() -> None:
    """One sample is no plural, and an empty plan says once that there is nothing to buy."""
    cells = _two()
    request = PlanRequest(purpose="train", budget=parse_budget("1samples"), held_out=(), floor_seeds=0)
    plan = _small(request, cells, "train")
    said = plan_words(plan, "x", saved=True, dry_run=False, width=100, color=False)
    assert "1 sample aimed at: 0 are there, 1 to buy from 1 seed, $0.50" in said
    goals = pl.DataFrame({"cell_id": [0], "target": [1]})
    top_up = PlanRequest(purpose="train", held_out=(), top_up=True)
    full = _small(top_up, cells, "train", goals=goals, bought=plan.draws.select("seed_id", "k"))
    said = plan_words(full, "x", saved=True, dry_run=False, width=100, color=False)
    assert said.count("Nothing to buy") == said.count("Nothing") == 1
