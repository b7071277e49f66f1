"""The students' networks: a denoiser of latents told a noise level, and a regressor told none.

The denoiser is preconditioned as in Karras et al. 2022 (equation 7), with a data mean m and scale s per dimension
instead of one for all:

    D(x; sigma, c) = m + s^2 / (s^2 + sigma^2) (x - m) + sigma s / sqrt(s^2 + sigma^2) F((x - m) / sqrt(s^2 + sigma^2))

so that F has inputs and targets of unit variance in every dimension and at every level, however unequal the
dimensions are, and an untrained F = 0 is already the optimum for independent Gaussian dimensions.

This module needs torch at import; nothing imports it before a network is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

_LEVEL_FEATURES = 16
_LEVEL_RANGE = (0.002, 300.0)
"""Noise levels (of data of scale 1) between which a network can tell levels apart."""


class _Scaled(nn.Module):
    """A network that keeps the data's mean and spread per dimension, and how far to scale conditions down."""

    mean: Tensor
    std: Tensor
    cond_scale: Tensor

    def __init__(self, dims: int, n_conditions: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dims))
        self.register_buffer("std", torch.ones(dims))
        self.register_buffer("cond_scale", torch.ones(n_conditions))

    def set_scales(self, mean: NDArray[np.float64], std: NDArray[np.float64], cond_rms: NDArray[np.float64]) -> None:
        """Take the data's mean and standard deviation per dimension, and the conditions' root mean squares.

        A dimension that never varies gets a scale of 1e-4 of the widest. Conditions above 1 are scaled down to 1;
        smaller ones (one-hots, standardised numbers) stay as they are.
        """
        floor = 1e-4 * float(np.max(std)) or 1.0
        self.mean.copy_(torch.from_numpy(np.asarray(mean, np.float32).reshape(-1)))
        self.std.copy_(torch.from_numpy(np.maximum(std, floor).astype(np.float32).reshape(-1)))
        if cond_rms.size:
            self.cond_scale.copy_(torch.from_numpy(np.maximum(cond_rms, 1.0).astype(np.float32)))

    def unit_cond(self, cond: Tensor) -> Tensor:
        """Return the conditions [B, C] scaled; one column of zeros where there are none."""
        return cond / self.cond_scale if cond.shape[1] else cond.new_zeros(len(cond), 1)


class Denoiser(_Scaled):
    """Predict the clean latent, float [B, D], in a noisy one; D flat, C conditions.

    A residual network of `depth` blocks over `width` channels; noise level and conditions scale and shift every
    block's normalised input (Perez et al. 2018). `features` maps a layer (``block0``, ..., ``head``) to the width of
    a teacher's feature that a learned projection of that layer is compared with.
    """

    level_centres: Tensor

    def __init__(
        self, *, dims: int, n_conditions: int, width: int, depth: int, features: Mapping[str, int] | None = None
    ) -> None:
        super().__init__(dims, n_conditions)
        low, high = (math.log(level) for level in _LEVEL_RANGE)
        self.register_buffer("level_centres", torch.linspace(low, high, _LEVEL_FEATURES))
        self.told = nn.Sequential(nn.Linear(max(n_conditions, 1), width), nn.SiLU(), nn.Linear(width, width))
        self.level = nn.Linear(_LEVEL_FEATURES, width)
        self.inward = nn.Linear(dims, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.outward = _zero(nn.Linear(width, dims))
        self.projections = nn.ModuleDict({name: nn.Linear(width, size) for name, size in (features or {}).items()})

    def forward(self, unit: Tensor, sigma: Tensor, cond: Tensor, taps: dict[str, Tensor] | None = None) -> Tensor:
        """Return F, [B, D]: `unit` is the noisy latent in unit variance [B, D], `sigma` [B], `cond` [B, C].

        `taps`, when given, is filled with the layers' activations [B, width] by name.
        """
        told = functional.silu(self.told(self.unit_cond(cond)) + self.level(self._level_features(sigma)))
        h = self.inward(unit) + told
        for i, block in enumerate(self.blocks):
            h = block(h, told)
            if taps is not None:
                taps[f"block{i}"] = h
        h = functional.silu(self.norm(h))
        if taps is not None:
            taps["head"] = h
        return cast(Tensor, self.outward(h))

    def denoise(self, x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        """Return D(x; sigma, cond), [B, D]; `x` [B, D] not scaled, `sigma` [B]."""
        unit, skip, out = self.scaled(x, sigma)
        return skip + out * cast(Tensor, self(unit, sigma, cond))

    def scaled(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three parts of equation 7, [B, D] each: F's input, what is added to its output, and its factor."""
        level = sigma[:, None]
        total = torch.sqrt(self.std**2 + level**2)
        unit = (x - self.mean) / total
        return unit, self.mean + self.std**2 / total * unit, level * self.std / total

    def layers(self) -> tuple[str, ...]:
        """Return the names that `forward` can tap."""
        return (*(f"block{i}" for i in range(len(self.blocks))), "head")

    def _level_features(self, sigma: Tensor) -> Tensor:
        step = self.level_centres[1] - self.level_centres[0]
        return torch.exp(-0.5 * ((torch.log(sigma)[:, None] - self.level_centres) / step) ** 2)


class Regressor(_Scaled):
    """Predict a latent from its conditions alone, float [B, D]: the conditional mean, in units of the data's spread."""

    def __init__(self, *, dims: int, n_conditions: int, width: int, depth: int) -> None:
        super().__init__(dims, n_conditions)
        layers: list[nn.Module] = [nn.Linear(max(n_conditions, 1), width), nn.SiLU()]
        for _ in range(depth):
            layers += [nn.Linear(width, width), nn.SiLU()]
        self.body = nn.Sequential(*layers, _zero(nn.Linear(width, dims)))

    def forward(self, cond: Tensor) -> Tensor:
        """Return the prediction in units of the data's spread, [B, D]."""
        return cast(Tensor, self.body(self.unit_cond(cond)))

    def predict(self, cond: Tensor) -> Tensor:
        """Return the predicted latent, [B, D]."""
        return self.mean + self.std * cast(Tensor, self(cond))


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.modulate = nn.Linear(width, 2 * width)
        self.inner = nn.Linear(width, width)
        self.outer = _zero(nn.Linear(width, width))

    def forward(self, h: Tensor, told: Tensor) -> Tensor:
        scale, shift = self.modulate(told).chunk(2, 1)
        return cast(Tensor, h + self.outer(functional.silu(self.inner(self.norm(h) * (1 + scale) + shift))))


def _zero(layer: nn.Linear) -> nn.Linear:
    """Return the layer with zero weights: what it adds to is the whole at the start."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def build_network(description: Mapping[str, Any]) -> Denoiser | Regressor:
    """Make the network that a learner's `describe` tells of, untrained.

    Raises:
        KeyError: an entry is missing, or `network` is neither ``denoiser`` nor ``regressor``.
    """
    sizes = {key: int(description[key]) for key in ("n_conditions", "width", "depth")}
    sizes["dims"] = math.prod(description["latent"])
    if description["network"] == "regressor":
        return Regressor(**sizes)
    if description["network"] != "denoiser":
        raise KeyError(description["network"])
    return Denoiser(**sizes, features=description.get("features"))
