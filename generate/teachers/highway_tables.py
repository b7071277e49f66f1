"""The numbers of the `highway` teacher: scenario types, axes, what can't occur, and how drivers differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SIM_HZ = 6
"""Simulation steps per second; highway-env's own fast environment uses 5."""

POLICY_HZ = 2
"""Frames, and commands to the ego vehicle, per second."""

LIDAR_RANGE_M = 60.0
LIDAR_RAYS = 64

LANE_LEFT, IDLE, LANE_RIGHT, FASTER, SLOWER = range(5)
"""highway-env's meta-actions (`DiscreteMetaAction`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioWorld:
    """One scenario type: its environment, how much traffic it holds and how fast the ego vehicle starts.

    `sparse` and `dense` are settings of the environment; `ego_mps` holds the start speed by `speed` value.
    """

    env_id: str
    sparse: Mapping[str, Any]
    dense: Mapping[str, Any]
    ego_mps: Mapping[str, float]


_MERGE = {
    "before_merge_length": 70,
    "converge_merge_length": 60,
    "parallel_merge_length": 60,
    "after_merge_length": 400,
}

SCENARIOS: Mapping[str, ScenarioWorld] = {
    "highway": ScenarioWorld(
        env_id="highway-v0",
        sparse={"vehicles_count": 6, "vehicles_density": 0.9},
        dense={"vehicles_count": 13, "vehicles_density": 1.7},
        ego_mps={"slow": 20.0, "fast": 28.0},
    ),
    "merge": ScenarioWorld(
        env_id="merge-generic-v1",
        sparse={**_MERGE, "vehicles_count": 3},
        dense={**_MERGE, "vehicles_count": 9},
        ego_mps={"slow": 20.0, "fast": 27.0},
    ),
    "roundabout": ScenarioWorld(
        env_id="roundabout-generic-v1",
        sparse={"vehicles_count": 3},
        dense={"vehicles_count": 8},
        ego_mps={"slow": 10.0, "fast": 13.0},
    ),
    "intersection": ScenarioWorld(
        env_id="intersection-v2",
        sparse={"initial_vehicle_count": 5, "spawn_probability": 0.2},
        dense={"initial_vehicle_count": 11, "spawn_probability": 0.6},
        ego_mps={"slow": 8.0, "fast": 11.0},
    ),
    # these two have a fixed cast, which `_recast` thins or adds to
    "two-way": ScenarioWorld(env_id="two-way-v0", sparse={}, dense={}, ego_mps={"slow": 20.0, "fast": 27.0}),
    "u-turn": ScenarioWorld(env_id="u-turn-v1", sparse={}, dense={}, ego_mps={"slow": 10.0, "fast": 14.0}),
}

AXES: Mapping[str, tuple[str, ...]] = {
    "density": ("sparse", "dense"),
    "speed": ("slow", "fast"),
    "drivers": ("calm", "normal", "aggressive"),
    "ego": ("keep", "faster", "slower", "change_lane"),
}

OTHERS_SPEED = {"slow": 0.72, "fast": 1.0}
"""What the other vehicles' speeds and the speed limits are multiplied with."""

INFEASIBLE: tuple[tuple[Mapping[str, str], str], ...] = (
    ({"scenario": "intersection", "ego": "change_lane"}, "the approach to the intersection has a single lane"),
    (
        {"scenario": "u-turn", "speed": "fast", "ego": "faster"},
        "above 14 m/s the bend of 20 m radius asks for more than 1 g of lateral grip",
    ),
)
"""Cells that can't occur: what has to match, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverStyle:
    """Medians of the other drivers' parameters and how much drivers of one style differ.

    IDM (Treiber et al. 2000): time gap, jam distance, comfortable acceleration and braking. MOBIL
    (Kesting et al. 2007): politeness, gain that justifies a lane change, braking it may impose.
    `brake_per_s` and `cut_in_per_s` are rates of sudden braking and of pushing into the ego's lane.
    """

    desired_speed: float
    time_gap_s: float
    jam_m: float
    accel: float
    brake: float
    politeness: float
    gain: float
    imposed_brake: float
    lane_delay_s: float
    spread: float
    brake_per_s: float
    cut_in_per_s: float


STYLES: Mapping[str, DriverStyle] = {
    "calm": DriverStyle(
        desired_speed=0.95, time_gap_s=2.0, jam_m=11.0, accel=2.0, brake=4.0, politeness=0.6, gain=0.5,
        imposed_brake=1.5, lane_delay_s=1.5, spread=0.08, brake_per_s=0.01, cut_in_per_s=0.0,
    ),
    "normal": DriverStyle(
        desired_speed=1.05, time_gap_s=1.4, jam_m=9.5, accel=3.0, brake=5.0, politeness=0.2, gain=0.2,
        imposed_brake=2.5, lane_delay_s=1.0, spread=0.14, brake_per_s=0.03, cut_in_per_s=0.05,
    ),
    "aggressive": DriverStyle(
        desired_speed=1.20, time_gap_s=0.7, jam_m=7.0, accel=5.0, brake=7.5, politeness=0.0, gain=0.05,
        imposed_brake=6.0, lane_delay_s=0.6, spread=0.22, brake_per_s=0.06, cut_in_per_s=0.25,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """One cell and one seed: everything that decides the initial state and the ego's commands."""

    scenario: str
    density: str
    speed: str
    drivers: str
    ego: str
    state_seed: int
    speed_step_mps: float
