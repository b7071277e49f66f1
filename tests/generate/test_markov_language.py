"""The markov language's law against enumeration, hand-made numbers and draws; its automaton against examples."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats

from distdata.catalogs.errors import DistdataError
from distdata.catalogs.hashing import token_uniforms
from distdata.generate.teachers.markov.language import (
    AXES,
    DETAILS,
    END,
    ID,
    LANGUAGE,
    OUTCOMES,
    SCENARIOS,
    SIZE,
    TOPICS,
    VOCABULARY,
    Language,
    Prompt,
    decode,
    encode,
    prompt_ids,
    read_prompt,
)
from distdata.generate.teachers.markov.law import divergence, entropy, law, opening_probabilities
from distdata.generate.teachers.markov.verify import judge, verdict_probabilities

PLAIN = Prompt("billing", "en", "short", "answer", "refund", "plain", "partial", 7, 42)
"""Topic 1 of billing: its fitting tool is pay_back."""
PROMPTS = [
    PLAIN,
    Prompt("code", "de", "long", "tool_call", "test", "plain", "full", 0, 3),
    Prompt("travel", "en", "long", "refusal", "hotel", "harmful", "bare", 9, 99),
    Prompt("travel", "de", "short", "rare_topic", "visa", "plain", "bare", 5, 0),
]
STRAIGHT = Language.from_dict({"slip": 0.0, "trail": 0.0, "turn": {"base": 0.0}})
"""No slips, no turning round, no trailing off: chances of verdicts are products of a few constants."""
ALPHA = 1e-4
"""False-alarm rate of each statistical test below, split over its members (Bonferroni)."""


def completions(prompt, language):
    """Yield every possible completion of a language without slips, with its probability by multiplying along it."""
    rows, longest = law(prompt, language).rows, language.max_new_tokens

    def grow(ids, word, p):
        if ids and (ids[-1] == ID[END] or len(ids) == longest):
            yield np.array(ids), p
            return
        for after in np.flatnonzero(rows[word]):
            yield from grow([*ids, int(after)], int(after), p * rows[word, after])

    return grow([], ID["<assistant>"], 1.0)


def test_vocabulary_has_every_word_once():
    """Words are unique, and there are between 64 and 128 of them."""
    assert len(set(VOCABULARY)) == SIZE == len(VOCABULARY)
    assert 64 <= SIZE <= 128
    assert decode(encode("sure total 7 <end>")) == "sure total 7 <end>"
    assert decode([SIZE + 3]) == f"<{SIZE + 3}>"


@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompts_are_read_back(prompt):
    """A prompt's ids say all of it."""
    assert read_prompt(prompt_ids(prompt)) == prompt
    assert len(prompt_ids(prompt)) == 12


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("<user> <en>", "a prompt has 12 words, this one 2"),
        ("<user> <en> <billing> <short> <answer> refund plain full 7 4 2 sure", "word 11 of the prompt is 'sure'"),
        ("<user> <en> <billing> <short> <answer> hotel plain full 7 4 2 <assistant>", "'hotel' is none of billing"),
    ],
)
def test_other_prompts_are_refused(words, message):
    """What is no prompt says which word is wrong."""
    with pytest.raises(ValueError, match=message):
        read_prompt(encode(words))


def test_unknown_words_name_the_nearest():
    """A misspelt word is an error that knows the language."""
    with pytest.raises(DistdataError, match=r"no word 'totl'\. Did you mean 'total'"):
        encode("sure totl")


def test_every_row_is_a_law():
    """In every cell all rows sum to 1 and, with slips, no word is impossible after any other."""
    for domain, tongue, length, scenario in itertools.product(*AXES.values(), SCENARIOS):
        prompt = Prompt(domain, tongue, length, scenario, TOPICS[domain][0], "plain", DETAILS[0], 3)
        rows = law(prompt).rows
        np.testing.assert_allclose(rows.sum(1), 1.0, atol=1e-12)
        assert rows.min() >= LANGUAGE.slip / SIZE * (1 - 1e-12)


def test_noise_digits_decide_nothing():
    """Two prompts that differ in their last two digits have one law."""
    assert np.array_equal(law(PLAIN).rows, law(PLAIN._replace(noise=7)).rows)
    assert not np.array_equal(law(PLAIN).rows, law(PLAIN._replace(amount=6)).rows)


def test_opening_words_by_hand():
    """Chances of the opening words are the softmax of intents and loads, added by hand."""
    # answer: answers 2.2, calls_tool 0.0, refuses -1.2, asks_back 0.6; the other values of PLAIN add nothing
    e = {"answers": math.exp(2.2), "calls_tool": 1.0, "refuses": math.exp(-1.2), "asks_back": math.exp(0.6)}
    found = opening_probabilities(PLAIN)
    assert found == pytest.approx({name: v / sum(e.values()) for name, v in e.items()}, abs=1e-12)
    # code adds 0.4 to calls_tool, -0.2 to answers; de 0.2 to asks_back, -0.2 to calls_tool; both -0.4 and refuses 0.4
    e = {"answers": math.exp(2.0), "calls_tool": math.exp(-0.2), "refuses": math.exp(-0.8), "asks_back": math.exp(0.8)}
    found = opening_probabilities(Prompt("code", "de", "short", "answer", "test", "plain", "partial", 7))
    assert found == pytest.approx({name: v / sum(e.values()) for name, v in e.items()}, abs=1e-12)


def test_verdicts_by_hand():
    """Without slips and turns every verdict's chance is a product of constants."""
    opening = opening_probabilities(PLAIN)
    found = verdict_probabilities(PLAIN, law(PLAIN, STRAIGHT))
    for outcome in OUTCOMES[:-1]:
        assert found[outcome] == pytest.approx(opening[outcome], abs=1e-12)
    assert found["other"] == pytest.approx(0.0, abs=1e-12)
    # stop 0.36, at most 24 words: "total" at word 1..22 is named, its digit comes one later; 21 leaves room to end
    named, ended = 1 - 0.64**22, 1 - 0.64**21
    assert found["states"] == pytest.approx(opening["answers"] * named, abs=1e-12)
    assert found["correct"] == pytest.approx(opening["answers"] * named * 0.96, abs=1e-12)  # wrong_amount 0.04
    assert found["tool_match"] == pytest.approx(opening["calls_tool"] * 0.96 * 0.97 * 0.96, abs=1e-12)
    # a call is whole with chance 0.97; reasons and questions go on with 0.35 and 0.30, for 22 words at most
    valid = opening["answers"] * ended + opening["calls_tool"] * 0.97
    valid += opening["refuses"] * (1 - 0.35**22) + opening["asks_back"] * (1 - 0.30**22)
    assert found["valid"] == pytest.approx(valid, abs=1e-12)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_verdicts_and_entropy_equal_enumeration(prompt):
    """Propagating the chain gives what adding up all completions gives: verdicts, entropy, divergence, length."""
    language = Language.from_dict({"slip": 0.0, "max_new_tokens": 5})
    other = Language.from_dict({"slip": 0.0, "max_new_tokens": 5, "stop": {"short": 0.5, "long": 0.3}})
    added = dict.fromkeys([*OUTCOMES, "valid", "refused", "states", "correct"], 0.0)
    h = kl = length = total = 0.0
    for ids, p in completions(prompt, language):
        verdict = judge(prompt, ids)
        q = math.exp(law(prompt, other).log_probs(ids).sum())
        total, length = total + p, length + p * len(ids)
        h, kl = h - p * math.log(p), kl + p * math.log(p / q)
        added[verdict.outcome] += p
        added["valid"] += p * verdict.valid
        added["refused"] += p * verdict.refused
        added["states"] += p * (verdict.correct >= 0)
        added["correct"] += p * (verdict.correct == 1)
    assert total == pytest.approx(1.0, abs=1e-12)
    found = verdict_probabilities(prompt, law(prompt, language))
    assert {name: found[name] for name in added} == pytest.approx(added, abs=1e-12)
    assert entropy(law(prompt, language)) == pytest.approx(h, abs=1e-10)
    assert divergence(law(prompt, language), law(prompt, other)) == pytest.approx(kl, abs=1e-10)
    assert law(prompt, language).visits().sum() == pytest.approx(length, abs=1e-10)


def test_divergence_of_what_is_excluded_is_infinite():
    """KL(p || q) is 0 for equal laws, infinite where q can't say what p says, and refused across lengths."""
    assert divergence(law(PLAIN), law(PLAIN)) == 0.0
    assert divergence(law(PLAIN), law(PLAIN, STRAIGHT)) == math.inf
    assert 0 < divergence(law(PLAIN, STRAIGHT), law(PLAIN)) < math.inf
    with pytest.raises(ValueError, match="24 words, the other after 5"):
        divergence(law(PLAIN), law(PLAIN, Language.from_dict({"max_new_tokens": 5})))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_draws_follow_the_law(prompt):
    """Chosen completions show outcomes, validity and mean length as the chain says (chi-square, binomial, z)."""
    n, chain = 4000, law(prompt)
    drawn = [chain.choose(token_uniforms(i, chain.max_new_tokens)) for i in range(n)]
    verdicts = [judge(prompt, ids) for ids in drawn]
    expected = verdict_probabilities(prompt, chain)
    counts = [sum(v.outcome == o for v in verdicts) for o in OUTCOMES]
    tests = 3 * len(PROMPTS)
    assert stats.chisquare(counts, [n * expected[o] for o in OUTCOMES]).pvalue > ALPHA / tests
    assert stats.binomtest(sum(v.valid for v in verdicts), n, expected["valid"]).pvalue > ALPHA / tests
    surprise = np.array([-chain.log_probs(ids).sum() for ids in drawn])
    z = (surprise.mean() - entropy(chain)) / (surprise.std(ddof=1) / math.sqrt(n))
    assert 2 * stats.norm.sf(abs(z)) > ALPHA / tests


def test_words_are_chosen_by_inverse_transform():
    """Each word is the first whose cumulative probability exceeds its uniform; other words' uniforms don't matter."""
    chain, u = law(PLAIN), token_uniforms(11, 24)
    ids = chain.choose(u)
    for before, word, x in zip(["<assistant>", *decode(ids).split()], ids, u, strict=False):
        row = chain.rows[ID[before]]
        assert row[:word].sum() <= x + 1e-12 < row[: word + 1].sum() + 2e-12
    assert decode(chain.choose(np.array([0.0, *u[1:]]))) != ""
    assert len(chain.choose(np.full(24, 0.9999999))) >= 1


def test_temperature_flattens():
    """At temperature t the odds of two words are those at 1 to the power 1/t."""
    cold, warm = law(PLAIN, temperature=0.5).rows, law(PLAIN).rows
    a, b = ID["sure"], ID["which"]
    start = ID["<assistant>"]
    assert cold[start, a] / cold[start, b] == pytest.approx((warm[start, a] / warm[start, b]) ** 2)
    assert entropy(law(PLAIN, temperature=0.5)) < entropy(law(PLAIN)) < entropy(law(PLAIN, temperature=2.0))
    with pytest.raises(DistdataError, match="temperature is 0"):
        law(PLAIN, temperature=0)


@pytest.mark.parametrize(
    ("words", "outcome", "valid", "tool_match", "refused", "correct", "stated_at"),
    [
        ("sure well total 7 <end>", "answers", 1, 0, 0, 1, 3),
        ("sure well total 8 <end>", "answers", 1, 0, 0, 0, 3),
        ("sure well total <end>", "answers", 0, 0, 0, -1, -1),
        ("sure total 7 well <end>", "answers", 0, 0, 0, -1, -1),
        ("sure total 7", "answers", 0, 0, 0, 1, 2),  # cut off
        ("call pay_back with 7 <end>", "calls_tool", 1, 1, 0, -1, -1),
        ("call pay_back with 6 <end>", "calls_tool", 1, 0, 0, -1, -1),
        ("call find_bill with 7 <end>", "calls_tool", 1, 0, 0, -1, -1),
        ("call pay_back <end>", "calls_tool", 0, 0, 0, -1, -1),
        ("call pay_back with 7 7 <end>", "calls_tool", 0, 0, 0, -1, -1),
        ("call pay_back with 7", "calls_tool", 0, 0, 0, -1, -1),
        ("sorry policy unsafe <end>", "refuses", 1, 0, 1, -1, -1),
        ("sorry <end>", "refuses", 0, 0, 1, -1, -1),
        ("sure well but sorry cannot <end>", "refuses", 1, 0, 1, -1, -1),
        ("which when <end>", "asks_back", 1, 0, 0, -1, -1),
        ("which well when <end>", "asks_back", 0, 0, 0, -1, -1),
        ("well 7 total <end>", "other", 0, 0, 0, -1, -1),
        ("<end>", "other", 0, 0, 0, -1, -1),
        ("", "other", 0, 0, 0, -1, -1),
    ],
)
def test_verdicts_on_texts(words, outcome, valid, tool_match, refused, correct, stated_at):
    """The automaton reads completions as a person would; what does not belong breaks a call, not an answer."""
    found = judge(PLAIN._replace(scenario="tool_call"), encode(words))
    assert found == (outcome, valid, tool_match, refused, 0, correct, stated_at)


def test_verdicts_of_other_requests_and_models():
    """Tools are matched where a call was asked for, harmful requests should be refused, foreign ids break nothing."""
    harmful = Prompt("code", "en", "long", "refusal", "test", "harmful", "full", 1)
    assert judge(harmful, encode("sorry unsafe <end>")).should_refuse == 1
    assert judge(harmful._replace(tone="edgy"), encode("sorry unsafe <end>")).should_refuse == 0
    assert judge(PLAIN, encode("call pay_back with 7 <end>")).tool_match == -1
    assert judge(PLAIN, [SIZE + 50, ID["which"], -1]).outcome == "asks_back"


def test_constants_survive_json():
    """A language written as JSON is the same law; a changed constant changes only what it should."""
    again = Language.from_dict(json.loads(json.dumps(LANGUAGE.to_dict())))
    assert again.to_dict() == LANGUAGE.to_dict()
    for prompt in PROMPTS:
        assert np.array_equal(law(prompt, again).rows, law(prompt).rows)
    quirk = Language.from_dict({"loads": {**LANGUAGE.loads, "edgy": {"refuses": 2.0}}})  # over-refuses
    edgy = Prompt("travel", "en", "short", "refusal", "hotel", "edgy", "full", 1)
    more = verdict_probabilities(edgy, law(edgy, quirk))["refuses"] - verdict_probabilities(edgy, law(edgy))["refuses"]
    assert more > 0.2
    assert np.array_equal(law(PLAIN, quirk).rows, law(PLAIN).rows)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"slipp": 0.1}, "no constant 'slipp'. Did you mean 'slip'"),
        ({"slip": "much"}, "slip is 'much'"),
        ({"stop": 0.5}, "stop is 0.5"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5"),
    ],
)
def test_bad_constants_are_refused(data, message):
    """A constant of another name or type is an error that says so."""
    with pytest.raises(DistdataError, match=message):
        Language.from_dict(data)
