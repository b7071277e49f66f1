"""Tool match: whether a completion calls the tool that was expected, with the expected arguments.

`tool_match` 0 or 1. Where the teacher's world judges it (``checks`` in meta.json), its verdict. Otherwise the calls of
the assistant's last message against the seed's ``expected_call`` ({"name", "arguments"}, null where none should be
made): exactly that one call, with equal arguments (1 equals 1.0; the order of keys is free). None when the seed
expects nothing in particular.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from .language import KINDS, arisen, checks, last_answer, tool_calls
from .seed_view import SeedView
from .validity import same_json

__all__ = ["COLUMNS", "KINDS", "MEMBERS", "OPTIONAL", "columns"]

MEMBERS: tuple[str, ...] = ("messages.json",)
OPTIONAL: tuple[str, ...] = ("meta.json",)
COLUMNS: Mapping[str, type[pl.DataType]] = {"tool_match": pl.Int8}


def columns(members: Mapping[str, Any], seed: SeedView) -> dict[str, int | None]:
    """Return `tool_match` of one completion."""
    found = checks(members)
    if "tool_match" in found:
        return {"tool_match": arisen(found["tool_match"])}
    if "expected_call" not in seed.params:
        return {"tool_match": None}
    expected, calls = seed.params["expected_call"], tool_calls(last_answer(members) or {})
    if expected is None:
        return {"tool_match": int(not calls)}
    name, arguments = expected["name"], expected.get("arguments", {})
    return {"tool_match": int(len(calls) == 1 and calls[0][0] == name and same_json(calls[0][1], arguments))}
