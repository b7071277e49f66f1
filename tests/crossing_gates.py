"""Draws of two slices of the crossing world, their metric columns, and a gate: what tests of planted defects share."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import polars as pl

from distdata.catalogs.hashing import draw_rng_seed
from distdata.catalogs.protocol import Request
from distdata.curate import pairs
from distdata.curate.metric_table import FACTS, Metric, columns_schema
from distdata.curate.metrics.seed_view import SeedView
from distdata.generate.teachers.crossing.law import Mixture, mixture
from distdata.generate.teachers.crossing.seeds import seeds
from distdata.generate.teachers.crossing.world import AXES, DT_S, WORLD
from distdata.stratify.verdict import GateResult, GateSettings, judge

HEALTHY, TAIL = "clear,day,residential", "rain,night,residential"
BANDS = {HEALTHY: 0.06, TAIL: 0.04}
"""The driving preset's, by their tightest cells."""
PER_TYPE, K = 20, 8
"""A gate's seeds of each of the seven scenario types, as 20 held-out drives give; and draws of a decision point."""
METRICS = ("outcome", "recall", "ghost", "spread", "distance", "drift", "control", "planner")


# --- draws -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Requests with the noise that a model starts from, and what the world knows of each."""

    requests: list[Request]
    laws: list[Mixture]
    noise: Any

    def of(self, name: str) -> np.ndarray:
        """Tell which requests belong to a slice."""
        return np.array([slice_of(r) == name for r in self.requests])

    def only(self, some: np.ndarray) -> Asked:
        """Return those of the requests, bool [n]."""
        at = np.flatnonzero(some)
        return Asked(
            requests=[self.requests[i] for i in at], laws=[self.laws[i] for i in at], noise=self.noise[at]
        )  # fmt: skip


@cache
def pipeline():
    from distdata.generate.teachers.crossing.pipeline import CrossingPipeline

    return CrossingPipeline.bundled()


def slice_of(request: Request) -> str:
    return ",".join(request.axes[a] for a in AXES)


def ask(salt: str, per_type: int) -> Asked:
    """Return the requests of `per_type` seeds of every cell of both slices, with the noise of this salt's project."""
    taken, requests = Counter(), []
    for row in seeds(276 * per_type, salt).to_pylist():
        axes = {a: row[a] for a in AXES}
        cell = (*axes.values(), row["scenario"])
        if ",".join(axes.values()) not in BANDS or taken[cell] >= per_type:
            continue
        taken[cell] += 1
        for k in range(K if row["decision_point"] else 1):
            requests.append(
                Request(
                    seed_id=row["seed_id"], k=k, rng_seed=draw_rng_seed(salt, row["seed_id"], k), axes=axes,
                    scenario=row["scenario"], params=json.loads(row["params"]),
                )
            )  # fmt: skip
    laws = {r.seed_id: mixture(r.axes, r.scenario, r.params) for r in requests if r.k == 0}
    return Asked(
        requests=requests, laws=[laws[r.seed_id] for r in requests], noise=pipeline().distdata_noise(requests)
    )  # fmt: skip


def chain(asked: Asked, noise, *, steps: int = 32, pipe=None) -> np.ndarray:
    """Return the latents at which a chain ends, [B, 3, 2, 24]."""
    import torch

    pipe = pipe or pipeline()
    parts = [
        pipe(
            **pipe.distdata_inputs(asked.requests[at : at + 1000]), latents=torch.from_numpy(noise[at : at + 1000]),
            num_inference_steps=steps,
        ).latents.numpy()
        for at in range(0, len(noise), 1000)
    ]  # fmt: skip
    return np.concatenate(parts)


# --- records, columns, pairs ------------------------------------------------------------------------------------------


def outcomes_of(asked: Asked, latents: np.ndarray) -> np.ndarray:
    return np.array(finished(asked, latents).outcomes)


def finished(asked: Asked, latents: np.ndarray):
    import torch

    pipe = pipeline()
    return pipe.finish(pipe.distdata_inputs(asked.requests)["conditions"], torch.from_numpy(latents))


def records(asked: Asked, latents: np.ndarray) -> tuple[list[dict[str, Any]], list[str]]:
    """Return each draw's record without its sensors, and its label."""
    from distdata.generate.teachers.crossing.law import agents_of
    from distdata.generate.teachers.crossing.rollout import rates

    out = finished(asked, latents)
    velocity, _ = rates(out.trajectories, latents, asked.requests, WORLD)
    heading = np.arctan2(velocity[:, 0, 1], np.maximum(velocity[:, 0, 0], 0.5))
    found = []
    for i, r in enumerate(asked.requests):
        ego, zero = out.trajectories[i, 0], np.zeros(24)
        pose = np.stack([ego[0], ego[1], zero, zero, zero, np.sin(heading[i] / 2), np.cos(heading[i] / 2)], 1)
        state = np.concatenate([out.trajectories[i], velocity[i]], 1).transpose(2, 0, 1)
        found.append(
            {
                "latent.npy": latents[i].astype(np.float32), "pose.npy": pose.astype(np.float32),
                "agents.npy": state.astype(np.float32), "calib.json": {"dt_s": DT_S},
                "meta.json": {"agents": ["ego", *agents_of(r.scenario)]},
            }
        )  # fmt: skip
    return found, out.outcomes


def measured(asked: Asked, latents: np.ndarray, metrics: Sequence[Metric], make=records) -> pl.DataFrame:
    """Return the metric columns of draws, as `curate.measure` does from shards."""
    members, outcomes = make(asked, latents)
    rows = []
    for r, record, outcome in zip(asked.requests, members, outcomes, strict=True):
        view = SeedView(
            seed_id=r.seed_id, k=r.k, axes=r.axes, scenario=r.scenario, params=r.params, outcome=outcome,
            control_axis="ego_accel", control_value=r.params["ego_accel"],
        )  # fmt: skip
        row = {
            "sample_id": f"{r.seed_id}-{r.k}", "seed_id": r.seed_id, "k": r.k, "slice": slice_of(r),
            "cell": f"{slice_of(r)}/{r.scenario}", "scenario": r.scenario, "outcome": outcome,
            "control_axis": view.control_axis, "control_value": view.control_value,
        }  # fmt: skip
        for metric in metrics:
            row |= metric.step(record, view)
        rows.append(row)
    return pl.DataFrame(rows, schema={**FACTS, **columns_schema(metrics)})


def paired(teacher: pl.DataFrame, student: pl.DataFrame, metrics: Sequence[Metric]) -> pl.DataFrame:
    reference = teacher
    for metric in metrics:
        reference, teacher, student = pairs._second_step(metric, reference, teacher, student)
    return pairs._pair(teacher, student).frame


# --- verdicts -------------------------------------------------------------------------------------------------------


def gate(frame: pl.DataFrame) -> GateResult:
    """Judge paired columns at the bundled bands, as a first candidate."""
    cells = pl.DataFrame({"slice": list(BANDS), "band": list(BANDS.values())})
    metrics = ("coherence",) if "teacher_coherence_m" in frame.columns else METRICS
    return judge(frame, cells, GateSettings(metrics=metrics), candidate=1)


def failed(result: GateResult) -> set[tuple[str, str]]:
    """Return slice and metric of every row that fails."""
    return set(result.rows.filter(pl.col("verdict") == "fail").select("slice", "metric").iter_rows())
