"""The sampler against the closed-form flow of a Gaussian, and its noise levels against a second implementation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from distdata.generate.teachers.crossing.reference import karras_levels as reference_levels
from distdata.train_min.sampler import heun, karras_levels

MEAN, STD = torch.tensor([[0.5, -2.0]], dtype=torch.float64), torch.tensor([[1.0, 0.2]], dtype=torch.float64)


def gaussian(x, sigma):
    """Denoise draws of N(MEAN, STD^2): the posterior mean given x."""
    return MEAN + STD**2 / (STD**2 + sigma**2) * (x - MEAN)


def flow(noise, high, low):
    """Solve dx/dsigma = (x - D) / sigma for the Gaussian: x - m grows as sqrt(s^2 + sigma^2)."""
    return MEAN + (noise * high - MEAN) * torch.sqrt((STD**2 + low**2) / (STD**2 + high**2))


def test_levels_are_karras():
    """The crossing world's own levels, written a second time there, come out of its bounds; they end in 0."""
    wanted = reference_levels(32)
    np.testing.assert_allclose(karras_levels(wanted[-2], wanted[0], 32), wanted, rtol=1e-12)
    np.testing.assert_allclose(karras_levels(1.0, 16.0, 3, rho=2.0), [16.0, 6.25, 1.0, 0.0])  # ((4 + 1) / 2)^2


@pytest.mark.parametrize(("low", "high", "n"), [(1.0, 1.0, 4), (0.0, 1.0, 4), (2.0, 1.0, 4), (0.1, 1.0, 1)])
def test_levels_that_do_not_fall_are_refused(low, high, n):
    """Bounds that are equal, zero or swapped, and a single step, are errors."""
    with pytest.raises(ValueError, match="falling"):
        karras_levels(low, high, n)


def test_heun_is_second_order():
    """Twice the steps leave a quarter of the distance to the closed-form end of the flow."""
    noise = torch.randn(50, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = flow(noise, 10.0, 0.1)
    errors = []
    for n in (40, 80, 160):
        levels = karras_levels(0.1, 10.0, n + 1)[:-1]  # n steps that stop at level 0.1
        errors.append(float((heun(gaussian, noise, levels) - wanted).abs().max()))
    assert errors[2] < 1e-3
    for coarse, fine in itertools.pairwise(errors):
        assert 3.5 < coarse / fine < 4.5


def test_last_step_lands_on_the_denoised():
    """From the last level above 0 the sampler takes exactly what the denoiser says, in 2 n - 1 evaluations."""
    asked = []

    def denoise(x, sigma):
        asked.append((x, sigma))
        return gaussian(x, sigma)

    end = heun(denoise, torch.ones(1, 2, dtype=torch.float64), karras_levels(0.1, 10.0, 8))
    assert len(asked) == 15
    x, sigma = asked[-1]
    assert sigma == pytest.approx(0.1)
    torch.testing.assert_close(end, gaussian(x, sigma), rtol=1e-12, atol=1e-12)
