"""The cost table: what a programme costs, line by line, for a terminal and for machines.

`stratify.costs` fills it. Pure: records in, text out.
"""

from __future__ import annotations

import io
import textwrap
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .tables import usd

Source = Literal["given", "reference", "measured", "planned", "mixed"]
SECTIONS = ("generation", "training", "labels", "gates", "together", "serving")
LEAST_FORMULA = 34
GAP = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRow:
    """One line: a figure, how it comes about, and whether it is known or only said.

    `source` is ``given`` (distdata.toml says so), ``reference`` (it doesn't: a default, of the reference programme),
    ``measured`` (the catalog has it), ``planned`` (draws that are still to be made are in it) or ``mixed`` (computed
    from several of these). `value` None: there is no such number, and `formula` says why. `rounded` is the figure as
    it is quoted in talk, where that differs.
    """

    key: str
    section: str
    label: str
    formula: str
    value: float | None
    unit: str
    source: Source
    rounded: str = ""

    @property
    def text(self) -> str:
        """The value with its unit, as a person reads it."""
        return "never" if self.value is None else quantity(self.value, self.unit)


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTable:
    """All lines in the order in which they are computed, and what has to be said about them."""

    rows: tuple[CostRow, ...]
    notes: tuple[str, ...] = ()

    def row(self, key: str) -> CostRow:
        """Return the line called `key`; KeyError where the table has none."""
        for row in self.rows:
            if row.key == key:
                return row
        raise KeyError(key)

    def as_dict(self) -> dict[str, Any]:
        """Return the table as plain lists, numbers and strings, for ``--json``; values are not rounded."""
        return {"rows": [asdict(row) for row in self.rows], "notes": list(self.notes)}


def figure(value: float) -> str:
    """Write a number for a reader: ``0.015``, ``1.7``, ``35.2``, ``900,000``, and from 1e9 on ``7.2e11``."""
    size = abs(value)
    if size >= 1e9:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    if size >= 99.95:
        return f"{value:,.0f}"
    if size >= 9.995:
        return f"{value:.1f}".removesuffix(".0")
    return f"{value:.3g}"


def quantity(value: float, unit: str) -> str:
    """Write a number with its unit: dollars in front, ``x`` and ``:1`` right behind, everything else after a space."""
    if unit == "$":
        return usd(value)
    if unit == "$/GPU-h":
        return f"{usd(value)}/GPU-h"
    return figure(value) + (unit if unit in ("x", ":1") else f" {unit}" if unit else "")


def cost_words(table: CostTable, width: int, color: bool) -> str:
    """Lay the table out for `width` columns: one line per figure, or its formula beneath where there is no room."""
    rows = table.rows
    n_label = max((len(r.label) for r in rows), default=0) + 2
    n_value = max((len(r.text) for r in rows), default=0)
    n_round = max((len(r.rounded) for r in rows), default=0)
    n_round = max(n_round, len("quoted")) if n_round else 0
    n_source = max((len(r.source) for r in rows), default=0)
    n_head = n_label + n_value + n_source + (n_round + GAP if n_round else 0) + 2 * GAP
    n_formula = width - n_head - GAP
    lines = [(f"{'':{n_label + n_value + GAP}}{'quoted':>{n_round + GAP}}", "dim")] if n_round else []
    for section in dict.fromkeys([*(s for s in SECTIONS if any(r.section == s for r in rows)), *_sections(table)]):
        lines.append((section, "bold"))
        for row in (r for r in rows if r.section == section):
            said = f"{row.rounded:>{n_round}}{' ' * GAP}" if n_round else ""
            gap = " " * GAP
            head = f"  {row.label:<{n_label - 2}}{gap}{row.text:>{n_value}}{gap}{said}{row.source:<{n_source}}"
            wide = n_formula >= LEAST_FORMULA
            words = textwrap.wrap(row.formula, n_formula if wide else max(20, width - 6))
            if wide:
                lines += [(f"{head}{gap}{words[0] if words else ''}", "")]
                lines += [(" " * (n_head + GAP) + more, "") for more in words[1:]]
            else:
                lines += [(head, ""), *(("      " + more, "dim") for more in words)]
    for note in table.notes:
        lines.append(("", ""))
        lines += [(line, "") for line in textwrap.wrap(note, max(20, width))]
    return painted(lines, color)


def _sections(table: CostTable) -> list[str]:
    return [row.section for row in table.rows]


def painted(lines: list[tuple[str, str]], color: bool) -> str:
    """Join lines of (text, style) without trailing blanks; styles show only in colour, and text is never markup."""
    if not color:
        return "\n".join(text.rstrip() for text, _ in lines)
    from rich.console import Console
    from rich.text import Text

    out = io.StringIO()
    console = Console(
        file=out, width=10_000, color_system="standard", force_terminal=True, highlight=False, _environ={}
    )
    for text, style in lines:
        console.print(Text(text.rstrip(), style=style))
    return out.getvalue().rstrip("\n")
