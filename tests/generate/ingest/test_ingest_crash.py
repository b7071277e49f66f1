"""An ingest that is killed at any of its effects and run again has done exactly what one does that was never killed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distdata.catalogs.check import check_project
from distdata.catalogs.files import TMP_PREFIX
from distdata.catalogs.project import Project
from distdata.catalogs.register import catch_up
from distdata.catalogs.store import read
from distdata.generate.ingest.byproducts import ingest_byproduct

VOLATILE = {"plans": "created", "cases": "opened"}


class Server:
    """Runs ingests in processes that get killed."""

    def __init__(self) -> None:
        script = str(Path(__file__).with_name("crash_ingest.py"))
        self._process = subprocess.Popen(
            [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )  # fmt: skip

    def run(self, project: Project, do: str, path: Path, stop_at: int | None = None) -> dict[str, Any]:
        """Ingest until the `stop_at`-th effect, or to the end."""
        assert self._process.stdin is not None, "a pipe was asked for"
        assert self._process.stdout is not None, "a pipe was asked for"
        job = {"root": str(project.root), "do": do, "path": str(path), "stop_at": stop_at}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        done: dict[str, Any] = json.loads(self._process.stdout.readline())
        return done

    def close(self) -> None:
        """Stop."""
        self._process.communicate(timeout=30)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Hand out the server."""
    made = Server()
    yield made
    made.close()


def rows(world: Any, do: str) -> list[dict[str, Any]]:
    """Return an input of each kind, with good rows and bad ones."""
    good = {"outcome": "low", "teacher_version": "1"}
    if do == "byproduct":
        fresh = {"weather": "rain", "light": "day", "scenario": "cut_in", "params": {"a": 1}}
        known = [
            {"seed_id": s, "x": world.answer(i).tolist(), **good} for i, s in enumerate(["s00", "s01", "s21", "s00"])
        ]
        return [*known, {**fresh, "x": world.answer(9).tolist(), **good}]
    if do == "clean":
        return [{"x": world.answer(1).tolist()}, {"seed_id": "s04", "x": world.answer(2).tolist()}]
    if do == "rejects":
        return [{"sample_id": "s00-k000-00000000", "reason": "blurred"}, {"sample_id": "nobody"}]
    wrong = {"kind": "teacher_wrong", "seed_id": "s00", "case_id": "B"}
    return [wrong, {"kind": "student_diverged", "seed_id": "s01"}, {"kind": "student_diverged", "seed_id": "s21"}]


def start(world: Any, root: Path, do: str) -> tuple[Project, Path]:
    """Make a project with draws and, for a correction, its case; and the input."""
    project = world.build(root / "p")
    world.buy(project, [("s00", 0), ("s00", 1), ("s02", 0)])
    if do == "clean":
        case = root / "case.jsonl"
        case.write_text(json.dumps({"kind": "teacher_wrong", "seed_id": "s02", "case_id": "A"}))
        from distdata.generate.ingest.divergence import ingest_divergence

        ingest_divergence(project, case)
    path = root / "in.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows(world, do)))
    return project, path


def content(project: Project) -> dict[str, list[tuple[Any, ...]]]:
    """Return the catalog's tables without times and the numbers of events, which a discarded try may not shift."""
    catch_up(project)
    found = {}
    with read(project.catalog_path) as con:
        for table in (
            "plans",
            "units",
            "unit_cells",
            "samples",
            "seeds",
            "drops",
            "verified_units",
            "refusals",
            "cases",
        ):
            what = f"* EXCLUDE ({VOLATILE[table]})" if table in VOLATILE else "*"
            found[table] = sorted(con.execute(f"SELECT {what} FROM {table}").fetchall(), key=repr)
    return found


def enumerate_kills(world: Any, server: Server, tmp_path: Path, do: str, *, every: bool) -> None:
    """Kill at every effect (or at the first rename of each name), run again, and compare with an unkilled run."""
    base, path = start(world, tmp_path, do)
    before = content(base)
    whole = copy(base, tmp_path / "whole")
    effects = server.run(whole, do, path)["effects"]
    expected = content(whole)
    assert expected != before
    commit = next(i for i, e in enumerate(effects, start=1) if e.startswith("event.") and e.endswith(".rename"))
    assert commit > 2
    for stop_at in range(1, len(effects) + 1):
        name = effects[stop_at - 1]
        if not every and (name in effects[: stop_at - 1] or not name.endswith(".rename")):
            continue
        project = copy(base, tmp_path / f"at{stop_at}")
        killed = server.run(project, do, path, stop_at)
        assert killed["code"] == -9, f"effect {stop_at} ({effects[stop_at - 1]}) was reached"
        if stop_at < commit:
            assert content(project) == before, f"nothing counts at {effects[stop_at - 1]}"
        assert server.run(project, do, path)["code"] == 0
        assert content(project) == expected, f"killed at {effects[stop_at - 1]}"
        checked = check_project(project)
        assert (checked.damaged, checked.unreferenced) == ([], [])
        shutil.rmtree(project.root)
    assert server.run(whole, do, path)["code"] == 0
    assert content(whole) == expected, "again changes nothing"
    world.assert_rebuilds(whole)


def test_killed_at_every_kind_of_effect(world: Any, server: Server, tmp_path: Path) -> None:
    """Killed anywhere: before the event nothing counts, and the same call again gives the catalog of one whole run."""
    enumerate_kills(world, server, tmp_path, "byproduct", every=False)


@pytest.mark.prove
@pytest.mark.parametrize("do", ["byproduct", "clean", "rejects", "divergence"])
def test_killed_at_every_effect(world: Any, server: Server, tmp_path: Path, do: str) -> None:
    """The long form: every effect of every kind of ingest, the repeated ones too."""
    enumerate_kills(world, server, tmp_path, do, every=True)


def copy(project: Project, root: Path) -> Project:
    """Copy a project as it is on disk."""
    shutil.copytree(project.root, root)
    return Project.open(root)


def test_what_a_killed_ingest_left_is_removed_by_another(world: Any, server: Server, tmp_path: Path) -> None:
    """Units of an ingest that is never run again do not lie about for ever."""
    project, path = start(world, tmp_path, "byproduct")
    effects = server.run(copy(project, tmp_path / "whole"), "byproduct", path)["effects"]
    server.run(project, "byproduct", path, effects.index("manifest.rename") + 1)
    left = {p.name for p in (project.root / "data").iterdir()} - {"plan0"}
    assert len(left) == 1
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({**rows(world, "byproduct")[0], "seed_id": "s05"}))
    ingest_byproduct(project, [other])
    now = {p.name for p in (project.root / "data").iterdir()} - {"plan0"}
    assert len(now) == 1
    assert now.isdisjoint(left)
    assert not [p for p in project.plans_dir.rglob("*") if p.name.startswith(TMP_PREFIX) or p.name in left]
