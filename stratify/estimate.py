"""What a fleet's mean, share or total is, from weighted draws, and how sure that is.

Draws of one seed are alike, so the seed is the unit: everything is computed on seed means (Lohr, Sampling, ch. 5). A
cell has up to two strata, the seeds of its walk and the seeds that others chose (taken whole); with p_i the share of
seed i within its stratum (they sum to 1) and r_i its mean residual

    estimate   R = sum_h a_h z_h / sum_h a_h x_h,   z_h = sum_i p_i z_i over the strata of cell h,
    residual   r = 1_d (y - R)   of each draw, also of those outside the domain d   (Cochran 2.13, Särndal 5.8),
    variance   v = sum_i p_i^2 (r_i - r)^2 / (1 - 2 p_i + sum_j p_j^2)   per stratum,

where a_h is the fleet's share of cell h, so the ratio is separate by cell first and over cells by fleet shares. The
divisor makes v unbiased for any weights when residuals have one variance; with equal weights v is s^2 / m. A walk over
mixed K has two levels of weight, e_i = 1 for the l of its m seeds that could have come last, and Murthy's own variance:

    v = -sum_{i != j} (l - e_i - e_j) r_i r_j / (l (m - 1) (m - 2))   about the stratum's mean.

Both are variances over repetitions of frame and sample, right for the superpopulation. About the frame's own seeds it
is less by (s^2 - w) / N, w the variance that the seeds' means have from their few draws (two-stage sampling, Cochran
10.3); w shows only where every seed has two draws or more, and elsewhere nothing is subtracted, which errs to the safe
side.

Horvitz-Thompson sums don't divide by the sum of weights. Where sizes differ the variance is that of priority sampling,
sum_i share_i^2 (1 - pi_i) z_i^2, whose covariances are 0 (Duffield, Lund and Thorup 2007), + s^2 / N for the rest.

A stratum with one seed shows no variance of its own and borrows that of its scenario (`spread.borrow`). Degrees of
freedom are Satterthwaite's (1946) over strata, with Welch's (1947) correction for variances that are estimates
themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from ..catalogs.errors import DistdataError
from ..catalogs.estimates import EstimateRows
from .spread import STRATUM, agreement_reach, borrow, group_errors, spread_of
from .t_law import t_quantile

What = Literal["mean", "share", "total", "count"]
"""A count is the total of truth values, which lies between 0 and the number of seeds."""
Form = Literal["ratio", "ht"]
Target = Literal["frame", "superpopulation"]

AGREES = 1e-9
"""A share whose standard error is below this has seeds that agree; a count, this times the seeds that it is about."""
_OF_CELL = ("group", "a", "fleet_share", "n_frame", "scenario")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Estimates:
    """One row per group in `table`, and what the numbers are about.

    Columns: those of the grouping, then

    - `estimate`, `se` (float64; null where nothing can be said), `df`, `low`, `high`: the t interval of `level`; for a
      share within 0 and 1, for a count within 0 and the seeds that it is about, and where each cell's seeds agree the
      binomial bound (`df` null; `spread.agreement_reach`).
    - `n_seeds`, `n_draws`: those that entered; `effective_n`: seeds of equal weight that would say as much (Kish).
    - `covered`: share of the group's fleet in cells with a sample; the estimate is about that part.
    - `n_cells` with a sample, `n_borrowed`: cells among them whose variance, or a part of it, is borrowed;
      `n_conservative`: cells where the variance about the frame can't be told from the larger one.
    """

    table: pl.DataFrame
    what: What
    form: Form
    target: Target
    level: float

    def words(self) -> list[str]:
        """Say what was estimated about what, and what is missing, in sentences."""
        whole = "the frame's own seeds" if self.target == "frame" else "the fleet that the seeds came from"
        how = "Horvitz-Thompson" if self.form == "ht" else "ratio form"
        what = "total" if self.what == "count" else self.what
        lines = [f"{what} over {whole}, {how}; {self.level:.0%} t intervals, by seed"]
        if self.what in ("total", "count"):
            lines[0] += "; a total is always about the frame, whatever --target says"
        rows = self.table
        if "value" in rows.columns and rows.height:  # the same cells for every text
            rows = rows.filter(pl.col("value") == rows["value"][0])
        n_cells, n_borrowed = int(rows["n_cells"].sum()), int(rows["n_borrowed"].sum())
        if n_borrowed:
            lines.append(
                f"{n_borrowed} of {n_cells} cells have one seed only and borrow the variance of their scenario"
            )
        agree = self.table.filter(
            pl.col("se").is_not_null() & pl.col("df").is_null() & (pl.col("low") < pl.col("high"))
        )
        if agree.height:
            lines.append("where the standard error is 0 all seeds agree: the interval is a binomial bound")
        n_conservative = int(rows["n_conservative"].sum())
        if self.target == "frame" and n_conservative:
            lines.append(
                f"{n_conservative} of {n_cells} cells have seeds with a single draw: their error is that for an "
                "endless frame, rather too wide"
            )
        return lines


def estimate(
    draws: pl.DataFrame,
    cells: pl.DataFrame,
    *,
    by: Sequence[str] = (),
    what: What = "mean",
    form: Form = "ratio",
    target: Target = "superpopulation",
    level: float = 0.95,
) -> Estimates:
    """Estimate a mean, share or total for every group of cells.

    - `draws`, one row per draw that counts: seed_id, cell_id, share and pi of its seed, certain (its seed was chosen
      by others), value (float64; null: outside the domain), domain (false: outside, but its seed was sampled).
    - `cells`, every feasible cell: cell_id, fleet_share, n_frame (seeds of the split in it), the columns of `by`, and
      scenario, within which variances are borrowed (without that column, among all cells).

    A total is over the frame's seeds, of the value expected of one draw of each; its target is always the frame. A cell
    without walk counts only if all its seeds were chosen by others: byproducts alone stand for nobody else.

    Raises:
        DistdataError: a column named twice in `by`.
    """
    summed = what in ("total", "count")
    if summed:
        target = "frame"
    cells = cells.with_columns(
        group=_number_groups(cells, by), a=pl.col("n_frame" if summed else "fleet_share").cast(pl.Float64),
        scenario=pl.col("scenario") if "scenario" in cells.columns else pl.lit(""),
    )  # fmt: skip
    seen = draws.lazy().join(cells.lazy().select("cell_id", *_OF_CELL), on="cell_id")
    seen = seen.with_columns(x=(pl.col("domain") & pl.col("value").is_not_null()).cast(pl.Float64))
    placed = seen.with_columns(z=pl.when(pl.col("x") > 0).then("value").otherwise(0.0)).collect()
    strata = _strata(_seeds(placed, form, pl.col("z", "x").mean()), form)
    groups = _groups(strata, what, form, everything=bool((placed["x"] == 1).all()))
    common = float(groups["center"].mean() or 0.0)  # type: ignore[arg-type]  # a column of floats
    center = groups.select("group", "center", shift=pl.col("center") - common)
    residual = placed.join(center, on="group").with_columns(
        r=pl.col("z") - pl.col("center") * pl.col("x"), e=pl.col("z") - common * pl.col("x")
    )
    seeds = _seeds(residual, form, pl.col("r", "e", "x").mean(), w=pl.col("r").var() / pl.len())
    seeds = seeds.join(strata.select(STRATUM), on=STRATUM, how="semi")
    lines = borrow(strata.join(spread_of(seeds), on=STRATUM).join(center, on="group"), seeds)
    errors = group_errors(lines, ht=form == "ht", frame=target == "frame")
    table = _table(cells, by, groups, errors.join(_reaches(lines, what, level), on="group"), what, level)
    return Estimates(table=table, what=what, form=form, target=target, level=level)


def estimate_shares(
    draws: pl.DataFrame,
    cells: pl.DataFrame,
    *,
    by: Sequence[str] = (),
    form: Form = "ratio",
    target: Target = "superpopulation",
    level: float = 0.95,
) -> Estimates:
    """Estimate how often each text is the `value` of a draw: one row per group and text, in a column `value`.

    Texts come in the order of the alphabet; arguments are those of `estimate`. Null is outside the domain.
    """
    texts = draws.filter(pl.col("domain"))["value"].drop_nulls().unique().sort().to_list()
    each = [
        estimate(
            draws.with_columns(value=(pl.col("value") == text).cast(pl.Float64)), cells, by=by, what="share",
            form=form, target=target, level=level,
        ).table.with_columns(value=pl.lit(text))
        for text in texts
    ]  # fmt: skip
    empty = estimate(draws.with_columns(value=pl.lit(None, dtype=pl.Float64)), cells, by=by, what="share").table
    table = pl.concat(each) if each else empty.with_columns(value=pl.lit(None, dtype=pl.String)).clear()
    return Estimates(table=table.select(*by, "value", pl.exclude(*by, "value")), what="share", form=form, target=target,
                     level=level)  # fmt: skip


def estimate_rows_by(
    rows: EstimateRows,
    by: Sequence[str],
    *,
    total: bool = False,
    form: Form = "ratio",
    target: Target = "superpopulation",
    level: float = 0.95,
) -> Estimates:
    """Estimate what `rows` hold by their kind: a mean of numbers, a share of truth values, the share of each text.

    Raises:
        DistdataError: a total of texts.
    """
    if rows.kind == "text":
        if total:
            raise DistdataError(
                "estimate: texts have no total. Count one of them: distdata estimate --total \"outcome = 'stops'\""
            )
        return estimate_shares(rows.draws, rows.cells, by=by, form=form, target=target, level=level)
    is_share = rows.kind == "share"
    what: What = ("count" if is_share else "total") if total else "share" if is_share else "mean"
    return estimate(rows.draws, rows.cells, by=by, what=what, form=form, target=target, level=level)


def _number_groups(cells: pl.DataFrame, by: Sequence[str]) -> pl.Series:
    """Number the groups in the order in which their first cells come."""
    twice = sorted({name for name in by if list(by).count(name) > 1})
    if twice:
        raise DistdataError(f"estimate: --by names {twice[0]!r} twice; name each column once.")
    if not by:
        return pl.Series("group", np.zeros(cells.height, dtype=np.int64))
    first = cells.select(by).unique(maintain_order=True).with_row_index("group")
    joined = cells.select(by).join(first, on=list(by), how="left", maintain_order="left", nulls_equal=True)
    return joined["group"].cast(pl.Int64)


def _seeds(draws: pl.DataFrame, form: Form, *means: pl.Expr, **more: pl.Expr) -> pl.DataFrame:
    """Return one row per seed with these aggregates of its draws; `p` is its share within its stratum.

    A ratio of random sums leans by -sum p_i^2 (1 - pi_i) (z_i - R) (Tin 1965, JASA 60, with the covariances of priority
    sampling); adding that back moves weight between seeds and leaves their sum. It is 0 where sizes are equal.
    """
    facts = pl.col("share", "pi", *_OF_CELL).first()
    seeds = draws.group_by("seed_id", *STRATUM).agg(facts, *means, **more, n_draws=pl.len()).sort("cell_id", "seed_id")
    shares = seeds.with_columns(total=pl.col("share").sum().over(STRATUM), m=pl.len().over(STRATUM))
    of_total = pl.when(pl.col("total") > 0).then(pl.col("share") / pl.col("total")).otherwise(1 / pl.col("m"))
    seeds = shares.with_columns(p=of_total)
    if form == "ht":
        return seeds
    lean = pl.when(pl.col("pi").max().over(STRATUM) > pl.col("pi").min().over(STRATUM)).then(
        pl.col("p") * (1 - pl.col("pi"))
    )
    seeds = seeds.with_columns(lean=lean.fill_null(0.0))
    return seeds.with_columns(p=pl.col("p") * (1 + pl.col("lean") - (pl.col("p") * pl.col("lean")).sum().over(STRATUM)))


def _strata(seeds: pl.DataFrame, form: Form) -> pl.DataFrame:
    """Return one row per stratum of the cells that have a sample.

    `part` is the stratum's part of its cell and `n_stratum` its seeds in the frame; `scale` leads from the stratum's
    weighted mean to its contribution to the cell's, and `z`, `x` are those contributions.
    """
    strata = seeds.group_by(STRATUM).agg(
        pl.col(*_OF_CELL, "total", "m").first(), (pl.col("z", "x") * pl.col("p")).sum()
    )
    strata = strata.with_columns(
        n_chosen=pl.col("m").filter("certain").sum().over("cell_id"), walked=(~pl.col("certain")).any().over("cell_id")
    ).filter(pl.col("walked") | (pl.col("n_chosen") >= pl.col("n_frame")))
    theirs = (pl.col("n_chosen") / pl.col("n_frame")).clip(0, 1)
    strata = strata.with_columns(part=pl.when("certain").then(theirs).otherwise(1 - theirs)).with_columns(
        n_stratum=(pl.col("part") * pl.col("n_frame")).round(),
        scale=pl.when("certain").then("part").otherwise("total") if form == "ht" else pl.col("part"),
    )
    return strata.with_columns(pl.col("z", "x") * pl.col("scale")).sort(STRATUM)


def _groups(strata: pl.DataFrame, what: What, form: Form, *, everything: bool) -> pl.DataFrame:
    """Return each group's estimate, what residuals are taken about (`center`) and what sums are divided by (`over`)."""
    a = pl.col("a")
    sums = (
        strata.group_by("group")
        .agg(
            (pl.col("z", "x") * a).sum(),
            known=(pl.col("part") * a).sum(),
            covered_fleet=(pl.col("part") * pl.col("fleet_share")).sum(),
        )
        .sort("group")
    )
    if what in ("total", "count"):
        return sums.with_columns(estimate=pl.col("z"), center=pl.lit(0.0), over=pl.lit(1.0))
    if form == "ht" and everything:  # the sizes of the cells are known, so they are not estimated
        ratio = pl.when(pl.col("known") > 0).then(pl.col("z") / pl.col("known"))
        return sums.with_columns(estimate=ratio, center=pl.lit(0.0), over=pl.col("known"))
    ratio = pl.when(pl.col("x") > 0).then(pl.col("z") / pl.col("x"))
    return sums.with_columns(estimate=ratio, center=ratio.fill_null(0.0), over=pl.col("x"))


def _table(
    cells: pl.DataFrame, by: Sequence[str], groups: pl.DataFrame, errors: pl.DataFrame, what: What, level: float
) -> pl.DataFrame:
    """Join everything to one row per group, with its interval."""
    fleet = cells.group_by("group", maintain_order=True).agg(
        *(pl.col(name).first() for name in by), fleet=pl.col("fleet_share").sum()
    )
    table = fleet.join(groups, on="group", how="left", maintain_order="left")
    table = table.join(errors, on="group", how="left", maintain_order="left")
    known = pl.col("estimate").is_not_null()
    table = table.with_columns(
        se=pl.when(known).then((pl.col("v").sqrt() / pl.col("over")).fill_nan(None)), df=pl.when(known).then("df")
    )
    limit = {"share": pl.lit(1.0), "count": pl.col("known")}.get(what, pl.lit(None, dtype=pl.Float64))
    bounds = [
        _interval(*row, level=level)
        for row in table.select("estimate", "se", "df", "down", "up", limit.alias("limit")).iter_rows()
    ]
    counts = ("n_seeds", "n_draws", "n_cells", "n_borrowed", "n_conservative")
    return table.with_columns(
        pl.Series("low", [b[0] for b in bounds], dtype=pl.Float64),
        pl.Series("high", [b[1] for b in bounds], dtype=pl.Float64),
        pl.col(counts).fill_null(0).cast(pl.Int64),
        covered=pl.when(pl.col("fleet") > 0).then(pl.col("covered_fleet").fill_null(0.0) / pl.col("fleet")),
    ).select(*by, "estimate", "se", "df", "low", "high", "n_seeds", "n_draws", "effective_n", "covered", *counts[2:])


def _reaches(lines: pl.DataFrame, what: What, level: float) -> pl.DataFrame:
    """Return how far each group's share or count may lie below (`down`) and above (`up`) where all seeds agree."""
    if what in ("mean", "total"):
        return lines.select("group", down=None, up=None).unique()
    n = pl.col("weight") ** 2 / pl.col("weight_sq")
    gain = pl.col("a") * pl.col("part") * pl.col("weight")
    value = pl.col("z") / pl.col("x")
    if what == "count":  # seeds outside the condition count 0, and a seed more may be inside
        n, gain, value = pl.col("p_sq") ** -1, pl.col("a") * pl.col("part"), pl.col("z") / pl.col("scale")
    elif what == "share":
        gain = gain / gain.sum().over("group")
    rows = []
    for group in lines.select("group", n=n, down=gain * value, up=gain * (1 - value)).partition_by("group"):
        sizes = group["n"].fill_nan(0.0).to_numpy()
        reach = [
            agreement_reach(group[side].fill_nan(0.0).to_numpy(), sizes, (1 - level) / 2) for side in ("down", "up")
        ]
        rows.append((group["group"][0], *reach))
    return pl.DataFrame(rows, schema={"group": pl.Int64, "down": pl.Float64, "up": pl.Float64}, orient="row")


def _interval(
    estimate: float | None,
    se: float | None,
    df: float | None,
    down: float | None,
    up: float | None,
    limit: float | None,
    *,
    level: float,
) -> tuple[float | None, float | None]:
    """Return the t interval; for shares and counts within 0 and `limit`, where all seeds agree by `down` and `up`."""
    if estimate is None or se is None or math.isnan(se):
        return None, None
    if limit is None:
        half = 0.0 if df is None else t_quantile((1 + level) / 2, df) * se
        return estimate - half, estimate + half
    if se < AGREES * limit and down is not None and up is not None:
        return max(estimate - down, 0.0), min(estimate + up, limit)
    half = 0.0 if df is None else t_quantile((1 + level) / 2, df) * se
    return max(estimate - half, 0.0), min(estimate + half, limit)
