"""What a person reads after planning."""

from __future__ import annotations

from typing import Any

import polars as pl

from ..catalogs.tables import PlanRow, count, duration, plan_table, usd
from .request import Plan


def plan_words(plan: Plan, plan_id: str, *, saved: bool, dry_run: bool, width: int, color: bool) -> str:
    """Tell a plan: a table of its slices, what it comes to, what could not be met, and what comes next."""
    n_seeds = plan.draws["seed_id"].n_unique()
    lines = [
        plan_table(_rows(plan), width=width, color=color),
        f"{_n(plan.n_target, 'sample')} aimed at: {count(plan.n_credit)} are there, {count(plan.n_fresh)} to buy from "
        f"{_n(n_seeds, 'seed')}, {usd(plan.usd)} ({duration(plan.gpu_s)} of teacher time).",
        f"By layer, of the samples and of what the fleet meets: {_layer_shares(plan)}.",
    ]
    if plan.n_marked:
        lines.append(
            f"{_n(plan.n_marked, 'cell')} {'is' if plan.n_marked == 1 else 'are'} marked undecidable; --explain CELL "
            "says why."
        )
    if (n_unfillable := plan.unfillable.height) > 0:
        first = plan.unfillable.row(0, named=True)
        lines.append(
            f"{_n(n_unfillable, 'cell')} can't reach the target whatever is bought: {first['cell']} ({first['why']})"
            + (f" and {n_unfillable - 1} more; --json names them all." if n_unfillable > 1 else ".")
        )
    lines += plan.notes
    if not plan.n_fresh:
        if not any(note.startswith("Nothing ") for note in plan.notes):
            lines.append("Nothing to buy: every target is met by what is there.")
    elif dry_run:
        lines.append("Dry run: nothing was saved.")
    else:
        lines.append(f"Plan {plan_id} {'saved' if saved else 'is saved already'}. Next: distdata generate")
    return "\n".join(lines)


def _n(n: int, what: str) -> str:
    return f"{count(n)} {what}{'' if n == 1 else 's'}"


def plan_facts(plan: Plan) -> dict[str, Any]:
    """Return what a plan decided, for machines: per cell, per slice, and what it could not meet."""
    return {
        "shortfall": plan.shortfall,
        "cells": plan.cells.to_dicts(),
        "prices": plan.prices.to_dicts(),
        "minima": plan.minima.to_dicts(),
        "unfillable": plan.unfillable.to_dicts(),
        "notes": list(plan.notes),
    }


def _rows(plan: Plan) -> list[PlanRow]:
    cells = plan.cells.filter("feasible").select(
        "slice", "scenario", "band", "weight", "target", "credit", "fresh", "usd"
    )
    return [
        PlanRow(slice=s, scenario=c, band=b, weight=w, target=t, have=h, buy=f, usd=u)
        for s, c, b, w, t, h, f, u in cells.iter_rows()
    ]


def _layer_shares(plan: Plan) -> str:
    """Say per layer which share of the plan's samples it gets, and which share of the fleet it has."""
    total = max(plan.n_target, 1)
    layers = plan.cells.group_by("layer", maintain_order=True).agg(pl.col("target").sum(), pl.col("fleet_share").sum())
    return "; ".join(f"{name} {t / total:.1%} ({f:.1%})" for name, t, f in layers.iter_rows())
