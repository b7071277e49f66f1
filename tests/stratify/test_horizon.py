"""The trusted horizon: first passages by hand, what they promise by simulation, and drift as a gate's row."""

import math

import numpy as np
import polars as pl
import pytest
from scipy import stats

from distdata.catalogs.errors import DistdataError
from distdata.stratify.horizon import divergence, drift, trusted_horizon
from distdata.stratify.paired import Ask, slice_draws

ASK = Ask(alpha=0.05, power=0.9, band=1.0, side="upper", min_seeds=20)


def _paired(apart: np.ndarray, *, name: str = "a") -> pl.DataFrame:
    """Tracks of one agent whose distance is `apart` [m, K, T]; both drive along, the student beside the teacher."""
    m, k, n = apart.shape
    teacher = np.zeros((m, k, n, 2))
    teacher[..., 0] = np.arange(n)
    student = teacher + apart[..., None] * np.array([0.6, 0.8])
    lists = [pl.Series(x.reshape(m * k, -1).tolist(), dtype=pl.List(pl.Float32)) for x in (teacher, student)]
    return pl.DataFrame(
        {
            "slice": [name] * (m * k),
            "scenario": ["x"] * (m * k),
            "seed_id": [f"{i // k:05d}" for i in range(m * k)],
            "k": [i % k for i in range(m * k)],
            "teacher_track": lists[0],
            "student_track": lists[1],
        }
    )


def test_the_horizon_by_hand() -> None:
    """Distances t/10 +- 0.2 over 50 seeds: the mean passes 0.55 after index 5, its bounds half a width off.

    Half-width 0.2 sqrt(50/49) t_0.95(49) / sqrt(50) = 0.0479: the upper bound 0.1 i + 0.0479 exceeds 0.55 first at
    index 6 (0.648), the lower one 0.1 i - 0.0479 at index 6 too (0.552); at a threshold of 0.54 the upper one at 5.
    Index i lies (i + 1) steps of 0.5 s after the start, so the six up to index 5 are 3 s.
    """
    assert 0.2 * math.sqrt(1 / 49) * stats.t.ppf(0.95, 49) == pytest.approx(0.0479, abs=1e-4)
    apart = np.arange(10) / 10 + 0.2 * np.tile([1.0, -1.0], 25)[:, None]
    apart = np.abs(apart)[:, None, :]
    apart[:, :, :3] = np.arange(3) / 10  # where the lower one would be below 0
    row = trusted_horizon(_paired(apart), threshold=0.55, step_s=0.5).row(0, named=True)
    assert (row["n_seeds"], row["n_steps"]) == (50, 10)
    assert (row["horizon_s"], row["low_s"], row["high_s"]) == (3.0, 3.0, 3.0)
    row = trusted_horizon(_paired(apart), threshold=0.54, step_s=0.5).row(0, named=True)
    assert (row["horizon_s"], row["low_s"], row["high_s"]) == (3.0, 2.5, 3.0)
    row = trusted_horizon(_paired(apart), threshold=0.56, step_s=0.5).row(0, named=True)
    assert (row["horizon_s"], row["low_s"], row["high_s"]) == (3.0, 3.0, 3.5)
    whole = trusted_horizon(_paired(apart), threshold=5.0, step_s=0.5).row(0, named=True)
    assert (whole["horizon_s"], whole["low_s"]) == (5.0, 5.0)
    nothing = trusted_horizon(_paired(apart + 1), threshold=0.5, step_s=0.5).row(0, named=True)
    assert (nothing["horizon_s"], nothing["low_s"]) == (0.0, 0.0)


@pytest.mark.parametrize("n_runs", [300, pytest.param(3_000, marks=pytest.mark.prove)])
def test_more_than_the_true_horizon_is_claimed_at_most_alpha(n_runs: int) -> None:
    """Random walks whose mean distance is 0.1 t stays inside for six steps: `low_s` beyond them in 5% at most.

    30 seeds, spreads that grow in time, steps that depend on each other; 3.3 standard errors (false alarm 5e-4).
    """
    rng, beyond = np.random.default_rng(3), 0
    for start in range(0, n_runs, 50):
        walks = np.cumsum(rng.gamma(0.5, 0.2, size=(50, 30, 2, 12)), axis=3)  # mean 0.1 a step
        many = pl.concat([_paired(walk, name=f"r{start + i:05d}") for i, walk in enumerate(walks)])
        # index i holds i + 1 terms: the truth passes 0.7 at index 6, six steps are inside
        found = trusted_horizon(many, threshold=0.7 - 1e-9, step_s=1.0)
        beyond += int((found["low_s"] > 6.0).sum())
    assert beyond / n_runs <= 0.05 + 3.3 * math.sqrt(0.05 * 0.95 / n_runs)


def test_slices_that_say_nothing_are_trusted_for_no_time() -> None:
    """Few seeds, missing tracks or tracks of two lengths: 0 s with the reason."""
    few = trusted_horizon(_paired(np.zeros((19, 2, 5))), threshold=1.0, step_s=0.1).row(0, named=True)
    assert (few["low_s"], few["horizon_s"], few["reason"]) == (0.0, None, "19 seeds; a gate needs 20")
    paired = _paired(np.zeros((30, 1, 5)))
    lists = paired["student_track"].to_list()
    lists[4] = None
    holes = paired.with_columns(student_track=pl.Series(lists, dtype=pl.List(pl.Float32)))
    assert trusted_horizon(holes, threshold=1.0, step_s=0.1)["reason"][0] == "1 of 30 draws have no track"
    short = paired.with_columns(student_track=pl.col("student_track").list.head(6))
    assert "tracks of 10 and 6 numbers" in trusted_horizon(short, threshold=1.0, step_s=0.1)["reason"][0]
    with pytest.raises(DistdataError, match=r"threshold 0 and step 0\.1 s"):
        trusted_horizon(paired, threshold=0.0, step_s=0.1)


def test_of_several_agents_the_farthest_counts() -> None:
    """Twelve times of two agents lie flat as [12, 2, 2]: one apart by 3-4-5 at the last time only, the other by 1."""
    teacher, student = np.zeros((2, 12, 2, 2))
    student[:, 0, 0] = 1.0
    student[11, 1] = 3.0, 4.0
    frame = pl.DataFrame(
        {
            "scenario": ["x"],
            "seed_id": ["s"],
            "k": [0],
            "teacher_track": pl.Series([teacher.ravel().tolist()], dtype=pl.List(pl.Float32)),
            "student_track": pl.Series([student.ravel().tolist()], dtype=pl.List(pl.Float32)),
        }
    )
    apart = divergence(slice_draws("s", frame))
    assert not isinstance(apart, str)
    assert apart.tolist() == [[1.0] * 11 + [5.0]]


@pytest.mark.parametrize(("last", "inside"), [(0.5, True), (1.5, False)])
def test_drift_judges_the_last_step(last: float, inside: bool) -> None:
    """A student that ends half a metre off passes a band of one, however far it was off before; 1.5 fails."""
    rng = np.random.default_rng(8)
    apart = np.full((60, 4, 12), 3.0)
    apart[..., -1] = last + rng.uniform(-0.2, 0.2, size=(60, 4))
    (found,) = drift(slice_draws("a", _paired(apart)), ASK)
    assert found.contrast == "divergence after 12 steps"
    assert found.estimate == pytest.approx(last, abs=0.03)
    assert found.inside == inside
    assert found.p_fail is not None
    assert (found.p_fail < 1e-6) == (not inside)
