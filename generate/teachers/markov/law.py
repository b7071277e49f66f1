"""The markov language's law in closed form: a prompt gives a Markov chain over words.

The next word depends on the prompt and on the word before it alone, so that a row of one matrix is the exact law at
any prefix; a completion begins after ``<assistant>`` and is absorbed by ``<end>``, or cut off after
`max_new_tokens` words. Entropies, divergences and the chances of outcomes follow by propagating the chain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....catalogs.errors import DistdataError
from ....catalogs.hashing import unit_interval
from .language import (
    ASSISTANT,
    BUT,
    DIGITS,
    END,
    FILLERS,
    ID,
    LANGUAGE,
    OPENERS,
    QUESTIONS,
    REASONS,
    SIZE,
    TOOLS,
    TOPICS,
    TOTAL,
    WITH,
    Language,
    Prompt,
)

Floats = NDArray[np.float64]
_END, _START = ID[END], ID[ASSISTANT]


@dataclass(frozen=True, kw_only=True, eq=False)
class Law:
    """The chain of one prompt: `rows` float64 [V, V], row v the law of the word after v, each summing to 1."""

    rows: Floats
    max_new_tokens: int

    @cached_property
    def cumulative(self) -> Floats:
        """Return the rows' cumulative sums, the last of each exactly 1."""
        found = np.cumsum(self.rows, axis=1)
        return np.asarray(found / found[:, -1:])

    def at(self, completion: Sequence[int] | NDArray[np.integer[Any]]) -> Floats:
        """Return the law of every word of a completion given all before it, float64 [T, V]."""
        before = np.concatenate([[_START], np.asarray(completion, np.int64)])[: len(completion)]
        return np.asarray(self.rows[before])

    def log_probs(self, completion: Sequence[int] | NDArray[np.integer[Any]]) -> Floats:
        """Return the log-probability of every word of a completion, float64 [T], nats."""
        ids = np.asarray(completion, np.int64)
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.at(ids)[np.arange(len(ids)), ids]))

    def choose(self, uniforms: Floats) -> NDArray[np.int64]:
        """Return the completion that these uniforms choose (see `hashing.token_uniforms`), end included."""
        found, word = [], _START
        for u in uniforms[: self.max_new_tokens]:
            word = int(np.searchsorted(self.cumulative[word], u, side="right"))
            found.append(word)
            if word == _END:
                break
        return np.array(found, np.int64)

    def visits(self) -> Floats:
        """Return how often each word is expected to stand before another one, float64 [V]; sums to the mean length."""
        at, total = np.zeros(SIZE), np.zeros(SIZE)
        at[_START] = 1.0
        for _ in range(self.max_new_tokens):
            total += at
            at = at @ self.rows
            at[_END] = 0.0
        return total


def law(prompt: Prompt, language: Language = LANGUAGE, temperature: float = 1.0) -> Law:
    """Return the law of the completions of a prompt.

    At another temperature every row becomes p^(1/temperature), normalised, as where words are chosen at it.

    Raises:
        DistdataError: the temperature is not above 0.
    """
    if not temperature > 0:
        raise DistdataError(f"markov language: temperature is {temperature!r}; it must be above 0.")
    return _law(prompt._replace(noise=0), language, temperature)


def entropy(of: Law) -> float:
    """Return the entropy of whole completions, nats: the rows' entropies by how often they are asked (chain rule)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        h = -np.where(of.rows > 0, of.rows * np.log(of.rows), 0.0).sum(1)
    return float(of.visits() @ h)


def divergence(p: Law, q: Law) -> float:
    """Return KL(p || q) over whole completions, nats; infinite where `q` excludes what `p` says.

    Raises ValueError for laws that cut completions off at different lengths.
    """
    if p.max_new_tokens != q.max_new_tokens:
        raise ValueError(f"one law stops after {p.max_new_tokens} words, the other after {q.max_new_tokens}")
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(p.rows > 0, p.rows * np.log(p.rows / q.rows), 0.0).sum(1)
    visits = p.visits()
    return float(visits[visits > 0] @ ratio[visits > 0])


@lru_cache(maxsize=256)
def _law(prompt: Prompt, language: Language, temperature: float) -> Law:
    rows = np.zeros((SIZE, SIZE))
    fillers = [ID[w] for w in FILLERS[prompt.language]]
    words = _words(prompt, language)
    _openings(rows, prompt, language)
    stop, trail = language.stop[prompt.length], language.trail
    turn = _chance(language.turn, prompt)
    first = _tilted(words.mean(0), TOPICS[prompt.domain].index(prompt.topic))
    rows[ID["sure"], fillers] = (1 - stop) * first
    rows[ID["sure"], ID[TOTAL]] = stop
    for i, filler in enumerate(fillers):
        rows[filler, fillers] = (1 - stop - turn - trail) * words[i]
        rows[filler, [ID[TOTAL], ID[BUT], _END]] = stop, turn, trail
    rows[ID[BUT], [ID["sorry"], ID["which"]]] = 0.6, 0.4
    _amounts(rows, prompt, _chance(language.wrong_amount, prompt))
    _tools(rows, prompt, language)
    _chained(rows, "sorry", REASONS, _reasons(prompt), language.more_reasons)
    _chained(rows, "which", QUESTIONS, _questions(prompt), language.more_questions)
    silent = rows.sum(1) == 0  # words that are met after a slip only
    rows[np.ix_(silent, fillers)] = 0.5 * words.mean(0)
    rows[silent, _END] = 0.5
    rows = (1 - language.slip) * rows / rows.sum(1, keepdims=True) + language.slip / SIZE
    if temperature != 1.0:
        rows = rows ** (1 / temperature)
        rows /= rows.sum(1, keepdims=True)
    rows.setflags(write=False)
    return Law(rows=rows, max_new_tokens=language.max_new_tokens)


def opening_probabilities(prompt: Prompt, language: Language = LANGUAGE) -> dict[str, float]:
    """Return the chances of the four opening words by what they announce, before slips."""
    logits = dict(language.intents[prompt.scenario])
    for value in prompt.values:
        for outcome, add in language.loads.get(value, {}).items():
            logits[outcome] += add
    for a, b, outcome, add in language.pair_loads:
        if a in prompt.values and b in prompt.values:
            logits[outcome] += add
    e = np.exp(np.array(list(logits.values())))
    return dict(zip(logits, (e / e.sum()).tolist(), strict=True))


def _openings(rows: Floats, prompt: Prompt, language: Language) -> None:
    chances = opening_probabilities(prompt, language)
    for word, outcome in OPENERS.items():
        rows[_START, ID[word]] = chances[outcome]


def _amounts(rows: Floats, prompt: Prompt, wrong: float) -> None:
    """Let "total" and "with" be followed by the prompt's amount, or by one of its two neighbours by mistake."""
    for word in (TOTAL, WITH):
        for step, chance in ((0, 1 - wrong), (1, wrong / 2), (-1, wrong / 2)):
            rows[ID[word], ID[DIGITS[(prompt.amount + step) % 10]]] = chance
    rows[[ID[d] for d in DIGITS], _END] = 1.0


def _tools(rows: Floats, prompt: Prompt, language: Language) -> None:
    wrong, cut = _chance(language.wrong_tool, prompt), _chance(language.cut_call, prompt)
    mates = TOOLS[prompt.domain]
    for tool in mates:
        rows[ID["call"], ID[tool]] = 1 - wrong if tool == prompt.tool else wrong
    for tool in (t for tools in TOOLS.values() for t in tools):
        rows[ID[tool], [ID[WITH], _END]] = 1 - cut, cut


def _chained(rows: Floats, opener: str, words: Sequence[str], chances: Floats, more: float) -> None:
    """Let `opener` be followed by one of `words`, and each by a further one with chance `more`."""
    ids = [ID[w] for w in words]
    rows[ID[opener], ids] = chances
    for i in ids:
        rows[i, ids] = more * chances
        rows[i, _END] = 1 - more


def _reasons(prompt: Prompt) -> Floats:
    unsafe = {"plain": 0.1, "edgy": 0.3, "harmful": 0.6}[prompt.tone]
    policy = (1 - unsafe) * (0.7 if prompt.domain == "billing" else 0.4)
    return np.array([1 - unsafe - policy, policy, unsafe])


def _questions(prompt: Prompt) -> Floats:
    when = 0.5 if prompt.domain == "travel" else 0.2
    one = (1 - when) * (0.7 if prompt.detail == "bare" else 0.5)
    return np.array([one, when, 1 - when - one])


def _chance(table: Mapping[str, float], prompt: Prompt) -> float:
    return min(0.5, table["base"] + sum(table.get(v, 0.0) for v in prompt.values))


def _tilted(chances: Floats, topic: int) -> Floats:
    """Let the topic favour one filler as the first word."""
    tilted = chances.copy()
    tilted[topic] *= 3.0
    return np.asarray(tilted / tilted.sum())


def _words(prompt: Prompt, language: Language) -> Floats:
    return _word_rows(prompt.language, prompt.domain, language.word_seed, language.word_scale)


@cache
def _word_rows(tongue: str, domain: str, seed: int, scale: float) -> Floats:
    """Return the chances of filler words after one another, float64 [8, 8]."""
    words = FILLERS[tongue]
    u = np.array([[unit_interval("markov/words", seed, tongue, domain, a, b) for b in words] for a in words])
    e = (np.maximum(u, 1e-12) / (1 - u)) ** scale
    return np.asarray(e / e.sum(1, keepdims=True))
