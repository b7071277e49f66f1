"""Engines: the same plan gives the same bytes in this process or on Ray, with any number of workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distdata.generate.tasks import size_unit

N_DRAWS = 160


def on_ray(tiny: Any, project: Any, workers: int) -> None:
    """Run `generate` on a local Ray in a process of its own, and expect success."""
    done = tiny.command(project, "generate", "--engine", "ray", "--workers", str(workers), timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def planned(tiny: Any, tmp_path: Path) -> Any:
    """A plan whose unit size is left to distdata, of a teacher whose bits depend on a micro-batch's company."""
    return tiny.build(tmp_path / "planned", n_draws=N_DRAWS, unit_draws=None, joint=True)


def test_any_engine_and_number_of_workers_gives_the_same_shards(planned: Any, tiny: Any, tmp_path: Path) -> None:
    """In this process and on Ray with 3 workers: byte-equal shards, each draw asked for once.

    (One worker is below; two, killed now and then, are in test_ray_chaos.)
    """
    here = tiny.copy(planned, tmp_path / "inprocess")
    tiny.run(here)
    tiny.assert_whole(here, None, 0, 3)
    assert len(tiny.shards(here)) >= 8
    there = tiny.copy(planned, tmp_path / "ray")
    on_ray(tiny, there, 3)
    tiny.assert_whole(there, tiny.shards(here), 0, 3)
    assert sorted(tiny.calls(there)) == sorted(tiny.draws(there))


def test_a_plan_begun_on_one_engine_is_finished_on_the_other(planned: Any, tiny: Any, crashes: Any) -> None:
    """Killed in this process and resumed on Ray's one worker, a plan gives the shards of one run in one place."""
    whole = tiny.copy(planned, planned.root.parent / "whole")
    effects = crashes.finish(whole)
    crashes.run(planned, len(effects) // 2)
    assert 0 < len(tiny.shards(planned)) < len(tiny.shards(whole))
    on_ray(tiny, planned, 1)
    tiny.assert_whole(planned, tiny.shards(whole), 1, 3)


def test_a_users_error_on_ray_is_one_message(tiny: Any, tmp_path: Path) -> None:
    """A teacher that fails on Ray's workers ends the command with one clear error and no traceback."""
    project = tiny.build(tmp_path / "p", joint=False)
    tiny.break_teacher(project, {"raise": None})
    done = tiny.command(project, "generate", "--engine", "ray", "--workers", "1", timeout=300)
    assert done.returncode == 1
    assert "error: teacher tiny: the first 7 draws all failed; the first one: error: RuntimeError" in done.stderr
    assert "Traceback" not in done.stderr


def test_unit_sizes_do_not_depend_on_the_machine() -> None:
    """The draws per unit follow time, bytes and share of the plan, in powers of two of the micro-batch."""
    sizes = {"unit_s": 20.0, "shard_bytes": 256e6, "batch": 16}
    # 20 s / 0.1 s = 200 draws = 12.5 micro-batches, down to 8 of them
    assert size_unit(0.1, 1e3, n_draws=10**6, **sizes) == 128
    # a shard of 256 MB holds 256 draws of 1 MB = 16 micro-batches
    assert size_unit(1e-4, 1e6, n_draws=10**6, **sizes) == 256
    # an eighth of 1,000 draws is 125 = 7.8 micro-batches, down to 4
    assert size_unit(1e-4, 1e3, n_draws=1000, **sizes) == 64
    # never less than one micro-batch, however slow the teacher
    assert size_unit(900.0, 1e3, n_draws=1000, **sizes) == 16
    assert size_unit(0.0, 0.0, n_draws=1, **sizes) == 16
