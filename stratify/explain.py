"""Say in sentences why a cell got its number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from ..catalogs.tables import usd
from .patterns import matching
from .request import FRAME_SPLIT, Plan

MAX_CELLS = 20
_UNDECIDABLE = {
    "no seeds": "no {split} seeds: nothing can be bought here, and a gate can't decide it",
    "below floor": "its floor of {floor:,} could not be met; a gate may stay undecided",
    "below the decidable minimum": "its slice gets less than its decidable minimum; its gate will stay undecided",
    "too few gate groups": "its slice has too few held-out groups; its gate will stay undecided",
}


def explain(plan: Plan, pattern: str) -> list[str]:
    """Tell the chain of numbers of every cell that `pattern` names, at most 20 cells.

    A pattern is axis values in any order (``rain,night``), all of a slice's or only some, a scenario type, or both
    as in ``rain,night/pedestrian_crossing``.

    Raises:
        DistdataError: a value or scenario type nobody knows, or values that never come together.
    """
    found = plan.cells.filter(pl.Series(matching(plan.cells, pattern, "--explain")[0]))
    lines: list[str] = []
    total_weight = float(plan.cells["weight"].to_numpy().sum())
    for row in found.head(MAX_CELLS).iter_rows(named=True):
        lines += [f"{row['cell']} ({row['layer']})", *("  " + line for line in _chain(plan, row, total_weight))]
    if found.height > MAX_CELLS:
        n = found.height - MAX_CELLS
        lines.append(
            f"... and {n} more {'cells match' if n > 1 else 'cell matches'} {pattern!r}; add values or a type."
        )
    return lines


def _chain(plan: Plan, row: Mapping[str, Any], total_weight: float) -> list[str]:
    if not row["feasible"]:
        return ["declared infeasible: it is not planned"]
    lines = [
        *_weight_lines(plan, row, total_weight),
        *_bound_lines(plan, row),
        _target_line(plan, row, total_weight),
        *_purchase_lines(row),
        *_gate_lines(plan, row),
        *_price_lines(plan, row),
    ]
    if row["mark"]:
        lines.append("marked: " + _UNDECIDABLE[row["mark"]].format(split=_split(plan), floor=row["floor"]))
    if row["unfillable"]:
        lines.append(f"unfillable: {row['unfillable']}; no top-up will reach {row['target']:,}")
    return lines


def _split(plan: Plan) -> str:
    return FRAME_SPLIT[plan.request.purpose]


def _weight_lines(plan: Plan, row: Mapping[str, Any], total_weight: float) -> list[str]:
    request = plan.request
    if request.top_up:
        return ["top-up: its target is that of the plan in force"]
    n_feasible = int(plan.cells["feasible"].sum())
    share = f"fleet share {row['fleet_share']:.4g}"
    if request.policy == "fleet":
        base = f"base {row['base']:.4g}: its {share}"
    elif request.policy == "neyman":
        base = f"base {row['base']:.4g}: its {share} x spread / root of price"
    elif request.policy == "gate" and request.fleet_blend > 0:
        blend = request.fleet_blend
        base = f"base {row['base']:.4g}: {1 - blend:.0%} of 1/{n_feasible} + {blend:.0%} of its {share}"
    else:
        base = f"base {row['base']:.4g}: one of {n_feasible} feasible cells, all alike"
    if request.policy == "gate":
        band = (
            f"band {row['band']:.4g}, the widest is {plan.band_ref:.4g}: "
            f"({plan.band_ref:.4g} / {row['band']:.4g})^{request.gamma:g} = x {row['tightness']:.4g}"
        )
    else:
        band = f"band {row['band']:.4g}: not used by policy {request.policy}"
    boost = f"boost x {row['boost']:.4g}" if row["boost"] != 1 else "boost none"
    return [base, band, boost, f"weight {row['weight']:.4g}: {_part(row, total_weight):.2%} of all weight"]


def _part(row: Mapping[str, Any], total_weight: float) -> float:
    return float(row["weight"]) / total_weight if total_weight > 0 else 0.0


def _bound_lines(plan: Plan, row: Mapping[str, Any]) -> list[str]:
    lines = []
    if row["rule"]:
        lines.append(f"rules: {row['rule']}")
    if row["k_source"]:
        lines.append(f"K {row['k_source']}")
    layers = plan.request.layers
    if layers is not None and plan.request.purpose == "train" and not plan.request.top_up:
        part = int(plan.cells.filter(pl.col("layer") == row["layer"])["target"].sum())
        share = {str(name): value for name, value in layers.items()}.get(row["layer"], 0.0)
        lines.append(f"layer {row['layer']}: {share:.4g} of {plan.n_target:,} samples = {part:,} for all its cells")
    return lines


def _target_line(plan: Plan, row: Mapping[str, Any], total_weight: float) -> str:
    target, ceiling = row["target"], row["ceiling"]
    k_mean = ceiling / row["n_seeds_frame"] if row["n_seeds_frame"] else 0.0
    limits = f"ceiling {ceiling:,} ({row['n_seeds_frame']:,} seeds x {k_mean:.3g} draws)"
    if plan.request.top_up:
        return f"{limits}: target {target:,} kept samples"
    if row["pin"] >= 0:
        cut = "" if target == row["pin"] else ", all that there can be"
        return f"pinned to {row['pin']:,} by the rules, {limits}: target {target:,} kept samples{cut}"
    bounds = f"{_floor_words(plan, row)}{limits}"
    if row["cap"] >= 0:
        bounds += f", capped at {row['cap']:,} by the rules"
    proportional = _part(row, total_weight) * plan.n_target
    held = ""
    if target and 0 <= row["cap"] <= target:
        held = ", held by the cap"
    elif target and target >= ceiling:
        held = ", held by the ceiling"
    elif target and target <= row["floor"] and target > proportional:
        held = ", raised to the floor" if target == row["floor"] else ", all that the budget leaves of the floor"
    alone = f"its weight alone: {proportional:,.1f} of {plan.n_target:,}"
    return f"{bounds}: target {target:,} kept samples ({alone}){held}"


def _floor_words(plan: Plan, row: Mapping[str, Any]) -> str:
    purpose = plan.request.purpose
    if purpose == "train":
        reason = "by the rules" if row["floor_ruled"] else f"K draws of its first {plan.request.floor_seeds}"
        return f"floor {row['floor']:,} ({reason}), "
    if purpose == "pilot":
        return f"floor {row['floor']:,} (the pilot's part), " if row["floor"] else ""
    return f"floor {row['floor']:,} (its part of the slice's minimum), "


def _purchase_lines(row: Mapping[str, Any]) -> list[str]:
    """Tell the yield, what existing draws are worth, and the purchase."""
    lines = []
    if row["yield_measured"]:
        lines.append(f"yield {row['yield']:.1%}, measured by its verdicts")
    elif row["yield"] < 1:
        lines.append(f"yield {row['yield']:.1%}, expected: nothing was verified here yet")
    rejected = f" ({row['n_rejected']:,} more were rejected)" if row["n_rejected"] else ""
    worth = ""
    if row["n_rejected"] or (row["yield"] < 1 and row["credit"]):
        worth = f" are worth {row['worth']:,.1f} kept samples"
    cases = f", {row['n_cases']:,} of them on divergence cases," if row["n_cases"] else ""
    return [
        *lines,
        f"existing draws {row['credit']:,}{rejected}{worth}: buy {row['fresh']:,}{cases} for {usd(row['usd'])} and "
        f"{row['gpu_s'] / 3600:,.3g} GPU-hours; the corpus then rests on {row['n_seeds_taken']:,} of "
        f"{row['n_seeds_frame']:,} seeds",
    ]


def _gate_lines(plan: Plan, row: Mapping[str, Any]) -> list[str]:
    found = plan.minima.filter(pl.col("slice") == row["slice"])
    if found.height == 0:
        return []
    gate, aims = found.row(0, named=True), plan.request.aims
    return [
        f"gate of {row['slice']}: {gate['needed']:,} draws a side tell a difference of {aims.expected_difference:g} "
        f"bands from one of a whole band (band {gate['band']:.4g}, K {gate['k']:.3g}, sigma {gate['sigma']:.3g}); "
        f"planned {gate['target']:,}"
    ]


def _price_lines(plan: Plan, row: Mapping[str, Any]) -> list[str]:
    found = plan.prices.filter(pl.col("slice") == row["slice"])
    if found.height == 0:
        return []
    if plan.request.policy != "gate" and plan.minima.height == 0:
        return [f"price of bands 10% tighter: none, policy {plan.request.policy} does not look at them"]
    price = found.row(0, named=True)
    said = f"price of bands 10% tighter in {row['slice']}: "
    if price["n_draws"]:
        said += f"{price['n_draws']:,} more draws, {usd(price['usd'])}, {price['gpu_s'] / 3600:,.3g} GPU-hours"
    elif not price["n_missing"]:
        said += "nothing, floors and pins hold its cells where they are"
    if price["n_missing"]:
        said += "; " if price["n_draws"] else ""
        said += f"{price['n_missing']:,} samples are not to be had from its seeds"
    return [said]
