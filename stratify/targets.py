"""How many samples each cell should hold, and how many draws that means buying."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..catalogs.errors import DistdataError
from .allocate import MONEY_TOLERANCE, Floats, Ints, allocate, allocate_money, price
from .request import PlanRequest

Bools = NDArray[np.bool_]

_ROUNDING = 1e-12
"""Relative slack against rounding by the yield: 57 kept at 0.57 are 100 draws, not 101, and back 57, not 56."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Targets:
    """The counts of each cell, int64 [H], and what could not be placed.

    `floor` and `ceiling` are draws, `target` kept samples, `credit` draws that exist, `fresh` draws to buy.
    `shortfall` is in the budget's unit.
    """

    floor: Ints
    ceiling: Ints
    credit: Ints
    target: Ints
    fresh: Ints
    below_floor: Bools
    shortfall: float


def set_targets(
    request: PlanRequest, *, weight: Floats, floor: Ints, ceiling: Ints, credit: Ints, usd: Floats, gpu_s: Floats
) -> Targets:
    """Spread the budget over the cells, all arrays [H].

    A sample budget is the corpus aimed at: targets don't depend on what exists, and what exists lowers the
    purchase one for one. A money budget pays for new draws only and walks past the others for free; it deals draws
    rather than kept samples, and targets follow by the expected yield.

    Raises:
        DistdataError: the floors don't fit (unless `allow_undecidable`), or nothing at all can be bought.
    """
    if request.budget.kind == "samples":
        target, purchase, below, shortfall = _by_samples(request, weight, floor, ceiling)
    else:
        cost = usd if request.budget.kind == "usd" else gpu_s / 3600
        target, purchase, below, shortfall = _by_money(request, weight, floor, ceiling, credit, cost)
    return Targets(
        floor=floor,
        ceiling=ceiling,
        credit=credit,
        target=target,
        fresh=np.maximum(purchase - credit, 0),
        below_floor=below,
        shortfall=shortfall,
    )


def _by_samples(request: PlanRequest, weight: Floats, floor: Ints, ceiling: Ints) -> tuple[Ints, Ints, Bools, float]:
    budget = int(request.budget.amount)
    upper = _kept_of(ceiling, request.expected_yield)
    lower = np.minimum(floor, upper)
    if int(lower.sum()) > budget:
        _refuse_floors(request, lower, float(lower.sum()), f"need {int(lower.sum()):,} samples")
        target = allocate(lower.astype(np.float64), np.zeros_like(lower), lower, budget)
    else:
        target = allocate(weight, lower, upper, budget)
    if not target.any():
        raise DistdataError(f"plan {request.purpose}: no cell has seeds to draw from. Import seeds first.")
    purchase = np.minimum(_draws_for(target, request.expected_yield), ceiling)
    return target, purchase, target < lower, float(budget - int(target.sum()))


def _by_money(
    request: PlanRequest, weight: Floats, floor: Ints, ceiling: Ints, credit: Ints, cost: Floats
) -> tuple[Ints, Ints, Bools, float]:
    money = request.budget.amount
    _refuse_free(request, ceiling, cost)
    lower = np.minimum(
        _draws_for(np.minimum(floor, _kept_of(ceiling, request.expected_yield)), request.expected_yield), ceiling
    )
    floor_cost = price(lower, cost, credit)
    if floor_cost > money * (1 + MONEY_TOLERANCE):
        _refuse_floors(request, lower, floor_cost, f"cost {request.budget.text_at_least(floor_cost)}")
        purchase = allocate_money(lower.astype(np.float64), np.zeros_like(lower), lower, cost, credit, money)
    else:
        purchase = allocate_money(weight, lower, ceiling, cost, credit, money)
    if not purchase.any():
        cheapest = request.budget.text_at_least(float(cost[ceiling > 0].min()))
        raise DistdataError(
            f"plan {request.purpose}: {request.budget} buys nothing; the cheapest draw costs {cheapest}. Give more."
        )
    left = money - price(purchase, cost, credit)
    exhausted = bool(np.all((purchase == ceiling) | (weight == 0))) and left > money * MONEY_TOLERANCE
    return _kept_of(purchase, request.expected_yield), purchase, purchase < lower, left if exhausted else 0.0


def _kept_of(draws: Ints, expected_yield: float) -> Ints:
    """Return the kept samples that `draws` draws lead to expect: rounded down, but at least 1 where there is a draw."""
    kept = np.floor(draws * expected_yield * (1 + _ROUNDING)).astype(np.int64)
    kept_or_one: Ints = np.maximum(kept, np.minimum(draws, 1))
    return kept_or_one


def _draws_for(kept: Ints, expected_yield: float) -> Ints:
    """Return the draws to buy for `kept` expected samples, rounded up."""
    draws: Ints = np.ceil(kept / expected_yield * (1 - _ROUNDING)).astype(np.int64)
    return draws


def _refuse_free(request: PlanRequest, ceiling: Ints, cost: Floats) -> None:
    if np.any(ceiling > 0) and not np.any(cost[ceiling > 0] > 0):
        raise DistdataError(
            f"plan {request.purpose}: a draw of this teacher costs 0 {request.budget.kind}, so {request.budget} "
            "sets no limit. Give a budget in samples, or set a price under [teacher]."
        )


def _refuse_floors(request: PlanRequest, lower: Ints, least: float, need: str) -> None:
    if request.allow_undecidable:
        return
    floors = f"the floors of {int((lower > 0).sum()):,} cells ({request.floor_seeds} seeds each)"
    enough = request.budget.text_at_least(least)
    raise DistdataError(
        f"plan {request.purpose}: {floors} {need}; the budget is {request.budget}. Give at least --budget {enough}, "
        "lower [plan] floor_seeds, or pass --allow-undecidable to scale the floors down and mark the cells."
    )
