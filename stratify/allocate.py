"""Whole draws per cell out of real weights: Webster's divisor method inside bounds.

The law is a sequence of single draws: starting from the lower bounds, the next draw goes to the cell with
the largest w / (n + 1/2) among those below their upper bound; ties go to the earlier cell. A larger budget
only goes further along the same sequence, so it never takes a draw away from a cell (house monotone),
which largest remainders can. Balinski and Young, Fair Representation (1982), with bounds as in their
appendix A.

Computed without walking the sequence: the first draws of it are those whose priority w / (j - 1/2) lies above a
threshold, so the threshold is bisected over the ordered bit patterns of float64 (at most 63 vectorised steps)
down to one value, and only draws tied at that value are dealt in cell order. Exact for counts below 2**50.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MONEY_TOLERANCE = 1e-9
"""Relative slack of a money budget, so that 0.1 + 0.1 + 0.1 fits into 0.3."""


def allocate(weights: Floats, lower: Ints, upper: Ints, budget: int) -> Ints:
    """Deal `budget` draws to cells; return int64 counts [H] between `lower` and `upper`.

    They sum to `budget` exactly, or to less when every cell stands at its upper bound. A cell of weight 0
    gets its lower bound and no more.

    Raises:
        ValueError: negative or non-finite weights, lower above upper, or lower bounds that exceed the budget.
    """
    upper = _checked_upper(weights, lower, upper)
    if int(lower.sum()) > budget:
        raise ValueError(f"the lower bounds sum to {int(lower.sum())}, above the budget of {budget}")
    if int(upper.sum()) <= budget:
        return upper
    counts, tied = _threshold(weights, lower, upper, lambda n: int(n.sum()) <= budget)
    counts[tied[: budget - int(counts.sum())]] += 1
    return counts


def allocate_groups(weights: Floats, lower: Ints, upper: Ints, group: Ints, budgets: Ints) -> Ints:
    """Deal a budget of its own to the cells of each group: `allocate` once per group, all groups at once.

    `group` [H] is each cell's index into `budgets` [G].

    Raises:
        ValueError: as `allocate`, for any group.
    """
    upper = _checked_upper(weights, lower, upper)
    least, most = (_sum_by_group(bound, group, len(budgets)) for bound in (lower, upper))
    if np.any(least > budgets):
        at = int(np.argmax(least > budgets))
        raise ValueError(f"the lower bounds of group {at} sum to {least[at]}, above its budget of {budgets[at]}")
    short = most > budgets  # groups that can't have all
    top = np.zeros(len(budgets))
    np.maximum.at(top, group, weights / (lower + 0.5))
    low, high = np.zeros(len(budgets), dtype=np.int64), top.view(np.int64).copy()
    while np.any(unsettled := short & (high - low > 1)):
        middle = np.where(unsettled, low + (high - low) // 2, high)
        counts = _counts_above(middle.view(np.float64)[group], weights, lower, upper)
        fits = _sum_by_group(counts, group, len(budgets)) <= budgets
        high, low = np.where(unsettled & fits, middle, high), np.where(unsettled & ~fits, middle, low)
    counts = _counts_above(high.view(np.float64)[group], weights, lower, upper)
    beyond = _counts_above(low.view(np.float64)[group], weights, lower, upper)
    left = budgets - _sum_by_group(counts, group, len(budgets))
    tied = np.flatnonzero((beyond > counts) & short[group])
    tied = tied[np.argsort(group[tied], kind="stable")]
    of_group = group[tied]
    rank = np.arange(len(tied)) - np.searchsorted(of_group, of_group)  # in its group, in cell order
    counts[tied[rank < left[of_group]]] += 1
    return np.where(short[group], counts, upper)


def allocate_money(weights: Floats, lower: Ints, upper: Ints, price_of: Callable[[Ints], Floats], money: float) -> Ints:
    """Walk the same sequence while money lasts, and stop before the first step that doesn't fit.

    `price_of` tells what counts [H] cost, cell by cell [H]; it never falls as a count grows, and a cell's price
    depends on its own count alone. `money` is in its unit.

    Raises:
        ValueError: as `allocate`; also when the lower bounds alone cost more than `money`.
    """
    upper = _checked_upper(weights, lower, upper)
    limit = money * (1 + MONEY_TOLERANCE)
    least = float(price_of(lower).sum())
    if least > limit:
        raise ValueError(f"the lower bounds cost {least:g}, above {money:g}")
    if float(price_of(upper).sum()) <= limit:
        return upper
    counts, tied = _threshold(weights, lower, upper, lambda n: float(price_of(n).sum()) <= limit)
    before, step = price_of(counts), np.zeros_like(counts)
    step[tied] = 1
    step_cost = (price_of(counts + step) - before)[tied]
    n_fitting = int(np.searchsorted(np.cumsum(step_cost), limit - float(before.sum()), side="right"))
    counts[tied[:n_fitting]] += 1
    return counts


def _sum_by_group(values: Ints, group: Ints, n_groups: int) -> Ints:
    total = np.zeros(n_groups, dtype=np.int64)
    np.add.at(total, group, values)
    return total


def _checked_upper(weights: Floats, lower: Ints, upper: Ints) -> Ints:
    if not np.all(np.isfinite(weights)) or np.any(weights < 0):
        raise ValueError("weights must be finite and at least 0")
    if np.any(lower > upper):
        raise ValueError(f"lower bound above upper bound in cell {int(np.argmax(lower > upper))}")
    return np.where(weights > 0, upper, lower).astype(np.int64)


def _threshold(weights: Floats, lower: Ints, upper: Ints, fits: Callable[[Ints], bool]) -> tuple[Ints, Ints]:
    """Return the longest fitting run of whole priority levels, and the cells tied at the next level.

    `fits` must hold for `lower`, fail for `upper` and never turn from False to True as counts grow.
    """
    top = np.max(weights / (lower + 0.5))  # no priority lies above it, so `lower` is the state there
    low, high = np.int64(0), np.float64(top).view(np.int64)
    while high - low > 1:
        middle = low + (high - low) // 2
        if fits(_counts_above(middle.view(np.float64), weights, lower, upper)):
            high = middle
        else:
            low = middle
    counts = _counts_above(high.view(np.float64), weights, lower, upper)
    beyond = _counts_above(low.view(np.float64), weights, lower, upper)
    return counts, np.flatnonzero(beyond > counts)


def _counts_above(level: np.float64 | Floats, weights: Floats, lower: Ints, upper: Ints) -> Ints:
    """Count, from `lower` up, the draws j of each cell whose float64 priority w / (j - 1/2) exceeds `level`.

    `level` is one for all or [H].
    """
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        guess = np.where(weights > 0, np.floor(weights / level + 0.5), 0.0)
    counts = np.clip(guess, lower, upper).astype(np.int64)
    while True:  # the guess is off by one where the division rounded; settle it by the priorities themselves
        down = (counts > lower) & (weights / np.maximum(counts - 0.5, 0.5) <= level)
        up = (counts < upper) & (weights / (counts + 0.5) > level)
        if not (down.any() or up.any()):
            return counts
        counts += up.astype(np.int64) - down.astype(np.int64)
