"""A gate on a terminal: slices by metrics, then what failed drawn against its band, then why others are undecided."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from .gate_scale import GateRow, band_words, by_slice, gate_rows_of, number, worst_of
from .tables import count, duration, render_rows

SYMBOLS: Mapping[str, str] = {"pass": "✓", "fail": "✗", "undecided": "?"}
STYLES: Mapping[str, str] = {"pass": "green", "fail": "bold red", "undecided": "yellow"}
GAP = 2
LEAST_NAME, MOST_NAME = 8, 40
DRAWING = 29
REACH = 2.0
"""The drawing ends at so many bands on either side."""

Part = tuple[str, str]
"""A piece of a line and its style."""


def gate_table(rows: pl.DataFrame, *, width: int, color: bool, max_slices: int = 40, max_notes: int = 12) -> str:
    """Show a gate's rows (the columns of `gate_scale.GateRow`) in `width` columns, the worst slice first.

    A cell has the verdict of a slice's metric and how much of the band its worst contrast takes up: ``✗ 2.31`` lies at
    2.31 times its band. Metrics that find no room follow in a second block. Below, each failed slice's worst contrast
    is drawn: ``[`` and ``]`` are the edges of the band, ``=`` the interval, ``o`` the estimate, ``<`` and ``>`` ends
    beyond the picture. Then why slices are undecided, and how many draws would settle it.
    """
    found = gate_rows_of(rows)
    groups = by_slice(found)
    shown = groups[:max_slices]
    metrics = list(dict.fromkeys(r.metric for r in found if r.judged))
    lines: list[list[Part]] = []
    if not metrics:
        return "No gate rows."
    n_name = max([len("slice"), *(len(_clean(name)) for name, _ in shown)])
    n_name = min(n_name, max(LEAST_NAME, min(MOST_NAME, width - 12)))
    widths = [max(len(m), 6) for m in metrics]
    for block in _blocks(widths, width - n_name):
        if lines:
            lines.append([])
        lines.append(
            [(_padded("slice", n_name), "bold"), *((f"{' ' * GAP}{metrics[i]:<{widths[i]}}", "bold") for i in block)]
        )
        for name, mine in shown:
            cells = [_cell(_of(mine, metrics[i]), widths[i]) for i in block]
            lines.append([(_padded(name, n_name), ""), *cells])
    if len(groups) > max_slices:
        lines.append([(f"… {count(len(groups) - max_slices)} more slices, none of them worse", "dim")])
    lines += _failed(groups, width, max_notes) + _undecided(groups, width, max_notes)
    return _painted(lines, color)


def _of(rows: Sequence[GateRow], metric: str) -> GateRow | None:
    return worst_of(r for r in rows if r.metric == metric)


def _blocks(widths: Sequence[int], room: int) -> list[list[int]]:
    """Split columns into blocks that fit `room`; each has one at least."""
    blocks: list[list[int]] = [[]]
    used = 0
    for i, w in enumerate(widths):
        if blocks[-1] and used + GAP + w > room:
            blocks.append([])
            used = 0
        blocks[-1].append(i)
        used += GAP + w
    return blocks


def _cell(row: GateRow | None, width: int) -> Part:
    if row is None:
        return " " * GAP + f"{'·':<{width}}", "dim"
    score = row.score
    text = f"{SYMBOLS.get(row.verdict, '?')} {'–' if score is None else _times(score)}"
    return f"{' ' * GAP}{text:<{width}}", STYLES.get(row.verdict, "")


def _times(score: float) -> str:
    """Write a number of bands in four characters: 0.42, 12.3, 123, >999."""
    return (
        ">999"
        if score >= 999.5
        else f"{score:.0f}"
        if score >= 99.95
        else f"{score:.3g}"
        if score >= 9.995
        else f"{score:.2f}"
    )


def _failed(groups: Sequence[tuple[str, list[GateRow]]], width: int, most: int) -> list[list[Part]]:
    red = [row for _, rows in groups if (row := worst_of(rows)) is not None and row.verdict == "fail"]
    if not red:
        return []
    head = textwrap.wrap("Failed, the worst contrast of each slice against its band:", max(width, 20))
    lines: list[list[Part]] = [[], *([(line, "bold")] for line in head)]
    for row in red[:most]:
        what = f"{row.metric} {_clean(row.contrast)}".strip()
        says = f"{number(row.estimate)} ({number(row.low)} to {number(row.high)}), {band_words(row)}"
        name = _clean(row.slice)
        if len(name) + len(what) + len(says) + DRAWING + 8 <= width:
            lines.append([(f"  {name}  {what}: {says}  ", ""), (drawing(row), "red")])
        else:
            lines += [[(_cut(f"  {name}  {what}", width), "")], [(_cut(f"    {says}", width), "")]]
            lines.append([("    ", ""), (drawing(row, min(DRAWING, max(9, width - 4))), "red")])
    if len(red) > most:
        lines.append([(f"  … {count(len(red) - most)} more failed slices", "dim")])
    return lines


def drawing(row: GateRow, width: int = DRAWING) -> str:
    """Draw a row's interval against its band in `width` characters, from -2 to 2 bands (0 to 2 where one side counts).

    The edges are written last but for the estimate, so that they are seen within the interval; without a number only
    the band is drawn.
    """
    first = -REACH if row.two_sided else 0.0
    last = width - 1

    def at(bands: float) -> int:
        return min(max(round((bands - first) / (REACH - first) * last), 0), last)

    marks = ["-"] * width
    middle, low, high = row.place
    if middle is not None:
        left = first if low is None else low
        right = REACH if high is None else high
        marks[at(left) : at(right) + 1] = "=" * (at(right) - at(left) + 1)
        if left < first:
            marks[0] = "<"
        if right > REACH:
            marks[last] = ">"
    if row.two_sided:
        marks[at(-1)] = "["
        marks[at(0)] = "|"
    marks[at(1)] = "]"
    if middle is not None:
        marks[at(middle)] = "o" if first <= middle <= REACH else ">" if middle > REACH else "<"
    return "".join(marks)


def _undecided(groups: Sequence[tuple[str, list[GateRow]]], width: int, most: int) -> list[list[Part]]:
    """Tell why slices are undecided, one line for each reason with all slices that have it."""
    reasons: dict[tuple[str, str], list[GateRow]] = {}
    for _, rows in groups:
        row = worst_of(rows)
        if row is not None and row.verdict == "undecided":
            reasons.setdefault((row.metric, row.reason or "the interval reaches beyond the band"), []).append(row)
    if not reasons:
        return []
    lines: list[list[Part]] = [[], [("Undecided:", "bold")]]
    for (metric, reason), rows in list(reasons.items())[:most]:
        names = [_clean(r.slice) for r in rows]
        who = ", ".join(names[:3]) + (f" and {count(len(names) - 3)} more" if len(names) > 3 else "")
        needed = [r.needed_draws for r in rows if r.needed_draws]
        draws = f"; {count(max(needed))} draws a side would settle it" if needed else ""
        text = f"{who}: {metric}: {_clean(reason)}{draws}"
        lines += [[(line, "yellow")] for line in _wrapped(text, width)]
    if len(reasons) > most:
        lines.append([(f"  … {count(len(reasons) - most)} more reasons", "dim")])
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 20), initial_indent="  ", subsequent_indent="    ")


def routing_table(routes: Sequence[Mapping[str, Any]], *, width: int, color: bool) -> str:
    """Show who answers where: slice, student, its share of the traffic, who has the rest, the trusted horizon, why."""
    rows = [
        (
            r["slice"], str(r.get("student_id") or "–")[:8], f"{float(r.get('share') or 0.0):.0%}",
            str(r.get("fallback") or "–")[:8], _horizon(r.get("horizon_s")), r.get("reason") or "",
        )
        for r in routes
    ]  # fmt: skip
    names = ("slice", "answered by", "traffic", "the rest", "trusted for", "why")
    return render_rows(names, rows, width=width, color=color)


def _horizon(seconds: float | None) -> str:
    return "–" if seconds is None else duration(float(seconds))


def _padded(name: str, width: int) -> str:
    return f"{_cut(_clean(name), width):<{width}}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def _clean(text: str) -> str:
    """Keep what a terminal prints: a name can't move the cursor or set colours."""
    return "".join(ch if ch.isprintable() else "�" for ch in text)


def _painted(lines: Sequence[Sequence[Part]], color: bool) -> str:
    """Join lines of (text, style); styles show only in colour, and text is never markup."""
    if not color:
        return "\n".join("".join(text for text, _ in line).rstrip() for line in lines)
    from rich.console import Console
    from rich.text import Text

    out = io.StringIO()
    console = Console(
        file=out, width=10_000, color_system="standard", force_terminal=True, highlight=False, _environ={}
    )
    for line in lines:
        console.print(Text.assemble(*line))
    return out.getvalue().rstrip("\n")
