"""How many gate draws a slice needs before its gate can tell anything: the decidable minimum.

Student and teacher draw on the same gate seeds, K draws a side. A seed's difference of means varies by
tau^2 + 2 sigma^2 / K around the slice's, so over m seeds, n = m K draws a side, its mean has the variance
(K tau^2 + 2 sigma^2) / n. Two one-sided tests at `alpha` pass a student whose true difference is Delta with
probability 1 - beta when

    n = (2 sigma^2 + K tau^2) (z_(1-alpha) + z_(1-beta))^2 / (band - |Delta|)^2 + K z_(1-alpha)^2 / 2

(Schuirmann 1987; the last term is Guenther's 1981 correction, Am. Stat. 35, for a variance that is estimated from
the seeds). Where no difference is expected both tests can miss, and beta / 2 takes beta's place. All gates must pass,
so the chance of missing is shared among the slices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from ..catalogs.errors import DistdataError
from .allocate import allocate_groups
from .frame import Bools, Floats, Frame, Ints, first_seeds, sum_by_cell

MIN_SEEDS = 20
"""A gate with fewer seeds stays undecided, whatever they say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateAims:
    """What a gate must be able to tell (``[gates]`` of distdata.toml).

    - `alpha`: chance of passing a student that stands at its band. `power`: chance that a student whose true difference
      is `expected_difference` bands passes all gates.
    - `sigma`: standard deviation of the gated statistic within a seed; `tau`: over seeds, of the seed's own difference.
    """

    alpha: float = 0.05
    power: float = 0.9
    expected_difference: float = 0.5
    sigma: float = 0.5
    tau: float = 0.0

    def __post_init__(self) -> None:
        limits = (
            ("alpha", self.alpha, 0 < self.alpha < 0.5, "lie above 0 and below 0.5"),
            ("power", self.power, 0.5 < self.power < 1, "lie above 0.5 and below 1"),
            (
                "expected_difference", self.expected_difference, 0 <= self.expected_difference < 1,
                "lie at 0 or above and below 1: a student at its band can't be told from one beyond it",
            ),
            ("sigma", self.sigma, math.isfinite(self.sigma) and self.sigma > 0, "be a number above 0"),
            ("tau", self.tau, math.isfinite(self.tau) and self.tau >= 0, "be a number of at least 0"),
        )  # fmt: skip
        for name, value, fine, wanted in limits:
            if not fine:
                raise DistdataError(f"gates: {name} = {value:g} must {wanted}.")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SliceMinima:
    """The decidable minimum of every gated slice, arrays [S], and how it falls to the cells [H].

    - `names`, sorted; `band`: the tightest of the slice's feasible cells; `k`: mean K of its seeds; `sigma`.
    - `needed`: draws a side, at least what 20 seeds give; `ceiling`: what all its seeds give.
    - `slice_of` int64 [H]: index of each cell's slice, -1 where it is not gated. `lower` int64 [H]: the cells' parts.
    """

    names: list[str]
    band: Floats
    k: Floats
    sigma: Floats
    needed: Ints
    ceiling: Ints
    slice_of: Ints
    lower: Ints

    @property
    def undecidable(self) -> Bools:
        """Slices whose seeds can't give what is needed, bool [S]."""
        return self.ceiling < self.needed


def draws_needed(band: Floats, k: Floats, sigma: Floats, aims: GateAims, n_slices: int) -> Floats:
    """Return the draws per side that decide a slice (see the head of this module), float64 like `band`.

    `k` is the draws per seed, `sigma` the standard deviation within a seed, `n_slices` how many gates share beta.
    """
    beta = (1 - aims.power) / n_slices
    z = NormalDist().inv_cdf
    z_alpha = z(1 - aims.alpha)
    z_beta = z(1 - beta / 2) if aims.expected_difference == 0 else z(1 - beta)
    room = band * (1 - aims.expected_difference)
    spread = 2 * sigma**2 + k * aims.tau**2
    with np.errstate(over="ignore", divide="ignore"):  # a band near 0 asks for more than there are numbers
        needed: Floats = spread * ((z_alpha + z_beta) / room) ** 2 + k * z_alpha**2 / 2
    return needed


def slice_minima(
    frame: Frame,
    *,
    slices: NDArray[np.str_] | NDArray[np.object_],
    feasible: Bools,
    band: Floats,
    fleet_share: Floats,
    sigma: Floats,
    aims: GateAims,
) -> SliceMinima:
    """Compute every gated slice's minimum from the gate seeds in `frame`; all arrays [H].

    `sigma` is NaN where nothing was measured: `aims.sigma` then. A slice is gated when a feasible cell of it has seeds.
    Inside a slice draws follow the fleet share, at least 1 where a cell has seeds, and whole seeds up to the 20th.
    """
    ceiling = sum_by_cell(frame, frame.k_seed)
    n_seeds = sum_by_cell(frame, (frame.k_seed > 0).astype(np.int8))
    gated = feasible & (ceiling > 0)
    names, of_gated = np.unique(slices[gated].astype(str), return_inverse=True)
    n_slices = len(names)
    slice_of = np.full(len(slices), -1, dtype=np.int64)
    slice_of[gated] = of_gated.reshape(-1)
    tightest = np.full(n_slices, np.inf)
    known = {name: i for i, name in enumerate(names.tolist())}
    any_cell = np.array([known.get(name, -1) for name in slices.tolist()])
    named = feasible & (any_cell >= 0)
    np.minimum.at(tightest, any_cell[named], band[named])

    share = _shares_inside(fleet_share, slice_of, n_slices)
    sigmas = np.where(np.isfinite(sigma), sigma, aims.sigma)
    most, seeds, variance = (
        np.bincount(slice_of[gated], weights=values[gated], minlength=n_slices)
        for values in (ceiling, n_seeds, share * sigmas**2)
    )
    k_mean = most / np.maximum(seeds, 1)
    sigma_slice = np.sqrt(variance)
    least_seeds = _spread(share, np.minimum(n_seeds, 1), n_seeds, slice_of, np.full(n_slices, MIN_SEEDS))
    floor = np.where(gated, first_seeds(frame, least_seeds), 0)  # type: ignore[arg-type]
    at_least = np.bincount(slice_of[gated], weights=floor[gated], minlength=n_slices).astype(np.int64)
    by_formula = np.ceil(draws_needed(tightest, k_mean, sigma_slice, aims, max(n_slices, 1)) - 1e-9)
    needed = np.maximum(np.minimum(by_formula, 2.0**62).astype(np.int64), np.ceil(MIN_SEEDS * k_mean).astype(np.int64))
    needed = np.maximum(needed, at_least)
    lower = _spread(share, floor, ceiling, slice_of, np.minimum(needed, most.astype(np.int64)))
    return SliceMinima(
        names=names.tolist(), band=tightest, k=k_mean, sigma=sigma_slice, needed=needed,
        ceiling=most.astype(np.int64), slice_of=slice_of, lower=lower,
    )  # fmt: skip


def _shares_inside(fleet_share: Floats, slice_of: Ints, n_slices: int) -> Floats:
    """Return each gated cell's part of its slice's fleet share, all alike where the fleet knows none of them, [H]."""
    gated = slice_of >= 0
    at = slice_of[gated]
    total = np.bincount(at, weights=fleet_share[gated], minlength=n_slices)
    count = np.bincount(at, minlength=n_slices)
    inside = np.zeros(len(slice_of))
    with np.errstate(divide="ignore", invalid="ignore"):
        inside[gated] = np.where(total[at] > 0, fleet_share[gated] / total[at], 1 / count[at])
    return inside


def _spread(share: Floats, lower: Ints, upper: Ints, slice_of: Ints, budgets: Ints) -> Ints:
    """Deal each slice's budget to its gated cells by their share of it, int64 [H]; 0 elsewhere.

    A slice with more cells than budget gets its lower bounds. Cells of share 0 take what the others can't.
    """
    gated = np.flatnonzero(slice_of >= 0)
    counts = np.zeros(len(slice_of), dtype=np.int64)
    if len(gated) == 0:
        return counts
    at, least, most = slice_of[gated], lower[gated], upper[gated]
    total = np.bincount(at, weights=least, minlength=len(budgets)).astype(np.int64)
    # a share of 0 would stop at its lower bound; so small a one comes last instead
    weight = np.maximum(share[gated], 1e-15)
    counts[gated] = allocate_groups(weight, least, most, at, np.maximum(budgets, total))
    return counts
