"""Which metrics there are, by the names that gates and people use, and the code behind each."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import polars as pl

from ..catalogs.errors import DistdataError, nearest

METRICS: Mapping[str, str] = {
    "outcome": "",
    "recall": "",
    "ghost": "density",
    "spread": "feature",
    "distance": "feature",
    "coherence": "coherence",
    "drift": "drift",
    "control": "control",
    "planner": "planner",
    "kl": "token_kl",
    "validity": "validity",
    "tool": "tool",
    "refusal": "refusal",
    "over_refusal": "refusal",
    "calibration": "calibration",
    "cost": "cost",
}
"""Name, as gates have it -> module of `curate.metrics`; none where the catalog's own facts are enough."""

LABELLER = "outcome"
"""The module that labels draws which no label came with, for pairs."""

FACTS: Mapping[str, pl.DataType] = {
    "sample_id": pl.String(), "seed_id": pl.String(), "k": pl.Int16(), "cell": pl.String(), "slice": pl.String(),
    "scenario": pl.String(), "outcome": pl.String(), "control_axis": pl.String(), "control_value": pl.Float64(),
}  # fmt: skip
"""What every measured frame begins with, before the metrics' own columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric's module, read once (see `metrics.seed_view` for what each part means).

    `names` are the names under which it was asked for. `step` is None for a metric that has `scored` instead.
    """

    names: tuple[str, ...]
    module: str
    members: tuple[str, ...]
    optional: tuple[str, ...]
    kinds: tuple[str, ...]
    schema: Mapping[str, pl.DataType]
    derived: Mapping[str, pl.DataType]
    step: Callable[..., Mapping[str, Any]] | None
    scored: Callable[..., Mapping[str, Any]] | None
    completion: Callable[[Mapping[str, Any]], Any] | None
    against: Callable[[pl.DataFrame, pl.DataFrame], pl.DataFrame] | None

    def is_for(self, kind: str) -> bool:
        """Tell whether records of this kind have what the metric reads."""
        return not self.kinds or kind in self.kinds


def find_metrics(names: Sequence[str]) -> list[Metric]:
    """Return the metrics of these names, one per module, in the order of first mention.

    Raises DistdataError for a name that no metric has.
    """
    by_module: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        if name not in METRICS:
            raise DistdataError(f"metric {name!r}: unknown.{nearest(name, METRICS)}")
        if METRICS[name]:
            by_module.setdefault(METRICS[name], []).append(name)
    return [read_metric(module, tuple(same)) for module, same in by_module.items()]


def defaults_for(kind: str) -> tuple[str, ...]:
    """Return the names of all metrics that records of this kind can be measured by."""
    return tuple(n for n, module in METRICS.items() if not module or read_metric(module, (n,)).is_for(kind))


def columns_of(name: str) -> tuple[str, ...]:
    """Return the per-sample columns behind a metric's name, those of its second step included."""
    return tuple(c for m in find_metrics([name]) for c in (*m.schema, *m.derived)) or ("outcome",)


@cache
def read_metric(module: str, names: tuple[str, ...]) -> Metric:
    """Return what a module of `curate.metrics` offers."""
    code: Any = importlib.import_module(f".metrics.{module}", __package__)
    return Metric(
        names=names,
        module=module,
        members=tuple(code.MEMBERS),
        optional=tuple(getattr(code, "OPTIONAL", ())),
        kinds=tuple(code.KINDS),
        schema=_schema(code.COLUMNS),
        derived=_schema(getattr(code, "DERIVED", {})),
        step=getattr(code, "columns", None),
        scored=getattr(code, "columns_scored", None),
        completion=getattr(code, "completion", None),
        against=getattr(code, "against", None),
    )


def _schema(columns: Mapping[str, Any]) -> dict[str, pl.DataType]:
    return {name: kind() if isinstance(kind, type) else kind for name, kind in columns.items()}


def columns_schema(metrics: Sequence[Metric]) -> dict[str, pl.DataType]:
    """Return the per-sample columns of these metrics with their types."""
    return {c: t for m in metrics for c, t in m.schema.items()}


@cache
def code_hash() -> str:
    """Return 16 hex digits over the source of this package: metrics share code, so each file counts for all."""
    digest = hashlib.blake2b(digest_size=8)
    package = resources.files(__package__)
    for folder in (package, package / "metrics"):
        for f in sorted((f for f in folder.iterdir() if f.name.endswith(".py")), key=lambda f: f.name):
            digest.update(f.name.encode() + b"\0" + f.read_bytes() + b"\0")
    return digest.hexdigest()
