"""Find out what the samples of a training are, in one pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..catalogs.errors import DistdataError
from ..catalogs.storage import Storage
from .job import Facts, Recipe, clean_rows
from .loader import StoredSamples

_CHUNK = 1024
_ARRAYS = ("latent.npy", "cond.npy")
_TOKENS = ("input_ids.npy", "lg_ids.npy")
_NONE: NDArray[np.float64] = np.zeros(0)


class Moments:
    """Mean and variance per dimension of a stream of arrays, float64, merged chunk by chunk (Chan et al. 1983)."""

    def __init__(self) -> None:
        self.n = 0
        self.mean: NDArray[np.float64] = _NONE
        self._m2: NDArray[np.float64] = _NONE

    def add(self, chunk: NDArray[np.float64]) -> None:
        """Take in the rows of `chunk`, [n, ...]."""
        n, mean = len(chunk), chunk.mean(0)
        m2 = ((chunk - mean) ** 2).sum(0)
        if self.n == 0:
            self.n, self.mean, self._m2 = n, mean, m2
            return
        total, shift = self.n + n, mean - self.mean
        self._m2 = self._m2 + m2 + shift**2 * (self.n * n / total)
        self.mean = self.mean + shift * (n / total)
        self.n = total

    @property
    def std(self) -> NDArray[np.float64]:
        """Return the standard deviation of what was taken in (divided by n), [...]."""
        return np.sqrt(self._m2 / max(self.n, 1))


def find_facts(storage: Storage, frame: pl.DataFrame, recipe: Recipe, header: Mapping[str, Any]) -> Facts:
    """Return the facts of a frame's samples: of the teacher's draws, or of the clean samples where there are no others.

    Weights play no part. Raises DistdataError for an empty frame, and for a sample whose array has another shape than
    the first's, or NaN or infinite values.
    """
    if not frame.height:
        raise DistdataError("there is no sample to train from. Generate some, or choose another snapshot.")
    clean = clean_rows(frame)
    chosen = frame.filter(~clean) if not clean.all() else frame
    sample = StoredSamples(storage, chosen, ()).whole(0)
    arrays = [m for m in _ARRAYS if m in recipe.members and m in sample]
    tokens = [m for m in _TOKENS if m in recipe.members and m in sample]
    moments, max_token, longest = _pass(
        StoredSamples(storage, chosen, (*arrays, *tokens), cache_bytes=0), arrays, tokens
    )
    latent, cond = moments.get("latent.npy", Moments()), moments.get("cond.npy", Moments())
    teacher = dict(header.get("teacher") or {})
    return Facts(
        n_samples=chosen.height,
        kind=str(chosen["kind"][0]),
        latent=latent.mean.shape if "latent.npy" in arrays else (),
        mean=latent.mean,
        std=latent.std,
        n_conditions=cond.mean.size,
        cond_mean=cond.mean,
        cond_std=cond.std,
        vocabulary=_vocabulary(sample, teacher),
        max_token=max_token,
        max_tokens=longest,
        sample=sample,
        teacher=teacher,
    )


def _pass(samples: StoredSamples, arrays: list[str], tokens: list[str]) -> tuple[dict[str, Moments], int, int]:
    """Return the moments of `arrays` by member, the largest id in `tokens`, and the longest ``input_ids.npy``."""
    moments = {member: Moments() for member in arrays}
    max_token, longest = -1, 0
    if not arrays and not tokens:
        return moments, max_token, longest
    for start in range(0, len(samples), _CHUNK):
        chunk = [samples[row] for row in range(start, min(start + _CHUNK, len(samples)))]
        for member in arrays:
            moments[member].add(_stack(samples, start, member, [s[member] for s in chunk], moments[member]))
        for member in tokens:
            max_token = max(max_token, *(int(s[member].max()) for s in chunk if s[member].size), -1)
        if "input_ids.npy" in tokens:
            longest = max(longest, *(s["input_ids.npy"].size for s in chunk))
    return moments, max_token, longest


def _stack(
    samples: StoredSamples, start: int, member: str, chunk: list[NDArray[Any]], so_far: Moments
) -> NDArray[np.float64]:
    shape = so_far.mean.shape if so_far.n else chunk[0].shape
    for i, array in enumerate(chunk):
        if array.shape != shape or not np.isfinite(array).all():
            what = (
                f"shape {array.shape}, the samples before have {shape}" if array.shape != shape else "NaN or infinity"
            )
            raise DistdataError(
                f"sample {samples.frame['sample_id'][start + i]}: {member} has {what}. Leave it out "
                "(`distdata catalog ingest rejects`), or train from a snapshot of one kind of sample."
            )
    return np.stack(chunk).astype(np.float64)


def _vocabulary(sample: Mapping[str, Any], teacher: Mapping[str, Any]) -> int:
    """Return the declared number of token ids: the sample's ``meta.json`` before the teacher; 0 without."""
    meta = sample.get("meta.json")
    for declared in (meta if isinstance(meta, Mapping) else {}, teacher):
        n = declared.get("vocabulary")
        if isinstance(n, int) and n > 0:
            return n
    return 0
