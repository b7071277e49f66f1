"""How far an estimate may be off: variances by stratum, what is borrowed, and degrees of freedom (see `estimate`)."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STRATUM = ("cell_id", "certain")
"""A cell's seeds of the walk, or those that others chose."""
DEGENERATE = 1e-9
"""A stratum whose weight lies on one seed up to this is a stratum of one seed."""
UNLIKE = 4.0
"""Strata of one seed that vary so many times more than the seeds of all others are not like them."""


def spread_of(seeds: pl.DataFrame) -> pl.DataFrame:
    """Return what each stratum's seeds say about its variance.

    - `v`: variance of the weighted mean over frames and samples; `s2`: of a single seed's mean; both null where the
      weight lies on one seed. `df`: degrees of freedom of both.
    - `v_sized`: variance of the weighted sum by priority sampling, null where sizes are equal.
    - `w`: mean variance of a seed's mean within the seed; null unless every seed has two draws. `v_w` is what it makes
      of the weighted mean's variance, `df_w` its degrees of freedom.
    - `weight`, `weight_sq`: the sums of weights in the domain and of their squares, for the effective number of seeds;
      `p_sq`: the sum of squares of all.
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
        p_sq=(p**2).sum(),
        weight=(p * pl.col("x")).sum(),
        weight_sq=((p * pl.col("x")) ** 2).sum(),
    )


def borrow(lines: pl.DataFrame, seeds: pl.DataFrame) -> pl.DataFrame:
    """Add to `lines` what a stratum of one seed borrows: `s2_lent`, its `df_lent` and the `pool` that it comes from.

    The pool is the stratum's scenario, and the whole sample where the scenario has nothing to lend. It lends the mean
    variance within its strata of several seeds. If those say 0, or if the strata of one seed differ far more than all
    seeds of the others do (`UNLIKE`), they are no model of them: then the variance between the strata of one seed is
    taken (collapsed strata, Cochran 5A.12), which the differences between cells make too large rather than too small.

    `lines` need group, scenario and `shift`, the group's center less the one that `e` of the seeds is about: variances
    about any center follow from those of e and x, var(e - shift x) = var e - 2 shift cov(e, x) + shift^2 var x.
    """
    here, whole = _pools(seeds), _pools(seeds.with_columns(scenario=pl.lit("")))
    rows = lines.join(here, on="scenario", how="left", maintain_order="left")
    rows = rows.join(whole.drop("scenario"), how="cross", suffix="_all", maintain_order="left")
    rows = rows.with_columns(
        _variance(kind, level).alias(f"of_{kind}{level}") for kind in ("w", "b", "t") for level in ("", "_all")
    )
    own = pl.when(_trusted("") & (pl.col("of_b").is_not_null() | (pl.col("of_w") > DEGENERATE * pl.col("of_w_all"))))
    of_all = pl.when(_trusted("_all"))
    s2 = own.then("of_w").otherwise("of_b")
    here_df, all_df = own.then("w_df").otherwise("b_df"), of_all.then("w_df_all").otherwise("b_df_all")
    return rows.with_columns(
        s2_lent=s2.fill_null(of_all.then("of_w_all").otherwise("of_b_all")).fill_null(float("nan")),
        df_lent=pl.when(s2.is_not_null()).then(here_df).otherwise(all_df).clip(1).cast(pl.Float64),
        pool=pl.when(s2.is_not_null()).then("scenario"),
    )


def _variance(kind: str, level: str) -> pl.Expr:
    """Return the variance of a pool about the group's center, from the moments about the common one."""
    ee, ex, xx = (pl.col(f"{kind}_{of}{level}") for of in ("ee", "ex", "xx"))
    shift = pl.col("shift")
    return (ee - 2 * shift * ex + shift**2 * xx).clip(0)


def _trusted(level: str) -> pl.Expr:
    """Tell whether the strata of several seeds are a model of those of one."""
    w, b, t = (pl.col(f"of_{kind}{level}") for kind in ("w", "b", "t"))
    return w.is_not_null() & ~((w <= DEGENERATE * b) | (b > UNLIKE * t)).fill_null(False)


def _pools(seeds: pl.DataFrame) -> pl.DataFrame:
    """Return the moments of e and x by scenario: `w` within strata, `b` between strata of one seed, `t` of all others.

    The mean within strata is over seeds whatever their weight (in small walks weight goes with K). Its `w_df` are by
    Welch over the strata, so that those whose seeds agree lend none; `b_df` is one less than the strata of one seed.
    """
    e, x, p = pl.col("e"), pl.col("x"), pl.col("p")
    n = pl.len().cast(pl.Float64) - 1
    strata = seeds.group_by("scenario", *STRATUM).agg(
        n=n, ee=((e - e.mean()) ** 2).sum(), ex=((e - e.mean()) * (x - x.mean())).sum(),
        xx=((x - x.mean()) ** 2).sum(), e=(p * e).sum(), x=(p * x).sum(), alone=(p**2).sum() > 1 - DEGENERATE,
    )  # fmt: skip
    lends, df, ee = pl.col("n") > 0, pl.col("n").sum(), pl.col("ee")
    welch = ee.sum() ** 2 / (ee**2 / (pl.col("n") + 2)).sum() - 2
    e1, x1 = e.filter("alone"), x.filter("alone")
    pools = strata.group_by("scenario").agg(
        *(pl.when(df > 0).then(pl.col(of).sum() / df).alias(f"w_{of}") for of in ("ee", "ex", "xx")),
        w_df=welch.fill_nan(None).clip(pl.col("n").filter(lends).min(), df).fill_null(df),
        b_ee=e1.var(), b_ex=pl.cov(e1, x1), b_xx=x1.var(), b_df=pl.col("alone").sum().cast(pl.Float64) - 1,
    )  # fmt: skip
    total = seeds.filter(pl.len().over(STRATUM) > 1).group_by("scenario")
    pools = pools.join(total.agg(t_ee=e.var(), t_ex=pl.cov(e, x), t_xx=x.var()), on="scenario", how="left")
    return pools.with_columns(pl.when(pl.col("b_df") > 0).then(f"b_{of}").alias(f"b_{of}") for of in ("ee", "ex", "xx"))


def group_errors(strata: pl.DataFrame, *, ht: bool, frame: bool) -> pl.DataFrame:
    """Return per group the variance of its sum, its degrees of freedom, and the counts of the result."""
    n, part2, scale2 = pl.col("n_stratum"), pl.col("part") ** 2, pl.col("scale") ** 2
    borrows = pl.col("s2").is_null()
    s2 = pl.col("s2").fill_null(pl.col("s2_lent"))
    v = scale2 * pl.col("v").fill_null(pl.col("s2_lent"))
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
    cell, v = pl.col("cell_id"), pl.col("v")
    of_pools = lines.filter("borrows").group_by("group", "pool").agg(v.sum(), df=pl.col("df_lent").first())
    terms = pl.concat(
        [lines.filter(~pl.col("borrows")).select("group", "v", "df"), of_pools.select("group", "v", "df")]
    )
    gain = pl.col("a") * pl.col("part") * pl.col("weight")
    counts = lines.group_by("group").agg(
        n_cells=cell.n_unique(),
        n_borrowed=cell.filter("borrows").n_unique(),
        n_conservative=cell.filter("conservative").n_unique(),
        n_seeds=pl.col("n_seeds").sum(),
        n_draws=pl.col("n_draws").sum(),
        effective_n=(gain.sum() ** 2 / (pl.col("a") ** 2 * part2 * pl.col("weight_sq")).sum()).fill_nan(None),
    )
    return terms.group_by("group").agg(v.sum(), df=_welch()).join(counts, on="group").sort("group")


def _welch() -> pl.Expr:
    """Return (sum v)^2 / sum(v^2 / (df + 2)) - 2 within the bounds that Satterthwaite's df always has.

    What is borrowed from a pool is one number used several times, so it counts as one term.
    """
    v, df = pl.col("v"), pl.col("df")
    fourth = (v**2 / (df + 2)).sum()
    return pl.when(fourth > 0).then((v.sum() ** 2 / fourth - 2).clip(df.min(), df.sum()))


def agreement_reach(gains: Floats, n: Floats, alpha: float) -> float:
    """Return how far a share may be off where the seeds of every stratum agree: max of sum gains q.

    q is the chance that a seed of the stratum differs, `gains` what the share changes by if all do, and the max is over
    all q that leave the agreement of all n seeds a chance of alpha: prod (1 - q)^n >= alpha. By Lagrange 1 - q =
    min(1, scale n / gains). One stratum, or equal gains / n: 1 - alpha^(1 / sum n), Clopper and Pearson's (1934).
    """
    some = (gains > 0) & (n > 0)
    gains, n = gains[some], n[some]
    order = np.argsort(-gains / n, kind="stable")
    gains, n = gains[order], n[order]
    scale = np.exp((np.log(alpha) + np.cumsum(n * np.log(gains / n))) / np.cumsum(n))
    inside = np.flatnonzero(scale < gains / n)  # the strata from here on have q = 0
    last = int(inside[-1]) + 1 if len(inside) else 0
    return float((gains[:last] - scale[last - 1] * n[:last]).sum()) if last else 0.0
