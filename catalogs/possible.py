"""Which combinations of axis values can occur at all under the [[infeasible]] rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .config import Config
from .errors import DistdataError

MAX_ENTRIES = 1 << 24
"""Entries of a table over all combinations: 256 values in triples, 4,096 in pairs."""
_N_WITNESSES = 4096

Rule = tuple[tuple[int, int], ...]
"""A forbidden combination: factors, each with the bit mask of the values that match. All must match."""


@dataclass(frozen=True)
class Factors:
    """What rows are made of: every axis and the scenario type, with fleet shares and forbidden combinations.

    `shares` float64 [size], sums to 1 per factor. A *value* has a number over all factors: ``starts[factor] + index``.
    """

    names: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]
    shares: tuple[NDArray[np.float64], ...]
    forbidden: tuple[Rule, ...] = ()

    @cached_property
    def sizes(self) -> list[int]:
        """Values per factor."""
        return [len(v) for v in self.values]

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Number of each factor's first value; one more entry holds the number of values in all."""
        return np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)

    @cached_property
    def owner(self) -> NDArray[np.int64]:
        """The factor of each value."""
        return np.repeat(np.arange(len(self.names)), self.sizes)

    @cached_property
    def tables(self) -> list[list[tuple[int, NDArray[np.bool_]]]]:
        """`forbidden` as look-up tables: ``table[index]``, with one more entry (False) for index -1, not chosen yet."""
        return [
            [(f, np.array([mask >> i & 1 for i in range(self.sizes[f])] + [0], np.bool_)) for f, mask in rule]
            for rule in self.forbidden
        ]


def factors_of(config: Config, shares: Sequence[NDArray[np.float64]] | None = None) -> Factors:
    """Return the axes of distdata.toml in their order, then the scenario type, with the [[infeasible]] rules.

    `shares` per factor replace those of distdata.toml; values without any count alike.
    """
    names = [*config.axes, "scenario"]
    values = [tuple(a.values) for a in config.axes.values()] + [tuple(config.scenarios)]
    if shares is None:
        given: list[list[float]] = [a.fleet or [1.0] * len(a.values) for a in config.axes.values()]
        n = len(config.scenarios)
        given.append([1 / n if s.fleet is None else s.fleet for s in config.scenarios.values()])
        shares = [np.array(s, np.float64) for s in given]
    scaled = [s / s.sum() if s.sum() > 0 else np.full(len(s), 1 / len(s)) for s in shares]
    rules = []
    for rule in config.infeasible:
        keys = []
        for key, wanted in rule.when.items():
            f = names.index(key)
            chosen = {wanted} if isinstance(wanted, str) else set(wanted)
            keys.append((f, sum(1 << values[f].index(v) for v in chosen)))
        rules.append(tuple(keys))
    return Factors(names=tuple(names), values=tuple(values), shares=tuple(scaled), forbidden=tuple(rules))


def varying(factors: Factors) -> tuple[Factors, NDArray[np.int64]]:
    """Leave out factors with one value, which tell no rows apart; also return the positions of those that stay.

    Where fewer than two would stay, nothing is left out.
    """
    kept = [f for f, n in enumerate(factors.sizes) if n > 1]
    if len(kept) < 2:
        kept = list(range(len(factors.names)))
    place = {f: i for i, f in enumerate(kept)}
    rules = []
    for rule in factors.forbidden:
        # a key on the only value always matches, unless it lists none
        if all(mask for f, mask in rule if f not in place):
            rules.append(tuple((place[f], mask) for f, mask in rule if f in place))
    few = Factors(
        names=tuple(factors.names[f] for f in kept),
        values=tuple(factors.values[f] for f in kept),
        shares=tuple(factors.shares[f] for f in kept),
        forbidden=tuple(rules),
    )
    return few, np.array(kept, np.int64)


def is_forbidden(factors: Factors, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell which rows a rule forbids. `rows` int64 [n, n_factors], indices of values, -1 where not chosen."""
    bad = np.zeros(len(rows), np.bool_)
    for rule in factors.tables:
        bad |= np.logical_and.reduce([table[rows[:, f]] for f, table in rule])
    return bad


def find_row(factors: Factors, chosen: dict[int, int]) -> NDArray[np.int64] | None:
    """Complete a partial row (factor -> index) to one that no rule forbids; None when there is none.

    Exact: depth-first over the rules, each killed in turn by taking its values from one factor. Of the values left
    the most frequent are taken.
    """
    domains = [1 << chosen[f] if f in chosen else (1 << n) - 1 for f, n in enumerate(factors.sizes)]
    stack = [domains]
    while stack:
        domains = stack.pop()
        if not _narrow(factors.forbidden, domains):
            continue
        branch = _open_key(factors.forbidden, domains)
        if branch is None:
            left = ([i for i in range(n) if d >> i & 1] for d, n in zip(domains, factors.sizes, strict=True))
            pick = [max(v, key=s.tolist().__getitem__) for v, s in zip(left, factors.shares, strict=True)]
            return np.array(pick, np.int64)
        f, mask = branch
        for keep in (domains[f] & mask, domains[f] & ~mask):
            other = list(domains)
            other[f] = keep
            stack.append(other)
    return None


def _narrow(rules: Sequence[Rule], domains: list[int]) -> bool:
    """Drop values that would complete a forbidden combination, until nothing changes; False: none can be left."""
    changed = True
    while changed:
        changed = False
        for rule in rules:
            last: tuple[int, int] | None = None
            for f, mask in rule:
                if not domains[f] & mask or (domains[f] & ~mask and last is not None):
                    break  # can't match any more, or is open in two factors: says nothing yet
                if domains[f] & ~mask:
                    last = (f, mask)
            else:
                if last is None:
                    return False
                domains[last[0]] &= ~last[1]
                changed = True
    return True


def _open_key(rules: Sequence[Rule], domains: list[int]) -> tuple[int, int] | None:
    """Return an undecided (factor, mask) of a rule that could still match; None when no rule can."""
    for rule in rules:
        if all(domains[f] & mask for f, mask in rule):
            return next((f, mask) for f, mask in rule if domains[f] & ~mask)
    return None


def possible_combinations(factors: Factors, strength: int) -> NDArray[np.bool_]:
    """Tell for all `strength` (1, 2 or 3) values of different factors whether a row holds them that no rule forbids.

    Exact, also for what several rules imply together. Returns bool [n_values] * strength, symmetric.

    Raises:
        DistdataError: the table would have more than `MAX_ENTRIES` entries, or every row is forbidden.
    """
    n = int(factors.starts[-1])
    if n**strength > MAX_ENTRIES:
        most = int(MAX_ENTRIES ** (1 / strength) + 1e-9)
        raise DistdataError(
            f"distdata.toml: cover.strength = {strength} over {n:,} values of all axes and scenario types; at most "
            f"{most:,} are supported. Drop an axis, merge values"
            + (", or take strength = 2." if strength == 3 else ".")
        )
    if find_row(factors, {}) is None:
        raise DistdataError("distdata.toml: the [[infeasible]] rules leave no feasible cell.")
    known = np.ones((), np.bool_)
    witnesses = _random_rows(factors)
    for order in range(1, strength + 1):
        known = _extend(factors, known, order, witnesses)
    return known


def _extend(factors: Factors, below: NDArray[np.bool_], order: int, witnesses: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Settle the combinations of `order` values, given those of one value less (`below`)."""
    n = int(factors.starts[-1])
    if order == 1:
        table = np.ones(n, np.bool_)
    else:
        apart = factors.owner[:, None] != factors.owner[None, :]
        # a combination with an impossible part is impossible; where a factor is in no rule, the parts decide
        table = below[:, None] & below[None, :] & apart if order == 2 else (
            below[:, :, None] & below[:, None, :] & below[None, :, :]
        )  # fmt: skip
    ruled = np.zeros(len(factors.names), np.bool_)
    ruled[[f for rule in factors.forbidden for f, _ in rule]] = True
    open_ = table.copy()
    for axis in range(order):
        open_ &= np.expand_dims(ruled[factors.owner], tuple(a for a in range(order) if a != axis))
    where = ascending_sets(int(ruled.sum()), order)
    columns = np.flatnonzero(ruled)[where]
    for columns_of_one in columns:
        open_[tuple((witnesses[:, f] + factors.starts[f]) for f in columns_of_one)] = False
    # the witnesses marked ascending combinations only, and only those are looked at
    unsettled = np.argwhere(open_)
    unsettled = unsettled[(np.diff(unsettled, axis=1) > 0).all(axis=1)]
    for combination in unsettled:
        if not open_[tuple(combination)]:
            continue
        owners = factors.owner[combination]
        row = find_row(
            factors, dict(zip(owners.tolist(), (combination - factors.starts[owners]).tolist(), strict=True))
        )
        if row is not None:
            open_[tuple((row + factors.starts[:-1])[columns].T)] = False
        else:
            table[np.ix_(*[combination] * order)] &= ~_is_permutation(order)
    return table


def _is_permutation(order: int) -> NDArray[np.bool_]:
    """Return bool [order] * order: True where all indices differ."""
    index = np.indices((order,) * order).reshape(order, -1).T
    return np.array([len(set(i)) == order for i in index.tolist()], np.bool_).reshape((order,) * order)


def ascending_sets(n: int, order: int) -> NDArray[np.int64]:
    """Return all ascending `order`-tuples of 0..n-1, int64 [n_tuples, order]."""
    grid = np.indices((n,) * order, np.int64).reshape(order, -1).T
    return np.asarray(grid[(np.diff(grid, axis=1) > 0).all(axis=1)], np.int64)


def _random_rows(factors: Factors) -> NDArray[np.int64]:
    """Return `_N_WITNESSES` feasible rows: what they hold needs no search.

    A feasible row, copied, then walked at random: one value changes at a time, where no rule is then broken.
    """
    random = np.random.Generator(np.random.PCG64(0)).random
    start = find_row(factors, {})
    assert start is not None, "checked by the caller"
    rows = np.tile(start, (_N_WITNESSES, 1))
    for _ in range(2):
        for f, size in enumerate(factors.sizes):
            moved = rows.copy()
            moved[:, f] = (random(len(rows)) * size).astype(np.int64)
            rows = np.where(is_forbidden(factors, moved)[:, None], rows, moved)
    return rows
