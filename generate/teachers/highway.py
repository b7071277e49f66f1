"""The `highway` teacher: highway-env (PyPI), a third-party driving simulator, behind the teacher protocol.

Scenario types are environments; the axes are traffic density, speed, the other drivers' aggressiveness and
the commands to the ego vehicle. A draw is one rollout of `n_frames` frames at 2 Hz. Every rollout has the
same length: after a crash or an arrival the world runs on (a crashed vehicle coasts to a stop), so that all
members keep their shapes.

Members, T = `n_frames`, N = lidar returns of the whole rollout; the world frame is highway-env's (x right
and y down in the pictures, z = 0):

- ``cam_bev.npy`` uint8 [T, 64, 128, 3]: bird's-eye picture around the ego vehicle (green; crashed red).
- ``lidar.npz``: `xyz` float32 [N, 3] metres in the ego frame (x ahead, y to the right), `intensity` float32
  [N] (the simulator has no reflectivity: 1 - range / 60 m), `radial_mps` float32 [N] speed along the ray
  relative to the ego, `offsets` int32 [T + 1] where each frame's returns start.
- ``pose.npy`` float32 [T, 7]: x, y, z, and the quaternion x, y, z, w of the ego.
- ``action.npy`` float32 [T, 2]: acceleration m/s2 and steering rad last applied before the frame; row 0 is 0.
- ``command.npy`` int8 [T]: the command that led to the frame (0 lane left, 1 idle, 2 lane right, 3 faster,
  4 slower); row 0 is idle.
- ``agents.npy`` float32 [T, 8, 6]: present (0 or 1), x, y, heading, vx, vy of the vehicles that were nearest at
  frame 0, one slot each; a vehicle that leaves frees its slot for one that enters; absent is all zeros.
- ``meta.json``: conditions, the four facts behind the outcome, times and speeds.

The outcome is the first that is true of: ``collision`` (the ego crashed), ``lane_change`` (it changed lane
on one road), ``arrived`` (it reached its scenario type's goal, `highway_world.has_arrived`), ``timed_out``.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...catalogs.errors import DistdataError, nearest
from ...catalogs.hashing import content_hash
from ...catalogs.protocol import Draw, Failure, Member, MemberSpec, Request, TeacherInfo
from . import highway_camera as camera
from . import highway_tables as tables
from . import highway_world as world

VERSION = "1"
"""Raise it with any change of code that changes a rollout's bytes; tables and settings are hashed by themselves."""

OUTCOMES = ("collision", "lane_change", "arrived", "timed_out")
N_SLOTS = 8
_LIBRARIES = ("highway-env", "gymnasium", "pygame-ce", "numpy")


class HighwayTeacher:
    """Draw rollouts from highway-env.

    Options: `n_frames` (2 to 64), frames per rollout at 2 Hz; `usd_per_gpuh`, the price of an hour: no GPU is
    used, so it is that of one CPU core (the default 0.05 is about what clouds ask for a virtual core).

    Raises:
        DistdataError: highway-env is not installed, or an option is out of range.
    """

    def __init__(self, *, n_frames: int = 16, usd_per_gpuh: float = 0.05) -> None:
        if not isinstance(n_frames, int) or not 2 <= n_frames <= 64:
            raise DistdataError(f"teacher.options.n_frames = {n_frames!r}: must be a whole number from 2 to 64.")
        self._n_frames = n_frames
        self._usd_per_gpuh = usd_per_gpuh
        self._envs: dict[str, Any] = {}

    def describe(self) -> TeacherInfo:
        """Say who this is from the installed versions and our tables, without importing the simulator."""
        decides = {
            "version": VERSION,
            "libraries": {name: _installed(name) for name in _LIBRARIES},
            "n_frames": self._n_frames,
            "hz": [tables.SIM_HZ, tables.POLICY_HZ],
            "lidar": [tables.LIDAR_RAYS, tables.LIDAR_RANGE_M],
            "camera": [camera.HEIGHT_PX, camera.WIDTH_PX, camera.PX_PER_M],
            "scenarios": {name: repr(s) for name, s in tables.SCENARIOS.items()},
            "styles": {name: dataclasses.asdict(s) for name, s in tables.STYLES.items()},
            "others_speed": tables.OTHERS_SPEED,
        }
        frames = self._n_frames
        return TeacherInfo(
            id="highway",
            version=f"{VERSION}+highway-env-{_installed('highway-env')}",
            content_hash=content_hash(decides),
            kind="rollout",
            usd_per_gpuh=self._usd_per_gpuh,
            reproducible="exact",
            joint_batches=False,
            members={
                "cam_bev.npy": MemberSpec(dtype="uint8", shape=(frames, camera.HEIGHT_PX, camera.WIDTH_PX, 3)),
                "pose.npy": MemberSpec(dtype="float32", shape=(frames, 7)),
                "action.npy": MemberSpec(dtype="float32", shape=(frames, 2)),
                "command.npy": MemberSpec(dtype="int8", shape=(frames,)),
                "agents.npy": MemberSpec(dtype="float32", shape=(frames, N_SLOTS, 6)),
            },
            outcomes=OUTCOMES,
        )

    def sample(self, requests: Sequence[Request]) -> Iterator[Draw | Failure]:
        """Simulate each request on its own; one that can't be simulated fails alone."""
        for name in _LIBRARIES:
            _installed(name)
        for request in requests:
            try:
                conditions = read_conditions(request)
            except ValueError as e:
                yield Failure(seed_id=request.seed_id, k=request.k, kind="invalid", reason=str(e))
                continue
            started = time.perf_counter()
            try:
                rollout = Rollout(self._env(conditions.scenario), conditions, request.rng_seed, self._n_frames)
                rollout.run()
            except Exception as e:  # the simulator's own faults are its draw's, not its siblings'
                self._envs.pop(conditions.scenario, None)
                reason = f"highway-env: {type(e).__name__}: {e}"
                yield Failure(seed_id=request.seed_id, k=request.k, kind="error", reason=reason)
                continue
            yield Draw(
                seed_id=request.seed_id,
                k=request.k,
                members=rollout.members(),
                outcome=rollout.outcome,
                gpu_s=time.perf_counter() - started,
            )

    def _env(self, scenario: str) -> Any:
        if scenario not in self._envs:
            self._envs[scenario] = world.make_env(scenario)
        return self._envs[scenario]


def read_conditions(request: Request) -> tables.Conditions:
    """Take a request's conditions from its axes and params (`state_seed`, `speed_step_mps`).

    Raises:
        ValueError: an axis or a value that this teacher does not have, or params out of range.
    """
    if request.scenario not in tables.SCENARIOS:
        raise ValueError(f"no scenario type {request.scenario!r}.{nearest(request.scenario, tables.SCENARIOS)}")
    for axis, values in tables.AXES.items():
        value = request.axes.get(axis)
        if value not in values:
            raise ValueError(f"axis {axis} = {value!r}.{nearest(str(value), values)}")
    state_seed = request.params.get("state_seed")
    if not isinstance(state_seed, int) or state_seed < 0:
        raise ValueError(f"params.state_seed = {state_seed!r}: must be a whole number of at least 0")
    step = request.params.get("speed_step_mps")
    if not isinstance(step, int | float) or not 0 < step <= 10:
        raise ValueError(f"params.speed_step_mps = {step!r}: must be a number above 0, at most 10")
    axes = {axis: request.axes[axis] for axis in tables.AXES}
    return tables.Conditions(scenario=request.scenario, state_seed=state_seed, speed_step_mps=float(step), **axes)


class Rollout:
    """One draw while it is simulated: frame 0 from the seed, the rest from `rng_seed`."""

    def __init__(self, env: Any, conditions: tables.Conditions, rng_seed: int, n_frames: int) -> None:
        self._env, self._conditions, self._rng_seed, self._n_frames = env, conditions, rng_seed, n_frames
        self._pictures: list[NDArray[np.uint8]] = []
        self._returns: list[NDArray[np.float64]] = []
        self._poses: list[list[float]] = []
        self._actions: list[list[float]] = []
        self._commands: list[int] = []
        self._agents: list[NDArray[np.float32]] = []
        self._slots: list[Any] = [None] * N_SLOTS
        self._speeds: list[float] = []
        self._first_s: dict[str, float] = {}

    def run(self) -> None:
        """Simulate and record all frames."""
        env, conditions = self._env, self._conditions
        world.start(env, conditions)
        start_xy, v0_mps = env.vehicle.position.copy(), float(env.vehicle.speed)
        horizon_s = (self._n_frames - 1) / tables.POLICY_HZ
        view = camera.BevCamera(env)
        self._record(view, env.observation_type.observe(), tables.IDLE, [0.0, 0.0])
        # only now does the draw's own randomness begin: frame 0 is the seed's
        traffic = world.Traffic(env, conditions, np.random.default_rng(self._rng_seed))
        ego = world.Ego(env, conditions)
        for frame in range(1, self._n_frames):
            command = ego.command()
            traffic.decide()
            lane_before = env.vehicle.lane_index
            observed = env.step(command)[0]
            traffic.settle()
            applied = env.vehicle.action
            self._record(view, observed, command, [applied["acceleration"], applied["steering"]])
            now_s, lane = frame / tables.POLICY_HZ, env.vehicle.lane_index
            self._note("collision", env.vehicle.crashed, now_s)
            self._note("lane_change", lane[:2] == lane_before[:2] and lane[2] != lane_before[2], now_s)
            arrived = world.has_arrived(env, conditions.scenario, start_xy, v0_mps, horizon_s)
            self._note("arrived", arrived, now_s)

    @property
    def outcome(self) -> str:
        """The rollout's label (see the module's text for the order)."""
        return next((name for name in OUTCOMES if name in self._first_s), "timed_out")

    def members(self) -> dict[str, Member]:
        """Return what the draw holds (see the module's text)."""
        return {
            "cam_bev.npy": np.stack(self._pictures),
            "lidar.npz": self._lidar(),
            "pose.npy": np.array(self._poses, np.float32),
            "action.npy": np.array(self._actions, np.float32),
            "command.npy": np.array(self._commands, np.int8),
            "agents.npy": np.stack(self._agents),
            "meta.json": self._meta(),
        }

    def _note(self, fact: str, is_true: bool, now_s: float) -> None:
        # what happens after a crash is wreckage, not driving
        if is_true and "collision" not in self._first_s:
            self._first_s.setdefault(fact, now_s)

    def _record(self, view: camera.BevCamera, observed: NDArray[np.float32], command: int, action: list[float]) -> None:
        ego = self._env.vehicle
        half = ego.heading / 2
        self._pictures.append(view.picture())
        self._returns.append(_hits(observed, ego.heading))
        self._poses.append([*map(float, ego.position), 0.0, 0.0, 0.0, math.sin(half), math.cos(half)])
        self._actions.append(action)
        self._commands.append(command)
        self._agents.append(self._seen())
        self._speeds.append(float(ego.speed))

    def _seen(self) -> NDArray[np.float32]:
        ego = self._env.vehicle
        present = sorted(world.others(self._env), key=lambda v: float(np.hypot(*(v.position - ego.position))))
        self._slots = [s if any(s is v for v in present) else None for s in self._slots]
        waiting = iter([v for v in present if not any(v is s for s in self._slots)])
        self._slots = [next(waiting, None) if s is None else s for s in self._slots]
        rows = np.zeros((N_SLOTS, 6), np.float32)
        for row, v in zip(rows, self._slots, strict=True):
            if v is not None:
                row[:] = (1.0, *v.position, v.heading, *v.velocity)
        return rows

    def _lidar(self) -> Mapping[str, NDArray[Any]]:
        counts = [len(r) for r in self._returns]
        points = np.concatenate(self._returns)
        return {
            "xyz": points[:, :3].astype(np.float32),
            "intensity": points[:, 3].astype(np.float32),
            "radial_mps": points[:, 4].astype(np.float32),
            "offsets": np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        }

    def _meta(self) -> Mapping[str, Any]:
        facts = {f"has_{name}": name in self._first_s for name in OUTCOMES[:3]}
        return {
            **dataclasses.asdict(self._conditions),
            **facts,
            "outcome": self.outcome,
            # -1 rather than null: a member's types must not change from sample to sample
            "first_s": {name: self._first_s.get(name, -1.0) for name in OUTCOMES[:3]},
            "frame_s": 1 / tables.POLICY_HZ,
            "ego_mps": [round(v, 4) for v in self._speeds],
            "px_per_m": camera.PX_PER_M,
        }


def _hits(observed: NDArray[np.float32], heading: float) -> NDArray[np.float64]:
    """Turn one lidar observation [rays, (range, radial speed)] into returns [n, (x, y, z, intensity, speed)]."""
    ranges = np.maximum(observed[:, 0].astype(np.float64), 0.0)
    hit = ranges < tables.LIDAR_RANGE_M
    # highway-env's rays point into fixed directions of the world; the ego frame turns with the vehicle
    angles = np.flatnonzero(hit) * (2 * np.pi / tables.LIDAR_RAYS) - heading
    ranges = ranges[hit]
    flat = np.zeros_like(ranges)
    intensity = 1.0 - ranges / tables.LIDAR_RANGE_M
    return np.stack([ranges * np.cos(angles), ranges * np.sin(angles), flat, intensity, observed[hit, 1]], axis=1)


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise DistdataError(
            f"teacher.kind = 'highway' needs the package {package}, which is not installed here. "
            'Run: pip install "distdata[highway]"'
        ) from None
