"""Estimates by hand: means, ratios, domains, totals, borrowed variances, and what is said about them."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from distdata.catalogs.errors import DistdataError
from distdata.stratify.estimate import Estimates, estimate, estimate_shares
from distdata.stratify.estimate_words import estimate_words
from distdata.stratify.t_law import t_cdf, t_quantile


def _cells(shares: list[float], n_frame: list[int], **more: list[str]) -> pl.DataFrame:
    return pl.DataFrame({"cell_id": list(range(len(shares))), "fleet_share": shares, "n_frame": n_frame} | more)


def _draws(*rows: tuple[str, int, float, float], pi: float = 0.2, certain: bool = False) -> pl.DataFrame:
    """Rows are seed, cell, share of the seed, value."""
    frame = pl.DataFrame(rows, schema=["seed_id", "cell_id", "share", "value"], orient="row")
    return frame.with_columns(pi=pl.lit(pi), certain=pl.lit(certain), domain=pl.lit(True))


def _row(estimates: Estimates) -> dict[str, float]:
    return estimates.table.row(0, named=True)


TWO = _draws(("a", 0, 0.5, 1.0), ("a", 0, 0.5, 3.0), ("b", 0, 0.5, 5.0), ("b", 0, 0.5, 7.0), ("c", 1, 0.5, 2.0),
             ("d", 1, 0.5, 4.0))  # fmt: skip


def test_a_mean_by_hand() -> None:
    """Seed means 2 and 6, 2 and 4; fleet shares 0.6 and 0.4; variances 8/2 and 2/2 per cell."""
    row = _row(estimate(TWO, _cells([0.6, 0.4], [10, 10])))
    assert row["estimate"] == pytest.approx(0.6 * 4 + 0.4 * 3)
    v = (0.36 * 4, 0.16 * 1)
    assert row["se"] == pytest.approx(math.sqrt(sum(v)))
    # Welch: (1.6)^2 / (1.44^2/3 + 0.16^2/3) - 2 = 1.6586, inside the bounds 1 and 2
    df = 1.6**2 / (1.44**2 / 3 + 0.16**2 / 3) - 2
    assert row["df"] == pytest.approx(df)
    half = stats.t.ppf(0.975, df) * math.sqrt(1.6)
    assert (row["low"], row["high"]) == pytest.approx((3.6 - half, 3.6 + half))
    assert (row["n_seeds"], row["n_draws"], row["n_cells"], row["n_borrowed"]) == (4, 6, 2, 0)
    # weights 0.3, 0.3, 0.2, 0.2: 1 / 0.26
    assert row["effective_n"] == pytest.approx(1 / 0.26)
    assert row["covered"] == 1.0


def test_the_frame_is_known_better_where_seeds_have_two_draws() -> None:
    """Cell 0: s^2 = 8, w = 1 (2/2 within each seed): v = 4 - (8 - 1)/10. Cell 1 has single draws: nothing comes off."""
    result = estimate(TWO, _cells([0.6, 0.4], [10, 10]), target="frame")
    assert _row(result)["se"] == pytest.approx(math.sqrt(0.36 * 3.3 + 0.16 * 1))
    assert _row(result)["n_conservative"] == 1
    assert "1 of 2 cells have seeds with a single draw" in result.words()[1]


def test_groups_are_unions_of_cells() -> None:
    """By layer, each group's mean is over its own cells, and says how much of its fleet has a sample."""
    cells = _cells([0.3, 0.2, 0.1, 0.4], [10, 10, 10, 10], layer=["core", "core", "tail", "tail"])
    draws = pl.concat([TWO, _draws(("e", 2, 1.0, 9.0))])
    table = estimate(draws, cells, by=["layer"]).table
    assert table["layer"].to_list() == ["core", "tail"]
    assert table["estimate"].to_list() == pytest.approx([(0.3 * 4 + 0.2 * 3) / 0.5, 9.0])
    assert table["covered"].to_list() == pytest.approx([1.0, 0.2])
    assert table["n_borrowed"].to_list() == [0, 1]
    # the single seed borrows (8 + 2) / 2 with 2 degrees of freedom
    assert table["se"][1] == pytest.approx(math.sqrt(5.0))
    assert table["df"][1] == pytest.approx(2.0)


def test_a_domain_is_a_ratio_of_sums() -> None:
    """Where only some draws qualify, both sums are estimated, and all seeds enter the error."""
    draws = TWO.with_columns(domain=pl.col("value") > 2.5)  # a: 3; b: 5, 7; d: 4
    row = _row(estimate(draws, _cells([0.6, 0.4], [10, 10])))
    # z: a 1.5, b 6, c 0, d 4; x: a 0.5, b 1, c 0, d 1; sums 0.6 x 3.75 + 0.4 x 2 over 0.6 x 0.75 + 0.4 x 0.5
    top, bottom = 0.6 * 3.75 + 0.4 * 2, 0.6 * 0.75 + 0.4 * 0.5
    r = top / bottom
    assert row["estimate"] == pytest.approx(r)
    residual = [1.5 - r / 2, 6 - r, 0.0, 4 - r]
    v0, v1 = (residual[0] - residual[1]) ** 2 / 4, (residual[2] - residual[3]) ** 2 / 4
    assert row["se"] == pytest.approx(math.sqrt(0.36 * v0 + 0.16 * v1) / bottom)


def test_nulls_are_outside() -> None:
    """A draw without a value is a draw outside the domain."""
    with_null = TWO.with_columns(value=pl.when(pl.col("value") > 2.5).then("value"))
    outside = TWO.with_columns(domain=pl.col("value") > 2.5)
    cells = _cells([0.6, 0.4], [10, 10])
    assert estimate(with_null, cells).table.equals(estimate(outside, cells).table)


def test_a_total_is_over_the_frame() -> None:
    """100 and 50 seeds with means 4 and 3 make 550; its target is the frame whatever was asked."""
    result = estimate(TWO, _cells([0.6, 0.4], [100, 50]), what="total", target="superpopulation")
    assert _row(result)["estimate"] == pytest.approx(550)
    # v: 100^2 (4 - 7/100) + 50^2 x 1
    assert _row(result)["se"] == pytest.approx(math.sqrt(10_000 * 3.93 + 2500))
    assert result.target == "frame"


def test_murthys_weights_and_variance() -> None:
    """Three of five seeds must have come early (1/4 each), two could end the walk (1/8 each)."""
    share, y = np.array([1 / 4, 1 / 8, 1 / 4, 1 / 4, 1 / 8]), np.array([1.0, 4.0, 2.0, 5.0, 3.0])
    draws = _draws(*[(f"s{i}", 0, share[i], y[i]) for i in range(5)])
    row = _row(estimate(draws, _cells([1.0], [30])))
    mean = float((share * y).sum())
    assert row["estimate"] == pytest.approx(mean)
    # P(s | i and j first) / P(s) over N (N - 1): (l - e_i - e_j) / (l (m - 1)(m - 2)), l = 2, m = 5
    end = np.array([0, 1, 0, 0, 1])
    square = sum(
        (2 - end[i] - end[j]) / (2 * 4 * 3) * y[i] * y[j] for i in range(5) for j in range(5) if i != j
    )  # an unbiased estimate of the squared mean
    assert row["se"] == pytest.approx(math.sqrt(mean**2 - square))


def test_sizes_use_their_probabilities() -> None:
    """Horvitz-Thompson keeps the sum of weights as it is, the ratio form divides by it and corrects its lean."""
    pi, y = np.array([1.0, 0.5, 0.25]), np.array([4.0, 2.0, 1.0])
    share = 1 / (10 * pi)
    draws = _draws(*[(f"s{i}", 0, share[i], y[i]) for i in range(3)]).with_columns(pi=pl.Series(pi))
    ht = _row(estimate(draws, _cells([1.0], [10]), form="ht"))
    assert ht["estimate"] == pytest.approx(float((share * y).sum()))  # 0.4 + 0.4 + 0.4
    p = share / share.sum()
    s2 = (p * (y - (p * y).sum()) ** 2).sum() / (1 - (p**2).sum())
    assert ht["se"] == pytest.approx(math.sqrt((share**2 * (1 - pi) * y**2).sum() + s2 / 10))
    ratio = _row(estimate(draws, _cells([1.0], [10])))
    plain = (p * y).sum()
    assert ratio["estimate"] == pytest.approx(plain + (p**2 * (1 - pi) * (y - plain)).sum())


def test_byproducts_stand_for_themselves() -> None:
    """Two of ten seeds were chosen by others: a fifth of the cell; the walk's two stand for the rest."""
    walk = _draws(("a", 0, 0.4, 1.0), ("b", 0, 0.4, 3.0))
    chosen = _draws(("c", 0, 0.1, 10.0), ("d", 0, 0.1, 20.0), pi=1.0, certain=True)
    row = _row(estimate(pl.concat([walk, chosen]), _cells([1.0], [10])))
    assert row["estimate"] == pytest.approx(0.8 * 2 + 0.2 * 15)
    assert row["se"] == pytest.approx(math.sqrt(0.64 * 1 + 0.04 * 25))


def test_byproducts_alone_say_nothing_about_others() -> None:
    """A cell with nothing but seeds that others chose is not covered, unless they are all its seeds."""
    chosen = _draws(("c", 0, 0.5, 10.0), ("d", 0, 0.5, 20.0), certain=True)
    none = _row(estimate(chosen, _cells([1.0], [10])))
    assert none["estimate"] is None
    assert (none["covered"], none["n_seeds"], none["low"]) == (0.0, 0, None)
    assert _row(estimate(chosen, _cells([1.0], [2])))["estimate"] == pytest.approx(15)


def test_a_share_where_all_agree_has_the_exact_bound() -> None:
    """Ten seeds of ten, none of which stops: the upper bound is 1 - 0.025^(1/10), as Clopper and Pearson give it."""
    draws = _draws(*[(f"s{i}", 0, 0.1, 0.0) for i in range(10)])
    row = _row(estimate(draws, _cells([1.0], [100]), what="share"))
    assert (row["estimate"], row["se"], row["df"], row["low"]) == (0.0, 0.0, None, 0.0)
    assert row["high"] == pytest.approx(stats.beta.ppf(0.975, 1, 10))
    # two cells that agree each for itself: up only the first can go, down only the second (five seeds each)
    split = draws.with_columns(cell_id=pl.int_range(10) // 5, value=(pl.int_range(10) // 5).cast(pl.Float64))
    row = _row(estimate(split, _cells([0.7, 0.3], [50, 50]), what="share"))
    reach = 1 - 0.025 ** (1 / 5)
    assert (row["estimate"], row["low"], row["high"]) == pytest.approx((0.3, 0.3 - 0.3 * reach, 0.3 + 0.7 * reach))
    result = estimate(split, _cells([0.7, 0.3], [50, 50]), what="share")
    assert "binomial bound" in "\n".join(result.words())
    ones = _row(estimate(draws.with_columns(value=pl.lit(1.0)), _cells([1.0], [100]), what="share"))
    assert (ones["low"], ones["high"]) == pytest.approx((stats.beta.ppf(0.025, 10, 1), 1.0))


def test_shares_of_texts() -> None:
    """Each text gets its share; they sum to 1, and are the shares of the single questions."""
    draws = TWO.with_columns(value=pl.Series(["go", "go", "stop", "go", "yield", "go"]))
    cells = _cells([0.6, 0.4], [10, 10])
    table = estimate_shares(draws, cells).table
    assert table["value"].to_list() == ["go", "stop", "yield"]
    assert table["estimate"].to_list() == pytest.approx([0.6 * 0.75 + 0.4 * 0.5, 0.6 * 0.25, 0.4 * 0.5])
    alone = estimate(draws.with_columns(value=(pl.col("value") == "go").cast(pl.Float64)), cells, what="share")
    assert table.drop("value").row(0) == alone.table.row(0)


def test_nothing_at_all() -> None:
    """Without draws every number is null or 0, and there is no traceback."""
    row = _row(estimate(TWO.clear(), _cells([1.0], [10])))
    assert (row["estimate"], row["se"], row["n_draws"], row["covered"]) == (None, None, 0, 0.0)


def test_a_condition_that_no_draw_meets() -> None:
    """Every number is null, not NaN, and the screen shows blanks; texts of which there is none make no table."""
    result = estimate(TWO.with_columns(domain=pl.lit(False)), _cells([0.6, 0.4], [10, 10]))
    row = _row(result)
    assert [row[c] for c in ("estimate", "se", "df", "low", "high", "effective_n")] == [None] * 6
    assert "nan" not in estimate_words(result, [], width=120, color=False).lower()
    texts = TWO.with_columns(value=pl.lit("go"), domain=pl.lit(False))
    none = estimate_shares(texts, _cells([0.6, 0.4], [10, 10]))
    assert estimate_words(none, ["no draw meets it"], width=120, color=False).startswith("Share over the fleet")


def test_a_column_twice_is_refused() -> None:
    """Grouping by light and light again is a mistake with a name."""
    cells = _cells([0.6, 0.4], [10, 10], light=["day", "night"])
    with pytest.raises(DistdataError, match="--by names 'light' twice"):
        estimate(TWO, cells, by=["light", "light"])


def test_a_total_says_what_it_is_about_and_shows_whole_numbers() -> None:
    """A total is about the frame; 1,100.6 print as 1,101."""
    result = estimate(TWO, _cells([0.6, 0.4], [200, 100]).with_columns(n_frame=pl.Series([200.0, 100.2])), what="total")
    assert "always about the frame" in result.words()[0]
    words = estimate_words(result, [], width=160, color=False)
    assert "1,101" in words
    assert "1,101." not in words


def test_one_seed_in_all_has_no_error() -> None:
    """A single seed gives a mean and no standard error: there is nothing to borrow."""
    row = _row(estimate(_draws(("a", 0, 1.0, 3.0)), _cells([1.0], [10])))
    assert (row["estimate"], row["se"], row["low"]) == (3.0, None, None)


values = st.lists(st.integers(-50, 50).map(float), min_size=4, max_size=12)


@settings(max_examples=60, deadline=None)
@given(values, st.floats(-100, 100), st.floats(0.01, 100), st.randoms(use_true_random=False))
def test_shift_scale_and_order(y: list[float], shift: float, scale: float, random) -> None:  # type: ignore[no-untyped-def]
    """y -> scale y + shift moves mean and error with it, and the order of rows changes nothing."""
    rows = [(f"s{i // 2}", (i // 2) % 2, 0.3, value) for i, value in enumerate(y)]
    cells = _cells([0.7, 0.3], [20, 20])
    one = _row(estimate(_draws(*rows), cells))
    moved = [(seed, cell, share, scale * value + shift) for seed, cell, share, value in rows]
    random.shuffle(moved)
    two = _row(estimate(_draws(*moved), cells))
    assert two["estimate"] == pytest.approx(scale * one["estimate"] + shift, rel=1e-9, abs=1e-9)
    if one["se"] is not None:
        assert two["se"] == pytest.approx(scale * one["se"], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("df", [0.02, 0.5, 1, 1.7, 5.5, 30, 3e6, 1e9])
def test_t_quantiles_equal_scipys(df: float) -> None:
    """Quantiles agree with scipy to 1e-8 for whole and broken degrees of freedom, and invert the distribution."""
    for p in (0.025, 0.5, 0.6, 0.975, 0.9995):
        assert t_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=1e-8)
    assert t_cdf(t_quantile(0.9, df), df) == pytest.approx(0.9)
    with pytest.raises(ValueError, match="quantile"):
        t_quantile(1.0, df)
