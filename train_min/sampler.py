"""The deterministic sampler of Karras et al. 2022 (algorithm 1, no churn): noise levels and Heun steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


def karras_levels(sigma_min: float, sigma_max: float, n_steps: int, rho: float = 7.0) -> NDArray[np.float64]:
    """Return falling noise levels, float64 [n_steps + 1], the last one 0 (Karras et al. 2022, equation 5).

    Raises:
        ValueError: fewer than 2 steps, or bounds that don't fall.
    """
    if n_steps < 2 or not 0 < sigma_min < sigma_max:
        raise ValueError(f"{n_steps} steps from noise level {sigma_max} to {sigma_min}: needs 2 and falling levels")
    ramp = np.linspace(0, 1, n_steps)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return np.append((high + ramp * (low - high)) ** rho, 0.0)


def heun(denoise: Callable[[Tensor, float], Tensor], noise: Tensor, levels: NDArray[np.float64]) -> Tensor:
    """Follow dx/dsigma = (x - D(x; sigma)) / sigma from the first level, where x = level * noise, to the last.

    `denoise` is D, `noise` standard normal [B, dims]. Second order in the steps' size; a step to level 0 is Euler's,
    which lands on D itself. ``2 * (len(levels) - 1) - 1`` evaluations when the last level is 0.
    """
    x: Tensor = noise * levels[0]
    for here, there in zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True):
        slope = (x - denoise(x, here)) / here
        ahead = x + (there - here) * slope
        if there > 0:
            slope = (slope + (ahead - denoise(ahead, there)) / there) / 2
            ahead = x + (there - here) * slope
        x = ahead
    return x
