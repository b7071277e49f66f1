"""How many gate draws a slice needs before its gate can tell anything: the decidable minimum.

Student and teacher draw on the same gate seeds, K draws a side. A seed's difference of means varies by
tau^2 + 2 sigma^2 / K around the slice's, so over m seeds, n = m K draws a side, its mean has the variance
(K tau^2 + 2 sigma^2) / n. Two one-sided tests at `alpha` pass a student whose true difference is Delta with
probability 1 - beta when

    n = (2 sigma^2 + K tau^2) (z_(1-alpha) + z_(1-beta))^2 / (band - |Delta|)^2 + K z_(1-alpha)^2 / 2

(Schuirmann 1987; the last term is Guenther's 1981 correction, Am. Stat. 35, for a variance that is estimated from
the seeds). Where no difference is expected both tests can miss, and beta / 2 takes beta's place. All gates must pass,
so the chance of missing is shared among the slices.

What is gated is often a share, and under common noise the draws that differ are few and mostly go one way: differences
are skewed, which costs both the bound and the power. With `lean` = K E(d - Ed)^3 / Var d (1 where single draws differ,
all in one direction; 0 where differences are symmetric) the second-order terms of Johnson's bound and of Cornish and
Fisher's expansion ask for n = x^2 with (band - |Delta|) x^2 - S (z_(1-alpha) + z_(1-beta)) x -
lean (2 z_(1-alpha)^2 + z_(1-beta)^2) / 6 = 0, S^2 = 2 sigma^2 + K tau^2.

An outcome split passes when all of its contrasts lie inside the band. Those that add outcomes in which student and
teacher agree differ as much as the worst one does, and each of the `n_contrasts` gets its part of beta (Bonferroni).

A gate asks whether a student behaves under a slice's conditions, not how often the fleet meets them: its draws are
dealt to the slice's cells in equal shares as far as these have seeds, so that rare scenario types are seen too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..catalogs.errors import DistdataError
from .allocate import allocate_groups
from .contrasts import MOST_LABELS, Part, outcome_parts
from .frame import Bools, Floats, Frame, Ints, first_seeds, sum_by_cell
from .intervals import paired_values, seeds_for
from .paired import SliceDraws, slice_draws

MIN_SEEDS = 20
"""A gate with fewer seeds stays undecided, whatever they say; so does one with fewer than `intervals.seeds_for`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateAims:
    """What a gate must be able to tell (``[gates]`` of distdata.toml).

    - `alpha`: chance of passing a student that stands at its band. `power`: chance that a student whose true difference
      is `expected_difference` bands passes all gates.
    - `sigma`: standard deviation of the gated statistic within a seed; `tau`: over seeds, of the seed's own difference.
    - `lean`, `n_contrasts`: see the head of this module; `tied_contrasts` counts them.
    - `seeds`: of each slice at least so many, as far as it has them.
    """

    alpha: float = 0.05
    power: float = 0.9
    expected_difference: float = 0.5
    sigma: float = 0.5
    tau: float = 0.0
    lean: float = 0.0
    n_contrasts: int = 1
    seeds: int = MIN_SEEDS

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
            ("lean", self.lean, math.isfinite(self.lean) and self.lean >= 0, "be a number of at least 0"),
            ("n_contrasts", self.n_contrasts, self.n_contrasts >= 1, "be at least 1"),
            ("seeds", self.seeds, self.seeds >= MIN_SEEDS, f"be at least {MIN_SEEDS}"),
        )  # fmt: skip
        for name, value, fine, wanted in limits:
            if not fine:
                raise DistdataError(f"gates: {name} = {value:g} must {wanted}.")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SliceMinima:
    """The decidable minimum of every gated slice, arrays [S], and how it falls to the cells [H].

    - `names`, sorted; `band`: the tightest of the slice's feasible cells; `k`: mean K of its seeds; `sigma`.
    - `needed`: draws a side, at least what 20 seeds give, the seeds that, if all agree, show a share to lie inside the
      band, and `GateAims.seeds` of those there are; `ceiling`: what all its seeds give.
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


def draws_needed(
    band: Floats, k: Floats, sigma: Floats, aims: GateAims, n_slices: int, n_contrasts: Floats | None = None
) -> Floats:
    """Return the draws per side that decide a slice (see the head of this module), float64 like `band`.

    `k` is the draws per seed, `sigma` the standard deviation within a seed, `n_slices` how many gates share beta, and
    `n_contrasts` into how many parts each slice's is divided (default: `aims.n_contrasts`).
    """
    each = np.full(len(band), float(aims.n_contrasts)) if n_contrasts is None else n_contrasts
    sides = 2 if aims.expected_difference == 0 else 1
    z = NormalDist().inv_cdf
    z_alpha = z(1 - aims.alpha)
    z_beta = np.array([z(1 - (1 - aims.power) / n_slices / n / sides) for n in each.tolist()])
    room = band * (1 - aims.expected_difference)
    spread = 2 * sigma**2 + k * aims.tau**2
    with np.errstate(over="ignore", divide="ignore"):  # a band near 0 asks for more than there are numbers
        errors, skewed = np.sqrt(spread) * (z_alpha + z_beta), aims.lean * (2 * z_alpha**2 + z_beta**2) / 6
        root = (errors + np.sqrt(errors**2 + 4 * room * skewed)) / (2 * room)
        needed: Floats = root**2 + k * z_alpha**2 / 2
    return needed


def tied_contrasts(n_labels: Sequence[float]) -> int:
    """Return how many contrasts of a slice can differ as much as the worst one, given each scenario type's labels.

    Where mass moves between two labels of a type, the other J - 2 may be in the contrast or not: 2^(J - 2), and over
    types the product. At most 2^40.
    """
    return int(2 ** min(sum(max(n - 2, 0) for n in n_labels), 40))


def slice_minima(
    frame: Frame,
    *,
    slices: NDArray[np.str_] | NDArray[np.object_],
    feasible: Bools,
    band: Floats,
    sigma: Floats,
    aims: GateAims,
    labels: Floats | None = None,
) -> SliceMinima:
    """Compute every gated slice's minimum from the gate seeds in `frame`; all arrays [H].

    `sigma` is NaN where nothing was measured: `aims.sigma` then. `labels` is how many outcomes a cell's scenario type
    has: a slice has the contrasts of its own types; NaN, or without it: `aims.n_contrasts`. A slice is gated when a
    feasible cell of it has seeds. A slice's cells share its draws alike, at least 1 where a cell has seeds, and whole
    seeds up to the least number of seeds; what a small cell can't give the others do.
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

    share = _equal_shares(slice_of, n_slices)
    sigmas = np.where(np.isfinite(sigma), sigma, aims.sigma)
    most, seeds, variance = (
        np.bincount(slice_of[gated], weights=values[gated], minlength=n_slices)
        for values in (ceiling, n_seeds, share * sigmas**2)
    )
    k_mean = most / np.maximum(seeds, 1)
    sigma_slice = np.sqrt(variance)
    fewest = np.array([max(MIN_SEEDS, seeds_for(eps, aims.alpha)) for eps in tightest.tolist()], dtype=np.int64)
    fewest = np.maximum(fewest, np.minimum(aims.seeds, seeds.astype(np.int64)))
    least_seeds = _spread(share, np.minimum(n_seeds, 1), n_seeds, slice_of, fewest)
    floor = np.where(gated, first_seeds(frame, least_seeds), 0)  # type: ignore[arg-type]
    at_least = np.bincount(slice_of[gated], weights=floor[gated], minlength=n_slices).astype(np.int64)
    contrasts = _contrasts(labels, slice_of, n_slices, aims)
    by_formula = np.ceil(draws_needed(tightest, k_mean, sigma_slice, aims, max(n_slices, 1), contrasts) - 1e-9)
    with_seeds = np.ceil(fewest * k_mean - 1e-9).astype(np.int64)
    needed = np.maximum(np.minimum(by_formula, 2.0**62).astype(np.int64), with_seeds)
    needed = np.maximum(needed, at_least)
    lower = _spread(share, floor, ceiling, slice_of, np.minimum(needed, most.astype(np.int64)))
    return SliceMinima(
        names=names.tolist(), band=tightest, k=k_mean, sigma=sigma_slice, needed=needed,
        ceiling=most.astype(np.int64), slice_of=slice_of, lower=lower,
    )  # fmt: skip


def _contrasts(labels: Floats | None, slice_of: Ints, n_slices: int, aims: GateAims) -> Floats:
    """Return the contrasts of each slice that can differ as much as its worst, float64 [S]."""
    if labels is None:
        return np.full(n_slices, float(aims.n_contrasts))
    of_slice = [labels[slice_of == i] for i in range(n_slices)]
    return np.array([float(tied_contrasts(n.tolist()) if np.isfinite(n).all() else aims.n_contrasts) for n in of_slice])


def _equal_shares(slice_of: Ints, n_slices: int) -> Floats:
    """Return each gated cell's part of its slice, 1 over the number of its gated cells, [H]."""
    gated = slice_of >= 0
    share = np.zeros(len(slice_of))
    share[gated] = 1 / np.bincount(slice_of[gated], minlength=n_slices)[slice_of[gated]]
    return share


def _spread(share: Floats, lower: Ints, upper: Ints, slice_of: Ints, budgets: Ints) -> Ints:
    """Deal each slice's budget to its gated cells by their share of it, int64 [H]; 0 elsewhere.

    A slice with more cells than budget gets its lower bounds.
    """
    gated = np.flatnonzero(slice_of >= 0)
    counts = np.zeros(len(slice_of), dtype=np.int64)
    if len(gated) == 0:
        return counts
    at, least, most = slice_of[gated], lower[gated], upper[gated]
    total = np.bincount(at, weights=least, minlength=len(budgets)).astype(np.int64)
    counts[gated] = allocate_groups(share[gated], least, most, at, np.maximum(budgets, total))
    return counts


def paired_sigma(paired: pl.DataFrame, column: str = "outcome") -> pl.DataFrame:
    """Return what an earlier gate's paired draws say about the spreads that `draws_needed` asks for, slice by slice.

    Common noise makes paired differences vary far less than two separate sides; `sigma` is that of a side which gives
    their variance within seeds, 2 sigma^2, and `tau^2` is what is left of the variance over seeds. `column` is a metric
    column of numbers, or ``outcome``: then of the contrast that varies most.

    Columns: slice, n_seeds, k (mean draws a seed), sigma, tau, `sigma_all`, which at the same k stands for both
    (2 sigma_all^2 = 2 sigma^2 + k tau^2), and `lean`, whichever direction it has. Slices with fewer than 20 seeds or
    values missing are left out. Where all seeds agree, one more is taken to differ, by 1 or by the range of values.
    """
    rows = []
    for (name,), frame in paired.sort("slice").group_by("slice", maintain_order=True):
        draws = slice_draws(str(name), frame)
        found = _outcome_differences(draws) if column == "outcome" else _differences(draws, column)
        if found is None or found[0].n_seeds < MIN_SEEDS:
            continue
        here, x, span = found
        d, k = here.mean_by_seed(x), here.n_draws / here.n_seeds
        spread = float(d.var(ddof=1)) or span**2 / (here.n_seeds + 1)
        free = here.n_draws - here.n_seeds
        # one draw a seed shows no spread within: all of it counts as such
        within = float(((x - d[here.seed]) ** 2).sum() / free) if free else spread
        within = min(within, spread / float((1 / here.n_of).mean()))
        tau2 = max(spread - within * float((1 / here.n_of).mean()), 0.0)
        sigmas = (math.sqrt(within / 2), math.sqrt(tau2), math.sqrt((within + k * tau2) / 2))
        lean = k * abs(float(((d - d.mean()) ** 3).mean())) / spread
        rows.append((name, here.n_seeds, k, *sigmas, lean))
    numbers = dict.fromkeys(("k", "sigma", "tau", "sigma_all", "lean"), pl.Float64)
    return pl.DataFrame(rows, schema={"slice": pl.String, "n_seeds": pl.Int64, **numbers}, orient="row")


def _differences(draws: SliceDraws, column: str) -> tuple[SliceDraws, Floats, float] | None:
    """Return the draws that have a value, student less teacher [n], and the range of values; None if some lack one."""
    values = paired_values(draws, column)
    if isinstance(values, str) or values[0].n_draws == 0:
        return None
    here, teacher, student = values
    return here, student - teacher, float(np.ptp(np.concatenate([teacher, student])))


def _outcome_differences(draws: SliceDraws) -> tuple[SliceDraws, Floats, float] | None:
    """Return the differences [n] of the contrast that varies most: of each scenario type the subset that does."""
    sides = [draws.frame[f"{side}_outcome"] for side in ("teacher", "student")]
    if any(side.null_count() for side in sides):
        return None
    teacher, student = (side.cast(pl.String).to_numpy().astype(str) for side in sides)
    of_draw, x = draws.scenario[draws.seed], np.zeros(draws.n_draws)
    for part in outcome_parts(draws):
        here, subset = of_draw == part.scenario, _most_varying(part)
        x[here] = np.isin(student[here], subset).astype(float) - np.isin(teacher[here], subset)
    return draws, x, 1.0


def _most_varying(part: Part) -> list[str]:
    single = len(part.labels) > MOST_LABELS
    subsets = np.eye(len(part.labels), dtype=bool) if single else part.subsets(first=True)
    chosen = subsets[:, int(((part.d @ subsets) ** 2).sum(axis=0).argmax())]
    return [label for label, yes in zip(part.labels, chosen.tolist(), strict=True) if yes]
