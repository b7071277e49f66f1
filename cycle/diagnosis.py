"""Find out by intervention why slices are red: probes are trained, gated on those slices, and compared."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import polars as pl

from ..catalogs import store
from ..catalogs.errors import DistdataError
from ..catalogs.gate_scale import GateRow, gate_rows_of
from ..catalogs.loop_events import StudentRecord, causes_of, gate_rows, gates, record_causes, students
from ..catalogs.project import Project
from ..catalogs.snapshots import Snapshot, load_snapshot
from ..generate.run import Reporter
from ..stratify.causes import Cause, Diagnosis, Evidence, Trial, Verdict, find_causes
from ..stratify.interventions import up_factors
from ..train_min.job import TrainReporter, WeightColumn
from ..train_min.loader import WEIGHT_COLUMNS
from ..train_min.recipes import find_recipe, resolve_settings
from .gating import Gate, gate_student
from .training import Change, change_of, changed, shipped, train_like, weights_of

WIDER = 2.0
"""Factor on the width of the student in the probe that asks whether capacity is the cause."""
N_SEEDS = 2
"""Trainings of all and of a quarter of the data: what differs between two seeds is noise. A quarter rather than half:
for the same number of trainings it shows a lack of coverage with a power of 99% where half has 90% (noise of 10%)."""
N_SAID = 4
MOST_SCORE = 50.0
"""A score beyond this says no more than this one does: the slice is far off."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Finding:
    """What a diagnosis found for one gate: the causes, their curves, and the candidate's own recipe and snapshot."""

    gate: Gate
    diagnosis: Diagnosis
    recipe: str
    snapshot: str

    @property
    def causes(self) -> tuple[Cause, ...]:
        """The causes, a slice each."""
        return self.diagnosis.causes


def slices_to_explain(gate: Gate, expected: float) -> list[str]:
    """Return the slices that failed, and those left undecided by a student that surely differs and by too much.

    A slice is undecided for one of two reasons: the gate has too few draws, or the student is too far off for them.
    It is the student where an interval excludes no difference and the estimate lies beyond `expected` bands, which is
    what the gate was planned for.
    """
    return sorted({row.slice for row in gate_rows_of(gate.rows) if _off(row, expected)})


def _off(row: GateRow, expected: float) -> bool:
    if not row.judged or row.verdict == "pass":
        return False
    return row.verdict == "fail" or (_differs(row) and (row.score or 0.0) > expected)


def _differs(row: GateRow) -> bool:
    """Tell whether a row's interval excludes that there is no difference."""
    _, low, high = row.place
    return (low is not None and low > 0) or (row.two_sided and high is not None and high < 0)


def diagnose(project: Project, reporter: Reporter, training: TrainReporter, gate: Gate) -> Finding:
    """Explain the red slices of a gate; what was trained and gated for it before is not made again.

    Raises:
        DistdataError: nothing is red, or a probe can't be trained.
    """
    wanted = slices_to_explain(gate, project.config.gates.expected_difference)
    if not wanted:
        raise DistdataError(
            f"diagnose: gate {gate.record.gate_id} has no slice that failed or is far off; nothing is to be explained."
        )
    mine = next(s for s in students(project) if s.student_id == gate.record.student_id)
    taken = load_snapshot(project, mine.snapshot_id)
    change = change_of(mine)
    probes = Probes(project, reporter, training, mine, gate, change, wanted)
    full = [probes.own(), *(probes.run(f"the same data, seed {i}", seed=i) for i in range(1, N_SEEDS))]
    kept = _by_slice(changed(taken.frame, change))
    fewer = {name: 0.25 for name in wanted if kept.get(name)}
    quarter = [
        probes.run(f"a quarter of their data, seed {i}", keep=fewer, seed=i) for i in range(N_SEEDS) if fewer
    ]  # fmt: skip
    left = _by_slice(changed(taken.frame, replace(change, keep={**change.keep, **fewer})))
    up = None
    if factors := raised(taken, change, wanted, weights_of(project, mine)):
        up = probes.run("their data weighted up", factors=factors, everywhere=True)
    wider = None
    if wide := wider_settings(change):
        wider = probes.run(f"a student {WIDER:g} times as wide", settings=wide)
    verified = verified_outputs(project, mine.teacher_hash)
    expected = project.config.gates.expected_difference
    off = [row for row in gate_rows_of(gate.rows) if _off(row, expected)]
    metrics = {name: {row.metric for row in off if row.slice == name} for name in wanted}
    evidence = [
        Evidence(
            slice=name,
            n_kept=int(kept.get(name, 0)),
            full=_trial(full, name, metrics[name]),
            quarter=_trial(quarter, name, metrics[name]),
            quarter_share=left[name] / kept[name] if kept.get(name) else 1.0,
            up_weighted=_trial([up] if up is not None else [], name, metrics[name]),
            wider=_trial([wider] if wider is not None else [], name, metrics[name]),
            n_verified=verified.get(name, (0, 0))[0],
            n_wrong=verified.get(name, (0, 0))[1],
            harmed=_harmed(gate, up) if up is not None else (),
            failing=_failing([row for row in off if row.slice == name]),
        )
        for name in wanted
    ]
    found = find_causes(evidence)
    known = causes_of(project, gate.record.gate_id)
    fresh = [c for c in found.causes if not _same(known, c)]
    if fresh:
        record_causes(
            project, gate.record.gate_id,
            [{"slice": c.slice, "cause": c.cause, "remedy": c.remedy, "evidence": list(c.evidence)} for c in fresh],
        )  # fmt: skip
    return Finding(gate=gate, diagnosis=found, recipe=mine.recipe, snapshot=mine.snapshot_id)


def _by_slice(frame: pl.DataFrame) -> dict[str, int]:
    return dict(frame.group_by("slice").len().iter_rows())


def raised(taken: Snapshot, change: Change, slices: Sequence[str], weights: WeightColumn) -> dict[str, float]:
    """Return the factors that weight red slices up in a training on `taken` that already differs by `change`.

    `weights` are those that its samples are drawn by. Empty where factors would change nothing, because all slices are
    red and weigh alike.
    """
    frame = changed(taken.frame.filter(~clean_samples()), change)
    frame = frame.with_columns(weight=pl.col(WEIGHT_COLUMNS[weights]))
    weighing = set(frame.filter(pl.col("weight") > 0)["slice"])
    return up_factors(frame, [name for name in slices if name in weighing])


def remedies(project: Project, before: StudentRecord, taken: Snapshot) -> Change:
    """Return what the causes found for a student say that the next training, on `taken`, has to do differently.

    Weights and width are those that the probes were made with, and what earlier diagnoses asked for stays; everything
    else is as ``[train]`` says now. A width there that is larger yet stands, and so does a clean_share. Another recipe
    has no use for the old one's width. Corrections of a teacher's wrong outputs count a sample as much as its draws do,
    unless the project says how much.
    """
    last, rules = change_of(before), project.config.train
    found = [g for g in gates(project) if g.student_id == before.student_id and g.split == "gate"]
    causes = causes_of(project, found[-1].gate_id).select("slice", "cause").rows() if found else []
    factors, asked = dict(last.factors), dict(last.remedies)
    if light := sorted(name for name, cause in causes if cause == "weighting"):
        weights = weights_of(project, before)
        up = raised(load_snapshot(project, before.snapshot_id), last, light, weights)
        factors |= {name: factors.get(name, 1.0) * factor for name, factor in up.items()}
    if any(cause == "capacity" for _, cause in causes):
        asked |= wider_settings(last)
    share = clean_weight(taken.frame, rules.weights)
    if share > 0 and any(cause == "teacher" for _, cause in causes) and not asked.get("clean_share"):
        asked["clean_share"] = share
    if before.recipe != rules.recipe:
        asked.pop("width", None)
    # seeds of its own: a candidate is no training that a diagnosis has looked at
    own = resolve_settings(find_recipe(rules.recipe), rules.settings)
    met = {"width": own.get("width", 0) >= asked.get("width", 0), "clean_share": own["clean_share"] > 0}
    settings = {name: value for name, value in asked.items() if not met[name]}
    return Change(factors=factors, settings=settings, remedies=asked, seed=last.seed + N_SEEDS)


def clean_weight(frame: pl.DataFrame, weights: WeightColumn) -> float:
    """Return the share of a snapshot's weight that clean samples have where each counts as much as a draw does.

    For ``fleet`` a cell's share is that of its draws and its clean samples together.
    """
    weighed = frame.select("cell", clean=clean_samples(), weight=pl.col(WEIGHT_COLUMNS[weights]).cast(pl.Float64))
    if weights == "fleet":
        weighed = weighed.with_columns(weight=pl.col("weight").sum().over("cell", "clean"))
        weighed = weighed.with_columns(weight=pl.col("weight").max().over("cell") / pl.len().over("cell"))
    share = weighed.select((pl.col("weight") * pl.col("clean")).sum() / pl.col("weight").sum()).item()
    return float(share) if share is not None and share > 0 else 0.0


def clean_samples() -> pl.Expr:
    """Tell which rows of a snapshot no teacher made."""
    return (pl.col("source") == "clean").fill_null(False)


def wider_settings(change: Change) -> dict[str, int]:
    """Return the settings of a student `WIDER` times as wide; none for a recipe without a width."""
    width = change.settings.get("width")
    return {"width": int(width * WIDER)} if isinstance(width, int) else {}


def _same(known: pl.DataFrame, cause: Cause) -> bool:
    return known.filter((pl.col("slice") == cause.slice) & (pl.col("cause") == cause.cause)).height > 0


class Probes:
    """Trains and gates the students of the interventions on one candidate."""

    def __init__(
        self, project: Project, reporter: Reporter, training: TrainReporter, mine: StudentRecord, gate: Gate,
        change: Change, slices: Sequence[str],
    ) -> None:  # fmt: skip
        self._project, self._reporter, self._training = project, reporter, training
        self._mine, self._gate, self._change, self._slices = mine, gate, change, list(slices)

    def own(self) -> pl.DataFrame:
        """Return the candidate's own rows: its gate is the first full training."""
        return self._gate.rows

    def run(
        self, what: str, *, keep: Mapping[str, float] | None = None, factors: Mapping[str, float] | None = None,
        settings: Mapping[str, object] | None = None, seed: int = 0, everywhere: bool = False,
    ) -> pl.DataFrame:  # fmt: skip
        """Train one probe and return its gate's rows on the slices that are to be explained (or on all)."""
        base = self._change
        mixed = dict(base.factors)
        for name, factor in (factors or {}).items():
            mixed[name] = mixed.get(name, 1.0) * factor
        change = Change(
            name=what, factors=mixed, keep={**base.keep, **(keep or {})}, settings=settings or {},
            seed=base.seed + seed, remedies=base.remedies,
        )  # fmt: skip
        self._reporter.note(f"probe: {what}")
        made = train_like(self._project, self._training, self._mine, change)
        return gate_student(
            self._project, self._reporter, shipped(self._project, made, self._mine.precision),
            split=self._gate.record.split, slices=None if everywhere else self._slices,
        ).rows  # fmt: skip


def score_of(rows: pl.DataFrame, name: str, metrics: Collection[str]) -> float | None:
    """Return a slice's score: the most of a band that a row of these metrics takes up; None without any number."""
    mine = rows.filter((pl.col("slice") == name) & pl.col("metric").is_in(list(metrics)))
    scores = [row.score for row in gate_rows_of(mine) if row.judged and row.score is not None]
    return min(max(scores), MOST_SCORE) if scores else None


def _trial(runs: Sequence[pl.DataFrame], name: str, metrics: Collection[str]) -> Trial:
    scored = [(score_of(rows, name, metrics), slice_verdict(rows, name)) for rows in runs]
    there = [(s, v) for s, v in scored if s is not None]
    return Trial(scores=tuple(s for s, _ in there), verdicts=tuple(v for _, v in there))


def slice_verdict(rows: pl.DataFrame, name: str) -> Verdict:
    """Return a slice's verdict: the worst of its rows."""
    said = set(rows.filter((pl.col("slice") == name) & (pl.col("side") != "none"))["verdict"])
    return "fail" if "fail" in said else "pass" if said == {"pass"} else "undecided"


def _harmed(gate: Gate, up: pl.DataFrame) -> tuple[str, ...]:
    """Return the slices that were green and that the up-weighted probe fails."""
    names = sorted(gate.rows["slice"].unique())
    return tuple(n for n in names if slice_verdict(gate.rows, n) == "pass" and slice_verdict(up, n) == "fail")


def _failing(rows: Sequence[GateRow]) -> tuple[str, ...]:
    worst = sorted(rows, key=lambda row: -(row.score or 0.0))[:N_SAID]
    return tuple(f"{r.metric} {r.contrast}: {r.estimate:.3g}, band {r.band:g}" for r in worst)


def verified_outputs(project: Project, teacher_hash: str) -> dict[str, tuple[int, int]]:
    """Count, by slice, the teacher's training outputs that verifiers judged, and those found wrong.

    A verifier that saw a unit judged all of it. Where wrong outputs lie in a unit that none has seen whole (a partial
    file, a divergence case), nobody knows how many were looked at: all of the slice's samples there count as judged
    and what was not named as right, so that wrong ones alone never make a teacher look worse than it can be.
    """
    with store.read(project.catalog_path) as con:
        rows = con.execute(
            """WITH judged AS (
                SELECT c.slice, d.sample_id IS NOT NULL AS wrong, v.unit IS NOT NULL AS whole
                FROM samples s JOIN plans p USING (plan_no) JOIN cells c USING (cell_id)
                LEFT JOIN (SELECT DISTINCT sample_id FROM drops) d USING (sample_id)
                LEFT JOIN (SELECT DISTINCT plan_no, unit, attempt FROM verified_units) v USING (plan_no, unit, attempt)
                WHERE p.teacher_hash = ? AND s.split = 'train')
            SELECT slice, whole, count(*), count(*) FILTER (wrong) FROM judged GROUP BY ALL""",
            [teacher_hash],
        ).fetchall()
    found: dict[str, tuple[int, int]] = {}
    for name, whole, n, wrong in rows:
        if whole or wrong:
            before = found.get(name, (0, 0))
            found[name] = (before[0] + n, before[1] + wrong)
    return found


def last_gate(project: Project, split: str = "gate") -> Gate:
    """Read the newest gate of a candidate back.

    Raises:
        DistdataError: there is none.
    """
    found = [g for g in gates(project) if g.split == split and g.role == "candidate"]
    if not found:
        raise DistdataError("There is no gate yet: distdata gate")
    return Gate(record=found[-1], rows=gate_rows(project, found[-1].gate_id), fresh=False)
