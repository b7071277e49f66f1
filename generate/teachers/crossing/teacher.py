"""The `crossing` teacher: the bundled world, run through the diffusers teacher like any user's pipeline."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....catalogs.errors import DistdataError
from ....catalogs.hashing import content_hash
from ....catalogs.protocol import Draw, Failure, Request, TeacherInfo
from ..diffusers import DiffusersTeacher, library_versions
from .rollout import MEMBERS
from .world import N_INFERENCE_STEPS, OUTCOMES, SCHEDULER_CONFIG, WORLD

CODE_VERSION = 2
"""Raise it when a change of code (not of constants) changes what a request gets."""
PIPELINE_CLASS = "distdata.generate.teachers.crossing.pipeline:CrossingPipeline"


class CrossingTeacher:
    """Sample the crossing world: rollouts of 2.4 s with camera, lidar, poses, actions and agents.

    Options: `steps`, the Heun steps of the chain (another number is another teacher); `path`, a folder
    saved from a `CrossingPipeline` (a changed world, for one) instead of the bundled one; `usd_per_gpuh`.
    """

    def __init__(self, *, steps: int = N_INFERENCE_STEPS, path: str | None = None, usd_per_gpuh: float = 2.0) -> None:
        if isinstance(steps, bool) or not isinstance(steps, int) or not 2 <= steps <= 1000:
            raise DistdataError(f"crossing: steps is {steps!r}; it must be a whole number from 2 to 1000.")
        self._steps, self._usd_per_gpuh = steps, usd_per_gpuh
        self._saved = self._through(path) if path is not None else None
        self._bundled: DiffusersTeacher | None = None

    def describe(self) -> TeacherInfo:
        """Say who this is, from the constants alone: no torch is imported."""
        if self._saved is not None:
            return self._saved.describe()
        decides = {
            "world": WORLD.to_dict(),
            "scheduler": dict(SCHEDULER_CONFIG),
            "steps": self._steps,
            "code": CODE_VERSION,
            "versions": library_versions(),
        }
        return TeacherInfo(
            id="crossing",
            version="1",
            content_hash=content_hash(decides),
            kind="rollout",
            usd_per_gpuh=self._usd_per_gpuh,
            reproducible="exact",
            joint_batches=True,
            members=MEMBERS,
            outcomes=OUTCOMES,
        )

    def load(self) -> Any:
        """Return the loaded pipeline."""
        return self._teacher().load()

    def sample(self, requests: Sequence[Request]) -> Iterable[Draw | Failure]:
        """Answer one micro-batch; a request of another world is a Failure that says what is wrong with it."""
        return self._teacher().sample(requests)

    def conditions(self, requests: Sequence[Request]) -> NDArray[np.float32]:
        """Return what a network is told of each request, float32 [B, C] (see `crossing.conditions`)."""
        return self._teacher().conditions(requests)

    def noise(self, requests: Sequence[Request]) -> NDArray[np.float32]:
        """Return the noise that each request's chain starts from, float32 [B, 3, 2, 24]."""
        return self._teacher().noise(requests)

    def decode(self, requests: Sequence[Request], latents: NDArray[np.float32]) -> Iterable[Draw | Failure]:
        """Turn finished latents, [B, 3, 2, 24], into draws with record and label as for its own."""
        return self._teacher().decode(requests, latents)

    def _teacher(self) -> DiffusersTeacher:
        if self._saved is not None:
            return self._saved
        if self._bundled is None:
            # the bundled pipeline takes a user's path: saved to a folder, loaded from it
            with tempfile.TemporaryDirectory(prefix="distdata-crossing-") as folder:
                save(folder)
                teacher = self._through(folder)
                teacher.load()
            self._bundled = teacher
        return self._bundled

    def _through(self, folder: str) -> DiffusersTeacher:
        return DiffusersTeacher(
            path=folder,
            pipeline_class=PIPELINE_CLASS,
            record_kind="rollout",
            steps=self._steps,
            members=MEMBERS,
            outcomes=OUTCOMES,
            usd_per_gpuh=self._usd_per_gpuh,
            id="crossing",
        )


def save(folder: str | Path) -> None:
    """Save the bundled pipeline as a folder that any diffusers user can load."""
    from .pipeline import CrossingPipeline

    CrossingPipeline.bundled().save_pretrained(folder)
