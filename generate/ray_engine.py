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
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
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


def actor_class(spec: WorkerSpec) -> type[Any]:
    """Return the class of a Ray worker; the spec is part of it, so that an actor can always be started again.

    (Constructor arguments would lie in the object store, which may be gone when an actor restarts.) A batch
    is a table of pickled unit tasks; the answer holds their summaries, or the user's error, as JSON.
    """

    class UnitActor:
        def __init__(self) -> None:
            self._worker = Worker(spec)

        def __call__(self, batch: pa.Table) -> pa.Table:
            out = []
            for blob in batch["task"]:
                try:
                    out.append(json.dumps({"done": asdict(self._worker.run(pickle.loads(blob.as_py())))}))
                except DistdataError as e:
                    out.append(json.dumps({"error": str(e)}))
                except Exception as e:  # Ray would drop it with the block; the driver must hear what it was
                    trace = "".join(traceback.format_exception(e))
                    out.append(json.dumps({"error": f"a worker failed with {type(e).__name__}: {e}\n{trace}"}))
            return pa.table({"summary": out})

    return UnitActor


@contextmanager
def ray_session(address: str | None, n_workers: int, n_gpus: float, log: Path) -> Iterator[None]:
    """Connect to the cluster at `address`, or start a local Ray and stop it afterwards.

    What Ray's native code prints meanwhile goes to `log`: it writes past Python to descriptor 2, notes on its
    own restarts that nobody who generates data can use.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
    with _native_stderr_to(log):
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


@contextmanager
def _native_stderr_to(log: Path) -> Iterator[None]:
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr.flush()
    kept = os.dup(2)
    with open(log, "ab") as f:
        os.dup2(f.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def run_on_ray(tasks: Iterable[UnitTask], spec: WorkerSpec, n_workers: int) -> Iterator[UnitSummary]:
    """Yield the summary of each unit as it is committed, in any order. Needs a `ray_session`.

    Raises:
        DistdataError: what a worker met that the user can solve; units committed before stay committed.
    """
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # a poison unit is dropped, not the run
    context.execution_no_progress_timeout_s = -1  # one long unit is no stall; micro-batches have deadlines
    teacher = spec.config.teacher
    iterator = iter(tasks)
    while wave := list(islice(iterator, max(n_workers * WAVE_UNITS_PER_WORKER, 1))):
        tables = [pa.table({"task": pa.array([pickle.dumps(t)], pa.large_binary())}) for t in wave]
        with warnings.catch_warnings():
            # Ray Data retries a unit for ever by default, also one that kills its worker; before 2.64 the
            # only way to say otherwise is this keyword, deprecated without a successor
            warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
            results = ray.data.from_arrow(tables).map_batches(
                actor_class(spec),
                batch_size=1,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=min(n_workers, len(wave))),
                num_cpus=teacher.threads,
                num_gpus=teacher.gpus or None,
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

    def ask() -> list[Answer] | str:
        try:
            return Worker(spec).probe(task)
        except DistdataError as e:
            return str(e)

    teacher = spec.config.teacher
    remote = ray.remote(num_cpus=teacher.threads, num_gpus=teacher.gpus or None, max_retries=1)(ask)
    said = ray.get(remote.remote())
    if isinstance(said, str):
        raise DistdataError(said)
    answers: list[Answer] = said
    return answers
