"""Small sets of the crossing world's draws: rendered ones from the teacher, bare latents from its closed-form law."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pytest

from distdata.catalogs.hashing import hash64
from distdata.catalogs.protocol import Draw, Request
from distdata.curate.metrics import density
from distdata.curate.metrics.seed_view import SeedView
from distdata.generate.teachers.crossing.law import Mixture, mixture
from distdata.generate.teachers.crossing.seeds import seeds
from distdata.generate.teachers.crossing.teacher import CrossingTeacher
from distdata.generate.teachers.crossing.world import AXES


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One rendered draw, with its seed's view and state."""

    seed: SeedView
    members: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clouds:
    """Latents of one cell, 20 seeds x 8: the teacher's, fresh ones of the same law, and each seed's average future."""

    teacher: pl.DataFrame
    fresh: pl.DataFrame
    averaged: pl.DataFrame


SCHEMA = {
    "seed_id": pl.String(), "k": pl.Int16(), "cell": pl.String(), "scenario": pl.String(), "outcome": pl.String(),
    "feature": pl.List(pl.Float32), "seed_state": pl.List(pl.Float64),
}  # fmt: skip


def view(row: Mapping[str, Any], outcome: str | None) -> SeedView:
    """Return what a metric is told of a draw of this seed."""
    return SeedView(
        seed_id=row["seed_id"],
        k=0,
        axes={a: row[a] for a in AXES},
        scenario=row["scenario"],
        params=json.loads(row["params"]),
        outcome=outcome,
        control_axis="ego_accel",
        control_value=row["control_value"],
    )


@pytest.fixture(scope="session")
def rollouts() -> list[Rollout]:
    """230 rendered draws, one a seed, from all over the cells, salt ``metrics``."""
    rows = seeds(2760, "metrics").to_pylist()[::12]
    views = [view(row, None) for row in rows]
    requests = [
        Request(
            seed_id=v.seed_id, k=0, rng_seed=hash64("metrics", v.seed_id) >> 1, axes=v.axes, scenario=v.scenario,
            params=v.params,
        )
        for v in views
    ]  # fmt: skip
    draws = {
        d.seed_id: d for at in range(0, len(requests), 64) for d in CrossingTeacher().sample(requests[at : at + 64])
    }
    found = []
    for row in rows:
        draw = draws[row["seed_id"]]
        assert isinstance(draw, Draw)
        found.append(Rollout(seed=view(row, draw.outcome), members=draw.members))
    return found


@pytest.fixture(scope="session")
def cells() -> dict[str, list[dict[str, Any]]]:
    """The first 20 open seeds (decision points) of every cell that has them, salt ``clouds``."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in seeds(8280, "clouds").to_pylist():
        if row["decision_point"]:
            found.setdefault("/".join((*(row[a] for a in AXES), row["scenario"])), []).append(row)
    return {cell: rows[:20] for cell, rows in found.items() if len(rows) >= 20}


@pytest.fixture(scope="session")
def clouds(cells: dict[str, list[dict[str, Any]]]) -> Callable[[str, int], Clouds]:
    """Give a cell's clouds by its name and a seed of randomness."""

    def make(cell: str, rng_seed: int) -> Clouds:
        rng = np.random.default_rng(rng_seed)
        rows: dict[str, list[dict[str, Any]]] = {"teacher": [], "fresh": [], "averaged": []}
        for row in cells[cell]:
            seed = view(row, None)
            law = mixture(seed.axes, seed.scenario, seed.params)
            base = {"seed_id": seed.seed_id, "cell": cell, "scenario": seed.scenario}
            base["seed_state"] = density.columns({}, seed)["seed_state"]
            for k in range(8):
                for name in ("teacher", "fresh"):
                    outcome, latent = one_future(law, rng)
                    rows[name].append({**base, "k": k, "outcome": outcome, "feature": latent})
                average = np.tensordot(law.probs, law.mean, 1).ravel()
                rows["averaged"].append({**base, "k": k, "outcome": None, "feature": average.tolist()})
        return Clouds(**{name: pl.DataFrame(found, schema=SCHEMA) for name, found in rows.items()})

    return make


def one_future(law: Mixture, rng: np.random.Generator) -> tuple[str, list[float]]:
    """Return one future's outcome and latent, laid flat, by the law itself."""
    j = rng.choice(len(law.probs), p=law.probs)
    return law.names[j], (law.mean[j] + law.std[j] * rng.standard_normal(law.mean[j].shape)).ravel().tolist()
