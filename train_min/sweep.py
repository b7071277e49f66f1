"""Train under a few settings and say which does best on groups that none of them saw."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from ..catalogs.errors import DistdataError
from ..catalogs.files import atomic_file, write_atomic
from ..catalogs.hashing import content_hash, hash64, unit_intervals
from ..catalogs.tables import render_rows
from .checkpoint import load_weights, student_weights
from .job import Learner, Quiet, Trained, TrainJob, TrainReporter
from .loader import StoredSamples, sample_weights
from .loop import choose_device, fresh_randomness, make_learner, seeded, train
from .recipes import resolve_settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

VALIDATION = "validation.json"
RESULTS = "sweep.parquet"
MAX_SETTINGS = 200
_BATCH = 1024


def sweep(
    job: TrainJob, grid: Mapping[str, Sequence[Any]], reporter: TrainReporter | None = None, *, share: float = 0.1
) -> list[Trained]:
    """Train the job under every combination of the grid's values and return the students, the best one first.

    `share` of the groups (at least one) is held out of all of them, by a hash of the group; the loss on those groups'
    samples, weighted as the job's and with the same noise for all, is each student's `validation_loss` (NaN comes
    last). Each has a folder of its own in ``job.out``, and the call goes on where it stopped. Losses of settings that
    change the loss itself (its weighting, its noise levels) don't compare.

    Raises:
        DistdataError: an empty grid or one of over 200 settings, a setting that the recipe doesn't have, fewer than
            two groups, or what `train` raises.
    """
    reporter = reporter or Quiet()
    points = grid_points(grid)
    for point in points:
        resolve_settings(job.recipe, {**job.settings, **point})  # a typo is found before the first hour is spent
    kept, held_out = hold_out(job.frame, job.seed, share)
    students = []
    for i, point in enumerate(points):
        reporter.note(f"setting {i + 1} of {len(points)}: {point_text(point)}")
        one = replace(job, out=job.out / point_name(point), frame=kept, settings={**job.settings, **point})
        students.append(_validated(one, train(one, reporter), held_out))
    students.sort(key=_rank)
    _write_results(job.out, students, list(grid))
    return students


def grid_points(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return every combination of the grid's values, the last name changing fastest."""
    empty = [name for name, values in grid.items() if not values]
    if not grid or empty:
        raise DistdataError(
            f"sweep: {f'no values for {empty[0]}' if empty else 'no settings'}. Give some, as lr=1e-3,3e-4."
        )
    n = math.prod(len(values) for values in grid.values())
    if n > MAX_SETTINGS:
        raise DistdataError(f"sweep: {n:,} settings; at most {MAX_SETTINGS} are trained. Give fewer values.")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def point_text(point: Mapping[str, Any]) -> str:
    """Return a setting in words, as in ``lr 0.001, width 64``."""
    return ", ".join(f"{name} {value}" for name, value in point.items())


def point_name(point: Mapping[str, Any]) -> str:
    """Return the folder of a setting: its values as far as they are plain, and a hash of all of them."""
    plain = [f"{n}-{v}" for n, v in point.items() if isinstance(v, int | float | str)]
    text = "".join(c if c.isalnum() or c in "-_." else "-" for c in "_".join(plain))
    return f"{text[:60]}_{content_hash(point)[:6]}"


def hold_out(frame: pl.DataFrame, seed: int, share: float) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split a frame by group into what is trained on and what is held out.

    The groups of the smallest hashes are held out: round(share x groups), at least one, at most all but one.
    """
    if not 0 < share < 1:
        raise DistdataError(f"sweep: share = {share:g} of the groups held out; it must be between 0 and 1.")
    groups = frame["grp"].cast(pl.String).fill_null("").unique().sort().to_list()
    if len(groups) < 2:
        raise DistdataError(
            f"sweep: the {frame.height:,} samples are of {len(groups)} group; some must be held out. Import seeds of "
            "more groups."
        )
    order = np.argsort(unit_intervals("train/holdout", str(seed), groups), kind="stable")
    n = min(max(round(share * len(groups)), 1), len(groups) - 1)
    out = pl.col("grp").cast(pl.String).fill_null("").is_in([groups[i] for i in order[:n]])
    return frame.filter(~out), frame.filter(out)


def _validated(job: TrainJob, student: Trained, held_out: pl.DataFrame) -> Trained:
    """Return the student with its validation loss, which is kept beside it."""
    path = job.out / VALIDATION
    ids = content_hash([held_out["sample_id"].sort().to_list(), job.weights])
    try:
        kept = json.loads(path.read_text())
        if (kept["artefact"], kept["held_out"]) == (student.artefact, ids):
            return replace(student, validation_loss=float(kept["loss"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or not whole: it is computed again
    loss = validation_loss(job, student, held_out)
    told = {"artefact": student.artefact, "held_out": ids, "loss": loss, "n_samples": held_out.height}
    write_atomic(path, (json.dumps(told, indent=2) + "\n").encode(), "train.validation")
    return replace(student, validation_loss=loss)


def validation_loss(job: TrainJob, student: Trained, held_out: pl.DataFrame) -> float:
    """Return the weighted mean loss of a finished student on other samples, all noise from a fixed seed."""
    settings = resolve_settings(job.recipe, job.settings)
    with fresh_randomness():
        learner, _ = make_learner(job, job.frame.sort("sample_id", maintain_order=True), settings)
        load_weights(learner.network, student_weights(student.out), student.out)
        frame = held_out.sort("sample_id")
        samples = StoredSamples(job.storage, frame, learner.members, cache_bytes=0)
        return _mean_loss(
            learner, samples, sample_weights(frame, job.weights), choose_device(job.device), settings["clean_share"]
        )


def _mean_loss(
    learner: Learner, samples: StoredSamples, weights: NDArray[np.float64], device: str, clean_share: float
) -> float:
    """Blend the weighted mean losses of teacher draws and clean samples as the loop does; NaN when there are none."""
    import torch

    learner.network.to(device).eval()
    totals, sums = np.zeros(2), np.zeros(2)  # teacher draws, clean samples
    with torch.no_grad():
        for start in range(0, len(samples), _BATCH):
            stop = min(start + _BATCH, len(samples))
            batch = {k: v.to(device) for k, v in learner.collate([samples[i] for i in range(start, stop)]).items()}
            losses, _ = learner.loss(batch, seeded(hash64("train/validation", start) >> 1, device))
            own = batch["weight"].double().cpu().numpy() * weights[start:stop]
            for i, part in enumerate((~samples.clean[start:stop], samples.clean[start:stop])):
                totals[i] += float((losses.double().cpu().numpy() * own)[part].sum())
                sums[i] += float(own[part].sum())
    shares = np.array([1 - clean_share, clean_share])
    counts = shares > 0
    return float((shares[counts] * totals[counts] / sums[counts]).sum()) if (sums[counts] > 0).all() else math.nan


def _rank(student: Trained) -> float:
    loss = student.validation_loss
    return math.inf if loss is None or math.isnan(loss) else loss


def _write_results(out: Path, students: Sequence[Trained], names: Sequence[str]) -> None:
    rows = [_row(s, names) for s in students]
    columns = {
        key: [json.dumps(r[key]) if isinstance(r[key], list | dict) else r[key] for r in rows] for key in rows[0]
    }
    with atomic_file(out / RESULTS, "train.sweep") as f:
        pl.DataFrame(columns, strict=False).write_parquet(f)


def _row(student: Trained, names: Sequence[str]) -> dict[str, Any]:
    settings = {name: student.header["settings"][name] for name in names}
    return {
        **settings,
        "validation_loss": student.validation_loss,
        "final_loss": student.final_loss,
        "student": student.out.name,
        "artefact": student.artefact,
    }


def sweep_table(students: Sequence[Trained], names: Sequence[str], *, width: int, color: bool) -> str:
    """Lay out a sweep's students, in their order: the settings in `names`, held-out and training loss, folder."""
    rows = [list(_row(s, names).values()) for s in students]
    columns = [*names, "held-out loss", "training loss", "student", "artefact"]
    return render_rows(columns, rows, width=width, color=color)
