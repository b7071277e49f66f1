"""Calibration: how sure, and how right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distdata.curate.metrics.calibration import columns
from distdata.curate.metrics.seed_view import SeedView


def seed(**params: Any) -> SeedView:
    """A seed that expects something."""
    return SeedView(
        seed_id="s", k=0, axes={}, scenario="answer", params=params, outcome=None, control_axis=None,
        control_value=None,
    )  # fmt: skip


def record(content: str, probabilities: list[float], **checks: int) -> dict[str, Any]:
    """A completion with these token probabilities and checks."""
    return {
        "messages.json": [{"role": "assistant", "content": content}],
        "logprob.npy": np.log(np.array(probabilities)).astype(np.float32),
        "meta.json": {"checks": checks},
    }


def test_the_answers_own_token_says_how_sure() -> None:
    """Where the world says at which token the answer stands, its probability is the confidence."""
    found = columns(record("total 7", [0.9, 0.25, 0.5], correct=0, stated_at=1), seed())
    assert found == {"confidence": pytest.approx(0.25), "correct": 0}
    nothing = columns(record("well", [0.9], correct=-1, stated_at=-1), seed(expected_answer="7"))
    assert nothing == {"confidence": None, "correct": None}


def test_else_the_mean_of_all_tokens_does() -> None:
    """Without checks: the geometric mean of the tokens' probabilities, sqrt(0.5 * 0.125) = 0.25, and equal texts."""
    members = {**record(" 7\n", [0.5, 0.125]), "meta.json": {}}
    assert columns(members, seed(expected_answer=7)) == {"confidence": pytest.approx(0.25), "correct": 1}
    assert columns(members, seed(expected_answer="70"))["correct"] == 0
    assert columns(members, seed()) == {"confidence": None, "correct": None}


def test_without_probabilities_there_is_no_confidence() -> None:
    """A record that holds no log-probabilities still says whether it was right."""
    members = record("7", [0.5], correct=1, stated_at=0)
    del members["logprob.npy"]
    assert columns(members, seed()) == {"confidence": None, "correct": 1}
    del members["meta.json"]
    assert columns(members, seed(expected_answer="7")) == {"confidence": None, "correct": 1}


def test_what_does_not_fit_is_refused() -> None:
    """An answer behind the end, and a completion without tokens, are errors and not numbers."""
    with pytest.raises(ValueError, match="token 3 of 2"):
        columns(record("7", [0.5, 0.5], correct=1, stated_at=3), seed())
    with pytest.raises(ValueError, match="no tokens"):
        columns({**record("7", []), "meta.json": {}}, seed(expected_answer="7"))
