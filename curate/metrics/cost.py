"""Cost: the seconds of model time behind a draw, as the catalog has them; paired, what the student saves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from .seed_view import SeedView

MEMBERS: tuple[str, ...] = ()
KINDS: tuple[str, ...] = ()
COLUMNS: Mapping[str, type[pl.DataType]] = {"gpu_s": pl.Float64}


def columns(members: Mapping[str, Any], seed: SeedView) -> dict[str, float | None]:  # noqa: ARG001 - one signature for all
    """Return `gpu_s`, seconds of one draw; None where nobody measured it (ingested samples)."""
    return {"gpu_s": seed.gpu_s}
