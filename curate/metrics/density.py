"""Density: whether this draw is one that the teacher could have made, or lies between what the teacher makes.

`density_rank` in [0, 1]: the share of the teacher's own draws of the cell that are odder than this one, ties by half. A
rank below 0.005 is a ghost: of 200 draws of the teacher none or one was as odd. How odd a draw is:

- Two or more outcomes known: how far it is on the way from one of the seed's outcomes to another (see `modes`), and up
  to `BETWEEN` of the way is alike. So averages, interpolations and bridges are ghosts, and an outcome that is a little
  off, too wide or too narrow isn't: spread, distance and drift judge that. An average in which no other outcome pulls
  it a fifth of the way (one with a share above 0.8 always, several small ones to different sides at times) is at its
  outcome as much as an imprecise draw, and is no ghost; nor is any draw of a seed that can become only one thing and
  does.
- One outcome known: there is nothing between. The distance from the teacher's draws counts, and up to `FAR` times the
  farthest of its own is alike: only what is far out is a ghost.
- No labels at all: the distance from the nearest of the teacher's draws, in units of all their spread, with no such
  allowance. Imprecise modes show in it too, and averages only where the outcomes leave a wide gap: label the draws.

The teacher's draw of the same seed and k is left out of everything, so without ties the teacher's own ranks would be
the n values 0, 1/(n-1), ... 1, each once, whatever its law: below a level a lie at most ceil(a (n - 1)) / n of them
(`own_share`), and fewer where they tie. Draws of an outcome that the teacher showed once or twice have no place of
their own: they are ranked, but nothing is ranked among them.

A cell with fewer than 20 of the teacher's draws is ranked among all of the scenario type. None without a feature, and
where the scenario type has fewer than 20: there is nothing to rank by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from ...catalogs.errors import DistdataError
from . import feature
from .modes import MIN_CELL, Floats, Ints, Modes, Points, fit_modes, peers
from .seed_view import SeedView

MEMBERS: tuple[str, ...] = ()
OPTIONAL: tuple[str, ...] = feature.OPTIONAL
KINDS: tuple[str, ...] = feature.KINDS
COLUMNS: Mapping[str, type[pl.DataType] | pl.DataType] = {**feature.COLUMNS, "seed_state": pl.List(pl.Float64)}
BETWEEN = 0.2
"""Share of the way to another outcome below which a draw is at its own."""
FAR = 2.0
"""With one outcome: times the distance of the teacher's farthest draw below which distances are alike."""
DERIVED: Mapping[str, type[pl.DataType]] = {"density_rank": pl.Float64}


def columns(members: Mapping[str, Any], seed: SeedView) -> dict[str, list[float] | None]:
    """Return `feature`, and `seed_state`: the numbers among the seed's params, by name."""
    numbers = [float(v) for _, v in sorted(seed.params.items()) if isinstance(v, int | float) and math.isfinite(v)]
    return {**feature.columns(members, seed), "seed_state": numbers}


def against(reference: pl.DataFrame, measured: pl.DataFrame) -> pl.DataFrame:
    """Add `density_rank` to `measured`, ranked among `reference`, the teacher's draws (which `measured` may be).

    Both need seed_id, k, cell, scenario, outcome, feature and seed_state.

    Raises:
        DistdataError: the two models' features have different lengths.
    """
    ranks = pl.Series("density_rank", [None] * measured.height, dtype=pl.Float64).to_numpy(writable=True)
    for rows, points, match, modes, teacher in by_scenario(reference, measured):
        odd, odd_teacher = _oddness(modes, points, match, teacher)
        placed = (modes.own >= 0) | (teacher.outcome == "")
        for cell in np.unique(points.cell):
            pool = peers(np.where(placed, teacher.cell, ""), cell)
            at = np.flatnonzero(points.cell == cell)
            ranks[rows[at]] = _ranks(odd[at], match[at], odd_teacher[pool], pool)
    return measured.with_columns(pl.Series("density_rank", ranks).fill_nan(None))


def own_share(level: float, n: int) -> float:
    """Return the largest share of `n` draws of the teacher that can rank below `level`: just that, without ties."""
    return min(n, math.ceil(level * (n - 1))) / n


def by_scenario(reference: pl.DataFrame, measured: pl.DataFrame) -> list[tuple[Ints, Points, Ints, Modes, Points]]:
    """Return for each scenario type: rows of `measured`, their points, the teacher's draws that match, modes, points.

    Rows without a feature are left out, and scenario types with fewer than `MIN_CELL` draws of the teacher.
    """
    found = []
    reference = reference.filter(pl.col("feature").is_not_null())
    measured = measured.with_row_index("_row").filter(pl.col("feature").is_not_null())
    for scenario in measured["scenario"].unique(maintain_order=True).to_list():
        theirs = reference.filter(pl.col("scenario") == scenario)
        mine = measured.filter(pl.col("scenario") == scenario)
        if theirs.height < MIN_CELL:
            continue
        teacher, points = _points(theirs, mine)
        numbers = theirs.select("seed_id", "k").with_row_index("_at").unique(["seed_id", "k"], keep="first")
        match = mine.join(numbers, on=["seed_id", "k"], how="left", maintain_order="left")["_at"]
        matched = match.cast(pl.Int64).fill_null(-1).to_numpy()
        found.append((mine["_row"].to_numpy().astype(np.int64), points, matched, fit_modes(teacher), teacher))
    return found


def _points(theirs: pl.DataFrame, mine: pl.DataFrame) -> tuple[Points, Points]:
    both = pl.concat([theirs.select(_NEEDED), mine.select(_NEEDED)], how="vertical_relaxed")
    lengths = sorted(both["feature"].list.len().unique().to_list())
    if len(lengths) > 1:
        raise DistdataError(
            f"metric density: draws of {both['scenario'][0]} have features of {' and '.join(map(str, lengths))} "
            "numbers. Two models are compared by latents of one shape: gate a student against the teacher it was "
            "distilled from."
        )
    x = feature.matrix(both["feature"])
    # numbers that not every seed states can't be regressed on
    states = both["seed_state"].list.len().unique().to_list()
    same = len(states) == 1 and states[0]
    state = feature.matrix(both["seed_state"]) if same else np.zeros((len(x), 0))
    names = {c: both[c].fill_null("").to_numpy().astype(np.str_) for c in ("seed_id", "cell", "outcome")}
    n = theirs.height

    def part(at: slice) -> Points:
        return Points(
            x=x[at], state=state[at], seed=names["seed_id"][at], cell=names["cell"][at], outcome=names["outcome"][at]
        )

    return part(slice(0, n)), part(slice(n, None))


_NEEDED = ("seed_id", "k", "cell", "scenario", "outcome", "feature", "seed_state")


def _oddness(modes: Modes, points: Points, match: Ints, teacher: Points) -> tuple[Floats, Floats]:
    """Return how odd each draw is, and each of the teacher's (module text); what is alike has one value."""
    own = np.arange(len(teacher.x))
    if len(modes.names) > 1:
        odd, odd_teacher, alike = modes.between(points, match), modes.between(teacher, own), BETWEEN
    else:
        odd, odd_teacher = modes.distances(points, match).min(axis=1), modes.distances(teacher, own).min(axis=1)
        alike = FAR * float(odd_teacher.max()) if modes.names[0] else 0.0
    return np.maximum(odd, alike), np.maximum(odd_teacher, alike)


def _ranks(odd: Floats, match: Ints, odd_teacher: Floats, pool: Ints) -> Floats:
    """Return the share of the teacher's draws `pool` that are odder, the matching one left out."""
    less = (odd_teacher[None] > odd[:, None]) + 0.5 * (odd_teacher[None] == odd[:, None])
    own = pool[None] == match[:, None]
    less[own] = 0.0
    return np.asarray(less.sum(1) / (len(pool) - own.any(1)))
