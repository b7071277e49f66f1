"""Small corpora of real shards, and a recipe whose best student is known in closed form."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from distdata.catalogs.codec import encode_members
from distdata.catalogs.shards import write_shard
from distdata.catalogs.storage import Storage
from distdata.train_min.job import Recipe

HEADER = {
    "snapshot_id": "00112233445566aa",
    "teacher": {"id": "world", "version": "1", "content_hash": "feedfeedfeedfeed", "options": {}},
}
LINEAR = {
    "width": 8, "rowwise": False, "use_member_weights": False, "noise": 0.0, "dropout": 0.0, "poison_row": -1,
    "steps": 20, "batch": 8, "lr": 0.05, "ema": 0.0, "log_every": 5, "clip": 1e9, "int8": False,
}  # fmt: skip


@pytest.fixture
def linear() -> Recipe:
    """The linear recipe of linear_recipe.py, under a name with a dot, as a recipe from outside has."""
    path = Path(__file__).parent / "linear_recipe.py"
    spec = importlib.util.spec_from_file_location("recipes_of_tests.linear", path)
    assert spec is not None
    assert spec.loader is not None
    if spec.name not in sys.modules:
        sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return Recipe(
        name="linear", family="regressor", build=f"{spec.name}:build", defaults=LINEAR,
        members=("latent.npy", "cond.npy", "meta.json"), source="least squares",
    )  # fmt: skip


Corpus = Callable[..., tuple[Storage, pl.DataFrame]]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Return a function that writes samples (members as values) to shards and returns storage and snapshot frame."""

    def write(
        samples: Sequence[Mapping[str, Any]], *, per_shard: int = 5, location: str = "data", **columns: Sequence[Any]
    ) -> tuple[Storage, pl.DataFrame]:
        storage = Storage(location, tmp_path, tmp_path / "scratch")
        rows: list[dict[str, Any]] = []
        for at in range(0, len(samples), per_shard):
            name = f"shards/{at:04d}.tar"
            part = [(f"s{i:04d}", encode_members(samples[i])) for i in range(at, min(at + per_shard, len(samples)))]
            path = storage.build_path(name)
            shard = write_shard(path, part)
            with open(path, "rb+") as f:
                storage.commit(f, path, name, "test")
            rows += [
                {"sample_id": e.key, "shard": name, "offset": e.offset, "n_bytes": e.n_bytes, "sha256": e.sha256}
                for e in shard.entries
            ]
        n = len(samples)
        defaults: dict[str, Sequence[Any]] = {
            "grp": [f"g{i}" for i in range(n)], "source": ["planned"] * n, "kind": ["rollout"] * n,
            "weight": [1.0] * n, "fleet_weight": [1.0] * n,
        }  # fmt: skip
        return storage, pl.DataFrame(rows).with_columns(**{k: pl.Series(v) for k, v in {**defaults, **columns}.items()})

    return write


@pytest.fixture
def regression() -> Callable[..., list[dict[str, Any]]]:
    """Return a function that makes samples of a noisy linear law from a seed."""

    def make(n: int, seed: int = 1, n_conditions: int = 3, n_latent: int = 2) -> list[dict[str, Any]]:
        rng = np.random.default_rng(seed)
        law = rng.standard_normal((n_conditions, n_latent))
        x = rng.standard_normal((n, n_conditions))
        y = x @ law + rng.standard_normal((n, n_latent))
        return [
            {
                "meta.json": {"i": i, "weight": float(1 + i % 4)},
                "cond.npy": x[i].astype(np.float32),
                "latent.npy": y[i].astype(np.float32),
                "picture.npy": rng.integers(0, 255, (20 + i % 3, 16), np.uint8),
            }
            for i in range(n)
        ]

    return make
