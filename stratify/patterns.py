"""Cells by what a person calls them: axis values in any order, a scenario type, or both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import polars as pl

from ..catalogs.errors import DistdataError, nearest
from .frame import Bools, Floats


def matching(cells: pl.DataFrame, pattern: str, option: str) -> tuple[Bools, int]:
    """Return which cells (slice, scenario) `pattern` names, bool [H], and how many values and types it gives.

    ``rain,night`` names all cells with both values, whatever others they have; ``crossing`` a scenario type, and
    ``rain,night/crossing`` both. `option` is the command line's, for messages.

    Raises:
        DistdataError: a value or scenario type nobody knows, or values that never come together.
    """
    left, slash, right = pattern.strip().partition("/")
    wanted = Counter(value for part in left.split(",") if (value := part.strip()))
    scenario = right.strip()
    scenarios = set(cells["scenario"].to_list())
    values = {value for name in cells["slice"].unique().to_list() for value in name.split(",")}
    if not slash and len(wanted) == 1 and left.strip() in scenarios - values:
        wanted, scenario = Counter(), left.strip()
    for value in wanted:
        if value not in values:
            raise DistdataError(
                f"{option} {pattern}: no axis value {value!r}.{nearest(value, _known(values, scenarios))}"
            )
    if scenario and scenario not in scenarios:
        raise DistdataError(f"{option} {pattern}: no scenario type {scenario!r}.{nearest(scenario, sorted(scenarios))}")
    fits = np.array(
        [
            wanted <= Counter(slice_name.split(",")) and scenario in ("", name)
            for slice_name, name in cells.select("slice", "scenario").iter_rows()
        ],
        dtype=np.bool_,
    )
    if not fits.any():
        raise DistdataError(
            f"{option} {pattern}: no cell has all of these values together; slices hold one value per axis."
        )
    return fits, wanted.total() + bool(scenario)


def _known(values: set[str], scenarios: set[str]) -> list[str]:
    return sorted(values) + sorted(scenarios - values)


def boost_factors(cells: pl.DataFrame, boosts: Mapping[str, float]) -> Floats:
    """Return each cell's factor, float64 [H]: that of the pattern with the most values that names it, 1 without any.

    Raises:
        DistdataError: a pattern that names nothing, or two with equally many values that give a cell different factors.
    """
    factor, said_by = np.ones(cells.height), np.full(cells.height, -1)
    n_values, names = np.zeros(cells.height, dtype=np.int64), list(boosts)
    for i, (pattern, value) in enumerate(boosts.items()):
        fits, n = matching(cells, pattern, "plan: --boost")
        clash = fits & (said_by >= 0) & (n_values == n) & (factor != value)
        if clash.any():
            at = int(np.argmax(clash))
            other = names[int(said_by[at])]
            raise DistdataError(
                f"plan: --boost {other}={factor[at]:g} and --boost {pattern}={value:g} both name {cells['cell'][at]}, "
                f"with equally many values. Boost {cells['cell'][at]} itself too, or give both the same factor."
            )
        better = fits & (n >= n_values)
        factor[better], said_by[better], n_values[better] = value, i, n
    return factor
