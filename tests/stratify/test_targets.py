"""Targets: layers held to the sample, money with yields, top-ups that end at their goals, and what is refused."""

import re
from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distdata.catalogs.errors import DistdataError
from distdata.stratify.budget import parse_budget
from distdata.stratify.plan import make_plan
from distdata.stratify.request import Plan, PlanRequest, Rates

NOTHING = pl.DataFrame(schema={"seed_id": pl.String, "k": pl.Int32})
RATES = Rates(usd=0.5, gpu_s=36.0)
LAYERS = {"core": 0.5, "failure_mode": 0.3, "long_tail": 0.2}


def _cells(layers: Sequence[str], **columns: Sequence[object]) -> pl.DataFrame:
    n = len(layers)
    return pl.DataFrame(
        {
            "cell_id": pl.Series(range(n), dtype=pl.Int32),
            "cell": [f"s{i}/x" for i in range(n)],
            "slice": [f"s{i}" for i in range(n)],
            "scenario": ["x"] * n,
            "layer": list(layers),
            "feasible": [True] * n,
            "band": [0.1] * n,
            "fleet_share": [1 / n] * n,
            "k": pl.Series([4] * n, dtype=pl.Int32),
        }
    ).with_columns(pl.Series(name, list(values)) for name, values in columns.items())


def _seeds(per_cell: Sequence[int], *, decision: bool = False) -> pl.DataFrame:
    rows = [(f"c{c}-{i:05d}", c, f"g{c}-{i}", "train", (i + 0.5) / n) for c, n in enumerate(per_cell) for i in range(n)]
    schema = {"seed_id": pl.String, "cell_id": pl.Int32, "grp": pl.String, "split": pl.String, "prn": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(
        decision_point=pl.lit(decision), k=pl.lit(None, dtype=pl.Int32)
    )


def _plan(
    budget: str | None, cells: pl.DataFrame, seeds: pl.DataFrame, bought: pl.DataFrame = NOTHING, **changes: object
) -> Plan:
    goals = changes.pop("goals", None)
    blocked = changes.pop("blocked", None)
    rules: dict[str, object] = {"purpose": "train", "held_out": (), "floor_seeds": 0}
    request = PlanRequest(budget=parse_budget(budget) if budget else None, **(rules | changes))  # type: ignore[arg-type]
    return make_plan(request, cells, seeds, bought, RATES, goals=goals, blocked=blocked)  # type: ignore[arg-type]


def _by_layer(plan: Plan) -> dict[str, int]:
    return dict(plan.cells.group_by("layer").agg(pl.col("target").sum()).iter_rows())


THREE = ["core", "core", "failure_mode", "long_tail"]


def test_layers_hold_to_the_sample() -> None:
    """Of 101 samples the layers get 51, 30 and 20, whatever their cells weigh; one more goes where Webster says.

    Priorities 0.5 / 50.5 = 0.00990, 0.3 / 30.5 = 0.00984, 0.2 / 20.5 = 0.00976 beyond 50, 30 and 20.
    """
    cells = _cells(THREE, band=[0.1, 0.1, 0.01, 0.1])  # the failure mode alone would take 97%
    assert _by_layer(_plan("101samples", cells, _seeds([99] * 4), layers=LAYERS)) == {
        "core": 51, "failure_mode": 30, "long_tail": 20,
    }  # fmt: skip
    assert _by_layer(_plan("102samples", cells, _seeds([99] * 4), layers=LAYERS)) == {
        "core": 51, "failure_mode": 31, "long_tail": 20,
    }  # fmt: skip


def test_money_buys_the_largest_total_whose_shares_hold() -> None:
    """50 dollars are 100 draws: 50, 30, 20; with half of the core there already, they are 130 samples: 65, 39, 26.

    65 + 39 + 26 = 130 samples, of which 30 exist: 100 draws. 131 would take 101.
    """
    cells, seeds = _cells(THREE), _seeds([99] * 4)
    plan = _plan("$50", cells, seeds, layers=LAYERS)
    assert _by_layer(plan) == {"core": 50, "failure_mode": 30, "long_tail": 20}
    owned = pl.DataFrame({"seed_id": [f"c0-{i:05d}" for i in range(30)], "k": [0] * 30})
    plan = _plan("$50", cells, seeds, owned, layers=LAYERS)
    assert _by_layer(plan) == {"core": 65, "failure_mode": 39, "long_tail": 26}
    assert (plan.n_fresh, plan.usd) == (100, 50.0)


def test_money_beyond_what_the_shares_allow_is_a_named_shortfall() -> None:
    """With 10 long-tail seeds at 20% no more than 52 samples hold the shares: 26, 16 and 10; the rest is left over.

    The long tail's eleventh has priority 0.2 / 10.5 = 0.01905; before it come the core's first 26 (0.5 / 25.5 =
    0.01961) and the failure mode's first 16 (0.3 / 15.5 = 0.01935).
    """
    plan = _plan("$500", _cells(THREE), _seeds([99, 99, 99, 10]), layers=LAYERS)
    counts = _by_layer(plan)
    assert counts == {"core": 26, "failure_mode": 16, "long_tail": 10}
    assert plan.shortfall == 500 - 26
    assert plan.notes == (
        "$474.00 of 500usd could not be placed: 1 cell has no more seeds x K to give; the shares of the layers "
        "hold the others back. Import more seeds, or raise K or the caps.",
    )
    # one sample more, asked for directly, does not hold
    with pytest.raises(DistdataError, match=r"Plan at most the 52 samples at which the shares hold"):
        _plan("53samples", _cells(THREE), _seeds([99, 99, 99, 10]), layers=LAYERS)
    assert _by_layer(_plan("52samples", _cells(THREE), _seeds([99, 99, 99, 10]), layers=LAYERS)) == counts


def test_layers_that_cannot_hold_are_refused_with_a_way_out() -> None:
    """No cells, floors above a part, ceilings below it: each names the layer, the numbers and what would do."""
    cells, seeds = _cells(["core", "core"]), _seeds([50, 50])
    with pytest.raises(DistdataError, match=r"layers gives long_tail 0.2 of the samples, but no cell of that layer"):
        _plan("50samples", cells, seeds, layers=LAYERS | {"failure_mode": 0.0, "core": 0.8})
    mixed, many = _cells(THREE), _seeds([50] * 4)
    with pytest.raises(
        DistdataError,
        match=r"layer long_tail has 0.2 of 20 samples = 4, and the floors and pins of its cells need 5. Give at least "
        r"--budget 23samples, set \[plan\] layers to core = 0.5, failure_mode = 0.25, long_tail = 0.25, lower",
    ):
        _plan("20samples", mixed, many, layers=LAYERS, floor_seeds=5)
    # Webster at 23: 0.2 / 4.5 = 0.0444 is the 23rd largest: core 11 (0.5/10.5 = .0476), failure mode 7 (.3/6.5 = .0462)
    assert _by_layer(_plan("23samples", mixed, many, layers=LAYERS, floor_seeds=5))["long_tail"] == 5
    # 0.2 / 50.5 = 0.003960 is the 51st of the long tail: before it come 126 of the core (0.5 / 125.5 = 0.003984) and 76
    # of the failure mode (0.3 / 75.5 = 0.003974)
    with pytest.raises(
        DistdataError,
        match=r"layer long_tail has 0.2 of 400 samples = 80, and its cells can take 50 at most .* Plan at most "
        r"the 252 samples at which the shares hold, set \[plan\] layers to core = ",
    ):
        _plan("400samples", mixed, _seeds([150, 150, 150, 50]), layers=LAYERS)
    with pytest.raises(
        DistdataError, match=r"layer failure_mode has 0 of 40 samples = 0, .* need 5. No budget holds these shares, set"
    ):
        _plan("40samples", mixed, many, layers={"core": 0.8, "long_tail": 0.2}, floor_seeds=5)
    with pytest.raises(
        DistdataError,
        match=r"take 23 samples in these shares of the layers, which cost \$11.50; .* Give at least --budget 11.50usd",
    ):
        _plan("$11", mixed, many, layers=LAYERS, floor_seeds=5)
    assert _plan("$11.50", mixed, many, layers=LAYERS, floor_seeds=5).n_target == 23


def test_refused_layers_come_with_shares_that_hold() -> None:
    """All layers that fail are told at once, and the shares that are proposed plan as they stand."""
    cells, seeds = _cells(THREE), _seeds([50, 50, 50, 50])
    few = {"core": 0.9, "failure_mode": 0.05, "long_tail": 0.05}
    with pytest.raises(
        DistdataError, match=r"layer failure_mode has 0.05 .* need 5; layer long_tail has 0.05"
    ) as refused:
        _plan("27samples", cells, seeds, layers=few, floor_seeds=5)
    found = dict(re.findall(r"(core|failure_mode|long_tail) = ([\d.]+\d)", str(refused.value)))
    shares = {name: float(share) for name, share in found.items()}
    assert _plan("27samples", cells, seeds, layers=shares, floor_seeds=5).n_target == 27
    # the long tail's 50 seeds and the failure mode's 50 bound 97% of 200 from above
    with pytest.raises(
        DistdataError, match=r"layer failure_mode .* 50 at most .*; layer long_tail .* 50 at mo"
    ) as refused:
        _plan("190samples", cells, seeds, layers={"core": 0.4, "failure_mode": 0.3, "long_tail": 0.3})
    found = dict(re.findall(r"(core|failure_mode|long_tail) = ([\d.]+\d)", str(refused.value)))
    shares = {name: float(share) for name, share in found.items()}
    assert _plan("190samples", cells, seeds, layers=shares).n_target == 190


def test_layers_can_be_planned_short() -> None:
    """Allowed, floors shrink inside their layer's part, and a total that ceilings forbid becomes a shortfall."""
    cells, seeds = _cells(THREE), _seeds([50] * 4)
    plan = _plan("20samples", cells, seeds, layers=LAYERS, floor_seeds=5, allow_undecidable=True)
    assert _by_layer(plan) == {"core": 10, "failure_mode": 6, "long_tail": 4}
    assert plan.cells["mark"].to_list() == ["", "", "", "below floor"]
    plan = _plan("400samples", cells, _seeds([99, 99, 50, 10]), layers=LAYERS, allow_undecidable=True)
    assert _by_layer(plan)["long_tail"] == 10
    assert plan.n_target + plan.shortfall == 400


@st.composite
def _layered(draw: st.DrawFn) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, float]]:
    """Draw cells of at least two layers with seeds enough for what is asked, and shares that sum to 1."""
    layers = draw(st.lists(st.sampled_from(["core", "failure_mode", "long_tail"]), min_size=2, max_size=5))
    names = sorted(set(layers))
    parts = draw(st.lists(st.integers(1, 6), min_size=len(names), max_size=len(names)))
    shares = {name: part / sum(parts) for name, part in zip(names, parts, strict=True)}
    bands = draw(st.lists(st.sampled_from([0.02, 0.05, 0.1]), min_size=len(layers), max_size=len(layers)))
    return _cells(layers, band=bands), _seeds([80] * len(layers)), shares


@given(world=_layered(), budget=st.integers(2, 60), more=st.integers(1, 15), kind=st.sampled_from(["samples", "usd"]))
@settings(max_examples=40, deadline=None)
def test_layers_are_exact_and_nothing_shrinks(
    world: tuple[pl.DataFrame, pl.DataFrame, dict[str, float]], budget: int, more: int, kind: str
) -> None:
    """Parts differ from share x total by less than one sample plus what Webster moves; more budget shrinks no cell.

    With up to three layers a Webster part is within 1 of its quota (it stays within quota for three parties or fewer
    but for rounding of halves: Balinski and Young, chapter 9).
    """
    cells, seeds, shares = world
    small, large = (_plan(f"{b}{kind}", cells, seeds, layers=shares) for b in (budget, budget + more))
    total = small.n_target
    assert total == (budget if kind == "samples" else 2 * budget)
    for name, n in _by_layer(small).items():
        assert abs(n - shares[name] * total) <= 1 + 1e-9
    assert (large.cells["target"] >= small.cells["target"]).all()
    wanted = set(small.draws.select("seed_id", "k").iter_rows())
    assert wanted <= set(large.draws.select("seed_id", "k").iter_rows())


def test_pins_caps_and_floors_by_rule() -> None:
    """A pin is met exactly, a floor at least, a cap at most; the rest of 40 is shared by weight."""
    rules = {
        "pin": pl.Series([7, None, None, None], dtype=pl.Int64),
        "floor": pl.Series([None, 15, None, None], dtype=pl.Int64),
        "cap": pl.Series([None, None, 3, None], dtype=pl.Int64),
    }
    cells = _cells(["core"] * 4).with_columns(**rules)
    plan = _plan("40samples", cells, _seeds([50] * 4), floor_seeds=5)
    # 7, then 15 (its weight alone: 10), 3 (the cap outranks the floor of 5 seeds), and 40 - 25 = 15 for the last
    assert plan.cells["target"].to_list() == [7, 15, 3, 15]
    assert plan.cells.select("pin", "cap").rows() == [(7, -1), (-1, -1), (-1, 3), (-1, -1)]


def test_rules_are_for_the_training_corpus() -> None:
    """A pilot plan with a budget takes no notice of pins and boosts."""
    cells = _cells(["core"] * 2).with_columns(
        pin=pl.Series([1, None], dtype=pl.Int64), rule_boost=pl.Series([9.0, 1.0])
    )
    assert _plan("10samples", cells, _seeds([50] * 2), purpose="pilot").cells["target"].to_list() == [5, 5]
    assert _plan("10samples", cells, _seeds([50] * 2)).cells["target"].to_list() == [1, 9]


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        (
            {"pin": [9, None], "cap": [4, None]},
            r"in 1 cell: s0/x has pin 9 above cap 4. Lower the pin or raise the cap",
        ),
        ({"floor": [None, 9], "cap": [None, 4]}, r"s1/x has floor 9 above cap 4. Lower the floor or raise the cap"),
        (
            {"pin": [2, 2], "floor": [3, 3]},
            r"in 2 cells: s0/x has floor 3 above pin 2. Lower the floor or raise the pin",
        ),
        (
            {"pin": [60, None]},
            r"more kept samples than there can be: s0/x 60, but its 50 seeds give at most 50. Import",
        ),
        ({"floor": [70, 60]}, r"s0/x 70, but its 50 seeds give at most 50; s1/x 60, but its 50 .*--allow-undecidable"),
        ({"pin": [-3, None]}, r"pin of cell s0/x is -3; it must be at least 0"),
        (
            {"pin": [30, 30]},
            r"the pins of 2 more need 60 samples; the budget is 40samples. Give at least --budget 60sam",
        ),
        ({"floor": [30, 30]}, r"floors of 2 cells \(0 seeds each, or more by \[\[plan.rules\]\]\) need 60 samples"),
    ],
)
def test_contradicting_rules_are_refused(rules: dict[str, list[int | None]], reason: str) -> None:
    """Each contradiction gives the cell, both numbers and what to change."""
    cells = _cells(["core"] * 2).with_columns(pl.Series(name, value, dtype=pl.Int64) for name, value in rules.items())
    with pytest.raises(DistdataError, match=reason):
        _plan("40samples", cells, _seeds([50] * 2))


def test_rules_beyond_the_seeds_can_be_cut_and_marked() -> None:
    """Allowed, a pin of 60 on 50 seeds takes the 50, and the cell is marked."""
    cells = _cells(["core"] * 2).with_columns(pin=pl.Series([60, None], dtype=pl.Int64))
    plan = _plan("70samples", cells, _seeds([50] * 2), allow_undecidable=True)
    assert plan.cells["target"].to_list() == [50, 20]
    assert plan.cells["mark"].to_list() == ["below floor", ""]


def test_caps_below_the_budget_are_a_named_shortfall() -> None:
    """Caps of 5 leave 10 of 20 samples over, and the note says that caps did it."""
    cells = _cells(["core"] * 2).with_columns(cap=pl.Series([5, 5], dtype=pl.Int64))
    plan = _plan("20samples", cells, _seeds([50] * 2))
    assert (plan.cells["target"].to_list(), plan.shortfall) == ([5, 5], 10.0)
    assert plan.notes == (
        "10 samples of 20samples could not be placed: 2 cells have a cap or pin that stops there. Import more seeds, "
        "or raise K or the caps.",
    )


@st.composite
def _verified(draw: st.DrawFn) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Draw cells with floors and caps, seeds of mixed K, and draws with verdicts, counted into the cells' yields."""
    n = draw(st.integers(1, 4))
    seeds = _seeds(draw(st.lists(st.integers(2, 9), min_size=n, max_size=n)))
    m = seeds.height
    seeds = seeds.with_columns(
        decision_point=pl.Series(draw(st.lists(st.booleans(), min_size=m, max_size=m))),
        prn=pl.Series(draw(st.lists(st.sampled_from([0.1, 0.25, 0.5, 0.7, 0.9]), min_size=m, max_size=m))),
    )
    keys = draw(
        st.lists(st.tuples(st.sampled_from(seeds["seed_id"].to_list()), st.integers(0, 5)), max_size=20, unique=True)
    )
    states = draw(st.lists(st.sampled_from(["kept", "rejected", "unverified"]), min_size=len(keys), max_size=len(keys)))
    bought = pl.DataFrame(
        [(*key, state) for key, state in zip(keys, states, strict=True)],
        schema={"seed_id": pl.String, "k": pl.Int32, "state": pl.String},
        orient="row",
    )
    cell = [int(seed[1 : seed.index("-")]) for seed, _ in keys]
    kept = [sum(c == h and s == "kept" for c, s in zip(cell, states, strict=True)) for h in range(n)]
    lost = [sum(c == h and s == "rejected" for c, s in zip(cell, states, strict=True)) for h in range(n)]
    cells = _cells(
        ["core"] * n,
        band=draw(st.lists(st.sampled_from([0.02, 0.05, 0.1]), min_size=n, max_size=n)),
        yield_kept=kept,
        yield_verified=[a + b for a, b in zip(kept, lost, strict=True)],
    ).with_columns(
        floor=pl.Series(draw(st.lists(st.sampled_from([None, 1]), min_size=n, max_size=n)), dtype=pl.Int64),
        cap=pl.Series(draw(st.lists(st.sampled_from([None, 2, 7]), min_size=n, max_size=n)), dtype=pl.Int64),
    )
    return cells, seeds, bought


@given(
    world=_verified(),
    budget=st.integers(4, 60),
    more=st.integers(1, 20),
    kind=st.sampled_from(["samples", "usd"]),
    expected_yield=st.sampled_from([1.0, 0.8, 0.3]),
)
@settings(max_examples=60, deadline=None)
def test_verdicts_rules_and_yields_keep_plans_nested(
    world: tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame], budget: int, more: int, kind: str, expected_yield: float
) -> None:
    """With verdicts, floors, caps and any yield: budgets are met, bounds kept, and a larger budget contains a smaller.

    No draw is bought twice, none replaces a rejected one in its place, and no seed gets more than K that may count.
    """
    cells, seeds, bought = world
    small, large = (
        _plan(f"{b}{kind}", cells, seeds, bought, expected_yield=expected_yield) for b in (budget, budget + more)
    )
    assert (large.cells["target"] >= small.cells["target"]).all()
    wanted = small.draws.select("seed_id", "k").rows()
    assert [row for row in large.draws.select("seed_id", "k").rows() if row in set(wanted)] == wanted
    assert not set(wanted) & set(bought.select("seed_id", "k").rows())
    table = small.cells
    if kind == "samples":
        assert small.n_target + small.shortfall == budget
        blank = cells.with_columns(yield_kept=pl.lit(0), yield_verified=pl.lit(0))
        unseen = _plan(f"{budget}samples", blank, seeds, expected_yield=expected_yield)
        assert table["target"].to_list() == unseen.cells["target"].to_list()
    else:
        assert small.usd <= budget + 1e-9
    assert (table["target"] <= table["ceiling"]).all()
    assert ((table["cap"] < 0) | (table["target"] <= table["cap"])).all()
    assert (table["target"] >= pl.select(pl.min_horizontal(table["floor"], table["ceiling"])).to_series()).all()
    counting = (
        pl.concat([bought.filter(pl.col("state") != "rejected").select("seed_id"), small.draws.select("seed_id")])
        .group_by("seed_id")
        .len()
        .join(seeds.select("seed_id", top=pl.when("decision_point").then(4).otherwise(1)), on="seed_id")
        .join(small.draws.select("seed_id").unique(), on="seed_id")
    )
    assert (counting["len"] <= counting["top"]).all()


def _states(draws: pl.DataFrame, rejected: set[tuple[str, int]]) -> pl.DataFrame:
    """Verify draws: rejected where named, else kept."""
    keys = draws.select("seed_id", pl.col("k").cast(pl.Int32))
    return keys.with_columns(state=pl.Series(["rejected" if row in rejected else "kept" for row in keys.iter_rows()]))


def test_measured_yields_by_hand() -> None:
    """12 of 20 kept against an expected 0.9: (12 + 18) / 40 = 0.75, so 30 kept samples take 18 / 0.75 = 24 draws.

    The other cell, nothing verified, goes by 0.9: 30 / 0.9 = 33.3, 34 draws.
    """
    cells = _cells(["core"] * 2, yield_kept=[12, 0], yield_verified=[20, 0])
    draws = pl.DataFrame({"seed_id": [f"c0-{i:05d}" for i in range(20)], "k": [0] * 20})
    bought = _states(draws, {(f"c0-{i:05d}", 0) for i in range(8)})
    plan = _plan("60samples", cells, _seeds([99, 99]), bought, expected_yield=0.9)
    assert plan.cells["target"].to_list() == [30, 30]
    assert plan.cells["yield"].to_list() == pytest.approx([0.75, 0.9])
    assert plan.cells["worth"].to_list() == [12.0, 0.0]
    assert plan.cells["n_rejected"].to_list() == [8, 0]
    assert plan.cells["fresh"].to_list() == [24, 34]
    # the eight holes come first: the next k of the seeds whose draw was rejected
    mine = plan.draws.filter(pl.col("cell_id") == 0).select("seed_id", "k").rows()
    assert [row for row in mine if row[1] == 1] == [(f"c0-{i:05d}", 1) for i in range(8)]
    assert sum(k == 0 for _, k in mine) == 16


def test_a_top_up_by_hand() -> None:
    """Goals of 10 and 4: the first kept 6 of 10, so 4 / ((6 + 20) / 30) = 4.6, 5 draws; the second is full."""
    cells = _cells(["core"] * 2, yield_kept=[6, 4], yield_verified=[10, 4])
    seeds = _seeds([50, 50])
    draws = pl.DataFrame(
        {"seed_id": [f"c0-{i:05d}" for i in range(10)] + [f"c1-{i:05d}" for i in range(4)], "k": [0] * 14}
    )
    bought = _states(draws, {(f"c0-{i:05d}", 0) for i in range(4)})
    goals = pl.DataFrame({"cell_id": [0, 1], "target": [10, 4]})
    plan = _plan(None, cells, seeds, bought, top_up=True, goals=goals)
    assert plan.cells["target"].to_list() == [10, 4]
    assert plan.cells["fresh"].to_list() == [5, 0]
    assert plan.notes == ()
    with pytest.raises(
        DistdataError, match=r"0.10usd buys nothing; the cheapest draw costs \$0.50. Give at least --budget 0.50usd"
    ):
        _plan("0.1usd", cells, seeds, bought, top_up=True, goals=goals)
    # 1 dollar pays 2 of the 5 draws
    part = _plan("$1", cells, seeds, bought, top_up=True, goals=goals)
    assert (part.cells["target"].to_list(), part.n_fresh) == ([10, 4], 2)
    assert part.notes == ("1usd pays for 2 of the 5 draws that are short; all of them cost $2.50.",)


def test_money_is_told_as_it_is() -> None:
    """Real sums are told to a person as they are, and rounded up only where a budget is to be typed."""
    cells, seeds = _cells(["core"] * 2), _seeds([50, 50])
    request = PlanRequest(purpose="train", budget=parse_budget("0.001usd"), held_out=(), floor_seeds=2)
    with pytest.raises(DistdataError, match=r"cost \$0.00332; the budget is 0.001usd. Give at least --budget 0.01usd"):
        make_plan(request, cells, seeds, NOTHING, Rates(usd=0.00083, gpu_s=1.0))
    goals = pl.DataFrame({"cell_id": [0], "target": [4]})
    request = PlanRequest(purpose="train", budget=parse_budget("0.001usd"), held_out=(), top_up=True)
    plan = make_plan(request, cells, seeds, NOTHING, Rates(usd=0.0005, gpu_s=1.0), goals=goals)
    assert plan.notes == ("0.001usd pays for 2 of the 4 draws that are short; all of them cost $0.002.",)
    hours = _plan("400gpuh", cells, seeds)  # 100 draws of 0.01 hours
    assert hours.notes[0].startswith("399 GPU-hours of 400gpuh could not be placed")
    assert _plan("1000000000000usd", cells, seeds).notes[0].startswith("$999,999,999,950 of 1000000000000usd could")


def test_nothing_short_is_an_empty_plan_with_a_word() -> None:
    """A top-up of a full corpus buys nothing and says so; without a plan in force there is nothing to top up."""
    cells, seeds = _cells(["core"] * 2), _seeds([5, 5])
    goals = pl.DataFrame({"cell_id": [0], "target": [1]})
    plan = _plan(None, cells, seeds, _states(_one("c0-00000"), set()), top_up=True, goals=goals)
    assert plan.n_fresh == 0
    assert plan.notes == ("Nothing to buy: the one cell with a target stands at it.",)
    for none in (None, goals.clear()):
        with pytest.raises(DistdataError, match="no plan in force whose targets could be filled"):
            _plan(None, cells, seeds, top_up=True, goals=none)


def test_a_top_up_refuses_nothing_that_its_plan_was_allowed() -> None:
    """Cells without seeds and rules that came later don't stop a top-up: its goals hold, unfillable ones are named."""
    cells = _cells(["core"] * 2).with_columns(pin=pl.Series([99, 99], dtype=pl.Int64))
    goals = pl.DataFrame({"cell_id": [0, 1], "target": [4, 4]})
    plan = _plan(None, cells, _seeds([5, 0]), top_up=True, goals=goals)
    assert plan.cells["fresh"].to_list() == [4, 0]
    assert plan.unfillable.rows() == [("s1/x", 4, 0.0, "its 0 seeds can give 0 kept samples at most")]


def test_cells_that_no_budget_reaches_are_told_from_too_little_money() -> None:
    """Caps of 0 and weights of 0 are named as what stops a plan, not the price of a draw."""
    cells = _cells(["core"] * 2, fleet_share=[1.0, 0.0]).with_columns(cap=pl.Series([0, None], dtype=pl.Int64))
    for budget in ("50samples", "$50"):
        with pytest.raises(
            DistdataError,
            match=r"of 2 cells with seeds none can get a sample: 1 by a weight of 0 under .*fleet, 1 by a cap",
        ):
            _plan(budget, cells, _seeds([5, 5]), policy="fleet")


def _one(seed_id: str) -> pl.DataFrame:
    return pl.DataFrame({"seed_id": [seed_id], "k": [0]})


def test_a_met_sample_budget_is_an_empty_plan_with_a_word() -> None:
    """The same plan again, with its draws bought, buys nothing and says what there is."""
    cells, seeds = _cells(["core"] * 2), _seeds([5, 5])
    first = _plan("6samples", cells, seeds)
    again = _plan("6samples", cells, seeds, first.draws.select("seed_id", "k"))
    assert again.notes == ("Nothing to buy: the 6 samples that exist are what this budget aims at.",)


def test_too_little_money_says_what_a_draw_costs() -> None:
    """With samples there already, a budget below the price of a draw is an empty plan that names both."""
    cells, seeds = _cells(["core"] * 2), _seeds([5, 5])
    first = _plan("6samples", cells, seeds)
    again = _plan("0.25usd", cells, seeds, first.draws.select("seed_id", "k"))
    assert again.n_fresh == 0
    assert again.notes[-1].startswith("Nothing to buy: $0.25 pays for no new draw")
    assert again.notes[-1].endswith("a draw costs $0.50 or more.")


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_top_ups_fill_a_skewed_log_to_its_targets(seed: int) -> None:
    """A log skewed 1000:1, 20% rejected: top-ups end with every fillable cell at its target and the others named.

    Eight cells of 20,000 down to 20 seeds, K 4, two more that can't be filled: one whose draws are all rejected and one
    that lost seeds after its target was set. Kept samples are at least the target and at most one seed's K above it: a
    last round of some 18 draws for 14 exceeds that by chance in 2 of 100 cells (binomial, 0.8), and seeds are fixed.
    """
    sizes = [20_000, 7_400, 2_700, 1_000, 380, 140, 50, 20, 300, 30]
    hopeless = 8
    rng = np.random.default_rng(seed)
    seeds, cells = _seeds(sizes, decision=True), _cells(["core"] * 10)
    bought = pl.DataFrame(schema={**NOTHING.schema, "state": pl.String})
    plan = _plan("1200samples", cells, seeds, expected_yield=0.9)
    goals = plan.cells.select("cell_id", "target")
    assert goals["target"].to_list() == [125, 125, 125, 125, 125, 125, 125, 80, 125, 120]
    blocked = pl.Series([f"c9-{i:05d}" for i in range(10, 30)])
    for _ in range(12):
        keys = plan.draws.select("seed_id", pl.col("k").cast(pl.Int32), cell=pl.col("cell_id"))
        lost = (rng.random(keys.height) < 0.2) | (keys["cell"].to_numpy() == hopeless)
        fresh = keys.select("seed_id", "k", state=pl.Series(np.where(lost, "rejected", "kept").tolist()))
        bought = pl.concat([bought, fresh])
        assert bought.select("seed_id", "k").n_unique() == bought.height  # no draw is bought twice
        cell = bought["seed_id"].str.extract(r"c(\d+)-", 1).cast(pl.Int64).to_numpy()
        kept = np.bincount(cell[(bought["state"] == "kept").to_numpy()], minlength=10)
        known = cells.with_columns(
            yield_kept=pl.Series(kept), yield_verified=pl.Series(np.bincount(cell, minlength=10))
        )
        plan = _plan(
            None, known, seeds, bought, expected_yield=0.9, top_up=True, goals=goals, blocked=blocked
        )  # fmt: skip
        if plan.n_fresh == 0:
            break
    assert plan.n_fresh == 0
    target = goals["target"].to_numpy()
    fillable = np.arange(10) < 8
    assert np.all(kept[fillable] >= target[fillable])
    assert np.all(kept[fillable] <= target[fillable] + 4)
    assert plan.unfillable.rows() == [
        ("s8/x", 125, 0.0, "verifiers kept none of 20 draws or more"),
        ("s9/x", 120, 40.0, "its 30 seeds can give 40 kept samples at most"),
    ]
    assert kept[hopeless] == 0
    assert "Nothing can be bought now: 2 cells are short" in plan.notes[0]
    assert (bought["k"] >= 4).any()  # rejected draws were replaced by later k's
