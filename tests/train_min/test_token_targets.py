"""Stored token probabilities become padded targets whose expectation is the law that was stored."""

from __future__ import annotations

import numpy as np
import pytest

from distdata.catalogs.errors import DistdataError
from distdata.generate.teachers.token_records import ProbabilityRule, probability_members
from distdata.train_min.token_targets import (
    drawn_target,
    find_source,
    pad_rows,
    sparse_target,
    split_prompt,
    temperature_of,
)

COUNTS = {
    "lg_ids.npy": np.array([4, 7, 2], np.uint32),
    "lg_cnt.npy": np.array([3, 1, 4], np.uint8),
    "lg_off.npy": np.array([0, 2, 3]),
}
HEAD = {
    "top_ids.npy": np.array([[0, 1], [1, 3]], np.uint32),
    "top_lp.npy": np.log(np.array([[0.5, 0.25], [0.6, 0.3]], np.float32)),
}
TOKENS = np.array([7, 1])


def dense(ids, weights, n_ids=8):
    """Add weights up in rows of all ids."""
    rows = np.zeros((len(ids), n_ids))
    np.add.at(rows, (np.arange(len(ids))[:, None], ids), weights)
    return rows


def test_counts_by_hand():
    """Four draws at each of two positions: shares of 3/4 and 1/4 of the first, all of the second, padded with zeros."""
    ids, weights = sparse_target(COUNTS, "counts", TOKENS)
    assert ids.tolist() == [[4, 7], [2, 0]]
    assert weights.tolist() == [[0.75, 0.25], [1.0, 0.0]]


def test_head_and_tail_by_hand():
    """The head's probabilities stay; the tail's counts share the rest, 0.25 and 0.1."""
    rows = dense(*sparse_target(COUNTS | HEAD, "head_tail", TOKENS))
    expected = np.zeros((2, 8))
    expected[0, [0, 1, 4, 7]] = 0.5, 0.25, 0.75 * 0.25, 0.25 * 0.25
    expected[1, [1, 3, 2]] = 0.6, 0.3, 0.1
    np.testing.assert_allclose(rows, expected, atol=1e-6)


def test_head_and_drawn_token_by_hand():
    """The drawn token weighs 1 where it lies outside the head and nothing where it lies in it."""
    rows = dense(*sparse_target(HEAD, "head_drawn", TOKENS))
    expected = np.zeros((2, 8))
    expected[0, [0, 1, 7]] = 0.5, 0.25, 1.0
    expected[1, [1, 3]] = 0.6, 0.3
    np.testing.assert_allclose(rows, expected, atol=1e-6)


def test_topk_loses_the_rest():
    """The head alone keeps its probabilities, and nothing stands for the rest."""
    np.testing.assert_allclose(sparse_target(HEAD, "topk", TOKENS)[1].sum(1), [0.75, 0.9], atol=1e-6)


@pytest.mark.parametrize("form", ["counts", "head_tail", "head_drawn"])
def test_targets_average_to_the_law(form):
    """Over 4,000 records of one position the weights' mean is the law, within 4.5 standard errors at every id.

    Weights of one id have a standard deviation of at most that of one drawn token, sqrt(p (1 - p)) (counts and tails of
    8 draws have less). 3 forms x 6 ids at 4.5: a false alarm once in 8,000 runs; seeds are fixed.
    """
    law = np.array([0.5, 0.2, 0.15, 0.1, 0.04, 0.01])
    rule = ProbabilityRule(form="top_k" if form == "head_drawn" else form, n=8, head=2)
    tokens = np.random.default_rng(5).choice(6, 4_000, p=law)
    n, total = len(tokens), np.zeros(6)
    for seed, token in enumerate(tokens):
        members = probability_members(np.log(law)[None], rule, seed)
        total += dense(*sparse_target(members, form, np.array([token])), n_ids=6)[0]
    assert (np.abs(total / n - law) < 4.5 * np.sqrt(law * (1 - law) / n) + 1e-6).all()


def test_the_best_form_is_found():
    """Whole laws come before an exact head with a sampled tail, this before counts; plain top-k is never chosen."""
    whole = {"all_lp.npy"}
    assert find_source(whole | COUNTS.keys() | HEAD.keys()) == "dense"
    assert find_source(COUNTS.keys() | HEAD.keys()) == "head_tail"
    assert find_source(COUNTS.keys()) == "counts"
    assert find_source(HEAD.keys()) == "head_drawn"
    assert find_source(HEAD.keys(), "topk") == "topk"


def test_what_is_not_there_is_refused():
    """Samples without probabilities, a form that they lack and one that there is not are errors with the way out."""
    with pytest.raises(DistdataError, match="recipe seq_kd"):
        find_source({"input_ids.npy"})
    with pytest.raises(DistdataError, match=r"reads lg_ids\.npy, lg_cnt\.npy, lg_off\.npy, which"):
        find_source(HEAD.keys(), "counts")
    with pytest.raises(DistdataError, match="Did you mean 'counts'"):
        find_source(COUNTS.keys(), "count")


@pytest.mark.parametrize(
    ("choice", "says"),
    [({"temperature": 0.7}, r"temperature 0\.7 and top_p 1"), ({"top_p": 0.9}, r"temperature 1 and top_p 0\.9")],
)
def test_a_head_and_a_token_of_another_law_are_refused(choice, says):
    """A token drawn at 0.7, or from a nucleus, beside probabilities at 1 is a sample of no law; counts don't mind."""
    meta = {"meta.json": {**choice, "probabilities": {"temperature": 1.0}}}
    assert temperature_of(meta, "counts") == 1.0
    with pytest.raises(DistdataError, match=says):
        temperature_of(meta, "head_drawn")


@pytest.mark.parametrize(
    ("members", "source", "says"),
    [
        (COUNTS | {"lg_off.npy": np.array([0, 2])}, "counts", "row 3: lg_off runs from 0 to 2 over 3 ids"),
        (COUNTS | {"lg_off.npy": np.array([0, 2, 2, 3])}, "counts", "row 3: position 1 has no count"),
        (COUNTS | {"lg_off.npy": np.array([0, 1, 2, 3])}, "counts", "row 3: lg_ids.npy is of 3 tokens.* has 2"),
        ({k: v[:1] for k, v in HEAD.items()}, "topk", "row 3: top_ids.npy is of 1 tokens, its completion has 2"),
    ],
)
def test_members_that_do_not_fit_are_named(members, source, says):
    """A record whose parts contradict each other or its completion is an error that names row and member."""
    with pytest.raises(DistdataError, match=says):
        sparse_target({**members, "row": 3}, source, TOKENS)


def test_prompt_and_completion():
    """`n_prompt` cuts prompt from completion; without it, or with one that leaves either empty, the row is named."""
    sample = {"input_ids.npy": np.arange(5), "meta.json": {"n_prompt": 2}, "row": 9}
    ids, n_prompt = split_prompt(sample)
    assert (ids.tolist(), n_prompt) == ([0, 1, 2, 3, 4], 2)
    for meta in ({"n_prompt": 0}, {"n_prompt": 5}, {}, {"n_prompt": "2"}):
        with pytest.raises(DistdataError, match=r"row 9: n_prompt .* holds 5 ids"):
            split_prompt({**sample, "meta.json": meta})
    with pytest.raises(DistdataError, match=r"row 9: no input_ids\.npy"):
        split_prompt({"row": 9})


def test_padding():
    """Rows of unequal size are filled at their ends; a completion is a target of itself."""
    assert pad_rows([np.array([1, 2]), np.array([3])], -1).tolist() == [[1, 2], [3, -1]]
    assert pad_rows([np.ones((1, 2)), np.zeros((2, 1))]).tolist() == [[[1, 1], [0, 0]], [[0, 0], [0, 0]]]
    ids, weights = drawn_target(np.array([5, 6]))
    assert (ids.tolist(), weights.tolist()) == ([[5], [6]], [[1.0], [1.0]])
