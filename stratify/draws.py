"""Which draws a plan buys: seeds in candidate order (see `frame`), K draws of each, walked by cumulative sums."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from .frame import Bools, Frame, Ints, order_by_prn, sum_by_cell

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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Taken:
    """The chosen draws: `fresh` int64 [N] per seed, and one entry per draw in generation order.

    Generation order is by prn over all cells (so any prefix is a balanced sample), a seed's draws together
    and ascending in k.
    """

    fresh: Ints
    position: Ints
    k: Ints


def find_credits(frame: Frame, bought: pl.DataFrame) -> Credits:
    """Match existing draws [seed_id, k] to the frame; draws of other seeds count nothing, repeated rows once.

    Optional columns: `planned` (true; false for a byproduct), `walk` (true; false for a draw bought after looking) and
    `state` (one of `STATES`; unverified). Of a repeated draw, a rejection wins over a keep, and both over nothing.
    """
    n = len(frame.prn)
    certain = np.zeros(n, dtype=np.bool_)
    if bought.height == 0:
        zeros, nothing, never = np.zeros(n, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.bool_)
        return Credits(
            per_seed=zeros, worth=zeros, n_kept=zeros, n_rejected=zeros, n_unverified=zeros, certain=certain,
            position=nothing, k=nothing, rejected=never, walk=never,
        )  # fmt: skip
    found = _match(frame, bought)
    position, state = found["position"].to_numpy(), found["state"].to_numpy()
    certain[position[~found["planned"].to_numpy()]] = True
    unverified, kept, rejected = (np.bincount(position[state == code], minlength=n) for code in STATES.values())
    return Credits(
        per_seed=unverified + kept + rejected,
        worth=np.minimum(unverified + kept, frame.k_seed),
        n_kept=kept,
        n_rejected=rejected,
        n_unverified=unverified,
        certain=certain,
        position=position,
        k=found["k"].to_numpy(),
        rejected=state == STATES["rejected"],
        walk=found["walk"].to_numpy(),
    )


def _match(frame: Frame, bought: pl.DataFrame) -> pl.DataFrame:
    """Return one row per existing draw on the frame, sorted: position, k, planned, walk, state (its code)."""
    given = bought.columns
    each = (
        bought.lazy()
        .select(
            "seed_id",
            pl.col("k").cast(pl.Int64),
            planned=pl.col("planned") if "planned" in given else pl.lit(True),
            walk=pl.col("walk") if "walk" in given else pl.lit(True),
            state=pl.col("state").cast(pl.String).replace_strict(STATES, return_dtype=pl.Int8)
            if "state" in given
            else pl.lit(0, dtype=pl.Int8),
        )
        .group_by("seed_id", "k")
        .agg(pl.col("planned", "walk").all(), pl.col("state").max())
        .collect()
    )
    placed = each.with_columns(position=frame.find(each["seed_id"])).filter(pl.col("position") >= 0)
    return placed.drop("seed_id").sort("position", "k")


def take_fresh(frame: Frame, credits: Credits, n_fresh: Ints) -> Taken:
    """Choose the first `n_fresh` [H] draws of each cell, in candidate order, that don't exist yet.

    A seed offers its K less what its draws are worth; a cell may offer less than it is asked for, and gives that. The
    last seed may give fewer than it offers, and a larger plan takes the rest of it first. Seeds that others chose come
    after all the rest, so that how far the rest is walked does not depend on them. A rejected draw is not repeated:
    the k's taken are the lowest that don't exist, beyond K where rejections left holes.
    """
    offers = np.maximum(frame.k_seed - credits.worth, 0)
    others = np.flatnonzero(credits.certain)
    walked = offers.copy()
    walked[others] = 0
    fresh = _take_first(walked, frame.start, n_fresh)
    if len(others):
        n_left = n_fresh - sum_by_cell(frame, fresh)
        fresh[others] = _take_first(offers[others], np.searchsorted(others, frame.start), n_left)
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
    total: Ints = np.concatenate([[0], np.cumsum(offers, dtype=np.int64)])
    goal = total[start[:-1]] + np.maximum(n_wanted, 0)
    stop = np.minimum(np.searchsorted(total, goal), start[1:])  # the first seed that is not needed any more
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
