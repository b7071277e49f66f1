"""The loop: it finds known optima, gives the same bytes every time, and says what is wrong."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from distdata.catalogs.errors import DistdataError
from distdata.catalogs.storage import Storage
from distdata.train_min.checkpoint import read_student, student_weights
from distdata.train_min.curves import read_curve
from distdata.train_min.job import Quiet, TrainJob
from distdata.train_min.loop import blended_loss, choose_device, ema_decay, learning_rate, train
from distdata.train_min.recipes import find_recipe

HEADER = {"snapshot_id": "00112233445566aa", "teacher": {"id": "world", "version": "1", "content_hash": "feed"}}
EXACT = {"steps": 1500, "lr": 0.05, "warmup": 0.0, "log_every": 500}
"""Full batches, and a rate that falls to zero: the last weights are the optimum to some 1e-5."""


def arrays(samples: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """The conditions [N, C] and latents [N, L] of samples, float64."""
    return (
        np.stack([s["cond.npy"] for s in samples]).astype(np.float64),
        np.stack([s["latent.npy"] for s in samples]).astype(np.float64),
    )


def least_squares(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """argmin_A sum_i w_i |A x_i - y_i|^2 = (Y' W X)(X' W X)^-1, [L, C]: the normal equations."""
    return np.linalg.solve(x.T @ (weights[:, None] * x), x.T @ (weights[:, None] * y)).T


def learned(job: TrainJob) -> np.ndarray:
    """The matrix of a linear student, [L, C]."""
    return next(iter(student_weights(train(job).out).values())).numpy()


def make_job(tmp_path: Path, data: tuple[Storage, pl.DataFrame], recipe: Any, **settings: Any) -> TrainJob:
    """A job on the CPU in tmp_path/student."""
    storage, frame = data
    return TrainJob(
        out=tmp_path / "student", storage=storage, frame=frame, header=HEADER, recipe=recipe, settings=settings,
        device="cpu", n_workers=0, save_every_s=math.inf,
    )  # fmt: skip


@pytest.mark.parametrize("rowwise", [False, True])
def test_finds_the_least_squares_solution(
    tmp_path: Path, corpus: Any, regression: Any, linear: Any, rowwise: bool
) -> None:
    """With full batches the weights end at the normal equations' solution, streamed or collated once."""
    samples = regression(24)
    job = make_job(tmp_path, corpus(samples), linear, batch=24, rowwise=rowwise, **EXACT)
    want = least_squares(*arrays(samples), np.ones(24))
    assert learned(job) == pytest.approx(want, abs=2e-4)


def test_weights_of_the_batch_weigh_the_loss(tmp_path: Path, corpus: Any, regression: Any, linear: Any) -> None:
    """Weights that a learner gives its samples lead to the weighted least-squares solution, not the plain one."""
    samples = regression(24)
    job = make_job(tmp_path, corpus(samples), linear, batch=24, use_member_weights=True, **EXACT)
    weights = np.array([s["meta.json"]["weight"] for s in samples])
    want = least_squares(*arrays(samples), weights)
    assert np.abs(want - least_squares(*arrays(samples), np.ones(24))).max() > 0.02
    assert learned(job) == pytest.approx(want, abs=2e-4)


def test_weights_of_the_frame_lead_to_the_weighted_optimum(
    tmp_path: Path, corpus: Any, regression: Any, linear: Any
) -> None:
    """Drawing by fleet weight ends near the weighted least-squares solution, far from the plain one.

    The noise of drawing is averaged by a rate that falls to zero: seen 0.004 away from the one, 0.3 from the other.
    """
    samples = regression(24)
    weights = np.array([10.0 if i % 6 == 0 else 0.5 for i in range(24)])
    data = corpus(samples, fleet_weight=weights.tolist())
    job = make_job(tmp_path, data, linear, batch=24, **{**EXACT, "lr": 0.01, "steps": 3000})
    got = learned(replace(job, weights="fleet"))
    want, plain = least_squares(*arrays(samples), weights), least_squares(*arrays(samples), np.ones(24))
    assert np.abs(plain - want).max() > 0.15
    assert np.abs(got - want).max() < 0.03


def test_clean_targets_blend(tmp_path: Path, corpus: Any, regression: Any, linear: Any) -> None:
    """(1 - share) of the teacher's mean loss plus share of the clean ones' ends at that sum's own optimum.

    12 teacher draws and 2 clean ones, share 1/4 of a batch of 16: 12 teacher places, 4 clean ones (each twice), so that
    every batch has the exact sum 3/4 (1/12) sum_teacher + 1/4 (1/2) sum_clean: weighted least squares with weights
    1/16 and 1/8.
    """
    samples = regression(14)
    source = ["clean" if i in (3, 9) else "planned" for i in range(14)]
    job = make_job(tmp_path, corpus(samples, source=source), linear, batch=16, clean_share=0.25, **EXACT)
    weights = np.array([1 / 8 if s == "clean" else 1 / 16 for s in source])
    want = least_squares(*arrays(samples), weights)
    assert np.abs(want - least_squares(*arrays(samples), np.ones(14))).max() > 0.01
    assert learned(job) == pytest.approx(want, abs=2e-4)


def test_blended_loss_by_hand() -> None:
    """1/2 (1*1 + 3*3)/4 + 1/2 * 8 = 5.25 for teacher losses 1, 3 of weights 1, 3 and one clean loss of 8."""
    losses, weight = torch.tensor([1.0, 8.0, 3.0]), torch.tensor([1.0, 7.0, 3.0])
    clean = torch.tensor([False, True, False])
    assert float(blended_loss(losses, weight, clean, 0.5)) == pytest.approx(5.25)
    assert float(blended_loss(losses, weight, clean, 0.0)) == pytest.approx((1 + 56 + 9) / 11)


def test_learning_rate_by_hand() -> None:
    """100 steps, warm-up 0.1: 1/10 of lr at step 0, lr at 9, half of the way down to lr_final in the middle."""
    settings = {"steps": 110, "warmup": 0.1, "lr": 2.0, "lr_final": 0.5}  # warm-up of 11 steps, then 99
    assert learning_rate(0, settings) == pytest.approx(2 / 11)
    assert learning_rate(10, settings) == pytest.approx(2.0)
    assert learning_rate(11, settings) == pytest.approx(2.0)
    assert learning_rate(11 + 33, settings) == pytest.approx(1 + 0.5 * (1 + 0.5))  # cos(pi/3) = 1/2
    assert learning_rate(109, settings) == pytest.approx(1.0, abs=1e-3)


def test_average_of_the_weights(tmp_path: Path, corpus: Any, regression: Any, linear: Any) -> None:
    """The saved weights are the average sum_t (1 - d_t) prod_{s>t} d_s theta_t of the weights after each step.

    The weights before each step are seen by the loss; the last ones are the student's of a run that never averages.
    """
    assert ema_decay(0, {"ema": 0.9}) == pytest.approx(0.1)
    assert ema_decay(1000, {"ema": 0.9}) == pytest.approx(0.9)
    seen: list[np.ndarray] = []
    module = sys.modules["recipes_of_tests.linear"]

    class Watched(module.Linear):  # type: ignore[misc,name-defined]
        def loss(self, batch: Any, generator: Any) -> Any:
            seen.append(self.network[0].weight.detach().numpy().copy())
            return super().loss(batch, generator)

    before, module.Linear = module.Linear, Watched
    try:
        job = make_job(tmp_path, corpus(regression(16)), linear, steps=12, ema=0.5, batch=4)
        got = learned(job)
        last = learned(replace(job, out=tmp_path / "last", settings={**job.settings, "ema": 0.0}))
    finally:
        module.Linear = before
    want = seen[0]  # before the first step
    for step, theta in enumerate([*seen[1:12], last]):
        d = min(0.5, (1 + step) / (10 + step))
        want = d * want + (1 - d) * theta
    assert got == pytest.approx(want, abs=1e-6)
    assert np.abs(got - last).max() > 1e-3


def test_decay_and_clipping_by_hand(tmp_path: Path, corpus: Any, regression: Any, linear: Any) -> None:
    """Without a gradient a step only decays: theta (1 - lr wd). A gradient clipped far below AdamW's eps hardly moves.

    AdamW's first step is lr g / (|g| + 1e-8): lr for any gradient to speak of, under lr/50 once it is 1e-10 long.
    """
    still = [{**s, "cond.npy": 0 * s["cond.npy"], "latent.npy": 0 * s["latent.npy"]} for s in regression(8)]
    job = make_job(tmp_path, corpus(still, location="still"), linear, steps=1, lr=0.0, warmup=0.0)
    first = learned(job)
    decayed = {**job.settings, "lr": 0.5, "weight_decay": 0.4}
    assert learned(replace(job, out=tmp_path / "decayed", settings=decayed)) == pytest.approx(first * 0.8, rel=1e-6)
    job = make_job(tmp_path / "moving", corpus(regression(8)), linear, steps=1, lr=0.5, warmup=0.0)
    clipped = replace(job, out=tmp_path / "clipped", settings={**job.settings, "clip": 1e-10})
    assert np.abs(learned(job) - first) == pytest.approx(np.full((2, 3), 0.5), rel=1e-4)
    assert np.abs(learned(clipped) - first).max() < 0.01


def test_every_step_has_its_own_noise(tmp_path: Path, corpus: Any, regression: Any, linear: Any) -> None:
    """Generators differ from step to step and from seed to seed, and not from run to run."""
    drawn: list[float] = []
    module = sys.modules["recipes_of_tests.linear"]

    class Watched(module.Linear):  # type: ignore[misc,name-defined]
        def loss(self, batch: Any, generator: Any) -> Any:
            drawn.extend((float(torch.rand((), generator=generator)), float(torch.rand(()))))
            return super().loss(batch, generator)

    before, module.Linear = module.Linear, Watched
    try:
        job = make_job(tmp_path, corpus(regression(8)), linear, steps=5)
        for i, seed in enumerate((0, 0, 1)):
            train(replace(job, out=tmp_path / str(i), seed=seed))
    finally:
        module.Linear = before
    assert drawn[:10] == drawn[10:20]
    assert len(set(drawn[::2])) == len(set(drawn[1::2])) == 10


@pytest.mark.parametrize("n_workers", [0, 2])
def test_same_bytes_twice(tmp_path: Path, corpus: Any, regression: Any, linear: Any, n_workers: int) -> None:
    """Two runs of one job, the frame in another order, with threads or without, write the same weights and header."""
    data = corpus(regression(16))
    job = make_job(tmp_path, data, linear, noise=0.1, dropout=0.2, ema=0.9)
    first = train(job)
    torch.manual_seed(99)  # the caller's own randomness has no say
    second = train(replace(job, out=tmp_path / "again", frame=data[1].reverse(), n_workers=n_workers))
    assert first.header == second.header
    assert (first.out / "weights.safetensors").read_bytes() == (second.out / "weights.safetensors").read_bytes()
    other = train(replace(job, out=tmp_path / "other", seed=1))
    assert other.artefact != first.artefact


def test_the_callers_randomness_is_untouched(tmp_path: Path, corpus: Any, regression: Any, linear: Any) -> None:
    """A training leaves the caller's generator where it was."""
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    train(make_job(tmp_path, corpus(regression(8)), linear))
    assert torch.equal(torch.rand(3), want)


def test_student_json_has_the_lineage(tmp_path: Path, corpus: Any, regression: Any, linear: Any) -> None:
    """The header names family, recipe, all settings, network, teacher, snapshot, parent, seed, steps and precision."""
    job = make_job(tmp_path, corpus(regression(16)), linear, lr=0.01)
    parent = train(job)
    child = train(replace(job, out=tmp_path / "child", parent=parent.out, settings={"warm_start": True, "lr": 0.0}))
    header = json.loads((child.out / "student.json").read_text())
    assert header == child.header
    assert header["format"] == 1
    assert (header["family"], header["recipe"], header["precision"]) == ("regressor", "linear", "float32")
    assert header["network"] == {"kind": "linear", "sizes": [3, 2]}
    assert header["teacher"] == {"id": "world", "version": "1", "content_hash": "feed"}
    assert (header["snapshot"], header["seed"], header["steps"]) == (HEADER["snapshot_id"], 0, 20)
    assert header["settings"]["lr"] == 0.0
    assert header["settings"]["beta2"] == 0.99
    assert header["parent"] == parent.artefact
    assert header["samples"]["n"] == 16
    # lr 0 from the parent's weights: nothing moved
    assert torch.equal(*(next(iter(student_weights(s.out).values())) for s in (parent, child)))


def test_again_is_a_no_op(tmp_path: Path, corpus: Any, regression: Any, linear: Any) -> None:
    """The same job in the same folder returns the same student and touches no file; nothing of the resume is left."""
    job = make_job(tmp_path, corpus(regression(16)), linear)
    first = train(job)
    times = {p.name: p.stat().st_mtime_ns for p in job.out.iterdir() if not p.name.startswith(".")}
    second = train(replace(job, save_every_s=1.0, n_workers=2))  # how it is run does not matter
    assert sorted(times) == ["curve.parquet", "student.json", "weights.safetensors"]
    assert {p.name: p.stat().st_mtime_ns for p in job.out.iterdir() if p.name in times} == times
    assert (first.fresh, second.fresh) == (True, False)
    assert first.header == second.header
    assert second.final_loss == first.final_loss


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"settings": {"lr": 0.5}}, "lr 0.05 -> 0.5"),
        ({"seed": 3}, "seed 0 -> 3"),
        ({"header": {**HEADER, "snapshot_id": "other"}}, "snapshot '00112233445566aa' -> 'other'"),
        ({"weights": "fleet"}, "weights 'plan' -> 'fleet'"),
    ],
)
def test_another_job_is_refused(
    tmp_path: Path, corpus: Any, regression: Any, linear: Any, change: dict[str, Any], words: str
) -> None:
    """A folder with one job's student refuses another job and says what differs; the student stays."""
    job = make_job(tmp_path, corpus(regression(16)), linear)
    first = train(job)
    with pytest.raises(DistdataError, match="another folder") as e:
        train(replace(job, **change))
    assert words in str(e.value)
    assert train(job).artefact == first.artefact


def test_other_samples_are_another_job(tmp_path: Path, corpus: Any, regression: Any, linear: Any) -> None:
    """A subset or other weights of the same snapshot are refused in the same folder."""
    storage, frame = corpus(regression(16))
    job = make_job(tmp_path, (storage, frame), linear)
    train(job)
    for other in (frame.head(15), frame.with_columns(weight=pl.lit(1.0) + pl.int_range(16))):
        with pytest.raises(DistdataError, match="samples"):
            train(replace(job, frame=other))


def test_altered_student_is_refused(tmp_path: Path, corpus: Any, regression: Any, linear: Any) -> None:
    """A finished student with one changed byte is neither returned nor written over."""
    job = make_job(tmp_path, corpus(regression(16)), linear)
    path = train(job).out / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DistdataError, match="was altered"):
        train(job)
    assert path.read_bytes() == data


def test_loss_that_is_no_number_stops(tmp_path: Path, corpus: Any, regression: Any, linear: Any) -> None:
    """The message names the step at which the poisoned sample came, the rate and the way out; no student is written.

    Batches of one sample: row 5 comes at its place in the first epoch's order.
    """
    from distdata.train_min.loader import Batches

    data = corpus(regression(16))
    job = make_job(tmp_path, data, linear, batch=1, poison_row=5, steps=40, log_every=7, warmup=0.0)
    order = Batches(data[1], batch=1, seed=0)
    at = next(step for step in range(16) if order.rows(step)[0] == 5)
    lr = learning_rate(at, {"warmup": 0.0, "steps": 40, "lr": 0.05, "lr_final": 0.0})
    saving = replace(job, save_every_steps=1 if at == 0 else at)
    with pytest.raises(DistdataError) as e:
        train(saving)
    assert f"not finite at step {at + 1} of 40 (lr {lr:.3g})" in str(e.value)
    assert "lower lr" in str(e.value)
    assert not (job.out / "student.json").exists()
    if at:
        assert json.loads((job.out / "resume.json").read_text())["step"] == at


def test_curve(tmp_path: Path, corpus: Any, regression: Any, linear: Any) -> None:
    """One row per log_every steps and one at the end, with the means of loss and logged values since the row before."""

    class Told(Quiet):
        def __init__(self) -> None:
            self.heard: list[tuple[int, float, float]] = []

        def advance(self, step: int, loss: float, lr: float, values: Mapping[str, float]) -> None:
            self.heard.append((step, loss, lr))

    data = corpus(regression(16))
    told = Told()
    job = make_job(tmp_path, data, linear, steps=12, log_every=5)
    curve = read_curve(train(job, told).out / "curve.parquet")
    assert curve["step"].to_list() == [5, 10, 12]
    assert {"loss", "lr", "wall_s", "largest", "grad_norm"} < set(curve.columns)
    assert told.heard == list(zip(curve["step"], curve["loss"], curve["lr"], strict=True))
    fine = read_curve(
        train(replace(job, out=tmp_path / "fine", settings={"steps": 12, "log_every": 1})).out / "curve.parquet"
    )
    assert curve["loss"][0] == pytest.approx(fine["loss"][:5].mean())
    assert curve["largest"][2] == pytest.approx(fine["largest"][10:].mean())
    assert curve["wall_s"].is_sorted()


def test_int8_copy_comes_along(tmp_path: Path, corpus: Any, regression: Any) -> None:
    """A student of the table's recipes has its quantised copy, with its own hash; one that is lost is made again."""
    job = make_job(tmp_path, corpus(regression(16)), find_recipe("regression"), steps=3, batch=8, width=4, depth=1)
    student = train(job)
    small = read_student(job.out / "int8")
    assert small is not None
    assert (small["precision"], small["quantised_from"]) == ("int8", student.artefact)
    assert small["artefact"] != student.artefact
    (job.out / "int8" / "student.json").unlink()
    assert not train(job).fresh
    assert read_student(job.out / "int8") == small
    train(replace(job, out=tmp_path / "plain", settings={**job.settings, "int8": False}))
    assert not (tmp_path / "plain" / "int8").exists()


def test_devices() -> None:
    """auto is the GPU if there is one; a name that is none, and a GPU that is not there, are refused."""
    there = torch.cuda.is_available()
    assert choose_device("auto") == ("cuda" if there else "cpu")
    assert choose_device("cpu") == "cpu"
    with pytest.raises(DistdataError, match="not known"):
        choose_device("tpu")
    if not there:
        with pytest.raises(DistdataError, match="no GPU"):
            choose_device("cuda")


def test_warm_start_without_parent(tmp_path: Path, corpus: Any, regression: Any, linear: Any) -> None:
    """A warm start needs a parent, and a parent must be a finished student."""
    job = make_job(tmp_path, corpus(regression(8)), linear, warm_start=True)
    with pytest.raises(DistdataError, match="no parent"):
        train(job)
    with pytest.raises(DistdataError, match="no finished student"):
        train(replace(job, parent=tmp_path / "nothing"))


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path, corpus: Any, regression: Any, linear: Any) -> None:
    """While one training holds the folder, another is told who does."""
    data = corpus(regression(8))

    class Second(Quiet):
        def advance(self, step: int, loss: float, lr: float, values: Mapping[str, float]) -> None:
            with pytest.raises(DistdataError, match=f"process {os.getpid()} is training here"):
                train(make_job(tmp_path, data, linear))

    assert train(make_job(tmp_path, data, linear, steps=5), Second()).fresh


def test_ctrl_c_saves(tmp_path: Path, corpus: Any, regression: Any, linear: Any) -> None:
    """SIGINT between two steps saves the state of exactly that step; the same call goes on to the same weights."""
    data = corpus(regression(16))

    class Stop(Quiet):
        def advance(self, step: int, loss: float, lr: float, values: Mapping[str, float]) -> None:
            if step == 10:
                os.kill(os.getpid(), signal.SIGINT)

    job = make_job(tmp_path, data, linear)
    with pytest.raises(KeyboardInterrupt):
        train(job, Stop())
    assert json.loads((job.out / "resume.json").read_text())["step"] == 10
    whole = train(replace(job, out=tmp_path / "whole"))
    assert train(job).artefact == whole.artefact
