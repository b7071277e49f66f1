"""The crossing world's law in closed form: a cell and a seed give a Gaussian mixture over futures.

A future is the trajectory of three agents, float64 [3 agents, 2 coords, 24 steps], metres. Its latent is
the departure from driving on at constant velocity, in `latent_unit_m`, along the fixed orthonormal basis

    phi_k(i) = 2 / sqrt(2T+1) * sin((2k-1) pi i / (2T+1)),   k, i = 1..T = 24,

the eigenvectors of a random walk's covariance min(i, j): every mode vanishes at the initial state and is
free at the end. In it all covariances are diagonal, with standard deviation spread / (2k-1)^2 (a smooth
random change of speed) and a floor of jitter. Outcome j has probability softmax(logits)_j.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....catalogs.errors import DistdataError, nearest
from .world import AXES, DT_S, N_AGENTS, N_STEPS, WORLD, Motion, Outcome, Scenario, World

Floats = NDArray[np.float64]
LATENT_SHAPE = (N_AGENTS, 2, N_STEPS)
MAX_OUTCOMES = 4

STATE_KEYS = (
    "ego_speed",
    "actor_x",
    "actor_y",
    "actor_vx",
    "actor_vy",
    "other_x",
    "other_y",
    "other_vx",
    "pace",
    "side",
    "ego_accel",
)
"""What a seed's params must hold, as finite numbers: m, m/s, `side` +1 or -1, `ego_accel` m/s^2 (the control)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """The law of one seed's future in latent units.

    `names` [J]; `probs` float64 [J] sums to 1; `mean`, `std` float64 [J, 3, 2, 24] (modes last);
    `anchor_m` float64 [3, 2, 24], the constant-velocity continuation in metres, steps last.
    """

    names: tuple[str, ...]
    probs: Floats
    mean: Floats
    std: Floats
    anchor_m: Floats


@functools.cache
def basis() -> Floats:
    """Return the orthonormal modes, float64 [24 modes, 24 steps] (module text)."""
    n = 2 * N_STEPS + 1
    k = np.arange(1, N_STEPS + 1)[:, None]
    i = np.arange(1, N_STEPS + 1)[None, :]
    return np.asarray(2 / math.sqrt(n) * np.sin((2 * k - 1) * math.pi * i / n))


@functools.cache
def basis_rates() -> tuple[Floats, Floats]:
    """Return the modes' first and second time derivatives, float64 [24, 24] each, per s and per s^2."""
    n = 2 * N_STEPS + 1
    k = np.arange(1, N_STEPS + 1)[:, None]
    i = np.arange(1, N_STEPS + 1)[None, :]
    omega = (2 * k - 1) * math.pi / n / DT_S
    phase = omega * i * DT_S
    c = 2 / math.sqrt(n)
    return np.asarray(c * omega * np.cos(phase)), np.asarray(-c * omega**2 * np.sin(phase))


def times_s() -> Floats:
    """Return the 24 times of a trajectory's states, float64, seconds after the seed's state."""
    return np.asarray(np.arange(1, N_STEPS + 1) * DT_S, np.float64)


def check_request(
    axes: Mapping[str, str], scenario: str, params: Mapping[str, Any], world: World = WORLD
) -> str | None:
    """Say why a cell or seed is none of this world's, with the value and what is known; None when it is."""
    if scenario not in world.scenarios:
        return f"no scenario type {scenario!r}.{nearest(scenario, world.scenarios)}"
    for axis, values in AXES.items():
        if axes.get(axis) not in values:
            return f"axis {axis} is {axes.get(axis)!r}.{nearest(str(axes.get(axis)), values)}"
    for key in STATE_KEYS:
        value = params.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return f"params[{key!r}] is {value!r}; it must be a finite number"
    committed = params.get("committed")
    names = [o.name for o in world.scenarios[scenario].outcomes]
    if committed is not None and committed not in names:
        return f"params['committed'] is {committed!r}.{nearest(str(committed), names)}"
    return None


def factors(axes: Mapping[str, str], params: Mapping[str, Any], world: World = WORLD) -> dict[str, float]:
    """Return what moves the log-odds: three factors of the cell (interactions included), three of the seed.

    visibility, grip and busy are 0 in the clear; speed = (ego_speed - 9) / 2, gap = (actor_x - 20) / 8 and
    assertive = ego_accel (m/s^2) belong to the seed.
    """
    values = [axes[a] for a in AXES]
    found = {name: sum(table.get(v, 0.0) for v in values) for name, table in world.factors.items()}
    for name, a, b, add in world.pair_effects:
        if a in values and b in values:
            found[name] += add
    found["speed"] = (float(params["ego_speed"]) - 9.0) / 2.0
    found["gap"] = (float(params["actor_x"]) - 20.0) / 8.0
    found["assertive"] = float(params["ego_accel"])
    return found


def control_gain(axes: Mapping[str, str], world: World = WORLD) -> float:
    """Return the share of a commanded acceleration that the road gives back in this cell, in (0, 1]."""
    return math.prod(world.gains.get(axes[a], 1.0) for a in AXES)


def outcome_probabilities(
    axes: Mapping[str, str], scenario: str, params: Mapping[str, Any], world: World = WORLD
) -> dict[str, float]:
    """Return every outcome's exact probability under the mixture; a committed seed has one with 1.

    Raises:
        DistdataError: the cell or the params are none of this world's (see `check_request`).
    """
    reason = check_request(axes, scenario, params, world)
    if reason is not None:
        raise DistdataError(f"crossing: {reason}")
    outcomes = world.scenarios[scenario].outcomes
    committed = params.get("committed")
    if committed is not None:
        return {o.name: float(o.name == committed) for o in outcomes}
    f = factors(axes, params, world)
    logits = np.array([o.base + sum(w * f[name] for name, w in o.load.items()) for o in outcomes])
    e = np.exp(logits - logits.max())
    return dict(zip([o.name for o in outcomes], (e / e.sum()).tolist(), strict=True))


def mixture(axes: Mapping[str, str], scenario: str, params: Mapping[str, Any], world: World = WORLD) -> Mixture:
    """Return the law of one seed's future. Outcomes of probability 0 are left out.

    Raises:
        DistdataError: the cell or the params are none of this world's.
    """
    probs = outcome_probabilities(axes, scenario, params, world)
    kind = world.scenarios[scenario]
    live = [o for o in kind.outcomes if probs[o.name] > 0]
    gain = control_gain(axes, world)
    f = factors(axes, params, world)
    widen = 1.0 + sum(rate * max(0.0, -f[name]) for name, rate in world.widen.items())
    control = _mode_profile("brake", 0.0, 1.0)
    mean = np.stack([_mean(o, params, gain, control, world) for o in live])
    std = np.stack([_std(o, widen, world) for o in live])
    return Mixture(
        names=tuple(o.name for o in live),
        probs=np.array([probs[o.name] for o in live]),
        mean=mean,
        std=std,
        anchor_m=_anchor(params),
    )


def decode(latent: Floats, anchor_m: Floats, world: World = WORLD) -> Floats:
    """Turn latents [..., 3, 2, 24 modes] into trajectories in metres, [..., 3, 2, 24 steps]."""
    return np.asarray(anchor_m + world.latent_unit_m * (latent @ basis()))


def agents_of(scenario: str, world: World = WORLD) -> tuple[str, str]:
    """Return the kinds of the actor and of the other road user."""
    kind: Scenario = world.scenarios[scenario]
    return kind.actor, kind.other


def _anchor(params: Mapping[str, Any]) -> Floats:
    p = {key: float(params[key]) for key in STATE_KEYS}
    start = np.array([[0.0, 0.0], [p["actor_x"], p["actor_y"]], [p["other_x"], p["other_y"]]])
    speed = np.array([[p["ego_speed"], 0.0], [p["actor_vx"], p["actor_vy"]], [p["other_vx"], 0.0]])
    return np.asarray(start[:, :, None] + speed[:, :, None] * times_s())


def _mean(outcome: Outcome, params: Mapping[str, Any], gain: float, control: Floats, world: World) -> Floats:
    mean = np.zeros(LATENT_SHAPE)
    mean[0, 0] = gain * float(params["ego_accel"]) * control
    side = float(params["side"])
    scales = {"one": 1.0, "side": side, "stride": side * float(params["pace"]), "grip": gain}
    for m in outcome.motions:
        mean[m.agent, m.coord] += m.size * scales[m.scale] * _mode_profile(m.kind, m.start_s, m.duration_s)
    return mean / world.latent_unit_m


def _std(outcome: Outcome, widen: float, world: World) -> Floats:
    modes = 1.0 / (2 * np.arange(1, N_STEPS + 1) - 1.0) ** 2
    smooth = np.array(outcome.spread_m).reshape(N_AGENTS, 2, 1) * widen / world.latent_unit_m * modes
    return np.asarray(np.sqrt(smooth**2 + world.floor_std**2))


@functools.cache
def _mode_profile(kind: str, start_s: float, duration_s: float) -> Floats:
    """Return a motion profile of size 1 in modes, float64 [24], metres (see `world.Motion`)."""
    return profile(Motion(agent=0, coord=0, kind=kind, size=1.0, start_s=start_s, duration_s=duration_s)) @ basis().T


def profile(motion: Motion) -> Floats:
    """Return the displacement over the 24 steps that a motion plans, scale left out, float64 [24], metres."""
    t = np.maximum(times_s() - motion.start_s, 0.0)
    u = np.minimum(t / motion.duration_s, 1.0)
    shapes = {
        "ramp": motion.duration_s * u * u / 2 + (t - u * motion.duration_s),
        "shift": u * u * (3 - 2 * u),
        "bump": np.sin(math.pi * u) ** 2,
        "brake": t * t / 2,
    }
    return np.asarray(motion.size * shapes[motion.kind])
