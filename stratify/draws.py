"""Which draws a plan buys: seeds in candidate order (see `frame`), K draws of each, walked by cumulative sums."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from .frame import Bools, Frame, Ints, cell_runs, order_by_prn, running_total, sum_by_cell

STATES = {"unverified": 0, "kept": 1, "rejected": 2}
_KEY = 1 << 24
"""Above every k, so that position x _KEY + k is one sortable number."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Credits:
    """Draws that exist already, on seeds of the frame.

    - `per_seed`, `n_kept`, `n_rejected`, `n_unverified` int64 [N]: all draws of a seed, and by state.
    - `worth` int64 [N]: kept and unverified draws, capped at K: what fills the seed's offer.
    - `certain` bool [N]: seeds with a draw that no plan of ours asked for; somebody else chose them.
    - `position`, `k` int64 [M], `rejected`, `walk` bool [M]: the draws one by one, sorted by position and k. `walk` is
      false for one that was bought after looking, beyond its cell's walk.
    """

    per_seed: Ints
    worth: Ints
    n_kept: Ints
    n_rejected: Ints
    n_unverified: Ints
    certain: Bools
    position: Ints
    k: Ints
    rejected: Bools
    walk: Bools

    @property
    def seeds(self) -> Ints:
        """Positions of the seeds with draws, ascending."""
        return self.position[np.flatnonzero(np.diff(self.position, prepend=-1))]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Taken:
    """The chosen draws: `fresh` int64 [N] per seed, and one entry per draw in generation order.

    Generation order is by prn over all cells (so any prefix is a balanced sample), a seed's draws together
    and ascending in k.
    """

    fresh: Ints
    position: Ints
    k: Ints


def find_credits(frame: Frame, bought: pl.DataFrame, k_counted: Ints | None = None) -> Credits:
    """Match existing draws [seed_id, k] to the frame; draws of other seeds count nothing, repeated rows once.

    Optional columns: `planned` (true; false for a byproduct), `walk` (true; false for a draw bought after looking) and
    `state` (one of `STATES`; unverified). Of a repeated draw, a rejection wins over a keep, and both over nothing.
    Without a column `walk`, `k_counted` tells it: for each seed whose K was frozen, the k below which its draws counted
    in the last plan; draws of other seeds are of the walk.
    """
    n = len(frame.prn)
    position, k, planned, walk, state = _match(frame, bought)
    if k_counted is not None and "walk" not in bought.columns:
        limit = np.full(n, _KEY, dtype=np.int32)
        limit[frame.frozen_at[frame.frozen_at >= 0]] = k_counted[frame.frozen_at >= 0]
        walk = k < limit[position]
    certain = np.zeros(n, dtype=np.bool_)
    certain[position[~planned]] = True
    first = np.flatnonzero(np.diff(position, prepend=-1))
    seeds = position[first]
    rejected, kept = state == STATES["rejected"], state == STATES["kept"]
    n_draws = np.diff(first, append=len(position))
    n_rejected, n_kept = (_per_seed(flags, first) for flags in (rejected, kept))
    per_seed = _spread(n, seeds, n_draws)

    def spread(values: Ints) -> Ints:  # most often all of a seed's draws count, and are without a verdict
        return per_seed if np.array_equal(values, n_draws) else _spread(n, seeds, values)

    return Credits(
        per_seed=per_seed,
        worth=spread(np.minimum(n_draws - n_rejected, frame.k_seed[seeds])),
        n_kept=spread(n_kept),
        n_rejected=spread(n_rejected),
        n_unverified=spread(n_draws - n_kept - n_rejected),
        certain=certain,
        position=position,
        k=k,
        rejected=rejected,
        walk=walk,
    )


def _per_seed(flags: Bools, first: Ints) -> Ints:
    """Count the draws flagged among those of each seed, which begin at `first`."""
    if not flags.any():
        return np.zeros(len(first), dtype=np.int64)
    return np.add.reduceat(flags.astype(np.int64), first)


def _spread(n: int, seeds: Ints, values: Ints) -> Ints:
    """Put the values of some seeds at their places among all `n`; 0 elsewhere."""
    whole = np.zeros(n, dtype=np.int64)
    if values.any():
        whole[seeds] = values
    return whole


def _match(frame: Frame, bought: pl.DataFrame) -> tuple[Ints, Ints, Bools, Bools, NDArray[np.int8]]:
    """Return position, k, planned, walk and state (its code) of each existing draw on the frame, by position and k."""
    found = frame.find(bought["seed_id"])
    key = found * _KEY + bought["k"].cast(pl.Int64).to_numpy()
    order = np.argsort(key)
    order = order[np.searchsorted(key[order], 0) :]  # what was not found has negative keys
    key = key[order]
    first = np.flatnonzero(np.diff(key, prepend=-1))
    planned, walk = (_flag(bought, name)[order] for name in ("planned", "walk"))
    state = np.zeros(len(key), dtype=np.int8)
    if "state" in bought.columns:
        n_known = 0
        for name, code in STATES.items():
            is_one = (bought["state"] == name).fill_null(False).to_numpy()
            n_known += int(is_one.sum())
            state[is_one[order]] = code
        if n_known < bought.height:
            raise ValueError(f"{bought.height - n_known} draws have a state that is none of {', '.join(STATES)}")
    if len(first) < len(key):  # repeated draws
        planned, walk = (np.logical_and.reduceat(flags, first) for flags in (planned, walk))
        state = np.maximum.reduceat(state, first)
    return key[first] // _KEY, key[first] % _KEY, planned, walk, state


def _flag(bought: pl.DataFrame, name: str) -> Bools:
    """Return an optional column of flags, all true without it."""
    return bought[name].to_numpy() if name in bought.columns else np.ones(bought.height, dtype=np.bool_)


def take_fresh(frame: Frame, credits: Credits, n_fresh: Ints) -> Taken:
    """Choose the first `n_fresh` [H] draws of each cell, in candidate order, that don't exist yet.

    A seed offers its K less what its draws are worth; a cell may offer less than it is asked for, and gives that. The
    last seed may give fewer than it offers, and a larger plan takes the rest of it first. Seeds that others chose come
    after all the rest, so that how far the rest is walked does not depend on them. A rejected draw is not repeated:
    the k's taken are the lowest that don't exist, beyond K where rejections left holes.
    """
    fresh = np.zeros(len(frame.prn), dtype=np.int64)
    for low, high in cell_runs(frame.start):
        first, last = frame.start[low], frame.start[high]
        offers: Ints = frame.k_seed[first:last] - credits.worth[first:last]
        offers[credits.certain[first:last]] = 0
        taken = _take_first(offers, frame.start[low : high + 1] - first, n_fresh[low:high])
        some = np.flatnonzero(taken)
        fresh[first + some] = taken[some]
    others = np.flatnonzero(credits.certain)
    if len(others):
        n_left = n_fresh - sum_by_cell(frame, fresh)
        of_others: Ints = frame.k_seed[others] - credits.worth[others]
        fresh[others] = _take_first(of_others, np.searchsorted(others, frame.start), n_left)
    seeds = np.flatnonzero(fresh)
    seeds = seeds[order_by_prn(frame, seeds)]
    counts = fresh[seeds]
    position = np.repeat(seeds, counts)
    k = np.arange(len(position)) - np.repeat(np.cumsum(counts) - counts, counts)
    partly = credits.per_seed[position] > 0
    if partly.any():
        k[partly] = _kth_open(credits, position[partly], k[partly])
    return Taken(fresh=fresh, position=position, k=k)


def _take_first(offers: Ints, start: Ints, n_wanted: Ints) -> Ints:
    """Take the first `n_wanted` [H] of what each cell's seeds offer [N], in order; `start` is [H+1]."""
    total = running_total(offers)
    goal = total[start[:-1]] + np.maximum(n_wanted, 0)
    stop = np.clip(np.searchsorted(total, goal), start[:-1], start[1:])  # the first seed that is not needed any more
    taken = np.zeros(len(offers), dtype=np.int64)
    touched = np.repeat(start[:-1], stop - start[:-1]) + _count_up(stop - start[:-1])
    taken[touched] = offers[touched]
    ends = np.flatnonzero((stop > start[:-1]) & (total[stop] > goal))
    taken[stop[ends] - 1] -= total[stop[ends]] - goal[ends]
    return taken


def _count_up(counts: Ints) -> Ints:
    """Return 0 .. c - 1 for every c in `counts`, one after another."""
    return np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)


def _kth_open(credits: Credits, position: Ints, rank: Ints) -> Ints:
    """Return, for seeds that own draws already, the k of the `rank`-th one (from 0) that doesn't exist yet.

    The i-th existing k of a seed (from 0) has k - i missing ones below it, so the rank-th missing one lies beyond all
    existing ones with k - i <= rank.
    """
    first = np.searchsorted(credits.position, credits.position)
    missing_below = credits.k - (np.arange(len(credits.k)) - first)
    passed = np.searchsorted(credits.position * _KEY + missing_below, position * _KEY + rank, side="right")
    return np.asarray(rank + passed - np.searchsorted(credits.position, position), dtype=np.int64)
