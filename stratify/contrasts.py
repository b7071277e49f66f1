"""The outcome split: every union of outcome subsets, and whether the student gives it its teacher's share.

Outcomes are labelled within their scenario type. A contrast takes a subset of each type's labels; its seed-level
difference d_i is the student's share of draws of seed i in it, less the teacher's. The largest of all contrasts of a
slice is the mean over its seeds of the total variation within their scenario type, so a slice passes when every
contrast lies inside the band: an intersection-union test (Berger 1982) of level alpha without correction, and without
the bias of a plug-in total variation. Seeds of one scenario type say 0 about the labels of another, so sums of d, d^2
and d^3 over the seeds add up across types and no contrast needs its own pass over the draws.

A contrast and its complement say the same with the other sign: of the first type only the subsets without its first
label are needed. Beyond `MOST_CONTRASTS` none is formed: the worst is bounded from above type by type (`_most_of`),
and failing is tested by `cross_fitted`, which works for any number of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from .intervals import (
    FEW,
    Bounds,
    bounds_of_moments,
    draws_to_settle,
    is_inside,
    judge_mean,
    most_share,
    p_outside,
    seeds_for,
    settle,
    stringer,
    t_upper,
    undecided,
    widen_few,
)
from .paired import Ask, Bools, Finding, Floats, Ints, SliceDraws

Number = TypeVar("Number", bound=np.generic)
MOST_CONTRASTS = 50_000
CROSS_FIT_FROM = 64
"""Where more contrasts must share alpha, failing is tested by cross-fitting, too."""
MOST_LABELS = 12
"""Scenario types with more labels are bounded label by label."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """One scenario type: its labels [J] and the seeds' differences of shares d [m_s, J] (its rows sum to 0)."""

    scenario: str
    labels: list[str]
    d: Floats
    teacher: Floats
    student: Floats

    def subsets(self, *, first: bool) -> Bools:
        """Return the subsets to combine, bool [J, C]: all but the whole; of the first type those without label 0."""
        n = len(self.labels)
        codes = np.arange(2 ** (n - 1)) * 2 if first else np.arange(max(2**n - 1, 1))
        return (codes[None, :] >> np.arange(n)[:, None] & 1).astype(bool)


def outcome_split(draws: SliceDraws, ask: Ask) -> list[Finding]:
    """Judge all contrasts of the slice; the one row is the worst of them (`ask.band` is the slice's tightest)."""
    missing = _missing(draws)
    if missing:
        return undecided(draws, ask, "all", f"{missing} of {draws.n_draws} draws have no outcome")
    parts = outcome_parts(draws)
    js = f"Jensen-Shannon {_jensen_shannon(parts):.2g} nats (information)"
    sizes = [2 ** (len(p.labels) - 1) if i == 0 else 2 ** len(p.labels) - 1 for i, p in enumerate(parts)]
    if math.prod(sizes) > MOST_CONTRASTS or max(len(p.labels) for p in parts) > MOST_LABELS:
        return [_by_parts(draws, parts, ask, js)]
    return [_by_contrasts(draws, parts, ask, js)]


def _missing(draws: SliceDraws) -> int:
    gone = pl.any_horizontal(pl.col("teacher_outcome", "student_outcome").is_null())
    return int(draws.frame.select(gone.sum()).item())


def outcome_parts(draws: SliceDraws) -> list[Part]:
    """Return the slice's scenario types with the seeds' differences of label shares."""
    teacher = draws.frame["teacher_outcome"].cast(pl.String).to_numpy().astype(str)
    student = draws.frame["student_outcome"].cast(pl.String).to_numpy().astype(str)
    of_draw = draws.scenario[draws.seed]
    parts = []
    for scenario in np.unique(draws.scenario):
        here, seeds = of_draw == scenario, draws.scenario == scenario
        labels, codes = np.unique(np.concatenate([teacher[here], student[here]]), return_inverse=True)
        place = (np.cumsum(seeds) - 1)[draws.seed[here]]
        m, n, n_of = int(seeds.sum()), len(labels), draws.n_of[seeds]
        t, s = (
            np.bincount(place * n + code, minlength=m * n).reshape(m, n) / n_of[:, None]
            for code in np.split(codes.reshape(-1), 2)
        )
        parts.append(Part(scenario=str(scenario), labels=labels.tolist(), d=s - t, teacher=t, student=s))
    # the type with most labels first: it is the one that is halved
    return sorted(parts, key=lambda p: -len(p.labels))


def _jensen_shannon(parts: list[Part]) -> float:
    """Return the mean over seeds of the divergence between the pooled laws of their scenario type, in nats."""
    total, m = 0.0, 0
    for part in parts:
        p, q = part.teacher.mean(axis=0), part.student.mean(axis=0)
        mid = (p + q) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = [np.where(a > 0, a * np.log(a / mid), 0.0).sum() / 2 for a in (p, q)]
        total, m = total + len(part.d) * float(sum(terms)), m + len(part.d)
    return total / m


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contrasts:
    """All contrasts of a slice: bounds [C], and how to get from a contrast's number to its parts."""

    bounds: Bounds
    values: list[Floats]
    subsets: list[Bools]
    shape: tuple[int, ...]

    def chosen(self, at: int) -> list[Bools]:
        """Return the subset of labels of each part, bool [J]."""
        where = np.unravel_index(at, self.shape)
        return [s[:, i] for s, i in zip(self.subsets, where, strict=True)]


def all_contrasts(parts: list[Part], m: int, alpha: float) -> Contrasts:
    """Compute the bounds of every contrast from the parts' sums."""
    subsets = [part.subsets(first=i == 0) for i, part in enumerate(parts)]
    # sums of eighths leave 1e-17 where seeds agree
    values = [np.round(part.d @ s.astype(np.float64), 12) + 0.0 for part, s in zip(parts, subsets, strict=True)]
    shape = tuple(s.shape[1] for s in subsets)

    s1, s2, s3 = (_sums([(v**p).sum(axis=0) for v in values]) for p in (1, 2, 3))
    above, below = (
        _sums([x.sum(axis=0) for x in signs]) for signs in ([v > 0 for v in values], [v < 0 for v in values])
    )
    found = bounds_of_moments(m, s1, s2, s3, alpha, share=True)

    def columns(at: Ints) -> Floats:
        where = np.unravel_index(at, shape)
        return np.concatenate([v[:, i] for v, i in zip(values, where, strict=True)])

    return Contrasts(
        bounds=widen_few(found, m, above, below, alpha, columns), values=values, subsets=subsets, shape=shape
    )


def _sums(of: list[NDArray[Number]]) -> NDArray[Number]:
    """Return the sums of one entry of each array, for all choices of entries, flat."""
    out = of[0]
    for more in of[1:]:
        out = np.add.outer(out, more)
    return out.reshape(-1)


def _by_contrasts(draws: SliceDraws, parts: list[Part], ask: Ask, js: str) -> Finding:
    m = draws.n_seeds
    every = all_contrasts(parts, m, ask.alpha)
    b = every.bounds
    n = len(b.estimate)
    reach = np.maximum(b.high, -b.low)
    with np.errstate(divide="ignore", invalid="ignore"):
        beyond = np.where(b.se > 0, (np.abs(b.estimate) - ask.band) / b.se, -np.inf)
    alike = np.flatnonzero((b.se == 0) & (np.abs(b.estimate) > ask.band))
    # where all are inside the largest difference is told, else what keeps the slice from passing
    at, p_fail = int(np.argmax(np.abs(b.estimate) if (reach < ask.band).all() else reach)), 1.0
    if len(alike):
        at = int(alike[np.argmax(np.abs(b.estimate[alike]))])
        p_fail = ((1 + ask.band) / (1 + abs(float(b.estimate[at])))) ** m
    elif beyond.max() > 0:
        worst = int(np.argmax(beyond))
        p_fail = p_outside(float(b.estimate[worst]), float(b.se[worst]), b.df, ask)
        at = worst if p_fail * n < 0.5 else at
    p_fail = min(1.0, p_fail * n)  # Bonferroni over the slice's contrasts
    if n > CROSS_FIT_FROM:
        p_fail = min(1.0, 2 * min(p_fail, cross_fitted(draws, parts, ask)[1]))
    sign = -1.0 if b.estimate[at] < 0 else 1.0
    estimate, se = float(b.estimate[at]) * sign, float(b.se[at])
    low, high = float(b.low[at]), float(b.high[at])
    low, high = (low, high) if sign > 0 else (-high, -low)
    needed = _needed(draws, b, ask)
    words = _words(parts, every.chosen(at), sign)
    agree = f"all {m} seeds agree: exact bound, at most {most_share(0, m, ask.alpha):.2%} of seeds differ; "
    reason = (agree if se == 0 and b.se.max() == 0 else "") + f"worst of {n:,} contrast{'s' * (n > 1)}; {js}"
    found = settle(draws, ask, words, estimate, se, low, high, p_fail, reason, share=True, m=m, needed=needed)
    if found.inside and not bool((reach < ask.band).all()):
        raise AssertionError("the worst contrast is inside and another is not")
    return found


def _needed(draws: SliceDraws, b: Bounds, ask: Ask) -> int | None:
    """Return the draws that settle the contrasts that are not inside: the most any of them asks for."""
    m = draws.n_seeds
    out = np.flatnonzero((b.high >= ask.band) | (b.low <= -ask.band))
    if len(out) == 0:
        return None
    room = np.abs(np.abs(b.estimate[out]) - ask.band)
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.where(b.se[out] > 0, b.se[out] / room, 0.0)
    at = int(out[np.argmax(score)])
    return draws_to_settle(float(b.estimate[at]), float(b.se[at]), draws.n_draws, m, ask)


def _words(parts: list[Part], chosen: list[Bools], sign: float) -> str:
    """Name the subset of which the student has more: ``cut_in: aborts + crossing: goes, waits``."""
    told = []
    for part, subset in sorted(zip(parts, chosen, strict=True), key=lambda p: p[0].scenario):
        if not subset.any():
            continue
        taken = subset if sign > 0 else ~subset
        names = ", ".join(label for label, yes in zip(part.labels, taken.tolist(), strict=True) if yes)
        told.append(f"{part.scenario}: {names}" if part.scenario else names)
    return " + ".join(told) or "any"


def _by_parts(draws: SliceDraws, parts: list[Part], ask: Ask, js: str) -> Finding:
    """Bound the worst contrast without going through all of them, and test one for failing (see the head)."""
    m = draws.n_seeds
    t, q = t_upper(1 - ask.alpha, m - 1), most_share(0, m, ask.alpha)
    small = [p for p in parts if len(p.labels) <= MOST_LABELS]
    total, estimate, taken = _most_of(small, m, t)
    named = dict(zip([p.scenario for p in small], taken, strict=True))
    for part in parts:
        if part.scenario not in named:
            value, mean = _reach(part.d, m, t)
            named[part.scenario] = value > 0
            total, estimate = total + float(np.maximum(value, 0).sum()), estimate + float(mean[value > 0].sum())
    n = math.prod(2 ** len(p.labels) for p in parts)
    worst = np.concatenate([p.d[:, named[p.scenario]].sum(axis=1) for p in parts])
    high = max(total, q)
    if 0 < np.count_nonzero(worst) <= FEW and worst.min() >= 0:  # few seeds differ: see `intervals`
        high = max(high, float(stringer(-np.sort(-worst[:, None], axis=0)[:FEW], m, ask.alpha)[0]))
    low, p_fail = cross_fitted(draws, parts, ask)
    reason = f"{n:.3g} contrasts: bounded together (conservative), fails by cross-fitting; {js}"
    inside = is_inside(-high, high, ask) and m >= seeds_for(ask.band, ask.alpha)
    se = max(total - estimate, 0.0) / t
    needed = None if inside else draws_to_settle(estimate, se, draws.n_draws, m, ask)
    return Finding(
        contrast=_words(parts, [named[p.scenario] for p in parts], 1.0), n_seeds=m, n_draws=draws.n_draws,
        band=ask.band, side=ask.side, estimate=estimate, low=low if low > ask.band else -high, high=high, inside=inside,
        p_fail=p_fail, reason=reason, needed_draws=needed,
    )  # fmt: skip


def _most_of(parts: list[Part], m: int, t: float) -> tuple[float, float, list[Bools]]:
    """Return a bound on the largest mean + t se of all contrasts, its mean, and the subset of each part.

    About 0, variances add over parts: se^2 = V = sum of v, v = sum of d^2 / (m (m - 1)). sqrt(V) <= V / (2 s) + s / 2
    for every s > 0, so max (mean + t sqrt(V)) <= t s / 2 + sum over parts of max (mean + t v / (2 s)): no contrast need
    be formed, and the s that makes it least comes within a hair of the largest itself. Skewness moves it outwards by at
    most the largest of sum |d|^3 / sum d^2 of any part's subset (Johnson's term, see `intervals`).
    """
    chosen = [part.subsets(first=False) for part in parts]
    values = [part.d @ s.astype(np.float64) for part, s in zip(parts, chosen, strict=True)]
    means = [v.sum(axis=0) / m for v in values]
    spreads = [(v**2).sum(axis=0) / (m * (m - 1)) for v in values]
    skew = 0.0
    for v in values:
        square = (v**2).sum(axis=0)
        some = square > 0
        skew = max(skew, float(((np.abs(v) ** 3).sum(axis=0)[some] / square[some]).max(initial=0.0)))
    widest = math.sqrt(sum(float(v.max()) for v in spreads))
    if widest == 0:
        return 0.0, 0.0, [s[:, 0] for s in chosen]
    found = (math.inf, [0] * len(parts))
    for s in np.geomspace(widest / 100, widest, 60).tolist():
        at = [int(np.argmax(a + t * v / (2 * s))) for a, v in zip(means, spreads, strict=True)]
        bound = t * s / 2 + sum(
            float(a[i] + t * v[i] / (2 * s)) for a, v, i in zip(means, spreads, at, strict=True)
        )  # fmt: skip
        found = min(found, (bound, at))
    bound, at = found
    outwards = skew * (2 * t**2 + 1) / (6 * math.sqrt(m * (m - 1)))
    estimate = sum(float(a[i]) for a, i in zip(means, at, strict=True))
    return bound + outwards, estimate, [s[:, i] for s, i in zip(chosen, at, strict=True)]


def cross_fitted(draws: SliceDraws, parts: list[Part], ask: Ask) -> tuple[float, float]:
    """Return a lower bound of level 1 - alpha on the worst contrast, and the p-value of "none lies beyond the band".

    One half of the seeds (every other one of a type) names the labels that the student shows too often, the other half
    tests that one contrast; then the other way round. Each test is honest, as it didn't choose; of two, the better
    counts twice (Bonferroni), where choosing among all contrasts on the same seeds would cost a factor of thousands.
    """
    low, p_fail = -1.0, 1.0
    for half in (0, 1):
        tested = []
        for part in parts:
            mine = np.arange(len(part.d)) % 2 == half
            too_often = part.d[~mine].sum(axis=0) > 0
            tested.append(part.d[mine][:, too_often].sum(axis=1))
        d = np.round(np.concatenate(tested), 12)
        if len(d) < 2:
            return -1.0, 1.0
        part_ask = Ask(
            alpha=ask.alpha / 2, power=ask.power, band=ask.band, side="upper", min_seeds=ask.min_seeds
        )  # fmt: skip
        found = judge_mean(draws, d, part_ask, "", share=True, scale=1.0)
        low = max(low, -1.0 if found.low is None else found.low)
        p_fail = min(p_fail, 1.0 if found.p_fail is None else found.p_fail)
    return low, min(1.0, 2 * p_fail)


def _reach(d: Floats, m: int, t: float) -> tuple[Floats, Floats]:
    """Return mean + t se and the mean of parts d [m_s, C], as parts of a mean over m seeds.

    The variance is about 0 instead of the mean, which is larger; and skewness moves it outwards as in `intervals`.
    """
    mean, second = d.sum(axis=0) / m, (d**2).sum(axis=0) / m
    se = np.sqrt(second / (m - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        skew = np.where(second > 0, (np.abs(d) ** 3).sum(axis=0) / m / second**1.5, 0.0)
    return mean + se * (t + skew * (2 * t**2 + 1) / (6 * math.sqrt(m))), mean
