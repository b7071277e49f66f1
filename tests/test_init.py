"""`init` makes a whole project or none: what fails leaves nothing, what is killed can be run again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from distdata import projects
from distdata.catalogs import store
from distdata.catalogs.errors import DistdataError
from distdata.catalogs.files import exclusive_lock
from distdata.catalogs.project import Project
from distdata.generate.presets import Preset
from distdata.projects import init_project

GOOD = """
[project]
name = "p"
salt = "s"
[axes.light]
values = ["day", "night"]
[scenarios.cross]
layer = "core"
[bands]
default = 0.1
[teacher]
kind = "python"
"""
NOTHING_FEASIBLE = (
    GOOD
    + """
[[infeasible]]
when = { scenario = "cross" }
reason = "never"
"""
)
NO_FLEET_TABLE = (
    GOOD
    + """
[fleet]
source = "table"
table = "no.csv"
"""
)
SEEDS = """
import pyarrow as pa
def good(n, salt):
    return pa.table({"seed_id": [f"s{i}" for i in range(n)], "light": ["day"] * n, "scenario": ["cross"] * n})
def of_no_cell(n, salt):
    return good(n, salt).set_column(1, "light", pa.array(["dusk"] * n))
def broken(n, salt):
    raise RuntimeError("no seeds today")
"""


def _names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("text", [NOTHING_FEASIBLE, NO_FLEET_TABLE])
def test_cells_that_can_not_be_made_leave_nothing(tmp_path: Path, text: str) -> None:
    """A preset without a valid cell table makes no project, not even its folder, and a good one can follow."""
    preset = tmp_path / "preset.toml"
    preset.write_text(text)
    with pytest.raises(DistdataError):
        init_project(tmp_path / "p", str(preset))
    assert _names(tmp_path) == ["preset.toml"]
    preset.write_text(GOOD)
    assert init_project(tmp_path / "p", str(preset)) is None
    assert _names(tmp_path / "p") == ["catalog.duckdb", "distdata.toml", "events"]


@pytest.mark.parametrize(("generator", "error"), [("of_no_cell", DistdataError), ("broken", RuntimeError)])
def test_a_generator_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generator: str, error: type[Exception]
) -> None:
    """Seeds that are refused, or a generator that raises, leave the folder as it was, and a good one can follow."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "init_seeds.py").write_text(SEEDS)
    (tmp_path / "mine.txt").write_text("keep")
    monkeypatch.setattr(projects, "load_preset", lambda name: Preset(GOOD, f"init_seeds:{name}", 5))
    with pytest.raises(error):
        init_project(tmp_path, generator)
    assert _names(tmp_path) == ["init_seeds.py", "mine.txt"]
    done = init_project(tmp_path, "good")
    assert done is not None
    assert done.n_seeds == 5
    assert _names(tmp_path) == ["catalog.duckdb", "distdata.toml", "events", "init_seeds.py", "mine.txt"]


def _seeds(root: Path) -> list[tuple[object, ...]]:
    with store.read(Project.open(root).catalog_path) as con:
        return con.execute("SELECT * EXCLUDE (import_id) FROM seeds ORDER BY ALL").fetchall()


@pytest.mark.parametrize("point", ["event.cells.rename", "catalog.commit", "event.import.rename", "init.config.fsync"])
def test_a_killed_init_can_be_run_again(tmp_path: Path, point: str) -> None:
    """After a kill at any point the folder is no project yet, and the same command makes the very same one."""
    code = (
        "import os, sys; from pathlib import Path\n"
        "from distdata.catalogs import effects; from distdata import projects\n"
        "effects.observe(lambda name: os._exit(9) if name == sys.argv[2] else None)\n"
        "projects.init_project(Path(sys.argv[1]), 'driving', 50)"
    )
    killed = tmp_path / "killed"
    assert subprocess.run([sys.executable, "-c", code, str(killed), point], check=False).returncode == 9
    assert not (killed / "distdata.toml").exists()
    init_project(killed, "driving", 50)
    init_project(tmp_path / "whole", "driving", 50)
    assert _seeds(killed) == _seeds(tmp_path / "whole")
    assert len(_seeds(killed)) == 50
    assert (killed / "distdata.toml").read_bytes() == (tmp_path / "whole" / "distdata.toml").read_bytes()


def test_what_is_there_stays(tmp_path: Path) -> None:
    """A project, or events without their distdata.toml, outlive an init that is refused or fails."""
    preset = tmp_path / "preset.toml"
    preset.write_text(GOOD)
    root = tmp_path / "p"
    init_project(root, str(preset))
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    with pytest.raises(DistdataError, match=r"a project is here already\. Use another folder"):
        init_project(root, str(preset))
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before
    (root / "distdata.toml").unlink()
    preset.write_text(NOTHING_FEASIBLE)
    with pytest.raises(DistdataError, match=r"feasible"):
        init_project(root, str(preset))
    assert _names(root) == ["catalog.duckdb", "events"]
    preset.write_text(GOOD)
    init_project(root, str(preset))
    assert _names(root) == ["catalog.duckdb", "distdata.toml", "events"]


def test_two_at_once(tmp_path: Path) -> None:
    """While one process makes a project, another one is sent away and removes nothing of it."""
    with exclusive_lock(tmp_path / ".tmp-init-lock", ""):
        (tmp_path / "events").mkdir()
        with pytest.raises(DistdataError, match=r"process \d+ is making a project here"):
            init_project(tmp_path, "driving", 5)
        assert _names(tmp_path) == [".tmp-init-lock", "events"]


@pytest.mark.parametrize("below", ["", "sub"])
def test_a_file_is_no_folder_for_a_project(tmp_path: Path, below: str) -> None:
    """A project in the place of a file, or below one, is refused by name, and the file stays."""
    (tmp_path / "file").write_text("keep")
    with pytest.raises(DistdataError, match=r"distdata.toml: can't be written \(Not a directory\)"):
        init_project(tmp_path / "file" / below, "driving", 5)
    assert (tmp_path / "file").read_text() == "keep"
