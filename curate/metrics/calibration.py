"""Calibration: how sure a model was of its answer, and whether the answer was right.

`confidence` in [0, 1] and `correct` 0 or 1. Where the teacher's world judges the answer (``checks`` in meta.json):
`correct` as it says, and the probability that the model gave the token of its answer (``stated_at``). Otherwise the
seed's ``expected_answer`` against the assistant's last message, stripped, and the geometric mean of the
probabilities of the completion's tokens. Both None where no answer was given or none is expected, `confidence` where
the record has no log-probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from .language import KINDS, arisen, checks, last_answer
from .seed_view import SeedView

__all__ = ["COLUMNS", "KINDS", "MEMBERS", "OPTIONAL", "columns"]

MEMBERS: tuple[str, ...] = ("messages.json",)
OPTIONAL: tuple[str, ...] = ("meta.json", "logprob.npy")
COLUMNS: Mapping[str, type[pl.DataType]] = {"confidence": pl.Float64, "correct": pl.Int8}


def columns(members: Mapping[str, Any], seed: SeedView) -> dict[str, float | int | None]:
    """Return `confidence` and `correct` of one completion.

    Raises ValueError when the answer is said to stand behind the completion's end, or there are no tokens.
    """
    known, found = "logprob.npy" in members, checks(members)
    log_probs = np.asarray(members.get("logprob.npy", ()), np.float64)
    if "correct" in found:
        correct, at = arisen(found["correct"]), arisen(found.get("stated_at"))
        if correct is None or at is None:
            return {"confidence": None, "correct": None}
        if known and at >= len(log_probs):
            raise ValueError(f"the answer is said to be token {at} of {len(log_probs)}")
        return {"confidence": float(np.exp(log_probs[at])) if known else None, "correct": correct}
    expected, answer = seed.params.get("expected_answer"), last_answer(members)
    if expected is None or answer is None:
        return {"confidence": None, "correct": None}
    if known and not len(log_probs):
        raise ValueError("the completion has no tokens")
    right = str(answer.get("content") or "").strip() == str(expected).strip()
    return {"confidence": float(np.exp(np.mean(log_probs))) if known else None, "correct": int(right)}
