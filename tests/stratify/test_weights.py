"""Weights of the four policies, by hand."""

import numpy as np
import pytest

from distdata.stratify.weights import Weights, cell_weights


def _weights(policy: str, **changes: object) -> Weights:
    """Weigh three cells, the last infeasible: bands 0.1 and 0.05, fleet 0.8 and 0.2."""
    inputs: dict[str, object] = {
        "feasible": np.array([True, True, False]),
        "fleet_share": np.array([0.8, 0.2, 0.0]),
        "band": np.array([0.1, 0.05, np.nan]),
        "boost": np.ones(3),
        "gamma": 2.0,
        "fleet_blend": 0.0,
        "sigma": np.full(3, 0.5),
        "cost": np.ones(3),
    }
    return cell_weights(policy, **(inputs | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("policy", "changes", "expected"),
    [
        ("gate", {}, [0.5, 2.0]),  # 1/2 each, x (0.1/0.05)^2 = 4 for the tight one
        ("gate", {"gamma": 1.0}, [0.5, 1.0]),
        ("gate", {"gamma": 0.0}, [0.5, 0.5]),
        ("gate", {"fleet_blend": 1.0}, [0.8, 0.8]),  # 0.8 and 0.2 x 4
        ("gate", {"fleet_blend": 0.5}, [0.65, 1.4]),  # 0.25 + 0.4 and (0.25 + 0.1) x 4
        ("gate", {"boost": np.array([3.0, 1.0, 1.0])}, [1.5, 2.0]),
        ("uniform", {}, [0.5, 0.5]),
        ("uniform", {"fleet_blend": 1.0}, [0.5, 0.5]),  # the blend is the gate policy's
        ("fleet", {}, [0.8, 0.2]),
        ("neyman", {}, [0.4, 0.1]),  # f x 0.5
        # f sigma / sqrt(c): 0.8 x 0.1 / 2 and 0.2 x 0.5 / 1
        ("neyman", {"sigma": np.array([0.1, 0.5, 0.5]), "cost": np.array([4.0, 1.0, 1.0])}, [0.04, 0.1]),
    ],
)
def test_weights_by_hand(policy: str, changes: dict[str, object], expected: list[float]) -> None:
    """Each policy's weights equal the products in the comments, and an infeasible cell weighs 0."""
    weights = _weights(policy, **changes)
    np.testing.assert_allclose(weights.weight, [*expected, 0.0], rtol=1e-12)
    np.testing.assert_allclose(weights.base * weights.tightness * weights.boost, weights.weight, rtol=1e-12)


def test_the_widest_feasible_band_is_the_reference() -> None:
    """An infeasible cell's band does not enter, and the widest feasible one has tightness 1."""
    weights = _weights("gate", band=np.array([0.1, 0.05, 9.0]))
    assert weights.band_ref == 0.1
    assert weights.tightness.tolist() == [1.0, 4.0, 0.0]
