"""The regression recipe: the baseline that predicts one latent per seed, and so averages modes that are apart.

Its optimum is the conditional mean: between two outcomes of one seed it lies where no outcome is. Gates must catch it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .capacity import check_latents
from .job import Batch, Facts
from .latent_settings import CAPACITY_MEMBERS

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from .denoiser import Regressor


def build(settings: Mapping[str, Any], facts: Facts) -> RegressionLearner:
    """Make the learner of a regressor; raises DistdataError for samples without latents that vary."""
    return RegressionLearner(settings, facts)


class RegressionLearner:
    """A network from conditions to a latent, by least squares in units of each dimension's spread."""

    rowwise = True
    members = CAPACITY_MEMBERS

    def __init__(self, settings: Mapping[str, Any], facts: Facts) -> None:
        from .denoiser import Regressor

        check_latents(facts, "regression")
        self.settings, self.latent = settings, tuple(facts.latent)
        network = Regressor(
            dims=math.prod(self.latent),
            n_conditions=facts.n_conditions,
            width=settings["width"],
            depth=settings["depth"],
        )
        network.set_scales(facts.mean, facts.std, np.sqrt(facts.cond_mean**2 + facts.cond_std**2))
        self.network: Regressor = network

    def collate(self, samples: list[dict[str, Any]]) -> Batch:
        """Make a batch of `clean_latent` float32 [B, D] and `cond` [B, C]."""
        import torch

        rows = {name: np.stack([np.asarray(s[name], np.float32).reshape(-1) for s in samples]) for name in self.members}
        return {
            "clean_latent": torch.from_numpy(rows["latent.npy"]),
            "cond": torch.from_numpy(rows["cond.npy"]),
            "weight": torch.tensor([s["weight"] for s in samples], dtype=torch.float32),
            "clean": torch.tensor([s["clean"] for s in samples], dtype=torch.bool),
        }

    def loss(self, batch: Batch, generator: Generator) -> tuple[Tensor, dict[str, float]]:  # noqa: ARG002
        """Return each sample's mean squared error in units of spread; nothing is random here."""
        wanted: Tensor = (batch["clean_latent"] - self.network.mean) / self.network.std
        return ((self.network(batch["cond"]) - wanted) ** 2).mean(1), {}

    def describe(self) -> dict[str, Any]:
        """Return what rebuilds the network."""
        return {
            "network": "regressor",
            "latent": list(self.latent),
            "n_conditions": int(self.network.cond_scale.numel()),
            "width": self.settings["width"],
            "depth": self.settings["depth"],
        }
