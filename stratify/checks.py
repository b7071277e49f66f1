"""What must hold before anything is planned: bands, prices, seeds in every cell, groups in every slice."""

from __future__ import annotations

import numpy as np
import polars as pl

from ..catalogs.errors import DistdataError
from ..catalogs.frames import Candidates
from .bounds import first_names
from .frame import Bools, Floats
from .request import FRAME_SPLIT, MAX_PRICE, PlanRequest, Rates
from .splits import check_splits, count_groups, refuse_short_slices


def check_cells(cells: pl.DataFrame) -> None:
    """Refuse a table without feasible cells, and feasible cells whose band is no number above 0."""
    planned = cells.filter("feasible")
    if planned.height == 0:
        raise DistdataError(f"plan: none of the {cells.height} cells is feasible. Check [[infeasible]].")
    for column, least in (("band", "above 0"), ("fleet_share", "of at least 0")):
        value = planned[column].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        bad = np.flatnonzero(~(np.isfinite(value) & ((value > 0) if column == "band" else (value >= 0))))
        if len(bad) == 0:
            continue
        names = first_names([f"{planned['cell'][int(i)]} ({value[i]:g})" for i in bad])
        out = "Set [bands] default or a [[bands.rules]] that matches" if column == "band" else "Check [fleet]"
        raise DistdataError(
            f"plan: {column} of {len(bad):,} cell{'s' if len(bad) > 1 else ''} is no number {least}: {names}. {out}."
        )


def rates_per_cell(cells: pl.DataFrame, rates: Rates | pl.DataFrame) -> tuple[Floats, Floats]:
    """Return dollars and accelerator seconds per draw, float64 [H] each; 0 in infeasible cells without a rate."""
    n = cells.height
    if isinstance(rates, Rates):
        return np.full(n, float(rates.usd)), np.full(n, float(rates.gpu_s))
    joined = cells.select("cell_id", "cell", "feasible").join(rates, on="cell_id", how="left", maintain_order="left")
    columns = []
    for name in ("usd", "gpu_s"):
        value = joined[name].cast(pl.Float64).to_numpy()
        bad = np.flatnonzero(joined["feasible"].to_numpy() & ~((value >= 0) & (value <= MAX_PRICE)))
        if len(bad):
            raise DistdataError(
                f"plan: {len(bad)} cell{'s have' if len(bad) > 1 else ' has'} no {name} per draw from 0 to "
                f"{MAX_PRICE:g}, {joined['cell'][int(bad[0])]} ({value[bad[0]]:g}) the first; give them a rate."
            )
        columns.append(np.nan_to_num(value, nan=0.0, posinf=0.0, neginf=0.0))
    return columns[0], columns[1]


def groups_of(request: PlanRequest, cells: pl.DataFrame, seeds: pl.DataFrame | Candidates) -> pl.DataFrame:
    """Count the distinct groups per slice and split: [slice, split, n_groups].

    Raises:
        ValueError: candidates don't know their groups; they must be counted before (`catalogs.frames.group_counts`).
    """
    if isinstance(seeds, Candidates):
        if request.held_out:
            raise ValueError("groups must be given when seeds are candidates")
        return pl.DataFrame(schema={"slice": pl.String, "split": pl.String, "n_groups": pl.Int64})
    return count_groups(seeds.lazy().join(cells.lazy().select("cell_id", "slice"), on="cell_id"))


def check_seeds(request: PlanRequest, cells: pl.DataFrame, groups: pl.DataFrame, lacking: Bools) -> Bools:
    """Refuse cells without seeds and slices short of groups; return which cells lie in a short slice, bool [H].

    A gate or confirm plan may lack seeds in a cell (`lacking` [H]) as long as its slice has some. A top-up refuses
    nothing that the plan in force was allowed.
    """
    feasible = cells["feasible"].to_numpy()
    slices = cells["slice"].to_numpy()
    names = cells.filter("feasible")["slice"].to_list()
    short = check_splits(groups, names, held_out=request.held_out, min_groups=request.min_groups)
    if not (request.allow_undecidable or request.top_up):
        if FRAME_SPLIT[request.purpose] != "train":
            refuse_short_slices(short)
            lacking = lacking & ~np.isin(slices, slices[feasible & ~lacking])
        _refuse_lacking(request, cells, lacking)
        refuse_short_slices(short)
    return np.isin(slices, [s.slice for s in short])


def _refuse_lacking(request: PlanRequest, cells: pl.DataFrame, lacking: Bools) -> None:
    if not lacking.any():
        return
    n = int(lacking.sum())
    split = FRAME_SPLIT[request.purpose]
    names = first_names(cells.filter(pl.Series(lacking))["cell"].to_list())
    raise DistdataError(
        f"plan {request.purpose}: {n} feasible cell{'s have' if n > 1 else ' has'} no {split} seeds: {names}. Import "
        "seeds for them, declare them under [[infeasible]], or pass --allow-undecidable to plan without them."
    )
