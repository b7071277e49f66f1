"""What a process that makes units holds: the teacher, the storage and the rules. Both engines use it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from ..catalogs.config import Config
from ..catalogs.errors import DistdataError
from ..catalogs.manifests import UnitSummary
from ..catalogs.protocol import Teacher, TeacherInfo
from ..catalogs.storage import Storage
from .ask import Asker
from .run_unit import Progress, RunRules, probe, run_unit
from .spool import Answer
from .tasks import UnitTask
from .teachers.registry import make_teacher, teacher_info


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """All that a worker process is told: where the project is, its configuration, the teacher it must meet."""

    root: Path
    config: Config
    info: TeacherInfo
    rules: RunRules


class Worker:
    """Makes units one after another with one teacher, which it loads on first use."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        limit_threads(spec.config.teacher.threads)
        self._spool_dir = spec.root / "spool"
        self._storage = Storage(spec.config.project.storage, spec.root, self._spool_dir / "build")
        self._asker = Asker(self._make, spec.config.teacher.timeout_s)

    def run(self, task: UnitTask, progress: Progress = lambda *_: None) -> UnitSummary:
        """Make one unit (see `run_unit.run_unit`)."""
        return run_unit(
            task, self._asker, self._spec.info, self._storage, self._spool_dir, self._spec.rules, progress
        )  # fmt: skip

    def probe(self, task: UnitTask) -> list[Answer]:
        """Ask the first micro-batch of a unit (see `run_unit.probe`)."""
        return probe(task, self._asker, self._spec.info, self._spool_dir)

    def _make(self) -> Teacher:
        teacher = make_teacher(self._spec.config.teacher, self._spec.root)
        here = teacher_info(teacher, self._spec.config.teacher)
        if here.content_hash != self._spec.info.content_hash:
            raise DistdataError(
                f"teacher {here.id}: this worker has version {here.content_hash}, the plan was made for "
                f"{self._spec.info.content_hash}. Install the same teacher on every machine."
            )
        return teacher


def limit_threads(n: int) -> None:
    """Fix how many threads torch may use, and what is not loaded yet: bits and speed depend on it.

    A numpy that is loaded already keeps its own threads; Ray workers and their children obey in full.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(n)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(n)
