"""Collect what the report shows of the loop: gates, causes, promotions, who answers where."""

from __future__ import annotations

import json

from .gate_scale import gate_rows_of
from .loop_events import causes_of, gate_rows, gates, promotions, routing
from .project import Project
from .report_gates import CauseView, GateView, LoopView

MOST_GATES = 12


def gather_loop(project: Project) -> LoopView:
    """Read the loop's part of the report; all of it is empty before the first gate."""
    judged = [g for g in gates(project) if g.role == "candidate"][::-1][:MOST_GATES]
    views = tuple(
        GateView(
            gate_id=g.gate_id, student=g.student_id, split=g.split, verdict=g.verdict, n_draws=g.n_draws, alpha=g.alpha,
            created=g.created, rows=tuple(gate_rows_of(gate_rows(project, g.gate_id))),
        )
        for g in judged
    )  # fmt: skip
    # of the newest diagnosis: a green gate after it shows what the remedies did, and its heading says whose causes
    explained = next(((g, c) for g, c in ((g, causes_of(project, g.gate_id)) for g in judged) if c.height), None)
    causes = () if explained is None else tuple(
        CauseView(
            slice=r["slice"], cause=r["cause"], remedy=r["remedy"], evidence=tuple(json.loads(r["evidence"])),
            student=explained[0].student_id,
        ) for r in explained[1].iter_rows(named=True)
    )  # fmt: skip
    return LoopView(
        gates=views, causes=causes, promotions=tuple(promotions(project)), routes=tuple(routing(project))
    )  # fmt: skip
