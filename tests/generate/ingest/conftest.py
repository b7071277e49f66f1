"""A small world to ingest into: two axes, seeds in all splits, and draws that were bought of the tiny teacher."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from distdata.catalogs import store
from distdata.catalogs.intake import import_seeds, open_project
from distdata.catalogs.plans import save_plan
from distdata.catalogs.project import Project
from distdata.catalogs.register import catch_up
from distdata.catalogs.samples import read_stored
from distdata.generate.run import generate

HASH = "00000000000000aa"
"""Content hash of the tiny teacher."""

CONFIG = """
[project]
name = "small"
salt = "s1"
[axes.weather]
values = ["clear", "rain"]
[axes.light]
values = ["day", "night"]
[scenarios.cross]
layer = "core"
[scenarios.cut_in]
layer = "long_tail"
[[infeasible]]
when = { weather = "clear", scenario = "cut_in" }
reason = "needs a wet road"
[bands]
default = 0.1
[plan]
k = 2
[teacher]
kind = "python"
batch = 2
gpu_s_per_draw = 900.0
[teacher.options]
class = "tiny_teacher:Tiny"
joint = false
[generate]
unit_draws = 4
"""
N_SEEDS = 24


class World:
    """Builds small projects and asks their catalogs."""

    HASH = HASH

    @staticmethod
    def answer(i: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return what the tiny teacher's array member looks like, different for every i."""
        return np.arange(5, dtype=np.float32) + np.float32(i)

    def build(self, root: Path) -> Project:
        """Make a project with seeds ``s00`` to ``s23``, of which s21 is held out for gates, s22 and s23 to confirm."""
        root.mkdir(parents=True)
        (root / "distdata.toml").write_text(CONFIG)
        shutil.copy(Path(__file__).parent.parent / "tiny_teacher.py", root / "tiny_teacher.py")
        project = open_project(root)
        seeds = pl.DataFrame(
            {
                "seed_id": [f"s{i:02d}" for i in range(N_SEEDS)],
                "weather": ["clear", "rain"] * (N_SEEDS // 2),
                "light": ["day", "day", "night", "night"] * (N_SEEDS // 4),
                "scenario": "cross",
                "group": [f"drive-{i:02d}" for i in range(N_SEEDS)],
                "params": [json.dumps({"v": i}) for i in range(N_SEEDS)],
            }
        )
        import_seeds(project, seeds, "seeds", "seeds", self._splits)
        return project

    @staticmethod
    def copy(project: Project, root: Path) -> Project:
        """Copy a project as it is on disk."""
        shutil.copytree(project.root, root)
        return Project.open(root)

    @staticmethod
    def _splits(seeds: pl.DataFrame, _used: pl.DataFrame) -> pl.DataFrame:
        held_out = {"drive-21": "gate", "drive-22": "confirm", "drive-23": "confirm"}
        groups = seeds.select("grp").unique(maintain_order=True)
        return groups.with_columns(split=pl.col("grp").replace_strict(held_out, default="train"))

    def buy(self, project: Project, draws: Sequence[tuple[str, int]], *, make: bool = True) -> str:
        """Buy these (seed, k) of the teacher in a plan of their own; without `make` they are planned only."""
        with store.read(project.catalog_path) as con:
            cells = dict(con.execute("SELECT seed_id, cell_id FROM seeds").fetchall())
            n_plans = con.execute("SELECT count(*) FROM plans").fetchall()[0][0]
            ids = [r[0] for r in con.execute("SELECT cell_id FROM cells ORDER BY 1").fetchall()]
        plan_id = f"plan{n_plans}"
        header = {
            "plan_id": plan_id, "purpose": "train", "policy": "gate", "budget": "-", "created": "2026-01-01",
            "teacher": "tiny", "teacher_version": "1", "teacher_hash": HASH, "usd_per_gpuh": 1.0, "split": "train",
            "gpu_s_per_draw": 900.0, "usd_per_draw": 0.25, "n_draws": len(draws), "usd": 0.0, "gpu_s": 0.0,
            "supersedes": [],
        }  # fmt: skip
        numbers = ("target", "credit", "fresh", "n_seeds_frame", "n_seeds_taken", "weight", "floor", "ceiling", "usd")
        frame = pl.DataFrame({"cell_id": ids}).with_columns(*(pl.lit(0).alias(n) for n in numbers), mark=pl.lit(""))
        rows = pl.DataFrame(
            {
                "seed_id": [s for s, _ in draws], "cell_id": [cells[s] for s, _ in draws], "k": [k for _, k in draws],
                "n_k": 2, "pi": 1.0, "weight": 1.0, "decision_point": True,
            }
        )  # fmt: skip
        save_plan(project, header, frame, rows)
        if make:
            generate(project, _Silent(), engine="inprocess", plan_id=plan_id)
        return plan_id

    def sql(self, project: Project, query: str) -> list[tuple[Any, ...]]:
        """Ask the catalog, caught up."""
        catch_up(project)
        with store.read(project.catalog_path) as con:
            return con.sql(query).fetchall()

    def members(self, project: Project, sample_id: str) -> dict[str, bytes]:
        """Read a stored sample back."""
        query = f"SELECT shard, \"offset\", n_bytes FROM samples_wide WHERE sample_id = '{sample_id}'"
        return read_stored(project.storage, *self.sql(project, query)[0])

    def tables(self, project: Project) -> dict[str, list[str]]:
        """Return every table of the catalog, its rows sorted."""
        catch_up(project)
        with store.read(project.catalog_path) as con:
            names = [r[0] for r in con.execute("SELECT table_name FROM duckdb_tables() ORDER BY 1").fetchall()]
            return {n: sorted(map(repr, con.execute(f'SELECT * FROM "{n}"').fetchall())) for n in names}

    def assert_rebuilds(self, project: Project) -> None:
        """Assert that a catalog made anew from the files has equal tables."""
        again = dataclasses.replace(project, catalog_name="again.duckdb")
        catch_up(again)
        assert self.tables(again) == self.tables(project)
        again.catalog_path.unlink()


class _Silent:
    def begin(self, **_: Any) -> None: ...

    def advance(self, n_draws: int, n_failed: int, usd: float) -> None: ...

    def note(self, text: str) -> None: ...

    def end(self) -> None: ...


@pytest.fixture(scope="session")
def world() -> World:
    """Hand out the builder of small projects."""
    return World()


@pytest.fixture(scope="session")
def seeded(world: World, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Build once the project that tests get copies of."""
    return world.build(tmp_path_factory.mktemp("seeded") / "project")


@pytest.fixture(scope="session")
def bought_once(world: World, seeded: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Buy once six draws in two units of a copy."""
    project = world.copy(seeded, tmp_path_factory.mktemp("bought") / "project")
    world.buy(project, [("s00", 0), ("s00", 1), ("s02", 0), ("s02", 1), ("s04", 0), ("s04", 1)])
    return project


@pytest.fixture
def project(world: World, seeded: Project, tmp_path: Path) -> Project:
    """Hand out a fresh small project with seeds and no draws."""
    return world.copy(seeded, tmp_path / "project")


@pytest.fixture
def bought(world: World, bought_once: Project, tmp_path: Path) -> Project:
    """Hand out a fresh small project with six draws in two units."""
    return world.copy(bought_once, tmp_path / "project")
