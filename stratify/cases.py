"""Open divergence cases: seeds from outside the frame that somebody wants answered before anything else is bought.

They come by priority, K draws each, and take at most a stated share of the budget. Their draws fill their cell's
target and have no inclusion probability: nobody drew them at random.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from .frame import Floats, Ints
from .request import PlanRequest

_SCHEMA = {"seed_id": pl.String, "cell_id": pl.Int32, "k_seed": pl.Int32, "priority": pl.Float64, "prn": pl.Float64}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CasePurchase:
    """The cases that a plan buys.

    - `draws`: seed_id, cell_id, k, k_seed, prn in the order of purchase. `n_held`: per row, draws of that seed that
      exist already. `per_cell` int64 [H]: draws by cell. `note`: which cases wait and why, or empty.
    """

    draws: pl.DataFrame
    per_cell: Ints
    note: str


def choose_cases(
    request: PlanRequest,
    cells: pl.DataFrame,
    cases: pl.DataFrame | None,
    bought: pl.DataFrame,
    blocked: pl.Series | None,
    *,
    usd: Floats,
    gpu_s: Floats,
) -> CasePurchase:
    """Choose open cases [seed_id, cell_id, k_seed, priority, prn], the highest priority first (ties: prn, seed id).

    The first case that no longer fits ends the list, so a larger budget only adds to it. Cases of infeasible or
    unknown cells, blocked ones and those beyond their cell's pin or cap are left out. Draws that exist in `bought`
    [seed_id, k] are not bought again. Only train plans with a budget buy cases.
    """
    nothing = np.zeros(cells.height, dtype=np.int64)
    empty = pl.DataFrame(schema={**_SCHEMA, "k": pl.Int32, "n_held": pl.Int32})
    if cases is None or cases.height == 0 or request.purpose != "train" or request.budget is None or request.top_up:
        return CasePurchase(draws=empty, per_cell=nothing, note="")
    open_draws, n_left_out = _open_draws(cells, cases, bought, blocked)
    rows = open_draws["row"].to_numpy()
    price = {"samples": np.ones(cells.height), "usd": usd, "gpuh": gpu_s / 3600}[request.budget.kind]
    limit = request.case_share * request.budget.amount * (1 + 1e-9)
    fits = np.cumsum(price[rows]) <= limit
    last = open_draws.with_columns(fits=fits).group_by("seed_id").agg(pl.col("fits").all())  # whole cases only
    whole = open_draws.join(last, on="seed_id", how="left", maintain_order="left")["fits"].to_numpy()
    chosen = open_draws.filter(pl.Series(np.logical_and.accumulate(whole)))
    n_taken, n_open = chosen["seed_id"].n_unique(), open_draws["seed_id"].n_unique()
    return CasePurchase(
        draws=chosen.select(*empty.columns),
        per_cell=np.bincount(chosen["row"].to_numpy(), minlength=cells.height),
        note=_note(request, n_taken, n_open - n_taken, n_left_out),
    )


def _open_draws(
    cells: pl.DataFrame, cases: pl.DataFrame, bought: pl.DataFrame, blocked: pl.Series | None
) -> tuple[pl.DataFrame, int]:
    """Return one row per draw to buy, best case first, with `row` into cells, and how many cases can't be bought."""
    room = pl.lit(None, dtype=pl.Int64)
    for name in ("pin", "cap"):
        if name in cells.columns:
            room = pl.min_horizontal(room, pl.col(name).cast(pl.Int64))
    places = cells.with_row_index("row").select("cell_id", "feasible", pl.col("row").cast(pl.Int64), room=room)
    known = cases.select(*_SCHEMA).cast(_SCHEMA).unique("seed_id", keep="first", maintain_order=True)  # type: ignore[arg-type]
    known = known.join(places.filter("feasible"), on="cell_id", how="inner")
    if blocked is not None and len(blocked):
        known = known.filter(~pl.col("seed_id").is_in(blocked.implode()))
    known = known.sort(pl.col("priority").fill_null(0.0), "prn", "seed_id", descending=[True, False, False])
    held = bought.select("seed_id", pl.col("k").cast(pl.Int32)).unique()
    n_held = held.group_by("seed_id").agg(n_held=pl.len().cast(pl.Int32))
    known = known.join(n_held, on="seed_id", how="left", maintain_order="left").with_columns(
        pl.col("n_held").fill_null(0)
    )
    n_first = known.height
    # a case of K draws of which some exist asks for the lowest k's that don't, up to K in all
    draws = known.with_columns(k=pl.int_ranges(0, pl.col("k_seed"), dtype=pl.Int32)).explode("k").drop_nulls("k")
    draws = draws.join(held, on=["seed_id", "k"], how="anti", maintain_order="left")
    has_room = pl.col("room").is_null() | (pl.col("k_seed").cum_count().over("row") <= pl.col("room"))
    draws = draws.with_columns(has_room=has_room).filter(pl.col("has_room").all().over("seed_id"))
    return draws, cases["seed_id"].n_unique() - n_first


def _note(request: PlanRequest, n_taken: int, n_waiting: int, n_left_out: int) -> str:
    said = []
    if n_waiting:
        said.append(
            f"{n_waiting:,} of {n_taken + n_waiting:,} open divergence cases wait: [plan] case_share = "
            f"{request.case_share:g} of {request.budget} pays for the first {n_taken:,}. Raise case_share or the "
            "budget."
        )
    if n_left_out:
        said.append(f"{n_left_out:,} open divergence cases lie in cells that aren't planned, or are blocked.")
    return " ".join(said)
