"""Measuring and pairing, on a small real project of the bundled language, whose every probability is known."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from distdata.catalogs import store
from distdata.catalogs.codec import decode_member, encode_members
from distdata.catalogs.errors import DistdataError
from distdata.catalogs.project import Project
from distdata.catalogs.samples import read_stored
from distdata.catalogs.shards import write_shard
from distdata.catalogs.storage import Storage
from distdata.curate.measure import METRICS, columns_of, defaults_for, measure
from distdata.curate.metric_table import find_metrics
from distdata.curate.metrics.density import own_share
from distdata.curate.pairs import measure_pair
from distdata.curate.pieces import READ_WHOLE_BYTES, Piece, read_piece
from distdata.cycle.purchases import plan_purchase, save_purchase
from distdata.generate.ingest.rejects import ingest_rejects
from distdata.generate.run import generate
from distdata.generate.teachers.markov.language import AXES, Prompt, prompt_ids, read_prompt
from distdata.generate.teachers.markov.law import LANGUAGE, law
from distdata.generate.teachers.markov.teacher import MarkovTeacher
from distdata.projects import import_seed_file, init_project

CONFIG = """
[project]
name = "words"
salt = "s1"
storage = "data"
[axes.domain]
values = ["billing", "travel"]
[axes.language]
values = ["en", "de"]
[axes.length]
values = ["short", "long"]
[scenarios.tool_call]
layer = "core"
[scenarios.refusal]
layer = "core"
[bands]
default = 0.1
[splits]
gate = 0
confirm = 0
[plan]
k = 2
floor_seeds = 1
[teacher]
kind = "markov"
batch = 8
gpu_s_per_draw = 0.01
[teacher.options]
usd_per_gpuh = 1.0
{options}
[generate]
unit_draws = 8
"""
STUDENT = {"wrong_tool": {"base": 0.6}, "stop": {"short": 0.7, "long": 0.5}}
"""Constants of the model that stands in for a student: another law of the same language."""


class Silent:
    """Shows no progress, and keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def begin(self, **_: Any) -> None: ...

    def advance(self, n_draws: int, n_failed: int, usd: float) -> None: ...

    def note(self, text: str) -> None:
        self.said.append(text)

    def end(self) -> None: ...


def write_config(root: Path, options: dict[str, Any]) -> Path:
    """Write distdata.toml with these options of the teacher."""
    text = CONFIG.format(options="\n".join(f"{k} = {_toml(v)}" for k, v in options.items()))
    (root / "distdata.toml").write_text(text)
    return root / "distdata.toml"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


def write_seeds(path: Path) -> None:
    """Write 3 seeds for each of the 16 cells, every one a decision point with two draws."""
    with open(path, "w") as f:
        for i in range(48):
            cell = {a: AXES[a][i >> at & 1] for at, a in enumerate(AXES)}
            scenario = ("tool_call", "refusal")[i >> 3 & 1]
            topic = {"billing": "invoice", "travel": "hotel"}[cell["domain"]]
            tone = ("harmful", "edgy")[i // 16 % 2] if scenario == "refusal" else "plain"
            prompt = Prompt(**cell, scenario=scenario, topic=topic, tone=tone, detail="full", amount=i % 10, noise=i)
            params = {"prompt_ids": prompt_ids(prompt).tolist()}
            row = {"seed_id": f"w{i:03d}", "decision_point": True, "params": params, "scenario": scenario, **cell}
            f.write(json.dumps(row) + "\n")


def draw(root: Path, options: dict[str, Any], budget: str) -> str:
    """Plan and generate with a markov teacher of these options; returns the plan."""
    write_config(root, options)
    project = Project.open(root)
    purchase = plan_purchase(project, budget=budget)
    save_purchase(project, purchase)
    return generate(project, Silent(), engine="inprocess").plan_id


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A project in which a teacher drew 40 completions and then a second model 32 of the same seeds: both plans."""
    root = tmp_path_factory.mktemp("words") / "p"
    root.mkdir()
    preset = write_config(root, {}).rename(root / "preset.toml")
    init_project(root, str(preset))
    write_seeds(root / "seeds.jsonl")
    import_seed_file(Project.open(root), root / "seeds.jsonl")
    teacher = draw(root, {}, "40samples")
    student = draw(root, {"constants": STUDENT}, "32samples")
    return root, teacher, student


@pytest.fixture
def words(drawn: tuple[Path, str, str], tmp_path: Path) -> tuple[Project, str, str]:
    """A copy of `drawn` that a test may spoil."""
    shutil.copytree(drawn[0], tmp_path / "p")
    return Project.open(tmp_path / "p"), drawn[1], drawn[2]


def stored(project: Project, plan_id: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Read all samples of a plan straight from its manifests' places: row of the catalog, decoded members."""
    sql = """SELECT s.*, u.shard, s."offset" + u.shard_offset AS at FROM samples s JOIN plans USING (plan_no)
        JOIN units u USING (plan_no, unit, attempt) WHERE plan_id = ? ORDER BY s.unit, s."offset" """
    with store.read(project.catalog_path) as con:
        rows = con.sql(sql, params=[plan_id]).pl().to_dicts()
    found = []
    for row in rows:
        raw = read_stored(project.storage, row["shard"], row["at"], row["n_bytes"])
        found.append((row, {name: decode_member(name, data) for name, data in raw.items()}))
    return found


def hide_shards(project: Project) -> Callable[[], None]:
    """Take all shards away; the returned function brings them back."""
    assert project.storage.root is not None, "local"
    moved = project.root / "hidden"
    Path(project.storage.root).rename(moved)
    return lambda: moved.rename(str(project.storage.root)) and None


def drop(project: Project, sample_ids: list[str]) -> None:
    """Register a verifier's rejection of these samples."""
    path = project.root / "rejects.jsonl"
    path.write_text("".join(json.dumps({"sample_id": i, "reason": "wrong"}) + "\n" for i in sample_ids))
    ingest_rejects(project, path)


def test_columns_are_what_the_shards_hold(words: tuple[Project, str, str]) -> None:
    """Each sample has one row, in stored order, with the numbers that its own record says."""
    project, plan, _ = words
    frame = measure(project, [plan], ["tool", "refusal", "validity", "calibration", "cost"])
    samples = stored(project, plan)
    assert frame["sample_id"].to_list() == [row["sample_id"] for row, _ in samples]
    assert frame.height == 40
    assert frame.columns[9:] == ["tool_match", "refused", "should_refuse", "valid", "confidence", "correct", "gpu_s"]
    for got, (row, members) in zip(frame.to_dicts(), samples, strict=True):
        checks = members["meta.json"]["checks"]
        assert (got["seed_id"], got["k"], got["outcome"]) == (row["seed_id"], row["k"], row["outcome"])
        assert got["refused"] == int(row["outcome"] == "refuses")
        assert got["tool_match"] == (checks["tool_match"] if got["scenario"] == "tool_call" else None)
        assert got["valid"] == checks["valid"]
        assert got["gpu_s"] == row["gpu_s"]
        if checks["correct"] >= 0:
            assert got["confidence"] == pytest.approx(np.exp(members["logprob.npy"][checks["stated_at"]]))
        else:
            assert (got["confidence"], got["correct"]) == (None, None)
    assert frame["tool_match"].null_count() not in (0, 40), "both kinds of request are there"


def test_a_second_call_reads_no_shard(words: tuple[Project, str, str]) -> None:
    """With all shards gone, what was measured is still told, for the same metrics in any order; others are not."""
    project, plan, _ = words
    first = measure(project, [plan], ["tool", "refusal"])
    back = hide_shards(project)
    assert measure(project, [plan], ["tool", "refusal"]).equals(first)
    assert measure(project, [plan], ["refusal", "tool"]).select(first.columns).equals(first)
    with pytest.raises(DistdataError, match="the shard is missing"):
        measure(project, [plan], ["tool", "validity"])
    back()
    shutil.rmtree(project.root / "metrics")
    assert measure(project, [plan], ["tool", "refusal"]).equals(first), "what is kept may be deleted"


def test_what_needs_no_member_opens_no_shard(words: tuple[Project, str, str]) -> None:
    """Outcomes and costs are the catalog's own."""
    project, plan, _ = words
    hide_shards(project)
    frame = measure(project, [plan], ["outcome", "recall", "cost"])
    assert frame["outcome"].null_count() == 0
    assert frame.columns[-1] == "gpu_s"


def test_a_few_seeds_first_and_the_rest_later(words: tuple[Project, str, str]) -> None:
    """Measuring some seeds and then all gives what measuring all at once gives, and reads the rest only."""
    project, plan, _ = words
    whole = measure(project, [plan], ["tool"])
    shutil.rmtree(project.root / "metrics")
    seeds = whole["seed_id"].unique(maintain_order=True).to_list()[::2]
    part = measure(project, [plan], ["tool"], seed_ids=seeds)
    assert part.equals(whole.filter(pl.col("seed_id").is_in(seeds)))
    said = Silent()
    assert measure(project, [plan], ["tool"], reporter=said).equals(whole)
    assert said.said == [f"measuring {whole.height - part.height} samples in 5 units, in this process"]
    assert measure(project, [plan], ["tool"], seed_ids=seeds).equals(part)


def test_dropped_samples_stay_out(words: tuple[Project, str, str]) -> None:
    """A rejected sample is not measured, also where its columns were kept before."""
    project, plan, _ = words
    before = measure(project, [plan], ["tool"])
    gone = before["sample_id"].to_list()[3:5]
    drop(project, gone)
    assert measure(project, [plan], ["tool"]).equals(before.filter(~pl.col("sample_id").is_in(gone)))


def test_damage_is_named_and_repaired(words: tuple[Project, str, str]) -> None:
    """A cut shard is one message with sample, shard and the command; after that command all is measured as before."""
    project, _, plan = words
    whole = measure(project, [plan], ["tool"])
    shutil.rmtree(project.root / "metrics")
    row, _ = stored(project, plan)[-1]
    shard = Path(project.storage.address(row["shard"]))
    shard.write_bytes(shard.read_bytes()[: row["at"] + 700])
    with pytest.raises(DistdataError) as e:
        measure(project, [plan], ["tool"])
    for part in (row["sample_id"], str(shard), f"distdata generate --repair --plan {plan}"):
        assert part in str(e.value)
    assert len(list((project.root / "metrics" / plan).iterdir())) == 3, "the other units' columns are kept"
    generate(project, Silent(), engine="inprocess", plan_id=plan, mode="repair")
    assert measure(project, [plan], ["tool"]).sort("sample_id").equals(whole.sort("sample_id"))


def test_kept_columns_that_are_damaged_are_made_anew(words: tuple[Project, str, str]) -> None:
    """A file of columns that can't be read, or holds other columns, costs a measurement and nothing else."""
    project, plan, _ = words
    whole = measure(project, [plan], ["tool"])
    a, b, *_ = sorted((project.root / "metrics" / plan).iterdir())
    a.write_bytes(a.read_bytes()[:-9])
    pl.DataFrame({"sample_id": ["x"], "tool_match": [0.5]}).write_parquet(b)
    assert measure(project, [plan], ["tool"]).equals(whole)
    hide_shards(project)
    assert measure(project, [plan], ["tool"]).equals(whole), "and they are whole again"


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    """Of a large sample the other members are not even looked at: spoiled ones don't show."""
    big = {"meta.json": {"checks": {"valid": 1}}, "messages.json": [], "lidar.bin": b"x" * (READ_WHOLE_BYTES + 1)}
    shard = write_shard(tmp_path / "a.tar", [("s-k000-0", encode_members(big))])
    entry = shard.entries[0]
    data = bytearray((tmp_path / "a.tar").read_bytes())
    data[data.index(b"xxxx") : data.index(b"xxxx") + READ_WHOLE_BYTES] = b"y" * READ_WHOLE_BYTES
    (tmp_path / "a.tar").write_bytes(data)
    row = {"sample_id": "s-k000-0", "kind": "text", "offset": entry.offset, "n_bytes": entry.n_bytes}
    piece = Piece(plan_id="p", unit=0, attempt=0, shard="a.tar", rows=pl.DataFrame([row]))
    storage = Storage(".", tmp_path, tmp_path / "scratch")
    ((_, members),) = read_piece(piece, storage, find_metrics(["validity"]))
    assert members == {"meta.json": {"checks": {"valid": 1}}, "messages.json": []}


def test_wrong_names_are_answered_with_the_nearest(words: tuple[Project, str, str]) -> None:
    """Unknown metrics and plans, and metrics for other records, are one message that says what there is."""
    project, plan, _ = words
    with pytest.raises(DistdataError, match=r"metric 'validty': unknown\. Did you mean 'validity'"):
        measure(project, [plan], ["validty"])
    with pytest.raises(DistdataError, match=f"no plan '{plan[:-1]}' in the catalog. Did you mean '{plan}'"):
        measure(project, [plan[:-1]], ["tool"])
    with pytest.raises(DistdataError, match="metric planner: made for records of kind rollout; these plans hold text"):
        measure(project, [plan], ["planner"])
    with pytest.raises(DistdataError, match="metric kl: compares two models"):
        measure(project, [plan], ["kl"])
    with pytest.raises(DistdataError, match="metric kl: needs a student that can say"):
        measure_pair(project, [plan], [plan], ["kl"])


def test_defaults_are_what_a_kind_can_answer() -> None:
    """Text has the language metrics, rollouts those of driving, and both what needs no member; none is for nothing."""
    text, rollout = defaults_for("text"), defaults_for("rollout")
    assert {"outcome", "recall", "cost"} == set(text) & set(rollout)
    assert {"kl", "validity", "tool", "refusal", "calibration"} <= set(text) - set(rollout)
    assert {"planner", "control", "drift", "spread", "ghost", "coherence"} <= set(rollout) - set(text)
    assert set(defaults_for("rollout")) | set(text) == set(METRICS), "no metric is for nothing"
    assert columns_of("calibration") == ("confidence", "correct")
    assert columns_of("recall") == ("outcome",)
    assert columns_of("ghost")[-1] == "density_rank"


def test_an_empty_choice_is_an_empty_frame(words: tuple[Project, str, str]) -> None:
    """No seed that fits gives no row, with the columns all the same."""
    project, plan, _ = words
    frame = measure(project, [plan], ["tool"], seed_ids=[])
    assert frame.height == 0
    assert frame.schema["tool_match"] == pl.Int8


def test_pairs_join_what_both_models_drew(words: tuple[Project, str, str]) -> None:
    """A pair has one seed, one k and both sides' columns; what has no counterpart is counted by slice."""
    project, teacher, student = words
    lost = measure(project, [student], ["outcome"])["sample_id"].to_list()[:2]
    drop(project, lost)
    a, b = measure(project, [teacher], ["tool"]), measure(project, [student], ["tool"])
    pairs = measure_pair(project, [teacher], [student], ["tool", "outcome"])
    left = {(r["seed_id"], r["k"]): r for r in a.to_dicts()}
    right = {(r["seed_id"], r["k"]): r for r in b.to_dicts()}
    both = sorted((left[key]["slice"], *key) for key in left.keys() & right.keys())
    assert len(both) > 20
    assert pairs.frame.select("slice", "seed_id", "k").rows() == both
    for row in pairs.frame.to_dicts():
        key = (row["seed_id"], row["k"])
        assert (row["teacher_tool_match"], row["student_tool_match"]) == tuple(
            side[key]["tool_match"] for side in (left, right)
        )
        assert (row["teacher_outcome"], row["student_outcome"]) == (left[key]["outcome"], right[key]["outcome"])
        assert row["cell"] == left[key]["cell"]
    only_left, only_right = left.keys() - right.keys(), right.keys() - left.keys()
    assert (pairs.n_teacher_only, pairs.n_student_only) == (len(only_left), len(only_right))
    for row in pairs.unpaired.to_dicts():
        assert row["n_teacher_only"] == sum(left[key]["slice"] == row["slice"] for key in only_left)
        assert row["n_pairs"] == sum(s == row["slice"] for s, *_ in both)


def test_pairs_refuse_two_versions_of_a_model(words: tuple[Project, str, str]) -> None:
    """Plans of two models on one side are not mixed in silence."""
    project, teacher, student = words
    with pytest.raises(DistdataError, match=r"pairing: the teacher's plans hold .* draws that are not alone"):
        measure_pair(project, [teacher, student], [student], ["outcome"])


def test_token_kl_is_the_gap_of_the_two_laws(words: tuple[Project, str, str]) -> None:
    """Each teacher completion's `token_kl` is the mean of its log-probability ratios under the two exact laws."""
    project, teacher, student = words
    model = MarkovTeacher(constants=STUDENT)
    pairs = measure_pair(project, [teacher], [student], ["kl", "tool"], scorer=model)
    by_id = {row["sample_id"]: members for row, members in stored(project, teacher)}
    assert pairs.frame.height > 20
    for row in pairs.frame.to_dicts():
        ids = by_id[row["teacher_sample_id"]]["input_ids.npy"]
        prompt, said = read_prompt(ids[:12]), ids[12:]
        gap = law(prompt, LANGUAGE).log_probs(said) - law(prompt, model.language).log_probs(said)
        assert row["teacher_token_kl"] == pytest.approx(gap.mean(), abs=1e-5)  # stored as float32
    assert "student_token_kl" not in pairs.frame.columns
    assert pairs.frame["teacher_token_kl"].mean() > 0.01  # the laws differ


def test_scores_are_kept_for_the_model_that_gave_them(words: tuple[Project, str, str]) -> None:
    """The same student is not asked twice about a completion; another one is asked for itself."""
    project, teacher, student = words
    asked: list[int] = []

    class Counting(MarkovTeacher):
        def score(self, requests: Any, completions: Any) -> Any:
            asked.append(len(requests))
            return super().score(requests, completions)

    first = measure_pair(project, [teacher], [student], ["kl"], scorer=Counting(constants=STUDENT))
    again = measure_pair(project, [teacher], [student], ["kl"], scorer=Counting(constants=STUDENT))
    assert sum(asked) == 40
    assert again.frame.equals(first.frame)
    same = measure_pair(project, [teacher], [student], ["kl"], scorer=Counting())
    assert sum(asked) == 80
    # a model scored by itself: its own log-probabilities come back
    assert same.frame["teacher_token_kl"].abs().max() < 1e-6


def test_a_record_that_a_metric_cannot_read_is_named(words: tuple[Project, str, str]) -> None:
    """A student whose scores don't fit the completions is one message with the sample."""
    project, teacher, student = words

    class Short(MarkovTeacher):
        def score(self, requests: Any, completions: Any) -> Any:
            return [s[:-1] for s in super().score(requests, completions)]

    with pytest.raises(
        DistdataError, match=r"metric kl: sample w\d+-k00\d-\w+ in .*can't be measured .*of the student"
    ):
        measure_pair(project, [teacher], [student], ["kl"], scorer=Short())


@pytest.fixture
def points(tiny: Any, tmp_path: Path) -> tuple[Project, str]:
    """A project with 120 latents of five numbers in four cells, those with k = 1 without an outcome."""
    project: Project = tiny.build(tmp_path / "points", n_draws=120, plan=False, joint=False, batch=40, unit_draws=40)
    teacher = project.root / "tiny_teacher.py"
    text = teacher.read_text().replace("x.npy", "latent.npy")
    text = text.replace("outcome=outcome, gpu_s", "outcome=None if r.k else outcome, gpu_s")
    teacher.write_text(text.replace('outcomes=("low", "high")', "outcomes=()"))
    save_purchase(project, plan_purchase(project, budget="120samples"))
    return project, tiny.run(project).plan_id


def test_second_steps_are_taken_against_the_whole_reference(points: tuple[Project, str]) -> None:
    """Few of the teacher's own draws rank low among them, and a few seeds get the same ranks as all of them do."""
    project, plan = points
    pairs = measure_pair(project, [plan], [plan], ["ghost", "spread"])
    assert (pairs.n_teacher_only, pairs.n_student_only) == (0, 0)
    assert pairs.frame["teacher_feature"].to_list() == pairs.frame["student_feature"].to_list()
    for _, cell in pairs.frame.group_by("cell"):
        assert cell.height >= 20
        # ties count by half, so at most as many lie below a level as there would be without ties
        ranks = cell["teacher_density_rank"].to_numpy()
        for level in (0.005, 0.1, 0.3):
            assert (ranks < level).mean() <= own_share(level, cell.height)
        assert ranks.max() > 0.4
    assert pairs.frame["student_density_rank"].equals(pairs.frame["teacher_density_rank"])
    few = pairs.frame["seed_id"].unique().sort().to_list()[:9]
    part = measure_pair(project, [plan], [plan], ["ghost", "spread"], seed_ids=few)
    assert part.frame.equals(pairs.frame.filter(pl.col("seed_id").is_in(few)))
    none = measure_pair(project, [plan], [plan], ["ghost", "spread"], seed_ids=[])
    assert none.frame.schema == pairs.frame.schema
    assert (none.frame.height, none.unpaired.height) == (0, 0)


def test_draws_without_label_get_one_where_outcomes_are_asked_for(points: tuple[Project, str]) -> None:
    """Labels that came stay; missing ones are filled from the labelled draws, and only when a gate wants outcomes."""
    project, plan = points
    bare = measure_pair(project, [plan], [plan], ["spread"]).frame
    full = measure_pair(project, [plan], [plan], ["outcome"]).frame
    missing = bare["teacher_outcome"].is_null()
    assert missing.sum() == bare.filter(pl.col("k") == 1).height > 20
    assert full.filter(~missing)["teacher_outcome"].equals(bare.filter(~missing)["teacher_outcome"])
    assert set(full.filter(missing)["teacher_outcome"]) == {"low", "high"}
    assert full["student_outcome"].equals(full["teacher_outcome"])
