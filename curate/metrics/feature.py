"""Feature: one draw as a point, for the metrics that compare clouds of draws (spread, distance, density).

`feature`, float32 list of fixed length within one teacher: the finished latent laid flat where the record has one
(``latent.npy``), else the way of every agent since its own first recorded position, metres, [N agents, 2, 12 modes]
laid flat. The start is taken away because it belongs to the seed and not to the draw. The modes are orthonormal, so
that distances are those of the ways at twelve times: the eigenvectors of a random walk's covariance min(i, j),

    phi_k(i) = 2 / sqrt(2 n + 1) sin((2 k - 1) pi i / (2 n + 1)),   k, i = 1..n,

in which slow and fast departures hardly correlate. None for a record with neither, with fewer than two recorded
positions, or one that holds a value that is not finite.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from .drift import positions_m, times
from .seed_view import SeedView

MEMBERS: tuple[str, ...] = ()
OPTIONAL: tuple[str, ...] = ("latent.npy", "agents.npy", "pose.npy")
KINDS: tuple[str, ...] = ("rollout", "kd_pair", "ode")
COLUMNS: Mapping[str, type[pl.DataType] | pl.DataType] = {"feature": pl.List(pl.Float32)}


def columns(members: Mapping[str, Any], seed: SeedView) -> dict[str, list[float] | None]:  # noqa: ARG001
    """Return `feature` of one draw."""
    found = point(members)
    return {"feature": None if found is None or not np.isfinite(found).all() else found.tolist()}


def point(members: Mapping[str, Any]) -> NDArray[np.float32] | None:
    """Return a draw's latent or ways, float32 [d] (see the module's text)."""
    latent = members.get("latent.npy")
    if latent is not None:
        return np.asarray(latent, np.float32).ravel()
    positions = positions_m(members)
    if positions is None or len(positions) < 2:
        return None
    way = positions[1:][times(len(positions) - 1)] - positions[0]
    return np.asarray(np.einsum("ki,inc->nck", walk_modes(len(way)), way), np.float32).ravel()


@functools.cache
def walk_modes(n: int) -> NDArray[np.float64]:
    """Return the modes of a random walk of `n` steps, float64 [n modes, n steps], orthonormal (module text)."""
    k, i = 2 * np.arange(n)[:, None] + 1, np.arange(1, n + 1)[None, :]
    return np.asarray(2 / math.sqrt(2 * n + 1) * np.sin(k * math.pi * i / (2 * n + 1)))


def matrix(column: pl.Series) -> NDArray[np.float64]:
    """Return a column of features as float64 [n, d].

    Raises ValueError when a row has none, or the lengths differ: such points can't be compared.
    """
    lengths = column.list.len().unique().to_list()
    if len(lengths) > 1 or None in lengths:
        raise ValueError(f"features have lengths {sorted(str(n) for n in lengths)}; all draws must have one and alike")
    width = lengths[0] if lengths else 0
    return column.list.explode().to_numpy().astype(np.float64).reshape(len(column), width)
