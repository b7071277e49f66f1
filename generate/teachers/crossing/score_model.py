"""The crossing world's denoiser as a diffusers model: exact, so there is nothing to train.

For x = x0 + sigma n with x0 from the mixture sum_j p_j N(mu_j, diag s_j^2), the posterior mean is

    D(x, sigma) = sum_j r_j(x, sigma) [mu_j + s_j^2 / (s_j^2 + sigma^2) (x - mu_j)],
    r_j proportional to p_j N(x; mu_j, diag(s_j^2 + sigma^2)),

and the predicted noise is (x - D) / sigma = sigma sum_j r_j (x - mu_j) / (s_j^2 + sigma^2), which is
-sigma times the score. This module needs torch and diffusers at import; nothing imports it before sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from .law import LATENT_SHAPE, MAX_OUTCOMES, Mixture, basis
from .world import WORLD, World


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """The mixtures of a batch of seeds, padded to 4 components, so that no request sees another's size.

    `log_prob` float64 [B, 4] (-inf where padded), `mean`, `var` float64 [B, 4, 144], latent units.
    """

    log_prob: Tensor
    mean: Tensor
    var: Tensor


class CrossingScore(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers ships no types
    """Predict the noise in a noisy latent of the crossing world, in closed form and float64.

    The world's constants are its configuration (`world`, see `World.to_dict`) and its modes a buffer, so
    that `save_pretrained` and `from_pretrained` carry both.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, world: dict[str, Any] | None = None) -> None:
        super().__init__()
        data = WORLD.to_dict() if world is None else world
        self.register_to_config(world=data)
        self.world = World.from_dict(data)
        self.register_buffer("modes", torch.from_numpy(basis().copy()))

    def conditions(self, mixtures: Sequence[Mixture]) -> Conditions:
        """Stack the mixtures of a batch."""
        n = len(mixtures)
        dims = int(np.prod(LATENT_SHAPE))
        log_prob = np.full((n, MAX_OUTCOMES), -np.inf)
        mean = np.zeros((n, MAX_OUTCOMES, dims))
        var = np.ones((n, MAX_OUTCOMES, dims))
        for i, m in enumerate(mixtures):
            j = len(m.names)
            log_prob[i, :j] = np.log(m.probs)
            mean[i, :j] = m.mean.reshape(j, dims)
            var[i, :j] = m.std.reshape(j, dims) ** 2
        place = cast(Tensor, self.modes).device
        return Conditions(
            log_prob=torch.from_numpy(log_prob).to(place),
            mean=torch.from_numpy(mean).to(place),
            var=torch.from_numpy(var).to(place),
        )

    def forward(self, sample: Tensor, sigma: Tensor | float, conditions: Conditions) -> Tensor:
        """Return the predicted noise, same shape and dtype as `sample`.

        `sample`: [B, 3, 2, 24], the noisy latent scaled by 1 / sqrt(sigma^2 + 1), as the scheduler's
        `scale_model_input` gives it. `sigma`: the noise level, one for the batch.
        """
        level = torch.as_tensor(sigma, dtype=torch.float64, device=sample.device)
        x = sample.to(torch.float64).flatten(1) * torch.sqrt(level**2 + 1)
        weights, pull = self._posterior(x, level**2, conditions)
        noise = level * (weights[:, :, None] * pull).sum(1)
        return noise.view(sample.shape).to(sample.dtype)

    def decode(self, latent: Tensor, anchor_m: Tensor) -> Tensor:
        """Return trajectories in metres, float64 [B, 3, 2, 24 steps], of latents [B, 3, 2, 24 modes]."""
        modes = cast(Tensor, self.modes)
        return anchor_m + self.world.latent_unit_m * (latent.to(modes.dtype) @ modes)

    def responsibilities(self, latent: Tensor, conditions: Conditions) -> Tensor:
        """Return the probability of every component given the finished latent, float64 [B, 4]; padding gets 0."""
        weights, _ = self._posterior(latent.to(torch.float64).flatten(1), torch.zeros(()), conditions)
        return weights

    def log_density(self, x: Tensor, sigma: Tensor | float, conditions: Conditions) -> Tensor:
        """Return the log density of the noised mixture at `x` [B, 3, 2, 24] (not scaled), nats, float64 [B]."""
        level = torch.as_tensor(sigma, dtype=torch.float64)
        total = conditions.var + level**2
        delta = x.to(torch.float64).flatten(1)[:, None] - conditions.mean
        log_normal = -0.5 * (delta**2 / total + torch.log(2 * torch.pi * total)).sum(-1)
        return torch.logsumexp(conditions.log_prob + log_normal, 1)

    @staticmethod
    def _posterior(x: Tensor, sigma2: Tensor, conditions: Conditions) -> tuple[Tensor, Tensor]:
        total = conditions.var + sigma2
        delta = x[:, None] - conditions.mean
        pull = delta / total
        log_weight = conditions.log_prob - 0.5 * ((delta * pull).sum(-1) + torch.log(total).sum(-1))
        return torch.softmax(log_weight, 1), pull
