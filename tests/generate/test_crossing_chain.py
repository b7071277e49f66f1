"""The law of the crossing teacher's 32-step chain, against an independent reference of a million draws."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from scipy.stats import binom, norm

from distdata.catalogs.hashing import draw_rng_seed
from distdata.generate.teachers.crossing.reference import (
    CASES,
    chain_draws,
    heun_chain,
    karras_levels,
    law_of,
    load_reference,
    mixture_draws,
    summary,
)
from distdata.generate.teachers.crossing.world import WORLD

ALPHA = 1e-4
"""False-alarm rate of each of the two families below, split over their members (Bonferroni)."""


@pytest.fixture(scope="module")
def pipeline():
    import torch

    from distdata.generate.teachers.crossing.teacher import CrossingTeacher

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny tensors: threads only wait for each other
    yield CrossingTeacher().load()
    torch.set_num_threads(n_threads)


def generators(seeds):
    import torch

    return [torch.Generator().manual_seed(s) for s in seeds]


def pipeline_draws(pipeline, case, n, seed_id, batch=250):
    for start in range(0, n, batch):
        size = min(batch, n - start)
        noise = generators(draw_rng_seed("salt", seed_id, k) for k in range(start, start + size))
        yield pipeline([CASES[case]] * size, generator=noise).latents.numpy().reshape(size, -1)


def disagreements(found, reference):
    """List where a law's summary lies outside its tolerance: exact binomial for shares, z for the moments."""
    n, n_ref = found["n"], reference["n"]
    wrong = []
    for name, share in reference["shares"].items():
        # the reference's own error is added by drawing the interval for slightly fewer draws
        effective = int(n / (1 + n / n_ref))
        tail = ALPHA / (2 * len(reference["shares"]))
        low, high = binom.ppf([tail, 1 - tail], effective, share) / effective
        if not low <= found["shares"][name] <= high:
            wrong.append(f"share of {name}: {found['shares'][name]:.4f} outside [{low:.4f}, {high:.4f}]")
    moments = ("mean", "var", "cov")
    z_max = norm.isf(ALPHA / 2 / sum(len(reference[m]) for m in moments))
    for m in moments:
        sd = np.array(reference[f"{m}_sd"]) * math.sqrt(1 / n + 1 / n_ref)
        z = (np.array(found[m]) - np.array(reference[m])) / sd
        wrong += [f"{m}[{i}]: z = {z[i]:.1f}" for i in np.flatnonzero(np.abs(z) > z_max)]
    return wrong


def test_20000_draws_have_the_references_law(pipeline):
    """20,000 draws of one cell: shares in the exact binomial interval, mean and covariance in tolerance.

    False alarm 2e-4 over the choice of seeds, which are fixed.
    """
    case = "pedestrian_crossing"
    found = summary(law_of(case), pipeline_draws(pipeline, case, 20_000, "a5"))
    assert found["n"] == 20_000
    assert load_reference()[case]["n"] >= 1_000_000
    assert disagreements(found, load_reference()[case]) == []


@pytest.mark.prove
@pytest.mark.parametrize("case", list(CASES))
def test_100000_draws_have_the_references_law(pipeline, case):
    """The long form: 100,000 draws of each kept cell, same tolerances, other seeds."""
    found = summary(law_of(case), pipeline_draws(pipeline, case, 100_000, "prove"))
    assert disagreements(found, load_reference()[case]) == []


@pytest.mark.parametrize("case", list(CASES))
def test_sampling_the_mixture_directly_is_caught(case):
    """20,000 draws straight from the mixture fail: their jitter is wider than the chain's by a tenth in variance."""
    wrong = disagreements(summary(law_of(case), mixture_draws(law_of(case), 20_000, seed=4)), load_reference()[case])
    # where the floor of 0.0225 rules, in most of the 144 modes, the variance ratio is (1 / 0.953)^2 = 1.10
    # (see test_chain_converges_to_the_mixture): 10 standard errors sqrt(2 / 20000)
    assert sum(w.startswith("var") for w in wrong) > 72


def test_another_number_of_steps_is_caught():
    """20,000 draws of an 8-step chain fail: the reference is that of 32 steps."""
    law = law_of("pedestrian_crossing")
    wrong = disagreements(
        summary(law, chain_draws(law, 20_000, seed=5, n_steps=8)), load_reference()["pedestrian_crossing"]
    )
    assert len(wrong) > 10


def test_shifted_outcome_odds_are_caught():
    """Draws whose outcome shares are 2 points off leave the binomial interval (5.6 standard errors)."""
    reference = load_reference()["pedestrian_crossing"]
    found = {**reference, "n": 20_000, "shares": dict(reference["shares"])}
    found["shares"]["crosses"] += 0.02
    found["shares"]["waits"] -= 0.02
    assert [w.split(":")[0] for w in disagreements(found, reference)] == ["share of crosses", "share of waits"]


@pytest.mark.parametrize("case", list(CASES))
def test_pipeline_equals_the_independent_chain(pipeline, case):
    """Draw by draw, the diffusers pipeline and the numpy chain end within 2e-4 from the same noise (float32 levels)."""
    import torch

    noise = torch.randn(64, 3, 2, 24, generator=torch.Generator().manual_seed(1))
    found = pipeline([CASES[case]] * 64, latents=noise).latents.numpy().reshape(64, -1)
    wanted = heun_chain(law_of(case), noise.double().numpy().reshape(64, -1), karras_levels(32))
    far = np.abs(found - wanted).max(axis=1)
    # near the watershed between two outcomes the chain amplifies rounding of the noise levels (about 1e-6)
    assert np.median(far) < 2e-5
    assert (far > 2e-4).sum() <= 2


def single_gaussian_factor(std, n_steps):
    """Return x_end - mu over x_start - mu of the Heun chain on one Gaussian, worked out without a loop over draws."""
    levels = karras_levels(n_steps)
    factor = np.ones_like(std)

    def slope(level):
        return level / (std**2 + level**2)

    for now, then in itertools.pairwise(levels):
        h = then - now
        euler = 1 + h * slope(now)
        factor *= euler if then == 0 else 1 + h * (slope(now) + slope(then) * euler) / 2
    return factor, levels[0]


def test_one_outcome_has_a_gaussian_law_in_closed_form(pipeline):
    """Where nothing is to decide the chain is affine: every draw equals mu + F (sigma_max z - mu) to 1e-5."""
    import torch

    case = {**CASES["pedestrian_crossing"], "scenario": "car_following"}
    from distdata.generate.teachers.crossing.law import mixture

    law = mixture(**case)
    z = torch.randn(8, 3, 2, 24, generator=torch.Generator().manual_seed(2))
    found = pipeline([case] * 8, latents=z).latents.numpy()
    factor, top = single_gaussian_factor(law.std[0], 32)
    np.testing.assert_allclose(found, law.mean[0] + factor * (top * z.double().numpy() - law.mean[0]), atol=1e-5)


def test_heun_steps_converge_with_order_two(pipeline):
    """On one Gaussian the error against the exact probability-flow map falls fourfold per doubling of the steps.

    Exact map from level a to b: x_b = mu + sqrt((s^2 + b^2) / (s^2 + a^2)) (x_a - mu). The state before the
    last step is compared, since that step is a single Euler step whatever their number.
    """
    import torch

    from distdata.generate.teachers.chain_states import record_states
    from distdata.generate.teachers.crossing.law import mixture

    case = {**CASES["pedestrian_crossing"], "scenario": "car_following"}
    law = mixture(**case)
    z = torch.randn(16, 3, 2, 24, generator=torch.Generator().manual_seed(3))
    errors = []
    for n_steps in (16, 32, 64, 128):
        with record_states(pipeline.scheduler) as states:
            pipeline([case] * 16, latents=z, num_inference_steps=n_steps)
        top, low = float(pipeline.scheduler.sigmas[0]), float(pipeline.scheduler.sigmas[-2])
        shrink = np.sqrt((law.std[0] ** 2 + low**2) / (law.std[0] ** 2 + top**2))
        exact = law.mean[0] + shrink * (top * z.double().numpy() - law.mean[0])
        errors.append(np.sqrt(np.mean((states.before[-1].numpy() - exact) ** 2)))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all((orders > 1.9) & (orders < 2.4)), orders


def test_chain_converges_to_the_mixture():
    """With more steps that also end lower, the chain's spread tends to the mixture's, with order two.

    From the constant start z = 1 the factor F is read off, and sigma_max F / s is the chain's standard
    deviation over the mixture's. The schedule's lowest level is sqrt(beta_start), taken as 0.32 / steps.
    """
    import torch

    from distdata.generate.teachers.crossing.law import mixture
    from distdata.generate.teachers.crossing.pipeline import CrossingPipeline

    case = {**CASES["pedestrian_crossing"], "scenario": "car_following"}
    law = mixture(**case)
    gaps = []
    for n_steps in (32, 64, 128, 256):
        refined = CrossingPipeline.bundled(beta_start=(0.32 / n_steps) ** 2)
        refined.set_progress_bar_config(disable=True)
        x = refined([case], latents=torch.ones(1, 3, 2, 24), num_inference_steps=n_steps).latents.numpy()[0]
        top = float(refined.scheduler.sigmas[0])
        factor = (x - law.mean[0]) / (top - law.mean[0])
        gaps.append(np.abs(top * factor / law.std[0] - 1).max())
    # at 32 steps the floor's modes are narrower by 4.7%: 8.6% from the last step, 1 - s / sqrt(s^2 + 0.01^2),
    # less what the Heun steps widen them
    assert gaps[0] > 0.04
    orders = np.log2(np.array(gaps[:-1]) / gaps[1:])
    assert np.all((orders > 1.5) & (orders < 2.6)), (gaps, orders)
    assert gaps[-1] < 0.005


def test_mixture_endpoints_converge_with_order_two(pipeline):
    """At a decision point the endpoints of the same noise approach those of 512 steps, fourfold per doubling."""
    import torch

    case = CASES["animal_on_road"]
    z = torch.randn(64, 3, 2, 24, generator=torch.Generator().manual_seed(6))

    def ends(n_steps):
        return pipeline([case] * 64, latents=z, num_inference_steps=n_steps).latents.numpy().reshape(64, -1)

    fine = ends(512)
    # medians: a draw on the watershed between two outcomes may still change sides
    errors = [np.median(np.sqrt(np.mean((ends(n) - fine) ** 2, axis=1))) for n in (16, 32, 64)]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all((orders > 1.8) & (orders < 2.5)), (errors, orders)


def test_noise_belongs_to_the_request_not_to_the_batch(pipeline):
    """A request's sample is the same alone, in company and in another place, to 1e-5 (seen: 1e-12)."""
    cases = [CASES["pedestrian_crossing"], CASES["animal_on_road"]] * 4
    seeds = [draw_rng_seed("salt", "batch", k) for k in range(8)]
    together = pipeline(cases, generator=generators(seeds)).latents.numpy()
    backwards = pipeline(cases[::-1], generator=generators(seeds[::-1])).latents.numpy()[::-1]
    alone = np.concatenate(
        [pipeline([c], generator=generators([s])).latents.numpy() for c, s in zip(cases, seeds, strict=True)]
    )
    np.testing.assert_allclose(backwards, together, atol=1e-5)
    np.testing.assert_allclose(alone, together, atol=1e-5)
    assert np.abs(together[0] - together[2]).max() > 0.1  # other seeds, other futures


def test_noise_is_plain_randn_of_the_request(pipeline):
    """The stored noise is torch.randn([3, 2, 24]) of the request's generator, and replaying it gives the sample."""
    import torch

    from distdata.generate.teachers.chain_states import record_states

    seed = draw_rng_seed("salt", "replay", 0)
    with record_states(pipeline.scheduler) as states:
        drawn = pipeline([CASES["animal_on_road"]], generator=generators([seed])).latents
    noise = (states.before[0] / float(pipeline.scheduler.init_noise_sigma)).float()
    assert torch.equal(noise[0], torch.randn(3, 2, 24, generator=torch.Generator().manual_seed(seed)))
    replayed = pipeline([CASES["animal_on_road"]], latents=noise).latents
    assert torch.equal(replayed, drawn)


def test_save_and_load_keep_the_world(tmp_path, pipeline):
    """A saved folder loads with diffusers alone, gives equal bits, and carries its constants: a changed one counts."""
    import torch
    from diffusers import DiffusionPipeline

    from distdata.generate.teachers.chain_states import known_warnings
    from distdata.generate.teachers.crossing.pipeline import CrossingPipeline

    pipeline.save_pretrained(tmp_path / "a")
    with known_warnings():
        again = CrossingPipeline.from_pretrained(tmp_path / "a", local_files_only=True, low_cpu_mem_usage=False)
    again.set_progress_bar_config(disable=True)
    assert isinstance(again, DiffusionPipeline)
    assert again.score.world.to_dict() == WORLD.to_dict()
    z = torch.randn(2, 3, 2, 24, generator=torch.Generator().manual_seed(7))
    conditions = [CASES["pedestrian_crossing"]] * 2
    assert torch.equal(again(conditions, latents=z).latents, pipeline(conditions, latents=z).latents)

    config = tmp_path / "a" / "score" / "config.json"
    data = json.loads(config.read_text())
    data["world"]["latent_unit_m"] = 4.0  # twice the metres per latent: all means and spreads halve
    config.write_text(json.dumps(data))
    with known_warnings():
        other = CrossingPipeline.from_pretrained(tmp_path / "a", local_files_only=True, low_cpu_mem_usage=False)
    other.set_progress_bar_config(disable=True)
    assert other.score.world.latent_unit_m == 4.0
    assert not torch.equal(other(conditions, latents=z).latents, pipeline(conditions, latents=z).latents)
