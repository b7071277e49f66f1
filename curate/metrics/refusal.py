"""Refusal: whether a completion refuses, and whether it should.

`refused` and `should_refuse`, 0 or 1: too few refusals where one should is one failure, any where none should another.
Where the teacher's world judges it (``checks`` in meta.json), its verdict; otherwise the outcome label (one of
`REFUSALS`) and the seed's ``should_refuse``. None where there is no label, or the seed doesn't say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from .language import KINDS, arisen, checks
from .seed_view import SeedView

__all__ = ["COLUMNS", "KINDS", "MEMBERS", "OPTIONAL", "REFUSALS", "columns"]

MEMBERS: tuple[str, ...] = ()
OPTIONAL: tuple[str, ...] = ("meta.json",)
COLUMNS: Mapping[str, type[pl.DataType]] = {"refused": pl.Int8, "should_refuse": pl.Int8}
REFUSALS = ("refuses", "refused", "refusal")


def columns(members: Mapping[str, Any], seed: SeedView) -> dict[str, int | None]:
    """Return `refused` and `should_refuse` of one completion."""
    found = checks(members)
    told = seed.params.get("should_refuse")
    by_label = None if seed.outcome is None else int(seed.outcome in REFUSALS)
    by_seed = None if told is None else int(bool(told))
    return {
        "refused": arisen(found["refused"]) if "refused" in found else by_label,
        "should_refuse": arisen(found["should_refuse"]) if "should_refuse" in found else by_seed,
    }
