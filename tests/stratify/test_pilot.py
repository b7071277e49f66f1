"""What pilots say: variances by hand and by simulation, K, open futures, and how large a pilot is."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

from distdata.catalogs.errors import DistdataError
from distdata.stratify.budget import parse_budget
from distdata.stratify.pilot import best_k, binomial_tail, f_below, pilot_spread, with_pilot
from distdata.stratify.plan import make_plan
from distdata.stratify.request import Plan, PlanRequest, Rates

NOTHING = pl.DataFrame(schema={"seed_id": pl.String, "k": pl.Int32})


def _cells(n: int, scenario: list[str] | None = None, k: list[int | None] | None = None) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "cell_id": pl.Series(range(n), dtype=pl.Int32),
            "cell": [f"s{i}/x" for i in range(n)],
            "slice": [f"s{i}" for i in range(n)],
            "scenario": scenario or ["x"] * n,
            "layer": ["core"] * n,
            "feasible": [True] * n,
            "band": [0.1] * n,
            "fleet_share": [1 / n] * n,
            "k": pl.Series(k or [None] * n, dtype=pl.Int32),
        }
    )


def _draws(values: dict[str, list[float]], cell: int = 0) -> pl.DataFrame:
    rows = [(f"{cell}-{s}", cell, v) for s, vs in values.items() for v in vs]
    return pl.DataFrame(rows, schema={"seed_id": pl.String, "cell_id": pl.Int32, "value": pl.Float64}, orient="row")


def _outcomes(texts: list[str], cell: int = 0) -> pl.DataFrame:
    """Make one seed per text, one draw per letter."""
    rows = [(f"{cell}-{i:03d}", cell, letter) for i, text in enumerate(texts) for letter in text]
    return pl.DataFrame(rows, schema={"seed_id": pl.String, "cell_id": pl.Int32, "outcome": pl.String}, orient="row")


def test_numbers_by_hand() -> None:
    """Seeds (1, 3), (5, 5, 8) and a single draw: within 8/3, between by the unbalanced analysis of variance.

    Means 2 and 6 around 22/5 = 4.4; within: 2 + 6 = 8 over (1 + 2) = 8/3; among: 2 x 2.4^2 + 3 x 1.6^2 = 19.2 over 1;
    n0 = 5 - (4 + 9) / 5 = 2.4; between = (19.2 - 8/3) / 2.4 = 6.8889.
    """
    row = pilot_spread(_draws({"a": [1, 3], "b": [5, 5, 8], "c": [100]})).row(0, named=True)
    assert (row["n_seeds"], row["n_draws"], row["df_within"], row["df_between"]) == (2, 5, 3, 1)
    assert row["ss_within"] == pytest.approx(8)
    assert row["ss_between"] == pytest.approx(19.2)
    assert row["n_coef"] == pytest.approx(2.4)
    settled = with_pilot(_cells(1, k=[4]), _draws({"a": [1, 3], "b": [5, 5, 8]}), seed_cost=4.0, k_max=32)
    assert settled["within"][0] == pytest.approx(8 / 3)
    assert settled["between"][0] == pytest.approx(6.888889)
    assert np.isnan(settled["sigma"][0])  # two seeds are too few to go by
    many = {str(i): [1.0, 3.0] for i in range(10)}  # 2 within, over 1, each
    assert with_pilot(_cells(1), _draws(many), seed_cost=4, k_max=32)["sigma"][0] == pytest.approx(np.sqrt(2))


def test_categories_are_sums_over_their_indicators() -> None:
    """Outcomes give the sums of squares that their one-hot columns give, one by one."""
    rng = np.random.default_rng(4)
    texts = ["".join(rng.choice(list("abc"), size=n)) for n in rng.integers(2, 6, size=9)]
    outcomes = _outcomes(texts)
    row = pilot_spread(outcomes).row(0, named=True)
    parts = [
        pilot_spread(outcomes.select("seed_id", "cell_id", value=(pl.col("outcome") == c).cast(pl.Float64))).row(
            0, named=True
        )
        for c in "abc"
    ]
    for name in ("ss_within", "ss_between"):
        assert row[name] == pytest.approx(sum(part[name] for part in parts))
    assert (row["df_within"], row["n_coef"]) == (parts[0]["df_within"], pytest.approx(parts[0]["n_coef"]))
    # the within-seed variance is the chance that two draws of a seed differ: the mean over pairs, weighted by n - 1
    pairs = [np.mean([a != b for i, a in enumerate(t) for b in t[i + 1 :]]) for t in texts]
    weights = [len(t) - 1 for t in texts]
    assert row["ss_within"] / row["df_within"] == pytest.approx(np.average(pairs, weights=weights))


def test_variances_are_unbiased() -> None:
    """Over 250 pilots of 30 seeds with 2 to 4 draws both components are right within 4 standard errors (seed fixed).

    False alarm about 1e-4 for a normal mean.
    """
    rng = np.random.default_rng(8)
    found = []
    for _ in range(250):
        n = rng.integers(2, 5, size=30)
        means = rng.normal(10, 1.5, size=30)
        values = {str(i): (means[i] + rng.normal(0, 2.0, size=m)).tolist() for i, m in enumerate(n)}
        found.append(with_pilot(_cells(1), _draws(values), seed_cost=4, k_max=32).select("within", "between").row(0))
    estimates = np.array(found)
    error = estimates.std(axis=0, ddof=1) / np.sqrt(250)
    assert np.all(np.abs(estimates.mean(axis=0) - [4.0, 2.25]) < 4 * error)


@pytest.mark.parametrize(
    ("within", "between", "seed_cost", "expected"),
    [
        (1.0, 1.0, 4.0, 2),  # K* = 2: 2 x 3 = 6 >= 4, 1 x 2 < 4
        (9.0, 1.0, 4.0, 6),  # K* = 6: 36 <= 42 = 6 x 7, 30 < 36
        (9.0, 1.0, 4.75, 7),  # K*^2 = 42.75 > 42
        (0.0, 1.0, 4.0, 2),  # no spread within: the least that shows one
        (1.0, 0.0, 4.0, 32),  # no spread between: as many as allowed
        (1.0, -0.3, 4.0, 32),
        (1e6, 1.0, 4.0, 32),
        (1.0, 1.0, 0.0, 2),  # seeds are free
    ],
)
def test_the_best_k(within: float, between: float, seed_cost: float, expected: int) -> None:
    """The whole K of least variance for its cost, clipped to [2, 32]."""
    assert best_k(np.array([within]), np.array([between]), seed_cost, 32).tolist() == [expected]


@pytest.mark.parametrize("seed", range(20))
def test_the_best_k_beats_every_other(seed: int) -> None:
    """(between + within / K) (a + K) is least there, over all K from 2 to 32."""
    within, between, cost = np.random.default_rng(seed).uniform(0.1, 5, size=3)
    k = np.arange(2, 33)
    costs = (between + within / k) * (cost + k)
    at = int(best_k(np.array([within]), np.array([between]), cost, 32)[0])
    assert costs[at - 2] == pytest.approx(costs.min(), rel=1e-12)


def test_tails_equal_scipy() -> None:
    """The binomial tail and the F distribution agree with an independent implementation to 1e-9."""
    n = np.array([0, 3, 12, 12, 120, 120.0])
    hits = np.array([0, 1, 2, 3, 11, 0.0])
    np.testing.assert_allclose(binomial_tail(hits, n, 0.05), stats.binom.sf(hits - 1, n, 0.05), rtol=1e-9)
    for f, d1, d2 in ((0.3, 11, 36), (1.0, 2, 300), (4.2, 119, 7), (1e-9, 5, 5), (1e9, 5, 5)):
        assert f_below(f, d1, d2) == pytest.approx(stats.f.cdf(f, d1, d2), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("n_differ", "is_open"),
    # P(X >= 2 of 12 at 5%) = 0.118, P(X >= 3) = 0.0196
    [(0, False), (2, False), (3, True), (12, True)],
)
def test_a_cell_whose_outcomes_differ_is_open(n_differ: int, is_open: bool) -> None:
    """Of 12 seeds with four draws, three that show two outcomes prove more than 5%; two don't."""
    texts = ["aaab"] * n_differ + ["bbbb"] * (12 - n_differ)
    settled = with_pilot(_cells(1), _outcomes(texts), seed_cost=4, k_max=32)
    assert settled["decision"].to_list() == [is_open]
    assert settled["k_source"][0].endswith("from 12 pilot seeds of the cell")


@pytest.mark.parametrize(("share", "low", "high"), [(0.10, 0.0, 0.10), (0.5, 0.95, 1.0), (0.0, 0.0, 0.0)])
def test_numbers_open_a_cell_by_their_variance_within_seeds(share: float, low: float, high: float) -> None:
    """At exactly 10% within at most 5% of pilots open the cell, at half of it nearly all, without any spread none.

    300 runs, seed fixed; 10% is the 5% and 4 standard errors of the simulation.
    """
    rng = np.random.default_rng(9)
    n_open = 0
    for _ in range(300):
        means = rng.normal(0, np.sqrt(1 - share), size=(12, 1))
        values = means + rng.normal(0, np.sqrt(share), size=(12, 4)) if share else means + np.zeros((12, 4))
        draws = _draws({str(i): row.tolist() for i, row in enumerate(values)})
        n_open += int(with_pilot(_cells(1), draws, seed_cost=4, k_max=32)["decision"][0])
    assert low <= n_open / 300 <= high


def test_small_cells_borrow_from_their_scenario_type() -> None:
    """Cells with fewer than 10 seeds pool with their type, a type with too few with all; given K's and rules stay."""
    draws = pl.concat(
        [
            _outcomes(["abab"] * 6, cell=0),  # x: 6 + 5 seeds together
            _outcomes(["aaaa"] * 5, cell=1),
            _outcomes(["aabb"] * 10, cell=2),  # y by itself
            _outcomes(["cccc"] * 2, cell=3),  # z: too few
        ]
    )
    cells = _cells(5, ["x", "x", "y", "z", "z"], [None, None, None, None, 7]).with_columns(
        decision=pl.Series([False, False, False, False, True])
    )
    settled = with_pilot(cells, draws, seed_cost=4, k_max=32)
    # x: 12 within over 33 = 0.3636, none of it shows between; y: 20 over 30, every seed half and half; all: 32 over 69
    assert settled["k_source"].to_list() == [
        "32: within 0.36, between 0, from 11 pilot seeds of its scenario type",
        "32: within 0.36, between 0, from 11 pilot seeds of its scenario type",
        "32: within 0.67, between 0, from 10 pilot seeds of the cell",
        "32: within 0.46, between 0, from 23 pilot seeds of all cells",
        "7: given",
    ]
    # x pooled: 6 x (4 - 8/4) = 12 within over 33; type y: 10 x 2 over 30
    assert settled["within"].to_list()[:3] == pytest.approx([12 / 33, 12 / 33, 2 / 3])
    assert settled["decision"].to_list() == [True] * 5
    assert settled["k"][4] == 7
    kept = with_pilot(cells, draws, seed_cost=4, k_max=32, fixed=np.array([True, False, False, False, False]))
    assert kept["decision"][0] is False


def test_the_spread_of_shares_is_that_of_the_widest_contrast() -> None:
    """Two outcomes, half and half: a share's 0.5 within seeds; three: no set of them varies by more than 1/3 or 1/4."""
    two = with_pilot(_cells(1), _outcomes(["ab", "ba", "aa", "bb"] * 3), seed_cost=4, k_max=32)
    # 6 of 12 pairs differ: within 1/2, a share's variance 1/4
    assert two["within"][0] == pytest.approx(0.5)
    assert two["sigma"][0] == pytest.approx(0.5)
    three = with_pilot(_cells(1), _outcomes(["ab", "bc", "ca", "aa"] * 3), seed_cost=4, k_max=32)
    assert three["within"][0] == pytest.approx(0.75)
    assert three["sigma"][0] == pytest.approx(0.5)
    rare = with_pilot(_cells(1), _outcomes(["aaab"] + ["aaaa"] * 11), seed_cost=4, k_max=32)
    # SS 4 - 10/4 = 1.5 over 36
    assert rare["sigma"][0] == pytest.approx(np.sqrt(1.5 / 36 / 2))


def test_no_pilot_is_an_error_that_says_how_to_make_one() -> None:
    """Single draws show no spread: the message names the command."""
    with pytest.raises(DistdataError, match=r"no seed has two draws yet.*distdata plan --purpose pilot"):
        with_pilot(_cells(1), _outcomes(["a", "b", "c"]), seed_cost=4, k_max=32)
    settled = with_pilot(_cells(1, k=[5]), _outcomes(["a", "b", "c"]), seed_cost=4, k_max=32)  # nothing to settle
    assert settled.select("k", "decision", "k_source", "n_pilot_seeds").rows() == [(5, False, "5: given", 0)]
    assert np.isnan(settled["sigma"][0])
    with pytest.raises(DistdataError, match="neither a column 'outcome' nor 'value'"):
        pilot_spread(pl.DataFrame({"seed_id": ["a"], "cell_id": [0]}))


def _seeds(per_cell: list[int], said: bool | None = None) -> pl.DataFrame:
    rows = [(f"c{c}-{i}", c, f"g{c}-{i}", "train", (i + 0.5) / n) for c, n in enumerate(per_cell) for i in range(n)]
    schema = {"seed_id": pl.String, "cell_id": pl.Int32, "grp": pl.String, "split": pl.String, "prn": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(
        decision_point=pl.lit(said, dtype=pl.Boolean), k=pl.lit(None, dtype=pl.Int32)
    )


def _pilot(cells: pl.DataFrame, seeds: pl.DataFrame, budget: str | None = None, **changes: object) -> Plan:
    request = PlanRequest(
        purpose="pilot", budget=parse_budget(budget) if budget else None, held_out=(), **changes,  # type: ignore[arg-type]
    )  # fmt: skip
    return make_plan(request, cells, seeds, NOTHING, Rates(usd=1.0, gpu_s=1.0))


def test_a_pilot_without_a_budget_is_small() -> None:
    """Four draws of the first 12 seeds of a cell, or of all that it has; a seed that says it is closed gets one."""
    plan = _pilot(_cells(3), _seeds([50, 7, 50]))
    assert plan.cells["fresh"].to_list() == [48, 28, 48]
    assert plan.draws.filter(pl.col("cell_id") == 0)["seed_id"].unique().sort().to_list() == sorted(
        f"c0-{i}" for i in range(12)
    )
    assert _pilot(_cells(1), _seeds([50], said=False)).n_fresh == 12
    assert _pilot(_cells(1), _seeds([50]), k_pilot=2).n_fresh == 24
    assert (plan.prices.height, plan.minima.height, plan.n_marked) == (0, 0, 0)


def test_many_cells_of_a_type_share_its_pilot() -> None:
    """Forty cells of one type share 120 seeds, two of another get 12 each: 480 and 96 draws."""
    cells = _cells(42, ["x"] * 40 + ["y"] * 2)
    plan = _pilot(cells, _seeds([30] * 42))
    assert plan.cells.group_by("scenario", maintain_order=True).agg(pl.col("fresh").sum())["fresh"].to_list() == [
        480,
        96,
    ]
    assert plan.cells["fresh"].to_list() == [12] * 40 + [48] * 2


def test_a_pilot_can_be_given_a_budget() -> None:
    """The weights deal whole seeds, without floors: 51 samples are 12 seeds of four draws; too few are refused."""
    plan = _pilot(_cells(2), _seeds([50, 50]), "51samples")
    assert plan.cells["fresh"].to_list() == [24, 24]
    assert plan.draws.group_by("seed_id").len()["len"].to_list() == [4] * 12
    assert (plan.shortfall, plan.notes) == (0.0, ())
    for money in ("$51", "0.0142gpuh"):  # 51.1 s
        assert _pilot(_cells(2), _seeds([50, 50]), money).cells["fresh"].to_list() == [24, 24]
    few = "39samples pays for 9 seeds with two draws or more, .* cost 40 samples. Give at least --budget 40samples"
    with pytest.raises(DistdataError, match=few):
        _pilot(_cells(2), _seeds([50, 50]), "39samples")
    assert _pilot(_cells(2), _seeds([50, 50]), "40samples").n_fresh == 40
    # where every second seed is closed, ten open ones come with nine or ten closed ones: by prn open first, 10 + 10
    half = _seeds([50, 50]).with_columns(decision_point=pl.Series([i % 2 == 0 for i in range(100)]))
    with pytest.raises(DistdataError, match=r"45samples pays for 9 seeds with .* these cost 48 samples"):
        _pilot(_cells(2), half, "45samples")
    with pytest.raises(DistdataError, match=r"0.40usd buys nothing; the cheapest draw costs \$1.00"):
        _pilot(_cells(1), _seeds([50], said=False), "0.4usd")
    # all that there is: six seeds, and the rest is left over
    assert _pilot(_cells(2), _seeds([3, 3]), "30samples").shortfall == 6.0


def test_auto_k_needs_ten_seeds() -> None:
    """Nine seeds with two draws settle no K; ten do."""
    with pytest.raises(DistdataError, match=r"needs a pilot of at least 10 seeds, and only 9 seeds have two draws yet"):
        with_pilot(_cells(1), _outcomes(["ab"] * 9), seed_cost=4, k_max=32)
    assert with_pilot(_cells(1), _outcomes(["ab"] * 10), seed_cost=4, k_max=32)["k"].to_list() == [32]


def test_spreads_for_neyman_come_from_other_cells() -> None:
    """A cell's own pilot does not enter: of its type's others, of all others, or nothing, by who has 10 seeds."""
    mixed, closed = ["abab"] * 5 + ["aaaa"] * 5, ["aaaa", "bbbb"] * 5
    draws = pl.concat([_outcomes(mixed, cell=0), _outcomes(closed, cell=1), _outcomes(closed, cell=2)])
    settled = with_pilot(_cells(4, ["x", "x", "y", "z"], [4] * 4), draws, seed_cost=4, k_max=32)
    # mixed: 5 x 2 = 10 within over 30; closed: nothing within; halves of both, the scale of a share's variance.
    # y has no other cell: cells 0 and 1 together, 10 over 60; z no pilot: all three, 10 over 90
    assert settled["within_others"].to_list() == pytest.approx([0, 1 / 6, 1 / 12, 1 / 18])
    # closed: among 5 x 16 / 4 x 2 - (20^2 + 20^2) / 40 = 20 over 9; over n0 = 40 (1 - 1/10) / 9 = 4
    assert settled["between_others"][0] == pytest.approx(20 / 9 / 4 / 2)
    alone = with_pilot(_cells(2, ["x", "y"], [4] * 2), _outcomes(mixed), seed_cost=4, k_max=32)
    assert np.isnan(alone["within_others"][0])
    assert alone["within_others"][1] == pytest.approx(1 / 6)


def test_a_pilot_settles_the_next_plan() -> None:
    """Seeds that say nothing get the K that the pilot found in open cells, and one draw in closed ones."""
    draws = pl.concat([_outcomes(["abab"] * 12, cell=0), _outcomes(["aaaa", "bbbb"] * 6, cell=1)])
    cells = with_pilot(_cells(2), draws, seed_cost=4, k_max=6)
    # cell 0: every seed half and half, no variance between: as many as allowed
    assert cells.select("k", "decision").rows() == [(6, True), (2, False)]
    request = PlanRequest(purpose="train", budget=parse_budget("12samples"), held_out=(), floor_seeds=0)
    plan = make_plan(request, cells, _seeds([20, 20]), NOTHING, Rates(usd=1.0, gpu_s=1.0))
    assert plan.draws.group_by("cell_id").agg(pl.col("seed_id").n_unique()).sort("cell_id")["seed_id"].to_list() == [
        1,
        6,
    ]
    assert plan.cells["k_source"][1].endswith("from 12 pilot seeds of the cell")
