"""The push-button cycle: look at the catalog, do the next thing that is missing, look again.

It keeps no state of its own. Every step reads what is there and is skipped when its result is there, so stopping it
anywhere loses nothing, and the tenth cycle is the same command as the first.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from ..catalogs import store
from ..catalogs.errors import DistdataError
from ..catalogs.loop_events import STAGES, StudentRecord, note_release, students
from ..catalogs.plans import plan_frames, plan_in_force
from ..catalogs.project import Project
from ..generate.run import Reporter, generate
from ..stratify.budget import parse_budget
from ..stratify.growth import Growth, as_the_fleet, refresh_goals
from ..train_min.job import TrainReporter
from .diagnosis import Finding, diagnose, remedies, slices_to_explain
from .gate_turns import NoLookLeftError
from .gating import Gate, gate_student
from .promotion import promote, rolled_back, standings
from .purchases import Purchase, plan_purchase, save_purchase
from .training import Change, curate, current_teacher, shipped, train_student

Say = Callable[[str], None]
PAGED = 3
"""Exit code when a person is needed."""


@dataclass(slots=True, kw_only=True)
class CycleResult:
    """How a cycle ended: ``promoted`` or ``paged`` with the reason, and what happened on the way, in sentences."""

    ended: str
    reason: str
    turns: int
    usd: float
    student_id: str | None
    story: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 when a student was promoted, 3 when a person is needed."""
        return 0 if self.ended == "promoted" else PAGED


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Refresh:
    """What a refresh found and planned: None where no slice lacks coverage.

    `saved`: the plan is in force now. `n_as_fleet`: draws that would have brought these slices as many samples had they
    been dealt as the fleet drives; None where nothing grows.
    """

    finding: Finding
    growth: Growth | None = None
    purchase: Purchase | None = None
    saved: bool = False
    n_as_fleet: int | None = None


def refresh(
    project: Project, reporter: Reporter, training: TrainReporter, gate: Gate, *, max_usd: float | None = None,
    dry_run: bool = False,
) -> Refresh:  # fmt: skip
    """Diagnose a gate's red slices and plan what those that lack coverage need; all other cells get exactly zero.

    Without a slice that lacks coverage there is nothing to plan. A plan that buys something for at most `max_usd` is
    saved, unless it is a `dry_run`, which trains and gates the probes all the same: without them nothing is known.
    """
    finding = diagnose(project, reporter, training, gate)
    if not any(c.spends for c in finding.causes):
        return Refresh(finding=finding)
    growth = _growth(project, finding, None)
    purchase = plan_purchase(project, budget=None, goals=growth.goals, dry_run=dry_run)
    if max_usd is not None and purchase.plan.usd > max_usd and purchase.plan.n_fresh:
        most = int(growth.n_wanted * max_usd / purchase.plan.usd)
        growth = _growth(project, finding, most)
        purchase = plan_purchase(project, budget=None, goals=growth.goals, dry_run=dry_run)
    affordable = max_usd is None or purchase.plan.usd <= max_usd
    saved = not dry_run and purchase.plan.n_fresh > 0 and affordable
    if saved:
        save_purchase(project, purchase)
    return Refresh(
        finding=finding, growth=growth, purchase=purchase, saved=saved,
        n_as_fleet=as_the_fleet(growth, _fleet_shares(project)),
    )  # fmt: skip


def _fleet_shares(project: Project) -> dict[str, float]:
    with store.read(project.catalog_path) as con:
        return dict(con.execute("SELECT slice, sum(fleet_share) FROM cells WHERE feasible GROUP BY 1").fetchall())


def _growth(project: Project, finding: Finding, most: int | None) -> Growth:
    header = plan_in_force(project, "train")
    if header is None:
        raise DistdataError("refresh: no train plan is in force. Make one: distdata plan --budget 2000samples")
    cells = plan_frames(project, header)["cells"]
    with store.read(project.catalog_path) as con:
        have = dict(con.execute("SELECT cell_id, kept FROM coverage JOIN cells USING (cell)").fetchall())
    return refresh_goals(cells, have, finding.causes, finding.diagnosis.curves, max_draws=most)


def run_cycle(
    project: Project, reporter: Reporter, training: TrainReporter, say: Say, *, budget: str | None = None,
    max_cycles: int | None = None, max_usd: float | None = None,
) -> CycleResult:  # fmt: skip
    """Go on until a student is promoted or a person is needed; run it again to resume.

    `budget` is that of the first train plan, needed while there is none. `max_usd` limits what all plans may spend in
    this call, `max_cycles` the turns of the wheel.

    Raises:
        DistdataError: a stage that can't be done, with its own message.
    """
    return _Cycle(project, reporter, training, say, budget, max_cycles, max_usd).go()


class _TooDearError(Exception):
    """A plan costs more than the call may still spend: a person is asked."""


class _Cycle:
    def __init__(
        self, project: Project, reporter: Reporter, training: TrainReporter, say: Say, budget: str | None,
        max_cycles: int | None, max_usd: float | None,
    ) -> None:  # fmt: skip
        rules = project.config.loop
        self._project, self._reporter, self._training, self._say = project, reporter, training, say
        self._budget = budget
        self._max_cycles = max_cycles or rules.max_cycles
        self._max_usd = max_usd if max_usd is not None else rules.max_usd
        self._info = current_teacher(project)
        self._result = CycleResult(ended="paged", reason="", turns=0, usd=0.0, student_id=None)

    def go(self) -> CycleResult:
        try:
            return self._turns()
        except _TooDearError as e:
            return self._page(str(e))

    def _turns(self) -> CycleResult:
        note_release(self._project, self._info)
        if done := self._promoted():
            return self._end("promoted", f"student {done} serves already; nothing changed since.", done)
        self._buy_first()
        student = self._present()
        for turn in range(1, self._max_cycles + 1):
            try:
                gate = self._gate(student)
            except NoLookLeftError:
                self._note(f"student {student.student_id[:8]} has no look left for the draws and terms there are now")
                student = self._train(student)
                gate = self._gate(student)
            self._result.turns, self._result.student_id = turn, student.student_id
            self._note(f"turn {turn}: student {student.student_id[:8]}: {gate_words(gate)}")
            if gate.record.verdict == "pass":
                return self._confirm(student)
            if gate.record.n_unpaired:
                return self._page(_unanswered(gate))
            wanted = slices_to_explain(gate, self._project.config.gates.expected_difference)
            if not wanted:
                return self._page(self._too_few(gate))
            if turn == self._max_cycles:
                turns = f"{turn} turn{'s' if turn > 1 else ''}"
                return self._page(
                    f"{len(wanted)} slices are not green after {turns} ({_some(wanted)}); --max-cycles allows no more"
                )
            if stopped := self._remedy(gate):
                return stopped
            student = self._train(student)
        raise AssertionError("the loop ends by a verdict")

    def _present(self) -> StudentRecord:
        """Return the newest candidate, or a new one where none was trained on what is kept now."""
        mine = [s for s in self._candidates() if s.precision == self._project.config.train.ship]
        if mine and mine[-1].snapshot_id == curate(self._project).header["snapshot_id"]:
            return mine[-1]
        return self._train(mine[-1] if mine else None)

    def _candidates(self) -> list[StudentRecord]:
        mine = students(self._project)
        return [s for s in mine if s.role == "candidate" and s.teacher_hash == self._info.content_hash]

    def _note(self, text: str) -> None:
        self._result.story.append(text)
        self._say(text)

    def _promoted(self) -> str | None:
        """Return the student of this teacher version that was promoted as far as asked, unless there is newer data."""
        mine = self._candidates()
        if not mine:
            return None
        reached = self._reached(mine[-1].student_id)
        if reached is None or STAGES.index(reached) < STAGES.index(self._project.config.loop.promote_to):
            return None
        same = curate(self._project).header["snapshot_id"] == mine[-1].snapshot_id
        return mine[-1].student_id if same else None

    def _reached(self, student_id: str) -> str | None:
        return next((s.stage for s in standings(self._project) if s.student_id == student_id), None)

    def _buy_first(self) -> None:
        """Make and run the first plans: training draws, and the teacher's side of the gate."""
        plan = plan_in_force(self._project, "train")
        if self._budget is not None:
            parse_budget(self._budget)  # a typing error is told even where the budget is not needed any more
        if plan is None or plan["teacher_hash"] != self._info.content_hash:
            budget = self._budget or (plan or {}).get("budget")
            if not budget:
                raise DistdataError("cycle: how much for the first train plan? distdata cycle --budget 2000samples")
            self._buy("train", str(budget).partition(",")[0])
        else:  # what a stopped run left open comes first: gates are planned from the training draws
            first = str(plan["budget"]).partition(",")[0]
            if self._budget not in (None, first):
                self._say(
                    f"--budget {self._budget} changes nothing: it is for the first train plan, and plan "
                    f"{plan['plan_id']} ({first}) is in force. More: distdata plan --budget {self._budget}"
                )
            self._buy("train", None)
        self._buy("gate", None)

    def _buy(self, purpose: str, budget: str | None) -> None:
        """Make the plan for `purpose` unless one is in force for this teacher, and what it still lacks."""
        plan = plan_in_force(self._project, purpose)
        if plan is None or plan["teacher_hash"] != self._info.content_hash:
            purchase = plan_purchase(self._project, budget=budget, purpose=purpose)  # type: ignore[arg-type]
            if purchase.plan.n_fresh:
                left = self._left()
                if left is not None and purchase.plan.usd > left:
                    raise _TooDearError(f"the {purpose} plan needs ${purchase.plan.usd:.4g}, {_leaves(left)}")
                save_purchase(self._project, purchase)
                self._note(
                    f"{purpose}: plan {purchase.plan_id} buys {purchase.plan.n_fresh:,} draws of {self._info.id} for "
                    f"${purchase.plan.usd:.4g}"
                )
                plan = purchase.header
        if plan is not None:
            done = generate(self._project, self._reporter, plan_id=plan["plan_id"])
            self._result.usd += done.usd
            if done.failures:
                again = generate(self._project, self._reporter, plan_id=plan["plan_id"], mode="retry-failed")
                self._result.usd += again.usd

    def _train(self, before: StudentRecord | None) -> StudentRecord:
        """Train the candidate of what is kept now, with the remedies that were found for the one before."""
        self._buy("train", None)
        taken = curate(self._project)
        change = remedies(self._project, before, taken) if before is not None else Change()
        made = train_student(self._project, self._training, snapshot=taken.name, change=change)
        student = shipped(self._project, made)
        self._note(f"train: student {student.student_id[:8]} on snapshot {taken.name} ({taken.frame.height:,} samples)")
        return student

    def _gate(self, student: StudentRecord, split: str = "gate") -> Gate:
        """Gate a student; what it failed to answer is asked once more, as nothing passes while answers are missing."""
        gate = gate_student(self._project, self._reporter, student, split=split)
        if gate.record.n_unpaired:
            generate(self._project, self._reporter, plan_id=gate.record.student_plan, mode="retry-failed")
            gate = gate_student(self._project, self._reporter, student, split=split)
        return gate

    def _left(self) -> float | None:
        """Return the dollars that this call may still spend; None without a limit."""
        return None if self._max_usd is None else max(self._max_usd - self._result.usd, 0.0)

    def _remedy(self, gate: Gate) -> CycleResult | None:
        """Find out why slices are red and act on it; return how the cycle ends where a person is needed."""
        left = self._left()
        done = refresh(self._project, self._reporter, self._training, gate, max_usd=left)
        finding, growth, purchase = done.finding, done.growth, done.purchase
        for cause in finding.causes:
            self._note(f"  {cause.slice}: {cause.cause}: {cause.remedy}")
        if done.saved and growth is not None and purchase is not None:
            grown = ", ".join(f"{s.slice} +{s.n_target - s.n_have:,}" for s in growth.slices)
            self._note(
                f"  refresh {purchase.plan_id} buys {purchase.plan.n_fresh:,} draws: {grown}; nothing elsewhere"
                f"{fleet_words(done)}"
            )
            return None
        short = ""
        if purchase is not None and purchase.plan.n_fresh and left is not None:
            short = f"the refresh needs ${purchase.plan.usd:.4g}, {_leaves(left)}"
        if any(c.cause in ("weighting", "capacity") for c in finding.causes):
            if short:
                self._note(f"  {short}: only what costs nothing is done")
            return None
        if short:
            return self._page(short)
        if left is not None and any(c.spends for c in finding.causes):
            return self._page(f"slices lack coverage, and --max-usd leaves ${left:.4g} for their draws")
        why = [f"{c.slice}: {c.cause} ({c.evidence[-1] if c.evidence else c.remedy})" for c in finding.causes]
        return self._page("; ".join(why))

    def _confirm(self, student: StudentRecord) -> CycleResult:
        """Gate a green student on the untouched split, and promote it as far as the project says."""
        self._buy("confirm", None)
        confirm = self._gate(student, "confirm")
        self._note(f"confirm: {gate_words(confirm)}")
        if confirm.record.n_unpaired:
            return self._page(_unanswered(confirm))
        if confirm.record.verdict != "pass":
            return self._page(f"student {student.student_id[:8]} was green and is not confirmed: {gate_words(confirm)}")
        reached, wanted = self._reached(student.student_id), self._project.config.loop.promote_to
        if reached is None and (why := rolled_back(self._project, student.student_id)) is not None:
            return self._page(f"student {student.student_id[:8]} is green and was rolled back: {why}")
        for stage in STAGES[0 if reached is None else STAGES.index(reached) + 1 : STAGES.index(wanted) + 1]:
            promote(self._project, student_id=student.student_id, stage=stage)
        return self._end(
            "promoted", f"student {student.student_id[:8]} is promoted to {self._project.config.loop.promote_to}",
            student.student_id,
        )  # fmt: skip

    def _too_few(self, gate: Gate) -> str:
        open_ = gate.rows.filter(pl.col("verdict") == "undecided")
        looks = self._project.config.gates.looks
        later = "" if looks > 1 else "; they count for the next student, as [gates] looks = 1 judges each once"
        wanted = open_["needed_draws"].drop_nulls().to_list()
        more = f"; the most that one wants is {max(wanted):,} draws" if wanted else ""
        return (
            f"{open_['slice'].n_unique()} slices stay undecided ({_some(gate.undecided)}) though no estimate is far "
            f"off: the gate has too few draws{more}. Import more seeds, or buy more draws of those there are (distdata "
            f"plan --purpose gate --budget ...){later}."
        )

    def _page(self, reason: str) -> CycleResult:
        self._note(f"a person is needed: {reason}")
        call_hook(self._project, reason, self._result.student_id, self._say)
        return self._end("paged", reason, self._result.student_id)

    def _end(self, how: str, reason: str, student_id: str | None) -> CycleResult:
        self._result.ended, self._result.reason, self._result.student_id = how, reason, student_id
        if how == "promoted":
            self._note(reason)
        return self._result


def _unanswered(gate: Gate) -> str:
    return (
        f"student {gate.record.student_id[:8]} left {gate.record.n_unpaired:,} of the gate's draws unanswered, twice; "
        'nothing passes or is explained while they are missing. distdata sql "FROM failed_attempts" says why'
    )


def _leaves(left: float) -> str:
    return f"and --max-usd leaves ${left:.4g}"


def fleet_words(done: Refresh) -> str:
    """Say what a refresh saves: the draws that the fleet's own mix would have taken for the same samples."""
    if done.n_as_fleet is None or done.purchase is None:
        return ""
    return f" (dealt as the fleet drives, {done.n_as_fleet:,} draws would have brought these slices as many)"


def gate_words(gate: Gate) -> str:
    """Say in one line how a gate came out."""
    n = gate.rows["slice"].n_unique()
    red, open_ = gate.red, gate.undecided
    green = n - len(red) - len(open_)
    parts = [f"{green} of {n} slices pass"]
    if red:
        parts.append(f"{len(red)} fail ({_some(red)})")
    if open_:
        parts.append(f"{len(open_)} undecided ({_some(open_)})")
    return ", ".join(parts)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def call_hook(project: Project, reason: str, student_id: str | None, say: Say) -> None:
    """Run ``[loop] on_red`` with the reason as JSON on its stdin; one that fails is told and changes nothing."""
    command = project.config.loop.on_red
    if not command:
        return
    said: dict[str, Any] = {"project": str(project.root), "reason": reason, "student": student_id}
    try:
        done = subprocess.run(
            command, input=json.dumps(said), text=True, capture_output=True, cwd=project.root, timeout=60, check=False
        )
        if done.returncode:
            say(f"on_red: {command[0]} ended with {done.returncode}: {done.stderr.strip()[:200]}")
    except (OSError, subprocess.TimeoutExpired) as e:
        say(f"on_red: {command[0]} could not be run: {e}")
