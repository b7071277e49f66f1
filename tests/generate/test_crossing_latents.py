"""What the crossing teacher offers to students: conditions, noise, and decoding of any finished latent."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch

from distdata.catalogs.errors import DistdataError
from distdata.catalogs.hashing import draw_rng_seed
from distdata.catalogs.protocol import Draw, Failure, LatentTeacher, Request
from distdata.generate.teachers.crossing.conditions import conditions, n_conditions
from distdata.generate.teachers.crossing.law import STATE_KEYS, mixture
from distdata.generate.teachers.crossing.reference import karras_levels
from distdata.generate.teachers.crossing.seeds import seeds
from distdata.generate.teachers.crossing.teacher import CrossingTeacher
from distdata.generate.teachers.crossing.world import AXES, OUTCOMES, WORLD, World
from distdata.generate.teachers.diffusers import DiffusersTeacher


@pytest.fixture(scope="module")
def teacher():
    return CrossingTeacher()


@pytest.fixture(scope="module")
def rows():
    return seeds(600, "latents").to_pylist()


def request(row, k=0, capture=(), **changes):
    return Request(
        seed_id=row["seed_id"],
        k=k,
        rng_seed=draw_rng_seed("latents", row["seed_id"], k),
        axes={a: row[a] for a in AXES},
        scenario=row["scenario"],
        params={**json.loads(row["params"]), **changes},
        capture=frozenset(capture),
    )


@pytest.fixture(scope="module")
def asked(rows):
    """Return one request of every scenario type."""
    return [request(next(r for r in rows[i * 29 :] if r["scenario"] == s)) for i, s in enumerate(WORLD.scenarios)]


@pytest.fixture(scope="module")
def own(teacher, asked):
    """Return the teacher's own draws, and its latents in float64 as its chain left them."""
    pipeline = teacher.load()
    noise = [torch.Generator().manual_seed(r.rng_seed) for r in asked]
    latents = pipeline(**pipeline.distdata_inputs(asked), generator=noise, num_inference_steps=32).latents.numpy()
    return list(teacher.sample(asked)), latents


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


def test_crossing_is_a_latent_teacher(teacher):
    """The teacher offers what a student of its latents needs."""
    assert isinstance(teacher, LatentTeacher)


def test_decoding_its_own_latents_gives_its_own_records(teacher, asked, own):
    """From the chain's own float64 latents the records come back byte for byte, labels and sensors included."""
    draws, latents = own
    again = list(teacher.decode(asked, latents))
    assert [(d.seed_id, d.k, d.outcome) for d in again] == [(d.seed_id, d.k, d.outcome) for d in draws]
    assert [flat(d.members) for d in again] == [flat(d.members) for d in draws]


def test_decoding_stored_latents_gives_the_same_future(teacher, asked, own):
    """From float32 `latent.npy`, as a student's would be, labels are equal and paths to a tenth of a millimetre."""
    draws, _ = own
    stored = np.stack([d.members["latent.npy"] for d in draws])
    assert stored.dtype == np.float32
    for a, b in zip(teacher.decode(asked, stored), draws, strict=True):
        assert a.outcome == b.outcome
        for name in ("pose.npy", "action.npy", "agents.npy"):
            np.testing.assert_allclose(a.members[name], b.members[name], atol=1e-4)
        assert (a.members["cam_front.npy"] != b.members["cam_front.npy"]).mean() < 1e-3


def test_a_moved_latent_is_labelled_for_what_it_is(teacher, rows):
    """A latent put at another outcome's mean gets that outcome's label and record, whatever the draw was."""
    row = next(r for r in rows if r["scenario"] == "pedestrian_crossing" and r["decision_point"])
    law = mixture(row, row["scenario"], json.loads(row["params"]))
    found = list(teacher.decode([request(row, k) for k in range(3)], law.mean.astype(np.float32)))
    assert [d.outcome for d in found] == list(law.names)
    assert [d.members["meta.json"]["outcome"] for d in found] == list(law.names)


def test_noise_is_where_the_chain_starts(teacher, asked):
    """`noise` is what capture stores as ``noise.npy``, and its own generator's whatever the batch."""
    captured = [dataclasses.replace(r, capture=frozenset(["trajectory"])) for r in asked[:2]]
    noise = teacher.noise(asked)
    assert (noise.dtype, noise.shape) == (np.float32, (len(asked), 3, 2, 24))
    for i, d in enumerate(teacher.sample(captured)):
        np.testing.assert_array_equal(d.members["noise.npy"], noise[i])
        np.testing.assert_array_equal(noise[i], teacher.noise([asked[i]])[0])
    assert teacher.noise([]).shape == (0, 3, 2, 24)


def test_captured_levels_are_the_chains(teacher, asked):
    """``traj_sigma.npy`` holds the 32 noise levels, as the reference writes them; states start at the first."""
    (draw,) = teacher.sample([dataclasses.replace(asked[1], capture=frozenset(["trajectory"]))])
    m = draw.members
    np.testing.assert_allclose(m["traj_sigma.npy"], karras_levels(32)[:-1], rtol=1e-4)
    np.testing.assert_allclose(m["traj.npy"][0], m["noise.npy"] * m["traj_sigma.npy"][0], rtol=1e-5)


def test_records_hold_the_conditions(teacher, asked, own):
    """``cond.npy`` is what `conditions` tells, float32 and as long for every seed of the world."""
    told = teacher.conditions(asked)
    assert (told.dtype, told.shape) == (np.float32, (len(asked), n_conditions(WORLD)))
    np.testing.assert_array_equal(told, np.stack([d.members["cond.npy"] for d in own[0]]))


def test_conditions_are_one_hots_and_standardised_numbers(rows):
    """Cell and commitment are one-hot, numbers lie within a few units over 600 seeds, products are products."""
    n_values = sum(len(v) for v in AXES.values())
    n_pairs = sum(len(AXES[a]) * len(AXES[b]) for a, b in itertools.combinations(AXES, 2))
    asked = [request(r) for r in rows]
    told = conditions(asked, WORLD)
    cell, pairs, told = told[:, :n_values], told[:, n_values : n_values + n_pairs], told[:, n_values + n_pairs :]
    scenario, start = told[:, : len(WORLD.scenarios)], len(WORLD.scenarios) + len(OUTCOMES)
    committed, numbers = told[:, start - len(OUTCOMES) : start], told[:, start:]
    assert (cell.sum(1) == len(AXES)).all()
    assert (pairs.sum(1) == 3).all()
    weather, light = cell[:, :3], cell[:, 3:6]
    np.testing.assert_array_equal(pairs[:, :9], (weather[:, :, None] * light[:, None, :]).reshape(-1, 9))
    assert (scenario.sum(1) == 1).all()
    for i, row in enumerate(rows):
        params = json.loads(row["params"])
        names = [o for o, on in zip(OUTCOMES, committed[i], strict=True) if on]
        assert names == ([params["committed"]] if params["committed"] else [])
        assert numbers[i, -1] == pytest.approx(params["side"] * params["pace"] / 1.4)
    assert numbers.shape[1] == len(STATE_KEYS) + 1
    assert np.abs(numbers).max() < 4


def test_conditions_tell_all_that_decides_the_law(asked):
    """Changing anything that the law depends on changes the conditions; what only the pictures show does not."""
    base = asked[1]
    told = conditions([base], WORLD)
    for key in STATE_KEYS:
        other = dataclasses.replace(base, params={**base.params, key: base.params[key] + 0.25})
        assert (conditions([other], WORLD) != told).any(), key
    names = [o.name for o in WORLD.scenarios[base.scenario].outcomes]
    seen = [conditions([dataclasses.replace(base, params={**base.params, "committed": n})], WORLD) for n in names]
    assert len({x.tobytes() for x in (told, *seen)}) == len(names) + 1
    street = dataclasses.replace(base, params={**base.params, "street": 5})
    np.testing.assert_array_equal(conditions([street], WORLD), told)


def test_a_changed_world_has_its_own_conditions(asked):
    """A world with a further outcome tells of it: one number more per seed."""
    data = WORLD.to_dict()
    data["scenarios"]["cut_in"]["outcomes"] = [
        *data["scenarios"]["cut_in"]["outcomes"],
        {**data["scenarios"]["cut_in"]["outcomes"][0], "name": "overtakes"},
    ]
    world = World.from_dict(data)
    assert conditions(asked, world).shape[1] == n_conditions(world) == n_conditions(WORLD) + 1


def test_foreign_requests_and_broken_latents(teacher, asked, own):
    """Another world's request is a ValueError to `conditions` and a Failure to `decode`; so is a latent with a NaN."""
    foreign = dataclasses.replace(asked[0], seed_id="far", scenario="regatta")
    with pytest.raises(ValueError, match="seed far: no scenario type 'regatta'"):
        teacher.conditions([asked[0], foreign])
    latents = own[1][:3].astype(np.float32)
    latents[1, 0, 0, 5] = np.nan
    answers = list(teacher.decode([foreign, asked[1], asked[2]], latents))
    failed = {a.seed_id: (a.kind, a.reason) for a in answers if isinstance(a, Failure)}
    assert failed[asked[1].seed_id] == ("invalid", "1 of 144 values of the latent are not finite")
    assert failed["far"][0] == "invalid"
    assert "regatta" in failed["far"][1]
    assert [a.seed_id for a in answers if isinstance(a, Draw)] == [asked[2].seed_id]
    with pytest.raises(ValueError, match="2 latents for 3 requests"):
        list(teacher.decode(asked[:3], latents[:2]))


def test_a_pipeline_without_hooks_cannot_decode(tmp_path, asked):
    """A plain diffusers pipeline is told which methods its class needs before students of it can be served."""
    from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel

    unet = UNet2DModel(
        sample_size=8, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1, in_channels=3, out_channels=3,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    DDPMPipeline(unet=unet, scheduler=DDIMScheduler()).save_pretrained(tmp_path)
    plain = DiffusersTeacher(path=str(tmp_path), steps=2)
    for ask in (plain.conditions, plain.noise, lambda r: list(plain.decode(r, np.zeros((1, 1), np.float32)))):
        with pytest.raises(DistdataError, match="can't decode a student's latents: DDPMPipeline has no distdata_"):
            ask(asked[:1])
