"""Find the units that a run has to make: missing, interrupted, failed or damaged ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from ..catalogs import store
from ..catalogs.check import damaged_units
from ..catalogs.manifests import manifest_name, unit_stem
from ..catalogs.plans import SavedPlan
from ..catalogs.project import Project
from ..catalogs.protocol import TeacherInfo
from .tasks import FrozenUnits, Salvage, UnitTask, make_task, task_rows, unit_bounds

Mode = Literal["missing", "only-started", "retry-failed", "repair"]


class Pending(NamedTuple):
    """What is to be made: its tasks, built as they are asked for, and what was found damaged."""

    tasks: Iterable[UnitTask]
    n_tasks: int
    n_draws: int
    damaged: tuple[str, ...] = ()


class PendingUnits:
    """Finds the pending units of a plan whose sizes are frozen."""

    def __init__(self, project: Project, plan: SavedPlan, units: FrozenUnits, info: TeacherInfo) -> None:
        self._project, self._plan, self._units, self._info = project, plan, units, info
        self._bounds = unit_bounds(plan, units.unit_draws)

    def find(self, mode: Mode) -> Pending:
        """Find what `mode` asks for."""
        if mode == "missing":
            return self._missing()
        if mode == "only-started":
            return self._started()
        if mode == "retry-failed":
            return self._failed()
        return self._damaged()

    def _missing(self) -> Pending:
        there = {f.name for f in self._project.storage.list(self._plan.plan_id)}
        return self._planned(
            [u for u in range(len(self._bounds)) if manifest_name(self._plan.plan_id, u, 0) not in there]
        )  # fmt: skip

    def _planned(self, numbers: Sequence[int]) -> Pending:
        tasks = (self.task(task_rows(self._plan, *self._bounds[u]), u) for u in numbers)
        return Pending(tasks, len(numbers), sum(self._bounds[u][1] - self._bounds[u][0] for u in numbers))

    def _started(self) -> Pending:
        """Find the interrupted units: those with a spool and no manifest, retries of failed draws included."""
        plan_id, spool_dir = self._plan.plan_id, self._project.spool_dir
        stems = {p.stem.removeprefix(f"{plan_id}-") for p in spool_dir.glob(f"{plan_id}-unit-*.spool")}
        there = {f.name for f in self._project.storage.list(plan_id)}
        begun = [u for u in range(len(self._bounds)) if unit_stem(u, 0) in stems]
        numbers = [u for u in begun if manifest_name(plan_id, u, 0) not in there]
        planned = self._planned(numbers)
        retries = [t for t in self._failed().tasks if unit_stem(t.unit, t.attempt) in stems]
        return Pending(
            chain(planned.tasks, retries), planned.n_tasks + len(retries),
            planned.n_draws + sum(len(t.rows) for t in retries),
        )  # fmt: skip

    def task(self, rows: pa.Table, unit: int, **more: Any) -> UnitTask:
        """Build the task of unit number `unit` over `rows` (see `tasks.UnitTask` for the rest)."""
        choice = self._project.config.generate.spool
        priced = self._units.usd > 0 or self._info.usd_per_gpuh > 0
        spool = choice == "on" or (choice == "auto" and priced)
        return make_task(self._plan, self._units, rows, unit, spool=spool, **more)

    def _failed(self) -> Pending:
        """Ask draws again that failed: only those, in a further attempt of their unit."""
        with store.read(self._project.catalog_path) as con:
            rows = con.sql(
                """SELECT a.unit, a.seed_id, a.k::INTEGER AS k, m.last FROM attempts a JOIN plans p USING (plan_no)
                JOIN (SELECT plan_no, unit, max(attempt) AS last FROM units GROUP BY ALL) m USING (plan_no, unit)
                ANTI JOIN samples s ON s.seed_id = a.seed_id AND s.k = a.k AND s.plan_no = a.plan_no
                WHERE p.plan_id = ? GROUP BY ALL ORDER BY ALL""",
                params=[self._plan.plan_id],
            ).pl()
        tasks = []
        for (unit,), group in rows.group_by("unit", maintain_order=True):
            start, stop = self._bounds[int(str(unit))]
            wanted = set(group.select("seed_id", "k").iter_rows())
            draws = self._plan.draws.slice(start, stop - start)
            pairs = zip(draws["seed_id"].to_pylist(), draws["k"].to_pylist(), strict=True)
            keep = [i for i, pair in enumerate(pairs) if pair in wanted]
            task = task_rows(self._plan, start, stop, keep)
            tasks.append(self.task(task, int(str(unit)), attempt=int(group["last"][0]) + 1))
        return Pending(tasks, len(tasks), sum(len(t.rows) for t in tasks))

    def _damaged(self) -> Pending:
        """Make the units with damaged shards again, keeping every sample that is still intact."""
        found = damaged_units(self._project, self._plan.plan_id)
        tasks = []
        for unit in self._sharing_a_shard(dict.fromkeys(d.unit for d in found)):
            with store.read(self._project.catalog_path) as con:
                rows = con.execute(
                    """SELECT manifest, shard, shard_offset, attempt FROM units JOIN plans USING (plan_no)
                    WHERE plan_id = ? AND unit = ? ORDER BY attempt""",
                    [self._plan.plan_id, unit],
                ).fetchall()
                delivered = con.execute(
                    "SELECT sample_id FROM samples JOIN plans USING (plan_no) WHERE plan_id = ? AND unit = ?",
                    [self._plan.plan_id, unit],
                ).fetchall()
            salvage = tuple(Salvage(manifest=m, shard=s, shard_offset=o) for m, s, o, _ in rows if s is not None)
            start, stop = self._bounds[unit]
            wanted = {d[0] for d in delivered}  # draws that failed are none of a repair's business
            ids = self._plan.draws["sample_id"].slice(start, stop - start).to_pylist()
            task = task_rows(self._plan, start, stop, [i for i, sample in enumerate(ids) if sample in wanted])
            tasks.append(self.task(task, unit, attempt=rows[-1][3] + 1, salvage=salvage, replaces=True))
        return Pending(tasks, len(tasks), sum(d.n_draws for d in found), tuple(f"{d.shard}: {d.text}" for d in found))

    def _sharing_a_shard(self, numbers: Iterable[int]) -> list[int]:
        """Add the units that lie in the same joined shard: it is replaced whole, or readers would meet keys twice."""
        with store.read(self._project.catalog_path) as con:
            rows = con.execute(
                """SELECT DISTINCT u.unit FROM units u JOIN plans USING (plan_no) WHERE plan_id = $1 AND shard IN (
                    SELECT shard FROM units JOIN plans USING (plan_no)
                    WHERE plan_id = $1 AND unit IN (SELECT unnest($2)) AND shard IS NOT NULL
                ) ORDER BY 1""",
                [self._plan.plan_id, list(numbers)],
            ).fetchall()
        return [r[0] for r in rows]
