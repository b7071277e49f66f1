"""Plan the same purchase under several policies and put the plans side by side.

A comparison is as honest as its plans are alike: they must differ in nothing but the policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..catalogs.comparison import ComparedCell, ComparedSlice, Comparison, PolicyFigures
from ..catalogs.config import Layer, Policy
from ..catalogs.errors import DistdataError, nearest
from ..catalogs.tables import usd
from .budget import Budget
from .minima import MIN_SEEDS, GateAims, draws_needed
from .request import Plan


def parse_policies(text: str) -> tuple[Policy, ...]:
    """Read ``fleet,uniform,gate``.

    Raises:
        DistdataError: an unknown policy, one named twice, or fewer than two.
    """
    known: tuple[Policy, ...] = get_args(Policy)
    found: list[Policy] = []
    for word in (part.strip() for part in text.split(",") if part.strip()):
        policy = next((p for p in known if p == word), None)
        if policy is None:
            raise DistdataError(f"--compare {text}: no policy {word!r}.{nearest(word, known)}")
        if policy in found:
            raise DistdataError(f"--compare {text}: {policy} is named twice.")
        found.append(policy)
    if len(found) < 2:
        raise DistdataError(f"--compare {text}: name at least two of {', '.join(known)}, as in --compare fleet,gate.")
    return tuple(found)


def compare_policies(
    policies: Sequence[Policy], plan_for: Callable[[Policy], Plan], *, needed: Mapping[str, int] | None = None
) -> Comparison:
    """Make one plan per policy and compare them over the feasible cells.

    - `plan_for`: the plan of the request at hand with another policy, nothing else changed.
    - `needed`: a gate's worth of samples (`needed_draws`), by slice; slices not named are not counted.

    Raises:
        DistdataError: a plan that can't be made (its message, after the policy's name), or plans that aren't alike.
    """
    plans: list[Plan] = []
    for policy in policies:
        try:
            plans.append(plan_for(policy))
        except DistdataError as e:
            raise DistdataError(f"compare, policy {policy}: {e}") from None
    first, budget = plans[0], plans[0].request.budget
    if budget is None:
        raise DistdataError("compare: without a budget the targets in force stay, whatever the policy. Give --budget.")
    for plan, policy in zip(plans, policies, strict=True):
        _check_alike(first, plan, policy)
    cells = first.cells.filter("feasible")
    layers = _layers(cells)
    slices = _slices(plans, needed or {})
    return Comparison(
        budget=_budget_words(budget),
        policies=tuple(
            _figures(plan, policy, layers, slices, i)
            for i, (plan, policy) in enumerate(zip(plans, policies, strict=True))
        ),
        layers=layers,
        fleet_by_layer=_layer_shares(cells, "fleet_share", layers),
        cells=_cells(plans),
        slices=slices,
    )


def needed_draws(cells: pl.DataFrame, aims: GateAims, k: int) -> dict[str, int]:
    """Return a gate's worth of samples of each slice: its gate's minimum, as if every seed were a decision point.

    A gate compares draws on held-out seeds; here the same number is held against the training corpus. `cells` as
    `make_plan` takes them; `k` is the K of cells without their own. The band is the tightest of a slice's feasible
    cells; sigma is measured where `cells` has it, weighted by fleet share, else the aims'.
    """
    sigma = pl.col("sigma").cast(pl.Float64).fill_nan(None) if "sigma" in cells.columns else pl.lit(None, pl.Float64)
    share = pl.when(pl.col("fleet_share").sum() > 0).then(pl.col("fleet_share")).otherwise(1.0)
    variance = sigma.fill_null(aims.sigma) ** 2
    slices = (
        cells.filter("feasible")
        .with_columns(pl.col("k").cast(pl.Float64).fill_null(float(k)))
        .group_by("slice")
        .agg(pl.col("band").min(), pl.col("k").mean(), ((variance * share).sum() / share.sum()).alias("variance"))
        .sort("slice")
    )
    k_mean, spread = slices["k"].to_numpy(), np.sqrt(slices["variance"].to_numpy())
    by_formula = draws_needed(slices["band"].to_numpy(), k_mean, spread, aims, max(slices.height, 1))
    least = np.maximum(np.ceil(np.minimum(by_formula, 2.0**62) - 1e-9), np.ceil(MIN_SEEDS * k_mean))
    return dict(zip(slices["slice"].to_list(), least.astype(np.int64).tolist(), strict=True))


def effective_n(fleet_share: NDArray[np.float64], n: NDArray[np.int64]) -> tuple[float, float]:
    """Return 1 / sum(f^2 / n) over the cells with samples, and the share of the fleet in cells without.

    The variance of a stratified mean is sigma^2 sum(f_h^2 / n_h) when all cells spread alike (Cochran 1977, eq. 5.7),
    so this is the size of the simple random sample with the same variance. fleet_share, n: [H]; the shares of the cells
    with samples are divided by their sum. Without any such cell: 0.
    """
    seen = (fleet_share > 0) & (n > 0)
    whole, part = float(fleet_share.sum()), float(fleet_share[seen].sum())
    if part <= 0:
        return 0.0, float(whole > 0)
    unseen = float(fleet_share[~seen].sum()) / whole
    return float(part**2 / np.sum(fleet_share[seen] ** 2 / n[seen])), unseen


def _check_alike(first: Plan, plan: Plan, policy: Policy) -> None:
    if plan.request.policy != policy or replace(plan.request, policy=first.request.policy) != first.request:
        raise DistdataError(f"compare: the plan for policy {policy} differs from the first in more than its policy.")
    if not plan.cells.select("cell_id", "feasible").equals(first.cells.select("cell_id", "feasible")):
        raise DistdataError(f"compare: the plan for policy {policy} has other cells than the first.")


def _budget_words(budget: Budget) -> str:
    if budget.kind == "usd":
        return usd(budget.amount)
    return f"{budget.amount:,.6g} GPU-hours" if budget.kind == "gpuh" else f"{int(budget.amount):,} samples"


def _layers(cells: pl.DataFrame) -> tuple[str, ...]:
    found = cells["layer"].unique(maintain_order=True).to_list()
    order: tuple[str, ...] = get_args(Layer)
    return tuple(sorted(found, key=lambda layer: order.index(layer) if layer in order else len(order)))


def _layer_shares(cells: pl.DataFrame, column: str, layers: Sequence[str]) -> tuple[float, ...]:
    sums = [math.fsum(cells.filter(pl.col("layer") == layer)[column].to_list()) for layer in layers]
    whole = math.fsum(sums)
    return tuple(s / whole if whole > 0 else 0.0 for s in sums)


def _figures(
    plan: Plan, policy: Policy, layers: tuple[str, ...], slices: Sequence[ComparedSlice], i: int
) -> PolicyFigures:
    cells = plan.cells.filter("feasible")
    target = cells["target"].to_numpy()
    floor, upper = cells["floor"].to_numpy(), _upper(cells)
    n_effective, unseen = effective_n(cells["fleet_share"].to_numpy(), target)
    least = int(np.argmin(target))
    counted = [s for s in slices if s.needed is not None]
    return PolicyFigures(
        policy=policy,
        n_target=int(target.sum()),
        n_credit=plan.n_credit,
        n_fresh=plan.n_fresh,
        usd=plan.usd,
        gpu_h=plan.gpu_s / 3600,
        layer_share=_layer_shares(cells, "target", layers),
        n_gate_worth=sum(1 for s in counted if s.target[i] >= (s.needed or 0)) if counted else None,
        effective_n=n_effective,
        unseen_share=unseen,
        smallest_cell=str(cells["cell"][least]),
        smallest_n=int(target[least]),
        n_at_floor=int(np.sum((floor > 0) & (target <= floor))),
        n_at_ceiling=int(np.sum((upper > 0) & (target >= upper))),
        shortfall=plan.shortfall,
    )


def _upper(cells: pl.DataFrame) -> NDArray[np.int64]:
    """Return the most each cell may hold, [H]: what its seeds give, or a rule's cap or pin below that."""
    upper = cells["ceiling"].to_numpy()
    for rule in ("cap", "pin"):
        said = cells[rule].to_numpy()
        upper = np.where(said >= 0, np.minimum(upper, said), upper)
    return upper


def _cells(plans: Sequence[Plan]) -> tuple[ComparedCell, ...]:
    """Return the feasible cells by falling fleet share, then by name."""
    base = plans[0].cells.select("cell", "slice", "scenario", "layer", "fleet_share", "feasible").with_columns(
        *(plan.cells["target"].alias(f"target{i}") for i, plan in enumerate(plans)),
        *(plan.cells["fresh"].alias(f"fresh{i}") for i, plan in enumerate(plans)),
    )  # fmt: skip
    n = len(plans)
    ordered = base.filter("feasible").drop("feasible").sort("fleet_share", "cell", descending=[True, False])
    return tuple(
        ComparedCell(
            cell=row[0], slice=row[1], scenario=row[2], layer=row[3], fleet_share=row[4], target=row[5 : 5 + n],
            fresh=row[5 + n :],
        )
        for row in ordered.iter_rows()
    )  # fmt: skip


def _slices(plans: Sequence[Plan], needed: Mapping[str, int]) -> tuple[ComparedSlice, ...]:
    sums = [
        dict(plan.cells.filter("feasible").group_by("slice").agg(pl.col("target").sum()).iter_rows()) for plan in plans
    ]
    return tuple(
        ComparedSlice(slice=name, needed=needed.get(name), target=tuple(int(s[name]) for s in sums))
        for name in sorted(sums[0])
    )
