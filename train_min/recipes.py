"""The table of recipes: what is learned how, with which settings, after which paper.

Optimiser and schedule are the same for all: AdamW (Loshchilov and Hutter 2019), linear warm-up then half a cosine,
gradients clipped by their norm, an exponential moving average of the weights whose horizon grows with the steps.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

from ..catalogs.errors import DistdataError, nearest
from .job import Facts, Learner, Recipe
from .language_learner import NETWORK_SETTINGS, WORD_KD_SETTINGS
from .latent_settings import CAPACITY_MEMBERS, CAPACITY_SETTINGS, OUTPUTS_MEMBERS, REGRESSION_SETTINGS

COMMON: Mapping[str, Any] = {
    "steps": 2_000,
    "batch": 256,
    "lr": 1e-3,
    "lr_final": 0.0,  # share of lr where the cosine ends
    "warmup": 0.02,  # share of the steps
    "weight_decay": 0.0,
    "beta2": 0.99,
    "clip": 1.0,  # largest norm of a step's gradient
    "ema": 0.999,  # 0: the last weights are the student's
    "clean_share": 0.0,  # 1 - alpha: what the clean targets' loss weighs
    "log_every": 50,  # steps
    "warm_start": False,  # begin with the parent's weights
    "int8": True,  # write a quantised copy beside the student
}
"""Settings of the loop, which every recipe has."""

_LANGUAGE: Mapping[str, Any] = {"steps": 3_000, "batch": 64, "lr": 3e-3, "weight_decay": 0.01, **NETWORK_SETTINGS}

RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="capacity",
            family="denoiser",
            build="capacity:build",
            defaults={**COMMON, **CAPACITY_SETTINGS},
            members=OUTPUTS_MEMBERS,
            source="denoising score matching: Karras et al. 2022, arXiv 2206.00364",
        ),
        Recipe(
            name="regression",
            family="regressor",
            build="regression:build",
            defaults={**COMMON, **REGRESSION_SETTINGS},
            members=CAPACITY_MEMBERS,
            source="least squares; the baseline that averages modes",
        ),
        Recipe(
            name="word_kd",
            family="causal_lm",
            build="language_learner:build_word_kd",
            defaults={**COMMON, **_LANGUAGE, **WORD_KD_SETTINGS},
            members=(
                "meta.json",
                "input_ids.npy",
                "lg_ids.npy",
                "lg_cnt.npy",
                "lg_off.npy",
                "top_ids.npy",
                "top_lp.npy",
            ),
            source="Hinton et al. 2015, Agarwal et al. 2024 (arXiv 2306.13649); sampled counts: arXiv 2503.16870",
        ),
        Recipe(
            name="seq_kd",
            family="causal_lm",
            build="language_learner:build_seq_kd",
            defaults={**COMMON, **_LANGUAGE},
            members=("meta.json", "input_ids.npy"),
            source="Kim and Rush 2016, arXiv 1606.07947",
        ),
    )
}


def find_recipe(name: str) -> Recipe:
    """Return a recipe of the table; raises DistdataError with the nearest name."""
    if name not in RECIPES:
        raise DistdataError(f"recipe {name!r} is not known.{nearest(name, RECIPES)}")
    return RECIPES[name]


def resolve_settings(recipe: Recipe, given: Mapping[str, Any]) -> dict[str, Any]:
    """Fill a job's settings up with the recipe's defaults, every value of its default's type.

    Raises DistdataError for a setting that the recipe doesn't have, a value of another type, or one out of range.
    """
    defaults = {**COMMON, **recipe.defaults}
    for key in given:
        if key not in defaults:
            raise DistdataError(f"recipe {recipe.name}: no setting {key!r}.{nearest(key, defaults)}")
    settings = {key: _typed(recipe.name, key, given.get(key, value), value) for key, value in defaults.items()}
    for key, low, high in _RANGES:
        value = settings[key]
        if not low <= value <= high:
            text = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise DistdataError(f"recipe {recipe.name}: {key} = {value:g}; it must be {text}.")
    return settings


_RANGES = (
    ("steps", 1, math.inf),
    ("batch", 1, math.inf),
    ("lr", 0, 1e6),
    ("lr_final", 0, 1),
    ("warmup", 0, 1),
    ("weight_decay", 0, 1e6),
    ("beta2", 0, 1 - 1e-9),
    ("clip", 1e-12, math.inf),
    ("ema", 0, 1 - 1e-9),
    ("clean_share", 0, 1),
    ("log_every", 1, math.inf),
)


def _typed(recipe: str, key: str, value: Any, default: Any) -> Any:
    """Return `value` as its default's type; an int is a float too, and None is open to anything that JSON holds."""
    if not _finite(value):
        raise DistdataError(f"recipe {recipe}: {key} = {value!r}; numbers must be finite.")
    if default is None:
        return value
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(default, list | tuple) and isinstance(value, list | tuple):
        return list(value)
    if type(value) is not type(default):
        raise DistdataError(
            f"recipe {recipe}: {key} = {value!r} is no {type(default).__name__}, as its default {default!r} is."
        )
    return value


def _finite(value: Any) -> bool:
    """Tell whether all numbers in a setting are finite, as ``student.json`` must hold them."""
    if isinstance(value, Mapping):
        return all(map(_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def build_learner(recipe: Recipe, settings: Mapping[str, Any], facts: Facts) -> Learner:
    """Make the recipe's learner; raises DistdataError for a `build` that names nothing.

    A module's name without a dot lies in `train_min`; one with a dot is imported as it is, so that a recipe can come
    from anywhere.
    """
    module, _, function = recipe.build.partition(":")
    try:
        found = importlib.import_module(module if "." in module else f".{module}", __package__)
        build = cast(Callable[[Mapping[str, Any], Facts], Learner], getattr(found, function))
    except (ImportError, AttributeError) as e:
        raise DistdataError(
            f"recipe {recipe.name}: {recipe.build!r} can't be loaded ({e}). It must be module:function."
        ) from e
    return build(settings, facts)
