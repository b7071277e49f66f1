"""Read scenario seeds from Parquet, JSONL or CSV, and refuse what could not be planned with.

Input columns: ``seed_id``, one column per axis, ``scenario``; optional ``group`` (drive, log, document;
the unit of splitting; default the seed itself), ``decision_point`` (left open where it is not said), ``k``, ``size``
(how much of the fleet the seed stands for, above 0; default 1), ``control_axis`` and ``control_value``, ``params``
(an object, or its JSON text). Any other column joins the params under its own name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from .config import NAME_PATTERN
from .errors import DistdataError, nearest
from .hashing import unit_intervals

MAX_ID_CHARS = 64
_KNOWN = ("seed_id", "scenario", "group", "decision_point", "k", "size", "control_axis", "control_value", "params")
_SHOWN = 3
HASHED_AT_ONCE = 100_000
MAX_NESTING = 100
_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is no JSON number")


_LENIENT = json.JSONDecoder()
STRICT = json.JSONDecoder(parse_constant=_refuse_constant)
_WRITE = json.JSONEncoder(sort_keys=True, allow_nan=False)


def read_seed_file(path: Path) -> pl.DataFrame:
    """Read a seed file by its ending (.parquet, .jsonl, .csv) into one row per seed, unchecked.

    Raises:
        DistdataError: missing, unreadable or of another kind; JSONL errors name the line.
    """
    try:
        if path.suffix == ".parquet":
            return pl.read_parquet(path)
        if path.suffix == ".csv":
            return pl.read_csv(path, infer_schema=False)
        if path.suffix in (".jsonl", ".ndjson"):
            return _read_jsonl(path)
    except FileNotFoundError:
        raise DistdataError(f"{path}: not found.") from None
    except (OSError, UnicodeDecodeError, pl.exceptions.PolarsError) as e:
        raise DistdataError(f"{path}: can't be read: {e}") from None
    raise DistdataError(f"{path}: unknown ending {path.suffix!r}. Seeds are read from .parquet, .jsonl and .csv.")


def _read_jsonl(path: Path) -> pl.DataFrame:
    records: list[dict[str, Any]] = []
    with open(path, encoding="utf-8") as f:
        for number, line in enumerate(f, start=1):
            if not line.strip():
                continue
            try:
                record = parse_json(line, _LENIENT)
            except json.JSONDecodeError as e:
                raise DistdataError(f"{path}: line {number}: not valid JSON: {e}") from None
            except ValueError as e:
                raise DistdataError(f"{path}: line {number}: {e}.") from None
            if not isinstance(record, dict):
                raise DistdataError(f"{path}: line {number}: a seed must be an object, got {type(record).__name__}.")
            records.append(_with_nested_in_params(record))
    names = list(dict.fromkeys(key for r in records for key in r))
    return pl.DataFrame({n: _column(path, n, [r.get(n) for r in records]) for n in names})


def _with_nested_in_params(record: dict[str, Any]) -> dict[str, Any]:
    """Move objects and lists beside the known keys into the params, where they stay what they are."""
    nested = {key: value for key, value in record.items() if key not in _KNOWN and isinstance(value, dict | list)}
    params = record.get("params", {})
    if not nested or not isinstance(params, dict):
        return record
    return {**{key: value for key, value in record.items() if key not in nested}, "params": {**nested, **params}}


def _column(path: Path, name: str, values: list[Any]) -> pl.Series:
    kinds = {"a number" if type(v) in (int, float) else type(v).__name__ for v in values if v is not None}
    if len(kinds) > 1 and name not in _KNOWN:
        raise DistdataError(
            f"{path}: {name!r} is {' in one line and '.join(sorted(kinds))} in another. Give it one type, or put it "
            "into params."
        )
    if any(isinstance(v, dict | list) for v in values):
        return pl.Series([None if v is None else json.dumps(v, sort_keys=True) for v in values], dtype=pl.String)
    return pl.Series(values, strict=False)


def check_seeds(
    raw: pl.DataFrame, cells: pl.DataFrame, axes: Sequence[str], existing: pl.Series, where: str
) -> pl.DataFrame:
    """Check seeds against the catalog and bring them into the catalog's columns.

    `cells` is the cell table (`cells.build_cells`), `existing` the seed ids already in the catalog, `where`
    the source as errors name it.

    Returns columns seed_id, cell_id int32, slice, grp, decision_point, k int32 (null: by scenario type),
    control_axis, control_value float64, params (JSON text of an object).

    Raises:
        DistdataError: missing columns, ids that are not ``[A-Za-z0-9_-]{1,64}``, duplicate ids, unknown
            values, seeds of infeasible cells, bad params or K. Names the rows (counted from 1), loses nothing.
    """
    if not len(raw):
        raise DistdataError(f"{where}: holds no seed.")
    for column in ["seed_id", *axes, "scenario"]:
        if column not in raw.columns:
            raise DistdataError(f"{where}: column {column!r} is missing.{nearest(column, raw.columns)}")
    text = {c: pl.col(c).cast(pl.String) for c in ["seed_id", *axes, "scenario"]}
    # only the columns with a meaning of their own: any other name may be that of a column made here
    seeds = raw.select(c for c in raw.columns if c in {*_KNOWN, *axes}).with_columns(**text)
    seeds = seeds.with_row_index("row", offset=1)
    _check_ids(seeds, existing, where)
    _check_values(seeds, cells, axes, where)
    keyed = seeds.with_columns(
        cell=pl.concat_str([pl.concat_str(axes, separator=","), pl.col("scenario")], separator="/")
    )
    joined = keyed.join(
        cells.select("cell", "cell_id", "slice", "feasible", "reason"), on="cell", how="left", maintain_order="left"
    )
    _refuse(
        joined.filter(~pl.col("feasible")), where, "lies in a cell declared infeasible",
        lambda r: f"{r['cell']}: {r['reason']}", "Remove these seeds, or the [[infeasible]] rule.",
    )  # fmt: skip
    return joined.select(
        "seed_id",
        "cell_id",
        "slice",
        (pl.col("group").cast(pl.String) if "group" in raw.columns else pl.col("seed_id"))
        .fill_null(pl.col("seed_id"))
        .alias("grp"),
        _booleans(joined, where).alias("decision_point"),
        _numbers(joined, "k", where, pl.Int32, lambda c: (c >= 1) & (c <= 255), "a whole number from 1 to 255"),
        _numbers(joined, "size", where, pl.Float64, lambda c: c.is_finite() & (c > 0), "a finite number above 0"),
        (joined["control_axis"].cast(pl.String) if "control_axis" in raw.columns else _nulls(joined, pl.String)).alias(
            "control_axis"
        ),
        _numbers(joined, "control_value", where, pl.Float64, lambda c: c.is_finite(), "a finite number"),
        _params(raw, axes, where).alias("params"),
    )


def with_permanent_numbers(seeds: pl.DataFrame, salt: str) -> pl.DataFrame:
    """Add each seed's permanent random number `prn`, float64 in [0, 1)."""
    pieces = [unit_intervals("prn", salt, ids["seed_id"].to_list()) for ids in seeds.iter_slices(HASHED_AT_ONCE)]
    return seeds.with_columns(prn=pl.Series(np.concatenate([np.zeros(0), *pieces])))


def from_arrow(table: pa.Table) -> pl.DataFrame:
    """Take a generator's Arrow table as seed rows."""
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame), "a table becomes a frame"
    return frame


def _check_ids(seeds: pl.DataFrame, existing: pl.Series, where: str) -> None:
    ok = pl.col("seed_id").str.contains(NAME_PATTERN) & (pl.col("seed_id").str.len_chars() <= MAX_ID_CHARS)
    _refuse(
        seeds.filter(~ok.fill_null(False)), where, "has an id that can't be a sample key",
        lambda r: repr(r["seed_id"]),
        f"An id is 1 to {MAX_ID_CHARS} of A-Z a-z 0-9 _ -: a dot or slash would merge samples in WebDataset readers.",
    )  # fmt: skip
    again = seeds.filter(pl.col("seed_id").is_duplicated())
    _refuse(again, where, "has an id that comes twice", lambda r: repr(r["seed_id"]), "Ids must be unique.")
    _refuse(
        seeds.filter(pl.col("seed_id").is_in(existing.implode())), where, "has an id that the catalog already holds",
        lambda r: repr(r["seed_id"]), "Give new seeds new ids; imported seeds never change.",
    )  # fmt: skip


def _check_values(seeds: pl.DataFrame, cells: pl.DataFrame, axes: Sequence[str], where: str) -> None:
    for column in [*axes, "scenario"]:
        known = cells[column].unique().to_list()
        bad = seeds.filter(~pl.col(column).is_in(known).fill_null(False))
        hint = nearest(str(bad[column][0]), sorted(known)).strip() if len(bad) else ""
        _refuse(bad, where, f"has an unknown {column}", lambda r, c=column: repr(r[c]), hint)


def _booleans(seeds: pl.DataFrame, where: str) -> pl.Series:
    """Return whether each seed says that it is a decision point; null where it says nothing."""
    if "decision_point" not in seeds.columns:
        return _nulls(seeds, pl.Boolean)
    given = seeds["decision_point"]
    if given.dtype == pl.Boolean:
        return given
    words = given.cast(pl.String).str.to_lowercase().replace("", None)
    bad = seeds.filter(~words.is_in(["true", "false", "1", "0"]).fill_null(True))
    _refuse(bad, where, "has a bad decision_point", lambda r: repr(r["decision_point"]), "Allowed: true, false.")
    return words.is_in(["true", "1"])


def _numbers(seeds: pl.DataFrame, name: str, where: str, dtype: Any, allowed: Any, wanted: str) -> pl.Series:
    if name not in seeds.columns:
        return _nulls(seeds, dtype).alias(name)
    given = seeds[name]
    if given.dtype == pl.String:
        given = given.replace("", None)
    values = given.cast(pl.Float64, strict=False)
    whole = values == values.floor() if dtype == pl.Int32 else pl.Series([True]).new_from_index(0, len(values))
    good = values.is_not_null() & allowed(values) & whole
    _refuse(
        seeds.filter(given.is_not_null() & ~good.fill_null(False)), where, f"has a bad {name}",
        lambda r: repr(r[name]), f"It must be {wanted}.",
    )  # fmt: skip
    return values.cast(dtype).alias(name)


def _params(seeds: pl.DataFrame, axes: Sequence[str], where: str) -> pl.Series:
    """Return each seed's params as JSON text, with the columns that are nobody else's joined in."""
    extra = seeds.select(sorted(c for c in seeds.columns if c not in {*_KNOWN, *axes}))
    if "params" not in seeds.columns:
        if not extra.columns:
            return pl.Series(["{}"]).new_from_index(0, len(seeds))
        if _is_plain(extra):
            return _plain_objects(extra)
        base = pl.Series(["{}"]).new_from_index(0, len(seeds))
    elif isinstance(seeds["params"].dtype, pl.Struct):
        base = seeds["params"].struct.json_encode()
    else:
        base = seeds["params"].cast(pl.String).fill_null("{}")
    out, bad = [], []
    extras = extra.iter_rows(named=True) if extra.columns else iter([{}] * len(seeds))
    for row, (text, more) in enumerate(zip(base, extras, strict=True), start=1):
        try:
            value = parse_json(text, STRICT)
            if not isinstance(value, dict):
                raise ValueError("not an object")
            out.append(text if not more else _WRITE.encode({**more, **value}))
        except (ValueError, TypeError) as e:
            bad.append(f"row {row}: {e}")
            out.append("{}")
    if bad:
        raise DistdataError(
            f"{where}: {len(bad):,} of {len(seeds):,} seeds have bad params ({'; '.join(bad[:_SHOWN])})."
        )
    return pl.Series(out, dtype=pl.String)


def _is_plain(columns: pl.DataFrame) -> bool:
    """Tell whether all values are numbers, texts and booleans that JSON has."""
    return all(
        values.is_finite().all() if t.is_float() else t.is_integer() or t in (pl.String, pl.Boolean, pl.Null)
        for values, t in zip(columns.iter_columns(), columns.dtypes, strict=True)
    )


def _plain_objects(columns: pl.DataFrame) -> pl.Series:
    """Write rows of plain values as JSON objects, whole columns at a time: `_WRITE.encode` says the same of them."""
    parts: list[Any] = []
    for name, dtype in columns.schema.items():
        parts.append(pl.lit(f"{', ' if parts else '{'}{json.dumps(name)}: "))
        value = pl.col(name).cast(pl.Float64) if dtype.is_float() else pl.col(name)
        if dtype == pl.Null:
            parts.append(pl.lit("null"))
        else:  # an object of this value alone, without what stands around it: {"":VALUE}
            parts.append(pl.struct(value.alias("")).struct.json_encode().str.slice(4).str.head(-1))
    return columns.select(params=pl.concat_str([*parts, pl.lit("}")]))["params"]


def parse_json(text: str, decoder: json.JSONDecoder) -> Any:
    """Parse JSON with this decoder.

    Raises ValueError, besides for what is no JSON, for what could not be stored or read again everywhere: objects
    and lists nested more than 100 deep, and characters escaped as one half of a surrogate pair.
    """
    if (depth := _nesting(text)) > MAX_NESTING:
        raise ValueError(f"objects and lists are nested {depth:,} deep; at most {MAX_NESTING} are read")
    value = decoder.decode(text)
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as e:
            lone = e.object[e.start]
            raise ValueError(f"\\u{ord(lone):04x} is half of a surrogate pair and no character by itself") from None
    return value


def _nesting(text: str) -> int:
    """Return how deep a JSON text nests, or a number below `MAX_NESTING` when it can't nest deeper than that."""
    if (n_opened := text.count("{") + text.count("[")) <= MAX_NESTING:
        return n_opened
    depth = deepest = 0
    for mark in re.findall(r"[\[\]{}]", _JSON_STRING.sub("", text)):
        depth += 1 if mark in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _nulls(seeds: pl.DataFrame, dtype: Any) -> pl.Series:
    return pl.Series([None], dtype=dtype).new_from_index(0, len(seeds))


def _refuse(bad: pl.DataFrame, where: str, what: str, show: Any, advice: str) -> None:
    if not len(bad):
        return
    places = ", ".join(f"row {r['row']} {_id_of(r)}({show(r)})" for r in bad.head(_SHOWN).iter_rows(named=True))
    more = f" and {len(bad) - _SHOWN:,} more" if len(bad) > _SHOWN else ""
    raise DistdataError(f"{where}: {len(bad):,} seed(s): {what}: {places}{more}. {advice} Nothing was imported.")


def _id_of(row: Mapping[str, Any]) -> str:
    value = str(row["seed_id"])
    return f"{value} " if re.fullmatch(NAME_PATTERN, value) else ""
