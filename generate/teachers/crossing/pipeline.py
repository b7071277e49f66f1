"""The crossing world as a diffusers pipeline: noise in, trajectories and what the sensors see out.

Used like any other pipeline: `save_pretrained`, `from_pretrained`, a call with one generator per request.
The noise of a request is ``torch.randn([3, 2, 24], float32)`` from its own generator, whatever the batch;
the chain itself runs in float64, so that a batch's company moves a sample by rounding only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, HeunDiscreteScheduler
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import NDArray
from torch import Tensor

from ....catalogs.protocol import Member, Request
from ..chain_states import known_warnings
from .conditions import conditions
from .law import LATENT_SHAPE, Mixture, check_request, mixture
from .rollout import rollout_members
from .score_model import Conditions, CrossingScore
from .world import N_INFERENCE_STEPS, SCHEDULER_CONFIG

_LOADER = '''"""Let diffusers find the class: from_pretrained(HERE, custom_pipeline=HERE, trust_remote_code=True)."""

from distdata.generate.teachers.crossing.pipeline import CrossingPipeline  # noqa: F401
'''


@dataclass
class CrossingOutput(BaseOutput):  # type: ignore[misc]  # diffusers ships no types
    """What one call gives, in the order of its conditions.

    `latents` float64 [B, 3, 2, 24]; `trajectories` float64 [B, 3, 2, 24], metres; `outcomes` the label of
    the component with the largest responsibility (ties: the first); `responsibilities` float64 [B], its.
    """

    latents: Tensor
    trajectories: NDArray[np.float64]
    outcomes: list[str]
    responsibilities: NDArray[np.float64]


class CrossingPipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers ships no types
    """Sample futures of the crossing world by a Heun chain on its exact score (Karras et al. 2022, algorithm 1)."""

    model_cpu_offload_seq = "score"

    def __init__(self, score: CrossingScore, scheduler: HeunDiscreteScheduler) -> None:
        super().__init__()
        self.register_modules(score=score, scheduler=scheduler)

    @classmethod
    def bundled(cls, **scheduler: Any) -> CrossingPipeline:
        """Return the pipeline of the bundled world; `scheduler` changes entries of `SCHEDULER_CONFIG`."""
        with known_warnings():
            return cls(CrossingScore(), HeunDiscreteScheduler(**{**SCHEDULER_CONFIG, **scheduler}))

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save the pipeline, with the few lines that let diffusers load it by the folder alone."""
        super().save_pretrained(save_directory, **kwargs)
        (Path(save_directory) / "pipeline.py").write_text(_LOADER, encoding="utf-8")

    @torch.no_grad()
    def __call__(
        self,
        conditions: Sequence[Mapping[str, Any]],
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int = N_INFERENCE_STEPS,
        latents: Tensor | None = None,
    ) -> CrossingOutput:
        """Draw one future per condition.

        `conditions`: mappings with `axes`, `scenario` and `params` (see `law.STATE_KEYS`). `latents`: the
        starting noise of standard deviation 1, [B, 3, 2, 24], instead of the generators' (replay).
        """
        mixtures, batch = self._mixtures(conditions)
        shape = (len(mixtures), *LATENT_SHAPE)
        device = self._execution_device
        noise = randn_tensor(shape, generator=generator, device=device) if latents is None else latents.to(device)
        final = self._chain(noise.to(torch.float64), batch, num_inference_steps)
        return self._output(final, batch, mixtures)

    def finish(self, conditions: Sequence[Mapping[str, Any]], latents: Tensor) -> CrossingOutput:
        """Decode and label finished latents, [B, 3, 2, 24], whoever made them, as the chain's own end is."""
        mixtures, batch = self._mixtures(conditions)
        return self._output(latents.to(self._execution_device, torch.float64), batch, mixtures)

    def _mixtures(self, conditions: Sequence[Mapping[str, Any]]) -> tuple[list[Mixture], Conditions]:
        mixtures = [mixture(c["axes"], c["scenario"], c["params"], self.score.world) for c in conditions]
        return mixtures, self.score.conditions(mixtures)

    def _chain(self, noise: Tensor, batch: Conditions, n_steps: int) -> Tensor:
        with known_warnings():
            self.scheduler.set_timesteps(n_steps, device=noise.device)
        self.scheduler.set_begin_index(0)
        x: Tensor = noise * self.scheduler.init_noise_sigma
        for t in self.scheduler.timesteps:
            scaled = self.scheduler.scale_model_input(x, t)
            # at index i the scheduler wants the noise at sigmas[i], be it the first or the second half of a step
            sigma = self.scheduler.sigmas[self.scheduler.step_index]
            x = self.scheduler.step(self.score(scaled, sigma, batch), t, x).prev_sample
        return x

    def _output(self, final: Tensor, batch: Conditions, mixtures: Sequence[Mixture]) -> CrossingOutput:
        weights = self.score.responsibilities(final, batch)
        best = weights.argmax(1).tolist()
        anchors = torch.from_numpy(np.stack([m.anchor_m for m in mixtures])).to(final.device)
        return CrossingOutput(
            latents=final.cpu(),
            trajectories=self.score.decode(final, anchors).cpu().numpy(),
            outcomes=[m.names[j] for m, j in zip(mixtures, best, strict=True)],
            responsibilities=weights.amax(1).cpu().numpy(),
        )

    # The hooks by which the diffusers teacher runs a pipeline whose inputs and records are its own.

    def distdata_check(self, request: Request) -> str | None:
        """Say why a request can't be answered; None when it can."""
        return check_request(request.axes, request.scenario, request.params, self.score.world)

    def distdata_inputs(self, requests: Sequence[Request]) -> dict[str, Any]:
        """Return the arguments of the call that answers `requests`."""
        return {"conditions": [{"axes": r.axes, "scenario": r.scenario, "params": r.params} for r in requests]}

    def distdata_members(
        self, output: CrossingOutput, requests: Sequence[Request]
    ) -> list[tuple[dict[str, Member], str | None]]:
        """Return the record and the outcome of every request."""
        members = rollout_members(
            output.trajectories, output.latents.numpy(), output.outcomes, output.responsibilities, requests,
            self.score.world,
        )  # fmt: skip
        return list(zip(members, output.outcomes, strict=True))

    def distdata_conditions(self, requests: Sequence[Request]) -> NDArray[np.float32]:
        """Return what a network is told of each request, float32 [B, C]."""
        return conditions(requests, self.score.world)

    def distdata_noise(self, requests: Sequence[Request]) -> NDArray[np.float32]:
        """Return the noise that each request's own generator gives, float32 [B, 3, 2, 24]."""
        noise = [torch.randn(LATENT_SHAPE, generator=torch.Generator().manual_seed(r.rng_seed)) for r in requests]
        return np.stack([n.numpy() for n in noise]) if noise else np.zeros((0, *LATENT_SHAPE), np.float32)

    def distdata_decode(self, requests: Sequence[Request], latents: NDArray[Any]) -> CrossingOutput:
        """Return what the call would have, had its chain ended at `latents`, [B, 3, 2, 24]."""
        return self.finish(self.distdata_inputs(requests)["conditions"], torch.from_numpy(latents))
