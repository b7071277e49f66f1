"""The tables of a plan: the chain behind every cell's number, the draws to buy, and the seeds of the corpus."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from .bounds import Bounds
from .cases import CasePurchase
from .draws import Credits, Taken
from .frame import Bools, Floats, Frame, Ints, slots, sum_by_cell
from .inclusion import Inclusion
from .minima import SliceMinima
from .targets import Targets
from .weights import Weights
from .worth import HOPELESS_VERDICTS, Stock

MARK_NO_SEEDS = "no seeds"
MARK_SHORT_GROUPS = "too few gate groups"
MARK_BELOW_FLOOR = "below floor"
MARK_BELOW_MINIMUM = "below the decidable minimum"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class World:
    """What is planned over: cells by cell_id, prices [H], the frame, what exists in it and which cases come first."""

    cells: pl.DataFrame
    usd: Floats
    gpu_s: Floats
    frame: Frame
    credits: Credits
    cases: CasePurchase
    outside: Ints
    stock: Stock

    @property
    def feasible(self) -> Bools:
        """Feasible cells."""
        mask: Bools = self.cells["feasible"].to_numpy()
        return mask


def mark_cells(
    world: World, lacking: Bools, short: Bools, targets: Targets, bounds: Bounds, minima: SliceMinima | None
) -> pl.Series:
    """Say for every cell why it is undecidable, empty where it is not.

    In a gate plan a whole slice is, when its cells together stay below its minimum.
    """
    below = targets.below | bounds.cut
    starved = np.zeros_like(below)
    if minima is not None:
        have = np.bincount(
            minima.slice_of[minima.slice_of >= 0], weights=targets.target[minima.slice_of >= 0],
            minlength=len(minima.names),
        )  # fmt: skip
        under = have < minima.needed
        starved = np.where(minima.slice_of >= 0, under[minima.slice_of], False) if len(under) else starved
        below = np.zeros_like(below)
    marks = np.select(
        [lacking, starved, below, world.feasible & short],
        [MARK_NO_SEEDS, MARK_BELOW_MINIMUM, MARK_BELOW_FLOOR, MARK_SHORT_GROUPS],
        "",
    )
    return pl.Series(marks.tolist(), dtype=pl.String)


def _unfillable(world: World, bounds: Bounds, targets: Targets) -> pl.Series:
    """Say for every cell why no top-up will ever reach its target, empty where one can."""
    stock, target = world.stock, targets.target
    beyond = target > bounds.ceiling
    hopeless = stock.hopeless & (target > stock.worth)
    why = [""] * len(target)
    for h in np.flatnonzero(beyond | hopeless):
        if hopeless[h]:
            why[h] = f"verifiers kept none of {HOPELESS_VERDICTS} draws or more"
        else:
            n = int(world.frame.n_seeds[h])
            why[h] = f"its {n:,} seeds can give {bounds.ceiling[h]:,} kept samples at most"
    return pl.Series(why, dtype=pl.String)


def cell_chain(
    world: World, weights: Weights, bounds: Bounds, targets: Targets, taken: Taken, marks: pl.Series
) -> pl.DataFrame:
    """Build `Plan.cells`: every cell with all that its number of draws follows from."""
    stock, frame, n_cases = world.stock, world.frame, world.cases.per_cell
    fresh = targets.fresh + n_cases
    held = (world.credits.per_seed > 0) | (taken.fresh > 0)
    known = world.cells.select(
        "cell_id", "cell", "slice", "scenario", "layer", "feasible", pl.col("fleet_share", "band").cast(pl.Float64)
    )
    return known.with_columns(
        pl.Series("base", weights.base),
        pl.Series("tightness", weights.tightness),
        pl.Series("boost", weights.boost),
        pl.Series("weight", weights.weight),
        pl.Series("floor", bounds.floor),
        pl.Series("floor_ruled", bounds.ruled),
        pl.Series("cap", bounds.cap),
        pl.Series("pin", bounds.pin),
        pl.Series("ceiling", bounds.ceiling),
        pl.Series("credit", stock.sure + stock.unverified - n_cases),
        pl.Series("n_rejected", sum_by_cell(frame, world.credits.n_rejected)),
        pl.Series("yield", stock.yields),
        pl.Series("yield_measured", stock.measured),
        pl.Series("worth", stock.worth - stock.yields * n_cases),
        pl.Series("target", targets.target),
        pl.Series("fresh", fresh),
        pl.Series("n_cases", n_cases),
        pl.Series("n_seeds_frame", frame.n_seeds),
        pl.Series("n_seeds_taken", sum_by_cell(frame, held)),
        pl.Series("usd", fresh * world.usd),
        pl.Series("gpu_s", fresh * world.gpu_s),
        marks.alias("mark"),
        _unfillable(world, bounds, targets).alias("unfillable"),
        _text(world.cells, "rule"),
        _text(world.cells, "k_source"),
    )


def _text(cells: pl.DataFrame, name: str) -> pl.Series:
    """Return an optional text column, empty where it says nothing."""
    if name not in cells.columns:
        return pl.Series(name, [""] * cells.height, dtype=pl.String)
    return cells[name].cast(pl.String).fill_null("")


def draw_frame(world: World, taken: Taken, chance: Inclusion) -> pl.DataFrame:
    """Build the frame of draws to buy, in generation order: the divergence cases, then the frame's by prn."""
    frame, cells = world.frame, world.cells
    at = slots(chance.position, taken.position)
    cell = frame.cell[taken.position]
    counts = taken.k < chance.k_counted[at]
    weight = cells["fleet_share"].to_numpy()[cell] * chance.share[at] / np.maximum(chance.n_counted[at], 1)
    drawn = pl.DataFrame(
        {
            "seed_id": frame.ids(taken.position),
            "cell_id": cells["cell_id"].cast(pl.Int32).to_numpy()[cell],
            "k": taken.k.astype(np.int32),
            "k_total": chance.k_total[at].astype(np.int32),
            "pi": np.where(counts, chance.pi[at], 0.0),
            "weight": np.where(counts, weight, 0.0),
            "decision_point": frame.decision[taken.position],
            "prn": frame.prn[taken.position],
        }
    )
    if world.cases.draws.height == 0:
        return drawn
    first = world.cases.draws.with_columns(
        k_total=pl.col("n_held") + pl.len().over("seed_id").cast(pl.Int32),
        pi=pl.lit(0.0),
        weight=pl.lit(0.0),
        decision_point=pl.col("k_seed") > 1,
    )
    return pl.concat([first.select(drawn.columns), drawn])


def corpus_frame(world: World, taken: Taken, chance: Inclusion) -> pl.DataFrame:
    """Build the frame of seeds in the corpus: those of the frame in candidate order, then the divergence cases."""
    frame, cells = world.frame, world.cells
    cell = frame.cell[chance.position]
    share = cells["fleet_share"].to_numpy()[cell] * chance.share
    corpus = pl.DataFrame(
        {
            "seed_id": frame.ids(chance.position),
            "cell_id": cells["cell_id"].cast(pl.Int32).to_numpy()[cell],
            "k_total": chance.k_total.astype(np.int32),
            "fresh": taken.fresh[chance.position].astype(np.int32),
            "pi": chance.pi,
            "share": chance.share,
            "weight": share / np.maximum(chance.n_counted, 1),
            "k_seed": frame.k_seed[chance.position].astype(np.int16),
            "k_counted": chance.k_counted.astype(np.int16),
        }
    )
    if world.cases.draws.height == 0:
        return corpus
    answered = world.cases.draws.group_by("seed_id", maintain_order=True).agg(
        pl.col("cell_id").first(),
        k_total=pl.col("n_held").first() + pl.len().cast(pl.Int32),
        fresh=pl.len().cast(pl.Int32),
        pi=pl.lit(0.0),
        share=pl.lit(0.0),
        weight=pl.lit(0.0),
        k_seed=pl.col("k_seed").first().cast(pl.Int16),
        k_counted=pl.lit(0, dtype=pl.Int16),
    )
    return pl.concat([corpus, answered.select(corpus.columns)])


def minima_frame(minima: SliceMinima | None, target: Ints) -> pl.DataFrame:
    """Build `Plan.minima`: the decidable minimum of every slice and what its cells aim at together."""
    schema = {
        "slice": pl.String, "band": pl.Float64, "k": pl.Float64, "sigma": pl.Float64, "needed": pl.Int64,
        "ceiling": pl.Int64, "target": pl.Int64,
    }  # fmt: skip
    if minima is None:
        return pl.DataFrame(schema=schema)
    gated = minima.slice_of >= 0
    total = np.bincount(minima.slice_of[gated], weights=target[gated], minlength=len(minima.names)).astype(np.int64)
    columns = [minima.names, minima.band, minima.k, minima.sigma, minima.needed, minima.ceiling, total]
    return pl.DataFrame(dict(zip(schema, columns, strict=True)), schema=schema)
