"""The recipe table and its settings: complete, typed, and clear about what is wrong."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from distdata.catalogs.errors import DistdataError
from distdata.train_min.facts import Moments, find_facts
from distdata.train_min.recipes import COMMON, RECIPES, build_learner, find_recipe, resolve_settings

HEADER = {"teacher": {"id": "world", "vocabulary": 50}}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_complete(name: str) -> None:
    """Each recipe stands under its name, has the loop's settings and its own source, and its build can be loaded."""
    recipe = find_recipe(name)
    assert recipe.name == name
    assert set(COMMON) <= set(recipe.defaults)
    assert resolve_settings(recipe, {}) == dict(recipe.defaults)
    assert recipe.members
    assert recipe.source
    module, function = recipe.build.split(":")
    assert callable(getattr(import_module(f"distdata.train_min.{module}"), function))


def test_recipe_names() -> None:
    """The four recipes are there; a misspelt one is told its nearest name."""
    assert set(RECIPES) == {"capacity", "regression", "word_kd", "seq_kd"}
    with pytest.raises(DistdataError, match="Did you mean 'capacity'"):
        find_recipe("capcity")


def test_settings_override(linear: Any) -> None:
    """What is given stands, the rest is default; a whole number is as good as a float where one is wanted."""
    settings = resolve_settings(linear, {"lr": 1, "steps": 7})
    assert settings["lr"] == 1.0
    assert isinstance(settings["lr"], float)
    assert settings["steps"] == 7
    assert settings["width"] == 8
    assert settings["beta2"] == COMMON["beta2"]
    assert list(settings) == list(resolve_settings(linear, {}))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"widht": 3}, "no setting 'widht'. Did you mean 'width'?"),
        ({"steps": 0}, "steps = 0; it must be at least 1"),
        ({"steps": 1.5}, "steps = 1.5 is no int"),
        ({"steps": True}, "steps = True is no int"),
        ({"lr": "fast"}, "lr = 'fast' is no float"),
        ({"lr": float("nan")}, "lr = nan; numbers must be finite"),
        ({"clip": float("inf")}, "clip = inf; numbers must be finite"),
        ({"lr": -1e-3}, "lr = -0.001; it must be from 0"),
        ({"clean_share": 1.5}, "clean_share = 1.5; it must be from 0 to 1"),
        ({"ema": 1.0}, "ema = 1; it must be from 0 to"),
        ({"rowwise": 1}, "rowwise = 1 is no bool"),
    ],
)
def test_settings_that_do_not_fit(linear: Any, given: dict[str, Any], words: str) -> None:
    """A wrong name, type or range is refused with recipe, key, value and what would do."""
    with pytest.raises(DistdataError) as e:
        resolve_settings(linear, given)
    assert words in str(e.value)
    assert "recipe linear" in str(e.value)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_no_setting_takes_what_student_json_cannot_hold(name: str, value: float) -> None:
    """Infinity and NaN are refused in every setting of every recipe, also within tables and where unset is default."""
    recipe = find_recipe(name)
    for key in recipe.defaults:
        for given in (value, [1.0, value], {"block0": value}):
            with pytest.raises(DistdataError, match=rf"recipe {name}: {key} = .*; numbers must be finite"):
                resolve_settings(recipe, {key: given})


def test_build_that_names_nothing(linear: Any) -> None:
    """A recipe whose build can't be imported is refused with its name."""
    for build in ("nowhere:build", "loop:nothing", "not.there:build", "loop"):
        with pytest.raises(DistdataError, match="can't be loaded"):
            build_learner(replace(linear, build=build), {}, None)  # type: ignore[arg-type]


def test_facts_by_hand(corpus: Any, linear: Any) -> None:
    """Means and standard deviations per dimension of three small samples, by hand; the clean one has no say.

    Latents 1, 2, 6 in the first dimension: mean 3, variance (4 + 1 + 9)/3; 5 always in the second: 0.
    """
    samples = [
        {"latent.npy": np.array([[v, 5.0]], np.float32), "cond.npy": np.array([c, c, 0.0], np.float32), "x.json": i}
        for i, (v, c) in enumerate([(1, 0), (99, 99), (2, 0), (6, 3)])
    ]
    storage, frame = corpus(samples, source=["planned", "clean", None, "byproduct"])
    facts = find_facts(storage, frame, linear, HEADER)
    assert facts.n_samples == 3
    assert facts.kind == "rollout"
    assert facts.latent == (1, 2)
    assert facts.mean.tolist() == [[3.0, 5.0]]
    assert facts.std == pytest.approx(np.array([[(14 / 3) ** 0.5, 0.0]]))
    assert facts.n_conditions == 3
    assert facts.cond_mean.tolist() == [1.0, 1.0, 0.0]
    assert facts.cond_std == pytest.approx([2**0.5, 2**0.5, 0])
    assert (facts.vocabulary, facts.max_token, facts.max_tokens) == (50, -1, 0)
    assert facts.sample["x.json"] == 0
    assert facts.teacher == HEADER["teacher"]


def test_facts_of_text(corpus: Any) -> None:
    """Token samples give the largest id of completions and counts, the longest run, and the declared vocabulary."""
    samples = [
        {
            "meta.json": {"vocabulary": 300},
            "input_ids.npy": np.array(ids, np.int64),
            "lg_ids.npy": np.array(lg, np.uint32),
        }
        for ids, lg in (([1, 2, 3], [7]), ([], []), ([5, 9, 0, 4], [250, 3]))
    ]
    facts = find_facts(*corpus(samples), find_recipe("word_kd"), HEADER)
    assert (facts.vocabulary, facts.max_token, facts.max_tokens) == (300, 250, 4)
    assert facts.latent == ()
    assert facts.n_conditions == 0


@pytest.mark.parametrize("n", [1, 7, 2500])
def test_moments_in_chunks(n: int) -> None:
    """Moments merged over chunks are numpy's of the whole, with an offset that would drown them in float32."""
    data = np.random.default_rng(n).standard_normal((n, 2, 3)) + 1e6
    moments = Moments()
    for chunk in np.array_split(data, range(100, n, 100)):
        moments.add(chunk)
    assert moments.n == n
    assert moments.mean == pytest.approx(data.mean(0), rel=1e-14)
    assert moments.std == pytest.approx(data.std(0), rel=1e-9, abs=1e-12)


def test_facts_name_what_does_not_fit(corpus: Any, regression: Any, linear: Any) -> None:
    """An array of another shape and one with NaN are refused with the sample's id; so is an empty frame."""
    samples = regression(4)
    samples[2]["latent.npy"] = np.zeros(5, np.float32)
    storage, frame = corpus(samples)
    with pytest.raises(DistdataError, match=r"s0002: latent.npy has shape \(5,\), the samples before have \(2,\)"):
        find_facts(storage, frame, linear, {})
    samples[2]["latent.npy"] = np.array([0, np.nan], np.float32)
    with pytest.raises(DistdataError, match=r"s0002: latent\.npy has NaN"):
        find_facts(*corpus(samples, location="other"), linear, {})
    with pytest.raises(DistdataError, match="no sample to train from"):
        find_facts(storage, frame.head(0), linear, {})
