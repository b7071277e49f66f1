"""Networks and losses of students of latents, against laws whose denoiser is known in closed form."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from distdata.catalogs.errors import DistdataError
from distdata.train_min.denoiser import Denoiser, Regressor, build_network
from distdata.train_min.feature_map import check_map, feature_loss, per_state
from distdata.train_min.latent_losses import denoised_between, match_denoised, noise_levels, noised, steps_at
from distdata.train_min.sampler import karras_levels

MEAN, STD = np.array([0.5, -2.0, 3.0]), np.array([1.0, 0.02, 5.0])


@pytest.fixture
def network():
    """An untrained denoiser of three unequal dimensions."""
    torch.manual_seed(0)
    found = Denoiser(dims=3, n_conditions=2, width=8, depth=1)
    found.set_scales(MEAN, STD, np.array([0.1, 4.0]))
    return found


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Exact(Denoiser):
    """A denoiser whose F gives tanh(x / sigma^2), the posterior mean for x0 = +-1 with equal odds, plus an error."""

    error = 0.0

    def forward(self, unit, sigma, cond, taps=None):
        level = sigma[:, None]
        total = torch.sqrt(self.std**2 + level**2)
        x = self.mean + total * unit
        _, skip, out = self.scaled(x, sigma)
        return (torch.tanh(x / level**2) - skip) / out + self.error


def test_untrained_is_the_gaussian_denoiser(network):
    """With F = 0, as at the start, D is the posterior mean of independent Gaussians, per dimension and at any level."""
    x = torch.randn(20, 3, generator=seeded()) * 4
    sigma = torch.logspace(-2, 2, 20)
    mean, std = torch.tensor(MEAN, dtype=torch.float32), torch.tensor(STD, dtype=torch.float32)
    wanted = mean + std**2 / (std**2 + sigma[:, None] ** 2) * (x - mean)
    torch.testing.assert_close(network.denoise(x, sigma, torch.zeros(20, 2)), wanted, rtol=1e-4, atol=1e-4)


def test_inputs_and_targets_have_unit_variance(network):
    """F's inputs and its targets have variance 1 in every dimension at every level, for data of the stated moments.

    100,000 draws: a variance's standard error is sqrt(2 / n) = 0.0045; 5 of them (false alarm 6e-7 per value).
    """
    n = 100_000
    clean = torch.tensor(MEAN, dtype=torch.float32) + torch.tensor(STD, dtype=torch.float32) * torch.randn(
        n, 3, generator=seeded()
    )
    for level in (0.01, 0.5, 20.0):
        sigma = torch.full((n,), level)
        unit, skip, out = network.scaled(noised(clean, sigma, seeded(1)), sigma)
        for values in (unit, (clean - skip) / out):
            np.testing.assert_allclose(values.var(0).numpy(), 1.0, atol=0.0225)


def test_scales_of_constant_dimensions_and_wide_conditions(network):
    """A dimension that never varies gets 1e-4 of the widest scale; conditions above 1 shrink to 1, others stay."""
    network.set_scales(MEAN, np.array([2.0, 0.0, 1.0]), np.array([0.1, 4.0]))
    np.testing.assert_allclose(network.std.numpy(), [2.0, 2e-4, 1.0])
    np.testing.assert_allclose(network.unit_cond(torch.tensor([[0.1, 4.0]])).numpy(), [[0.1, 1.0]])


def test_network_is_rebuilt_from_its_description(network):
    """A description gives a network with the same parameters; an unknown kind is an error."""
    told = {"network": "denoiser", "latent": [3], "n_conditions": 2, "width": 8, "depth": 1, "features": {}}
    assert {n: p.shape for n, p in build_network(told).state_dict().items()} == {
        n: p.shape for n, p in network.state_dict().items()
    }
    assert isinstance(build_network({**told, "network": "regressor"}), Regressor)
    with pytest.raises(KeyError):
        build_network({**told, "network": "prophet"})


def test_score_matching_has_the_posterior_mean_as_optimum():
    """For x0 = +-1 the loss of tanh(x / sigma^2) rises by exactly the mean square of any error added to F.

    loss(F* + e) - loss(F*) = e^2 - 2 e E[target - F*], and the last mean is 0; over 200,000 draws its standard error
    is at most 1 / sqrt(n) (targets have variance at most 1), so 2 e 5 / sqrt(n) bounds it (false alarm 6e-7).
    """
    n, e = 200_000, 0.1
    network = Exact(dims=1, n_conditions=0, width=4, depth=0)
    clean = torch.where(torch.rand(n, 1, generator=seeded()) < 0.5, 1.0, -1.0)
    for level in (0.5, 1.0, 3.0):
        sigma = torch.full((n,), level)
        x, none, ones = noised(clean, sigma, seeded(1)), torch.zeros(n, 0), torch.ones(1)
        losses = {}
        for error in (0.0, e, -e):
            network.error = error
            losses[error] = float(match_denoised(network, x, sigma, none, clean, ones).double().mean())
        for error in (e, -e):
            assert abs(losses[error] - losses[0.0] - e**2) < 2 * e * 5 / math.sqrt(n)


def test_levels_follow_their_law():
    """ln sigma is normal with the stated mean and spread, clamped; 50,000 draws, 5 standard errors (6e-7)."""
    n = 50_000
    log = noise_levels(n, 0.7, 1.2, 1e-9, 1e9, seeded()).double().log()
    assert abs(float(log.mean()) - 0.7) < 5 * 1.2 / math.sqrt(n)
    assert abs(float(log.std()) - 1.2) < 5 * 1.2 / math.sqrt(2 * n)
    clamped = noise_levels(n, 0.7, 1.2, 1.0, 2.0, seeded())
    assert (float(clamped.min()), float(clamped.max())) == (1.0, 2.0)


def gaussian_states(n_steps, noise):
    """Return states before each step and the end, [1, S + 1, 3], of the exact flow of N(MEAN, STD^2), and levels."""
    levels = np.append(karras_levels(0.05, 20.0, n_steps)[:-1], 0.0)
    ratio = np.sqrt(STD**2 + levels[:, None] ** 2) / np.sqrt(STD**2 + levels[0] ** 2)
    states = MEAN + (levels[0] * noise - MEAN) * ratio
    states[-1] = MEAN + STD**2 / (STD**2 + levels[-2] ** 2) * (states[-2] - MEAN)  # Euler's step to 0 lands on D
    return torch.from_numpy(states)[None], torch.from_numpy(levels)[None]


def test_denoised_is_read_off_states_to_second_order():
    """Between two states of an exact flow the read prediction is the denoiser's; half the steps' size, a quarter off.

    STD[1] is far below the last level, where its path bends most; the last step is exact whatever the dimension.
    """
    noise = np.array([1.3, -0.4, 0.8])
    errors = []
    for n in (65, 129, 257):
        states, levels = gaussian_states(n, noise)
        steps = torch.arange(n)
        x, sigma, denoised = denoised_between(states.expand(n, -1, -1), levels.expand(n, -1), steps)
        wanted = MEAN + STD**2 / (STD**2 + sigma[:, None].numpy() ** 2) * (x.numpy() - MEAN)
        gap = np.abs(denoised.numpy() - wanted)
        assert gap[-1].max() < 1e-12
        errors.append(gap[:-1].max())
    for coarse, fine in itertools.pairwise(errors):
        assert 3.5 < coarse / fine < 4.5


def test_steps_hold_their_levels():
    """A level belongs to the step that begins at or above it and ends below; levels outside go to the end steps."""
    levels = torch.tensor([[10.0, 5.0, 1.0, 0.0]]).expand(6, -1)
    found = steps_at(levels, torch.tensor([7.0, 5.0, 2.0, 0.5, 100.0, 1e-9]))
    assert found.tolist() == [0, 0, 1, 2, 0, 2]


def test_a_linear_teachers_weights_are_recovered():
    """Matching features W h of a linear layer h by a learned projection gives least squares' own solution.

    The reference is numpy's lstsq on the same 200 noisy rows; the quadratic is minimised to 1e-4 by L-BFGS.
    """
    torch.manual_seed(0)
    h = torch.randn(200, 4, generator=seeded())
    teacher = torch.tensor([[1.0, -2.0, 0.5, 3.0], [0.0, 1.0, 1.0, -1.0]])
    wanted = h @ teacher.T + 0.7 + 0.05 * torch.randn(200, 2, generator=seeded(1))
    projections = torch.nn.ModuleDict({"head": torch.nn.Linear(4, 2)})
    optimizer = torch.optim.LBFGS(projections.parameters(), max_iter=200, tolerance_change=0)

    def closure():
        optimizer.zero_grad()
        loss = feature_loss({"head": h}, {"head": wanted}, projections).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    reference = np.linalg.lstsq(np.c_[h.numpy(), np.ones(200)], wanted.numpy(), rcond=None)[0].T
    found = np.c_[projections["head"].weight.detach().numpy(), projections["head"].bias.detach().numpy()]
    np.testing.assert_allclose(found, reference, atol=1e-4)
    np.testing.assert_allclose(found[:, :4], teacher.numpy(), atol=5 * 0.05 / math.sqrt(200) * 1.2)


def test_feature_maps_are_checked():
    """Sizes are the features' own; a layer or a feature that isn't there is named with what is."""
    sample = {
        "latent.npy": np.zeros(3), "traj_sigma.npy": np.zeros(5), "feat_mid.npy": np.zeros((2, 4)),
        "feat_path.npy": np.zeros((5, 6)),
    }  # fmt: skip
    assert check_map({"head": "mid", "block0": "path"}, ("block0", "head"), sample) == {"head": 8, "block0": 6}
    assert not per_state(sample["feat_mid.npy"], sample)
    assert per_state(sample["feat_path.npy"], sample)
    with pytest.raises(DistdataError, match=r"no layer 'block9'; it has block0, head"):
        check_map({"block9": "mid"}, ("block0", "head"), sample)
    with pytest.raises(DistdataError, match=r"no feat_deep.npy for layer 'head'; stored are mid, path"):
        check_map({"head": "deep"}, ("block0", "head"), sample)
