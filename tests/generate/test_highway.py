import hashlib
import importlib.metadata
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distdata.catalogs.codec import encode_members
from distdata.catalogs.errors import DistdataError
from distdata.catalogs.protocol import Draw, Failure, Request, Teacher
from distdata.generate.teachers.highway import OUTCOMES, HighwayTeacher
from distdata.generate.teachers.highway_tables import AXES, SCENARIOS

SCENARIO_NAMES = list(SCENARIOS)


def request(scenario="highway", k=0, state_seed=5, rng_seed=None, **axes):
    axes = {"density": "sparse", "speed": "fast", "drivers": "aggressive", "ego": "keep"} | axes
    return Request(
        seed_id=f"{scenario}-{state_seed}",
        k=k,
        rng_seed=1000 + k if rng_seed is None else rng_seed,
        axes=axes,
        scenario=scenario,
        params={"state_seed": state_seed, "speed_step_mps": 4.0},
    )


def digest(draw):
    """Hash every member's bytes as a shard would hold them."""
    assert isinstance(draw, Draw), draw
    h = hashlib.sha256()
    for name, data in encode_members(draw.members):
        h.update(name.encode() + data)
    return h.hexdigest()


def draw_one(teacher, req):
    (answer,) = teacher.sample([req])
    assert isinstance(answer, Draw), answer
    return answer


@pytest.fixture(scope="module")
def rollouts():
    """6 scenario types x 2 initial states x 3 draws, in dense traffic of aggressive drivers."""
    egos = itertools.cycle(["keep", "faster", "change_lane"])
    requests = [
        request(s, k, state_seed, rng_seed=noise_of(s, state_seed, k), density="dense", ego=ego)
        for s in SCENARIO_NAMES
        for state_seed, ego in zip((21, 22), egos, strict=False)
        for k in range(3)
    ]
    return list(zip(requests, HighwayTeacher().sample(requests), strict=True))


def noise_of(scenario, state_seed, k):
    return SCENARIO_NAMES.index(scenario) * 1000 + state_seed * 10 + k


def test_the_same_request_gives_the_same_bytes_whatever_was_drawn_before():
    """A draw depends on its request alone: not on the teacher object, its history or the order of requests.

    highway-env's intersection changes IDM parameters of the class for the whole process; it is in between.
    """
    requests = [request(s, density="dense") for s in ("highway", "intersection", "u-turn")]
    first = {r.scenario: digest(d) for r, d in zip(requests, HighwayTeacher().sample(requests), strict=True)}
    other = HighwayTeacher()
    again = {r.scenario: digest(draw_one(other, r)) for r in reversed(requests)}
    assert again == first


def test_another_process_without_a_display_gives_the_same_bytes():
    """Neither the hash seed of the interpreter nor SDL's dummy driver (under which highway-env's own viewer
    draws nothing) changes a byte."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_highway import *\n"
        "print(digest(draw_one(HighwayTeacher(n_frames=6), request('roundabout'))))"
    )
    env = {k: v for k, v in os.environ.items() if k != "DISPLAY"} | {"SDL_VIDEODRIVER": "dummy", "PYTHONHASHSEED": "77"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)], env=env, capture_output=True, text=True, check=False
    )
    # the digest is all of stdout: the simulator's greetings would break a command's machine output
    assert done.stdout == digest(draw_one(HighwayTeacher(n_frames=6), request("roundabout"))) + "\n", done.stderr


def test_draws_of_one_seed_share_frame_0_and_part_afterwards(rollouts):
    """In every scenario type the K draws agree on all of frame 0 and disagree on where the others drive later."""
    for (_, _), group in itertools.groupby(rollouts, key=lambda rd: (rd[0].scenario, rd[0].seed_id)):
        draws = [d for _, d in group]
        for other in draws[1:]:
            for name in ("cam_bev.npy", "pose.npy", "action.npy", "command.npy", "agents.npy"):
                np.testing.assert_array_equal(draws[0].members[name][0], other.members[name][0])
            first, n = draws[0].members["lidar.npz"], draws[0].members["lidar.npz"]["offsets"][1]
            np.testing.assert_array_equal(first["xyz"][:n], other.members["lidar.npz"]["xyz"][:n])
            assert not np.array_equal(draws[0].members["agents.npy"][-1], other.members["agents.npy"][-1])


def test_another_initial_state_is_another_frame_0(rollouts):
    """The state seed decides who stands where: two seeds of one scenario type start differently."""
    starts = {(r.scenario, r.seed_id): d.members["agents.npy"][0].tobytes() for r, d in rollouts}
    assert len(starts) == len(set(starts.values())) == 2 * len(SCENARIO_NAMES)


def test_every_draw_has_the_declared_members(rollouts):
    """Types and shapes are those of `describe`, the same for all scenario types and after a crash."""
    specs = HighwayTeacher().describe().members
    meta_types = set()
    for _, draw in rollouts:
        for name, spec in specs.items():
            array = draw.members[name]
            assert (array.dtype, array.shape) == (np.dtype(spec.dtype), spec.shape)
            assert np.isfinite(array).all()
        lidar = draw.members["lidar.npz"]
        assert lidar["offsets"].shape == (17,)
        assert (np.diff(lidar["offsets"]) >= 0).all()
        assert len(lidar["xyz"]) == len(lidar["intensity"]) == len(lidar["radial_mps"]) == lidar["offsets"][-1]
        meta_types.add(tuple((k, type(v).__name__) for k, v in draw.members["meta.json"].items()))
    assert len(meta_types) == 1


def test_outcomes_follow_from_the_recorded_facts(rollouts):
    """The label is the first true fact in the documented order, all four occur, and seeds are multimodal."""
    by_seed = {}
    for r, draw in rollouts:
        meta = draw.members["meta.json"]
        expected = next((o for o in OUTCOMES[:3] if meta[f"has_{o}"]), "timed_out")
        assert draw.outcome == meta["outcome"] == expected
        by_seed.setdefault(r.seed_id, set()).add(draw.outcome)
        for fact in OUTCOMES[:3]:
            assert (meta["first_s"][fact] >= 0.5) == meta[f"has_{fact}"]
    assert set().union(*by_seed.values()) == set(OUTCOMES)
    assert any(len(outcomes) > 1 for outcomes in by_seed.values())


def test_a_crashed_ego_is_red_and_coasts_to_a_stop(rollouts):
    """The collision label agrees with the picture (highway-env paints the crashed red) and with the speed."""
    crashed = [d for _, d in rollouts if d.outcome == "collision"]
    whole = [d for _, d in rollouts if d.outcome != "collision"]
    assert crashed
    assert whole
    for draw, red in [(d, True) for d in crashed] + [(d, False) for d in whole]:
        r, g, _ = draw.members["cam_bev.npy"][-1, 32, 64].astype(int)
        assert (r > g) == red
        meta = draw.members["meta.json"]
        if red and meta["first_s"]["collision"] <= 5.5:
            # v' = -v after the crash: at least 2 s leave at most exp(-2) = 0.135 of the speed; 6 Hz Euler less
            assert abs(meta["ego_mps"][-1]) < 0.15 * meta["ego_mps"][0]


def test_the_commanded_speed_is_reached():
    """Unhindered, an ego told to go faster (slower) ends `speed_step_mps` above (below) one told to keep.

    The speed controller is a first-order lag of 0.6 s: commanded before frame 1, 7.5 s leave
    exp(-7.5 / 0.6) = 4e-6 of the step, so the difference is the step itself.
    """
    teacher, found = HighwayTeacher(), 0
    for state_seed in range(30):
        runs = {
            ego: draw_one(teacher, request(state_seed=state_seed, drivers="calm", speed="slow", ego=ego))
            for ego in ("keep", "faster", "slower")
        }
        commands = {ego: set(d.members["command.npy"].tolist()) for ego, d in runs.items()}
        if commands != {"keep": {1}, "faster": {1, 3}, "slower": {1, 4}} or any(
            (d.members["command.npy"] == 4).sum() > 1 for d in runs.values()
        ):
            continue  # somebody was in the way, and the ego braked
        end = {ego: d.members["meta.json"]["ego_mps"][-1] for ego, d in runs.items()}
        assert end["faster"] - end["keep"] == pytest.approx(4.0, abs=1e-3)
        assert end["slower"] - end["keep"] == pytest.approx(-4.0, abs=1e-3)
        found += 1
        if found == 2:
            return
    pytest.fail("no initial state with a free road among 30")


def test_lidar_returns_lie_on_vehicles():
    """Turned into the world by the pose, every return lies on one of the recorded vehicles.

    Sparse scenes without obstacles hold at most 8 other vehicles, so all have a slot. A vehicle of 5 x 2 m
    lies within 2.69 m of its centre; a ray's direction is off by up to half of 360 / 64 degrees, which the
    simulator ignores for the ray through the centre: at 60 m that is 2.95 m, hence 2.7 + 0.05 range.
    """
    teacher, n_returns = HighwayTeacher(), 0
    for scenario in ("highway", "roundabout", "u-turn", "two-way"):
        members = draw_one(teacher, request(scenario, drivers="normal")).members
        lidar, agents = members["lidar.npz"], members["agents.npy"]
        for frame, (start, end) in enumerate(itertools.pairwise(lidar["offsets"])):
            x, y, _, _, _, qz, qw = members["pose.npy"][frame]
            heading = 2 * np.arctan2(qz, qw)
            turn = np.array([[np.cos(heading), -np.sin(heading)], [np.sin(heading), np.cos(heading)]])
            points = lidar["xyz"][start:end, :2] @ turn.T + (x, y)
            present = agents[frame][agents[frame, :, 0] == 1]
            for point, ego_point in zip(points, lidar["xyz"][start:end], strict=True):
                off_m = np.hypot(*(present[:, 1:3] - point).T).min()
                assert off_m < 2.7 + 0.05 * np.hypot(*ego_point[:2]), (scenario, frame)
            n_returns += end - start
        ranges = np.hypot(lidar["xyz"][:, 0], lidar["xyz"][:, 1])
        np.testing.assert_allclose(lidar["intensity"], 1 - ranges / 60, atol=1e-5)
    assert n_returns > 200


def test_pictures_show_the_vehicles_where_they_are():
    """The pixel at a vehicle's recorded place is painted as a vehicle: 1.6 pixels a metre around the ego."""
    n_seen = 0
    for scenario in ("highway", "roundabout"):
        members = draw_one(HighwayTeacher(), request(scenario, drivers="calm", density="dense")).members
        for picture, pose, agents in zip(
            members["cam_bev.npy"].astype(int), members["pose.npy"], members["agents.npy"], strict=True
        ):
            for present, x, y, *_ in agents:
                column, row = round(64 + 1.6 * (x - pose[0])), round(32 + 1.6 * (y - pose[1]))
                if present and 2 < column < 126 and 2 < row < 62:
                    r, g, b = picture[row - 1 : row + 1, column - 1 : column + 1].reshape(-1, 3).mean(axis=0)
                    # grass, road and lane lines are green to grey; vehicles are blue, crashed ones red
                    assert b > g + 10 or r > g + 10, (scenario, column, row, (r, g, b))
                    n_seen += 1
    assert n_seen > 60


def test_bad_requests_fail_alone_and_say_why():
    """A value that no cell has, or params out of range, is an `invalid` failure; its siblings are answered."""
    good = request()
    bad = [
        request(ego="overtake"),
        request("roundabuot"),
        Request(seed_id="a", k=0, rng_seed=1, axes=good.axes, scenario="highway", params={"state_seed": -1}),
        Request(seed_id="b", k=0, rng_seed=1, axes=good.axes, scenario="highway", params={"state_seed": 1}),
    ]
    answers = list(HighwayTeacher(n_frames=2).sample([*bad, good]))
    reasons = [a.reason for a in answers if isinstance(a, Failure) and a.kind == "invalid"]
    assert reasons == [
        "axis ego = 'overtake'. Known: keep, faster, slower, change_lane.",
        "no scenario type 'roundabuot'. Did you mean 'roundabout'?",
        "params.state_seed = -1: must be a whole number of at least 0",
        "params.speed_step_mps = None: must be a number above 0, at most 10",
    ]
    assert isinstance(answers[-1], Draw)


def test_a_fault_of_the_simulator_costs_one_draw():
    """An exception from the environment becomes an `error` failure, and the next request gets a fresh one."""
    teacher = HighwayTeacher(n_frames=2)
    teacher._envs["highway"] = object()  # an environment that can't be reset
    broken, whole = teacher.sample([request(), request()])
    assert isinstance(broken, Failure)
    assert (broken.kind, broken.reason) == (
        "error",
        "highway-env: AttributeError: 'object' object has no attribute 'reset'",
    )
    assert isinstance(whole, Draw)


def test_describe_is_cheap_and_covers_the_options():
    """Describing imports no simulator; another number of frames is another content hash, a price is not."""
    code = (
        "import sys; from distdata.generate.teachers.highway import HighwayTeacher as H\n"
        "assert H().describe().content_hash != H(n_frames=8).describe().content_hash\n"
        "assert H().describe().content_hash == H(usd_per_gpuh=9).describe().content_hash\n"
        "print(sorted({'highway_env', 'gymnasium', 'pygame', 'torch'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "[]\n"
    assert isinstance(HighwayTeacher(), Teacher)


def test_a_missing_simulator_says_what_to_install(monkeypatch):
    """Without the package, planning and sampling end with the pip command, not with a traceback."""

    def version(name):
        if name == "highway-env":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    for use in (lambda: HighwayTeacher().describe(), lambda: list(HighwayTeacher().sample([request()]))):
        with pytest.raises(
            DistdataError, match=r'highway-env, which is not installed.*pip install "distdata\[highway\]"'
        ):
            use()


def test_the_number_of_frames_is_checked():
    """A rollout has 2 to 64 frames."""
    for n_frames in (1, 65, 2.5):
        with pytest.raises(DistdataError, match=r"n_frames = .*whole number from 2 to 64"):
            HighwayTeacher(n_frames=n_frames)


@pytest.mark.prove
# webdataset leaves the closing of its last file to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_300_rollouts_load_back_through_webdataset_and_datasets(tmp_path):
    """300 draws over all cells' values, written as a shard, come back equal from both public readers."""
    import datasets
    import webdataset

    from distdata.catalogs.shards import write_shard
    from distdata.generate.teachers.highway_seeds import seeds

    rows = seeds(2430, "prove").to_pylist()[::16][:150]

    requests = [
        Request(
            seed_id=r["seed_id"], k=k, rng_seed=i * 2 + k, axes={a: r[a] for a in AXES},
            scenario=r["scenario"], params=json.loads(r["params"]),
        )
        for i, r in enumerate(rows)
        for k in range(2)
    ]  # fmt: skip
    draws = list(HighwayTeacher().sample(requests))
    assert len(draws) == 300
    assert all(isinstance(d, Draw) for d in draws)
    path = tmp_path / "rollouts.tar"
    write_shard(path, [(f"{d.seed_id}_{d.k}", encode_members(d.members)) for d in draws])
    seen = 0
    for sample in webdataset.WebDataset(str(path), shardshuffle=False).decode():
        draw = draws[seen]
        assert sample["__key__"] == f"{draw.seed_id}_{draw.k}"
        np.testing.assert_array_equal(sample["cam_bev.npy"], draw.members["cam_bev.npy"])
        np.testing.assert_array_equal(sample["agents.npy"], draw.members["agents.npy"])
        assert sample["meta.json"]["outcome"] == draw.outcome
        seen += 1
    assert seen == 300
    loaded = datasets.load_dataset(
        "webdataset", data_files={"train": str(path)}, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(loaded) == 300
    assert [m["outcome"] for m in loaded["meta.json"]] == [d.outcome for d in draws]
    np.testing.assert_array_equal(np.array(loaded[7]["pose.npy"], np.float32), draws[7].members["pose.npy"])
