"""What the language metrics read of a text record: its completion, its checks, what the assistant said at the end.

A teacher whose world can judge a completion by itself writes what it found into ``meta.json`` under ``checks``
(numbers, -1 where the question does not arise); that verdict is taken as it is. For any other text the metrics judge
``messages.json`` by what the seed's params ask for.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

KINDS = ("text", "logits", "reasoning", "tool")


def completion(members: Mapping[str, Any]) -> NDArray[np.int64]:
    """Return the token ids after the prompt, int64 [T], end included.

    Raises ValueError when the record doesn't say where its prompt ends, or nothing follows it.
    """
    n_prompt = members["meta.json"].get("n_prompt")
    ids: NDArray[np.int64] = np.asarray(members["input_ids.npy"], np.int64)
    if not isinstance(n_prompt, int) or not 0 <= n_prompt < len(ids):
        raise ValueError(f"n_prompt is {n_prompt!r} of {len(ids)} tokens; it must leave a completion")
    return ids[n_prompt:]


def checks(members: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what the teacher's own world found, by name; empty where it didn't look."""
    found: Mapping[str, Any] = (members.get("meta.json") or {}).get("checks") or {}
    return found


def arisen(found: Any) -> int | None:
    """Return a check's number; None where its question did not arise (-1)."""
    return None if found is None or int(found) < 0 else int(found)


def last_answer(members: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the assistant's last message; None when the conversation ends with someone else's, or there is none."""
    messages = members.get("messages.json") or []
    last = messages[-1] if messages else {}
    return last if last.get("role") == "assistant" else None


def tool_calls(answer: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the calls of an assistant's message as (name, arguments), in order.

    Read are ``tool_calls`` of the form {"function": {"name", "arguments"}} or {"name", "arguments"}; arguments that are
    JSON text are parsed, and left a text where they are none.
    """
    calls = []
    for call in answer.get("tool_calls") or []:
        function = call.get("function", call)
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            with contextlib.suppress(ValueError):
                arguments = json.loads(arguments)
        calls.append((str(function.get("name")), arguments))
    return calls
