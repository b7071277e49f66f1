"""Density ranks: the teacher's own are never ghosts beyond their share, averages of futures are, imprecision isn't."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from distdata.catalogs.errors import DistdataError
from distdata.curate.metrics import density
from distdata.curate.metrics.seed_view import SeedView
from distdata.generate.teachers.crossing.law import mixture

SIX = (
    "clear/day/residential/pedestrian_crossing",
    "rain/day/downtown/occluded_pedestrian",
    "clear/dusk/residential/animal_on_road",
    "clear/night/residential/unprotected_turn",
    "snow/day/downtown/cyclist_swerve",
    "rain/dusk/residential/cut_in",
)


def ranks(reference, measured):
    return density.against(reference, measured)["density_rank"]


def cloud(x, seed, outcome="a", cell="c", state=()):
    """Draws of one cell and scenario, from features [n, d] and seed numbers [n]; k counts within the seed."""
    k = [int((np.array(seed[:i]) == s).sum()) for i, s in enumerate(seed)]
    outcomes = [outcome] * len(x) if isinstance(outcome, str) else list(outcome)
    return pl.DataFrame(
        {
            "seed_id": [f"s{s}" for s in seed], "k": k, "cell": [cell] * len(x), "scenario": ["z"] * len(x),
            "outcome": outcomes, "feature": np.asarray(x, float).tolist(), "seed_state": [list(state)] * len(x),
        },
        schema_overrides={"k": pl.Int16, "feature": pl.List(pl.Float32), "seed_state": pl.List(pl.Float64)},
    )  # fmt: skip


def test_numbers_of_a_seed():
    """The seed's state holds the finite numbers of its params by name; texts, nulls and NaN are left out."""
    seed = SeedView(
        seed_id="s", k=0, axes={}, scenario="x", params={"b": 2, "a": -1.5, "c": "no", "d": None, "e": float("nan")},
        outcome=None, control_axis=None, control_value=None,
    )  # fmt: skip
    assert density.columns({}, seed) == {"feature": None, "seed_state": [-1.5, 2.0]}


def unlabelled(frame):
    return frame.with_columns(outcome=pl.lit(None, pl.String))


def share_of_ghosts(reference, measured):
    return float((ranks(reference, measured) < 0.005).mean())


def laws(cells, cell):
    """The exact law of each of the cell's 20 seeds, in the order of the clouds."""
    return [mixture(row, row["scenario"], json.loads(row["params"])) for row in cells[cell]]


def on_the_way(y, law):
    """How far `y` is from one true outcome to another in units of the true spreads: the module's t, from the law."""
    std = np.sqrt((law.std**2).mean(0)).ravel()
    mean, y = law.mean.reshape(len(law.probs), -1) / std, np.asarray(y).ravel() / std
    others = [(a, np.delete(mean, j, axis=0) - a) for j, a in enumerate(mean)]
    return min(((way @ (y - a)) / (way**2).sum(1)).max() for a, way in others)


def futures(law, widen, rng, n=8):
    """`n` futures of a law, each outcome's spread `widen` times what it is."""
    found = []
    for j in rng.choice(len(law.probs), p=law.probs, size=n):
        found.append(law.mean[j] + widen * law.std[j] * rng.standard_normal(law.mean[j].shape))
    return found


def with_features(frame, features):
    """The frame's rows with other features and no labels."""
    return unlabelled(frame).with_columns(
        feature=pl.Series([np.ravel(f).tolist() for f in features], dtype=pl.List(pl.Float32))
    )


@pytest.mark.parametrize("cell", SIX)
def test_the_teachers_own_draws_are_at_their_outcomes(clouds, cell):
    """With labels none of 160 draws is a fifth of the way to another outcome: all tie at one half, none is a ghost."""
    teacher = clouds(cell, 1).teacher
    assert ranks(teacher, teacher).to_list() == [0.5] * 160


@pytest.mark.parametrize("cell", SIX)
def test_without_labels_the_teachers_own_ranks_are_exactly_uniform(clouds, cell):
    """160 draws among themselves have the ranks 0, 1/159, ... 1, each once: one of 160 is below 0.005."""
    teacher = unlabelled(clouds(cell, 1).teacher)
    found = ranks(teacher, teacher)
    np.testing.assert_allclose(np.sort(found.to_numpy()), np.arange(160) / 159, atol=1e-12)
    assert (found < 0.005).mean() == density.own_share(0.005, 160) == 1 / 160


@pytest.mark.parametrize(("level", "n", "want"), [(0.005, 160, 1 / 160), (0.005, 401, 2 / 401), (0.005, 402, 3 / 402),
                                                  (0.0, 50, 0.0), (2.0, 50, 1.0)])  # fmt: skip
def test_own_share_counts_the_ranks_below(level, n, want):
    """Ranks i / (n - 1) below 0.005: i < 0.795 is one of 160, i < 2 two of 401, i < 2.005 three of 402."""
    assert density.own_share(level, n) == want


@pytest.mark.parametrize("labelled", [True, False])
def test_a_student_that_makes_the_same_draws_has_the_same_ranks(clouds, labelled):
    """Own draws are left out for the student as for the teacher: equal draws, equal ranks, in any order."""
    teacher = clouds(SIX[0], 1).teacher if labelled else unlabelled(clouds(SIX[0], 1).teacher)
    shuffled = unlabelled(teacher.sample(fraction=1.0, shuffle=True, seed=4))
    both = density.against(teacher, shuffled).join(density.against(teacher, teacher), on=["seed_id", "k"])
    assert both.height == 160
    np.testing.assert_allclose(both["density_rank"], both["density_rank_right"], atol=1e-12)


def test_fresh_draws_of_the_same_law_are_hardly_ever_ghosts(clouds):
    """Over six cells at most 5 of 960 fresh draws are ghosts with labels, and 24 without.

    Measured over all 113 cells: 0.03% with labels (5 of 960 come once in 7,000 runs), 0.4% without, where the exact law
    would give 0.6% (at a true 1.05%, more than 24 of 960 come once in 10,000).
    """
    made = [clouds(cell, 2) for cell in SIX]
    assert sum(round(160 * share_of_ghosts(c.teacher, c.fresh)) for c in made) <= 5
    bare = [ranks(unlabelled(c.teacher), unlabelled(c.fresh)) for c in made]
    low = np.concatenate([(r < 0.005).to_numpy() for r in bare])
    assert len(low) == 960
    assert low.sum() <= 24
    # uniform means have a standard error of 0.29 / sqrt(960) = 0.01; draws of a cell share their reference
    assert abs(np.concatenate([r.to_numpy() for r in bare]).mean() - 0.5) < 0.06


@pytest.mark.parametrize("cell", SIX)
def test_imprecise_outcomes_are_no_ghosts(cells, clouds, cell):
    """Outcomes too wide by half in every direction (2.2 times the variance) give at most 2% of ghosts."""
    rng = np.random.default_rng(11)
    made = clouds(cell, 3)
    wide = [y for law in laws(cells, cell) for y in futures(law, 1.5, rng)]
    assert share_of_ghosts(made.teacher, with_features(made.teacher, wide)) <= 0.02


@pytest.mark.parametrize("cell", SIX)
def test_averaged_futures_are_ghosts_where_the_law_puts_them_between(cells, clouds, cell):
    """The mean over a seed's outcomes is a ghost where it is over a quarter of the way by the exact law, and only near.

    By the law itself (true means and spreads) t is known for every seed; at t > 0.25 at least 95% of the draws are
    ghosts, at t < 0.15 at most 5%.
    """
    made = clouds(cell, 3)
    average = [np.tensordot(law.probs, law.mean, 1) for law in laws(cells, cell)]
    t = np.repeat([on_the_way(y, law) for y, law in zip(average, laws(cells, cell), strict=True)], 8)
    ghost = (ranks(made.teacher, made.averaged) < 0.005).to_numpy()
    assert (t > 0.15).any()
    assert ghost[t > 0.25].sum() >= 0.95 * (t > 0.25).sum()
    assert ghost[t < 0.15].sum() <= 0.05 * (t < 0.15).sum()


@pytest.mark.parametrize("cell", SIX)
def test_what_lies_between_two_futures_is_a_ghost(clouds, cell):
    """Half way, and three tenths of the way, between two draws of one seed with different outcomes: 95% are ghosts."""
    made = clouds(cell, 4)
    both = made.teacher.join(made.fresh, on=["seed_id", "k"], suffix="_b").filter(
        pl.col("outcome") != pl.col("outcome_b")
    )
    assert both.height > 20
    a, b = (np.array(both[c].to_list()) for c in ("feature", "feature_b"))
    for way in (0.5, 0.3):
        bridge = with_features(both.select(made.teacher.columns), a + way * (b - a))
        assert share_of_ghosts(made.teacher, bridge) >= 0.95


@pytest.mark.prove
def test_power_over_all_cells(cells, clouds):
    """A student of averages is found in at least 90% of each scenario type's cells, at 20 seeds x 8 draws.

    Found: the one-sided 95% t bound (19 degrees of freedom, 1.729) of the seeds' ghost shares is above 5%.
    """
    found, fresh = {}, []
    for i, cell in enumerate(cells):
        made = clouds(cell, i)
        seen = density.against(made.teacher, made.averaged).with_columns(ghost=pl.col("density_rank") < 0.005)
        by_seed = seen.group_by("seed_id").agg(pl.col("ghost").mean())["ghost"].to_numpy()
        bound = by_seed.mean() - 1.729 * by_seed.std(ddof=1) / np.sqrt(20)
        found.setdefault(cell.split("/")[-1], []).append(bound > 0.05)
        fresh.append(share_of_ghosts(made.teacher, made.fresh))
    assert len(fresh) > 100
    assert {name for name, caught in found.items() if np.mean(caught) < 0.9} == set()
    assert np.mean(fresh) < 0.005


def test_noise_dimensions_do_not_drown_the_outcomes():
    """Two outcomes 12 standard deviations apart in one of 200 dimensions: their midpoints rank 0."""
    rng = np.random.default_rng(6)
    seed = np.repeat(np.arange(20), 8)
    side = rng.integers(0, 2, 160)
    x = rng.standard_normal((160, 200)) * rng.lognormal(0, 2, 200)
    x[:, 7] = rng.standard_normal(160) + 12 * side
    teacher = cloud(x, seed, np.where(side == 1, "a", "b"))
    y = rng.standard_normal((160, 200)) * 0.1
    y[:, 7] = 6.0
    assert (ranks(teacher, cloud(y, seed)) < 0.005).mean() >= 0.9


def test_one_outcome_in_many_dimensions_is_calibrated():
    """With 100 noise dimensions and no labels, fresh draws rank around one half: what is learnt is not these draws.

    Directions picked among scaled noise would make all fresh draws look dense (mean rank 0.86 was seen).
    """
    rng = np.random.default_rng(10)
    seed = np.repeat(np.arange(20), 8)
    spread = 1 / np.arange(1, 101)
    teacher, fresh = (unlabelled(cloud(rng.standard_normal((160, 100)) * spread, seed)) for _ in range(2))
    found = ranks(teacher, fresh)
    assert abs(found.mean() - 0.5) < 0.1
    assert (found < 0.005).mean() < 0.03


def test_without_labels_the_gap_between_outcomes_still_shows():
    """In two dimensions, without labels: the empty middle between two clouds ranks below all but two draws.

    In units of the whole spread (10 in the first dimension) the middle is 1 from either cloud, whose 80 draws are 0.1
    from one another that way.
    """
    rng = np.random.default_rng(7)
    seed = np.repeat(np.arange(20), 8)
    x = rng.standard_normal((160, 2))
    x[:, 0] += 20 * rng.integers(0, 2, 160)
    teacher = cloud(x, seed).with_columns(outcome=pl.lit(None, pl.String))
    assert ranks(teacher, cloud(np.tile([10.0, 0.0], (160, 1)), seed)).max() < 2.5 / 159


def test_a_teacher_that_never_varies_has_no_ghosts():
    """Where all draws are one, all distances tie: every rank is one half."""
    seed = np.repeat(np.arange(5), 8)
    same = cloud(np.ones((40, 3)), seed)
    assert ranks(same, same).to_list() == [0.5] * 40


def test_one_outcome_has_far_outliers_only():
    """With one label only what is over twice as far out as the teacher's farthest ranks 0; half too wide isn't."""
    rng = np.random.default_rng(12)
    seed = np.repeat(np.arange(20), 8)
    x = rng.standard_normal((160, 4))
    teacher = cloud(x, seed)
    assert ranks(teacher, teacher).to_list() == [0.5] * 160
    assert share_of_ghosts(teacher, cloud(rng.standard_normal((160, 4)) * 1.5, seed)) <= 0.02
    assert ranks(teacher, cloud(x + 30, seed)).max() == 0.0


def two_sides(rng, apart):
    seed, side = np.repeat(np.arange(20), 8), rng.integers(0, 2, 160)
    x = rng.standard_normal((160, 2))
    x[:, 0] += apart * side
    return x, seed, np.where(side == 1, "a", "b")


def test_nothing_is_between_outcomes_that_overlap():
    """Outcomes two spreads apart leave no gap: their middle ties with the teacher's own draws."""
    x, seed, side = two_sides(np.random.default_rng(13), 2)
    middle = np.tile([1.0, 0.0], (160, 1))
    assert ranks(cloud(x, seed, side), cloud(middle, seed)).to_list() == [0.5] * 160


def test_a_rare_outcome_in_the_middle_hides_no_ghosts():
    """Two of 160 teacher draws half way, of an outcome of their own, don't make other draws between pass."""
    x, seed, side = two_sides(np.random.default_rng(14), 20)
    x[[3, 90], 0], side = 10.0, np.where(np.isin(np.arange(160), [3, 90]), "rare", side)
    middle = np.tile([7.0, 0.0], (160, 1))
    assert ranks(cloud(x, seed, side), cloud(middle, seed)).max() == 0.0


def test_seeds_of_one_draw_each():
    """With K = 1 there is no spread within a seed to learn from: ranks are still uniform, an outlier still ranks 0."""
    rng = np.random.default_rng(8)
    x = rng.standard_normal((60, 4))
    teacher = unlabelled(cloud(x, np.arange(60)))
    np.testing.assert_allclose(np.sort(ranks(teacher, teacher).to_numpy()), np.arange(60) / 59, atol=1e-12)
    assert ranks(teacher, cloud(x + 30, np.arange(60))).max() == 0.0


def test_small_cells_borrow_and_missing_features_stay_out():
    """A cell of 8 draws is ranked among its scenario type's; without a feature, or with 8 in all, there is no rank."""
    rng = np.random.default_rng(9)
    large = cloud(rng.standard_normal((80, 3)), np.repeat(np.arange(10), 8), cell="large")
    small = cloud(rng.standard_normal((8, 3)), np.repeat([99], 8), cell="small")
    both = unlabelled(pl.concat([large, small]))
    assert ranks(both, small).is_between(0, 1).all()
    # 88 draws, one's own left out: multiples of 1/87
    steps = ranks(both, small).to_numpy() * 87
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-9)
    assert ranks(small, small).null_count() == 8
    bare = large.with_columns(feature=pl.when(pl.col("k") == 0).then(None).otherwise(pl.col("feature")))
    found = density.against(large, bare)
    assert found.filter(pl.col("k") == 0)["density_rank"].null_count() == 10
    assert found.filter(pl.col("k") > 0)["density_rank"].null_count() == 0
    assert found.drop("density_rank").equals(bare)


def test_latents_of_another_shape_are_refused():
    """A student with latents of another length can't be ranked; the message says both lengths and what to do."""
    x = np.random.default_rng(1).standard_normal((40, 3))
    seed = np.repeat(np.arange(5), 8)
    with pytest.raises(DistdataError, match=r"features of 2 and 3 numbers.*distilled from"):
        ranks(cloud(x, seed), cloud(x[:, :2], seed))


def test_unequal_states_are_not_regressed_on():
    """Seeds that state different numbers are compared without them, not refused."""
    x = np.random.default_rng(2).standard_normal((40, 3))
    seed = np.repeat(np.arange(5), 8)
    teacher = pl.concat([cloud(x[:24], seed[:24], state=(1.0,)), cloud(x[24:], seed[24:], state=(1.0, 2.0))])
    assert ranks(teacher, teacher).null_count() == 0
