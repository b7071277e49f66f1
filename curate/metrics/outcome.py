"""Outcome: which way the scene went, by the record's own label or, where it has none, by the teacher's labelled draws.

`outcome`: the label. A draw without one gets that of the outcome whose labelled teacher draws are nearest (nearest
neighbours in the same scenario type, each dimension by its spread within one outcome; see `modes`); ties go to the
name that comes first. A label that the model gave stays as it is.

`outcome_confidence` in [0, 1], for recorded labels too: 1 - d1 / d2 with the distances to the nearest outcome and to
the next. An average of futures gets a label, but the outcomes are about as near as one another: low. 1 where only one
outcome is known (there is nothing to mistake it for) and for a recorded label that nothing can be set against.

`outcome` stays None where a record has no label and no feature, or the teacher fewer than 20 labelled draws of the
scenario type; `outcome_confidence` is None with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from . import density
from .seed_view import SeedView

MEMBERS: tuple[str, ...] = ()
OPTIONAL: tuple[str, ...] = density.OPTIONAL
KINDS: tuple[str, ...] = density.KINDS
COLUMNS: Mapping[str, type[pl.DataType] | pl.DataType] = density.COLUMNS
DERIVED: Mapping[str, type[pl.DataType]] = {"outcome": pl.String, "outcome_confidence": pl.Float64}


def columns(members: Mapping[str, Any], seed: SeedView) -> dict[str, list[float] | None]:
    """Return what the labeller reads: `feature` and `seed_state`."""
    return density.columns(members, seed)


def against(reference: pl.DataFrame, measured: pl.DataFrame) -> pl.DataFrame:
    """Fill `outcome` where it is null and add `outcome_confidence`, by the labelled draws of `reference`.

    Raises:
        DistdataError: the two models' features have different lengths.
    """
    labels = measured["outcome"].to_list()
    sure: list[float | None] = [None if label is None else 1.0 for label in labels]
    labelled = reference.filter(pl.col("outcome").is_not_null())
    for rows, points, match, modes, _ in density.by_scenario(labelled, measured):
        far = modes.distances(points, match)
        order = np.argsort(far, axis=1, kind="stable")
        for i, row in enumerate(rows.tolist()):
            best = far[i, order[i, 0]]
            if not np.isfinite(best):
                continue
            labels[row] = labels[row] if labels[row] is not None else modes.names[order[i, 0]]
            second = far[i, order[i, 1]] if len(modes.names) > 1 else np.inf
            sure[row] = float(1 - best / second) if second > 0 else 0.0
    return measured.with_columns(
        pl.Series("outcome", labels, dtype=pl.String), pl.Series("outcome_confidence", sure, dtype=pl.Float64)
    )
