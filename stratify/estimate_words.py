"""What a person reads of an estimate."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from ..catalogs.tables import render_rows
from .estimate import Estimates


def estimate_words(found: Estimates, remarks: Sequence[str], *, width: int, color: bool) -> str:
    """Show one line per group with its interval, then what the numbers are about and what was left out."""
    table = found.table
    groups = [c for c in table.columns if c not in _NUMBERS and c not in _INSIDE]
    if "value" in groups:  # one text after another in each group, and only those that it knows
        first = table.select(c for c in groups if c != "value").unique(maintain_order=True).with_row_index("at")
        seen = table.filter(pl.col("estimate") > 0)
        table = seen.join(first, on=first.columns[1:], how="left").sort("at", "value") if first.width > 1 else seen
    shown = [*groups, *(c for c in _NUMBERS if c in table.columns)]
    rows = [[_value(name, value) for name, value in zip(shown, row, strict=True)] for row in table.select(shown).rows()]
    lines = [render_rows([_NUMBERS.get(c, c) for c in shown], rows, width=width, color=color)]
    if not rows:  # shares of texts of which there is none; a remark says why
        lines = []
    return "\n".join([*lines, *(f"{_sentence(text)}" for text in [*found.words(), *remarks])])


_NUMBERS = {
    "estimate": "estimate", "se": "s.e.", "low": "from", "high": "to", "df": "df", "n_seeds": "seeds",
    "n_draws": "draws", "effective_n": "effective", "covered": "fleet covered",
}  # fmt: skip
_ROUNDING = 1e-15
_WHOLE = 1000
"""Numbers from here on are shown without decimals."""
_INSIDE = ("n_cells", "n_borrowed", "n_conservative")


def _value(name: str, value: object) -> object:
    if name == "covered" and isinstance(value, float):
        return f"{value:.1%}"
    if not isinstance(value, float):
        return value
    if abs(value) < _ROUNDING:
        return 0.0
    if name in ("df", "effective_n") or abs(value) >= _WHOLE:
        return round(value)
    return float(f"{value:.4g}")


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")
