"""Stored token probabilities: their expectation is the teacher's law, exactly and as drawn."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from distdata.catalogs.errors import DistdataError
from distdata.catalogs.protocol import Request
from distdata.catalogs.token_probs import is_biased, sparse_targets
from distdata.generate.teachers.token_records import (
    LawRecorder,
    ProbabilityRule,
    choose_token,
    probability_members,
    token_draw,
)

LAW = np.array([0.5, 0.3, 0.15, 0.05])
ALPHA = 1e-4
"""False-alarm rate of each statistical test below."""


def dense(targets, size):
    """Return weights as one row per position, float64 [T, size]."""
    found = np.zeros((len(targets.offsets) - 1, size))
    for t, (a, b) in enumerate(itertools.pairwise(targets.offsets)):
        np.add.at(found[t], targets.ids[a:b], targets.weights[a:b])
    return found


def multinomial(n, law):
    """Yield every possible vector of counts of n draws, with its probability."""
    for counts in itertools.product(range(n + 1), repeat=len(law)):
        if sum(counts) == n and not any(c for c, p in zip(counts, law, strict=True) if p == 0):
            ways = math.factorial(n) / math.prod(math.factorial(c) for c in counts)
            yield np.array(counts), ways * math.prod(p**c for p, c in zip(law, counts, strict=True))


def stored(counts):
    """Return the members that hold these counts of one position."""
    ids = np.flatnonzero(counts)
    return {
        "lg_ids.npy": ids.astype(np.uint32),
        "lg_cnt.npy": counts[ids].astype(np.uint8),
        "lg_off.npy": np.array([0, len(ids)]),
    }


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_counts_are_unbiased_exactly(n):
    """Over all outcomes of n draws, weighted by their probability, the expected weights are the law."""
    mean = sum(p * dense(sparse_targets(stored(c)), 4)[0] for c, p in multinomial(n, LAW))
    np.testing.assert_allclose(mean, LAW, atol=1e-7)  # weights are float32


@pytest.mark.parametrize(("n", "head"), [(1, 1), (2, 2), (3, 1), (4, 3)])
def test_head_and_tail_are_unbiased_exactly(n, head):
    """The head is exact, and over all outcomes of the tail's draws the expected weights are the law."""
    top = {
        "top_ids.npy": np.arange(head, dtype=np.uint32)[None],
        "top_lp.npy": np.log(LAW[:head]).astype(np.float32)[None],
    }
    tail = np.where(np.arange(4) < head, 0.0, LAW)
    found = [(dense(sparse_targets({**top, **stored(c)}), 4)[0], p) for c, p in multinomial(n, tail / tail.sum())]
    for weights, _ in found:
        np.testing.assert_allclose(weights[:head], LAW[:head], rtol=1e-6)
        assert weights.sum() == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(sum(p * w for w, p in found), LAW, atol=1e-6)


def test_head_and_tail_vary_less():
    """With as many draws, an exact head leaves less variance in every id than counts alone."""
    tail = np.where(np.arange(4) < 2, 0.0, LAW)
    top = {"top_ids.npy": np.array([[0, 1]]), "top_lp.npy": np.log(LAW[None, :2]).astype(np.float32)}
    counts = sum(p * (dense(sparse_targets(stored(c)), 4)[0] - LAW) ** 2 for c, p in multinomial(3, LAW))
    both = sum(
        p * (dense(sparse_targets({**top, **stored(c)}), 4)[0] - LAW) ** 2 for c, p in multinomial(3, tail / tail.sum())
    )
    # counts: p (1 - p) / n; tail: r^2 q (1 - q) / n with q = p / r = 3/4 and 1/4, r = 0.2
    np.testing.assert_allclose(counts, LAW * (1 - LAW) / 3, atol=1e-7)
    np.testing.assert_allclose(both, [0, 0, 0.04 * 0.1875 / 3, 0.04 * 0.1875 / 3], atol=1e-7)


def test_top_k_loses_the_tail_and_says_so():
    """The top ids alone have the law's weights there and nothing elsewhere, and the record is known as biased."""
    rule = ProbabilityRule(form="top_k", head=2)
    members = probability_members(np.log(LAW)[None], rule, 1)
    assert set(members) == {"top_ids.npy", "top_lp.npy"}
    np.testing.assert_allclose(dense(sparse_targets(members), 4)[0], [0.5, 0.3, 0, 0], atol=1e-7)
    assert is_biased(members)
    assert rule.facts()["biased"]
    for form in ("counts", "head_tail", "dense"):
        assert not is_biased(probability_members(np.log(LAW)[None], ProbabilityRule(form=form, head=2), 1))


def test_dense_is_the_law():
    """Dense records hold every log-probability, and expand to the law itself."""
    laws = np.log(np.stack([LAW, LAW[::-1]]))
    members = probability_members(laws, ProbabilityRule(form="dense"), 1)
    np.testing.assert_allclose(members["all_lp.npy"], laws, atol=1e-6)
    np.testing.assert_allclose(dense(sparse_targets(members), 4), np.exp(laws), atol=1e-7)


@pytest.mark.parametrize("form", ["counts", "head_tail"])
def test_what_is_drawn_follows_the_law(form):
    """Counts drawn over many requests fit the law (the tail's, renormalised): chi-square at ALPHA."""
    n_requests, n = 800, 5
    law = np.array([0.02, 0.4, 0.08, 0.2, 0.03, 0.27])
    drawn = np.zeros(6)
    for rng_seed in range(n_requests):
        members = probability_members(np.log(law)[None], ProbabilityRule(form=form, n=n, head=2), rng_seed)
        assert members["lg_cnt.npy"].sum() == n
        np.add.at(drawn, members["lg_ids.npy"], members["lg_cnt.npy"])
    expected = law if form == "counts" else np.where(np.isin(np.arange(6), [1, 5]), 0.0, law)
    live = expected > 0
    assert not drawn[~live].any()
    total = n_requests * n
    assert stats.chisquare(drawn[live], total * expected[live] / expected.sum()).pvalue > ALPHA / 2


def test_draws_depend_on_the_request_alone():
    """The same request draws the same counts, another one others, and adding laws one by one changes nothing."""
    laws = np.log(np.random.default_rng(0).dirichlet(np.ones(30), size=7))
    for form in ("counts", "head_tail", "top_k", "dense"):
        rule = ProbabilityRule(form=form, n=9, head=3)
        whole = probability_members(laws, rule, 5)
        recorder = LawRecorder(rule, 5)
        for row in laws:
            recorder.add(row[None])
        for name, value in recorder.members(30).items():
            assert value.dtype == whole[name].dtype
            assert np.array_equal(value, whole[name])
    counts = ProbabilityRule(form="counts")
    a, b = (probability_members(laws, counts, seed)["lg_cnt.npy"] for seed in (5, 6))
    assert not np.array_equal(a, b)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 6), st.integers(2, 40)),
    form=st.sampled_from(["counts", "head_tail", "dense"]),
    n=st.integers(1, 255),
    head=st.integers(1, 50),
    seed=st.integers(0, 2**32 - 1),
)
def test_weights_of_any_law_sum_to_one(sizes, form, n, head, seed):
    """Whatever the law, also one with ids of probability 0: declared types, distinct known ids, weights of sum 1."""
    tokens, size = sizes
    rng = np.random.default_rng(seed)
    laws = rng.dirichlet(np.full(size, 0.3), size=tokens)
    laws[:, rng.integers(size)] = 0
    laws /= laws.sum(1, keepdims=True)
    rule = ProbabilityRule(form=form, n=n, head=head)
    with np.errstate(divide="ignore"):
        members = probability_members(np.log(laws), rule, seed)
    for name, spec in rule.probability_specs(size).items():
        assert members[name].dtype.name == spec.dtype
        assert all(want in (None, got) for want, got in zip(spec.shape, members[name].shape, strict=True))
        assert np.isfinite(members[name]).all()
    found = sparse_targets(members)
    for a, b in itertools.pairwise(found.offsets):
        assert len(set(found.ids[a:b].tolist())) == b - a
    weights = dense(found, size)
    np.testing.assert_allclose(weights.sum(1), 1.0, atol=2e-6)
    assert (weights[laws == 0] == 0).all()


def test_a_tail_without_mass_draws_nothing():
    """Where the head holds everything there is nothing left to draw, and the weights are the head's."""
    members = probability_members(np.log(LAW)[None], ProbabilityRule(form="head_tail", head=9, n=4), 1)
    assert members["top_ids.npy"].shape == (1, 4)
    assert members["lg_off.npy"].tolist() == [0, 0]
    np.testing.assert_allclose(dense(sparse_targets(members), 4)[0], LAW, atol=1e-7)


def test_an_empty_completion_has_empty_members():
    """No token, no law: all members are there, with nothing in them."""
    for form in ("counts", "head_tail", "top_k", "dense"):
        members = probability_members(np.zeros((0, 4)), ProbabilityRule(form=form, head=2), 1)
        assert dense(sparse_targets(members), 4).shape == (0, 4)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "no token probabilities"),
        ({"lg_ids.npy": np.zeros(3), "lg_cnt.npy": np.ones(3), "lg_off.npy": np.array([0, 2])}, "from 0 to 2 over 3"),
        ({"lg_ids.npy": np.zeros(1), "lg_cnt.npy": np.ones(1), "lg_off.npy": np.array([0, 1, 1])}, "position 1 has no"),
        ({"top_ids.npy": np.zeros((2, 3)), "top_lp.npy": np.zeros((2, 2))}, r"\(2, 3\) and top_lp \(2, 2\)"),
        ({**stored(np.array([1, 0])), "top_ids.npy": np.zeros((2, 1)), "top_lp.npy": np.zeros((2, 1))}, "head has 2"),
    ],
)
def test_members_that_contradict_each_other_are_refused(members, message):
    """A record that can't be expanded says why."""
    with pytest.raises(ValueError, match=message):
        sparse_targets(members)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"form": "count"}, "'count': unknown. Did you mean 'counts'"),
        ({"form": "counts", "n": 256}, "n_counts = 256: it must be a whole number from 1 to 255"),
        ({"form": "counts", "n": 0}, "n_counts = 0"),
        ({"form": "top_k", "head": 0}, "head = 0"),
    ],
)
def test_bad_rules_are_refused(given, message):
    """A rule that can't be kept is an error that names the option."""
    with pytest.raises(DistdataError, match=message):
        ProbabilityRule(**given)


def test_tokens_are_chosen_by_inverse_transform():
    """The first id whose cumulative share exceeds u, for a law of any sum, and never an id without mass."""
    law = np.array([0.0, 2.0, 0.0, 1.0, 1.0, 0.0])
    assert [choose_token(law, u) for u in (0.0, 0.49, 0.5, 0.74, 0.75, np.nextafter(1, 0))] == [1, 1, 3, 3, 4, 4]
    with pytest.raises(ValueError, match="no id has a probability above 0"):
        choose_token(np.zeros(3), 0.5)


def test_a_record_says_what_it_is():
    """A record holds prompt and completion as one, its own log-probabilities, and how to read what is stored."""
    request = Request(seed_id="s", k=2, rng_seed=3, axes={"domain": "code"}, scenario="answer", params={})
    rule = ProbabilityRule(form="counts", n=4)
    given = {
        "messages": [{"role": "user", "content": "hi"}],
        "tokenizer_hash": "abc",
        "temperature": 1.0,
        "outcome": "answers",
        "checks": {"valid": 1},
        "rule": rule,
        "probabilities": probability_members(np.log(np.stack([LAW, LAW])), rule, 3),
    }
    logs = np.array([-0.5, -np.inf], np.float32)
    draw = token_draw(request, np.array([7, 8, 9]), np.array([1, 2]), logs, **given)
    assert (draw.seed_id, draw.k, draw.outcome) == ("s", 2, "answers")
    assert draw.members["input_ids.npy"].tolist() == [7, 8, 9, 1, 2]
    assert draw.members["logprob.npy"].tolist() == [-0.5, -1e4]  # readers refuse infinities
    assert draw.members["meta.json"] == {
        "n_prompt": 3,
        "axes": {"domain": "code"},
        "scenario": "answer",
        "outcome": "answers",
        "shift": "token t given all before it",
        "temperature": 1.0,
        "top_p": 1.0,
        "tokenizer": "abc",
        "probabilities": {"form": "counts", "n": 4, "head": 0, "temperature": 1.0, "biased": False},
        "checks": {"valid": 1},
    }
    with pytest.raises(ValueError, match="1 log-probabilities for 2 tokens"):
        token_draw(request, np.array([7]), np.array([1, 2]), logs[:1], **given)
