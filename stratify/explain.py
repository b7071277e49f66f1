"""Say in sentences why a cell got its number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import polars as pl

from ..catalogs.errors import DistdataError, nearest
from .request import Plan

MAX_CELLS = 20
_UNDECIDABLE = {
    "no seeds": "no {split} seeds: nothing can be bought here, and a gate can't decide it",
    "below floor": "the budget could not pay its floor of {floor:,}; a gate may stay undecided",
    "too few gate groups": "its slice has too few held-out groups; its gate will stay undecided",
}


def explain(plan: Plan, pattern: str) -> list[str]:
    """Tell the chain of numbers of every cell that `pattern` names, at most 20 cells.

    A pattern is axis values in any order (``rain,night``), all of a slice's or only some, a scenario type, or both
    as in ``rain,night/pedestrian_crossing``.

    Raises:
        DistdataError: a value or scenario type nobody knows, or values that never come together.
    """
    found = _matching(plan.cells, pattern)
    lines: list[str] = []
    total_weight = float(plan.cells["weight"].to_numpy().sum())
    for row in found.head(MAX_CELLS).iter_rows(named=True):
        lines += [f"{row['cell']} ({row['layer']})", *("  " + line for line in _chain(plan, row, total_weight))]
    if found.height > MAX_CELLS:
        lines.append(f"... and {found.height - MAX_CELLS} more cells match {pattern!r}; add values or a scenario type.")
    return lines


def _matching(cells: pl.DataFrame, pattern: str) -> pl.DataFrame:
    left, slash, right = pattern.strip().partition("/")
    wanted = Counter(value for part in left.split(",") if (value := part.strip()))
    scenario = right.strip()
    scenarios = set(cells["scenario"].to_list())
    values = {value for name in cells["slice"].unique().to_list() for value in name.split(",")}
    if not slash and len(wanted) == 1 and left.strip() in scenarios - values:
        wanted, scenario = Counter(), left.strip()
    for value in wanted:
        if value not in values:
            raise DistdataError(
                f"--explain {pattern}: no axis value {value!r}.{nearest(value, sorted(values | scenarios))}"
            )
    if scenario and scenario not in scenarios:
        raise DistdataError(
            f"--explain {pattern}: no scenario type {scenario!r}.{nearest(scenario, sorted(scenarios))}"
        )
    fits = [
        wanted <= Counter(slice_name.split(",")) and scenario in ("", name)
        for slice_name, name in cells.select("slice", "scenario").iter_rows()
    ]
    found = cells.filter(pl.Series(fits, dtype=pl.Boolean))
    if found.height == 0:
        raise DistdataError(
            f"--explain {pattern}: no cell has all of these values together; slices hold one value per axis."
        )
    return found


def _chain(plan: Plan, row: Mapping[str, Any], total_weight: float) -> list[str]:
    if not row["feasible"]:
        return ["declared infeasible: it is not planned"]
    lines = [*_weight_lines(plan, row, total_weight), _target_line(plan, row, total_weight), _purchase_line(row)]
    if row["mark"]:
        split = {"gate": "gate", "confirm": "confirm"}.get(plan.request.purpose, "train")
        lines.append("marked: " + _UNDECIDABLE[row["mark"]].format(split=split, floor=row["floor"]))
    return lines


def _weight_lines(plan: Plan, row: Mapping[str, Any], total_weight: float) -> list[str]:
    request = plan.request
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


def _target_line(plan: Plan, row: Mapping[str, Any], total_weight: float) -> str:
    k_mean = row["ceiling"] / row["n_seeds_frame"] if row["n_seeds_frame"] else 0.0
    bounds = (
        f"floor {row['floor']:,} (K draws of its first {plan.request.floor_seeds}), "
        f"ceiling {row['ceiling']:,} ({row['n_seeds_frame']:,} seeds x {k_mean:.3g} draws)"
    )
    proportional = _part(row, total_weight) * plan.n_target
    held = ""
    if row["target"] and row["target"] >= int(row["ceiling"] * row["yield"] * (1 + 1e-12)):
        held = ", held by the ceiling"
    elif row["target"] and row["target"] <= row["floor"] and row["target"] > proportional:
        held = ", raised to the floor" if row["target"] == row["floor"] else ", all that the budget leaves of the floor"
    alone = f"its weight alone: {proportional:,.1f} of {plan.n_target:,}"
    return f"{bounds}: target {row['target']:,} kept samples ({alone}){held}"


def _purchase_line(row: Mapping[str, Any]) -> str:
    yielded = f"at a yield of {row['yield']:.0%}, " if row["yield"] < 1 else ""
    return (
        f"{yielded}existing draws {row['credit']:,}: buy {row['fresh']:,} for ${row['usd']:,.2f} and "
        f"{row['gpu_s'] / 3600:,.3g} GPU-hours; the corpus then rests on {row['n_seeds_taken']:,} of "
        f"{row['n_seeds_frame']:,} seeds"
    )
