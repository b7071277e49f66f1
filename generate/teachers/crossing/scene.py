"""What stands around the ego, and where a ray meets it: the one geometry that camera and lidar share.

Ground plane, two rows of buildings (or a tunnel's walls and ceiling) and one oriented box per road user.
All arrays are float32; F counts frames (requests x sensor frames), R rays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .world import AXES

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

SIZES_M: Mapping[str, tuple[float, float, float]] = {
    "car": (4.4, 1.85, 1.5),
    "parked_car": (4.4, 1.85, 1.5),
    "van": (5.2, 2.0, 2.4),
    "pedestrian": (0.5, 0.6, 1.75),
    "cyclist": (1.7, 0.6, 1.75),
    "animal": (1.5, 0.5, 1.25),
}
"""Length, width and height of a road user's box."""
KINDS: tuple[str, ...] = tuple(SIZES_M)

WALL_Y_M = {"residential": (-8.0, 11.5), "downtown": (-5.6, 9.4), "tunnel": (-3.2, 6.8)}
"""Where the right and left rows of buildings stand."""
CEILING_M = 5.2
BLOCK_M = 12.0
N_BLOCKS = 64
"""Buildings repeat after 64 blocks of 12 m, far beyond a rollout."""

SKY, GROUND, WALL, CEILING, ACTOR, OTHER = range(6)
"""What a ray met."""
FAR_M = np.float32(1e4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """F frames of the world as seen from the ego.

    `ego` float32 [F, 3]: x, y in metres and yaw in radians; `boxes` float32 [F, 2, 3]: the same of actor
    and other; `sizes` float32 [F, 2, 3] metres; `kinds` int [F, 2] into `KINDS`; `weather`, `light`,
    `district` int [F] into `AXES`; `heights` float32 [F, 2, 64] of the right and left buildings;
    `tints` int [F, 2, 64] in 0..3; `crosswalk_x` float32 [F], far away where there is none.
    """

    ego: Float32
    boxes: Float32
    sizes: Float32
    kinds: Int64
    weather: Int64
    light: Int64
    district: Int64
    heights: Float32
    tints: Int64
    crosswalk_x: Float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Hits:
    """Where the rays end: all [F, R].

    `t`: multiples of the ray's direction (FAR_M for the sky); `surface`: uint8; `x`, `y`, `z`: metres in
    the world for static surfaces and in the box's own frame (centre on the ground) for boxes.
    """

    t: Float32
    surface: NDArray[np.uint8]
    x: Float32
    y: Float32
    z: Float32


def buildings(street: int, district: str) -> tuple[Float32, Int64]:
    """Return heights float32 [2, 64] in metres and tints int [2, 64] of a street's two rows.

    Deterministic in `street`: an integer hash, the same on every machine.
    """
    i = np.arange(2 * N_BLOCKS, dtype=np.uint64)
    offset = street * 0xD1B54A32D192ED03 % 2**64
    h = (i + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(offset)
    h ^= h >> np.uint64(29)
    h *= np.uint64(0xBF58476D1CE4E5B9)
    h ^= h >> np.uint64(32)
    u = (h >> np.uint64(40)).astype(np.float32) / np.float32(2**24)
    tints = (h & np.uint64(3)).astype(np.int64)
    if district == "tunnel":
        heights = np.full(2 * N_BLOCKS, CEILING_M, np.float32)
        tints = np.zeros(2 * N_BLOCKS, np.int64)
    elif district == "downtown":
        heights = (9 + 17 * u).astype(np.float32)
    else:
        heights = np.where(u < 0.3, np.float32(1.0), 3.5 + 4 * u).astype(np.float32)  # 1 m: a hedge
    return heights.reshape(2, N_BLOCKS), tints.reshape(2, N_BLOCKS)


def cast(scene: Scene, rays: Float32, mount_m: float) -> Hits:
    """Send `rays` [R, 3] (directions in the ego's frame: ahead, left, up) from `mount_m` above each ego."""
    height_m = np.float32(mount_m)
    c, s = np.cos(scene.ego[:, 2:3]), np.sin(scene.ego[:, 2:3])
    dx = np.asarray(c * rays[:, 0] - s * rays[:, 1], np.float32)
    dy = np.asarray(s * rays[:, 0] + c * rays[:, 1], np.float32)
    dz = rays[:, 2]
    ex, ey = scene.ego[:, 0:1], scene.ego[:, 1:2]
    down = np.where(dz < -1e-6, -height_m / np.where(dz < -1e-6, dz, -1.0), FAR_M).astype(np.float32)
    up = np.where(dz > 1e-6, (CEILING_M - height_m) / np.where(dz > 1e-6, dz, 1.0), FAR_M).astype(np.float32)

    t = np.broadcast_to(down, dx.shape).copy()
    surface = np.broadcast_to(np.where(down < FAR_M, GROUND, SKY).astype(np.uint8), dx.shape).copy()
    t_wall, wall_hit = _walls(scene, dx, dy, dz, ex, ey, height_m)
    wall_hit &= t_wall < t
    np.copyto(t, t_wall, where=wall_hit)
    surface[wall_hit] = WALL
    tunnels = (scene.district == AXES["district"].index("tunnel"))[:, None]
    ceiling_hit = tunnels & (up < t)
    np.copyto(t, np.broadcast_to(up, t.shape), where=ceiling_hit)
    surface[ceiling_hit] = CEILING

    x, y, z = ex + t * dx, ey + t * dy, height_m + t * dz
    for b in range(2):
        _box(scene, b, rays, height_m, t, surface, x, y, z)
    return Hits(t=t, surface=surface, x=x, y=y, z=z)


def _walls(
    scene: Scene, dx: Float32, dy: Float32, dz: Float32, ex: Float32, ey: Float32, height_m: np.float32
) -> tuple[Float32, NDArray[np.bool_]]:
    """Return where each ray meets the plane of its side's buildings, and whether one stands there."""
    places = np.array([WALL_Y_M[d] for d in AXES["district"]], np.float32)[scene.district]
    left = dy > 0
    gap = np.where(left, places[:, 1:2], places[:, 0:1]) - ey
    safe = np.where(np.abs(dy) > 1e-6, dy, np.float32(1e-6))
    t = np.minimum(gap / safe, FAR_M)
    t = np.asarray(np.where(t > 0, t, FAR_M), np.float32)
    block = block_of(np.asarray(ex + t * dx, np.float32))
    row = (np.arange(len(dx))[:, None] * 2 + left) * N_BLOCKS + block
    stands = height_m + t * dz < scene.heights.ravel().take(row)
    return t, stands & (t < FAR_M)


def block_of(x: Float32) -> Int64:
    """Return the index in 0..63 of the building beside `x` metres."""
    return np.asarray(np.floor(x / BLOCK_M).astype(np.int64) & (N_BLOCKS - 1))


def _box(
    scene: Scene,
    b: int,
    rays: Float32,
    height_m: np.float32,
    t: Float32,
    surface: NDArray[np.uint8],
    x: Float32,
    y: Float32,
    z: Float32,
) -> None:
    """Let the rays end on box `b` where it is nearer (slab test in the box's frame); changes the arrays in place."""
    f, r = _candidates(scene, b, rays)
    turn = scene.ego[:, 2] - scene.boxes[:, b, 2]
    c, s = np.cos(turn)[f], np.sin(turn)[f]
    cb, sb = np.cos(scene.boxes[:, b, 2]), np.sin(scene.boxes[:, b, 2])
    ox, oy = (scene.ego[:, :2] - scene.boxes[:, b, :2]).T
    ray = rays[r]
    origin = ((cb * ox + sb * oy)[f], (cb * oy - sb * ox)[f], height_m)
    direction = (c * ray[:, 0] - s * ray[:, 1], s * ray[:, 0] + c * ray[:, 1], ray[:, 2])
    size = scene.sizes[f, b]
    low, high = (-size[:, 0] / 2, -size[:, 1] / 2, 0.0), (size[:, 0] / 2, size[:, 1] / 2, size[:, 2])
    near, far = np.zeros(len(f), np.float32), t[f, r]
    for axis in range(3):
        inverse = 1 / np.where(np.abs(direction[axis]) > 1e-6, direction[axis], np.float32(1e-6))
        a, e = (low[axis] - origin[axis]) * inverse, (high[axis] - origin[axis]) * inverse
        np.maximum(near, np.minimum(a, e), out=near)
        np.minimum(far, np.maximum(a, e), out=far)
    hit = np.flatnonzero((near < far) & (near > 0))
    f, r, reached = f[hit], r[hit], near[hit]
    t[f, r] = reached
    surface[f, r] = ACTOR + b
    x[f, r] = origin[0][hit] + reached * direction[0][hit]
    y[f, r] = origin[1][hit] + reached * direction[1][hit]
    z[f, r] = height_m + reached * direction[2][hit]


def _candidates(scene: Scene, b: int, rays: Float32) -> tuple[Int64, Int64]:
    """Return frame and ray of every ray whose bearing lies between those of the box's corners."""
    signs = np.array([(-0.5, -0.5), (-0.5, 0.5), (0.5, -0.5), (0.5, 0.5)], np.float32)
    corners = scene.sizes[:, b, None, :2] * signs
    c, s = np.cos(scene.boxes[:, b, 2:3]), np.sin(scene.boxes[:, b, 2:3])
    dx = scene.boxes[:, b, 0:1] - scene.ego[:, 0:1] + c * corners[..., 0] - s * corners[..., 1]
    dy = scene.boxes[:, b, 1:2] - scene.ego[:, 1:2] + s * corners[..., 0] + c * corners[..., 1]
    c, s = np.cos(scene.ego[:, 2:3]), np.sin(scene.ego[:, 2:3])
    ahead, left = c * dx + s * dy, c * dy - s * dx
    seen = ahead > 0.05
    bearing = left / np.where(seen, ahead, np.float32(1.0))
    far = np.float32(1e3)
    lowest = np.where(seen, bearing, far).min(1)
    highest = np.where(seen, bearing, -far).max(1)
    beside = seen.any(1) & ~seen.all(1)  # a corner beside or behind: open towards its side
    lowest[beside & ~(left > 0).all(1)] = -far
    highest[beside & ~(left < 0).all(1)] = far
    slope = rays[:, 1] / rays[:, 0]
    inside = (slope >= lowest[:, None] - 1e-3) & (slope <= highest[:, None] + 1e-3)
    f, r = np.divmod(np.flatnonzero(inside), len(rays))
    return f, r
