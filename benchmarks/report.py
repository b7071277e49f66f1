"""Time ours and a rival in turn in one process, and print the result as one JSON object."""

from __future__ import annotations

import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """Medians over rounds: seconds of ours and of the rival, and the rival's seconds over ours.

    `ratio` is the median of the rounds' own ratios, so that a machine that slows down for a while slows
    both sides of a round; `low` and `high` are the smallest and the largest of them.
    """

    ours_s: float
    rival_s: float
    ratio: float
    low: float
    high: float


def paired(ours: Callable[[], object], rival: Callable[[], object], repeats: int) -> Paired:
    """Run both once unmeasured, then `repeats` rounds of both; who goes first changes every round."""
    ours(), rival()
    times: list[tuple[float, float]] = []
    for i in range(repeats):
        if i % 2:
            rival_s, ours_s = _seconds(rival), _seconds(ours)
        else:
            ours_s, rival_s = _seconds(ours), _seconds(rival)
        times.append((ours_s, rival_s))
    ratios = [r / o for o, r in times]
    return Paired(
        ours_s=statistics.median(o for o, _ in times),
        rival_s=statistics.median(r for _, r in times),
        ratio=statistics.median(ratios),
        low=min(ratios),
        high=max(ratios),
    )


def small() -> bool:
    """Tell whether the quick form is wanted (SIZE=small)."""
    return os.environ.get("SIZE") == "small"


def versions(*packages: str) -> dict[str, str]:
    """Return the installed versions of what was measured."""
    return {name: version(name) for name in packages}


def emit(
    name: str,
    *,
    figure: float,
    unit: str,
    rival: str,
    rival_figure: float,
    ratio: float,
    bar: str,
    met: bool,
    sizes: Mapping[str, Any],
    versions: Mapping[str, str],
    **more: Any,
) -> None:
    """Print a benchmark's result: one JSON object on one line, floats to four significant digits."""
    result = {
        "name": name,
        "figure": figure,
        "unit": unit,
        "rival": rival,
        "rival_figure": rival_figure,
        "ratio": ratio,
        "bar": bar,
        "met": met,
        "sizes": sizes,
        "versions": versions,
        **more,
    }
    print(json.dumps(_rounded(result)), flush=True)


def _seconds(run: Callable[[], object]) -> float:
    gc.collect()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: _rounded(v) for key, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list | tuple) else value
