"""Measuring on Ray: the numbers of one process, and a user's error as one message."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from distdata.catalogs.project import Project
from distdata.curate.measure import measure
from distdata.cycle.purchases import plan_purchase, save_purchase

ON_RAY = """
import sys
from pathlib import Path
from distdata.catalogs.errors import DistdataError
from distdata.catalogs.project import Project
import distdata.curate.measure as stage
if sys.argv[4] == "auto":
    stage.INPROCESS_BELOW_S = -1.0  # any work is too long for one process
try:
    frame = stage.measure(Project.open(Path(sys.argv[1])), [sys.argv[2]], ["spread", "cost"], engine=sys.argv[4])
except DistdataError as e:
    sys.exit(f"error: {e}")
frame.write_parquet(sys.argv[3])
"""


def on_ray(project: Project, plan_id: str, out: Path, engine: str) -> subprocess.CompletedProcess[str]:
    """Measure on a local Ray in a process of its own."""
    line = [sys.executable, "-c", ON_RAY, str(project.root), plan_id, str(out), engine]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture
def latents(tiny: Any, tmp_path: Path) -> Project:
    """A project with 14 draws in two units, each with a latent of five numbers."""
    project: Project = tiny.build(tmp_path / "p", plan=False)
    teacher = project.root / "tiny_teacher.py"
    teacher.write_text(teacher.read_text().replace("x.npy", "latent.npy"))
    save_purchase(project, plan_purchase(project, budget="14samples"))
    tiny.run(project)
    return project


def test_ray_gives_the_numbers_of_one_process(latents: Project, tiny: Any, tmp_path: Path) -> None:
    """Read by Ray's workers, a plan has the same columns in the same order, and they are kept as usual."""
    plan = tiny.plan(latents).plan_id
    twin = tiny.copy(latents, tmp_path / "twin")
    done = on_ray(latents, plan, tmp_path / "ray.parquet", "auto")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "Ray's own notes go to its log"
    assert (latents.spool_dir / "ray.log").exists() == ((os.cpu_count() or 1) > 1), "long work goes to Ray by itself"
    here = measure(twin, [plan], ["spread", "cost"], engine="inprocess")
    assert here.height == 14
    assert here["feature"].list.len().unique().to_list() == [5]
    assert pl.read_parquet(tmp_path / "ray.parquet").equals(here)
    Path(str(latents.storage.root)).rename(tmp_path / "hidden")
    assert measure(latents, [plan], ["spread", "cost"]).equals(here), "no shard is needed any more"


def test_damage_on_ray_is_one_message(latents: Project, tiny: Any, tmp_path: Path) -> None:
    """A missing shard ends the command with the sample, the shard and the way out, without a traceback."""
    plan = tiny.plan(latents).plan_id
    first = measure(latents, [plan], ["outcome"])["sample_id"][0]
    shard = next(iter(tiny.shards(latents)))
    (Path(str(latents.storage.root)) / plan / shard).unlink()
    done = on_ray(latents, plan, tmp_path / "ray.parquet", "ray")
    assert done.returncode == 1
    assert done.stderr.startswith("error: sample ")
    assert first in done.stderr
    assert shard in done.stderr
    assert f"distdata generate --repair --plan {plan}" in done.stderr
    assert "Traceback" not in done.stderr


BOMB = """
import sys
from pathlib import Path
from distdata.catalogs.errors import DistdataError
from distdata.catalogs.project import Project
from distdata.curate.metric_table import find_metrics
from distdata.curate.ray_stage import measure_on_ray
from distdata.curate.units import make_pieces, units_of
class Bomb:
    unit, plan_id = 7, "bomb"
    def __reduce__(self):
        return eval, ("__import__('os').kill(__import__('os').getpid(), 9)",)
project, metrics = Project.open(Path(sys.argv[1])), find_metrics(["spread"])
pieces = list(make_pieces(project, units_of(project, [sys.argv[2]], None, "")))
got = []
try:
    for number, frame in measure_on_ray(project, [pieces[0], Bomb(), *pieces[1:]], metrics, 1):
        got.append((number, frame.height))
except DistdataError as e:
    print(sorted(got) == [(0, pieces[0].rows.height), *((i, p.rows.height) for i, p in enumerate(pieces[1:], 2))])
    sys.exit(f"error: {e}")
"""


@pytest.mark.prove
def test_a_unit_that_kills_its_worker_is_named_and_the_others_are_measured(latents: Project, tiny: Any) -> None:
    """A worker killed again and again over one unit costs that unit alone, and the command says which it was."""
    plan = tiny.plan(latents).plan_id
    line = [sys.executable, "-c", BOMB, str(latents.root), plan]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 1
    assert "units were not measured; plan bomb, unit 7 is the first." in done.stderr
    assert "error: measuring on Ray: 1 of " in done.stderr
    assert done.stdout.strip().endswith("True"), "all others are there (Ray tells of the death before)"
