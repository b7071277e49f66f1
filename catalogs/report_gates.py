"""The report's loop: gates with their intervals against the bands, causes, promotions, and who answers where.

Plain data in, HTML out: every text is escaped, nothing is fetched, and the same data give the same bytes.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .gate_scale import GateRow, band_words, by_slice, number, worst_of
from .report_heatmap import breakable
from .tables import count, duration

VERDICTS: Mapping[str, tuple[str, str]] = {
    "pass": ("✓", "green"), "fail": ("✗", "red"), "undecided": ("?", "undecided"),
}  # fmt: skip
CAUSES = ("coverage", "weighting", "capacity", "teacher", "unknown")
REACH = 3.0
"""A drawn interval ends at so many bands."""
BAR_WIDTH, BAR_HEIGHT = 132, 22
MAX_SLICES = 60

STYLE = """
.gt td,.gt th{padding:5px 10px;border-bottom:1px solid var(--soft);text-align:left;vertical-align:middle}
.gt thead th{color:var(--quiet);font-size:12px;border-color:var(--rule);white-space:nowrap}
.gt tbody th{position:sticky;left:0;background:var(--surface);white-space:nowrap}
.gt td{white-space:nowrap}.gt svg{vertical-align:middle;margin-left:8px}.gt .none{color:var(--quiet)}
.v{display:inline-block;min-width:46px;font-weight:600}
.v-pass{color:var(--accent)}.v-fail{color:var(--lacks)}.v-undecided{color:var(--notice-ink)}
.gb{fill:var(--soft);stroke:var(--rule)}.gz{stroke:var(--quiet);opacity:.5}.gi{stroke-width:3;stroke-linecap:round}
.g-pass{stroke:var(--accent);fill:var(--accent)}.g-fail{stroke:var(--lacks);fill:var(--lacks)}
.g-undecided{stroke:var(--quiet);fill:var(--quiet)}
.why{margin-top:16px;display:grid;grid-template-columns:repeat(auto-fill,minmax(min(460px,100%),1fr));gap:14px}
.why article{background:var(--surface);border:1px solid var(--rule);border-radius:6px;padding:12px 16px}
.why h3{color:var(--ink);font-size:14px}.why ul{margin:8px 0 0;padding-left:18px;font-size:13px}
.tl{list-style:none;margin:16px 0 0;padding:0 0 0 18px;border-left:2px solid var(--rule)}
.tl li{position:relative;padding:2px 0 10px}
.tl li::before{content:"";position:absolute;left:-24px;top:8px;width:10px;height:10px;border-radius:50%;
background:var(--accent)}
.tl .rollback::before{background:var(--lacks)}.tl .shadow::before,.tl .canary::before{background:var(--gain)}
"""
"""Put once on a page that shows any of these sections; the colours are those of `report_style`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateView:
    """One gate as the report shows it: who was judged on which split, the verdict of all, and the rows."""

    gate_id: str
    student: str
    split: str
    verdict: str
    n_draws: int
    alpha: float
    created: str
    rows: tuple[GateRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CauseView:
    """Why a slice was red: the cause, what to do about it, the evidence in lines, and the student it was red for."""

    slice: str
    cause: str
    remedy: str
    evidence: tuple[str, ...]
    student: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopView:
    """All that the report tells of the loop; what is empty is left out.

    - `gates`: newest first; the first is drawn in full, the others are lines. `causes`: of the
      newest gate that was explained.
    - `promotions`: oldest first: student_id, stage, created, note. `routes`: slice, student_id, share, fallback,
      horizon_s, reason.
    """

    gates: tuple[GateView, ...] = ()
    causes: tuple[CauseView, ...] = ()
    promotions: tuple[Mapping[str, Any], ...] = ()
    routes: tuple[Mapping[str, Any], ...] = ()


def loop_section(view: LoopView) -> str:
    """Draw all parts that have content, with their style; an empty string if there are none."""
    parts = [
        gates_section(view.gates), causes_section(view.causes), promotions_section(view.promotions),
        routes_section(view.routes),
    ]  # fmt: skip
    body = "".join(parts)
    return f"<style>{STYLE}</style>{body}" if body else ""


def gates_section(gates: Sequence[GateView]) -> str:
    """Draw the newest gate slice by metric, each worst contrast's interval against its band, and list earlier gates."""
    if not gates:
        return ""
    now = gates[0]
    groups = by_slice(now.rows)
    metrics = list(dict.fromkeys(r.metric for r in now.rows if r.judged))
    tally = {v: sum(1 for _, rows in groups if (w := worst_of(rows)) and w.verdict == v) for v in VERDICTS}
    summary = ", ".join(f"{n} {VERDICTS[v][1]}" for v, n in tally.items() if n)
    heads = "".join(f'<th scope="col">{html.escape(m)}</th>' for m in metrics)
    body = "".join(
        f'<tr><th scope="row">{breakable(name)}</th>'
        + "".join(_box(worst_of(r for r in rows if r.metric == m)) for m in metrics)
        + "</tr>"
        for name, rows in groups[:MAX_SLICES]
    )
    n_more = len(groups) - MAX_SLICES
    more = f'<p class="note">{count(n_more)} more slices, none of them worse, are left out.</p>' if n_more > 0 else ""
    return (
        f'<section id="gates"><h2>Gates</h2><p class="about">Student {html.escape(now.student[:8])} against its '
        f"teacher on the {html.escape(now.split)} split: {_verdict(now.verdict)} {html.escape(summary)}. "
        f"{count(now.n_draws)} draws a side under the same noise, alpha {now.alpha:.3g}. A number is how much of its "
        "band the worst contrast takes up; the shaded box is the band, the bar the interval, the dot the estimate.</p>"
        f'<div class="scroll" tabindex="0" style="margin-top:16px"><table class="gt"><thead><tr><th scope="col">slice'
        f"</th>{heads}</tr></thead><tbody>{body}</tbody></table></div>{more}{_reasons(groups)}{_earlier(gates[1:])}"
        "</section>"
    )


def _verdict(verdict: str) -> str:
    symbol, word = VERDICTS.get(verdict, ("?", verdict))
    return f'<b class="v-{html.escape(verdict)}">{symbol} {html.escape(word)}</b>;'


def _box(row: GateRow | None) -> str:
    if row is None:
        return '<td class="none">not measured</td>'
    symbol, _ = VERDICTS.get(row.verdict, ("?", ""))
    score = "–" if row.score is None else f"{row.score:.2f}" if row.score < 9.995 else f"{row.score:.3g}"
    return (
        f'<td title="{html.escape(_title(row))}"><span class="v v-{html.escape(row.verdict)}">{symbol} {score}</span>'
        f"{interval_svg(row)}</td>"
    )


def _title(row: GateRow) -> str:
    said = f"{row.metric} {row.contrast}: {number(row.estimate)} ({number(row.low)} to {number(row.high)}), "
    said += f"{band_words(row)}; {row.n_seeds:,} seeds, {row.n_draws:,} draws"
    return f"{said}; {row.reason}" if row.reason else said


def interval_svg(row: GateRow) -> str:
    """Draw a row's interval and estimate over its band, from -3 to 3 bands (or 0 to 3 where one side counts)."""
    first = -REACH if row.two_sided else -0.5
    inner = BAR_WIDTH - 8

    def x(bands: float) -> float:
        return 4 + inner * (min(max(bands, first), REACH) - first) / (REACH - first)

    left, right = x(-1.0 if row.two_sided else first), x(1.0)
    mid = BAR_HEIGHT / 2
    parts = [
        f'<rect class="gb" x="{left:.1f}" y="3" width="{right - left:.1f}" height="{BAR_HEIGHT - 6}"/>',
        f'<line class="gz" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="3" y2="{BAR_HEIGHT - 3}"/>',
    ]
    middle, low, high = row.place
    label = "no estimate"
    if middle is not None:
        tone = f"g-{html.escape(row.verdict)}"
        ends = x(first if low is None else low), x(REACH if high is None else high)
        parts.append(f'<line class="gi {tone}" x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{mid:g}" y2="{mid:g}"/>')
        parts.append(f'<circle class="{tone}" cx="{x(middle):.1f}" cy="{mid:g}" r="4"/>')
        label = f"{middle:.2f} bands"
    return (
        f'<svg width="{BAR_WIDTH}" height="{BAR_HEIGHT}" viewBox="0 0 {BAR_WIDTH} {BAR_HEIGHT}" role="img" '
        f'aria-label="{label}">{"".join(parts)}</svg>'
    )


def _reasons(groups: Sequence[tuple[str, list[GateRow]]]) -> str:
    """List why slices are undecided, slices with the same reason together."""
    found: dict[str, list[str]] = {}
    for name, rows in groups:
        row = worst_of(rows)
        if row is not None and row.verdict == "undecided":
            draws = f" ({count(row.needed_draws)} draws a side would settle it)" if row.needed_draws else ""
            reason = row.reason or "the interval reaches beyond the band"
            found.setdefault(f"{row.metric}: {reason}{draws}", []).append(name)
    if not found:
        return ""
    items = "".join(
        f"<li>{', '.join(html.escape(n) for n in names[:5])}"
        + (f" and {count(len(names) - 5)} more" if len(names) > 5 else "")
        + f": {html.escape(why)}</li>"
        for why, names in found.items()
    )
    return f'<h3 style="margin-top:18px">Why slices are undecided</h3><ul class="note">{items}</ul>'


def _earlier(gates: Sequence[GateView]) -> str:
    if not gates:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{html.escape(g.created)}</th><td>{html.escape(g.split)}</td>'
        f"<td>{html.escape(g.student[:8])}</td><td>{_verdict(g.verdict).removesuffix(';')}</td>"
        f"<td>{count(g.n_draws)}</td></tr>"
        for g in gates
    )
    return (
        "<details><summary>Earlier gates</summary>"
        '<table class="list"><thead><tr><th scope="col">when</th><th scope="col">split</th><th scope="col">student</th>'
        f'<th scope="col">verdict</th><th scope="col">draws</th></tr></thead><tbody>{rows}</tbody></table></details>'
    )


def causes_section(causes: Sequence[CauseView]) -> str:
    """Draw one card per red slice: the cause, the remedy, and the evidence with its numbers."""
    if not causes:
        return ""
    n_buys = sum(c.cause == "coverage" for c in causes)
    buys = (
        f"{count(n_buys)} of {count(len(causes))} red slices lack coverage and are bought for; the others cost no draw."
    )
    ordered = sorted(causes, key=lambda c: (CAUSES.index(c.cause) if c.cause in CAUSES else len(CAUSES), c.slice))
    cards = "".join(
        f"<article><h3>{breakable(c.slice)}: {html.escape(c.cause)}</h3>{html.escape(_sentence(c.remedy))}"
        f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in c.evidence)}</ul></article>"
        for c in ordered
    )
    whose = f" of student {html.escape(causes[0].student[:8])}" if causes[0].student else ""
    return (
        f'<section id="causes"><h2>Why slices{whose} were red</h2><p class="about">Found by retraining: weighted up, '
        f'on part of the data, with a wider student. {buys}</p><div class="why">{cards}</div></section>'
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def promotions_section(promotions: Sequence[Mapping[str, Any]]) -> str:
    """Draw the stages of every promotion, and rollbacks, as a timeline with the newest first."""
    if not promotions:
        return ""
    items = "".join(
        f'<li class="{html.escape(str(p["stage"]))}"><b>{html.escape(str(p["stage"]))}</b> of student '
        f"{html.escape(str(p['student_id'])[:8])} <small>{html.escape(str(p['created']))}</small>"
        + (f'<br><span class="quiet">{html.escape(str(p["note"]))}</span>' if p.get("note") else "")
        + "</li>"
        for p in reversed(promotions)
    )
    return f'<section id="promotions"><h2>Promotions</h2><ul class="tl">{items}</ul></section>'


def routes_section(routes: Sequence[Mapping[str, Any]]) -> str:
    """List who answers in each slice, for which share of the traffic, who has the rest, and how far it is trusted."""
    if not routes:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{breakable(str(r["slice"]))}</th><td>{html.escape(str(r.get("student_id") or "–")[:8])}'
        f"</td><td>{float(r.get('share') or 0.0):.0%}</td><td>{html.escape(str(r.get('fallback') or '–')[:8])}</td>"
        f"<td>{'–' if r.get('horizon_s') is None else duration(float(r['horizon_s']))}</td>"
        f"<td>{html.escape(str(r.get('reason') or ''))}</td></tr>"
        for r in routes
    )
    heads = "".join(
        f'<th scope="col">{h}</th>' for h in ("slice", "answered by", "traffic", "the rest", "trusted for", "why")
    )
    return (
        '<section id="routes"><h2>Who answers where</h2><div class="scroll" tabindex="0" style="margin-top:12px">'
        f'<table class="gt"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div></section>'
    )
