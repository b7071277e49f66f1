"""Students of latents, learned and served: a world of two modes whose law is known, and the crossing teacher."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import ClassVar

import numpy as np
import pytest
import torch

from distdata.catalogs.config import TeacherConfig
from distdata.catalogs.errors import DistdataError
from distdata.catalogs.hashing import draw_rng_seed
from distdata.catalogs.protocol import Draw, Failure, LatentTeacher, MemberSpec, Request, Teacher, TeacherInfo
from distdata.generate.teachers.crossing.reference import CASES
from distdata.generate.teachers.registry import make_teacher
from distdata.train_min import capacity, regression
from distdata.train_min.checkpoint import network_weights, student_weights, write_student
from distdata.train_min.job import Facts
from distdata.train_min.latent_student import LatentStudent, draw_latents
from distdata.train_min.quantise import dequantised, quantised, write_int8
from distdata.train_min.recipes import find_recipe, resolve_settings
from distdata.train_min.student import open_student

SHARE: dict[float, float] = {0.0: 0.8, 1.0: 0.3}
"""Condition -> probability of the mode at +1 in the first coordinate; the other mode is at -1."""
SPREAD, QUIET = 0.1, 0.02
"""Standard deviations of the first coordinate around its mode, and of the second around 0.5."""
SMALL = {"width": 32, "depth": 1, "sigma_mean": -0.5, "sigma_max": 20.0}


def draws(n, seed):
    """Return latents float32 [n, 2] and conditions float32 [n, 1] of the two-mode world."""
    rng = np.random.default_rng(seed)
    cond = rng.integers(0, 2, n).astype(np.float32)
    mode = np.where(rng.random(n) < np.where(cond == 0, SHARE[0.0], SHARE[1.0]), 1.0, -1.0)
    latent = np.stack([mode + SPREAD * rng.standard_normal(n), 0.5 + QUIET * rng.standard_normal(n)], 1)
    return latent.astype(np.float32), cond[:, None]


def samples(latent, cond, **more):
    """Return decoded samples as a learner's `collate` takes them."""
    return [
        {"latent.npy": x, "cond.npy": c, "weight": 1.0, "clean": False, "row": i, **{k: v[i] for k, v in more.items()}}
        for i, (x, c) in enumerate(zip(latent, cond, strict=True))
    ]


def facts(found, **changes):
    """Return the facts of samples, as the loop finds them."""
    latent = np.stack([s["latent.npy"] for s in found]).astype(np.float64)
    cond = np.stack([s["cond.npy"] for s in found]).astype(np.float64)
    values = {
        "n_samples": len(found), "kind": "rollout", "latent": latent.shape[1:], "mean": latent.mean(0),
        "std": latent.std(0), "n_conditions": cond.shape[1], "cond_mean": cond.mean(0), "cond_std": cond.std(0),
        "vocabulary": 0, "max_token": -1, "max_tokens": 0, "sample": found[0], "teacher": {},
    }  # fmt: skip
    return Facts(**{**values, **changes})


def trained(learner, found, steps, batch=256):
    """Train a learner's network on samples by plain Adam, and return it ready to be sampled."""
    corpus = learner.collate(found)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(learner.network.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(found), (batch,), generator=generator)
        losses, _ = learner.loss({name: t[rows] for name, t in corpus.items()}, generator)
        assert losses.shape == (batch,)
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        schedule.step()
    return learner.network.eval().requires_grad_(False)


class TwoModes:
    """The two-mode world as a `LatentTeacher`: scenario ``fork``, param ``c`` 0 or 1; it keeps what it decoded."""

    members: ClassVar = {"latent.npy": MemberSpec(dtype="float32", shape=(2,))}

    def __init__(self):
        self.decoded = []

    def describe(self):
        return TeacherInfo(
            id="two_modes", version="1", content_hash="0" * 16, kind="rollout", members=self.members,
            outcomes=("left", "right"),
        )  # fmt: skip

    def sample(self, requests):
        return self.decode(requests, self.noise(requests))

    def conditions(self, requests):
        for r in requests:
            if r.scenario != "fork":
                raise ValueError(f"no scenario {r.scenario!r}")
        return np.array([[r.params["c"]] for r in requests], np.float32)

    def noise(self, requests):
        return np.stack([np.random.default_rng(r.rng_seed).standard_normal(2) for r in requests]).astype(np.float32)

    def decode(self, requests, latents):
        self.decoded.append(latents)
        for r, x in zip(requests, latents, strict=True):
            yield Draw(seed_id=r.seed_id, k=r.k, members={"latent.npy": x}, outcome="right" if x[0] > 0 else "left")


def request(i, scenario="fork", c=0.0):
    return Request(seed_id=f"s{i}", k=0, rng_seed=i, axes={}, scenario=scenario, params={"c": c})


def written(folder, learner, family):
    """Write a learner's student as the loop does and return its header."""
    folder.mkdir(exist_ok=True)
    return write_student(
        folder,
        network_weights(learner.network),
        {"family": family, "recipe": "test", "network": learner.describe(), "precision": "float32"},
    )


@pytest.fixture(scope="module")
def corpus():
    return samples(*draws(4000, seed=1))


@pytest.fixture(scope="module")
def learner(corpus):
    """A capacity learner after 1,500 steps of 256 draws."""
    torch.manual_seed(0)
    found = capacity.build(SMALL, facts(corpus))
    trained(found, corpus, 1500)
    return found


@pytest.fixture
def folder(tmp_path, learner):
    written(tmp_path / "student", learner, "denoiser")
    return tmp_path / "student"


def test_capacity_student_learns_both_modes(learner):
    """A trained denoiser gives each condition its own shares of both modes, their places and both dimensions' spreads.

    4,000 draws per condition: standard errors of a share 0.007 for student and for its 2,000 training draws 0.010;
    5 of both together, and 0.03 for what 1,500 steps leave, make 0.09. The modes' distance from 0 is 10 spreads.
    """
    noise = np.random.default_rng(5).standard_normal((4000, 2)).astype(np.float32)
    for c, share in SHARE.items():
        found = draw_latents(learner.network, learner.describe(), np.full((4000, 1), c, np.float32), noise)
        right = found[:, 0] > 0
        assert abs(right.mean() - share) < 0.09
        for side, place in ((right, 1.0), (~right, -1.0)):
            assert abs(np.median(found[side, 0]) - place) < 0.05
        assert 0.8 * SPREAD < found[right, 0].std() < 1.6 * SPREAD  # a few draws end between the modes
        assert abs(found[:, 1].mean() - 0.5) < QUIET
        assert 0.7 * QUIET < found[:, 1].std() < 1.3 * QUIET


def test_regression_student_averages_the_modes(corpus, tmp_path):
    """A trained regressor answers a condition with its mean, 2 p - 1, whatever the noise: a place where no draw is.

    The mean of 2,000 draws has a standard error of 0.02; 5 of them.
    """
    torch.manual_seed(0)
    learner = regression.build({"width": 32, "depth": 1}, facts(corpus))
    trained(learner, corpus, 300)
    written(tmp_path / "r", learner, "regressor")
    student = open_student(path=str(tmp_path / "r"), decoder=TwoModes())
    for c, share in SHARE.items():
        found = np.stack([d.members["latent.npy"] for d in student.sample([request(i, c=c) for i in range(20)])])
        assert (found == found[0]).all()
        assert abs(found[0, 0] - (2 * share - 1)) < 0.1
        assert abs(found[0, 1] - 0.5) < QUIET


def flow_of_a_gaussian(n, n_steps):
    """Return ends, noise, states [n, S, 2] and levels [n, S] of the exact flow of N(0.5, 0.3^2) in two dimensions."""
    levels = np.geomspace(10.0, 0.01, n_steps)
    noise = np.random.default_rng(2).standard_normal((n, 1, 2))
    ratio = np.sqrt(0.09 + levels**2) / np.sqrt(0.09 + levels[0] ** 2)
    states = 0.5 + (levels[0] * noise - 0.5) * ratio[None, :, None]
    end = 0.5 + 0.09 / (0.09 + levels[-1] ** 2) * (states[:, -1] - 0.5)
    return end, noise[:, 0], states, np.broadcast_to(levels, (n, n_steps))


def test_outputs_are_matched_along_trajectories():
    """Trained on 64 trajectories, a student follows the teacher's flow on new noise to a tenth of the law's spread."""
    end, _, states, levels = flow_of_a_gaussian(64, 40)
    cond = np.zeros((64, 1), np.float32)
    found = samples(end.astype(np.float32), cond, **{"traj.npy": states, "traj_sigma.npy": levels})
    torch.manual_seed(0)
    # scales that are off on purpose: with the law's own, the untrained network would be right already
    off = facts(found, mean=np.zeros(2), std=np.ones(2))
    settings = {**SMALL, "match": "outputs", "sigma_mean": -1.0, "sigma_spread": 1.5, "sigma_max": 10.0}
    learner = capacity.build({**settings, "sampler_steps": 40}, off)
    assert set(learner.members) == {"latent.npy", "cond.npy", "traj.npy", "traj_sigma.npy"}
    noise = np.random.default_rng(9).standard_normal((200, 2)).astype(np.float32)
    wanted = 0.5 + (10 * noise - 0.5) * 0.3 / math.hypot(0.3, 10)

    def miss():
        end = draw_latents(learner.network, learner.describe(), np.zeros((200, 1), np.float32), noise)
        return float(np.sqrt(np.mean((end - wanted) ** 2)))

    assert miss() > 0.3
    trained(learner, found, 800, batch=64)
    assert miss() < 0.03


def test_outputs_without_trajectories_are_refused(corpus):
    """Matching outputs of draws that captured none says what to capture."""
    with pytest.raises(DistdataError, match=r"needs traj.npy, traj_sigma.npy.*trajectory"):
        capacity.build({**SMALL, "match": "outputs"}, facts(corpus))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"match": "guesses"}, "match = 'guesses'; it can be draws or outputs"),
        ({"sigma_min": 5.0, "sigma_max": 2.0}, "sigma_min = 5 and sigma_max = 2"),
        ({"sampler_steps": 1}, "sampler_steps = 1; it must be at least 2"),
        ({"width": 0}, "width = 0; it must be at least 1"),
        ({"feature_map": {"block0": "mid"}}, "no feat_mid.npy"),
    ],
)
def test_bad_settings_are_refused(corpus, settings, message):
    """A setting out of its range, or a feature that isn't stored, is an error with the value and what would do."""
    with pytest.raises(DistdataError, match=message):
        capacity.build({**SMALL, **settings}, facts(corpus))


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, (0.5, 1.4, 0.7)),
        ({"match": "outputs"}, (1.0, 1.6, 0.5)),
        ({"match": "outputs", "sigma_mean": -1, "dims_power": None}, (-1.0, 1.6, 0.5)),
        ({"dims_power": 0.0}, (0.5, 1.4, 0.0)),
    ],
)
def test_what_is_left_open_suits_what_is_matched(corpus, settings, wanted):
    """Noise levels and weights that nobody set are those of the match; what is set stays, 0 included."""
    states = {"traj.npy": np.zeros((2, 2)), "traj_sigma.npy": np.ones(2)}
    whole = resolve_settings(find_recipe("capacity"), settings)
    learner = capacity.build(whole, facts(corpus, sample={**corpus[0], **states}))
    assert tuple(learner.settings[k] for k in ("sigma_mean", "sigma_spread", "dims_power")) == wanted


@pytest.mark.parametrize("value", ["high", True, float("nan"), [1.0]])
def test_open_settings_take_numbers_only(corpus, value):
    """A setting without a default of its own is still held to be a finite number."""
    with pytest.raises(DistdataError, match=r"sigma_mean = .*; it must be a number, such as 0\.5"):
        capacity.build({"sigma_mean": value}, facts(corpus))


@pytest.mark.parametrize("build", [capacity.build, regression.build])
def test_samples_without_latents_are_refused(corpus, build):
    """Samples without a latent, or with one that never varies, are named as the reason."""
    with pytest.raises(DistdataError, match=r"no latent\.npy"):
        build(SMALL, facts(corpus, latent=()))
    with pytest.raises(DistdataError, match="all 4,000 latents are equal"):
        build(SMALL, facts(corpus, std=np.zeros(2)))


@pytest.mark.parametrize("along", [False, True])
def test_features_are_learned_beside_the_latents(corpus, along):
    """With a feature map the loss has a second part, which falls, and the projection is in the description.

    The feature is a linear function of the latent (or of each captured state), so that it can be learned.
    """
    latent = np.stack([s["latent.npy"] for s in corpus[:500]])
    cond = np.stack([s["cond.npy"] for s in corpus[:500]])
    levels = np.broadcast_to(np.float32([2.0, 0.5, 0.1]), (500, 3))
    states = latent[:, None] + levels[..., None] * np.random.default_rng(0).standard_normal((500, 3, 2))
    feature = (states if along else latent) @ np.float32([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]])
    more = {"traj.npy": states, "traj_sigma.npy": levels} if along else {}
    found = samples(latent, cond, **more, **{"feat_mid.npy": feature})
    torch.manual_seed(0)
    learner = capacity.build({**SMALL, "feature_map": {"block0": "mid"}}, facts(found))
    assert learner.describe()["features"] == {"block0": 3}
    batch = learner.collate(found)
    before = float(learner.loss(batch, torch.Generator().manual_seed(3))[1]["feature_loss"])
    trained(learner, found, 150)
    after = float(learner.loss(batch, torch.Generator().manual_seed(3))[1]["feature_loss"])
    assert after < 0.25 * before


def test_condition_noise_moves_the_conditions_only_in_training(corpus):
    """Noise on the conditions changes a trained network's training loss; two equal generators give equal losses."""
    torch.manual_seed(0)
    learner = capacity.build(SMALL, facts(corpus))
    trained(learner, corpus, 20)
    batch = learner.collate(corpus[:64])

    def loss(noise):
        learner.settings = {**learner.settings, "cond_noise": noise}
        return float(learner.loss(batch, torch.Generator().manual_seed(7))[0].mean())

    assert loss(0.5) == loss(0.5)
    assert loss(0.5) != loss(0.0)


def test_draws_start_from_the_teachers_noise(folder, learner):
    """A student's latents are its own flow from its teacher's noise for each request, decoded by the teacher."""
    decoder = TwoModes()
    student = open_student(path=str(folder), decoder=decoder)
    asked = [request(i, c=float(i % 2)) for i in range(8)]
    found = list(student.sample(asked))
    wanted = draw_latents(learner.network, learner.describe(), decoder.conditions(asked), decoder.noise(asked))
    assert isinstance(student, Teacher)
    np.testing.assert_array_equal(decoder.decoded[0], wanted)
    assert [d.outcome for d in found] == ["right" if x > 0 else "left" for x in wanted[:, 0]]
    again = list(open_student(path=str(folder), decoder=TwoModes()).sample(asked))
    assert [d.members["latent.npy"].tobytes() for d in found] == [d.members["latent.npy"].tobytes() for d in again]


def test_describe_is_the_artefact_with_the_teachers_records(folder):
    """A student is known by its artefact, priced by its own option, and promises what its teacher does."""
    info = open_student(path=str(folder), decoder=TwoModes(), usd_per_gpuh=0.5).describe()
    artefact = json.loads((folder / "student.json").read_text())["artefact"]
    assert (info.id, info.version, info.content_hash) == ("student", artefact[:8], artefact)
    assert (info.usd_per_gpuh, info.kind, info.outcomes) == (0.5, "rollout", ("left", "right"))
    assert info.members == TwoModes.members


def test_foreign_requests_fail_alone(folder):
    """A request of another world is an invalid answer that says why; the others get their draws."""
    answers = list(
        open_student(path=str(folder), decoder=TwoModes()).sample([request(0), request(1, "sky"), request(2)])
    )
    assert [(a.seed_id, a.kind, a.reason) for a in answers if isinstance(a, Failure)] == [
        ("s1", "invalid", "no scenario 'sky'")
    ]
    assert [a.seed_id for a in answers if isinstance(a, Draw)] == ["s0", "s2"]


def test_students_that_cannot_be_served_are_refused(folder, tmp_path):
    """No student, a teacher that can't decode, and a teacher of another world are errors that say so."""

    class Plain:
        def describe(self):
            return TwoModes().describe()

        def sample(self, requests):
            return []

    class Wider(TwoModes):
        def conditions(self, requests):
            return np.zeros((len(requests), 3), np.float32)

    with pytest.raises(DistdataError, match=r"no student\.json"):
        open_student(path=str(tmp_path), decoder=TwoModes())
    with pytest.raises(DistdataError, match="can't decode a student's latents; Plain lacks"):
        open_student(path=str(folder), decoder=Plain())
    with pytest.raises(DistdataError, match=r"1 conditions; its teacher gives .* and 3"):
        list(open_student(path=str(folder), decoder=Wider()).sample([request(0)]))
    header = json.loads((folder / "student.json").read_text())
    write_student(folder, student_weights(folder), {**header, "family": "oracle"})
    with pytest.raises(DistdataError, match="family 'oracle'; this version knows denoiser, regressor"):
        open_student(path=str(folder), decoder=TwoModes())


def test_int8_weights_are_within_half_a_step():
    """Symmetric int8 per output channel: no weight moves more than half its channel's scale; multiples don't move."""
    torch.manual_seed(0)
    weight = torch.randn(6, 50) * torch.logspace(-3, 2, 6)[:, None]
    weight[1] = 0.25 * torch.randint(-127, 128, (50,))
    weight[1, 0] = 0.25 * 127  # the scale is then 0.25 exactly
    weight[2] = 0.0
    stored = quantised({"a.weight": weight, "a.bias": torch.ones(6)}, ["a.weight"])
    assert (stored["a.weight"].dtype, stored["a.weight.scale"].shape) == (torch.int8, (6,))
    served = dequantised(stored)
    assert set(served) == {"a.weight", "a.bias"}
    scale = weight.abs().amax(1, keepdim=True) / 127
    assert ((served["a.weight"] - weight).abs() <= scale / 2 * 1.0001).all()
    torch.testing.assert_close(served["a.weight"][1:3], weight[1:3], rtol=0, atol=0)


def test_int8_copy_is_an_artefact_of_its_own(folder, learner):
    """The copy has its own hash, names what it was made from, is a quarter as wide, and draws nearly the same."""
    wanted = json.loads((folder / "student.json").read_text())
    header = write_int8(folder)
    assert write_int8(folder) == header
    assert header["precision"] == "int8"
    assert header["quantised_from"] == wanted["artefact"] != header["artefact"]
    tensors = student_weights(folder / "int8")
    linear = [n for n, m in learner.network.named_modules() if isinstance(m, torch.nn.Linear)]
    assert {n for n, t in tensors.items() if t.dtype == torch.int8} == {f"{n}.weight" for n in linear}
    asked = [request(i) for i in range(200)]
    whole, small = (open_student(path=str(f), decoder=TwoModes()) for f in (folder, folder / "int8"))
    assert small.describe().content_hash == header["artefact"]
    pairs = list(zip(whole.sample(asked), small.sample(asked), strict=True))
    assert np.mean([a.outcome == b.outcome for a, b in pairs]) > 0.95
    assert any(a.members["latent.npy"].tobytes() != b.members["latent.npy"].tobytes() for a, b in pairs)
    with pytest.raises(DistdataError, match="precision is int8 already"):
        write_int8(folder / "int8")
    with pytest.raises(DistdataError, match="nothing to quantise"):
        write_int8(folder.parent)


@pytest.fixture(scope="module")
def crossing():
    return make_teacher(TeacherConfig(kind="crossing"), None)


def crossing_request(k=0, **params):
    case = CASES["pedestrian_crossing"]
    return Request(
        seed_id="case", k=k, rng_seed=draw_rng_seed("tests", "case", k), axes=case["axes"], scenario=case["scenario"],
        params={**case["params"], **params},
    )  # fmt: skip


def test_a_student_of_crossing_is_a_teacher_by_its_table(crossing, tmp_path):
    """`kind = "student"` with its teacher's table gives whole crossing records; wrong tables say what is missing."""
    asked = [crossing_request(k) for k in range(3)]
    found = [{**d.members, "weight": 1.0, "clean": False, "row": i} for i, d in enumerate(crossing.sample(asked))]
    written(tmp_path / "student", capacity.build({"width": 8, "depth": 1}, facts(found)), "denoiser")
    table = {"kind": "crossing", "options": {"steps": 32}}
    config = TeacherConfig(kind="student", options={"path": "student", "teacher": table})
    student = make_teacher(config, tmp_path)
    assert isinstance(student, LatentStudent)
    assert isinstance(crossing, LatentTeacher)
    answers = list(student.sample(asked))
    assert [set(d.members) for d in answers] == [set(d.members) for d in crossing.sample(asked)]
    np.testing.assert_array_equal(answers[0].members["cond.npy"], found[0]["cond.npy"])
    for options, message in (
        ({"path": "student"}, "needs teacher.options.teacher"),
        ({"path": "student", "teacher": {"kind": "student"}}, "needs teacher.options.teacher"),
        ({"path": "student", "teacher": {"kind": "crossing", "speed": 1}}, "speed"),
        ({"path": "student", "teacher": table, "colour": 1}, "colour"),
        ({"teacher": table}, "needs path"),
        ({"path": "student", "teacher": {"kind": "highway"}}, "HighwayTeacher lacks"),
    ):
        with pytest.raises(DistdataError, match=message):
            make_teacher(TeacherConfig(kind="student", options=options), tmp_path)


def test_conditions_noise_and_decoding_stand_apart(crossing):
    """A request's conditions and noise don't depend on its siblings, and capture changes neither."""
    asked = [crossing_request(k, ego_accel=0.6 * k) for k in range(3)]
    alone = [crossing.conditions([r])[0] for r in asked]
    np.testing.assert_array_equal(crossing.conditions(asked), alone)
    captured = dataclasses.replace(asked[1], capture=frozenset(["trajectory"]))
    np.testing.assert_array_equal(crossing.noise([captured])[0], crossing.noise(asked)[1])
