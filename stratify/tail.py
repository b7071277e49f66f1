"""The tail audit: where a student that was trained against a critic must be looked at harder.

Students of adversarial or distribution-matching losses can match what is common and drop what is rare, and their mean
errors say nothing about that. The slices of the long tail and those with the tightest bands then need a stated multiple
of their decidable minimum before any verdict of theirs may be a pass.
"""

from __future__ import annotations

import math

import polars as pl

from ..catalogs.errors import DistdataError

TAIL_LAYER = "long_tail"
TIGHTEST = 0.1
"""Share of slices, from the tightest band on, that are audited beside the long tail."""


def tail_requirements(cells: pl.DataFrame, needed: pl.DataFrame, *, multiple: float) -> pl.DataFrame:
    """Return the draws a side that each audited slice needs: slice, why, needed, required.

    `cells` holds slice, layer and band (and feasible); `needed` the decidable minima by slice: slice, needed. Audited
    are slices with a long-tail cell, and the tightest tenth by band with all ties of the last; none where all slices
    have one band and no layer stands out.

    Raises:
        DistdataError: a multiple below 1.
    """
    if not (multiple >= 1 and math.isfinite(multiple)):
        raise DistdataError(f"gates: tail_multiple = {multiple:g} must be at least 1.")
    if "feasible" in cells.columns:
        cells = cells.filter("feasible")
    slices = cells.group_by("slice").agg(
        tail=(pl.col("layer") == TAIL_LAYER).any(), band=pl.col("band").min().cast(pl.Float64)
    )
    n_tight = math.ceil(TIGHTEST * slices.height)
    limit = slices["band"].sort()[n_tight - 1] if slices.height else 0.0
    several = slices["band"].n_unique() > 1
    tight = (pl.col("band") <= limit) & pl.lit(several)
    both = pl.when("tail").then(pl.lit("long tail")).otherwise(
        pl.concat_str(pl.lit("tightest bands, "), pl.col("band").round(6).cast(pl.String))
    )  # fmt: skip
    audited = slices.filter(pl.col("tail") | tight).with_columns(why=both).join(needed, on="slice")
    required = (pl.col("needed") * multiple).ceil().cast(pl.Int64)
    return audited.select("slice", "why", "needed", required=required).sort("slice")
