"""The gate draws of one slice, student beside teacher, as arrays; and what one row of a gate says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Side = Literal["both", "upper", "lower", "none"]
"""Where the band ends: on both sides, above only, below only; "none" is for information and judges nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a metric is asked about one slice.

    `alpha` is one-sided and already what this look may spend; `power` sizes `needed_draws`. `band` is in the metric's
    own unit (`gate_metrics.METRICS` says which).
    """

    alpha: float
    power: float
    band: float
    side: Side
    min_seeds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One row of a gate before fails are adjusted for their number.

    - `estimate`, `low`, `high`: one-sided bounds of level 1 - alpha on either side; None where nothing can be said.
    - `inside`: the interval lies inside the band. `p_fail`: the chance of an estimate so far outside of it when the
      truth lies at the band; None where nothing can be said, and then the row stays undecided.
    - `needed_draws`: draws a side that would settle it; None where it is settled or where no number of draws would.
    """

    contrast: str
    n_seeds: int
    n_draws: int
    band: float | None
    side: Side
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    inside: bool = False
    p_fail: float | None = None
    reason: str = ""
    needed_draws: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SliceDraws:
    """One slice's paired draws: n rows (one per seed and k), sorted by seed and k.

    `seed` int64 [n] numbers the seeds from 0; `scenario` [m] and `n_of` float64 [m] are each seed's scenario type and
    its draws.
    """

    name: str
    frame: pl.DataFrame
    seed: Ints
    scenario: NDArray[np.str_]
    n_of: Floats
    _cache: dict[str, Floats] = field(default_factory=dict)

    @property
    def n_seeds(self) -> int:
        """Seeds m."""
        return len(self.n_of)

    @property
    def n_draws(self) -> int:
        """Draws a side n."""
        return len(self.seed)

    def has(self, column: str) -> bool:
        """Tell whether there is such a column that isn't null throughout."""
        return column in self.frame.columns and self.frame[column].null_count() < self.frame.height

    def numbers(self, column: str) -> Floats:
        """Return a column as float64 [n], NaN where it is null."""
        if column not in self._cache:
            values = self.frame[column].cast(pl.Float64).to_numpy().astype(np.float64)
            self._cache[column] = values
        return self._cache[column]

    def vectors(self, column: str) -> Floats:
        """Return a column of lists as float64 [n, D], with NaN where a row is null or differs in length."""
        lists = self.frame[column]
        if isinstance(lists.dtype, pl.Array):
            lists = lists.arr.to_list()
        width = int(lists.list.len().mode().max() or 0)  # type: ignore[arg-type]
        fits = (lists.list.len() == width).fill_null(False).to_numpy()
        out = np.full((len(lists), width), np.nan)
        flat = lists.filter(pl.Series(fits)).explode().cast(pl.Float64).to_numpy()
        out[fits] = flat.reshape(int(fits.sum()), width)
        return out

    def mean_by_seed(self, values: Floats) -> Floats:
        """Return each seed's mean over its draws; values [n] or [n, J] give [m] or [m, J]."""
        if values.ndim == 1:
            return np.bincount(self.seed, weights=values, minlength=self.n_seeds) / self.n_of
        start = np.searchsorted(self.seed, np.arange(self.n_seeds))
        sums: Floats = np.add.reduceat(values, start, axis=0) if len(values) else np.zeros((0, values.shape[1]))
        return sums / self.n_of[:, None]

    def where(self, keep: Bools) -> SliceDraws:
        """Return the draws that `keep` bool [n] names; seeds without any are gone."""
        return slice_draws(self.name, self.frame.filter(pl.Series(keep)))


Statistic = Callable[[SliceDraws, Ask], list[Finding]]


def slice_draws(name: str, frame: pl.DataFrame) -> SliceDraws:
    """Number the seeds of one slice's rows (seed_id, k, scenario and metric columns)."""
    frame = frame.sort("seed_id", "k")
    seed_ids, first, seed, counts = np.unique(
        frame["seed_id"].to_numpy().astype(str), return_index=True, return_inverse=True, return_counts=True
    )
    del seed_ids
    scenario = frame["scenario"].fill_null("").to_numpy().astype(str)[first]
    order = seed.reshape(-1).astype(np.int64)
    by_number = np.argsort(order, kind="stable")  # polars and numpy may sort odd ids differently
    if not np.array_equal(by_number, np.arange(len(order))):
        frame, order = frame[by_number.tolist()], order[by_number]
    return SliceDraws(name=name, frame=frame, seed=order, scenario=scenario, n_of=counts.astype(np.float64))
