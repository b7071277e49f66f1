"""The report's coverage heatmap: slices down, scenario types across (grouped by layer), fill = kept / target."""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from .slice_names import short_names
from .tables import CoverageCell, count, percent, usd

LAYERS = ("core", "failure_mode", "long_tail")
FULL_ROWS = 40
HIDDEN_ROWS = 400
MANY_SLICES = 60
"""Above so many, combinations of values say more than rows of a slice each."""
NAME_CHARS = 36
LEGEND = (
    ("s0", "nothing"),
    ("s1", "under 25%"),
    ("s2", "25–49%"),
    ("s3", "50–74%"),
    ("s4", "75–99%"),
    ("s5", "target met"),
)

Row = Mapping[str, CoverageCell]


def shade(kept: int, target: int) -> str:
    """Name the heatmap class of a cell: ``s0`` nothing kept, ``s1`` to ``s4`` quarters, ``s5`` target met."""
    if kept <= 0:
        return "s0"
    if kept >= target:
        return "s5"
    return f"s{1 + math.floor(4 * kept / target)}"


def heatmap(cells: Sequence[CoverageCell], *, combined: bool = False) -> str:
    """Draw the heatmap with its legend, the slice that lacks most first.

    Up to FULL_ROWS slices stand in the table; of more, the first FULL_ROWS stand there, one row adds up the
    rest, and a fold below lists up to HIDDEN_ROWS of them. Where the page has a section on combinations (`combined`),
    more than MANY_SLICES are only added up.
    """
    grid: dict[str, dict[str, CoverageCell]] = {}
    for cell in cells:
        grid.setdefault(cell.slice, {})[cell.scenario] = cell
    layer_of = {cell.scenario: cell.layer for cell in cells}
    scenarios = sorted(layer_of, key=lambda s: LAYERS.index(layer_of[s]) if layer_of[s] in LAYERS else len(LAYERS))
    order = sorted(grid, key=lambda name: (-sum(c.missing for c in grid[name].values()), name))
    shown, rest = (order, []) if len(order) <= FULL_ROWS else (order[:FULL_ROWS], order[FULL_ROWS:])
    worst = max(sum(c.missing for c in grid[name].values()) for name in order)
    if combined and len(order) > MANY_SLICES:
        return _added_up(grid, scenarios, layer_of) + _reasons(cells)
    head = _head(scenarios, layer_of)
    foot = _sum_row(f"{count(len(rest))} other slices", [grid[n] for n in rest], scenarios) if rest else ""
    foot += _sum_row("all slices", list(grid.values()), scenarios)
    parts = [_legend(cells)]
    parts.append(_table("Kept and wanted draws by slice and scenario type", head, shown, grid, scenarios, worst, foot))
    if rest:
        parts.append(_fold(head, rest, grid, scenarios, worst))
    parts.append(_reasons(cells))
    return "".join(parts)


def _added_up(grid: Mapping[str, Row], scenarios: Sequence[str], layer_of: Mapping[str, str]) -> str:
    """Draw the one row that adds up all slices, and say how many hold anything."""
    row = _sum_row("all slices", list(grid.values()), scenarios)
    caption = "Kept and wanted draws by scenario type"
    n_held = sum(any(c.kept for c in row.values()) for row in grid.values())
    wanted = [row for row in grid.values() if any(c.feasible and c.target > 0 for c in row.values())]
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table class="heat">'
        f'<caption class="sr">{caption}</caption>{_head(scenarios, layer_of)}<tbody></tbody><tfoot>{row}</tfoot>'
        f'</table></div><p class="note">{count(len(grid))} slices, of which {count(len(wanted))} have a target and '
        f"{count(n_held)} hold samples: too many for a row each. What they hold together stands under Combinations; "
        "<code>distdata sql</code> shows them all: the view is called <code>coverage</code>.</p>"
    )


def breakable(name: str) -> str:
    """Escape a name and let it break after underscores, hyphens and commas."""
    text = html.escape(name)
    return text.replace("_", "_<wbr>").replace("-", "-<wbr>").replace(",", ",<wbr>")


def layer_name(layer: str) -> str:
    """Write a layer's name for people, escaped."""
    return html.escape(layer.replace("_", " "))


def _table(
    caption: str,
    head: str,
    names: Sequence[str],
    grid: Mapping[str, Row],
    scenarios: Sequence[str],
    worst: int,
    foot: str,
) -> str:
    labels, shortened = short_names(names, NAME_CHARS)
    body = "".join(_row(label, name, grid[name], scenarios, worst) for label, name in zip(labels, names, strict=True))
    note = f'<p class="note">{shortened[0].upper()}{shortened[1:]}.</p>' if shortened else ""
    tall = " tall" if len(names) > 28 else ""
    return (
        f'<div class="scroll{tall}" tabindex="0" role="region" aria-label="{caption}"><table class="heat sortable">'
        f'<caption class="sr">{caption}</caption>{head}<tbody>{body}</tbody><tfoot>{foot}</tfoot></table></div>{note}'
    )


def _head(scenarios: Sequence[str], layer_of: Mapping[str, str]) -> str:
    spans = Counter(layer_of[s] for s in scenarios)
    starts = _layer_starts(scenarios, layer_of)
    groups = "".join(
        f'<th scope="colgroup" colspan="{n}" class="layer">{layer_name(layer)}</th>' for layer, n in spans.items()
    )
    names = "".join(
        f'<th scope="col" data-sort="number"{" class=first" if s in starts else ""}>{breakable(s)}</th>'
        for s in scenarios
    )
    return (
        f'<thead><tr><td></td>{groups}<td colspan="2"></td></tr>'
        f'<tr><th scope="col" data-sort="text" class="name">slice</th>{names}'
        '<th scope="col" data-sort="number" class="first">kept</th>'
        '<th scope="col" data-sort="number" class="lacks">missing</th></tr></thead>'
    )


def _layer_starts(scenarios: Sequence[str], layer_of: Mapping[str, str]) -> set[str]:
    firsts: dict[str, str] = {}
    for s in scenarios:
        firsts.setdefault(layer_of[s], s)
    return set(firsts.values())


def _row(label: str, name: str, row: Row, scenarios: Sequence[str], worst: int) -> str:
    boxes = "".join(_box(row.get(s)) for s in scenarios)
    kept, target = _totals(row.values())
    missing = sum(c.missing for c in row.values())
    share = 100 * missing / worst if worst else 0
    title = f' title="{html.escape(name)}"' if label != name else ""
    return (
        f'<tr><th scope="row"{title}>{html.escape(label) if len(label) <= NAME_CHARS else breakable(label)}</th>{boxes}'
        f'<td class="sum" data-v="{kept / target if target else 1:.4f}">{percent(kept, target)}</td>'
        f'<td class="lacks" data-v="{missing}">{count(missing) if missing else "–"}'
        f'<span class="bar"><i style="width:{share:.1f}%"></i></span></td></tr>'
    )


def _box(cell: CoverageCell | None) -> str:
    if cell is None:
        return '<td class="z" data-v="-1"></td>'
    where = html.escape(f"{cell.slice} / {cell.scenario}")
    if not cell.feasible:
        why = html.escape(cell.reason or "ruled out")
        return (
            f'<td class="x" data-v="-1" title="{where}: can\'t occur: {why}"><span class="sr">can\'t occur</span></td>'
        )
    if cell.target <= 0:
        kept = count(cell.kept) if cell.kept else "–"
        return f'<td class="z" data-v="-1" title="{where}: {count(cell.kept)} kept, none wanted">{kept}</td>'
    facts = [f"{count(cell.kept)} of {count(cell.target)} kept", f"{count(cell.missing)} missing"]
    if cell.kept_before is not None:
        facts.insert(1, f"{count(cell.kept_before)} before")
    if cell.band is not None:
        facts.append(f"band {cell.band:g}")
    facts.append(usd(cell.usd))
    return (
        f'<td class="{shade(cell.kept, cell.target)}" data-v="{cell.kept / cell.target:.4f}" '
        f'title="{where}: {", ".join(facts)}">{count(cell.kept)}<small>/{count(cell.target)}</small></td>'
    )


def _sum_row(name: str, rows: Sequence[Row], scenarios: Sequence[str]) -> str:
    boxes = []
    for s in scenarios:
        kept, target = _totals(row[s] for row in rows if s in row)
        boxes.append(f'<td title="{count(kept)} of {count(target)}">{percent(kept, target)}</td>')
    every = [cell for row in rows for cell in row.values()]
    kept, target = _totals(every)
    missing = sum(c.missing for c in every)
    return (
        f'<tr><th scope="row">{html.escape(name)}</th>{"".join(boxes)}<td class="sum">{percent(kept, target)}</td>'
        f'<td class="lacks">{count(missing) if missing else "–"}<span class="bar"></span></td></tr>'
    )


def _totals(cells: Iterable[CoverageCell]) -> tuple[int, int]:
    """Add up kept (each cell's only up to its target, so that a full cell can't hide an empty one) and target."""
    wanted = [c for c in cells if c.feasible]
    return sum(min(c.kept, c.target) for c in wanted), sum(c.target for c in wanted)


def _fold(head: str, rest: Sequence[str], grid: Mapping[str, Row], scenarios: Sequence[str], worst: int) -> str:
    listed, left = rest[:HIDDEN_ROWS], len(rest) - len(rest[:HIDDEN_ROWS])
    more = ""
    if left:
        more = (
            f'<p class="note">{count(left)} more slices are left out here; '
            "<code>distdata sql</code> shows them all: the view is called <code>coverage</code>.</p>"
        )
    table = _table("The other slices", head, listed, grid, scenarios, worst, "")
    return f"<details><summary>The other {count(len(rest))} slices</summary>{table}{more}</details>"


def _legend(cells: Sequence[CoverageCell]) -> str:
    keys = "".join(f'<li><span class="key {name}"></span>{text}</li>' for name, text in LEGEND)
    if any(not c.feasible for c in cells):
        keys += '<li><span class="key x"></span>can\'t occur</li>'
    return f'<ul class="legend" aria-label="Legend">{keys}</ul>'


def _reasons(cells: Sequence[CoverageCell]) -> str:
    why = Counter(c.reason or "ruled out" for c in cells if not c.feasible)
    if not why:
        return ""
    listed = "; ".join(f"{html.escape(reason)} ({count(n)})" for reason, n in why.most_common(8))
    more = f"; and {count(len(why) - 8)} other reasons" if len(why) > 8 else ""
    n = sum(why.values())
    return f'<p class="note">{count(n)} {"cell" if n == 1 else "cells"} can\'t occur: {listed}{more}.</p>'
