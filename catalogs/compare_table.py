"""The comparison of policies on a terminal: key figures, layers, and samples per cell in fleet order."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from .comparison import EFFECTIVE, GATE_WORTH, Comparison, figure_rows, share_text
from .cost_table import painted
from .tables import count

LEAST_NAME = 12
GAP = 2


def compare_table(comparison: Comparison, width: int, color: bool, *, max_cells: int = 16) -> str:
    """Show the comparison in `width` columns.

    Of more than `max_cells` cells the half that the fleet meets most and the half that it meets least are listed.
    """
    c = comparison
    policies = [p.policy for p in c.policies]
    figures = [[name, "", *values] for name, values in figure_rows(c)]
    layers = [
        [layer.replace("_", " "), share_text(c.fleet_by_layer[j]), *(share_text(p.layer_share[j]) for p in c.policies)]
        for j, layer in enumerate(c.layers)
    ]
    cells, n_between = _cells(c, max_cells)
    heads = ["of fleet", *policies]
    widths = [max(len(row[i + 1]) for row in [["", *heads], *figures, *layers, *cells]) for i in range(len(heads))]
    n_name = max(len(row[0]) for row in [["share of samples"], *figures, *layers, *cells])
    n_name = max(LEAST_NAME, min(n_name, width - sum(widths) - GAP * len(widths)))
    lines: list[tuple[str, str]] = []
    lines.append((_line(["", "", *policies], n_name, widths), "bold"))
    lines += [(_line(row, n_name, widths), "") for row in figures]
    lines += [("", ""), (_line(["share of samples", heads[0]], n_name, widths), "bold")]
    lines += [(_line(row, n_name, widths), "") for row in layers]
    lines += [("", ""), (_line(["samples by cell", heads[0]], n_name, widths), "bold")]
    for i, row in enumerate(cells):
        if n_between and i == len(cells) // 2:
            lines.append((f"… {count(n_between)} cells between", "dim"))
        lines.append((_line(row, n_name, widths), ""))
    for note in ([GATE_WORTH] if c.n_gate_worth_of else []) + [EFFECTIVE]:
        lines += [("", ""), *((line, "dim") for line in textwrap.wrap(note, max(20, width)))]
    return painted(lines, color)


def _cells(c: Comparison, max_cells: int) -> tuple[list[list[str]], int]:
    shown = c.cells
    if len(c.cells) > max_cells:
        shown = c.cells[: (max_cells + 1) // 2] + c.cells[len(c.cells) - max_cells // 2 :]
    rows = [[_clean(cell.cell), share_text(cell.fleet_share), *map(count, cell.target)] for cell in shown]
    return rows, len(c.cells) - len(shown)


def _line(row: Sequence[str], n_name: int, widths: Sequence[int]) -> str:
    name = row[0] if len(row[0]) <= n_name else row[0][: n_name - 1] + "…"
    return f"{name:<{n_name}}" + "".join(f"{' ' * GAP}{v:>{w}}" for v, w in zip(row[1:], widths, strict=False))


def _clean(text: str) -> str:
    """Keep what a terminal prints: a name can't move the cursor or set colours."""
    return "".join(ch if ch.isprintable() else "�" for ch in text)
