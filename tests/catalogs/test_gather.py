"""What the report and `status` say: queries that run, samples that are there, and the step that really is next."""

from __future__ import annotations

import io
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distdata.catalogs.errors import DistdataError
from distdata.catalogs.gather import catalog_facts, gather_report
from distdata.catalogs.project import Project
from distdata.cli import main
from distdata.cycle.purchases import plan_purchase, save_purchase
from distdata.projects import import_seed_file, init_project

PRESET = """
[project]
name = "odd"
salt = "s"
[axes.{axis}]
values = ["first", "last"]
[scenarios.cross]
layer = "core"
[bands]
default = 0.1
[splits]
gate = 0
confirm = 0
[teacher]
kind = "python"
"""


def _command(root: Path, *args: str) -> tuple[int, str]:
    """Run a command in this process, in the folder `root`; return its exit code and what it printed."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(sys, "argv", ["distdata", *args])
        patch.setattr(sys, "stdout", out)
        with pytest.raises(SystemExit) as caught:
            main()
    out.seek(0)
    return int(str(caught.value.code)), out.read()


@pytest.mark.parametrize("first", ["order", "time-of-day"])
def test_suggested_queries_run(tmp_path: Path, first: str) -> None:
    """Every command that the report suggests runs as it is printed, with axes called by an SQL word or with a dash."""
    (tmp_path / "preset.toml").write_text(PRESET.format(axis=first))
    init_project(tmp_path, str(tmp_path / "preset.toml"))
    queries = gather_report(Project.open(tmp_path), "now").queries
    assert len(queries) == 3
    for query in queries:
        words = shlex.split(query.command)
        assert words[0] == "distdata"
        code, printed = _command(tmp_path, *words[1:], "--json")
        assert code == 0, query.command
        assert isinstance(json.loads(printed), list)
    first_column = _command(tmp_path, *shlex.split(queries[0].command)[1:], "-f", "csv")[1].split(",")[0]
    assert first_column == first


def _storage_root(project: Project) -> Path:
    return Path(str(project.storage.root))


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda p: p.unlink(), "is missing"),
    "short": (lambda p: p.write_bytes(p.read_bytes()[:700]), "is too short"),
    "no tar": (lambda p: p.write_bytes(bytes(p.stat().st_size)), "no tar header where an entry should start"),
    "altered": (lambda p: p.write_bytes(p.read_bytes().replace(b"NUMPY", b"NUMPI")), "not a readable .npy"),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), "can't be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_report_names_the_shard_that_is_damaged(tiny: Any, tmp_path: Path, damage: str) -> None:
    """A sample that can't be shown ends the report with its shard and with the commands that mend it."""
    project = tiny.build(tmp_path / "p", unit_draws=14)
    tiny.run(project)
    assert len(gather_report(project, "now").previews) > 1
    change, said = DAMAGES[damage]
    (shard,) = _storage_root(project).rglob("*.tar")
    change(shard)
    with pytest.raises(DistdataError) as caught:
        gather_report(project, "now")
    assert said in str(caught.value)
    assert f"shard {shard}" in str(caught.value)
    assert "`distdata catalog check`" in str(caught.value)
    assert "`distdata generate --repair`" in str(caught.value)


def _plan(project: Project, n: int, purpose: Any = "train") -> str:
    bought = plan_purchase(project, budget=f"{n}samples", purpose=purpose)
    assert save_purchase(project, bought)
    return bought.plan_id


def test_draws_not_asked_come_before_failed_ones(tiny: Any, tmp_path: Path) -> None:
    """With draws still to ask, the next step is to ask them; failed ones are told and come after that."""
    project = tiny.build(tmp_path / "p", n_draws=12, unit_draws=6)
    draws = tiny.draws(project)
    tiny.break_teacher(project, {"refuse": [draws[0], draws[11]]})
    tiny.run(project)
    plan_id = tiny.plan(project).plan_id
    facts = catalog_facts(project)
    assert facts["failed draws"] == "2"
    assert f"{plan_id} train: 10 of 12 draws" in facts["plans"]
    # 10 there and 2 failed of 12: nothing waits, only the failed ones are left
    assert facts["next"] == "distdata generate --retry-failed"
    for path in _storage_root(project).glob(f"{plan_id}/unit-000001*"):  # as if the second unit was never made
        path.unlink()
    assert _command(project.root, "catalog", "rebuild")[0] == 0
    facts = catalog_facts(project)
    # the first unit holds seeds whole, 7 draws; one of them failed
    assert f"{plan_id} train: 6 of 12 draws" in facts["plans"]
    assert facts["failed draws"] == "1"
    assert facts["next"] == "distdata generate"


def test_a_draw_that_failed_twice_is_one(tiny: Any, tmp_path: Path) -> None:
    """Failed draws are counted by draw, not by attempt, and no longer once they are there."""
    project = tiny.build(tmp_path / "p")
    tiny.break_teacher(project, {"refuse": [tiny.draws(project)[0]]})
    tiny.run(project)
    tiny.run(project, mode="retry-failed")
    assert tiny.sql(project, "SELECT count(*) FROM attempts") == [(2,)]
    assert catalog_facts(project)["failed draws"] == "1"
    tiny.heal_teacher(project)
    tiny.run(project, mode="retry-failed")
    assert catalog_facts(project)["failed draws"] == "0"
    assert catalog_facts(project)["next"] == "distdata report; distdata export hf OUT/"


def test_failures_of_a_superseded_plan_are_history(tiny: Any, tmp_path: Path) -> None:
    """A plan that is no longer in force neither counts as failed nor is the next step."""
    project = tiny.build(tmp_path / "p", n_draws=8)
    tiny.break_teacher(project, {"refuse": [tiny.draws(project)[0]]})
    tiny.run(project)
    _plan(project, 12)
    facts = catalog_facts(project)
    assert facts["failed draws"] == "0"
    assert facts["next"] == "distdata generate"
    tiny.heal_teacher(project)
    tiny.run(project)
    assert catalog_facts(project)["next"] == "distdata report; distdata export hf OUT/"


def test_the_plan_is_named_where_the_newest_is_not_meant(tiny: Any, tmp_path: Path) -> None:
    """With two unfinished plans, or only an older one, the next step names the plan it runs."""
    project = tiny.build(tmp_path / "p", n_draws=8)
    train = tiny.plan(project).plan_id
    cells = [{"weather": w, "scenario": s} for w in ("clear", "rain") for s in ("cross", "cut_in")]
    more = [{"seed_id": f"m{i}", **cells[i % 4]} for i in range(40)]
    (project.root / "more.jsonl").write_text("".join(json.dumps(seed) + "\n" for seed in more))
    import_seed_file(project, project.root / "more.jsonl")
    assert catalog_facts(project)["next"] == "distdata generate"
    pilot = _plan(project, 40, "pilot")
    assert catalog_facts(project)["next"] == f"distdata generate --plan {train}"
    tiny.run(project, plan_id=pilot)
    assert catalog_facts(project)["next"] == f"distdata generate --plan {train}"
    tiny.run(project, plan_id=train)
    assert catalog_facts(project)["next"] == "distdata report; distdata export hf OUT/"
