"""A teacher's stored token probabilities, as weights whose expectation is its law.

Stored per position t of a completion (the law of token t given all before it), by the members that are there:

- ``lg_ids``, ``lg_cnt``, ``lg_off``: ids drawn N times with replacement. E[count / N] = p (sparse logit sampling,
  Anshumann et al. 2025, arXiv:2503.16870).
- these and ``top_ids``, ``top_lp``: the most probable ids exactly; the counts are then of the rest, renormalised, and
  each weighs the rest's mass over N. Unbiased as well, with less variance.
- ``all_lp``: every id's log-probability.
- ``top_ids`` and ``top_lp`` alone: biased, the rest is lost (`is_biased`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

COUNTS = ("lg_ids.npy", "lg_cnt.npy", "lg_off.npy")
HEAD = ("top_ids.npy", "top_lp.npy")
DENSE = "all_lp.npy"
PROBABILITY_MEMBERS = (*COUNTS, *HEAD, DENSE)
"""Every member that may hold probabilities; which ones a record has says how it was made."""


class SparseTargets(NamedTuple):
    """Weights over ids by position: those of position t are `ids` and `weights` from offsets[t] to offsets[t + 1].

    `ids` int64 [E]; `weights` float32 [E], 0 or above, of sum 1 per position up to float32 (less where the record is
    biased); `offsets` int64 [T + 1].
    """

    ids: NDArray[np.int64]
    weights: NDArray[np.float32]
    offsets: NDArray[np.int64]


def is_biased(members: Mapping[str, Any]) -> bool:
    """Say whether the expectation of these members' weights is not the teacher's law (the top ids alone)."""
    return HEAD[0] in members and COUNTS[2] not in members and DENSE not in members


def sparse_targets(members: Mapping[str, Any]) -> SparseTargets:
    """Turn the decoded members of one record into weights over ids (see the module's text).

    Raises ValueError for a record without probabilities, and for members that contradict each other.
    """
    if DENSE in members:
        return _dense(np.asarray(members[DENSE]))
    head = _head(members) if HEAD[0] in members else None
    if COUNTS[2] not in members:
        if head is None:
            raise ValueError(
                f"the record has no token probabilities; it would be one of {', '.join(PROBABILITY_MEMBERS)}"
            )
        return head
    counts, totals = _counts(members)
    if head is None:
        if not (totals > 0).all():
            raise ValueError(f"position {int(np.argmin(totals))} has no count, so it says nothing about its token")
        return counts
    return _joined(head, counts, totals)


def _dense(log_probs: NDArray[Any]) -> SparseTargets:
    n, size = log_probs.shape
    weights = np.exp(log_probs.astype(np.float64)).astype(np.float32)
    return SparseTargets(np.tile(np.arange(size), n), weights.reshape(-1), np.arange(n + 1, dtype=np.int64) * size)


def _head(members: Mapping[str, Any]) -> SparseTargets:
    ids, log_probs = np.asarray(members[HEAD[0]]), np.asarray(members[HEAD[1]])
    if ids.shape != log_probs.shape or ids.ndim != 2:
        raise ValueError(f"top_ids is {ids.shape} and top_lp {log_probs.shape}; both are [tokens, head]")
    n, h = ids.shape
    weights = np.exp(log_probs.astype(np.float64)).astype(np.float32)
    return SparseTargets(ids.reshape(-1).astype(np.int64), weights.reshape(-1), np.arange(n + 1, dtype=np.int64) * h)


def _counts(members: Mapping[str, Any]) -> tuple[SparseTargets, NDArray[np.int64]]:
    """Return count / N by position, and each position's N, int64 [T]."""
    ids, counts, offsets = (np.asarray(members[name]) for name in COUNTS)
    offsets = offsets.astype(np.int64)
    if len(ids) != len(counts) or offsets[0] != 0 or offsets[-1] != len(ids) or (np.diff(offsets) < 0).any():
        raise ValueError(f"lg_off runs from {offsets[0]} to {offsets[-1]} over {len(ids)} ids and {len(counts)} counts")
    sums = np.concatenate([[0], np.cumsum(counts.astype(np.int64))])
    totals = sums[offsets[1:]] - sums[offsets[:-1]]
    per_entry = np.repeat(totals, np.diff(offsets))
    weights = (counts.astype(np.float32) / per_entry.astype(np.float32)).astype(np.float32)
    return SparseTargets(ids.astype(np.int64), weights, offsets), totals


def _joined(head: SparseTargets, tail: SparseTargets, totals: NDArray[np.int64]) -> SparseTargets:
    if len(head.offsets) != len(tail.offsets):
        raise ValueError(f"the head has {len(head.offsets) - 1} positions, the counts {len(tail.offsets) - 1}")
    n = len(totals)
    mass = np.add.reduceat(head.weights.astype(np.float64), head.offsets[:-1]) if n else np.zeros(0)
    rest = np.where(totals > 0, np.maximum(0.0, 1.0 - mass), 0.0).astype(np.float32)
    of_tail = np.repeat(np.arange(n), np.diff(tail.offsets))
    position = np.concatenate([np.repeat(np.arange(n), np.diff(head.offsets)), of_tail])
    order = np.argsort(position, kind="stable")
    return SparseTargets(
        np.concatenate([head.ids, tail.ids])[order],
        np.concatenate([head.weights, tail.weights * rest[of_tail]])[order],
        head.offsets + tail.offsets,
    )
