"""The front camera: a pinhole that looks at the scene, with its weather and light."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .scene import ACTOR, CEILING, GROUND, KINDS, OTHER, SKY, WALL, Float32, Hits, Scene, block_of, cast
from .world import AXES

WIDTH, HEIGHT = 64, 64
FOCAL_PX = 62.0
CENTRE_PX = (31.5, 25.5)
"""Column and row of the point straight ahead: more road than sky."""
MOUNT_M = 1.5

# materials: rows of the palette
_ROAD, _LINE, _PAVEMENT, _TERRAIN, _WALL0, _GLASS, _LIT, _CEILING, _LAMP = 0, 1, 2, 3, 4, 8, 9, 10, 11
_BODY, _DARK, _SKIN, _TAIL, _HEAD = 12, 13, 14, 15, 16
_BOX_STEP = 5  # the other road user's materials follow the actor's
_N_MATERIALS = 22
_GLOWS = [_LIT, _LAMP, _TAIL, _HEAD, _TAIL + _BOX_STEP, _HEAD + _BOX_STEP]

_BODY_RGB = {
    "car": (0.16, 0.40, 0.66),
    "parked_car": (0.66, 0.62, 0.52),
    "van": (0.86, 0.86, 0.82),
    "pedestrian": (0.95, 0.62, 0.10),
    "cyclist": (0.20, 0.72, 0.38),
    "animal": (0.50, 0.33, 0.18),
}
_SKY_TOP = {"day": (0.36, 0.56, 0.86), "dusk": (0.24, 0.24, 0.42), "night": (0.015, 0.02, 0.05)}
_SKY_LOW = {"day": (0.76, 0.85, 0.94), "dusk": (0.95, 0.55, 0.32), "night": (0.05, 0.06, 0.10)}
_AMBIENT = {"day": (1.0, 1.0, 0.98), "dusk": (0.62, 0.52, 0.50), "night": (0.16, 0.17, 0.22)}
_HEADLIGHT_RGB = (1.0, 0.97, 0.86)
_HEADLIGHT = {"day": 0.0, "dusk": 0.25, "night": 0.85}
_VISIBILITY_M = {"clear": 420.0, "rain": 75.0, "snow": 48.0}
_BLUR = {"clear": 0.0, "rain": 0.45, "snow": 0.25}


@functools.cache
def rays() -> Float32:
    """Return the pixels' directions in the ego's frame, float32 [64 * 64, 3], ahead = 1, rows first."""
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    left, up = (CENTRE_PX[0] - u) / FOCAL_PX, (CENTRE_PX[1] - v) / FOCAL_PX
    return np.stack([np.ones_like(u), left, up], -1).reshape(-1, 3).astype(np.float32)


def project(ahead_m: float, left_m: float, up_m: float) -> tuple[float, float]:
    """Return the pixel (column, row) of a point in the ego's frame, heights above the ground."""
    return (
        CENTRE_PX[0] - FOCAL_PX * left_m / ahead_m,
        CENTRE_PX[1] - FOCAL_PX * (up_m - MOUNT_M) / ahead_m,
    )


def take_pictures(scene: Scene, rngs: Sequence[np.random.Generator]) -> NDArray[np.uint8]:
    """Return the frames' pictures, uint8 [F, 64, 64, 3]; each generator serves an equal share of the frames."""
    hits = cast(scene, rays(), MOUNT_M)
    image = _shade(scene, hits).reshape(-1, HEIGHT, WIDTH, 3)
    _soften(image, scene)
    per_request = len(image) // len(rngs)
    for i, rng in enumerate(rngs):
        part = slice(i * per_request, (i + 1) * per_request)
        _precipitation(image[part], AXES["weather"][int(scene.weather[i * per_request])], rng)
        grain = rng.integers(0, 256, (per_request, HEIGHT, WIDTH, 1), dtype=np.uint8).astype(np.float32)
        image[part] += (grain - 127.5) * (0.03 / 127.5)
    np.clip(image, 0, 1, out=image)
    image *= 255
    image += 0.5
    return np.asarray(image, np.uint8)


def _shade(scene: Scene, hits: Hits) -> Float32:
    n_rays = hits.t.shape[1]
    lights = [AXES["light"][i] for i in scene.light]
    tunnel = scene.district == AXES["district"].index("tunnel")
    ambient = np.array([_AMBIENT[name] for name in lights], np.float32)
    ambient[tunnel] = (0.62, 0.60, 0.54)
    palette = _palette(scene)
    shown = palette * ambient[:, None, :]
    shown[:, _GLOWS] = palette[:, _GLOWS]
    palette[:, _GLOWS] = 0.0  # what glows is not lit by the headlights as well
    rows = _materials(scene, hits) + (np.arange(len(hits.t)) * _N_MATERIALS)[:, None]
    colour = shown.reshape(-1, 3).take(rows, axis=0)
    head = np.array([_HEADLIGHT[name] for name in lights], np.float32)
    if head.any():
        cone = np.clip(1.25 - np.abs(rays()[:, 1]) * 1.6, 0, 1)
        beam = np.exp(hits.t * np.float32(-1 / 20)) * cone * head[:, None]
        colour += (palette * np.array(_HEADLIGHT_RGB, np.float32)).reshape(-1, 3).take(rows, axis=0) * beam[:, :, None]
    visibility = np.array([_VISIBILITY_M[AXES["weather"][i]] for i in scene.weather], np.float32)
    visibility[tunnel] = 180.0
    through = np.exp(hits.t / -visibility[:, None])
    through *= hits.surface != SKY
    air = np.repeat(_air(scene), n_rays // HEIGHT, axis=1)
    colour -= air
    colour *= through[:, :, None]
    colour += air
    return colour


def _air(scene: Scene) -> Float32:
    """Return the colour of sky and haze by row, float32 [F, 64, 3]."""
    rows = np.clip((CENTRE_PX[1] - np.arange(HEIGHT)) / CENTRE_PX[1], 0, 1).astype(np.float32) ** 0.8
    top = np.array([_SKY_TOP[AXES["light"][i]] for i in scene.light], np.float32)[:, None]
    low = np.array([_SKY_LOW[AXES["light"][i]] for i in scene.light], np.float32)[:, None]
    air = low + (top - low) * rows[:, None]
    grey = air.mean(-1, keepdims=True) * np.array([0.95, 0.98, 1.03], np.float32)
    cloudy = np.array([0.0, 0.8, 0.9], np.float32)[scene.weather][:, None, None]
    air = air + (grey - air) * cloudy
    air[scene.district == AXES["district"].index("tunnel")] = (0.24, 0.23, 0.20)
    return np.asarray(air, np.float32)


def _palette(scene: Scene) -> Float32:
    """Return the colour of every material in every frame, float32 [F, 22, 3]."""
    base = np.zeros((_N_MATERIALS, 3), np.float32)
    base[_ROAD], base[_LINE], base[_PAVEMENT], base[_TERRAIN] = 0.30, 0.92, 0.55, (0.33, 0.45, 0.22)
    base[_WALL0 : _WALL0 + 4] = [(0.62, 0.48, 0.40), (0.70, 0.66, 0.58), (0.46, 0.47, 0.52), (0.58, 0.36, 0.30)]
    base[_GLASS], base[_LIT] = (0.22, 0.28, 0.36), (0.98, 0.82, 0.48)
    base[_CEILING], base[_LAMP] = 0.42, (1.0, 0.93, 0.72)
    palette = np.repeat(base[None], len(scene.ego), 0)
    rain, snow = scene.weather == 1, scene.weather == 2
    palette[rain, _ROAD], palette[rain, _PAVEMENT] = (0.20, 0.21, 0.24), (0.42, 0.43, 0.45)
    palette[snow, _ROAD], palette[snow, _PAVEMENT], palette[snow, _TERRAIN] = 0.58, 0.86, (0.93, 0.94, 0.97)
    downtown = scene.district == AXES["district"].index("downtown")
    palette[downtown & ~snow, _TERRAIN] = (0.50, 0.49, 0.47)
    bodies = np.array([_BODY_RGB[kind] for kind in KINDS], np.float32)
    on_foot = np.array([kind in ("pedestrian", "cyclist") for kind in KINDS])
    for b in range(2):
        at = b * _BOX_STEP
        palette[:, _BODY + at] = bodies[scene.kinds[:, b]]
        palette[:, _DARK + at] = (0.09, 0.09, 0.11)
        palette[:, _SKIN + at] = np.where(on_foot[scene.kinds[:, b], None], (0.86, 0.66, 0.53), (0.42, 0.28, 0.16))
        palette[:, _TAIL + at], palette[:, _HEAD + at] = (0.95, 0.10, 0.08), (1.0, 0.97, 0.85)
    if len(scene.kinds):
        same = scene.kinds[:, 0] == scene.kinds[:, 1]
        palette[same, _BODY + _BOX_STEP] = (0.70, 0.36, 0.16)  # two cars: tell them apart
    return palette


def _materials(scene: Scene, hits: Hits) -> NDArray[np.int64]:
    n_rays = hits.t.shape[1]
    material = np.zeros(hits.t.size, np.int64)
    surface = hits.surface.ravel()
    x, y, z = hits.x.ravel(), hits.y.ravel(), hits.z.ravel()
    at = np.flatnonzero(surface == GROUND)
    material[at] = _ground(x[at], y[at], scene.crosswalk_x[at // n_rays])
    at = np.flatnonzero(surface == WALL)
    material[at] = _facade(scene, at // n_rays, x[at], y[at], z[at])
    at = np.flatnonzero(surface == CEILING)
    lamp = (_phase(x[at], 9) < 2.5) & (np.abs(y[at] - 1.8) < 0.8)
    material[at] = np.where(lamp, _LAMP, _CEILING)
    for b, box in enumerate((ACTOR, OTHER)):
        at = np.flatnonzero(surface == box)
        f = at // n_rays
        material[at] = _body(scene.kinds[f, b], scene.sizes[f, b], x[at], y[at], z[at]) + b * _BOX_STEP
    return material.reshape(hits.t.shape)


def _phase(x: Float32, period: float) -> Float32:
    """Return x modulo `period`; np.mod takes ten times as long."""
    return np.asarray(x - np.floor(x * np.float32(1 / period)) * np.float32(period))


def _ground(x: Float32, y: Float32, crosswalk_x: Float32) -> NDArray[np.uint8]:
    material = np.full(x.shape, _TERRAIN, np.uint8)
    material[(y > -4.8) & (y < 8.3)] = _PAVEMENT
    road = (y > -2.1) & (y < 5.6)
    material[road] = _ROAD
    dashes = (np.abs(y - 1.75) < 0.10) & (_phase(x, 6) < 3)
    edges = (np.abs(y + 1.85) < 0.08) | (np.abs(y - 5.35) < 0.08)
    stripes = (np.abs(x - crosswalk_x) < 1.6) & (_phase(y, 1.0) < 0.55) & road
    material[dashes | edges | stripes] = _LINE
    return material


def _facade(scene: Scene, f: NDArray[np.int64], x: Float32, y: Float32, z: Float32) -> NDArray[np.uint8]:
    row = (f * 2 + (y > 0)) * scene.tints.shape[2] + block_of(x)
    tint = scene.tints.ravel()[row]
    material = (_WALL0 + tint).astype(np.uint8)
    outside = scene.district[f] != AXES["district"].index("tunnel")
    tall = scene.heights.ravel()[row] > 3
    across, up = _phase(x, 3.0), _phase(z, 3.1)
    windows = np.flatnonzero((across > 0.9) & (across < 2.2) & (up > 1.1) & (up < 2.3) & tall & outside)
    light = scene.light[f[windows]]
    room = (np.floor(x[windows] / 3.0) * 7 + np.floor(z[windows] / 3.1) * 3).astype(np.int64) + tint[windows]
    material[windows] = np.where(room % 5 < 2 * light - 1, _LIT, _GLASS)
    material[~tall & outside] = _TERRAIN  # a hedge
    material[~outside] = _CEILING
    return np.asarray(material, np.uint8)


def _body(kind: NDArray[np.int64], size: Float32, x: Float32, y: Float32, z: Float32) -> NDArray[np.uint8]:
    """Return the material of points on boxes, in the boxes' own frames (x ahead)."""
    share = z / size[:, 2]
    vehicle = kind < KINDS.index("pedestrian")
    material = np.full(kind.shape, _BODY, np.uint8)
    material[~vehicle & (share < 0.48)] = _DARK
    material[~vehicle & (share > 0.84)] = _SKIN
    material[vehicle & (share < 0.2)] = _DARK
    material[vehicle & (share > 0.6) & (share < 0.93)] = _DARK
    end = np.abs(x) > size[:, 0] / 2 - 0.05
    lamp = vehicle & end & (share > 0.35) & (share < 0.6) & (np.abs(y) > size[:, 1] * 0.27)
    material[lamp & (x < 0)] = _TAIL
    material[lamp & (x > 0)] = _HEAD
    return material


def _soften(image: Float32, scene: Scene) -> None:
    """Blur each picture by its weather (drops on the lens), in place."""
    weight = np.array([_BLUR[AXES["weather"][i]] for i in scene.weather], np.float32)
    weight[scene.district == AXES["district"].index("tunnel")] *= 0.3
    for f in np.nonzero(weight > 0)[0]:
        p = image[f]
        p[1:-1, 1:-1] += weight[f] * ((p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:]) / 4 - p[1:-1, 1:-1])


def _precipitation(image: Float32, weather: str, rng: np.random.Generator) -> None:
    """Draw streaks of rain or flakes of snow, in place; `image` [frames, 64, 64, 3]."""
    n = {"clear": 0, "rain": 26, "snow": 46}[weather]
    if n == 0:
        return
    frame = np.arange(len(image))[:, None]
    row = rng.integers(0, HEIGHT - 4, (len(image), n))
    col = rng.integers(0, WIDTH - 1, (len(image), n))
    if weather == "rain":
        for step, strength in enumerate((0.10, 0.16, 0.12, 0.06)):
            image[frame, row + step, col] += strength
    else:
        size = rng.random((len(image), n, 1), dtype=np.float32)
        image[frame, row, col] += (0.92 - image[frame, row, col]) * (0.35 + 0.5 * size)
        image[frame, row, col + 1] += (0.92 - image[frame, row, col + 1]) * 0.5 * (size > 0.6)
