"""What `[gates]` says: how a gate judges, whether it can judge so, and what of it a verdict depends on."""

from __future__ import annotations

from typing import Any

from ..catalogs import store
from ..catalogs.errors import DistdataError, nearest
from ..catalogs.plans import plan_frames, plan_in_force
from ..catalogs.project import Project
from ..curate.metric_table import defaults_for
from ..stratify.gate_metrics import FAMILIES
from ..stratify.verdict import GateSettings


def gate_settings(project: Project) -> GateSettings:
    """Return what `[gates]` says about verdicts."""
    rules = project.config.gates
    minima = None
    if rules.tail_multiple > 1:
        plan = plan_in_force(project, "gate")
        minima = plan_frames(project, plan)["minima"] if plan else None
        if minima is None or minima.is_empty():
            raise DistdataError("gate: [gates] tail_multiple needs a gate plan's minima: distdata plan --purpose gate")
    return GateSettings(
        alpha=rules.alpha, power=rules.power, metrics=None if rules.metrics is None else tuple(rules.metrics),
        bands=dict(rules.bands), tail_multiple=rules.tail_multiple, minima=minima,
    )  # fmt: skip


def check_gate_rules(project: Project, kind: str) -> None:
    """Refuse what no gate on records of this kind can judge, before anything is drawn for it.

    Raises:
        DistdataError: a metric or a band of no such name (with the nearest), a band out of range, or a metric that
            these records lack.
    """
    rules = project.config.gates
    GateSettings(metrics=None if rules.metrics is None else tuple(rules.metrics), bands=dict(rules.bands))
    fitting = [name for name in defaults_for(kind) if name in FAMILIES]
    for name in rules.metrics or ():
        if name not in fitting:
            raise DistdataError(
                f"[gates] metrics: {name} can't be measured on records of kind {kind}. For those there are "
                f"{', '.join(fitting)}.{_close(name, fitting)}"
            )


def _close(name: str, fitting: list[str]) -> str:
    said = nearest(name, fitting)
    return said if said.startswith(" Did you mean") else ""


def settings_key(project: Project) -> dict[str, Any]:
    """Return all of distdata.toml that verdicts depend on, as a gate keeps it.

    `slices`: the gated slices with their tightest bands. Cells without seeds that come or go within them change no
    verdict, so they make no other gate.
    """
    rules = project.config.gates
    with store.read(project.catalog_path) as con:
        slices = con.execute("SELECT slice, min(band) FROM cells WHERE feasible GROUP BY 1 ORDER BY 1").fetchall()
    return {
        "alpha": rules.alpha, "metrics": rules.metrics, "bands": dict(rules.bands), "slices": dict(slices),
        "tail_multiple": rules.tail_multiple,
    }  # fmt: skip


def changed_settings(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Say what differs between a gate's settings and today's, a text each, in their order."""
    said = []
    for name in now:
        before, after = then.get(name), now[name]
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            keys = [k for k in sorted({*before, *after}) if before.get(k) != after.get(k)]
            where = "the band of slice" if name == "slices" else "gates.bands"
            said += [f"{where} {k}: {_told(before.get(k))}, now {_told(after.get(k))}" for k in keys]
        else:
            said.append(f"gates.{name}: {_told(before)}, now {_told(after)}")
    return said


def _told(value: Any) -> str:
    return "not set" if value is None else f"{value:g}" if isinstance(value, float | int) else str(value)
