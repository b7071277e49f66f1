"""Coherence: by how many metres the lidar's road users stand beside those that the camera shows.

Computed from the two sensors and their calibration alone. Road users are the lidar's bright returns (range-corrected
intensity above 0.5: paint, plates and clothing against asphalt and walls); neighbouring beams of one range are one road
user. Moved by (ahead, left) metres and projected into the picture, its returns say where its outline must be: the foot
at the height of the road below each return, the sides half a beam beyond the outermost ones. At a foot the picture gets
brighter downwards, since nothing on a road is darker than the shade under who stands on it (Tzomakas and von Seelen,
1998); at a side it changes in any way. The movement under which these edges are strongest, summed over all frames and
road users, is what the lidar is off by, with its sign turned. The search goes over `left`, then `ahead`, then `left`
again, each along a grid with a parabola through the best point.

- `coherence_m`: length of the offset, in [0, 1.93] (what is searched); about 0.15 m on coherent bundled records,
  nearly all of it ahead, where one pixel is up to a metre.
- `coherence_ahead_m` in [-1.5, 1.5], `coherence_left_m` in [-1.2, 1.2]: its parts, positive where the lidar's road
  user is farther, or more to the left.

None where no road user is seen between 3 and 45 m in any frame, or the record has no camera, lidar or calibration.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from .seed_view import SeedView

Floats = NDArray[np.float64]

MEMBERS: tuple[str, ...] = ()
OPTIONAL: tuple[str, ...] = ("cam_front.npy", "lidar.npz", "calib.json")
KINDS: tuple[str, ...] = ("rollout",)
COLUMNS: Mapping[str, type[pl.DataType]] = {
    "coherence_m": pl.Float64,
    "coherence_ahead_m": pl.Float64,
    "coherence_left_m": pl.Float64,
}
AHEAD_M: Floats = np.arange(-12, 13) / 8
LEFT_M: Floats = np.arange(-12, 13) / 10
BRIGHT = 0.5
NEAR_M, FAR_M = 3.0, 45.0
BEAM_DEG = 1.0
"""Beams' spacing, where the calibration's ``lidar`` has no ``azimuth_step_deg``."""
_APART_M = 2.0
_SIDE_HEIGHTS_M: Floats = np.linspace(0.05, 1.1, 8)
_FOOT_WEIGHT = 3.0  # one row against the eight of each side


@dataclass(frozen=True, slots=True, kw_only=True)
class Lens:
    """The pinhole and the heights of both sensors above the road, from ``calib.json``."""

    focal_px: float
    column: float
    row: float
    camera_m: float
    lidar_m: float
    range_m: float
    beam_deg: float

    @classmethod
    def of(cls, calibration: Mapping[str, Any]) -> Lens:
        """Read a calibration with ``camera`` (focal_px, centre_px, mount_m) and ``lidar`` (mount_m, range_m)."""
        camera, lidar = calibration["camera"], calibration["lidar"]
        column, row = camera["centre_px"]
        return cls(
            focal_px=float(camera["focal_px"]),
            column=float(column),
            row=float(row),
            camera_m=float(camera["mount_m"][2]),
            lidar_m=float(lidar["mount_m"][2]),
            range_m=float(lidar["range_m"]),
            beam_deg=float(lidar.get("azimuth_step_deg", BEAM_DEG)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlines:
    """All road users of a record's frames.

    Feet: `foot_xy` [P, 2] metres, `foot_frame` [P], `foot_weight` [P] (a road user's feet share one weight). Sides:
    `side_xy` [S, 2], `side_frame` [S], `side_px` [S] half a beam's columns, right positive.
    """

    foot_xy: Floats
    foot_frame: NDArray[np.int64]
    foot_weight: Floats
    side_xy: Floats
    side_frame: NDArray[np.int64]
    side_px: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Edges:
    """Differences between neighbouring pixels, over the brightness of the road in each frame, float64.

    `down` [F, H - 1, W]: how much brighter the next row is; `across` [F, H, W - 1]: change of colour to the next
    column, without sign.
    """

    down: Floats
    across: Floats


def columns(members: Mapping[str, Any], seed: SeedView) -> dict[str, float | None]:  # noqa: ARG001
    """Return the three columns of one rollout."""
    pictures, lidar, calibration = (members.get(name) for name in OPTIONAL)
    if pictures is None or lidar is None or calibration is None or "camera" not in calibration:
        return dict.fromkeys(COLUMNS)
    found = offset_m(pictures, lidar, Lens.of(calibration))
    if found is None:
        return dict.fromkeys(COLUMNS)
    ahead, left = found
    return {"coherence_m": math.hypot(ahead, left), "coherence_ahead_m": ahead, "coherence_left_m": left}


def offset_m(pictures: NDArray[np.uint8], lidar: Mapping[str, NDArray[Any]], lens: Lens) -> tuple[float, float] | None:
    """Return by how much the lidar is ahead of and left of the camera; None where there is nothing to compare.

    `pictures` uint8 [F, H, W, 3]; `lidar`: xyz, intensity, offsets [F + 1].
    """
    outlines = find_outlines(lidar, lens)
    if outlines is None:
        return None
    edges = find_edges(pictures)
    left = _peak(LEFT_M, strength(edges, outlines, lens, np.zeros(len(LEFT_M)), LEFT_M))
    ahead = _peak(AHEAD_M, strength(edges, outlines, lens, AHEAD_M, np.full(len(AHEAD_M), left)))
    left = _peak(LEFT_M, strength(edges, outlines, lens, np.full(len(LEFT_M), ahead), LEFT_M))
    return -ahead, -left


def find_outlines(lidar: Mapping[str, NDArray[Any]], lens: Lens) -> Outlines | None:
    """Return the road users that the lidar sees, None where it sees none in any frame."""
    offsets = lidar["offsets"]
    feet: list[Floats] = []
    sides: list[tuple[float, float, int, float]] = []
    frames: list[int] = []
    for frame in range(len(offsets) - 1):
        part = slice(offsets[frame], offsets[frame + 1])
        for user in _road_users(lidar["xyz"][part].astype(np.float64), lidar["intensity"][part], lens):
            feet.append(user)
            frames.append(frame)
            for (x, y, _), outward in ((user[0], 1.0), (user[-1], -1.0)):  # bearings grow to the left
                half = math.radians(lens.beam_deg / 2) * lens.focal_px * (1 + (y / x) ** 2)
                sides.append((x, y, frame, outward * half))
    if not feet:
        return None
    counts = np.array([len(user) for user in feet])
    side = np.array(sides)
    return Outlines(
        foot_xy=np.concatenate(feet)[:, :2],
        foot_frame=np.repeat(np.array(frames), counts),
        foot_weight=np.repeat(_FOOT_WEIGHT / counts, counts),
        side_xy=side[:, :2],
        side_frame=side[:, 2].astype(np.int64),
        side_px=side[:, 3],
    )


def _road_users(xyz: Floats, intensity: NDArray[np.float32], lens: Lens) -> Iterator[Floats]:
    """Yield each road user's nearest return per beam, [beams, 3], from right to left."""
    reach = np.sqrt(xyz[:, 0] ** 2 + xyz[:, 1] ** 2 + (xyz[:, 2] - lens.lidar_m) ** 2)
    bright = intensity * np.exp(reach / lens.range_m) > BRIGHT
    xyz = xyz[bright & (xyz[:, 0] > NEAR_M) & (reach < FAR_M)]
    if not len(xyz):
        return
    beam = np.round(np.degrees(np.arctan2(xyz[:, 1], xyz[:, 0])) / lens.beam_deg).astype(np.int64)
    order = np.lexsort((xyz[:, 0], beam))
    xyz, beam = xyz[order], beam[order]
    nearest = np.concatenate([[True], beam[1:] != beam[:-1]])
    xyz, beam = xyz[nearest], beam[nearest]
    jumps = (np.diff(beam) > 2) | (np.abs(np.diff(np.hypot(xyz[:, 0], xyz[:, 1]))) > _APART_M)
    yield from np.split(xyz, np.flatnonzero(jumps) + 1)


def find_edges(pictures: NDArray[np.uint8]) -> Edges:
    """Return the edges of pictures, uint8 [F, H, W, 3]."""
    image = pictures.astype(np.float64) / 255
    grey = image.mean(-1)
    road = grey[:, grey.shape[1] * 5 // 8 :].mean((1, 2)) + 0.03  # at night an edge is as good as by day
    return Edges(
        down=(grey[:, 1:] - grey[:, :-1]) / road[:, None, None],
        across=np.abs(image[:, :, 1:] - image[:, :, :-1]).mean(-1) / road[:, None, None],
    )


def strength(edges: Edges, outlines: Outlines, lens: Lens, ahead: Floats, left: Floats) -> Floats:
    """Return how strong the picture's edges are along the outlines moved by (ahead, left), float64 [candidates]."""
    o = outlines
    x, y = o.foot_xy[:, 0] + ahead[:, None], o.foot_xy[:, 1] + left[:, None]
    column, row = lens.column - lens.focal_px * y / x, lens.row + lens.focal_px * lens.camera_m / x
    feet = _between(edges.down, o.foot_frame, row - 0.5, column) @ o.foot_weight
    x, y = o.side_xy[:, 0] + ahead[:, None], o.side_xy[:, 1] + left[:, None]
    column = lens.column - lens.focal_px * y / x + o.side_px
    rows = lens.row + lens.focal_px * (lens.camera_m - _SIDE_HEIGHTS_M) / x[..., None]
    sides = _between(edges.across, o.side_frame[:, None], rows, column[..., None] - 0.5)
    return np.asarray(feet + sides.mean(-1).sum(-1))


def _between(image: Floats, frame: NDArray[np.int64], row: Floats, column: Floats) -> Floats:
    """Return the image's values between its pixels (bilinear), 0 outside of it."""
    height, width = image.shape[1:]
    row, column = np.broadcast_arrays(row, column)
    inside = (row >= 0) & (row < height - 1) & (column >= 0) & (column < width - 1)
    v, u = np.where(inside, row, 0.0), np.where(inside, column, 0.0)
    v0, u0 = v.astype(np.int64), u.astype(np.int64)
    a, b = v - v0, u - u0
    at = (frame * height + v0) * width + u0
    flat = image.ravel()
    above = (1 - b) * flat.take(at) + b * flat.take(at + 1)
    below = (1 - b) * flat.take(at + width) + b * flat.take(at + width + 1)
    return np.where(inside, (1 - a) * above + a * below, 0.0)


def _peak(grid: Floats, value: Floats) -> float:
    """Return where the parabola through the largest value and its neighbours is highest; an end stays an end."""
    i = int(value.argmax())
    if i in (0, len(grid) - 1):
        return float(grid[i])
    before, at, after = value[i - 1 : i + 2]
    bend = before - 2 * at + after
    shift = 0.5 * (before - after) / bend if bend < 0 else 0.0
    return float(grid[i] + (grid[1] - grid[0]) * shift)
