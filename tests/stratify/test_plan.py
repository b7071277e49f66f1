"""Plans: counts and draws by hand, what grows and what stays, and what is refused."""

from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distdata.catalogs.errors import DistdataError
from distdata.catalogs.frames import candidates_of
from distdata.stratify.budget import parse_budget
from distdata.stratify.chain import MARK_BELOW_FLOOR, MARK_NO_SEEDS, MARK_SHORT_GROUPS
from distdata.stratify.minima import GateAims
from distdata.stratify.plan import make_plan
from distdata.stratify.request import Plan, PlanRequest, Rates, plan_id

NOTHING = pl.DataFrame(schema={"seed_id": pl.String, "k": pl.Int32})
RATES = Rates(usd=0.5, gpu_s=36.0)  # 0.01 GPU-hours


def _cells(n: int, **columns: Sequence[object]) -> pl.DataFrame:
    """Make n cells, one slice each, bands 0.1, equal fleet shares, K 4 at decision points."""
    frame = pl.DataFrame(
        {
            "cell_id": pl.Series(range(n), dtype=pl.Int32),
            "slice": [f"s{i}" for i in range(n)],
            "scenario": ["cross"] * n,
            "layer": ["core"] * n,
            "feasible": [True] * n,
            "band": [0.1] * n,
            "fleet_share": [1 / n] * n,
            "k": pl.Series([4] * n, dtype=pl.Int32),
        }
    ).with_columns(pl.Series(name, list(values)) for name, values in columns.items())
    return frame.with_columns(cell=pl.col("slice") + "/" + pl.col("scenario"))


def _seeds(per_cell: Sequence[int], *, decision: bool = False, split: str = "train") -> pl.DataFrame:
    """Make seeds c0-0, c0-1, ... of cell 0 and so on; prn rises with the number: 0.01, 0.02, ... in each cell."""
    rows = [
        (f"c{c}-{i}", c, f"g{c}-{i}", split, (i + 1) / 100 + c / 10_000)
        for c, n in enumerate(per_cell)
        for i in range(n)
    ]
    schema = {"seed_id": pl.String, "cell_id": pl.Int32, "grp": pl.String, "split": pl.String, "prn": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(
        decision_point=pl.lit(decision), k=pl.lit(None, dtype=pl.Int32)
    )


def _request(budget: str, **changes: object) -> PlanRequest:
    """Ask for a train plan without held-out splits or floors."""
    rules: dict[str, object] = {"purpose": "train", "held_out": (), "floor_seeds": 0}
    return PlanRequest(budget=parse_budget(budget), **(rules | changes))  # type: ignore[arg-type]


def _plan(
    budget: str, cells: pl.DataFrame, seeds: pl.DataFrame, bought: pl.DataFrame = NOTHING, **changes: object
) -> Plan:
    return make_plan(_request(budget, **changes), cells, seeds, bought, RATES)


def _bought(*draws: tuple[str, int]) -> pl.DataFrame:
    return pl.DataFrame(draws, schema=NOTHING.schema, orient="row")


def _column(plan: Plan, name: str) -> list[object]:
    return plan.cells[name].to_list()


def _draws(plan: Plan) -> list[tuple[str, int]]:
    return list(plan.draws.select("seed_id", "k").iter_rows())


def test_bands_become_counts() -> None:
    """Bands 0.1, 0.05 and 0.1 with 60 samples give 10, 40 and 10 (weights 1, 4, 1), at 0.5 dollars a draw."""
    plan = _plan("60samples", _cells(3, band=[0.1, 0.05, 0.1]), _seeds([50, 50, 50]))
    assert _column(plan, "target") == [10, 40, 10]
    assert _column(plan, "fresh") == [10, 40, 10]
    assert _column(plan, "usd") == [5.0, 20.0, 5.0]
    assert (plan.n_target, plan.n_fresh, plan.usd, plan.gpu_s, plan.shortfall) == (60, 60, 30.0, 2160.0, 0.0)


def test_draws_come_in_generation_order() -> None:
    """Seeds by prn over all cells, the K draws of a decision point together; a cell's last seed may give fewer."""
    plan = _plan("14samples", _cells(2), _seeds([3, 3], decision=True))
    # 7 draws each: seed 0 in full (4), seed 1 with 3; prn: c0-0 .01, c1-0 .0101, c0-1 .02, c1-1 .0201
    expected = [(f"c{c}-0", k) for c in (0, 1) for k in range(4)] + [(f"c{c}-1", k) for c in (0, 1) for k in range(3)]
    assert _draws(plan) == expected
    assert plan.draws["k_total"].to_list() == [4] * 8 + [3] * 6
    # 2 of 3 seeds; weight f / (N pi K) = 0.5 / (3 x 2/3 x 4) = 1/16 and, for the seed with 3 draws, 1/12
    np.testing.assert_allclose(plan.draws["pi"].to_numpy(), 2 / 3)
    np.testing.assert_allclose(plan.draws["weight"].to_numpy(), [1 / 16] * 8 + [1 / 12] * 6)


def test_k_follows_decision_point_seed_cell_and_request() -> None:
    """K is 1 off decision points, else the seed's own, else the cell's, else the request's."""
    cells = _cells(2).with_columns(k=pl.Series([4, None], dtype=pl.Int32))
    seeds = _seeds([3, 1]).with_columns(
        decision_point=pl.Series([True, True, False, True]), k=pl.Series([None, 2, 9, None], dtype=pl.Int32)
    )
    plan = _plan("1000samples", cells, seeds, k=6)
    assert _column(plan, "ceiling") == [4 + 2 + 1, 6]
    per_seed = plan.draws.group_by("seed_id").len().sort("seed_id")["len"].to_list()
    assert per_seed == [4, 2, 1, 6]


def test_floor_and_ceiling_hold() -> None:
    """A light cell gets its floor of whole seeds, a small one stops at its ceiling, the rest goes to the others."""
    cells = _cells(3, band=[0.01, 0.1, 0.1])  # weights 100, 1, 1
    plan = _plan("30samples", cells, _seeds([2, 9, 9], decision=True), floor_seeds=2)
    # ceiling of the first: 2 seeds x 4 = 8; floors of 8 each; 22 left for two equal cells: 11 each
    assert _column(plan, "floor") == [8, 8, 8]
    assert _column(plan, "ceiling") == [8, 36, 36]
    assert _column(plan, "target") == [8, 11, 11]


def test_a_budget_beyond_all_seeds_is_reported_as_shortfall() -> None:
    """What no seed is left for is counted, not refused: 5 of 12 samples, or 7.5 of 10 dollars."""
    seeds = _seeds([2, 3])
    assert _plan("12samples", _cells(2), seeds).shortfall == 7.0
    plan = _plan("10usd", _cells(2), seeds)
    assert (plan.n_fresh, plan.usd, plan.shortfall) == (5, 2.5, 7.5)


def test_money_buys_whole_draws() -> None:
    """2.30 dollars at 0.50 a draw are 4 draws, 0.05 GPU-hours at 0.01 are 5, in turn over two equal cells."""
    assert _column(_plan("$2.30", _cells(2), _seeds([9, 9])), "fresh") == [2, 2]
    assert _column(_plan("0.05gpuh", _cells(2), _seeds([9, 9])), "fresh") == [3, 2]


def test_rates_may_differ_by_cell() -> None:
    """With prices of 2 and 1 dollars, 6 dollars walk a, b, a, b: 2 + 1 + 2 + 1."""
    rates = pl.DataFrame({"cell_id": [1, 0], "usd": [1.0, 2.0], "gpu_s": [1.0, 1.0]})
    plan = make_plan(_request("6usd"), _cells(2), _seeds([9, 9]), NOTHING, rates)
    assert _column(plan, "fresh") == [2, 2]
    assert _column(plan, "usd") == [4.0, 2.0]


def test_yield_buys_more_than_the_target() -> None:
    """At a yield of 0.7, 5 kept samples take 8 draws; a cell of 5 seeds can be asked for 5, and offers 5 draws now."""
    plan = _plan("10samples", _cells(2), _seeds([99, 5]), expected_yield=0.7)
    assert _column(plan, "target") == [5, 5]
    assert _column(plan, "fresh") == [8, 5]  # 5/0.7 = 7.1 -> 8, but the second has no more than 5
    assert plan.notes == (
        "1 cell may end below target: all that the seeds offer is bought, and some of it will be rejected. "
        "Run `distdata plan --top-up` once the verdicts are in.",
    )
    # 20 draws: t kept samples take ceil(t / 0.7) = 2 3 5 6 8 9 10 12 13 15 draws; the second cell's 4th takes its last,
    # 5th draw (3.5 expected ones, so not a 5th sample); in turn 1 1 2 2 3 3 4 4 = 11 draws, then the first alone to 15
    money = _plan("10usd", _cells(2), _seeds([99, 5]), expected_yield=0.7)
    assert (_column(money, "target"), _column(money, "fresh")) == ([10, 4], [15, 5])


def test_yield_is_not_lost_to_rounding() -> None:
    """57 kept of 100 draws at 0.57, though 57 / 0.57 is 100.00000000000001 and 100 x 0.57 is 56.99999999999999."""
    plan = _plan("57samples", _cells(1), _seeds([101]), expected_yield=0.57)
    assert (_column(plan, "target"), _column(plan, "fresh")) == ([57], [100])
    money = _plan("50usd", _cells(1), _seeds([200]), expected_yield=0.57)
    assert (_column(money, "target"), _column(money, "fresh")) == ([57], [100])


def test_what_exists_is_not_bought_again() -> None:
    """Existing draws lower the purchase one for one, up to K a seed, and the next free k is bought instead."""
    seeds = _seeds([3, 3], decision=True)
    owned = _bought(("c0-0", 1), ("c0-0", 1), ("c0-1", 0), ("c0-1", 9), ("elsewhere", 0))
    plan = _plan("16samples", _cells(2), seeds, owned)
    assert _column(plan, "target") == [8, 8]
    assert _column(plan, "credit") == [3, 0]  # c0-0 once, c0-1 twice (one with a k that K would not give)
    assert _column(plan, "fresh") == [5, 8]
    mine = [draw for draw in _draws(plan) if draw[0].startswith("c0")]
    assert mine == [("c0-0", 0), ("c0-0", 2), ("c0-0", 3), ("c0-1", 1), ("c0-1", 2)]
    # c0-0 then holds all its 4; c0-1 holds 2 old and 2 new
    assert plan.seeds.filter(pl.col("cell_id") == 0)["k_total"].to_list() == [4, 4]


def test_no_seed_earns_more_than_k_credits() -> None:
    """Ten byproducts of one seed with K 4 count 4."""
    owned = _bought(*[("c0-0", k) for k in range(100, 110)])
    plan = _plan("8samples", _cells(1), _seeds([3], decision=True), owned)
    assert (_column(plan, "credit"), _column(plan, "fresh")) == ([4], [4])
    assert _draws(plan) == [("c0-1", k) for k in range(4)]


def test_credits_are_free_under_a_money_budget() -> None:
    """Two dollars buy four draws whether or not three exist already, and the corpus grows by those three."""
    owned = _bought(("c0-0", 0), ("c0-1", 0), ("c1-0", 0))
    plan = _plan("2usd", _cells(2), _seeds([9, 9]), owned)
    assert plan.n_fresh == 4
    assert _column(plan, "target") == [4, 3]  # a free, b free, a free, then b, a, b, a for 0.5 each


def test_a_finished_plan_buys_nothing_more() -> None:
    """Planning the same again with its own draws bought leaves nothing to buy and the same targets."""
    cells, seeds = _cells(3, band=[0.1, 0.05, 0.07]), _seeds([9, 9, 9], decision=True)
    for expected_yield in (1.0, 0.6):
        first = _plan("33samples", cells, seeds, expected_yield=expected_yield)
        again = _plan("33samples", cells, seeds, first.draws, expected_yield=expected_yield)
        assert again.n_fresh == 0
        assert _column(again, "target") == _column(first, "target")


@pytest.mark.parametrize(
    ("purpose", "split"), [("train", "train"), ("pilot", "train"), ("gate", "gate"), ("confirm", "confirm")]
)
def test_a_purpose_buys_only_in_its_split(purpose: str, split: str) -> None:
    """Every draw lies on a seed of the purpose's split, and only draws on such seeds earn credit."""
    seeds = _seeds([12]).with_columns(split=pl.Series(["train", "gate", "confirm"] * 4))
    owned = _bought(("c0-0", 0), ("c0-1", 0), ("c0-2", 0))  # one of each split
    rules = {"held_out": ("gate", "confirm"), "min_groups": 1, "allow_undecidable": True}
    plan = _plan("100samples", _cells(1), seeds, owned, purpose=purpose, **rules)
    bought_in = plan.draws.join(seeds, on="seed_id")["split"].unique().to_list()
    assert bought_in == [split]
    assert (plan.n_credit, plan.n_fresh) == (1, 3)


def test_infeasible_cells_get_nothing_and_keep_their_row() -> None:
    """An infeasible cell stays in the table with weight, target and frame 0, even if it has seeds and draws."""
    cells = _cells(2, feasible=[True, False], band=[0.1, float("nan")], fleet_share=[1.0, 0.0])
    plan = _plan("5samples", cells, _seeds([9, 9]), _bought(("c1-0", 0)))
    for column, expected in (("target", [5, 0]), ("ceiling", [9, 0]), ("credit", [0, 0]), ("n_seeds_frame", [9, 0])):
        assert _column(plan, column) == expected
    assert plan.cells["weight"][1] == 0


def test_boosts_go_to_slices_and_cells() -> None:
    """A slice's boost of 2 doubles its cells and a cell's own boost replaces it."""
    cells = _cells(3).with_columns(slice=pl.Series(["a", "a", "b"]), scenario=pl.Series(["x", "y", "x"]))
    cells = cells.with_columns(cell=pl.col("slice") + "/" + pl.col("scenario"))
    plan = _plan("90samples", cells, _seeds([90, 90, 90]), boosts={"a/y": 6.0, "a": 2.0})
    assert _column(plan, "target") == [20, 60, 10]
    with pytest.raises(DistdataError, match=r"--boost a/yy: no scenario type 'yy'. Did you mean 'y'"):
        _plan("9samples", cells, _seeds([9, 9, 9]), boosts={"a/yy": 2.0})


def test_boosts_name_cells_as_a_person_does() -> None:
    """Values in any order, some of them, or a type: the pattern with the most values wins, and ties must agree."""
    slices = [f"{light},{ground},dry" for light in ("day", "night") for ground in ("fog", "rain")]
    cells = _cells(4).with_columns(slice=pl.Series(slices)).with_columns(cell=pl.col("slice") + "/cross")

    def boost(**factors: float) -> list[object]:
        boosts = {name.replace("_", ",").replace("X", "/"): factor for name, factor in factors.items()}
        return _column(_plan("90samples", cells, _seeds([9] * 4), boosts=boosts), "boost")

    assert boost(rain_night=2.0) == [1, 1, 1, 2]
    assert boost(night=3.0, rain_night=2.0) == boost(rain_night=2.0, night=3.0) == [1, 1, 3, 2]
    assert boost(cross=5.0, nightXcross=6.0) == [5, 5, 6, 6]
    assert boost(night=3.0, rain=3.0) == [1, 3, 3, 3]
    with pytest.raises(
        DistdataError, match=r"--boost night=3 and --boost rain=2 both name night,rain,dry/cross, with eq"
    ):
        boost(night=3.0, rain=2.0)
    with pytest.raises(DistdataError, match=r"--boost qqq: no axis value 'qqq'. Known: day, dry, fog, night, rain, cr"):
        boost(qqq=2.0)


@pytest.mark.parametrize(
    ("bands", "changes", "reason"),
    [
        (
            [0.1, 1e-160],
            {},
            r"weight of s1/cross is too large .* its band 1e-160 is 1e\+159 times tighter .* gamma = 2. W",
        ),
        (
            [0.1, 1e-100],
            {"gamma": 4.0},
            r"1e\+99 times tighter than the widest, 0.1, which counts to the power of gamma",
        ),
        ([0.1, 0.1], {"boosts": {"s0": 1e308, "s1": 1e308}, "gamma": 0.0, "fleet_blend": 0.0}, None),
        ([0.1, 1e-3], {"boosts": {"s1": 1e306}}, r"1e\+02 times|100 times .*, times a boost of 1e\+306"),
    ],
)
def test_weights_beyond_numbers_are_refused(bands: list[float], changes: dict[str, object], reason: str | None) -> None:
    """A band so tight that its weight is no number is refused with its ratio; large ones that are numbers plan."""
    cells, seeds = _cells(2, band=bands), _seeds([9, 9])
    if reason is None:
        assert _column(_plan("10samples", cells, seeds, **changes), "target") == [5, 5]
        return
    with pytest.raises(DistdataError, match=reason):
        _plan("10samples", cells, seeds, **changes)


def test_bands_near_zero_are_undecidable() -> None:
    """A gate at a band of 1e-160 needs more draws than numbers go: a refusal, no warning."""
    request = PlanRequest(purpose="gate", held_out=("gate",), min_groups=0)
    with pytest.raises(DistdataError, match=r"s0 \(band 1e-160\) needs 4,6"):
        make_plan(request, _cells(1, band=[1e-160]), _seeds([30], split="gate"), NOTHING, RATES)


def test_prices_beyond_every_budget_are_refused() -> None:
    """A draw of 1e308 seconds is a mistake of unit, for one price and for a cell's."""
    with pytest.raises(DistdataError, match=r"gpu_s = 1e\+308 per draw; a price must be a number from 0 to 1e\+12"):
        Rates(usd=1.0, gpu_s=1e308)
    rates = pl.DataFrame({"cell_id": [0], "usd": [1e300], "gpu_s": [1.0]})
    with pytest.raises(DistdataError, match=r"1 cell has no usd per draw from 0 to 1e\+12, s0/cross \(1e\+300\)"):
        make_plan(_request("$5"), _cells(1), _seeds([9]), NOTHING, rates)


def test_neyman_says_when_it_knows_no_spread() -> None:
    """Without a pilot neyman is the fleet's plan, and says so; with one it is not, and a cell without spread gets some.

    Spreads sqrt(4 x 0.05 + 0.01) = 0.458 and 0.1: 0.5 x 0.458 to 0.5 x 0.1, of 56: 46 and 10.
    """
    fleet = _plan("56samples", _cells(2), _seeds([50, 50], decision=True), policy="neyman")
    assert _column(fleet, "target") == [28, 28]
    assert "Policy neyman knows no spreads" in fleet.notes[0]
    cells = _cells(2, within_others=[0.01, 0.01], between_others=[0.05, 0.0])
    plan = _plan("56samples", cells, _seeds([50, 50], decision=True), policy="neyman")
    assert (_column(plan, "target"), plan.notes) == ([46, 10], ())
    flat = _cells(2, within_others=[0.01, 0.0], between_others=[0.05, 0.0])
    assert _column(_plan("56samples", flat, _seeds([50, 50], decision=True), policy="neyman"), "target") == [28, 28]


def test_floors_above_the_budget_are_refused_with_the_smallest_that_would_do() -> None:
    """The error gives cells, floor sum and a budget; that budget works and one sample less does not."""
    cells, seeds = _cells(3), _seeds([5, 5, 1], decision=True)
    with pytest.raises(
        DistdataError, match=r"3 cells \(2 seeds each\) need 20 samples.*--budget 20samples.*--allow-und"
    ):
        _plan("19samples", cells, seeds, floor_seeds=2)
    assert _column(_plan("20samples", cells, seeds, floor_seeds=2), "target") == [8, 8, 4]
    with pytest.raises(DistdataError, match=r"cost \$10.00; the budget is 9.99usd. Give at least --budget 10usd"):
        _plan("9.99usd", cells, seeds, floor_seeds=2)
    assert _plan("10usd", cells, seeds, floor_seeds=2).n_fresh == 20
    with pytest.raises(DistdataError, match=r"--budget 0.2gpuh"):
        _plan("0.1gpuh", cells, seeds, floor_seeds=2)


def test_floors_can_be_scaled_down_and_marked() -> None:
    """With --allow-undecidable floors shrink in proportion (8, 8, 4 to 5, 4, 2 for 11), and the cells are marked."""
    # priorities 8/(n+.5), 8/(n+.5), 4/(n+.5): 16 16 8 | 5.33 5.33 2.67 | 3.2 3.2 | 2.29 2.29 | 1.78: a b c a b c
    # (tie 2.67 only c) then a b (3.2), a b (2.29), a (1.78): 5, 4, 2
    plan = _plan("11samples", _cells(3), _seeds([5, 5, 1], decision=True), floor_seeds=2, allow_undecidable=True)
    assert _column(plan, "target") == [5, 4, 2]
    assert _column(plan, "mark") == [MARK_BELOW_FLOOR] * 3
    money = _plan("5.50usd", _cells(3), _seeds([5, 5, 1], decision=True), floor_seeds=2, allow_undecidable=True)
    assert _column(money, "fresh") == [5, 4, 2]


def test_cells_without_seeds_are_refused_or_marked() -> None:
    """Seven empty cells are named up to five; with --allow-undecidable they get 0 and a mark."""
    cells, seeds = _cells(9), _seeds([4, 4])
    with pytest.raises(DistdataError) as caught:
        _plan("8samples", cells, seeds)
    text = str(caught.value)
    assert "7 feasible cells have no train seeds: s2/cross, s3/cross, s4/cross, s5/cross, s6/cross and 2 more." in text
    assert "[[infeasible]]" in text
    plan = _plan("8samples", cells, seeds, allow_undecidable=True)
    assert _column(plan, "target") == [4, 4] + [0] * 7
    assert _column(plan, "mark") == ["", ""] + [MARK_NO_SEEDS] * 7
    with pytest.raises(DistdataError, match="no cell has seeds"):
        _plan("8samples", cells, _seeds([]), allow_undecidable=True)


def test_slices_short_of_gate_groups_are_refused_or_marked() -> None:
    """A slice with one gate group of two is an error for every purpose, and a mark with --allow-undecidable."""
    seeds = pl.concat([_seeds([6, 6]), _seeds([2, 1], split="gate").with_columns(pl.col("seed_id", "grp") + "x")])
    rules = {"held_out": ("gate",), "min_groups": 2}
    refusal = r"1 slice has too few gate groups: s1 has 1 of 2 gate groups \(7 in all\)"
    for purpose in ("train", "gate"):
        with pytest.raises(DistdataError, match=refusal):
            _plan("4samples", _cells(2), seeds, purpose=purpose, **rules)
    plan = _plan("4samples", _cells(2), seeds, allow_undecidable=True, **rules)
    assert _column(plan, "mark") == ["", MARK_SHORT_GROUPS]


def test_a_gate_plan_may_miss_a_cell_but_not_a_slice() -> None:
    """A cell without gate seeds is marked when its slice has some, and refused when the whole slice has none."""
    cells = _cells(3).with_columns(slice=pl.Series(["a", "a", "b"]), scenario=pl.Series(["x", "y", "x"]))
    cells = cells.with_columns(cell=pl.col("slice") + "/" + pl.col("scenario"), band=pl.lit(0.2))
    aims = GateAims(sigma=0.01)  # so sharp a statistic that the 20 seeds of any gate suffice
    rules = {"purpose": "gate", "held_out": ("gate",), "min_groups": 0, "aims": aims}
    plan = _plan("44samples", cells, _seeds([24, 0, 24], split="gate"), **rules)
    assert _column(plan, "mark") == ["", MARK_NO_SEEDS, ""]
    assert _column(plan, "target") == [22, 0, 22]
    with pytest.raises(DistdataError, match="1 feasible cell has no gate seeds: b/x"):
        _plan("44samples", cells, _seeds([24, 24, 0], split="gate"), **rules)
    with pytest.raises(DistdataError, match="no seeds are held out"):
        _plan("44samples", cells, _seeds([24, 24, 24]), purpose="gate", held_out=())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"cells": _cells(2, band=[0.1, 0.0])},
            r"band of 1 cell is no number above 0: s1/cross \(0\). Set \[bands\] default",
        ),
        ({"cells": _cells(2, band=[float("nan"), 0.1])}, r"band of 1 cell is no number above 0: s0/cross \(nan\)"),
        ({"cells": _cells(2, band=[None, float("inf")])}, r"band of 2 cells is .*s0/cross \(nan\), s1/cross \(inf\)"),
        ({"cells": _cells(2, fleet_share=[-0.5, 1.5])}, r"fleet_share of 1 cell .*s0/cross \(-0.5\). Check \[fleet\]"),
        ({"cells": _cells(2, feasible=[False, False])}, "none of the 2 cells is feasible"),
        ({"cells": _cells(2, fleet_share=[0.0, 0.0]), "policy": "fleet"}, "weight 0"),
        ({"rates": Rates(usd=0.0, gpu_s=1.0), "budget": "5usd"}, "costs 0 usd"),
        (
            {"rates": Rates(usd=7.0, gpu_s=1.0), "budget": "5usd"},
            r"buys nothing; the cheapest draw costs \$7.00. Give at least --budget 7usd",
        ),
        (
            {"rates": pl.DataFrame({"cell_id": [0], "usd": [1.0], "gpu_s": [1.0]})},
            "1 cell has no usd per draw.*s1/cross",
        ),
    ],
)
def test_bad_inputs_are_refused(changes: dict[str, object], reason: str) -> None:
    """Each impossible input is a DistdataError with place and number."""
    policy = str(changes.get("policy", "gate"))
    request = _request(str(changes.get("budget", "4samples")), policy=policy)
    cells, rates = changes.get("cells", _cells(2)), changes.get("rates", RATES)
    with pytest.raises(DistdataError, match=reason):
        make_plan(request, cells, _seeds([4, 4]), NOTHING, rates)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"purpose": "trian"}, "no purpose 'trian'. Did you mean 'train'"),
        ({"policy": "gates"}, "no policy 'gates'. Did you mean 'gate'"),
        ({"gamma": -1.0}, "gamma = -1"),
        ({"gamma": float("nan")}, "gamma = nan"),
        ({"fleet_blend": 1.5}, "fleet_blend"),
        ({"k": 0}, "k = 0"),
        ({"floor_seeds": -1}, "floor_seeds"),
        ({"expected_yield": 0.0}, "expected_yield"),
        ({"boosts": {"a": 0.0}}, "boost of a"),
        ({"k_pilot": 1}, "k_pilot = 1 must lie in 2 to 255: one draw shows no spread"),
        ({"case_share": 1.5}, "case_share = 1.5"),
        ({"layers": {"core": 0.5, "tail": 0.5}}, "no layer 'tail'. Did you mean 'long_tail'"),
        ({"layers": {"core": 0.5, "long_tail": 0.4}}, "the shares sum to 0.9; they must sum to 1"),
        ({"layers": {"core": 1.5, "long_tail": -0.5}}, "the share of core is 1.5"),
        ({"top_up": True}, "4samples is a size of corpus.*Leave out --budget"),
    ],
)
def test_bad_requests_are_refused(changes: dict[str, object], reason: str) -> None:
    """A request out of range names the field and its value."""
    with pytest.raises(DistdataError, match=reason):
        _request("4samples", **changes)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_bad_rates_are_refused(value: float) -> None:
    """A price that is no price is a DistdataError."""
    with pytest.raises(DistdataError, match="usd"):
        Rates(usd=value, gpu_s=1.0)


@st.composite
def _worlds(draw: st.DrawFn) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Draw cells, seeds (with tied prns, mixed K) and existing draws."""
    n = draw(st.integers(1, 4))
    bands = draw(st.lists(st.sampled_from([0.02, 0.05, 0.1, 0.3]), min_size=n, max_size=n))
    seeds = _seeds(draw(st.lists(st.integers(1, 8), min_size=n, max_size=n)))
    m = seeds.height
    seeds = seeds.with_columns(
        prn=pl.Series(draw(st.lists(st.sampled_from([0.1, 0.25, 0.5, 0.7, 0.9]), min_size=m, max_size=m))),
        decision_point=pl.Series(draw(st.lists(st.booleans(), min_size=m, max_size=m))),
        k=pl.Series(draw(st.lists(st.sampled_from([None, 2, 3]), min_size=m, max_size=m)), dtype=pl.Int32),
    )
    draws = draw(st.lists(st.tuples(st.sampled_from(seeds["seed_id"].to_list()), st.integers(0, 5)), max_size=12))
    return _cells(n, band=bands), seeds, _bought(*draws)


WORLDS = settings(max_examples=80, deadline=None)


@given(world=_worlds(), budget=st.integers(1, 60), seed=st.integers(0, 99))
@WORLDS
def test_the_order_of_rows_does_not_matter(
    world: tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame], budget: int, seed: int
) -> None:
    """Any permutation of the three frames gives the same plan, down to its id."""
    cells, seeds, bought = world
    plan = _plan(f"{budget}samples", cells, seeds, bought)
    mixed = [frame.sample(fraction=1.0, shuffle=True, seed=seed) for frame in (cells, seeds, bought)]
    other = _plan(f"{budget}samples", *mixed)
    assert plan.cells.equals(other.cells)
    assert plan.draws.equals(other.draws)
    assert plan.seeds.equals(other.seeds)
    assert plan_id(plan, "t") == plan_id(other, "t")


@given(world=_worlds(), budget=st.integers(1, 60), expected_yield=st.sampled_from([1.0, 0.8, 0.35]))
@WORLDS
def test_every_plan_keeps_its_books(
    world: tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame], budget: int, expected_yield: float
) -> None:
    """Budget met but for the shortfall, bounds kept, no draw twice or owned, no seed above K, shares that sum up."""
    cells, seeds, bought = world
    plan = _plan(f"{budget}samples", cells, seeds, bought, expected_yield=expected_yield)
    assert plan.n_target + plan.shortfall == budget
    table = plan.cells
    assert (table["credit"] + table["fresh"] <= table["ceiling"]).all()
    assert (table["target"] <= table["ceiling"]).all()
    assert int(table["fresh"].sum()) == plan.draws.height
    draws = set(_draws(plan))
    assert len(draws) == plan.draws.height
    assert not draws & set(bought.iter_rows())
    top = seeds.select("seed_id", top=pl.when("decision_point").then(pl.col("k").fill_null(4)).otherwise(1))
    held = plan.draws.join(top, on="seed_id")
    assert (held["k"] < held["top"]).all()
    # the corpus stands for the whole fleet: its draws' weights sum to the shares of the cells that hold any
    covered = table.filter(pl.col("n_seeds_taken") > 0)["fleet_share"].sum()
    assert (plan.seeds["weight"] * plan.seeds["k_total"]).sum() == pytest.approx(covered, abs=1e-12)
    assert plan.seeds["pi"].is_between(0, 1, closed="right").all()


@given(world=_worlds(), budget=st.integers(1, 50), more=st.integers(1, 20), kind=st.sampled_from(["samples", "usd"]))
@WORLDS
def test_a_larger_budget_contains_the_smaller_plan(
    world: tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame], budget: int, more: int, kind: str
) -> None:
    """No cell shrinks, and every draw of the smaller plan is in the larger one, in the same relative order."""
    cells, seeds, bought = world
    small = _plan(f"{budget}{kind}", cells, seeds, bought)
    large = _plan(f"{budget + more}{kind}", cells, seeds, bought)
    assert (large.cells["target"] >= small.cells["target"]).all()
    wanted = set(_draws(small))
    assert [draw for draw in _draws(large) if draw in wanted] == _draws(small)


@given(world=_worlds(), budget=st.integers(1, 50), at=st.integers(0, 3), factor=st.floats(0.1, 1.0))
@WORLDS
def test_a_tighter_band_never_gets_less(
    world: tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame], budget: int, at: int, factor: float
) -> None:
    """Tightening one cell's band never lowers its target."""
    cells, seeds, bought = world
    at %= cells.height
    bands = cells["band"].to_list()
    bands[at] *= factor
    before = _plan(f"{budget}samples", cells, seeds, bought)
    after = _plan(f"{budget}samples", cells.with_columns(band=pl.Series(bands)), seeds, bought)
    assert after.cells["target"][at] >= before.cells["target"][at]


@given(world=_worlds(), budget=st.integers(1, 50))
@WORLDS
def test_credits_count_one_for_one_up_to_k(world: tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame], budget: int) -> None:
    """Targets don't depend on what exists; the purchase of a cell falls by exactly what exists in it, to 0 at least."""
    cells, seeds, bought = world
    plain, credited = _plan(f"{budget}samples", cells, seeds), _plan(f"{budget}samples", cells, seeds, bought)
    top = {
        seed_id: (own or 4) if decision else 1
        for seed_id, decision, own in seeds.select("seed_id", "decision_point", "k").iter_rows()
    }
    owned = bought.unique().group_by("seed_id").len()
    credit = [0] * cells.height
    for seed_id, n in owned.iter_rows():
        credit[int(seed_id[1 : seed_id.index("-")])] += min(n, top[seed_id])
    assert _column(credited, "target") == _column(plain, "target")
    assert _column(credited, "credit") == credit
    fresh = [max(0, n - c) for n, c in zip(plain.cells["fresh"], credit, strict=True)]
    assert _column(credited, "fresh") == fresh


def test_candidates_give_the_same_plan_as_their_seeds() -> None:
    """Seeds sorted before give the very plan of the frame; held-out splits then need the groups counted before."""
    seeds = pl.concat(
        [_seeds([5, 4], decision=True), _seeds([3, 3], split="gate").with_columns(pl.col("seed_id") + "g")]
    )
    groups = pl.DataFrame({"slice": ["s0", "s1"], "split": ["gate"] * 2, "n_groups": [3, 3]})
    request = _request("20samples", held_out=("gate",), min_groups=3)
    plain = make_plan(request, _cells(2), seeds, NOTHING, RATES)
    sorted_before = make_plan(request, _cells(2), candidates_of(seeds, "train"), NOTHING, RATES, groups=groups)
    assert plan_id(plain, "t") == plan_id(sorted_before, "t")
    assert plain.seeds.equals(sorted_before.seeds)
    with pytest.raises(ValueError, match="groups must be given"):
        make_plan(request, _cells(2), candidates_of(seeds, "train"), NOTHING, RATES)
    fewer = groups.with_columns(n_groups=pl.Series([3, 2]))
    with pytest.raises(DistdataError, match="s1 has 2 of 3 gate groups"):
        make_plan(request, _cells(2), candidates_of(seeds, "train"), NOTHING, RATES, groups=fewer)


def test_the_futures_of_cells_open_seeds_that_say_nothing() -> None:
    """Where `decision` is true a silent seed gets the cell's K, one that says no stays at 1."""
    seeds = _seeds([2, 2]).with_columns(decision_point=pl.Series([None, False, None, True]))
    plan = _plan("99samples", _cells(2, decision=[True, False]), seeds)
    assert _column(plan, "ceiling") == [4 + 1, 1 + 4]
    assert plan.draws.filter(pl.col("k") == 0)["decision_point"].to_list() == [True, False, False, True]


def test_k_is_frozen_where_draws_exist() -> None:
    """The corpus keeps K 2 for a seed whose cell has K 4 by now, and the other seeds follow the cell."""
    corpus = pl.DataFrame({"seed_id": ["c0-0"], "k_seed": [2], "k_counted": [2]})
    seeds = _seeds([3], decision=True)
    plan = make_plan(_request("99samples"), _cells(1), seeds, _bought(("c0-0", 0)), RATES, corpus=corpus)
    assert plan.seeds["k_seed"].to_list() == [2, 4, 4]
    assert _draws(plan) == [("c0-0", 1)] + [(s, k) for s in ("c0-1", "c0-2") for k in range(4)]


def test_blocked_seeds_are_never_bought() -> None:
    """A blocked seed offers nothing, its draws count nothing, and the floor goes to the next seeds."""
    seeds, blocked = _seeds([4], decision=True), pl.Series(["c0-0", "unknown"])
    request = _request("9samples", floor_seeds=2)
    plan = make_plan(request, _cells(1), seeds, _bought(("c0-0", 0)), RATES, blocked=blocked)
    assert (_column(plan, "floor"), _column(plan, "ceiling"), _column(plan, "credit")) == ([8], [12], [0])
    assert _draws(plan) == [("c0-1", k) for k in range(4)] + [("c0-2", k) for k in range(4)] + [("c0-3", 0)]


def test_a_cell_whose_first_seeds_are_used_or_blocked_can_be_planned() -> None:
    """Seeds that offer nothing at the head of a later cell neither shift its draws nor stop a plan without floors."""
    seeds, owned = _seeds([2, 4, 3]), _bought(("c1-0", 0), ("c1-1", 0), ("c2-0", 0))
    blocked = pl.Series(["c2-0", "c2-1"])
    plan = make_plan(_request("6samples"), _cells(3), seeds, owned, RATES, blocked=blocked)
    assert (_column(plan, "target"), _column(plan, "fresh")) == ([2, 3, 1], [2, 1, 1])
    assert sorted(_draws(plan)) == [("c0-0", 0), ("c0-1", 0), ("c1-2", 0), ("c2-2", 0)]
    assert make_plan(_request("2samples"), _cells(3), seeds, owned, RATES, blocked=blocked).n_fresh == 1


def test_credits_from_outside_the_frame_count_one_for_one() -> None:
    """Three byproducts outside the frame save three draws, raise what the cell can hold, and enter no weight."""
    outside = pl.DataFrame({"cell_id": [1, 7], "n": [3, 9]})
    plan = make_plan(_request("10samples"), _cells(2), _seeds([3, 9]), NOTHING, RATES, outside=outside)
    # ceilings 3 and 9 + 3; the first is full at 3, so the second aims at 7 and buys 4
    assert (_column(plan, "ceiling"), _column(plan, "target")) == ([3, 12], [3, 7])
    assert (_column(plan, "credit"), _column(plan, "fresh")) == ([0, 3], [3, 4])
    assert plan.seeds["seed_id"].to_list() == ["c0-0", "c0-1", "c0-2", "c1-0", "c1-1", "c1-2", "c1-3"]
    np.testing.assert_allclose(plan.seeds["weight"].to_numpy(), [1 / 6] * 3 + [1 / 8] * 4)


CASES = pl.DataFrame(
    {
        "seed_id": ["d-low", "d-high", "d-even", "d-infeasible"],
        "cell_id": [0, 1, 1, 5],
        "k_seed": [2, 3, 2, 2],
        "priority": [1.0, 9.0, 1.0, 99.0],
        "prn": [0.2, 0.9, 0.1, 0.1],
    }
)


def test_open_cases_come_first_by_priority() -> None:
    """Cases are bought before all else within their share, K draws each, weigh nothing and fill their cell's target."""
    request = _request("20samples", case_share=0.25)  # 5 draws: d-high 3, d-even 2 (prn before d-low's), no more
    plan = make_plan(request, _cells(2), _seeds([20, 20]), NOTHING, RATES, cases=CASES)
    assert _draws(plan)[:5] == [("d-high", 0), ("d-high", 1), ("d-high", 2), ("d-even", 0), ("d-even", 1)]
    assert plan.draws["weight"].to_list()[:5] == plan.draws["pi"].to_list()[:5] == [0.0] * 5
    assert (_column(plan, "target"), _column(plan, "n_cases"), _column(plan, "fresh")) == ([10, 10], [0, 5], [10, 10])
    assert plan.draws.height == 20
    assert plan.seeds.tail(2).select("seed_id", "k_total", "k_seed", "k_counted", "share").rows() == [
        ("d-high", 3, 3, 0, 0.0),
        ("d-even", 2, 2, 0, 0.0),
    ]
    # the rest still stands for the whole fleet
    assert (plan.draws["weight"].sum()) == pytest.approx(1.0)
    assert plan.notes == (
        "1 of 3 open divergence cases wait: [plan] case_share = 0.25 of 20samples pays for the first 2. Raise "
        "case_share or the budget. 1 open divergence cases lie in cells that aren't planned, or are blocked.",
    )


def test_cases_are_paid_from_the_money_first() -> None:
    """Half of 6 dollars at 0.50 is 6 draws: d-high and d-even take 5 of them, and 7 draws are left for the frame."""
    plan = make_plan(_request("6usd", case_share=0.5), _cells(2), _seeds([20, 20]), NOTHING, RATES, cases=CASES)
    # targets in turn, the second cell's first five free: 4 and 5 cost 4, then a b a: 6 and 6 cost 7
    assert (_column(plan, "target"), _column(plan, "fresh"), plan.usd) == ([6, 6], [6, 5 + 1], 6.0)


def test_a_case_is_not_bought_twice() -> None:
    """Draws of a case that exist are left out, a blocked case too, and a cap keeps cases out of its cell."""
    request = _request("20samples", case_share=1.0)
    owned, blocked = _bought(("d-high", 0), ("d-high", 2)), pl.Series(["d-low"])
    plan = make_plan(request, _cells(2), _seeds([20, 20]), owned, RATES, cases=CASES, blocked=blocked)
    assert [d for d in _draws(plan) if d[0].startswith("d-")] == [("d-high", 1), ("d-even", 0), ("d-even", 1)]
    assert plan.seeds.filter(pl.col("seed_id") == "d-high")["k_total"].to_list() == [3]
    capped = _cells(2, cap=[None, 4]).with_columns(pl.col("cap").cast(pl.Int64))
    plan = make_plan(request, capped, _seeds([20, 20]), NOTHING, RATES, cases=CASES)
    assert [d[0] for d in _draws(plan) if d[0].startswith("d-")] == ["d-high"] * 3 + ["d-low"] * 2
    assert _column(plan, "target") == [16, 4]


def test_a_plan_made_after_looking_extends_no_walk() -> None:
    """Draws bought under a boost, beyond what the first plan walked, weigh 0; the first ones keep their weight."""
    cells, seeds = _cells(2), _seeds([20, 20])
    first = _plan("8samples", cells, seeds)
    corpus = first.seeds.select("seed_id", "k_seed", "k_counted")
    request = _request("16samples", boosts={"s1": 3.0})
    second = make_plan(request, cells, seeds, first.draws.select("seed_id", "k"), RATES, corpus=corpus)
    assert _column(second, "target") == [4, 12]
    assert second.draws["weight"].to_list() == second.draws["pi"].to_list() == [0.0] * 8
    counted = second.seeds.filter(pl.col("share") > 0)
    assert counted["seed_id"].to_list() == first.seeds["seed_id"].to_list()
    np.testing.assert_allclose(counted["weight"].to_numpy(), first.seeds["weight"].to_numpy())
    # a later plan that did not look takes them in
    corpus = second.seeds.select("seed_id", "k_seed", "k_counted")
    owned = pl.concat([first.draws, second.draws]).select("seed_id", "k")
    third = make_plan(_request("24samples"), cells, seeds, owned, RATES, corpus=corpus)
    assert (_column(third, "target"), third.seeds.filter(pl.col("share") > 0).height) == ([12, 12], 24)


def test_prefixes_of_a_plan_are_balanced() -> None:
    """The first half of 400 draws over four equal cells holds about half of each cell's 100.

    Each cell's 100 smallest of 1,000 prns lie below about 0.1; the half-way point of the merged order splits a cell
    like a binomial(100, 1/2), standard deviation at most 5: 25 is five of them (false alarm below 1e-5, seed fixed).
    """
    rng = np.random.default_rng(3)
    seeds = pl.DataFrame(
        {
            "seed_id": [f"x{i:04d}" for i in range(4000)],
            "cell_id": pl.Series(np.arange(4000) % 4, dtype=pl.Int32),
            "grp": [f"g{i}" for i in range(4000)],
            "split": ["train"] * 4000,
            "prn": rng.random(4000),
            "decision_point": [False] * 4000,
            "k": pl.Series([None] * 4000, dtype=pl.Int32),
        }
    )
    plan = _plan("400samples", _cells(4), seeds)
    half = plan.draws.head(200).group_by("cell_id").len()["len"].to_list()
    assert len(half) == 4
    assert all(abs(n - 50) < 25 for n in half)
    assert plan.draws["prn"].is_sorted()


def test_the_id_follows_content() -> None:
    """Another request, context, seed name or price gives another id; the same content gives the same 12 hex digits."""
    cells, seeds = _cells(2), _seeds([5, 5])
    first = plan_id(_plan("6samples", cells, seeds), "teacher")
    assert len(first) == 12
    assert int(first, 16) >= 0
    renamed = seeds.with_columns(seed_id=pl.col("seed_id").str.replace("c0-0", "c0-z"))
    others = [
        plan_id(_plan("6samples", cells, seeds), "another teacher"),
        plan_id(_plan("7samples", cells, seeds), "teacher"),
        plan_id(_plan("6samples", cells, seeds, gamma=1.0), "teacher"),
        plan_id(_plan("6samples", cells, renamed), "teacher"),
        plan_id(make_plan(_request("6samples"), cells, seeds, NOTHING, Rates(usd=1.0, gpu_s=36.0)), "teacher"),
    ]
    assert len({first, *others}) == 6
    assert plan_id(_plan("6samples", cells, seeds), "teacher") == first
