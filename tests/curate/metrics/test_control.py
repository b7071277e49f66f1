"""Control response: the parabola's acceleration, and the gain that its slope shows."""

from __future__ import annotations

import numpy as np
import pytest

from distdata.curate.metrics import control
from distdata.generate.teachers.crossing.law import control_gain

CALIB = {"dt_s": 0.1}


def poses(way, yaw=0.0):
    """Poses along a straight line of heading `yaw`."""
    way = np.asarray(way, float)
    pose = np.zeros((len(way), 7), np.float32)
    pose[:, 0], pose[:, 1] = way * np.cos(yaw), way * np.sin(yaw)
    pose[:, 5], pose[:, 6] = np.sin(yaw / 2), np.cos(yaw / 2)
    return pose


def response(pose, **members):
    return control.columns({"pose.npy": pose, "calib.json": CALIB, **members}, None)["response"]


@pytest.mark.parametrize("yaw", [0.0, 1.1, 3.0])
def test_a_parabola_gives_its_acceleration(yaw):
    """5 + 9 t - 1.4 t^2 / 2 has the acceleration -1.4, whatever the heading."""
    t = np.arange(24) * 0.1
    assert response(poses(5 + 9 * t - 0.7 * t**2, yaw)) == pytest.approx(-1.4, abs=1e-4)


def test_a_cubic_by_hand():
    """The best parabola through t^3 at 0, 1, 2, 3 has the acceleration 9.

    (t - 1.5)^3 = t^3 - 4.5 t^2 + ... is odd about 1.5, so no parabola in it has curvature: t^3 has that of 4.5 t^2.
    """
    t = np.arange(4.0)
    assert response(poses(t**3), **{"calib.json": {"dt_s": 1.0}}) == pytest.approx(9.0, abs=1e-4)


def test_what_has_no_response():
    """Three poses, no time step, a time step of 0 and a pose that is not finite give None."""
    t = np.arange(24) * 0.1
    broken = poses(t)
    broken[3, 0] = np.nan
    assert response(poses(t[:3])) is None
    assert response(broken) is None
    assert control.columns({"pose.npy": poses(t)}, None) == {"response": None}
    assert response(poses(t), **{"calib.json": {"dt_s": 0}}) is None
    assert control.columns({"pose.npy": poses(t), "meta.json": {"dt_s": 0.1}}, None)["response"] is not None


def slope(rollouts, responses):
    """Slope of the response over the acceleration that the law grants (gain x command), and its standard error."""
    granted = np.array([control_gain(r.seed.axes) * r.seed.control_value for r in rollouts])
    a = np.stack([np.ones(len(granted)), granted], 1)
    weights, left, *_ = np.linalg.lstsq(a, responses, rcond=None)
    variance = left[0] / (len(granted) - 2)
    return weights[1], np.sqrt(variance * np.linalg.inv(a.T @ a)[1, 1])


def test_slope_is_the_worlds_gain_and_a_halved_one_shows(rollouts):
    """On scenes of one outcome the slope is the law's gain within 4 standard errors (false alarm 1e-4), no halved one.

    The planted student gives back half of what was commanded: its way is shorter by gain c t^2 / 4, so that its
    response is lower by exactly gain c / 2 and its slope by exactly one half.
    """
    following = [r for r in rollouts if r.seed.scenario == "car_following"]
    teacher = np.array([control.columns(r.members, r.seed)["response"] for r in following])
    t = np.arange(1, 25) * 0.1
    student = []
    for r in following:
        pose = r.members["pose.npy"].astype(float)
        pose[:, 0] -= control_gain(r.seed.axes) * r.seed.control_value * t**2 / 4
        student.append(control.columns({**r.members, "pose.npy": pose}, r.seed)["response"])
    granted = np.array([control_gain(r.seed.axes) * r.seed.control_value for r in following])
    # headings turn the projection by at most a few degrees: cos 3 degrees = 0.9986
    np.testing.assert_allclose(teacher - np.array(student), granted / 2, rtol=3e-3, atol=1e-4)
    gain, error = slope(following, teacher)
    assert abs(gain - 1) < 4 * error
    assert error < 0.1
    halved, error = slope(following, np.array(student))
    assert halved == pytest.approx(gain - 0.5, abs=3e-3)
    assert halved < 1 - 4 * error
