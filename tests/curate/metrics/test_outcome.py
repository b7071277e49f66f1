"""Outcomes: recorded labels stay, missing ones come from the teacher's labelled draws."""

from __future__ import annotations

import numpy as np
import polars as pl

from distdata.curate.metrics import density, outcome

CELLS = (
    "clear/day/residential/pedestrian_crossing",
    "rain/day/downtown/occluded_pedestrian",
    "clear/dusk/residential/animal_on_road",
    "clear/night/residential/unprotected_turn",
    "snow/day/downtown/cyclist_swerve",
    "rain/dusk/residential/cut_in",
)


def unlabelled(frame):
    return frame.with_columns(outcome=pl.lit(None, pl.String))


def test_the_labeller_agrees_with_the_law(clouds):
    """Of 960 fresh draws in six cells at least 99.5% get the outcome that the law drew them from, without any label."""
    agreed = []
    for i, cell in enumerate(CELLS):
        made = clouds(cell, 20 + i)
        found = outcome.against(made.teacher, unlabelled(made.fresh))
        agreed += (found["outcome"] == made.fresh["outcome"]).to_list()
    assert len(agreed) == 960
    assert np.mean(agreed) >= 0.995


def test_it_agrees_on_rendered_records_without_latents(rollouts):
    """By the recorded ways alone (no latent) a draw of a common scenario gets its recorded label, 95 times of 100.

    One draw a seed over all weathers and lights; each is labelled by the others' labels.
    """
    rows = []
    for r in rollouts:
        if r.seed.scenario in ("pedestrian_crossing", "unprotected_turn", "cut_in"):
            bare = {k: v for k, v in r.members.items() if k != "latent.npy"}
            rows.append({
                "seed_id": r.seed.seed_id, "k": 0, "cell": r.seed.scenario, "scenario": r.seed.scenario,
                "outcome": r.seed.outcome, **density.columns(bare, r.seed),
            })  # fmt: skip
    frame = pl.DataFrame(rows, schema_overrides={"feature": pl.List(pl.Float32), "k": pl.Int16})
    found = outcome.against(frame, unlabelled(frame))
    assert frame.height > 80
    assert (found["outcome"] == frame["outcome"]).mean() >= 0.95


def test_recorded_labels_stay(clouds):
    """A label that the model gave is kept, even a wrong one; where there is one outcome only, confidence is 1."""
    made = clouds(CELLS[3], 1)
    wrong = made.teacher.with_columns(outcome=pl.lit("mine"))
    assert outcome.against(made.teacher, wrong)["outcome"].unique().to_list() == ["mine"]
    one = made.teacher.with_columns(outcome=pl.lit("only"))
    found = outcome.against(one, unlabelled(one))
    assert found["outcome"].unique().to_list() == ["only"]
    assert found["outcome_confidence"].unique().to_list() == [1.0]


def test_averages_get_a_label_with_low_confidence(clouds):
    """Every averaged future gets a label; its confidence is far below that of real draws."""
    for cell in CELLS[::2]:
        made = clouds(cell, 5)
        real = outcome.against(made.teacher, unlabelled(made.fresh))["outcome_confidence"]
        ghost = outcome.against(made.teacher, made.averaged)
        assert ghost["outcome"].null_count() == 0
        assert ghost["outcome_confidence"].mean() < 0.75
        assert real.quantile(0.05) > 0.8
        assert real.is_between(0, 1).all()


def test_a_dropped_mode_is_missing_from_the_labels(clouds):
    """A student that never stops for the pedestrian: the share of ``waits`` falls to none; the labeller says so."""
    made = clouds(CELLS[0], 6)
    kept = made.fresh.filter(pl.col("outcome") != "waits")
    share = (made.teacher["outcome"] == "waits").mean()
    found = outcome.against(made.teacher, unlabelled(kept))
    assert share > 0.2
    assert (found["outcome"] == "waits").mean() < 0.01


def test_nothing_to_label_by(clouds):
    """Without labelled draws of the scenario type, or without a feature, label and confidence are null."""
    made = clouds(CELLS[0], 7)
    other = made.teacher.with_columns(scenario=pl.lit("another"))
    for reference, measured in (
        (other, unlabelled(made.fresh)),
        (unlabelled(made.teacher), unlabelled(made.fresh)),
        (made.teacher, unlabelled(made.fresh).with_columns(feature=pl.lit(None, pl.List(pl.Float32)))),
    ):
        found = outcome.against(reference, measured)
        assert found["outcome"].null_count() == found["outcome_confidence"].null_count() == 160
    # a recorded label that nothing can be set against is taken at its word
    assert outcome.against(other, made.fresh)["outcome_confidence"].unique().to_list() == [1.0]
