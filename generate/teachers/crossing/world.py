"""The constants of the crossing world: committed once, not tuned afterwards.

Everything that decides a future's law stands here as plain numbers, so that a saved pipeline carries its
world in its configuration and a changed world is another teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

N_AGENTS = 3
"""Ego, the actor that decides, and one more road user, in this order everywhere."""
N_STEPS = 24
"""Future states of a trajectory: 0.1 s, 0.2 s, ... 2.4 s after the seed's initial state."""
DT_S = 0.1
COORDS = ("x", "y")
"""Metres ahead of and to the left of the ego's initial position."""
N_INFERENCE_STEPS = 32
SCHEDULER_CONFIG: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "use_karras_sigmas": True,
    "timestep_spacing": "linspace",
}
"""A HeunDiscreteScheduler from noise level 157.4 down to 0.0100, then one Euler step to 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """One agent's planned departure from driving on at constant velocity.

    `agent` 0 ego, 1 actor, 2 other; `coord` 0 x, 1 y. `kind`: ``ramp`` (a velocity change of `size` m/s,
    reached linearly within `duration_s`), ``shift`` (a displacement of `size` m along a smoothstep),
    ``bump`` (out by `size` m and back), ``brake`` (acceleration of `size` m/s^2 from `start_s` on).
    `scale` multiplies it by a number of the seed or cell: ``one``, ``side`` (+1 when the actor's way to the
    ego's lane is +y, else -1), ``stride`` (`side` times the actor's pace in m/s), ``grip`` (the control gain).
    """

    agent: int
    coord: int
    kind: str
    size: float
    start_s: float = 0.0
    duration_s: float = 1.0
    scale: str = "one"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One component of the mixture: its log-odds and its Gaussian.

    Log-odds: `base` + sum of `load` x factor over visibility, grip, busy, speed, gap, assertive (see
    `law.factors`). `spread_m`: standard deviation of the first mode of each agent and coordinate, metres,
    in the order ego x, ego y, actor x, actor y, other x, other y.
    """

    name: str
    base: float = 0.0
    load: Mapping[str, float] = field(default_factory=dict)
    motions: tuple[Motion, ...] = ()
    spread_m: tuple[float, ...] = (2.2, 0.30, 0.5, 0.5, 1.6, 0.25)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A scenario type: who acts and how it may go on. More than one outcome makes a decision point."""

    actor: str
    other: str
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """All constants: factor tables, control gains, scenario types, units of the latent and its noise floor.

    `latent_unit_m`: metres per unit of the latent. `floor_std`: standard deviation of every mode's
    small-scale jitter, latent units. `pair_effects`: additions to a factor where two axis values meet.
    `widen`: growth of all spreads per unit by which a factor is below 0.
    """

    latent_unit_m: float
    floor_std: float
    factors: Mapping[str, Mapping[str, float]]
    pair_effects: tuple[tuple[str, str, str, float], ...]
    gains: Mapping[str, float]
    widen: Mapping[str, float]
    scenarios: Mapping[str, Scenario]

    def to_dict(self) -> dict[str, Any]:
        """Return the world as JSON-able data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> World:
        """Rebuild a world from `to_dict`'s data (lists may stand for tuples)."""
        scenarios = {
            name: Scenario(
                actor=s["actor"],
                other=s["other"],
                outcomes=tuple(
                    Outcome(
                        name=o["name"],
                        base=o["base"],
                        load=dict(o["load"]),
                        motions=tuple(Motion(**m) for m in o["motions"]),
                        spread_m=tuple(o["spread_m"]),
                    )
                    for o in s["outcomes"]
                ),
            )
            for name, s in data["scenarios"].items()
        }
        return cls(
            latent_unit_m=data["latent_unit_m"],
            floor_std=data["floor_std"],
            factors={k: dict(v) for k, v in data["factors"].items()},
            pair_effects=tuple((str(f), str(a), str(b), float(v)) for f, a, b, v in data["pair_effects"]),
            gains=dict(data["gains"]),
            widen=dict(data["widen"]),
            scenarios=scenarios,
        )


AXES: Mapping[str, tuple[str, ...]] = {
    "weather": ("clear", "rain", "snow"),
    "light": ("day", "dusk", "night"),
    "district": ("residential", "downtown", "tunnel"),
}
FLEET: Mapping[str, tuple[float, ...]] = {
    "weather": (0.72, 0.22, 0.06),
    "light": (0.62, 0.12, 0.26),
    "district": (0.55, 0.38, 0.07),
}
SCENARIO_FLEET: Mapping[str, float] = {
    "car_following": 0.45,
    "pedestrian_crossing": 0.25,
    "unprotected_turn": 0.15,
    "cut_in": 0.09,
    "occluded_pedestrian": 0.04,
    "cyclist_swerve": 0.015,
    "animal_on_road": 0.005,
}
TUNNEL_SCENARIOS = ("car_following", "cut_in")
"""What can happen in a tunnel: nobody on foot or on a bicycle, no animals, no junction."""


def feasible(axes: Mapping[str, str], scenario: str) -> bool:
    """Say whether a cell can occur: no snow falls in the tunnel, and only cars are in it."""
    if axes["district"] != "tunnel":
        return True
    return axes["weather"] != "snow" and scenario in TUNNEL_SCENARIOS


def _brake(size: float, start_s: float) -> Motion:
    return Motion(agent=0, coord=0, kind="brake", size=-size, start_s=start_s, scale="grip")


def _actor(coord: str, kind: str, size: float, start_s: float, duration_s: float, scale: str = "one") -> Motion:
    return Motion(
        agent=1,
        coord=COORDS.index(coord),
        kind=kind,
        size=size,
        start_s=start_s,
        duration_s=duration_s,
        scale=scale,
    )


def _other(kind: str, size: float, start_s: float, duration_s: float) -> Motion:
    return Motion(agent=2, coord=0, kind=kind, size=size, start_s=start_s, duration_s=duration_s)


_STOP_AT_KERB = _actor("y", "ramp", -0.3, 0.0, 0.5, "side")
"""People on foot come with 0.3 m/s towards the kerb."""

_SCENARIOS = {
    "car_following": Scenario(
        actor="car",
        other="parked_car",
        outcomes=(
            Outcome(
                name="follows",
                motions=(_brake(0.5, 0.3), _actor("x", "ramp", -0.6, 0.2, 1.6)),
                spread_m=(2.4, 0.35, 2.8, 0.35, 0.1, 0.1),
            ),
        ),
    ),
    "pedestrian_crossing": Scenario(
        actor="pedestrian",
        other="car",
        outcomes=(
            Outcome(
                name="crosses",
                base=0.5,
                load={"visibility": 0.5, "busy": 0.6, "gap": 0.5, "speed": -0.6, "assertive": -0.3},
                motions=(
                    _actor("y", "ramp", 1.0, 0.1, 0.7, "stride"),
                    _brake(2.0, 0.6),
                    _other("ramp", 2.5, 0.7, 1.5),
                ),
                spread_m=(2.6, 0.30, 0.9, 1.6, 1.9, 0.25),
            ),
            Outcome(
                name="waits",
                base=0.4,
                load={"visibility": -0.2, "busy": -0.2, "grip": -0.3, "speed": 0.5},
                motions=(_STOP_AT_KERB, _brake(0.3, 0.4)),
                spread_m=(2.0, 0.25, 0.35, 0.35, 1.7, 0.25),
            ),
            Outcome(
                name="hesitates",
                base=-0.4,
                load={"visibility": -0.7, "grip": -0.3, "gap": -0.3, "assertive": 0.2},
                motions=(_STOP_AT_KERB, _actor("y", "bump", 1.5, 0.2, 1.9, "side"), _brake(1.3, 0.6)),
                spread_m=(2.4, 0.30, 0.6, 0.9, 1.9, 0.25),
            ),
        ),
    ),
    "unprotected_turn": Scenario(
        actor="car",
        other="parked_car",
        outcomes=(
            Outcome(
                name="goes",
                base=-0.3,
                load={"visibility": 0.2, "busy": 0.5, "gap": 0.7, "speed": -0.5, "grip": 0.2},
                motions=(
                    _actor("y", "shift", -6.5, 0.2, 2.6),
                    _actor("x", "ramp", 2.2, 0.3, 1.8),
                    _brake(2.0, 0.5),
                ),
                spread_m=(2.4, 0.30, 1.6, 1.8, 0.1, 0.1),
            ),
            Outcome(
                name="yields",
                base=0.3,
                load={"visibility": -0.1, "assertive": 0.3},
                motions=(_actor("x", "ramp", 4.2, 0.1, 1.8), _brake(0.2, 0.5)),
                spread_m=(2.0, 0.25, 1.4, 0.4, 0.1, 0.1),
            ),
        ),
    ),
    "cut_in": Scenario(
        actor="car",
        other="car",
        outcomes=(
            Outcome(
                name="cuts_in",
                base=0.1,
                load={"busy": 0.6, "gap": 0.6, "grip": 0.3, "assertive": -0.4},
                motions=(
                    _actor("y", "shift", -3.4, 0.2, 2.1),
                    _actor("x", "ramp", -1.0, 0.5, 1.5),
                    _brake(1.6, 0.7),
                ),
                spread_m=(2.3, 0.35, 2.2, 1.2, 2.4, 0.3),
            ),
            Outcome(
                name="stays",
                base=0.7,
                load={"visibility": -0.2, "grip": -0.2},
                motions=(_brake(0.2, 0.5),),
                spread_m=(2.0, 0.30, 2.4, 0.4, 2.4, 0.3),
            ),
            Outcome(
                name="aborts",
                base=-0.7,
                load={"visibility": -0.6, "grip": -0.5, "assertive": 0.4},
                motions=(_actor("y", "bump", -1.7, 0.2, 2.0), _brake(1.0, 0.6)),
                spread_m=(2.2, 0.40, 2.2, 0.8, 2.4, 0.3),
            ),
        ),
    ),
    "occluded_pedestrian": Scenario(
        actor="pedestrian",
        other="van",
        outcomes=(
            Outcome(
                name="emerges",
                base=-0.6,
                load={"visibility": -0.4, "busy": 0.8, "gap": 0.3},
                motions=(_actor("y", "ramp", 1.4, 0.0, 0.6, "stride"), _brake(2.1, 0.8)),
                spread_m=(2.6, 0.45, 0.7, 1.8, 0.1, 0.1),
            ),
            Outcome(
                name="waits",
                base=0.6,
                load={"visibility": 0.3, "speed": 0.4},
                motions=(_STOP_AT_KERB,),
                spread_m=(2.0, 0.25, 0.3, 0.3, 0.1, 0.1),
            ),
        ),
    ),
    "cyclist_swerve": Scenario(
        actor="cyclist",
        other="car",
        outcomes=(
            Outcome(
                name="keeps",
                base=0.8,
                load={"grip": 0.3, "visibility": 0.3},
                motions=(Motion(agent=0, coord=1, kind="shift", size=0.5, start_s=0.2, duration_s=2.0),),
                spread_m=(2.0, 0.40, 1.5, 0.5, 1.9, 0.25),
            ),
            Outcome(
                name="swerves",
                base=0.1,
                load={"busy": 0.5, "grip": -0.4, "gap": -0.2},
                motions=(
                    _actor("y", "shift", 1.9, 0.3, 1.5),
                    Motion(agent=0, coord=1, kind="shift", size=1.0, start_s=0.5, duration_s=1.8),
                    _brake(1.6, 0.6),
                ),
                spread_m=(2.4, 0.60, 1.6, 1.0, 1.9, 0.25),
            ),
            Outcome(
                name="stops",
                base=-0.4,
                load={"grip": -0.6, "speed": 0.3},
                motions=(_actor("x", "ramp", -3.6, 0.2, 1.4), _brake(1.0, 0.6)),
                spread_m=(2.3, 0.40, 1.2, 0.7, 1.9, 0.25),
            ),
        ),
    ),
    "animal_on_road": Scenario(
        actor="animal",
        other="car",
        outcomes=(
            Outcome(
                name="crosses",
                base=0.3,
                load={"gap": 0.5, "speed": -0.3, "visibility": 0.2},
                motions=(_actor("y", "ramp", 3.4, 0.2, 0.9, "side"), _brake(2.2, 0.6)),
                spread_m=(2.6, 0.50, 1.2, 2.0, 2.0, 0.25),
            ),
            Outcome(
                name="freezes",
                base=0.2,
                load={"visibility": -0.8, "busy": 0.3},
                motions=(_actor("y", "shift", 2.6, 0.1, 1.1, "side"), _brake(2.2, 0.5)),
                spread_m=(2.6, 0.50, 0.5, 0.8, 2.0, 0.25),
            ),
            Outcome(
                name="turns_back",
                base=0.0,
                load={"speed": 0.5, "grip": 0.2, "assertive": 0.4},
                motions=(_actor("y", "bump", 1.8, 0.1, 1.6, "side"), _brake(1.2, 0.6)),
                spread_m=(2.3, 0.40, 0.8, 1.0, 2.0, 0.25),
            ),
            Outcome(
                name="runs_along",
                base=-0.5,
                load={"busy": -0.4, "grip": -0.4},
                motions=(_actor("x", "ramp", 4.5, 0.2, 1.0), _brake(0.8, 0.6)),
                spread_m=(2.2, 0.40, 1.8, 0.8, 2.0, 0.25),
            ),
        ),
    ),
}

WORLD = World(
    latent_unit_m=2.0,
    floor_std=0.0225,  # 4.5 cm: 2.25 times the last noise level, so the chain's own law is visibly narrower
    factors={
        # main effects of the axis values; what is not named is 0
        "visibility": {"rain": -0.5, "snow": -0.9, "dusk": -0.4, "night": -0.8, "tunnel": -0.3},
        "grip": {"rain": -0.6, "snow": -1.5},
        "busy": {"residential": -0.3, "downtown": 0.9, "tunnel": 0.3, "dusk": 0.2, "night": -0.3},
    },
    pair_effects=(
        # interactions: (factor, value, value, addition)
        ("visibility", "rain", "night", -0.6),  # wet road mirrors the lamps
        ("visibility", "snow", "night", 0.3),  # snow brightens the dark
        ("visibility", "night", "downtown", 0.4),  # street lamps
        ("visibility", "night", "tunnel", 0.6),  # lit the same day and night
        ("visibility", "rain", "tunnel", 0.4),  # no rain falls inside
        ("grip", "rain", "tunnel", 0.4),
        ("grip", "snow", "downtown", 0.5),  # cleared first
        ("busy", "night", "downtown", -0.5),
        ("busy", "dusk", "residential", 0.4),  # people come home
    ),
    gains={"rain": 0.86, "snow": 0.62, "night": 0.93, "downtown": 0.95},  # multiply; what is not named is 1
    widen={"grip": 0.12, "visibility": 0.08},  # slippery or dim: everyone's motion is less certain
    scenarios=_SCENARIOS,
)

OUTCOMES: tuple[str, ...] = tuple(dict.fromkeys(o.name for s in _SCENARIOS.values() for o in s.outcomes))
"""Every label of the world, each once."""
