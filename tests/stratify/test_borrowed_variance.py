"""Cells of one seed that vary while all others agree: their intervals hold the truth as often as they say.

In the worlds of shares the estimate depends on a few counts alone, so its coverage is a finite sum over them and exact.
A share of few seeds is a discrete thing: no interval covers exactly 95%, and here they come to between 93% and 100%.
"""

from __future__ import annotations

from math import comb

import numpy as np
import polars as pl
import pytest

from distdata.stratify.estimate import Estimates, estimate
from distdata.stratify.spread import agreement_reach


def _estimate(values: list[tuple[str, list[float]]], by: list[str], what: str = "share", **more: str) -> Estimates:
    """Estimate from the scenario and the seeds' values of each cell; cells have one fleet share."""
    rows = [(f"{i}-{j}", i, y, 1 / len(ys)) for i, (_, ys) in enumerate(values) for j, y in enumerate(ys)]
    draws = pl.DataFrame(rows, schema=["seed_id", "cell_id", "value", "share"], orient="row").with_columns(
        pi=pl.lit(0.1), certain=pl.lit(False), domain=pl.lit(True)
    )
    cells = pl.DataFrame(
        {
            "cell_id": range(len(values)),
            "scenario": [scenario for scenario, _ in values],
            "fleet_share": [1 / len(values)] * len(values),
            "n_frame": [1000] * len(values),
        }
    )
    return estimate(draws, cells, by=by, what=what, **more)  # type: ignore[arg-type]


def _coverage(n_calm: int, m_calm: int, n: int, p: float, by: list[str], calm: str) -> float:
    """Sum the chances of the numbers of successes among n cells of one seed whose interval holds the truth."""
    total = 0.0
    for k in range(n + 1):
        cells = [(calm, [0.0] * m_calm)] * n_calm + [("b", [float(i < k)]) for i in range(n)]
        row = _estimate(cells, by).table.row(-1, named=True)
        truth = p if by else p * n / (n + n_calm)
        total += comb(n, k) * p**k * (1 - p) ** (n - k) * (row["low"] <= truth <= row["high"])
    return total


@pytest.mark.parametrize("calm", ["a", "b"])
@pytest.mark.parametrize(("n_calm", "n", "p"), [(60, 12, 0.4), (60, 4, 0.4), (60, 20, 0.1), (0, 30, 0.4)])
def test_shares_in_cells_of_one_seed_are_covered(n_calm: int, n: int, p: float, calm: str) -> None:
    """At least 93% of intervals hold the share, over the fleet and by scenario, whatever the calm cells' scenario.

    Exact, so there are no false alarms; variances borrowed from the calm cells cover 63% to 74%.
    """
    assert _coverage(n_calm, 3, n, p, [], calm) >= 0.93
    if calm == "a":
        assert _coverage(n_calm, 3, n, p, ["scenario"], calm) >= 0.93


@pytest.mark.parametrize("n_runs", [150, pytest.param(2000, marks=pytest.mark.prove)])
@pytest.mark.parametrize("calm_sigma", [0.0, 0.3])
def test_normal_values_in_two_scenarios(n_runs: int, calm_sigma: float) -> None:
    """30 calm cells of three seeds, 12 wild ones of one: 93% to 97% of the intervals hold the mean.

    False alarm 5e-5 in the long form; the short one has bounds of 90% and 99.4%, 1% of false alarm, its seed is fixed.
    """
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(n_runs):
        calm = [("a", list(rng.normal(0, calm_sigma, 3))) for _ in range(30)]
        wild = [("b", list(rng.normal(0, 3, 1))) for _ in range(12)]
        row = _estimate(calm + wild, [], "mean").table.row(0, named=True)
        held += row["low"] <= 0 <= row["high"]
    low, high = (0.93, 0.97) if n_runs == 2000 else (0.90, 0.994)
    assert low <= held / n_runs <= high


def _se(cells: list[tuple[str, list[float]]]) -> tuple[float, float]:
    row = _estimate(cells, [], "mean").table.row(0, named=True)
    return row["se"] * len(cells), row["df"]


def test_a_scenario_lends_before_all_others() -> None:
    """Seeds 1 and 3 lend variance 2 to the cell of one seed in their scenario, and seeds 0 and 10 don't."""
    se, _ = _se([("a", [0.0, 10.0]), ("b", [1.0, 3.0]), ("b", [2.0])])
    assert se**2 == pytest.approx(50 / 2 + 2 / 2 + 2)


def test_a_scenario_without_lenders_borrows_from_all() -> None:
    """One seed alone in its scenario takes the mean of 50 and 2."""
    se, _ = _se([("a", [0.0, 10.0]), ("b", [1.0, 3.0]), ("c", [2.0])])
    assert se**2 == pytest.approx(50 / 2 + 2 / 2 + 26)


def test_cells_that_are_unlike_the_lenders_show_their_own_spread() -> None:
    """Cells of one seed at 0, 6 and 12 vary by 36, their calm lenders by 2 at most: 36 it is, with 2 df."""
    se, df = _se([("a", [1.0, 3.0]), ("a", [2.0, 2.0]), ("a", [0.0]), ("a", [6.0]), ("a", [12.0])])
    v_own, v_lent = 1.0, 3 * 36.0
    assert se**2 == pytest.approx(v_own + v_lent)
    fourth = v_own**2 / 3 + v_lent**2 / 4
    assert df == pytest.approx(max((v_own + v_lent) ** 2 / fourth - 2, 1))


def test_seeds_that_agree_lend_no_degrees_of_freedom() -> None:
    """Of two lenders, one agrees: the mean variance is 1, on the one degree of freedom of the other."""
    se, df = _se([("a", [1.0, 3.0]), ("a", [2.0, 2.0]), ("a", [2.0])])
    # own 1 with 1 df and 0 with 1 df, lent 1 with Welch's 2^2 / (2^2 / 3) - 2 = 1
    assert se**2 == pytest.approx(2.0)
    assert df == pytest.approx(min(2**2 / (1 / 3 + 1 / 3) - 2, 1 + 1 + 1))  # 2 df lent would make it 4


def test_the_reach_where_all_agree_is_the_largest_there_is() -> None:
    """A search over all pairs of chances finds nothing larger, and one stratum gives Clopper and Pearson's bound."""
    gains, n = np.array([0.5, 0.3]), np.array([2.0, 6.0])
    q1 = np.linspace(0, 1 - 0.025 ** (1 / 2), 20_001)
    q2 = 1 - (0.025 / (1 - q1) ** 2) ** (1 / 6)
    assert agreement_reach(gains, n, 0.025) == pytest.approx((0.5 * q1 + 0.3 * q2).max(), abs=1e-8)
    assert agreement_reach(np.array([1.0]), np.array([10.0]), 0.025) == pytest.approx(1 - 0.025**0.1)
    # equal gains per seed: as one stratum of all 10 seeds
    assert agreement_reach(np.array([0.4, 0.6]), np.array([4.0, 6.0]), 0.025) == pytest.approx(1 - 0.025**0.1)
    assert agreement_reach(np.array([0.0]), np.array([4.0]), 0.025) == 0.0


def test_counts_stay_within_the_frame() -> None:
    """One success in three seeds of 1,000: the t interval of the count would end far beyond 0 and 1,000."""
    row = _estimate([("a", [0.0, 0.0, 1.0])], [], "count").table.row(0, named=True)
    assert row["estimate"] == pytest.approx(1000 / 3)
    assert (row["low"], row["high"]) == (0.0, 1000.0)
    none = _estimate([("a", [0.0, 0.0, 0.0])], [], "count").table.row(0, named=True)
    assert (none["low"], none["high"]) == (0.0, pytest.approx(1000 * (1 - 0.025 ** (1 / 3))))
