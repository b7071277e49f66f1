"""Token KL: hand-derived values, and the closed form of a two-token language."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distdata.curate.metrics.language import completion
from distdata.curate.metrics.seed_view import SeedView
from distdata.curate.metrics.token_kl import columns_scored

SEED = SeedView(
    seed_id="s", k=0, axes={}, scenario="answer", params={}, outcome=None, control_axis=None, control_value=None
)


def record(log_probs: list[float], n_prompt: int = 2) -> dict[str, Any]:
    """A record whose completion has these log-probabilities to the model that drew it."""
    ids = np.arange(n_prompt + len(log_probs))
    return {"meta.json": {"n_prompt": n_prompt}, "input_ids.npy": ids, "logprob.npy": np.array(log_probs, np.float32)}


def test_the_mean_gap_per_token() -> None:
    """Halves against quarters, then a quarter against a half: (ln 2 - ln 2 + ln 2) / 3."""
    members = record([np.log(0.5), np.log(0.25), np.log(0.5)])
    scores = np.log([0.25, 0.5, 0.25])
    assert columns_scored(members, SEED, scores)["token_kl"] == pytest.approx(np.log(2) / 3, abs=1e-7)


def test_the_same_model_is_zero_and_a_better_one_negative() -> None:
    """A student that finds the completion as probable has no gap; one that finds it more probable a negative one."""
    members = record([-1.0, -3.0])
    assert columns_scored(members, SEED, np.array([-1.0, -3.0])) == {"token_kl": 0.0}
    assert columns_scored(members, SEED, np.array([-1.0, -1.0])) == {"token_kl": -1.0}


def test_an_impossible_token_is_large_and_finite() -> None:
    """A student that excludes a token is taken at the floor of -1e4: (1e4 - 1) / 2 here."""
    assert columns_scored(record([-1.0, -2.0]), SEED, np.array([-np.inf, -2.0]))["token_kl"] == (1e4 - 1) / 2


def test_what_does_not_fit_is_refused() -> None:
    """Scores of another length, or NaN, are no measurement."""
    with pytest.raises(ValueError, match=r"2 tokens, \(2,\) log-probabilities of the teacher, \(3,\) of the student"):
        columns_scored(record([-1.0, -2.0]), SEED, np.zeros(3))
    with pytest.raises(ValueError, match="NaN"):
        columns_scored(record([-1.0, -2.0]), SEED, np.array([np.nan, 0.0]))


def test_the_completion_is_what_follows_the_prompt() -> None:
    """Its ids begin after `n_prompt`, and there is at least one."""
    assert completion(record([-1.0, -2.0], n_prompt=3)).tolist() == [3, 4]
    for wrong in (5, -1, None):
        with pytest.raises(ValueError, match=f"n_prompt is {wrong} of 5 tokens"):
            completion({**record([-1.0, -2.0], n_prompt=3), "meta.json": {"n_prompt": wrong}})


def test_its_mean_over_the_teachers_draws_is_the_kl() -> None:
    """Over 4,000 one-token completions the mean is KL(p || q) within 4 standard errors (a false alarm in 16,000).

    p = (0.7, 0.2, 0.1), q = (0.5, 0.3, 0.2): KL = 0.7 ln 1.4 + 0.2 ln (2/3) + 0.1 ln 0.5 = 0.08512 nats.
    """
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.3, 0.2])
    drawn = np.random.default_rng(5).choice(3, 4000, p=p)
    gaps = [columns_scored(record([np.log(p[i])]), SEED, np.log(q[[i]]))["token_kl"] for i in drawn]
    exact = 0.7 * np.log(1.4) + 0.2 * np.log(2 / 3) + 0.1 * np.log(0.5)
    assert exact == pytest.approx(0.08512, abs=1e-5)
    assert abs(np.mean(gaps) - exact) < 4 * np.std(gaps) / np.sqrt(4000)
