"""A recipe whose best student is known in closed form: a linear map from ``cond.npy`` to ``latent.npy``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from distdata.train_min.job import Batch, Facts


class Linear:
    """Least squares by gradient; with settings.use_member_weights the loss weighs ``meta.json``'s own weight."""

    def __init__(self, settings: Mapping[str, Any], facts: Facts) -> None:
        self.rowwise = settings["rowwise"]
        self.own_weights = settings["use_member_weights"]
        self.noise = settings["noise"]
        self.poison = settings["poison_row"]
        self.members = ("latent.npy", "cond.npy", *(("meta.json",) if self.own_weights else ()))
        self.sizes = (facts.n_conditions, facts.latent[0])
        layers: list[torch.nn.Module] = [torch.nn.Linear(*self.sizes, bias=False)]
        if settings["dropout"]:
            layers.insert(0, torch.nn.Dropout(settings["dropout"]))
        self.network = torch.nn.Sequential(*layers)

    def collate(self, samples: list[dict[str, Any]]) -> Batch:
        weights = [s["meta.json"]["weight"] if self.own_weights else s["weight"] for s in samples]
        return {
            "x": torch.from_numpy(np.stack([s["cond.npy"] for s in samples])),
            "y": torch.from_numpy(np.stack([s["latent.npy"] for s in samples])),
            "weight": torch.tensor(weights, dtype=torch.float32),
            "clean": torch.tensor([s["clean"] for s in samples]),
            "row": torch.tensor([s["row"] for s in samples]),
        }

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        x = batch["x"]
        if self.noise:
            x = x + self.noise * torch.randn(x.shape, generator=generator, device=x.device)
        losses = (self.network(x) - batch["y"]).square().sum(1)
        if self.poison >= 0:
            losses = torch.where(batch["row"] == self.poison, torch.nan, losses)
        return losses, {"largest": float(losses.detach().max())}

    def describe(self) -> dict[str, Any]:
        return {"kind": "linear", "sizes": list(self.sizes)}


def build(settings: Mapping[str, Any], facts: Facts) -> Linear:
    """Make the learner."""
    return Linear(settings, facts)
