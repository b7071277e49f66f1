"""Energy distance between student and teacher within a seed, and calibration: one number a slice, by jackknife."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import polars as pl

from .intervals import judge_mean, undecided
from .paired import Ask, Finding, Floats, Ints, SliceDraws
from .ratios import feature_pair

N_BINS = 10
N_SWAPS = 499


def energy_share(draws: SliceDraws, ask: Ask) -> list[Finding]:
    """Judge the share of the distance between a student's and a teacher's draw that is there because the laws differ.

    Per seed, over pairs of draws k != l (those of one k share their noise; without them the mean is unbiased),

        h = mean(2 |x_k - y_l| - |x_k - x_l| - |y_k - y_l|),    H = sum_i h_i / sum_i 2 mean |x_k - y_l|,

    the energy distance of the conditional laws (Székely and Rizzo 2013) over what it can be at most: H is 0 if and only
    if student and teacher have one law on every seed, and 1 for two points apart. Features are divided by the teacher's
    deviation within seeds. A shift of every feature by delta such deviations makes about delta^2 / (4 + delta^2), so a
    band of 0.05 is a shift of 0.46. The bound is a jackknife's by seed.

    For information a p-value of "no difference": exchanging x_k and y_k at random flips signs, h = -sum e_k e_l G_kl.
    """
    pair = feature_pair(draws)
    if isinstance(pair, str):
        return undecided(draws, ask, "energy share", pair)
    here, x, y = pair
    if here.n_seeds < ask.min_seeds:
        return undecided(
            here, ask, "energy share", f"{here.n_seeds} seeds with two draws; a gate needs {ask.min_seeds}",
            math.ceil(ask.min_seeds * here.n_draws / here.n_seeds),
        )  # fmt: skip
    scale = np.sqrt(((x - here.mean_by_seed(x)[here.seed]) ** 2).mean(axis=0))
    varies = scale > 1e-9 * np.maximum(np.abs(x).max(axis=0), 1e-9)
    if not varies.any():
        return undecided(here, ask, "energy share", "the teacher does not vary within seeds")
    x, y = x[:, varies] / scale[varies], y[:, varies] / scale[varies]
    h, most, p = _by_seed(here, x, y)
    if most.sum() <= 0:
        return undecided(here, ask, "energy share", "all draws of each seed are the same")
    m = here.n_seeds
    whole = float(h.sum() / most.sum())
    left = most.sum() - most
    without = np.where(left > 0, (h.sum() - h) / np.where(left > 0, left, 1.0), whole)
    (found,) = [judge_mean(here, m * whole - (m - 1) * without, ask, "energy share", share=False, scale=1.0)]
    told = f"p = {p:.2g} for no difference (information)"
    return [replace(found, reason=f"{found.reason}; {told}" if found.reason else told)]


def _by_seed(draws: SliceDraws, x: Floats, y: Floats) -> tuple[Floats, Floats, float]:
    """Return h [m], 2 mean |x_k - y_l| [m], and the p-value of the exchange."""
    h, most = np.zeros(draws.n_seeds), np.zeros(draws.n_seeds)
    rng = np.random.default_rng(20_130_801)  # its own stream, so the answer depends on the data alone
    swapped = np.zeros(N_SWAPS)
    start = np.searchsorted(draws.seed, np.arange(draws.n_seeds))
    for k in np.unique(draws.n_of).astype(int):
        seeds = np.flatnonzero(draws.n_of == k)
        for some in np.array_split(seeds, max(1, len(seeds) * k * k * x.shape[1] // 4_000_000)):
            rows = start[some][:, None] + np.arange(k)
            xs, ys = x[rows], y[rows]
            xx, yy, xy = _norms(xs, xs), _norms(ys, ys), _norms(xs, ys)
            g = xx + yy - xy - xy.transpose(0, 2, 1)
            off = 1 - np.eye(k)
            g, pairs = g * off, k * (k - 1)
            h[some] = -g.sum(axis=(1, 2)) / pairs
            most[some] = 2 * (xy * off).sum(axis=(1, 2)) / pairs
            signs = rng.choice(np.array([-1.0, 1.0]), size=(N_SWAPS, len(some), k))
            swapped -= np.einsum("rik,ikl,ril->r", signs, g, signs, optimize=True) / pairs
    return h, most, float((1 + (swapped >= h.sum() - 1e-12).sum()) / (1 + N_SWAPS))


def _norms(a: Floats, b: Floats) -> Floats:
    """Return |a_k - b_l| from a, b [g, K, D], as [g, K, K]."""
    return np.asarray(np.sqrt(((a[:, :, None, :] - b[:, None, :, :]) ** 2).sum(axis=-1)))


def calibration(draws: SliceDraws, ask: Ask) -> list[Finding]:
    """Judge the expected calibration error (ten equal bins), student less teacher, jackknifed by seed.

    ECE = sum over bins of |sum of (correct - confidence)| / n (Naeini 2015). It leans upwards by about the bins' own
    noise, which the teacher's shares. Each side's error is over the draws in which it gave an answer: one without
    confidence and correct was none (a refusal, a question back), which the other model need not have shared.
    """
    sides = []
    for side in ("teacher", "student"):
        columns = f"{side}_confidence", f"{side}_correct"
        given = ~draws.frame.select(pl.all_horizontal(pl.col(columns).is_null())).to_series().to_numpy()
        confidence, correct = (draws.numbers(c)[given] for c in columns)
        bad = int((~(np.isfinite(confidence) & np.isfinite(correct))).sum())
        if bad:
            told = f"{bad} of {len(confidence)} draws have no number in the {side}'s confidence or correct"
            return undecided(draws, ask, "ECE", told)
        seed = draws.seed[given]
        n_seeds = len(np.unique(seed))
        if n_seeds < ask.min_seeds:
            needed = math.ceil(ask.min_seeds * draws.n_draws / n_seeds) if n_seeds else None
            told = f"the {side} answered on {n_seeds} seeds; a gate needs {ask.min_seeds}"
            return undecided(draws, ask, "ECE", told, needed)
        sides.append(_ece(seed, draws.n_seeds, confidence, correct))
    teacher, student = sides
    whole, without = student[0] - teacher[0], student[1] - teacher[1]
    m = draws.n_seeds
    return [judge_mean(draws, m * whole - (m - 1) * without, ask, "ECE", share=False, scale=1.0)]


def _ece(seed: Ints, n_seeds: int, confidence: Floats, correct: Floats) -> tuple[float, Floats]:
    """Return the error of all answers and [m] without each seed; `seed`, `confidence`, `correct` are of answers."""
    bins = np.clip((confidence * N_BINS).astype(np.int64), 0, N_BINS - 1)
    gap = np.bincount(seed * N_BINS + bins, weights=correct - confidence, minlength=n_seeds * N_BINS)
    by_seed = gap.reshape(n_seeds, N_BINS)
    total = by_seed.sum(axis=0)
    left = len(seed) - np.bincount(seed, minlength=n_seeds)
    without = np.abs(total - by_seed).sum(axis=1) / np.maximum(left, 1)
    return float(np.abs(total).sum() / len(seed)), np.asarray(without)
