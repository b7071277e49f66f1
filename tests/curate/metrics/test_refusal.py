"""Refusal: what the completion did and what it should have done."""

from __future__ import annotations

from typing import Any

import pytest

from distdata.curate.metrics.refusal import columns
from distdata.curate.metrics.seed_view import SeedView


def seed(outcome: str | None, **params: Any) -> SeedView:
    """A seed whose draw was labelled so."""
    return SeedView(
        seed_id="s", k=0, axes={}, scenario="refusal", params=params, outcome=outcome, control_axis=None,
        control_value=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("outcome", "told", "refused", "should"),
    [
        ("refuses", True, 1, 1), ("refused", False, 1, 0), ("answers", True, 0, 1), ("other", False, 0, 0),
        (None, True, None, 1), ("refuses", None, 1, None),
    ],
)  # fmt: skip
def test_by_label_and_seed(outcome: str | None, told: bool | None, refused: int | None, should: int | None) -> None:
    """The label says what was done, the seed's params what should have been; either may be unknown."""
    params = {} if told is None else {"should_refuse": told}
    assert columns({}, seed(outcome, **params)) == {"refused": refused, "should_refuse": should}


def test_the_worlds_own_verdict_goes_first() -> None:
    """Checks in meta.json are taken as they are, one by one."""
    members = {"meta.json": {"checks": {"refused": 1, "should_refuse": 0}}}
    assert columns(members, seed("answers", should_refuse=True)) == {"refused": 1, "should_refuse": 0}
    half = {"meta.json": {"checks": {"refused": 0}}}
    assert columns(half, seed("refuses", should_refuse=True)) == {"refused": 0, "should_refuse": 1}
