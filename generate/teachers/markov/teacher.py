"""The `markov` teacher: the bundled language, whose every probability is known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....catalogs.errors import DistdataError
from ....catalogs.hashing import content_hash, token_uniforms
from ....catalogs.protocol import Draw, Failure, Request, TeacherInfo, TokenSpec
from ..token_records import Form, ProbabilityRule, probability_members, token_draw
from .language import AXES, END, ID, LANGUAGE, OUTCOMES, SIZE, VOCABULARY, Language, decode, prompt_ids, read_prompt
from .law import Law, law
from .verify import judge

CODE_VERSION = 1
"""Raise it when a change of code (not of constants) changes what a request gets."""
TOKENIZER_HASH = content_hash(list(VOCABULARY))


class MarkovTeacher:
    """Answer prompts of the markov language.

    Options:
        probabilities: what is stored of the law at every token: ``none``, ``counts`` (of `n_counts` ids drawn),
            ``head_tail`` (the `head` most probable exactly, `n_counts` drawn from the rest), ``top_k`` (the `head` most
            probable alone: biased) or ``dense``. They are always this teacher's, at temperature 1.
        temperature: at which words are chosen; log-probabilities are those at temperature 1 all the same.
        constants: constants of the law that differ from the bundled ones; they make another teacher.
        usd_per_gpuh: price of an hour of its time.
    """

    def __init__(
        self,
        *,
        probabilities: Form = "none",
        n_counts: int = 16,
        head: int = 8,
        temperature: float = 1.0,
        constants: Mapping[str, Any] | None = None,
        usd_per_gpuh: float = 2.0,
    ) -> None:
        self._rule = ProbabilityRule(form=probabilities, n=n_counts, head=head)
        if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not temperature > 0:
            raise DistdataError(f"markov: temperature is {temperature!r}; it must be a number above 0.")
        self._temperature = float(temperature)
        self._language = Language.from_dict(constants) if constants else LANGUAGE
        self._usd_per_gpuh = usd_per_gpuh

    @property
    def language(self) -> Language:
        """Return the constants that decide what this teacher says."""
        return self._language

    def describe(self) -> TeacherInfo:
        """Say who this is, from the constants alone."""
        decides = {
            "language": self._language.to_dict(),
            "tokenizer": TOKENIZER_HASH,
            "probabilities": self._rule.facts(),
            "temperature": self._temperature,
            "code": CODE_VERSION,
        }
        return TeacherInfo(
            id="markov",
            version="1",
            content_hash=content_hash(decides),
            kind=self._rule.kind,
            usd_per_gpuh=self._usd_per_gpuh,
            reproducible="exact",
            joint_batches=False,
            members=self._rule.specs(SIZE),
            outcomes=OUTCOMES,
        )

    def vocabulary(self) -> TokenSpec:
        """Say how many words there are, which ends a completion, and where one is cut off."""
        return TokenSpec(
            size=SIZE,
            end_ids=(ID[END],),
            max_new_tokens=self._language.max_new_tokens,
            tokenizer_hash=TOKENIZER_HASH,
        )

    def prompts(self, requests: Sequence[Request]) -> list[NDArray[np.int64]]:
        """Return the ids that each request starts from, int64 [12] each.

        Raises ValueError for a request that is none of this language's.
        """
        return [_prompt_of(r) for r in requests]

    def sample(self, requests: Sequence[Request]) -> Iterator[Draw | Failure]:
        """Answer requests one by one; one of another language is a Failure that says what is wrong with it."""
        for request in requests:
            try:
                chain = self.law_of(request)
            except ValueError as e:
                yield Failure(seed_id=request.seed_id, k=request.k, kind="invalid", reason=str(e))
                continue
            tempered = chain if self._temperature == 1.0 else self.law_of(request, self._temperature)
            completion = tempered.choose(token_uniforms(request.rng_seed, chain.max_new_tokens))
            yield from self.record([request], [completion], [chain.log_probs(completion).astype(np.float32)])

    def score(self, requests: Sequence[Request], completions: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        """Return the log-probability of every word of each completion, float32 [T] each, nats."""
        return [self.law_of(r).log_probs(c).astype(np.float32) for r, c in zip(requests, completions, strict=True)]

    def record(
        self,
        requests: Sequence[Request],
        completions: Sequence[NDArray[np.int64]],
        log_probs: Sequence[NDArray[np.float32]],
    ) -> Iterable[Draw | Failure]:
        """Make records of completions, this teacher's or a student's; the stored probabilities are this teacher's."""
        for request, completion, own in zip(requests, completions, log_probs, strict=True):
            prompt = _prompt_of(request)
            verdict = judge(read_prompt(prompt), completion)
            with np.errstate(divide="ignore"):
                laws = np.log(self.law_of(request).at(completion)) if self._rule.form != "none" else np.zeros((0, SIZE))
            yield token_draw(
                request,
                prompt,
                completion,
                own,
                messages=[
                    {"role": "user", "content": decode(prompt[1:-1])},
                    {"role": "assistant", "content": decode(completion[completion != ID[END]])},
                ],
                tokenizer_hash=TOKENIZER_HASH,
                temperature=self._temperature,
                outcome=verdict.outcome,
                checks=verdict.checks(),
                rule=self._rule,
                probabilities=probability_members(laws, self._rule, request.rng_seed),
            )

    def law_of(self, request: Request, temperature: float = 1.0) -> Law:
        """Return the exact law that answers a request.

        Raises ValueError for a request that is none of this language's.
        """
        return law(read_prompt(_prompt_of(request)), self._language, temperature)


def _prompt_of(request: Request) -> NDArray[np.int64]:
    """Return a request's prompt, checked against its cell."""
    given = request.params.get("prompt_ids")
    if not isinstance(given, Sequence) or isinstance(given, str) or not all(type(i) is int for i in given):
        raise ValueError(f"params['prompt_ids'] is {given!r}; it must be a list of the prompt's ids")
    prompt = read_prompt(given)
    for name, wanted in {**{a: request.axes.get(a) for a in AXES}, "scenario": request.scenario}.items():
        if getattr(prompt, name) != wanted:
            raise ValueError(f"the prompt says {name} {getattr(prompt, name)!r}, the request {wanted!r}")
    return prompt_ids(prompt)
