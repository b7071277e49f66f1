"""Pictures of samples: pixels and coordinates worked out by hand."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from distdata.catalogs.pictures import (
    EGO,
    GROUND,
    HEIGHT_COLOURS,
    OTHER_COLOUR,
    OUTCOME_COLOURS,
    RING,
    camera_strip,
    futures_svg,
    lidar_bev,
    nice_step,
    outcome_colours,
    png_data_uri,
)

SVG = "{http://www.w3.org/2000/svg}"


def decode(uri: str) -> np.ndarray:
    head, data = uri.split(",", 1)
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_a_png_decodes_to_the_same_pixels() -> None:
    """Encoding is lossless, also for an image that isn't contiguous in memory."""
    image = np.random.default_rng(0).integers(0, 256, (7, 11, 3), dtype=np.uint8)
    assert np.array_equal(decode(png_data_uri(image)), image)
    assert np.array_equal(decode(png_data_uri(image[:, ::-1])), image[:, ::-1])


def test_an_image_without_pixels_is_one_dark_pixel_and_other_shapes_are_refused() -> None:
    """Empty input gives a picture that browsers accept; a wrong dtype or shape is named."""
    assert decode(png_data_uri(np.empty((0, 5, 3), np.uint8))).tolist() == [[list(GROUND)]]
    with pytest.raises(ValueError, match=r"float32 \[2, 2, 3\]"):
        png_data_uri(np.zeros((2, 2, 3), np.float32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"uint8 \[2, 2\]"):
        png_data_uri(np.zeros((2, 2), np.uint8))


def test_a_strip_puts_frames_side_by_side_with_gaps() -> None:
    """Frame i starts at column i * (W + gap); the gap has its own colour."""
    frames = np.stack([np.full((2, 3, 3), v, np.uint8) for v in (10, 20, 30)])
    strip = camera_strip(frames, gap_px=1, gap_colour=(1, 2, 3))
    assert strip.shape == (2, 11, 3)  # 3 frames x 3 + 2 gaps
    assert strip[0, :, 0].tolist() == [10, 10, 10, 1, 20, 20, 20, 1, 30, 30, 30]
    assert strip[0, 3].tolist() == [1, 2, 3]


def test_a_long_rollout_is_thinned_evenly_with_both_ends() -> None:
    """Eleven frames thinned to six keep 0, 2, 4, 6, 8 and 10."""
    frames = np.arange(11, dtype=np.uint8).reshape(11, 1, 1, 1)
    assert camera_strip(frames, max_frames=6, gap_px=0)[0, :, 0].tolist() == [0, 2, 4, 6, 8, 10]


def test_grey_and_alpha_frames_become_rgb_and_no_frames_a_blank_picture() -> None:
    """One channel is repeated, the fourth dropped; an empty rollout gives a dark frame of its size."""
    assert camera_strip(np.full((1, 1, 1, 1), 9, np.uint8)).tolist() == [[[9, 9, 9]]]
    assert camera_strip(np.array([1, 2, 3, 4], np.uint8).reshape(1, 1, 1, 4)).tolist() == [[[1, 2, 3]]]
    blank = camera_strip(np.empty((0, 4, 6, 3), np.uint8))
    assert blank.shape == (4, 6, 3)
    assert (blank == GROUND).all()
    with pytest.raises(ValueError, match="camera_strip"):
        camera_strip(np.zeros((2, 4, 6), np.uint8))


def test_a_lidar_point_lands_on_its_pixel() -> None:
    """Forward is up and left is left: 20 pixels for 20 m, so (5.5, 2.5) is row 10 - 5.5 = 4, column 10 - 2.5 = 7."""
    picture = lidar_bev(np.array([[5.5, 2.5, 0.0]], np.float32), extent_m=10, size_px=20, point_px=1)
    assert picture[4, 7].tolist() == list(HEIGHT_COLOURS[1])  # z = 0 is the second stop
    empty = lidar_bev(np.empty((0, 3), np.float32), extent_m=10, size_px=20, point_px=1)
    changed = np.argwhere((picture != empty).any(axis=2))
    assert changed.tolist() == [[4, 7]]


def test_lidar_points_cover_a_square_of_pixels_and_the_highest_shows() -> None:
    """point_px = 2 fills the pixel, its right, lower and diagonal neighbour; a lower point hides nothing."""
    points = np.array([[5.5, 2.5, 5.0], [5.5, 2.5, -2.0]], np.float32)
    picture = lidar_bev(points, extent_m=10, size_px=20, point_px=2)
    for row, column in ((4, 7), (4, 8), (5, 7), (5, 8)):
        assert picture[row, column].tolist() == list(HEIGHT_COLOURS[-1])


def test_weak_returns_are_dimmed() -> None:
    """Intensity 0 keeps 55% of the colour, the strongest return all of it: 54, 126, 170 -> 30, 69, 94."""
    points = np.array([[5.5, 2.5, 0.0], [-5.5, 2.5, 0.0]], np.float32)
    picture = lidar_bev(points, np.array([0.0, 1.0], np.float32), extent_m=10, size_px=20, point_px=1)
    assert picture[4, 7].tolist() == [30, 69, 94]  # 29.7, 69.3, 93.5 (half to even: 94)
    assert picture[15, 7].tolist() == [54, 126, 170]


def test_lidar_leaves_out_what_is_outside_or_not_finite_and_draws_rings_and_vehicle() -> None:
    """No usable point still gives the ground, a ring at 5 m (extent 10) and the vehicle in the middle."""
    points = np.array([[10.5, 0, 0], [np.nan, 1, 0], [1, np.inf, 0], [0, -10.5, 0]], np.float32)
    picture = lidar_bev(points, extent_m=10, size_px=20, point_px=1)
    assert np.array_equal(picture, lidar_bev(np.empty((0, 3), np.float32), extent_m=10, size_px=20, point_px=1))
    assert picture[10, 14].tolist() == list(RING)  # its centre is (0.5, 4.5) pixels away: 4.53 m
    assert picture[10, 10].tolist() == list(EGO)
    assert picture[0, 0].tolist() == list(GROUND)


@pytest.mark.parametrize(("rough", "step"), [(1, 1), (1.1, 2), (3.33, 5), (7, 10), (0.03, 0.05), (10, 10), (0.1, 0.1)])
def test_steps_are_one_two_or_five_times_a_power_of_ten(rough: float, step: float) -> None:
    """The step is the smallest round number that is not below what was asked for."""
    assert nice_step(rough) == pytest.approx(step, rel=1e-12)


def two_agents(x: float) -> np.ndarray:
    """Make one future [3, 2, 2]: agent 0 from (0, 0) to (x, 2), agent 1 stands at (5, 1)."""
    ego = np.array([[0, 0], [x / 2, 1], [x, 2]])
    return np.stack([ego, np.full((3, 2), (5.0, 1.0))], axis=1)


def test_futures_draw_one_path_per_trajectory_and_agent_in_its_outcomes_colour() -> None:
    """Three futures of two agents are six paths; each carries the colour that the legend gives its outcome."""
    svg = ET.fromstring(futures_svg([two_agents(10)] * 3, ["waits", "crosses", "waits"], agents=["ego", "ped"]))
    paths = svg.findall(f".//{SVG}path")
    found = sorted((p.get("data-outcome"), p.get("data-agent"), p.get("stroke")) for p in paths)
    waits, crosses = OUTCOME_COLOURS[0], OUTCOME_COLOURS[1]
    assert found == [
        ("crosses", "0", crosses),
        ("crosses", "1", crosses),
        *[("waits", "0", waits)] * 2,
        *[("waits", "1", waits)] * 2,
    ]
    assert paths[-1].get("data-outcome") == "crosses"  # the rarer outcome lies on top
    text = "".join(svg.itertext())
    for words in ("3 futures: 2 waits, 1 crosses", "waits 2 of 3", "crosses 1 of 3", "ego", "ped"):
        assert words in text


def test_futures_are_drawn_to_scale() -> None:
    """Both axes have one scale, x to the right and y up.

    x spans 0..10, y 0..2; the margin is 7% of 10, so 11.4 m x 3.4 m. 640 - 46 - 24 = 570 units for 11.4 m are
    50 a metre: (0, 0) is (46 + 0.7 * 50, 18 + 2.7 * 50) = (81, 153) and (10, 2) is (581, 53).
    """
    svg = ET.fromstring(futures_svg([two_agents(10)], ["a"], width=640))
    path = next(p for p in svg.findall(f".//{SVG}path") if p.get("data-agent") == "0")
    assert path.get("d") == "M81.0 153.0L331.0 103.0L581.0 53.0"
    assert next(float(c.get("cx") or 0) for c in svg.findall(f"{SVG}circle")) == 581.0
    labels = [t.text for t in svg.findall(f".//{SVG}text")]
    assert "10 m" in labels  # the last tick names the unit


def test_a_gap_breaks_the_path_and_an_absent_agent_has_none() -> None:
    """Steps that are not finite are not bridged; an agent that never appears is not drawn."""
    track = np.full((5, 2, 2), np.nan)
    track[[0, 1, 3, 4], 0] = [[0, 0], [1, 0], [3, 0], [4, 0]]
    svg = ET.fromstring(futures_svg([track], ["a"]))
    paths = svg.findall(f".//{SVG}path")
    assert len(paths) == 1
    assert re.sub(r"[\d. ]+", "", paths[0].get("d") or "") == "MLML"


@pytest.mark.parametrize("tracks", [[], [np.empty((0, 2, 2))], [np.full((3, 1, 2), np.nan)]])
def test_no_futures_are_a_sentence(tracks: list[np.ndarray]) -> None:
    """Nothing to draw is said in a valid drawing."""
    assert "no futures to draw" in "".join(ET.fromstring(futures_svg(tracks, ["a"] * len(tracks))).itertext())


def test_one_standing_point_is_drawn() -> None:
    """Futures without any extent get a window of at least a metre instead of a division by zero."""
    svg = ET.fromstring(futures_svg([np.zeros((1, 1, 2))], ["a"]))
    assert len(svg.findall(f".//{SVG}path")) == 1


def test_futures_escape_labels_and_refuse_lists_that_differ() -> None:
    """An outcome called like a tag stays text; a missing outcome is an error, not a guess."""
    drawing = futures_svg([two_agents(3)], ["<script>&"], agents=["<b>", '"'])
    assert "<script" not in drawing
    assert "<script>&" in "".join(ET.fromstring(drawing).itertext())
    with pytest.raises(ValueError, match="1 trajectories but 2 outcomes"):
        futures_svg([two_agents(3)], ["a", "b"])


def test_outcome_colours_are_distinct_and_visible_on_light_and_dark() -> None:
    """Eight outcomes have eight colours, each at least 3:1 on white and on the dark surface; the ninth is grey."""
    names = [f"o{i}" for i in range(9)]
    colours = outcome_colours([*names, *names])
    assert len(set(colours.values())) == 9
    assert colours["o8"] == OTHER_COLOUR
    for colour in colours.values():
        assert contrast(colour, "#ffffff") >= 3
        assert contrast(colour, "#151c22") >= 3
