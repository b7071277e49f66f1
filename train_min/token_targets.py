"""What a language student is trained towards: the teacher's law at every completion token, as a sample stores it.

Position t is the law of completion token t given the prompt and completion[:t]. Whole laws are read as they are; counts
of sampled ids, and exact heads with counts of the rest, become ids with weights whose expectation over the sampling is
the law (see `catalogs.token_probs`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..catalogs.errors import DistdataError, nearest
from ..catalogs.token_probs import COUNTS, DENSE, HEAD, sparse_targets

Source = Literal["dense", "head_tail", "counts", "head_drawn", "topk"]

SOURCES: Mapping[Source, tuple[str, ...]] = {
    "dense": (DENSE,),
    "head_tail": (*COUNTS, *HEAD),
    "counts": COUNTS,
    "head_drawn": HEAD,
    "topk": HEAD,
}
"""The members of each form, the most exact first. ``head_drawn`` adds the token that the teacher drew where it lies
outside the head, with weight 1; ``topk`` does not, is biased, and is only used when it is asked for by name."""

IN_WORDS: Mapping[Source, str] = {
    "dense": "dense probabilities",
    "head_tail": "an exact head and a sampled tail",
    "counts": "sampled counts",
    "head_drawn": "the largest probabilities and the drawn token",
    "topk": "the largest probabilities alone",
}


def find_source(names: Collection[str], wanted: str = "auto") -> Source:
    """Return the form in which the members `names` of a sample hold the teacher's law.

    `wanted` is ``auto`` (the most exact form that is there and unbiased) or the name of one. Raises DistdataError when
    it is not there.
    """
    if wanted == "auto":
        for source, members in SOURCES.items():
            if source != "topk" and set(members) <= set(names):
                return source
        raise DistdataError(
            f"the samples hold no token probabilities (members {COUNTS[0]}, {HEAD[0]} or {DENSE}). Generate with a "
            "teacher that stores them, set `live` to the teacher's folder, or train on the completions alone: "
            "recipe seq_kd."
        )
    found = next((s for s in SOURCES if s == wanted), None)
    if found is None:
        raise DistdataError(
            f"probabilities is {wanted!r}; it can be auto, {', '.join(SOURCES)}.{nearest(wanted, ['auto', *SOURCES])}"
        )
    missing = [name for name in SOURCES[found] if name not in names]
    if missing:
        raise DistdataError(f"probabilities = {wanted!r} reads {', '.join(missing)}, which the samples don't hold.")
    return found


def split_prompt(sample: Mapping[str, Any]) -> tuple[NDArray[np.int64], int]:
    """Return all ids of a sample, int64 [P + T], and P.

    Raises DistdataError for a sample without ids, without a prompt or without a completion.
    """
    if "input_ids.npy" not in sample:
        raise DistdataError(f"{_place(sample)}: no input_ids.npy, so nothing that a language student could read.")
    ids = np.asarray(sample["input_ids.npy"], np.int64)
    n_prompt = sample.get("meta.json", {}).get("n_prompt")
    if not isinstance(n_prompt, int) or not 0 < n_prompt < len(ids):
        raise DistdataError(
            f"{_place(sample)}: n_prompt in its meta.json is {n_prompt!r} and input_ids.npy holds {len(ids)} ids; "
            "at least one of them must be the prompt and one the completion."
        )
    return ids, n_prompt


def temperature_of(sample: Mapping[str, Any], source: Source) -> float:
    """Return the temperature of the law that the sample's members of `source` are samples of.

    Raises DistdataError for the drawn token beside an exact head when it was drawn from another law than the head is
    of: together they are samples of none.
    """
    stored = float(sample.get("meta.json", {}).get("probabilities", {}).get("temperature", 1.0))
    temperature, top_p = choice_of(sample)
    if source == "head_drawn" and (temperature, top_p) != (stored, 1.0):
        raise DistdataError(
            f"the samples hold {IN_WORDS[source]}, the token drawn at temperature {temperature:g} and top_p {top_p:g}, "
            f"the probabilities of temperature {stored:g}: together they are biased. Generate at temperature "
            f"{stored:g} and top_p 1, or with counts."
        )
    return stored


def choice_of(sample: Mapping[str, Any]) -> tuple[float, float]:
    """Return temperature and top_p by which the teacher chose the sample's completion."""
    meta = sample.get("meta.json", {})
    return float(meta.get("temperature", 1.0)), float(meta.get("top_p", 1.0))


def dense_target(sample: Mapping[str, Any], n_tokens: int) -> NDArray[np.float32]:
    """Return the teacher's log-probabilities, float32 [T, V]; raises DistdataError when T is not `n_tokens`."""
    stored: NDArray[np.float32] = np.asarray(sample[DENSE], np.float32)
    _fits(sample, DENSE, len(stored), n_tokens)
    return stored


def sparse_target(
    sample: Mapping[str, Any], source: Source, tokens: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return ids and weights of the law at each of the T completion `tokens`, both [T, E]; a weight of 0 pads.

    The expectation of the weights over the sampling is the law, but for ``topk``. Weights of a position sum to 1, but
    for ``head_drawn`` (1 on average) and ``topk`` (the head's mass).

    Raises DistdataError for members that don't fit each other or the completion.
    """
    try:
        ragged = sparse_targets({name: sample[name] for name in SOURCES[source]})
    except ValueError as e:
        raise DistdataError(f"{_place(sample)}: {e}") from None
    widths = np.diff(ragged.offsets)
    _fits(sample, SOURCES[source][0], len(widths), len(tokens))
    filled = np.arange(widths.max(initial=0)) < widths[:, None]
    ids, weights = np.zeros(filled.shape, np.int64), np.zeros(filled.shape, np.float32)
    ids[filled], weights[filled] = ragged.ids, ragged.weights
    if source == "head_drawn":
        outside = (ids != tokens[:, None]).all(1, keepdims=True).astype(np.float32)
        ids, weights = np.concatenate([ids, tokens[:, None]], 1), np.concatenate([weights, outside], 1)
    return ids, weights


def drawn_target(tokens: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the completion itself as ids and weights, [T, 1]: what a sample that no teacher made is a target for."""
    return tokens[:, None], np.ones((len(tokens), 1), np.float32)


def pad_rows(rows: Sequence[NDArray[Any]], fill: float = 0) -> NDArray[Any]:
    """Stack arrays of equal rank in one, each filled up at the end of every axis to the largest."""
    shape = np.max([row.shape for row in rows], axis=0)
    out = np.full((len(rows), *shape), fill, rows[0].dtype)
    for i, row in enumerate(rows):
        out[i][tuple(slice(n) for n in row.shape)] = row
    return out


def _fits(sample: Mapping[str, Any], name: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise DistdataError(f"{_place(sample)}: {name} is of {found} tokens, its completion has {wanted}.")


def _place(sample: Mapping[str, Any]) -> str:
    return f"sample in row {sample['row']}" if "row" in sample else "sample"
