"""The capacity recipe: a smaller denoiser that learns the teacher's law of latents, modes and all.

With ``match = "draws"`` it learns from finished latents by denoising score matching (Karras et al. 2022); with
``"outputs"`` from the teacher's denoised outputs along captured trajectories, which say more per draw: at a high
noise level the teacher's output is the whole law's mean, where a draw is one outcome of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..catalogs.errors import DistdataError
from .feature_map import check_map, feature_loss, member, per_state
from .job import Batch, Facts
from .latent_losses import denoised_between, match_denoised, noise_levels, noised, steps_at
from .latent_settings import BY_MATCH, CAPACITY_MEMBERS, CAPACITY_SETTINGS, MATCHES, OUTPUTS_MEMBERS

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from .denoiser import Denoiser


def build(settings: Mapping[str, Any], facts: Facts) -> CapacityLearner:
    """Make the learner of a conditional denoiser; settings that are None take the value that suits `match`.

    Raises:
        DistdataError: the samples have no latents or none that vary, a setting is out of its range, the feature map
            names what isn't there, or outputs should be matched and the samples have no trajectories.
    """
    return CapacityLearner(fill_settings(settings), facts)


def fill_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return all settings of the recipe, those that are None by `BY_MATCH`.

    Raises DistdataError for a `match` that isn't known, or one of these that is no number.
    """
    full = {**CAPACITY_SETTINGS, **settings}
    if full["match"] not in MATCHES:
        raise DistdataError(f"recipe capacity: match = {full['match']!r}; it can be {' or '.join(MATCHES)}.")
    for key, suits in BY_MATCH[full["match"]].items():
        value = suits if full[key] is None else full[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise DistdataError(f"recipe capacity: {key} = {value!r}; it must be a number, such as {suits:g}.")
        full[key] = float(value)
    return full


class CapacityLearner:
    """A denoiser with its loss; see the module's text and `latent_settings.CAPACITY_SETTINGS`."""

    rowwise = True

    def __init__(self, settings: Mapping[str, Any], facts: Facts) -> None:
        from .denoiser import Denoiser

        check_latents(facts, "capacity")
        _check_settings(settings, facts)
        self.settings, self.latent = settings, tuple(facts.latent)
        self.outputs = settings["match"] == "outputs"
        self.features = dict(settings["feature_map"])
        layers = (*(f"block{i}" for i in range(settings["depth"])), "head")
        self.sizes = check_map(self.features, layers, facts.sample)
        along = [per_state(facts.sample[member(f)], facts.sample) for f in self.features.values()]
        self.along = bool(along) and all(along)
        if any(along) != self.along:
            raise DistdataError(
                "feature_map: some features have a row per captured state and some have not. Map one kind."
            )
        base = OUTPUTS_MEMBERS if self.outputs or self.along else CAPACITY_MEMBERS
        self.members = (*base, *(member(f) for f in self.features.values()))
        self.dims = math.prod(self.latent)
        network = Denoiser(
            dims=self.dims,
            n_conditions=facts.n_conditions,
            width=settings["width"],
            depth=settings["depth"],
            features=self.sizes,
        )
        network.set_scales(facts.mean, facts.std, np.sqrt(facts.cond_mean**2 + facts.cond_std**2))
        self.network: Denoiser = network

    def collate(self, samples: list[dict[str, Any]]) -> Batch:
        """Make a batch: latents [B, D], conditions [B, C]; where they are read, states [B, S + 1, D] and features."""
        import torch

        latents = _stacked(samples, "latent.npy").reshape(len(samples), -1)
        batch: Batch = {
            "clean_latent": torch.from_numpy(latents),
            "cond": torch.from_numpy(_stacked(samples, "cond.npy").reshape(len(samples), -1)),
            "weight": torch.tensor([s["weight"] for s in samples], dtype=torch.float32),
            "clean": torch.tensor([s["clean"] for s in samples], dtype=torch.bool),
        }
        if "traj.npy" in self.members:
            states = _stacked(samples, "traj.npy").reshape(len(samples), -1, self.dims)
            levels = _stacked(samples, "traj_sigma.npy")
            batch["states"] = torch.from_numpy(np.concatenate([states, latents[:, None]], 1))
            batch["levels"] = torch.from_numpy(np.pad(levels, ((0, 0), (0, 1))))
        for layer, feature in self.features.items():
            shape = (len(samples), -1, self.sizes[layer]) if self.along else (len(samples), self.sizes[layer])
            batch[f"feat_{layer}"] = torch.from_numpy(_stacked(samples, member(feature)).reshape(shape))
        return batch

    def loss(self, batch: Batch, generator: Generator) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of each sample at one noise level of its own, and the parts by name."""
        import torch

        s, clean, cond = self.settings, batch["clean_latent"], batch["cond"]
        if s["cond_noise"]:
            normal = torch.randn(cond.shape, generator=generator, device=cond.device)
            cond = cond + s["cond_noise"] * normal
        sigma = noise_levels(len(clean), s["sigma_mean"], s["sigma_spread"], s["sigma_min"], s["sigma_max"], generator)
        if self.outputs:
            x, sigma, wanted = denoised_between(batch["states"], batch["levels"], steps_at(batch["levels"], sigma))
        else:
            x, wanted = noised(clean, sigma, generator), clean
        losses = match_denoised(self.network, x, sigma, cond, wanted, self._dim_weight())
        if not self.features:
            return losses, {}
        matched = self._feature_losses(batch, cond, sigma)
        return losses + s["feature_weight"] * matched, {"feature_loss": matched.detach().mean()}  # type: ignore[dict-item]

    def describe(self) -> dict[str, Any]:
        """Return what rebuilds the network and its sampler."""
        s = self.settings
        return {
            "network": "denoiser",
            "latent": list(self.latent),
            "n_conditions": int(self.network.cond_scale.numel()),
            "width": s["width"],
            "depth": s["depth"],
            "features": self.sizes,
            "sampler": {key: s[key] for key in ("sigma_min", "sigma_max", "sampler_steps", "rho")},
        }

    def _dim_weight(self) -> Tensor:
        weight: Tensor = self.network.std ** self.settings["dims_power"]
        return weight / weight.mean()

    def _feature_losses(self, batch: Batch, cond: Tensor, sigma: Tensor) -> Tensor:
        import torch

        n, taps = len(cond), dict[str, Any]()
        if self.along:
            step = steps_at(batch["levels"], sigma)
            rows = torch.arange(n, device=step.device)
            x, level = batch["states"][rows, step], batch["levels"][rows, step]
            wanted = {layer: batch[f"feat_{layer}"][rows, step] for layer in self.features}
        else:
            x, level = batch["clean_latent"], torch.full_like(sigma, self.settings["sigma_min"])
            wanted = {layer: batch[f"feat_{layer}"] for layer in self.features}
        self.network(self.network.scaled(x, level)[0], level, cond, taps)
        return feature_loss(taps, wanted, self.network.projections)


def check_latents(facts: Facts, recipe: str) -> None:
    """Raise DistdataError when the samples have no latent, or one that never varies."""
    if not facts.latent:
        raise DistdataError(
            f"recipe {recipe}: the samples have no latent.npy. It learns latents: draw them from a teacher that "
            "records them (crossing does), or take a recipe for language."
        )
    if not np.max(facts.std) > 0:
        raise DistdataError(f"recipe {recipe}: all {facts.n_samples:,} latents are equal; there is no law to learn.")


def _check_settings(settings: Mapping[str, Any], facts: Facts) -> None:
    if not 0 < settings["sigma_min"] < settings["sigma_max"]:
        raise DistdataError(
            f"recipe capacity: sigma_min = {settings['sigma_min']:g} and sigma_max = {settings['sigma_max']:g}; "
            "noise levels must be above 0 and rise."
        )
    for key, low in (
        ("width", 1),
        ("depth", 0),
        ("sampler_steps", 2),
        ("sigma_spread", 0),
        ("dims_power", 0),
        ("rho", 1),
    ):
        if settings[key] < low:
            raise DistdataError(f"recipe capacity: {key} = {settings[key]}; it must be at least {low}.")
    missing = [m for m in OUTPUTS_MEMBERS if m not in facts.sample]
    if settings["match"] == "outputs" and missing:
        raise DistdataError(
            f"recipe capacity: match = 'outputs' needs {', '.join(missing)}, which the samples lack. Draw them with "
            'capture = ["trajectory"], or set match = "draws".'
        )


def _stacked(samples: list[dict[str, Any]], name: str) -> Any:
    return np.stack([np.asarray(s[name], np.float32) for s in samples])
