"""Draw how seconds grow with the number of seeds, as a small SVG for the docs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 600, 330
LEFT, RIGHT, TOP, BOTTOM = 62, 190, 34, 44
LABEL_HEIGHT = 15
COLORS = ("#1f6feb", "#d1761c", "#2a8f57")
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#333}.grid{stroke:#ddd}.law{stroke:#999;stroke-dasharray:4 4;fill:none}"
    ".line{fill:none;stroke-width:2}"
    "@media(prefers-color-scheme:dark){text{fill:#ccc}.grid{stroke:#444}.law{stroke:#777}}"
)


def scale_picture(lines: Mapping[str, Sequence[tuple[int, float]]], title: str) -> str:
    """Return an SVG of (seeds, seconds) on logarithmic axes, with the law n log n through the last first point."""
    points = [p for line in lines.values() for p in line]
    x0, x1 = math.log10(min(n for n, _ in points)), math.log10(max(n for n, _ in points))
    y0 = math.floor(math.log10(min(s for _, s in points)))
    y1 = math.ceil(math.log10(max(s for _, s in points)) + 1e-9)

    def at(n: float, seconds: float) -> tuple[float, float]:
        x = LEFT + (math.log10(n) - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (math.log10(seconds) - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)
        return round(x, 1), round(y, 1)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}"><style>{STYLE}</style>',
        f'<text x="{LEFT}" y="18">{escape(title)}</text>',
    ]
    for exponent in range(y0, y1 + 1):
        x, y = at(10**x0, 10.0**exponent)
        out.append(f'<line class="grid" x1="{x}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}"/>')
        out.append(f'<text x="{x - 6}" y="{y + 4}" text-anchor="end">{10.0**exponent:g} s</text>')
    for n in sorted({n for n, _ in points}):
        x, _ = at(n, 10.0**y0)
        out.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{n:,}</text>')
    out.append(f'<text x="{LEFT}" y="{HEIGHT - 6}">seeds</text>')
    out += _law(at, next(iter(lines.values())), 10.0**y0)
    heights = _apart({name: at(*line[-1])[1] for name, line in lines.items()})
    for color, (name, line) in zip(COLORS, lines.items(), strict=False):
        path = " ".join(f"{x},{y}" for x, y in (at(n, s) for n, s in line))
        out.append(f'<polyline class="line" stroke="{color}" points="{path}"/>')
        out += [f'<circle cx="{x}" cy="{y}" r="3" fill="{color}"/>' for x, y in (at(n, s) for n, s in line)]
        label = f"{escape(name)} {line[-1][1]:.1f} s"
        out.append(f'<text x="{WIDTH - RIGHT + 8}" y="{heights[name] + 4:.1f}" style="fill:{color}">{label}</text>')
    return "\n".join([*out, "</svg>", ""])


def _apart(heights: Mapping[str, float]) -> dict[str, float]:
    """Move labels down until none covers another, from the top one on."""
    placed: dict[str, float] = {}
    lowest = -math.inf
    for name, y in sorted(heights.items(), key=lambda item: item[1]):
        lowest = placed[name] = max(y, lowest + LABEL_HEIGHT)
    return placed


def _law(at: object, line: Sequence[tuple[int, float]], lowest: float) -> list[str]:
    """Draw c n log n through the end of `line`, down to the picture's bottom."""
    assert callable(at), "a function of seeds and seconds"
    last, seconds = line[-1]
    scale = seconds / (last * math.log(last))
    n = float(min(n for n, _ in line))
    while scale * n * math.log(n) < lowest:
        n *= 1.05
    steps = [n * (last / n) ** (i / 24) for i in range(25)]
    path = " ".join("{},{}".format(*at(m, scale * m * math.log(m))) for m in steps)
    x, y = at(steps[6], scale * steps[6] * math.log(steps[6]))
    return [f'<polyline class="law" points="{path}"/>', f'<text x="{x + 6}" y="{y + 12}">n log n</text>']
