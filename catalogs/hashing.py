"""Every random-looking decision that must never change: permanent random numbers, splits, draw seeds.

All are BLAKE2b hashes of text, each in a domain of its own, so that one never conditions another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray


def hash64(domain: str, *parts: object) -> int:
    """Hash `parts` in `domain` to an integer in [0, 2**64). Stable over versions and machines."""
    text = "\x1f".join([domain, *map(str, parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def unit_interval(domain: str, *parts: object) -> float:
    """Hash `parts` to a float64 in [0, 1): the top 53 bits, so every value is exact."""
    return (hash64(domain, *parts) >> 11) * 2.0**-53


def unit_intervals(domain: str, salt: str, names: Iterable[str]) -> NDArray[np.float64]:
    """Return ``unit_interval(domain, salt, name)`` of every name, float64 [N]; made for millions of them."""
    prefix = "\x1f".join([domain, salt, ""]).encode()
    digest = hashlib.blake2b
    raw = b"".join([digest(prefix + name.encode(), digest_size=8).digest() for name in names])
    return (np.frombuffer(raw, ">u8") >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw_rng_seed(salt: str, seed_id: str, k: int, stream: str = "draw") -> int:
    """Return the random seed of draw `k` of a seed, in [0, 2**63).

    The model is left out on purpose: teacher and student meet under the same noise.
    """
    return hash64(f"rng/{stream}", salt, seed_id, k) >> 1


def token_uniforms(rng_seed: int, n: int) -> NDArray[np.float64]:
    """Return the `n` uniforms in [0, 1) by which a draw chooses its tokens, in order; longer runs begin alike.

    Token t is the first id whose cumulative probability exceeds uniform t (inverse transform, ids in order), for every
    model: two models with like probabilities then choose like tokens.
    """
    return np.random.Generator(np.random.Philox(rng_seed)).random(n)


def content_hash(value: Any) -> str:
    """Return 16 hex digits over a JSON-able value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def bytes_hash(chunks: Iterable[bytes]) -> str:
    """Return 16 hex digits over a stream of bytes."""
    h = hashlib.blake2b(digest_size=8)
    for chunk in chunks:
        h.update(chunk)
    return h.hexdigest()
