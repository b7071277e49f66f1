"""Samples as pictures: a camera strip, lidar from above, and the K futures of one decision point.

Pure numpy in, uint8 pixels or SVG text out; Pillow only where pixels become a PNG.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

OUTCOME_COLOURS = ("#2f80c8", "#d9662a", "#1f9a6c", "#b3599b", "#a5801c", "#8068cf", "#cf4b5c", "#2490a3")
"""One per outcome in order; each at least 3:1 against white and against near-black (WCAG graphics)."""
OTHER_COLOUR = "#7f8a94"
DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 2", "1 4", "8 2 2 2")
GROUND = (16, 21, 27)
RING = (44, 55, 66)
GAP = (126, 136, 146)
EGO = (246, 248, 250)
HEIGHT_STOPS_M = (-2.0, 0.0, 1.0, 2.5, 5.0)
HEIGHT_COLOURS = ((58, 76, 140), (54, 126, 170), (60, 176, 140), (222, 196, 82), (236, 112, 72))


def png_data_uri(image: NDArray[np.uint8]) -> str:
    """Encode an image as a lossless ``data:image/png`` URI.

    image: uint8 [H, W, 3]. An image without pixels becomes one pixel of dark ground. Raises ValueError for
    another dtype or shape.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"png_data_uri takes uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
    if image.size == 0:
        image = _ground(1, 1)
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def camera_strip(
    frames: NDArray[np.uint8], *, max_frames: int = 6, gap_px: int = 2, gap_colour: tuple[int, int, int] = GAP
) -> NDArray[np.uint8]:
    """Put the frames of a rollout side by side, time from left to right.

    frames: uint8 [T, H, W, C]; C is 1 (grey), 3 (RGB) or 4 (RGBA, whose alpha is dropped). More than
    `max_frames` are thinned evenly, first and last kept. Returns uint8 [H, n*W + (n-1)*gap_px, 3]; without
    frames one blank picture [max(H, 1), max(W, 1), 3]. Raises ValueError for another dtype or shape.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] not in (1, 3, 4):
        raise ValueError(f"camera_strip takes uint8 [T, H, W, 1|3|4], not {frames.dtype} {list(frames.shape)}")
    n_frames, height, width, channels = frames.shape
    if frames.size == 0:
        return _ground(max(height, 1), max(width, 1))
    if n_frames > max_frames:
        frames = frames[np.linspace(0, n_frames - 1, max_frames).round().astype(int)]
    rgb = np.repeat(frames, 3, axis=3) if channels == 1 else frames[..., :3]
    n = len(rgb)
    strip = np.empty((height, n * width + (n - 1) * gap_px, 3), np.uint8)
    strip[:] = gap_colour
    for i, frame in enumerate(rgb):
        left = i * (width + gap_px)
        strip[:, left : left + width] = frame
    return strip


def lidar_bev(
    xyz: NDArray[np.float32],
    intensity: NDArray[np.float32] | None = None,
    *,
    extent_m: float = 30.0,
    size_px: int = 192,
    point_px: int = 2,
) -> NDArray[np.uint8]:
    """Draw a lidar scan from above: forward (x) is up, left (y) is left, the vehicle stands in the middle.

    xyz: float [N, 3] metres in the vehicle's frame; intensity: float [N] (any non-negative unit, scaled by
    its own 95th percentile) dims weak returns. The picture reaches `extent_m` to every side; a point at
    (x, y) lands in row floor((extent - x) * size / (2 extent)), column likewise from y, and covers
    `point_px` pixels down and to the right. Colour is height, blue below the road to red at 5 m; of points
    on one pixel the highest shows. Points outside or not finite are left out; no points: rings and vehicle.
    Returns uint8 [size_px, size_px, 3].
    """
    image = _ground(size_px, size_px)
    scale = size_px / (2 * extent_m)
    _draw_rings(image, extent_m)
    points = np.asarray(xyz, np.float64).reshape(-1, 3)
    row = np.floor((extent_m - points[:, 0]) * scale)
    column = np.floor((extent_m - points[:, 1]) * scale)
    with np.errstate(invalid="ignore"):
        keep = np.isfinite(points).all(axis=1) & (row >= 0) & (row < size_px) & (column >= 0) & (column < size_px)
    colour = _height_colours(points[:, 2], intensity)[keep]
    order = np.argsort(points[keep, 2], kind="stable")  # the last write wins: draw the highest last
    rows, columns = row[keep].astype(int)[order], column[keep].astype(int)[order]
    for down in range(point_px):
        for right in range(point_px):
            r, c = rows + down, columns + right
            inside = (r < size_px) & (c < size_px)
            image[r[inside], c[inside]] = colour[order][inside]
    _draw_vehicle(image, scale)
    return image


def _ground(height: int, width: int) -> NDArray[np.uint8]:
    image = np.empty((height, width, 3), np.uint8)
    image[:] = GROUND
    return image


def _draw_rings(image: NDArray[np.uint8], extent_m: float) -> None:
    n = image.shape[0]
    scale = n / (2 * extent_m)
    centre = np.arange(n) + 0.5 - n / 2
    radius = np.hypot(centre[:, None], centre[None, :])
    step_m = nice_step(extent_m / 3)
    for i in range(1, math.floor(extent_m / step_m + 1e-9) + 1):
        image[np.abs(radius - i * step_m * scale) < 0.6] = RING


def _draw_vehicle(image: NDArray[np.uint8], scale: float) -> None:
    """Mark the vehicle as an arrowhead pointing up, about 4.5 m long but never under 7 pixels."""
    n = image.shape[0]
    length = max(7, round(4.5 * scale))
    top = n // 2 - length // 2
    for i in range(length):
        half = (i * length // 2) // (2 * length) + 1
        row = top + i
        if 0 <= row < n:
            image[row, max(0, n // 2 - half) : n // 2 + half] = EGO


def _height_colours(z: NDArray[np.float64], intensity: NDArray[np.float32] | None) -> NDArray[np.uint8]:
    finite = np.nan_to_num(z, nan=0.0, posinf=0.0, neginf=0.0)
    stops = np.asarray(HEIGHT_COLOURS, np.float64)
    colour = np.stack([np.interp(finite, HEIGHT_STOPS_M, stops[:, c]) for c in range(3)], axis=1)
    if intensity is not None and len(intensity):
        strength = np.clip(np.nan_to_num(np.asarray(intensity, np.float64)), 0, None)
        top = np.quantile(strength, 0.95)
        if top > 0:
            colour *= (0.55 + 0.45 * np.clip(strength / top, 0, 1))[:, None]
    return colour.round().astype(np.uint8)


def nice_step(rough: float) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that is at least `rough` (which is positive)."""
    power = 10.0 ** math.floor(math.log10(rough) + 1e-9)
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))


def outcome_colours(outcomes: Sequence[str]) -> dict[str, str]:
    """Give each distinct outcome a colour, in the order of first appearance; from the ninth on all are grey."""
    distinct = list(dict.fromkeys(outcomes))
    return {o: OUTCOME_COLOURS[i] if i < len(OUTCOME_COLOURS) else OTHER_COLOUR for i, o in enumerate(distinct)}


class _View(NamedTuple):
    """The mapping from metres to the drawing: x to the right, y up, one scale for both."""

    left_m: float
    top_m: float
    scale: float
    left: float
    top: float

    def x(self, x_m: float) -> float:
        return self.left + (x_m - self.left_m) * self.scale

    def y(self, y_m: float) -> float:
        return self.top + (self.top_m - y_m) * self.scale


def futures_svg(
    trajectories: Sequence[NDArray[np.floating]],
    outcomes: Sequence[str],
    *,
    agents: Sequence[str] = (),
    colours: Mapping[str, str] | None = None,
    width: int = 640,
) -> str:
    """Draw K futures of one decision point over one another, coloured (and dashed) by outcome.

    trajectories: K arrays float [T, A, 2], metres, x to the right and y up on one scale; outcomes: K labels.
    Agent a is named ``agents[a]`` (else ``agent a``), its starts are labelled, each of its futures ends in
    a dot. Steps that are not finite break a path; an agent without a finite step has none. The legend counts
    the futures of each outcome. Nothing to draw gives a small drawing that says so. All text is escaped.
    Raises ValueError when the lengths of the two lists differ.
    """
    if len(trajectories) != len(outcomes):
        raise ValueError(f"{len(trajectories)} trajectories but {len(outcomes)} outcomes")
    paths = [np.asarray(t, np.float64).reshape(len(t), -1, 2) for t in trajectories if np.size(t)]
    labels = [o for t, o in zip(trajectories, outcomes, strict=True) if np.size(t)]
    finite = [p[np.isfinite(p).all(axis=2)] for p in paths]
    points = np.concatenate(finite) if finite else np.empty((0, 2))
    if not len(points):
        return _empty_svg(width)
    colours = colours or outcome_colours(labels)
    dashes = {o: DASHES[i % len(DASHES)] for i, o in enumerate(colours)}
    view, bottom = _fit_view(points, width)
    parts = _axes(view, width, bottom)
    for i in sorted(range(len(paths)), key=lambda i: -labels.count(labels[i])):  # the rare ones on top
        path, label = paths[i], labels[i]
        parts += _future(path, label, colours.get(label, OTHER_COLOUR), dashes.get(label, ""), view)
    parts += _starts(paths, agents, view)
    places = _legend_places(labels, width)
    parts += _legend(places, labels, colours, dashes, bottom + 38)
    height = bottom + 52 + 18 * places[-1].line
    summary = ", ".join(f"{labels.count(o)} {o}" for o in dict.fromkeys(labels))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" role="img" class="futures" '
        f'font-family="inherit" font-size="12" fill="currentColor"><title>{len(labels)} futures: '
        f"{html.escape(summary)}</title>" + "".join(parts) + "</svg>"
    )


def _empty_svg(width: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 60" role="img" class="futures" font-size="12" '
        f'fill="currentColor"><title>no futures</title><text x="{width / 2:g}" y="34" text-anchor="middle" '
        'fill-opacity="0.7">no futures to draw</text></svg>'
    )


def _fit_view(points: NDArray[np.float64], width: int) -> tuple[_View, float]:
    """Choose the window, all points and a margin, and the drawing's lower edge.

    It is between a quarter and seven tenths as high as wide, whatever the points' own proportions.
    """
    left, right, top = 46.0, 24.0, 18.0
    low, high = points.min(axis=0), points.max(axis=0)
    margin = max(0.5, 0.07 * float((high - low).max()))
    low, high = low - margin, high + margin
    span_x = max(float(high[0] - low[0]), float(high[1] - low[1]) / 0.7)
    span_y = max(float(high[1] - low[1]), 0.25 * span_x)
    centre = (low + high) / 2
    scale = (width - left - right) / span_x
    view = _View(float(centre[0]) - span_x / 2, float(centre[1]) + span_y / 2, scale, left, top)
    return view, top + span_y * scale


def _axes(view: _View, width: int, bottom: float) -> list[str]:
    right = width - 24.0
    right_m = view.left_m + (right - view.left) / view.scale
    bottom_m = view.top_m - (bottom - view.top) / view.scale
    step = nice_step((right_m - view.left_m) / 8)
    ticks_x = _ticks(view.left_m, right_m, step)
    ticks_y = _ticks(bottom_m, view.top_m, step)
    parts = ['<g stroke="currentColor" stroke-opacity="0.14" stroke-width="1">']
    parts += [f'<line x1="{view.x(t):.1f}" x2="{view.x(t):.1f}" y1="{view.top:g}" y2="{bottom:.1f}"/>' for t in ticks_x]
    parts += [f'<line x1="{view.left:g}" x2="{right:g}" y1="{view.y(t):.1f}" y2="{view.y(t):.1f}"/>' for t in ticks_y]
    parts.append('</g><g font-size="11" fill-opacity="0.75" text-anchor="middle">')
    parts += [f'<text x="{view.x(t):.1f}" y="{bottom + 15:.1f}">{_metres(t, t == ticks_x[-1])}</text>' for t in ticks_x]
    parts.append('</g><g font-size="11" fill-opacity="0.75" text-anchor="end">')
    edge = f"{view.left - 6:g}"
    parts += [f'<text x="{edge}" y="{view.y(t) + 4:.1f}">{_metres(t, t == ticks_y[-1])}</text>' for t in ticks_y]
    return [*parts, "</g>"]


def _ticks(low: float, high: float, step: float) -> list[float]:
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _metres(value: float, unit: bool) -> str:
    text = f"{value:.6g}".replace("-", "−")
    return f"{'0' if text == '−0' else text}{' m' if unit else ''}"


def _future(path: NDArray[np.float64], label: str, colour: str, dash: str, view: _View) -> list[str]:
    parts = []
    for a in range(path.shape[1]):
        steps = path[:, a]
        alive = np.atleast_1d(np.isfinite(steps).all(axis=1))
        if not alive.any():
            continue
        words: list[str] = []
        for i, (x, y) in enumerate(steps):
            if alive[i]:
                words.append(f"{'L' if i and alive[i - 1] else 'M'}{view.x(x):.1f} {view.y(y):.1f}")
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        parts.append(
            f'<path d="{"".join(words)}" fill="none" stroke="{colour}" stroke-width="{2 if a else 1.6:g}" '
            f'stroke-opacity="0.8" stroke-linejoin="round" stroke-linecap="round"{dashed} '
            f'data-agent="{a}" data-outcome="{html.escape(label)}"/>'
        )
        x, y = steps[np.flatnonzero(alive)[-1]]
        parts.append(f'<circle cx="{view.x(x):.1f}" cy="{view.y(y):.1f}" r="3" fill="{colour}"/>')
    return parts


def _starts(paths: Sequence[NDArray[np.float64]], agents: Sequence[str], view: _View) -> list[str]:
    """Ring and name where each agent starts (its first future decides); the name keeps clear of where it goes."""
    parts = []
    for a in range(max(p.shape[1] for p in paths)):
        mine = [p[:, a][np.isfinite(p[:, a]).all(axis=1)] for p in paths if a < p.shape[1]]
        mine = [steps for steps in mine if len(steps)]
        if not mine:
            continue
        x, y = view.x(mine[0][0, 0]), view.y(mine[0][0, 1])
        goes_up = sum(float(steps[-1, 1] - steps[0, 1]) for steps in mine) > 0
        name = agents[a] if a < len(agents) else f"agent {a}"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="none" stroke="currentColor" stroke-width="1.6"/>'
            f'<text x="{x:.1f}" y="{y + (19 if goes_up else -10):.1f}" text-anchor="middle" font-weight="600">'
            f"{html.escape(name)}</text>"
        )
    return parts


class _Place(NamedTuple):
    outcome: str
    x: float
    line: int


def _legend_places(labels: Sequence[str], width: int) -> list[_Place]:
    """Flow the legend's entries over as many lines as they need, by an estimate of their width."""
    places: list[_Place] = []
    x, line = 46.0, 0
    for o in dict.fromkeys(labels):
        needed = 50 + 6.6 * len(f"{o} {labels.count(o)} of {len(labels)}")
        if x > 46.0 and x + needed > width:
            x, line = 46.0, line + 1
        places.append(_Place(o, x, line))
        x += needed
    return places


def _legend(
    places: Sequence[_Place], labels: Sequence[str], colours: Mapping[str, str], dashes: Mapping[str, str], top: float
) -> list[str]:
    parts = []
    for o, x, line in places:
        y = top + 18 * line
        dashed = f' stroke-dasharray="{dashes[o]}"' if dashes.get(o) else ""
        parts.append(
            f'<line x1="{x:.1f}" x2="{x + 22:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="{colours.get(o, OTHER_COLOUR)}" '
            f'stroke-width="2.5"{dashed}/><text x="{x + 29:.1f}" y="{y + 4:.1f}">{html.escape(o)} '
            f'<tspan fill-opacity="0.75">{labels.count(o)} of {len(labels)}</tspan></text>'
        )
    return parts
