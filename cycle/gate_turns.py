"""Whose turn a gate is: the how-manieth candidate and look, what that may spend of alpha, and who may not look at all.

What a student may spend on a split is settled by its first gate there: `[gates] alpha` and `looks` as they stood then.
Setting them higher afterwards would spend alpha twice, as the looks that were taken have spent their shares already.

Every gate that is written down was looked at, so it takes a look, whether it passed or not. One may be made again for
nothing: of the same teacher draws under the same settings, when answers of the student that were missing have come.
That is safe since with draws missing nothing passes, in no slice (`gating`): no verdict could be cashed in, and what
the repeat will say was settled before anybody looked.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..catalogs.errors import DistdataError
from ..catalogs.loop_events import GateRecord, StudentRecord, gate_header, gates
from ..catalogs.project import Project


class NoLookLeftError(DistdataError):
    """The student was judged as often as its alpha was split for; another candidate is needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """The place of a gate: candidate and look count from 1; `alpha` is the gate's before it is split."""

    candidate: int
    look: int
    n_looks: int
    alpha: float


def take_turn(project: Project, student: StudentRecord, split: str, subject: str) -> Turn:
    """Return whose turn it is on a split; `subject` names the draws and settings of the gate that is to be made.

    Raises:
        DistdataError: the student has no look left, or is to be confirmed while its newest gate is not green.
    """
    rules = project.config.gates
    if student.role != "candidate":  # nobody promotes a probe
        return Turn(candidate=1, look=1, n_looks=1, alpha=rules.alpha)
    every = [g for g in gates(project, student.teacher_hash) if g.role == "candidate"]
    if split == "confirm":
        _check_green(student, [g for g in every if (g.student_id, g.split) == (student.student_id, "gate")])
    before = [g for g in every if g.split == split]
    order = list(dict.fromkeys(g.student_id for g in before))
    if student.student_id not in order:
        return Turn(candidate=len(order) + 1, look=1, n_looks=rules.looks, alpha=rules.alpha)
    mine = [(g, gate_header(project, g)) for g in before if g.student_id == student.student_id]
    first, n_taken = mine[0][1], max(head["look"] for _, head in mine)
    same = [(g.n_unpaired, head["look"]) for g, head in mine if head.get("subject") == subject]
    look = same[0][1] if same and all(n for n, _ in same) else n_taken + 1
    n_looks = first.get("n_looks", 1)
    if look > n_looks:
        raise NoLookLeftError(
            f"gate: student {student.student_id} was judged {n_taken} times on {split} seeds, and it may be judged "
            f"{n_looks} times: its alpha was split over [gates] looks as they stood at its first gate, and a look "
            "beyond these has nothing left to spend. Other draws, bands and metrics count for the next student: "
            "distdata cycle, or distdata train with another [train] seed. For more looks at that one set looks before "
            f"its first gate (now {rules.looks})."
        )
    return Turn(
        candidate=order.index(student.student_id) + 1, look=look, n_looks=n_looks,
        alpha=min(rules.alpha, first["settings"]["alpha"]),
    )  # fmt: skip


def _check_green(student: StudentRecord, on_gate: list[GateRecord]) -> None:
    """Refuse to confirm what is not green: it would spend a candidate's alpha of the confirm seeds on nothing."""
    if not on_gate:
        raise DistdataError(
            f"gate --confirm: student {student.student_id} has no gate yet, and confirm seeds are for students "
            "that are green: distdata gate"
        )
    if on_gate[-1].verdict != "pass":
        raise DistdataError(
            f"gate --confirm: the newest gate {on_gate[-1].gate_id} of student {student.student_id} is "
            f"{on_gate[-1].verdict}, and confirm seeds are for students that are green: each that is judged there "
            "leaves less alpha to the next. Find out why: distdata diagnose"
        )
