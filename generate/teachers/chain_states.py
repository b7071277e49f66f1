"""What a diffusers chain went through: the states before its steps, heard at its scheduler."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...catalogs.protocol import Member


@dataclass(slots=True)
class States:
    """What a sampler went through: `before` each first-order step, at `times` and noise `levels`; `last` the end.

    `levels` stays empty for a scheduler whose states are scaled, so that its noise levels are none of the states'.
    """

    before: list[Any] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    levels: list[float] = field(default_factory=list)
    last: Any = None


@contextlib.contextmanager
def known_warnings() -> Iterator[None]:
    """Silence what diffusers 0.42 and torch 2.13 say to each other under numpy 2, and nothing else."""
    with warnings.catch_warnings():
        # schedulers call np.array(tensor); numpy asks torch for a `copy` argument that it does not know yet
        warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy", DeprecationWarning)
        yield


@contextlib.contextmanager
def record_states(scheduler: Any) -> Iterator[States]:
    """Listen to a scheduler's steps: every pipeline goes through them, whatever its inputs."""
    states = States()
    step = scheduler.step

    @functools.wraps(step)
    def recording(model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(scheduler, "state_in_first_order", True):
            states.before.append(sample.detach().clone())
            states.times.append(float(timestep))
            level = _level(scheduler, timestep)
            if level is not None:
                states.levels.append(level)
        result = step(model_output, timestep, sample, *args, **kwargs)
        states.last = result[0] if isinstance(result, tuple) else result.prev_sample
        return result

    scheduler.step = recording
    try:
        yield states
    finally:
        del scheduler.step


def state_members(states: States, scheduler: Any, i: int, full: bool) -> dict[str, Member]:
    """Return what a listened-to chain adds to the record of request `i`: noise and latent; `full`: all states too."""
    # rows beyond the batch (guidance doubles it in some pipelines) repeat the first ones
    noise = states.before[0][i] / float(scheduler.init_noise_sigma)
    members: dict[str, Member] = {"noise.npy": _float32(noise), "latent.npy": _float32(states.last[i])}
    if full:
        members["traj.npy"] = np.stack([_float32(s[i]) for s in states.before])
        members["traj_t.npy"] = np.asarray(states.times, np.float32)
        if states.levels:
            members["traj_sigma.npy"] = np.asarray(states.levels, np.float32)
    return members


def _level(scheduler: Any, timestep: Any) -> float | None:
    """Return the noise level of the state before this step, where states are data plus level times noise."""
    if not hasattr(scheduler, "sigmas") or not hasattr(scheduler, "init_noise_sigma"):
        return None
    sigmas = scheduler.sigmas
    if abs(float(scheduler.init_noise_sigma) / float(sigmas.max()) - 1) > 0.05:
        return None  # a variance-preserving chain: its states shrink as noise comes in
    index = scheduler.step_index if scheduler.step_index is not None else scheduler.index_for_timestep(timestep)
    return float(sigmas[index])


def _float32(tensor: Any) -> Any:
    return tensor.detach().float().cpu().numpy()
