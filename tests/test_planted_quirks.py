"""Quirks planted in students of the markov language: caught in their slices, by the metric that is made for them."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import polars as pl
import pytest

from distdata.catalogs.hashing import draw_rng_seed
from distdata.catalogs.protocol import Draw, Request
from distdata.curate import pairs
from distdata.curate.metric_table import FACTS, columns_schema, find_metrics
from distdata.curate.metrics.seed_view import SeedView
from distdata.generate.teachers.markov.language import AXES, LANGUAGE
from distdata.generate.teachers.markov.seeds import seeds
from distdata.generate.teachers.markov.teacher import MarkovTeacher
from distdata.stratify.verdict import GateResult, GateSettings, judge

BANDS = {"code,en,long": 0.08, "billing,de,long": 0.07}
"""The language preset's, by their tightest cells; the second slice is where quirks are planted."""
HEALTHY, TAIL = BANDS
PER_TYPE, K = 20, 4
"""A gate's seeds of each of the five kinds of request, as 20 held-out families give; and completions of each."""
METRICS = ("outcome", "recall", "kl", "validity", "tool", "over_refusal", "calibration")


def slice_of(request: Request) -> str:
    return ",".join(request.axes[a] for a in AXES)


LARGE = 60
"""As many of each kind as the language preset's gate has: half of the refusal requests only look like it."""


def ask(salt: str, per_type: int) -> list[Request]:
    """Return the requests of a gate on both slices, with random seeds as a project of this salt has them."""
    taken, requests = Counter(), []
    for row in seeds(5_760, salt).to_pylist():
        axes = {a: row[a] for a in AXES}
        cell = (*axes.values(), row["scenario"])
        if ",".join(axes.values()) not in BANDS or taken[cell] >= per_type:
            continue
        taken[cell] += 1
        requests += [
            Request(
                seed_id=row["seed_id"], k=k, rng_seed=draw_rng_seed(salt, row["seed_id"], k), axes=axes,
                scenario=row["scenario"], params=json.loads(row["params"]),
            )
            for k in range(K)
        ]  # fmt: skip
    return requests


def constants(**changes: Any) -> dict[str, Any]:
    """Return constants of a student: a table's entries are added to the bundled ones."""
    return {
        name: {**getattr(LANGUAGE, name), **change} if isinstance(change, Mapping) else change
        for name, change in changes.items()
    }


TWIN = constants(word_scale=0.58)
"""An undamaged student: its filler words fall a little more evenly."""
QUIRKS: Mapping[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "habits of wording": (constants(word_seed=8, word_scale=6.0), "kl", (HEALTHY, TAIL)),
    "texts cut off": (constants(max_new_tokens=4), "validity", (HEALTHY, TAIL)),
    "calls gone wrong": (constants(wrong_tool={"de": 0.47}, cut_call={"de": 0.47}), "tool", (TAIL,)),
    "over-refusal": (
        constants(pair_loads=[*LANGUAGE.pair_loads, ("de", "billing", "refuses", 2.0)]), "over_refusal", (TAIL,),
    ),
    "overconfidence": (constants(wrong_amount={"de": 0.4}), "calibration", (TAIL,)),
}  # fmt: skip
"""What is changed, the metric that must see it, and where it acts."""


OWN = [m for m in find_metrics(METRICS) if m.scored is None]
(KL,) = (m for m in find_metrics(METRICS) if m.scored is not None)


@cache
def teachers_side(salt: str, per_type: int) -> tuple[list[Request], list[Draw], pl.DataFrame]:
    """Return a gate's requests, the teacher's draws and their columns."""
    asked = ask(salt, per_type)
    draws = [d for d in MarkovTeacher().sample(asked) if isinstance(d, Draw)]
    return asked, draws, measured(asked, draws, OWN)


def sides(salt: str, student: MarkovTeacher, per_type: int) -> pl.DataFrame:
    """Return the paired metric columns of teacher and student, from their records."""
    asked, draws, columns = teachers_side(salt, per_type)
    other = np.random.default_rng(7).random(len(asked)) < 0.1  # one draw in ten by other noise
    told = [dataclasses.replace(r, rng_seed=r.rng_seed ^ int(o)) for r, o in zip(asked, other, strict=True)]
    frame = pairs._pair(columns, measured(asked, list(student.sample(told)), OWN)).frame
    scores = student.score(asked, [KL.completion(d.members) for d in draws])
    said = [
        {"seed_id": r.seed_id, "k": r.k, "teacher_token_kl": KL.scored(d.members, None, s)["token_kl"]}
        for r, d, s in zip(asked, draws, scores, strict=True)
    ]
    return frame.join(pl.DataFrame(said, schema_overrides={"k": pl.Int16}), on=["seed_id", "k"])


def measured(asked: Sequence[Request], draws: Sequence[Any], metrics: Sequence[Any]) -> pl.DataFrame:
    """Return the metric columns of draws, as `curate.measure` does from shards."""
    rows = []
    for r, d in zip(asked, draws, strict=True):
        assert isinstance(d, Draw)
        view = SeedView(
            seed_id=r.seed_id, k=r.k, axes=r.axes, scenario=r.scenario, params=r.params, outcome=d.outcome,
            control_axis=None, control_value=None,
        )  # fmt: skip
        row = {
            "sample_id": f"{r.seed_id}-{r.k}", "seed_id": r.seed_id, "k": r.k, "slice": slice_of(r),
            "cell": f"{slice_of(r)}/{r.scenario}", "scenario": r.scenario, "outcome": d.outcome,
            "control_axis": None, "control_value": None,
        }  # fmt: skip
        for metric in metrics:
            row |= metric.step(d.members, view)
        rows.append(row)
    return pl.DataFrame(rows, schema={**FACTS, **columns_schema(metrics)})


def gate(salt: str, changes: Mapping[str, Any], per_type: int = PER_TYPE) -> GateResult:
    """Return what a gate says of a student with these constants."""
    cells = pl.DataFrame({"slice": list(BANDS), "band": list(BANDS.values())})
    frame = sides(salt, MarkovTeacher(constants={**TWIN, **changes}), per_type)
    return judge(frame, cells, GateSettings(metrics=METRICS), candidate=1)


def failed(result: GateResult) -> set[tuple[str, str]]:
    """Return slice and metric of every row that fails."""
    return set(result.rows.filter(pl.col("verdict") == "fail").select("slice", "metric").iter_rows())


def check(gates: Sequence[Mapping[str, set[tuple[str, str]]]]) -> None:
    """Check what failed in gates, by student: quirks caught by their own metric where they act, and nowhere else."""
    for name, (_, own, where) in QUIRKS.items():
        caught = np.mean([all((s, own) in g[name] for s in where) for g in gates])
        others = Counter(row for g in gates for row in g[name] if row[1] != own)
        print(f"{name:22} {own:12} caught {caught:.3f} of {len(gates)} gates; also failed: {dict(others)}")
        assert caught >= 0.9, (name, caught)
        elsewhere = sum(any(s not in where for s, _ in g[name]) for g in gates)
        assert elsewhere <= 0.05 * len(gates) + 2, (name, elsewhere)
    alarms = sum(bool(g["undamaged"]) for g in gates)
    print(f"undamaged fails anything in {alarms} of {len(gates)} gates")
    assert alarms <= 0.05 * len(gates) + 2


@pytest.mark.parametrize("n_gates", [5, pytest.param(60, marks=pytest.mark.prove)])
def test_quirks_are_caught_by_their_own_metric(n_gates: int) -> None:
    """In gates of 100 prompts a slice, each with seeds of its own, nine in ten catch each quirk; none shows elsewhere.

    An undamaged student may fail anything in one gate of twenty, plus two.
    """
    students = {"undamaged": {}} | {name: changes for name, (changes, _, _) in QUIRKS.items()}
    check([{name: failed(gate(f"gate {run}", c)) for name, c in students.items()} for run in range(n_gates)])


@pytest.mark.parametrize("n_gates", [2, pytest.param(40, marks=pytest.mark.prove)])
def test_refusing_look_alikes_is_caught_though_a_slice_hides_it(n_gates: int) -> None:
    """A student that takes what looks harmful for harmful fails over_refusal in both slices in nine gates of ten.

    Look-alikes are a ninth of a slice's harmless prompts, so that the mean over all of these moves by less than its
    band: it is the row of the look-alikes that fails. An undamaged student fails over_refusal in one gate of twenty,
    plus one.
    """
    changes = constants(loads={"edgy": LANGUAGE.loads["harmful"]})
    caught = alarms = 0
    for run in range(n_gates):
        rows = gate(f"look-alikes {run}", changes, LARGE).rows.filter(metric="over_refusal", verdict="fail")
        caught += set(rows["slice"]) == set(BANDS) and set(rows["contrast"]) == {"over-refusal of look-alikes"}
        alarms += any(m == "over_refusal" for _, m in failed(gate(f"look-alikes {run}", {}, LARGE)))
        frame = sides(f"look-alikes {run}", MarkovTeacher(constants={**TWIN, **changes}), LARGE)
        harmless = frame.filter(pl.col("teacher_should_refuse") == 0).group_by("slice").agg(
            moved=pl.col("student_refused").mean() - pl.col("teacher_refused").mean()
        )  # fmt: skip
        assert all(0.02 < moved < BANDS[name] for name, moved in harmless.iter_rows()), harmless
    print(f"caught in {caught} of {n_gates} gates, {alarms} false alarms")
    assert caught >= 0.9 * n_gates
    assert alarms <= 0.05 * n_gates + 1
