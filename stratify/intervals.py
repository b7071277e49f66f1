"""Bounds on the mean of a slice's seed-level differences, and how surely it lies outside its band.

d_i is the mean over the draws of seed i of student minus teacher, under the same noise. Bounds are Student's, with
m - 1 degrees of freedom, moved outwards (never inwards) by Johnson's (1978, JASA 73) correction for skewness g:

    half-width = (s / sqrt(m)) (t + max(0, +-g) (2 t^2 + 1) / (6 sqrt(m))).

Under common noise most seeds agree and few differ, all in one direction, where t intervals are too short. Shares lie
within -1 and 1, so more can be said of them:

- all seeds alike: the share of seeds that could differ is at most q = 1 - alpha^(1/m) (Clopper and Pearson 1934; "rule
  of three"), by no more than up to -1 or 1;
- at most ten seeds differ, all in one direction: Stringer's (1963) bound of auditing, M (p_0 + sum_j (p_j - p_(j-1))
  d_(j) / M), with p_j the Clopper-Pearson bound of j in m, d_(j) the differences from the largest, M the largest. Where
  every difference is 1 it is Clopper and Pearson's own;
- a band below q can't be passed: so few seeds exclude nothing, even if all agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from .paired import Ask, Bools, Finding, Floats, Ints, SliceDraws
from .t_law import incomplete_beta, t_cdf, t_quantile

FEW = 10
"""So many seeds that differ, all in one direction, are bounded by Stringer's method instead of t."""
TINY = 1e-12
MOST_DRAWS = 1e9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bounds:
    """One-sided bounds of level 1 - alpha each; arrays of one shape, over contrasts.

    `se` is that of the mean; `df` its degrees of freedom.
    """

    estimate: Floats
    se: Floats
    low: Floats
    high: Floats
    df: float


t_upper = lru_cache(maxsize=4096)(t_quantile)


@lru_cache(maxsize=4096)
def most_share(x: int, n: int, alpha: float) -> float:
    """Return the upper Clopper-Pearson bound of level 1 - alpha for `x` of `n`."""
    if x >= n:
        return 1.0
    if x == 0:
        return float(-math.expm1(math.log(alpha) / n))
    low, high = x / n, 1.0
    while high - low > 1e-10:
        middle = (low + high) / 2
        if incomplete_beta(x + 1, n - x, middle) < 1 - alpha:
            low = middle
        else:
            high = middle
    return high


def seeds_for(band: float, alpha: float) -> int:
    """Return how many seeds, all of them agreeing, put a share inside `band`; at most 2^53."""
    seeds = math.log(alpha) / math.log1p(-min(max(band, 1e-300), 1 - 1e-9))
    return math.floor(min(seeds, 2.0**53)) + 1


def bounds_of_moments(m: int, s1: Floats, s2: Floats, s3: Floats, alpha: float, *, share: bool) -> Bounds:
    """Return the bounds from the sums over m seeds of d, d^2 and d^3, each [C].

    Where all d are alike a share's bounds are by q (see the head); others have no width there, which the caller must
    not take for knowledge.
    """
    mean = s1 / m
    var = np.maximum(s2 - m * mean**2, 0.0) / max(m - 1, 1)
    alike = var <= TINY * np.maximum(s2 / m, TINY)
    var = np.where(alike, 0.0, var)
    se, t = np.sqrt(var / m), t_upper(1 - alpha, max(m - 1, 1))
    third = s3 / m - 3 * mean * s2 / m + 2 * mean**3
    with np.errstate(divide="ignore", invalid="ignore"):
        skew = np.where(alike, 0.0, third / np.where(alike, 1.0, var) ** 1.5) * m**2 / max((m - 1) * (m - 2), 1)
    lean = skew * (2 * t**2 + 1) / (6 * math.sqrt(m))
    high, low = mean + se * (t + np.maximum(lean, 0)), mean - se * (t + np.maximum(-lean, 0))
    if share:
        q = most_share(0, m, alpha)
        high, low = np.where(alike, mean + (1 - mean) * q, high), np.where(alike, mean - (1 + mean) * q, low)
        high, low = np.minimum(high, 1.0), np.maximum(low, -1.0)
    return Bounds(estimate=mean, se=se, low=low, high=high, df=float(max(m - 1, 1)))


def bounds_of_values(d: Floats, alpha: float, *, share: bool) -> Bounds:
    """Return the bounds on means over seeds from d [m, C], by t alone."""
    return bounds_of_moments(len(d), d.sum(axis=0), (d**2).sum(axis=0), (d**3).sum(axis=0), alpha, share=share)


def stringer(largest: Floats, m: int, alpha: float) -> Floats:
    """Return the upper bound on the mean of m values of at least 0, [C], of which all but those in `largest` are 0.

    `largest` [FEW, C] holds the largest values, descending, 0 where there are fewer.
    """
    p = np.array([most_share(j, m, alpha) for j in range(min(len(largest), m) + 1)])
    return np.asarray(p[0] * largest[0] + (np.diff(p)[:, None] * largest[: len(p) - 1]).sum(axis=0))


def bounds_of_shares(d: Floats, alpha: float) -> Bounds:
    """Return the bounds on shares' differences from d [m, C], each within -1 and 1."""
    above, below = (d > 0).sum(axis=0), (d < 0).sum(axis=0)
    return widen_few(bounds_of_values(d, alpha, share=True), len(d), above, below, alpha, lambda at: d[:, at])


def widen_few(
    found: Bounds, m: int, above: Ints, below: Ints, alpha: float, columns: Callable[[Ints], Floats]
) -> Bounds:
    """Widen the bounds where few seeds differ, all in one direction; `columns(at)` returns d [m, len(at)]."""
    low, high = found.low.copy(), found.high.copy()
    for up in (True, False):
        some, none = (above, below) if up else (below, above)
        at = np.flatnonzero((some > 0) & (some <= FEW) & (none == 0))
        for part in np.array_split(at, max(1, len(at) // 2048)):
            if len(part) == 0:
                continue
            d = columns(part) if up else -columns(part)
            reach = stringer(-np.sort(-d, axis=0)[:FEW], m, alpha)
            if up:
                high[part] = np.maximum(high[part], np.minimum(reach, 1.0))
            else:
                low[part] = np.minimum(low[part], -np.minimum(reach, 1.0))
    return Bounds(estimate=found.estimate, se=found.se, low=low, high=high, df=found.df)


def p_beyond(distance: float, se: float, df: float) -> float:
    """Return P(T >= distance / se), 0.5 where both are 0."""
    if se <= 0:
        return 0.5 if distance == 0 else float(distance < 0)
    return t_cdf(-distance / se, df)


def p_outside(estimate: float, se: float, df: float, ask: Ask) -> float:
    """Return the p-value of the claim that the truth lies inside the band; of two ends both tails count."""
    if ask.side != "both":
        return p_beyond((estimate if ask.side == "upper" else -estimate) - ask.band, se, df)
    return min(1.0, p_beyond(abs(estimate) - ask.band, se, df) + p_beyond(abs(estimate) + ask.band, se, df))


def is_inside(low: float, high: float, ask: Ask) -> bool:
    """Tell whether the interval lies inside the band, where it has a bound."""
    return (ask.side == "lower" or high < ask.band) and (ask.side == "upper" or low > -ask.band)


def draws_to_settle(estimate: float, se: float, n_draws: int, n_seeds: int, ask: Ask) -> int | None:
    """Return the draws a side after which the estimate, if it is the truth, is settled with the asked power.

    From the seeds' own variance m se^2: the room up to the nearest end of the band holds z_(1-alpha) + z_power standard
    errors then, plus Guenther's term as in `minima`. None where the estimate lies at the end itself.
    """
    ends = [end for end, side in ((ask.band, "upper"), (-ask.band, "lower")) if ask.side in ("both", side)]
    room = min(abs(estimate - end) for end in ends)
    z = NormalDist().inv_cdf
    seeds = math.inf if room <= 0 else n_seeds * (se * (z(1 - ask.alpha) + z(ask.power)) / room) ** 2
    seeds = max(seeds + z(1 - ask.alpha) ** 2 / 2, ask.min_seeds)
    needed = seeds * n_draws / n_seeds
    return math.ceil(needed) if needed < MOST_DRAWS else None


def judge_mean(draws: SliceDraws, d: Floats, ask: Ask, contrast: str, *, share: bool, scale: float) -> Finding:
    """Judge the mean of seed-level differences d [m].

    `scale` is the range of the values seen: where all d of a metric without natural limits are alike, a seed that would
    differ is taken to differ by no more than that.
    """
    m = len(d)
    column = d[:, None]
    found = bounds_of_shares(column, ask.alpha) if share else bounds_of_values(column, ask.alpha, share=False)
    estimate, se, low, high = (float(a[0]) for a in (found.estimate, found.se, found.low, found.high))
    q, reason = most_share(0, m, ask.alpha), ""
    if se == 0 and share:
        reason = f"all {m} seeds agree: exact bound, at most {q:.2%} of seeds differ"
        p_fail = _p_alike(estimate, m, ask)
    elif se == 0:
        if scale <= 0:
            return Finding(
                contrast=contrast, n_seeds=m, n_draws=draws.n_draws, band=ask.band, side=ask.side, estimate=estimate,
                reason=f"all {draws.n_draws} values of both sides are the same number: their spread is not known",
            )  # fmt: skip
        low, high = estimate - q * scale, estimate + q * scale
        reason = f"all {m} seeds agree: at most {q:.2%} differ, taken to differ by the range of values, {scale:.3g}"
        beyond = {"upper": estimate, "lower": -estimate}.get(ask.side, abs(estimate)) - ask.band
        p_fail = max(0.0, 1 - beyond / scale) ** m if beyond > 0 else 1.0  # the alpha whose bound ends at the band
    else:
        p_fail = p_outside(estimate, se, found.df, ask)
    return settle(draws, ask, contrast, estimate, se, low, high, p_fail, reason, share=share, m=m)


def settle(
    draws: SliceDraws, ask: Ask, contrast: str, estimate: float, se: float, low: float, high: float, p_fail: float,
    reason: str, *, share: bool, m: int, needed: int | None = None,
) -> Finding:  # fmt: skip
    """Turn bounds into a finding: inside or not, and if not how many draws would settle it."""
    inside = is_inside(low, high, ask)
    least = seeds_for(ask.band, ask.alpha) if share else 0
    if share and inside and m < least:  # bounds from t can be shorter than what agreement allows
        inside = False
        reason = f"{m} seeds can't exclude a share of {ask.band:g}, whatever they say: at least {least} seeds"
    if not inside and needed is None:
        needed = draws_to_settle(estimate, se, draws.n_draws, m, ask)
    if not inside and needed is not None:
        needed = max(needed, math.ceil(least * draws.n_draws / m))
    return Finding(
        contrast=contrast, n_seeds=m, n_draws=draws.n_draws, band=ask.band, side=ask.side, estimate=estimate, low=low,
        high=high, inside=inside, p_fail=p_fail, reason=reason, needed_draws=None if inside else needed,
    )  # fmt: skip


def _p_alike(c: float, m: int, ask: Ask) -> float:
    """Return the p-value where all m seeds differ by c: the alpha whose exact bound ends at the band."""
    if ask.side != "lower" and c > ask.band:
        return float(((1 + ask.band) / (1 + c)) ** m)
    if ask.side != "upper" and c < -ask.band:
        return float(((1 + ask.band) / (1 - c)) ** m)
    return 1.0


def paired_values(draws: SliceDraws, column: str) -> tuple[SliceDraws, Floats, Floats] | str:
    """Return teacher and student values [n] of the draws that have any, or why there is no judging them.

    A draw without a value on both sides lies outside what the metric is about; one without it on one side is missing.
    """
    teacher, student = draws.numbers(f"teacher_{column}"), draws.numbers(f"student_{column}")
    neither: Bools = draws.frame[f"teacher_{column}"].is_null().to_numpy() & (
        draws.frame[f"student_{column}"].is_null().to_numpy()
    )
    bad = ~neither & ~(np.isfinite(teacher) & np.isfinite(student))
    if bad.any():
        return f"{int(bad.sum())} of {draws.n_draws} draws have no number in {column}"
    if neither.any():
        keep = ~neither
        return draws.where(keep), teacher[keep], student[keep]
    return draws, teacher, student


def undecided(draws: SliceDraws, ask: Ask, contrast: str, reason: str, needed: int | None = None) -> list[Finding]:
    """Return the one finding that says why nothing can be said."""
    return [
        Finding(
            contrast=contrast, n_seeds=draws.n_seeds, n_draws=draws.n_draws, band=ask.band, side=ask.side,
            reason=reason, needed_draws=needed,
        )
    ]  # fmt: skip
