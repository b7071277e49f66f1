"""The language preset goes round: from an empty folder to a student that serves, by one command."""

from __future__ import annotations

from typing import Any

import pytest

from distdata.catalogs import store
from distdata.catalogs.project import Project
from distdata.cycle.loop import run_cycle
from distdata.generate.presets import first_budget
from distdata.projects import init_project


@pytest.mark.prove
def test_the_language_preset_ends_in_a_promotion(tmp_path: Any, heard: Any) -> None:
    """With the budget that `init` names the loop is green, confirmed and promoted to all traffic, slice by slice.

    Every metric of language has been judged in each of the 12 slices, in both gates: none is green for want of a row.
    """
    root = tmp_path / "p"
    init_project(root, "language")
    project = Project.open(root)
    result = run_cycle(project, heard, heard, heard, budget=first_budget("language"))
    assert (result.ended, result.exit_code) == ("promoted", 0)
    with store.read(project.catalog_path) as con:
        stages = con.execute("SELECT stage FROM promotions ORDER BY event").fetchall()
        routed = con.execute("SELECT slice, student_id, share FROM routing").fetchall()
        judged = con.execute(
            """SELECT metric, count(DISTINCT (gate_no, slice)) FROM gate_rows WHERE verdict = 'pass' AND side <> 'none'
            GROUP BY metric ORDER BY metric"""
        ).fetchall()
    assert stages[-1] == ("bulk",)
    assert {(student, share) for _, student, share in routed} == {(result.student_id, 1.0)}
    assert len(routed) == 12
    metrics = ("calibration", "kl", "outcome", "over_refusal", "recall", "refusal", "tool", "validity")
    assert judged == [(metric, 2 * 12) for metric in metrics]
