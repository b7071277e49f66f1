"""Draw what it cost each policy to turn every slice truly green, run by run, as a small SVG for the docs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, LEFT, RIGHT, TOP, ROW = 640, 120, 28, 44, 40
COLORS: Mapping[str, str] = {
    "fleet": "#00805d", "uniform": "#c2500a", "gate": "#0067a8", "gate + refresh": "#8a3ea8", "oracle": "#56626e",
}  # fmt: skip
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#333}.grid{stroke:#ddd}.median{stroke-width:3}"
    "@media(prefers-color-scheme:dark){text{fill:#ccc}.grid{stroke:#444}}"
)

Run = tuple[float, bool]
"""Dollars spent, and whether every slice was truly green then; else the run is censored there."""


def green_picture(runs: Mapping[str, Sequence[Run]], title: str) -> str:
    """Return an SVG with a line per policy: a dot per run that got there, an arrow for one that did not, the median.

    Dollars are on a logarithmic axis. The median is drawn where at least half of the runs got there (censored runs
    count as dearer than all others).
    """
    amounts = [amount for line in runs.values() for amount, _ in line if amount > 0]
    low, high = math.log10(min(amounts)) - 0.1, math.log10(max(amounts)) + 0.15
    height = TOP + ROW * len(runs) + 62
    bottom = TOP + ROW * len(runs)

    def x(amount: float) -> float:
        return round(LEFT + (math.log10(max(amount, 10**low)) - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}"><style>{STYLE}</style>',
        f'<text x="12" y="20">{escape(title)}</text>',
    ]
    for tick in _ticks(low, high):
        out.append(f'<line class="grid" x1="{x(tick)}" x2="{x(tick)}" y1="{TOP - 8}" y2="{bottom}"/>')
        out.append(f'<text x="{x(tick)}" y="{bottom + 18}" text-anchor="middle">${tick:g}</text>')
    for i, (name, line) in enumerate(runs.items()):
        y, color = TOP + ROW * i + ROW / 2, COLORS.get(name, "#56626e")
        out.append(f'<text x="{LEFT - 14}" y="{y + 4}" text-anchor="end" style="fill:{color}">{escape(name)}</text>')
        for j, (amount, green) in enumerate(sorted(line)):
            at = y + 6 * (j - (len(line) - 1) / 2) / max(len(line) - 1, 1) * 2
            out.append(
                f'<circle cx="{x(amount)}" cy="{at:.1f}" r="4" fill="{color}"/>'
                if green
                else f'<path d="M{x(amount)} {at:.1f}h14m-5 -4l5 4-5 4" fill="none" stroke="{color}"/>'
            )
        if (middle := median_run(line)) is not None:
            out.append(
                f'<line class="median" x1="{x(middle)}" x2="{x(middle)}" y1="{y - 14}" y2="{y + 14}" stroke="{color}"/>'
            )
    n_censored = sum(not green for line in runs.values() for _, green in line)
    note = "Dot: a run; bar: the median" + (
        f"; arrow: not green yet when it ended ({n_censored})" if n_censored else ""
    )
    out.append(f'<text x="12" y="{height - 26}">Dollars of teacher time, gate draws included.</text>')
    out.append(f'<text x="12" y="{height - 8}">{note}</text>')
    return "\n".join([*out, "</svg>", ""])


def median_run(runs: Sequence[Run]) -> float | None:
    """Return the median of the dollars with censored runs as dearer than all; None where it is one of those."""
    ordered = sorted(math.inf if not green else amount for amount, green in runs)
    n = len(ordered)
    middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2 if n else math.inf
    return middle if math.isfinite(middle) else None


def _ticks(low: float, high: float) -> list[float]:
    """Return round dollars inside the axis: 1, 2 and 5 times powers of ten."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    found = [s * 10.0**d for d in decades for s in (1, 2, 5)]
    return [t for t in found if low <= math.log10(t) <= high]
