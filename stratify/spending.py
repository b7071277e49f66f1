"""How much of alpha a look may spend, and which fails stand among many rows.

Without it a student at its band is promoted sooner or later: ten candidates at 5% each pass 40% of the time. Candidate
c against one teacher version may spend alpha / (c (c + 1)), which sums to alpha over all candidates there will ever be,
and each look at one candidate an equal part of that (Bonferroni, so nothing is assumed about how looks depend). The
gate and its confirming gate spend alike: both must pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..catalogs.errors import DistdataError
from .paired import Floats


def spent_alpha(alpha: float, *, candidate: int, look: int = 1, n_looks: int = 1) -> float:
    """Return what look `look` of `n_looks` at this candidate (counted from 1) may spend of `alpha`.

    Raises:
        DistdataError: a candidate or look out of range.
    """
    if candidate < 1 or n_looks < 1 or not 1 <= look <= n_looks:
        raise DistdataError(
            f"gate: candidate {candidate}, look {look} of {n_looks}; candidates and looks count from 1, and a look "
            "beyond the last has nothing left to spend."
        )
    return alpha / (candidate * (candidate + 1)) / n_looks


def holm(p: Sequence[float]) -> Floats:
    """Return Holm's (1979) adjusted p-values: rows at or below alpha are false fails with a chance of alpha in all."""
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    factors = len(values) - np.arange(len(values))
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0) if len(values) else 0.0
    return adjusted
