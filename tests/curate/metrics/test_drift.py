"""Tracks: which positions, in which order."""

from __future__ import annotations

import numpy as np
import pytest

from distdata.curate.metrics import drift


def agents(n_steps, n_agents=3):
    """Positions that say where they come from: x = 100 agent + step, y = -x."""
    state = np.zeros((n_steps, n_agents, 4), np.float32)
    state[:, :, 0] = 100 * np.arange(n_agents)[None] + np.arange(n_steps)[:, None]
    state[:, :, 1] = -state[:, :, 0]
    return state


def test_twelve_times_of_ego_and_actor():
    """24 steps give every second one, the last included: [time, agent, coordinate] flat; no third agent."""
    track = drift.columns({"agents.npy": agents(24)}, None)["track"]
    assert len(track) == 48
    assert track[:4] == [1.0, -1.0, 101.0, -101.0]
    assert track[4:8] == [3.0, -3.0, 103.0, -103.0]
    assert track[-4:] == [23.0, -23.0, 123.0, -123.0]


@pytest.mark.parametrize(("n_steps", "want"), [(1, [0]), (5, [0, 1, 2, 3, 4]), (12, list(range(12)))])
def test_short_rollouts_give_every_step(n_steps, want):
    """Up to twelve steps each is taken once."""
    assert drift.times(n_steps).tolist() == want


def test_times_are_even_and_end_with_the_last():
    """25 steps: at i 25 / 12 - 1 rounded, so gaps of 2 and one or more of 3, ending at step 24."""
    times = drift.times(25)
    assert len(times) == 12
    assert times[-1] == 24
    assert set(np.diff(times)) <= {2, 3}


def test_poses_alone_give_the_ego():
    """Without agents of that layout the poses are the track, of one agent."""
    pose = np.zeros((24, 7), np.float32)
    pose[:, 0] = np.arange(24)
    other_layout = np.zeros((24, 8, 6), np.float32)
    track = drift.columns({"pose.npy": pose, "agents.npy": other_layout}, None)["track"]
    assert track == [v for i in range(1, 24, 2) for v in (float(i), 0.0)]


def test_nothing_to_track():
    """A record of neither, an empty one and one with a NaN give None."""
    broken = agents(24)
    broken[4, 2, 1] = np.nan
    nothing = {"track": None, "track_s": None}
    assert drift.columns({}, None) == nothing
    assert drift.columns({"pose.npy": np.zeros((0, 7), np.float32)}, None) == nothing
    assert drift.columns({"agents.npy": broken}, None) == nothing


def test_the_track_lasts_as_long_as_the_record_says():
    """24 steps of 0.1 s are 2.4 s; without a step in the meta, or with fewer than twelve, nobody knows."""
    meta = {"meta.json": {"dt_s": 0.1}}
    assert drift.columns({"agents.npy": agents(24), **meta}, None)["track_s"] == pytest.approx(2.4)
    assert drift.columns({"agents.npy": agents(24)}, None)["track_s"] is None
    assert drift.columns({"agents.npy": agents(11), **meta}, None)["track_s"] is None


def test_the_difference_of_tracks_is_the_planted_divergence(rollouts):
    """A student whose actor is 0.1 m/s faster to the left is 0.1 t m off at each of the twelve times, its ego never."""
    t = np.arange(1, 25) * 0.1
    for r in rollouts[:20]:
        state = r.members["agents.npy"].copy()
        state[:, 1, 1] += 0.1 * t
        both = (r.members["agents.npy"], state)
        teacher, student = (np.reshape(drift.columns({"agents.npy": a}, r.seed)["track"], (12, 2, 2)) for a in both)
        np.testing.assert_allclose((student - teacher)[:, 1, 1], 0.1 * t[1::2], atol=1e-5)
        assert np.abs((student - teacher)[:, 0]).max() == 0
