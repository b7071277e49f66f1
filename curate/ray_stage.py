"""Measure pieces on Ray: a Ray Data stage over shards, the same work as in one process.

The only module here that imports ray. A piece goes out as its rows and comes back as its columns; shards are read by
the workers.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from ..catalogs.errors import DistdataError
from ..catalogs.project import Project
from ..catalogs.storage import Storage
from .metric_table import Metric, find_metrics
from .pieces import Piece, measure_piece

WAVE_PIECES_PER_WORKER = 100
"""Pieces handed over at once; the first results then come soon, and few rows lie in memory."""


def measure_on_ray(
    project: Project, pieces: Iterable[Piece], metrics: Sequence[Metric], n_workers: int | None = None
) -> Iterator[tuple[int, pl.DataFrame]]:
    """Yield the number of each piece with its columns (see `pieces.measure_piece`), as they come.

    A Ray that runs already is used; else one is started on this machine and stopped at the end.

    Raises:
        DistdataError: as `measure_piece`; a worker died twice over the same piece.
    """
    n_workers = n_workers or os.cpu_count() or 1
    with _ray_session(n_workers, project.spool_dir / "ray.log"):
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.max_errored_blocks = -1  # what is missing at the end is reported below
        context.execution_no_progress_timeout_s = -1
        worker = _actor_class(project, [name for m in metrics for name in m.names])
        numbered = enumerate(pieces)
        while wave := list(islice(numbered, n_workers * WAVE_PIECES_PER_WORKER)):
            yield from _run_wave(wave, worker, n_workers)


def _run_wave(
    wave: Sequence[tuple[int, Piece]], worker: type[Any], n_workers: int
) -> Iterator[tuple[int, pl.DataFrame]]:
    import ray.data

    tables = [pa.table({"piece": pa.array([pickle.dumps(numbered)], pa.large_binary())}) for numbered in wave]
    with warnings.catch_warnings():
        # the only way before 2.64 to bound the retries of a piece that kills its worker; deprecated
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        results = ray.data.from_arrow(tables).map_batches(
            worker,
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=min(n_workers, len(wave))),
            num_cpus=1,
            max_task_retries=1,
        )
    left = dict(wave)
    for row in results.iter_rows():
        if row["error"]:
            raise DistdataError(row["error"])
        del left[row["number"]]
        yield row["number"], pl.read_ipc(io.BytesIO(row["columns"]))
    if left:
        piece = next(iter(left.values()))
        raise DistdataError(
            f"measuring on Ray: {len(left)} of {len(wave)} units were not measured; plan {piece.plan_id}, unit "
            f"{piece.unit} is the first. Their worker died twice (out of memory?). Units measured so far are kept; run "
            "the same command again."
        )


def _actor_class(project: Project, metric_names: Sequence[str]) -> type[Any]:
    """Return the class of a Ray worker; what it needs is part of it, so that an actor can always be started again."""
    location, root, scratch = project.config.project.storage, project.root, project.spool_dir / "build"
    names = tuple(metric_names)

    class MeasureActor:
        def __init__(self) -> None:
            self._storage = Storage(location, root, scratch)
            self._metrics = find_metrics(names)

        def __call__(self, batch: pa.Table) -> pa.Table:
            rows = [self._measured(*pickle.loads(blob.as_py())) for blob in batch["piece"]]
            types = [("number", pa.int64()), ("error", pa.string()), ("columns", pa.large_binary())]
            return pa.Table.from_pylist(rows, schema=pa.schema(types))

        def _measured(self, number: int, piece: Piece) -> dict[str, Any]:
            buffer, error = io.BytesIO(), ""
            try:
                measure_piece(piece, self._storage, self._metrics).write_ipc(buffer)
            except DistdataError as e:
                error = str(e)
            except Exception as e:  # Ray would drop it with the block; the driver must hear what it was
                trace = "".join(traceback.format_exception(e))
                error = f"a worker failed with {type(e).__name__}: {e}\n{trace}"
            return {"number": number, "error": error, "columns": buffer.getvalue()}

    return MeasureActor


@contextmanager
def _ray_session(n_workers: int, log: Path) -> Iterator[None]:
    """Use the Ray that runs, or start a local one and stop it afterwards; its native notes go to `log`."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    cpus = max(n_workers + 1, os.cpu_count() or 1)  # Ray Data's own operators must not wait for a worker's CPU
    with _native_stderr_to(log):
        try:
            ray.init(
                num_cpus=cpus, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False,
                configure_logging=True,
            )  # fmt: skip
        except (ConnectionError, RuntimeError, ValueError) as e:
            raise DistdataError(f"ray: can't start a local instance: {e}") from None
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _native_stderr_to(log: Path) -> Iterator[None]:
    """Send what native code writes past Python to descriptor 2 to the end of `log` meanwhile."""
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
