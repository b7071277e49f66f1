"""The training sets of a diagnosis: a snapshot's frame with a slice weighted up, or thinned at the same weight.

Thinning and weighting must not be mixed up: a slice that is merely thinned also loses its share of the training loss,
and a slice that lacks weight would look as if it lacked data. So what is left carries the weight of all.
"""

from __future__ import annotations

from collections.abc import Collection

import polars as pl

from ..catalogs.errors import DistdataError
from ..catalogs.hashing import unit_intervals

UP_WEIGHT = 4.0
"""How many times its own weight a red slice gets, at least; and no less than the mean slice has."""


def up_factors(frame: pl.DataFrame, slices: Collection[str], *, factor: float = UP_WEIGHT) -> dict[str, float]:
    """Return by how much to raise the weight of each of `slices`: `factor` times, or to the mean slice's where that is
    more.

    `frame` has one row per training sample with slice and weight. Empty where that would change nothing: all slices of
    the frame are asked for, and by the same factor.

    Raises:
        DistdataError: a slice without a sample or without weight, or a factor below 1.
    """
    _check(frame, slices)
    if not factor >= 1:
        raise DistdataError(f"diagnose: an up-weighting factor of {factor:g}; it must be at least 1.")
    own = dict(frame.group_by("slice").agg(pl.col("weight").cast(pl.Float64).sum()).iter_rows())
    mean = sum(own.values()) / len(own)
    if weightless := sorted(name for name in slices if not own[name] > 0):
        raise DistdataError(
            f"diagnose: the samples of slice {weightless[0]} weigh nothing in training, so it can't be weighted up. "
            'Give it a share of the fleet, or set weights = "plan" under [train].'
        )
    factors = {name: max(factor, mean / own[name]) for name in sorted(set(slices))}
    alike = max(factors.values(), default=1.0) <= (1 + 1e-9) * min(factors.values(), default=1.0)
    return {} if alike and len(factors) == len(own) else factors


def weighted_up(frame: pl.DataFrame, slices: Collection[str], *, factor: float = UP_WEIGHT) -> pl.DataFrame:
    """Return `frame` with the weight of `slices` raised as `up_factors` says; the others keep their weights."""
    factors = up_factors(frame, slices, factor=factor)
    raised = pl.col("slice").replace_strict(factors, default=1.0, return_dtype=pl.Float64)
    return frame.with_columns(weight=pl.col("weight") * raised)


def thinned(frame: pl.DataFrame, slices: Collection[str], share: float, *, salt: str = "") -> pl.DataFrame:
    """Return `frame` with only a `share` of the seeds of each cell of `slices`, at the cell's full weight.

    `frame` has one row per training sample with slice, cell_id, seed_id and weight; rows keep their order. Seeds stay
    whole and are taken in the order of a hash of `salt`, so a quarter lies within the half of the same salt; of each
    cell ceil(share x seeds) stay, one at least.

    Raises:
        DistdataError: a slice without a sample, or a share outside (0, 1].
    """
    _check(frame, slices)
    if not 0 < share <= 1:
        raise DistdataError(f"diagnose: a share of {share:g} of the data; it must lie above 0 and at most at 1.")
    frame = frame.cast({"weight": pl.Float64})  # a decimal would round what the rest weighs
    touched = pl.col("slice").is_in(list(slices))
    seeds = frame.filter(touched).select("cell_id", "seed_id").unique().sort("cell_id", "seed_id")
    seeds = seeds.with_columns(u=pl.Series(unit_intervals("thin", salt, seeds["seed_id"].to_list()), dtype=pl.Float64))
    rank, n = pl.col("u").rank("ordinal").over("cell_id"), pl.len().over("cell_id")
    kept = seeds.filter(rank <= (n * share * (1 - 1e-12)).ceil()).select("cell_id", "seed_id", stays=pl.lit(True))
    marked = frame.join(kept, on=["cell_id", "seed_id"], how="left", maintain_order="left")
    stays = ~touched | pl.col("stays").fill_null(False)
    cell = pl.col("weight").sum().over("cell_id")
    left = pl.when(stays).then("weight").otherwise(0.0).sum().over("cell_id")
    whole = pl.when(touched & (left > 0)).then(pl.col("weight") * cell / left).otherwise("weight")
    return marked.with_columns(weight=whole, stays=stays).filter("stays").drop("stays")


def _check(frame: pl.DataFrame, slices: Collection[str]) -> None:
    if lacking := sorted(set(slices) - set(frame["slice"].unique().to_list())):
        raise DistdataError(
            f"diagnose: the snapshot has no sample of slice {lacking[0]}; there is nothing to train on."
        )
