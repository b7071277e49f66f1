"""How long a student may be trusted in closed loop: when its track surely leaves the teacher's by a threshold."""

from __future__ import annotations

import numpy as np
import polars as pl

from ..catalogs.errors import DistdataError
from .intervals import bounds_of_values, judge_mean, paired_values, undecided
from .paired import Ask, Finding, Floats, SliceDraws, slice_draws

N_TIMES = 12
"""Times of a track (`curate.metrics.drift`)."""
HORIZON_SCHEMA = {
    "slice": pl.String, "n_seeds": pl.Int64, "n_steps": pl.Int64, "horizon_s": pl.Float64, "low_s": pl.Float64,
    "high_s": pl.Float64, "reason": pl.String,
}  # fmt: skip


def divergence(draws: SliceDraws) -> Floats | str:
    """Return the distance between student and teacher after each step, as seed means [m, n_steps], or why not.

    Both tracks start at one point and see one noise, so what parts them is the student. `track` is [times, agents, 2]
    laid flat, time first; twelve times where the length allows, else one agent. Of several agents the farthest counts.
    """
    if not (draws.has("teacher_track") and draws.has("student_track")):
        return "no tracks of both sides"
    teacher, student = draws.vectors("teacher_track"), draws.vectors("student_track")
    if teacher.shape != student.shape or teacher.shape[1] == 0 or teacher.shape[1] % 2:
        return f"tracks of {teacher.shape[1]} and {student.shape[1]} numbers; a track is n_steps pairs"
    bad = ~(np.isfinite(teacher).all(axis=1) & np.isfinite(student).all(axis=1))
    if bad.any():
        return f"{int(bad.sum())} of {draws.n_draws} draws have no track"
    width = teacher.shape[1]
    n_agents = width // (2 * N_TIMES) if width % (2 * N_TIMES) == 0 else 1
    apart = np.sqrt(((student - teacher).reshape(draws.n_draws, -1, n_agents, 2) ** 2).sum(axis=3)).max(axis=2)
    return draws.mean_by_seed(apart)


def drift(draws: SliceDraws, ask: Ask) -> list[Finding]:
    """Judge how far the student is from the teacher after the last step, on average, in the tracks' unit.

    Without tracks the scalar column `drift` is compared instead, student less teacher.
    """
    if draws.has("teacher_track") or draws.has("student_track"):
        apart = divergence(draws)
        if isinstance(apart, str):
            return undecided(draws, ask, "final divergence", apart)
        last = apart[:, -1]
        scale = float(np.linalg.norm(np.ptp(draws.vectors("teacher_track")[:, -2:], axis=0)))
        name = f"divergence after {apart.shape[1]} steps"
        return [judge_mean(draws, last, ask, name, share=False, scale=scale)]
    values = paired_values(draws, "drift")
    if isinstance(values, str):
        return undecided(draws, ask, "drift", values)
    here, teacher, student = values
    scale = float(np.ptp(np.concatenate([teacher, student])))
    return [judge_mean(here, here.mean_by_seed(student - teacher), ask, "drift", share=False, scale=scale)]


def trusted_horizon(
    paired: pl.DataFrame, *, threshold: float, step_s: float, alpha: float = 0.05, min_seeds: int = 20
) -> pl.DataFrame:
    """Return per slice how many seconds a student stays within `threshold` of its teacher, on average over seeds.

    `paired` holds slice, scenario, seed_id, k, teacher_track and student_track, with one position every `step_s`, the
    first of them `step_s` after the common start. `horizon_s` is the last time before the mean divergence first passes
    the threshold, `low_s` the same for its upper bound and `high_s` for its lower one; the whole track's length where
    none passes. `low_s` is what may be trusted: to claim more than the true horizon the upper bound would have to lie
    below the truth at that one moment, which has a chance of alpha, so looking at all steps costs nothing. `high_s` is
    pointwise and so rather too small.
    Where nothing can be said (fewer than `min_seeds` seeds, missing tracks) `low_s` is 0 with the reason.

    Raises:
        DistdataError: a threshold or step that is not above 0.
    """
    if not (threshold > 0 and step_s > 0):
        raise DistdataError(f"horizon: threshold {threshold:g} and step {step_s:g} s must lie above 0.")
    rows = []
    for (name,), frame in paired.sort("slice").group_by("slice", maintain_order=True):
        draws = slice_draws(str(name), frame)
        apart = divergence(draws)
        if not isinstance(apart, str) and draws.n_seeds < min_seeds:
            apart = f"{draws.n_seeds} seeds; a gate needs {min_seeds}"
        if isinstance(apart, str):
            rows.append((name, draws.n_seeds, 0, None, 0.0, None, apart))
            continue
        bounds = bounds_of_values(apart, alpha, share=False)
        times = [_passage(curve, threshold) * step_s for curve in (bounds.estimate, bounds.high, bounds.low)]
        rows.append((name, draws.n_seeds, apart.shape[1], *times, ""))
    return pl.DataFrame(rows, schema=HORIZON_SCHEMA, orient="row")


def _passage(curve: Floats, threshold: float) -> int:
    """Return how many steps `curve` [n_steps] stays within the threshold; 0 where the first is beyond it already."""
    over = np.flatnonzero(curve > threshold)
    return int(over[0]) if len(over) else len(curve)
