"""What people take away: estimates, the report, exports."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, cast, get_args

from ..catalogs.errors import DistdataError, nearest
from ..catalogs.estimates import estimate_rows
from ..catalogs.files import write_atomic
from ..catalogs.gather import gather_report
from ..catalogs.plans import corpus_size
from ..catalogs.project import Project
from ..catalogs.report import render_report
from ..curate.export_hf import Layout, export_hf
from ..curate.push_hub import push_to_hub
from ..stratify.estimate import Estimates, Form, Target, estimate_rows_by
from .purchases import compare_plans, last_budget

SAY_EVERY_S = 2.0


def estimate_fleet(
    project: Project,
    expr: str,
    *,
    by: str | None = None,
    where: str | None = None,
    total: bool = False,
    form: str = "ratio",
    target: str = "superpopulation",
    purpose: str = "train",
    teacher: str | None = None,
) -> tuple[Estimates, list[str]]:
    """Estimate what `expr` is over the fleet (`catalogs.estimates`, `stratify.estimate`), and say what to know of it.

    An expression that gives texts is answered by the share of each text.

    Raises:
        DistdataError: a wrong expression, condition, grouping or word, or no corpus with weights.
    """
    for name, word, words in (("form", form, get_args(Form)), ("target", target, get_args(Target))):
        if word not in words:
            raise DistdataError(f"estimate: --{name} {word!r} is not known.{nearest(word, words)}")
    rows = estimate_rows(project, expr, where, purpose, teacher)
    groups = [name.strip() for name in by.split(",") if name.strip()] if by else []
    if by is not None and not groups:
        raise DistdataError(
            "estimate: --by names nothing. Give axes, scenario, layer, cell or slice: --by weather,light"
        )
    known = [c for c in rows.cells.columns if c not in ("cell_id", "fleet_share", "n_frame")]
    for name in groups:
        if name not in known:
            raise DistdataError(f"estimate: --by {name}: cells have no such column.{nearest(name, known)}")
    found = estimate_rows_by(rows, groups, total=total, form=cast(Form, form), target=cast(Target, target))
    return found, rows.words()


def write_report(project: Project, out: Path, say: Callable[[str], None] = lambda _: None) -> Path:
    """Write the HTML report and return its path. It compares the policies at the budget of the plan in force.

    `say` hears why there is no comparison, when the catalog has changed so that none can be made.
    """
    comparison = None
    if budget := last_budget(project, "train") or corpus_size(project):
        try:
            comparison = compare_plans(project, budget=budget, policies="fleet,uniform,gate")
        except DistdataError as e:
            say(f"The report has no comparison of policies: {e}")
    data = gather_report(project, datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"), comparison)
    write_atomic(out, render_report(data).encode(), "report")
    return out.resolve()


def export_dataset(
    project: Project,
    out: Path,
    *,
    layout: str,
    push: str | None,
    public: bool,
    overwrite: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Export the training corpus to the folder `out` and, if asked, upload it; return what was written.

    `say` hears how it goes, about every two seconds.

    Raises:
        DistdataError: see `curate.export_hf` and `curate.push_hub`.
    """
    last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= SAY_EVERY_S:
            last = time.monotonic()
            say(f"  exporting: {done / max(total, 1):.0%}")

    done = export_hf(project, out, layout=cast(Layout, layout), overwrite=overwrite, progress=progress)
    facts = {
        "folder": str(out.resolve()),
        "layout": layout,
        "samples": done.n_samples,
        "files": len(done.files),
        "bytes": done.n_bytes,
        "load it": f"datasets.load_dataset({str(out)!r})",
    }
    if push is not None:
        say(f"uploading to {push}")
        facts["uploaded to"] = push_to_hub(out, push, private=not public)
    return facts
