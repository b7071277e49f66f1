"""Whole draws per cell: worked by hand, against the one-by-one law, and its invariants."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distdata.stratify.allocate import allocate, allocate_groups, allocate_money

Array = np.ndarray


def _floats(values: Sequence[float]) -> Array:
    return np.array(values, dtype=np.float64)


def _ints(values: Sequence[int]) -> Array:
    return np.array(values, dtype=np.int64)


# A cell's successive draws have priority w/0.5, w/1.5, w/2.5, ... = w x (2, 0.667, 0.4, 0.286, 0.222, 0.182, ...).
HAND_WORKED = {
    # three equal cells take turns: 2 rounds = 6 draws, the 7th to the first
    "equal": ([1, 1, 1], [0, 0, 0], [99, 99, 99], 7, [3, 2, 2]),
    # a: 8, 2.67, 1.6, 1.14; b: 2, 0.67. Largest five: 8, 2.67, b2, 1.6, 1.14
    "four_to_one": ([4, 1], [0, 0], [99, 99], 5, [4, 1]),
    # whole quotas are met to the digit
    "exact_quota": ([6, 3, 1], [0, 0, 0], [99, 99, 99], 10, [6, 3, 1]),
    # quotas 5.3, 2.4, 2.3 round to 5, 2, 2; the tenth: 53/5.5 = 9.64 > 24/2.5 = 9.6 (largest remainder says 24)
    "not_largest_remainder": ([53, 24, 23], [0, 0, 0], [99, 99, 99], 10, [6, 2, 2]),
    # bands 0.10 and 0.05 at gamma 2: weights 1 and 4, so 2 and 8 of 10
    "half_the_band": ([1, 4], [0, 0], [99, 99], 10, [2, 8]),
    # the first stops at its ceiling of 3 and the other takes the rest
    "ceiling": ([4, 1], [0, 0], [3, 100], 10, [3, 7]),
    # the second starts at its floor of 4; its next priority 1/4.5 = 0.22 never beats 100/5.5
    "floor": ([100, 1], [0, 4], [99, 99], 10, [6, 4]),
    # 3 are the floor of b; a: 16, 5.33, 3.2, 2.29 to its ceiling, then c: 2, 0.67, 0.4 against b's 1/3.5 = 0.29
    "floor_and_ceiling": ([8, 1, 1], [0, 3, 0], [4, 9, 9], 10, [4, 3, 3]),
    # a weight of 0 gets its floor and no more, even when draws are left over
    "zero_weight": ([1, 0], [0, 2], [5, 9], 10, [5, 2]),
    # every ceiling reached before the budget: 5 of 9
    "all_full": ([1, 7], [0, 0], [2, 3], 9, [2, 3]),
    # 3/1.5 = 1/0.5 = 2: a tie at the second draw, to the earlier cell
    "tie_first": ([3, 1], [0, 0], [9, 9], 2, [2, 0]),
    # the same tie with the cells swapped: b 6, then a 2 = b 2, to a
    "tie_swapped": ([1, 3], [0, 0], [9, 9], 2, [1, 1]),
    # Alabama: at 10, a 12 4 2.4 1.71 | b the same | c 4: nine, then 6/4.5 = 6/4.5 = 2/1.5, to a
    "alabama_10": ([6, 6, 2], [0, 0, 0], [99, 99, 99], 10, [5, 4, 1]),
    # at 11 the next of the three ties; largest remainder would take c from 2 draws to 1 between 10 and 11
    "alabama_11": ([6, 6, 2], [0, 0, 0], [99, 99, 99], 11, [5, 5, 1]),
    "alabama_12": ([6, 6, 2], [0, 0, 0], [99, 99, 99], 12, [5, 5, 2]),
    "budget_of_the_floors": ([5, 1], [2, 3], [9, 9], 5, [2, 3]),
}


@pytest.mark.parametrize("case", HAND_WORKED.values(), ids=HAND_WORKED.keys())
def test_allocations_worked_by_hand(case: tuple[list[float], list[int], list[int], int, list[int]]) -> None:
    """Each allocation equals the one derived in its comment."""
    weights, lower, upper, budget, expected = case
    counts = allocate(_floats(weights), _ints(lower), _ints(upper), budget)
    assert counts.tolist() == expected


MONEY_BY_HAND = {
    # a, b, a, b, ...: 2, 3, 5, then b would make 6
    "stops_at_the_limit": ([1, 1], [9, 9], [2, 1], [0, 0], 5.0, [2, 1]),
    # the first purchase costs 10 of 5: stop, though b would fit
    "stops_rather_than_skips": ([1, 1], [9, 9], [10, 1], [0, 0], 5.0, [0, 0]),
    # a's first 3 exist: a free, b 2, a free, b 4, a free, b would make 6
    "existing_draws_are_free": ([1, 1], [9, 9], [2, 2], [3, 0], 4.0, [3, 2]),
    # three times 0.1 is 0.30000000000000004, and still fits into 0.3
    "decimal_money": ([1], [9], [0.1], [0], 0.3, [3]),
    # everything there is costs 4 of 100
    "all_bought": ([1, 2], [2, 2], [1, 1], [0, 0], 100.0, [2, 2]),
}


def _price_of(cost: Array, free: Array) -> Callable[[Array], Array]:
    """Price counts whose first `free` of each cell exist already."""
    return lambda counts: np.maximum(counts - free, 0) * cost


@pytest.mark.parametrize("case", MONEY_BY_HAND.values(), ids=MONEY_BY_HAND.keys())
def test_money_allocations_worked_by_hand(
    case: tuple[list[float], list[int], list[float], list[int], float, list[int]],
) -> None:
    """A money budget walks the same sequence and stops before the first draw that doesn't fit."""
    weights, upper, cost, free, money, expected = case
    nothing = np.zeros(len(weights), dtype=np.int64)
    counts = allocate_money(_floats(weights), nothing, _ints(upper), _price_of(_floats(cost), _ints(free)), money)
    assert counts.tolist() == expected


@st.composite
def _problems(draw: st.DrawFn) -> tuple[Array, Array, Array]:
    """Draw weights with many ties and zeros, and bounds."""
    n = draw(st.integers(1, 7))
    some = st.one_of(st.sampled_from([0.0, 1.0, 2.0, 3.0, 6.0, 0.1, 0.3]), st.floats(1e-6, 1e6))
    weights = draw(st.lists(some, min_size=n, max_size=n))
    lower = draw(st.lists(st.integers(0, 6), min_size=n, max_size=n))
    room = draw(st.lists(st.integers(0, 12), min_size=n, max_size=n))
    return _floats(weights), _ints(lower), _ints(lower) + _ints(room)


def _sequence(weights: Array, lower: Array, upper: Array) -> list[int]:
    """List the cells in the order in which single draws are dealt: the law itself, one draw at a time."""
    counts, order = lower.copy(), []
    while True:
        priority = [w / (n + 0.5) if w > 0 and n < u else -1.0 for w, n, u in zip(weights, counts, upper, strict=True)]
        best = int(np.argmax(priority))  # the first of equals
        if priority[best] < 0:
            return order
        counts[best] += 1
        order.append(best)


@given(problem=_problems(), extra=st.integers(0, 60))
@settings(max_examples=300, deadline=None)
def test_equal_to_dealing_one_draw_at_a_time(problem: tuple[Array, Array, Array], extra: int) -> None:
    """Bisection gives the very counts of the sequential law, ties included, and meets the budget inside the bounds."""
    weights, lower, upper = problem
    budget = int(lower.sum()) + extra
    order = _sequence(weights, lower, upper)
    expected = lower + np.bincount(np.array(order[:extra], dtype=np.int64), minlength=len(weights))
    counts = allocate(weights, lower, upper, budget)
    assert counts.tolist() == expected.tolist()
    assert counts.sum() == min(budget, lower.sum() + len(order))
    assert np.all((lower <= counts) & (counts <= upper))


@given(
    problem=_problems(),
    cost=st.lists(st.integers(0, 5), min_size=7, max_size=7),
    free=st.lists(st.integers(0, 9), min_size=7, max_size=7),
    extra=st.integers(0, 60),
)
@settings(max_examples=300, deadline=None)
def test_money_equal_to_buying_one_draw_at_a_time(
    problem: tuple[Array, Array, Array], cost: list[int], free: list[int], extra: int
) -> None:
    """With whole prices the money walk ends exactly where buying one by one ends."""
    weights, lower, upper = problem
    n = len(weights)
    prices, owned = _floats(cost[:n]), _ints(free[:n])
    spent = float((np.maximum(lower - owned, 0) * prices).sum())
    money, expected = spent + extra, lower.copy()
    for cell in _sequence(weights, lower, upper):
        step = prices[cell] if expected[cell] >= owned[cell] else 0.0
        if spent + step > money:
            break
        spent += step
        expected[cell] += 1
    assert allocate_money(weights, lower, upper, _price_of(prices, owned), money).tolist() == expected.tolist()


# steps that cost more the further they go, as draws do whose yield is below 1: 1, 2, 1, 2, ... dollars a kept sample
UNEVEN = [0.0, 1.0, 3.0, 4.0, 6.0, 7.0]


@pytest.mark.parametrize(("money", "expected"), [(0.9, [0, 0]), (1, [1, 0]), (2, [1, 1]), (3.9, [1, 1]), (4, [2, 1])])
def test_uneven_prices_stop_before_the_step_that_does_not_fit(money: float, expected: list[int]) -> None:
    """Two equal cells take turns: 1, 1, then 2 dollars for a's second sample, which 3.9 dollars don't pay."""
    both, table = np.zeros(2, dtype=np.int64), np.array(UNEVEN)
    counts = allocate_money(np.ones(2), both, both + 5, lambda n: table[n], money)
    assert counts.tolist() == expected


@given(
    problem=_problems(),
    groups=st.lists(st.integers(0, 2), min_size=7, max_size=7),
    extra=st.lists(st.integers(0, 30), min_size=3, max_size=3),
)
@settings(max_examples=300, deadline=None)
def test_groups_are_dealt_as_if_each_were_alone(
    problem: tuple[Array, Array, Array], groups: list[int], extra: list[int]
) -> None:
    """Dealing all groups at once equals `allocate` for each, ties, empty groups and generous budgets included."""
    weights, lower, upper = problem
    group = _ints(groups[: len(weights)])
    budgets = _ints([int(lower[group == g].sum()) + extra[g] for g in range(3)])
    counts = allocate_groups(weights, lower, upper, group, budgets)
    for g in range(3):
        mine = group == g
        assert counts[mine].tolist() == allocate(weights[mine], lower[mine], upper[mine], int(budgets[g])).tolist()


def test_a_group_below_its_lower_bounds_is_refused() -> None:
    """The error names the group and both numbers."""
    with pytest.raises(ValueError, match="group 1 sum to 3, above its budget of 2"):
        allocate_groups(np.ones(3), _ints([1, 1, 2]), _ints([9, 9, 9]), _ints([0, 1, 1]), _ints([1, 2]))


@given(problem=_problems(), extra=st.integers(0, 40))
@settings(max_examples=200, deadline=None)
def test_a_larger_budget_takes_no_draw_away(problem: tuple[Array, Array, Array], extra: int) -> None:
    """One more draw of budget never lowers any cell's count (house monotone)."""
    weights, lower, upper = problem
    budget = int(lower.sum()) + extra
    assert np.all(allocate(weights, lower, upper, budget + 1) >= allocate(weights, lower, upper, budget))


@given(problem=_problems(), extra=st.integers(0, 40), factor=st.floats(1.0, 50.0), at=st.integers(0, 6))
@settings(max_examples=200, deadline=None)
def test_a_heavier_cell_never_gets_less(
    problem: tuple[Array, Array, Array], extra: int, factor: float, at: int
) -> None:
    """Raising one weight (a tighter band, a boost) never lowers that cell's count."""
    weights, lower, upper = problem
    cell, budget = at % len(weights), int(lower.sum()) + extra
    heavier = weights.copy()
    heavier[cell] *= factor
    assert allocate(heavier, lower, upper, budget)[cell] >= allocate(weights, lower, upper, budget)[cell]


def test_ten_thousand_cells_meet_a_large_budget_exactly() -> None:
    """At 10,000 cells and 100 million draws the sum is exact and no quota is missed by a whole draw.

    The quotas are computed directly, w / sum(w) x budget.
    """
    weights = np.random.default_rng(7).uniform(1, 2, 10_000)
    counts = allocate(weights, np.zeros(10_000, dtype=np.int64), np.full(10_000, 10**9), 10**8)
    assert counts.sum() == 10**8
    assert np.abs(counts - weights / weights.sum() * 1e8).max() < 1


@pytest.mark.parametrize(
    ("weights", "lower", "upper", "budget", "reason"),
    [
        ([1, float("nan")], [0, 0], [1, 1], 1, "finite"),
        ([1, -1], [0, 0], [1, 1], 1, "at least 0"),
        ([1, 1], [0, 3], [1, 2], 1, "cell 1"),
        ([1, 1], [2, 2], [9, 9], 3, "sum to 4, above the budget of 3"),
    ],
)
def test_impossible_inputs_are_refused(
    weights: list[float], lower: list[int], upper: list[int], budget: int, reason: str
) -> None:
    """Weights that are no weights and bounds that can't be met raise ValueError with the reason."""
    with pytest.raises(ValueError, match=reason):
        allocate(_floats(weights), _ints(lower), _ints(upper), budget)
    price_of = _price_of(np.ones(2), np.zeros(2, dtype=np.int64))
    with pytest.raises(ValueError, match="lower bounds cost 4" if "sum" in reason else reason):
        allocate_money(_floats(weights), _ints(lower), _ints(upper), price_of, float(budget))
