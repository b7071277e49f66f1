"""Learning curves per slice from a few retrainings on subsets: score(n) = floor + part (n / n_now)^-b.

Two to four sizes per slice can't tell floor, part and exponent apart, so slices share what they know: the exponents
b_i are spread about a common one, log b_i ~ N(log b, 0.2), which itself lies about 1/2, log b ~ N(log 0.5, 0.4) (the
error of a mean falls with the root of n; measured exponents of networks lie between 0.1 and 0.7, Hestness et al. 2017).
The part that no data removes, floor / (floor + part), is uniform in 0 to 1, the level at n_now uniform in its
logarithm. Scores are normal about the curve with the spread of `training_noise`. The posterior is computed on a grid,
so it says what two points say and no more; every curve in it falls with n.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..catalogs.errors import DistdataError
from .training_noise import SMALLEST, TrainingNoise, check_scores, pooled_noise

Floats = NDArray[np.float64]

EXPONENTS: Floats = np.geomspace(0.12, 2.0, 25)
SHARES: Floats = np.linspace(0.0, 1.0, 26)
_N_LEVELS = 31
COMMON = (0.5, 0.4)
"""Median of the common exponent, and the standard deviation of its logarithm."""
SPREAD = 0.2
"""Standard deviation of the logarithm of a slice's exponent about the common one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Likely:
    """A number with the interval that holds it with the stated probability; any may be infinite."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curves:
    """Learning curves of S slices as M equally likely draws from their joint posterior.

    - `slices`, `n_now` [S]: the largest size that was trained on.
    - `common` [M]: the common exponent. `exponent`, `floor`, `part` [S, M]: of each slice; floor and part in bands.
    - `noise`: how far one training is from its curve.
    """

    slices: tuple[str, ...]
    n_now: Floats
    common: Floats
    exponent: Floats
    floor: Floats
    part: Floats
    noise: TrainingNoise

    def at(self, name: str) -> int:
        """Return the row of a slice; raises DistdataError for one that has no curve."""
        if name not in self.slices:
            raise DistdataError(f"to-green: no learning curve of slice {name}. There are: {', '.join(self.slices)}.")
        return self.slices.index(name)

    def scores(self, name: str, n: float) -> Floats:
        """Return the expected score at `n` samples under every draw, [M]."""
        i = self.at(name)
        return np.asarray(self.floor[i] + self.part[i] * (n / self.n_now[i]) ** -self.exponent[i])

    def needed(self, name: str, goal: float) -> Floats:
        """Return the samples at which the score comes down to `goal` under every draw, [M]; infinite below a floor."""
        i = self.at(name)
        left = goal - self.floor[i]
        with np.errstate(divide="ignore", over="ignore"):
            ratio = np.where(left > 0, self.part[i] / np.where(left > 0, left, 1.0), np.inf)
            return np.asarray(self.n_now[i] * ratio ** (1 / self.exponent[i]))

    def score(self, name: str, n: float, level: float = 0.8) -> Likely:
        """Predict the expected score at `n` samples, with its central interval of probability `level`."""
        return _likely(self.scores(name, n), level)

    def need(self, name: str, goal: float = 1.0, level: float = 0.8) -> Likely:
        """Predict the samples needed for an expected score of `goal`."""
        return _likely(self.needed(name, goal), level)


def fit_curves(
    points: pl.DataFrame, *, noise: TrainingNoise | None = None, n_samples: int = 2000, seed: int = 0
) -> Curves:
    """Fit all slices together.

    - `points`: one row per training: slice, n (samples of the slice it was trained on, above 0), score (in bands),
      optionally weight (1; of a row that stands for the mean of several trainings their number).
    - `noise`: the spread between training seeds; None pools it from the rows that repeat a slice and n.
    - `n_samples`, `seed`: how many draws represent the posterior, and where their randomness starts.

    Raises:
        DistdataError: no rows, sizes or weights of 0 or less, scores that are no numbers.
    """
    _check(points)
    names = tuple(points["slice"].unique(maintain_order=True).to_list())
    if noise is None:
        groups = points.group_by("slice", "n", maintain_order=True).agg("score")
        noise = pooled_noise(groups["score"].to_list())
    tables = {name: _table(points.filter(pl.col("slice") == name), noise) for name in names}
    near = _kernel(SPREAD)
    of_slice = {name: table.mass.sum(axis=(1, 2)) for name, table in tables.items()}
    logs = -((np.log(EXPONENTS / COMMON[0]) / COMMON[1]) ** 2) / 2
    for mass in of_slice.values():
        logs = logs + np.log(near @ mass)
    rng = np.random.default_rng(seed)
    weights = np.exp(logs - logs.max())
    common = rng.choice(len(EXPONENTS), n_samples, p=weights / weights.sum())
    drawn = [_draw(tables[name], near * of_slice[name], common, rng) for name in names]
    return Curves(
        slices=names,
        n_now=np.array([tables[name].n_now for name in names]),
        common=EXPONENTS[common],
        exponent=np.stack([d[0] for d in drawn]),
        floor=np.stack([d[1] for d in drawn]),
        part=np.stack([d[2] for d in drawn]),
        noise=noise,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Table:
    """The likelihood of one slice on the grid [exponent, share, level], scaled to a maximum of 1."""

    n_now: float
    levels: Floats
    mass: Floats


def _table(points: pl.DataFrame, noise: TrainingNoise) -> _Table:
    n, score = (points[name].cast(pl.Float64).to_numpy() for name in ("n", "score"))
    weight = points["weight"].cast(pl.Float64).to_numpy() if "weight" in points.columns else np.ones(len(n))
    n_now = float(n.max())
    # the variance of a t with the noise's degrees of freedom, which the prior keeps above 2
    sd = noise.sd * np.sqrt(noise.df / max(noise.df - 2, 1.0))
    at_now = float(np.average(score[n == n_now], weights=weight[n == n_now]))
    reach = 4 * sd / np.sqrt(weight[n == n_now].sum())
    levels = np.geomspace(
        max(at_now, SMALLEST / 4) * np.exp(-reach), max(at_now, SMALLEST / 4) * np.exp(reach), _N_LEVELS
    )
    logs = np.zeros((len(EXPONENTS), len(SHARES), _N_LEVELS))
    for size, seen, count in zip(n / n_now, score, weight, strict=True):
        shape = SHARES[None, :] + (1 - SHARES[None, :]) * size ** -EXPONENTS[:, None]
        expected = shape[:, :, None] * levels
        error = sd * np.maximum(expected, SMALLEST) / np.sqrt(count)
        logs -= ((seen - expected) / error) ** 2 / 2 + np.log(error)
    return _Table(n_now=n_now, levels=levels, mass=np.exp(logs - logs.max()))


def _kernel(spread: float) -> Floats:
    """Return how likely each exponent (columns) is of a slice given the common one (rows); rows sum to 1."""
    near = np.exp(-((np.log(EXPONENTS[None, :] / EXPONENTS[:, None]) / spread) ** 2) / 2)
    return np.asarray(near / near.sum(axis=1, keepdims=True))


def _draw(
    table: _Table, chances: Floats, common: NDArray[np.intp], rng: np.random.Generator
) -> tuple[Floats, Floats, Floats]:
    """Draw exponent, floor and part [M] of one slice, given the common exponents; `chances` [common, exponent]."""
    exponent = np.empty(len(common), dtype=np.intp)
    for row in np.unique(common):
        at = np.flatnonzero(common == row)
        exponent[at] = rng.choice(len(EXPONENTS), len(at), p=chances[row] / chances[row].sum())
    share, level = np.empty(len(common)), np.empty(len(common))
    for row in np.unique(exponent):
        at = np.flatnonzero(exponent == row)
        flat = table.mass[row].ravel()
        picked = rng.choice(len(flat), len(at), p=flat / flat.sum())
        share[at], level[at] = SHARES[picked // _N_LEVELS], table.levels[picked % _N_LEVELS]
    return EXPONENTS[exponent], share * level, (1 - share) * level


def _likely(values: Floats, level: float) -> Likely:
    low, middle, high = (
        float(np.quantile(values, q, method="inverted_cdf")) for q in ((1 - level) / 2, 0.5, (1 + level) / 2)
    )
    return Likely(low=low, middle=middle, high=high)


def _check(points: pl.DataFrame) -> None:
    if points.height == 0:
        raise DistdataError("learning curves: no retraining to learn from. Run distdata diagnose on the red slices.")
    check_scores(points["score"].to_list())
    for name in ("n", "weight"):
        if name in points.columns and not bool((points[name].cast(pl.Float64) > 0).all()):
            bad: Mapping[str, object] = points.filter(~(pl.col(name).cast(pl.Float64) > 0)).row(0, named=True)
            raise DistdataError(
                f"learning curves: slice {bad['slice']} has {name} = {bad[name]}; it must be a number above 0."
            )
