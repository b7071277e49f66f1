"""Few rows that together hold every possible combination of two or three axis values, the frequent ones first.

Greedy one row at a time as in AETG (Cohen, Dalal, Fredman and Patton 1997), with our own scoring: a combination counts
by its share of the fleet. Each row is the best of several candidates, and every candidate climbs by changing one value
at a time. Weights are whole numbers, so that sums, and with them the rows, are the same on every machine.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .possible import Factors, ascending_sets, find_row, possible_combinations

_UNIT = 1 << 32
"""Weight of one axis set's whole fleet; a combination without any share still weighs 1."""
_TIE = 1 << 8
_WORK = 4e8
_MAX_ATTEMPTS = 20


def cover_rows(factors: Factors, strength: int, max_rows: int) -> NDArray[np.int64]:
    """Choose rows that hold every possible combination of `strength` (2 or 3) factors' values.

    Ordered so that each row adds the most fleet share to those before it; stops when all is covered, or at
    `max_rows`. No row is forbidden. Deterministic. Returns indices of values, int64 [n_rows, n_factors].

    Raises:
        DistdataError: every row is forbidden, or there are too many values (`possible_combinations`).
    """
    strength = min(strength, len(factors.names))
    possible = possible_combinations(factors, strength)
    weights = combination_weights(factors, possible)
    # one more entry (0) per axis, for a value not chosen yet
    weights = np.pad(weights, [(0, 1)] * strength)
    n_candidates, n_attempts = _effort(factors, strength, max_rows)
    # no fewer rows can do: each holds one combination of the factors that have the most
    fewest = int(_per_set(factors, possible).max())
    best: NDArray[np.int64] | None = None
    best_rank = (0, 0)
    for attempt in range(n_attempts):
        search = _Search(factors, strength, weights.copy(), attempt)
        rows = search.run(max_rows, n_candidates)
        rows = _frequent_first(factors, strength, weights, rows)
        rank = (int(search.weights.sum()), len(rows))  # what is left uncovered, then how many rows
        if best is None or rank < best_rank:
            best, best_rank = rows, rank
        if best_rank <= (0, fewest):
            break
    assert best is not None, "there is at least one attempt"
    return best


def combination_weights(factors: Factors, possible: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return `fleet_shares` as whole numbers, at least 1 for each possible combination; sums of them are exact."""
    return np.rint(fleet_shares(factors, possible) * _UNIT).astype(np.int64) + possible


def fleet_shares(factors: Factors, possible: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return each combination's share of the fleet, float64 shaped as `possible`; 0 where that is False.

    The product of its values' shares, scaled so that the possible combinations of each set of factors sum to 1.
    """
    strength = possible.ndim
    single = np.concatenate(factors.shares)
    shares = possible.astype(np.float64)
    for axis in range(strength):
        shares *= np.expand_dims(single, tuple(a for a in range(strength) if a != axis))
    totals = _per_set(factors, shares)
    totals[totals == 0] = 1
    owner = factors.owner
    shares /= totals[owner][:, owner] if strength == 2 else totals[owner][:, owner][:, :, owner]
    return shares


def _per_set(factors: Factors, table: NDArray[Any]) -> NDArray[np.float64]:
    """Sum a table over values into one over sets of factors, float64 [n_factors] * strength."""
    totals = table.astype(np.float64)
    for axis in range(table.ndim):
        totals = np.add.reduceat(totals, factors.starts[:-1], axis=axis)
    return totals


def _effort(factors: Factors, strength: int, max_rows: int) -> tuple[int, int]:
    """Return candidates per row and attempts that keep the search to seconds."""
    n_factors = len(factors.names)
    n_rows = min(max_rows, int(np.prod(sorted(factors.sizes)[-strength:])) * 2)
    per_candidate = 3 * int(factors.starts[-1]) * n_factors * (n_factors / 2 if strength == 3 else 1)
    n_candidates = int(np.clip(_WORK / (n_rows * per_candidate), 8, 48))
    n_attempts = int(np.clip(_WORK / 8 / (n_rows * per_candidate * n_candidates), 1, _MAX_ATTEMPTS))
    return n_candidates, n_attempts


class _Search:
    """One greedy construction: the weights not covered yet, and how rows are found that cover the most."""

    def __init__(self, factors: Factors, strength: int, weights: NDArray[np.int64], seed: int) -> None:
        self.factors, self.strength, self.weights = factors, strength, weights
        self.random = np.random.Generator(np.random.PCG64(seed))
        self.sets = ascending_sets(len(factors.names), strength)
        n = len(factors.names)
        self.others = [[f for f in range(n) if f != g] for g in range(n)]
        self.pairs = [np.array(o)[ascending_sets(len(o), 2)] for o in self.others] if strength == 3 else []
        self.rules = [_rules_of(factors, f) for f in range(len(factors.names))]
        self.tops = [s / s.max() for s in factors.shares]

    def run(self, max_rows: int, n_candidates: int) -> NDArray[np.int64]:
        """Add rows until nothing is left or there are `max_rows`."""
        index = np.argwhere(self.weights)
        index = index[(np.diff(index, axis=1) > 0).all(axis=1)]
        open_ = index[np.argsort(-self.weights[tuple(index.T)], kind="stable")]
        rows: list[NDArray[np.int64]] = []
        while len(open_) and len(rows) < max_rows:
            row = self._best_row(open_, n_candidates)
            rows.append(row)
            ids = row + self.factors.starts[:-1]
            self.weights[np.ix_(*[ids] * self.strength)] = 0
            open_ = open_[self.weights[tuple(open_.T)] > 0]
        return np.array(rows, np.int64).reshape(len(rows), len(self.factors.names))

    def _best_row(self, open_: NDArray[np.int64], n_candidates: int) -> NDArray[np.int64]:
        """Build candidates around uncovered combinations, half of them the most frequent; return the best."""
        half = n_candidates // 2
        picks = np.concatenate([np.arange(half) % len(open_), (self.random.random(half) * len(open_)).astype(np.int64)])
        rows = np.full((len(picks), len(self.factors.names)), -1, np.int64)
        combos = open_[picks]
        owners = self.factors.owner[combos]
        np.put_along_axis(rows, owners, combos - self.factors.starts[owners], axis=1)
        begun = rows.copy()
        dead = np.zeros(len(rows), np.bool_)
        for batch in (slice(0, None, 2), slice(1, None, 2)):
            dead[batch] = self._fill(rows[batch], begun[batch])
        if dead.all():
            chosen = {f: int(v) for f, v in enumerate(begun[0]) if v >= 0}
            done = find_row(self.factors, chosen)
            assert done is not None, "only possible combinations are uncovered"
            rows, dead = done[None, :], np.zeros(1, np.bool_)
        rows = rows[~dead]
        for _ in range(2):
            self._fill(rows, np.full_like(rows, -1))
        best: NDArray[np.int64] = rows[int(np.argmax(self._gains(rows)))]
        return best

    def _fill(self, rows: NDArray[np.int64], fixed: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Choose the value that covers the most, factor by factor in random order, but for `fixed` (not -1).

        Changes `rows`. Returns the rows where every value was forbidden at some point: those are no rows.
        """
        dead = np.zeros(len(rows), np.bool_)
        for f in np.argsort(self.random.random(rows.shape[1]), kind="stable").tolist():
            score = self._scores(rows, f)
            # equal scores: by chance, the more frequent value more often
            score = score * _TIE + (self.random.random(score.shape) * self.tops[f] * (_TIE - 1)).astype(np.int64)
            score[self._blocked(rows, f)] = -1
            free = fixed[:, f] < 0
            dead |= free & (score.max(axis=1) < 0)
            rows[:, f] = np.where(free, np.argmax(score, axis=1), rows[:, f])
        return dead

    def _ids(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.where(rows < 0, self.factors.starts[-1], rows + self.factors.starts[:-1])

    def _scores(self, rows: NDArray[np.int64], f: int) -> NDArray[np.int64]:
        """Return what each value of factor `f` would cover with the values chosen so far, int64 [n_rows, size]."""
        ids = self._ids(rows)
        values = slice(self.factors.starts[f], self.factors.starts[f + 1])
        if self.strength == 2:
            found = self.weights[:, values][ids[:, self.others[f]]]
        else:
            found = self.weights[:, :, values][ids[:, self.pairs[f][:, 0]], ids[:, self.pairs[f][:, 1]]]
        return np.asarray(found.sum(axis=1), np.int64)

    def _blocked(self, rows: NDArray[np.int64], f: int) -> NDArray[np.bool_]:
        """Tell which values of factor `f` would complete a forbidden combination, bool [n_rows, size]."""
        factors, look, here = self.rules[f]
        # look: per rule and key whether a value matches; where all other keys match, the rule's own values are blocked
        n_rules, n_keys = factors.shape
        hit = look[np.arange(n_rules)[:, None], np.arange(n_keys), rows[:, factors]].all(axis=2)
        return np.asarray(hit.astype(np.float32) @ here > 0, np.bool_)

    def _gains(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        ids = self._ids(rows)
        found = self.weights[tuple(ids[:, self.sets[:, i]] for i in range(self.strength))]
        return np.asarray(found.sum(axis=1), np.int64)


def _rules_of(factors: Factors, f: int) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.float32]]:
    """Return the rules on factor `f` as arrays: other factors [n, n_keys], look-up [n, n_keys, n_values], own values.

    Rules with fewer keys are filled up with one that always matches; the last place of the look-up is index -1.
    """
    rules = [rule for rule in factors.tables if any(g == f for g, _ in rule)]
    n_keys = max((len(rule) for rule in rules), default=1)
    keys = np.zeros((len(rules), n_keys), np.int64)
    look = np.ones((len(rules), n_keys, max(factors.sizes) + 1), np.bool_)
    here = np.zeros((len(rules), factors.sizes[f]), np.float32)
    for i, rule in enumerate(rules):
        for j, (g, table) in enumerate(rule):
            if g == f:
                here[i] = table[:-1]
            else:
                keys[i, j] = g
                look[i, j] = False
                look[i, j, : len(table) - 1] = table[:-1]
    return keys, look, here


def _combinations_of(factors: Factors, rows: NDArray[np.int64], strength: int) -> NDArray[np.int64]:
    """Return the flat index of every combination that each row holds, int64 [n_rows, n_sets]."""
    ids = rows + factors.starts[:-1]
    sets = ascending_sets(len(factors.names), strength)
    flat = np.zeros((len(rows), len(sets)), np.int64)
    for i in range(strength):
        flat = flat * (int(factors.starts[-1]) + 1) + ids[:, sets[:, i]]
    return flat


def _frequent_first(
    factors: Factors, strength: int, weights: NDArray[np.int64], rows: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Order rows so that each adds the most to those before it (the first of equals first); drop what adds nothing.

    A frequent row stays though rarer ones together make it idle: cut anywhere, the table begins with what counts.
    """
    left = weights.reshape(-1).copy()
    held = _combinations_of(factors, rows, strength)
    # a row's gain only falls as others are taken: an old gain bounds the new one, so few must be looked at again
    queue = [(-int(left[h].sum()), i) for i, h in enumerate(held)]
    heapq.heapify(queue)
    order: list[int] = []
    while queue:
        gain, i = heapq.heappop(queue)
        now = -int(left[held[i]].sum())
        if now == gain == 0:
            break
        if now == gain:
            order.append(i)
            left[held[i]] = 0
        else:
            heapq.heappush(queue, (now, i))
    return rows[order]


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """Values of different factors, ``(("weather", "rain"), ("light", "night"))``, and their share of the fleet."""

    values: tuple[tuple[str, str], ...]
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What rows hold of the possible combinations.

    `share_covered` is the fleet's share inside covered combinations, averaged over the sets of `strength` factors.
    `missing` are the uncovered ones, the most frequent first.
    """

    strength: int
    n_possible: int
    n_covered: int
    share_covered: float
    missing: Sequence[Combination]


def uncovered(factors: Factors, rows: NDArray[np.int64], strength: int, limit: int | None = None) -> Coverage:
    """Measure what `rows` cover, and name what they leave; at most `limit` combinations are named.

    `rows` int64 [n, n_factors], indices of values; -1 (a value that is no more) covers nothing. Impossible
    combinations are neither counted nor missing.
    """
    strength = min(strength, len(factors.names))
    possible = possible_combinations(factors, strength)
    shares = fleet_shares(factors, possible)
    ids = np.where(rows < 0, -1, rows + factors.starts[:-1])
    left = possible.copy()
    for columns in ascending_sets(len(factors.names), strength):
        chosen = ids[:, columns]
        left[tuple(chosen[(chosen >= 0).all(axis=1)].T)] = False
    index = np.argwhere(left)
    index = index[(np.diff(index, axis=1) > 0).all(axis=1)]
    share = shares[tuple(index.T)]
    # combinations are counted once, in ascending order of their factors; the table is symmetric
    n_orders = 6 if strength == 3 else 2
    n_possible = int(possible.sum()) // n_orders
    n_sets = len(ascending_sets(len(factors.names), strength))
    order = np.argsort(-share, kind="stable")[:limit]
    flat = [value for values in factors.values for value in values]
    missing = [
        Combination(values=tuple((factors.names[factors.owner[v]], flat[v]) for v in index[i]), share=float(share[i]))
        for i in order
    ]
    return Coverage(
        strength=strength, n_possible=n_possible, n_covered=n_possible - len(index),
        share_covered=min(1.0, max(0.0, 1.0 - float(share.sum()) / n_sets)), missing=missing,
    )  # fmt: skip
