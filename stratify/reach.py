"""Under ``[cover]``: what the floors of cells take of a budget, so that `catalogs.cover_plan` can choose among them.

The same steps that `plan.make_plan` takes to its bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from ..catalogs.config import Config, Layer
from ..catalogs.cover_plan import reachable_cells
from ..catalogs.frames import Candidates
from .allocate import allocate
from .bounds import cell_bounds
from .cases import choose_cases
from .checks import rates_per_cell
from .draws import find_credits
from .frame import Ints, build_frame, sum_by_cell
from .request import PlanRequest, Rates
from .worth import cell_yields, take_stock


def within_reach(
    config: Config,
    root: Path,
    request: PlanRequest,
    cells: pl.DataFrame,
    candidates: Candidates,
    bought: pl.DataFrame,
    rates: Rates,
    *,
    corpus: pl.DataFrame,
    outside: pl.DataFrame,
    cases: pl.DataFrame,
    blocked: pl.Series,
) -> tuple[pl.DataFrame, str]:
    """Return the cells that `make_plan` should plan over, sorted by cell_id, and a note; arguments as there.

    Without ``[cover]``, and for a top-up, `cells` themselves. Only train plans are cut to their budget: gates need
    their slices whole, and rules hold in train plans only.
    """
    if config.cover is None or request.top_up:
        return cells, ""
    cells = cells.sort("cell_id")
    n = cells.height
    feasible = cells["feasible"].to_numpy()
    decision = cells["decision"].fill_null(False).to_numpy() if "decision" in cells.columns else np.zeros(n, np.bool_)
    frame = build_frame(
        candidates, cells["cell_id"].cast(pl.Int32).to_numpy(), feasible,
        cells["k"].cast(pl.Int64).fill_null(request.k).to_numpy(), cell_decision=decision,
        frozen=corpus.select("seed_id", "k_seed"), blocked=blocked,
    )  # fmt: skip
    extra = _per_cell(cells, outside)
    stocked = (sum_by_cell(frame, frame.k_seed) > 0) | (extra > 0)
    nothing = np.zeros(n, np.int64)
    no, budget = np.zeros(n, np.bool_), request.budget
    if request.purpose != "train" or budget is None:
        return reachable_cells(
            config, root, cells, floor=nothing, cost=nothing, stocked=stocked, held=no, keep=no, budget=None
        )
    usd, gpu_s = rates_per_cell(cells, rates)
    chosen = choose_cases(request, cells, cases, bought, blocked, usd=usd, gpu_s=gpu_s)
    bounds = cell_bounds(request, cells, frame, extra + chosen.per_cell, None)
    yields, measured, hopeless = cell_yields(cells, request.expected_yield)
    stock = take_stock(
        frame, find_credits(frame, bought), outside=extra, cases=chosen.per_cell, yields=yields, measured=measured,
        hopeless=hopeless,
    )  # fmt: skip
    ruled = (bounds.pin > 0) | bounds.ruled
    dead = stock.hopeless & (stock.worth < 1) & ~ruled
    floor = np.where(dead, 0, np.minimum(np.maximum(bounds.lower, 1), bounds.upper))
    if budget.kind == "samples":
        cost, draws = floor, budget.amount
    else:
        cost, price = stock.fresh_for(floor), (usd if budget.kind == "usd" else gpu_s / 3600)[0]
        draws = budget.amount / price - int(chosen.per_cell.sum()) if price > 0 else np.inf
    parts: dict[str, float] | float = draws
    if request.layers is not None and np.isfinite(draws):
        parts = _parts(request.layers, int(draws))
    return reachable_cells(
        config, root, cells, floor=floor, cost=cost, stocked=stocked, held=stock.worth >= 1,
        keep=ruled | (chosen.per_cell > 0), budget=parts,
    )  # fmt: skip


def _parts(layers: Mapping[Layer, float], total: int) -> dict[str, float]:
    """Return each layer's part of `total`, by the method of `layers.Layers.parts`."""
    names = sorted(layers)
    shares = np.array([layers[name] for name in names])
    parts = allocate(shares, np.zeros(len(names), np.int64), np.full(len(names), total), total)
    return dict(zip(map(str, names), parts.tolist(), strict=True))


def _per_cell(cells: pl.DataFrame, outside: pl.DataFrame) -> Ints:
    """Return the samples outside the frame in the order of `cells`, int64 [H]; 0 in infeasible cells."""
    sums = outside.group_by(pl.col("cell_id").cast(cells["cell_id"].dtype)).agg(pl.col("n").cast(pl.Int64).sum())
    found = cells.select("cell_id", "feasible").join(sums, on="cell_id", how="left", maintain_order="left")
    return np.where(found["feasible"].to_numpy(), found["n"].fill_null(0).to_numpy(), 0).astype(np.int64)
