"""Seeds of the markov language, spread over the cells as a service's log would be.

Counts follow the fleet's shares on top of a floor: every cell gets at least n // 80 seeds (1 where n has room for
that), three quarters of them all, since a gate needs held-out prompts of every kind however rare the slice is; so from
n = 5,760 on each has 72 or more. A template family (the group) belongs to one slice and has one topic: its
first 72 families hold up to one seed of every kind of request, later ones four seeds of one kind. Each slice then has
72 groups or more, and its gate at least 20 of them. A cell's first seeds stay the same when n grows.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ....catalogs.errors import DistdataError
from ....catalogs.hashing import hash64, unit_interval
from .language import AXES, DETAILS, N_COMMON, SCENARIOS, TONES, TOPICS, Prompt, decode, prompt_ids

if TYPE_CHECKING:
    import pyarrow as pa

FLEET: Mapping[str, tuple[float, ...]] = {
    "domain": (0.55, 0.30, 0.15),
    "language": (0.80, 0.20),
    "length": (0.70, 0.30),
}
SCENARIO_FLEET: Mapping[str, float] = {
    "answer": 0.50,
    "tool_call": 0.30,
    "clarify": 0.12,
    "refusal": 0.06,
    "rare_topic": 0.02,
}
DETAIL_SHARES = (0.3, 0.4, 0.3)
HARMFUL_SHARE = 0.5
"""Share of the refusal requests that should be refused; the others only look like it."""
_MIXED_FAMILIES, _LATER_SEEDS = 72, 4

Cell = tuple[str, str, str, str]
"""Domain, language, length and kind of request."""


def cells() -> dict[Cell, float]:
    """Return the cells with their fleet shares, which sum to 1."""
    shares = {
        (d, tongue, length, s): fd * ft * fl * fs
        for (d, fd), (tongue, ft), (length, fl) in itertools.product(
            *(zip(AXES[a], FLEET[a], strict=True) for a in AXES)
        )
        for s, fs in SCENARIO_FLEET.items()
    }
    total = sum(shares.values())
    return {cell: share / total for cell, share in shares.items()}


def seed_counts(n: int) -> dict[Cell, int]:
    """Return how many of `n` seeds each cell gets: a floor, then the fleet's shares by largest remainder."""
    shares = cells()
    floor = n // 80 or int(n >= len(shares))
    rest = n - floor * len(shares)
    exact = {cell: rest * share for cell, share in shares.items()}
    counts = {cell: floor + math.floor(e) for cell, e in exact.items()}
    by_remainder = sorted(exact, key=lambda cell: (math.floor(exact[cell]) - exact[cell], cell))
    for cell in by_remainder[: n - sum(counts.values())]:
        counts[cell] += 1
    return counts


def seeds(n: int, salt: str) -> pa.Table:
    """Return `n` seeds, deterministic in `salt`.

    Columns: seed_id, domain, language, length, scenario, group, decision_point (always: every completion is open),
    control_axis (``detail``) and control_value (0, 1, 2), params (a JSON object: prompt, prompt_ids, what they say).

    Raises:
        DistdataError: `n` is not positive.
    """
    import pyarrow as pa

    if n < 1:
        raise DistdataError(f"markov seeds: n is {n}; ask for at least 1.")
    rows = [row for cell, count in seed_counts(n).items() for row in _cell_rows(cell, count, salt)]
    types: dict[str, pa.DataType] = {
        **dict.fromkeys(("seed_id", *AXES, "scenario", "group"), pa.string()),
        "decision_point": pa.bool_(),
        "control_axis": pa.string(),
        "control_value": pa.float64(),
        "params": pa.string(),
    }
    return pa.Table.from_pylist(rows, schema=pa.schema(types))


def _cell_rows(cell: Cell, count: int, salt: str) -> list[dict[str, Any]]:
    stream = np.random.Generator(np.random.Philox(hash64("markov/seeds", salt, *cell)))
    uniform = stream.random((count, 4))
    rows = []
    for i in range(count):
        family = i if i < _MIXED_FAMILIES else _MIXED_FAMILIES + (i - _MIXED_FAMILIES) // _LATER_SEEDS
        group = "-".join([*cell[:3], f"{family:05d}"] if i < _MIXED_FAMILIES else [*cell, f"{family:05d}"])
        prompt = _prompt(cell, uniform[i], salt, group)
        ids = prompt_ids(prompt)
        params = {
            "prompt": decode(ids),
            "prompt_ids": ids.tolist(),
            "topic": prompt.topic,
            "tone": prompt.tone,
            "detail": prompt.detail,
            "amount": prompt.amount,
            "tool": prompt.tool,
            "should_refuse": prompt.tone == "harmful",
        }
        rows.append(
            {
                "seed_id": f"mk-{hash64('markov/seed', salt, *cell, i):016x}",
                **dict(zip(AXES, cell, strict=False)),
                "scenario": cell[3],
                "group": group,
                "decision_point": True,
                "control_axis": "detail",
                "control_value": float(DETAILS.index(prompt.detail)),
                "params": json.dumps(params, separators=(",", ":")),
            }
        )
    return rows


def _prompt(cell: Cell, u: NDArray[np.float64], salt: str, group: str) -> Prompt:
    """Return one seed's prompt from 4 uniforms; the topic is its family's."""
    domain, tongue, length, scenario = cell
    topics = TOPICS[domain][N_COMMON:] if scenario == "rare_topic" else TOPICS[domain][:N_COMMON]
    tone = TONES[0] if scenario != "refusal" else TONES[2] if u[0] < HARMFUL_SHARE else TONES[1]
    return Prompt(
        domain=domain,
        language=tongue,
        length=length,
        scenario=scenario,
        topic=topics[int(unit_interval("markov/family-topic", salt, group) * len(topics))],
        tone=tone,
        detail=DETAILS[int(np.searchsorted(np.cumsum(DETAIL_SHARES[:-1]), u[1], side="right"))],
        amount=int(u[2] * 10),
        noise=int(u[3] * 100),
    )


assert tuple(SCENARIO_FLEET) == SCENARIOS, "every kind of request has its share"
