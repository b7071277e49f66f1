"""Decidable minima: the formula by hand, what it promises by simulation, and how it falls to slices and cells."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

from distdata.catalogs.errors import DistdataError
from distdata.stratify.budget import parse_budget
from distdata.stratify.chain import MARK_BELOW_MINIMUM, MARK_NO_SEEDS
from distdata.stratify.minima import GateAims, draws_needed, paired_sigma, tied_contrasts
from distdata.stratify.plan import make_plan
from distdata.stratify.request import Plan, PlanRequest, Rates

NOTHING = pl.DataFrame(schema={"seed_id": pl.String, "k": pl.Int32})


def _needed(band: float, k: float, aims: GateAims, n_slices: int = 1) -> float:
    one = np.ones(1)
    return float(draws_needed(band * one, k * one, aims.sigma * one, aims, n_slices)[0])


@pytest.mark.parametrize(
    ("band", "k", "aims", "n_slices", "expected"),
    [
        # one gate, a share at its worst: 2 x 0.25 x (1.6449 + 1.2816)^2 / 0.05^2 = 0.5 x 8.5644 / 0.0025 = 1712.9, and
        # 8 x 1.6449^2 / 2 = 10.8 for the variance that is estimated
        (0.1, 8, GateAims(), 1, 1712.87 + 10.82),
        # half the band wants four times the draws: 4 x 1712.87
        (0.05, 8, GateAims(), 1, 6851.48 + 10.82),
        # no difference expected: beta / 2 on either side, z_0.95 = 1.6449 twice: 0.5 x 10.822 / 0.01 = 541.1
        (0.1, 1, GateAims(expected_difference=0), 1, 541.11 + 1.35),
        # ten gates share beta = 0.1: z_0.99 = 2.3263, 0.5 x (3.9712)^2 / 0.0025 = 3154.1
        (0.1, 1, GateAims(), 10, 3154.07 + 1.35),
        # spread over seeds: (2 x 0.25 + 4 x 0.09) x 8.5638 / 0.0025 = 0.86 x 3425.7 = 2946.1
        (0.1, 4, GateAims(tau=0.3), 1, 2946.13 + 5.41),
    ],
)
def test_the_formula_by_hand(band: float, k: float, aims: GateAims, n_slices: int, expected: float) -> None:
    """The draws per side equal the numbers in the comments (z's from a table)."""
    assert _needed(band, k, aims, n_slices) == pytest.approx(expected, rel=2e-4)


def test_skewed_differences_and_tied_contrasts_ask_for_more_by_hand() -> None:
    """One gate at band 0.1, S^2 = 0.5: skewness adds a term under the root, contrasts share beta as gates do."""
    # x^2 0.05 - x sqrt(0.5) 2.926405 - (2 x 2.705543 + 1.642374) / 6 = 0: x = (2.069281 + sqrt(4.281924 + 4 x 0.05 x
    # 1.175577)) / 0.1 = 41.9455, so 1,759.4, and 10.8 for the variance as ever
    assert _needed(0.1, 8, GateAims(lean=1.0)) == pytest.approx(41.9455**2 + 10.82, rel=1e-4)
    assert _needed(0.1, 8, GateAims(n_contrasts=5), 2) == pytest.approx(_needed(0.1, 8, GateAims(), 10))
    # types of 4, 3 and 2 labels: 2^2 x 2^1 x 1; a type of one label ties nothing
    assert [tied_contrasts(n) for n in ((4, 3, 2), (2,), (1, 1), (), (60,))] == [8, 1, 1, 1, 2**40]


def _pass_rate(n_runs: int, difference: float, aims: GateAims, *, band: float, k: int, seed: int) -> float:
    """Run the paired gate on the planned seeds: two one-sided t tests of seed means; return how often it passes."""
    rng = np.random.default_rng(seed)
    m = int(np.ceil(_needed(band, k, aims) / k))
    # a seed's difference of K-draw means: tau^2 over seeds, sigma^2 / K from either side
    spread, t = np.sqrt(aims.tau**2 + 2 * aims.sigma**2 / k), stats.t.ppf(1 - aims.alpha, m - 1)
    n_passed = 0
    for n in [2_000] * (n_runs // 2_000):
        d = difference + rng.normal(size=(n, m)) * spread
        mean, half = d.mean(axis=1), t * d.std(axis=1, ddof=1) / np.sqrt(m)
        n_passed += int(((mean - half > -band) & (mean + half < band)).sum())
    return n_passed / n_runs


@pytest.mark.parametrize("n_runs", [4_000, pytest.param(40_000, marks=pytest.mark.prove)])
@pytest.mark.parametrize(("k", "tau", "band"), [(1, 0.0, 0.1), (8, 0.0, 0.1), (8, 0.2, 0.15), (32, 0.1, 0.2)])
def test_a_gate_keeps_its_promises_at_the_planned_n(n_runs: int, k: int, tau: float, band: float) -> None:
    """At half a band's difference the power is reached, and at a whole band at most alpha pass.

    By simulation; 4 standard errors either way, so a false alarm is below 1e-3 over all cases (seeds are fixed). The
    power must not exceed its aim by more than 3 points either, or the plan would pay for too much.
    """
    aims = GateAims(power=0.9, tau=tau)
    error = 4 * np.sqrt(0.9 * 0.1 / n_runs)
    power = _pass_rate(n_runs, band / 2, aims, band=band, k=k, seed=5)
    assert 0.9 - error <= power <= 0.93 + error
    at_band = _pass_rate(n_runs, band, aims, band=band, k=k, seed=6)
    assert at_band <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / n_runs)


def test_no_difference_passes_with_the_power_when_none_is_expected() -> None:
    """With expected_difference 0 a perfect student passes with the stated power (4,000 runs, 4 standard errors)."""
    aims = GateAims(expected_difference=0)
    power = _pass_rate(4_000, 0.0, aims, band=0.1, k=4, seed=7)
    assert abs(power - 0.9) < 4 * np.sqrt(0.09 / 4_000) + 0.02


SLICES = ["a", "a", "b", "b"]


def _plan(
    budget: str | None,
    n_seeds: list[int],
    *,
    band: tuple[float, ...] = (0.1,) * 4,
    share: tuple[float, ...] = (0.3, 0.1, 0.4, 0.2),
    k: int = 1,
    bought: pl.DataFrame = NOTHING,
    labels: tuple[int | None, ...] = (None,) * 4,
    **changes: object,
) -> Plan:
    """Plan a gate over slices a and b with two cells each."""
    cells = pl.DataFrame(
        {
            "cell_id": pl.Series(range(4), dtype=pl.Int32),
            "cell": ["a/x", "a/y", "b/x", "b/y"],
            "slice": SLICES,
            "scenario": ["x", "y"] * 2,
            "layer": ["core"] * 4,
            "feasible": [True] * 4,
            "band": band,
            "fleet_share": share,
            "k": pl.Series([k] * 4, dtype=pl.Int32),
            "n_labels": pl.Series(labels, dtype=pl.Int64),
        }
    )
    rows = [(f"c{c}-{i}", c, f"g{c}-{i}", "gate", (i + 0.5) / n) for c, n in enumerate(n_seeds) for i in range(n)]
    schema = {"seed_id": pl.String, "cell_id": pl.Int32, "grp": pl.String, "split": pl.String, "prn": pl.Float64}
    seeds = pl.DataFrame(rows, schema=schema, orient="row").with_columns(
        decision_point=pl.lit(k > 1), k=pl.lit(None, dtype=pl.Int32)
    )
    request = PlanRequest(
        purpose="gate", budget=None if budget is None else parse_budget(budget), held_out=("gate",), min_groups=0,
        **changes,  # type: ignore[arg-type]
    )  # fmt: skip
    return make_plan(request, cells, seeds, bought, Rates(usd=1.0, gpu_s=36.0))


# beta = 0.1 / 2: z_0.95 twice: 2 sigma^2 (3.2897)^2 / 0.05^2 + 1.353 = 2 x 0.01 x 10.822 / 0.0025 + 1.353 = 87.93 -> 88
SHARP = GateAims(sigma=0.1)


def test_without_a_budget_a_gate_plan_buys_the_minima() -> None:
    """Each slice gets its own 88, dealt to its two cells alike, whatever the fleet does (0.3 to 0.1, 0.4 to 0.2)."""
    plan = _plan(None, [99] * 4, aims=SHARP)
    assert plan.minima.select("slice", "band", "k", "needed", "target").rows() == [
        ("a", 0.1, 1.0, 88, 88),
        ("b", 0.1, 1.0, 88, 88),
    ]
    assert plan.cells["target"].to_list() == [44, 44, 44, 44]
    assert plan.cells["mark"].to_list() == [""] * 4
    assert plan.n_fresh == 176


def test_the_tightest_band_of_a_slice_counts() -> None:
    """A cell at 0.05 makes its slice want 4 x 86.58 + 1.35 = 347.7 draws; a wider one than the rest changes nothing."""
    plan = _plan(None, [400] * 4, band=(0.1, 0.05, 0.1, 0.9), aims=SHARP)
    assert plan.minima["needed"].to_list() == [348, 88]


@pytest.mark.parametrize(
    ("band", "n_seeds"),
    [
        # 0.8^20 = 0.0115: twenty seeds that all agree exclude a share of 0.2 with room to spare
        (0.2, 20),
        # 0.9^28 = 0.0523 and 0.9^29 = 0.0471: with 28 that agree 0.1 can't be excluded at 5% yet
        (0.1, 29),
    ],
)
def test_every_gate_gets_its_least_seeds_whole(band: float, n_seeds: int) -> None:
    """A statistic so sharp that the formula asks for 2 draws still takes the least seeds, K draws of each."""
    plan = _plan(None, [99] * 4, band=(band,) * 4, k=4, aims=GateAims(sigma=0.001))
    assert plan.minima["needed"].to_list() == [4 * n_seeds] * 2
    assert plan.draws.group_by("seed_id").len()["len"].unique().to_list() == [4]
    per_slice = plan.draws.group_by(pl.col("cell_id") // 2).agg(pl.col("seed_id").n_unique())["seed_id"].to_list()
    assert per_slice == [n_seeds, n_seeds]


def test_a_gate_takes_the_seeds_that_are_asked_for_as_far_as_there_are() -> None:
    """Asked for 60 seeds a slice, one takes 60 whole ones and one all of its 50, which is no reason to refuse it."""
    plan = _plan(None, [99, 99, 30, 20], k=3, aims=GateAims(sigma=0.001, seeds=60))
    assert plan.minima["needed"].to_list() == [180, 150]
    assert plan.cells["target"].to_list() == [90, 90, 90, 60]
    assert plan.cells["mark"].to_list() == [""] * 4


def test_a_slice_has_the_contrasts_of_its_own_scenario_types() -> None:
    """Types of 4 and 3 labels tie 2^2 x 2^1 = 8 contrasts, one of 2 labels none: a's beta is 0.1 / 2 / 8, b's 0.1 / 2.

    a: z = 1.6449 + 2.4977 (of 0.00625), 2 x 0.01 x 17.161 / 0.0025 + 1.353 = 138.6; b: 88 as ever. A slice with a type
    whose labels nobody knows is held to the aims' own contrasts.
    """
    assert _plan(None, [99] * 4, labels=(4, 3, 2, 2), aims=SHARP).minima["needed"].to_list() == [139, 88]
    tied = GateAims(sigma=0.1, n_contrasts=8)
    assert _plan(None, [99] * 4, labels=(4, None, 2, 2), aims=tied).minima["needed"].to_list() == [139, 88]


def test_small_cells_give_what_they_have() -> None:
    """A cell with 5 seeds gives 5 of its 44, the other one of its slice the rest."""
    plan = _plan(None, [99, 5, 99, 99], aims=SHARP)
    assert plan.cells["target"].to_list() == [83, 5, 44, 44]


def test_cells_the_fleet_never_meets_are_gated_alike() -> None:
    """A fleet share of 0 doesn't take a cell out of its slice's gate: rare scenario types must be seen there."""
    rare = _plan(None, [99] * 4, share=(0.5, 0.0, 0.5, 0.0), aims=SHARP)
    assert rare.cells["target"].to_list() == [44, 44, 44, 44]


def test_credits_lower_what_a_gate_buys() -> None:
    """Gate draws of this teacher version that exist are not bought again."""
    bought = pl.DataFrame({"seed_id": [f"c0-{i}" for i in range(10)], "k": [0] * 10})
    plan = _plan(None, [99] * 4, aims=SHARP, bought=bought)
    assert plan.cells["fresh"].to_list() == [34, 44, 44, 44]


def test_more_budget_goes_on_by_weight() -> None:
    """Beyond the minima the rest is dealt as in any plan: 24 more to four equal weights, the smallest cells first."""
    plan = _plan("200samples", [99, 20, 99, 99], aims=SHARP)
    # from 68 20 44 44 (b can't give more than 20) the smallest counts come first: 12 each to those at 44
    assert plan.cells["target"].to_list() == [68, 20, 56, 56]


def test_a_budget_below_the_minima_is_refused_with_the_smallest_that_does() -> None:
    """The error names the slices and 176; that budget works, and --allow-undecidable scales down and marks."""
    with pytest.raises(
        DistdataError, match=r"decidable minima of 2 slices \(a 88, b 88\) need 176 samples.*--budget 176samples, widen"
    ):
        _plan("175samples", [99] * 4, aims=SHARP)
    assert _plan("176samples", [99] * 4, aims=SHARP).n_fresh == 176
    with pytest.raises(DistdataError, match=r"cost \$176.00; the budget is 100usd.*--budget 176usd"):
        _plan("$100", [99] * 4, aims=SHARP)
    scaled = _plan("88samples", [99] * 4, aims=SHARP, allow_undecidable=True)
    assert scaled.n_target == 88
    assert scaled.cells["mark"].to_list() == [MARK_BELOW_MINIMUM] * 4
    assert scaled.minima["target"].to_list() == [44, 44]


def test_slices_whose_seeds_cannot_decide_are_refused_with_numbers() -> None:
    """The error gives the slice, its band, what it needs and has; allowed, all there is gets bought and marked."""
    with pytest.raises(
        DistdataError,
        match=r"1 slice can't be decided .*: a \(band 0.1\) needs 88 and has seeds for 35 at 1 draws each .*power 0.9",
    ):
        _plan(None, [30, 5, 99, 99], aims=SHARP)
    plan = _plan(None, [30, 5, 99, 0], aims=SHARP, allow_undecidable=True)
    assert plan.cells["target"].to_list() == [30, 5, 88, 0]
    assert plan.cells["mark"].to_list() == [MARK_BELOW_MINIMUM] * 2 + ["", MARK_NO_SEEDS]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"alpha": 0.5}, "alpha = 0.5"),
        ({"power": 0.5}, "power = 0.5"),
        ({"power": 1.0}, "power = 1"),
        ({"expected_difference": 1.0}, "expected_difference = 1 must lie at 0 or above and below 1"),
        ({"sigma": 0.0}, "sigma = 0"),
        ({"sigma": float("nan")}, "sigma = nan"),
        ({"tau": -0.1}, "tau = -0.1"),
        ({"lean": -1.0}, "lean = -1"),
        ({"n_contrasts": 0}, "n_contrasts = 0"),
        ({"seeds": 19}, "seeds = 19 must be at least 20"),
    ],
)
def test_aims_out_of_range_are_refused(changes: dict[str, float], reason: str) -> None:
    """Each aim out of range is named with its value."""
    with pytest.raises(DistdataError, match=reason):
        GateAims(**changes)


def test_measured_sigmas_replace_the_given_one() -> None:
    """A slice's variance is the mean of its cells': a has (0.04 + 0.01) / 2, b the given 0.01.

    a: 2 x 0.025 x 10.822 / 0.0025 + 1.353 = 217.8.
    """
    cells_sigma = [0.2, float("nan"), None, float("nan")]
    plan = _plan_with_sigma(cells_sigma)
    assert plan.minima["needed"].to_list() == [218, 88]


def _plan_with_sigma(sigma: list[float | None]) -> Plan:
    base = _plan(None, [400] * 4, aims=SHARP)
    cells = base.cells.select("cell_id", "cell", "slice", "scenario", "layer", "feasible", "band", "fleet_share")
    cells = cells.with_columns(k=pl.lit(1, dtype=pl.Int32), sigma=pl.Series(sigma, dtype=pl.Float64))
    seeds = pl.DataFrame(
        {
            "seed_id": [f"c{c}-{i}" for c in range(4) for i in range(400)],
            "cell_id": pl.Series([c for c in range(4) for _ in range(400)], dtype=pl.Int32),
            "grp": [f"g{i}" for i in range(1600)],
            "split": ["gate"] * 1600,
            "prn": [(i % 400 + 0.5) / 400 for i in range(1600)],
            "decision_point": [False] * 1600,
            "k": pl.Series([None] * 1600, dtype=pl.Int32),
        }
    )
    request = PlanRequest(purpose="gate", held_out=("gate",), min_groups=0, aims=SHARP)
    return make_plan(request, cells, seeds, NOTHING, Rates(usd=1.0, gpu_s=1.0))


def _paired(x: np.ndarray, n_seeds: int, k: int) -> pl.DataFrame:
    """Lay differences [m, K] out as paired draws of one slice: the teacher 0, the student x."""
    return pl.DataFrame(
        {
            "slice": ["a"] * (n_seeds * k),
            "scenario": ["x"] * (n_seeds * k),
            "seed_id": [f"s{i:04d}" for i in range(n_seeds) for _ in range(k)],
            "k": list(range(k)) * n_seeds,
            "teacher_value": [0.0] * (n_seeds * k),
            "student_value": x.reshape(-1),
        }
    )


def test_paired_draws_give_back_sigma_and_tau_by_hand() -> None:
    """40 seeds of 2 draws, d = +-0.3 with +-0.1 inside: within 0.02, between as in the comments."""
    seed = np.where(np.arange(40) % 2 == 0, 0.3, -0.3)
    x = seed[:, None] + np.array([0.1, -0.1])
    found = paired_sigma(_paired(x, 40, 2), "value").row(0, named=True)
    # within a seed: (0.01 + 0.01) / 1 = 0.02 = 2 sigma^2; over seeds 40 x 0.09 / 39 = 0.092308, less 0.02 / 2
    assert found["sigma"] == pytest.approx(0.1)
    assert found["tau"] ** 2 == pytest.approx(0.092308 - 0.01, rel=1e-4)
    assert 2 * found["sigma_all"] ** 2 == pytest.approx(0.02 + 2 * 0.082308, rel=1e-4)
    assert (found["slice"], found["n_seeds"], found["k"]) == ("a", 40, 2.0)


def test_paired_sigma_plans_the_same_n_as_sigma_and_tau() -> None:
    """`sigma_all` with tau 0 asks for what `sigma` and `tau` ask for, and the truth is found within its error.

    2,000 seeds of 8 draws with 2 sigma^2 = 0.08 and tau = 0.1: relative errors of variances sqrt(2 / 2,000) = 3%.
    """
    rng = np.random.default_rng(3)
    x = rng.normal(size=(2_000, 1)) * 0.1 + rng.normal(size=(2_000, 8)) * np.sqrt(0.08)
    found = paired_sigma(_paired(x, 2_000, 8), "value").row(0, named=True)
    assert found["sigma"] == pytest.approx(0.2, rel=0.04)
    assert found["tau"] == pytest.approx(0.1, rel=0.1)
    both = _needed(0.1, 8, GateAims(sigma=found["sigma"], tau=found["tau"]))
    assert _needed(0.1, 8, GateAims(sigma=found["sigma_all"])) == pytest.approx(both)


def test_paired_sigma_of_outcomes_is_that_of_the_contrast_that_varies_most() -> None:
    """Of three labels b never changes and a becomes c on even seeds, c a on odd ones: the contrast is a alone.

    30 seeds of 3 draws with x = -+(1, 1, 0): within a seed (1/9 + 1/9 + 4/9) / 2 = 1/3; seed means -+2/3 vary by
    30/29 x 4/9 = 0.45977, less 1/9. Too few seeds, or one without a label, say nothing.
    """
    teacher = [label for i in range(30) for label in ("aab" if i % 2 == 0 else "ccb")]
    student = [label for i in range(30) for label in ("ccb" if i % 2 == 0 else "aab")]
    paired = _paired(np.zeros((30, 3)), 30, 3).with_columns(
        teacher_outcome=pl.Series(teacher), student_outcome=pl.Series(student)
    )
    found = paired_sigma(paired).row(0, named=True)
    assert found["sigma"] ** 2 == pytest.approx(1 / 6)
    assert found["tau"] ** 2 == pytest.approx(0.45977 - 1 / 9, rel=1e-4)
    assert paired_sigma(paired.head(57)).height == 0
    assert paired_sigma(paired.with_columns(student_outcome=pl.lit(None, dtype=pl.String))).height == 0


def test_where_all_seeds_agree_one_more_is_taken_to_differ() -> None:
    """30 seeds of 2 draws without a difference, values from 0 to 4: variance 4^2 / 31, and never 0."""
    paired = _paired(np.zeros((30, 2)), 30, 2).with_columns(
        teacher_value=pl.Series([0.0, 4.0] * 30), student_value=pl.Series([0.0, 4.0] * 30)
    )
    found = paired_sigma(paired, "value").row(0, named=True)
    assert (found["sigma"], found["tau"] ** 2) == (0.0, pytest.approx(16 / 31))
