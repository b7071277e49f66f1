"""Dollars until every slice is green: learning curves and prices into a probability for each amount.

Every amount is spent the best way the curves know: each slice is bought up to the size that reaches the goal with the
same probability q, and q goes from 2% to 100%. So one list of plans, each within the next one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..catalogs.errors import DistdataError
from ..catalogs.tables import count, usd
from .learning_curves import Curves, Likely
from .training_noise import SMALLEST

Floats = NDArray[np.float64]

MOST_GROWTH = 64.0
"""No curve is trusted further than this many times what was trained on."""
_QUANTILES: Floats = np.concatenate([np.linspace(0.02, 0.98, 49), [0.99, 0.995, 1.0]])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ToGreen:
    """What it takes to turn every slice green.

    - `table`: one row per amount: usd, n_samples (kept samples to add), chance (probability that all slices are green),
      low, high (the 10% and 90% quantiles of that probability over the common exponent of the learning curves).
    - `needs`: one row per slice: slice, n_have, n_low, n_middle, n_high (kept samples needed, 80% interval; infinite
      where the curve has a floor), usd (of the middle), chance_never (probability that no amount helps).
    - `dollars`: for 50%, 80% and 90%, the dollars at which all slices are green with that probability; infinite where
      no amount reaches it. `goal`: the score that counts as green, in bands.
    """

    table: pl.DataFrame
    needs: pl.DataFrame
    dollars: Mapping[float, float]
    goal: float

    def chance(self, amount_usd: float) -> float:
        """Return the probability that all are green for `amount_usd`, between the rows on a line."""
        x, y = (self.table[name].to_numpy() for name in ("usd", "chance"))
        return float(np.interp(amount_usd, x, y))

    def chart(self) -> list[tuple[float, float, float, float]]:
        """Return usd, chance, low, high of each row, for a picture."""
        return list(self.table.select("usd", "chance", "low", "high").iter_rows())


def to_green(
    curves: Curves,
    have: Mapping[str, int],
    usd_per_sample: Mapping[str, float],
    *,
    goal: float = 1.0,
    usd_grid: Sequence[float] | None = None,
) -> ToGreen:
    """Predict the probability of all slices being green against dollars.

    - `have`: kept training samples by slice; those without a curve are green already and left out.
    - `usd_per_sample`: price of one more kept sample by slice, rejected draws included.
    - `goal`: the score that counts as green. A student's score is that of its curve times 1 + the training noise, so
      the probability is that of the next training, as a gate without noise of its own would judge it.
    - `usd_grid`: amounts for the table; None takes those of the plans.

    Raises:
        DistdataError: a slice without a count or a price, or one with neither samples nor price above 0.
    """
    for name in curves.slices:
        if have.get(name, 0) <= 0 or not usd_per_sample.get(name, -1.0) >= 0:
            raise DistdataError(
                f"to-green: slice {name} needs samples and a price to start from. Run distdata generate."
            )
    held = np.array([have[name] for name in curves.slices], dtype=np.float64)
    price = np.array([usd_per_sample[name] for name in curves.slices], dtype=np.float64)
    noisy = _shocks(curves)
    needed = np.stack([_needed(curves, name, goal, noisy[i]) for i, name in enumerate(curves.slices)])
    sizes = np.maximum(_plans(needed, held), held[:, None])
    cost = (price[:, None] * (sizes - held[:, None])).sum(axis=0)
    green = np.all(needed[:, :, None] <= sizes[:, None, :] * (1 + 1e-9), axis=0)
    bands = _by_exponent(green, curves.common)
    table = pl.DataFrame(
        {
            "usd": cost, "n_samples": (sizes - held[:, None]).sum(axis=0), "chance": green.mean(axis=0),
            "low": bands[0], "high": bands[1],
        }
    ).unique("usd", keep="last").sort("usd")  # fmt: skip
    dollars = {p: _first_usd(table, p) for p in (0.5, 0.8, 0.9)}
    if usd_grid is not None:
        x = table["usd"].to_numpy()
        grid = np.asarray(sorted(usd_grid), dtype=np.float64)
        inside = {c: np.interp(grid, x, table[c].to_numpy()) for c in ("n_samples", "chance", "low", "high")}
        table = pl.DataFrame({"usd": grid, **inside})
    return ToGreen(table=table, needs=_needs(curves, held, price, goal), dollars=dollars, goal=goal)


def _shocks(curves: Curves, seed: int = 1) -> Floats:
    """Draw the training noise of the next student, standard normal [S, M]: one for each slice and curve."""
    return np.random.default_rng(seed).normal(size=curves.floor.shape)


def _needed(curves: Curves, name: str, goal: float, shock: Floats) -> Floats:
    """Return the samples needed under every curve where the next training is off by `shock` [M], capped by infinity.

    score x (1 + sd shock) <= goal, or score + sd shock / 2 <= goal where the score is below half a band.
    """
    sd = curves.noise.sd
    relative = np.maximum(1 + sd * shock, 1e-3)
    level = np.where(goal / relative >= SMALLEST, goal / relative, goal - sd * SMALLEST * shock)
    i = curves.at(name)
    left = level - curves.floor[i]
    ratio = np.where(left > 0, curves.part[i] / np.where(left > 0, left, 1.0), np.inf)
    with np.errstate(over="ignore"):
        n = curves.n_now[i] * ratio ** (1 / curves.exponent[i])
    return np.where(n > MOST_GROWTH * curves.n_now[i], np.inf, n)


def _plans(needed: Floats, held: Floats) -> Floats:
    """Return the sizes [S, Q] of plans that reach each slice's goal with probabilities of 2 to 100%, where they can."""
    sizes = np.quantile(needed, _QUANTILES, axis=1, method="inverted_cdf").T
    finite = np.where(np.isfinite(sizes), sizes, -np.inf).max(axis=1, keepdims=True)
    sizes = np.where(np.isfinite(sizes), sizes, np.maximum(finite, held[:, None]))  # no further than what can help
    nothing = held[:, None]
    return np.concatenate([nothing, sizes], axis=1)


def _by_exponent(green: NDArray[np.bool_], common: Floats) -> tuple[Floats, Floats]:
    """Return the 10% and 90% quantiles, over draws of the common exponent, of the chance of all green [Q]."""
    values, at, counts = np.unique(common, return_inverse=True, return_counts=True)
    chance = np.stack([green[at == i].mean(axis=0) for i in range(len(values))])
    order = np.argsort(chance, axis=0, kind="stable")
    mass = np.cumsum(counts[order], axis=0) / counts.sum()
    ends = []
    for q in (0.1, 0.9):
        first = np.minimum((mass < q).sum(axis=0), len(values) - 1)
        ends.append(np.take_along_axis(np.take_along_axis(chance, order, axis=0), first[None, :], axis=0)[0])
    return ends[0], ends[1]


def _first_usd(table: pl.DataFrame, chance: float) -> float:
    reached = table.filter(pl.col("chance") >= chance)
    return float(reached["usd"][0]) if reached.height else math.inf


def _needs(curves: Curves, held: Floats, price: Floats, goal: float) -> pl.DataFrame:
    rows = []
    for i, name in enumerate(curves.slices):
        need: Likely = curves.need(name, goal)
        cost = price[i] * max(need.middle - held[i], 0.0)
        never = float((curves.floor[i] >= goal).mean())
        rows.append((name, int(held[i]), need.low, need.middle, need.high, cost, never))
    names = ("slice", "n_have", "n_low", "n_middle", "n_high", "usd", "chance_never")
    schema = {name: pl.String if name == "slice" else pl.Int64 if name == "n_have" else pl.Float64 for name in names}
    return pl.DataFrame(rows, schema=schema, orient="row")


def to_green_words(found: ToGreen) -> list[str]:
    """Say what it takes in a few sentences."""
    lines = []
    for chance, amount in found.dollars.items():
        if math.isfinite(amount):
            row = found.table.row(int(np.argmin(np.abs(found.table["usd"].to_numpy() - amount))), named=True)
            lines.append(
                f"All slices are green with {chance:.0%} for {usd(amount)} more ({row['low']:.0%} to {row['high']:.0%} "
                "over the learning curves' common exponent)."
            )
        else:
            best = float(found.table["chance"].max())  # type: ignore[arg-type]
            lines.append(f"No amount turns all slices green with {chance:.0%}: more data ends at {best:.0%}.")
    for name, n_have, low, middle, high, cost, never in found.needs.iter_rows():
        if never > 0.5:
            lines.append(f"{name}: with {never:.0%} no amount of data is enough; find out why (distdata diagnose).")
        elif middle > n_have:
            lines.append(
                f"{name}: has {count(n_have)} samples, needs about {_size(middle)} (80%: {_size(low)} to "
                f"{_size(high)}): {usd(cost)}."
            )
        else:
            lines.append(f"{name}: its {count(n_have)} samples are likely enough already.")
    return lines


def _size(n: float) -> str:
    return count(math.ceil(n)) if n < 1e9 else "no end of them"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """How well predicted probabilities held.

    - `brier`: mean squared difference of prediction and outcome; `reference`: that of the outcomes' own share, which a
      prediction without knowledge would have; `skill`: 1 - brier / reference, 0 where all outcomes are alike.
    - `reliability`: one row per bin of predictions that has any: low, high, n, predicted (mean), happened (share),
      happened_low, happened_high (95% Wilson interval).
    """

    brier: float
    reference: float
    skill: float
    reliability: pl.DataFrame


def calibration(predicted: Sequence[float], happened: Sequence[bool], *, n_bins: int = 5) -> Calibration:
    """Compare predicted probabilities with what happened (Brier 1950; Wilson 1927).

    Raises:
        DistdataError: no predictions, other numbers of outcomes, or probabilities outside [0, 1].
    """
    p, y = np.asarray(predicted, dtype=np.float64), np.asarray(happened, dtype=np.float64)
    if len(p) == 0 or len(p) != len(y) or not np.all((p >= 0) & (p <= 1)):
        raise DistdataError(
            f"to-green: {len(p)} predictions with {len(y)} outcomes; one each, probabilities in 0 to 1."
        )
    brier, reference = float(np.mean((p - y) ** 2)), float(y.mean() * (1 - y.mean()))
    at = np.minimum((p * n_bins).astype(int), n_bins - 1)
    rows = []
    for i in range(n_bins):
        inside = at == i
        if inside.any():
            low, high = _wilson(int(y[inside].sum()), int(inside.sum()))
            rows.append(
                (i / n_bins, (i + 1) / n_bins, int(inside.sum()), p[inside].mean(), y[inside].mean(), low, high)
            )
    names = ["low", "high", "n", "predicted", "happened", "happened_low", "happened_high"]
    return Calibration(
        brier=brier, reference=reference, skill=1 - brier / reference if reference > 0 else 0.0,
        reliability=pl.DataFrame(rows, schema=names, orient="row"),
    )  # fmt: skip


def _wilson(k: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    middle, half = (k + z * z / 2) / (n + z * z), z * math.sqrt(k * (n - k) / n + z * z / 4) / (n + z * z)
    return max(middle - half, 0.0), min(middle + half, 1.0)
