"""Planner columns: from a record's agents to how a driver fares, and what a shifted slice does to it."""

from __future__ import annotations

import numpy as np
import pytest

from distdata.curate.metrics import planner
from distdata.curate.metrics.seed_view import SeedView

NOTHING = dict.fromkeys(planner.COLUMNS)


def seed(**params):
    return SeedView(
        seed_id="s", k=0, axes={}, scenario="x", params=params, outcome=None, control_axis=None, control_value=None
    )


def record(*agents, n_steps=24, names=("ego", "car")):
    """A record whose agents (x, y, vx, vy at the first step; ego first) keep their velocities."""
    state = np.zeros((n_steps, len(agents), 4), np.float32)
    for i, (x, y, vx, vy) in enumerate(agents):
        t = np.arange(n_steps) * 0.1
        state[:, i] = np.stack([x + vx * t, y + vy * t, np.full(n_steps, vx), np.full(n_steps, vy)], 1)
    return {"agents.npy": state, "meta.json": {"agents": list(names), "dt_s": 0.1}}


def test_a_pedestrian_in_the_lane_by_hand():
    """12 m ahead of a middle stands a pedestrian 0.5 m long: gap 12 - 2.45 = 9.55 m, 0.955 s at 10 m/s: a hard brake.

    It could stand after 6.25 m at 8 m/s^2, 3.3 m before; it lets go as it slows and ends at the model's 2 m.
    """
    found = planner.columns(record((0, 0, 10, 0), (12, 0, 0, 0), names=("ego", "pedestrian")), seed())
    assert found["planner_hard_brake"] == 1
    assert found["planner_ttc_s"] < 0.956
    assert 1.9 < found["planner_min_gap_m"] < 3.3
    # at the first step alone it is the gap itself; a car there is 4.4 m long: 12 - 4.4
    for name, gap in (("pedestrian", 9.55), ("car", 7.6)):
        first = planner.columns(record((0, 0, 10, 0), (12, 0, 0, 0), n_steps=1, names=("ego", name)), seed())
        assert first["planner_min_gap_m"] == pytest.approx(gap)


def test_nobody_in_the_lane():
    """A free road gives the caps, no brake, and about speed times 2.3 s; a stated speed goes before a recorded one."""
    found = planner.columns(record((0, 0, 10, 0), (12, 8, 0, 0)), seed())
    assert (found["planner_min_gap_m"], found["planner_hard_brake"], found["planner_ttc_s"]) == (30.0, 0, 10.0)
    assert 23.0 < found["planner_progress_m"] < 23.0 + 0.534 * 2.3**2 / 2 + 0.01
    slow = planner.columns(record((0, 0, 10, 0), (12, 8, 0, 0)), seed(ego_speed=5.0))
    assert 11.5 < slow["planner_progress_m"] < 11.5 + 0.73 * 2.3**2 / 2 + 0.01


def test_what_has_no_planner():
    """No agents, another layout, no time step or a NaN give None in all four columns."""
    whole = record((0, 0, 10, 0), (12, 0, 0, 0))
    broken = {**whole, "agents.npy": whole["agents.npy"].copy()}
    broken["agents.npy"][3, 1, 0] = np.nan
    other = {**whole, "agents.npy": np.zeros((24, 8, 6), np.float32)}
    for members in ({}, broken, other, {"agents.npy": whole["agents.npy"]}):
        assert planner.columns(members, seed()) == NOTHING


def test_real_rollouts_give_plausible_columns(rollouts):
    """Every bundled draw gives all four columns in range; who crosses brakes the planner more often than who waits."""
    found = [planner.columns(r.members, r.seed) for r in rollouts]
    values = np.array([list(f.values()) for f in found], float)
    assert np.isfinite(values).all()
    assert (values >= 0).all()
    assert (values.max(0) <= [60, 1, 13.9 * 2.4, 10]).all()
    rate = {}
    for outcome in ("crosses", "waits"):
        rate[outcome] = np.mean([
            f["planner_hard_brake"] for f, r in zip(found, rollouts, strict=True)
            if r.seed.scenario == "pedestrian_crossing" and r.seed.outcome == outcome
        ])  # fmt: skip
    assert rate["crosses"] > rate["waits"] + 0.5


def test_caution_planted_in_one_slice_moves_it_and_no_other(rollouts):
    """Lead cars drawn 3 m nearer at dusk shorten the planner's gap there by over 1 m (t > 10), and nowhere else."""
    following = [r for r in rollouts if r.seed.scenario == "car_following"]
    moved = {"dusk": [], "day": []}
    for r in following:
        agents = r.members["agents.npy"].copy()
        if r.seed.axes["light"] == "dusk":
            agents[:, 1, 0] -= 3.0
        teacher = planner.columns(r.members, r.seed)
        student = planner.columns({**r.members, "agents.npy": agents}, r.seed)
        if r.seed.axes["light"] in moved:
            moved[r.seed.axes["light"]].append(student["planner_min_gap_m"] - teacher["planner_min_gap_m"])
    d = np.array(moved["dusk"])
    assert len(d) >= 10
    # the gap starts 3 m shorter and the planner wins some of it back
    assert -3.01 < d.mean() < -1.0
    assert d.mean() / (d.std(ddof=1) / np.sqrt(len(d))) < -10
    assert np.abs(moved["day"]).max() == 0
