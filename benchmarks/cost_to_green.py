"""What each way of buying costs until every slice is truly inside its band, on the crossing world.

Five policies on the same world, teacher, student and gates: `fleet`, `uniform` and `gate` buy a corpus in one go, the
smallest of a ladder of corpora (each 1.41 times the one before) that is green, found by bisection; `gate + refresh`
starts with the smallest and lets gates and diagnoses say what to add; `oracle` starts there too, sees the truth of
every slice after each training and adds a half to those outside. A run ends where the truth says so (see
`green_world.GreenWorld.green`), not where a gate does; one that never gets there is shown as censored. The teacher's
gate draws are charged to all alike, confirming draws to none. World, fleet shares and bands are those of the driving
preset. The policies that buy in one go thus know the smallest size that does, which nobody knows beforehand; and only
refreshes may train a wider student or weigh slices up, as diagnoses tell them, which costs no teacher time.

SIZE=small runs the code path in minutes on students that are too small to learn: its figure means nothing.
DEVICE=cuda trains on a GPU. JOBS=2 runs so many repetitions side by side. RUNS=FILE keeps what is finished there, a
JSON object a line, and does not run it again while code and preset stay as they are: the whole of it takes hours.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from distdata.catalogs.hashing import bytes_hash, content_hash
from distdata.stratify.budget import Budget
from distdata.stratify.causes import Evidence, Trial, Verdict, find_causes
from distdata.stratify.growth import refresh_goals
from distdata.stratify.interventions import thinned, weighted_up
from distdata.stratify.learning_curves import Curves
from distdata.stratify.plan import make_plan
from distdata.stratify.request import Plan, PlanRequest, Rates
from distdata.stratify.verdict import GateResult, GateSettings, judge

from .green_picture import Run, green_picture, median_run
from .green_world import PRESET, GreenWorld, Sampler, Size
from .report import emit, small, versions

POLICIES = ("gate", "uniform", "fleet")
BAR = 5.0
PICTURE = Path(__file__).parents[1] / "docs" / "cost_to_green.svg"
BIG = Size(
    n_seeds=160_000, n_truth_seeds=16_560, n_truth_draws=200_000, gate_seeds=120, first_corpus=2_500,
    rungs=13, repetitions=5, settings={"width": 96, "sampler_steps": 16},
)  # fmt: skip
SMALL = Size(
    n_seeds=160_000, n_truth_seeds=2_760, n_truth_draws=2_760, gate_seeds=20, first_corpus=600, rungs=2, repetitions=1,
    settings={"steps": 20, "width": 32, "depth": 1, "sampler_steps": 4, "batch": 64},
)  # fmt: skip
RUNG = 2**0.5
MAX_TURNS = 12
ORACLE_STEP = 1.5


@dataclass(slots=True, kw_only=True)
class Corpus:
    """What one run has bought so far, and how it trains: draws [seed_id, k], the last plan, weights and width."""

    draws: pl.DataFrame
    plan: Plan | None = None
    up: list[list[str]] = field(default_factory=list)
    widen: int = 1
    usd: float = 0.0


def main() -> None:
    size = SMALL if small() else BIG
    runs: dict[str, list[Run]] = {name: [] for name in RUNS_OF}
    with ProcessPoolExecutor(max_workers=int(os.environ.get("JOBS", "1"))) as pool:
        for found in pool.map(_repetition, [size] * size.repetitions, range(size.repetitions)):
            for name, run in found.items():
                runs[name].append(run)
    picture = green_picture(runs, "Cost to green on the crossing world")
    if not small():
        PICTURE.write_text(picture, encoding="utf-8")
    ours, fleet = (median_run(runs[name]) for name in ("gate + refresh", "fleet"))
    ratios = [f / o for (o, o_green), (f, _) in zip(runs["gate + refresh"], runs["fleet"], strict=True) if o_green]
    emit(
        "cost_to_green",
        figure=max(o for o, _ in runs["gate + refresh"]) if ours is None else ours,
        unit="USD of teacher time until every slice is truly inside its band, gate draws included; median"
        + (" (at least: most runs never got there)" if ours is None else ""),
        rival="policy fleet (where it never got there: at least what it had spent)",
        rival_figure=max(f for f, _ in runs["fleet"]) if fleet is None else fleet,
        ratio=float(np.median(ratios)) if ratios else 0.0,
        bar="gate + refresh at most 1/5 of fleet, below uniform, at most 1.5 times the oracle",
        met=_met(runs),
        sizes={n: getattr(size, n) for n in size.__dataclass_fields__},
        versions=versions("torch", "numpy", "polars"),
        runs={name: [{"usd": amount, "green": green} for amount, green in line] for name, line in runs.items()},
    )  # fmt: skip


def _repetition(size: Size, repetition: int) -> dict[str, Run]:
    """Return every policy's run in one repetition's world; those that `RUNS` holds are read."""
    known = {(r["repetition"], r["policy"]): (r["usd"], r["green"]) for r in _kept() if r["made"] == _made_by(size)}
    found = {name: known.get((repetition, name)) for name in RUNS_OF}
    with tempfile.TemporaryDirectory() as folder:
        world = GreenWorld(Path(folder), size, repetition)
        for name, run in RUNS_OF.items():
            if found[name] is None:
                found[name] = usd, green = run(world)
                _keep({"repetition": repetition, "policy": name, "usd": usd, "green": green}, size)
    return {name: run for name, run in found.items() if run is not None}


def _kept() -> list[dict[str, Any]]:
    path = Path(os.environ.get("RUNS", os.devnull))
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _keep(run: dict[str, Any], size: Size) -> None:
    print(json.dumps(run), flush=True)
    with Path(os.environ.get("RUNS", os.devnull)).open("a") as f:
        f.write(json.dumps({**run, "made": _made_by(size)}) + "\n")


def _made_by(size: Size) -> str:
    """Return a hash of the size, the preset, and all code that a run may depend on."""
    packages = ("benchmarks", "catalogs", "generate", "stratify", "train_min")
    folders = [Path(__file__).parents[1] / name for name in packages]
    code = sorted(path for folder in folders for path in folder.rglob("*.py"))
    return content_hash([repr(size), *(bytes_hash([path.read_bytes()]) for path in [PRESET, *code])])


def _met(runs: dict[str, list[Run]]) -> bool:
    """Tell whether all three bars hold in the medians; a policy that never got there has spent at least its last."""
    ours, oracle = median_run(runs["gate + refresh"]), median_run(runs["oracle"])
    if ours is None or oracle is None:
        return False
    least = {name: median_run(runs[name]) or min(amount for amount, _ in runs[name]) for name in ("fleet", "uniform")}
    return BAR * ours <= least["fleet"] and ours < least["uniform"] and ours <= 1.5 * oracle


def _rates(world: GreenWorld) -> Rates:
    teacher = world.config.teacher
    gpu_s = teacher.gpu_s_per_draw or 0.0
    return Rates(usd=gpu_s / 3600 * (teacher.usd_per_gpuh or 0.0), gpu_s=gpu_s)


def _gate_usd(world: GreenWorld) -> float:
    return world.gate_draws()[0].height * _rates(world).usd


def _plan(world: GreenWorld, request: PlanRequest, corpus: Corpus | None, goals: pl.DataFrame | None = None) -> Plan:
    seeds = world.candidates.drop("slice", "scenario")
    nothing = pl.DataFrame(schema={"seed_id": pl.String, "k": pl.Int64})
    bought = nothing if corpus is None else corpus.draws
    before = (
        None if corpus is None or corpus.plan is None else corpus.plan.seeds.select("seed_id", "k_seed", "k_counted")
    )
    return make_plan(request, world.cells, seeds, bought, _rates(world), corpus=before, goals=goals)


def _first(world: GreenWorld, policy: str, n: int) -> Corpus:
    request = PlanRequest(
        purpose="train", policy=policy, budget=Budget(kind="samples", amount=n), k=world.config.plan.k,  # type: ignore[arg-type]
        gamma=world.config.plan.gamma, floor_seeds=world.config.plan.floor_seeds, allow_undecidable=True,
    )  # fmt: skip
    plan = _plan(world, request, None)
    return Corpus(draws=_keys(plan), plan=plan, usd=plan.usd)


def _keys(plan: Plan) -> pl.DataFrame:
    return plan.draws.select("seed_id", pl.col("k").cast(pl.Int64))


def _one_go(world: GreenWorld, policy: str) -> Run:
    """Find the smallest corpus of the ladder that is green, by bisection; what is paid for is that one alone.

    More data seldom does harm, so that a ladder is red below a rung and green from it on, but for training noise.
    """

    def at(rung: int) -> Run:
        corpus = _first(world, policy, round(world.size.first_corpus * RUNG**rung))
        return corpus.usd + _gate_usd(world), world.green(_train(world, corpus, f"{policy}-{rung}"))

    low, high = -1, world.size.rungs  # the ladder's end stands for none of its rungs
    best = None
    while high - low > 1:
        middle = (low + high) // 2
        found = at(middle)
        print(json.dumps({"policy": policy, "rung": middle, "usd": found[0], "green": found[1]}), flush=True)
        low, high = (low, middle) if found[1] else (middle, high)
        best = found if found[1] or best is None or not best[1] else best
    assert best is not None, "a ladder has a rung"
    return best


def _train(world: GreenWorld, corpus: Corpus, name: str) -> Sampler:
    return world.student(_weighted(world, corpus), name, seed=0, widen=corpus.widen)


def _weighted(world: GreenWorld, corpus: Corpus) -> pl.DataFrame:
    """Return the training samples with the weights that diagnoses have asked for so far, one on top of the other."""
    return reduce(weighted_up, corpus.up, world.frame(corpus.draws))


def _with_oracle(world: GreenWorld) -> Run:
    """Start from the floor, see the truth after each training, and add a half to every slice that is outside."""
    corpus = _first(world, "gate", world.size.first_corpus)
    limit = world.size.first_corpus * RUNG ** (world.size.rungs - 1)
    for turn in range(3 * MAX_TURNS):
        scores = world.truth(_train(world, corpus, f"oracle-{turn}"))
        red = [name for name, score in scores.items() if score > 1]
        if not red:
            return corpus.usd + _gate_usd(world), True
        have = _have(world, corpus)
        at = world.cells.join(have, on="cell_id", how="left", maintain_order="left").with_columns(
            pl.col("n").fill_null(0)
        )
        grow = pl.col("slice").is_in(red) & pl.col("feasible")
        goals = at.select("cell_id", target=pl.when(grow).then((pl.col("n") * ORACLE_STEP).ceil()).otherwise("n")
                          .cast(pl.Int64), closed=~grow)  # fmt: skip
        if corpus.draws.height > limit or not _grow(world, corpus, goals):
            break
    return corpus.usd + _gate_usd(world), False


def _have(world: GreenWorld, corpus: Corpus) -> pl.DataFrame:
    of = world.candidates.select("seed_id", "cell_id")
    return corpus.draws.join(of, on="seed_id").group_by("cell_id").agg(n=pl.len().cast(pl.Int64))


def _grow(world: GreenWorld, corpus: Corpus, goals: pl.DataFrame) -> bool:
    """Buy what the goals lack; tell whether anything was."""
    request = PlanRequest(purpose="train", top_up=True, adaptive=True, k=world.config.plan.k, allow_undecidable=True)
    plan = _plan(world, request, corpus, goals)
    corpus.draws = pl.concat([corpus.draws, _keys(plan)])
    corpus.plan, corpus.usd = plan, corpus.usd + plan.usd
    return plan.n_fresh > 0


def _with_refresh(world: GreenWorld) -> Run:
    """Let gates find red slices and diagnoses their causes; what lacks coverage is bought."""
    corpus = _first(world, "gate", world.size.first_corpus)
    for turn in range(MAX_TURNS):
        name = f"refresh-{turn}"
        sample = _train(world, corpus, name)
        if world.green(sample):
            return corpus.usd + _gate_usd(world), True
        gate = _judge(world, sample, turn + 1)
        red = _to_explain(gate, world.config.gates.expected_difference)
        if not red or not _turn(world, corpus, gate, red, name):
            break
    return corpus.usd + _gate_usd(world), False


def _judge(world: GreenWorld, sample: Sampler, candidate: int, slices: list[str] | None = None) -> GateResult:
    rules = GateSettings(metrics=("outcome",), alpha=world.config.gates.alpha, power=world.config.gates.power)
    cells = world.cells if slices is None else world.cells.filter(pl.col("slice").is_in(slices))
    return judge(world.paired(sample, slices), cells, rules, candidate=candidate)


def _to_explain(gate: GateResult, expected: float) -> list[str]:
    """Return the slices that failed, or surely differ and are undecided beyond what is expected, as `diagnose` does."""
    differs = (pl.col("low") > 0) | (pl.col("high") < 0)
    beyond = differs & (pl.col("estimate").abs() > expected * pl.col("band"))
    off = gate.rows.filter((pl.col("verdict") == "fail") | ((pl.col("verdict") == "undecided") & beyond))
    return sorted(off["slice"].unique())


def _turn(world: GreenWorld, corpus: Corpus, gate: GateResult, red: list[str], name: str) -> bool:
    """Diagnose the red slices and follow the remedies; tell whether anything changed for the next training."""
    base = _weighted(world, corpus)

    def probe(what: str, of: pl.DataFrame, seed: int, widen: int, everywhere: bool = False) -> GateResult:
        sample = world.student(of, f"{name}-{what}-{seed}", seed=seed, widen=widen)
        return _judge(world, sample, gate.candidate, None if everywhere else red)

    full = [gate, probe("full", base, 1, corpus.widen)]
    fewer = [thinned(base, red, 0.25, salt=str(seed)) for seed in (0, 1)]
    quarter = [probe("quarter", frame, seed, corpus.widen) for seed, frame in enumerate(fewer)]
    heavier = weighted_up(base, red)  # the same where all slices are red and weigh alike
    up = [] if heavier.equals(base) else [probe("up", heavier, 0, corpus.widen, everywhere=True)]
    harmed = tuple(sorted(_said(gate, "pass") & _said(up[0], "fail"))) if up else ()
    wider = [probe("wider", base, 0, 2 * corpus.widen)]
    kept, left = (dict(frame.group_by("slice").len().iter_rows()) for frame in (base, fewer[0]))
    found = find_causes([
        Evidence(
            slice=s, n_kept=kept[s], full=_trial(full, s), quarter=_trial(quarter, s), quarter_share=left[s] / kept[s],
            up_weighted=_trial(up, s), wider=_trial(wider, s), harmed=harmed,
        ) for s in red
    ])  # fmt: skip
    causes = {c.slice: c.cause for c in found.causes}
    print(json.dumps({"turn": name, "n_draws": corpus.draws.height, "causes": causes}), flush=True)
    said = set(causes.values())
    if light := sorted(s for s, c in causes.items() if c == "weighting"):
        corpus.up.append(light)
    corpus.widen *= 2 if "capacity" in said else 1
    bought = "coverage" in said and _grow(world, corpus, _goals(world, corpus, found.causes, found.curves))
    return bought or bool(said & {"weighting", "capacity"})


def _goals(world: GreenWorld, corpus: Corpus, causes: tuple[object, ...], curves: Curves | None) -> pl.DataFrame:
    assert corpus.plan is not None, "a corpus begins with a plan"
    cells = corpus.plan.cells.select("cell_id", "slice", "feasible", "weight", "ceiling")
    have = dict(_have(world, corpus).iter_rows())
    return refresh_goals(cells, have, causes, curves).goals  # type: ignore[arg-type]


def _said(gate: GateResult, verdict: str) -> set[str]:
    return set(gate.slices.filter(pl.col("verdict") == verdict)["slice"])


def _trial(results: list[GateResult], name: str) -> Trial:
    scores: list[float] = []
    verdicts: list[Verdict] = []
    for result in results:
        rows = result.rows.filter((pl.col("slice") == name) & pl.col("estimate").is_finite())
        if rows.height:
            scores.append(float((rows["estimate"].abs() / rows["band"]).max()))  # type: ignore[arg-type]
            verdicts.append(result.slices.filter(pl.col("slice") == name)["verdict"][0])
    return Trial(scores=tuple(scores), verdicts=tuple(verdicts))


RUNS_OF: Mapping[str, Callable[[GreenWorld], Run]] = {
    "gate + refresh": _with_refresh, "oracle": _with_oracle,
    **{policy: partial(_one_go, policy=policy) for policy in POLICIES},
}  # fmt: skip

if os.environ.get("OMP_NUM_THREADS") is None:  # one thread: many small products, and other work beside them
    os.environ["OMP_NUM_THREADS"] = "1"
