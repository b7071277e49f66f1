"""Energy share against closed forms and brute force, its level, and calibration's difference."""

import math

import numpy as np
import polars as pl
import pytest
from scipy import stats

from distdata.stratify.distances import calibration, energy_share
from distdata.stratify.paired import Ask, SliceDraws, slice_draws

ASK = Ask(alpha=0.05, power=0.9, band=0.05, side="upper", min_seeds=20)


def _draws(n_seeds: int, k: int, **columns: object) -> SliceDraws:
    n = n_seeds * k
    base = {"scenario": ["x"] * n, "seed_id": [f"{i // k:05d}" for i in range(n)], "k": [i % k for i in range(n)]}
    return slice_draws("s", pl.DataFrame({**base, **columns}))


def _features(x: np.ndarray, y: np.ndarray) -> SliceDraws:
    """Pair features [m, K, D] of teacher and student."""
    lists = [pl.Series(v.reshape(-1, v.shape[2]).tolist(), dtype=pl.List(pl.Float64)) for v in (x, y)]
    return _draws(x.shape[0], x.shape[1], teacher_feature=lists[0], student_feature=lists[1])


def _gauss(shift: float, *, common: float = 0.0, n_seeds: int = 150, dims: int = 2, seed: int = 0) -> SliceDraws:
    rng = np.random.default_rng(seed)
    center, t, s = rng.normal(size=(n_seeds, 1, dims)) * 30, *rng.normal(size=(2, n_seeds, 8, dims))
    student = common * t + math.sqrt(1 - common**2) * s
    return _features(center + t, center + student + shift)


def test_the_energy_share_equals_brute_force() -> None:
    """Loops over seeds and pairs k != l give the same h and H; deviations by the teacher's own within seeds."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(30, 4, 3)), rng.normal(size=(30, 4, 3)) * 1.4 + 0.3
    (found,) = energy_share(_features(x, y), ASK)
    scale = np.sqrt(((x - x.mean(axis=1, keepdims=True)) ** 2).mean(axis=(0, 1)))
    h, most = np.zeros(30), np.zeros(30)
    for i in range(30):
        a, b = x[i] / scale, y[i] / scale
        for k in range(4):
            for m in range(4):
                if k != m:
                    cross = 2 * np.linalg.norm(a[k] - b[m])
                    h[i] += (cross - np.linalg.norm(a[k] - a[m]) - np.linalg.norm(b[k] - b[m])) / 12
                    most[i] += cross / 12
    pseudo = [30 * h.sum() / most.sum() - 29 * (h.sum() - h[i]) / (most.sum() - most[i]) for i in range(30)]
    assert found.estimate == pytest.approx(np.mean(pseudo))
    assert found.low == pytest.approx(
        np.mean(pseudo) - np.std(pseudo, ddof=1) / math.sqrt(30) * (
            stats.t.ppf(0.95, 29)
            + max(0, -stats.skew(pseudo, bias=False)) * (2 * stats.t.ppf(0.95, 29) ** 2 + 1) / (6 * math.sqrt(30))
        )
    )  # fmt: skip


@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
def test_a_shift_of_gaussians_has_its_closed_form(shift: float) -> None:
    """In one dimension E|N(d, 2)| = (2 / sqrt(pi)) exp(-d^2 / 4) + d erf(d / 2), and H = 1 - (2 / sqrt(pi)) over it.

    600 seeds: the estimate within 4 of its own standard errors (false alarm 1e-4 each). Deviations are measured with
    seven eighths of the variance, one scale for all, which cancels in H.
    """
    (found,) = energy_share(_gauss(shift, n_seeds=600, dims=1, seed=3), ASK)
    apart = 2 / math.sqrt(math.pi) * math.exp(-(shift**2) / 4) + shift * math.erf(shift / 2)
    assert found.estimate is not None
    assert found.high is not None
    se = (found.high - found.estimate) / stats.t.ppf(0.95, 599)
    assert abs(found.estimate - (1 - 2 / math.sqrt(math.pi) / apart)) < 4 * se


@pytest.mark.parametrize(("shift", "verdict"), [(0.0, "inside"), (0.2, "inside"), (1.0, "fail")])
@pytest.mark.parametrize("common", [0.0, 0.8])
def test_shifts_beyond_the_band_fail(shift: float, common: float, verdict: str) -> None:
    """delta^2 / (4 + delta^2): 0.2 makes about 0.01, 1.0 about 0.2, against a band of 0.05; noise in common or not."""
    (found,) = energy_share(_gauss(shift, common=common), ASK)
    assert found.inside == (verdict == "inside")
    assert found.p_fail is not None
    assert (found.p_fail < 0.001) == (verdict == "fail")


def test_the_distance_sees_what_means_and_variances_do_not() -> None:
    """Two modes at -1 and 1 against a normal law of the same mean and variance: outside a small band, surely."""
    rng = np.random.default_rng(4)
    x = rng.choice([-1.0, 1.0], size=(400, 8, 1))
    y = rng.normal(size=(400, 8, 1))
    (found,) = energy_share(_features(x, y), ASK)
    # E|s - z| = E|N(1, 1)| = sqrt(2/pi) e^(-1/2) + erf(1/sqrt 2) = 1.1666; E|s - s'| = 1; E|z - z'| = 1.1284
    expected = (2 * 1.16663 - 1 - 1.12838) / (2 * 1.16663)
    assert found.estimate == pytest.approx(expected, abs=0.015)
    assert found.low is not None
    assert found.low > 0.05


@pytest.mark.parametrize("n_runs", [200, pytest.param(2_000, marks=pytest.mark.prove)])
def test_the_exchange_is_a_fair_p_value(n_runs: int) -> None:
    """Equal laws: p <= 0.1 in 10% of the runs at most (3.3 standard errors); a shift of 0.7: p <= 0.01 in all of 20."""

    def p_of(shift: float, seed: int) -> float:
        (found,) = energy_share(_gauss(shift, common=0.5, n_seeds=25, seed=seed), ASK)
        return float(found.reason.split("p = ")[1].split(" ")[0])

    small = sum(p_of(0.0, i) <= 0.1 for i in range(n_runs))
    assert small / n_runs <= 0.1 + 3.3 * math.sqrt(0.09 / n_runs)
    assert all(p_of(0.7, i) <= 0.01 for i in range(20))


@pytest.mark.parametrize("n_runs", [200, pytest.param(2_000, marks=pytest.mark.prove)])
def test_the_jackknifed_bound_keeps_its_level(n_runs: int) -> None:
    """One dimension shifted so that H is the band: at most 5% pass with 40 seeds (3.3 standard errors)."""
    shift = 0.4608  # 1 - (2 / sqrt(pi)) / (that times exp(-d^2/4) + d erf(d/2)) = 0.0500
    apart = 2 / math.sqrt(math.pi) * math.exp(-(shift**2) / 4) + shift * math.erf(shift / 2)
    assert 1 - 2 / math.sqrt(math.pi) / apart == pytest.approx(0.05, abs=2e-4)
    passed = sum(energy_share(_gauss(shift, n_seeds=40, dims=1, seed=i), ASK)[0].inside for i in range(n_runs))
    assert passed / n_runs <= 0.05 + 3.3 * math.sqrt(0.05 * 0.95 / n_runs)


def test_equal_features_are_bounded_by_agreement() -> None:
    """A student that repeats its teacher draw for draw: h is not 0 seed by seed, and no seed's interval is its own.

    With x = y every h is 0: at most 1 - 0.05^(1/80) = 3.7% of seeds could differ, by at most the whole distance.
    """
    x = np.random.default_rng(6).normal(size=(80, 4, 2))
    (found,) = energy_share(_features(x, x), ASK)
    assert (found.estimate, found.inside) == (pytest.approx(0.0, abs=1e-12), True)
    assert found.high == pytest.approx(1 - 0.05 ** (1 / 80))
    (few,) = energy_share(_features(x[:40], x[:40]), ASK)
    assert few.inside is False


def test_distance_needs_features_that_vary() -> None:
    """Single draws, a teacher without variance, missing numbers: undecided with the reason."""
    one = np.zeros((30, 1, 2))
    assert energy_share(_features(one, one), ASK)[0].reason == "no seed has two draws"
    flat = np.ones((30, 4, 2))
    assert energy_share(_features(flat, flat + 1), ASK)[0].reason == "the teacher does not vary within seeds"
    y = np.random.default_rng(1).normal(size=(30, 4, 2))
    y[3, 2, 1] = math.inf
    assert energy_share(_features(np.nan_to_num(y, posinf=0), y), ASK)[0].reason == "1 of 120 draws have no feature"


def _ece(confidence: np.ndarray, correct: np.ndarray) -> float:
    """The expected calibration error by its definition."""
    bins = np.minimum((confidence * 10).astype(int), 9)
    return sum(
        (bins == b).mean() * abs(correct[bins == b].mean() - confidence[bins == b].mean()) for b in set(bins.tolist())
    )


def test_calibration_equals_its_definition() -> None:
    """The estimate is the jackknife of ECE's difference, computed bin by bin without each seed."""
    rng = np.random.default_rng(3)
    confidence, u = rng.random((2, 40, 3)), rng.random((40, 3))
    correct = [(u < confidence[0]).astype(float), (u < confidence[1] ** 2).astype(float)]
    draws = _draws(
        40, 3, teacher_confidence=confidence[0].ravel(), student_confidence=confidence[1].ravel(),
        teacher_correct=correct[0].ravel(), student_correct=correct[1].ravel(),
    )  # fmt: skip
    (found,) = calibration(draws, ASK)

    def difference(keep: np.ndarray) -> float:
        sides = [_ece(confidence[side][keep].ravel(), correct[side][keep].ravel()) for side in (1, 0)]
        return sides[0] - sides[1]

    everyone = np.ones(40, dtype=bool)
    pseudo = [40 * difference(everyone) - 39 * difference(np.arange(40) != i) for i in range(40)]
    assert found.estimate == pytest.approx(np.mean(pseudo))


def test_an_overconfident_student_fails_calibration() -> None:
    """0.95 sure and right 60% of the time is an error of 0.35 beside a teacher's near 0; a fair student passes."""
    rng = np.random.default_rng(7)
    right = (rng.random((2, 2_000)) < np.array([[0.9], [0.6]])).astype(float)
    sure = np.full(2_000, 0.9)
    columns = {"teacher_confidence": sure, "teacher_correct": right[0]}
    draws = _draws(250, 8, **columns, student_confidence=np.full(2_000, 0.95), student_correct=right[1])
    (found,) = calibration(draws, ASK)
    assert found.estimate == pytest.approx(0.35, abs=0.05)
    assert found.p_fail is not None
    assert found.p_fail < 1e-6
    fair = (rng.random(2_000) < 0.9).astype(float)
    (found,) = calibration(_draws(250, 8, **columns, student_confidence=sure, student_correct=fair), ASK)
    assert found.inside


def test_each_side_leaves_out_the_draws_in_which_it_gave_no_answer() -> None:
    """With holes of its own on either side the estimate is the difference of each side's error over its answers."""
    rng = np.random.default_rng(11)
    confidence, u = rng.random((2, 60, 4)), rng.random((2, 60, 4))
    correct = (u < confidence).astype(float)
    given = rng.random((2, 60, 4)) < 0.7
    columns = {}
    for i, side in enumerate(("teacher", "student")):
        for name, values in (("confidence", confidence[i]), ("correct", correct[i])):
            columns[f"{side}_{name}"] = [v if g else None for v, g in zip(values.flat, given[i].flat, strict=True)]
    (found,) = calibration(_draws(60, 4, **columns), ASK)

    def difference(keep: np.ndarray) -> float:
        by_side = [
            _ece(confidence[i][keep][given[i][keep]], correct[i][keep][given[i][keep]]) for i in (0, 1)
        ]  # fmt: skip
        return by_side[1] - by_side[0]

    everyone = np.ones(60, dtype=bool)
    pseudo = [60 * difference(everyone) - 59 * difference(np.arange(60) != i) for i in range(60)]
    assert found.estimate == pytest.approx(np.mean(pseudo))
    assert found.p_fail is not None


def test_too_few_answers_are_no_verdict() -> None:
    """Answers on 15 of 60 seeds: undecided, with the draws that would give 20; a confidence alone is no answer."""
    some = [0.8 if i < 60 else None for i in range(240)]
    right = [1.0 if i < 60 else None for i in range(240)]
    whole = {"teacher_confidence": [0.8] * 240, "teacher_correct": [1.0] * 240}
    (found,) = calibration(_draws(60, 4, **whole, student_confidence=some, student_correct=right), ASK)
    assert (found.inside, found.needed_draws) == (False, 320)
    assert found.reason == "the student answered on 15 seeds; a gate needs 20"
    (found,) = calibration(_draws(60, 4, **whole, student_confidence=[0.8] * 240, student_correct=right), ASK)
    assert found.reason == "180 of 240 draws have no number in the student's confidence or correct"
