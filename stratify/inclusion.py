"""With what weight a bought draw stands for the fleet.

A cell's seeds enter in random order until its draws are bought: the cell's walk. When all seeds have the same K, m of
N seeds are a simple random sample: inclusion probability m/N, and a draw weighs f / (N x (m/N) x K).

When K differs from seed to seed, the walk stops more often on a seed with many draws, and m/N is biased
(a decision point of K = 8 that ends the walk was looked for). The unordered estimator of Murthy (1957, Sankhya 18)
repairs it exactly: of the m seeds, the l ones that could have come last share the place of one. A seed that could
not have come last stands for 1/(m-1) of the cell, one that could for (l-1) / (l (m-1)); with equal K both are 1/m.

With a size measure x the order is by prn / x, priority sampling (Duffield, Lund and Thorup 2007, J. ACM 54). A seed is
in the walk exactly when its rank lies below t_i, the rank of the other seed at which the others alone complete the
walk. t_i depends on the others only, so given them pi_i = min(1, x_i t_i) is exact, whatever the K's are, and 1 / pi_i
is unbiased; with K = 1 it is the threshold of Duffield, Lund and Thorup.

Draws that earlier plans bought belong to the same walk: old and new seeds together are the first in candidate order,
whoever paid for which part. (Until a plan has caught up with seeds imported in between, that holds only roughly.)
Byproducts are different, for somebody else chose their seeds: they are a stratum taken whole, each seed standing for
itself, and the walk stands for the rest. Draws bought after looking, beyond the walk, count nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..catalogs.macros import ALL_COUNTED
from .draws import Credits, Taken
from .frame import Bools, Floats, Frame, Ints, running_total, slots, sum_by_cell

_KEY = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inclusion:
    """Per seed of the corpus (touched by an old or a new draw), in candidate order; all [M].

    - `position` int64 into the frame; `k_total` int64: draws of the seed, old and new, rejected ones included.
    - `k_counted` int64: draws with a lower k carry the seed's share, others weigh nothing; `ALL_COUNTED` for a seed
      that others chose, 0 beyond the walk. `n_counted` int64: how many of its draws do that are not rejected.
    - `pi` float64 in [0, 1]: seeds touched / seeds there, of its stratum; min(1, size x threshold) where sizes differ;
      1 for a seed that others chose, 0 beyond the walk. Conditional on earlier purchases.
    - `share` float64: how much of its cell the seed stands for. It sums to 1 over a cell of equal sizes, and to 1 in
      expectation otherwise. It equals 1 / (N pi) where all K of the cell are equal or sizes differ; it is 0 for a seed
      that alone could have ended the walk, and for those that others chose in a cell without a walk (unless they chose
      all its seeds).
    """

    position: Ints
    k_total: Ints
    k_counted: Ints
    n_counted: Ints
    pi: Floats
    share: Floats


def inclusion(frame: Frame, credits: Credits, taken: Taken, *, walk: Ints, adaptive: bool) -> Inclusion:
    """Compute inclusion probabilities and shares of all seeds that hold draws, old ones and `taken` ones.

    `walk` [H] is how many draws of a cell the plan reaches, those that exist included (worth + fresh, at the target):
    a number that must not depend on outcomes. The walk is the beginning of the candidate order that offers so many,
    without the seeds that others chose; it is never shorter than what earlier plans walked (the draws flagged so), so
    0 extends nothing and still counts what fills holes inside it. An `adaptive` plan extends no walk that was begun
    and counts none of its draws there; where nothing was drawn yet its first walk is as good as any.
    """
    position = np.flatnonzero((credits.per_seed > 0) | (taken.fresh > 0))
    cell = frame.cell[position]
    k_seed: Ints = frame.k_seed[position].astype(np.int64)
    certain = credits.certain[position] & (k_seed > 0)
    offers = frame.k_seed
    if certain.any():
        offers = np.where(credits.certain, 0, offers)
    total = running_total(offers)

    slot = slots(position, credits.position)  # of each old draw, among the touched seeds
    flagged = credits.walk & (~certain & (k_seed > 0))[slot]
    length, begun = _walk_length(frame, credits, taken, total, flagged=flagged, walk=walk, adaptive=adaptive)
    before = total[position] - total[frame.start[:-1]][cell]
    member = ~certain & (k_seed > 0) & (before < length[cell])
    reach = np.where(member, np.minimum(k_seed, length[cell] - before), 0)
    frozen = begun[cell] if adaptive else np.zeros(len(cell), dtype=np.bool_)
    k_counted = _counted_below(credits, taken, position, slot, flagged=flagged, reach=reach, frozen=frozen)
    k_counted = np.where(certain, ALL_COUNTED, np.where(member, k_counted, 0))

    n_frame = np.maximum(frame.n_seeds if frame.k_seed.all() else sum_by_cell(frame, frame.k_seed > 0), 1)
    n_certain = np.bincount(cell, weights=certain, minlength=len(length))
    n_walkable = n_frame - n_certain
    n_walked = np.bincount(cell, weights=member, minlength=len(length))
    with np.errstate(divide="ignore", invalid="ignore"):
        pi = (n_walked / n_walkable)[cell]
        share = _murthy(frame, total, cell, k_seed, member, length) * (n_walkable / n_frame)[cell]
        if frame.size is not None:
            sized = _sizes_differ(frame, offers)[cell]
            pi = np.where(sized, _priority(frame, total, position, length), pi)
            share = np.where(sized, 1 / (n_frame[cell] * pi), share)
        # without a walk nobody stands for the seeds that others did not choose, so the cell is not covered
        alone = certain & ((n_walked == 0) & (n_certain < n_frame))[cell]
        pi = np.where(certain, 1.0, np.where(member, pi, 0.0))
        share = np.where(certain, 1 / n_frame[cell], np.where(member, share, 0.0))
        share = np.where(alone, 0.0, share)
    return Inclusion(
        position=position,
        k_total=(credits.per_seed[position] + taken.fresh[position]),
        k_counted=k_counted,
        n_counted=_n_counted(credits, taken, position, slot, k_counted),
        pi=pi,
        share=share,
    )


def _walk_length(
    frame: Frame, credits: Credits, taken: Taken, total: Ints, *, flagged: Bools, walk: Ints, adaptive: bool
) -> tuple[Ints, Bools]:
    """Return how many draws each cell's walk offers (without seeds that others chose), and where one was begun; [H]."""
    n_cells = len(walk)
    first, last = total[frame.start[:-1]], total[frame.start[1:]]
    old = np.zeros(n_cells, dtype=np.int64)
    seeds = credits.position[flagged]
    if len(seeds):
        fine = credits.position[flagged & ~credits.rejected]
        is_last = np.append(frame.cell[seeds[1:]] != frame.cell[seeds[:-1]], True)
        ends = seeds[is_last]  # the last seed that the earlier walk touched, which may hold a part of its K
        held = np.searchsorted(fine, ends, side="right") - np.searchsorted(fine, ends)
        h = frame.cell[ends]
        old[h] = total[ends] - first[h] + np.clip(held, 1, frame.k_seed[ends])
    begun = old > 0
    others = np.flatnonzero(credits.certain)
    theirs = np.bincount(
        frame.cell[others], weights=credits.worth[others] + taken.fresh[others], minlength=n_cells
    ).astype(np.int64)
    new = np.maximum(walk - theirs, 0)
    length = np.where(begun, old, new) if adaptive else np.maximum(old, new)
    return np.minimum(length, last - first), begun


def _counted_below(
    credits: Credits,
    taken: Taken,
    position: Ints,
    slot: Ints,
    *,
    flagged: Bools,
    reach: Ints,
    frozen: Bools,
) -> Ints:
    """Return the k below which a seed's draws count: beyond its `reach`-th one that is not rejected, [M].

    Never less than what counted before, and exactly that where `frozen`.
    """
    before = np.zeros(len(position), dtype=np.int64)
    np.maximum.at(before, slot[flagged], credits.k[flagged] + 1)
    fine = ~credits.rejected
    key = np.concatenate([slot[fine] * _KEY + credits.k[fine], slots(position, taken.position) * _KEY + taken.k])
    key.sort()
    first = np.searchsorted(key, np.arange(len(position) + 1) * _KEY)
    at = np.minimum(first[:-1] + reach, first[1:]) - 1
    some = at >= first[:-1]
    now = np.zeros(len(position), dtype=np.int64)
    now[some] = key[at[some]] % _KEY + 1
    only_rejected = (reach > 0) & ~some
    if only_rejected.any():  # the walk came here, and must be known to have
        highest = np.zeros(len(position), dtype=np.int64)
        np.maximum.at(highest, slot, credits.k + 1)
        now[only_rejected] = highest[only_rejected]
    return np.where(frozen, before, np.maximum(before, now))


def _n_counted(credits: Credits, taken: Taken, position: Ints, slot: Ints, k_counted: Ints) -> Ints:
    """Count each seed's draws that are not rejected and have k below `k_counted`, old and new; int64 [M]."""
    of_old = slot[~credits.rejected & ((credits.k < k_counted[slot]) | (k_counted[slot] == ALL_COUNTED))]
    of_new = slots(position, taken.position)
    of_new = of_new[taken.k < k_counted[of_new]]
    counts: Ints = np.bincount(of_old, minlength=len(position)) + np.bincount(of_new, minlength=len(position))
    return counts


def _murthy(frame: Frame, total: Ints, cell: NDArray[np.int32], k_seed: Ints, member: Bools, length: Ints) -> Floats:
    """Return each walked seed's share of what its walk stands for; other entries mean nothing."""
    n_cells = len(length)
    first = total[frame.start[:-1]]
    offered = np.bincount(cell, weights=k_seed * member, minlength=n_cells)
    reached = total[np.searchsorted(total, first + length)] - first  # the K of all seeds reached, with draws or without
    # seeds of the walk that hold no draw (all failed, or imported since) are left out of it
    filled = np.clip(length - (reached - offered), 1, np.maximum(offered, 1))
    could_end = member & (offered[cell] - k_seed < filled[cell])
    ends = np.bincount(cell, weights=could_end, minlength=n_cells)[cell]
    m = np.bincount(cell, weights=member, minlength=n_cells)[cell]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(could_end, (ends - 1) / (ends * (m - 1)), 1 / (m - 1))
        return np.where((m == 1) | (ends == 0), 1 / m, share)


def _priority(frame: Frame, total: Ints, position: Ints, length: Ints) -> Floats:
    """Return min(1, size x t_i): t_i is the rank at which the walk would be complete without seed i, [M]."""
    assert frame.size is not None, "priorities need sizes"
    cell = frame.cell[position]
    goal = length[cell] + frame.k_seed[position]
    first, last = total[frame.start[:-1]][cell], total[frame.start[1:]][cell]
    completes = np.searchsorted(total, np.minimum(first + goal, last)) - 1
    threshold = np.where(first + goal <= last, frame.rank[completes], np.inf)
    return np.minimum(1.0, frame.size[position] * threshold)


def _sizes_differ(frame: Frame, offers: NDArray[np.int32]) -> Bools:
    """Tell the cells whose walkable seeds differ in size, bool [H]."""
    assert frame.size is not None, "asked where there are sizes"
    walkable = np.flatnonzero(offers)
    size, cell = frame.size[walkable], frame.cell[walkable]
    changes = (size[1:] != size[:-1]) & (cell[1:] == cell[:-1])
    return np.bincount(cell[1:][changes], minlength=len(frame.start) - 1) > 0
