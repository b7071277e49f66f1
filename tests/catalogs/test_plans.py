"""Frozen plans: what is saved is what is loaded, and any change of it on disk is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distdata.catalogs.config import parse_config
from distdata.catalogs.errors import DistdataError
from distdata.catalogs.hashing import draw_rng_seed
from distdata.catalogs.intake import import_seeds
from distdata.catalogs.plans import find_plan, load_plan, open_plans, sample_id, save_plan
from distdata.catalogs.project import Project

TOML = """
[project]
name = "p"
salt = "s"
[axes.light]
values = ["day", "night"]
[axes.area]
values = ["a"]
[scenarios.cross]
layer = "core"
[bands]
default = 0.1
[teacher]
kind = "crossing"
"""
CELLS = pl.DataFrame(
    {
        "cell_id": pl.Series([0, 1], dtype=pl.Int32),
        "target": [3, 3],
        "credit": [0, 0],
        "fresh": [3, 3],
        "n_seeds_frame": [2, 2],
        "n_seeds_taken": [2, 2],
        "weight": [0.5, 0.5],
        "floor": [0, 0],
        "ceiling": [3, 3],
        "usd": [0.0, 0.0],
        "mark": ["", ""],
    }
)
DRAWS = pl.DataFrame(
    {
        "seed_id": ["s2", "s2", "s0", "s1"],
        "cell_id": pl.Series([0, 0, 0, 1], dtype=pl.Int32),
        "k": [0, 1, 0, 0],
        "n_k": [2, 2, 1, 1],
        "pi": [0.5, 0.5, 1.0, 0.25],
        "weight": [0.1, 0.1, 0.2, 0.6],
        "decision_point": [True, True, False, False],
    }
)


def _header(plan_id: str, *supersedes: str, purpose: str = "train") -> dict[str, object]:
    return {
        "plan_id": plan_id, "purpose": purpose, "policy": "gate", "budget": "4samples", "created": "2026-01-01",
        "teacher": "t", "teacher_version": "1", "teacher_hash": "feedbeef00000000", "n_draws": 4, "usd": 0.0,
        "gpu_s": 0.0, "usd_per_gpuh": 0.0, "gpu_s_per_draw": 0.0, "usd_per_draw": 0.0, "supersedes": list(supersedes),
    }  # fmt: skip


def _assign(seeds: pl.DataFrame, used: pl.DataFrame) -> pl.DataFrame:
    return seeds.select("grp").unique().with_columns(split=pl.lit("train"))


def _project(root: Path) -> Project:
    project = Project(root, parse_config(TOML, "distdata.toml"))
    raw = pl.DataFrame(
        {
            "seed_id": ["s0", "s1", "s2"], "light": ["day", "night", "day"], "area": ["a"] * 3,
            "scenario": ["cross"] * 3,
            "decision_point": [False, False, True], "k": [None, None, 2],
            "params": ['{"v": 0}', '{"v": 1}', '{"v": 2}'],
            "control_axis": [None, "steer", None], "control_value": [None, 0.5, None],
        }
    )  # fmt: skip
    import_seeds(project, raw, "x", "1", _assign)
    return project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = _project(tmp_path)
    save_plan(project, _header("aaaaaaaaaaaa"), CELLS, DRAWS)
    return project


def test_a_plan_is_read_back_as_it_was_saved(project: Project) -> None:
    """Draws keep their order, with sample ids and random seeds; each points at its seed's own state."""
    plan = load_plan(project, "aaaaaaaaaaaa")
    draws = plan.draws.to_pylist()
    assert [(d["seed_id"], d["k"], d["n_k"], d["pi"], d["cell"]) for d in draws] == [
        ("s2", 0, 2, 0.5, "day,a/cross"),
        ("s2", 1, 2, 0.5, "day,a/cross"),
        ("s0", 0, 1, 1.0, "day,a/cross"),
        ("s1", 0, 1, 0.25, "night,a/cross"),
    ]
    assert [d["sample_id"] for d in draws] == [
        f"{s}-k00{k}-feedbeef" for s, k in (("s2", 0), ("s2", 1), ("s0", 0), ("s1", 0))
    ]
    assert [d["rng_seed"] for d in draws] == [draw_rng_seed("s", d["seed_id"], d["k"]) for d in draws]
    seeds = plan.seeds.to_pylist()
    assert [seeds[d["seed_row"]]["seed_id"] for d in draws] == ["s2", "s2", "s0", "s1"]
    assert seeds[1]["params"] == '{"v": 1}'
    assert (seeds[1]["control_axis"], seeds[1]["control_value"], seeds[1]["split"]) == ("steer", 0.5, "train")
    assert json.loads(seeds[1]["axes"]) == {"light": "night", "area": "a"}
    assert (plan.n_draws, plan.header["budget"]) == (4, "4samples")


def test_sample_ids_are_keys() -> None:
    """A sample id has no dot or slash, sorts by k, and differs by teacher."""
    assert sample_id("s_1", 7, "feedbeef99") == "s_1-k007-feedbeef"
    assert sample_id("s_1", 7, "feedbeef99") != sample_id("s_1", 7, "f00dbeef99")


@pytest.mark.parametrize("name", ["plan.json", "draws.arrow", "seeds.arrow"])
@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_a_damaged_plan_is_named(project: Project, name: str, damage: str) -> None:
    """A file of the plan that is cut, empty or gone is an error that names the folder and the way out."""
    path = project.plans_dir / "aaaaaaaaaaaa" / name
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else b"")
    with pytest.raises(
        DistdataError, match=r"plans/aaaaaaaaaaaa: damaged \(.*\)\. Restore it from a backup, or make a new"
    ):
        load_plan(project, "aaaaaaaaaaaa")


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    name=st.sampled_from(["draws.arrow", "seeds.arrow"]),
    where=st.floats(0, 1, exclude_max=True),
    flip=st.integers(1, 255),
)
def test_an_altered_byte_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, name: str, where: float, flip: int
) -> None:
    """No byte of what is to be drawn can change unnoticed: Arrow files carry no checksum, the header does."""
    plan = _shared(tmp_path_factory)
    path = plan.plans_dir / "aaaaaaaaaaaa" / name
    good = path.read_bytes()
    bad = bytearray(good)
    bad[int(where * len(bad))] ^= flip
    path.write_bytes(bad)
    try:
        with pytest.raises(DistdataError, match=rf"damaged \({name} does not match its digest\)"):
            load_plan(plan, "aaaaaaaaaaaa")
    finally:
        path.write_bytes(good)
    assert load_plan(plan, "aaaaaaaaaaaa").n_draws == 4


_made: list[Project] = []


def _shared(factory: pytest.TempPathFactory) -> Project:
    if not _made:
        _made.append(_project(factory.mktemp("plan")))
        save_plan(_made[0], _header("aaaaaaaaaaaa"), CELLS, DRAWS)
    return _made[0]


def test_saving_again_changes_nothing(project: Project) -> None:
    """The same plan saved twice has the same files, and is one plan."""
    folder = project.plans_dir / "aaaaaaaaaaaa"
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    save_plan(project, _header("aaaaaaaaaaaa"), CELLS, DRAWS)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p["plan_id"] for p in open_plans(project)] == ["aaaaaaaaaaaa"]


def test_plans_are_found_by_their_beginning(project: Project) -> None:
    """A unique beginning is enough; none, several and superseded ones are explained."""
    save_plan(project, _header("aabbbbbbbbbb", "aaaaaaaaaaaa"), CELLS, DRAWS)
    save_plan(project, _header("cccccccccccc", purpose="gate"), CELLS, DRAWS)
    assert find_plan(project, None) == "cccccccccccc"
    assert find_plan(project, "aab") == "aabbbbbbbbbb"
    with pytest.raises(DistdataError, match=r"^2 plans begin with 'aa'"):
        find_plan(project, "aa")
    with pytest.raises(DistdataError, match=r"^no plan begins with 'cccccccccccd'\. Did you mean 'cccccccccccc'\?"):
        find_plan(project, "cccccccccccd")
    with pytest.raises(
        DistdataError, match=r"^plan aaaaaaaaaaaa was superseded by aabbbbbbbbbb: .*Run `distdata generate`"
    ):
        find_plan(project, "aaa")
    assert [(p["plan_id"], p["generated"]) for p in open_plans(project)] == [("aabbbbbbbbbb", 0), ("cccccccccccc", 0)]


def test_no_plan_yet(tmp_path: Path) -> None:
    """Without a plan, the message says how to make one."""
    with pytest.raises(DistdataError, match=r"There is no plan yet\. Make one: distdata plan --budget 2000samples"):
        find_plan(_project(tmp_path), None)
