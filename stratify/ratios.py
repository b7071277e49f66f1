"""Ratios of student to teacher: modes that are kept, responses to a control, spread within a seed.

The interval of a ratio of two means over seeds is Fieller's (1954): all rho for which mean(s - rho t) may be 0. Unlike
the delta method's it keeps its level where the teacher's own mean is unsure, and has no end where that may be 0.
"""

from __future__ import annotations

import math

import numpy as np

from .contrasts import outcome_parts
from .intervals import (
    bounds_of_values,
    draws_to_settle,
    judge_mean,
    most_share,
    p_beyond,
    p_outside,
    paired_values,
    settle,
    t_upper,
    undecided,
)
from .paired import Ask, Finding, Floats, Ints, SliceDraws

MODE_SHARE = 0.05
"""A teacher outcome with a larger share within its scenario type is a mode that the student must keep."""
MODE_SEEDS = 10
"""Fewer open seeds of a scenario type say nothing of its modes (the whole slice has `Ask.min_seeds` or more)."""


def fieller(s: float, t: float, v_ss: float, v_st: float, v_tt: float, quantile: float) -> tuple[float, float]:
    """Return the ends of {rho: (s - rho t)^2 <= quantile^2 var(s - rho t)}; infinite where t may be 0.

    `v_ss`, `v_st`, `v_tt` are (co)variances of the two means.
    """
    q2 = quantile**2
    a, b, c = t * t - q2 * v_tt, s * t - q2 * v_st, s * s - q2 * v_ss
    if a <= 0:
        return -math.inf, math.inf
    root = math.sqrt(max(b * b - a * c, 0.0))
    return (b - root) / a, (b + root) / a


def mode_recall(draws: SliceDraws, ask: Ask) -> list[Finding]:
    """Judge every teacher mode: its share under the student must surely be at least `ask.band` of the teacher's.

    Means run over the seeds of the mode's scenario type (a gate deals its draws to the types, so their number is no
    chance), and where some of them have several draws, over those: a seed that was given one draw has one future, and
    shows nothing of which modes are kept. The verdict is a t test of mean(s - band t), Fieller's interval against the
    band.
    """
    if bool(draws.frame["teacher_outcome"].is_null().any()) or bool(draws.frame["student_outcome"].is_null().any()):
        return undecided(draws, ask, "all", "draws without outcome")
    found = []
    for part in sorted(outcome_parts(draws), key=lambda p: p.scenario):
        n_of = draws.n_of[draws.scenario == part.scenario]
        open_ = n_of > 1 if (n_of > 1).any() else n_of > 0
        teacher, student = part.teacher[open_], part.student[open_]
        for j in np.flatnonzero(teacher.mean(axis=0) > MODE_SHARE):
            name = f"{part.scenario}: {part.labels[j]}" if part.scenario else part.labels[j]
            found.append(_one_mode(draws, student[:, j], teacher[:, j], ask, name))
    return found


def _one_mode(draws: SliceDraws, s: Floats, t: Floats, ask: Ask, name: str) -> Finding:
    """Judge one mode by its shares s, t [m] of each open seed's draws under student and teacher."""
    m = len(s)
    if m < MODE_SEEDS:
        told = f"{m} open seeds of this type; a mode needs {MODE_SEEDS}"
        return undecided(draws, ask, name, told, math.ceil(MODE_SEEDS * draws.n_draws / m))[0]
    quantile = t_upper(1 - ask.alpha, m - 1)
    v = np.cov(s, t) / m
    estimate = float(s.mean() / t.mean())
    low, high = fieller(float(s.mean()), float(t.mean()), float(v[0, 0]), float(v[0, 1]), float(v[1, 1]), quantile)
    low, high = max(low, 0.0), high
    g = s - ask.band * t
    bound = bounds_of_values(g[:, None], ask.alpha, share=False)
    inside, reason = float(bound.low[0]) > 0, f"{m} open seeds" if m < draws.n_seeds else ""
    if np.allclose(s, t, atol=1e-9):  # the interval has no width
        n_mode = int((t > 0).sum())
        q = most_share(0, n_mode, ask.alpha)
        low, high = 1 - q, 1 + q
        inside = inside and low > ask.band
        reason = f"all {n_mode} seeds with the mode agree: exact bound, at most {q:.2%} of them lose it"
    se = float(bound.se[0])
    p_fail = p_beyond(-float(bound.estimate[0]), se, bound.df) if se > 0 else 1.0
    test = Ask(alpha=ask.alpha, power=ask.power, band=0.0, side="lower", min_seeds=MODE_SEEDS)
    needed = None if inside else draws_to_settle(float(bound.estimate[0]), se, draws.n_draws, m, test)
    return Finding(
        contrast=name, n_seeds=draws.n_seeds, n_draws=draws.n_draws, band=ask.band, side="lower", estimate=estimate,
        low=low, high=high if math.isfinite(high) else None, inside=inside, p_fail=p_fail, reason=reason,
        needed_draws=needed,
    )  # fmt: skip


def control_response(draws: SliceDraws, ask: Ask) -> list[Finding]:
    """Judge how strongly the response follows the control: student's slope over teacher's, within scenario types.

    Slopes are least squares on seed means about the scenario type's (and control axis's) own mean, errors by seed
    (White 1980, with m / (m - p)). The ratio must lie within 1 -+ band. Where the teacher's own slope may be 0 there is
    no ratio, and the difference of slopes is judged instead, in the teacher's response deviations per deviation of the
    control.
    """
    if "control_value" not in draws.frame.columns:
        return undecided(draws, ask, "slope", "no column control_value")
    controlled = draws.frame["control_value"].is_not_null().to_numpy()
    if not controlled.any():
        return []
    values = paired_values(draws if controlled.all() else draws.where(controlled), "response")
    if isinstance(values, str):
        return undecided(draws, ask, "slope", values)
    here, teacher, student = values
    if here.n_seeds < ask.min_seeds:
        return undecided(
            here, ask, "slope", f"{here.n_seeds} seeds with a control; a gate needs {ask.min_seeds}",
            math.ceil(ask.min_seeds * here.n_draws / here.n_seeds),
        )  # fmt: skip
    groups = _groups(here)
    n_free = here.n_seeds - int(groups.max()) - 2
    c = _centered(here.mean_by_seed(here.numbers("control_value")), groups)
    if not np.isfinite(c).all():
        return undecided(here, ask, "slope", "a control value is no number")
    sxx = float((c**2).sum())
    if sxx <= 0 or n_free < 2:
        return undecided(here, ask, "slope", "the control takes one value only within each scenario type")
    t, s = _centered(here.mean_by_seed(teacher), groups), _centered(here.mean_by_seed(student), groups)
    b_t, b_s = float((c * t).sum() / sxx), float((c * s).sum() / sxx)
    e_t, e_s = c * (t - b_t * c) / sxx, c * (s - b_s * c) / sxx
    grow = here.n_seeds / n_free
    v_ss, v_st, v_tt = (float((x * y).sum()) * grow for x, y in ((e_s, e_s), (e_s, e_t), (e_t, e_t)))
    quantile = t_upper(1 - ask.alpha, n_free)
    reach = most_share(0, here.n_seeds, ask.alpha) * float(np.ptp(np.concatenate([teacher, student])))
    reach *= float(np.abs(c).max()) * here.n_seeds / sxx
    alike = bool(np.allclose(s, t, atol=1e-9))
    reason = f"teacher {b_t:.4g} per unit of control" + (", all seeds agree: bounded by the range" if alike else "")
    if b_t**2 > quantile**2 * v_tt:
        low, high = fieller(b_s, b_t, v_ss, v_st, v_tt, quantile)
        ratio = b_s / b_t
        se = math.sqrt(max(v_ss - 2 * ratio * v_st + ratio**2 * v_tt, 0.0)) / abs(b_t)
        if alike:
            low, high = 1 - reach / abs(b_t), 1 + reach / abs(b_t)
        inside = 1 - ask.band < low and high < 1 + ask.band
        p_fail = _p_ratio(b_s, b_t, v_ss, v_st, v_tt, n_free, ask)
        needed = None if inside else draws_to_settle(ratio - 1, se, here.n_draws, here.n_seeds, ask)
        return [
            Finding(
                contrast="slope, student over teacher", n_seeds=here.n_seeds, n_draws=here.n_draws, band=ask.band,
                side=ask.side, estimate=ratio, low=low, high=high, inside=inside, p_fail=p_fail, reason=reason,
                needed_draws=needed,
            )
        ]  # fmt: skip
    scale = math.sqrt(sxx / here.n_seeds) / max(float(np.sqrt((t**2).mean())), 1e-300)
    difference, se = (b_s - b_t) * scale, math.sqrt(max(v_ss - 2 * v_st + v_tt, 0.0)) * scale
    half = reach * scale if alike else quantile * se
    test = Ask(alpha=ask.alpha, power=ask.power, band=ask.band, side="both", min_seeds=ask.min_seeds)
    p_fail = p_outside(difference, se, n_free, test) if se > 0 else 1.0
    return [
        settle(
            here, test, "slope, student less teacher", difference, se, difference - half, difference + half, p_fail,
            reason + ", which may be 0: no ratio", share=False, m=here.n_seeds,
        )
    ]  # fmt: skip


def _p_ratio(b_s: float, b_t: float, v_ss: float, v_st: float, v_tt: float, df: float, ask: Ask) -> float:
    """Return the p-value of the claim that b_s / b_t lies within 1 -+ band."""
    sign, p = math.copysign(1.0, b_t), 1.0
    for rho, way in ((1 + ask.band, 1.0), (1 - ask.band, -1.0)):
        se = math.sqrt(max(v_ss - 2 * rho * v_st + rho**2 * v_tt, 0.0))
        p = min(p, p_beyond(sign * way * (b_s - rho * b_t), se, df))
    return min(1.0, 2 * p)


def _groups(draws: SliceDraws) -> Ints:
    """Number the scenario types (with the control's axis, if told) of the seeds, [m]."""
    names = draws.scenario
    if "control_axis" in draws.frame.columns:
        first = np.searchsorted(draws.seed, np.arange(draws.n_seeds))
        axis = draws.frame["control_axis"].fill_null("").to_numpy().astype(str)[first]
        names = np.char.add(np.char.add(names, "/"), axis)
    return np.unique(names, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _centered(values: Floats, groups: Ints) -> Floats:
    means = np.bincount(groups, weights=values) / np.bincount(groups)
    return np.asarray(values - means[groups])


def spread_ratio(draws: SliceDraws, ask: Ask) -> list[Finding]:
    """Judge the log ratio of within-seed variances of the feature, student over teacher, jackknifed by seed.

    Each dimension's variances are pooled over seeds, divided by the teacher's, and averaged over dimensions in which
    the teacher varies. Below 0 the student has collapsed, above 0 it adds noise; a band of 0.25 is -22% to +28%.
    """
    pair = feature_pair(draws)
    if isinstance(pair, str):
        return undecided(draws, ask, "log variance ratio", pair)
    here, teacher, student = pair
    if here.n_seeds < ask.min_seeds:
        return undecided(
            here, ask, "log variance ratio", f"{here.n_seeds} seeds with two draws; a gate needs {ask.min_seeds}",
            math.ceil(ask.min_seeds * here.n_draws / here.n_seeds),
        )  # fmt: skip
    v_t, v_s = _within(here, teacher), _within(here, student)
    varies = v_t.sum(axis=0) > 1e-12 * np.maximum((teacher**2).mean(axis=0), 1e-12)
    if not varies.any():
        return undecided(here, ask, "log variance ratio", "the teacher does not vary within seeds")
    v_t, v_s = v_t[:, varies], v_s[:, varies]
    all_t, all_s, m = v_t.sum(axis=0), v_s.sum(axis=0), here.n_seeds
    without_t = np.maximum(all_t - v_t, 1e-12 * all_t)
    whole = math.log(max(float((all_s / all_t).mean()), 1e-6))
    without = np.log(np.maximum(((all_s - v_s) / without_t).mean(axis=1), 1e-6))
    scale = float((v_t / all_t).mean(axis=1).max()) * m
    return [judge_mean(here, m * whole - (m - 1) * without, ask, "log variance ratio", share=False, scale=scale)]


def _within(draws: SliceDraws, values: Floats) -> Floats:
    """Return each seed's unbiased variance over its draws, [m, D]."""
    center = draws.mean_by_seed(values)
    square = draws.mean_by_seed((values - center[draws.seed]) ** 2)
    return np.asarray(square * (draws.n_of / (draws.n_of - 1))[:, None])


def feature_pair(draws: SliceDraws) -> tuple[SliceDraws, Floats, Floats] | str:
    """Return teacher and student features [n, D] of the seeds with two draws, or why there is no judging them."""
    several = draws.n_of[draws.seed] >= 2
    if not several.any():
        return "no seed has two draws"
    here = draws if several.all() else draws.where(several)
    teacher, student = here.vectors("teacher_feature"), here.vectors("student_feature")
    if teacher.shape != student.shape:
        return f"the teacher's feature has {teacher.shape[1]} numbers, the student's {student.shape[1]}"
    bad = ~(np.isfinite(teacher).all(axis=1) & np.isfinite(student).all(axis=1))
    if bad.any() or teacher.shape[1] == 0:
        return f"{int(bad.sum())} of {here.n_draws} draws have no feature"
    return here, teacher, student
