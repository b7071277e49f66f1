"""Token KL: how much less probable a teacher's completion is to the student, nats per token.

`token_kl` is the mean over the completion's tokens of the teacher's log-probability minus the student's. Over
completions drawn by the teacher it estimates the forward KL per token without bias (each completion counts once,
whatever its length); a single value can be negative. Stored log-probabilities stop at -1e4 and the student's are taken
no lower, so it stays finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from .language import KINDS, completion
from .seed_view import SeedView

__all__ = ["COLUMNS", "KINDS", "MEMBERS", "columns_scored", "completion"]

MEMBERS: tuple[str, ...] = ("meta.json", "input_ids.npy", "logprob.npy")
COLUMNS: Mapping[str, type[pl.DataType]] = {"token_kl": pl.Float64}
LOG_FLOOR = -1e4


def columns_scored(
    members: Mapping[str, Any],
    seed: SeedView,  # noqa: ARG001 - one signature for all
    scores: NDArray[np.floating[Any]],
) -> dict[str, float]:
    """Return `token_kl` of one teacher completion; `scores` are the student's log-probabilities of its tokens, [T].

    Raises ValueError unless teacher and student have one log-probability for every token, none of them NaN.
    """
    teacher = np.asarray(members["logprob.npy"], np.float64)
    student = np.maximum(np.asarray(scores, np.float64), LOG_FLOOR)
    n_tokens = len(completion(members))
    if teacher.shape != (n_tokens,) or student.shape != (n_tokens,):
        raise ValueError(
            f"{n_tokens} tokens, {teacher.shape} log-probabilities of the teacher, {student.shape} of the student"
        )
    gap = float(np.mean(teacher - student))
    if np.isnan(gap):
        raise ValueError("a log-probability is NaN")
    return {"token_kl": gap}
