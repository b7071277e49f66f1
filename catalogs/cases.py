"""The divergence queue: cases in which the teacher, or an earlier student, was caught wrong.

A case is ``open``, then ``planned`` (a plan buys its draws), then ``consumed`` (they exist), or ``closed`` with a
reason. Each brings a seed of its own with origin ``divergence``, a twin of the seed it happened on: it lies outside
the frame, so that buying it changes no seed's probability, and it is in the group of the seed it happened on.

- ``student_diverged``: its seed is bought from the teacher with K draws.
- ``teacher_wrong``: nothing is bought of that teacher version on the seed it happened on; the wrong outputs are
  dropped. It waits for a correction, or for another teacher version, from which its seed is then bought.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import polars as pl
import pyarrow as pa

from . import store
from .errors import DistdataError, nearest
from .events import append_table
from .project import Project
from .register import catch_up
from .register_ingest import CASE_SCHEMA

CaseKind = Literal["teacher_wrong", "student_diverged"]
K_AUTO = 8
"""K of a case's seed that nothing settles, while `[plan] k` is "auto"."""

_WAITING = """state IN ('open', 'planned') AND (c.kind = 'student_diverged' OR c.teacher_hash <> $teacher)"""
_TWIN = "'dv-' || substr(md5(c.case_id), 1, 16)"
_DRAWN = """SELECT s.seed_id, list(s.k ORDER BY s.k)::SMALLINT[] AS ks
    FROM samples s JOIN plans p USING (plan_no) JOIN seeds o ON o.seed_id = s.seed_id
    WHERE p.teacher_hash = $teacher AND o.origin = 'divergence' AND s.k < 1000 GROUP BY ALL"""


def case_seed_id(case_id: str) -> str:
    """Return the id of the seed that a case brings along; SQL computes the same."""
    return f"dv-{hashlib.md5(case_id.encode(), usedforsecurity=False).hexdigest()[:16]}"


def open_cases(project: Project, teacher_hash: str) -> pl.DataFrame:
    """Read the cases whose seeds are still to be bought from this teacher version.

    A case that an unfinished plan covers is among them: the plan that supersedes it takes it over. Returns case_id,
    seed_id (outside the frame), cell_id int32, k_seed int16, priority in [0, 1], prn, and `missing` (list of int16):
    which of the draws 0 .. k_seed - 1 don't exist yet, never empty. Highest priority first, then by prn.
    """
    frame: pl.DataFrame
    with store.read(project.catalog_path) as con:
        frame = con.sql(
            f"""SELECT case_id, seed_id, cell_id, k_seed, priority, prn, missing FROM (
                SELECT c.case_id, s.seed_id, s.cell_id, s.prn, c.priority, {_k_seed(project)} AS k_seed,
                    list_filter(range(k_seed), lambda i: NOT list_contains(coalesce(d.ks, []), i))::SMALLINT[]
                        AS missing
                FROM cases c JOIN seeds s ON s.seed_id = {_TWIN} JOIN cells ON cells.cell_id = s.cell_id
                LEFT JOIN ({_DRAWN}) d ON d.seed_id = s.seed_id
                WHERE cells.feasible AND {_WAITING}
            ) WHERE len(missing) > 0 ORDER BY priority DESC, prn, case_id""",
            params={"teacher": teacher_hash},
        ).pl()
    return frame


def blocked_seeds(project: Project, teacher_hash: str) -> pl.Series:
    """Return the ids of seeds on which this teacher version is known to be wrong: nothing is bought there."""
    with store.read(project.catalog_path) as con:
        rows = con.execute(
            "SELECT DISTINCT seed_id FROM cases WHERE kind = 'teacher_wrong' AND teacher_hash = ? ORDER BY 1",
            [teacher_hash],
        ).fetchall()
    return pl.Series("seed_id", [seed_id for (seed_id,) in rows], pl.String)


def read_cases(project: Project) -> pl.DataFrame:
    """Read the whole queue: the columns of the table `cases`, by case_id."""
    frame: pl.DataFrame
    with store.read(project.catalog_path) as con:
        frame = con.sql("FROM cases ORDER BY case_id").pl()
    return frame


def mark_planned(project: Project, case_ids: Sequence[str], plan_id: str) -> None:
    """Record that a plan buys the draws of these cases; a repetition changes nothing."""
    known = {r["case_id"]: r for r in read_cases(project).iter_rows(named=True)}
    _check_known(case_ids, known)
    done = [c for c in case_ids if known[c]["state"] in ("consumed", "closed")]
    if done:
        raise DistdataError(f"case {done[0]}: is {known[done[0]]['state']} and can't be planned again.")
    fresh = [c for c in case_ids if (known[c]["state"], known[c]["plan_id"]) != ("planned", plan_id)]
    _append(project, [{"case_id": c, "state": "planned", "plan_id": plan_id} for c in fresh], f"plan {plan_id}")


def close_cases(project: Project, case_ids: Sequence[str], reason: str, *, dry_run: bool = False) -> int:
    """Close open or planned cases for good; return how many were. What a teacher got wrong stays blocked and dropped.

    Raises DistdataError for an unknown case; one that is closed or consumed already is left as it is.
    """
    known = {r["case_id"]: r for r in read_cases(project).iter_rows(named=True)}
    _check_known(case_ids, known)
    rows = [
        {"case_id": c, "state": "closed", "note": "; ".join(filter(None, [known[c]["note"], f"closed: {reason}"]))}
        for c in dict.fromkeys(case_ids)
        if known[c]["state"] in ("open", "planned")
    ]
    _append(project, [] if dry_run else rows, f"closed: {reason}")
    return len(rows)


def settle_cases(project: Project, teacher_hash: str) -> int:
    """Mark the cases consumed whose draws of this teacher version all exist by now; return how many."""
    with store.read(project.catalog_path) as con:
        rows = con.sql(
            f"""SELECT c.case_id FROM cases c JOIN seeds s ON s.seed_id = {_TWIN}
                JOIN cells ON cells.cell_id = s.cell_id JOIN ({_DRAWN}) d ON d.seed_id = s.seed_id
            WHERE {_WAITING} AND len(d.ks) >= {_k_seed(project)} ORDER BY 1""",
            params={"teacher": teacher_hash},
        ).fetchall()
    _append(project, [{"case_id": c, "state": "consumed"} for (c,) in rows], "draws made")
    return len(rows)


def _k_seed(project: Project) -> str:
    k = project.config.plan.k
    k = k if isinstance(k, int) else K_AUTO
    return f"(CASE WHEN s.decision_point IS FALSE THEN 1 ELSE coalesce(s.k, cells.k, {k}) END)::SMALLINT"


def _check_known(case_ids: Sequence[str], known: Mapping[str, Any]) -> None:
    unknown = [c for c in case_ids if c not in known]
    if unknown:
        raise DistdataError(f"case {unknown[0]}: not in the divergence queue.{nearest(unknown[0], known)}")


def _append(project: Project, rows: Sequence[Mapping[str, Any]], source: str) -> None:
    if not rows:
        return
    table = pa.Table.from_pylist([{"change": "state", **row} for row in rows], CASE_SCHEMA)
    append_table(project.events_dir, "case", table, {"source": source})
    catch_up(project)
