"""Ready-made projects: a distdata.toml that a person can read, and seeds to go with it."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import NamedTuple

from ..catalogs.errors import DistdataError, nearest


class Preset(NamedTuple):
    """A preset's configuration text, and the generator (with how many seeds) that fills its catalog."""

    text: str
    generator: str | None
    n_seeds: int


_BUNDLED = {
    "driving": ("crossing", 160_000),
    "driving-mini": ("crossing", 40_000),
    "highway": ("highway", 12_000),
    "language": ("markov", 64_000),
}

_FIRST_BUDGET = {"language": "8000samples"}
"""What a student needs before any gate is worth it, where that isn't the usual 2,000 samples."""


def first_budget(name: str) -> str:
    """Return the budget that a new project of this preset begins with."""
    return _FIRST_BUDGET.get(name, "2000samples")


def load_preset(name: str) -> Preset:
    """Find a preset by name, or read the distdata.toml at a path (which comes without seeds).

    Raises:
        DistdataError: neither a preset nor a readable file.
    """
    if name in _BUNDLED:
        text = (resources.files(__package__) / "presets" / f"{name}.toml").read_text(encoding="utf-8")
        return Preset(text, *_BUNDLED[name])
    path = Path(name)
    if not path.is_file():
        raise DistdataError(f"--preset {name}: neither a preset nor a file.{nearest(name, _BUNDLED)}")
    try:
        return Preset(path.read_text(encoding="utf-8"), None, 0)
    except (OSError, UnicodeDecodeError) as e:
        raise DistdataError(f"--preset {name}: can't be read: {e}") from None
