"""What a metric module offers, and what it is told of a sample beside its members.

A metric is a module of this package::

    MEMBERS: tuple[str, ...]                  # members of the record that it reads, () for none
    KINDS: tuple[str, ...]                    # record kinds it is for, () for all
    COLUMNS: Mapping[str, type[pl.DataType] | pl.DataType]     # what it gives
    def columns(members, seed) -> dict[str, float | int | str | list[float] | None]

`columns` gets the decoded members of one sample and gives one value (or None: does not apply) for every
column. What needs a reference set offers a second step as well, over measured columns::

    DERIVED: Mapping[str, type[pl.DataType] | pl.DataType]     # what the second step adds
    def against(reference: pl.DataFrame, measured: pl.DataFrame) -> pl.DataFrame    # `measured` plus DERIVED

and what needs another model's view of the sample offers `columns_scored(members, seed, scores)` in place of `columns`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedView:
    """What is known of a sample without opening it: its seed's own state and what the catalog says of the draw.

    `outcome` is the label that the model itself gave; `gpu_s` the seconds of model time behind the draw, None where
    nobody measured them.
    """

    seed_id: str
    k: int
    axes: Mapping[str, str]
    scenario: str
    params: Mapping[str, Any]
    outcome: str | None
    control_axis: str | None
    control_value: float | None
    gpu_s: float | None = None
