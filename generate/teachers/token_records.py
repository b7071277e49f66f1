"""Records of language models: a completion, how probable its tokens were, and what was nearly said instead.

Every teacher of a language makes its records here, so that a student's and its teacher's differ by the model alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ...catalogs.errors import DistdataError, nearest
from ...catalogs.hashing import hash64
from ...catalogs.protocol import Draw, Member, MemberSpec, Request

Form = Literal["none", "counts", "head_tail", "top_k", "dense"]
SHIFT = "token t given all before it"
MAX_COUNT = 255
LOG_FLOOR = -1e4
"""What stands for the logarithm of zero: readers of records refuse infinities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbabilityRule:
    """Which of a law's probabilities are stored at every token.

    `form`: ``none``; ``counts``, of `n` ids drawn at temperature 1; ``head_tail``, the `head` most probable ids exactly
    and the counts of `n` drawn from the rest; ``top_k``, the `head` most probable ids alone, which is biased; or
    ``dense``, all of them. A counted id takes 5 bytes, an exact one 8, dense takes 4 for each id of the vocabulary.
    """

    form: Form = "none"
    n: int = 16
    head: int = 8

    def __post_init__(self) -> None:
        forms = get_args(Form)
        if self.form not in forms:
            raise DistdataError(f"probabilities = {self.form!r}: unknown.{nearest(str(self.form), forms)}")
        if isinstance(self.n, bool) or not isinstance(self.n, int) or not 1 <= self.n <= MAX_COUNT:
            raise DistdataError(f"n_counts = {self.n!r}: it must be a whole number from 1 to {MAX_COUNT}.")
        if isinstance(self.head, bool) or not isinstance(self.head, int) or self.head < 1:
            raise DistdataError(f"head = {self.head!r}: it must be a whole number, at least 1.")

    @property
    def kind(self) -> str:
        """Return the record kind: ``text`` without probabilities, else ``logits``."""
        return "text" if self.form == "none" else "logits"

    def facts(self) -> dict[str, Any]:
        """Return what a reader of the record must know, for its meta.json."""
        counted, headed = self.form in ("counts", "head_tail"), self.form in ("head_tail", "top_k")
        return {
            "form": self.form,
            "n": self.n if counted else 0,
            "head": self.head if headed else 0,
            "temperature": 1.0,
            "biased": self.form == "top_k",
        }

    def specs(self, size: int | None) -> dict[str, MemberSpec]:
        """Return the array members of every record, of a vocabulary of `size` ids (None: not known yet)."""
        return {
            "input_ids.npy": MemberSpec(dtype="int64", shape=(None,)),
            "logprob.npy": MemberSpec(dtype="float32", shape=(None,)),
            **self.probability_specs(size),
        }

    def probability_specs(self, size: int | None) -> dict[str, MemberSpec]:
        """Return the array members that hold probabilities."""
        specs = {}
        if self.form in ("counts", "head_tail"):
            specs["lg_ids.npy"] = MemberSpec(dtype="uint32", shape=(None,))
            specs["lg_cnt.npy"] = MemberSpec(dtype="uint8", shape=(None,))
            specs["lg_off.npy"] = MemberSpec(dtype="int64", shape=(None,))
        if self.form in ("head_tail", "top_k"):
            shape = (None, self.head if size is None else min(self.head, size))
            specs["top_ids.npy"] = MemberSpec(dtype="uint32", shape=shape)
            specs["top_lp.npy"] = MemberSpec(dtype="float32", shape=shape)
        if self.form == "dense":
            specs["all_lp.npy"] = MemberSpec(dtype="float32", shape=(None, size))
        return specs


class LawRecorder:
    """Collect the members that store a completion's laws by `rule`, as its tokens come.

    What is drawn depends on `rng_seed` alone, in a stream of its own: never on the uniforms that chose the tokens, nor
    on how many laws are added at once.
    """

    def __init__(self, rule: ProbabilityRule, rng_seed: int) -> None:
        self._rule = rule
        self._rng = np.random.Generator(np.random.Philox(hash64("token-counts", rng_seed)))
        self._parts: dict[str, list[NDArray[Any]]] = {}

    def add(self, log_laws: NDArray[np.floating[Any]]) -> None:
        """Add the laws of the next tokens, [T, V] log-probabilities at temperature 1."""
        rule = self._rule
        if rule.form == "none" or not len(log_laws):
            return
        logs = np.maximum(np.asarray(log_laws, np.float64), LOG_FLOOR)
        if rule.form == "dense":
            self._keep("all_lp.npy", logs.astype(np.float32))
            return
        laws = np.exp(logs)
        if rule.form in ("head_tail", "top_k"):
            ids = _most_probable(logs, min(rule.head, logs.shape[1]))
            self._keep("top_ids.npy", ids.astype(np.uint32))
            self._keep("top_lp.npy", np.take_along_axis(logs, ids, 1).astype(np.float32))
            np.put_along_axis(laws, ids, 0.0, 1)
        if rule.form != "top_k":
            for row, u in zip(laws, self._rng.random((len(laws), rule.n)), strict=True):
                drawn, counts = _drawn(row, u)
                self._keep("lg_ids.npy", drawn)
                self._keep("lg_cnt.npy", counts)

    def members(self, size: int) -> dict[str, Member]:
        """Return the members of all laws added, of a vocabulary of `size` ids."""
        found: dict[str, Member] = {}
        for name, spec in self._rule.probability_specs(size).items():
            if name != "lg_off.npy":
                empty = np.zeros([n or 0 for n in spec.shape], spec.dtype)
                found[name] = np.concatenate([empty, *self._parts.get(name, [])])
        if "lg_ids.npy" in found:
            found["lg_off.npy"] = np.cumsum([0, *(len(p) for p in self._parts.get("lg_ids.npy", []))], dtype=np.int64)
        return found

    def _keep(self, name: str, part: NDArray[Any]) -> None:
        self._parts.setdefault(name, []).append(part)


def probability_members(log_laws: NDArray[np.floating[Any]], rule: ProbabilityRule, rng_seed: int) -> dict[str, Member]:
    """Return the members that store a completion's laws, [T, V] log-probabilities at temperature 1 (`LawRecorder`)."""
    recorder = LawRecorder(rule, rng_seed)
    recorder.add(log_laws)
    return recorder.members(log_laws.shape[1])


def choose_token(law: NDArray[np.float64], u: float) -> int:
    """Return the first id whose cumulative share of `law` [V] exceeds `u`: never one without mass.

    `law` need not sum to 1. Raises ValueError when it has no mass at all.
    """
    cumulative = np.cumsum(law)
    if not cumulative[-1] > 0:
        raise ValueError(f"no id has a probability above 0 (they sum to {cumulative[-1]!r})")
    return int(np.searchsorted(cumulative / cumulative[-1], u, side="right"))


def _most_probable(logs: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """Return the ids of the `n` largest of each row, largest first, int64 [T, n]; equal ones by id."""
    found = np.argpartition(-logs, n - 1, axis=1)[:, :n] if n < logs.shape[1] else np.tile(np.arange(n), (len(logs), 1))
    order = np.lexsort((found, -np.take_along_axis(logs, found, 1)), axis=1)
    return np.take_along_axis(found, order, 1)


def _drawn(mass: NDArray[np.float64], uniforms: NDArray[np.float64]) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    """Draw ids with replacement in proportion to `mass` [V]; none where there is no mass."""
    cumulative = np.cumsum(mass)
    if not cumulative[-1] > 0:
        return np.zeros(0, np.uint32), np.zeros(0, np.uint8)
    drawn = np.sort(np.searchsorted(cumulative / cumulative[-1], uniforms, side="right"))
    starts = np.flatnonzero(np.concatenate([[True], drawn[1:] != drawn[:-1]]))
    return drawn[starts].astype(np.uint32), np.diff(np.append(starts, len(drawn))).astype(np.uint8)


def token_draw(
    request: Request,
    prompt: NDArray[np.int64],
    completion: NDArray[np.int64],
    log_probs: NDArray[np.float32],
    *,
    messages: Sequence[Mapping[str, str]],
    tokenizer_hash: str,
    temperature: float,
    top_p: float = 1.0,
    outcome: str | None,
    checks: Mapping[str, Any],
    rule: ProbabilityRule,
    probabilities: Mapping[str, Member],
) -> Draw:
    """Make the record of one completion (ids after the prompt) with its own log-probabilities, float32 [T], nats.

    `probabilities` are the members that `probability_members` made for it; `checks` what a labeller found.

    Raises ValueError when the parts don't have one log-probability per token.
    """
    if len(completion) != len(log_probs):
        raise ValueError(f"{len(log_probs)} log-probabilities for {len(completion)} tokens")
    meta = {
        "n_prompt": len(prompt),
        "axes": {axis: str(value) for axis, value in request.axes.items()},
        "scenario": request.scenario,
        "outcome": outcome or "",
        "shift": SHIFT,
        "temperature": float(temperature),
        "top_p": float(top_p),
        "tokenizer": tokenizer_hash,
        "probabilities": rule.facts(),
        "checks": dict(checks),
    }
    members: dict[str, Member] = {
        "meta.json": meta,
        "messages.json": [dict(m) for m in messages],
        "input_ids.npy": np.concatenate([prompt, completion]).astype(np.int64),
        "logprob.npy": np.maximum(np.asarray(log_probs, np.float32), np.float32(LOG_FLOOR)),
        **probabilities,
    }
    return Draw(seed_id=request.seed_id, k=request.k, members=members, outcome=outcome)
