"""By what name a transformers model takes and returns its keys and values: the library renamed it within version 5."""

from __future__ import annotations

import inspect
from typing import Any


def cache_name(model: Any) -> str:
    """Return ``cache`` where `model.forward` takes one of that name, else ``past_key_values``, as older versions do.

    Its output has an attribute of the same name. The old name still works in new versions, with a warning a step.
    """
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def keeps_keys(cache: Any) -> bool:
    """Tell whether every layer keeps keys and values; a recurrent state is a cache too, but minds padding."""
    return cache is not None and all(hasattr(layer, "keys") for layer in getattr(cache, "layers", ()))
