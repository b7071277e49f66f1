"""Turn bands, seeds and a budget into the list of draws to buy.

Pure: the same frames in any row order give the same plan. The steps are weights (`weights`), what exists (`worth`),
bounds (`bounds`, `minima`, `cases`), whole draws per cell (`targets`), the draws themselves (`draws`) and their
weights in the fleet (`inclusion`).
"""

from __future__ import annotations

import numpy as np
import polars as pl

from ..catalogs.errors import DistdataError
from ..catalogs.frames import Candidates, candidates_of
from .bounds import Bounds, cell_bounds, first_names
from .cases import choose_cases
from .chain import World, cell_chain, corpus_frame, draw_frame, mark_cells, minima_frame
from .checks import check_cells, check_seeds, groups_of, rates_per_cell
from .draws import find_credits, take_fresh
from .frame import Floats, Frame, Ints, build_frame, sum_by_cell
from .inclusion import inclusion
from .minima import SliceMinima, slice_minima
from .patterns import boost_factors
from .pilot import MIN_SEEDS, pilot_floor
from .prices import SCHEMA as PRICES
from .prices import TIGHTER, slice_prices, tighter_target
from .request import FRAME_SPLIT, Plan, PlanRequest, Rates
from .targets import Problem, Targets, set_targets, top_up
from .weights import Weights, cell_weights, draw_spread, refuse_overflow
from .worth import Stock, cell_yields, take_stock

GATED = ("gate", "confirm")


def make_plan(
    request: PlanRequest,
    cells: pl.DataFrame,
    seeds: pl.DataFrame | Candidates,
    bought: pl.DataFrame,
    rates: Rates | pl.DataFrame,
    *,
    groups: pl.DataFrame | None = None,
    corpus: pl.DataFrame | None = None,
    outside: pl.DataFrame | None = None,
    cases: pl.DataFrame | None = None,
    blocked: pl.Series | None = None,
    goals: pl.DataFrame | None = None,
) -> Plan:
    """Decide which draws to buy.

    - `cells`: cell_id, cell, slice, scenario, layer, feasible, band, fleet_share, k (null: the request's). Optional:
      sigma (standard deviation of the gated statistic within a seed; null or NaN: not known), n_labels (outcomes of
      its scenario type; null: the aims' contrasts stand for the slice's), within_others and
      between_others (variances within and between seeds for ``neyman``; see `pilot.with_pilot`), yield_kept and
      yield_verified (verdicts so far), decision (seeds that don't say are decision points), pin, floor, cap (kept
      samples; null: no rule), rule_boost (1). The rules' columns count in train plans only.
    - `seeds`: candidates of the purpose's split, or a frame seed_id (unique), cell_id, grp, split, prn in [0, 1),
      decision_point (null: unsaid), k (null: the cell's), optionally size and origin.
    - `bought`: seed_id, k of the draws of this teacher version that exist; optional: see `draws.find_credits`.
    - `rates`: one price for all, or a frame cell_id, usd, gpu_s.
    - `groups`: slice, split, n_groups; needed with candidates when splits are held out.
    - `corpus`: seed_id, k_seed, k_counted as the last plan left it: frozen K's, and which draws are of the walk.
    - `outside`: cell_id, n: samples that exist outside the frame, capped at K per seed already.
    - `cases`: open divergence cases (see `cases.choose_cases`). `blocked`: ids of seeds that nothing may be bought on.
    - `goals`: cell_id, target of the plan in force, for a top-up. Optional: `closed`, true for a cell in which nothing
      is bought whatever its target says: its target becomes what exists there is worth.

    A gate or confirm plan may lack seeds in a cell as long as its slice has some; the cell is marked then.

    Raises:
        DistdataError: a feasible cell without seeds, a slice with too few held-out groups, floors, pins or decidable
            minima above the budget or the seeds (each waived by `allow_undecidable`), rules that contradict each
            other, layers that can't hold, a budget that buys nothing, a band that is no positive number, a boost for
            nothing known, a gate plan where nothing is held out, a top-up of nothing.
    """
    cells = cells.sort("cell_id")
    check_cells(cells)
    usd, gpu_s = rates_per_cell(cells, rates)
    groups = groups_of(request, cells, seeds) if groups is None else groups
    frame = _frame_of_purpose(request, cells, seeds, corpus, blocked)
    offered = sum_by_cell(frame, frame.k_seed)
    extra = _per_cell(cells, outside, "n")
    feasible = cells["feasible"].to_numpy()
    lacking = feasible & (offered == 0) & (extra == 0)
    short = check_seeds(request, cells, groups, lacking)
    chosen = choose_cases(request, cells, cases, bought, blocked, usd=usd, gpu_s=gpu_s)
    credits = find_credits(frame, bought, None if corpus is None else corpus["k_counted"].cast(pl.Int64).to_numpy())
    yields, measured, hopeless = cell_yields(cells, request.expected_yield)
    stock = take_stock(
        frame, credits, outside=extra, cases=chosen.per_cell, yields=yields, measured=measured, hopeless=hopeless
    )
    world = World(
        cells=cells, usd=usd, gpu_s=gpu_s, frame=frame, credits=credits, cases=chosen, outside=extra, stock=stock
    )  # fmt: skip
    weights = _weights(request, cells, usd, gpu_s, offered / np.maximum(frame.n_seeds, 1))
    minima = _minima(request, world, band_factor=1.0)
    if minima is not None and not request.allow_undecidable:
        _refuse_undecidable(request, minima)
    floor = minima.lower if minima is not None else _default_pilot(request, world)
    bounds = cell_bounds(request, cells, frame, extra + chosen.per_cell, floor)
    problem = Problem(
        request=request, weight=weights.weight, bounds=bounds, stock=stock, usd=usd, gpu_s=gpu_s,
        n_cases=chosen.per_cell, layer_names=cells["layer"].to_list(), minima=minima, frame=frame,
    )  # fmt: skip
    targets = top_up(problem, _goals(cells, goals, stock)) if request.top_up else set_targets(problem)
    taken = take_fresh(frame, credits, targets.fresh)
    chance = inclusion(frame, credits, taken, walk=_walk(request, world, targets), adaptive=request.looked)
    marks = mark_cells(world, lacking, short, targets, bounds, minima)
    notes = (*targets.notes, chosen.note, _waiting_note(request, world, targets), _spread_note(request, cells))
    chain = cell_chain(world, weights, bounds, targets, taken, marks)
    return Plan(
        request=request,
        cells=chain,
        draws=draw_frame(world, taken, chance),
        seeds=corpus_frame(world, taken, chance),
        prices=_prices(request, world, weights, bounds, targets, minima),
        minima=minima_frame(minima, targets.target),
        shortfall=targets.shortfall,
        band_ref=weights.band_ref,
        notes=tuple(note for note in notes if note),
    )


def _per_cell(cells: pl.DataFrame, table: pl.DataFrame | None, column: str) -> Ints:
    """Return a table's [cell_id, column] in the order of `cells`, int64 [H]; 0 where it has no row or is infeasible."""
    if table is None or table.height == 0:
        return np.zeros(cells.height, dtype=np.int64)
    sums = table.group_by(pl.col("cell_id").cast(cells["cell_id"].dtype)).agg(pl.col(column).cast(pl.Int64).sum())
    found = cells.select("cell_id", "feasible").join(sums, on="cell_id", how="left", maintain_order="left")
    return np.where(found["feasible"].to_numpy(), found[column].fill_null(0).to_numpy(), 0).astype(np.int64)


def _goals(cells: pl.DataFrame, goals: pl.DataFrame | None, stock: Stock) -> Ints:
    wanted = _per_cell(cells, goals, "target")
    if goals is not None and "closed" in goals.columns:  # rounded down, what exists is enough for it: nothing is bought
        wanted = np.where(_per_cell(cells, goals, "closed") > 0, np.floor(stock.worth).astype(np.int64), wanted)
    if not wanted.any():
        raise DistdataError(
            "plan --top-up: there is no plan in force whose targets could be filled. Make one: distdata plan --budget "
            "2000samples"
        )
    return wanted


def _frame_of_purpose(
    request: PlanRequest,
    cells: pl.DataFrame,
    seeds: pl.DataFrame | Candidates,
    corpus: pl.DataFrame | None,
    blocked: pl.Series | None,
) -> Frame:
    """Build the frame; a pilot's seeds that say nothing get `k_pilot` draws, or spread could not be seen."""
    split = FRAME_SPLIT[request.purpose]
    if split != "train" and split not in request.held_out:
        raise DistdataError(
            f"plan {request.purpose}: no seeds are held out for it. Set {split} in [splits] above 0 and import seeds."
        )
    n = cells.height
    decision = cells["decision"].fill_null(False).to_numpy() if "decision" in cells.columns else np.zeros(n, np.bool_)
    cell_k = cells["k"].cast(pl.Int64).fill_null(request.k).to_numpy()
    if request.purpose == "pilot":
        decision, cell_k = np.ones(n, dtype=np.bool_), np.full(n, request.k_pilot, dtype=np.int64)
    return build_frame(
        seeds if isinstance(seeds, Candidates) else candidates_of(seeds, split),
        cells["cell_id"].cast(pl.Int32).to_numpy(),
        cells["feasible"].to_numpy(),
        cell_k,
        cell_decision=decision,
        frozen=None if corpus is None else corpus.select("seed_id", "k_seed"),
        blocked=blocked,
    )


def _weights(request: PlanRequest, cells: pl.DataFrame, usd: Floats, gpu_s: Floats, k: Floats) -> Weights:
    """Compute the weights; a price of 0 somewhere makes ``neyman`` go by the other price, or by none.

    `k` [H] is the mean K of each cell's seeds.
    """
    feasible = cells["feasible"].to_numpy()
    cost = next((c for c in (usd, gpu_s) if np.all(c[feasible] > 0)), np.ones(cells.height))
    weights = cell_weights(
        request.policy,
        feasible=feasible,
        fleet_share=cells["fleet_share"].to_numpy(),
        band=cells["band"].to_numpy(),
        boost=_boosts(request, cells),
        gamma=request.gamma,
        fleet_blend=request.fleet_blend,
        sigma=draw_spread(_optional(cells, "within_others"), _optional(cells, "between_others"), k),
        cost=np.where(feasible, cost, 1.0),
    )
    refuse_overflow(weights, cells["cell"], cells["band"].cast(pl.Float64).to_numpy(), request.gamma)
    if not weights.weight.sum() > 0:
        raise DistdataError(f"plan: policy {request.policy!r} gives every cell weight 0; check the fleet shares.")
    return weights


def _optional(cells: pl.DataFrame, name: str) -> Floats:
    """Return an optional column of numbers, NaN where it says nothing, [H]."""
    if name not in cells.columns:
        return np.full(cells.height, np.nan)
    values: Floats = cells[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    return values


def _spread_note(request: PlanRequest, cells: pl.DataFrame) -> str:
    """Tell that ``neyman`` knows no spreads, which makes it the fleet's plan."""
    if request.policy != "neyman" or np.isfinite(_optional(cells, "within_others")).any():
        return ""
    return (
        f"Policy neyman knows no spreads: no pilot has {MIN_SEEDS} seeds with two draws in other cells. Every cell "
        "counts as spreading alike, as under policy fleet (but for prices). Buy a pilot: distdata plan --purpose pilot"
    )


def _boosts(request: PlanRequest, cells: pl.DataFrame) -> Floats:
    """Multiply the rules' factor with the request's, [H]."""
    boost = boost_factors(cells, request.boosts)
    if "rule_boost" in cells.columns and request.purpose == "train":
        boost = boost * cells["rule_boost"].cast(pl.Float64).fill_null(1.0).to_numpy()
    return boost


def _minima(request: PlanRequest, world: World, *, band_factor: float) -> SliceMinima | None:
    if request.purpose not in GATED or request.top_up:
        return None
    return slice_minima(
        world.frame,
        slices=world.cells["slice"].to_numpy(),
        feasible=world.feasible,
        band=world.cells["band"].cast(pl.Float64).to_numpy() * band_factor,
        sigma=_optional(world.cells, "sigma"),
        aims=request.aims,
        labels=_optional(world.cells, "n_labels"),
    )


def _refuse_undecidable(request: PlanRequest, minima: SliceMinima) -> None:
    at = np.flatnonzero(minima.undecidable)
    if len(at) == 0:
        return
    names = first_names(
        [
            f"{minima.names[i]} (band {minima.band[i]:.4g}) needs {minima.needed[i]:,} and has seeds for "
            f"{minima.ceiling[i]:,} at {minima.k[i]:.3g} draws each"
            for i in at
        ]
    )
    aims = request.aims
    raise DistdataError(
        f"plan {request.purpose}: {len(at):,} slice{'s' if len(at) > 1 else ''} can't be decided with the seeds held "
        f"out for {request.purpose}: {names} (draws per side for power {aims.power:g} at a difference of "
        f"{aims.expected_difference:g} bands). Import more seeds, raise K, widen the bands, lower [gates] power or "
        "expected_difference, or pass --allow-undecidable to take what there is and mark the cells."
    )


def _default_pilot(request: PlanRequest, world: World) -> Ints | None:
    if request.purpose != "pilot" or request.budget is not None:
        return None
    cells = world.cells
    return pilot_floor(world.frame, cells["scenario"].to_list(), cells["fleet_share"].cast(pl.Float64).to_numpy())


def _walk(request: PlanRequest, world: World, targets: Targets) -> Ints:
    """Return how many draws each cell's walk reaches, [H]: never more than the target asks for before any verdict.

    What a poor measured yield adds depends on what the draws said, so it extends no walk.
    """
    reached = sum_by_cell(world.frame, world.credits.worth) + targets.fresh
    blind = np.ceil((targets.target - world.outside) / request.expected_yield * (1 - 1e-12)).astype(np.int64)
    walk: Ints = np.maximum(np.minimum(reached, blind - world.cases.per_cell), 0)
    return walk


def _waiting_note(request: PlanRequest, world: World, targets: Targets) -> str:
    """Tell of cells whose seeds offer too little in this round, though later ones may fill them."""
    stock = world.stock
    expected = np.ceil(stock.expected(targets.fresh) * (1 - 1e-12))
    waits = (targets.target > expected) & (stock.offer == targets.fresh) & (stock.yields < 1) & ~stock.hopeless
    if request.budget is not None and request.budget.kind != "samples":
        return ""
    n = int(waits.sum())
    if n == 0:
        return ""
    return (
        f"{n:,} cell{'s' if n > 1 else ''} may end below target: all that the seeds offer is bought, and some of it "
        "will be rejected. Run `distdata plan --top-up` once the verdicts are in."
    )


def _prices(
    request: PlanRequest,
    world: World,
    weights: Weights,
    bounds: Bounds,
    targets: Targets,
    minima: SliceMinima | None,
) -> pl.DataFrame:
    if request.purpose == "pilot" or request.top_up:
        return pl.DataFrame(schema=PRICES)
    sharper = _minima(request, world, band_factor=TIGHTER)
    by_minima = None
    if minima is not None and sharper is not None:
        lacking = np.maximum(sharper.needed - sharper.ceiling, 0)
        at_first = np.unique(sharper.slice_of[sharper.slice_of >= 0], return_index=True)[1]
        missing = np.zeros_like(targets.target)
        missing[np.flatnonzero(sharper.slice_of >= 0)[at_first]] = lacking
        by_minima = sharper.lower, missing
    tighter, missing = tighter_target(
        request, weights.weight, bounds, targets.target, by_minima, layer_names=world.cells["layer"].to_numpy()
    )
    return slice_prices(
        slices=world.cells["slice"].to_numpy(),
        feasible=world.feasible,
        band=world.cells["band"].cast(pl.Float64).to_numpy(),
        target=targets.target,
        tighter=tighter,
        missing=missing,
        stock=world.stock,
        usd=world.usd,
        gpu_s=world.gpu_s,
    )
