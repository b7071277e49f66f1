"""The outcome split: every contrast against brute force, the worst in words, exact bounds, and the conservative way."""

import itertools
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from scipy import stats

from distdata.stratify import contrasts
from distdata.stratify.contrasts import all_contrasts, outcome_parts, outcome_split
from distdata.stratify.intervals import most_share, stringer
from distdata.stratify.paired import Ask, SliceDraws, slice_draws

ASK = Ask(alpha=0.05, power=0.9, band=0.1, side="both", min_seeds=20)


def _draws(teacher: list[list[str]], student: list[list[str]], scenario: list[str]) -> SliceDraws:
    """Pair outcomes [m][K] of seeds with these scenario types."""
    rows = [
        ("s", scenario[i], f"{i:04d}", k, t, s)
        for i in range(len(teacher))
        for k, (t, s) in enumerate(zip(teacher[i], student[i], strict=True))
    ]
    names = ["slice", "scenario", "seed_id", "k", "teacher_outcome", "student_outcome"]
    return slice_draws("s", pl.DataFrame(rows, schema=names, orient="row"))


def _random(n_seeds: int, k: int, labels: tuple[str, ...], seed: int) -> SliceDraws:
    rng = np.random.default_rng(seed)
    pick = [[str(x) for x in rng.choice(list(label), size=k)] for _ in range(2) for label in _labels(labels, n_seeds)]
    scenario = [f"type{i % len(labels)}" for i in range(n_seeds)]
    return _draws(pick[:n_seeds], pick[n_seeds:], scenario)


def _labels(labels: tuple[str, ...], n_seeds: int) -> list[str]:
    return [labels[i % len(labels)] for i in range(n_seeds)]


def test_every_contrast_equals_brute_force() -> None:
    """Estimates, standard errors and t bounds of all unions equal those computed one by one from the draws.

    Three types of 3, 3 and 2 labels: 2^2 x 7 x 3 = 84 contrasts; of a union and its complement one is there. Skewness
    is scipy's unbiased one.
    """
    draws = _random(60, 4, ("abc", "def", "gh"), 3)
    parts = outcome_parts(draws)
    every = all_contrasts(parts, draws.n_seeds, 0.05)
    assert len(every.bounds.estimate) == 84
    seen = {}
    for at in range(84):
        names = {(p.scenario, label) for p, s in zip(parts, every.chosen(at), strict=True)
                 for label, yes in zip(p.labels, s, strict=True) if yes}  # fmt: skip
        inside = [
            np.array([(sc, label) in names for sc, label in draws.frame.select("scenario", col).iter_rows()])
            for col in ("teacher_outcome", "student_outcome")
        ]
        d = (inside[1].astype(float) - inside[0]).reshape(60, 4).mean(axis=1)
        se = d.std(ddof=1) / np.sqrt(60)
        assert every.bounds.estimate[at] == pytest.approx(d.mean(), abs=1e-12)
        assert every.bounds.se[at] == pytest.approx(se, abs=1e-12)
        t = stats.t.ppf(0.95, 59)
        skew = stats.skew(d, bias=False) if se > 0 else 0.0
        lean = skew * (2 * t**2 + 1) / (6 * np.sqrt(60))
        if se > 0:
            assert every.bounds.high[at] == pytest.approx(d.mean() + se * (t + max(lean, 0)), abs=1e-9)
            assert every.bounds.low[at] == pytest.approx(d.mean() - se * (t + max(-lean, 0)), abs=1e-9)
        seen[frozenset(names)] = d.mean()
    # the largest contrast is the mean over seeds of the total variation of their type
    tv = sum(np.abs(p.d.sum(axis=0)).sum() / 2 for p in parts) / 60
    assert max(map(abs, seen.values())) == pytest.approx(tv)


def test_a_slice_that_passes_tells_its_largest_difference() -> None:
    """400 seeds of 2 draws, 8 of which turn one "a" into "b": 8 / 800 = 0.01, and not the 0 of what never differs."""
    teacher = [["a", "b"]] * 400
    student = [["b", "b"] if i < 8 else ["a", "b"] for i in range(400)]
    (found,) = outcome_split(_draws(teacher, student, ["x"] * 400), ASK)
    assert found.inside
    assert found.estimate == pytest.approx(0.01)
    assert "b" in found.contrast


def test_the_worst_contrast_is_told_in_words() -> None:
    """The student aborts more in cut_in and goes more in turn: that union is named, with the excess by hand.

    20 + 20 seeds of 4 draws. cut_in: on 10 seeds one of 4 is "aborts" instead of "merges": 10/4/20 = 0.125 there;
    turn: on 10 seeds 2 of 4 go instead of wait: 0.25 there. Halves of the slice: 0.0625 + 0.125 = 0.1875.
    """
    teacher = [["merges"] * 4] * 20 + [["waits"] * 4] * 20
    student = [["aborts"] + ["merges"] * 3] * 10 + [["merges"] * 4] * 10
    student += [["goes"] * 2 + ["waits"] * 2] * 10 + [["waits"] * 4] * 10
    (found,) = outcome_split(_draws(teacher, student, ["cut_in"] * 20 + ["turn"] * 20), ASK)
    assert found.contrast == "cut_in: aborts + turn: goes"
    assert found.estimate == pytest.approx(0.1875)
    assert "worst of 6 contrasts" in found.reason
    # JS of (1, 0) and (7/8, 1/8), and of (1, 0) and (3/4, 1/4), by scipy's squared distance
    js = [stats.entropy([1, 0], [(2 - q) / 2, q / 2]) / 2 + stats.entropy([1 - q, q], [(2 - q) / 2, q / 2]) / 2
          for q in (0.125, 0.25)]  # fmt: skip
    assert f"Jensen-Shannon {np.mean(js):.2g} nats" in found.reason
    # and the other way round the same union has more of the other labels
    (back,) = outcome_split(_draws(student, teacher, ["cut_in"] * 20 + ["turn"] * 20), ASK)
    assert (back.contrast, back.estimate) == ("cut_in: merges + turn: waits", pytest.approx(0.1875))


@pytest.mark.parametrize(
    ("n_seeds", "inside"),
    # 0.9^28 = 0.0523 and 0.9^29 = 0.0471: from 29 on agreement excludes that a tenth of the seeds differs
    [(20, False), (28, False), (29, True), (60, True)],
)
def test_seeds_that_all_agree_get_an_exact_bound(n_seeds: int, inside: bool) -> None:
    """The interval is Clopper and Pearson's for 0 of m, never one without width; 20 seeds are not enough for 0.1."""
    outcomes = [["a", "b"], ["b", "b"]] * (n_seeds // 2) + [["a", "a"]] * (n_seeds % 2)
    (found,) = outcome_split(_draws(outcomes, outcomes, ["x"] * n_seeds), ASK)
    assert (found.estimate, found.inside) == (0.0, inside)
    exact = stats.beta.ppf(0.95, 1, n_seeds)
    assert found.high == pytest.approx(exact)
    assert found.low == pytest.approx(-exact)
    assert f"all {n_seeds} seeds agree: exact bound" in found.reason
    if not inside:
        assert found.needed_draws == 29 * 2


def test_all_seeds_that_differ_alike_fail_for_sure() -> None:
    """A student that always stops where the teacher goes: estimate 1, and p = (1.1 / 2)^30 twice for two contrasts."""
    (found,) = outcome_split(_draws([["goes"]] * 30, [["stops"]] * 30, ["x"] * 30), ASK)
    assert found.contrast == "x: stops"
    assert found.p_fail == pytest.approx(2 * 0.55**30)
    # at most 1 - 0.05^(1/30) of the seeds could differ by -1 instead of 1
    assert found.low == pytest.approx(1 - 2 * (1 - 0.05 ** (1 / 30)))


def test_one_label_everywhere_is_judged_by_the_exact_bound() -> None:
    """Where both only ever show one outcome there is no contrast to tell, and the bound of agreement decides."""
    (found,) = outcome_split(_draws([["goes"]] * 40, [["goes"]] * 40, ["x"] * 40), ASK)
    assert (found.contrast, found.inside) == ("any", True)
    assert found.high == pytest.approx(1 - 0.05 ** (1 / 40))


@pytest.mark.parametrize("x", [1, 3, 10])
def test_few_seeds_that_differ_one_way_are_bounded_exactly(x: int) -> None:
    """Seeds with d = 1 on x of 200: the upper bound is at least Clopper and Pearson's (scipy)."""
    teacher = [["a"]] * 200
    student = [["b"]] * x + [["a"]] * (200 - x)
    (found,) = outcome_split(_draws(teacher, student, ["x"] * 200), ASK)
    exact = stats.beta.ppf(0.95, x + 1, 200 - x)
    assert most_share(x, 200, 0.05) == pytest.approx(exact, abs=1e-8)
    assert found.high is not None
    assert exact - 1e-8 <= found.high <= exact * 1.03


def test_stringers_bound_by_hand() -> None:
    """Taints 0.5 and 0.25 among 30: 0.5 p0 + (p1 - p0) 0.5 + (p2 - p1) 0.25 with scipy's Clopper-Pearson bounds."""
    p = [stats.beta.ppf(0.95, j + 1, 30 - j) for j in range(3)]
    largest = np.zeros((10, 1))
    largest[:2, 0] = 0.5, 0.25
    expected = 0.5 * p[0] + 0.5 * (p[1] - p[0]) + 0.25 * (p[2] - p[1])
    assert stringer(largest, 30, 0.05)[0] == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("missing", ["teacher_outcome", "student_outcome"])
def test_a_draw_without_outcome_is_never_a_pass(missing: str) -> None:
    """One missing label leaves the slice undecided, with the count."""
    draws = _draws([["a"]] * 40, [["a"]] * 40, ["x"] * 40)
    hole = pl.when(pl.col("seed_id") == "0007").then(None).otherwise(pl.col(missing)).alias(missing)
    (found,) = outcome_split(slice_draws("s", draws.frame.with_columns(hole)), ASK)
    assert (found.inside, found.p_fail, found.reason) == (False, None, "1 of 40 draws have no outcome")


def test_too_many_contrasts_are_bounded_from_above(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded together, contrasts are never below the worst one's own bound, by 30% at most; and it says what it is."""
    for seed in range(20):
        draws = _random(90, 4, ("abc", "def", "gh"), seed)
        (exact,) = outcome_split(draws, ASK)
        with monkeypatch.context() as few:
            few.setattr(contrasts, "MOST_CONTRASTS", 10)
            (bound,) = outcome_split(draws, ASK)
        assert exact.high is not None
        assert exact.low is not None
        assert bound.high is not None
        assert bound.high >= max(exact.high, -exact.low)
        assert bound.high <= 1.3 * max(exact.high, -exact.low)
        assert "contrasts: bounded together (conservative)" in bound.reason


@pytest.mark.parametrize(("share", "least"), [(0.0, 0.0), (0.5, 0.9)])
def test_many_contrasts_can_fail(share: float, least: float) -> None:
    """Six types of five labels (4.6e8 contrasts), 120 seeds: twice the band fails in 90 of 100 runs, the band in few.

    Each first label is a fifth of its type's draws. Half of it given away is a total variation of 0.1, the band: at
    most alpha = 5% may fail, and 13 of 100 would be 3.7 standard errors above. All of it is 0.2.
    """
    failed = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        teacher = rng.integers(0, 5, (120, 8))
        gone = (teacher == 0) & (rng.random((120, 8)) < 0.5 + share)
        student = np.where(gone, 1 + rng.integers(0, 4, (120, 8)), teacher)
        said = [[[f"{i % 6}{x}" for x in row] for i, row in enumerate(side)] for side in (teacher, student)]
        draws = _draws(said[0], said[1], [f"t{i % 6}" for i in range(120)])
        (found,) = outcome_split(draws, replace(ASK, band=0.1))
        assert found.p_fail is not None
        failed += found.p_fail <= 0.05
    assert (failed >= 100 * least) if share else (failed <= 13), failed


def test_a_type_with_many_labels_is_bounded_label_by_label() -> None:
    """Fourteen labels: above every union of them, by brute force over all 2^14."""
    rng = np.random.default_rng(5)
    names = [f"l{i:02d}" for i in range(14)]
    pick = [[str(x) for x in rng.choice(names, size=8)] for _ in range(160)]
    draws = _draws(pick[:80], pick[80:], ["x"] * 80)
    (found,) = outcome_split(draws, ASK)
    (part,) = outcome_parts(draws)
    subsets = np.array(list(itertools.product([0.0, 1.0], repeat=14))).T
    d = part.d @ subsets
    t = stats.t.ppf(0.95, 79)
    assert found.high is not None
    assert found.high >= (d.mean(axis=0) + t * d.std(axis=0, ddof=1) / np.sqrt(80)).max()
