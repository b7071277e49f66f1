"""Run units on Ray: a Ray Data actor pool, fed in waves, whose workers commit by themselves.

The only module here that imports ray. Only unit tasks and summaries pass through the driver. An actor that
dies is started again and its unit retried once; a unit that kills its worker twice is dropped by Ray,
stays without a manifest, and is reported by the caller.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from typing import Any

import pyarrow as pa

from ..catalogs.errors import DistdataError
from ..catalogs.manifests import UnitSummary
from .spool import Answer
from .tasks import UnitTask
from .worker import Worker, WorkerSpec

WAVE_UNITS_PER_WORKER = 100
"""Units handed over at once: enough that loading the teacher again for the next wave does not matter, few
enough that the first result comes at once (20,000 together took 55 s before the first)."""


class UnitActor:
    """One Ray worker: a batch is a table with one pickled unit task."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._worker = Worker(spec)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Make the units of the batch and return their summaries, or the user's error, as JSON."""
        out = []
        for blob in batch["task"]:
            try:
                out.append(json.dumps({"done": asdict(self._worker.run(pickle.loads(blob.as_py())))}))
            except DistdataError as e:
                out.append(json.dumps({"error": str(e)}))
        return pa.table({"summary": out})


@contextmanager
def ray_session(address: str | None, n_workers: int, n_gpus: float) -> Iterator[None]:
    """Connect to the cluster at `address`, or start a local Ray and stop it afterwards."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    import ray

    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            # one more than the workers: Ray Data's own operators must not wait for a worker's CPU
            cpus = max(n_workers + 1, os.cpu_count() or 1)
            gpus = {"num_gpus": n_gpus * n_workers} if n_gpus else {}
            ray.init(num_cpus=cpus, include_dashboard=False, **gpus, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as e:
        raise DistdataError(f"ray: can't connect to {address or 'a local instance'}: {e}") from None
    try:
        yield
    finally:
        ray.shutdown()


def run_on_ray(tasks: Iterable[UnitTask], spec: WorkerSpec, n_workers: int) -> Iterator[UnitSummary]:
    """Yield the summary of each unit as it is committed, in any order. Needs a `ray_session`.

    Raises:
        DistdataError: what a worker met that the user can solve; units committed before stay committed.
    """
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # a poison unit is dropped, not the run
    context.execution_options.verbose_progress = False
    for name in ("execution_no_progress_timeout_s", "wait_for_min_actors_s"):
        if hasattr(context, name) and name.startswith("execution"):
            setattr(context, name, 0)
    teacher = spec.config.teacher
    iterator = iter(tasks)
    while wave := list(islice(iterator, max(n_workers * WAVE_UNITS_PER_WORKER, 1))):
        tables = [pa.table({"task": pa.array([pickle.dumps(t)], pa.large_binary())}) for t in wave]
        results = ray.data.from_arrow(tables).map_batches(
            UnitActor,
            fn_constructor_args=(spec,),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=min(n_workers, len(wave))),
            num_cpus=teacher.threads,
            num_gpus=teacher.gpus or None,
            max_restarts=-1,
            max_task_retries=1,
        )
        for row in results.iter_rows():
            said = json.loads(row["summary"])
            if "error" in said:
                raise DistdataError(said["error"])
            yield UnitSummary(**said["done"])


def probe_on_ray(task: UnitTask, spec: WorkerSpec) -> list[Answer]:
    """Ask a unit's first micro-batch on a worker of the cluster, where the teacher can run."""
    import ray

    @ray.remote(num_cpus=spec.config.teacher.threads, num_gpus=spec.config.teacher.gpus or None, max_retries=1)
    def ask() -> list[Answer] | str:
        try:
            return Worker(spec).probe(task)
        except DistdataError as e:
            return str(e)

    said = ray.get(ask.remote())
    if isinstance(said, str):
        raise DistdataError(said)
    answers: list[Answer] = said
    return answers
