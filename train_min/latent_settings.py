"""What can be set for students of latents, with the values that measurements chose; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CAPACITY_SETTINGS: Mapping[str, Any] = {
    "steps": 2_500,
    "batch": 384,
    "lr": 2e-3,
    "ema": 0.998,
    "weight_decay": 0.01,
    "width": 96,
    "depth": 2,
    "match": "draws",  # or outputs: the teacher's denoised outputs along captured trajectories
    "sigma_mean": None,  # of the log-normal law of training noise levels: mean of the log, latent units; by `match`
    "sigma_spread": None,  # its standard deviation; by `match`
    "sigma_min": 0.01,
    "sigma_max": 157.4,  # where sampling starts: the teacher's own, so that equal noise means equal starts
    "sampler_steps": 32,
    "rho": 7.0,
    "dims_power": None,  # a dimension's loss is weighted by its standard deviation to this power; 0: all alike
    "cond_noise": 0.0,  # standard deviation of noise added to the conditions in training
    "feature_map": {},  # student layer -> teacher layer whose feat_LAYER.npy it should predict
    "feature_weight": 0.1,  # what the features' loss weighs beside the latents'
}
"""Settings of recipe `capacity`, those of the loop among them where another value than the common one did better.

None: what did best for the `match` that is set, see `BY_MATCH`.
"""

BY_MATCH: Mapping[str, Mapping[str, float]] = {
    "draws": {"sigma_mean": 0.5, "sigma_spread": 1.4, "dims_power": 0.7},
    "outputs": {"sigma_mean": 1.0, "sigma_spread": 1.6, "dims_power": 0.5},
}
"""Outputs say most at high noise, where a draw says least of its law: there their training can dwell longer."""

REGRESSION_SETTINGS: Mapping[str, Any] = {"steps": 1_500, "batch": 512, "lr": 2e-3, "width": 96, "depth": 2}
"""Settings of recipe `regression`, likewise."""

CAPACITY_MEMBERS = ("latent.npy", "cond.npy")
OUTPUTS_MEMBERS = (*CAPACITY_MEMBERS, "traj.npy", "traj_sigma.npy")
"""What matching the teacher's outputs reads: the states before each step and their noise levels."""

MATCHES = tuple(BY_MATCH)
