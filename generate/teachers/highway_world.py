"""The worlds of the `highway` teacher: highway-env's environments under the conditions of a cell.

A rollout has two sources of chance, kept apart. The seed's ``state_seed`` and the cell decide the initial
state: road, vehicles, speeds. The draw's random seed decides everything after frame 0: how each other
driver drives (IDM and MOBIL parameters), who brakes or cuts in when, and who enters the scene. So the K
draws of a seed share frame 0 and part ways from there.

The world frame is highway-env's own: x to the right and y down in its pictures, metres, headings in
radians from x towards y, z = 0.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...catalogs.hashing import hash64
from .highway_tables import (
    FASTER,
    IDLE,
    LANE_LEFT,
    LANE_RIGHT,
    LIDAR_RANGE_M,
    LIDAR_RAYS,
    OTHERS_SPEED,
    POLICY_HZ,
    SCENARIOS,
    SIM_HZ,
    SLOWER,
    STYLES,
    Conditions,
)

_UTURN_APPROACH_M = 100.0  # the third vehicle may stand just before the bend, and has to stay there
# by lane: from the start of its road the ego would not reach the bend's apex in 8 s; the outer lane moves
# less, or its vehicle would stand within braking distance of the slow one at the bend
_UTURN_HEAD_START_M = (60.0, 44.0)
_ONCOMING_HEAD_START_M = 270.0  # as placed by highway-env, oncoming traffic is 10 s away
_BRAKE_S = 1.0


def make_env(scenario: str) -> Any:
    """Build the environment of a scenario type, without a window.

    Constructing one resets it from the machine's entropy; only the state after `start` may be used.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # its greeting would end up in our stdout
    import gymnasium
    import highway_env  # noqa: F401  (registers the environments)

    return gymnasium.make(SCENARIOS[scenario].env_id, disable_env_checker=True).unwrapped


def start(env: Any, conditions: Conditions) -> None:
    """Put `env` into the initial state that the seed and the cell decide, whatever it did before."""
    world = SCENARIOS[conditions.scenario]
    config = {
        **(world.dense if conditions.density == "dense" else world.sparse),
        "simulation_frequency": SIM_HZ,
        "policy_frequency": POLICY_HZ,
        "duration": 1000,
        "action": {"type": "DiscreteMetaAction"},
        "observation": {
            "type": "LidarObservation", "cells": LIDAR_RAYS, "maximum_range": LIDAR_RANGE_M, "normalize": False,
        },
    }  # fmt: skip
    env.reset(seed=conditions.state_seed, options={"config": config})
    rng = np.random.default_rng(hash64("highway/state", conditions.scenario, conditions.state_seed))
    _recast(env, conditions, rng)
    factor = OTHERS_SPEED[conditions.speed]
    for lane in env.road.network.lanes_list():
        lane.speed_limit *= factor * STYLES[conditions.drivers].desired_speed
    for vehicle in others(env):
        vehicle.speed *= factor
        vehicle.target_speed *= factor
    ego = env.vehicle
    ego.speed = world.ego_mps[conditions.speed]
    # evenly spaced, as `speed_to_index` needs; three steps down let repeated braking slow to a crawl
    ego.target_speeds = ego.speed + conditions.speed_step_mps * np.arange(-3.0, 2.0)
    ego.speed_index = 3
    ego.target_speed = float(ego.target_speeds[3])


def others(env: Any) -> list[Any]:
    """List every vehicle but the ego, in the road's order."""
    return [v for v in env.road.vehicles if v is not env.vehicle]


def _recast(env: Any, conditions: Conditions, rng: np.random.Generator) -> None:
    """Give the environments with a fixed cast a density, and bring the cast within the horizon."""
    network = env.road.network
    if conditions.scenario == "u-turn":
        for v in env.road.vehicles:
            if v.lane_index[:2] == ("a", "b") and v.position[0] < _UTURN_APPROACH_M:
                v.position[0] += _UTURN_HEAD_START_M[v.lane_index[2]]
                v.on_state_update()
        if conditions.density == "sparse":
            _remove(env, others(env)[1::2])
    if conditions.scenario == "two-way":
        oncoming = [v for v in others(env) if v.lane_index[:2] == ("b", "a")]
        for v in oncoming:
            v.position[0] -= _ONCOMING_HEAD_START_M
            v.on_state_update()
        if conditions.density == "sparse":
            _remove(env, [others(env)[2], oncoming[-1]])
            return
        lane = network.get_lane(("b", "a", 0))
        for place in (420.0, 460.0):
            v = type(oncoming[0])(
                env.road, lane.position(place + rng.normal(0, 6.0), 0), lane.heading_at(place),
                20.0 + rng.normal(0, 2.0), enable_lane_change=False,
            )  # fmt: skip
            v.target_lane_index = ("b", "a", 0)
            env.road.vehicles.append(v)


def _remove(env: Any, gone: list[Any]) -> None:
    env.road.vehicles = [v for v in env.road.vehicles if not any(v is g for g in gone)]


class Traffic:
    """The other drivers of one draw: their styles and their sudden decisions, all from the draw's seed."""

    def __init__(self, env: Any, conditions: Conditions, rng: np.random.Generator) -> None:
        self._env, self._rng, self._style = env, rng, STYLES[conditions.drivers]
        self._known: dict[int, Any] = {}  # holds the vehicles, so that no later one takes over an id
        self._braking: list[tuple[Any, float, float]] = []  # vehicle, speed to go back to, seconds left
        # from here on the simulator's own chance (who enters, which way) belongs to the draw as well
        env.np_random = env.road.np_random = rng
        self.settle()

    def settle(self) -> None:
        """Give every driver who has no parameters yet their own.

        They are set on the vehicle because highway-env's intersection changes the class for the whole process.
        """
        s, rng = self._style, self._rng
        for v in others(self._env):
            if id(v) in self._known:
                continue
            self._known[id(v)] = v
            speed, gap, jam, accel, brake, delay = np.exp(s.spread * rng.standard_normal(6))
            v.target_speed *= s.desired_speed * speed
            v.TIME_WANTED = s.time_gap_s * gap
            v.DISTANCE_WANTED = s.jam_m * jam
            v.COMFORT_ACC_MAX = s.accel * accel
            v.COMFORT_ACC_MIN = -s.brake * brake
            v.LANE_CHANGE_DELAY = s.lane_delay_s * delay
            v.POLITENESS = float(np.clip(s.politeness + s.spread * rng.standard_normal(), 0.0, 1.0))
            v.LANE_CHANGE_MIN_ACC_GAIN = s.gain
            v.LANE_CHANGE_MAX_BRAKING_IMPOSED = s.imposed_brake
            v.DELTA = rng.uniform(3.5, 4.5)

    def decide(self) -> None:
        """Let drivers brake suddenly or push into the ego's lane during the coming step."""
        dt = 1 / POLICY_HZ
        self._release(dt)
        ego = self._env.vehicle
        for v in others(self._env):
            brakes, cuts = self._rng.random(2)  # drawn for everyone, so that one decision shifts no other
            if v.crashed or getattr(v, "is_yielding", False):
                continue
            if brakes < self._style.brake_per_s * dt and not any(b is v for b, _, _ in self._braking):
                self._braking.append((v, v.target_speed, _BRAKE_S))
                v.target_speed = 0.4 * v.speed
            elif cuts < self._style.cut_in_per_s * dt and _beside_and_ahead(v, ego):
                v.target_lane_index = ego.lane_index

    def _release(self, dt: float) -> None:
        still = []
        for v, speed, left_s in self._braking:
            if left_s - dt > 0:
                still.append((v, speed, left_s - dt))
            elif not getattr(v, "is_yielding", False):
                v.target_speed = speed
        self._braking = still


def _beside_and_ahead(v: Any, ego: Any) -> bool:
    same_road = v.lane_index[:2] == ego.lane_index[:2]
    beside = same_road and abs(v.lane_index[2] - ego.lane_index[2]) == 1
    return bool(beside and 4.0 < ego.lane_distance_to(v) < 25.0)


class Ego:
    """The controlled vehicle's commands: what the cell asks for, and braking when something is in the way.

    The wanted command is given once, at the first step at which it can be carried out. Whenever the time
    to collision with the vehicle ahead in the target lane falls below `BRAKE_TTC_S`, the command is SLOWER.
    """

    BRAKE_TTC_S = 2.0
    BRAKE_GAP_M = 4.0

    def __init__(self, env: Any, conditions: Conditions) -> None:
        self._env, self._wanted, self._done = env, conditions.ego, False

    def command(self) -> int:
        """Choose the meta-action of the coming step."""
        if self._blocked():
            return SLOWER
        if self._done or self._wanted == "keep":
            return IDLE
        action = {"faster": FASTER, "slower": SLOWER}.get(self._wanted) or self._lane_change()
        self._done = action != IDLE
        return action

    def _lane_change(self) -> int:
        """Return the change to the left where there is a lane, else to the right, else IDLE."""
        ego = self._env.vehicle
        network = ego.road.network
        sides = [i for i in network.side_lanes(ego.lane_index) if network.get_lane(i).is_reachable_from(ego.position)]
        if not sides:
            return IDLE
        return LANE_LEFT if min(i[2] for i in sides) < ego.lane_index[2] else LANE_RIGHT

    def _blocked(self) -> bool:
        ego = self._env.vehicle
        front, _ = ego.road.neighbour_vehicles(ego, ego.target_lane_index)
        if front is None:
            return False
        gap_m = float(np.hypot(*(front.position - ego.position))) - ego.LENGTH
        closing_mps = float(ego.speed - np.dot(front.velocity, ego.direction))
        return gap_m < self.BRAKE_GAP_M or (closing_mps > 0.5 and gap_m / closing_mps < self.BRAKE_TTC_S)


def has_arrived(env: Any, scenario: str, start_xy: NDArray[np.float64], v0_mps: float, horizon_s: float) -> bool:
    """Tell whether the ego has reached its scenario type's goal.

    highway, two-way: 90% of the distance that its start speed covers in the horizon; merge: the end of the
    merging section; roundabout: its exit; intersection: the road it turns into; u-turn: the bend's apex.
    """
    ego = env.vehicle
    lane_from, lane_to = ego.lane_index[:2]
    if scenario == "merge":
        return bool(lane_from == "c")
    if scenario == "roundabout":
        return bool(lane_from in ("nx", "nxs") and lane_to in ("nxs", "nxr"))
    if scenario == "intersection":
        return bool(lane_from.startswith("il") and lane_to.startswith("o"))
    if scenario == "u-turn":
        past_apex = lane_from == "b" and ego.lane.local_coordinates(ego.position)[0] > ego.lane.length / 2
        return bool(past_apex or lane_from == "c")
    return bool(np.hypot(*(ego.position - start_xy)) >= 0.9 * v0_mps * horizon_s)
