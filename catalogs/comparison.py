"""One budget under several policies, as plain records.

`stratify.compare` fills them; `compare_table` and `report_compare` show them.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from .tables import count, usd


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFigures:
    """One policy's plan in numbers.

    - `layer_share`: share of the samples aimed at, by layer, in the order of `Comparison.layers`.
    - `n_gate_worth`: slices with as many samples as a gate needs draws for their band; None where that isn't known.
    - `effective_n`: draws taken as the fleet comes that would give as exactly the mean over the cells with samples.
    - `unseen_share`: share of the fleet in cells without a sample.
    - `n_at_floor`, `n_at_ceiling`: cells held up by their floor, or back by their seeds or a rule. `shortfall` is in
      the budget's unit.
    """

    policy: str
    n_target: int
    n_credit: int
    n_fresh: int
    usd: float
    gpu_h: float
    layer_share: tuple[float, ...]
    n_gate_worth: int | None
    effective_n: float
    unseen_share: float
    smallest_cell: str
    smallest_n: int
    n_at_floor: int
    n_at_ceiling: int
    shortfall: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedCell:
    """One cell: the samples each policy aims at and the draws it buys, in the order of the policies."""

    cell: str
    slice: str
    scenario: str
    layer: str
    fleet_share: float
    target: tuple[int, ...]
    fresh: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedSlice:
    """One slice: the draws its gate needs (None: not known), and the samples each policy aims at."""

    slice: str
    needed: int | None
    target: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The same budget under several policies; cells by falling fleet share, slices by name, feasible ones only."""

    budget: str
    policies: tuple[PolicyFigures, ...]
    layers: tuple[str, ...]
    fleet_by_layer: tuple[float, ...]
    cells: tuple[ComparedCell, ...]
    slices: tuple[ComparedSlice, ...]

    @property
    def n_gate_worth_of(self) -> int:
        """Slices for which the needed draws are known."""
        return sum(1 for s in self.slices if s.needed is not None)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain lists, numbers and strings, for ``--json``."""
        return asdict(self)


GATE_WORTH_NAME = "slices with a gate's worth of samples"
GATE_WORTH = (
    "A slice has a gate's worth of samples when it holds as many as its gate needs draws to tell a difference of its "
    "band: with fewer, the sample itself may miss the teacher's law by more than the gate lets the student miss it. "
    "Whether the gate can decide is another matter: it runs on held-out seeds, which --purpose gate buys."
)
EFFECTIVE = (
    "Effective sample size: so many draws taken as the fleet comes would give the fleet's mean as exactly, were all "
    "cells equally spread and the draws of a seed independent."
)


def figure_rows(c: Comparison) -> list[tuple[str, list[str]]]:
    """Return the key figures as lines: a name, and a text per policy. Lines that say nothing are left out."""
    ps = c.policies
    rows = [
        ("samples aimed at", [count(p.n_target) for p in ps]),
        ("that exist", [count(p.n_credit) for p in ps]),
        ("draws to buy", [count(p.n_fresh) for p in ps]),
        ("cost", [usd(p.usd) for p in ps]),
        ("GPU-hours", [hours_text(p.gpu_h) for p in ps]),
        (GATE_WORTH_NAME, [f"{count(p.n_gate_worth or 0)} of {count(c.n_gate_worth_of)}" for p in ps]),
        ("effective sample size", [count(round(p.effective_n)) for p in ps]),
        ("smallest cell", [count(p.smallest_n) for p in ps]),
        ("cells at their floor", [count(p.n_at_floor) for p in ps]),
        ("cells at their ceiling", [count(p.n_at_ceiling) for p in ps]),
    ]
    if c.n_gate_worth_of == 0:
        rows = [row for row in rows if row[0] != GATE_WORTH_NAME]
    if any(p.unseen_share > 0 for p in ps):
        rows.insert(-3, ("fleet share unseen", [share_text(p.unseen_share) for p in ps]))
    if not any(p.n_credit for p in ps):
        rows = [row for row in rows if row[0] != "that exist"]
    if any(p.shortfall > 0 for p in ps):
        rows.append(("left over, all full", [f"{p.shortfall:,.6g}" if p.shortfall > 0 else "–" for p in ps]))
    return rows


def hours_text(gpu_h: float) -> str:
    """Write GPU-hours: whole from a thousand on, tenths from one on, three digits below, and never 0 for something."""
    if gpu_h >= 0.9995:
        return f"{gpu_h:,.0f}" if gpu_h >= 999.95 else f"{gpu_h:.1f}"
    if gpu_h < 1e-6:
        return "0" if gpu_h <= 0 else "<0.000001"
    return f"{gpu_h:.{2 - math.floor(math.log10(gpu_h))}f}".rstrip("0")


def share_text(share: float) -> str:
    """Write a share in percent with what a reader can use of it: ``41%``, ``3.2%``, ``0.04%``, ``<0.01%``."""
    if share <= 0:
        return "0%"
    if share >= 0.0995:
        return f"{100 * share:.0f}%"
    return f"{100 * share:.2g}%" if share >= 1e-4 else "<0.01%"
