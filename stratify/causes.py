"""Why a slice is red, found by what turns it green: the decision from the evidence of a few retrainings.

In this order, because each remedy is cheaper than the next, or makes the next useless:

- `teacher`: outputs of the teacher in this slice that were verified wrong. More of the same is no remedy.
- `weighting`: the slice's own data, weighted up, turns it green. Nothing is bought.
- `capacity`: a wider student on the same data passes. Less data makes a student that is too small worse as well, so
  this is asked before anything is bought.
- `coverage`: half of the slice's data at the same total weight is worse than all of it, and more data may reach the
  band. The only cause that spends.
- `capacity` again: a wider student comes within the band, if not so surely that the gate passes it.
- `unknown`: none of these; a person looks.

A score is the largest |estimate| / band of the slice's failing rows: 1 is the edge of the band. All students are gated
on the same seeds with the same noise, so scores differ by the training (see `training_noise`) and hardly by the gate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import polars as pl

from ..catalogs.errors import DistdataError
from .learning_curves import Curves, fit_curves
from .t_law import incomplete_beta, t_cdf, t_quantile
from .training_noise import SMALLEST, TrainingNoise, check_scores, pooled_noise

CauseName = Literal["teacher", "weighting", "coverage", "capacity", "unknown"]
Verdict = Literal["pass", "fail", "undecided"]

WRONG_SHARE = 0.05
"""A share of verified-wrong outputs that is tolerated, where a slice's band is not smaller."""
WRONG_ALPHA = 0.01
"""Chance of blaming a teacher whose wrong share is exactly the tolerated one."""
COVERAGE_ALPHA = 0.10
"""Chance of seeing half -> full improve where it doesn't, for a slice that no other remedy helps."""
MOST_SHARE = 0.75
"""A training on more of the data than this shows nothing of what data do."""
RIVAL_ALPHA = 0.02
"""The same for a slice that a wider student turns green: there is an explanation already, which buys nothing."""
RIVAL_GROWTH = 16.0
"""And that slice has to reach its band with this many times its data, two turns of x4, more likely than not."""
BETTER_ALPHA = 0.10
"""Chance of taking an intervention for a remedy that does nothing, where the training as it is may be green again."""
OUT_OF_REACH = 0.8
"""No purchase where the score of endless data stays above the band with this probability."""
SURELY_OUT_OF_REACH = 0.95
"""The same where each training on the least data is worse than each on all, and nothing but data helps.

Scores level off where a slice has next to no data, so its curve starts flatter than it goes on, and says too often that
no data will do; a purchase is at most x4, and the next diagnosis knows more.
"""
DOUBTFUL_GROWTH = 64.0
"""Where it is not that sure: no purchase either if three turns of x4 most likely (`OUT_OF_REACH`) leave it outside."""

REMEDIES: Mapping[CauseName, str] = {
    "teacher": "replace the wrong outputs by corrections; more of the same would teach the same mistakes",
    "weighting": "train with the slice weighted up; nothing is bought",
    "coverage": "buy more teacher draws in this slice",
    "capacity": "train a wider student on the data there is; nothing is bought",
    "unknown": "a person has to look; nothing is bought",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """The students of one intervention: a score per training seed and, where gated, the slice's verdict of each."""

    scores: tuple[float, ...]
    verdicts: tuple[Verdict, ...] = ()

    def __post_init__(self) -> None:
        check_scores(self.scores)
        if self.verdicts and len(self.verdicts) != len(self.scores):
            raise DistdataError(
                f"diagnose: {len(self.scores)} scores with {len(self.verdicts)} verdicts; one for each."
            )

    @property
    def mean(self) -> float:
        """The mean score; NaN without trainings."""
        return math.fsum(self.scores) / len(self.scores) if self.scores else math.nan

    def green(self, noise: TrainingNoise) -> bool:
        """Tell whether this intervention turns the slice green.

        All its students pass; or fewer than half of them fail and their mean score lies within the band by a standard
        error of the training noise, so that the next training of this kind is likely to be green as well.
        """
        if not self.scores:
            return False
        n_fail = self.verdicts.count("fail")
        if self.verdicts and self.verdicts.count("pass") == len(self.verdicts):
            return True
        return 2 * n_fail < len(self.scores) and self.mean + noise.error(self.mean, len(self.scores)) <= 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known about one red slice.

    - `n_kept`: training samples of the slice, which the full trainings saw.
    - `n_verified`, `n_wrong`: teacher outputs in the slice that a verifier judged, and those it found wrong;
      `tolerated`: the wrong share that is no cause, in (0, 1) (half a band of the outcome split, at most 0.05).
    - `full`, `half`, `up_weighted`, `wider`: the trainings. `quarter`: where one was made, it sharpens the curve.
    - `half_share`, `quarter_share`: the share of the slice's data that those trainings had, in (0, 1]: more than their
      names say where the slice has few seeds a cell, of which one at least stays.
    - `harmed`: slices that are green under the full training and red under `up_weighted`.
    - `failing`: the failing rows in words, such as ``outcome left|right 0.21 against 0.10``.
    """

    slice: str
    n_kept: int
    full: Trial
    half: Trial = Trial(scores=())
    up_weighted: Trial = Trial(scores=())
    wider: Trial = Trial(scores=())
    quarter: Trial = Trial(scores=())
    half_share: float = 0.5
    quarter_share: float = 0.25
    n_verified: int = 0
    n_wrong: int = 0
    tolerated: float = WRONG_SHARE
    harmed: tuple[str, ...] = ()
    failing: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.n_wrong <= self.n_verified:
            raise DistdataError(
                f"diagnose {self.slice}: {self.n_wrong:,} wrong of {self.n_verified:,} verified outputs."
            )
        if not (0 < self.half_share <= 1 and 0 < self.quarter_share <= 1):
            raise DistdataError(
                f"diagnose {self.slice}: trained on {self.half_share:g} and {self.quarter_share:g} of its data; shares "
                "lie above 0 and at most at 1."
            )
        if not 0 < self.tolerated < 1:
            raise DistdataError(f"diagnose {self.slice}: tolerated wrong share {self.tolerated:g}; it lies in (0, 1).")

    @property
    def subsets(self) -> tuple[tuple[float, Trial], ...]:
        """The trainings on part of the data and on all of it, with the shares they had."""
        return (self.quarter_share, self.quarter), (self.half_share, self.half), (1.0, self.full)

    @property
    def trials(self) -> dict[str, Trial]:
        """The interventions by name."""
        return {
            "full": self.full, "half": self.half, "quarter": self.quarter, "up_weighted": self.up_weighted,
            "wider": self.wider,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Why a slice is red, what to do about it, and what that stands on, in sentences with their numbers."""

    slice: str
    cause: CauseName
    remedy: str
    evidence: tuple[str, ...]

    @property
    def spends(self) -> bool:
        """Tell whether the remedy buys teacher draws; only `coverage` does."""
        return self.cause == "coverage"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Diagnosis:
    """The causes of all red slices of a gate, their learning curves, and the training noise they were judged by.

    `curves` is None where no slice was trained on.
    """

    causes: tuple[Cause, ...]
    curves: Curves | None
    noise: TrainingNoise


def find_causes(evidence: Sequence[Evidence]) -> Diagnosis:
    """Decide for all red slices together: they share the noise estimate and the exponent of the learning curves.

    Of slices whose cause is another, at most 10% are called `coverage` (one-sided t test of half against full at 0.10,
    and at 0.02 where a wider student is green; the degrees of freedom are the pooled noise's).
    """
    # what a student scores that was taught mistakes says nothing of how far trainings on right data differ
    noise = pooled_noise([t.scores for e in evidence if not blames_teacher(e) for t in e.trials.values()])
    points = curve_points(evidence)
    curves = fit_curves(points, noise=noise) if points.height else None
    return Diagnosis(causes=tuple(_decide(e, noise, curves) for e in evidence), curves=curves, noise=noise)


def curve_points(evidence: Sequence[Evidence]) -> pl.DataFrame:
    """Return the trainings on subsets as rows for `learning_curves.fit_curves`: slice, n, score."""
    rows = [
        (e.slice, max(e.n_kept * share, 1.0), score)
        for e in evidence
        for share, trial in e.subsets
        for score in trial.scores
        if e.n_kept > 0
    ]
    return pl.DataFrame(rows, schema={"slice": pl.String, "n": pl.Float64, "score": pl.Float64}, orient="row")


def _decide(e: Evidence, noise: TrainingNoise, curves: Curves | None) -> Cause:
    said = [f"fails: {row}" for row in e.failing]

    def cause(name: CauseName) -> Cause:
        return Cause(slice=e.slice, cause=name, remedy=REMEDIES[name], evidence=tuple(said))

    if e.full.scores:
        said.append(f"as trained: {_scores(e.full)} of its band (mean {e.full.mean:.2f}; 1.00 is the edge)")
    if e.n_kept == 0:
        said.append("the student was trained on no sample of it. Buy some first: distdata plan --budget ...")
        return cause("unknown")
    said += _teacher_words(e)
    if blames_teacher(e):
        return cause("teacher")
    said += _trial_words("weighted up", e.up_weighted, e.full, noise)
    if helps(e.up_weighted, e.full, noise):
        if not e.harmed:
            return cause("weighting")
        said.append(
            f"but weighting it up turns {', '.join(e.harmed[:3])} red: the students compete for the same weights"
        )
    wider = helps(e.wider, e.full, noise)
    coverage, words = _coverage(e, noise, curves, rival=wider)
    said += words
    said += _trial_words("a wider student", e.wider, e.full, noise)
    if wider and e.wider.verdicts and set(e.wider.verdicts) == {"pass"}:
        if coverage:
            said.append("more data would help too, but on what there is a wider student passes, and that buys nothing")
        return cause("capacity")
    if coverage:
        return cause("coverage")
    if wider:
        return cause("capacity")
    said.append(_within(e) if e.full.green(noise) else _nearest(e))
    return cause("unknown")


def helps(trial: Trial, full: Trial, noise: TrainingNoise) -> bool:
    """Tell whether an intervention is a remedy: green, where the training as it is is not.

    A slice near its edge may be green when it is trained again and nothing is changed; there an intervention has to be
    better than that, by a one-sided t test at 0.10.
    """
    if not trial.green(noise):
        return False
    if not full.green(noise):
        return True
    error = noise.sd * max(full.mean, SMALLEST) * math.sqrt(1 / len(full.scores) + 1 / len(trial.scores))
    return full.mean - trial.mean > t_quantile(1 - BETTER_ALPHA, noise.df) * error


def blames_teacher(e: Evidence) -> bool:
    """Test whether the share of verified-wrong outputs lies above the tolerated one: exact binomial, one-sided, 1%."""
    return e.n_wrong > 0 and binomial_tail(e.n_wrong, e.n_verified, e.tolerated) <= WRONG_ALPHA


def binomial_tail(n_seen: int, n: int, p: float) -> float:
    """Return P(X >= n_seen) for X ~ Binomial(n, p), by the incomplete beta function (Abramowitz and Stegun 26.5.24)."""
    return 1.0 if n_seen <= 0 else incomplete_beta(n_seen, n - n_seen + 1, p)


@dataclass(frozen=True, slots=True, kw_only=True)
class Improvement:
    """What more data of a slice's own does: `gain` is how far half -> full lowers the score, by the fitted line.

    `error` is the gain's standard error where nothing improves, `chance` the one-sided p-value of the gain.
    """

    gain: float
    error: float
    chance: float


def improvement(e: Evidence, noise: TrainingNoise) -> Improvement | None:
    """Test whether more data lowers the score; None where full or the subsets were not trained on twice.

    The least-squares slope of the score on r^-1/2, r the share of the slice's data (1, 1/2 and 1/4 where there is one),
    which with full and half alone is the difference of their means. t has the pooled noise's degrees of freedom; the
    spread is taken at the mean score, which is what all have where nothing improves. With the same training seeds for
    all shares the errors are positively correlated, which makes the test stricter.
    """
    less = [(share, score) for share, trial in e.subsets for score in trial.scores if share <= MOST_SHARE]
    if len(e.full.scores) < 2 or len(less) < 2:
        return None
    pairs = [(share**-0.5, score) for share, score in [*((1.0, s) for s in e.full.scores), *less]]
    x, y = (math.fsum(values) / len(pairs) for values in zip(*pairs, strict=True))
    squares = math.fsum((a - x) ** 2 for a, _ in pairs)
    step = 0.5**-0.5 - 1
    gain = step * math.fsum((a - x) * (s - y) for a, s in pairs) / squares
    error = step * noise.sd * max(y, SMALLEST) / math.sqrt(squares)
    return Improvement(gain=gain, error=error, chance=1 - t_cdf(gain / error, noise.df))


def _coverage(e: Evidence, noise: TrainingNoise, curves: Curves | None, *, rival: bool) -> tuple[bool, list[str]]:
    alpha = RIVAL_ALPHA if rival else COVERAGE_ALPHA
    found = improvement(e, noise)
    if found is None:
        why = f"no two trainings on {MOST_SHARE:.0%} of its data or less, so nothing is known about its learning curve"
        return False, [why]
    parts = [t for t in reversed(e.subsets[:2]) if t[1].scores]
    seen = "; ".join(f"{share:.0%} of its data: {_scores(t)} (mean {t.mean:.2f})" for share, t in parts)
    limit = t_quantile(1 - alpha, noise.df) * found.error
    words = [
        f"{seen}; by the line through them twice the data improves by {found.gain:.2f}, and {limit:.2f} would be "
        f"beyond the noise between trainings (sd {noise.sd:.0%}, {noise.df:.0f} degrees of freedom, p = "
        f"{found.chance:.2g} against {alpha:g})"
    ]
    if found.gain < limit:
        return False, words
    if rival and not _apart(e):
        words.append("but not each training on the least data is worse than each on all of it: one went astray")
        return False, words
    if curves is not None and e.slice in curves.slices:
        sure = not rival and _apart(e)
        never = float((curves.floor[curves.at(e.slice)] > 1).mean())
        if never > (SURELY_OUT_OF_REACH if sure else OUT_OF_REACH):
            words.append(f"but with endless data it would stay outside its band with probability {never:.0%}")
            return False, words
        growth, most = (RIVAL_GROWTH, 0.5) if rival else (DOUBTFUL_GROWTH, OUT_OF_REACH)
        beyond = float((curves.scores(e.slice, growth * e.n_kept) > 1).mean())
        if beyond > most and not sure:
            words.append(f"but {growth:g} times the data would leave it outside with probability {beyond:.0%}")
            return False, words
        need = curves.need(e.slice)
        words.append(
            f"its learning curve reaches the band at about {_n(need.middle)} samples (80%: {_n(need.low)} to "
            f"{_n(need.high)}); it has {e.n_kept:,}"
        )
    return True, words


def _apart(e: Evidence) -> bool:
    """Tell whether the trainings on the least data are all worse than those on all: a mean can hang on one of them."""
    least = e.quarter if e.quarter.scores else e.half
    return min(least.scores) > max(e.full.scores)


def _teacher_words(e: Evidence) -> list[str]:
    if e.n_verified == 0:
        return ["no verifier has judged its teacher outputs"]
    tail = binomial_tail(e.n_wrong, e.n_verified, e.tolerated)
    return [
        f"{e.n_wrong:,} of {e.n_verified:,} teacher outputs were verified wrong ({e.n_wrong / e.n_verified:.1%}); as "
        f"many by chance at the tolerated {e.tolerated:.1%}: p = {tail:.2g}"
    ]


def _trial_words(what: str, trial: Trial, full: Trial, noise: TrainingNoise) -> list[str]:
    if not trial.scores:
        return [f"{what}: not tried"]
    colour = "green" if trial.green(noise) else "not green"
    if trial.green(noise) and not helps(trial, full, noise):
        colour = "green, and no better than the same training again, which is as green"
    verdicts = f", verdicts {', '.join(trial.verdicts)}" if trial.verdicts else ""
    return [f"{what}: {_scores(trial)} (mean {trial.mean:.2f}{verdicts}): {colour}"]


def _nearest(e: Evidence) -> str:
    """Say which intervention came closest, for the person who looks."""
    tried = [
        (t.mean, words) for words, t in (("weighting up", e.up_weighted), ("a wider student", e.wider)) if t.scores
    ]
    if not tried:
        return "nothing was tried that could turn it green"
    best, words = min(tried, key=lambda pair: pair[0])
    return f"nothing turned it green; {words} came closest with {best:.2f} of the band"


def _within(e: Evidence) -> str:
    """Say that nothing is wrong with the student that shows: what is missing are draws that a gate can tell it by."""
    return (
        f"trained again as it is it lies within its band ({e.full.mean:.2f}), and nothing is surely better: what is "
        "missing are gate draws that can tell. Buy more of them for the next student (distdata plan --purpose gate "
        "--budget ...), or more training draws to bring it further inside (distdata plan --budget ...)"
    )


def _scores(trial: Trial) -> str:
    return " and ".join(f"{s:.2f}" for s in trial.scores) if len(trial.scores) < 4 else f"{len(trial.scores)} trainings"


def _n(n: float) -> str:
    return f"{n:,.0f}" if n < 1e9 else "endless"
