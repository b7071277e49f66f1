"""Any diffusers pipeline runs as a teacher: real tiny pipelines, saved to a folder and loaded back."""

from __future__ import annotations

import json

import numpy as np
import pytest

from distdata.catalogs.errors import DistdataError
from distdata.catalogs.hashing import draw_rng_seed
from distdata.catalogs.protocol import Draw, Failure, Request, Teacher
from distdata.generate.teachers.chain_states import record_states
from distdata.generate.teachers.diffusers import DiffusersTeacher


def request(seed_id="s", k=0, capture=(), **params):
    return Request(
        seed_id=seed_id,
        k=k,
        rng_seed=draw_rng_seed("tests", seed_id, k),
        axes={"light": "day"},
        scenario="any",
        params=params,
        capture=frozenset(capture),
    )


@pytest.fixture(scope="module")
def ddpm_folder(tmp_path_factory):
    """An unconditional pixel pipeline with random weights."""
    import torch
    from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    folder = tmp_path_factory.mktemp("ddpm")
    DDPMPipeline(unet=unet, scheduler=DDIMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dit_folder(tmp_path_factory):
    """A class-conditional latent pipeline with random weights."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=4,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # ada_norm_zero starts at nothing
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, sample_size=8)
    folder = tmp_path_factory.mktemp("dit")
    DiTPipeline(transformer=transformer.eval(), vae=vae.eval(), scheduler=DDIMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ddpm(ddpm_folder):
    return DiffusersTeacher(path=str(ddpm_folder), steps=4)


def test_unconditional_pipeline_gives_pairs(ddpm):
    """A pixel pipeline yields noise, latent and picture per draw, all its own."""
    draws = list(ddpm.sample([request(k=k) for k in range(3)]))
    assert isinstance(ddpm, Teacher)
    for d in draws:
        assert isinstance(d, Draw)
        assert d.members["image.npy"].shape == (16, 16, 3)
        assert d.members["image.npy"].dtype == np.uint8
        assert d.members["noise.npy"].shape == d.members["latent.npy"].shape == (3, 16, 16)
        assert "traj.npy" not in d.members
        json.dumps(d.members["meta.json"])
        # the picture is the latent: (x / 2 + 0.5) in 0..255
        shown = np.clip(d.members["latent.npy"].transpose(1, 2, 0) / 2 + 0.5, 0, 1) * 255
        assert np.abs(shown - d.members["image.npy"]).max() <= 0.51
    assert len({d.members["image.npy"].tobytes() for d in draws}) == 3


def test_same_request_same_bytes_and_other_k_other_noise(ddpm_folder):
    """Two teachers give one batch the same bytes; the noise is torch.randn of the request's own generator."""
    import torch

    a, b = (list(DiffusersTeacher(path=str(ddpm_folder), steps=4).sample([request(k=0), request(k=1)])) for _ in "ab")
    for x, y in zip(a, b, strict=True):
        assert {n: m.tobytes() for n, m in x.members.items() if n.endswith(".npy")} == {
            n: m.tobytes() for n, m in y.members.items() if n.endswith(".npy")
        }
    wanted = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(request(k=1).rng_seed))
    np.testing.assert_array_equal(a[1].members["noise.npy"], wanted.numpy())
    assert not np.array_equal(a[0].members["noise.npy"], a[1].members["noise.npy"])


def test_noise_does_not_depend_on_the_batch(ddpm):
    """Alone or in company a request starts from equal noise and ends within float32 rounding."""
    together = list(ddpm.sample([request(k=k) for k in range(3)]))
    (alone,) = ddpm.sample([request(k=2)])
    np.testing.assert_array_equal(alone.members["noise.npy"], together[2].members["noise.npy"])
    np.testing.assert_allclose(alone.members["latent.npy"], together[2].members["latent.npy"], atol=1e-4)


def test_ode_record_holds_every_state(ddpm_folder):
    """Record kind `ode` keeps the states before each step, the first one the noise, and their times."""
    (d,) = DiffusersTeacher(path=str(ddpm_folder), steps=4, record_kind="ode").sample([request()])
    assert d.members["traj.npy"].shape == (4, 3, 16, 16)
    assert d.members["traj_t.npy"].tolist() == [750.0, 500.0, 250.0, 0.0]
    np.testing.assert_array_equal(d.members["traj.npy"][0], d.members["noise.npy"])
    (asked,) = DiffusersTeacher(path=str(ddpm_folder), steps=4).sample([request(capture=["trajectory"])])
    np.testing.assert_array_equal(asked.members["traj.npy"], d.members["traj.npy"])


def test_class_conditional_pipeline_takes_its_labels_from_the_seed(dit_folder):
    """`inputs` feeds call arguments from the params; the class moves the picture; guidance rows stay out."""
    teacher = DiffusersTeacher(path=str(dit_folder), steps=3, guidance=2.0, inputs={"class_labels": "label"})
    same_noise = [request(label=1), request(label=7)]
    a, b = teacher.sample(same_noise)
    assert a.members["cond.npy"].tolist() == [1]
    assert b.members["cond.npy"].tolist() == [7]
    assert a.members["noise.npy"].shape == (4, 8, 8)
    np.testing.assert_array_equal(a.members["noise.npy"], b.members["noise.npy"])
    assert np.abs(a.members["latent.npy"] - b.members["latent.npy"]).max() > 1e-3
    (alone,) = teacher.sample([request(label=7)])
    np.testing.assert_allclose(alone.members["latent.npy"], b.members["latent.npy"], atol=1e-4)


def test_bad_conditions_fail_alone(dit_folder):
    """A seed without its label is invalid, one that breaks the pipeline an error; the sibling gets its sample."""
    teacher = DiffusersTeacher(path=str(dit_folder), steps=3, inputs={"class_labels": "label"})
    answers = list(teacher.sample([request("good", label=3), request("none"), request("broken", label="cat")]))
    by_id = {a.seed_id: a for a in answers}
    assert isinstance(by_id["good"], Draw)
    assert isinstance(by_id["none"], Failure)
    assert (by_id["none"].kind, by_id["none"].reason) == ("invalid", "the seed's params lack 'label'")
    assert isinstance(by_id["broken"], Failure)
    assert by_id["broken"].kind == "error"
    assert "Error" in by_id["broken"].reason


def test_hash_follows_what_decides_the_output(ddpm_folder, tmp_path):
    """Equal folders hash equally wherever they lie; a changed weight file, step count or kind is another teacher."""
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(ddpm_folder, copy)
    (copy / "README.md").write_text("notes")

    def hashed(path=copy, **options):
        return DiffusersTeacher(path=str(path), **options).describe().content_hash

    assert hashed() == hashed(ddpm_folder)
    assert hashed(steps=4) != hashed(steps=5)
    assert hashed(record_kind="ode") != hashed()
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert hashed() != hashed(ddpm_folder)


def test_describe_states_the_options(ddpm_folder):
    """Members, outcomes, price and reproducibility are what the options say."""
    info = DiffusersTeacher(
        path=str(ddpm_folder),
        members={"image.npy": {"dtype": "uint8", "shape": [-1, 16, 3]}},
        outcomes=["a", "b"],
        usd_per_gpuh=1.5,
        id="tiny",
    ).describe()
    assert info.members["image.npy"].shape == (None, 16, 3)
    assert (info.id, info.kind, info.usd_per_gpuh, info.outcomes) == ("tiny", "kd_pair", 1.5, ("a", "b"))
    assert info.reproducible == "exact"
    assert DiffusersTeacher(path=str(ddpm_folder), device="cuda").describe().reproducible == "tolerance"


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_hub_id_needs_a_commit():
    """A hub id is pinned to a commit, which makes its hash; a branch, a tag or nothing is refused."""
    pinned = DiffusersTeacher(path="org/model", revision=COMMIT).describe()
    other = DiffusersTeacher(path="org/model", revision=COMMIT[::-1]).describe()
    assert pinned.content_hash != other.content_hash
    assert pinned.id == "model"
    with pytest.raises(DistdataError, match="none was given"):
        DiffusersTeacher(path="org/model")
    with pytest.raises(DistdataError, match="'main' could move"):
        DiffusersTeacher(path="org/model", revision="main")


def test_user_errors_are_named(ddpm_folder, tmp_path):
    """What a user can get wrong is one error that says what, where and what to do."""
    with pytest.raises(DistdataError, match="is no folder here, and no hub id"):
        DiffusersTeacher(path="no/such/folder")
    with pytest.raises(DistdataError, match=r"no model_index\.json"):
        DiffusersTeacher(path=str(tmp_path))
    with pytest.raises(DistdataError, match="record_kind is 'pairs'"):
        DiffusersTeacher(path=str(ddpm_folder), record_kind="pairs")
    with pytest.raises(DistdataError, match="members"):
        DiffusersTeacher(path=str(ddpm_folder), members={"image.npy": "uint8"})
    with pytest.raises(DistdataError, match="takes no guidance_scale"):
        DiffusersTeacher(path=str(ddpm_folder), guidance=3.0).load()
    with pytest.raises(DistdataError, match="takes no speed"):
        DiffusersTeacher(path=str(ddpm_folder), call={"speed": 2}).load()
    with pytest.raises(DistdataError, match="none of torch's"):
        DiffusersTeacher(path=str(ddpm_folder), dtype="float33").load()
    with pytest.raises(DistdataError, match=r"write it as 'pkg.module:Class'"):
        DiffusersTeacher(path=str(ddpm_folder), pipeline_class="mypipe").load()
    with pytest.raises(DistdataError, match="has no class 'Nope'"):
        DiffusersTeacher(path=str(ddpm_folder), pipeline_class="json:Nope").load()


def test_own_code_runs_only_when_trusted(tmp_path, monkeypatch):
    """A folder with its own pipeline code loads by the folder alone, but only with trust_remote_code."""
    import diffusers.utils.dynamic_modules_utils as dynamic

    from distdata.generate.teachers.crossing.reference import CASES
    from distdata.generate.teachers.crossing.teacher import CrossingTeacher, save

    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    save(tmp_path / "crossing")
    options = {"path": str(tmp_path / "crossing"), "record_kind": "rollout"}
    with pytest.raises(DistdataError, match="set trust_remote_code = true"):
        DiffusersTeacher(**options).load()
    case = CASES["animal_on_road"]
    asked = Request(seed_id="x", k=0, rng_seed=5, **case)
    (ours,) = DiffusersTeacher(**options, trust_remote_code=True).sample([asked])
    (bundled,) = CrossingTeacher().sample([asked])
    np.testing.assert_array_equal(ours.members["cam_front.npy"], bundled.members["cam_front.npy"])
    assert ours.outcome == bundled.outcome


MY_PIPELINE = """
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor


class Output(BaseOutput):
    frames: torch.Tensor


class MyPipeline(DiffusionPipeline):
    def __init__(self, scheduler: DDIMScheduler):
        super().__init__()
        self.register_modules(scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, prompt, generator=None, num_inference_steps=3, output_type="np"):
        target = torch.tensor([len(p) / 10 for p in prompt]).view(-1, 1, 1, 1, 1)
        x = randn_tensor((len(prompt), 2, 4, 4, 3), generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            kept = self.scheduler.alphas_cumprod[t]
            x = self.scheduler.step((x - kept**0.5 * target) / (1 - kept) ** 0.5, t, x).prev_sample
        return Output(frames=x.numpy())
"""


def test_your_own_pipeline_class_and_prompts(tmp_path, monkeypatch):
    """A class of one's own, named by import path, takes prompts from the seeds and gives a video per request."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "my_distdata_pipeline.py").write_text(MY_PIPELINE)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    import my_distdata_pipeline
    from diffusers import DDIMScheduler

    my_distdata_pipeline.MyPipeline(DDIMScheduler(clip_sample=False)).save_pretrained(tmp_path / "saved")
    teacher = DiffusersTeacher(path=str(tmp_path / "saved"), pipeline_class="my_distdata_pipeline:MyPipeline", steps=3)
    short, long = teacher.sample([request("a", prompt="rain"), request("b", prompt="fog rain")])
    assert short.members["prompt.txt"] == "rain"
    assert short.members["meta.json"]["inputs"] == {"prompt": "rain"}
    # a Gaussian of no width around len(prompt) / 10 has that point as its only end: 0.4 and 0.8 of 255
    assert short.members["frames.npy"].shape == (2, 4, 4, 3)
    assert abs(float(short.members["frames.npy"].mean()) - 102) < 1
    assert abs(float(long.members["frames.npy"].mean()) - 204) < 1
    before = teacher.describe().content_hash
    with open(tmp_path / "code" / "my_distdata_pipeline.py", "a") as f:
        f.write("# changed")
    again = DiffusersTeacher(path=str(tmp_path / "saved"), pipeline_class="my_distdata_pipeline:MyPipeline", steps=3)
    assert again.describe().content_hash != before


def test_recording_leaves_the_scheduler_as_it_was(ddpm):
    """After recording, also after an error inside it, the scheduler's step is its own again."""
    scheduler = ddpm.load().scheduler
    with pytest.raises(RuntimeError, match="inside"), record_states(scheduler):
        raise RuntimeError("inside")
    assert "step" not in vars(scheduler)
