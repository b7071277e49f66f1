"""How many samples each cell should hold, and how many draws that means buying."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..catalogs.errors import DistdataError
from .allocate import MONEY_TOLERANCE, Floats, Ints, allocate, allocate_groups, allocate_money
from .bounds import NO_RULE, Bounds, first_names
from .budget import Budget
from .frame import Bools, Frame, first_seeds, sum_by_cell
from .layers import Layers, find_layers, first_true, refuse_layers
from .minima import SliceMinima
from .pilot import MIN_SEEDS
from .request import PlanRequest
from .worth import Stock


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Targets:
    """The counts of each cell, int64 [H], and what could not be placed.

    `target` are kept samples, `fresh` draws to buy from the frame's seeds. `below` bool [H]: the target lies below what
    floors, pins or minima ask for. `shortfall` is in the budget's unit, and `notes` say why there is one.
    """

    target: Ints
    fresh: Ints
    below: Bools
    shortfall: float
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """What the budget is spread over, arrays [H]: weights, bounds, what exists, and the price of a draw.

    `n_cases` are draws on divergence cases that are bought in any case; they are in `stock` already.
    """

    request: PlanRequest
    weight: Floats
    bounds: Bounds
    stock: Stock
    usd: Floats
    gpu_s: Floats
    n_cases: Ints
    layer_names: list[str]
    minima: SliceMinima | None
    frame: Frame

    def price(self) -> Floats:
        """Return what a draw costs in the budget's unit."""
        return self.usd if self.request.budget is None or self.request.budget.kind == "usd" else self.gpu_s / 3600


def set_targets(problem: Problem) -> Targets:
    """Spread the budget over the cells.

    A sample budget is the corpus aimed at: targets don't depend on what exists, and what exists lowers the purchase one
    for one. A money budget pays for new draws only and walks past what exists for free. Without a budget every cell
    gets its lower bound: the decidable minima of a gate plan.

    Raises:
        DistdataError: floors, pins or minima don't fit (unless `allow_undecidable`), layers can't hold, or nothing at
            all can be bought.
    """
    budget = problem.request.budget
    if budget is None:
        target, shortfall = problem.bounds.lower, 0.0
    elif problem.request.purpose == "pilot":
        target, shortfall = _by_seeds(problem, budget)
    elif budget.kind == "samples":
        target, shortfall = _by_samples(problem, int(budget.amount))
    else:
        target, shortfall = _by_money(problem, budget.amount)
    if not target.any() and not problem.stock.worth.any():
        _refuse_no_room(problem, problem.stock.offer > 0)
    fresh = problem.stock.fresh_for(target)
    notes = [_shortfall_note(problem, target, shortfall)] if shortfall else []
    offered = problem.stock.offer > 0
    nothing = not fresh.any() and not problem.n_cases.any()
    if nothing and budget is not None and budget.kind != "samples" and offered.any():
        least = budget.words(float(problem.price()[offered].min()))
        notes.append(
            f"Nothing to buy: {budget.words(budget.amount)} pays for no new draw where the plan would go on; a draw "
            f"costs {least} or more."
        )
    elif nothing:
        n = int(problem.stock.worth.sum())
        aim = (
            "what this budget aims at" if budget is not None else f"all that a {problem.request.purpose} plan asks for"
        )
        notes.append(f"Nothing to buy: the {n:,} sample{'s that exist are' if n != 1 else ' that exists is'} {aim}.")
    return Targets(
        target=target, fresh=fresh, below=target < problem.bounds.floor, shortfall=shortfall, notes=tuple(notes)
    )  # fmt: skip


def top_up(problem: Problem, goals: Ints) -> Targets:
    """Aim at `goals` [H], the targets of the plan in force, and buy what is short, as far as a money budget goes.

    Raises:
        DistdataError: the budget buys nothing though something is short.
    """
    budget, stock = problem.request.budget, problem.stock
    fresh = stock.fresh_for(goals)
    notes: list[str] = []
    if budget is not None and fresh.any():
        price = problem.price()
        _refuse_free(problem, fresh, price)
        wanted = float((fresh * price).sum())
        if wanted > budget.amount * (1 + MONEY_TOLERANCE):
            have = np.minimum(np.floor(stock.worth).astype(np.int64), goals)
            reached = allocate_money(
                goals.astype(np.float64), have, goals, lambda n: stock.fresh_for(n) * price, budget.amount
            )
            fresh = stock.fresh_for(reached)
            if not fresh.any():
                _refuse_nothing(problem, price, stock.fresh_for(goals) > 0)
            notes.append(
                f"{budget} pays for {int(fresh.sum()):,} of the {int(stock.fresh_for(goals).sum()):,} draws that are "
                f"short; all of them cost {budget.words(wanted)}."
            )
    if not fresh.any():
        notes.append(_nothing_short(problem, goals))
    return Targets(target=goals, fresh=fresh, below=np.zeros(len(goals), np.bool_), shortfall=0.0, notes=tuple(notes))


def _nothing_short(problem: Problem, goals: Ints) -> str:
    stock = problem.stock
    missing = goals > np.ceil(stock.worth * (1 - 1e-12)).astype(np.int64)
    if missing.any():
        return (
            f"Nothing can be bought now: {_count(int(missing.sum()), 'cell')} short, but the seeds offer no draw. The "
            "list of unfillable cells names those that never will; the others wait for verdicts on what they have."
        )
    n = int((goals > 0).sum())
    return (
        f"Nothing to buy: {'the one cell' if n == 1 else f'all {n:,} cells'} with a target stand{'s' * (n == 1)} at it."
    )


def _count(n: int, what: str) -> str:
    return f"{n:,} {what} is" if n == 1 else f"{n:,} {what}s are"


def _by_seeds(problem: Problem, budget: Budget) -> tuple[Ints, float]:
    """Deal a pilot's budget by whole seeds, all K draws of each: a seed with one draw shows no spread.

    Raises:
        DistdataError: the budget pays for fewer than 10 seeds with two draws though there are more seeds.
    """
    frame, money = problem.frame, budget.amount * (1 + MONEY_TOLERANCE)
    price = np.ones(len(problem.usd)) if budget.kind == "samples" else problem.price()
    if budget.kind != "samples":
        _refuse_free(problem, problem.stock.offer, price)
    offered = np.where(problem.weight > 0, sum_by_cell(frame, (frame.k_seed > 0).astype(np.int8)), 0)

    usable = np.flatnonzero(frame.k_seed > 0)
    first = np.searchsorted(usable, frame.start)[:-1]
    opened = np.append(0, np.cumsum(frame.k_seed[usable] > 1))

    def seeds_of(n_seeds: int) -> Ints:
        return allocate(problem.weight, np.zeros_like(offered), offered, n_seeds)

    def draws_of(n_seeds: int) -> Ints:
        return first_seeds(frame, seeds_of(n_seeds))  # type: ignore[arg-type]

    def n_open(n_seeds: int) -> int:
        return int((opened[first + seeds_of(n_seeds)] - opened[first]).sum())

    def cost(target: Ints) -> float:
        bought = target if budget.kind == "samples" else problem.stock.fresh_for(target)
        return float((bought * price).sum())

    n_all = int(offered.sum())
    n_seeds = first_true(lambda n: cost(draws_of(n)) > money, 1, n_all + 1) - 1
    enough = min(MIN_SEEDS, n_open(n_all))
    if (n_paid := n_open(n_seeds)) < enough:
        least = cost(draws_of(first_true(lambda n: n_open(n) >= enough, 1, n_all)))
        raise DistdataError(
            f"plan pilot: {budget} pays for {n_paid:,} seed{'' if n_paid == 1 else 's'} with two draws or more, and "
            f"fewer than {MIN_SEEDS} show no spread to go by: these cost {budget.words(least)}. Give at least --budget "
            f"{budget.text_at_least(least)}, or leave out --budget for the usual pilot."
        )
    if n_seeds == 0:
        _refuse_nothing(problem, price, offered > 0)
    target = draws_of(n_seeds)
    left = budget.amount - cost(target)
    return target, left if n_seeds == n_all and left > budget.amount * MONEY_TOLERANCE else 0.0


def _by_samples(problem: Problem, budget: int) -> tuple[Ints, float]:
    request, bounds = problem.request, problem.bounds
    lower, upper = bounds.lower, bounds.upper
    total = int(lower.sum())
    if request.layers is not None and request.purpose == "train":
        layers = find_layers(request, problem.layer_names, problem.weight, lower, upper)
        placed = min(budget, layers.largest()) if request.allow_undecidable else budget
        if not request.allow_undecidable:
            refuse_layers(layers, budget)
        return _layered(layers, placed), float(budget - placed)
    if total > budget:
        _refuse_floors(problem, float(total), f"need {total:,} samples")
        target = allocate(lower.astype(np.float64), np.zeros_like(lower), lower, budget)
    else:
        target = allocate(problem.weight, lower, upper, budget)
    return target, float(budget - int(target.sum()))


def _layered(layers: Layers, total: int) -> Ints:
    """Deal `total`, each layer its part; floors that don't fit into a part are scaled down to it."""
    parts, lower = layers.parts(total), layers.lower
    fitting = allocate_groups(
        lower.astype(np.float64), np.zeros_like(lower), lower, layers.layer, np.minimum(parts, layers.least)
    )
    return allocate_groups(layers.weight, fitting, layers.upper, layers.layer, parts)


def _by_money(problem: Problem, amount: float) -> tuple[Ints, float]:
    request, bounds, stock = problem.request, problem.bounds, problem.stock
    price = problem.price()
    _refuse_free(problem, stock.offer, price)
    money = max(amount - float((problem.n_cases * price).sum()), 0.0)
    lower = bounds.lower
    upper = np.maximum(lower, np.minimum(bounds.upper, stock.within_reach()))

    def price_of(target: Ints) -> Floats:
        return stock.fresh_for(target) * price

    least = float(price_of(lower).sum())
    if request.layers is not None and request.purpose == "train":
        layers = find_layers(request, problem.layer_names, problem.weight, lower, upper)
        target, upper = _by_money_in_layers(problem, layers, price_of, money)
    elif least > money * (1 + MONEY_TOLERANCE):
        assert request.budget is not None, "money comes from a budget"
        _refuse_floors(problem, _with_cases(problem, least), f"cost {request.budget.words(least)}")
        target = allocate_money(lower.astype(np.float64), np.zeros_like(lower), lower, price_of, money)
    else:
        target = allocate_money(problem.weight, lower, upper, price_of, money)
    if not target.any() and not problem.n_cases.any():
        _refuse_nothing(problem, price, stock.offer > 0)
    left = money - float(price_of(target).sum())
    exhausted = bool(np.all((target == upper) | (problem.weight == 0))) and left > amount * MONEY_TOLERANCE
    return target, left if exhausted else 0.0


def _by_money_in_layers(
    problem: Problem, layers: Layers, price_of: Callable[[Ints], Floats], money: float
) -> tuple[Ints, Ints]:
    """Find the largest total whose parts fit the money; return targets and what the largest total of all would be."""
    limit = money * (1 + MONEY_TOLERANCE)
    smallest, largest = layers.smallest(), layers.largest()
    scaled = problem.request.allow_undecidable
    if not scaled and smallest > largest:
        refuse_layers(layers, max(largest, 1))
    low = 0 if scaled else smallest

    def too_dear(total: int) -> bool:
        return float(price_of(_layered(layers, total)).sum()) > limit

    if not scaled and too_dear(low):
        least = float(price_of(_layered(layers, low)).sum())
        budget = problem.request.budget
        assert budget is not None, "money comes from a budget"
        _refuse_floors(
            problem, _with_cases(problem, least),
            f"take {low:,} samples in these shares of the layers, which cost {budget.words(least)}",
        )  # fmt: skip
    total = first_true(too_dear, low, largest + 1) - 1
    return _layered(layers, max(total, 0)), _layered(layers, largest)


def _with_cases(problem: Problem, least: float) -> float:
    """Return a budget that leaves `least` once the divergence cases have had their share of it."""
    request = problem.request
    spent = float((problem.n_cases * problem.price()).sum())
    if spent == 0:
        return least
    return least / (1 - request.case_share) if request.case_share < 1 else least + spent


def _shortfall_note(problem: Problem, target: Ints, shortfall: float) -> str:
    budget, bounds = problem.request.budget, problem.bounds
    assert budget is not None, "only a budget falls short"
    held = (target >= bounds.upper) & (bounds.upper > 0)
    by_rule = held & (((bounds.cap != NO_RULE) & (bounds.cap < bounds.ceiling)) | (bounds.pin != NO_RULE))
    spent = ~held & (problem.stock.fresh_for(target) == problem.stock.offer) & (bounds.upper > 0)
    reasons = []
    if n := int((held & ~by_rule).sum()):
        reasons.append(f"{_cells(n)} no more seeds x K to give")
    if n := int(by_rule.sum()):
        reasons.append(f"{_cells(n)} a cap or pin that stops there")
    if (n := int(spent.sum())) and budget.kind != "samples":
        reasons.append(f"{_cells(n)} no more to offer until verdicts are in")
    if problem.request.layers is not None:
        reasons.append("the shares of the layers hold the others back")
    return (
        f"{budget.words(shortfall)} of {budget} could not be placed: {'; '.join(reasons)}. Import more seeds, or raise "
        "K or the caps."
    )


def _cells(n: int) -> str:
    return f"{n:,} cell has" if n == 1 else f"{n:,} cells have"


def _refuse_free(problem: Problem, offer: Ints, price: Floats) -> None:
    budget = problem.request.budget
    if budget is not None and np.any(offer > 0) and not np.any(price[offer > 0] > 0):
        raise DistdataError(
            f"plan {problem.request.purpose}: a draw of this teacher costs 0 {budget.kind}, so {budget} "
            "sets no limit. Give a budget in samples, or set a price under [teacher]."
        )


def _refuse_nothing(problem: Problem, price: Floats, offered: Bools) -> None:
    purpose, budget = problem.request.purpose, problem.request.budget
    assert budget is not None, "only a budget can be too small"
    if not offered.any() or price[offered].min() <= budget.amount:
        _refuse_no_room(problem, offered)
    cheapest = float(price[offered].min())
    raise DistdataError(
        f"plan {purpose}: {budget} buys nothing; the cheapest draw costs {budget.words(cheapest)}. Give at least "
        f"--budget {budget.text_at_least(cheapest)}"
    )


def _refuse_no_room(problem: Problem, offered: Bools) -> None:
    """Refuse a plan in which no cell can get a sample, whatever the budget."""
    purpose = problem.request.purpose
    if not offered.any():
        raise DistdataError(f"plan {purpose}: no cell has seeds to draw from. Import seeds first.")
    n_idle, n_held = int((offered & (problem.weight == 0)).sum()), int((offered & (problem.bounds.upper == 0)).sum())
    raise DistdataError(
        f"plan {purpose}: of {int(offered.sum()):,} cells with seeds none can get a sample: {n_idle:,} by a weight of "
        f"0 under policy {problem.request.policy}, {n_held:,} by a cap or pin of 0. Take another policy, give these "
        "cells a floor, or change the rules."
    )


def _refuse_floors(problem: Problem, least: float, need: str) -> None:
    """Refuse a budget below floors, pins and minima, unless that is allowed: then they are scaled down."""
    request, bounds = problem.request, problem.bounds
    if request.allow_undecidable:
        return
    assert request.budget is not None, "only a budget can be too small"
    enough = request.budget.text_at_least(least)
    if problem.minima is not None:
        minima = problem.minima
        at = np.argsort(-minima.needed, kind="stable")
        shown = first_names([f"{minima.names[i]} {min(minima.needed[i], minima.ceiling[i]):,}" for i in at])
        what, out = (
            f"the decidable minima of {len(at):,} slice{'s' if len(at) > 1 else ''} ({shown})",
            "widen their bands",
        )
    else:
        pinned = int((bounds.pin > 0).sum())
        n_floors = int(((bounds.lower > 0) & (bounds.pin == NO_RULE)).sum())
        what = f"the floors of {n_floors:,} cell{'s' if n_floors > 1 else ''} ({request.floor_seeds} seeds each"
        what += ", or more by [[plan.rules]])" if bounds.ruled.any() else ")"
        what += f" and the pins of {pinned:,} more" if pinned else ""
        out = "lower [plan] floor_seeds or the rules"
    raise DistdataError(
        f"plan {request.purpose}: {what} {need}; the budget is {request.budget}. Give at least --budget {enough}, "
        f"{out}, or pass --allow-undecidable to scale them down and mark the cells."
    )
