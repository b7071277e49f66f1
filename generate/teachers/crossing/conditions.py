"""What a network is told of a crossing seed: its cell, its state and, where the actor has decided, the outcome.

In this order: one-hots of weather, light and district; of each two of them together (conditions that meet may do more
than each alone, and a small network told only of each alone smooths that away); of the scenario type; of the committed
outcome, all zero where the future is open; the numbers of `law.STATE_KEYS`, standardised; `PRODUCTS`. Nothing of the
law's own constants (log-odds, gains, spreads) is in it: those are what a student has to learn.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ....catalogs.protocol import Request
from .law import STATE_KEYS, check_request
from .world import AXES, World

CENTRES: Mapping[str, tuple[float, float]] = {
    "ego_speed": (9.25, 0.8),
    "actor_x": (20.0, 8.0),
    "actor_y": (-1.0, 3.5),
    "actor_vx": (2.0, 5.0),
    "actor_vy": (0.0, 0.3),
    "other_x": (35.0, 13.0),
    "other_y": (1.0, 3.5),
    "other_vx": (-2.0, 6.0),
    "pace": (1.4, 0.2),
    "side": (0.0, 1.0),
    "ego_accel": (0.0, 0.7),
}
"""Centre and spread of each number over the world's seeds, in its own unit; rounded and fixed, so that a seed's
conditions never depend on other seeds."""
PRODUCTS = (("side", "pace"),)
"""Numbers that act together: the way to the lane and the pace make a velocity across the road."""
_PAIRS = tuple(itertools.combinations(AXES, 2))
_WALK_M_S = 1.4


def conditions(requests: Sequence[Request], world: World) -> NDArray[np.float32]:
    """Return the conditions of each request, float32 [B, C]; C is the same for all requests of one world.

    Raises:
        ValueError: a request is none of this world's.
    """
    outcomes = _outcomes(world)
    rows = [_row(r, world, outcomes) for r in requests]
    return np.array(rows, np.float32).reshape(len(rows), n_conditions(world))


def n_conditions(world: World) -> int:
    """Return C, the length of one request's conditions."""
    n_values = sum(map(len, AXES.values())) + sum(len(AXES[a]) * len(AXES[b]) for a, b in _PAIRS)
    return n_values + len(world.scenarios) + len(_outcomes(world)) + len(STATE_KEYS) + len(PRODUCTS)


def _outcomes(world: World) -> tuple[str, ...]:
    return tuple(dict.fromkeys(o.name for s in world.scenarios.values() for o in s.outcomes))


def _row(request: Request, world: World, outcomes: Sequence[str]) -> list[float]:
    reason = check_request(request.axes, request.scenario, request.params, world)
    if reason is not None:
        raise ValueError(f"seed {request.seed_id}: {reason}")
    params = request.params
    committed = params.get("committed")
    row = [float(request.axes[axis] == value) for axis, values in AXES.items() for value in values]
    row += [float(request.axes[a] == v and request.axes[b] == w) for a, b in _PAIRS for v in AXES[a] for w in AXES[b]]
    row += [float(request.scenario == s) for s in world.scenarios]
    row += [float(committed == o) for o in outcomes]
    row += [(float(params[key]) - CENTRES[key][0]) / CENTRES[key][1] for key in STATE_KEYS]
    return row + [float(params[a]) * float(params[b]) / _WALK_M_S for a, b in PRODUCTS]
