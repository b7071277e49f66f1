"""Between which counts of kept samples each cell's target must lie: floors, caps and pins against what its seeds give.

Rules (``[[plan.rules]]``) are about the training corpus; a gate plan's floors are the decidable minima of its slices,
and a pilot's are none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from ..catalogs.errors import DistdataError
from .frame import Bools, Frame, Ints, first_seeds, sum_by_cell
from .request import PlanRequest

NO_RULE = -1
MAX_NAMES = 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bounds:
    """The bounds of each cell's target in kept samples, int64 [H].

    - `lower` and `upper` are what holds in the end; `ceiling` is what seeds, byproducts and cases can give.
    - `floor` is what was asked for: K draws of the first seeds, a rule's floor or pin, or a gate's part of a minimum.
    - `pin` and `cap` are the rules', `NO_RULE` where there is none. `cut` bool: a pin or floor lies above the ceiling.
      `ruled` bool: a rule's floor decides.
    """

    lower: Ints
    upper: Ints
    ceiling: Ints
    floor: Ints
    pin: Ints
    cap: Ints
    cut: Bools
    ruled: Bools


def cell_bounds(request: PlanRequest, cells: pl.DataFrame, frame: Frame, beyond: Ints, floor: Ints | None) -> Bounds:
    """Combine seeds and rules; `beyond` [H] are samples that don't come from the frame (byproducts, cases).

    `floor` [H] is what a gate or pilot plan must get; a train plan's floors come from `floor_seeds` and the rules. A
    top-up has its targets already: only seeds bound it.

    Raises:
        DistdataError: rules that contradict each other; a pin or a rule's floor above what the seeds of its cell can
            give (waived by `allow_undecidable`, which takes what there is).
    """
    in_frame = sum_by_cell(frame, frame.k_seed)
    ceiling = in_frame + beyond
    nothing = np.full(cells.height, NO_RULE, dtype=np.int64)
    if request.purpose != "train" or request.top_up:
        floor = np.zeros_like(ceiling) if floor is None else np.minimum(floor, ceiling)
        return Bounds(
            lower=floor, upper=ceiling, ceiling=ceiling, floor=floor, pin=nothing, cap=nothing,
            cut=np.zeros(cells.height, dtype=np.bool_), ruled=np.zeros(cells.height, dtype=np.bool_),
        )  # fmt: skip
    pin, rule_floor, cap = (_rule(cells, name) for name in ("pin", "floor", "cap"))
    _refuse_contradictions(cells, pin, rule_floor, cap)
    asked = np.maximum(pin, rule_floor)
    cut = asked > ceiling
    if cut.any() and not request.allow_undecidable:
        _refuse_above_seeds(request, cells, asked, ceiling, frame.n_seeds, cut)
    upper = np.where(cap == NO_RULE, ceiling, np.minimum(ceiling, cap))
    of_seeds = np.minimum(first_seeds(frame, request.floor_seeds), upper)  # a cap outranks the floor of every cell
    floor = np.where(pin == NO_RULE, np.maximum(of_seeds, rule_floor), pin)
    upper = np.where(pin == NO_RULE, upper, np.minimum(pin, ceiling))
    return Bounds(
        lower=np.minimum(floor, upper), upper=upper, ceiling=ceiling, floor=floor, pin=pin, cap=cap, cut=cut,
        ruled=(rule_floor > of_seeds) & (pin == NO_RULE),
    )  # fmt: skip


def _rule(cells: pl.DataFrame, name: str) -> Ints:
    if name not in cells.columns:
        return np.full(cells.height, NO_RULE, dtype=np.int64)
    said = np.where(cells["feasible"].to_numpy(), cells[name].cast(pl.Int64).fill_null(NO_RULE).to_numpy(), NO_RULE)
    if np.any(said < NO_RULE):
        at = int(np.argmax(said < NO_RULE))
        raise DistdataError(f"plan: {name} of cell {cells['cell'][at]} is {said[at]:,}; it must be at least 0.")
    return said.astype(np.int64)


def _refuse_contradictions(cells: pl.DataFrame, pin: Ints, floor: Ints, cap: Ints) -> None:
    capped = cap != NO_RULE
    for low, high, bad, out in (
        (("pin", pin), ("cap", cap), capped & (pin > cap), "Lower the pin or raise the cap"),
        (("floor", floor), ("cap", cap), capped & (floor > cap), "Lower the floor or raise the cap"),
        (("floor", floor), ("pin", pin), (pin != NO_RULE) & (floor > pin), "Lower the floor or raise the pin"),
    ):
        if bad.any():
            at, n = int(np.argmax(bad)), int(bad.sum())
            raise DistdataError(
                f"plan: the rules contradict each other in {n:,} cell{'s' if n > 1 else ''}: {cells['cell'][at]} has "
                f"{low[0]} {low[1][at]:,} above {high[0]} {high[1][at]:,}. {out} under [[plan.rules]]."
            )


def _refuse_above_seeds(
    request: PlanRequest, cells: pl.DataFrame, asked: Ints, ceiling: Ints, n_seeds: Ints, cut: Bools
) -> None:
    at = np.flatnonzero(cut)
    shown = [
        f"{cells['cell'][int(h)]} {asked[h]:,}, but its {n_seeds[h]:,} seeds give at most {ceiling[h]:,}"
        for h in at[:MAX_NAMES]
    ]
    more = f" and {len(at) - MAX_NAMES:,} more" if len(at) > MAX_NAMES else ""
    raise DistdataError(
        f"plan {request.purpose}: a pin or floor under [[plan.rules]] asks for more kept samples than there can be: "
        f"{'; '.join(shown)}{more}. Import more seeds, raise their K, lower the rule, or pass --allow-undecidable to "
        "take what there is and mark the cells."
    )


def first_names(names: Sequence[str]) -> str:
    """Join the first five names and count the rest."""
    left = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {left:,} more" if left > 0 else "")
