"""Turn bands, seeds and a budget into the list of draws to buy.

Pure: the same frames in any row order give the same plan. The steps are weights (`weights`), whole draws per cell
(`targets`), the draws themselves (`draws`) and their weights in the fleet (`inclusion`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from ..catalogs.errors import DistdataError, nearest
from .draws import SEED_COLUMNS, Credits, Frame, Taken, build_frame, find_credits, first_seeds, sum_by_cell, take_fresh
from .inclusion import inclusion
from .request import FRAME_SPLIT, Plan, PlanRequest, Rates
from .splits import check_splits, refuse_short_slices
from .targets import Targets, set_targets
from .weights import WORST_SIGMA, Bools, Floats, Weights, cell_weights

MARK_NO_SEEDS = "no seeds"
MARK_SHORT_GROUPS = "too few gate groups"
MARK_BELOW_FLOOR = "below floor"


def make_plan(
    request: PlanRequest,
    cells: pl.DataFrame,
    seeds: pl.DataFrame,
    bought: pl.DataFrame,
    rates: Rates | pl.DataFrame,
) -> Plan:
    """Decide which draws to buy.

    - `cells`: cell_id, cell, slice, scenario, layer, feasible, band, fleet_share, k; optionally sigma (standard
      deviation of the gated statistic, for ``neyman``; 0.5 where absent).
    - `seeds`: seed_id (unique), cell_id, grp, split, prn in [0, 1), decision_point, k (null: the cell's).
    - `bought`: seed_id, k of the draws of this teacher version that exist; optionally planned, false for byproducts.
    - `rates`: one price for all, or a frame cell_id, usd, gpu_s.

    A gate or confirm plan may lack seeds in a cell as long as its slice has some; the cell is marked then.

    Raises:
        DistdataError: a feasible cell without seeds, a slice with too few held-out groups, floors above the budget
            (each waived by `allow_undecidable`), a budget that buys nothing, a band that is no positive number,
            a boost for nothing known, a gate plan where nothing is held out.
    """
    cells = cells.sort("cell_id")
    feasible = cells["feasible"].to_numpy()
    _check_cells(cells)
    usd, gpu_s = _rates_per_cell(cells, rates)
    frame = _frame_of_purpose(request, cells, seeds)
    lacking = feasible & (frame.n_seeds == 0)
    short = _check_seeds(request, cells, seeds, lacking)
    credits = find_credits(frame, bought)
    weights = _weights(request, cells, usd, gpu_s)
    targets = set_targets(
        request,
        weight=weights.weight,
        floor=first_seeds(frame, request.floor_seeds),
        ceiling=sum_by_cell(frame, frame.k_seed),
        credit=sum_by_cell(frame, credits.counted),
        usd=usd,
        gpu_s=gpu_s,
    )
    taken = take_fresh(frame, credits, targets.fresh)
    drawn, corpus = _draw_frames(cells, frame, credits, taken)
    marks = np.select(
        [lacking, targets.below_floor, feasible & short], [MARK_NO_SEEDS, MARK_BELOW_FLOOR, MARK_SHORT_GROUPS], ""
    )
    chain = _chain(cells, weights, targets, frame, request.expected_yield).with_columns(
        n_seeds_taken=sum_by_cell(frame, (credits.per_seed + taken.fresh > 0).astype(np.int64)),
        usd=targets.fresh * usd,
        gpu_s=targets.fresh * gpu_s,
        mark=pl.Series(marks.tolist(), dtype=pl.String),
    )
    return Plan(
        request=request,
        cells=chain,
        draws=drawn,
        seeds=corpus,
        shortfall=targets.shortfall,
        band_ref=weights.band_ref,
    )


def _check_cells(cells: pl.DataFrame) -> None:
    planned = cells.filter("feasible")
    if planned.height == 0:
        raise DistdataError(f"plan: none of the {cells.height} cells is feasible. Check [[infeasible]].")
    band = planned["band"].to_numpy()
    bad = np.flatnonzero(~(np.isfinite(band) & (band > 0)))
    if len(bad):
        name = planned["cell"][int(bad[0])]
        raise DistdataError(f"plan: band of cell {name} is {band[bad[0]]:g}; it must be a number above 0.")


def _rates_per_cell(cells: pl.DataFrame, rates: Rates | pl.DataFrame) -> tuple[Floats, Floats]:
    """Return dollars and accelerator seconds per draw, float64 [H] each; 0 in infeasible cells without a rate."""
    n = cells.height
    if isinstance(rates, Rates):
        return np.full(n, float(rates.usd)), np.full(n, float(rates.gpu_s))
    joined = cells.select("cell_id", "cell", "feasible").join(rates, on="cell_id", how="left", maintain_order="left")
    columns = []
    for name in ("usd", "gpu_s"):
        value = joined[name].cast(pl.Float64).to_numpy()
        bad = np.flatnonzero(joined["feasible"].to_numpy() & ~(np.isfinite(value) & (value >= 0)))
        if len(bad):
            where = joined["cell"][int(bad[0])]
            raise DistdataError(f"plan: {len(bad)} cells have no {name} per draw, {where} the first; give them a rate.")
        columns.append(np.nan_to_num(value, nan=0.0, posinf=0.0, neginf=0.0))
    return columns[0], columns[1]


def _frame_of_purpose(request: PlanRequest, cells: pl.DataFrame, seeds: pl.DataFrame) -> Frame:
    split = FRAME_SPLIT[request.purpose]
    if split != "train" and split not in request.held_out:
        raise DistdataError(
            f"plan {request.purpose}: no seeds are held out for it. Set {split} in [splits] above 0 and import seeds."
        )
    return build_frame(
        seeds.lazy().filter(pl.col("split") == split).select(*SEED_COLUMNS).collect(),
        cells["cell_id"].cast(pl.Int32).to_numpy(),
        cells["feasible"].to_numpy(),
        cells["k"].cast(pl.Int64).fill_null(request.k).to_numpy(),
    )


def _check_seeds(request: PlanRequest, cells: pl.DataFrame, seeds: pl.DataFrame, lacking: Bools) -> Bools:
    """Refuse cells without seeds and slices short of groups; return which cells lie in a short slice, bool [H]."""
    feasible = cells["feasible"].to_numpy()
    slices = cells["slice"].to_numpy()
    by_slice = seeds.lazy().filter(pl.col("split").is_in(list(request.held_out)))
    placed = by_slice.join(cells.lazy().select("cell_id", "slice"), on="cell_id").select("slice", "grp", "split")
    names = cells.filter("feasible")["slice"].unique().to_list()
    short = check_splits(placed.collect(), names, held_out=request.held_out, min_groups=request.min_groups)
    if not request.allow_undecidable:
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
    names = _first_names(cells.filter(pl.Series(lacking))["cell"].to_list())
    raise DistdataError(
        f"plan {request.purpose}: {n} feasible cell{'s have' if n > 1 else ' has'} no {split} seeds: {names}. Import "
        "seeds for them, declare them under [[infeasible]], or pass --allow-undecidable to plan without them."
    )


def _first_names(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _weights(request: PlanRequest, cells: pl.DataFrame, usd: Floats, gpu_s: Floats) -> Weights:
    """Compute the weights; a price of 0 somewhere makes ``neyman`` go by the other price, or by none."""
    feasible = cells["feasible"].to_numpy()
    cost = next((c for c in (usd, gpu_s) if np.all(c[feasible] > 0)), np.ones(cells.height))
    sigma = cells["sigma"].to_numpy() if "sigma" in cells.columns else np.full(cells.height, WORST_SIGMA)
    weights = cell_weights(
        request.policy,
        feasible=feasible,
        fleet_share=cells["fleet_share"].to_numpy(),
        band=cells["band"].to_numpy(),
        boost=_boosts(request, cells),
        gamma=request.gamma,
        fleet_blend=request.fleet_blend,
        sigma=sigma,
        cost=np.where(feasible, cost, 1.0),
    )
    if not weights.weight.sum() > 0:
        raise DistdataError(f"plan: policy {request.policy!r} gives every cell weight 0; check the fleet shares.")
    return weights


def _boosts(request: PlanRequest, cells: pl.DataFrame) -> Floats:
    boost = np.ones(cells.height)
    for column in ("slice", "cell"):  # the cell last, so that its own factor wins
        names = cells[column].to_numpy()
        for name, factor in request.boosts.items():
            boost[names == name] = factor
    known = {*cells["slice"].to_list(), *cells["cell"].to_list()}
    for name in request.boosts:
        if name not in known:
            raise DistdataError(f"plan: boost for {name!r}, which is no cell or slice.{nearest(name, sorted(known))}")
    return boost


def _chain(
    cells: pl.DataFrame, weights: Weights, targets: Targets, frame: Frame, expected_yield: float
) -> pl.DataFrame:
    known = cells.select(
        "cell_id", "cell", "slice", "scenario", "layer", "feasible", pl.col("fleet_share", "band").cast(pl.Float64)
    )
    return known.with_columns(
        pl.Series("base", weights.base),
        pl.Series("tightness", weights.tightness),
        pl.Series("boost", weights.boost),
        pl.Series("weight", weights.weight),
        pl.Series("floor", targets.floor),
        pl.Series("ceiling", targets.ceiling),
        pl.Series("credit", targets.credit),
        pl.Series("yield", np.full(cells.height, expected_yield)),
        pl.Series("target", targets.target),
        pl.Series("fresh", targets.fresh),
        pl.Series("n_seeds_frame", frame.n_seeds),
    )


def _draw_frames(
    cells: pl.DataFrame, frame: Frame, credits: Credits, taken: Taken
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Build the frame of draws to buy, in generation order, and the frame of seeds in the corpus."""
    cell_ids = cells["cell_id"].cast(pl.Int32).to_numpy()
    chance = inclusion(frame, credits, taken.fresh)
    cell = frame.cell[chance.position]
    per_draw = cells["fleet_share"].to_numpy()[cell] * chance.share / chance.k_total
    corpus = pl.DataFrame(
        {
            "seed_id": frame.seed_ids.gather(frame.row[chance.position]),
            "cell_id": cell_ids[cell],
            "k_total": chance.k_total.astype(np.int32),
            "fresh": taken.fresh[chance.position].astype(np.int32),
            "pi": chance.pi,
            "weight": per_draw,
        }
    )
    slot = np.zeros(len(frame.row), dtype=np.int64)
    slot[chance.position] = np.arange(len(chance.position))
    at = slot[taken.position]
    rows = frame.row[taken.position]
    drawn = pl.DataFrame(
        {
            "seed_id": frame.seed_ids.gather(rows),
            "cell_id": cell_ids[cell[at]],
            "k": taken.k.astype(np.int32),
            "k_total": chance.k_total[at].astype(np.int32),
            "pi": chance.pi[at],
            "weight": per_draw[at],
            "decision_point": frame.decision_points[rows],
            "prn": frame.prn[taken.position],
        }
    )
    return drawn, corpus
