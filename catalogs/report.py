"""One self-contained HTML page of a catalog: coverage, spend, samples, futures, what to ask next.

Nothing is fetched (a content security policy in the page forbids it) and it is complete without its few
lines of JavaScript. `render_report` is pure: the same data give the same bytes.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from .pictures import OTHER_COLOUR, camera_strip, futures_svg, lidar_bev, outcome_colours, png_data_uri
from .report_compare import compare_section
from .report_cover import cover_section
from .report_data import Fact, Futures, Headline, Lidar, Preview, Query, ReportData, SpendRow
from .report_gates import loop_section
from .report_heatmap import LAYERS, MANY_SLICES, breakable, heatmap, layer_name
from .report_style import CSS, SCRIPT
from .tables import CoverageCell, count, percent, usd

__all__ = [
    "CoverageCell", "Fact", "Futures", "Headline", "Lidar", "Preview", "Query", "ReportData", "SpendRow",
    "render_report",
]  # fmt: skip

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
SPEND_ROWS = 15
TEXT_SHOWN = 1200


def render_report(data: ReportData) -> str:
    """Draw the page. Every text in `data` is escaped; sections without content are left out."""
    colours = _page_colours(data)
    sections = [
        "" if data.loop is None else loop_section(data.loop),
        _coverage(data),
        cover_section(data.cover),
        "" if data.comparison is None else compare_section(data.comparison),
        _spend(data),
        _samples(data.previews, colours),
        _futures(data.futures, colours),
        _plan(data.plan),
        _queries(data.queries),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(POLICY)}">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{html.escape(data.title)}</title><style>{CSS}</style></head><body><main>"
        + _masthead(data)
        + "".join(sections)
        + f"<footer>Drawn by distdata from the catalog of {html.escape(data.project)}, "
        f"{html.escape(data.generated_at)}.</footer></main><script>{SCRIPT}</script></body></html>\n"
    )


def _page_colours(data: ReportData) -> dict[str, str]:
    """Give an outcome one colour on the whole page; labels in alphabetical order, those of futures first."""
    drawn = sorted({o for f in data.futures for o in f.outcomes})
    others = sorted({p.outcome for p in data.previews if p.outcome} - set(drawn))
    return outcome_colours(drawn + others)


def _masthead(data: ReportData) -> str:
    h = data.headline
    figures = [
        ("samples kept", count(h.n_samples), ""),
        ("draws planned", count(h.n_planned), ""),
        ("spent", usd(h.known_usd), f"and {usd(h.in_doubt_usd)} in doubt" if h.in_doubt_usd else "nothing in doubt"),
        ("per sample", usd(h.known_usd / h.n_samples) if h.n_samples else "–", ""),
        ("failed draws", count(h.n_failures), f"{_rate(h.n_failures, h.n_samples + h.n_failures)} of all attempted"),
        ("GPU-hours", f"{h.gpuh:,.1f}" if h.gpuh < 1000 else f"{h.gpuh:,.0f}", ""),
    ]
    shown = "".join(
        f"<div><dt>{name}</dt><dd>{value}{f'<small>{note}</small>' if note else ''}</dd></div>"
        for name, value, note in figures
    )
    return (
        f'<header><p class="project">{html.escape(data.project)}</p><h1>{html.escape(data.title)}</h1>'
        f'<p class="meta">{html.escape(data.generated_at)}<span class="dot">·</span>'
        f'teacher {html.escape(data.teacher)}</p>{_lead(data)}<dl class="figures">{shown}</dl></header>'
    )


def _rate(part: int, whole: int) -> str:
    if not part or not whole:
        return "0%"
    share = 100 * part / whole
    return "<0.1%" if share < 0.1 else f"{share:.1f}%"


def _lead(data: ReportData) -> str:
    """Say in one paragraph where the catalog stands; the share counts a cell only up to its target."""
    wanted = [c for c in data.cells if c.feasible and c.target > 0]
    notice = ""
    if not data.headline.n_samples:
        plan = "" if wanted else "<code>distdata plan --budget 1000samples</code>, then "
        notice = f'<p class="empty">Nothing generated yet: run {plan}<code>distdata generate</code>.</p>'
    if not wanted:
        return notice
    kept, target = sum(min(c.kept, c.target) for c in wanted), sum(c.target for c in wanted)
    by_slice: dict[str, int] = {}
    for c in wanted:
        by_slice[c.slice] = by_slice.get(c.slice, 0) + c.missing
    missing = sum(by_slice.values())
    says = f"of the target corpus is kept: {count(kept)} of {count(target)} draws. "
    if not missing:
        says += "Every cell has what it needs."
    else:
        worst = min(by_slice, key=lambda name: (-by_slice[name], name))
        n_empty = sum(1 for c in wanted if not c.kept)
        n_alike = sum(n == by_slice[worst] for n in by_slice.values())
        says += f"{count(missing)} {'is' if missing == 1 else 'are'} missing; the largest gap is "
        if n_alike > MANY_SLICES:
            says += f"{count(by_slice[worst])}, in each of {count(n_alike)} slices. "
        else:
            says += f"<b>{html.escape(worst)}</b> with {count(by_slice[worst])}. "
        says += f"{count(n_empty)} of {count(len(wanted))} cells hold nothing." if n_empty else "No cell is empty."
    return f'{notice}<p class="lead"><strong>{percent(kept, target)}</strong><span>{says}</span></p>'


def _coverage(data: ReportData) -> str:
    if not data.cells:
        return ""
    combined = data.cover is not None
    about = "Kept draws against the target of every cell"
    if combined and len({c.slice for c in data.cells}) > MANY_SLICES:
        about += ", added up."
    else:
        about += ": conditions down, what happens across. The slice that lacks most stands first."
    return (
        f'<section><h2>Coverage</h2><p class="about">{about}</p>'
        f"{_layers(data.cells)}{heatmap(data.cells, combined=combined)}</section>"
    )


def _layers(cells: Sequence[CoverageCell]) -> str:
    """Draw one progress bar per layer; with an earlier state, what was there before and what came since."""
    lines = []
    names = dict.fromkeys(
        [*(layer for layer in LAYERS if any(c.layer == layer for c in cells)), *(c.layer for c in cells)]
    )
    for layer in names:
        mine = [c for c in cells if c.layer == layer and c.feasible]
        target = sum(c.target for c in mine)
        kept = sum(min(c.kept, c.target) for c in mine)
        known = any(c.kept_before is not None for c in mine)
        before = sum(min(c.kept if c.kept_before is None else c.kept_before, c.target) for c in mine) if known else kept
        was = f"<small>was {percent(before, target)}</small>" if known else ""
        lines.append(
            f'<li><span class="name">{layer_name(layer)}</span>{_bar(before, kept - before, target, gain=True)}'
            f'<span class="num">{percent(kept, target)}{was}</span>'
            f'<span class="num quiet">{count(kept)} of {count(target)}</span></li>'
        )
    return f'<ul class="bars">{"".join(lines)}</ul>'


def _bar(first: float, second: float, whole: float, *, gain: bool = False) -> str:
    """Draw two stacked parts of a whole; the second is a gain (lighter) or money in doubt (hatched)."""
    parts = [100 * min(1.0, max(0.0, part / whole)) if whole > 0 else 0.0 for part in (first, second)]
    more = f'<i class="{"gain" if gain else "doubt"}" style="width:{parts[1]:.1f}%"></i>' if parts[1] > 0 else ""
    return f'<span class="bar"><i style="width:{parts[0]:.1f}%"></i>{more}</span>'


def _spend(data: ReportData) -> str:
    if not data.spend_by_layer and not data.spend_by_cell:
        return ""
    about = "What the teacher cost."
    if any(r.in_doubt_usd for r in (*data.spend_by_layer, *data.spend_by_cell)):
        about += (
            ' <span class="key doubt"></span> is in doubt: in flight when a run was cut off, it may have been billed.'
        )
    parts = [f'<section><h2>Spend</h2><p class="about">{about}</p><div class="columns">']
    if data.spend_by_layer:
        parts.append(_spend_table("By layer", "layer", data.spend_by_layer, len(data.spend_by_layer)))
    if data.spend_by_cell:
        parts.append(_spend_table("By cell", "cell", data.spend_by_cell, SPEND_ROWS))
    return "".join(parts) + "</div></section>"


def _spend_table(title: str, what: str, rows: Sequence[SpendRow], n_shown: int) -> str:
    """List the dearest rows with bars relative to the dearest; the others are added up in one line."""
    order = sorted(rows, key=lambda r: (-(r.known_usd + r.in_doubt_usd), r.name))
    longest = max(r.known_usd + r.in_doubt_usd for r in order)
    body = "".join(
        f'<tr><th scope="row">{layer_name(r.name) if what == "layer" else breakable(r.name)}</th>'
        f'<td data-v="{r.n_draws}">{count(r.n_draws)}</td>'
        f'<td data-v="{_each(r):.9f}">{usd(_each(r)) if r.n_draws else "–"}</td>'
        f'<td data-v="{r.known_usd:.9f}">{usd(r.known_usd)}{_doubt(r.in_doubt_usd)}</td>'
        f'<td class="wide">{_bar(r.known_usd, r.in_doubt_usd, longest)}</td></tr>'
        for r in order[:n_shown]
    )
    rest = order[n_shown:]
    foot = _spend_sum(f"{count(len(rest))} other {what}s", rest) if rest else ""
    foot += _spend_sum("together", order)
    return (
        f'<div><h3>{title}</h3><table class="list sortable"><thead><tr><th scope="col" data-sort="text">{what}</th>'
        '<th scope="col" data-sort="number">draws</th><th scope="col" data-sort="number">each</th>'
        '<th scope="col" data-sort="number">cost</th><td></td></tr></thead>'
        f"<tbody>{body}</tbody><tfoot>{foot}</tfoot></table></div>"
    )


def _each(row: SpendRow) -> float:
    return row.known_usd / row.n_draws if row.n_draws else 0.0


def _doubt(amount: float) -> str:
    return f"<small>+ {usd(amount)}</small>" if amount else ""


def _spend_sum(name: str, rows: Sequence[SpendRow]) -> str:
    known, doubt = math.fsum(r.known_usd for r in rows), math.fsum(r.in_doubt_usd for r in rows)
    n_draws = sum(r.n_draws for r in rows)
    each = usd(known / n_draws) if n_draws else "–"
    return (
        f'<tr><th scope="row">{name}</th><td>{count(n_draws)}</td><td>{each}</td>'
        f"<td>{usd(known)}{_doubt(doubt)}</td><td></td></tr>"
    )


def _samples(previews: Sequence[Preview], colours: Mapping[str, str]) -> str:
    if not previews:
        return ""
    about = "Some of what was bought."
    if any(p.camera is not None for p in previews):
        about += " Camera frames run from left to right."
    if any(p.lidar is not None for p in previews):
        about += " The lidar is seen from above, driving direction up, coloured by height; the rings are 10 m apart."
    cards = "".join(_card(p, colours) for p in previews)
    return f'<section><h2>Samples</h2><p class="about">{about}</p><div class="cards">{cards}</div></section>'


def _card(p: Preview, colours: Mapping[str, str]) -> str:
    name = html.escape(f"{p.sample_id}, {p.cell}" + (f", {p.outcome}" if p.outcome else ""))
    bev = strip = text = ""
    if p.lidar is not None:
        uri = png_data_uri(lidar_bev(p.lidar.xyz, p.lidar.intensity))
        bev = f'<img class="bev" src="{uri}" width="192" height="192" alt="Lidar from above: {name}">'
    if p.camera is not None and p.camera.size:
        image = camera_strip(p.camera)
        size = f'width="{image.shape[1]}" height="{image.shape[0]}"'
        strip = f'<img class="strip" src="{png_data_uri(image)}" {size} alt="Camera frames: {name}">'
    if p.text is not None:
        cut = p.text if len(p.text) <= TEXT_SHOWN else p.text[:TEXT_SHOWN] + " …"
        text = f"<pre>{html.escape(cut)}</pre>"
    chip = ""
    if p.outcome:
        colour = colours.get(p.outcome, OTHER_COLOUR)
        chip = f'<span class="chip"><i style="background:{colour}"></i>{html.escape(p.outcome)}</span>'
    caption = (
        f'<figcaption>{chip}<span class="cell">{breakable(p.cell)}</span>'
        f"<code>{html.escape(p.sample_id)}</code></figcaption>"
    )
    return f'<figure class="card">{bev}<div>{strip}{text}{caption}</div></figure>'


def _futures(futures: Sequence[Futures], colours: Mapping[str, str]) -> str:
    if not futures:
        return ""
    panels = "".join(_panel(f, colours) for f in futures)
    return (
        '<section><h2>Futures</h2><p class="about">Every draw of one starting situation, over one another, '
        "from the ringed starts to the dots. Colour and dash tell the outcome.</p>"
        f'<div class="panels">{panels}</div></section>'
    )


def _panel(f: Futures, colours: Mapping[str, str]) -> str:
    mine = {o: colours.get(o, OTHER_COLOUR) for o in sorted(set(f.outcomes))}
    drawing = futures_svg(f.trajectories, f.outcomes, agents=f.agents, colours=mine, width=560)
    return (
        f'<figure class="panel">{drawing}<figcaption><span class="cell">{breakable(f.cell)}</span>'
        f"<code>{html.escape(f.seed_id)}</code><span>K = {len(f.trajectories)}</span></figcaption></figure>"
    )


def _plan(plan: Sequence[Fact]) -> str:
    if not plan:
        return ""
    lines = "".join(f"<div><dt>{html.escape(f.name)}</dt><dd>{html.escape(f.value)}</dd></div>" for f in plan)
    return f'<section><h2>Plan</h2><dl class="facts">{lines}</dl></section>'


def _queries(queries: Sequence[Query]) -> str:
    if not queries:
        return ""
    items = "".join(f"<li><p>{html.escape(q.about)}</p><pre>{html.escape(q.command)}</pre></li>" for q in queries)
    return f'<section><h2>Ask next</h2><ol class="queries">{items}</ol></section>'
