"""The lidar: five rings ahead of the ego, returns thinned and roughened by the weather."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .scene import SKY, Float32, Scene, cast
from .world import AXES

MOUNT_M = 1.7
RANGE_M = 60.0
ELEVATIONS_DEG = (-4.0, -2.2, -1.0, 0.0, 1.5)
AZIMUTHS_DEG = tuple(float(a) for a in range(-45, 46))
RANGE_NOISE_M = {"clear": 0.02, "rain": 0.04, "snow": 0.06}
_LOSS_PER_M = {"clear": 0.0005, "rain": 0.005, "snow": 0.009}
_REFLECTIVITY = (0.0, 0.18, 0.40, 0.35, 0.75, 0.65)  # by surface: sky, ground, wall, ceiling, actor, other


@functools.cache
def rays() -> Float32:
    """Return the beams' unit directions in the ego's frame, float32 [455, 3], ring by ring from the right."""
    beams = [
        (math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e))
        for e in (math.radians(d) for d in ELEVATIONS_DEG)
        for a in (math.radians(d) for d in AZIMUTHS_DEG)
    ]
    return np.array(beams, np.float32)


def scan(scene: Scene, rngs: Sequence[np.random.Generator]) -> list[dict[str, NDArray[Any]]]:
    """Return each request's returns; each generator serves an equal share of the frames.

    `xyz` float32 [N, 3], metres in the ego's frame at the scan, z above the ground; `intensity` float32
    [N] in [0, 1]; `offsets` int32 [n + 1]: scan i holds the points offsets[i] to offsets[i + 1].
    """
    hits = cast(scene, rays(), MOUNT_M)
    per_request = len(hits.t) // len(rngs)
    reflectivity = np.array(_REFLECTIVITY, np.float32)[hits.surface]
    found: list[dict[str, NDArray[Any]]] = []
    for i, rng in enumerate(rngs):
        part = slice(i * per_request, (i + 1) * per_request)
        weather = AXES["weather"][int(scene.weather[i * per_request])]
        t = hits.t[part]
        lost = rng.random(t.shape, dtype=np.float32) < 1 - np.exp(-_LOSS_PER_M[weather] * t)
        noise = rng.standard_normal(t.shape, dtype=np.float32) * np.float32(RANGE_NOISE_M[weather])
        keep = (t < RANGE_M) & (hits.surface[part] != SKY) & ~lost
        frame, beam = np.nonzero(keep)
        reach = (t + noise)[frame, beam]
        xyz = reach[:, None] * rays()[beam]
        xyz[:, 2] += MOUNT_M
        offsets = np.zeros(per_request + 1, np.int32)
        np.cumsum(np.bincount(frame, minlength=per_request), out=offsets[1:])
        intensity = reflectivity[part][frame, beam] * np.exp(-reach / 60)
        found.append({"xyz": xyz, "intensity": intensity.astype(np.float32), "offsets": offsets})
    return found
