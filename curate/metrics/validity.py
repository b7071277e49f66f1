"""Validity: whether a completion has the form that was asked for.

`valid` 0 or 1. Where the teacher's world judges form itself (``checks`` in meta.json), its verdict. Otherwise the
assistant's last message is held against the seed's params: every call must name one of ``tools`` ({"name",
"parameters"}, or OpenAI's {"function": {...}} around it) with arguments that fit its parameters, and with
``response_schema`` the content must be JSON that fits it. None when nothing was asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from .language import KINDS, arisen, checks, last_answer, tool_calls
from .seed_view import SeedView

__all__ = ["COLUMNS", "KINDS", "MEMBERS", "OPTIONAL", "columns", "fits"]

MEMBERS: tuple[str, ...] = ("messages.json",)
OPTIONAL: tuple[str, ...] = ("meta.json",)
COLUMNS: Mapping[str, type[pl.DataType]] = {"valid": pl.Int8}

_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "boolean": (bool,), "null": (type(None),),
    "number": (int, float), "integer": (int, float),
}  # fmt: skip
_KNOWN = {
    "type", "enum", "const", "properties", "required", "additionalProperties", "items", "minItems", "maxItems",
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "pattern", "anyOf", "allOf",
    "oneOf", "not",
}  # fmt: skip
_NOTES = {"description", "title", "default", "examples", "$schema", "$id", "$comment", "format", "deprecated", "strict"}


def columns(members: Mapping[str, Any], seed: SeedView) -> dict[str, int | None]:
    """Return `valid` of one completion.

    Raises ValueError for a schema with a keyword that is not judged here: a pass would mean nothing.
    """
    found = checks(members)
    if "valid" in found:
        return {"valid": arisen(found["valid"])}
    tools, schema = seed.params.get("tools"), seed.params.get("response_schema")
    if tools is None and schema is None:
        return {"valid": None}
    answer = last_answer(members)
    if answer is None:
        return {"valid": 0}
    calls = tool_calls(answer)
    if calls:
        return {"valid": int(all(_call_fits(name, arguments, tools or []) for name, arguments in calls))}
    return {"valid": int(schema is None or _content_fits(answer.get("content"), schema))}


def _call_fits(name: str, arguments: Any, tools: Sequence[Mapping[str, Any]]) -> bool:
    described = [t.get("function", t) for t in tools]
    same = [t for t in described if t.get("name") == name]
    return bool(same) and isinstance(arguments, dict) and fits(arguments, same[0].get("parameters") or {})


def _content_fits(content: Any, schema: Mapping[str, Any]) -> bool:
    try:
        return fits(json.loads(content), schema)
    except (TypeError, json.JSONDecodeError):
        return False


def fits(value: Any, schema: Mapping[str, Any] | bool) -> bool:
    """Tell whether a JSON value fits a JSON schema (draft 2020-12, without references and formats).

    Raises ValueError for a keyword that is not judged here.
    """
    if isinstance(schema, bool):
        return schema
    unknown = set(schema) - _KNOWN - _NOTES
    if unknown:
        raise ValueError(f"the schema's {', '.join(sorted(unknown))} can't be judged")
    return (
        _type_fits(value, schema.get("type"))
        and ("enum" not in schema or any(same_json(value, v) for v in schema["enum"]))
        and ("const" not in schema or same_json(value, schema["const"]))
        and (not isinstance(value, dict) or _object_fits(value, schema))
        and (not isinstance(value, list) or _array_fits(value, schema))
        and (not isinstance(value, str) or _text_fits(value, schema))
        and (isinstance(value, bool) or not isinstance(value, int | float) or _number_fits(value, schema))
        and all(fits(value, s) for s in schema.get("allOf", ()))
        and ("anyOf" not in schema or any(fits(value, s) for s in schema["anyOf"]))
        and ("oneOf" not in schema or sum(fits(value, s) for s in schema["oneOf"]) == 1)
        and ("not" not in schema or not fits(value, schema["not"]))
    )


def same_json(a: Any, b: Any) -> bool:
    """Tell whether two JSON values are equal: 1 and 1.0 are, 1 and true are not."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_json(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same_json(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def _type_fits(value: Any, wanted: str | Sequence[str] | None) -> bool:
    if wanted is None:
        return True
    return any(_is_a(value, kind) for kind in ([wanted] if isinstance(wanted, str) else wanted))


def _is_a(value: Any, kind: str) -> bool:
    if kind not in _TYPES:
        raise ValueError(f"the schema's type {kind!r} is none of JSON's")
    if kind in ("number", "integer") and isinstance(value, bool):
        return False
    whole = kind != "integer" or isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return isinstance(value, _TYPES[kind]) and whole


def _object_fits(value: Mapping[str, Any], schema: Mapping[str, Any]) -> bool:
    properties, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
    return all(name in value for name in schema.get("required", ())) and all(
        fits(item, properties.get(name, rest)) for name, item in value.items()
    )


def _array_fits(value: Sequence[Any], schema: Mapping[str, Any]) -> bool:
    in_size = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
    return in_size and all(fits(item, schema.get("items", True)) for item in value)


def _text_fits(value: str, schema: Mapping[str, Any]) -> bool:
    in_size = schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
    return in_size and ("pattern" not in schema or re.search(schema["pattern"], value) is not None)


def _number_fits(value: float, schema: Mapping[str, Any]) -> bool:
    return (
        schema.get("minimum", value) <= value <= schema.get("maximum", value)
        and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
        and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
    )
