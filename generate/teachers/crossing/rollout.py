"""From trajectories to the record of a rollout: poses, actions, agents, camera, lidar, latent, conditions, meta."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....catalogs.protocol import Member, MemberSpec, Request
from . import camera, lidar
from .conditions import conditions
from .law import LATENT_SHAPE, agents_of, basis_rates, control_gain
from .scene import KINDS, SIZES_M, Scene, buildings
from .world import AXES, DT_S, N_AGENTS, N_STEPS, World

SENSOR_STEPS = (3, 7, 11, 15, 19, 23)
"""The trajectory's steps at which camera and lidar look: every 0.4 s."""
MEMBERS = {
    "cam_front.npy": MemberSpec(dtype="uint8", shape=(len(SENSOR_STEPS), camera.HEIGHT, camera.WIDTH, 3)),
    "pose.npy": MemberSpec(dtype="float32", shape=(N_STEPS, 7)),
    "action.npy": MemberSpec(dtype="float32", shape=(N_STEPS, 2)),
    "agents.npy": MemberSpec(dtype="float32", shape=(N_STEPS, N_AGENTS, 4)),
    "latent.npy": MemberSpec(dtype="float32", shape=LATENT_SHAPE),
    "cond.npy": MemberSpec(dtype="float32", shape=(None,)),  # its length is the world's
}
WHEELBASE_M = 2.7
_SMOOTH_MODES = 6
"""Rates come from the slow modes: differences of positions would show the jitter only."""
_CHUNK = 2
"""Requests rendered at once: their pictures stay in the cache."""

CALIBRATION: dict[str, Any] = {
    "camera": {
        "model": "pinhole",
        "width": camera.WIDTH,
        "height": camera.HEIGHT,
        "focal_px": camera.FOCAL_PX,
        "centre_px": list(camera.CENTRE_PX),
        "mount_m": [0.0, 0.0, camera.MOUNT_M],
    },
    "lidar": {
        "mount_m": [0.0, 0.0, lidar.MOUNT_M],
        "range_m": lidar.RANGE_M,
        "elevations_deg": list(lidar.ELEVATIONS_DEG),
    },
    "frame": "ego: x ahead, y left, z up from the ground; world: the ego's frame at the seed's initial state",
    "sensor_steps": list(SENSOR_STEPS),
    "dt_s": DT_S,
}


def rollout_members(
    trajectories: NDArray[np.float64],
    latents: NDArray[np.float64],
    outcomes: Sequence[str],
    responsibilities: NDArray[np.float64],
    requests: Sequence[Request],
    world: World,
) -> list[dict[str, Member]]:
    """Return the members of each request's record.

    `trajectories` float64 [B, 3, 2, 24], metres; `latents` [B, 3, 2, 24]. The sensors' noise comes from the
    request's own random seed, so that a record does not depend on its batch.
    """
    velocity, acceleration = rates(trajectories, latents, requests, world)
    heading = np.arctan2(velocity[:, :, 1], np.maximum(velocity[:, :, 0], 0.5))[:, 0]
    actions = _actions(velocity[:, 0], acceleration[:, 0], heading)
    told = conditions(requests, world)
    found: list[dict[str, Member]] = []
    for start in range(0, len(requests), _CHUNK):
        part = slice(start, start + _CHUNK)
        rngs = [np.random.Generator(np.random.Philox(r.rng_seed)) for r in requests[part]]
        view = scene(trajectories[part], velocity[part], heading[part], requests[part], world)
        pictures = camera.take_pictures(view, rngs).reshape(-1, *MEMBERS["cam_front.npy"].shape)
        for picture, points in zip(pictures, lidar.scan(view, rngs), strict=True):
            found.append({"cam_front.npy": np.array(picture), "lidar.npz": points})
    for i, (members, request) in enumerate(zip(found, requests, strict=True)):
        members["pose.npy"] = _poses(trajectories[i, 0], heading[i])
        members["action.npy"] = actions[i]
        state = np.concatenate([trajectories[i], velocity[i]], axis=1)
        members["agents.npy"] = np.ascontiguousarray(state.transpose(2, 0, 1), dtype=np.float32)
        members["latent.npy"] = latents[i].astype(np.float32)
        members["cond.npy"] = told[i]
        members["calib.json"] = CALIBRATION
        members["meta.json"] = _meta(request, outcomes[i], float(responsibilities[i]), world)
    return found


def rates(
    trajectories: NDArray[np.float64], latents: NDArray[np.float64], requests: Sequence[Request], world: World
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the slow modes' velocities (m/s) and accelerations (m/s^2), float64 [B, 3, 2, 24] each, in closed form."""
    first, second = basis_rates()
    slow = world.latent_unit_m * latents[..., :_SMOOTH_MODES]
    start = np.zeros(trajectories.shape[:3])
    for i, r in enumerate(requests):
        p = r.params
        start[i] = [[p["ego_speed"], 0.0], [p["actor_vx"], p["actor_vy"]], [p["other_vx"], 0.0]]
    return start[..., None] + slow @ first[:_SMOOTH_MODES], slow @ second[:_SMOOTH_MODES]


def scene(
    trajectories: NDArray[np.float64],
    velocity: NDArray[np.float64],
    heading: NDArray[np.float64],
    requests: Sequence[Request],
    world: World,
) -> Scene:
    """Return what the sensors look at: 6 frames of each request, in order."""
    steps = list(SENSOR_STEPS)
    n = len(steps)
    ego = np.concatenate([trajectories[:, 0][:, :, steps], heading[:, None, steps]], axis=1)
    names = [agents_of(r.scenario, world) for r in requests]
    boxes = np.concatenate([trajectories[:, 1:][..., steps], np.zeros((len(requests), 2, 1, n))], axis=2)
    for i, kinds in enumerate(names):
        for b, kind in enumerate(kinds):
            boxes[i, b, 2] = _facing(kind, velocity[i, b + 1][:, steps])
    streets = [buildings(int(r.params.get("street", 0)), r.axes["district"]) for r in requests]
    far = 1e6
    crossing = [float(r.params["actor_x"]) if r.scenario == "pedestrian_crossing" else far for r in requests]
    axis = {a: np.array([AXES[a].index(r.axes[a]) for r in requests]).repeat(n) for a in AXES}
    return Scene(
        ego=ego.transpose(0, 2, 1).reshape(-1, 3).astype(np.float32),
        boxes=boxes.transpose(0, 3, 1, 2).reshape(-1, 2, 3).astype(np.float32),
        sizes=np.array([[SIZES_M[k] for k in kinds] for kinds in names], np.float32).repeat(n, 0),
        kinds=np.array([[KINDS.index(k) for k in kinds] for kinds in names]).repeat(n, 0),
        weather=axis["weather"],
        light=axis["light"],
        district=axis["district"],
        heights=np.stack([s[0] for s in streets]).repeat(n, 0),
        tints=np.stack([s[1] for s in streets]).repeat(n, 0),
        crosswalk_x=np.array(crossing, np.float32).repeat(n),
    )


def _facing(kind: str, velocity: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the yaw of a road user's box over the frames; who stands keeps to the road's direction."""
    vx, vy = velocity
    moving = np.hypot(vx, vy) > 0.7
    if kind in ("parked_car", "van"):
        moving &= False
    return np.where(moving, np.arctan2(vy, vx), 0.0)


def _poses(ego: NDArray[np.float64], heading: NDArray[np.float64]) -> NDArray[np.float32]:
    zero = np.zeros_like(heading)
    columns = [ego[0], ego[1], zero, zero, zero, np.sin(heading / 2), np.cos(heading / 2)]
    return np.stack(columns, axis=1).astype(np.float32)


def _actions(
    velocity: NDArray[np.float64], acceleration: NDArray[np.float64], heading: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return acceleration along the path (m/s^2) and steering angle (rad), float32 [B, 24, 2], by the bicycle model."""
    (vx, vy), (ax, ay) = velocity.transpose(1, 0, 2), acceleration.transpose(1, 0, 2)
    speed2 = np.maximum(vx**2 + vy**2, 1.0)
    turn = (vx * ay - vy * ax) / speed2
    forward = ax * np.cos(heading) + ay * np.sin(heading)
    return np.stack([forward, np.arctan(WHEELBASE_M * turn / np.sqrt(speed2))], axis=2).astype(np.float32)


def _meta(request: Request, outcome: str, responsibility: float, world: World) -> dict[str, Any]:
    return {
        "teacher": "crossing",
        "scenario": request.scenario,
        "axes": {a: str(request.axes[a]) for a in AXES},
        "outcome": outcome,
        "responsibility": round(responsibility, 6),
        "control_axis": "ego_accel",
        "control_value": float(request.params["ego_accel"]),
        "control_gain": control_gain(request.axes, world),
        "agents": ["ego", *agents_of(request.scenario, world)],
        "dt_s": DT_S,
        "sensor_steps": list(SENSOR_STEPS),
    }
