"""Losses of a denoiser: by noised draws, and by what a teacher's own chain says of its denoiser.

Both compare F of the preconditioned network (see `denoiser`) with the F that would give the target, which is the loss
of Karras et al. 2022 (equation 8 with lambda = 1 / c_out^2): every level and dimension then has errors of one size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from .denoiser import Denoiser


def noise_levels(n: int, mean: float, spread: float, low: float, high: float, generator: Generator) -> Tensor:
    """Return n noise levels, ln sigma ~ N(mean, spread^2), kept within [low, high] (Karras et al. 2022, table 1)."""
    import torch

    normal = torch.randn(n, generator=generator, device=generator.device)
    return torch.exp(mean + spread * normal).clamp(low, high)


def match_denoised(
    network: Denoiser, x: Tensor, sigma: Tensor, cond: Tensor, clean: Tensor, dim_weight: Tensor
) -> Tensor:
    """Return each row's loss of D(x; sigma, cond) against `clean`, float [B]; `x`, `clean` [B, D], `dim_weight` [D].

    For `clean` = the draw that `x` was noised from this is denoising score matching: its optimum is the posterior mean.
    """
    unit, skip, out = network.scaled(x, sigma)
    wanted = (clean - skip) / out
    loss: Tensor = (dim_weight * (network(unit, sigma, cond) - wanted) ** 2).mean(1)
    return loss


def noised(clean: Tensor, sigma: Tensor, generator: Generator) -> Tensor:
    """Return `clean` [B, D] plus sigma [B] times standard normal noise."""
    import torch

    return clean + sigma[:, None] * torch.randn(clean.shape, generator=generator, device=clean.device)


def denoised_between(states: Tensor, levels: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Read the teacher's denoised prediction off two consecutive states of its chain: (x [B, D], sigma [B], D [B, D]).

    Along dx/dsigma = (x - D) / sigma the slope halfway between two states is their difference quotient, to second
    order in the step; so at x = (x_i + x_{i+1}) / 2 and sigma = (sigma_i + sigma_{i+1}) / 2 the teacher's prediction
    is x - sigma (x_{i+1} - x_i) / (sigma_{i+1} - sigma_i). The last step, to level 0, is Euler's: there the
    prediction at x_i is the end of the chain itself, exactly.

    `states` [B, S + 1, D] and `levels` [B, S + 1] end with the finished latent and 0; `step` int64 [B] is i.
    """
    import torch

    rows = torch.arange(len(step), device=step.device)
    here, there = states[rows, step], states[rows, step + 1]
    at, to = levels[rows, step], levels[rows, step + 1]
    slope = (there - here) / (to - at)[:, None]
    last = to == 0
    sigma = torch.where(last, at, (at + to) / 2)
    x = torch.where(last[:, None], here, (here + there) / 2)
    return x, sigma, x - sigma[:, None] * slope


def steps_at(levels: Tensor, sigma: Tensor) -> Tensor:
    """Return for each row the step whose interval of falling `levels` [B, S + 1] holds `sigma` [B], int64 in 0..S-1."""
    return (levels > sigma[:, None]).sum(1).sub(1).clamp(0, levels.shape[1] - 2)
