"""Sweeps: honest held-out groups, the right winner, and nothing trained twice."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from distdata.catalogs.errors import DistdataError
from distdata.train_min.checkpoint import student_weights
from distdata.train_min.job import Quiet, TrainJob
from distdata.train_min.sweep import grid_points, hold_out, point_name, sweep, sweep_table

HEADER = {"snapshot_id": "00112233445566aa", "teacher": {"id": "world", "version": "1", "content_hash": "feed"}}


@pytest.fixture
def job(tmp_path: Path, corpus: Any, regression: Any, linear: Any) -> TrainJob:
    """A job over 40 samples of 10 groups, weights 1 and 3."""
    storage, frame = corpus(
        regression(40),
        per_shard=20,
        grp=[f"g{i // 4}" for i in range(40)],
        weight=[1.0 + 2 * (i % 2) for i in range(40)],
    )
    return TrainJob(
        out=tmp_path / "sweep", storage=storage, frame=frame, header=HEADER, recipe=linear, settings={"steps": 60},
        device="cpu", n_workers=0, save_every_s=math.inf,
    )  # fmt: skip


def test_hold_out_keeps_groups_whole(job: TrainJob) -> None:
    """The two parts are the frame, share no group, and the held-out part is the share of groups asked for."""
    kept, out = hold_out(job.frame, 0, 0.3)
    assert sorted([*kept["sample_id"], *out["sample_id"]]) == sorted(job.frame["sample_id"])
    assert not set(kept["grp"]) & set(out["grp"])
    assert out["grp"].n_unique() == 3
    assert set(hold_out(job.frame.reverse(), 0, 0.3)[1]["grp"]) == set(out["grp"])
    assert hold_out(job.frame, 0, 0.001)[1]["grp"].n_unique() == 1
    assert hold_out(job.frame, 0, 0.999)[0]["grp"].n_unique() == 1
    assert len({tuple(sorted(set(hold_out(job.frame, s, 0.3)[1]["grp"]))) for s in range(5)}) > 1


def test_hold_out_needs_groups(job: TrainJob) -> None:
    """One group can't be split, and a share must leave something on both sides."""
    with pytest.raises(DistdataError, match="40 samples are of 1 group"):
        hold_out(job.frame.with_columns(grp=pl.lit("g")), 0, 0.1)
    with pytest.raises(DistdataError, match="share = 1"):
        hold_out(job.frame, 0, 1.0)


def test_sweep_ranks_by_held_out_loss(job: TrainJob) -> None:
    """The best setting comes first, each with the weighted mean squared error on the held-out groups, by numpy.

    A rate of 0 leaves the first weights, 0.05 nearly reaches the optimum: the order is certain.
    """
    students = sweep(job, {"lr": [0.0, 0.05], "ema": [0.0, 0.5]}, share=0.2)
    assert len(students) == 4
    assert [s.header["settings"]["lr"] for s in students] == [0.05, 0.05, 0.0, 0.0]
    losses = [s.validation_loss or 0.0 for s in students]
    assert losses == sorted(losses)
    _, out = hold_out(job.frame, 0, 0.2)
    from distdata.train_min.loader import StoredSamples

    samples = StoredSamples(job.storage, out, ("cond.npy", "latent.npy"))
    x, y = (np.stack([s[m] for s in samples]).astype(np.float64) for m in ("cond.npy", "latent.npy"))
    for student in students:
        law = next(iter(student_weights(student.out).values())).numpy().astype(np.float64)
        errors = ((x @ law.T - y) ** 2).sum(1)
        assert student.validation_loss == pytest.approx(np.average(errors, weights=out["weight"]), rel=1e-5)
    kept = {s.header["samples"]["n"] for s in students}
    assert kept == {job.frame.height - out.height}


def test_sweep_resumes(job: TrainJob) -> None:
    """Stopped in its second setting and called again, it goes on there; called a third time it trains nothing."""
    grid = {"lr": [0.01, 0.02, 0.05]}

    class Stop(Quiet):
        n = 0

        def begin(self, **told: Any) -> None:
            Stop.n += 1

        def advance(self, step: int, loss: float, lr: float, values: Mapping[str, float]) -> None:
            if Stop.n == 2 and step == 30:
                raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        sweep(replace(job, save_every_steps=10), grid, Stop())
    Stop.n = 10
    first = sweep(job, grid, Stop())
    assert Stop.n == 12  # the second and the third were trained
    assert [s.fresh for s in sorted(first, key=lambda s: s.header["settings"]["lr"])] == [False, True, True]
    second = sweep(job, grid, Stop())
    assert Stop.n == 12
    assert [(s.artefact, s.validation_loss) for s in second] == [(s.artefact, s.validation_loss) for s in first]


def test_sweep_results(job: TrainJob) -> None:
    """The table and its file show settings and losses in the same order; other held-out groups are judged anew."""
    students = sweep(job, {"lr": [0.0, 0.05]})
    frame = pl.read_parquet(job.out / "sweep.parquet")
    assert frame["artefact"].to_list() == [s.artefact for s in students]
    assert frame["validation_loss"].to_list() == [s.validation_loss for s in students]
    assert frame["lr"].to_list() == [0.05, 0.0]
    text = sweep_table(students, ["lr"], width=120, color=False)
    assert "held-out loss" in text
    assert text.index(students[0].artefact) < text.index(students[1].artefact)
    path = students[0].out / "validation.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "held_out": "other", "loss": -1.0}))
    assert sweep(job, {"lr": [0.0, 0.05]})[0].validation_loss == students[0].validation_loss


def test_clean_samples_are_judged_by_their_share(job: TrainJob) -> None:
    """With a clean share of 0.25 the held-out loss is 3/4 of the teacher draws' mean + 1/4 of the clean ones'."""
    frame = job.frame.with_columns(source=pl.Series(["clean" if i % 4 == 0 else "planned" for i in range(40)]))
    student = sweep(replace(job, frame=frame), {"clean_share": [0.25]})[0]
    _, out = hold_out(frame, 0, 0.1)
    from distdata.train_min.loader import StoredSamples

    law = next(iter(student_weights(student.out).values())).numpy().astype(np.float64)
    parts = []
    for clean in (False, True):
        part = out.filter((pl.col("source") == "clean") == clean)
        samples = list(StoredSamples(job.storage, part, ("cond.npy", "latent.npy")))
        errors = [((law @ s["cond.npy"].astype(np.float64) - s["latent.npy"]) ** 2).sum() for s in samples]
        parts.append(np.average(errors, weights=part["weight"]))
    assert student.validation_loss == pytest.approx(0.75 * parts[0] + 0.25 * parts[1], rel=1e-5)


def test_grid() -> None:
    """All combinations come in order, each with a folder of its own; empty and huge grids are refused."""
    points = grid_points({"lr": [1e-3, 1e-2], "width": [8, 16, 32]})
    assert len(points) == 6
    assert points[1] == {"lr": 1e-3, "width": 16}
    assert len({point_name(p) for p in points}) == 6
    assert point_name({"lr": 0.001, "map": {"a": "b/../c"}}).startswith("lr-0.001_")
    assert "/" not in point_name({"match": "a/b"})
    for grid in ({}, {"lr": []}):
        with pytest.raises(DistdataError, match="sweep: no"):
            grid_points(grid)
    with pytest.raises(DistdataError, match="1,000 settings"):
        grid_points({"lr": list(range(1000))})


def test_typos_are_found_first(job: TrainJob) -> None:
    """A setting that the last combination gets wrong stops the sweep before anything is trained."""
    with pytest.raises(DistdataError, match="steps = 0"):
        sweep(job, {"steps": [5, 0]})
    assert not job.out.exists()
