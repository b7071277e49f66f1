"""From a frozen plan to unit tasks: which draws are committed together, in which micro-batches.

The sizes are frozen in ``plans/ID/units.json`` before the first draw and never change afterwards, so that
resuming, another engine or another number of workers gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..catalogs.errors import DistdataError
from ..catalogs.files import write_atomic
from ..catalogs.plans import SavedPlan
from ..catalogs.project import Project
from ..catalogs.protocol import MemberSpec

UNITS_FILE = "units.json"
MIN_UNITS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenUnits:
    """How a plan is cut: `unit_draws` draws to a unit (a seed's K stay together), `batch` to a micro-batch.

    `members` is what every draw must look like; `gpu_s`, `usd` and `n_bytes` are the measured cost of a draw
    that decided the size and prices what is in doubt; `capture` names the extras every request asks for.
    """

    unit_draws: int
    batch: int
    members: Mapping[str, MemberSpec]
    gpu_s: float
    usd: float
    n_bytes: float
    capture: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Salvage:
    """An earlier attempt whose intact samples a repair keeps: its manifest, and where its shard is now."""

    manifest: str
    shard: str
    shard_offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitTask:
    """All that a worker needs to make one unit, with no catalog and no plan file at hand.

    `rows` has one row per draw in order: the plan's columns plus the seed's scenario, split, axes (JSON),
    params (JSON), control_axis and control_value.
    """

    plan_id: str
    purpose: str
    unit: int
    attempt: int
    batch: int
    members: Mapping[str, MemberSpec]
    usd_per_draw: float
    rows: pa.Table
    spool: bool = True
    capture: tuple[str, ...] = ()
    salvage: tuple[Salvage, ...] = ()
    replaces: bool = False

    @property
    def key(self) -> str:
        """Name the task for its spool: an answer is only reused for the very same task.

        A planned unit is told by its beginning alone, so that the probe, which asks its first micro-batch
        before the sizes are known, names it as the unit itself does.
        """
        ids = self.rows["sample_id"]
        key = f"{self.plan_id}/{self.unit}/{self.attempt}/{self.batch}/{ids[0]}"
        return key if self.attempt == 0 else f"{key}/{len(ids)}/{ids[-1]}/{'repair' if self.replaces else 'retry'}"


def load_units(project: Project, plan_id: str) -> FrozenUnits | None:
    """Read the frozen sizes of a plan; None before they are frozen."""
    path = project.plans_dir / plan_id / UNITS_FILE
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_bytes())
        members = {n: MemberSpec(**{**s, "shape": tuple(s["shape"])}) for n, s in data.pop("members").items()}
        return FrozenUnits(members=members, capture=tuple(data.pop("capture")), **data)
    except (ValueError, TypeError, KeyError) as e:
        raise DistdataError(
            f"{path}: damaged ({e}). Restore it from a backup: it decides which draws are one unit."
        ) from None


def freeze_units(project: Project, plan_id: str, units: FrozenUnits) -> None:
    """Write the sizes down, once and for all."""
    data = json.dumps(asdict(units), indent=1, sort_keys=True).encode()
    write_atomic(project.plans_dir / plan_id / UNITS_FILE, data, "units.freeze")


def size_unit(gpu_s: float, n_bytes: float, *, unit_s: float, shard_bytes: float, n_draws: int, batch: int) -> int:
    """Choose the draws per unit: about `unit_s` seconds of teacher time, or one shard, whichever is less.

    Never so many that the plan would have fewer than eight units, never fewer than one micro-batch; rounded
    down to a power of two times the batch, so that a small difference in timing rarely changes it. The number
    of workers has no say, or the same plan would give other shards on a larger machine.
    """
    by_time = unit_s / max(gpu_s, 1e-6)
    by_bytes = shard_bytes / max(n_bytes, 1.0)
    by_share = n_draws / MIN_UNITS
    batches = max(1.0, min(by_time, by_bytes, by_share) / batch)
    return int(batch * 2 ** int(np.log2(batches)))


def unit_bounds(plan: SavedPlan, unit_draws: int) -> list[tuple[int, int]]:
    """Cut the plan's draws into [start, stop) ranges of about `unit_draws`, keeping a seed's draws together."""
    seed_ids = plan.draws["seed_id"].combine_chunks()
    n = len(seed_ids)
    if n == 0:
        return []
    new_seed = np.flatnonzero(np.asarray(pc.not_equal(seed_ids[1:], seed_ids[:-1]))) + 1
    starts = np.concatenate([[0], new_seed])
    bounds = [0]
    while bounds[-1] + unit_draws < n:
        after = starts[np.searchsorted(starts, bounds[-1] + unit_draws, side="left") :]
        if not len(after):
            break
        bounds.append(int(after[0]))
    return list(zip(bounds, [*bounds[1:], n], strict=True))


def task_rows(plan: SavedPlan, start: int, stop: int, keep: Sequence[int] | None = None) -> pa.Table:
    """Return the rows of a unit (or of the positions `keep` in it) with the seeds' own state joined."""
    draws = plan.draws.slice(start, stop - start)
    if keep is not None:
        draws = draws.take(pa.array(keep, pa.int64()))
    state = plan.seeds.take(draws["seed_row"]).drop_columns(["seed_id", "cell"])
    draws = draws.drop_columns(["seed_row"])
    for name in state.column_names:
        draws = draws.append_column(name, state[name])
    return draws.combine_chunks()


def make_task(plan: SavedPlan, units: FrozenUnits, rows: pa.Table, unit: int, **more: Any) -> UnitTask:
    """Build the task of unit number `unit` over `rows` (see `UnitTask` for the rest)."""
    return UnitTask(
        plan_id=plan.plan_id,
        purpose=plan.header["purpose"],
        unit=unit,
        attempt=more.pop("attempt", 0),
        batch=units.batch,
        members=units.members,
        usd_per_draw=units.usd,
        capture=units.capture,
        rows=rows,
        **more,
    )
