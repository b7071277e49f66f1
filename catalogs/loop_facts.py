"""Where the loop stands, for `distdata status`: lag, who serves, red slices, what refreshes cost, what comes next."""

from __future__ import annotations

from datetime import date
from typing import Any

from . import store
from .project import Project
from .tables import count, usd

FINISHED = "distdata report; distdata export hf OUT/"
"""What `catalog_facts` says is next when every plan is run: here the loop goes on."""


def loop_facts(project: Project, today: date, next_: str) -> dict[str, Any]:
    """Sum the loop up, as of the day `today`; `next_` is what the catalog alone says is next.

    A teacher's lag is the days from its release to the promotion of its student to the bulk of the traffic, or to
    today while there is none; till then the old student's gates stand.
    """
    with store.read(project.catalog_path) as con:
        lags = con.execute("SELECT teacher, teacher_version, teacher_hash, released, days FROM lag").fetchall()
        bulk = con.execute(
            "SELECT student_id, stage, teacher_hash, created FROM promotions ORDER BY event DESC LIMIT 1"
        ).fetchall()
        gates = con.execute(
            """SELECT gate_id, student_id, split, verdict, teacher_hash FROM gates WHERE role = 'candidate'
            ORDER BY gate_no DESC LIMIT 1"""
        ).fetchall()
        slices = con.execute(
            "SELECT verdict, list(slice ORDER BY slice) FROM slice_verdicts WHERE gate_id = ? GROUP BY ALL",
            [gates[0][0] if gates else ""],
        ).fetchall()
        causes = con.execute(
            """SELECT cause, count(*) FROM (FROM causes WHERE gate_id = ?
                QUALIFY row_number() OVER (PARTITION BY slice ORDER BY event DESC) = 1) GROUP BY ALL ORDER BY 1""",
            [gates[0][0] if gates else ""],
        ).fetchall()
        spent = con.execute(
            """SELECT purpose, sum(u.usd) FROM unit_cells u JOIN plans USING (plan_no) WHERE purpose <> 'student'
            GROUP BY ALL HAVING sum(u.usd) > 0 ORDER BY 1"""
        ).fetchall()
        snapshot = con.execute("SELECT name, n_samples FROM snapshots ORDER BY event DESC LIMIT 1").fetchall()
        newest = con.execute(
            """SELECT student_id, teacher_hash <> coalesce(
                (SELECT max_by(teacher_hash, plan_no) FROM plans WHERE purpose = 'train'), teacher_hash)
            FROM students WHERE role = 'candidate' AND precision = ? ORDER BY event DESC LIMIT 1""",
            [project.config.train.ship],
        ).fetchall()
        judged = con.execute(
            "SELECT count(*) FROM gates WHERE student_id = ?", [newest[0][0] if newest else ""]
        ).fetchall()[0][0]
    verdicts: dict[str, list[str]] = dict(slices)
    facts: dict[str, Any] = {}
    if lags:
        facts["lag"] = "; ".join(_lag(row, today) for row in lags[-2:])
    if snapshot:
        facts["snapshot"] = f"{snapshot[0][0]}: {count(snapshot[0][1])} samples"
    if gates:
        gate_id, student, split, verdict, _ = gates[0]
        parts = [f"{len(names)} {_COLOUR[said]}" for said, names in sorted(verdicts.items(), key=lambda v: v[0])]
        facts["gate"] = f"{gate_id} on {split} seeds of student {student[:8]}: {verdict} ({', '.join(parts)})"
        if verdicts.get("fail"):
            facts["red slices"] = _names(verdicts["fail"])
        if verdicts.get("undecided"):
            facts["undecided"] = _names(verdicts["undecided"])
        if causes:
            facts["causes"] = ", ".join(f"{count(n)} {cause}" for cause, n in causes)
    if bulk:
        student, stage, _, created = bulk[0]
        facts["promoted"] = f"student {student[:8]}: {stage}, {created[:10]}"
    if len(spent) > 1:
        facts["spend on"] = ", ".join(f"{purpose} {usd(amount)}" for purpose, amount in spent)
    facts["next"] = _next(next_, newest if snapshot else [], gates if judged else [], bool(causes), bulk)
    return facts


_COLOUR = {"pass": "green", "fail": "red", "undecided": "undecided"}


def _lag(row: tuple[Any, ...], today: date) -> str:
    teacher, version, teacher_hash, released, days = row
    if days is not None:
        return f"{teacher} {version} ({teacher_hash[:8]}): {days} days from its release to its student"
    waiting = (today - date.fromisoformat(released[:10])).days
    return f"{teacher} {version} ({teacher_hash[:8]}): released {released[:10]}, {waiting} days without a student"


def _names(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _next(next_: str, newest: list[Any], gates: list[Any], causes: bool, promoted: list[Any]) -> str:
    """Say what is next for the newest candidate; `newest`: its id, and whether a teacher came out after it."""
    if next_ != FINISHED:
        return next_
    if not newest:
        return "distdata train"
    if newest[0][1]:
        return "distdata cycle: draws of another teacher version than the newest student's were bought"
    if not gates:
        return "distdata gate"
    _, student, split, verdict, _ = gates[0]
    if verdict != "pass":
        return "distdata cycle" if causes or split == "confirm" else "distdata diagnose"
    if split == "gate":
        return "distdata gate --confirm"
    done = [p for p in promoted if p[0] == student]
    if done and done[0][1] == "rollback":
        return "distdata train: this student was rolled back"
    return FINISHED if done and done[0][1] == "bulk" else "distdata promote"
