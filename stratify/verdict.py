"""Pass, fail or undecided, slice by slice and metric by metric, from paired draws.

Each row is two one-sided tests (Schuirmann 1987) on seed-level differences under common noise: it passes when its
interval lies inside the band, and fails when the truth surely lies outside: p-values against the band, adjusted by
Holm over all rows of the gate. Everything else is undecided, with the draws that would settle it. A slice is its worst
row and the gate its worst slice; everything must pass, so passes need no adjustment.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import polars as pl

from ..catalogs.errors import DistdataError, nearest
from .gate_metrics import DRIFT_SCALAR, FAMILIES, METRICS, Metric
from .minima import MIN_SEEDS
from .paired import Ask, Finding, SliceDraws, slice_draws
from .spending import holm, spent_alpha
from .tail import tail_requirements

Verdict = Literal["pass", "fail", "undecided"]
WORST_FIRST: tuple[Verdict, ...] = ("fail", "undecided", "pass")
NEEDED = ("slice", "cell", "scenario", "seed_id", "k")
"""Columns of paired draws beside those of the metrics."""

ROW_SCHEMA: Mapping[str, type[pl.DataType]] = {
    "slice": pl.String, "metric": pl.String, "contrast": pl.String, "n_seeds": pl.Int64, "n_draws": pl.Int64,
    "estimate": pl.Float64, "low": pl.Float64, "high": pl.Float64, "band": pl.Float64, "side": pl.String,
    "verdict": pl.String, "reason": pl.String, "needed_draws": pl.Int64, "alpha": pl.Float64, "p_fail": pl.Float64,
    "p_holm": pl.Float64,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSettings:
    """What a gate judges, and how surely.

    - `alpha`, `power`: of the gate, before it is spent over candidates and looks. `min_seeds`: fewer stay undecided.
    - `metrics`: families of `gate_metrics` (``outcome``, ``planner``, ...); None for all that the draws tell of.
    - `bands`: by metric name, in place of the table's; the outcome's band is the slice's own.
    - `tail_multiple`: above 1 the audited slices (`tail.tail_requirements`) pass only with so many times the draws of
      their decidable minimum `minima` (slice, needed).
    """

    alpha: float = 0.05
    power: float = 0.9
    metrics: tuple[str, ...] | None = None
    bands: Mapping[str, float] = field(default_factory=dict)
    min_seeds: int = MIN_SEEDS
    tail_multiple: float = 1.0
    minima: pl.DataFrame | None = None

    def __post_init__(self) -> None:
        for name in self.metrics or ():
            if name not in FAMILIES:
                raise DistdataError(f"gates: no metric {name!r}.{nearest(name, FAMILIES)}")
        if self.metrics is not None and not self.metrics:
            raise DistdataError("gates: metrics is empty; a gate that judges nothing would pass everything.")
        for name, band in self.bands.items():
            if name not in METRICS:
                raise DistdataError(f"gates.bands: no metric {name!r}.{nearest(name, METRICS)}")
            if name in ("outcome", "cost"):
                why = "it is the slice's own; set [bands]" if name == "outcome" else "it is information only"
                raise DistdataError(f"gates.bands: {name} takes no band here: {why}.")
            if not (math.isfinite(band) and band > 0) or (name in ("recall", "control") and band >= 1):
                limits = "above 0 and below 1" if name in ("recall", "control") else "a number above 0"
                raise DistdataError(f"gates.bands: {name} = {band:g} must be {limits}.")
        if not (0 < self.alpha < 0.5 and 0.5 < self.power < 1 and self.min_seeds >= 2):
            raise DistdataError(
                f"gates: alpha = {self.alpha:g}, power = {self.power:g}, min_seeds = {self.min_seeds}: alpha must lie "
                "above 0 and below 0.5, power between 0.5 and 1, and there must be at least 2 seeds."
            )
        if self.tail_multiple > 1 and self.minima is None:
            raise DistdataError("gates: a tail audit multiplies the decidable minima; give them as `minima`.")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GateResult:
    """What a gate says.

    - `rows`: one per slice, metric and contrast (`ROW_SCHEMA`), by slice and then in the table's order. `low` and
      `high` are one-sided bounds of level 1 - alpha, `alpha` what this look could spend; `p_holm` is `p_fail` adjusted.
    - `slices`: slice, verdict, n_rows, worst (metric: contrast of the row that decided), needed_draws (the most that a
      row of it asks for). `verdict`: the worst of all slices.
    """

    rows: pl.DataFrame
    slices: pl.DataFrame
    verdict: Verdict
    candidate: int
    look: int
    n_looks: int

    @property
    def passed(self) -> list[str]:
        """Slices that passed."""
        return self._with("pass")

    @property
    def failed(self) -> list[str]:
        """Slices that failed."""
        return self._with("fail")

    @property
    def undecided(self) -> list[str]:
        """Slices that need more draws or seeds, or miss what they are judged by."""
        return self._with("undecided")

    def _with(self, verdict: Verdict) -> list[str]:
        return self.slices.filter(pl.col("verdict") == verdict)["slice"].to_list()


def judge(
    paired: pl.DataFrame,
    cells: pl.DataFrame,
    rules: GateSettings,
    *,
    candidate: int,
    look: int = 1,
    n_looks: int = 1,
) -> GateResult:
    """Judge one student on its gate draws.

    - `paired`: one row per seed and k: slice, cell, scenario, seed_id, k and ``teacher_*``, ``student_*`` of every
      metric column; control_value (and control_axis), should_refuse where metrics need them.
    - `cells`: the gated cells: slice, band (and feasible; layer for a tail audit). A slice without draws is undecided.
    - `candidate`: how many students were judged against this teacher version, this one included.

    Raises:
        DistdataError: columns missing that no metric can do without, a seed and k given twice, slices the cells don't
            know.
    """
    alpha = spent_alpha(rules.alpha, candidate=candidate, look=look, n_looks=n_looks)
    bands = _slice_bands(paired, cells)
    if "feasible" in cells.columns:
        cells = cells.filter("feasible")
    by_slice = {str(key[0]): part for key, part in paired.group_by("slice", maintain_order=True)}
    audit = _audit(cells, rules)
    rows: list[tuple[str, str, Finding]] = []
    for name, band in sorted(bands.items()):
        part = by_slice.get(name)
        if part is None:
            empty = Finding(contrast="all", n_seeds=0, n_draws=0, band=band, side="both", reason="no gate draws")
            rows.append((name, "outcome", empty))
            continue
        draws = slice_draws(name, part)
        here = [
            (name, metric.family, found)
            for metric in _wanted(rules, paired.columns)
            for found in _judge_metric(draws, metric, band, rules, alpha, audit)
        ]
        if all(found.side == "none" for _, _, found in here):  # what nobody judged has not passed
            n_seeds, n_draws, told = draws.n_seeds, draws.n_draws, "no metric that was asked for is about this slice"
            nothing = Finding(contrast="all", n_seeds=n_seeds, n_draws=n_draws, band=band, side="both", reason=told)
            here.append((name, "outcome" if rules.metrics is None else rules.metrics[0], nothing))
        rows += here
    table = _table(rows, rules.alpha, alpha)
    slices = _slices(table)
    said = set(slices["verdict"].to_list())
    verdict: Verdict = next((v for v in WORST_FIRST if v in said), "undecided")
    return GateResult(
        rows=table, slices=slices, verdict=verdict, candidate=candidate, look=look, n_looks=n_looks
    )  # fmt: skip


def _slice_bands(paired: pl.DataFrame, cells: pl.DataFrame) -> dict[str, float]:
    """Check what came in and return the tightest band of each gated slice."""
    missing = [name for name in NEEDED if name not in paired.columns]
    if missing:
        raise DistdataError(f"gate: paired draws lack {', '.join(missing)}; measure both sides again.")
    for name in ("slice", "scenario", "seed_id", "k"):
        if name != "scenario" and paired[name].null_count():
            raise DistdataError(f"gate: {paired[name].null_count()} paired draws have no {name}.")
    twice = paired.height - paired.select("seed_id", "k").n_unique()
    if twice:
        raise DistdataError(f"gate: {twice} paired draws have a seed and k that another one has; pair each once.")
    if "feasible" in cells.columns:
        cells = cells.filter("feasible")
    tightest = cells.group_by("slice").agg(pl.col("band").cast(pl.Float64).min())
    bands = {str(name): float(band) for name, band in tightest.iter_rows()}
    unknown = sorted(set(paired["slice"].unique().to_list()) - set(bands))
    if unknown:
        raise DistdataError(f"gate: paired draws of slice {unknown[0]}, of which no feasible cell is known.")
    bad = [name for name, band in bands.items() if not (math.isfinite(band) and band > 0)]
    if bad:
        raise DistdataError(f"gate: slice {bad[0]} has the band {bands[bad[0]]:g}; it must be a number above 0.")
    return bands


def _audit(cells: pl.DataFrame, rules: GateSettings) -> dict[str, tuple[str, int]]:
    """Return why and how many draws the audited slices need."""
    if rules.tail_multiple <= 1 or rules.minima is None:
        return {}
    found = tail_requirements(cells, rules.minima, multiple=rules.tail_multiple)
    return {name: (why, required) for name, why, required in found.select("slice", "why", "required").iter_rows()}


def _wanted(rules: GateSettings, columns: list[str]) -> list[Metric]:
    """Return the lines to judge: those asked for, or all of which a column is there, and always the outcome."""
    if rules.metrics is not None:
        return [m for m in METRICS.values() if m.family in rules.metrics]
    there = set(columns)
    return [
        m for m in METRICS.values()
        if m.name == "outcome" or there & set(m.columns) or (m.name == "drift" and there & set(DRIFT_SCALAR))
    ]  # fmt: skip


def _judge_metric(
    draws: SliceDraws, metric: Metric, slice_band: float, rules: GateSettings, alpha: float,
    audit: dict[str, tuple[str, int]],
) -> list[Finding]:  # fmt: skip
    """Return the findings of one line on one slice, with the rules that hold for all of them."""
    band = rules.bands.get(metric.name, metric.band)
    ask = Ask(
        alpha=alpha, power=rules.power, band=slice_band if band is None else band, side=metric.side,
        min_seeds=rules.min_seeds,
    )  # fmt: skip
    columns = metric.columns
    if metric.name == "drift" and not any(c in draws.frame.columns for c in columns):
        columns = DRIFT_SCALAR
    lacking = [c for c in columns if not draws.has(c)]
    if lacking:
        if len(lacking) == len(columns) and rules.metrics is None and metric.name != "outcome":
            return []  # the metric is not about this slice
        if metric.side == "none":
            return []
        told = f"no {', '.join(lacking)} on any of {draws.n_draws} draws"
        return [_blank(draws, ask, "all", told)]
    if draws.n_seeds < rules.min_seeds and metric.side != "none":
        needed = math.ceil(rules.min_seeds * draws.n_draws / draws.n_seeds)
        return [_blank(draws, ask, "all", f"{draws.n_seeds} seeds; a gate needs {rules.min_seeds}", needed)]
    return [_hold(f, draws, ask, audit) for f in metric.statistic(draws, ask)]


def _hold(found: Finding, draws: SliceDraws, ask: Ask, audit: dict[str, tuple[str, int]]) -> Finding:
    """Let a finding stand, unless it has too few seeds, no number, or a tail audit that wants more."""
    if found.side == "none" or found.p_fail is None:
        return found
    numbers = (found.estimate, found.low, found.p_fail)
    if any(v is None or math.isnan(v) for v in numbers) or (found.high is not None and math.isnan(found.high)):
        return _blank(draws, ask, found.contrast, f"the estimate is no number; {found.reason}")
    if found.n_seeds < ask.min_seeds:
        needed = math.ceil(ask.min_seeds * found.n_draws / max(found.n_seeds, 1))
        told = f"{found.n_seeds} seeds; a gate needs {ask.min_seeds}"
        return _blank(draws, ask, found.contrast, told, needed, n_seeds=found.n_seeds, n_draws=found.n_draws)
    why, required = audit.get(draws.name, ("", 0))
    if found.inside and draws.n_draws < required:
        told = f"tail audit ({why}): {draws.n_draws:,} of {required:,} draws"
        return _blank(draws, ask, found.contrast, told, required, like=found)
    return found


def _blank(
    draws: SliceDraws, ask: Ask, contrast: str, reason: str, needed: int | None = None, *, like: Finding | None = None,
    n_seeds: int | None = None, n_draws: int | None = None,
) -> Finding:  # fmt: skip
    """Return an undecided finding, with the numbers of `like` for what they are worth."""
    return Finding(
        contrast=contrast, n_seeds=draws.n_seeds if n_seeds is None else n_seeds,
        n_draws=draws.n_draws if n_draws is None else n_draws, band=ask.band, side=ask.side,
        estimate=None if like is None else like.estimate, low=None if like is None else like.low,
        high=None if like is None else like.high, reason=reason, needed_draws=needed,
    )  # fmt: skip


def _table(rows: list[tuple[str, str, Finding]], family_alpha: float, alpha: float) -> pl.DataFrame:
    """Adjust the fails and lay the findings out as rows."""
    tested = [i for i, (_, _, f) in enumerate(rows) if f.p_fail is not None]
    adjusted = dict(zip(tested, holm([rows[i][2].p_fail or 0.0 for i in tested]).tolist(), strict=True))
    out = []
    for i, (name, metric, f) in enumerate(rows):
        p = adjusted.get(i)
        verdict: Verdict = "undecided"
        if f.side == "none" or f.inside:
            verdict = "pass"
        elif p is not None and p <= family_alpha:
            verdict = "fail"
        needed = f.needed_draws if verdict == "undecided" else None
        out.append(
            (
                name, metric, f.contrast, f.n_seeds, f.n_draws, f.estimate, f.low, f.high, f.band, f.side, verdict,
                f.reason, needed, alpha, f.p_fail, p,
            )
        )  # fmt: skip
    return pl.DataFrame(out, schema=dict(ROW_SCHEMA), orient="row")


def _slices(table: pl.DataFrame) -> pl.DataFrame:
    """Return each slice's worst row."""
    rank = pl.col("verdict").replace_strict({v: i for i, v in enumerate(WORST_FIRST)}, return_dtype=pl.Int8)
    judged = table.with_columns(rank=rank, info=pl.col("side") == "none")
    worst = judged.sort("slice", "info", "rank", maintain_order=True).group_by("slice", maintain_order=True)
    return worst.agg(
        verdict=pl.col("verdict").first(),
        n_rows=pl.len().cast(pl.Int64),
        worst=pl.concat_str("metric", pl.lit(": "), "contrast").first(),
        needed_draws=pl.col("needed_draws").max(),
    )
