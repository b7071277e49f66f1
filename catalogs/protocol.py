"""The teacher protocol: what any model offers so that plans can be run on it.

A student under gate is the same thing in another role. The protocol sits in the bottom layer because
both the pipeline that calls teachers and the packages that provide them (a trained student) need it.

A teacher is a class taking its options as keyword arguments::

    class Teacher:
        def __init__(self, **options): ...            # cheap: no weights, no heavy imports
        def describe(self) -> TeacherInfo: ...        # cheap: called by `plan` as well
        def sample(self, requests) -> Iterable[Draw | Failure]: ...   # loads on first use

`sample` gets one micro-batch, whose composition the plan froze, and answers every request once, in any
order. An optional ``load()`` is called before the first micro-batch, so that loading is not counted as the
cost of a draw. Randomness comes from ``request.rng_seed`` and from nowhere else.

A teacher may offer more, so that a student made here can stand in its place: `LatentTeacher` what a student of its
latents needs, `TokenTeacher` what a student of its language needs. The record (sensors, texts, labels) is then made by
the same code for both, and only the model differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Reproducible = Literal["exact", "tolerance", "none"]

Member = NDArray[Any] | Mapping[str, NDArray[Any]] | str | bytes | Mapping[str, Any] | Sequence[Any]
"""What a draw may hold, by the ending of its name: ``.npy`` an array, ``.npz`` a mapping of arrays,
``.json`` JSON-able data, ``.txt`` a string, any other ending bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberSpec:
    """What one array member looks like in every draw.

    `dtype` is a numpy name (``float32``); `shape` holds None where a dimension varies from draw to draw.
    `allow_nan` lets NaN and infinities through; by default they make the draw a failure.
    """

    dtype: str
    shape: tuple[int | None, ...]
    allow_nan: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherInfo:
    """Who the teacher is and how it behaves.

    - `id`, `version`: for people (``crossing``, ``1``).
    - `content_hash`: hex digits over whatever decides the output: weights, sampler, steps, guidance,
      prompt template, library versions where they matter. Another hash is another teacher version.
    - `kind`: the record kind of its samples (``rollout``, ``kd_pair``, ``text``; formats in docs).
    - `usd_per_gpuh`: price of an hour of its time; 0 for a teacher that costs nothing.
    - `reproducible`: ``exact`` (same request, same batch: same bytes on one machine type), ``tolerance``
      or ``none``.
    - `joint_batches`: True when a micro-batch is computed as one (its bits may depend on its company), so
      a lost batch is asked again whole; False when requests are independent and paid one by one.
    - `members`: the array members every draw carries. Declared members are checked on every draw.
    - `outcomes`: the labels that `Draw.outcome` can take; empty when the teacher knows none.
    """

    id: str
    version: str
    content_hash: str
    kind: str
    usd_per_gpuh: float = 0.0
    reproducible: Reproducible = "exact"
    joint_batches: bool = True
    members: Mapping[str, MemberSpec] = field(default_factory=dict)
    outcomes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One draw to make: the seed's own state and the one random seed to use.

    `axes` maps axis to value, `params` is the seed's JSON object (initial state, prompt, control).
    `rng_seed` lies in [0, 2**63). `capture` names extras wanted in the members (``trajectory``).
    """

    seed_id: str
    k: int
    rng_seed: int
    axes: Mapping[str, str]
    scenario: str
    params: Mapping[str, Any]
    capture: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One answer: its members by file ending (``pose.npy``), and what the teacher knows about it.

    `gpu_s` is the measured cost in seconds of this draw alone; None shares the batch's wall time evenly.
    `usd` overrides the price computed from `gpu_s` (an endpoint's bill).
    """

    seed_id: str
    k: int
    members: Mapping[str, Member]
    outcome: str | None = None
    gpu_s: float | None = None
    usd: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One request that got no sample: `kind` is ``error``, ``timeout``, ``refused`` or ``invalid``.

    `usd` is what the failed attempt cost all the same, when the teacher knows it.
    """

    seed_id: str
    k: int
    kind: Literal["error", "timeout", "refused", "invalid"]
    reason: str
    usd: float | None = None


@runtime_checkable
class Teacher(Protocol):
    """Anything with `describe` and `sample` (see the module's text)."""

    def describe(self) -> TeacherInfo:
        """Say who this is, without loading weights."""
        ...

    def sample(self, requests: Sequence[Request]) -> Iterable[Draw | Failure]:
        """Answer every request of one micro-batch once, in any order."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSpec:
    """A vocabulary as a sampler needs it.

    `size` ids 0..size-1; `end_ids` end a completion; `max_new_tokens` is the most a completion may hold;
    `tokenizer_hash` tells one vocabulary from another.
    """

    size: int
    end_ids: tuple[int, ...]
    max_new_tokens: int
    tokenizer_hash: str


@runtime_checkable
class LatentTeacher(Teacher, Protocol):
    """A teacher whose records are decoded from a latent, and which lets another model's latents be decoded alike."""

    def conditions(self, requests: Sequence[Request]) -> NDArray[np.float32]:
        """Return what a network is told of each request, float32 [B, C]: the same numbers as in ``cond.npy``.

        Raises ValueError for a request that is none of this teacher's world.
        """
        ...

    def noise(self, requests: Sequence[Request]) -> NDArray[np.float32]:
        """Return the standard normal noise that each request starts from, float32 [B, *latent], by its `rng_seed`."""
        ...

    def decode(self, requests: Sequence[Request], latents: NDArray[np.float32]) -> Iterable[Draw | Failure]:
        """Turn finished latents, float32 [B, *latent], into draws with record and outcome, as for its own."""
        ...


@runtime_checkable
class TokenTeacher(Teacher, Protocol):
    """A teacher of a language, which lets another model's completions be recorded and labelled as its own."""

    def vocabulary(self) -> TokenSpec:
        """Say how many token ids there are and which of them end a completion."""
        ...

    def prompts(self, requests: Sequence[Request]) -> list[NDArray[np.int64]]:
        """Return the token ids that each request starts from."""
        ...

    def record(
        self, requests: Sequence[Request], completions: Sequence[NDArray[np.int64]],
        log_probs: Sequence[NDArray[np.float32]],
    ) -> Iterable[Draw | Failure]:  # fmt: skip
        """Turn completions (ids after the prompt, end included) and their own log-probabilities into draws."""
        ...


@runtime_checkable
class Scorer(Protocol):
    """A language model that can say how probable given completions are to it."""

    def score(self, requests: Sequence[Request], completions: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        """Return the log-probability (nats, temperature 1) of every token of each completion, float32 [T] each."""
        ...
