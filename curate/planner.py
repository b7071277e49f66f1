"""A closed-loop planner: it drives the ego's lane through the futures that a model drew for everyone else.

The Intelligent Driver Model (Treiber, Hennecke and Helbing, Phys. Rev. E 62, 1805 (2000), equations 2 and 3) follows
whoever is ahead in the lane:

    s* = s0 + max(0, v T + v dv / (2 sqrt(a b))),    dv/dt = a (1 - (v / v0)^4 - (s* / s)^2)

with speed v, closing speed dv and gap s from bumper to bumper. It was made for followers; where somebody steps into the
lane, an emergency brake demands at least what stops the closing within the gap less half a metre, dv^2 / (2 (s -
0.5)). The demand is noted as it is and carried out up to what tyres give. The others don't react: they are what is
being judged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

GAP_CAP_M = 30.0
"""The gap where nobody is in the lane ahead, and the most it is given as.

The model's driver, at a town's 50 km/h, wants 24 m (s0 + v T) behind who drives as fast: what lies beyond matters
little, and one road user more or less at the end of the street would drown what does.
"""
TTC_CAP_S = 10.0
"""The time to collision where nothing closes in, and the most it is given as."""
_LEAST_GAP_M = 0.1  # keeps demands finite where agents overlap


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """How the planner drives: the paper's table I, but the desired speed of a town.

    `desired_mps` v0, `headway_s` T, `accel_mps2` a, `brake_mps2` b (comfortable), `standstill_m` s0; `most_brake_mps2`
    is what tyres give, `hard_brake_mps2` the demand from which a braking is called hard, `margin_m` the room that it
    wants on either side before it calls somebody out of its lane.
    """

    desired_mps: float = 50 / 3.6
    headway_s: float = 1.6
    accel_mps2: float = 0.73
    brake_mps2: float = 1.67
    standstill_m: float = 2.0
    most_brake_mps2: float = 8.0
    hard_brake_mps2: float = 4.0
    margin_m: float = 0.3
    length_m: float = 4.4
    width_m: float = 1.85


@dataclass(frozen=True, slots=True, kw_only=True)
class Drive:
    """How the planner fared in B futures, float64 [B] each.

    `min_gap_m` in [0, 30], 0 is a collision; `most_brake_mps2` the largest demand, 0 where none; `progress_m` the way
    driven; `min_ttc_s` in [0, 10]. All nan where a future holds a value that is not finite.
    """

    min_gap_m: Floats
    most_brake_mps2: Floats
    progress_m: Floats
    min_ttc_s: Floats


def idm_acceleration(speed: Floats, gap: Floats, closing: Floats, driver: Driver) -> Floats:
    """Return the model's acceleration in m/s^2 (see the module's text); a `gap` of infinity is a free road."""
    d = driver
    dynamic = speed * d.headway_s + speed * closing / (2 * math.sqrt(d.accel_mps2 * d.brake_mps2))
    wanted = d.standstill_m + np.maximum(0.0, dynamic)
    return np.asarray(d.accel_mps2 * (1 - (speed / d.desired_mps) ** 4 - (wanted / np.maximum(gap, _LEAST_GAP_M)) ** 2))


def demanded(speed: Floats, gap: Floats, closing: Floats, driver: Driver) -> Floats:
    """Return the acceleration that the planner asks for: the model's, or the emergency brake's where that is lower."""
    room = np.maximum(gap - 0.5, _LEAST_GAP_M)
    needed = np.where(closing > 0, closing**2 / (2 * room), 0.0)
    calm = idm_acceleration(speed, gap, closing, driver)
    return np.where(needed > driver.brake_mps2, np.minimum(calm, -needed), calm)


def drive(
    positions: Floats, velocities: Floats, sizes: Floats, start: Floats, speed: Floats, dt_s: float, driver: Driver
) -> Drive:
    """Drive through B futures of N agents, in steps of `dt_s`.

    `positions`, `velocities` [B, T, N, 2] of the others, x along the lane; `sizes` [B, N, 2] their length and width;
    `start` [B, 2] the ego's centre at the first step, `speed` [B] its speed. Who is beside or behind is nobody's
    leader. Within a step the acceleration is constant, and nobody reverses.
    """
    n_steps = positions.shape[1]
    at, v = start[:, 0].copy(), speed.copy()
    least_gap, least_ttc = np.full(len(v), GAP_CAP_M), np.full(len(v), TTC_CAP_S)
    most = np.zeros(len(v))
    for step in range(n_steps):
        gap, closing = _leader(positions[:, step], velocities[:, step], sizes, at, start[:, 1], v, driver)
        least_gap = np.minimum(least_gap, np.maximum(gap, 0.0))
        nears = closing > 0
        ttc = np.where(nears, np.maximum(gap, 0.0) / np.where(nears, closing, 1.0), TTC_CAP_S)
        least_ttc = np.minimum(least_ttc, ttc)
        wish = demanded(v, gap, closing, driver)
        most = np.maximum(most, -wish)
        if step < n_steps - 1:
            a = np.maximum(wish, -driver.most_brake_mps2)
            # who would pass through standstill within the step stops there
            moving_s = np.where(a < 0, np.minimum(dt_s, v / np.where(a < 0, -a, 1.0)), dt_s)
            at += v * moving_s + a * moving_s**2 / 2
            v = np.maximum(0.0, v + a * moving_s)
    found = np.stack([least_gap, most, at - start[:, 0], least_ttc])
    finite = np.isfinite(positions).all((1, 2, 3)) & np.isfinite(velocities).all((1, 2, 3)) & np.isfinite(speed)
    found[:, ~(finite & np.isfinite(start).all(1))] = math.nan
    return Drive(min_gap_m=found[0], most_brake_mps2=found[1], progress_m=found[2], min_ttc_s=found[3])


def _leader(
    positions: Floats, velocities: Floats, sizes: Floats, at: Floats, lane_y: Floats, speed: Floats, driver: Driver
) -> tuple[Floats, Floats]:
    """Return the gap to the nearest agent in the lane ahead (infinity where there is none) and the closing speed."""
    ahead = positions[..., 0] - at[:, None]
    reach = (driver.width_m + sizes[..., 1]) / 2 + driver.margin_m
    in_lane = (np.abs(positions[..., 1] - lane_y[:, None]) < reach) & (ahead > 0)
    gaps = np.where(in_lane, ahead - (driver.length_m + sizes[..., 0]) / 2, math.inf)
    if gaps.shape[1] == 0:
        return np.full(len(at), math.inf), np.zeros(len(at))
    nearest = gaps.argmin(1)
    row = np.arange(len(at))
    gap = gaps[row, nearest]
    closing = np.where(np.isfinite(gap), speed - velocities[row, nearest, 0], 0.0)
    return gap, closing
