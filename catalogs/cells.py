"""From axes, scenario types and rules to the table of cells."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from .config import Config, When
from .cover import cover_rows
from .errors import DistdataError, nearest
from .possible import Factors, factors_of

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

    Without ``[cover]`` the cells are the full product. With it they are the rows that `cover.cover_rows` chooses, and
    every cell of `known_ids` and `seed_counts` whose values distdata.toml still has: a cell never vanishes. The rows
    depend on distdata.toml alone (and on a fleet table), so importing seeds moves none. Each cell then stands for its
    neighbours that were left out, too: shares are scaled to sum to 1 over the table.

    Returns columns cell_id int32, cell, slice, scenario, layer, feasible, reason (null when feasible), band
    (in the gated statistic's own unit), band_source, fleet_share (sums to 1 over feasible cells; 0
    elsewhere), k int32 (null where the pilot decides: ``plan.k = "auto"``), then one column per axis.

    Raises:
        DistdataError: more than a million cells, no feasible cell, or a fleet table that doesn't fit.
    """
    sizes = _sizes(config)
    if config.cover is None:
        n_cells = math.prod(sizes)
        if n_cells > MAX_CELLS:
            raise DistdataError(
                f"distdata.toml: the axes make {n_cells:,} cells; at most {MAX_CELLS:,} are supported. Let [cover] "
                "with strength = 2 choose cells that together hold every pair of values, drop an axis, or merge values "
                "that need no gate of their own."
            )
        codes = np.indices(sizes, np.int64).reshape(len(sizes), -1).T
    else:
        codes = cover_rows(cover_factors(config, root), config.cover.strength, config.cover.max_cells)
        codes = _append(codes, codes_of_names(config, [*known_ids, *seed_counts]))
        _check_size(len(codes))
    return _table(config, codes, known_ids, seed_counts, root)


def extend_cells(config: Config, cells: pl.DataFrame, combos: pl.DataFrame, root: Path) -> pl.DataFrame:
    """Add the cells of `combos` (the axis columns and `scenario`; repeats allowed) to a ``[cover]`` table.

    Returns `cells` itself when nothing is new, or without ``[cover]``, where the table is complete. Cells keep their
    ids; shares are computed anew over the longer table (from seeds: as they were, the new ones 0 until
    `build_cells` counts again). A combination declared infeasible is added as such, so that its seeds are refused
    with the reason; one with a value that distdata.toml lacks is not added.

    Raises:
        DistdataError: more than a million cells, or a fleet table (under `root`) that doesn't fit.
    """
    keys = [*config.axes, "scenario"]
    if config.cover is None:
        return cells
    new = combos.select(pl.col(keys).cast(pl.String)).unique(maintain_order=True)
    new = new.join(cells.select(keys), on=keys, how="anti", maintain_order="left").sort(keys)
    added = np.stack(list(_encode(config, new).values()), axis=1).astype(np.int64)
    added = added[(added >= 0).all(axis=1)]
    if not len(added):
        return cells
    known = dict(cells.select("cell", "cell_id").iter_rows())
    codes = _append(codes_of_names(config, known), added)
    _check_size(len(codes))
    # as weights, shares serve as well as the counts that they came from
    amounts = dict(cells.select("cell", "fleet_share").iter_rows())
    return _table(config, codes, known, amounts, root)


def _sizes(config: Config) -> list[int]:
    return [*(len(a.values) for a in config.axes.values()), len(config.scenarios)]


def _check_size(n_cells: int) -> None:
    if n_cells > MAX_CELLS:
        raise DistdataError(
            f"distdata.toml: the cells chosen by [cover] and those that exist are {n_cells:,}; at most {MAX_CELLS:,} "
            "are supported. Lower cover.max_cells, or merge values that need no gate of their own."
        )


def cover_factors(config: Config, root: Path) -> Factors:
    """Return the factors that ``[cover]`` combines; from a fleet table (under `root`) come the shares of single values.

    With ``fleet.source = "seeds"`` the shares of distdata.toml serve: the chosen cells must not move with every import.
    """
    if config.fleet.source != "table":
        return factors_of(config)
    shares = [np.zeros(n) for n in _sizes(config)]
    amounts = _read_fleet_table(config, root)
    for row, amount in zip(codes_of_names(config, amounts), amounts.values(), strict=True):
        for column, value in zip(shares, row.tolist(), strict=True):
            column[value] += amount
    return factors_of(config, shares)


def codes_of_names(config: Config, names: Iterable[str]) -> NDArray[np.int64]:
    """Return cells by name as indices of values, int64 [n, n_axes + 1], without those that name a value no more."""
    codes = cell_codes(config, names)
    return codes[(codes >= 0).all(axis=1)]


def cell_codes(config: Config, names: Iterable[str]) -> NDArray[np.int64]:
    """Return cells by name as indices of values, int64 [n, n_axes + 1]; all -1 for one with a value that is no more."""
    index = [{v: i for i, v in enumerate(a.values)} for a in config.axes.values()]
    index.append({v: i for i, v in enumerate(config.scenarios)})
    rows = []
    for name in names:
        slice_, _, scenario = name.rpartition("/")
        values = [*slice_.split(","), scenario]
        known = len(values) == len(index) and all(v in here for v, here in zip(values, index, strict=True))
        rows.append([here[v] for v, here in zip(values, index, strict=True)] if known else [-1] * len(index))
    return np.array(rows, np.int64).reshape(len(rows), len(index))


def _append(codes: NDArray[np.int64], more: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return `codes` and after them the rows of `more` that are new, each once."""
    there = dict.fromkeys(map(tuple, codes.tolist()))
    there.update(dict.fromkeys(map(tuple, more.tolist())))
    return np.array(list(there), np.int64).reshape(len(there), codes.shape[1])


def _table(
    config: Config,
    codes: NDArray[np.int64],
    known_ids: Mapping[str, int],
    seed_counts: Mapping[str, float],
    root: Path,
) -> pl.DataFrame:
    """Compute the columns of `build_cells` for cells given as indices of values."""
    axes = list(config.axes)
    n = len(codes)
    values = [*(a.values for a in config.axes.values()), list(config.scenarios)]
    cells = pl.DataFrame(
        [pl.Series(c, v).gather(i) for c, v, i in zip([*axes, "scenario"], values, codes.T, strict=True)]
    )
    cells = cells.with_columns(slice=pl.concat_str(axes, separator=","))
    cells = cells.with_columns(cell=pl.concat_str("slice", "scenario", separator="/"))
    columns = dict(zip([*axes, "scenario"], codes.T, strict=True))
    hits = [_hits(config, columns, r.when, n) for r in config.infeasible]
    reasons = pl.Series([r.reason for r in config.infeasible], dtype=pl.String)
    first = _first(hits, n)
    k = [s.k or _plan_k(config) for s in config.scenarios.values()]
    cells = cells.with_columns(
        pl.Series("cell_id", _ids(cells["cell"], known_ids), dtype=pl.Int32),
        pl.Series("layer", [s.layer for s in config.scenarios.values()], dtype=pl.String).gather(codes[:, -1]),
        pl.Series("feasible", first < 0),
        reasons.gather(pl.Series(first).replace(-1, None)).alias("reason"),
        *_bands(config, columns, n),
        pl.Series("k", k, dtype=pl.Int32).gather(codes[:, -1]),
    )
    if not cells["feasible"].any():
        raise DistdataError("distdata.toml: the [[infeasible]] rules leave no feasible cell.")
    if config.fleet.source == "axes":
        share = np.where(first < 0, 1.0, 0.0)
        for shares, column in zip(factors_of(config).shares, codes.T, strict=True):
            share *= shares[column]
        cells = cells.with_columns(fleet_share=pl.Series(share))
    else:
        amounts = seed_counts if config.fleet.source == "seeds" else _read_fleet_table(config, root)
        cells = _with_shares(cells, amounts)
    cells = cells.select(
        "cell_id", "cell", "slice", "scenario", "layer", "feasible", "reason", "band", "band_source", "fleet_share",
        "k", *axes,
    ).sort("cell_id")  # fmt: skip
    total = float(cells["fleet_share"].sum())
    if total == 0:
        # nothing is known of the fleet yet (no seeds): equal shares are the neutral start
        return cells.with_columns(fleet_share=pl.col("feasible") / cells["feasible"].sum())
    return cells.with_columns(pl.col("fleet_share") / total)


def _ids(names: pl.Series, known_ids: Mapping[str, int]) -> NDArray[np.int64]:
    """Return the id that each cell has, or the next free one."""
    ids = np.array([known_ids.get(name, -1) for name in names], np.int64)
    new = ids < 0
    ids[new] = max(known_ids.values(), default=-1) + 1 + np.arange(int(new.sum()))
    return ids


def _plan_k(config: Config) -> int | None:
    return None if config.plan.k == "auto" else config.plan.k


def _bands(config: Config, columns: Mapping[str, NDArray[np.int64]], n: int) -> tuple[pl.Series, pl.Series]:
    """Return each cell's band and the rule it comes from: most keys first, then the tightest."""
    rules = sorted(enumerate(config.bands.rules), key=lambda r: (-len(r[1].when), r[1].band, r[0]))
    first = pl.Series(_first([_hits(config, columns, rule.when, n) for _, rule in rules], n)).replace(-1, len(rules))
    said = [f"rule {i}: " + " ".join(f"{k}={v}" for k, v in rule.when.items()) for i, rule in rules]
    bands = pl.Series("band", [*(rule.band for _, rule in rules), config.bands.default], dtype=pl.Float64)
    return bands.gather(first), pl.Series("band_source", [*said, "default"], dtype=pl.String).gather(first)


def _with_shares(cells: pl.DataFrame, amounts: Mapping[str, float]) -> pl.DataFrame:
    column = [float(amounts.get(c, 0)) if ok else 0.0 for c, ok in cells.select("cell", "feasible").iter_rows()]
    return cells.with_columns(fleet_share=pl.Series(column, dtype=pl.Float64))


def _read_fleet_table(config: Config, root: Path) -> dict[str, float]:
    """Return the share of each cell that the fleet table names, not scaled; the cells need not be in the catalog."""
    path = root / (config.fleet.table or "")
    axes = list(config.axes)
    try:
        table = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as e:
        raise DistdataError(f"fleet.table = {config.fleet.table!r}: can't be read: {e}") from None
    for column in [*axes, "scenario", "share"]:
        if column not in table.columns:
            raise DistdataError(f"{path}: column {column!r} is missing.{nearest(column, table.columns)}")
    known = {name: axis.values for name, axis in config.axes.items()} | {"scenario": list(config.scenarios)}
    shares: dict[str, float] = {}
    for row, record in enumerate(table.iter_rows(named=True), start=1):
        place = {key: "" if record[key] is None else str(record[key]) for key in (*axes, "scenario")}
        cell = f"{slice_name(place, axes)}/{place['scenario']}"
        for key, value in place.items():
            if value not in known[key]:
                raise DistdataError(
                    f"{path}: row {row}: no cell {cell!r}: no {key} {value!r}.{nearest(value, known[key])}"
                )
        try:
            share = float(record["share"])
        except (TypeError, ValueError):
            share = math.nan
        if not (math.isfinite(share) and share >= 0):
            raise DistdataError(f"{path}: row {row}: share = {record['share']!r} must be a number of at least 0.")
        shares[cell] = shares.get(cell, 0.0) + share
    return shares


def rule_columns(config: Config, cells: pl.DataFrame) -> pl.DataFrame:
    """Resolve ``[[plan.rules]]`` and ``[[decision_points]]`` into one row per cell, in the order of `cells`.

    `cells` has cell_id, `scenario` and the axis columns; optional `feasible` (true). For each of pin, floor, cap,
    boost and a decision point's k the rule with the most keys wins. Infeasible cells get nothing.

    Returns columns cell_id, pin, floor, cap Int64 (null: no such rule; kept samples), rule_boost Float64 (1 without a
    rule), decision (a decision-point rule matches), decision_k Int32 (null: no such rule says a k), rule (what rules
    said here and which, for people; null where none did).

    Raises:
        DistdataError: equally specific rules that differ, a pin outside another rule's floor or cap, a floor above a
            cap, or a rule that demands samples where no feasible cell of the table matches.
    """
    codes = _encode(config, cells)
    usable = cells["feasible"].to_numpy() if "feasible" in cells.columns else np.ones(len(cells), np.bool_)
    hits = [_hits(config, codes, rule.when, len(cells)) & usable for rule in config.plan.rules]
    for i, (rule, hit) in enumerate(zip(config.plan.rules, hits, strict=True)):
        wants = "pin" if rule.pin else "floor" if rule.floor else None
        if wants and not hit.any():
            raise DistdataError(
                f"distdata.toml: plan.rules[{i}] ({_said(rule.when)}) wants {wants} = {getattr(rule, wants):,}, but "
                f"none of the {int(usable.sum()):,} feasible cells matches. Widen its `when`, import seeds of such a "
                "cell if [cover] left it out, or drop the rule."
            )
    won = {}
    for name in ("pin", "floor", "cap", "boost"):
        said = [(i, r.when, getattr(r, name), hits[i]) for i, r in enumerate(config.plan.rules)]
        won[name] = _winners(config, cells, name, said)
    points = [_hits(config, codes, rule.when, len(cells)) & usable for rule in config.decision_points]
    decision = np.logical_or.reduce(points) if points else np.zeros(len(cells), np.bool_)
    asked = [(i, r.when, r.k, points[i]) for i, r in enumerate(config.decision_points)]
    won["k"] = _winners(config, cells, "k", asked, "decision_points")
    _check_bounds(config, cells, won)
    return pl.DataFrame(
        {
            "cell_id": cells["cell_id"],
            **{name: won[name].values.cast(pl.Int64) for name in ("pin", "floor", "cap")},
            "rule_boost": won["boost"].values.fill_null(1.0),
            "decision": pl.Series(decision, dtype=pl.Boolean),
            "decision_k": won["k"].values.cast(pl.Int32),
            "rule": _rule_texts(config, won, points, len(cells)),
        }
    )


class _Won(NamedTuple):
    """Per cell the rule that settles one number: its index (-1: none) and the number (null)."""

    rule: NDArray[np.int64]
    values: pl.Series


def _encode(config: Config, cells: pl.DataFrame) -> dict[str, NDArray[np.int32]]:
    """Return each axis and the scenario as indices into their values of distdata.toml; -1 for one it lacks."""
    known = {name: axis.values for name, axis in config.axes.items()} | {"scenario": list(config.scenarios)}
    return {
        key: cells[key].replace_strict(values, range(len(values)), default=-1, return_dtype=pl.Int32).to_numpy()
        for key, values in known.items()
    }


def _hits(config: Config, codes: Mapping[str, NDArray[np.integer]], when: When, n_cells: int) -> NDArray[np.bool_]:
    hit = np.ones(n_cells, np.bool_)
    for key, wanted in when.items():
        values = list(config.scenarios) if key == "scenario" else config.axes[key].values
        # one place more than there are values: index -1, a value that distdata.toml lacks, matches nothing
        allowed = np.zeros(len(values) + 1, np.bool_)
        allowed[[values.index(v) for v in ([wanted] if isinstance(wanted, str) else wanted)]] = True
        hit &= allowed[codes[key]]
    return hit


def _winners(
    config: Config,
    cells: pl.DataFrame,
    name: str,
    rules: Sequence[tuple[int, When, float | None, NDArray[np.bool_]]],
    table: str = "plan.rules",
) -> _Won:
    """Give every cell the most specific rule that says `name`; refuse equally specific ones that differ."""
    best = np.full(len(cells), -1, np.int64)
    keys = np.zeros(len(cells), np.int64)
    value = np.full(len(cells), np.nan)
    for i, when, said, hit in sorted(rules, key=lambda r: -len(r[1])):
        if said is None:
            continue
        # the most specific came first: what is settled with as many keys can only agree or clash
        clash = hit & (keys == len(when)) & (value != said)
        if clash.any():
            at = int(np.argmax(clash))
            j = int(best[at])
            other = next(w for n, w, _, _ in rules if n == j)
            raise DistdataError(
                f"distdata.toml: {table}[{j}] ({_said(other)}) and {table}[{i}] ({_said(when)}) both match "
                f"{int(clash.sum()):,} cell(s), such as {_cell_name(config, cells, at)}, equally specific, and say "
                f"{name} = {value[at]:,.12g} and {said:,.12g}. Give one of them a further key, take the cells they "
                "share out of one, or make them agree."
            )
        wins = hit & (best < 0)
        best[wins], keys[wins], value[wins] = i, len(when), said
    return _Won(best, pl.Series(name, value).fill_nan(None))


def _check_bounds(config: Config, cells: pl.DataFrame, won: Mapping[str, _Won]) -> None:
    for low, high in (("floor", "pin"), ("pin", "cap"), ("floor", "cap")):
        bad = (won[low].values > won[high].values).fill_null(False).to_numpy()
        if not bad.any():
            continue
        at = int(np.argmax(bad))
        i, j = int(won[low].rule[at]), int(won[high].rule[at])
        raise DistdataError(
            f"distdata.toml: plan.rules[{i}] ({_said(config.plan.rules[i].when)}) says {low} = "
            f"{won[low].values[at]:,.0f} and plan.rules[{j}] ({_said(config.plan.rules[j].when)}) says {high} = "
            f"{won[high].values[at]:,.0f}; they contradict each other in {int(bad.sum()):,} cell(s), such as "
            f"{_cell_name(config, cells, at)}. Lower the {low}, raise the {high}, or narrow one `when`."
        )


def _rule_texts(config: Config, won: Mapping[str, _Won], points: list[NDArray[np.bool_]], n_cells: int) -> pl.Series:
    """Say per cell what the rules settled: ``floor 100 (plan.rules[1]: light=night)``, joined by ``; ``."""
    # cells share few distinct texts: each distinct set of rules is written once
    index = np.stack([*(w.rule for w in won.values()), _first(points, n_cells)], axis=1)
    distinct, which = np.unique(index, axis=0, return_inverse=True)
    texts = []
    for row in distinct.tolist():
        parts = []
        for name, i in zip(won, row, strict=False):
            if i >= 0 and name != "k":
                rule = config.plan.rules[i]
                parts.append(f"{name} {getattr(rule, name):,.12g} (plan.rules[{i}]: {_said(rule.when)})")
        *_, k_rule, point = row
        if point >= 0:
            i = k_rule if k_rule >= 0 else point
            k = f" k {config.decision_points[i].k}" if k_rule >= 0 else ""
            parts.append(f"decision point{k} (decision_points[{i}]: {_said(config.decision_points[i].when)})")
        texts.append("; ".join(parts) or None)
    return pl.Series(texts, dtype=pl.String).gather(which.reshape(-1))


def _first(hits: list[NDArray[np.bool_]], n_cells: int) -> NDArray[np.int64]:
    first = np.full(n_cells, -1, np.int64)
    for i in reversed(range(len(hits))):
        first[hits[i]] = i
    return first


def _said(when: When) -> str:
    return " ".join(f"{key}={v if isinstance(v, str) else '|'.join(v)}" for key, v in when.items())


def _cell_name(config: Config, cells: pl.DataFrame, at: int) -> str:
    row = cells.row(at, named=True)
    return f"{slice_name(row, list(config.axes))}/{row['scenario']}"
