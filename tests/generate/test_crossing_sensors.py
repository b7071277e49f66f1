"""Camera and lidar of the crossing world see the state that the record states."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from distdata.generate.teachers.crossing import camera, lidar
from distdata.generate.teachers.crossing.rollout import SENSOR_STEPS
from distdata.generate.teachers.crossing.scene import KINDS, SIZES_M, Scene, buildings, cast
from distdata.generate.teachers.crossing.world import AXES

FAR = 500.0


def scene_with(kind, x, y, yaw=0.0, ego=(0.0, 0.0, 0.0), weather="clear", light="day", district="residential"):
    """Return one frame with one road user; the other one is out of sight behind the ego."""
    heights, tints = buildings(3, district)
    return Scene(
        ego=np.array([ego], np.float32),
        boxes=np.array([[[x, y, yaw], [-FAR, 0, 0]]], np.float32),
        sizes=np.array([[SIZES_M[kind], SIZES_M["car"]]], np.float32),
        kinds=np.array([[KINDS.index(kind), KINDS.index("car")]]),
        weather=np.array([AXES["weather"].index(weather)]),
        light=np.array([AXES["light"].index(light)]),
        district=np.array([AXES["district"].index(district)]),
        heights=heights[None],
        tints=tints[None],
        crosswalk_x=np.array([1e6], np.float32),
    )


def without(scene):
    boxes = scene.boxes.copy()
    boxes[:, 0, 0] = -FAR
    return dataclasses.replace(scene, boxes=boxes)


def picture(scene):
    return camera.take_pictures(scene, [np.random.default_rng(0)])[0].astype(int)


@pytest.mark.parametrize(("x", "y"), [(10.0, 0.0), (12.0, 2.0), (14.0, -3.0), (18.0, 1.5)])
@pytest.mark.parametrize("weather", ["clear", "rain", "snow"])
def test_camera_shows_an_agent_where_it_projects(x, y, weather):
    """The pixels that an agent changes are centred on its projected column, to 0.7 px, and as high as it is."""
    scene = scene_with("pedestrian", x, y, weather=weather)
    changed = np.abs(picture(scene) - picture(without(scene))).max(-1) > 12
    rows, columns = np.nonzero(changed)
    column, foot = camera.project(x, y, 0.0)
    _, head = camera.project(x, y, SIZES_M["pedestrian"][2])
    assert abs(columns.mean() - column) < 0.7
    # the front of the body stands 0.25 m nearer than its centre; blur in the wet adds a row
    assert abs(rows.min() - head) < 2
    assert abs(rows.max() - foot) < 2


def test_projection_by_hand():
    """A point 12.4 m ahead, 2 m left at the lens's height: 62 px * 2 / 12.4 = 10 columns left of the centre."""
    assert camera.project(12.4, 2.0, 1.5) == pytest.approx((21.5, 25.5))
    # on the ground 1.5 m below: 62 * 1.5 / 12.4 = 7.5 rows below
    assert camera.project(12.4, 0.0, 0.0) == pytest.approx((31.5, 33.0))


@pytest.mark.parametrize("yaw", [0.0, 0.6, -2.0])
@pytest.mark.parametrize("ego", [(0.0, 0.0, 0.0), (5.0, 0.4, 0.12)])
def test_lidar_returns_lie_on_the_planted_agent(yaw, ego):
    """A planted car's returns lie on its faces within 5 standard deviations of the range noise (about 5e-7 each)."""
    x, y = 16.0, 1.0
    scene = scene_with("car", x, y, yaw, ego)
    points = lidar.scan(scene, [np.random.default_rng(1)])[0]["xyz"].astype(float)
    c, s = math.cos(ego[2]), math.sin(ego[2])
    world = np.stack([ego[0] + c * points[:, 0] - s * points[:, 1], ego[1] + s * points[:, 0] + c * points[:, 1]], 1)
    d = world - (x, y)
    c, s = math.cos(yaw), math.sin(yaw)
    local = np.stack([c * d[:, 0] + s * d[:, 1], c * d[:, 1] - s * d[:, 0]], 1)
    length, width, height = SIZES_M["car"]
    inside = (np.abs(local[:, 0]) < length / 2 + 0.3) & (np.abs(local[:, 1]) < width / 2 + 0.3)
    z = points[:, 2]
    kept = inside & (z > 0.1) & (z < height + 0.1)
    on_it, z = local[kept], z[kept]
    assert len(on_it) >= 12
    sides = np.minimum(length / 2 - np.abs(on_it[:, 0]), width / 2 - np.abs(on_it[:, 1]))
    to_face = np.minimum(sides, height - z)  # the lidar looks down on the roof
    # along the beam the noise is 0.02 m; a face seen at an angle shows less of it, never more
    assert np.abs(to_face).max() < 5 * lidar.RANGE_NOISE_M["clear"]


@pytest.mark.parametrize("weather", ["clear", "rain", "snow"])
def test_range_noise_is_the_weathers(weather):
    """The standard deviation of ranges to a flat road is the weather's, within its chi-square interval (1e-6)."""
    scene = without(scene_with("car", 10, 0, weather=weather))
    hits = cast(scene, lidar.rays(), lidar.MOUNT_M)
    errors = []
    for seed in range(40):
        points = lidar.scan(scene, [np.random.default_rng(seed)])[0]["xyz"].astype(float)
        d = points - (0, 0, lidar.MOUNT_M)
        reach = np.linalg.norm(d, axis=1)
        beams = np.argmax((d / reach[:, None]) @ lidar.rays().T.astype(float), axis=1)
        errors.append(reach - hits.t[0, beams])
    errors = np.concatenate(errors)
    sd = lidar.RANGE_NOISE_M[weather]
    # relative standard error of a standard deviation: 1 / sqrt(2n); 4.9 of them
    assert abs(errors.std() / sd - 1) < 4.9 / math.sqrt(2 * len(errors))
    assert abs(errors.mean()) < 4.9 * sd / math.sqrt(len(errors))


def test_weather_takes_returns_away():
    """Rain loses returns and snow more of them; none come from further than the range."""
    counts = []
    for weather in ("clear", "rain", "snow"):
        points = lidar.scan(scene_with("car", 15, 0, weather=weather), [np.random.default_rng(2)])[0]
        counts.append(len(points["xyz"]))
        assert np.linalg.norm(points["xyz"], axis=1).max() < lidar.RANGE_M + 1
        assert points["offsets"].tolist() == [0, len(points["xyz"])]
    assert counts[0] > counts[1] > counts[2]


def test_rays_meet_flat_things_where_geometry_says():
    """One ray each to road, wall, ceiling and sky ends where similar triangles put it."""
    rays = np.array([[1, 0, -0.1], [1, -0.5, 0.01], [1, 0, 0.2]], np.float32)
    tunnel = without(scene_with("car", 10, 0, district="tunnel"))
    hits = cast(tunnel, rays, 1.5)
    # 1.5 m down at 0.1 per metre; the right wall 3.2 m away at 0.5 per metre; the ceiling 3.7 m up at 0.2
    np.testing.assert_allclose(hits.t[0], [15.0, 6.4, 18.5], rtol=1e-5)
    assert hits.surface[0].tolist() == [1, 2, 3]
    street = cast(without(scene_with("car", 10, 0)), rays[2:], 1.5)
    assert street.surface[0].tolist() == [0]


def test_box_is_met_from_every_bearing():
    """The search by bearing loses no hit: boxes ahead, beside and behind give what a full slab test gives."""
    rng = np.random.default_rng(8)
    rays = camera.rays()[::7]
    for _ in range(60):
        x, y, yaw = rng.uniform(-6, 14), rng.uniform(-5, 5), rng.uniform(-3, 3)
        ego = (rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(-0.4, 0.4))
        if abs(x - ego[0]) < 2.6 and abs(y - ego[1]) < 2.6:
            continue  # the lens inside the box
        hits = cast(scene_with("car", x, y, yaw, ego), rays, 1.0)
        angle = ego[2] - yaw
        c, s = math.cos(angle), math.sin(angle)
        d = np.stack([c * rays[:, 0] - s * rays[:, 1], s * rays[:, 0] + c * rays[:, 1], rays[:, 2]], 1).astype(float)
        c, s = math.cos(yaw), math.sin(yaw)
        o = np.array([c * (ego[0] - x) + s * (ego[1] - y), c * (ego[1] - y) - s * (ego[0] - x), 1.0])
        size = SIZES_M["car"]
        low, high = np.array([-size[0] / 2, -size[1] / 2, 0]), np.array([size[0] / 2, size[1] / 2, size[2]])
        with np.errstate(divide="ignore"):
            a, b = (low - o) / d, (high - o) / d
        near, far = np.minimum(a, b).max(1), np.maximum(a, b).min(1)
        margin = far - near
        # no wall is nearer than 8 m and the car within that hides all behind it
        must = (margin > 1e-3) & (near > 1e-3) & (near < 5)
        must_not = (margin < -1e-3) | (far < 0)
        assert np.all(hits.surface[0][must] == 4)
        assert not np.any(hits.surface[0][must_not] == 4)


def test_light_and_weather_show_in_the_picture():
    """Night is darker than dusk, dusk than day; what stands 45 m away is paler in rain and snow."""
    means = [picture(scene_with("car", 12, 0, light=light)).mean() for light in ("day", "dusk", "night")]
    assert means[0] > means[1] + 15
    assert means[1] > means[2] + 15

    def contrast(kind, weather):
        scene = scene_with(kind, 45, 0, weather=weather)
        return np.abs(picture(scene) - picture(without(scene))).sum()

    # what reaches the lens from 45 m: exp(-45/420) = 0.90, exp(-45/75) = 0.55
    assert contrast("van", "clear") > 1.4 * contrast("van", "rain") > 0
    assert contrast("van", "clear") > 1.4 * contrast("van", "snow") > 0


def test_streets_are_stable():
    """A street's buildings are an integer hash: pinned, so that no machine draws another street."""
    heights, tints = buildings(7, "downtown")
    assert tints[0, :8].tolist() == [1, 2, 2, 0, 3, 1, 1, 3]
    np.testing.assert_allclose(heights[1, :3], [10.801516, 12.324984, 19.710957], atol=1e-5)
    assert heights.min() >= 9
    assert heights.max() <= 26
    assert not np.array_equal(heights, buildings(8, "downtown")[0])
    assert len(SENSOR_STEPS) == 6
