"""The crossing teacher as the pipeline meets it: records, reproducibility, control, failures."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from distdata.catalogs.codec import check_member
from distdata.catalogs.errors import DistdataError
from distdata.catalogs.hashing import draw_rng_seed
from distdata.catalogs.protocol import Draw, Failure, Request, Teacher
from distdata.generate.teachers.crossing import lidar
from distdata.generate.teachers.crossing.law import basis, control_gain, mixture
from distdata.generate.teachers.crossing.reference import CASES
from distdata.generate.teachers.crossing.rollout import SENSOR_STEPS
from distdata.generate.teachers.crossing.scene import SIZES_M
from distdata.generate.teachers.crossing.seeds import seeds
from distdata.generate.teachers.crossing.teacher import CrossingTeacher, save
from distdata.generate.teachers.crossing.world import AXES, OUTCOMES, WORLD


@pytest.fixture(scope="module")
def teacher():
    return CrossingTeacher()


@pytest.fixture(scope="module")
def requests():
    """Return one request of every scenario type, spread over the cells."""
    rows = seeds(600, "tests").to_pylist()
    chosen = [next(r for r in rows[i * 29 :] if r["scenario"] == s) for i, s in enumerate(WORLD.scenarios)]
    return [request(r) for r in chosen]


def request(row, k=0, capture=()):
    return Request(
        seed_id=row["seed_id"],
        k=k,
        rng_seed=draw_rng_seed("tests", row["seed_id"], k),
        axes={a: row[a] for a in AXES},
        scenario=row["scenario"],
        params=json.loads(row["params"]),
        capture=frozenset(capture),
    )


def case_request(case, k=0, **params):
    c = CASES[case]
    seed_id = "case"
    return Request(
        seed_id=seed_id,
        k=k,
        rng_seed=draw_rng_seed("tests", seed_id, k),
        axes=c["axes"],
        scenario=c["scenario"],
        params={**c["params"], **params},
    )


def flat(members):
    """Return a record as bytes by member, so that equality means equal bytes."""
    found = {}
    for name, value in members.items():
        if isinstance(value, np.ndarray):
            found[name] = (value.dtype.str, value.shape, value.tobytes())
        elif name.endswith(".npz"):
            found[name] = {k: (v.dtype.str, v.shape, v.tobytes()) for k, v in value.items()}
        else:
            found[name] = json.dumps(value, sort_keys=True)
    return found


def test_describe_is_cheap():
    """Describing the teacher imports neither torch nor diffusers."""
    code = (
        "import sys; from distdata.generate.teachers.crossing.teacher import CrossingTeacher; "
        "CrossingTeacher().describe(); print([m for m in ('torch', 'diffusers', 'ray') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_describe_tells_versions_apart(teacher):
    """Equal options give an equal hash; another number of steps is another teacher, another price is not."""
    info = teacher.describe()
    assert isinstance(teacher, Teacher)
    assert (info.id, info.kind, info.reproducible, info.usd_per_gpuh) == ("crossing", "rollout", "exact", 2.0)
    assert info.outcomes == OUTCOMES
    assert CrossingTeacher(usd_per_gpuh=3.0).describe().content_hash == info.content_hash
    assert CrossingTeacher(steps=16).describe().content_hash != info.content_hash


@pytest.mark.parametrize("steps", [1, 0, 2.5, True, 1001])
def test_bad_steps_are_refused(steps):
    """A number of steps that the chain can't take is an error that names it."""
    with pytest.raises(DistdataError, match=r"steps is .* from 2 to 1000"):
        CrossingTeacher(steps=steps)


def test_records_are_what_describe_promises(teacher, requests):
    """Every scenario type yields one draw with the declared members, stable meta types and a known outcome."""
    draws = list(teacher.sample(requests))
    assert [d.seed_id for d in draws] == [r.seed_id for r in requests]
    metas = []
    for d, r in zip(draws, requests, strict=True):
        assert isinstance(d, Draw)
        for name, spec in teacher.describe().members.items():
            assert check_member(name, d.members[name], spec) is None
        points = d.members["lidar.npz"]
        assert points["xyz"].dtype == points["intensity"].dtype == np.float32
        assert points["offsets"].dtype == np.int32
        assert len(points["offsets"]) == 7
        assert points["offsets"][-1] == len(points["xyz"]) == len(points["intensity"]) > 300
        assert d.outcome in [o.name for o in WORLD.scenarios[r.scenario].outcomes]
        meta = d.members["meta.json"]
        assert meta["outcome"] == d.outcome
        assert meta["control_value"] == r.params["ego_accel"]
        metas.append({k: type(v) for k, v in meta.items()})
        json.dumps(meta)
    assert all(m == metas[0] for m in metas)
    assert len({tuple(d.members) for d in draws}) == 1


def test_same_batch_same_bytes(requests):
    """Two teachers give the same batch byte for byte, camera and lidar included."""
    a, b = (list(CrossingTeacher().sample(requests)) for _ in range(2))
    assert [flat(d.members) for d in a] == [flat(d.members) for d in b]


def test_a_sample_does_not_depend_on_its_batch(teacher, requests):
    """Alone or in company a request's trajectory is the same to 1e-5 m and its picture but for single pixels."""
    together = list(teacher.sample(requests))
    for d, r in zip(together, requests, strict=True):
        (alone,) = teacher.sample([r])
        np.testing.assert_allclose(alone.members["agents.npy"], d.members["agents.npy"], atol=1e-5)
        assert alone.outcome == d.outcome
        differ = alone.members["cam_front.npy"] != d.members["cam_front.npy"]
        assert differ.mean() < 1e-3


def test_draws_of_one_seed_differ(teacher):
    """K draws of one decision point share the initial state and take several outcomes."""
    draws = list(teacher.sample([case_request("animal_on_road", k) for k in range(32)]))
    assert len({d.outcome for d in draws}) >= 3
    first = np.stack([d.members["agents.npy"][0, :, :2] for d in draws])
    last = np.stack([d.members["agents.npy"][-1, :, :2] for d in draws])
    # after 0.1 s only the jitter (4.5 cm) and a little of the slow modes can show
    assert first.std(axis=0).max() < 0.1
    assert last.std(axis=0).max() > 1.0


def test_bad_request_takes_no_sibling_down(teacher, requests):
    """Requests of another world are named failures; the others in the batch get their samples."""
    bad = Request(seed_id="bad", k=3, rng_seed=1, axes={"weather": "hail"}, scenario="cut_in", params={})
    answers = list(teacher.sample([requests[0], bad, requests[1]]))
    failures = [a for a in answers if isinstance(a, Failure)]
    assert [(f.seed_id, f.k, f.kind) for f in failures] == [("bad", 3, "invalid")]
    assert "weather is 'hail'" in failures[0].reason
    assert {a.seed_id for a in answers if isinstance(a, Draw)} == {requests[0].seed_id, requests[1].seed_id}
    assert list(teacher.sample([])) == []


@pytest.mark.parametrize("weather", AXES["weather"])
def test_control_gain_is_recovered_by_regression(teacher, weather):
    """Regressing the ego's final x on the commanded acceleration gives gain * 2.4^2 / 2, the known law.

    400 draws with independent noise, 4.9 standard errors (false alarm 1e-6). The chain starts from N(0, 157^2)
    rather than from the noised data, which shrinks a mean by F = s / 157 < 1%; that is allowed for.
    """
    axes = {"weather": weather, "light": "day", "district": "residential"}
    params = {k: v for k, v in CASES["pedestrian_crossing"]["params"].items() if k != "ego_accel"}
    u = np.tile([-1.2, -0.6, 0.6, 1.2], 100)
    conditions = [{"axes": axes, "scenario": "car_following", "params": {**params, "ego_accel": a}} for a in u]
    import torch

    noise = [torch.Generator().manual_seed(draw_rng_seed("tests", weather, k)) for k in range(len(u))]
    x = teacher.load()(conditions, generator=noise).trajectories[:, 0, 0, -1]
    fit = stats.linregress(u, x)
    wanted = control_gain(axes) * 2.4**2 / 2
    assert {"clear": 1.0, "rain": 0.86, "snow": 0.62}[weather] == control_gain(axes)
    assert abs(fit.slope - wanted) < 4.9 * fit.stderr + 0.01 * wanted


def test_recorded_control_and_pose_follow_the_trajectory(teacher, requests):
    """Pose and action are the ego's: positions equal, quaternions of unit length, speeds integrate to the path."""
    for d in teacher.sample(requests):
        pose, agents = d.members["pose.npy"], d.members["agents.npy"]
        np.testing.assert_array_equal(pose[:, :2], agents[:, 0, :2])
        np.testing.assert_allclose(np.linalg.norm(pose[:, 3:], axis=1), 1, atol=1e-6)
        # trapezoids over the smooth speed against the path, which keeps the 4.5 cm jitter
        travelled = np.sum((agents[1:, 0, 2] + agents[:-1, 0, 2]) / 2) * 0.1
        assert abs(travelled - (agents[-1, 0, 0] - agents[0, 0, 0])) < 0.35
        gained = np.sum((d.members["action.npy"][1:, 0] + d.members["action.npy"][:-1, 0]) / 2) * 0.1
        speed = np.hypot(agents[:, 0, 2], agents[:, 0, 3])
        assert abs(gained - (speed[-1] - speed[0])) < 0.05


def test_lidar_and_state_agree_in_the_records(teacher, requests):
    """In every record the returns near the actor's stated place lie on its box, within the range noise."""
    seen = 0
    for d, r in zip(teacher.sample(requests), requests, strict=True):
        points, pose, agents = d.members["lidar.npz"], d.members["pose.npy"], d.members["agents.npy"]
        length, width, height = SIZES_M[d.members["meta.json"]["agents"][1]]
        for i, step in enumerate(SENSOR_STEPS):
            xyz = points["xyz"][points["offsets"][i] : points["offsets"][i + 1]].astype(float)
            yaw = 2 * math.atan2(pose[step, 5], pose[step, 6])
            c, s = math.cos(yaw), math.sin(yaw)
            world = pose[step, :2] + np.stack([c * xyz[:, 0] - s * xyz[:, 1], s * xyz[:, 0] + c * xyz[:, 1]], 1)
            x, y, vx, vy = agents[step, 1].astype(float)
            facing = math.atan2(vy, vx) if math.hypot(vx, vy) > 0.7 else 0.0
            c, s = math.cos(facing), math.sin(facing)
            dx, dy = world[:, 0] - x, world[:, 1] - y
            local = np.abs(np.stack([c * dx + s * dy, c * dy - s * dx], 1)) - (length / 2, width / 2)
            noise_m = 6 * lidar.RANGE_NOISE_M[r.axes["weather"]]
            z = xyz[:, 2]
            near = (local.max(1) < noise_m) & (z > 0.3) & (z < height + noise_m)
            # whatever lies inside the box's outline is on its surface, not within
            depth = np.minimum(-local.max(1), height - z)[near]
            assert np.all(depth < noise_m)
            seen += near.sum()
    assert seen > 40


def test_captured_states_replay_the_sample(teacher, requests):
    """Capture adds noise, latent and the states before each step; only those who ask get them."""
    asked = dataclasses.replace(requests[1], capture=frozenset(["trajectory"]))
    plain, full = teacher.sample([requests[0], asked])
    assert "noise.npy" not in plain.members
    m = full.members
    assert m["traj.npy"].shape == (32, 3, 2, 24)
    assert m["traj_t.npy"].shape == (32,)
    np.testing.assert_allclose(m["traj.npy"][0], m["noise.npy"] * 157.4073, rtol=1e-5)
    mix = mixture(asked.axes, asked.scenario, asked.params)
    path = mix.anchor_m + WORLD.latent_unit_m * (m["latent.npy"] @ basis())
    np.testing.assert_allclose(path.transpose(2, 0, 1), m["agents.npy"][:, :, :2], atol=1e-4)
    import torch

    again = teacher.load()(
        [{"axes": asked.axes, "scenario": asked.scenario, "params": asked.params}],
        latents=torch.from_numpy(m["noise.npy"])[None],
    )
    np.testing.assert_allclose(again.latents[0].numpy(), m["latent.npy"], atol=1e-6)


def test_outcome_is_the_samples_own(teacher):
    """The label is read off the finished trajectory: who 'crosses' has left the kerb, who 'waits' has not."""
    for d in teacher.sample([case_request("pedestrian_crossing", k) for k in range(32)]):
        y = d.members["agents.npy"][:, 1, 1]
        moved = y[-1] + 3.2
        # at 2.4 s, mean and standard deviation: crosses 3.45 m, 0.55 m; hesitates is back at 0.07 m, 0.3 m,
        # after 1.5 m at most; waits stays at 0.07 m, 0.12 m
        assert {"crosses": moved > 1.4, "waits": y.max() < -2.5, "hesitates": y.max() > -2.6 and moved < 1.2}[d.outcome]


def test_saved_folder_is_a_teacher_too(tmp_path, teacher, requests):
    """A folder saved from the bundled world gives the same records, and its hash is that of its files."""
    save(tmp_path / "crossing")
    other = CrossingTeacher(path=str(tmp_path / "crossing"))
    ours, theirs = (list(t.sample(requests[:2])) for t in (teacher, other))
    assert [flat(d.members) for d in ours] == [flat(d.members) for d in theirs]
    before = other.describe().content_hash
    config = tmp_path / "crossing" / "score" / "config.json"
    data = json.loads(config.read_text())
    data["world"]["floor_std"] = 0.03
    config.write_text(json.dumps(data))
    assert CrossingTeacher(path=str(tmp_path / "crossing")).describe().content_hash != before


def test_what_a_request_gets_is_pinned(teacher):
    """Two requests still get what they got when the world was committed; if not, CODE_VERSION must rise.

    Seen at version 1: final agent positions (m, to 5 mm) and mean brightness of the six pictures (to 0.3).
    """
    wanted = {
        "pedestrian_crossing": (
            "crosses",
            [[17.724, 0.080], [25.672, 0.007], [27.944, 3.550]],
            [41.46, 40.05, 40.07, 39.89, 39.94, 42.41],
        ),
        "animal_on_road": (
            "turns_back",
            [[21.968, 0.125], [26.729, 5.302], [32.131, 3.552]],
            [110.64, 109.49, 109.15, 108.07, 108.08, 106.92],
        ),
    }
    for d, (outcome, places, means) in zip(
        teacher.sample([case_request(c) for c in wanted]), wanted.values(), strict=True
    ):
        assert d.outcome == outcome
        np.testing.assert_allclose(d.members["agents.npy"][-1, :, :2], places, atol=5e-3)
        np.testing.assert_allclose(d.members["cam_front.npy"].mean(axis=(1, 2, 3)), means, atol=0.3)
