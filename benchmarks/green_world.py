"""The crossing world for `cost_to_green`: teacher draws from the law itself, students, gates, and the truth.

Nothing is rendered. Training draws come straight from the mixture of their seed, a gate's from the teacher's chain and
the student's under the same noise, and the truth compares the two on fresh seeds by the law's own responsibilities
(probabilities of outcomes given a finished latent), never by a gate.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from distdata.catalogs.cells import build_cells
from distdata.catalogs.codec import encode_members
from distdata.catalogs.config import Config, parse_config
from distdata.catalogs.hashing import draw_rng_seed, hash64, unit_intervals
from distdata.catalogs.protocol import Request
from distdata.catalogs.shards import write_shard
from distdata.catalogs.storage import Storage
from distdata.generate.teachers.crossing.law import Mixture, mixture
from distdata.generate.teachers.crossing.seeds import seeds as crossing_seeds
from distdata.generate.teachers.crossing.teacher import CrossingTeacher
from distdata.generate.teachers.crossing.world import AXES, WORLD
from distdata.stratify.minima import GateAims, tied_contrasts
from distdata.stratify.plan import make_plan
from distdata.stratify.request import Plan, PlanRequest, Rates
from distdata.stratify.spending import spent_alpha
from distdata.stratify.splits import assign_splits
from distdata.train_min.job import TrainJob
from distdata.train_min.latent_student import LatentStudent
from distdata.train_min.loop import train
from distdata.train_min.recipes import find_recipe

Floats = NDArray[np.float64]
PRESET = Path(__file__).parents[1] / "generate" / "presets" / "driving.toml"
HEADER = {"snapshot_id": "cost-to-green", "teacher": {"id": "crossing", "version": "1", "content_hash": "crossing"}}
_BATCH = 4096
Sampler = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]
"""Conditions [B, C] and noise [B, 3, 2, 24] to finished latents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large a form is: seeds of the world, of the truth's world and of a gated slice, draws, and the training."""

    n_seeds: int
    n_truth_seeds: int
    n_truth_draws: int
    gate_seeds: int
    first_corpus: int
    rungs: int
    repetitions: int
    settings: Mapping[str, Any]


def load_preset() -> Config:
    """Read the bundled driving preset: its fleet shares and bands were committed before this benchmark."""
    return parse_config(PRESET.read_text(encoding="utf-8"), PRESET.name)


class _Seeds:
    """Seeds of the world as a table, with each one's request and mixture at hand."""

    def __init__(self, n: int, salt: str, cells: pl.DataFrame) -> None:
        self.salt = salt
        table = pl.from_arrow(crossing_seeds(n, salt))
        assert isinstance(table, pl.DataFrame), "a table of seeds"
        where = cells.select("cell_id", "slice", *AXES, "scenario")
        self.table = table.join(where, on=[*AXES, "scenario"], maintain_order="left").rename({"group": "grp"})
        self.row = {seed: i for i, seed in enumerate(self.table["seed_id"].to_list())}
        self._records = self.table.select("seed_id", *AXES, "scenario", "params").to_dicts()

    @functools.cache  # noqa: B019  # lives as long as the benchmark
    def request(self, seed_id: str) -> Request:
        """Return the request of a seed, its k and random seed still 0."""
        import json

        r = self._records[self.row[seed_id]]
        return Request(seed_id=seed_id, k=0, rng_seed=0, axes={a: r[a] for a in AXES}, scenario=r["scenario"],
                       params=json.loads(r["params"]))  # fmt: skip

    @functools.cache  # noqa: B019
    def law(self, seed_id: str) -> Mixture:
        """Return the law of a seed's future."""
        r = self.request(seed_id)
        return mixture(r.axes, r.scenario, r.params)


class GreenWorld:
    """One repetition's world: its seeds and splits, the draws that exist, and the folder they lie in."""

    def __init__(self, folder: Path, size: Size, repetition: int) -> None:
        self.size, self.folder = size, folder
        self.config = load_preset()
        self.salt = f"green-{repetition}"
        self.cells = build_cells(self.config, {}, {}, PRESET.parent)
        self.seeds = _Seeds(size.n_seeds, self.salt, self.cells)
        rules = self.config.splits
        splits = assign_splits(
            self.seeds.table.select("slice", "grp"), pl.DataFrame(schema={"grp": pl.String, "split": pl.String}),
            gate=rules.gate, confirm=rules.confirm, min_groups=rules.min_groups, salt=self.salt,
        )  # fmt: skip
        prn = unit_intervals("prn", self.salt, self.seeds.table["seed_id"].to_list())
        self.candidates = self.seeds.table.join(splits, on="grp", maintain_order="left").select(
            "seed_id", "cell_id", "grp", "split", prn=pl.Series(prn), decision_point="decision_point",
            k=pl.lit(None, dtype=pl.Int32), slice="slice", scenario="scenario",
        )  # fmt: skip
        self.teacher = CrossingTeacher()
        self.storage = Storage(str(folder), folder, folder)
        self._rows: dict[tuple[str, int], dict[str, Any]] = {}
        self._gate: tuple[pl.DataFrame, list[str]] | None = None

    @functools.cached_property
    def bands(self) -> dict[str, float]:
        """Return the band of each slice that can occur: its tightest cell's, as gates take it."""
        feasible = self.cells.filter("feasible")
        return dict(feasible.group_by("slice", maintain_order=True).agg(pl.col("band").min()).iter_rows())

    def buy(self, draws: pl.DataFrame) -> None:
        """Make the draws [seed_id, k] that don't exist yet, from the law; all policies share them."""
        new = [key for key in draws.select("seed_id", "k").iter_rows() if key not in self._rows]
        if not new:
            return
        about = {
            r["seed_id"]: r for r in self.candidates.filter(pl.col("seed_id").is_in({s for s, _ in new})).to_dicts()
        }
        cond = dict(zip(about, self.teacher.conditions([self.seeds.request(s) for s in about]), strict=True))
        outcomes: list[str] = []

        def samples() -> Any:
            for seed_id, k in new:
                law = self.seeds.law(seed_id)
                rng = np.random.default_rng(draw_rng_seed(self.salt, seed_id, k, "law"))
                j = int(np.searchsorted(np.cumsum(law.probs)[:-1], rng.random(), side="right"))
                latent = (law.mean[j] + law.std[j] * rng.standard_normal(law.mean[j].shape)).astype(np.float32)
                outcomes.append(law.names[j])
                yield f"{seed_id}-k{k:03d}", encode_members({"latent.npy": latent, "cond.npy": cond[seed_id]})

        name = f"draws-{len(self._rows):07d}.tar"
        shard = write_shard(self.folder / name, samples(), digests="none")
        cell_names = dict(self.cells.select("cell_id", "cell").iter_rows())
        for (seed_id, k), entry, outcome in zip(new, shard.entries, outcomes, strict=True):
            r = about[seed_id]
            self._rows[seed_id, k] = {
                "sample_id": entry.key, "cell_id": r["cell_id"], "cell": cell_names[r["cell_id"]], "slice": r["slice"],
                "scenario": r["scenario"], "seed_id": seed_id, "grp": r["grp"], "k": k, "outcome": outcome,
                "source": "planned", "kind": "rollout", "weight": 1.0, "fleet_weight": 1.0, "shard": name,
                "offset": entry.offset, "n_bytes": entry.n_bytes,
            }  # fmt: skip

    def frame(self, draws: pl.DataFrame) -> pl.DataFrame:
        """Return the training samples of `draws` [seed_id, k] as a snapshot's frame."""
        self.buy(draws)
        return pl.DataFrame([self._rows[key] for key in draws.select("seed_id", "k").iter_rows()])

    def student(self, frame: pl.DataFrame, name: str, *, seed: int, widen: int = 1) -> Sampler:
        """Train a student on `frame` and return how it samples; `widen` multiplies its width."""
        settings = {**self.size.settings, "width": self.size.settings["width"] * widen}
        device = os.environ.get("DEVICE", "cpu")
        job = TrainJob(
            out=self.folder / name, storage=self.storage, frame=frame, header=HEADER, recipe=find_recipe("capacity"),
            settings=settings, seed=hash64("green/train", self.salt, name, seed) % 2**31, device=device,
        )  # fmt: skip
        trained = train(job)
        gpu = "cuda" if device == "cuda" else "cpu"
        return LatentStudent(path=str(trained.out), decoder=self.teacher, device=gpu).latents

    # --- gates ---------------------------------------------------------------------------------------------------

    def gate_draws(self) -> tuple[pl.DataFrame, list[str]]:
        """Return the gate's draws (seed_id, k, slice, cell, scenario) and the teacher's outcomes, made once.

        They are what `distdata plan --purpose gate` buys with the preset's rules, but for the seeds that metrics other
        than the outcome ask for. A slice's scenario types share its draws alike where they have the seeds; in tunnels
        and in some snow one type has few, and weighs less in the gate than in the truth, which takes all types alike.
        """
        if self._gate is None:
            plan = self._gate_plan()
            of = self.candidates.select("seed_id", "slice", "scenario", "cell_id").join(
                self.cells.select("cell_id", "cell"), on="cell_id", maintain_order="left"
            )  # fmt: skip
            draws = plan.draws.select("seed_id", pl.col("k").cast(pl.Int64)).join(
                of, on="seed_id", maintain_order="left"
            )  # fmt: skip
            self._gate = draws, self._labels(self.seeds, draws, self._teacher_latents)
        return self._gate

    def _gate_plan(self) -> Plan:
        rules, labels = self.config.gates, {name: len(kind.outcomes) for name, kind in WORLD.scenarios.items()}
        aims = GateAims(
            sigma=rules.sigma, tau=rules.tau, expected_difference=rules.expected_difference, power=rules.power,
            seeds=self.size.gate_seeds, lean=1.0,
            alpha=spent_alpha(rules.alpha, candidate=rules.candidates, n_looks=rules.looks),
            n_contrasts=tied_contrasts(list(labels.values())),
        )  # fmt: skip
        request = PlanRequest(
            purpose="gate", k=self.config.plan.k, aims=aims, held_out=("gate", "confirm"),
            min_groups=self.config.splits.min_groups,
        )  # fmt: skip
        cells = self.cells.with_columns(n_labels=pl.col("scenario").replace_strict(labels, return_dtype=pl.Int64))
        nothing = pl.DataFrame(schema={"seed_id": pl.String, "k": pl.Int64})
        return make_plan(request, cells, self.candidates.drop("slice", "scenario"), nothing, Rates(usd=0.0, gpu_s=0.0))

    def paired(self, sample: Sampler, slices: Sequence[str] | None = None) -> pl.DataFrame:
        """Return paired gate draws of a student, as `stratify.verdict.judge` takes them."""
        draws, said = self.gate_draws()
        both = draws.select("slice", "cell", "scenario", "seed_id", "k").with_columns(teacher_outcome=pl.Series(said))
        if slices is not None:
            both = both.filter(pl.col("slice").is_in(list(slices)))
        return both.with_columns(student_outcome=pl.Series(self._labels(self.seeds, both, self._of(sample))))

    def _labels(self, seeds: _Seeds, draws: pl.DataFrame, latents: Callable[[list[Request]], Any]) -> list[str]:
        labels: list[str] = []
        for part in draws.select("seed_id", "k").iter_slices(_BATCH):
            requests = _requests(seeds, part, self.salt)
            weights, laws = _responsibilities(seeds, requests, latents(requests))
            labels += [law.names[j] for law, j in zip(laws, weights.argmax(1).tolist(), strict=True)]
        return labels

    def _of(self, sample: Sampler) -> Callable[[list[Request]], Any]:
        return lambda requests: sample(self.teacher.conditions(requests), self.teacher.noise(requests))

    def _teacher_latents(self, requests: list[Request]) -> Any:
        import torch

        conditions = [{"axes": r.axes, "scenario": r.scenario, "params": r.params} for r in requests]
        return _pipeline()(conditions, latents=torch.from_numpy(self.teacher.noise(requests))).latents.numpy()

    # --- the truth -----------------------------------------------------------------------------------------------

    def green(self, sample: Sampler) -> bool:
        """Tell whether every slice is truly inside its band, by all draws of the truth.

        Fewer are looked at first: where a twentieth, then a fifth of them put a slice so far outside that the rest
        can't bring it back (a total variation of few draws is too large by their noise), the rest is not drawn.
        """
        for share, limit in ((0.05, 2.5), (0.2, 1.6), (1.0, 1.0)):
            score = max(self.truth(sample, share).values())
            if score > limit:
                return False
        return True

    def truth(self, sample: Sampler, share: float = 1.0) -> dict[str, float]:
        """Return each slice's true score: mean total variation over its scenario types, over its band.

        `share`: that much of each cell's draws, of as many seeds as there are.

        A type's difference is the mean, over draws of fresh seeds, of the student's responsibilities less the
        teacher's under the same noise; the noise that both share cancels, so that the total variation of two equal
        laws is near 0 although a share of n draws alone varies by 0.5 / sqrt(n).
        """
        seeds, draws, teacher = _truth_draws(self.size)
        some = (draws["place"] < share).to_numpy()
        draws, teacher = draws.filter(some), teacher[some]
        latents = self._of(sample)
        student = np.concatenate([
            _responsibilities(seeds, requests, latents(requests))[0]
            for part in draws.iter_slices(_BATCH) if (requests := _requests(seeds, part, seeds.salt))
        ])  # fmt: skip
        d = pl.DataFrame(student - teacher, schema=["p0", "p1", "p2", "p3"])
        names = _places(seeds, draws)
        per_type = pl.concat([draws.select("slice", "scenario"), names, d], how="horizontal")
        long = per_type.unpivot(["p0", "p1", "p2", "p3"], index=["slice", "scenario", "n0", "n1", "n2", "n3"])
        label = pl.coalesce(pl.when(pl.col("variable") == f"p{j}").then(f"n{j}") for j in range(4))
        sums = long.with_columns(label=label).drop_nulls("label").group_by("slice", "scenario", "label").agg("value")
        sizes = draws.group_by("slice", "scenario").agg(n=pl.len())
        tv = sums.with_columns(total=pl.col("value").list.sum()).join(sizes, on=["slice", "scenario"])
        tv = tv.group_by("slice", "scenario").agg(tv=(pl.col("total") / pl.col("n")).abs().sum() / 2)
        found = dict(tv.group_by("slice").agg(pl.col("tv").mean()).iter_rows())
        return {name: found[name] / band for name, band in self.bands.items()}


def _requests(seeds: _Seeds, draws: pl.DataFrame, salt: str) -> list[Request]:
    from dataclasses import replace

    return [
        replace(seeds.request(s), k=k, rng_seed=draw_rng_seed(salt, s, k))
        for s, k in draws.select("seed_id", "k").iter_rows()
    ]


@functools.cache
def _pipeline() -> Any:
    from distdata.generate.teachers.crossing.pipeline import CrossingPipeline

    return CrossingPipeline.bundled()


def _responsibilities(seeds: _Seeds, requests: Sequence[Request], latents: Any) -> tuple[Floats, list[Mixture]]:
    """Return the probability of each component given the latent, [B, 4], and the mixtures."""
    import torch

    laws = [seeds.law(r.seed_id) for r in requests]
    score = _pipeline().score
    weights = score.responsibilities(torch.from_numpy(np.asarray(latents)), score.conditions(laws))
    return weights.numpy(), laws


def _make_truth_seeds(size: Size) -> tuple[_Seeds, pl.DataFrame]:
    cells = build_cells(load_preset(), {}, {}, PRESET.parent)
    seeds = _Seeds(size.n_truth_seeds, "truth", cells)
    table = seeds.table.select("seed_id", "slice", "scenario", "cell_id")
    n_cells = table["cell_id"].n_unique()
    per_cell = max(size.n_truth_draws // n_cells, 1)
    take = table.with_columns(i=pl.int_range(pl.len()).over("cell_id"), m=pl.len().over("cell_id"))
    take = take.with_columns(n=pl.lit(per_cell) // "m" + (pl.col("i") < pl.lit(per_cell) % pl.col("m")).cast(pl.Int64))
    draws = take.filter(pl.col("n") > 0).with_columns(k=pl.int_ranges(0, "n")).explode("k")
    draws = draws.with_columns(place=(pl.struct("k", "seed_id").rank("ordinal") - 1).over("cell_id") / per_cell)
    return seeds, draws.select("seed_id", "k", "slice", "scenario", "place")


_TRUTH: dict[int, Floats] = {}


def _truth_draws(size: Size) -> tuple[_Seeds, pl.DataFrame, Floats]:
    """Return the fresh seeds, their draws, and the teacher's responsibilities [N, 4]; the same for all repetitions."""
    import torch

    seeds, draws = _truth_seeds(size)
    if size.n_truth_draws not in _TRUTH:
        teacher = CrossingTeacher()
        parts = []
        for part in draws.iter_slices(_BATCH):
            requests = _requests(seeds, part, seeds.salt)
            conditions = [{"axes": r.axes, "scenario": r.scenario, "params": r.params} for r in requests]
            made = _pipeline()(conditions, latents=torch.from_numpy(teacher.noise(requests))).latents.numpy()
            parts.append(_responsibilities(seeds, requests, made)[0])
        _TRUTH[size.n_truth_draws] = np.concatenate(parts)
    return seeds, draws, _TRUTH[size.n_truth_draws]


_SEEDS: dict[tuple[int, int], tuple[_Seeds, pl.DataFrame]] = {}


def _truth_seeds(size: Size) -> tuple[_Seeds, pl.DataFrame]:
    key = size.n_truth_seeds, size.n_truth_draws
    if key not in _SEEDS:
        _SEEDS[key] = _make_truth_seeds(size)
    return _SEEDS[key]


def _places(seeds: _Seeds, draws: pl.DataFrame) -> pl.DataFrame:
    """Return the outcome that each of the four responsibilities of a draw belongs to, [N, n0..n3]; null: none."""
    named = {s: [*seeds.law(s).names, None, None, None, None][:4] for s in draws["seed_id"].unique().to_list()}
    rows = [named[s] for s in draws["seed_id"].to_list()]
    return pl.DataFrame(rows, schema=dict.fromkeys(("n0", "n1", "n2", "n3"), pl.String), orient="row")
