"""Features: latents as they are, ways as orthonormal modes."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from distdata.curate.metrics import feature


def test_a_latent_is_laid_flat():
    """The finished latent comes first, whatever else the record holds."""
    latent = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    found = feature.columns({"latent.npy": latent, "pose.npy": np.zeros((9, 7))}, None)
    assert found == {"feature": list(range(24))}


def test_modes_of_a_walk_are_orthonormal_and_diagonalise_it():
    """12 modes are orthonormal, and eigenvectors of min(i, j) with values 1 / (4 sin^2((2k-1) pi / (4n+2)))."""
    modes = feature.walk_modes(12)
    np.testing.assert_allclose(modes @ modes.T, np.eye(12), atol=1e-12)
    i = np.arange(1, 13)
    values = 1 / (4 * np.sin((2 * i - 1) * np.pi / 50) ** 2)
    np.testing.assert_allclose(modes @ np.minimum(i[:, None], i[None]) @ modes.T, np.diag(values), atol=1e-9)


def test_distances_are_those_of_the_ways():
    """Two records' features are as far apart as their ways since the start, at the twelve times; starts don't count."""
    rng = np.random.default_rng(1)
    a, b = (rng.normal(size=(25, 3, 4)).astype(np.float32) for _ in range(2))
    moved = a.copy()
    moved[:, :, :2] += 7
    points = [feature.point({"agents.npy": x}).astype(float) for x in (a, b, moved)]
    at = np.arange(2, 25, 2)
    ways = [x[at, :, :2].astype(float) - x[0, :, :2] for x in (a, b)]
    assert np.linalg.norm(points[0] - points[1]) == pytest.approx(np.linalg.norm(ways[0] - ways[1]), rel=1e-5)
    np.testing.assert_allclose(points[0], points[2], atol=1e-5)
    assert len(points[0]) == 3 * 2 * 12


def test_nothing_to_compare():
    """A record of neither, of one position only, and one with an infinity give None."""
    broken = np.zeros((2, 2), np.float32)
    broken[0, 0] = np.inf
    assert feature.columns({}, None) == {"feature": None}
    assert feature.columns({"pose.npy": np.zeros((1, 7))}, None) == {"feature": None}
    assert feature.columns({"latent.npy": broken}, None) == {"feature": None}


def test_matrix_wants_one_length():
    """A column becomes a matrix, row by row; a missing or shorter feature is refused."""
    kind = pl.List(pl.Float32)
    assert feature.matrix(pl.Series([[1, 2], [3, 4]], dtype=kind)).tolist() == [[1, 2], [3, 4]]
    for bad in ([[1, 2], None], [[1, 2], [3]]):
        with pytest.raises(ValueError, match="must have one and alike"):
            feature.matrix(pl.Series(bad, dtype=kind))
