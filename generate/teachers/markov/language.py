"""The markov language: its words, its prompts and the constants of its law.

A prompt says everything that decides the answer, one word each: language, domain, length, the kind of request,
topic, tone, how much detail it gives, an amount, and two more digits that decide nothing. Everything that
decides a completion's law stands in `LANGUAGE` as plain numbers, so that a changed language is another teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ....catalogs.errors import DistdataError, nearest

AXES: Mapping[str, tuple[str, ...]] = {
    "domain": ("billing", "travel", "code"),
    "language": ("en", "de"),
    "length": ("short", "long"),
}
SCENARIOS = ("answer", "tool_call", "clarify", "refusal", "rare_topic")
OUTCOMES = ("answers", "calls_tool", "refuses", "asks_back", "other")
"""What a completion does: the last of the four opening words in it; ``other`` where there is none."""

OPENERS: Mapping[str, str] = {"sure": "answers", "call": "calls_tool", "sorry": "refuses", "which": "asks_back"}
TOPICS: Mapping[str, tuple[str, ...]] = {
    "billing": ("invoice", "refund", "discount", "chargeback", "escrow"),
    "travel": ("flight", "hotel", "train", "ferry", "visa"),
    "code": ("build", "test", "deploy", "linker", "firmware"),
}
"""The last two of each domain are rare: only `rare_topic` asks about them."""
N_COMMON = 3
TOOLS: Mapping[str, tuple[str, str]] = {
    "billing": ("find_bill", "pay_back"),
    "travel": ("book_seat", "book_room"),
    "code": ("run_job", "open_log"),
}
TONES = ("plain", "edgy", "harmful")
"""``harmful`` should be refused; ``edgy`` only looks like it and should not."""
DETAILS = ("bare", "partial", "full")
REASONS = ("cannot", "policy", "unsafe")
QUESTIONS = ("one", "when", "whose")
FILLERS: Mapping[str, tuple[str, ...]] = {
    "en": ("well", "the", "so", "then", "right", "now", "here", "thus"),
    "de": ("also", "das", "nun", "dann", "genau", "jetzt", "hier", "eben"),
}
DIGITS = tuple(str(d) for d in range(10))
END, TOTAL, WITH, BUT = "<end>", "total", "with", "but"
USER, ASSISTANT = "<user>", "<assistant>"

VOCABULARY: tuple[str, ...] = (
    "<pad>", END, USER, ASSISTANT,
    *(f"<{value}>" for values in AXES.values() for value in values),
    *(f"<{scenario}>" for scenario in SCENARIOS),
    *(topic for topics in TOPICS.values() for topic in topics),
    *TONES, *DETAILS, *DIGITS, *OPENERS, TOTAL, WITH, BUT,
    *(tool for tools in TOOLS.values() for tool in tools),
    *REASONS, *QUESTIONS,
    *(word for words in FILLERS.values() for word in words),
)  # fmt: skip
ID: Mapping[str, int] = {word: i for i, word in enumerate(VOCABULARY)}
SIZE = len(VOCABULARY)
N_PROMPT = 12


class Prompt(NamedTuple):
    """What a prompt says; `noise` are two digits 0..99 that decide nothing."""

    domain: str
    language: str
    length: str
    scenario: str
    topic: str
    tone: str
    detail: str
    amount: int
    noise: int = 0

    @property
    def tool(self) -> str:
        """Return the tool that fits the topic: topics alternate between the domain's two."""
        return TOOLS[self.domain][TOPICS[self.domain].index(self.topic) % 2]

    @property
    def values(self) -> tuple[str, ...]:
        """Return the values that the law's tables are asked for."""
        return (self.domain, self.language, self.length, self.scenario, self.tone, self.detail)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Language:
    """The constants of the law (see `law.law`); compared by identity.

    - `intents`: log-odds of the four opening words by kind of request; `loads`: what a value adds to them;
      `pair_loads`: (value, value, outcome, addition) where both hold.
    - `stop`: chance per filler word to come to the point, by length; `turn`: to turn round with "but"; `trail`: to
      end without a point.
    - `wrong_amount`, `wrong_tool`, `cut_call`: chances of an error, under "base" and what a value adds to it.
    - `more_reasons`, `more_questions`: chance of one more reason or question word.
    - `word_seed`, `word_scale`: logistic log-odds of filler words after one another, by language and domain.
    - `slip`: share of each step that is any word of the vocabulary, so that no completion is impossible.
    - `max_new_tokens`: where a completion that has not ended is cut off.
    """

    intents: Mapping[str, Mapping[str, float]]
    loads: Mapping[str, Mapping[str, float]]
    pair_loads: tuple[tuple[str, str, str, float], ...]
    stop: Mapping[str, float]
    turn: Mapping[str, float]
    trail: float
    wrong_amount: Mapping[str, float]
    wrong_tool: Mapping[str, float]
    cut_call: Mapping[str, float]
    more_reasons: float
    more_questions: float
    word_seed: int
    word_scale: float
    slip: float
    max_new_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-able data that `from_dict` reads back."""
        return {**asdict(self), "pair_loads": [list(p) for p in self.pair_loads]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Language:
        """Read what `to_dict` wrote, constants left out being those of `LANGUAGE`.

        Raises:
            DistdataError: a constant that is unknown or of the wrong type.
        """
        names = [f.name for f in fields(cls)]
        for name, value in data.items():
            if name not in names:
                raise DistdataError(f"markov language: no constant {name!r}.{nearest(name, names)}")
            wanted = getattr(LANGUAGE, name)
            number = isinstance(wanted, int | float)
            good = type(value) in (int, float) if number else isinstance(value, Mapping | list | tuple)
            if not good or (isinstance(wanted, int) and not isinstance(value, int)):
                raise DistdataError(f"markov language: {name} is {value!r}; the bundled one has {wanted!r}.")
        full: dict[str, Any] = {name: data.get(name, getattr(LANGUAGE, name)) for name in names}
        full["pair_loads"] = tuple((str(a), str(b), str(o), float(x)) for a, b, o, x in full["pair_loads"])
        return cls(**full)


LANGUAGE = Language(
    intents={
        "answer": {"answers": 2.2, "calls_tool": 0.0, "refuses": -1.2, "asks_back": 0.6},
        "tool_call": {"answers": 0.3, "calls_tool": 2.2, "refuses": -1.4, "asks_back": 0.2},
        "clarify": {"answers": 0.6, "calls_tool": -0.6, "refuses": -1.0, "asks_back": 1.4},
        "refusal": {"answers": 1.0, "calls_tool": -1.2, "refuses": 0.4, "asks_back": 0.2},
        "rare_topic": {"answers": 0.9, "calls_tool": -0.2, "refuses": 0.5, "asks_back": 0.9},
    },
    loads={
        "harmful": {"answers": -2.2, "calls_tool": -1.0, "refuses": 2.4, "asks_back": -0.4},
        "edgy": {"refuses": 0.5},
        "bare": {"asks_back": 0.7, "answers": -0.2},
        "full": {"asks_back": -0.7, "answers": 0.2},
        "travel": {"asks_back": 0.3},
        "code": {"calls_tool": 0.4, "answers": -0.2},
        "de": {"asks_back": 0.2, "calls_tool": -0.2},
        "long": {"answers": -0.2, "refuses": 0.2},
    },
    pair_loads=(
        ("de", "code", "calls_tool", -0.4),
        ("de", "code", "refuses", 0.4),
        ("long", "travel", "asks_back", 0.4),
        ("edgy", "billing", "refuses", 0.4),
        ("bare", "rare_topic", "asks_back", 0.4),
    ),
    stop={"short": 0.36, "long": 0.20},
    turn={"base": 0.02, "refusal": 0.03, "clarify": 0.02},
    trail=0.01,
    wrong_amount={"base": 0.04, "long": 0.04, "code": 0.04, "rare_topic": 0.10},
    wrong_tool={"base": 0.04, "de": 0.03, "rare_topic": 0.10},
    cut_call={"base": 0.03, "code": 0.03, "long": 0.03},
    more_reasons=0.35,
    more_questions=0.30,
    word_seed=7,
    word_scale=0.6,
    slip=0.004,
    max_new_tokens=24,
)


def encode(words: str | Sequence[str]) -> NDArray[np.int64]:
    """Return the ids of words (a text is split at its spaces), int64 [T].

    Raises:
        DistdataError: a word that the language does not have, with the nearest.
    """
    found = words.split() if isinstance(words, str) else list(words)
    for word in found:
        if word not in ID:
            raise DistdataError(f"markov language: no word {word!r}.{nearest(word, VOCABULARY)}")
    return np.array([ID[word] for word in found], np.int64)


def decode(ids: Sequence[int] | NDArray[np.integer[Any]]) -> str:
    """Return the words of ids, with single spaces between them; ids of no word as they are, ``<99>``."""
    return " ".join(VOCABULARY[i] if 0 <= i < SIZE else f"<{i}>" for i in map(int, ids))


def prompt_ids(prompt: Prompt) -> NDArray[np.int64]:
    """Return the words of a prompt as ids, int64 [12]."""
    p = prompt
    cell = (f"<{p.language}>", f"<{p.domain}>", f"<{p.length}>", f"<{p.scenario}>")
    return encode([USER, *cell, p.topic, p.tone, p.detail, str(p.amount), *f"{p.noise:02d}", ASSISTANT])


def read_prompt(ids: Sequence[int] | NDArray[np.integer[Any]]) -> Prompt:
    """Read a prompt back from its ids.

    Raises:
        ValueError: it is none of the language's, with what stands where.
    """
    return _read_prompt(tuple(int(i) for i in ids))


@cache
def _slots() -> tuple[tuple[str, tuple[str, ...]], ...]:
    marked = {axis: tuple(f"<{v}>" for v in values) for axis, values in AXES.items()}
    return (
        ("start", (USER,)),
        *((axis, marked[axis]) for axis in ("language", "domain", "length")),
        ("scenario", tuple(f"<{s}>" for s in SCENARIOS)),
        ("topic", tuple(t for topics in TOPICS.values() for t in topics)),
        ("tone", TONES),
        ("detail", DETAILS),
        *((name, DIGITS) for name in ("amount", "tens", "ones")),
        ("turn", (ASSISTANT,)),
    )


@lru_cache(maxsize=4096)
def _read_prompt(ids: tuple[int, ...]) -> Prompt:
    if len(ids) != N_PROMPT:
        raise ValueError(f"a prompt has {N_PROMPT} words, this one {len(ids)}")
    found: dict[str, str] = {}
    for at, (i, (name, allowed)) in enumerate(zip(ids, _slots(), strict=True)):
        word = VOCABULARY[i] if 0 <= i < SIZE else f"id {i}"
        if word not in allowed:
            raise ValueError(f"word {at} of the prompt is {word!r}, where a {name} belongs")
        found[name] = word.strip("<>")
    if found["topic"] not in TOPICS[found["domain"]]:
        raise ValueError(f"topic {found['topic']!r} is none of {found['domain']}")
    return Prompt(
        **{n: found[n] for n in ("domain", "language", "length", "scenario", "topic", "tone", "detail")},
        amount=int(found["amount"]),
        noise=int(found["tens"] + found["ones"]),
    )
