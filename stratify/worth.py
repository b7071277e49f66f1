"""What existing draws are worth to a target, and how many new ones reach it.

A target counts kept samples. With the yield y, the share of draws that verifiers keep, `sure` samples and `unverified`
draws are worth sure + y x unverified, and a target takes ceil((target - sure) / y) - unverified more draws. While
nothing was verified that is the plain credit of one for one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from .draws import Credits
from .frame import Bools, Floats, Frame, Ints, sum_by_cell

PSEUDO_DRAWS = 20
"""How many draws' weight the expected yield keeps against the verdicts."""
HOPELESS_VERDICTS = 20
"""After so many verdicts without one kept sample, nothing more is bought in a cell."""
_ROUNDING = 1e-12
"""Relative slack against rounding by the yield: 57 kept at 0.57 are 100 draws, not 101."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stock:
    """What each cell has and can still get, arrays [H].

    - `sure` int64: samples that count in full: kept ones, at most K per seed, and credits from outside the frame.
    - `unverified` int64: draws without a verdict, with `sure` at most K per seed; those of open divergence cases that
      this plan buys count here too. `offer` int64: draws that the frame's seeds still offer in this round.
    - `yields` float64 in (0, 1]; `measured` bool: verdicts entered it. `hopeless` bool: verifiers keep nothing.
    """

    sure: Ints
    unverified: Ints
    offer: Ints
    yields: Floats
    measured: Bools
    hopeless: Bools

    @property
    def worth(self) -> Floats:
        """Kept samples that what exists leads to expect."""
        return self.expected(np.zeros_like(self.sure))

    def fresh_for(self, target: Ints) -> Ints:
        """Return the draws to buy so that `target` kept samples can be expected; no more than are on offer."""
        whole = np.ceil((target - self.sure) / self.yields * (1 - _ROUNDING)).astype(np.int64)
        fresh: Ints = np.clip(whole - self.unverified, 0, self.offer)
        return fresh

    def expected(self, fresh: Ints) -> Floats:
        """Return the kept samples to expect once `fresh` draws are made."""
        kept: Floats = self.yields * (self.unverified + fresh) + self.sure
        return kept

    def within_reach(self) -> Ints:
        """Return the kept samples to expect once all on offer is bought, rounded up."""
        reach: Ints = np.ceil(self.expected(self.offer) * (1 - _ROUNDING)).astype(np.int64)
        return reach


def cell_yields(cells: pl.DataFrame, expected_yield: float) -> tuple[Floats, Bools, Bools]:
    """Return each cell's yield, where it was measured, and where verifiers keep nothing; [H] each.

    (kept + 20 y0) / (verified + 20) from the optional columns yield_kept and yield_verified, y0 without verdicts.
    """
    n = cells.height
    if not {"yield_kept", "yield_verified"} <= set(cells.columns):
        return np.full(n, expected_yield), np.zeros(n, dtype=np.bool_), np.zeros(n, dtype=np.bool_)
    kept, verified = (cells[name].cast(pl.Int64).fill_null(0).to_numpy() for name in ("yield_kept", "yield_verified"))
    yields = np.where(verified > 0, (kept + PSEUDO_DRAWS * expected_yield) / (verified + PSEUDO_DRAWS), expected_yield)
    return yields, verified > 0, (verified >= HOPELESS_VERDICTS) & (kept == 0)


def take_stock(
    frame: Frame, credits: Credits, *, outside: Ints, cases: Ints, yields: Floats, measured: Bools, hopeless: Bools
) -> Stock:
    """Sum up per cell what exists, from `credits` in the frame, `outside` credits and `cases` about to be bought."""
    held = credits.seeds  # few seeds hold draws: the sums go over those
    cell, worth = frame.cell[held], credits.worth[held]
    kept = np.minimum(credits.n_kept[held], frame.k_seed[held])
    n_cells = len(frame.start) - 1
    n_worth, n_kept = (np.bincount(cell, weights=n, minlength=n_cells).astype(np.int64) for n in (worth, kept))
    return Stock(
        sure=n_kept + outside,
        unverified=n_worth - n_kept + cases,
        offer=np.where(hopeless, 0, sum_by_cell(frame, frame.k_seed) - n_worth),
        yields=yields,
        measured=measured,
        hopeless=hopeless,
    )
