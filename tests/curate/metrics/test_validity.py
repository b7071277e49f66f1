"""Validity: by the world's own verdict, else by the tools and the schema that the seed asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from distdata.curate.metrics.seed_view import SeedView
from distdata.curate.metrics.validity import columns, fits

TOOL = {
    "name": "book",
    "parameters": {
        "type": "object",
        "properties": {"seats": {"type": "integer", "minimum": 1}, "class": {"enum": ["first", "second"]}},
        "required": ["seats"],
        "additionalProperties": False,
    },
}


def seed(**params: Any) -> SeedView:
    """A seed that asks for something."""
    return SeedView(
        seed_id="s", k=0, axes={}, scenario="tool_call", params=params, outcome=None, control_axis=None,
        control_value=None,
    )  # fmt: skip


def said(content: str | None = None, *calls: tuple[str, Any]) -> dict[str, Any]:
    """A conversation that ends with this content and these calls."""
    answer = {"role": "assistant", "content": content, "tool_calls": [
        {"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in calls
    ]}  # fmt: skip
    return {"messages.json": [{"role": "user", "content": "hello"}, answer]}


def test_the_worlds_own_verdict_goes_first() -> None:
    """A check in meta.json is taken as it is, whatever the messages look like; -1 means it did not arise."""
    for found, valid in ((1, 1), (0, 0), (-1, None)):
        members = {**said("no json"), "meta.json": {"checks": {"valid": found}}}
        assert columns(members, seed(response_schema={"type": "object"})) == {"valid": valid}


@pytest.mark.parametrize(
    ("arguments", "valid"),
    [
        ({"seats": 2}, 1),
        ('{"seats": 2, "class": "first"}', 1),  # as JSON text, as endpoints give it
        ({"seats": 2.0}, 1),  # JSON knows one kind of number
        ({}, 0),  # required
        ({"seats": 0}, 0),  # minimum
        ({"seats": True}, 0),  # a boolean is no number
        ({"seats": 2, "class": "third"}, 0),  # enum
        ({"seats": 2, "meal": "none"}, 0),  # additionalProperties
        ("{seats: 2}", 0),  # no JSON
    ],
)
def test_calls_must_fit_their_tool(arguments: Any, valid: int) -> None:
    """A call's arguments are held against the schema of the tool that it names, in both spellings of a tool."""
    members = said(None, ("book", arguments))
    assert columns(members, seed(tools=[TOOL])) == {"valid": valid}
    assert columns(members, seed(tools=[{"type": "function", "function": TOOL}])) == {"valid": valid}


def test_an_unknown_tool_and_one_bad_call_of_two_are_invalid() -> None:
    """All calls must be right, and of tools that there are."""
    assert columns(said(None, ("cook", {"seats": 1})), seed(tools=[TOOL])) == {"valid": 0}
    both = said(None, ("book", {"seats": 1}), ("book", {}))
    assert columns(both, seed(tools=[TOOL])) == {"valid": 0}


def test_content_must_fit_the_response_schema() -> None:
    """With a response schema the content must be JSON that fits; without calls and schema anything goes."""
    schema = {"type": "array", "items": {"type": "string"}, "maxItems": 2}
    for content, valid in (('["a"]', 1), ('["a", 1]', 0), ('["a", "b", "c"]', 0), ("a", 0), (None, 0)):
        assert columns(said(content), seed(response_schema=schema)) == {"valid": valid}
    assert columns(said("just words"), seed(tools=[TOOL])) == {"valid": 1}
    assert columns(said("just words"), seed()) == {"valid": None}
    assert columns({"messages.json": [{"role": "user", "content": "?"}]}, seed(tools=[TOOL])) == {"valid": 0}


SCHEMAS: list[dict[str, Any] | bool] = [
    True, False, {}, {"type": "number"}, {"type": ["integer", "null"]}, {"const": 1}, {"enum": [1, "a", None]},
    {"type": "string", "minLength": 2, "maxLength": 3}, {"pattern": "^a+$"}, {"minimum": 1, "exclusiveMaximum": 3},
    {"exclusiveMinimum": 1, "maximum": 3}, {"required": ["a"]}, {"properties": {"a": {"type": "integer"}}},
    {"properties": {"a": {}}, "additionalProperties": False}, {"additionalProperties": {"type": "string"}},
    {"items": {"type": "integer"}, "minItems": 2}, {"anyOf": [{"type": "string"}, {"minimum": 2}]},
    {"oneOf": [{"minimum": 1}, {"maximum": 2}]}, {"allOf": [{"minimum": 1}, {"maximum": 2}]},
    {"not": {"type": "string"}}, {"title": "anything", "description": "at all"},
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, 1, 1.0, 1.5, 2, 3, "", "a", "aa", "aaaa", "ab", [], [1], [1, 2], [1, "a"], {}, {"a": 1},
    {"a": "x"}, {"b": "x"}, {"a": 1, "b": 2}, {"a": 1.0},
]  # fmt: skip


def test_it_judges_as_the_reference_library() -> None:
    """On 504 pairs of schema and value the verdict is that of the jsonschema library, which comes with Ray."""
    reference = pytest.importorskip("jsonschema")
    n_fit = 0
    for schema in SCHEMAS:
        validator = reference.Draft202012Validator(schema)
        for value in VALUES:
            expected = validator.is_valid(value)
            n_fit += expected
            assert fits(value, schema) == expected, f"{json.dumps(value)} against {json.dumps(schema)}"
    assert 100 < n_fit < len(SCHEMAS) * len(VALUES) - 100, "the cases are of both kinds"


def test_a_keyword_that_is_not_judged_is_refused() -> None:
    """A schema that asks for more than is judged gives no verdict: a pass would mean nothing."""
    with pytest.raises(ValueError, match=r"the schema's \$ref, uniqueItems can't be judged"):
        fits([1, 1], {"uniqueItems": True, "$ref": "#/x"})
    with pytest.raises(ValueError, match="type 'int' is none of JSON's"):
        fits(1, {"type": "int"})
