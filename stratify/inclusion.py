"""With what weight a bought draw stands for the fleet.

A cell's seeds enter in random order until its draws are bought. When all seeds have the same K, m of N seeds are a
simple random sample: inclusion probability m/N, and a draw weighs f / (N x (m/N) x K).

When K differs from seed to seed, the walk stops more often on a seed with many draws, and m/N is biased
(a decision point of K = 8 that ends the walk was looked for). The unordered estimator of Murthy (1957, Sankhya 18)
repairs it exactly: of the m seeds, the l ones that could have come last share the place of one. A seed that could
not have come last stands for 1/(m-1) of the cell, one that could for (l-1) / (l (m-1)); with equal K both are 1/m.

Draws that earlier plans bought belong to the same walk: old and new seeds together are the first m in candidate
order. (Until a plan has caught up with seeds imported in between, that holds only roughly.) Byproducts are
different, for somebody else chose their seeds: they are a stratum taken whole, each seed standing for itself, and
the walk stands for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .draws import Credits, Floats, Frame, Ints


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inclusion:
    """Per seed of the corpus (touched by an old or a new draw), in candidate order.

    - `position` int64 [M] into the frame, `k_total` int64 [M]: draws of the seed, old and new.
    - `pi` float64 [M] in (0, 1]: seeds touched / seeds there, of its stratum; conditional on earlier purchases.
    - `share` float64 [M]: how much of its cell the seed stands for; sums to 1 over a cell. It equals 1 / (N pi)
      where all K of the cell are equal; it is 0 for a seed that alone could have ended the walk.
    """

    position: Ints
    k_total: Ints
    pi: Floats
    share: Floats


def inclusion(frame: Frame, credits: Credits, fresh: Ints) -> Inclusion:
    """Compute inclusion probabilities and shares of all seeds that hold draws, old ones and `fresh` [N]."""
    held = credits.per_seed + fresh
    position = np.flatnonzero(held)
    cell = frame.cell[position]
    n_cells = len(frame.start) - 1
    n_frame = frame.n_seeds.astype(np.float64)

    n_touched = np.bincount(cell, minlength=n_cells)
    certain = credits.certain[position]
    n_certain = np.bincount(cell, weights=certain, minlength=n_cells)
    n_walked = np.asarray(n_touched - n_certain, dtype=np.float64)
    n_walkable = n_frame - n_certain

    walked_share = _murthy(frame, cell, position, np.minimum(held, frame.k_seed)[position], ~certain, n_walked)
    alone = (n_walked == 0)[cell]  # no walk: the byproducts are all there is to stand for the cell
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(certain, 1 / n_frame[cell], walked_share * (n_walkable / n_frame)[cell])
        share = np.where(alone, 1 / n_certain[cell], share)
        pi = np.where(certain, 1.0, (n_walked / n_walkable)[cell])
        pi = np.where(alone, (n_certain / n_frame)[cell], pi)
    return Inclusion(position=position, k_total=held[position], pi=pi, share=share)


def _murthy(
    frame: Frame, cell: NDArray[np.int32], position: Ints, n_held: Ints, walked: NDArray[np.bool_], n_walked: Floats
) -> Floats:
    """Return each walked seed's share of what its walk stands for; other entries mean nothing."""
    n_cells = len(n_walked)
    k_seed = frame.k_seed[position]
    offered = np.bincount(cell, weights=k_seed * walked, minlength=n_cells)
    held = np.bincount(cell, weights=n_held * walked, minlength=n_cells)
    could_end = walked & (offered[cell] - k_seed < held[cell])
    n_could_end = np.bincount(cell, weights=could_end, minlength=n_cells)
    m, ends = n_walked[cell], n_could_end[cell]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(could_end, (ends - 1) / (ends * (m - 1)), 1 / (m - 1))
        # one seed only, or draws scattered over several unfinished seeds (no walk looks so): equal shares
        return np.where((m == 1) | (ends == 0), 1 / m, share)
