"""Saved states and students: whole or not there, and a resumed training ends in the same bits."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from distdata.catalogs.effects import observe
from distdata.catalogs.errors import DistdataError
from distdata.train_min.checkpoint import (
    load_weights,
    network_weights,
    read_resume,
    read_student,
    student_weights,
    write_resume,
    write_student,
)
from distdata.train_min.curves import read_curve
from distdata.train_min.job import Quiet, TrainJob
from distdata.train_min.loop import train

HEADER = {"snapshot_id": "00112233445566aa", "teacher": {"id": "world", "version": "1", "content_hash": "feed"}}


class Killed(BaseException):
    """What stands for the end of the process: nothing in the loop expects it."""


class KillAt(Quiet):
    """End the training when it has made `step` steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def advance(self, step: int, loss: float, lr: float, values: Mapping[str, float]) -> None:
        if step == self.step:
            raise Killed


@pytest.fixture
def job(tmp_path: Path, corpus: Any, regression: Any, linear: Any) -> TrainJob:
    """A job of 20 steps with all that has a state: noise, dropout, momentum, average, weights, clean samples."""
    n = 17
    storage, frame = corpus(
        regression(n), weight=[0.5 + i % 3 for i in range(n)],
        source=["clean" if i % 5 == 0 else "planned" for i in range(n)],
    )  # fmt: skip
    settings = {
        "noise": 0.1, "dropout": 0.3, "ema": 0.9, "weight_decay": 0.1, "clip": 0.5, "clean_share": 0.3, "log_every": 1,
    }  # fmt: skip
    return TrainJob(
        out=tmp_path / "student", storage=storage, frame=frame, header=HEADER, recipe=linear, settings=settings,
        device="cpu", n_workers=0, save_every_s=math.inf,
    )  # fmt: skip


@pytest.mark.parametrize("rowwise", [False, True])
@pytest.mark.parametrize("stops", [(3,), (7, 8), (19,), (5, 11, 20)])
def test_resumed_is_uninterrupted(job: TrainJob, tmp_path: Path, stops: tuple[int, ...], rowwise: bool) -> None:
    """A training ended at any steps and run again has the weights, header and curve of one that never stopped.

    States are saved every third step, so that a resume repeats up to two of them.
    """
    job = replace(job, settings={**job.settings, "rowwise": rowwise})
    whole = train(replace(job, out=tmp_path / "whole"))
    for stop in stops:
        with pytest.raises(Killed):
            train(replace(job, save_every_steps=3), KillAt(stop))
        saved = read_resume(job.out)
        assert (saved[1]["step"] if saved else 0) == (stop - 1) // 3 * 3
    resumed = train(replace(job, save_every_steps=3, n_workers=2))
    assert resumed.header == whole.header
    assert (resumed.out / "weights.safetensors").read_bytes() == (whole.out / "weights.safetensors").read_bytes()
    curves = [read_curve(s.out / "curve.parquet").drop("wall_s") for s in (resumed, whole)]
    assert curves[0].equals(curves[1])


def test_windows_of_the_curve_survive(job: TrainJob, tmp_path: Path) -> None:
    """Means of the curve that were half summed when the training ended come out as if it had not."""
    job = replace(job, settings={**job.settings, "log_every": 10})
    whole = read_curve(train(replace(job, out=tmp_path / "whole")).out / "curve.parquet")
    with pytest.raises(Killed):
        train(replace(job, save_every_steps=7), KillAt(10))
    resumed = read_curve(train(job).out / "curve.parquet")
    assert resumed.drop("wall_s").equals(whole.drop("wall_s"))


@pytest.fixture
def effects() -> Iterator[list[str]]:
    """The effects heard, in order."""
    heard: list[str] = []
    observe(heard.append)
    yield heard
    observe(None)


def test_killed_at_every_effect(job: TrainJob, tmp_path: Path, effects: list[str]) -> None:
    """Ended at each write, fsync and rename in turn, the same call always ends in the same student."""
    job = replace(job, save_every_steps=8, settings={**job.settings, "steps": 18, "log_every": 9})
    whole = train(replace(job, out=tmp_path / "whole"))
    n_effects = len(effects)
    assert {"train.resume.rename", "train.weights.rename", "train.student.rename", "train.curve.rename"} <= set(effects)
    for n in range(n_effects):
        heard = []

        def end(name: str, n: int = n, heard: list[str] = heard) -> None:
            heard.append(name)
            if len(heard) == n + 1:
                raise Killed

        out = tmp_path / f"killed-{n}"
        observe(end)
        with pytest.raises(Killed):
            train(replace(job, out=out))
        observe(None)
        again = train(replace(job, out=out))
        assert again.header == whole.header, heard[-1]
        assert (out / "weights.safetensors").read_bytes() == (whole.out / "weights.safetensors").read_bytes()
        assert not (out / "resume.safetensors").exists()


def test_state_of_another_job_is_refused(job: TrainJob) -> None:
    """A half-finished training refuses another job's settings in its folder, and keeps its state."""
    with pytest.raises(Killed):
        train(replace(job, save_every_steps=3), KillAt(7))
    before = (job.out / "resume.safetensors").read_bytes()
    with pytest.raises(DistdataError, match=r"the state at step 6 of another job \(steps 20 -> 30\)"):
        train(replace(job, settings={**job.settings, "steps": 30}))
    assert (job.out / "resume.safetensors").read_bytes() == before


def test_damaged_state_is_named(job: TrainJob) -> None:
    """A truncated state is refused with its path and the way out."""
    with pytest.raises(Killed):
        train(replace(job, save_every_steps=3), KillAt(7))
    path = job.out / "resume.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DistdataError, match=r"resume.safetensors: damaged .* Delete it"):
        train(job)
    path.unlink()
    assert train(job).fresh


def test_state_round_trips(tmp_path: Path) -> None:
    """Tensors come back bit for bit, NaN and dtypes included, and the state as JSON gives it."""
    tensors = {"a": torch.tensor([1.0, math.nan, -0.0]), "b": torch.arange(3, dtype=torch.int64)}
    state = {"job": {"x": [1, None]}, "step": 3, "steps": 9, "window": {"loss": [math.inf, 2]}}
    write_resume(tmp_path, tensors, state)
    found = read_resume(tmp_path)
    assert found is not None
    assert found[1] == state
    assert torch.equal(found[0]["a"].view(torch.int32), tensors["a"].view(torch.int32))
    assert torch.equal(found[0]["b"], tensors["b"])
    assert json.loads((tmp_path / "resume.json").read_text()) == {"job": {"x": [1, None]}, "step": 3, "steps": 9}
    assert read_resume(tmp_path / "nothing") is None


def test_artefact_names_weights_and_header(tmp_path: Path) -> None:
    """Other weights or another header give another artefact, equal ones the same; reading checks both."""
    tensors = {"w": torch.arange(4.0), "b": torch.zeros(2)}
    first = write_student(tmp_path / "a", tensors, {"recipe": "r"})
    assert first == read_student(tmp_path / "a")
    assert len(first["artefact"]) == 16
    assert write_student(tmp_path / "b", dict(reversed(tensors.items())), {"recipe": "r"}) == first
    assert write_student(tmp_path / "c", tensors, {"recipe": "s"})["artefact"] != first["artefact"]
    assert (
        write_student(tmp_path / "d", {**tensors, "b": torch.ones(2)}, {"recipe": "r"})["artefact"] != first["artefact"]
    )
    assert torch.equal(student_weights(tmp_path / "a")["w"], tensors["w"])
    assert read_student(tmp_path / "none") is None
    path = tmp_path / "a" / "student.json"
    path.write_text(path.read_text().replace('"r"', '"q"'))
    with pytest.raises(DistdataError, match="was altered"):
        read_student(tmp_path / "a")
    path.write_text("{")
    with pytest.raises(DistdataError, match="no whole student"):
        read_student(tmp_path / "a")
    path.write_text(json.dumps({**first, "format": 2}))
    with pytest.raises(DistdataError, match="format 2"):
        read_student(tmp_path / "a")


class Tied(torch.nn.Module):
    """A language model's shape: the output shares the embedding's matrix."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(5, width)
        self.out = torch.nn.Linear(width, 5, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("scale", torch.ones(2))


def test_shared_weights_are_stored_once() -> None:
    """Tied weights are stored under one name and fill both places again; buffers come along."""
    net, other = Tied(), Tied()
    net.scale += 1
    tensors = network_weights(net)
    assert sorted(tensors) == ["embed.weight", "scale"]
    load_weights(other, tensors, "here")
    assert torch.equal(other.out.weight, net.embed.weight)
    assert torch.equal(other.scale, net.scale)
    assert other.out.weight is other.embed.weight


def test_weights_of_another_network_are_refused() -> None:
    """Missing, unknown and misshapen tensors are named."""
    tensors = network_weights(Tied())
    with pytest.raises(DistdataError, match=r"here: .*another shape of embed.weight"):
        load_weights(Tied(3), tensors, "here")
    with pytest.raises(DistdataError, match="nothing for scale"):
        load_weights(Tied(), {"embed.weight": tensors["embed.weight"]}, "here")
    with pytest.raises(DistdataError, match="no place for extra"):
        load_weights(Tied(), {**tensors, "extra": torch.zeros(1)}, "here")
