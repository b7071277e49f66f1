"""Run a plan: freeze its units once, make the ones that are missing, register them as they land.

Resuming is running the same thing again: what has a manifest is skipped, what is in a spool is reused.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, get_args

from ..catalogs import store
from ..catalogs.cases import settle_cases
from ..catalogs.config import Engine, TeacherConfig
from ..catalogs.errors import BusyError, DistdataError, nearest
from ..catalogs.files import TMP_PREFIX, exclusive_lock
from ..catalogs.manifests import UnitSummary, manifest_name, unit_stem
from ..catalogs.packing import remove_replaced
from ..catalogs.plans import SavedPlan, find_plan, load_plan
from ..catalogs.project import Project
from ..catalogs.protocol import MemberSpec, TeacherInfo
from ..catalogs.register import Registrar, catch_up
from .pending import Mode, Pending, PendingUnits
from .run_unit import RunRules
from .spool import Answer
from .tasks import (
    FrozenUnits,
    UnitTask,
    freeze_units,
    load_units,
    size_unit,
    task_rows,
    unit_bounds,
)  # fmt: skip
from .teachers.registry import make_teacher, teacher_info
from .worker import Worker, WorkerSpec

INPROCESS_BELOW_S = 60.0
STOP_AFTER_FAILED = 16  # draws in a row, in whole units
PROBE_TRIES = 16  # draws that must fail before a teacher counts as broken
PROBE_DRAWS = 1 << 30  # before the sizes are frozen, unit 0 is the whole plan
REGISTER_AT_END_S = 20.0
_SHARD = re.compile(r"unit-(\d+)(?:-r(\d+))?-[0-9a-f]{16}\.tar$")


class Reporter(Protocol):
    """Who is told how a run goes; `generate.progress` shows it to people."""

    def begin(self, *, plan_id: str, total: int, done: int, engine: str, workers: int, usd_expected: float) -> None:
        """Hear that a run starts with `done` of `total` draws already there."""

    def advance(self, n_draws: int, n_failed: int, usd: float) -> None:
        """Hear of more answered draws, how many of them failed, and what they cost."""

    def note(self, text: str) -> None:
        """Hear something worth a line."""

    def end(self) -> None:
        """Hear that the run is over."""


@dataclass(slots=True, kw_only=True)
class RunResult:
    """What one call of `generate` did, and where the plan stands after it."""

    plan_id: str
    engine: str
    workers: int
    asked: int = 0
    failed: int = 0
    usd: float = 0.0
    in_doubt_usd: float = 0.0
    units: int = 0
    wall_s: float = 0.0
    total: int = 0
    generated: int = 0
    unregistered: int = 0
    damaged: list[str] = field(default_factory=list)
    failures: list[tuple[str, str, int]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return asdict(self)


def generate(
    project: Project,
    reporter: Reporter,
    *,
    plan_id: str | None = None,
    engine: Engine | None = None,
    workers: int | None = None,
    address: str | None = None,
    mode: Mode = "missing",
) -> RunResult:
    """Make what the plan still lacks (or, by `mode`, ask failed draws again, or make damaged ones again).

    Raises:
        DistdataError: another generate runs here, the teacher is not the one the plan was made for, a whole
            unit failed, or the disk is full. Everything committed before stays, and the same call goes on.
    """
    start = time.monotonic()
    busy = (
        f"{project.root}: process {{holder}} is already generating here. Wait for it, or stop it with Ctrl-C: what it "
        "has committed is kept."
    )
    with exclusive_lock(project.spool_dir / "generate.lock", busy):
        catch_up(project)
        plan = load_plan(project, find_plan(project, plan_id))
        project = with_model(project, plan)
        info = check_teacher(project, plan)
        run = _Run(project, plan, info, _wanted_engine(project, engine, address), workers, address, reporter)
        result = run.go(mode)
        result.wall_s = time.monotonic() - start
        _where_it_stands(project, result)
        if "model" in plan.header:  # a student answers no divergence case
            return result
        with suppress(BusyError):  # the next plan asks again
            settle_cases(project, plan.header["teacher_hash"])
        return result


def choose_mode(*, retry_failed: bool, repair: bool, only_started: bool) -> Mode:
    """Turn the command line's flags into a mode; raises DistdataError when they contradict each other."""
    flags: dict[Mode, bool] = {"retry-failed": retry_failed, "repair": repair, "only-started": only_started}
    chosen = [mode for mode, given in flags.items() if given]
    if len(chosen) > 1:
        raise DistdataError(f"generate: --{chosen[0]} and --{chosen[1]} are two jobs; run one after the other.")
    return chosen[0] if chosen else "missing"


def outlook(
    project: Project,
    *,
    plan_id: str | None = None,
    engine: Engine | None = None,
    workers: int | None = None,
    address: str | None = None,
    mode: Mode = "missing",
) -> dict[str, Any]:
    """Say what `generate` with the same arguments would do, without asking the teacher anything."""
    plan = load_plan(project, find_plan(project, plan_id))
    project = with_model(project, plan)
    info = check_teacher(project, plan)
    run = _Run(project, plan, info, _wanted_engine(project, engine, address), workers, address, _Silent())
    units = load_units(project, plan.plan_id)
    pending = PendingUnits(project, plan, units, info).find(mode) if units is not None else None
    n_draws = plan.n_draws if pending is None else pending.n_draws
    gpu_s = units.gpu_s if units is not None else float(plan.header["gpu_s_per_draw"])
    usd = units.usd if units is not None else float(plan.header["usd_per_draw"])
    chosen = run.choose_engine(n_draws * gpu_s)
    return {
        "plan": plan.plan_id,
        "teacher": f"{info.id} {info.version} ({info.content_hash})",
        "draws": n_draws,
        "units": pending.n_tasks if pending is not None else "sized when the first draw is made",
        "engine": chosen if chosen == "inprocess" else f"ray, {run.n_workers} workers",
        "usd": round(n_draws * usd, 4),
        "gpu_h": round(n_draws * gpu_s / 3600, 4),
        "storage": project.storage.address(plan.plan_id),
    }


def with_model(project: Project, plan: SavedPlan) -> Project:
    """Return the project with the model that answers this plan: a student's plan names its own, others the teacher."""
    model = plan.header.get("model")
    if model is None:
        return project
    config = project.config.model_copy(update={"teacher": TeacherConfig.model_validate(model)})
    return replace(project, config=config)


def check_teacher(project: Project, plan: SavedPlan) -> TeacherInfo:
    """Return the configured teacher's info after making sure that the plan was made for it."""
    info = teacher_info(make_teacher(project.config.teacher, project.root), project.config.teacher)
    if info.content_hash != plan.header["teacher_hash"]:
        raise DistdataError(
            f"plan {plan.plan_id} was made for teacher {plan.header['teacher']} {plan.header['teacher_version']} "
            f"({plan.header['teacher_hash']}); distdata.toml now gives {info.id} {info.version} ({info.content_hash}). "
            "Restore that teacher, or make a plan for this one: distdata plan --budget ..."
        )
    return info


def _default_workers() -> int:
    return max(1, len(os.sched_getaffinity(0)))


def _wanted_engine(project: Project, engine: Engine | None, address: str | None) -> str:
    wanted = engine or project.config.generate.engine
    if wanted not in get_args(Engine):
        raise DistdataError(f"--engine {wanted}: unknown.{nearest(wanted, get_args(Engine))}")
    if address or wanted == "ray":
        if wanted == "inprocess":
            raise DistdataError(
                "--address goes with the ray engine, and the engine asked for (--engine, or generate.engine in "
                "distdata.toml) is inprocess. Drop one of them."
            )
        return "ray"
    return wanted


class _Silent:
    """Hears how a run goes and tells nobody."""

    def begin(self, **_: Any) -> None:
        """Hear nothing."""

    def advance(self, n_draws: int, n_failed: int, usd: float) -> None:
        """Hear nothing."""

    def note(self, text: str) -> None:
        """Hear nothing."""

    def end(self) -> None:
        """Hear nothing."""


class _Run:
    """One call of `generate`, after its lock is held and its plan is known."""

    def __init__(
        self, project: Project, plan: SavedPlan, info: TeacherInfo, wanted_engine: str, workers: int | None,
        address: str | None, reporter: Reporter,
    ) -> None:  # fmt: skip
        self._project, self._plan, self._wanted, self._asked_workers = project, plan, wanted_engine, workers
        self._address, self._reporter = address, reporter
        self.n_workers = workers or project.config.generate.workers or _default_workers()
        rules = RunRules(max_attempts=project.config.generate.max_attempts)
        self._spec = WorkerSpec(root=project.root, config=project.config, info=info, rules=rules)
        self._engine = "inprocess"
        self._result = RunResult(plan_id=plan.plan_id, engine=self._engine, workers=1, total=plan.n_draws)
        self._registrar = Registrar(project)
        self._failed_in_a_row = 0

    def go(self, mode: Mode) -> RunResult:
        self._clean()
        units = load_units(self._project, self._plan.plan_id)
        if units is None and self._wanted == "auto" and not float(self._plan.header["gpu_s_per_draw"]):
            units = self._freeze()  # what a draw costs decides the engine, so it is found out here first
        gpu_s = units.gpu_s if units is not None else float(self._plan.header["gpu_s_per_draw"])
        pending = self._pending(units).find(mode) if units is not None else None
        if pending is not None and pending.n_tasks == 0:
            return self._result
        self._use_engine(gpu_s * (self._plan.n_draws if pending is None else pending.n_draws))
        with self._session():
            if units is None:
                units = self._freeze()
            self._make(pending or self._pending(units).find(mode), units)
        if mode == "repair":
            remove_replaced(self._project)
        return self._result

    def _pending(self, units: FrozenUnits) -> PendingUnits:
        return PendingUnits(self._project, self._plan, units, self._spec.info)

    def choose_engine(self, seconds: float) -> str:
        """Return the engine for about `seconds` of teacher time: Ray's start pays from a minute on."""
        if self._wanted != "auto":
            return self._wanted
        return "inprocess" if seconds < INPROCESS_BELOW_S else "ray"

    def _use_engine(self, seconds: float) -> None:
        self._engine = self._result.engine = self.choose_engine(seconds)
        self._result.workers = self.n_workers if self._engine == "ray" else 1
        if self._engine == "inprocess" and (self._asked_workers or 1) > 1:
            self._reporter.note("--workers has no effect in this process; --engine ray uses them")

    def _session(self) -> AbstractContextManager[None]:
        if self._engine != "ray":
            return nullcontext()
        from .ray_engine import ray_session

        gpus, log = self._project.config.teacher.gpus, self._project.spool_dir / "ray.log"
        return ray_session(self._address, self.n_workers, gpus, log)

    def _freeze(self) -> FrozenUnits:
        """Decide the unit size from a probe of the teacher: its first micro-batches, kept in unit 0's spool."""
        rules, teacher = self._project.config.generate, self._project.config.teacher
        units = FrozenUnits(
            unit_draws=PROBE_DRAWS, batch=teacher.batch, members=self._spec.info.members,
            gpu_s=float(self._plan.header["gpu_s_per_draw"]), usd=float(self._plan.header["usd_per_draw"]), n_bytes=0.0,
            capture=tuple(teacher.capture),
        )  # fmt: skip
        first = unit_bounds(self._plan, rules.unit_draws or self._plan.n_draws)[0][1]
        n_probed = min(max(2, -(-PROBE_TRIES // teacher.batch)) * teacher.batch, first)
        answers = self._probe(self._pending(units).task(task_rows(self._plan, 0, n_probed), 0))
        good = [a for a in answers if a.members is not None]
        if not good:
            why = answers[0]
            raise DistdataError(
                f"teacher {self._spec.info.id}: the first {len(answers)} draws all failed; the first one: "
                f"{why.failure}: {why.reason}. Nothing was committed; fix the teacher and run "
                "`distdata generate` again (after `distdata plan`, if the fix gives the teacher another content hash)."
            )
        timed = [a for a in good if a.position >= teacher.batch] or good  # the first batch may have loaded the model
        gpu_s = sum(a.gpu_s for a in timed) / len(timed)
        n_bytes = sum(len(b) for a in good for _, b in a.members or ()) / len(good)
        unit_draws = rules.unit_draws or size_unit(
            gpu_s, n_bytes, unit_s=rules.unit_s, shard_bytes=rules.shard_mb * 1e6, n_draws=self._plan.n_draws,
            batch=teacher.batch,
        )  # fmt: skip
        frozen = FrozenUnits(
            unit_draws=max(unit_draws, n_probed), batch=teacher.batch,
            members=dict(units.members) or _infer_members(good), gpu_s=gpu_s,
            usd=sum(a.usd for a in timed) / len(timed), n_bytes=n_bytes, capture=units.capture,
        )  # fmt: skip
        freeze_units(self._project, self._plan.plan_id, frozen)
        return frozen

    def _probe(self, task: UnitTask) -> list[Answer]:
        if self._engine == "ray":
            from .ray_engine import probe_on_ray

            return probe_on_ray(task, self._spec)
        return self._worker.probe(task)

    @property
    def _worker(self) -> Worker:
        if not hasattr(self, "_made"):
            self._made = Worker(self._spec)
        return self._made

    def _clean(self) -> None:
        """Remove what crashed runs left: half-built files, shards and spools that no manifest needs."""
        storage, plan_id = self._project.storage, self._plan.plan_id
        storage.clean_temporaries(plan_id)
        for path in (self._project.plans_dir / plan_id).glob(f"{TMP_PREFIX}*"):
            path.unlink(missing_ok=True)
        names = [f.name for f in storage.list(plan_id)]
        manifests = {n for n in names if n.endswith(".parquet")}
        for name in names:
            match = _SHARD.search(name)
            if match and manifest_name(plan_id, int(match[1]), int(match[2] or 0)) not in manifests:
                self._remove_unless_locked(unit_stem(int(match[1]), int(match[2] or 0)), name)
        for path in self._project.spool_dir.glob(f"{plan_id}-unit-*"):
            if f"{plan_id}/{path.stem.removeprefix(f'{plan_id}-')}.parquet" in manifests:
                self._remove_unless_locked(path.stem.removeprefix(f"{plan_id}-"))
        remove_replaced(self._project)

    def _remove_unless_locked(self, stem: str, shard: str | None = None) -> None:
        """Remove a unit's shard, or what its spool holds, unless an orphaned worker is still at that unit."""
        spool_dir, plan_id = self._project.spool_dir, self._plan.plan_id
        lock = spool_dir / f"{plan_id}-{stem}.lock"
        try:
            with exclusive_lock(lock, "busy"):
                if shard is not None:
                    self._project.storage.remove(shard)
                else:
                    (spool_dir / f"{plan_id}-{stem}.spool").unlink(missing_ok=True)
        except BusyError:
            return
        lock.unlink(missing_ok=True)

    def _make(self, pending: Pending, units: FrozenUnits) -> None:
        reporter, result = self._reporter, self._result
        result.damaged = list(pending.damaged)
        reporter.begin(
            plan_id=self._plan.plan_id, total=self._plan.n_draws, done=self._plan.n_draws - pending.n_draws,
            engine=self._engine, workers=result.workers,
            usd_expected=pending.n_draws * units.usd,
        )  # fmt: skip
        n_seen = 0
        try:
            for summary in self._summaries(pending):
                n_seen += 1
                self._take(summary)
                self._registrar.flush_now_and_then()
        finally:
            reporter.end()
            result.unregistered = self._registrar.flush(REGISTER_AT_END_S)
        if n_seen < pending.n_tasks:
            raise DistdataError(
                f"plan {self._plan.plan_id}: {pending.n_tasks - n_seen} of {pending.n_tasks} units killed their "
                "worker twice and were given up for now; the others are committed. Look at the teacher's memory "
                "use, and run `distdata generate` again."
            )

    def _summaries(self, pending: Pending) -> Iterator[UnitSummary]:
        if self._engine == "ray":
            from .ray_engine import run_on_ray

            for summary in run_on_ray(pending.tasks, self._spec, self.n_workers):
                self._reporter.advance(summary.n_ok + summary.n_failed, summary.n_failed, summary.usd)
                yield summary
        else:
            for task in pending.tasks:
                yield self._worker.run(task, self._reporter.advance)

    def _take(self, summary: UnitSummary) -> None:
        r = self._result
        r.units += 1
        r.asked += summary.n_ok + summary.n_failed
        r.failed += summary.n_failed
        r.usd += summary.usd
        r.in_doubt_usd += summary.in_doubt_usd
        self._registrar.add(summary.manifest)
        self._failed_in_a_row = 0 if summary.n_ok else self._failed_in_a_row + summary.n_failed
        if self._failed_in_a_row >= min(STOP_AFTER_FAILED, self._plan.n_draws) and summary.attempt == 0:
            self._registrar.flush(REGISTER_AT_END_S)
            raise DistdataError(
                f"plan {summary.plan_id}: the last {self._failed_in_a_row} draws all failed, so the run was stopped "
                f"before it costs more. {_reasons(self._project, summary)} Fix the teacher, run "
                "`distdata generate` to go on, and `distdata generate --retry-failed` for these."
            )


def _reasons(project: Project, summary: UnitSummary) -> str:
    try:
        with store.read(project.catalog_path) as con:
            row = store.first(
                con.execute(
                    """SELECT failure, reason, count(*) FROM attempts JOIN plans USING (plan_no)
                WHERE plan_id = ? AND unit = ? GROUP BY ALL ORDER BY 3 DESC LIMIT 1""",
                    [summary.plan_id, summary.unit],
                )
            )
    except BusyError:
        row = None
    return f"Most often: {row[0]}: {row[1]}." if row else ""


def _infer_members(good: Sequence[Answer]) -> dict[str, MemberSpec]:
    """Take what the probed draws have in common as what every draw must look like."""
    import numpy as np

    from ..catalogs.codec import decode_member

    seen: dict[str, list[np.ndarray]] = {}
    for answer in good:
        for name, data in answer.members or ():
            if name.endswith(".npy"):
                array = decode_member(name, data)
                assert isinstance(array, np.ndarray), "an .npy member decodes to an array"
                seen.setdefault(name, []).append(array)
    specs = {}
    for name, arrays in seen.items():
        first = arrays[0]
        if len(arrays) == len(good) and len({(a.dtype, a.ndim) for a in arrays}) == 1:
            same = [len({a.shape[i] for a in arrays}) == 1 for i in range(first.ndim)]
            shape = tuple(n if fixed else None for n, fixed in zip(first.shape, same, strict=True))
            specs[name] = MemberSpec(dtype=first.dtype.name, shape=shape)
    return specs


def _where_it_stands(project: Project, result: RunResult) -> None:
    """Fill in what the catalog says of the plan now; a busy catalog leaves the run's own counts."""
    result.generated = result.asked - result.failed
    try:
        with store.read(project.catalog_path) as con:
            row = store.first(
                con.execute(
                    "SELECT coalesce(sum(n_ok), 0) FROM units JOIN plans USING (plan_no) WHERE plan_id = ?",
                    [result.plan_id],
                )
            )
            found = con.execute(
                """SELECT failure, reason, count(*) FROM attempts a JOIN plans p USING (plan_no)
                ANTI JOIN samples s ON s.seed_id = a.seed_id AND s.k = a.k AND s.plan_no = a.plan_no
                WHERE plan_id = ? GROUP BY ALL ORDER BY 3 DESC LIMIT 5""",
                [result.plan_id],
            ).fetchall()
    except BusyError:
        return
    result.generated = int(row[0]) if row else 0
    result.failures = [(f, r, n) for f, r, n in found]
