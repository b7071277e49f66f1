"""Coherence: a planted lidar shift is found, in metres and with its sign, and nothing is found where nothing is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from distdata.curate.metrics import coherence

CALIB = {
    "camera": {"focal_px": 62.0, "centre_px": [31.5, 25.5], "mount_m": [0.0, 0.0, 1.5]},
    "lidar": {"mount_m": [0.0, 0.0, 1.7], "range_m": 60.0},
}
NOTHING = dict.fromkeys(coherence.COLUMNS)
SHIFTS = {"left": (0.0, 0.5), "right": (0.0, -0.5), "ahead": (0.5, 0.0), "behind": (-0.5, 0.0)}


def shifted(lidar, ahead, left):
    return {**lidar, "xyz": lidar["xyz"] + np.array([ahead, left, 0], np.float32)}


def by_hand():
    """A black box on a grey road, its face 11.625 m ahead and 1.875 m wide, and the lidar's returns from that face.

    62 px x 0.9375 m / 11.625 m = 5 px: its sides at columns 26.5 and 36.5, between pixels; 62 x 1.5 / 11.625 = 8: its
    foot at row 33.5. The beams of 1 degree that meet it go from -4 to 4 (the corner is at 4.61).
    """
    picture = np.full((1, 64, 64, 3), 120, np.uint8)
    picture[0, 24:34, 27:37] = 20
    angle = np.radians(np.arange(-4, 5))
    xyz = np.stack([np.full(9, 11.625), 11.625 * np.tan(angle), np.full(9, 1.0)], 1).astype(np.float32)
    reach = np.sqrt(xyz[:, 0] ** 2 + xyz[:, 1] ** 2 + 0.7**2)
    lidar = {"xyz": xyz, "intensity": (0.75 * np.exp(-reach / 60)).astype(np.float32), "offsets": np.array([0, 9])}
    return picture, lidar


@pytest.mark.parametrize("shift", [(0.0, 0.0), *SHIFTS.values(), (0.4, -0.6)])
def test_a_box_by_hand(shift):
    """A drawn box's offset is the planted one: to 0.1 m aside (a pixel is 0.19 m), 0.25 m ahead (a row is 1.4 m)."""
    picture, lidar = by_hand()
    found = coherence.columns(
        {"cam_front.npy": picture, "lidar.npz": shifted(lidar, *shift), "calib.json": CALIB}, None
    )
    assert found["coherence_left_m"] == pytest.approx(shift[1], abs=0.1)
    assert found["coherence_ahead_m"] == pytest.approx(shift[0], abs=0.25)
    assert found["coherence_m"] == math.hypot(found["coherence_ahead_m"], found["coherence_left_m"])


def test_nothing_to_compare():
    """No camera, lidar or calibration, no bright return, and one too near or too far give None."""
    picture, lidar = by_hand()
    whole = {"cam_front.npy": picture, "lidar.npz": lidar, "calib.json": CALIB}
    for name in whole:
        assert coherence.columns({k: v for k, v in whole.items() if k != name}, None) == NOTHING
    dark = {**lidar, "intensity": lidar["intensity"] / 2}
    empty = {"xyz": lidar["xyz"][:0], "intensity": lidar["intensity"][:0], "offsets": np.array([0, 0])}
    for other in (dark, empty, shifted(lidar, -10, 0), shifted(lidar, 40, 0)):
        assert coherence.columns({**whole, "lidar.npz": other}, None) == NOTHING


def test_the_range_of_the_search_bounds_it():
    """A lidar 5 m off gives at most 1.5 m ahead and 1.2 m aside."""
    picture, lidar = by_hand()
    far = {"cam_front.npy": picture, "lidar.npz": shifted(lidar, 5, 3), "calib.json": CALIB}
    assert coherence.columns(far, None)["coherence_m"] <= math.hypot(1.5, 1.2) + 1e-9


@pytest.fixture(scope="module")
def measured(rollouts):
    """The three columns of all rollouts, float64 [n, 3], as they are and with each shift."""

    def columns(shift):
        rows = []
        for r in rollouts:
            found = coherence.columns({**r.members, "lidar.npz": shifted(r.members["lidar.npz"], *shift)}, r.seed)
            rows.append([np.nan if v is None else v for v in found.values()])
        return np.array(rows)

    return {name: columns(shift) for name, shift in {"none": (0.0, 0.0), **SHIFTS}.items()}


def test_bundled_records_are_coherent(measured):
    """Every bundled draw has a value; over all weathers and lights below 0.2 m on average, and unbiased to 0.1 m."""
    assert np.isfinite(measured["none"]).all()
    size, ahead, left = measured["none"].mean(0)
    assert size < 0.2
    assert abs(ahead) < 0.1
    assert abs(left) < 0.02


@pytest.mark.parametrize("name", list(SHIFTS))
def test_a_planted_shift_is_read_off(measured, name):
    """Half a metre on any side is read off to 0.15 m on average over the same draws."""
    ahead, left = SHIFTS[name]
    moved = (measured[name] - measured["none"]).mean(0)
    assert moved[1] == pytest.approx(ahead, abs=0.15)
    assert moved[2] == pytest.approx(left, abs=0.05)


@pytest.mark.parametrize("name", list(SHIFTS))
def test_power_in_slices_of_a_hundred_seeds(measured, name):
    """In 200 random slices of 100 seeds the paired rise of coherence_m is surely above 0.1 m (t, 1%) each time but 20.

    Unshifted the difference is 0 in every draw, so there are no false alarms.
    """
    d = measured[name][:, 0] - measured["none"][:, 0]
    rng = np.random.default_rng(5)
    caught = 0
    for _ in range(200):
        part = rng.choice(d, 100, replace=False)
        caught += part.mean() - 2.365 * part.std(ddof=1) / 10 > 0.1
    assert caught >= 180


@pytest.mark.parametrize(("weather", "light"), [("clear", "night"), ("snow", "night"), ("rain", "dusk")])
def test_bad_light_and_weather_do_not_blind_it(measured, rollouts, weather, light):
    """At night, in snow and in rain half a metre aside more than doubles the column's mean."""
    at = [i for i, r in enumerate(rollouts) if r.seed.axes["weather"] == weather and r.seed.axes["light"] == light]
    assert len(at) >= 10
    assert measured["left"][at, 0].mean() > 2 * measured["none"][at, 0].mean()
