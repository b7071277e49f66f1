"""Tool match: by the world's own verdict, else by the call that the seed expects."""

from __future__ import annotations

from typing import Any

import pytest

from distdata.curate.metrics.seed_view import SeedView
from distdata.curate.metrics.tool import columns


def seed(**params: Any) -> SeedView:
    """A seed that expects something."""
    return SeedView(
        seed_id="s", k=0, axes={}, scenario="tool_call", params=params, outcome=None, control_axis=None,
        control_value=None,
    )  # fmt: skip


def said(*calls: dict[str, Any]) -> dict[str, Any]:
    """A conversation that ends with these calls."""
    return {"messages.json": [{"role": "assistant", "content": None, "tool_calls": list(calls)}]}


EXPECTED = {"name": "book", "arguments": {"seats": 2, "who": ["a", "b"]}}


@pytest.mark.parametrize(
    ("calls", "match"),
    [
        ([{"name": "book", "arguments": {"who": ["a", "b"], "seats": 2.0}}], 1),  # order of keys, 2 and 2.0
        ([{"function": {"name": "book", "arguments": '{"seats": 2, "who": ["a", "b"]}'}}], 1),
        ([{"name": "book", "arguments": {"seats": 2, "who": ["b", "a"]}}], 0),  # the order of a list counts
        ([{"name": "book", "arguments": {"seats": 2}}], 0),
        ([{"name": "book", "arguments": {"seats": 2, "who": ["a", "b"], "meal": None}}], 0),
        ([{"name": "look", "arguments": {"seats": 2, "who": ["a", "b"]}}], 0),
        ([{"name": "book", "arguments": {"seats": 2, "who": ["a", "b"]}}] * 2, 0),  # once is what was expected
        ([], 0),
    ],
)
def test_exactly_the_expected_call_matches(calls: list[dict[str, Any]], match: int) -> None:
    """One call, with that name and equal arguments."""
    assert columns(said(*calls), seed(expected_call=EXPECTED)) == {"tool_match": match}


def test_no_call_may_be_what_is_expected() -> None:
    """With null expected any call is wrong; with nothing said there is nothing to match."""
    assert columns(said(), seed(expected_call=None)) == {"tool_match": 1}
    assert columns(said({"name": "book"}), seed(expected_call=None)) == {"tool_match": 0}
    assert columns(said({"name": "book"}), seed()) == {"tool_match": None}
    assert columns(said({"name": "go"}), seed(expected_call={"name": "go"})) == {"tool_match": 1}


def test_the_worlds_own_verdict_goes_first() -> None:
    """A check in meta.json is taken as it is; -1 (no tool was asked for) is no answer."""
    for found, match in ((1, 1), (0, 0), (-1, None)):
        members = {**said(), "meta.json": {"checks": {"tool_match": found}}}
        assert columns(members, seed(expected_call=EXPECTED)) == {"tool_match": match}
