"""Ask a student how probable the teacher's completions are to it, and measure what it says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import polars as pl

from ..catalogs.errors import DistdataError
from ..catalogs.hashing import draw_rng_seed
from ..catalogs.protocol import Request, Scorer, Teacher
from ..catalogs.storage import Storage
from .metric_table import Metric, columns_schema
from .pieces import Piece, check_members, not_as_expected, parse_axes, read_piece, seed_view

SCORE_BATCH = 64


def scorer_key(scorer: Scorer) -> str:
    """Return what tells one scoring model from another: the content hash of its weights and settings.

    Raises DistdataError for a scorer that can't say who it is: its scores could be taken for another's.
    """
    if not isinstance(scorer, Teacher):
        raise DistdataError(
            f"scorer {type(scorer).__name__}: has no describe(), so its scores can't be told from another model's. "
            "Give a student, or a teacher that offers score()."
        )
    return scorer.describe().content_hash


def score_piece(piece: Piece, storage: Storage, metrics: Sequence[Metric], scorer: Scorer, salt: str) -> pl.DataFrame:
    """Return sample_id and the columns of `metrics` for every row of the piece, in its order.

    Raises DistdataError as `pieces.measure_piece` does, and when the scorer's answers don't fit the completions.
    """
    rows = []
    samples = read_piece(piece, storage, metrics)
    while batch := list(islice(samples, SCORE_BATCH)):
        values = [{"sample_id": row["sample_id"]} for row, _ in batch]
        for metric in metrics:
            for at, found in _columns(metric, batch, scorer, salt, storage.address(piece.shard)).items():
                values[at] |= found
        rows += values
    return pl.DataFrame(rows, schema={"sample_id": pl.String(), **columns_schema(metrics)})


def _columns(
    metric: Metric, batch: Sequence[tuple[dict[str, Any], dict[str, Any]]], scorer: Scorer, salt: str, address: str
) -> dict[int, dict[str, Any]]:
    """Score one batch for one metric: position in the batch -> its columns; nulls where it is not for that kind."""
    assert metric.completion is not None, f"{metric.module} has columns_scored but no completion"
    assert metric.scored is not None, f"{metric.module} is no scored metric"
    values: dict[int, dict[str, Any]] = {at: dict.fromkeys(metric.schema) for at in range(len(batch))}
    fitting = [(at, row, members) for at, (row, members) in enumerate(batch) if metric.is_for(row["kind"])]
    completions = []
    for _, row, members in fitting:
        check_members(metric, row, members)
        try:
            completions.append(metric.completion(members))
        except (ValueError, KeyError, TypeError, IndexError) as e:
            raise not_as_expected(metric, row, address, e) from e
    scores = scorer.score([_request(row, salt) for _, row, _ in fitting], completions) if fitting else []
    if len(scores) != len(fitting):
        raise DistdataError(f"the student scored {len(scores)} of {len(fitting)} completions; it must score each.")
    for (at, row, members), score in zip(fitting, scores, strict=True):
        try:
            given = metric.scored(members, seed_view(row), score)
            values[at] = {column: given[column] for column in metric.schema}
        except (ValueError, KeyError, TypeError, IndexError) as e:
            raise not_as_expected(metric, row, address, e) from e
    return values


def _request(row: Mapping[str, Any], salt: str) -> Request:
    """Build the request that the draw of a row answered."""
    return Request(
        seed_id=row["seed_id"],
        k=row["k"],
        rng_seed=draw_rng_seed(salt, row["seed_id"], row["k"]),
        axes=parse_axes(row["axes"]),
        scenario=row["scenario"],
        params=json.loads(row["params"]),
    )
