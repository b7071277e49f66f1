"""What a training is made of: the recipe, the facts of its samples, the learner, the job, and what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..catalogs.storage import Storage

if TYPE_CHECKING:
    import torch

Family = Literal["denoiser", "regressor", "causal_lm"]
WeightColumn = Literal["plan", "fleet"]
Batch = dict[str, Any]
"""What `Learner.collate` returns: tensors by name, among them `weight` float32 [B] and `clean` bool [B]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One way to learn a student.

    `build` names the function that makes the learner, ``module:function`` within `train_min`, called with the resolved
    settings and the `Facts`. `defaults` are the settings that a job may override; `members` is what any learner of
    the recipe may read; `source` is the paper.
    """

    name: str
    family: Family
    build: str
    defaults: Mapping[str, Any]
    members: tuple[str, ...]
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What one pass over the training samples found.

    `latent` is the shape of ``latent.npy`` (empty without), `mean` and `std` its moments per dimension, float64
    [*latent]; `n_conditions` is the length of ``cond.npy`` (0 without), `cond_mean` and `cond_std` float64 [C]. A
    standard deviation of 0 is a dimension that never varies. `vocabulary` is the number of token ids that the samples
    or their teacher declare (0: they declare none), `max_token` the largest id met (-1: none), `max_tokens` the longest
    ``input_ids.npy``. `sample` is the first sample, all its members decoded; `teacher` is the snapshot's.
    """

    n_samples: int
    kind: str
    latent: tuple[int, ...]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    n_conditions: int
    cond_mean: NDArray[np.float64]
    cond_std: NDArray[np.float64]
    vocabulary: int
    max_token: int
    max_tokens: int
    sample: Mapping[str, Any]
    teacher: Mapping[str, Any]


class Learner(Protocol):
    """A network with its loss; the loop knows nothing else of a recipe.

    Two more are optional. ``fit(samples)`` is called before training with an iterable over all training samples,
    decoded (see `collate`). ``rowwise = True`` promises that `collate` treats each sample by itself and gives every
    sample the same shapes: the whole corpus is then collated once, kept on the device, and batches are picked by index.
    """

    network: torch.nn.Module
    members: tuple[str, ...]
    """Which members of a sample `collate` reads; no others are read from the shards."""

    def collate(self, samples: list[dict[str, Any]]) -> Batch:
        """Make a batch of B samples.

        A sample holds its decoded members by name and `weight` (float, 1.0: the loader draws samples in proportion to
        their weights, so a loss needs none), `clean` (bool) and `row` (int, in the job's frame). The batch holds
        `weight` float32 [B], `clean` bool [B] and whatever `loss` needs; a learner may set other weights (tokens, say).
        """
        ...

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the losses of the samples, float [B], and values to log.

        All randomness comes from `generator`, which lives on the batch's device.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Return all that is needed to build the network again, JSON-able: the "network" of ``student.json``."""
        ...


@runtime_checkable
class Fitting(Protocol):
    """A learner that looks at all samples before it trains."""

    def fit(self, samples: Any) -> None:
        """Look at every training sample once, decoded, in the frame's order."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """One training: what is learned from which samples, and where it is written.

    `frame` has a snapshot's columns; the loop reads sample_id, grp, source, kind, weight, fleet_weight, shard, offset
    and n_bytes. `weights` names the column that samples are drawn in proportion to. `parent` is the folder of the
    student that this one follows; training begins from its weights where settings.warm_start is true. `device` is
    auto (the GPU if there is one), cpu or cuda. What follows it changes nothing in the result.
    """

    out: Path
    storage: Storage
    frame: pl.DataFrame
    header: Mapping[str, Any]
    recipe: Recipe
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    weights: WeightColumn = "plan"
    parent: Path | None = None
    device: str = "auto"
    save_every_s: float = 30.0
    save_every_steps: int | None = None
    n_workers: int = 2
    cache_bytes: int = 2 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A finished student: its folder and what its ``student.json`` says.

    `fresh` is False when it was there already. `final_loss` is the mean of the curve's last row (NaN without rows);
    `validation_loss` is set by a sweep.
    """

    out: Path
    header: Mapping[str, Any]
    final_loss: float
    fresh: bool
    validation_loss: float | None = None

    @property
    def artefact(self) -> str:
        """Return the 16 hex digits that name exactly these weights with this header."""
        return str(self.header["artefact"])


class TrainReporter(Protocol):
    """Who is told how a training goes; `curves.ShowTraining` shows it to people."""

    def begin(self, *, recipe: str, steps: int, done: int, n_samples: int, n_parameters: int, device: str) -> None:
        """Hear that a training starts with `done` of `steps` steps already made."""

    def advance(self, step: int, loss: float, lr: float, values: Mapping[str, float]) -> None:
        """Hear that `step` steps are made, and the means of loss and logged values since the last time."""

    def note(self, text: str) -> None:
        """Hear something worth a line."""

    def end(self) -> None:
        """Hear that the training is over, well or not."""


class Quiet:
    """Tell nobody how a training goes."""

    def begin(self, *, recipe: str, steps: int, done: int, n_samples: int, n_parameters: int, device: str) -> None:
        """Do nothing."""

    def advance(self, step: int, loss: float, lr: float, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""


def clean_rows(frame: pl.DataFrame) -> NDArray[np.bool_]:
    """Tell which rows no teacher made: their `source` is ``clean``. Bool [N]."""
    found: NDArray[np.bool_] = frame.select((pl.col("source") == "clean").fill_null(False)).to_series().to_numpy()
    return found
