"""The report's comparison of policies: the same budget spent in several ways, as a picture and as numbers."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from itertools import pairwise
from statistics import median_low
from typing import NamedTuple

from .comparison import EFFECTIVE, GATE_WORTH, Comparison, figure_rows, share_text
from .report_heatmap import breakable, layer_name
from .tables import count

WIDTH = 1136
LABEL_X, SHARE_X, PLOT_X, PLOT_END = 0, 352, 372, 1120
ROW, LANE = 26, 5
APART = 10.0
MAX_ROWS = 40
MAX_LABEL = 44

COLOURS: Mapping[str, tuple[str, str]] = {
    "gate": ("#0067a8", "#62b7ee"), "uniform": ("#c2500a", "#f59a5b"), "fleet": ("#00805d", "#45c9a2"),
    "neyman": ("#a3407f", "#e49bc8"),
}  # fmt: skip
"""Colour of a policy in light and dark: Okabe and Ito's hues, each at least 3:1 against its page."""
OTHER = ("#56626e", "#9aa8b4")


class _Row(NamedTuple):
    """A line of the picture: one cell, or a run of neighbours in fleet order; per policy least, median, most.

    `name` of a run: which cells of the order, and the most and the least that the fleet meets one of them.
    """

    name: str
    title: str
    share: float
    spans: list[tuple[int, int, int]]


def compare_section(comparison: Comparison) -> str:
    """Draw the section: figures per policy, layers as stacked bars, samples per cell as dots on a log scale."""
    if not comparison.policies or not comparison.cells:
        return ""
    names = " · ".join(html.escape(p.policy) for p in comparison.policies)
    return (
        f'<section><h2>Policies compared</h2><p class="about">The same budget, {html.escape(comparison.budget)}, '
        f"spent in {len(comparison.policies)} ways: {names}.</p>{_figures(comparison)}"
        f'<h3 style="margin-top:24px">Samples by layer</h3>{_layer_bars(comparison)}'
        f'<h3 style="margin-top:24px">Samples per cell</h3>{_legend(comparison)}{_dots(comparison)}'
        f"{_numbers(comparison)}</section>"
    )


def _figures(c: Comparison) -> str:
    heads = "".join(
        f'<th scope="col" style="min-width:110px">{_mark_icon(i, p.policy)} {html.escape(p.policy)}</th>'
        for i, p in enumerate(c.policies)
    )
    lines = []
    for name, values in figure_rows(c):
        boxes = "".join(f"<td>{html.escape(value)}</td>" for value in values)
        lines.append(f'<tr><th scope="row" style="min-width:190px">{html.escape(name)}</th>{boxes}</tr>')
    note = EFFECTIVE if c.n_gate_worth_of == 0 else f"{GATE_WORTH} {EFFECTIVE}"
    return (
        '<div style="overflow-x:auto;margin-top:14px"><table class="list" style="width:auto">'
        f"<thead><tr><td></td>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        f'<p class="note" style="max-width:90ch">{html.escape(note)}</p>'
    )


def _layer_bars(c: Comparison) -> str:
    """Draw one stacked bar for the fleet and one per policy; shares that have room are written into them."""
    rows = [("the fleet", c.fleet_by_layer, ""), *((p.policy, p.layer_share, count(p.n_target)) for p in c.policies)]
    x0, x1, parts = 84, WIDTH - 84, []
    for i, (name, shares, total) in enumerate(rows):
        y = i * 30
        parts.append(f'<text x="0" y="{y + 15}" class="cn">{html.escape(name)}</text>')
        x = float(x0)
        for j, (layer, share) in enumerate(zip(c.layers, shares, strict=True)):
            w = (x1 - x0) * share
            title = f"{name}: {layer.replace('_', ' ')} {100 * share:.1f}%"
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{max(0.0, w - 1):.1f}" height="22" class="cl{j % 4}">'
                f"<title>{html.escape(title)}</title></rect>"
            )
            if w > 46:
                parts.append(f'<text x="{x + 8:.1f}" y="{y + 15}" class="ct{j % 4}">{share_text(share)}</text>')
            x += w
        parts.append(f'<text x="{WIDTH}" y="{y + 15}" class="cq" text-anchor="end">{total}</text>')
    keys = "".join(f'<li><span class="key clk{j % 4}"></span>{layer_name(x)}</li>' for j, x in enumerate(c.layers))
    label = "Share of samples by layer, the fleet and each policy: " + "; ".join(
        f"{name} " + ", ".join(f"{x.replace('_', ' ')} {share_text(s)}" for x, s in zip(c.layers, shares, strict=True))
        for name, shares, _ in rows
    )
    return f'<ul class="legend">{keys}</ul>' + _svg(30 * len(rows), label, "".join(parts), style=True)


def _dots(c: Comparison) -> str:
    """Draw a line per cell (or run of cells) and on it a mark per policy, in lanes where marks would meet."""
    rows = _rows(c)
    positive = [n for row in rows for span in row.spans for n in span if n > 0]
    scale = _Scale(min(positive, default=1), max(positive, default=10), any(0 in s for r in rows for s in r.spans))
    height = 34 + ROW * len(rows) + 26
    parts = [
        f'<text x="{LABEL_X}" y="14" class="cq">{_order(c)}</text>',
        f'<text x="{SHARE_X}" y="14" class="cq" text-anchor="end">of the fleet</text>',
        *_grid(scale, 24, 34 + ROW * len(rows)),
    ]
    widest = max((row.share for row in rows), default=0.0)
    for i, row in enumerate(rows):
        parts.append(_line(row, 34 + i * ROW, scale, widest, c))
    policies = ", ".join(p.policy for p in c.policies)
    label = f"Samples per cell on a log scale under {policies}; cells by falling fleet share. The numbers follow below."
    return _svg(height, label, "".join(parts), style=False)


class _Scale:
    """Samples to x, logarithmic; 0 has a place of its own at the left end."""

    def __init__(self, least: int, most: int, zero: bool) -> None:
        self.zero = zero
        self.left = PLOT_X + (44 if zero else 14)
        self.low = math.log10(least)
        self.high = max(math.log10(most), self.low + 0.3)

    def x(self, n: int) -> float:
        if n <= 0:
            return PLOT_X + 12.0
        return self.left + (PLOT_END - 14 - self.left) * (math.log10(n) - self.low) / (self.high - self.low)

    def ticks(self) -> list[int]:
        """Powers of ten inside the scale; with less than two of them also 2 and 5 of each, then whole steps."""
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        for steps in ((1,), (1, 2, 5), (1, 2, 3, 4, 5, 6, 7, 8, 9)):
            found = [s * 10**d for d in decades for s in steps if d >= 0]
            found = [n for n in found if self.low - 1e-9 <= math.log10(n) <= self.high + 1e-9]
            if len(found) >= 3:
                break
        return found


def _grid(scale: _Scale, top: int, bottom: int) -> list[str]:
    marks = [(scale.x(n), count(n)) for n in scale.ticks()]
    if scale.zero:
        marks.insert(0, (scale.x(0), "0"))
    parts = []
    for x, text in marks:
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" class="cg"/>')
        parts += [f'<text x="{x:.1f}" y="{y}" class="cq" text-anchor="middle">{text}</text>' for y in (14, bottom + 18)]
    return parts


def _line(row: _Row, y: int, scale: _Scale, widest: float, c: Comparison) -> str:
    mid = y + ROW / 2
    share = 60 * row.share / widest if widest > 0 else 0.0
    parts = [
        f"<g><title>{html.escape(row.title)}</title>"
        f'<rect x="0" y="{y}" width="{WIDTH}" height="{ROW}" class="ch"/>'
        f'<text x="{LABEL_X}" y="{mid + 4:.0f}" class="cn">{html.escape(_cut(row.name))}</text>'
        f'<rect x="{SHARE_X - share:.1f}" y="{y + ROW - 6}" width="{share:.1f}" height="2" class="cb"/>'
        f'<text x="{SHARE_X}" y="{mid + 3:.0f}" class="cq" text-anchor="end">{share_text(row.share)}</text>'
    ]
    middles = [scale.x(span[1]) for span in row.spans]
    spread = any(low != high for low, _, high in row.spans)
    crowded = spread or any(b - a < APART for a, b in pairwise(sorted(middles)))
    if not spread:
        parts.append(f'<line x1="{min(middles):.1f}" x2="{max(middles):.1f}" y1="{mid}" y2="{mid}" class="cr"/>')
    for i, (low, middle, high) in enumerate(row.spans):
        lane = mid + ((i - (len(row.spans) - 1) / 2) * LANE if crowded else 0)
        if low != high:
            parts.append(
                f'<line x1="{scale.x(low):.1f}" x2="{scale.x(high):.1f}" y1="{lane}" y2="{lane}" '
                f'class="cs {_class(c.policies[i].policy)}"/>'
            )
        parts.append(_mark(i, c.policies[i].policy, scale.x(middle), lane))
    return "".join(parts) + "</g>"


def _rows(c: Comparison) -> list[_Row]:
    """Return a row per cell, or, when they are many, per run of cells that are neighbours in fleet order."""
    names = [p.policy for p in c.policies]
    if len(c.cells) <= MAX_ROWS:
        return [
            _Row(
                cell.cell,
                f"{cell.cell} ({cell.layer.replace('_', ' ')}): "
                + ", ".join(f"{name} {count(n)}" for name, n in zip(names, cell.target, strict=True)),
                cell.fleet_share,
                [(n, n, n) for n in cell.target],
            )
            for cell in c.cells
        ]
    rows = []
    for i in range(MAX_ROWS):
        start, end = len(c.cells) * i // MAX_ROWS, len(c.cells) * (i + 1) // MAX_ROWS
        run = c.cells[start:end]
        spans = []
        for p in range(len(names)):
            values = [cell.target[p] for cell in run]
            spans.append((min(values), median_low(values), max(values)))
        said = ", ".join(
            f"{name} {count(low)} to {count(high)}, median {count(mid)}"
            for name, (low, mid, high) in zip(names, spans, strict=True)
        )
        most, least = share_text(run[0].fleet_share), share_text(run[-1].fleet_share)
        name, title = run[0].cell, run[0].cell
        if end - start > 1:
            name = f"cells {count(start + 1)}–{count(end)}, each {most if most == least else f'{most} to {least}'}"
            title = f"cells {count(start + 1)}–{count(end)}, from {run[0].cell} to {run[-1].cell}"
        rows.append(
            _Row(
                name,
                f"{title}: {said}",
                math.fsum(x.fleet_share for x in run),
                spans,
            )
        )
    return rows


def _mark(i: int, policy: str, x: float, y: float) -> str:
    """Draw a policy's mark: the shape tells it apart where the colour doesn't."""
    look = f'class="cm {_class(policy)}"'
    shape = i % 4
    if shape == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.2" {look}/>'
    if shape == 1:
        return f'<rect x="{x - 3.7:.1f}" y="{y - 3.7:.1f}" width="7.4" height="7.4" {look}/>'
    if shape == 2:
        return f'<path d="M{x:.1f} {y - 4.8:.1f}l4.8 8.4h-9.6z" {look}/>'
    return f'<path d="M{x:.1f} {y - 5.2:.1f}l5.2 5.2-5.2 5.2-5.2-5.2z" {look}/>'


def _mark_icon(i: int, policy: str) -> str:
    return f'<svg width="12" height="12" aria-hidden="true">{_mark(i, policy, 6, 6)}</svg>'


def _legend(c: Comparison) -> str:
    keys = "".join(f"<li>{_mark_icon(i, p.policy)}{html.escape(p.policy)}</li>" for i, p in enumerate(c.policies))
    if len(c.cells) > MAX_ROWS:
        few, rest = divmod(len(c.cells), MAX_ROWS)
        run = f"{count(few)} or {count(few + 1)}" if rest else count(few)
        keys += f"<li>bar: least to most of a line's {run} cells; mark: their median</li>"
    return f'<ul class="legend" aria-label="Legend">{keys}</ul>'


def _order(c: Comparison) -> str:
    many = len(c.cells) > MAX_ROWS
    return f"{count(len(c.cells))} cells{', grouped,' if many else ','} most frequent first"


def _numbers(c: Comparison, n_shown: int = 200) -> str:
    heads = "".join(f'<th scope="col" data-sort="number">{html.escape(p.policy)}</th>' for p in c.policies)
    body = "".join(
        f'<tr><th scope="row">{breakable(cell.cell)}</th>'
        f'<td data-v="{cell.fleet_share:.9f}">{share_text(cell.fleet_share)}</td>'
        + "".join(f'<td data-v="{n}">{count(n)}</td>' for n in cell.target)
        + "</tr>"
        for cell in c.cells[:n_shown]
    )
    n_more = len(c.cells) - n_shown
    more = f'<p class="note">{count(n_more)} rarer cells are left out here.</p>' if n_more > 0 else ""
    return (
        f'<details><summary>The numbers</summary><table class="list sortable"><thead><tr><th scope="col" '
        f'data-sort="text">cell</th><th scope="col" data-sort="number">of the fleet</th>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table>{more}</details>"
    )


def _cut(name: str) -> str:
    """Shorten a long name in its middle: names that begin alike still differ, and the scenario type stays."""
    if len(name) <= MAX_LABEL:
        return name
    n_end = (MAX_LABEL - 1) // 2
    return name[: MAX_LABEL - 1 - n_end] + "…" + name[-n_end:]


def _class(policy: str) -> str:
    return f"cp-{policy}" if policy in COLOURS else "cp-other"


def _svg(height: int, label: str, inside: str, *, style: bool) -> str:
    rules = f"<style>{_STYLE}</style>" if style else ""
    return (
        '<div style="overflow-x:auto;margin-top:6px">'
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{html.escape(label)}" '
        f'style="width:100%;min-width:820px;height:auto;display:block">{rules}{inside}</svg></div>'
    )


def _policy_rules(tone: int) -> str:
    return "".join(f".cp-{name}{{--c:{pair[tone]}}}" for name, pair in {**COLOURS, "other": OTHER}.items())


_STYLE = (
    _policy_rules(0)
    + f"@media screen and (prefers-color-scheme:dark){{{_policy_rules(1)}}}"
    + ".cm{fill:var(--c);stroke:var(--page);stroke-width:1}.cs{stroke:var(--c);stroke-width:2;opacity:.45}"
    ".cn{font-size:13px;fill:var(--ink)}.cq{font-size:12px;fill:var(--quiet)}.cg{stroke:var(--rule)}"
    ".cr{stroke:var(--quiet);opacity:.35}.cb{fill:var(--quiet);opacity:.6}.ch{fill:transparent}"
    "g:hover>.ch{fill:var(--soft)}"
    + "".join(
        f".cl{j}{{fill:var(--s{s});stroke:var(--rule)}}.ct{j}{{font-size:12px;fill:var(--s{s}-ink)}}"
        f".clk{j}{{background:var(--s{s})}}"
        for j, s in enumerate((5, 3, 1, 2))
    )
    + ".cl2{stroke:var(--gain)}"
)
