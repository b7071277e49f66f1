"""The closed-loop planner against accelerations, gaps and times worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from distdata.curate.planner import Driver, demanded, drive, idm_acceleration

TOWN = Driver()
CAR = (4.4, 1.85)


def alone(value):
    return np.array([float(value)])


def road(*agents, n_steps=24, dt_s=0.1, speed=10.0, driver=TOWN):
    """Drive one future; agents are (x, y, vx) or (x, y, vx, vy) at the first step, cars that keep their velocity."""
    t = np.arange(n_steps)[:, None] * dt_s
    state = np.array([(*a, 0.0)[:4] for a in agents], float).reshape(-1, 4)
    velocities = np.broadcast_to(state[:, 2:], (n_steps, len(state), 2))
    positions = state[None, :, :2] + velocities * t[..., None]
    sizes = np.tile(np.array(CAR), (1, len(state), 1))
    return drive(positions[None], velocities[None], sizes, np.zeros((1, 2)), alone(speed), dt_s, driver)


@pytest.mark.parametrize(
    ("speed", "gap", "closing", "want"),
    [
        # free road at 10 of 13.89 m/s: 0.73 (1 - 0.72^4) = 0.73 x 0.73126
        (10.0, math.inf, 0.0, 0.53382),
        # standing two metres behind: s* = s0 = s, so 0.73 (1 - 0 - 1)
        (0.0, 2.0, 0.0, 0.0),
        # following at one speed: s* = 2 + 16 = 18, 0.73 (1 - 0.268739 - 0.81)
        (10.0, 20.0, 0.0, -0.05748),
        # standing obstacle: s* = 18 + 100 / (2 x 1.104128) = 63.2845, 0.73 (1 - 0.268739 - (63.2845 / 30)^2)
        (10.0, 30.0, 10.0, -2.71464),
        # the leader leaves: 16 - 45.28 is below 0, so s* = s0: 0.73 (1 - 0.268739 - (2 / 30)^2)
        (10.0, 30.0, -10.0, 0.53058),
    ],
)
def test_accelerations_by_hand(speed, gap, closing, want):
    """The model's acceleration equals Treiber's equations, to five digits."""
    assert idm_acceleration(alone(speed), alone(gap), alone(closing), TOWN)[0] == pytest.approx(want, abs=1e-4)


def test_emergency_brake_by_hand():
    """At 2 m/s with 10 m/s closing over 10 m the brake needs 100 / (2 x 9.5) = 5.263 m/s^2, more than the model asks.

    The model: s* = 2 + 3.2 + 20 / 2.208256 = 14.257, 0.73 (1 - 0.00043 - 2.0326) = -0.754.
    """
    assert idm_acceleration(alone(2), alone(10), alone(10), TOWN)[0] == pytest.approx(-0.754, abs=1e-3)
    assert demanded(alone(2), alone(10), alone(10), TOWN)[0] == pytest.approx(-5.26316, abs=1e-4)
    # 1 m/s closing over 10 m needs 0.05 m/s^2: nothing for an emergency
    calm = idm_acceleration(alone(2), alone(10), alone(1), TOWN)[0]
    assert demanded(alone(2), alone(10), alone(1), TOWN)[0] == calm


def test_stops_before_a_standing_obstacle():
    """It comes to a stand s0 = 2 m before a car parked 100 m ahead: 100 - 4.4 - 2 = 93.6 m driven, braking calmly."""
    found = road((100.0, 0.0, 0.0), n_steps=1200)
    assert found.progress_m[0] == pytest.approx(93.6, abs=0.3)
    assert found.min_gap_m[0] == pytest.approx(2.0, abs=0.3)
    assert found.most_brake_mps2[0] < TOWN.hard_brake_mps2


def test_free_road():
    """With nobody ahead the gap is 60 m, the time 10 s, no brake; at the desired speed 23 steps of 0.1 s are 2.3 v."""
    found = road(driver=Driver(desired_mps=10.0))
    assert (found.min_gap_m[0], found.min_ttc_s[0], found.most_brake_mps2[0]) == (30.0, 10.0, 0.0)
    assert found.progress_m[0] == pytest.approx(23.0, abs=1e-9)
    # from 10 m/s it nears the desired speed from below: after 60 s more than 0.95 of it on average, never above
    fast = road(n_steps=601)
    assert 0.9 * 60 * TOWN.desired_mps < fast.progress_m[0] < 60 * TOWN.desired_mps


def test_time_to_collision_and_gap_by_hand():
    """A car 24.4 m ahead at 6 m/s leaves a gap of 20 m; closing with 4 m/s at first that is 5 s."""
    found = road((24.4, 0.0, 6.0), n_steps=1)
    assert found.min_gap_m[0] == pytest.approx(20.0)
    assert found.min_ttc_s[0] == pytest.approx(5.0)
    assert found.progress_m[0] == 0.0


@pytest.mark.parametrize(("y", "seen"), [(2.14, True), (2.16, False), (-2.14, True), (-2.16, False)])
def test_who_is_in_the_lane(y, seen):
    """Two cars 1.85 m wide touch within 1.85 m of their middles, plus 0.3 m of room: 2.15 m."""
    assert (road((20.0, y, 5.0), n_steps=1).min_gap_m[0] < 30) == seen


def test_behind_and_farther_agents_do_not_count():
    """Who is behind is ignored; of two ahead the nearer bumper leads."""
    assert road((-10.0, 0.0, 20.0), n_steps=1).min_gap_m[0] == 30.0
    assert road((40.0, 0.0, 10.0), (14.4, 0.5, 10.0), n_steps=1).min_gap_m[0] == pytest.approx(10.0)


def test_a_collision_is_a_gap_of_zero():
    """A car that appears 1 m ahead of the middle overlaps: gap 0, time 0, and the demand stays finite."""
    found = road((1.0, 0.0, 0.0), n_steps=2)
    assert (found.min_gap_m[0], found.min_ttc_s[0]) == (0.0, 0.0)
    assert TOWN.most_brake_mps2 < found.most_brake_mps2[0] < math.inf


def test_braking_is_limited_and_nobody_reverses():
    """From 10 m/s at 8 m/s^2 it stands after 1.25 s and 6.25 m, however much more is demanded."""
    found = road((8.0, 0.0, 0.0), n_steps=40)
    assert found.progress_m[0] == pytest.approx(6.25, abs=0.05)


def test_futures_are_driven_independently():
    """A batch gives what each future gives alone, and one that isn't finite spoils only itself."""
    rng = np.random.default_rng(3)
    positions = rng.normal([30, 0], [5, 1], (4, 24, 2, 2))
    velocities = rng.normal(5, 1, (4, 24, 2, 2))
    sizes = np.tile(np.array(CAR), (4, 2, 1))
    positions[2, 5, 1, 0] = np.nan
    start, speed = np.zeros((4, 2)), np.array([5.0, 8.0, 9.0, 12.0])
    together = drive(positions, velocities, sizes, start, speed, 0.1, TOWN)
    for i in range(4):
        part = slice(i, i + 1)
        one = drive(positions[part], velocities[part], sizes[part], start[part], speed[part], 0.1, TOWN)
        for name in ("min_gap_m", "most_brake_mps2", "progress_m", "min_ttc_s"):
            assert getattr(one, name)[0] == pytest.approx(getattr(together, name)[i], nan_ok=True)
            assert np.isnan(getattr(one, name)[0]) == (i == 2)


def test_a_more_cautious_driver_keeps_more_room():
    """With a headway of 2.6 s instead of 1.6 s it follows 10 s x v farther behind in the long run, and drives less."""
    calm = Driver(headway_s=2.6)
    far, near = (road((40.0, 0.0, 8.0), n_steps=1200, driver=d) for d in (calm, TOWN))
    # equilibrium: s = (2 + 8 T) / sqrt(1 - (8 / 13.89)^4) = 24.15 m and 15.69 m; both drive with 8 m/s in the end
    at_end = 40.0 + 8.0 * 119.9 - 4.4
    assert at_end - near.progress_m[0] == pytest.approx(15.69, abs=0.1)
    assert at_end - far.progress_m[0] == pytest.approx(24.15, abs=0.1)
