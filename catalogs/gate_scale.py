"""A gate's rows on one scale: where estimate and interval lie in units of the band, the same way round for all.

0 is "like the teacher" and 1 the edge of the band on the harmful side. A two-sided row has an edge at -1 too. Rows of
which less is harm (recall, validity) are turned round; a ratio counts from 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import polars as pl

WORST_FIRST = ("fail", "undecided", "pass")
RATIOS_FROM_ONE = ("control",)
"""Metrics whose estimate is a ratio that may be off by the band either way."""
RATIOS_AT_LEAST = ("recall",)
"""Metrics whose estimate is a ratio of which the band is the least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRow:
    """One slice, metric and contrast of a gate, as `stratify.verdict.judge` gives it; `side` none: information only."""

    slice: str
    metric: str
    contrast: str
    n_seeds: int
    n_draws: int
    estimate: float | None
    low: float | None
    high: float | None
    band: float | None
    side: str
    verdict: str
    reason: str = ""
    needed_draws: int | None = None

    @property
    def two_sided(self) -> bool:
        """Tell whether both directions are harm."""
        return self.side == "both"

    @property
    def judged(self) -> bool:
        """Tell whether the row counts for the verdict."""
        return self.side != "none"

    def in_bands(self, value: float | None) -> float | None:
        """Return where `value` lies in units of the band; None where there is no number."""
        if value is None or not math.isfinite(value) or not self.band:
            return None
        if self.metric in RATIOS_FROM_ONE:
            return (value - 1) / self.band
        if self.metric in RATIOS_AT_LEAST:
            return (1 - value) / (1 - self.band)
        return -value / self.band if self.side == "lower" else value / self.band

    @property
    def place(self) -> tuple[float | None, float | None, float | None]:
        """Return estimate, least and most in bands; an end that the row doesn't have is None."""
        middle, *ends = (self.in_bands(v) for v in (self.estimate, self.low, self.high))
        if self.side == "lower":
            ends.reverse()
        return middle, ends[0], ends[1]

    @property
    def score(self) -> float | None:
        """Return how much of its band the estimate takes up, 1 at the edge, at least 0; None without a number."""
        at = self.in_bands(self.estimate)
        return None if at is None else abs(at) if self.two_sided else max(at, 0.0)


def gate_rows_of(frame: pl.DataFrame) -> list[GateRow]:
    """Read the rows of a gate; columns that a row doesn't need are left out."""
    names = list(GateRow.__dataclass_fields__)
    return [GateRow(**_filled(row)) for row in frame.select(names).iter_rows(named=True)]


def _filled(row: dict[str, Any]) -> dict[str, Any]:
    texts = {name: row[name] or "" for name in ("contrast", "reason", "side", "verdict")}
    counts = {name: int(row[name] or 0) for name in ("n_seeds", "n_draws")}
    return {**row, **texts, **counts}


def worst_of(rows: Iterable[GateRow]) -> GateRow | None:
    """Return the row that decides: a failed one before an undecided one, then the one that uses its band up most."""
    judged = [row for row in rows if row.judged]
    return min(judged, key=_rank, default=None)


def _rank(row: GateRow) -> tuple[int, float]:
    score = row.score
    return WORST_FIRST.index(row.verdict) if row.verdict in WORST_FIRST else 1, -(math.inf if score is None else score)


def by_slice(rows: Iterable[GateRow]) -> list[tuple[str, list[GateRow]]]:
    """Group rows by slice, the worst slice first, equal ones in their order."""
    groups: dict[str, list[GateRow]] = {}
    for row in rows:
        groups.setdefault(row.slice, []).append(row)

    def rank(item: tuple[str, list[GateRow]]) -> tuple[int, float]:
        worst = worst_of(item[1])
        return (3, 0.0) if worst is None else _rank(worst)

    return sorted(groups.items(), key=rank)


def number(value: float | None) -> str:
    """Write an estimate with three digits, or a dash."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.3g}"


def band_words(row: GateRow) -> str:
    """Say what the band allows: ``within ±0.1``, ``at most 0.05``, ``at least 0.5``, ``0.8 to 1.2``."""
    if row.band is None:
        return "no band"
    if row.metric in RATIOS_FROM_ONE:
        return f"{1 - row.band:.3g} to {1 + row.band:.3g}"
    if row.metric in RATIOS_AT_LEAST:
        return f"at least {row.band:.3g}"
    if row.side == "lower":
        return f"at least -{row.band:.3g}"
    return f"at most {row.band:.3g}" if row.side == "upper" else f"within ±{row.band:.3g}"
