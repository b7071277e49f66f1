"""Recipes for a small causal language model: towards the teacher's law at every token, or on its completions alone.

`word_kd` matches the teacher's law at every token of a completion, from what the samples store or from a teacher that
is asked during training (Hinton et al. 2015; Kim & Rush 2016; Agarwal et al. 2023). `seq_kd` maximises the likelihood
of the teacher's completions (Kim & Rush 2016). Samples that no teacher made are learned by likelihood in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..catalogs.errors import DistdataError
from ..catalogs.token_probs import DENSE
from .job import Batch, Facts
from .token_losses import (
    checked_loss,
    cross_entropy,
    dense_loss,
    forward_kl,
    mean_over_tokens,
    refuse_from_samples,
    sparse_cross_entropy,
)
from .token_targets import (
    IN_WORDS,
    SOURCES,
    Source,
    choice_of,
    dense_target,
    drawn_target,
    find_source,
    pad_rows,
    sparse_target,
    split_prompt,
    temperature_of,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NETWORK_SETTINGS: Mapping[str, Any] = {"width": 128, "depth": 2, "heads": 4, "vocabulary": 0}
"""The network's settings of both recipes; `vocabulary` 0 is what the samples declare."""

WORD_KD_SETTINGS: Mapping[str, Any] = {
    "loss": "forward",  # or reverse, jsd
    "beta": 0.5,  # of jsd: the teacher's share of the mixture
    "temperature": 1.0,
    "probabilities": "auto",  # or a form of token_targets.SOURCES
    "live": "",  # folder of a transformers model to ask instead
}
"""What word_kd has beside."""

_ZERO = -700.0
"""A log-probability that stands for zero: exp of it is the smallest float64 there is."""


def build_word_kd(settings: Mapping[str, Any], facts: Facts) -> WordLearner:
    """Make the learner that matches laws; raises DistdataError for what the samples can't train without bias."""
    checked_loss(settings)
    if settings.get("live"):
        live = LiveTeacher(Path(str(settings["live"])))
        described = network_description(settings, facts, live.vocabulary)
        return WordLearner(_chosen_alike(described, facts), settings, live=live)
    source = find_source(facts.sample, str(settings.get("probabilities", "auto")))
    vocabulary = 0
    if source == "dense":
        vocabulary = int(np.asarray(facts.sample[DENSE]).shape[-1])
        _check_zeros(settings, np.asarray(facts.sample[DENSE]))
    else:
        refuse_from_samples(settings, temperature_of(facts.sample, source), IN_WORDS[source])
    return WordLearner(_chosen_alike(network_description(settings, facts, vocabulary), facts), settings, source=source)


def build_seq_kd(settings: Mapping[str, Any], facts: Facts) -> SequenceLearner:
    """Make the learner of completions; raises DistdataError for samples without token ids."""
    split_prompt(facts.sample)
    return SequenceLearner(network_description(settings, facts))


class SequenceLearner:
    """Maximise the likelihood of completions: the cross-entropy per token, prompt and padding left out."""

    def __init__(self, description: Mapping[str, Any]) -> None:
        self._description = dict(description)
        self.network: torch.nn.Module = language_network(description)
        self.members: tuple[str, ...] = ("meta.json", "input_ids.npy")

    def collate(self, samples: list[dict[str, Any]]) -> Batch:
        """Pad samples to `input_ids` int64 [B, L], and `tokens`, `mask`, `positions` of their completions, [B, T]."""
        return _tensors({**padded_completions([split_prompt(sample) for sample in samples]), **_marks(samples)})

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:  # noqa: ARG002
        """Return each sample's mean cross-entropy, nats per token."""
        logits = completion_logits(self.network, batch)
        per_sample = mean_over_tokens(cross_entropy(logits, batch["tokens"]), batch["mask"])
        return per_sample, {"cross_entropy": float(per_sample.detach().mean())}

    def describe(self) -> dict[str, Any]:
        """Return what `language_network` builds the network from."""
        return dict(self._description)


class WordLearner(SequenceLearner):
    """Match the teacher's law at every token of a completion.

    `source` is how the samples hold that law, None with a `live` teacher. Clean samples give the cross-entropy of their
    own tokens. Logged in nats per token: ``cross_entropy`` of the tokens that are there, and ``kl`` of teacher to
    student at temperature 1: exact from whole laws, unbiased from samples (what they give less the drawn tokens' own,
    as E[-ln p(x)] = H(p)), left out where neither can be had.
    """

    def __init__(
        self,
        description: Mapping[str, Any],
        settings: Mapping[str, Any],
        *,
        source: Source | None = None,
        live: LiveTeacher | None = None,
    ) -> None:
        super().__init__(description)
        self._source, self._live, self._settings = source, live, dict(settings)
        self._dense_loss = dense_loss(settings)
        _, _, self._temperature = checked_loss(settings)
        self._tells_kl = source in ("counts", "head_tail", "head_drawn") and self._temperature == 1.0
        own = ("logprob.npy",) if self._tells_kl else ()
        self.members = (*self.members, *own, *(SOURCES[source] if source else ()))

    def collate(self, samples: list[dict[str, Any]]) -> Batch:
        """Pad samples as `SequenceLearner` does, with targets `ids` and `weights` [B, T, E] or `log_p` [B, T, V]."""
        split = [split_prompt(sample) for sample in samples]
        batch = {**padded_completions(split), **_marks(samples)}
        completions = [ids[n_prompt:] for ids, n_prompt in split]
        pairs = list(zip(samples, completions, strict=True))
        if self._source == "dense":
            batch["log_p"] = pad_rows([self._law(sample, tokens) for sample, tokens in pairs])
        elif self._source is not None:
            sparse = [self._weights(sample, tokens) for sample, tokens in pairs]
            batch["ids"], batch["weights"] = (pad_rows(column) for column in zip(*sparse, strict=True))
            if self._tells_kl:
                batch["own_log_p"] = pad_rows([_own_log_probs(sample, tokens) for sample, tokens in pairs])
        return _tensors(batch)

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:  # noqa: ARG002
        """Return each sample's mean divergence from its targets, nats per token."""
        logits, mask, clean = completion_logits(self.network, batch), batch["mask"], batch["clean"]
        of_tokens = cross_entropy(logits, batch["tokens"])
        kl = None
        if "ids" in batch:
            per_token = sparse_cross_entropy(logits, batch["ids"], batch["weights"], self._temperature)
            if "own_log_p" in batch:
                kl = per_token.detach() + batch["own_log_p"]
        else:
            log_p = batch["log_p"] if self._live is None else self._live.log_probs(batch)
            per_token = self._dense_loss(logits, log_p)
            kl = forward_kl(logits.detach(), log_p)
        logged = {"cross_entropy": float(mean_over_tokens(of_tokens.detach(), mask).mean())}
        if kl is not None:
            kl_of_samples = mean_over_tokens(kl, mask)[~clean]
            known = kl_of_samples[kl_of_samples.isfinite()]
            if len(known):
                logged["kl"] = float(known.mean())
        return mean_over_tokens(of_tokens.where(clean.unsqueeze(-1), per_token), mask), logged

    def _law(self, sample: Mapping[str, Any], tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        if sample["clean"]:  # its loss is of its tokens; the law that stands here is never read
            return np.zeros((len(tokens), self._description["vocabulary"]), np.float32)
        law = dense_target(sample, len(tokens))
        _check_zeros(self._settings, law)
        return law

    def _weights(
        self, sample: Mapping[str, Any], tokens: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        if sample["clean"] or self._source is None:
            return drawn_target(tokens)
        return sparse_target(sample, self._source, tokens)


class LiveTeacher:
    """A transformers model that is asked for its laws while a student trains.

    Loaded on first use, in float32, to the device of the first batch. Raises DistdataError for a folder without one.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoConfig

        if not (folder / "config.json").is_file():
            raise DistdataError(f"live = {str(folder)!r} holds no config.json; it must be a folder of save_pretrained.")
        self._folder = folder
        self.vocabulary = int(AutoConfig.from_pretrained(folder, local_files_only=True).vocab_size)
        self._model: Any = None

    def log_probs(self, batch: Batch) -> Tensor:
        """Return its log-probabilities at the batch's completion tokens, [B, T, V], without gradient."""
        import torch
        from transformers import AutoModelForCausalLM

        if self._model is None:
            model: Any = AutoModelForCausalLM.from_pretrained(self._folder, local_files_only=True, dtype=torch.float32)
            self._model = model.eval().requires_grad_(False).to(batch["input_ids"].device)
        with torch.no_grad():
            logits = self._model(input_ids=batch["input_ids"]).logits
        places = batch["positions"].unsqueeze(-1).expand(-1, -1, logits.shape[-1])
        found: Tensor = logits.gather(1, places).log_softmax(-1)
        return found


def network_description(settings: Mapping[str, Any], facts: Facts, vocabulary: int = 0) -> dict[str, Any]:
    """Return what `language_network` needs, from settings and samples; `vocabulary` is the teacher's, if it is known.

    Raises DistdataError for sizes that fit no network, and for a vocabulary that is unknown or too small.
    """
    width, depth, heads = (int(settings.get(name, NETWORK_SETTINGS[name])) for name in ("width", "depth", "heads"))
    if depth < 1 or heads < 1 or width < 1 or width % (2 * heads):
        raise DistdataError(
            f"width = {width}, depth = {depth}, heads = {heads}: each must be at least 1, and the width a multiple of "
            "twice the heads."
        )
    given = int(settings.get("vocabulary") or 0)
    if given and vocabulary and given != vocabulary:
        raise DistdataError(f"vocabulary = {given}, but the teacher's laws are over {vocabulary} ids. Leave it out.")
    n_ids = given or vocabulary or facts.vocabulary
    if not n_ids:
        raise DistdataError(
            f"the samples don't say how many token ids there are (largest met: {facts.max_token}). Set vocabulary."
        )
    if facts.max_token >= n_ids:
        raise DistdataError(f"the samples hold token id {facts.max_token}, a vocabulary of {n_ids} ends before it.")
    return {
        "architecture": "llama", "vocabulary": n_ids, "width": width, "depth": depth, "heads": heads,
        "tokenizer": str(facts.sample.get("meta.json", {}).get("tokenizer", "")), "temperature": 1.0, "top_p": 1.0,
    }  # fmt: skip


def _check_zeros(settings: Mapping[str, Any], log_p: NDArray[np.floating[Any]]) -> None:
    """Raise DistdataError where the loss would be infinite: KL(q || p) at a p of zero."""
    loss, beta, _ = checked_loss(settings)
    if (loss == "reverse" or (loss == "jsd" and beta == 1.0)) and (log_p < _ZERO).any():
        raise DistdataError(
            f"loss = {loss!r}{' with beta 1' if loss == 'jsd' else ''} is infinite where the teacher's probability is "
            "zero, as it is in the samples. Use loss = 'jsd' with a beta below 1, or 'forward'."
        )


def _chosen_alike(description: Mapping[str, Any], facts: Facts) -> dict[str, Any]:
    """Let a student of the teacher's law choose its tokens by it as the teacher does.

    A student of completions learns the law of the choice itself, and chooses at temperature 1.
    """
    temperature, top_p = choice_of(facts.sample)
    return {**description, "temperature": temperature, "top_p": top_p}


def language_network(description: Mapping[str, Any]) -> torch.nn.Module:
    """Build a `LlamaForCausalLM` from `network_description`, weights from torch's global random state.

    Llama: Touvron et al. 2023, arXiv:2302.13971. Embeddings are not tied; positions are rotary, so any length will do.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    width = description["width"]
    config = LlamaConfig(
        vocab_size=description["vocabulary"],
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=description["depth"],
        num_attention_heads=description["heads"],
        max_position_embeddings=2**15,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


def completion_logits(network: Any, batch: Batch) -> Tensor:
    """Return the logits that say each completion token, [B, T, V]: those of the position before it.

    Samples are padded at their end, where a causal network's earlier positions don't look, so no attention mask is
    needed; the output layer runs on completions alone.
    """
    hidden = network.model(input_ids=batch["input_ids"], use_cache=False).last_hidden_state
    places = batch["positions"].unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
    logits: Tensor = network.lm_head(hidden.gather(1, places))
    return logits


def padded_completions(split: Sequence[tuple[NDArray[np.int64], int]]) -> dict[str, NDArray[Any]]:
    """Pad pairs of (all ids [P + T], P) to `input_ids` [B, L], and `tokens`, `mask`, `positions` [B, T].

    `positions` are the places in `input_ids` before the completion's tokens, whose logits say these.
    """
    completions = [ids[n_prompt:] for ids, n_prompt in split]
    return {
        "input_ids": pad_rows([ids for ids, _ in split]),
        "tokens": pad_rows(completions),
        "mask": pad_rows([np.ones(len(c), np.bool_) for c in completions]),
        "positions": pad_rows([np.arange(n_prompt - 1, len(ids) - 1) for ids, n_prompt in split]),
    }


def _marks(samples: Sequence[Mapping[str, Any]]) -> dict[str, NDArray[Any]]:
    return {
        "weight": np.array([s["weight"] for s in samples], np.float32),
        "clean": np.array([s["clean"] for s in samples], np.bool_),
    }


def _own_log_probs(sample: Mapping[str, Any], tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the tokens' log-probabilities to the teacher that drew them from its own law, NaN where none did."""
    stored = np.asarray(sample.get("logprob.npy", ()), np.float32)
    if sample["clean"] or len(stored) != len(tokens) or choice_of(sample) != (1.0, 1.0):
        return np.full(len(tokens), np.nan, np.float32)
    return stored


def _tensors(arrays: Mapping[str, NDArray[Any]]) -> Batch:
    import torch

    return {name: torch.from_numpy(array) for name, array in arrays.items()}
