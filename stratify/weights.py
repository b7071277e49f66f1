"""How much a cell counts when draws are dealt: w = base x (eps_ref / eps)^gamma x boost.

A share's standard error falls with the root of n, so half the band asks for four times the draws: gamma 2.
All policies end in one weight per cell and share one allocator, so that they can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..catalogs.config import Policy
from ..catalogs.errors import DistdataError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

WORST_SIGMA = 0.5
"""Standard deviation of a share at its worst (one half), for cells whose spread is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The factors of each cell's weight and their product, float64 [H]; 0 in infeasible cells.

    Only ratios of `weight` matter. `band_ref` is the widest band of a feasible cell, where `tightness` is 1.
    """

    base: Floats
    tightness: Floats
    boost: Floats
    weight: Floats
    band_ref: float


def cell_weights(
    policy: Policy,
    *,
    feasible: Bools,
    fleet_share: Floats,
    band: Floats,
    boost: Floats,
    gamma: float,
    fleet_blend: float,
    sigma: Floats,
    cost: Floats,
) -> Weights:
    """Compute one weight per cell, all inputs [H].

    - ``gate``: base (1 - blend)/H + blend x f over the H feasible cells, sharpened by the bands.
    - ``uniform``: 1/H, bands ignored. ``fleet``: the fleet's share f, bands ignored.
    - ``neyman``: f x sigma / sqrt(cost), bands ignored: the least variance of the fleet mean for its cost
      (Neyman 1934, with costs as in Cochran 5.5). `sigma` is that of `draw_spread`, and `cost` must be above 0 there.

    A weight too large for a number is infinite.
    """
    n_feasible = max(int(feasible.sum()), 1)
    uniform = np.full(len(feasible), 1.0 / n_feasible)
    tightness = np.ones(len(feasible))
    band_ref = float(band[feasible].max()) if feasible.any() else 1.0
    if policy == "gate":
        base = (1 - fleet_blend) * uniform + fleet_blend * fleet_share
        with np.errstate(over="ignore"):
            tightness = np.where(feasible, (band_ref / np.where(feasible, band, band_ref)) ** gamma, 0.0)
    elif policy == "uniform":
        base = uniform
    elif policy == "fleet":
        base = fleet_share.astype(np.float64)
    else:
        base = fleet_share * sigma / np.sqrt(cost)
    base = np.where(feasible, base, 0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        weight = np.where(base * boost > 0, base * tightness * boost, 0.0)
    return Weights(base=base, tightness=tightness, boost=boost, weight=weight, band_ref=band_ref)


def draw_spread(within: Floats, between: Floats, k: Floats) -> Floats:
    """Return the spread that one draw stands for when seeds give `k` of them: sqrt(k between + within), [H].

    The mean of n draws of n / k seeds has the variance (k between + within) / n. A cell in which no spread was seen
    takes the least that was seen anywhere: a weight of 0 would leave it empty. `WORST_SIGMA` where nothing is known.
    """
    spread = np.sqrt(k * between + within)
    seen = spread[np.isfinite(spread) & (spread > 0)]
    spread = np.where(spread == 0, seen.min() if len(seen) else WORST_SIGMA, spread)
    return np.where(np.isfinite(spread), spread, WORST_SIGMA)


def refuse_overflow(weights: Weights, cell: pl.Series, band: Floats, gamma: float) -> None:
    """Refuse weights that are too far apart, or too large, for numbers.

    Raises:
        DistdataError: the cell of the largest weight, how it compares, and what to change.
    """
    with np.errstate(over="ignore"):
        if np.isfinite(weights.weight.sum()):
            return
    at = int(np.argmax(weights.weight))
    with np.errstate(over="ignore"):
        ratio = weights.band_ref / band[at]
    raise DistdataError(
        f"plan: the weight of {cell[at]} is too large for a number: its band {band[at]:.4g} is {ratio:.4g} times "
        f"tighter than the widest, {weights.band_ref:.4g}, which counts to the power of gamma = {gamma:g}"
        + (f", times a boost of {weights.boost[at]:.4g}" if weights.boost[at] != 1 else "")
        + ". Widen its band under [bands], or lower [plan] gamma or the boost."
    )
