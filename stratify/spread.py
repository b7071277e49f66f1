"""How far an estimate may be off: variances by stratum, what is borrowed, and degrees of freedom (see `estimate`)."""

from __future__ import annotations

import numpy as np
import polars as pl

STRATUM = ("cell_id", "certain")
"""A cell's seeds of the walk, or those that others chose."""
DEGENERATE = 1e-9
"""A stratum whose weight lies on one seed up to this is a stratum of one seed."""


def spread_of(seeds: pl.DataFrame) -> pl.DataFrame:
    """Return what each stratum's seeds say about its variance.

    - `v`: variance of the weighted mean over frames and samples; `s2`: of a single seed's mean; both null where the
      weight lies on one seed. `df`: degrees of freedom of both.
    - `v_sized`: variance of the weighted sum by priority sampling, null where sizes are equal.
    - `w`: mean variance of a seed's mean within the seed; null unless every seed has two draws. `v_w` is what it makes
      of the weighted mean's variance, `df_w` its degrees of freedom.
    - `weight`, `weight_sq`: the sums of weights in the domain and of their squares, for the effective number of seeds.
    """
    p, e, share = pl.col("p"), pl.col("r") - pl.col("mean"), pl.col("share")
    seeds = seeds.with_columns(
        mean=(p * pl.col("r")).sum().over(STRATUM), sum_p2=(p**2).sum().over(STRATUM)
    ).with_columns(alone=pl.col("sum_p2") > 1 - DEGENERATE)
    several = ~pl.col("alone").first()
    m, end = pl.len(), p < p.max() * (1 - DEGENERATE)
    n_end, all_e, end_e = end.sum(), e.sum(), e.filter(end).sum()
    # two levels of weight, as a walk over mixed K leaves them when none of its seeds is missing
    two_levels = (n_end > 1) & ((p.max() * (m - 1) - 1).abs() < 1e-6)
    two_levels &= (p.min() * (m - 1) - (n_end - 1) / n_end).abs() < 1e-6
    pairs = n_end * (all_e**2 - (e**2).sum()) - 2 * (all_e * end_e - (e.filter(end) ** 2).sum())
    murthy = pl.max_horizontal(-pairs / (n_end * (m - 1.0) * (m - 2.0)), 0.0)
    usual = (p**2 * e**2 / (1 - 2 * p + pl.col("sum_p2"))).sum()
    sized = ~pl.col("certain").first() & (pl.col("pi").max() > pl.col("pi").min())
    two_each = pl.col("w").null_count() == 0
    return seeds.group_by(STRATUM).agg(
        v=pl.when(several).then(pl.when(two_levels).then(murthy).otherwise(usual)),
        s2=pl.when(several).then((p * e**2).sum() / (1 - pl.col("sum_p2").first())),
        df=pl.when(several).then(((p**2).sum() ** 2 / (p**4).sum() - 1).clip(1)),
        v_sized=pl.when(sized).then((share**2 * (1 - pl.col("pi")) * pl.col("r") ** 2).sum()),
        w=pl.when(two_each).then((p * pl.col("w")).sum()),
        v_w=pl.when(two_each).then((p**2 * pl.col("w")).sum()),
        df_w=(pl.col("n_draws") - 1).sum().cast(pl.Float64),
        n_seeds=pl.len(),
        n_draws=pl.col("n_draws").sum(),
        weight=(p * pl.col("x")).sum(),
        weight_sq=((p * pl.col("x")) ** 2).sum(),
    )


def pooled_variance(seeds: pl.DataFrame) -> tuple[float, float]:
    """Return the variance of a seed that strata of one seed borrow, and its degrees of freedom.

    The mean within all strata, whatever weight their seeds have (in small walks weight goes with K); where none has two
    seeds, the variance over all, which the differences between cells make larger. NaN where there is one seed in all.
    """
    within = seeds.group_by(STRATUM).agg(df=pl.len().cast(pl.Float64) - 1, s2=pl.col("r").var())
    df = float(within["df"].sum())
    if df > 0:
        return float((within["df"] * within["s2"].fill_null(0.0)).sum()) / df, df
    r = seeds["r"].to_numpy()
    return (float(np.var(r, ddof=1)), len(r) - 1.0) if len(r) > 1 else (float("nan"), 1.0)


def group_errors(strata: pl.DataFrame, pooled: tuple[float, float], *, ht: bool, frame: bool) -> pl.DataFrame:
    """Return per group the variance of its sum, its degrees of freedom, and the counts of the result."""
    s2_pool, df_pool = pooled
    n, part2, scale2 = pl.col("n_stratum"), pl.col("part") ** 2, pl.col("scale") ** 2
    borrows = pl.col("s2").is_null()
    s2 = pl.col("s2").fill_null(s2_pool)
    v = scale2 * pl.col("v").fill_null(s2_pool)
    if ht:
        v = pl.when(pl.col("v_sized").is_not_null()).then(pl.col("v_sized") + part2 * s2 / n).otherwise(v)
    df, knows_w = pl.col("df"), pl.col("w").is_not_null()
    conservative = pl.lit(False)
    if frame:
        whole = pl.col("certain") & knows_w
        less = part2 * pl.max_horizontal(s2 - pl.col("w").fill_null(float("inf")), pl.lit(0.0)) / n
        v = pl.when(whole).then(scale2 * pl.col("v_w")).otherwise(pl.max_horizontal(v - less, pl.lit(0.0)))
        df = pl.when(whole).then(pl.col("df_w")).otherwise(df)
        borrows, conservative = borrows & ~whole, ~knows_w
    lines = strata.with_columns(
        v=pl.col("a") ** 2 * v, df=pl.when(borrows).then(None).otherwise(df), borrows=borrows, conservative=conservative
    )
    cell = pl.col("cell_id")
    own, fourth = pl.col("v").filter(~pl.col("borrows")), pl.col("v") ** 2 / (pl.col("df") + 2)
    lent = pl.col("v").filter("borrows").sum()
    return (
        lines.group_by("group")
        .agg(
            v=own.sum() + lent,
            df=_welch(own.sum(), lent, fourth.sum(), pl.col("df").min(), pl.col("df").sum(), df_pool),
            n_cells=cell.n_unique(),
            n_borrowed=cell.filter("borrows").n_unique(),
            n_conservative=cell.filter("conservative").n_unique(),
            n_seeds=pl.col("n_seeds").sum(),
            n_draws=pl.col("n_draws").sum(),
            effective_n=(pl.col("a") * pl.col("part") * pl.col("weight")).sum() ** 2
            / (pl.col("a") ** 2 * part2 * pl.col("weight_sq")).sum(),
        )
        .sort("group")
    )


def _welch(own: pl.Expr, lent: pl.Expr, fourth: pl.Expr, least: pl.Expr, most: pl.Expr, df_pool: float) -> pl.Expr:
    """Return (sum v)^2 / sum(v^2 / (df + 2)) - 2 within the bounds that Satterthwaite's df always has.

    What is borrowed is one number used several times, so it counts as one term.
    """
    some = lent > 0
    fourth = fourth + lent**2 / (df_pool + 2)
    low = pl.min_horizontal(least, pl.when(some).then(df_pool))
    high = most + pl.when(some).then(df_pool).otherwise(0.0)
    return pl.when(fourth > 0).then(((own + lent) ** 2 / fourth - 2).clip(low, high))
