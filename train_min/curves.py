"""How a training goes: the curve that is kept, and what a person is shown of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import polars as pl

from ..catalogs.files import atomic_file
from ..catalogs.tables import count, duration

PLAIN_EVERY_S = 5.0
CURVE_COLUMNS = {"step": pl.Int64, "loss": pl.Float64, "lr": pl.Float64, "wall_s": pl.Float64}
"""Columns of every curve; a learner's logged values follow under their own names."""


class Window:
    """Sums since the last row of the curve: losses and logged values, each over the steps that had one.

    What is added may be tensors; nothing waits for a device before `means`.
    """

    def __init__(self, state: Mapping[str, Sequence[float]] | None = None) -> None:
        self._sums: dict[str, Any] = {k: s for k, (s, _) in (state or {}).items()}
        self._n: dict[str, int] = {k: int(n) for k, (_, n) in (state or {}).items()}

    def add(self, values: Mapping[str, Any]) -> None:
        """Take in one step's values."""
        for key, value in values.items():
            self._sums[key] = self._sums[key] + value if key in self._sums else value
            self._n[key] = self._n.get(key, 0) + 1

    def means(self) -> dict[str, float]:
        """Return the mean of every value since the last call, and begin anew."""
        found = {key: float(s) / self._n[key] for key, s in self._sums.items()}
        self._sums, self._n = {}, {}
        return found

    def state(self) -> dict[str, list[float]]:
        """Return the sums as plain data, for a `Window` that goes on."""
        return {key: [float(s), self._n[key]] for key, s in self._sums.items()}


def write_curve(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a curve's rows (`CURVE_COLUMNS` and logged values) as Parquet, durably."""
    names = list(dict.fromkeys([*CURVE_COLUMNS, *(name for row in rows for name in row)]))
    frame = pl.DataFrame(
        {name: [row.get(name) for row in rows] for name in names},
        schema={name: CURVE_COLUMNS.get(name, pl.Float64) for name in names},
    )
    with atomic_file(path, "train.curve") as f:
        frame.write_parquet(f)


def read_curve(path: Path) -> pl.DataFrame:
    """Return a training's curve: step, loss, lr, wall_s (of the whole training so far) and logged values."""
    return pl.read_parquet(path)


class ShowTraining:
    """Tell stderr how a training goes: steps, loss, steps per second and the time left."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._out = stream or sys.stderr
        self._live: Any = None
        self._start = self._last = time.monotonic()
        self._first = self._step = self._steps = 0
        self._loss = float("nan")

    def begin(self, *, recipe: str, steps: int, done: int, n_samples: int, n_parameters: int, device: str) -> None:
        """Say what is about to happen."""
        self._start = self._last = time.monotonic()
        self._first, self._step, self._steps = done, done, steps
        kept = f" from step {count(done)}" if done else ""
        self.note(
            f"train {recipe}: {count(steps)} steps{kept} over {count(n_samples)} samples, "
            f"{count(n_parameters)} parameters, on {device}"
        )
        if self._out.isatty():
            self._live = _bar(self._out, steps, done)

    def advance(self, step: int, loss: float, lr: float, values: Mapping[str, float]) -> None:
        """Move on to `step`."""
        self._step, self._loss = step, loss
        logged = "".join(f"  {name} {value:.4g}" for name, value in values.items())
        if self._live is not None:
            self._live.update(0, completed=step, said=self._said() + logged)
        elif time.monotonic() - self._last >= PLAIN_EVERY_S:
            self._last = time.monotonic()
            self.note(f"  step {count(step)} of {count(self._steps)}  {self._said()}  lr {lr:.2g}{logged}")

    def _said(self) -> str:
        rate = self._rate()
        left = duration((self._steps - self._step) / rate) if rate > 0 else "?"
        return f"loss {self._loss:.4g}  {rate:,.0f} steps/s  {left} left"

    def _rate(self) -> float:
        return (self._step - self._first) / max(time.monotonic() - self._start, 1e-9)

    def note(self, text: str) -> None:
        """Print a line."""
        print(text, file=self._out, flush=True)

    def end(self) -> None:
        """Take the bar down and leave the last figures."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        elapsed = duration(time.monotonic() - self._start)
        self.note(f"trained to step {count(self._step)} in {elapsed} ({self._rate():,.0f}/s), loss {self._loss:.4g}")


def _bar(out: TextIO, total: int, done: int) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    live = Progress(
        TextColumn("steps"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[said]}"),
        console=Console(file=out), transient=True,
    )  # fmt: skip
    live.start()
    live.add_task("steps", total=total, completed=done, said="")
    return live
