"""What a small pilot tells: how many draws per seed pay, and which cells have an open future at all.

For each cell the one-way analysis of variance splits the spread of the draws into a within-seed and a between-seed
variance, both unbiased for unequal numbers of draws (Searle, Casella and McCulloch, Variance Components, 1992, section
3.6). A category's spread is the sum over its indicators, so that its within-seed variance is the chance that two
draws of a seed differ. The variance of a mean for its cost, (between + within / K) (a + K) with a new seed's price of
a draws, is least at K* = sqrt(a within / between) (Cochran 10.6).

A cell is open when its seeds' draws differ by more than noise would let them: categories, when more than 5% of the
seeds show two different outcomes; numbers, when more than 10% of the variance lies within seeds. Both at the one-sided
95% level: by the exact binomial tail, and by the F interval of the variance ratio (Searle et al. 3.6d; for numbers
that are roughly normal).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import polars as pl

from ..catalogs.errors import DistdataError
from .allocate import allocate_groups
from .frame import Bools, Floats, Frame, Ints, first_seeds, sum_by_cell
from .t_law import incomplete_beta

MIN_SEEDS = 10
"""Pilot seeds with two draws or more below which a cell borrows from its scenario type."""
SEEDS_PER_CELL = 12
SEEDS_PER_SCENARIO = 120
LEVEL = 0.05
DIFFERING_SHARE = 0.05
WITHIN_SHARE = 0.10
_SUMS = ("n_seeds", "n_draws", "n_differ", "ss_within", "ss_between", "df_within", "df_between", "n_coef")
SOURCES = ("of the cell", "of its scenario type", "of all cells")


class _Ratio(NamedTuple):
    """Variances within and between seeds, and draws per seed as the analysis of variance counts them; arrays."""

    within: Floats
    between: Floats
    n_coef: Floats


def pilot_floor(frame: Frame, scenarios: list[str], fleet_share: Floats) -> Ints:
    """Return the draws of a pilot without a budget, int64 [H]: all K of its first seeds in candidate order.

    Up to 12 seeds a cell; a scenario type of more than ten cells shares 120 among them, the fleet's share counting
    half, and its cells then borrow from each other.
    """
    offered = sum_by_cell(frame, (frame.k_seed > 0).astype(np.int8))
    names = sorted(set(scenarios))
    code = {name: i for i, name in enumerate(names)}
    group = np.array([code[name] for name in scenarios], dtype=np.int64)
    upper = np.minimum(offered, SEEDS_PER_CELL)
    weight = np.where(upper > 0, 1 / len(scenarios) + fleet_share, 0.0)
    budgets = np.full(len(names), SEEDS_PER_SCENARIO, dtype=np.int64)
    n_seeds = allocate_groups(weight, np.zeros_like(upper), upper, group, budgets)
    return first_seeds(frame, n_seeds)  # type: ignore[arg-type]


def pilot_spread(draws: pl.DataFrame) -> pl.DataFrame:
    """Sum up what each cell's pilot draws say: one row per cell with draws, sorted by cell_id.

    `draws` has one row per draw: seed_id, cell_id and `outcome` (a category) or `value` (a number); nulls and NaN are
    left out. Columns: cell_id, n_seeds (with two draws or more), n_draws (of these seeds), n_differ (seeds whose draws
    differ; null for numbers), ss_within, ss_between (sums of squares), df_within, df_between, n_coef (draws per
    seed as the analysis of variance counts them), times df_between.
    """
    categorical = "outcome" in draws.columns
    if not categorical and "value" not in draws.columns:
        raise DistdataError(
            "pilot: the draws have neither a column 'outcome' nor 'value'; nothing says how they differ."
        )
    column = "outcome" if categorical else "value"
    said = draws.lazy().select("seed_id", "cell_id", said=pl.col(column)).drop_nulls("said")
    if not categorical:
        said = said.with_columns(pl.col("said").cast(pl.Float64)).filter(pl.col("said").is_finite())
    said = said.filter(pl.len().over("seed_id") >= 2)
    seeds = _by_category(said) if categorical else _by_number(said)
    n = pl.col("n")
    among = (pl.col("square") / n).sum() - pl.col("sum").sum() ** 2 / n.sum()
    cells = seeds.group_by("cell_id").agg(
        n_seeds=pl.len(),
        n_draws=n.sum(),
        n_differ=(pl.col("ss") > 1e-12).sum() if categorical else pl.lit(None, dtype=pl.UInt32),
        ss_within=pl.col("ss").sum(),
        ss_between=pl.col("between").first() if categorical else among,
        n_square=(n.cast(pl.Float64) ** 2).sum(),
    )  # fmt: skip
    df = pl.col("n_seeds").cast(pl.Int64) - 1
    return (
        cells.with_columns(
            pl.col("n_seeds", "n_draws", "n_differ").cast(pl.Int64),
            ss_between=pl.col("ss_between").clip(0),
            df_within=pl.col("n_draws").cast(pl.Int64) - pl.col("n_seeds").cast(pl.Int64),
            df_between=df,
            n_coef=pl.when(df > 0).then(pl.col("n_draws") - pl.col("n_square") / pl.col("n_draws")).otherwise(0.0),
        )
        .select("cell_id", *_SUMS)
        .sort("cell_id")
        .collect()
    )


def _by_category(said: pl.LazyFrame) -> pl.LazyFrame:
    """Return one row per seed: cell_id, n, ss (within, summed over indicators), between (the whole cell's)."""
    counts = said.group_by("cell_id", "seed_id", "said").agg(c=pl.len().cast(pl.Float64))
    seeds = counts.group_by("cell_id", "seed_id").agg(n=pl.col("c").sum(), square=(pl.col("c") ** 2).sum())
    totals = counts.group_by("cell_id", "said").agg(c=pl.col("c").sum())
    totals = totals.group_by("cell_id").agg(whole=(pl.col("c") ** 2).sum() / pl.col("c").sum())
    seeds = seeds.with_columns(ss=pl.col("n") - pl.col("square") / pl.col("n")).join(totals, on="cell_id")
    return seeds.with_columns(between=(pl.col("square") / pl.col("n")).sum().over("cell_id") - pl.col("whole"))


def _by_number(said: pl.LazyFrame) -> pl.LazyFrame:
    """Return one row per seed: cell_id, n, ss (within), sum and square of the sum, of values centred on their cell."""
    centred = said.with_columns(pl.col("said") - pl.col("said").mean().over("cell_id"))
    seeds = centred.group_by("cell_id", "seed_id").agg(
        n=pl.len().cast(pl.Float64),
        sum=pl.col("said").sum(),
        ss=((pl.col("said") - pl.col("said").mean()) ** 2).sum(),
    )
    return seeds.with_columns(square=pl.col("sum") ** 2)


def with_pilot(
    cells: pl.DataFrame, draws: pl.DataFrame, *, seed_cost: float, k_max: int, fixed: Bools | None = None
) -> pl.DataFrame:
    """Settle K and the open futures of cells from the pilot's draws (see `pilot_spread`).

    Returns `cells` in its order with `k` filled where it was null, `decision` true also where the pilot finds a cell
    open, and new columns:

    - k_source: the K and where it is from, for people. within, between: variances, NaN without any. n_pilot_seeds.
    - sigma: standard deviation within a seed of what a gate compares (NaN where unknown or 0): of the value itself, and
      for categories of the share of any set of them, at most sqrt(within / 2) and 1/2, since 1 - sum p^2 >=
      2 p_S (1 - p_S) for every set S.
    - within_others, between_others: both variances on the scale of sigma^2, from the pilot of *other* cells only (NaN
      where these have too few seeds). What decides how many seeds a cell gets must not come from its own draws, or
      these stop counting as drawn blindly (docs/design/0002-planning.md).

    A cell with fewer than 10 pilot seeds borrows from its scenario type, and one whose type has too few from all. A
    cell in `fixed` [H] keeps its `decision`. `seed_cost` is the price of a new seed in draws.

    Raises:
        DistdataError: fewer than 10 seeds have two draws, and some cell needs to know its K.
    """
    spread = pilot_spread(draws)
    n_all = int(spread["n_seeds"].sum())
    if n_all < MIN_SEEDS and cells["k"].null_count():
        have = f"only {n_all:,} seed{'s have' if n_all > 1 else ' has'}" if n_all else "no seed has"
        raise DistdataError(
            f'plan: k = "auto" needs a pilot of at least {MIN_SEEDS} seeds, and {have} two draws yet. Buy one first: '
            "distdata plan --purpose pilot; distdata generate. Or set [plan] k to a number."
        )
    sums, source = _pooled(cells, spread)
    ratio = _ratio(sums)
    categorical = "outcome" in draws.columns
    contrast = np.minimum(ratio.within / 2, 0.25) if categorical else ratio.within
    is_open = _is_open(sums, ratio, categorical=categorical)
    said = (
        cells["decision"].fill_null(False).to_numpy() if "decision" in cells.columns else np.zeros(cells.height, bool)
    )
    keeps = np.zeros(cells.height, dtype=np.bool_) if fixed is None else fixed
    given = cells["k"].is_not_null().to_numpy()
    k = np.where(
        given, cells["k"].cast(pl.Int64).fill_null(0).to_numpy(), best_k(ratio.within, ratio.between, seed_cost, k_max)
    )
    others = _ratio(_of_others(cells, spread))
    scale = 0.5 if categorical else 1.0
    return cells.with_columns(
        k=pl.Series(k, dtype=pl.Int32),
        decision=pl.Series(np.where(keeps, said, said | is_open)),
        k_source=pl.Series(_k_words(k, given, ratio, sums["n_seeds"], source), dtype=pl.String),
        within=ratio.within,
        between=ratio.between,
        n_pilot_seeds=pl.Series(sums["n_seeds"], dtype=pl.Int64),
        sigma=np.sqrt(np.where((ratio.within > 0) & (sums["n_seeds"] >= MIN_SEEDS), contrast, np.nan)),
        within_others=scale * others.within,
        between_others=scale * np.maximum(others.between, 0),
    )  # fmt: skip


def _k_words(k: Ints, given: Bools, ratio: _Ratio, n_seeds: Floats, source: Ints) -> list[str]:
    """Say each cell's K and why."""
    return [
        f"{k[h]}: given"
        if given[h]
        else f"{k[h]}: within {ratio.within[h]:.2g}, between {max(ratio.between[h], 0):.2g}, from {n_seeds[h]:,.0f} "
        f"pilot seeds {SOURCES[source[h]]}"
        for h in range(len(k))
    ]


def best_k(within: Floats, between: Floats, seed_cost: float, k_max: int) -> Ints:
    """Return the whole K in [2, k_max] of least variance for its cost: the smallest with K (K + 1) >= K*^2.

    `k_max` where no variance between seeds shows; 2 where none shows within.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        square = np.where(between > 0, seed_cost * within / between, np.inf)
    # the smallest K with K^2 + K >= s is the ceiling of the positive root of K^2 + K - s
    root = np.ceil((np.sqrt(1 + 4 * np.minimum(square, 1e9)) - 1) / 2 * (1 - 1e-12))
    best: Ints = np.clip(root, 2, k_max).astype(np.int64)
    return best


def _pooled(cells: pl.DataFrame, spread: pl.DataFrame) -> tuple[dict[str, Floats], Ints]:
    """Return each cell's sums, borrowed where it has too few seeds, and from where (index into `SOURCES`)."""
    table = cells.select("cell_id", "scenario").join(spread, on="cell_id", how="left", maintain_order="left")
    own = table.select(pl.col(_SUMS).fill_null(0).cast(pl.Float64))
    of_type = table.select(pl.col(_SUMS).fill_null(0).cast(pl.Float64).sum().over("scenario"))
    of_all = own.select(pl.all().sum())
    enough = own["n_seeds"].to_numpy() >= MIN_SEEDS
    type_enough = of_type["n_seeds"].to_numpy() >= MIN_SEEDS
    source = np.select([enough, type_enough], [0, 1], 2)
    sums = {
        name: np.select([source == 0, source == 1], [own[name].to_numpy(), of_type[name].to_numpy()], of_all[name][0])
        for name in _SUMS
    }
    return sums, source


def _of_others(cells: pl.DataFrame, spread: pl.DataFrame) -> dict[str, Floats]:
    """Return each cell's sums over the other cells of its scenario type, or over all others; NaN under 10 seeds."""
    table = cells.select("cell_id", "scenario").join(spread, on="cell_id", how="left", maintain_order="left")
    own = table.select(pl.col(_SUMS).fill_null(0).cast(pl.Float64))
    of_type = table.select(pl.col(_SUMS).fill_null(0).cast(pl.Float64).sum().over("scenario"))
    type_enough = (of_type["n_seeds"] - own["n_seeds"]).to_numpy() >= MIN_SEEDS
    all_enough = (own["n_seeds"].sum() - own["n_seeds"]).to_numpy() >= MIN_SEEDS
    return {
        name: np.select(
            [type_enough, all_enough],
            [(of_type[name] - own[name]).to_numpy(), (own[name].sum() - own[name]).to_numpy()],
            np.nan,
        )
        for name in _SUMS
    }


def _ratio(sums: dict[str, Floats]) -> _Ratio:
    """Estimate the variances from sums of squares pooled over cells (each cell keeps its own mean)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        within = sums["ss_within"] / sums["df_within"]
        n_coef = sums["n_coef"] / sums["df_between"]
        between = (sums["ss_between"] / sums["df_between"] - within) / n_coef
    return _Ratio(within, np.where(sums["df_between"] > 0, between, 0.0), n_coef)


def _is_open(sums: dict[str, Floats], ratio: _Ratio, *, categorical: bool) -> Bools:
    """Tell which cells' futures are open at the 95% level, bool [H]."""
    if categorical:
        return binomial_tail(sums["n_differ"], sums["n_seeds"], DIFFERING_SHARE) <= LEVEL
    n_within, n_between = sums["df_within"], sums["df_between"]
    # within / (within + between) > 10%  <=>  1 + n_coef between / within < 1 + 9 n_coef
    with np.errstate(divide="ignore", invalid="ignore"):
        largest = 1 + ratio.n_coef * (1 / WITHIN_SHARE - 1)
        f = np.where(ratio.within > 0, sums["ss_between"] / n_between / ratio.within, np.inf) / largest
    low = np.array(
        [f_below(*row) if row[1] > 0 and row[2] > 0 else 1.0 for row in zip(f, n_between, n_within, strict=True)]
    )
    return (ratio.within > 0) & (low <= LEVEL)


def binomial_tail(hits: Floats, n: Floats, share: float) -> Floats:
    """Return P(X >= hits) for X binomial (n, share), elementwise; 1 for no hits."""
    tails = {}
    for h, m in {(int(a), int(b)) for a, b in zip(hits, n, strict=True)}:
        logs = [
            math.lgamma(m + 1) - math.lgamma(i + 1) - math.lgamma(m - i + 1)
            + i * math.log(share) + (m - i) * math.log1p(-share)
            for i in range(h)
        ]  # fmt: skip
        tails[h, m] = max(0.0, 1 - math.fsum(math.exp(x) for x in logs))
    return np.array([tails[int(a), int(b)] for a, b in zip(hits, n, strict=True)], dtype=np.float64)


def f_below(f: float, d1: float, d2: float) -> float:
    """Return P(F <= f) for F with d1 and d2 degrees of freedom (Abramowitz and Stegun 26.6.2)."""
    if not math.isfinite(f):
        return 1.0
    return incomplete_beta(d1 / 2, d2 / 2, d1 * f / (d1 * f + d2))
