"""A language student in the teacher's place: it chooses the tokens, the teacher's own code makes the records."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..catalogs.errors import DistdataError
from ..catalogs.hashing import token_uniforms
from ..catalogs.kv_cache import cache_name
from ..catalogs.protocol import Draw, Failure, Request, Teacher, TeacherInfo, TokenSpec, TokenTeacher
from .checkpoint import load_weights, student_weights
from .language_learner import completion_logits, language_network, padded_completions
from .quantise import INT8, dequantised
from .served import served_header, served_info

_SCORED_AT_ONCE = 64


class LanguageStudent:
    """Complete prompts with a student of family ``causal_lm``.

    Prompts, records and labels are `decoder`'s. Tokens are chosen by the uniforms of `hashing.token_uniforms`, as the
    teacher's are: what differs between two records comes from the models. A student of the teacher's law (word_kd)
    chooses at the teacher's temperature and top_p, one of its completions (seq_kd) from what it learned as it is.

    Options:
        path: the student's folder, with ``student.json`` and ``weights.safetensors``; or its int8 copy, which is served
            dequantised.
        decoder: its teacher, a `TokenTeacher`.
        usd_per_gpuh: price of an hour of its time.
        device: cpu or cuda; only the CPU promises equal bytes.

    Raises DistdataError for a decoder that is no teacher of tokens.
    """

    def __init__(self, *, path: str, decoder: Teacher, usd_per_gpuh: float = 2.0, device: str = "cpu") -> None:
        if not isinstance(decoder, TokenTeacher):
            raise DistdataError(
                f"student {path}: a language student needs a teacher with vocabulary, prompts and record; "
                f"{type(decoder).__name__} has not all of them."
            )
        self._folder, self._decoder = Path(path).expanduser(), decoder
        self._usd_per_gpuh, self._device = float(usd_per_gpuh), device
        self._network: Any = None

    @functools.cached_property
    def header(self) -> Mapping[str, Any]:
        """Return ``student.json``; raises DistdataError where no whole language student is."""
        return served_header(self._folder, ("causal_lm",), "language")

    def describe(self) -> TeacherInfo:
        """Say who this is: records as the teacher's, the artefact as the hash. Reads the files once, loads nothing."""
        return served_info(self.header, self._decoder.describe(), usd_per_gpuh=self._usd_per_gpuh, device=self._device)

    def load(self) -> None:
        """Load the network on first use; raises DistdataError when its vocabulary is not the teacher's."""
        if self._network is not None:
            return
        description, spec = self.header["network"], self._decoder.vocabulary()
        if description["vocabulary"] != spec.size:
            raise DistdataError(
                f"{self._folder}: the student knows {description['vocabulary']} token ids, its teacher {spec.size}. It "
                f"can only stand in for the teacher it was trained on; else train again, with vocabulary = {spec.size}."
            )
        if description["tokenizer"] not in ("", spec.tokenizer_hash):
            raise DistdataError(
                f"{self._folder}: the student was trained on tokenizer {description['tokenizer']}, its teacher has "
                f"{spec.tokenizer_hash}: the same ids mean other words. Name the teacher that it was trained on."
            )
        network: Any = language_network(description)
        tensors = student_weights(self._folder)
        if self.header["precision"] == INT8:
            tensors = dequantised(tensors)
        load_weights(network, tensors, self._folder)
        self._network = network.eval().requires_grad_(False).to(self._device)

    def sample(self, requests: Sequence[Request]) -> Iterator[Draw | Failure]:
        """Answer one micro-batch together; a request that the teacher can't prompt is a Failure that says why."""
        self.load()
        good: list[tuple[Request, NDArray[np.int64]]] = []
        for request in requests:
            try:
                good.append((request, self._decoder.prompts([request])[0]))
            except ValueError as e:
                yield Failure(seed_id=request.seed_id, k=request.k, kind="invalid", reason=str(e))
        if good:
            asked = [request for request, _ in good]
            seeds = [request.rng_seed for request in asked]
            spec, how = self._decoder.vocabulary(), self.header["network"]
            completions, log_probs = complete(
                self._network, [prompt for _, prompt in good], seeds, spec, how["temperature"], how["top_p"]
            )
            yield from self._decoder.record(asked, completions, log_probs)

    def score(self, requests: Sequence[Request], completions: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        """Return the log-probability (nats) of every token of each completion, float32 [T] each."""
        self.load()
        prompts = self._decoder.prompts(requests)
        found: list[NDArray[np.float32]] = []
        for at in range(0, len(prompts), _SCORED_AT_ONCE):
            part = slice(at, at + _SCORED_AT_ONCE)
            found += token_log_probs(self._network, prompts[part], completions[part])
        return found


def complete(
    network: Any,
    prompts: Sequence[NDArray[np.int64]],
    rng_seeds: Sequence[int],
    spec: TokenSpec,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.float32]]]:
    """Complete prompts together, each by its own uniforms; return completions (end included) and log-probabilities.

    Token t is the first id whose cumulative probability exceeds uniform t, in the law p^(1/temperature) cut to its
    nucleus of mass `top_p`; log-probabilities are those of p. Prompts are padded at their beginning, so
    that all write at the same place; keys and values of earlier positions are kept (one position per step is computed).
    """
    import torch
    from transformers import DynamicCache

    device = next(network.parameters()).device
    n = np.array([len(prompt) for prompt in prompts])
    if not n.all():
        raise ValueError("a prompt has no token; a completion must begin after one")
    ids = np.stack([np.pad(prompt, (n.max() - len(prompt), 0)) for prompt in prompts])
    places = np.arange(n.max()) - (n.max() - n)[:, None]  # negative where padded
    uniforms = np.stack([token_uniforms(seed, spec.max_new_tokens) for seed in rng_seeds])
    chosen: list[NDArray[np.int64]] = []
    chances: list[NDArray[np.float64]] = []
    alive = np.ones(len(prompts), np.bool_)
    kept = {cache_name(network.model): DynamicCache(config=network.config)}
    seen = torch.from_numpy((places >= 0).astype(np.int64)).to(device)
    with torch.inference_mode():
        for t in range(spec.max_new_tokens):
            hidden = network.model(
                input_ids=torch.from_numpy(ids).to(device),
                attention_mask=seen,
                position_ids=torch.from_numpy(np.maximum(places, 0)).to(device),
                use_cache=True,
                **kept,
            ).last_hidden_state
            log_p = network.lm_head(hidden[:, -1]).double().log_softmax(-1).cpu().numpy()
            token = _inverse_transform(_choice(log_p, temperature, top_p), uniforms[:, t])
            chosen.append(token)
            chances.append(np.take_along_axis(log_p, token[:, None], 1)[:, 0])
            alive &= ~np.isin(token, spec.end_ids)
            if not alive.any():
                break
            ids, places = token[:, None], places[:, -1:] + 1
            seen = torch.cat([seen, seen.new_ones(len(prompts), 1)], 1)
    return _cut(np.stack(chosen, 1), np.stack(chances, 1).astype(np.float32), spec)


def token_log_probs(
    network: Any, prompts: Sequence[NDArray[np.int64]], completions: Sequence[NDArray[np.int64]]
) -> list[NDArray[np.float32]]:
    """Return the log-probability (nats) of every token of each completion after its prompt, float32 [T] each."""
    import torch

    device = next(network.parameters()).device
    split = [(np.concatenate([p, c]), len(p)) for p, c in zip(prompts, completions, strict=True)]
    batch = {name: torch.from_numpy(array).to(device) for name, array in padded_completions(split).items()}
    with torch.inference_mode():
        log_p = completion_logits(network, batch).double().log_softmax(-1)
        own = log_p.gather(-1, batch["tokens"].unsqueeze(-1)).squeeze(-1).cpu().numpy().astype(np.float32)
    return [row[: len(c)] for row, c in zip(own, completions, strict=True)]


def _choice(log_p: NDArray[np.float64], temperature: float, top_p: float) -> NDArray[np.float64]:
    """Return the laws that tokens are chosen by, [B, V], not normalised.

    The nucleus of mass `top_p` (Holtzman et al. 2020, arXiv:1904.09751) are the most probable ids, equal ones by id,
    up to and with the one that reaches that mass.
    """
    law = np.exp((log_p - log_p.max(1, keepdims=True)) / temperature)
    if top_p < 1.0:
        order = np.argsort(-law, axis=1, kind="stable")
        ordered = np.take_along_axis(law, order, 1)
        ordered[np.cumsum(ordered, axis=1) - ordered >= top_p * ordered.sum(1, keepdims=True)] = 0.0
        np.put_along_axis(law, order, ordered, 1)
    found: NDArray[np.float64] = law
    return found


def _inverse_transform(law: NDArray[np.float64], uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the first id of each row whose cumulative share exceeds the row's uniform, int64 [B]."""
    cumulative = np.cumsum(law, axis=1)
    cumulative /= cumulative[:, -1:]  # the last is exactly 1, above any uniform
    first: NDArray[np.int64] = (cumulative > uniforms[:, None]).argmax(1).astype(np.int64)
    return first


def _cut(
    ids: NDArray[np.int64], log_probs: NDArray[np.float32], spec: TokenSpec
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.float32]]]:
    """Cut each row after its first end, [B, T] -> lists of [T_i]."""
    ends = np.isin(ids, spec.end_ids)
    lengths = np.where(ends.any(1), ends.argmax(1) + 1, ids.shape[1])
    return (
        [row[:n] for row, n in zip(ids, lengths, strict=True)],
        [row[:n] for row, n in zip(log_probs, lengths, strict=True)],
    )
