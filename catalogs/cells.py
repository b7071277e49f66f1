"""From axes, scenario types and rules to the table of cells."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from .config import Config, When
from .errors import DistdataError, nearest

MAX_CELLS = 1_000_000


def slice_name(values: Mapping[str, str], axes: list[str]) -> str:
    """Join axis values in axis order: ``night,rain``."""
    return ",".join(values[axis] for axis in axes)


def build_cells(
    config: Config, known_ids: Mapping[str, int], seed_counts: Mapping[str, int], root: Path
) -> pl.DataFrame:
    """Compute every cell: its slice, scenario type, layer, feasibility, band and fleet share.

    `known_ids` keeps the ids of cells that exist; new ones are numbered after them. `seed_counts` (cell ->
    seeds) serves ``fleet.source = "seeds"``; `root` is where a fleet table's relative path starts.

    Returns columns cell_id int32, cell, slice, scenario, layer, feasible, reason (null when feasible), band
    (in the gated statistic's own unit), band_source, fleet_share (sums to 1 over feasible cells; 0
    elsewhere), k int32, then one column per axis.

    Raises:
        DistdataError: more than a million cells, no feasible cell, or a fleet table that doesn't fit.
    """
    axes = list(config.axes)
    n_cells = math.prod(len(a.values) for a in config.axes.values()) * len(config.scenarios)
    if n_cells > MAX_CELLS:
        raise DistdataError(
            f"distdata.toml: the axes make {n_cells:,} cells; at most {MAX_CELLS:,} are supported. Drop an axis, or "
            "merge values that need no gate of their own."
        )
    rows = []
    next_id = max(known_ids.values(), default=-1) + 1
    for combo in itertools.product(*(config.axes[a].values for a in axes)):
        for scenario, rule in config.scenarios.items():
            place = dict(zip(axes, combo, strict=True)) | {"scenario": scenario}
            slice_ = slice_name(place, axes)
            cell = f"{slice_}/{scenario}"
            reason = next((r.reason for r in config.infeasible if _matches(r.when, place)), None)
            band, source = _band(config, place)
            cell_id = known_ids.get(cell)
            if cell_id is None:
                cell_id, next_id = next_id, next_id + 1
            share = _axes_share(config, place) if reason is None else 0.0
            rows.append(
                (cell_id, cell, slice_, scenario, rule.layer, reason is None, reason, band, source, share,
                 rule.k or config.plan.k, *combo)
            )  # fmt: skip
    schema = {
        "cell_id": pl.Int32, "cell": pl.String, "slice": pl.String, "scenario": pl.String, "layer": pl.String,
        "feasible": pl.Boolean, "reason": pl.String, "band": pl.Float64, "band_source": pl.String,
        "fleet_share": pl.Float64, "k": pl.Int32, **dict.fromkeys(axes, pl.String),
    }  # fmt: skip
    cells = pl.DataFrame(rows, schema=schema, orient="row").sort("cell_id")
    if not cells["feasible"].any():
        raise DistdataError("distdata.toml: the [[infeasible]] rules leave no feasible cell.")
    if config.fleet.source == "seeds":
        cells = _with_shares(cells, seed_counts)
    elif config.fleet.source == "table":
        cells = _with_shares(cells, _read_fleet_table(config, cells, root))
    total = float(cells["fleet_share"].sum())
    if total == 0:
        # nothing is known of the fleet yet (no seeds): equal shares are the neutral start
        return cells.with_columns(fleet_share=pl.col("feasible") / cells["feasible"].sum())
    return cells.with_columns(pl.col("fleet_share") / total)


def _matches(when: When, place: Mapping[str, str]) -> bool:
    return all(place[key] in ([wanted] if isinstance(wanted, str) else wanted) for key, wanted in when.items())


def _band(config: Config, place: Mapping[str, str]) -> tuple[float, str]:
    """Return the band of a cell and the rule it comes from: most keys first, then the tightest."""
    hits = [(-len(r.when), r.band, i) for i, r in enumerate(config.bands.rules) if _matches(r.when, place)]
    if not hits:
        return config.bands.default, "default"
    _, band, i = min(hits)
    return band, f"rule {i}: " + " ".join(f"{k}={v}" for k, v in config.bands.rules[i].when.items())


def _axes_share(config: Config, place: Mapping[str, str]) -> float:
    share = 1.0
    for name, axis in config.axes.items():
        share *= axis.fleet[axis.values.index(place[name])] if axis.fleet else 1 / len(axis.values)
    given = config.scenarios[place["scenario"]].fleet
    return share * (1 / len(config.scenarios) if given is None else given)


def _with_shares(cells: pl.DataFrame, amounts: Mapping[str, float]) -> pl.DataFrame:
    column = [float(amounts.get(c, 0)) if ok else 0.0 for c, ok in cells.select("cell", "feasible").iter_rows()]
    return cells.with_columns(fleet_share=pl.Series(column, dtype=pl.Float64))


def _read_fleet_table(config: Config, cells: pl.DataFrame, root: Path) -> dict[str, float]:
    path = root / (config.fleet.table or "")
    axes = list(config.axes)
    try:
        table = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as e:
        raise DistdataError(f"fleet.table = {config.fleet.table!r}: can't be read: {e}") from None
    for column in [*axes, "scenario", "share"]:
        if column not in table.columns:
            raise DistdataError(f"{path}: column {column!r} is missing.{nearest(column, table.columns)}")
    known = set(cells["cell"])
    shares: dict[str, float] = {}
    for row, record in enumerate(table.iter_rows(named=True), start=1):
        place = {key: "" if record[key] is None else str(record[key]) for key in (*axes, "scenario")}
        cell = f"{slice_name(place, axes)}/{place['scenario']}"
        if cell not in known:
            raise DistdataError(f"{path}: row {row}: no cell {cell!r}.{nearest(cell, known)}")
        try:
            share = float(record["share"])
        except (TypeError, ValueError):
            share = math.nan
        if not (math.isfinite(share) and share >= 0):
            raise DistdataError(f"{path}: row {row}: share = {record['share']!r} must be a number of at least 0.")
        shares[cell] = shares.get(cell, 0.0) + share
    return shares
