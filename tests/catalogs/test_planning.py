"""What a plan starts from: draws, verdicts, promises, credits from outside, and the plan in force."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from distdata.catalogs import store
from distdata.catalogs.config import parse_config
from distdata.catalogs.intake import import_seeds
from distdata.catalogs.planning import pilot_rows, planning_inputs
from distdata.catalogs.plans import save_plan
from distdata.catalogs.project import Project

TOML = """
[project]
name = "p"
salt = "s"
[axes.light]
values = ["day", "night"]
[scenarios.cross]
layer = "core"
k = 3
[bands]
default = 0.1
[teacher]
kind = "crossing"
[[plan.rules]]
when = { light = "night" }
cap = 5
[[decision_points]]
when = { light = "day" }
k = 6
"""
TEACHER = "feedbeef00000000"


def _assign(seeds: pl.DataFrame, used: pl.DataFrame) -> pl.DataFrame:
    return seeds.select("grp").unique().with_columns(split=pl.lit("train"))


def _plan(project: Project, plan_id: str, purpose: str, draws: list[tuple[str, int, int]], **more: Any) -> None:
    header = {
        "plan_id": plan_id, "purpose": purpose, "policy": "gate", "budget": "4samples", "created": "2026-01-01",
        "teacher": "t", "teacher_version": "1", "teacher_hash": TEACHER, "n_draws": len(draws), "usd": 0.0,
        "gpu_s": 0.0, "usd_per_gpuh": 0.0, "gpu_s_per_draw": 0.0, "usd_per_draw": 0.0, "supersedes": [],
        "split": "train", **more,
    }  # fmt: skip
    cells = pl.DataFrame(
        {
            "cell_id": pl.Series([0, 1], dtype=pl.Int32), "target": [7, 4], "credit": [0, 0], "fresh": [2, 2],
            "n_seeds_frame": [2, 1], "n_seeds_taken": [2, 1], "weight": [0.5, 0.5], "floor": [0, 0], "ceiling": [3, 3],
            "usd": [0.0, 0.0], "mark": ["", ""],
        }
    )  # fmt: skip
    rows = pl.DataFrame(draws, schema={"seed_id": pl.String, "cell_id": pl.Int32, "k": pl.Int32}, orient="row")
    rows = rows.with_columns(n_k=pl.lit(2), pi=pl.lit(0.5), weight=pl.lit(0.1), decision_point=pl.lit(True))
    seeds = rows.select("seed_id", "cell_id").unique(maintain_order=True).with_columns(
        k_seed=pl.lit(2), k_counted=pl.lit(1), share=pl.lit(0.5), pi=pl.lit(0.5)
    )  # fmt: skip
    save_plan(project, header, cells, rows, seeds)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Three seeds; plan 1 of cell 0 gave four draws, of which a verifier saw two and rejected one."""
    project = Project(tmp_path, parse_config(TOML, "distdata.toml"))
    raw = pl.DataFrame({"seed_id": ["s0", "s1", "s2"], "light": ["day", "night", "day"], "scenario": ["cross"] * 3})
    import_seeds(project, raw, "x", "1", _assign)
    _plan(project, "aaaaaaaaaaaa", "train", [("s0", 0, 0), ("s0", 0, 1), ("s2", 0, 0), ("s2", 0, 1)])
    with store.write(project.catalog_path) as con:
        for seed, k, unit in (("s0", 0, 0), ("s0", 1, 0), ("s2", 0, 1), ("s2", 1, 1)):
            con.execute(
                """INSERT INTO samples BY NAME SELECT ? AS sample_id, plan_no, ? AS unit, 0 AS attempt, 0 AS cell_id,
                ? AS seed_id, ? AS k, 'train' AS split, ? AS gpu_s, 0.5 AS usd FROM plans""",
                [f"{seed}-{k}", unit, seed, k, 1.0 + 2 * unit],
            )
        con.execute("INSERT INTO verified_units SELECT plan_no, 0, 0, 'verify', 9 FROM plans")
        con.execute("INSERT INTO drops VALUES ('s0-1', 'verify', 'blurred', 9)")
    return project


def test_draws_come_with_what_verifiers_said(project: Project) -> None:
    """A draw is kept or rejected where its unit was verified, else unverified; the yield counts verdicts only."""
    inputs = planning_inputs(project, TEACHER, "train", "train")
    assert sorted(inputs.bought.select("seed_id", "k", "state").iter_rows()) == [
        ("s0", 0, "kept"), ("s0", 1, "rejected"), ("s2", 0, "unverified"), ("s2", 1, "unverified"),
    ]  # fmt: skip
    assert inputs.bought["planned"].to_list() == [True] * 4
    cell = inputs.cells.row(0, named=True)
    assert (cell["yield_kept"], cell["yield_verified"]) == (1, 2)
    assert (inputs.measured_gpu_s, inputs.measured_usd) == (2.0, 0.5)


def test_rules_reach_their_cells(project: Project) -> None:
    """A decision-point rule settles K before the scenario type does; a cap falls on the cells that match."""
    cells = planning_inputs(project, TEACHER, "train", "train").cells
    assert cells.select("cell", "k", "decision", "cap").rows() == [
        ("day/cross", 6, True, None), ("night/cross", 3, False, 5),
    ]  # fmt: skip


def test_another_version_starts_from_nothing(project: Project) -> None:
    """Nothing that one teacher version gave counts for another: no draw, no cost, no frozen K, no targets."""
    other = planning_inputs(project, "0000000000000000", "train", "train")
    assert (other.bought.height, other.corpus.height, other.outside.height) == (0, 0, 0)
    assert (other.measured_gpu_s, other.measured_usd, other.goals) == (None, None, None)
    assert other.candidates.ids(other.candidates.find(pl.Series(["s1"]))).to_list() == ["s1"]


def test_the_plan_in_force_leaves_targets_and_frozen_k(project: Project) -> None:
    """A top-up aims at the last plan's targets; a seed that was bought keeps its K and which draws count."""
    inputs = planning_inputs(project, TEACHER, "train", "train")
    assert inputs.goals is not None
    assert sorted(inputs.goals.rows()) == [(0, 7), (1, 4)]
    assert sorted(inputs.corpus.rows()) == [("s0", 0, 2, 1), ("s2", 0, 2, 1)]


def test_what_another_plan_still_has_to_make_is_given(project: Project) -> None:
    """Draws of an open pilot count once, as unverified draws, whether they are made already or not."""
    _plan(project, "bbbbbbbbbbbb", "pilot", [("s1", 1, 0), ("s2", 0, 1)])
    bought = planning_inputs(project, TEACHER, "train", "train").bought
    assert sorted(bought.select("seed_id", "k", "state").iter_rows())[2:] == [
        ("s1", 0, "unverified"), ("s2", 0, "unverified"), ("s2", 1, "unverified"),
    ]  # fmt: skip


def test_samples_from_outside_the_frame_fill_a_cell_up_to_k(project: Project) -> None:
    """Draws on a seed that is no candidate count up to its K, rejected ones not at all."""
    with store.write(project.catalog_path) as con:
        con.execute(
            """INSERT INTO seeds BY NAME SELECT 'b0' AS seed_id, 1 AS cell_id, 'b0' AS grp, 'train' AS split,
            0.5 AS prn, 'byproduct' AS origin"""
        )
        for k in range(5):
            con.execute(
                """INSERT INTO samples BY NAME SELECT ? AS sample_id, plan_no, 5 AS unit, 0 AS attempt, 1 AS cell_id,
                'b0' AS seed_id, ? AS k, 'train' AS split FROM plans""",
                [f"b0-{k}", 1000 + k],
            )
        con.execute("INSERT INTO drops VALUES ('b0-0', 'verify', 'dark', 9)")
    inputs = planning_inputs(project, TEACHER, "train", "train")
    assert inputs.outside.rows() == [(1, 3)]  # five draws, one rejected, and K of the scenario type is 3
    with store.write(project.catalog_path) as con:
        con.execute("INSERT INTO drops VALUES ('b0-1', 'verify', 'dark', 9), ('b0-2', 'verify', 'dark', 9)")
    assert planning_inputs(project, TEACHER, "train", "train").outside.rows() == [(1, 2)]


def test_a_pilot_is_what_pilots_gave(project: Project) -> None:
    """K and decision points are found from pilot draws alone, so that planning again after training changes nothing."""
    assert pilot_rows(project, TEACHER).height == 0
    with store.write(project.catalog_path) as con:
        con.execute("UPDATE plans SET purpose = 'pilot'")
    assert pilot_rows(project, TEACHER).select("seed_id", "k").rows() == [("s0", 0), ("s2", 0), ("s2", 1)]
