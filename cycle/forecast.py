"""What it would take to turn every slice green: learning curves from retraining on subsets, and their price."""

from __future__ import annotations

import polars as pl

from ..catalogs import store
from ..catalogs.errors import DistdataError
from ..catalogs.loop_events import students
from ..catalogs.project import Project
from ..catalogs.snapshots import load_snapshot
from ..generate.run import Reporter
from ..stratify.learning_curves import fit_curves
from ..stratify.to_green import ToGreen, to_green
from ..train_min.job import TrainReporter
from .diagnosis import Probes, last_gate, score_of
from .training import change_of, changed

SHARES = (0.25, 0.5)
"""Parts of every slice's data that probes are trained on; the candidate itself is the whole."""
GOAL = 1.0
"""A score of 1 is the edge of the band."""


def forecast(project: Project, reporter: Reporter, training: TrainReporter) -> ToGreen:
    """Predict the probability that all slices are green against dollars of further training draws.

    Trains and gates a student on a quarter and on half of every slice's data; both are kept, so a second forecast for
    the same candidate trains nothing. No alpha is spent: probes are never promoted.

    Raises:
        DistdataError: no student was gated yet, or no price of a draw is known.
    """
    gate = last_gate(project)
    mine = next(s for s in students(project) if s.student_id == gate.record.student_id)
    taken = load_snapshot(project, mine.snapshot_id)
    slices = sorted(gate.rows["slice"].unique())
    kept = dict(changed(taken.frame, change_of(mine)).group_by("slice").len().iter_rows())
    missing = [name for name in slices if not kept.get(name)]
    if missing:
        raise DistdataError(
            f"plan --to-green: slice {missing[0]} has no training sample, so no learning curve. Plan some first."
        )
    probes = Probes(project, reporter, training, mine, gate, change_of(mine), slices)
    rows = [(1.0, gate.rows)]
    for i, share in enumerate(SHARES):
        what = f"{share:.0%} of all data, seed {i}"
        rows.append((share, probes.run(what, keep=dict.fromkeys(slices, share), seed=i, everywhere=True)))
    metrics = gate.rows["metric"].unique().to_list()
    scored = [(name, kept[name] * share, score_of(table, name, metrics)) for share, table in rows for name in slices]
    points = pl.DataFrame(
        [(name, n, score) for name, n, score in scored if score is not None],
        schema={"slice": pl.String, "n": pl.Float64, "score": pl.Float64}, orient="row",
    )  # fmt: skip
    return to_green(fit_curves(points), kept, _prices(project, mine.teacher_hash, slices), goal=GOAL)


def _prices(project: Project, teacher_hash: str, slices: list[str]) -> dict[str, float]:
    """Return the dollars that one more kept training sample costs in each slice, rejected draws included."""
    with store.read(project.catalog_path) as con:
        found = con.execute(
            """WITH made AS (
                SELECT plan_no, cell_id, sum(usd) AS usd, sum(generated) AS n FROM unit_cells GROUP BY ALL
            ), lost AS (SELECT plan_no, cell_id, sum(dropped) AS n FROM drop_cells GROUP BY ALL)
            SELECT c.slice, sum(made.usd) / nullif(sum(made.n) - coalesce(sum(lost.n), 0), 0)
            FROM made JOIN plans p USING (plan_no) JOIN cells c USING (cell_id) LEFT JOIN lost USING (plan_no, cell_id)
            WHERE p.teacher_hash = ? AND p.purpose IN ('train', 'pilot') GROUP BY ALL""",
            [teacher_hash],
        ).fetchall()
    known = {name: price for name, price in found if price is not None}
    if not known:
        raise DistdataError("plan --to-green: no training draw of this teacher was made here, so no price is known.")
    usual = sum(known.values()) / len(known)
    return {name: known.get(name, usual) for name in slices}
