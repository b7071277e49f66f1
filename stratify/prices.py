"""What a tighter band would cost: the price of each slice's acceptance.

For every slice: how many more samples, draws, dollars and GPU-seconds the plan would take if the slice's bands were 10%
tighter while every other cell keeps its target. In a gate plan that is the larger decidable minimum; under the policy
``gate`` it is what the sharper weight asks for at the present level of the allocation, w / (n + 1/2) of the best draw
that was not dealt. Other policies don't look at bands.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from .bounds import NO_RULE, Bounds
from .frame import Bools, Floats, Ints
from .request import PlanRequest
from .worth import Stock

TIGHTER = 0.9
SCHEMA = {
    "slice": pl.String, "band": pl.Float64, "n_samples": pl.Int64, "n_draws": pl.Int64, "n_missing": pl.Int64,
    "usd": pl.Float64, "gpu_s": pl.Float64,
}  # fmt: skip


def tighter_target(
    request: PlanRequest,
    weight: Floats,
    bounds: Bounds,
    target: Ints,
    tighter_minima: tuple[Ints, Ints] | None,
    *,
    layer_names: NDArray[np.object_],
) -> tuple[Ints, Ints]:
    """Return the targets if every slice alone had its bands 10% tighter, and what its seeds can't give; int64 [H].

    `tighter_minima` are a gate plan's minima at the tighter bands: what the seeds can give of them, and what they
    can't. Pinned cells stay as they are. Where layers hold to the sample each of `layer_names` [H] has its own level.
    """
    if tighter_minima is not None:
        within, missing = tighter_minima
        return np.maximum(target, within), missing
    wanted = target.copy()
    if request.policy == "gate":
        apart = request.layers is not None and request.purpose == "train"
        level = _levels(weight, target, bounds.upper, layer_names if apart else np.zeros(len(target), dtype=np.object_))
        factor = (1 / TIGHTER) ** request.gamma
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            sharper = np.ceil(np.minimum(weight * factor / level - 0.5, 2.0**62))
        # where nothing is left to deal the seeds are the limit, and each asks for its sharper part
        sharper = np.where(level > 0, sharper, np.ceil(target * factor - 1e-9)).astype(np.int64)
        wanted = np.where((weight > 0) & (bounds.pin == NO_RULE), np.maximum(target, sharper), target)
    return np.minimum(wanted, np.maximum(bounds.upper, target)), np.maximum(wanted - bounds.upper, 0) * (
        wanted > target
    )


def _levels(weight: Floats, target: Ints, upper: Ints, group: NDArray[np.object_]) -> Floats:
    """Return the highest priority of a draw that was not dealt in the cell's group, 0 where all were; [H]."""
    left = (weight > 0) & (target < upper)
    names, code = np.unique(group, return_inverse=True)
    highest = np.zeros(len(names))
    np.maximum.at(highest, code[left], weight[left] / (target[left] + 0.5))
    levels: Floats = highest[code]
    return levels


def slice_prices(
    *,
    slices: NDArray[np.object_],
    feasible: Bools,
    band: Floats,
    target: Ints,
    tighter: Ints,
    missing: Ints,
    stock: Stock,
    usd: Floats,
    gpu_s: Floats,
) -> pl.DataFrame:
    """Sum up per slice what the tighter target takes beyond `target`; all arrays [H].

    Columns: slice (sorted), band (the tightest), n_samples and n_draws more, n_missing (samples that its seeds can't
    give), usd, gpu_s.
    """
    extra = stock.fresh_for(tighter) - stock.fresh_for(target)
    table = pl.DataFrame(
        {
            "slice": pl.Series(slices[feasible].tolist(), dtype=pl.String),
            "band": band[feasible],
            "n_samples": (tighter - target)[feasible],
            "n_draws": extra[feasible],
            "n_missing": missing[feasible],
            "usd": (extra * usd)[feasible],
            "gpu_s": (extra * gpu_s)[feasible],
        },
        schema=SCHEMA,
    )
    return table.group_by("slice").agg(pl.col("band").min(), pl.exclude("slice", "band").sum()).sort("slice")
