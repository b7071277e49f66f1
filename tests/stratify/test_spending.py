"""Alpha over candidates and looks, and Holm's adjustment."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distdata.catalogs.errors import DistdataError
from distdata.stratify.spending import holm, spent_alpha


@pytest.mark.parametrize(
    ("candidate", "n_looks", "expected"),
    # 0.05 / (1 x 2), / (2 x 3), / (10 x 11); two looks share one candidate's part
    [(1, 1, 0.025), (2, 1, 0.05 / 6), (10, 1, 0.05 / 110), (1, 2, 0.0125)],
)
def test_what_a_look_may_spend(candidate: int, n_looks: int, expected: float) -> None:
    """Candidate c spends alpha / (c (c + 1)), shared among its looks."""
    assert spent_alpha(0.05, candidate=candidate, look=n_looks, n_looks=n_looks) == pytest.approx(expected)


def test_all_looks_at_all_candidates_spend_at_most_alpha() -> None:
    """The first C candidates spend alpha (1 - 1 / (C + 1)), a telescoping sum, over any number of looks each."""
    total = sum(spent_alpha(0.05, candidate=c, look=i, n_looks=c) for c in range(1, 200) for i in range(1, c + 1))
    assert total == pytest.approx(0.05 * (1 - 1 / 200))


@pytest.mark.parametrize(("candidate", "look", "n_looks"), [(0, 1, 1), (1, 0, 1), (1, 2, 1), (1, 1, 0)])
def test_looks_that_do_not_exist_are_refused(candidate: int, look: int, n_looks: int) -> None:
    """Nothing is left for candidate 0 or a look beyond the last."""
    with pytest.raises(DistdataError, match=f"candidate {candidate}, look {look} of {n_looks}"):
        spent_alpha(0.05, candidate=candidate, look=look, n_looks=n_looks)


def test_holm_by_hand() -> None:
    """Sorted 0.01, 0.02, 0.03, 0.5: 4 x 0.01 = 0.04; 3 x 0.02 = 0.06; 2 x 0.03 = 0.06; 0.5, back in their order."""
    assert holm([0.03, 0.01, 0.5, 0.02]).tolist() == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([]).tolist() == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_keeps_order_and_lies_between_p_and_bonferroni(p: list[float]) -> None:
    """Adjusted values never fall below p, never exceed n p or 1, and keep the order of p."""
    adjusted, raw = holm(p), np.asarray(p)
    assert (adjusted >= raw).all()
    assert (adjusted <= np.minimum(raw * len(p), 1.0) + 1e-15)[np.argmin(raw)]
    assert (adjusted <= 1).all()
    assert (np.diff(adjusted[np.argsort(raw, kind="stable")]) >= 0).all()
