"""Curves: exact means over windows, and what a person is told."""

from __future__ import annotations

import io
import json
from pathlib import Path

import polars as pl
import torch

from distdata.train_min.curves import ShowTraining, Window, read_curve, write_curve


def test_window_means() -> None:
    """Means are over the steps that had a value, tensors and numbers alike, and begin anew after each look."""
    window = Window()
    window.add({"loss": torch.tensor(1.0), "kl": 4.0})
    window.add({"loss": torch.tensor(2.0)})
    window.add({"loss": torch.tensor(6.0), "kl": torch.tensor(6.0)})
    assert window.means() == {"loss": 3.0, "kl": 5.0}
    assert window.means() == {}
    window.add({"loss": 7.0})
    assert window.means() == {"loss": 7.0}


def test_window_goes_on() -> None:
    """A window from another's state, through JSON, has the same means."""
    window = Window()
    window.add({"loss": torch.tensor(0.1, dtype=torch.float64)})
    other = Window(json.loads(json.dumps(window.state())))
    for w in (window, other):
        w.add({"loss": torch.tensor(0.2, dtype=torch.float64), "late": 1})
    assert window.means() == other.means() == {"loss": (0.1 + 0.2) / 2, "late": 1.0}


def test_curve_round_trips(tmp_path: Path) -> None:
    """Rows come back; a value that a row lacks is null; a curve without rows has its columns."""
    rows = [
        {"step": 5, "loss": 1.5, "lr": 0.1, "wall_s": 0.2},
        {"step": 9, "loss": 1.0, "lr": 0.0, "wall_s": 0.4, "kl": 2.0},
    ]
    write_curve(tmp_path / "curve.parquet", rows)
    found = read_curve(tmp_path / "curve.parquet")
    assert found.rows() == [(5, 1.5, 0.1, 0.2, None), (9, 1.0, 0.0, 0.4, 2.0)]
    assert found.columns == ["step", "loss", "lr", "wall_s", "kl"]
    write_curve(tmp_path / "curve.parquet", [])
    assert read_curve(tmp_path / "curve.parquet").schema == {
        "step": pl.Int64, "loss": pl.Float64, "lr": pl.Float64, "wall_s": pl.Float64
    }  # fmt: skip


def test_people_are_told() -> None:
    """Off a terminal the first and the last line name recipe, steps, samples, parameters, device and loss."""
    out = io.StringIO()
    show = ShowTraining(out)
    show.begin(recipe="capacity", steps=4000, done=1000, n_samples=5120, n_parameters=123456, device="cpu")
    show.advance(4000, 0.25, 1e-3, {"kl": 0.5})
    show.end()
    first, last = out.getvalue().splitlines()
    assert first == "train capacity: 4,000 steps from step 1,000 over 5,120 samples, 123,456 parameters, on cpu"
    assert last.startswith("trained to step 4,000 in ")
    assert last.endswith("loss 0.25")
