"""Ratios: Fieller against its definition, modes kept and lost, the control's slope, the spread within seeds."""

import math

import numpy as np
import polars as pl
import pytest
from scipy import stats

from distdata.stratify.paired import Ask, Finding, SliceDraws, slice_draws
from distdata.stratify.ratios import control_response, fieller, mode_recall, spread_ratio

RECALL = Ask(alpha=0.05, power=0.9, band=0.5, side="lower", min_seeds=20)
CONTROL = Ask(alpha=0.05, power=0.9, band=0.2, side="both", min_seeds=20)
SPREAD = Ask(alpha=0.05, power=0.9, band=0.25, side="both", min_seeds=20)


def _draws(n_seeds: int, k: int, **columns: object) -> SliceDraws:
    n = n_seeds * k
    base = {"scenario": ["x"] * n, "seed_id": [f"{i // k:05d}" for i in range(n)], "k": [i % k for i in range(n)]}
    return slice_draws("s", pl.DataFrame({**base, **columns}))


def test_fieller_is_the_set_of_ratios_that_are_not_refused() -> None:
    """At both ends (s - rho t)^2 equals q^2 var(s - rho t); no ends where t itself may be 0."""
    s, t, v_ss, v_st, v_tt, q = 2.0, 4.0, 0.3, 0.1, 0.2, 1.7
    for rho in fieller(s, t, v_ss, v_st, v_tt, q):
        assert (s - rho * t) ** 2 == pytest.approx(q**2 * (v_ss - 2 * rho * v_st + rho**2 * v_tt))
    assert fieller(s, 0.1, v_ss, v_st, v_tt, q) == (-math.inf, math.inf)


def test_recall_by_hand() -> None:
    """40 seeds of 2 draws: the teacher swerves on one of two draws of each, the student on one of two of every second.

    Teacher share 0.5, student 0.25: ratio 0.5, and s - 0.5 t = +-0.25, mean 0: neither kept nor lost, p = 0.5. The
    mode "stays" has 0.5 and 0.75: ratio 1.5, s - 0.5 t is 0.25 or 0.75.
    """
    teacher = ["swerves", "stays"] * 40
    student = ["swerves", "stays", "stays", "stays"] * 20
    found = {
        f.contrast: f for f in mode_recall(_draws(40, 2, teacher_outcome=teacher, student_outcome=student), RECALL)
    }
    assert set(found) == {"x: swerves", "x: stays"}
    lost = found["x: swerves"]
    assert (lost.estimate, lost.inside, lost.p_fail) == (pytest.approx(0.5), False, pytest.approx(0.5))
    kept = found["x: stays"]
    assert (kept.estimate, kept.inside) == (pytest.approx(1.5), True)
    # t is 0.5 throughout, so Fieller's is the t interval of s, over 0.5
    half = stats.t.ppf(0.95, 39) * np.std([0.5, 1.0] * 20, ddof=1) / math.sqrt(40)
    assert kept.low == pytest.approx((0.75 - half) / 0.5)
    assert kept.high == pytest.approx((0.75 + half) / 0.5)


def test_rare_outcomes_are_no_modes_and_lost_modes_fail() -> None:
    """Of 4% nothing is asked; a mode of 25% that the student never shows fails with ratio 0."""
    rng = np.random.default_rng(1)
    u = rng.random(800)
    teacher = np.where(u < 0.04, "rare", np.where(u < 0.29, "mode", "main"))
    student = np.full(800, "main")
    found = mode_recall(_draws(100, 8, teacher_outcome=teacher, student_outcome=student), RECALL)
    assert [f.contrast for f in found] == ["x: main", "x: mode"]
    assert (found[1].estimate, found[1].low, found[1].high) == (0.0, 0.0, 0.0)
    assert found[1].p_fail is not None
    assert found[1].p_fail < 1e-6
    assert found[0].inside


def test_seeds_with_one_draw_say_nothing_of_modes() -> None:
    """Of 20 seeds with 4 draws the student never swerves; 10 seeds with one draw, on which both do, change nothing.

    Where every seed has one draw, all of them count. Nine open seeds are too few: undecided, with the draws for ten.
    """
    several = [("a", ["swerves", "stays"] * 2, ["stays"] * 4)] * 20
    single = [("b", ["swerves"], ["swerves"])] * 10

    def recall(seeds: list[tuple[str, list[str], list[str]]]) -> list[Finding]:
        rows = [
            ("x", f"{i:04d}", k, t, s)
            for i, (_, teacher, student) in enumerate(seeds)
            for k, (t, s) in enumerate(zip(teacher, student, strict=True))
        ]
        names = ["scenario", "seed_id", "k", "teacher_outcome", "student_outcome"]
        return mode_recall(slice_draws("s", pl.DataFrame(rows, schema=names, orient="row")), RECALL)

    stays, swerves = recall(several + single)
    assert (stays.estimate, swerves.estimate) == (pytest.approx(2.0), 0.0)
    assert swerves.reason == "20 open seeds"
    (kept,) = recall(single * 3)
    assert (kept.contrast, kept.inside) == ("x: swerves", True)
    few = recall(several[:9])[1]
    assert (few.inside, few.p_fail, few.needed_draws) == (False, None, 40)


@pytest.mark.parametrize("n_runs", [300, pytest.param(2_000, marks=pytest.mark.prove)])
def test_recall_of_a_few_seeds_keeps_its_level(n_runs: int) -> None:
    """Ten open seeds among others, the mode's share 0.4 under the teacher and half of it under the student.

    At most alpha = 5% pass and at most 5% fail, plus 3.3 standard errors.
    """
    passed = failed = 0
    for run in range(n_runs):
        rng = np.random.default_rng(run)
        u, kept = rng.random((10, 8)), rng.random((10, 8)) < 0.5
        teacher = np.where(u < 0.4, "mode", "main")
        student = np.where((u < 0.4) & kept, "mode", "main")
        draws = _draws(10, 8, teacher_outcome=teacher.ravel(), student_outcome=student.ravel())
        mode = next(f for f in mode_recall(draws, RECALL) if f.contrast == "x: mode")
        passed += mode.inside
        failed += mode.p_fail is not None and mode.p_fail <= 0.05
    most = 0.05 + 3.3 * math.sqrt(0.05 * 0.95 / n_runs)
    assert passed / n_runs <= most, passed / n_runs
    assert failed / n_runs <= most, failed / n_runs


@pytest.mark.parametrize(("n_mode", "inside"), [(4, False), (5, True)])
def test_modes_that_agree_exactly_are_bounded_by_their_seeds(n_mode: int, inside: bool) -> None:
    """0.5^5 = 0.031 < 0.05 <= 0.5^4: with five seeds that show the mode and agree, half of it can't be lost."""
    outcome = ["mode"] * n_mode + ["main"] * (60 - n_mode)
    found = {
        f.contrast: f for f in mode_recall(_draws(60, 1, teacher_outcome=outcome, student_outcome=outcome), RECALL)
    }
    mode = found["x: mode"]
    assert (mode.estimate, mode.low) == (1.0, pytest.approx(0.05 ** (1 / n_mode)))
    assert mode.inside == inside


@pytest.mark.parametrize("n_runs", [300, pytest.param(3_000, marks=pytest.mark.prove)])
def test_recall_at_its_limit_passes_at_most_alpha(n_runs: int) -> None:
    """A student that keeps exactly half of a 20% mode passes 5% and one with all of it 90% of the time, at 60 seeds.

    Seeds differ (mode shares 0.05 to 0.35); 3.3 standard errors, a false alarm of 5e-4 each.
    """
    rng, passed = np.random.default_rng(2), {0.5: 0, 1.0: 0}
    for keep in passed:
        for _ in range(n_runs):
            share = rng.choice([0.05, 0.35], size=(60, 1))
            u, v = rng.random((2, 60, 8))
            teacher, student = np.where(u < share, "m", "x").ravel(), np.where(v < keep * share, "m", "x").ravel()
            found = mode_recall(_draws(60, 8, teacher_outcome=teacher, student_outcome=student), RECALL)
            passed[keep] += found[0].inside
    assert passed[0.5] / n_runs <= 0.05 + 3.3 * math.sqrt(0.05 * 0.95 / n_runs)
    assert passed[1.0] / n_runs >= 0.9


def _control(gain: float, *, n_seeds: int = 120, noise: float = 0.3, common: float = 1.0, seed: int = 0) -> SliceDraws:
    """Two scenario types with offsets of their own; the teacher responds by 0.5 a unit, the student by `gain` of it."""
    rng = np.random.default_rng(seed)
    kind, control = np.arange(n_seeds) % 2, np.arange(n_seeds) // 2 % 5 - 2.0
    shared = rng.normal(size=(n_seeds, 4)) * noise
    own = rng.normal(size=(n_seeds, 4)) * noise * (1 - common)
    teacher = 3 * kind[:, None] + 0.5 * control[:, None] + shared
    student = 1 + 5 * kind[:, None] + 0.5 * gain * control[:, None] + common * shared + own
    return _draws(
        n_seeds, 4, scenario=[f"t{kind[i // 4]}" for i in range(n_seeds * 4)], control_value=np.repeat(control, 4),
        teacher_response=teacher.ravel(), student_response=student.ravel(),
    )  # fmt: skip


def test_the_slope_ratio_equals_least_squares_within_types() -> None:
    """Estimate: numpy's least squares with a constant per type; a common offset and the types' own change nothing."""
    draws = _control(0.9, common=0.5)
    (found,) = control_response(draws, CONTROL)
    control = draws.mean_by_seed(draws.numbers("control_value"))
    design = np.stack([draws.scenario == "t0", draws.scenario == "t1", control], axis=1).astype(float)
    slopes = [
        np.linalg.lstsq(design, draws.mean_by_seed(draws.numbers(f"{side}_response")), rcond=None)[0][2]
        for side in ("student", "teacher")
    ]
    assert found.estimate == pytest.approx(slopes[0] / slopes[1])
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.estimate < found.high


@pytest.mark.parametrize(("gain", "verdict"), [(1.0, "inside"), (0.95, "inside"), (0.5, "fail"), (1.6, "fail")])
def test_halved_gains_fail_and_small_differences_pass(gain: float, verdict: str) -> None:
    """Within 20% the student follows its control; half or 1.6 of the gain is surely outside."""
    (found,) = control_response(_control(gain, common=0.8), CONTROL)
    assert found.inside == (verdict == "inside")
    assert found.p_fail is not None
    assert (found.p_fail < 0.01) == (verdict == "fail")


def test_a_student_that_is_the_teacher_gets_no_interval_without_width() -> None:
    """Equal responses: the ratio is 1 and its interval that of seeds that could differ by the range of responses."""
    draws = _control(1.0)
    same = slice_draws("s", draws.frame.with_columns(student_response=pl.col("teacher_response")))
    (found,) = control_response(same, CONTROL)
    assert found.estimate == pytest.approx(1.0)
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low > 0.1
    assert "bounded by the range" in found.reason


def test_without_a_response_of_the_teacher_the_difference_is_judged() -> None:
    """A teacher whose slope may be 0: no ratio; equal students pass and one that does respond fails."""
    rng = np.random.default_rng(5)
    control = np.repeat(np.arange(200) % 5 - 2.0, 4)
    noise = rng.normal(size=(2, 800))
    flat = _draws(
        200, 4, control_value=control, teacher_response=noise[0], student_response=0.7 * noise[0] + 0.3 * noise[1]
    )
    (found,) = control_response(flat, CONTROL)
    assert (found.contrast, found.inside) == ("slope, student less teacher", True)
    keen = slice_draws("s", flat.frame.with_columns(student_response=pl.col("student_response") + 0.5 * control))
    (found,) = control_response(keen, CONTROL)
    assert not found.inside
    assert found.p_fail is not None
    assert found.p_fail < 1e-6


def test_control_says_when_there_is_nothing_to_tell() -> None:
    """No control in the slice: no row. One value within each type, or few seeds with a control: undecided."""
    draws = _control(1.0)
    none = slice_draws("s", draws.frame.with_columns(control_value=pl.lit(None, dtype=pl.Float64)))
    assert control_response(none, CONTROL) == []
    constant = slice_draws("s", draws.frame.with_columns(control_value=pl.lit(2.0)))
    (found,) = control_response(constant, CONTROL)
    assert "takes one value only" in found.reason
    few = pl.when(pl.col("seed_id") < "00010").then(pl.col("control_value")).otherwise(None)
    (found,) = control_response(slice_draws("s", draws.frame.with_columns(control_value=few)), CONTROL)
    assert found.reason == "10 seeds with a control; a gate needs 20"


@pytest.mark.parametrize("n_runs", [200, pytest.param(2_000, marks=pytest.mark.prove)])
def test_the_ratio_of_slopes_covers(n_runs: int) -> None:
    """At gain 0.8, its band's end, at most 5% pass (3.3 standard errors, a false alarm of 5e-4)."""
    passed = sum(control_response(_control(0.8, common=0.3, seed=100 + i), CONTROL)[0].inside for i in range(n_runs))
    assert passed / n_runs <= 0.05 + 3.3 * math.sqrt(0.05 * 0.95 / n_runs)


def _features(scale: float, *, n_seeds: int = 100, seed: int = 0, same: bool = False) -> SliceDraws:
    """Three dimensions of deviations 1, 10 and 0; the student's within-seed deviations are `scale` times these."""
    rng = np.random.default_rng(seed)
    dims, centers = np.array([1.0, 10.0, 0.0]), rng.normal(size=(n_seeds, 1, 3)) * 50
    t, s = rng.normal(size=(2, n_seeds, 8, 3)) * dims
    s = t if same else 0.8 * t + 0.6 * s
    lists = [pl.Series((centers + x).reshape(-1, 3).tolist(), dtype=pl.List(pl.Float64)) for x in (t, scale * s)]
    return _draws(n_seeds, 8, teacher_feature=lists[0], student_feature=lists[1])


def test_the_spread_ratio_by_hand() -> None:
    """Twice the deviations of every draw: log 4 exactly; seeds' centers and a dimension without variance say nothing.

    All leave-one-out values agree, so the bound is by the largest seed's part of the variance.
    """
    (found,) = spread_ratio(_features(2.0, same=True), SPREAD)
    assert found.estimate == pytest.approx(math.log(4), abs=1e-6)
    assert found.inside is False
    assert "all 100 seeds agree" in found.reason
    # even if such a share of seeds as alpha allows differed as much as the largest does, log 4 - 0.25 is far outside
    assert found.p_fail is not None
    assert found.p_fail < 1e-6


@pytest.mark.parametrize(
    ("scale", "verdict"), [(1.0, "inside"), (0.95, "inside"), (0.7, "fail"), (1.5, "fail"), (0, "fail")]
)
def test_collapse_and_noise_fail(scale: float, verdict: str) -> None:
    """log 0.7^2 = -0.71 and log 1.5^2 = 0.81 lie outside 0.25; 0.95 gives -0.10; a student without spread fails too."""
    (found,) = spread_ratio(_features(scale), SPREAD)
    assert found.inside == (verdict == "inside")
    assert found.p_fail is not None
    assert (found.p_fail < 1e-3) == (verdict == "fail")
    if verdict == "fail" and scale:
        assert found.estimate == pytest.approx(math.log(scale**2), abs=0.1)


@pytest.mark.parametrize("n_runs", [200, pytest.param(2_000, marks=pytest.mark.prove)])
def test_the_jackknife_of_the_spread_keeps_its_level(n_runs: int) -> None:
    """At a ratio of exp(0.25), the band itself, at most 5% pass with 40 seeds (3.3 standard errors)."""
    scale = math.exp(0.125)
    passed = sum(spread_ratio(_features(scale, n_seeds=40, seed=i), SPREAD)[0].inside for i in range(n_runs))
    assert passed / n_runs <= 0.05 + 3.3 * math.sqrt(0.05 * 0.95 / n_runs)


def test_spread_needs_two_draws_a_seed_and_whole_features() -> None:
    """Single draws show no spread; a missing or shorter feature is never a pass."""
    single = _draws(30, 1, teacher_feature=[[1.0]] * 30, student_feature=[[1.0]] * 30)
    assert spread_ratio(single, SPREAD)[0].reason == "no seed has two draws"
    draws = _features(1.0)
    for bad in (None, [1.0], [math.nan, 1.0, 1.0]):
        lists = draws.frame["student_feature"].to_list()
        lists[5] = bad
        hurt = draws.frame.with_columns(student_feature=pl.Series(lists, dtype=pl.List(pl.Float64)))
        (found,) = spread_ratio(slice_draws("s", hurt), SPREAD)
        assert (found.p_fail, found.reason) == (None, "1 of 800 draws have no feature")
