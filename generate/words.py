"""What a person reads after a run."""

from __future__ import annotations

from collections.abc import Mapping

from ..catalogs.gather import coverage_cells
from ..catalogs.plans import open_plans
from ..catalogs.project import Project
from ..catalogs.tables import count, coverage_table, usd
from .run import RunResult


def run_words(project: Project, done: RunResult, before: Mapping[str, int], *, width: int, color: bool) -> str:
    """Tell what a run of `generate` made, failed and spent; `before` is what each cell held when it began."""
    lines = [*done.damaged]
    if done.asked:
        lines.append(
            coverage_table(coverage_cells(project, before), "coverage, before and now", width=width, color=color) + "\n"
        )
    if done.asked == 0 and not done.damaged:
        lines.append(
            f"plan {done.plan_id}: nothing to do, {count(done.generated)} of {count(done.total)} draws are there."
        )
    else:
        doubt = f" (and {usd(done.in_doubt_usd)} in doubt after a crash)" if done.in_doubt_usd else ""
        lines.append(
            f"plan {done.plan_id}: {count(done.generated)} of {count(done.total)} draws are there; this run spent "
            f"{usd(done.usd)}{doubt}."
        )
    lines += [f"  failed: {n:,} x {kind}: {reason}" for kind, reason, n in done.failures]
    if done.unregistered:
        lines.append(
            f"{done.unregistered} units are committed and not yet in the catalog (busy); the next command adds them."
        )
    lines.append(f"Shards: {project.storage.address(done.plan_id)}")
    lines += [
        f"Plan {p['plan_id']} ({p['purpose']}) waits, {count(p['generated'])} of {count(p['n_draws'])} draws there: "
        f"distdata generate --plan {p['plan_id']}"
        for p in open_plans(project)
        if p["plan_id"] != done.plan_id and p["generated"] < p["n_draws"]
    ]
    return "\n".join(lines)
