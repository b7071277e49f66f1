"""The markov teacher as the pipeline and a student meet it: records, reproducibility, scores, failures."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from distdata.catalogs.config import TeacherConfig
from distdata.catalogs.errors import DistdataError
from distdata.catalogs.hashing import draw_rng_seed, token_uniforms
from distdata.catalogs.protocol import Draw, Failure, Request, Scorer, Teacher, TokenTeacher
from distdata.catalogs.token_probs import sparse_targets
from distdata.generate.teachers.markov.language import (
    AXES,
    ID,
    LANGUAGE,
    OUTCOMES,
    SCENARIOS,
    SIZE,
    encode,
    read_prompt,
)
from distdata.generate.teachers.markov.law import law
from distdata.generate.teachers.markov.seeds import cells, seed_counts, seeds
from distdata.generate.teachers.markov.teacher import MarkovTeacher
from distdata.generate.teachers.markov.verify import verdict_probabilities
from distdata.generate.teachers.registry import make_seeds, make_teacher

ALPHA = 1e-4
"""False-alarm rate of each statistical test below."""


def request(row, k=0):
    return Request(
        seed_id=row["seed_id"],
        k=k,
        rng_seed=draw_rng_seed("tests", row["seed_id"], k),
        axes={a: row[a] for a in AXES},
        scenario=row["scenario"],
        params=json.loads(row["params"]),
    )


@pytest.fixture(scope="module")
def requests():
    """Return one request of every cell."""
    return [request(row) for row in seeds(60, "tests").to_pylist()]


def flat(draw):
    """Return a draw as bytes by member, so that equality means equal bytes."""
    return {
        name: (v.dtype.str, v.shape, v.tobytes()) if isinstance(v, np.ndarray) else json.dumps(v, sort_keys=True)
        for name, v in draw.members.items()
    }


def test_describe_is_cheap():
    """Making, describing and asking the teacher imports neither torch nor transformers."""
    code = (
        "import sys; from distdata.generate.teachers.markov.teacher import MarkovTeacher; t = MarkovTeacher(); "
        "t.describe(); t.vocabulary(); print([m for m in ('torch', 'transformers', 'scipy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_describe_tells_versions_apart():
    """A changed constant, temperature or rule is another teacher; another price is not."""
    teacher = MarkovTeacher()
    info = teacher.describe()
    assert isinstance(teacher, Teacher)
    assert isinstance(teacher, TokenTeacher)
    assert isinstance(teacher, Scorer)
    assert (info.id, info.kind, info.reproducible, info.outcomes) == ("markov", "text", "exact", OUTCOMES)
    hashes = [info.content_hash] + [
        MarkovTeacher(**options).describe().content_hash
        for options in (
            {"constants": {"slip": 0.01}}, {"temperature": 0.7}, {"probabilities": "counts"},
            {"probabilities": "counts", "n_counts": 8}, {"probabilities": "top_k"},
        )
    ]  # fmt: skip
    assert len(set(hashes)) == 6
    same = [{"usd_per_gpuh": 3.0}, {"constants": {"slip": LANGUAGE.slip}}, {"constants": LANGUAGE.to_dict()}]
    assert {MarkovTeacher(**options).describe().content_hash for options in same} == {info.content_hash}


def test_the_registry_knows_it(tmp_path):
    """`kind = "markov"` and the seed generator `markov` are found by name, and wrong options are named."""
    teacher = make_teacher(TeacherConfig(kind="markov", options={"probabilities": "head_tail"}), tmp_path)
    assert teacher.describe().kind == "logits"
    assert make_seeds("markov", 5, "s").num_rows == 5
    with pytest.raises(DistdataError, match="'count': unknown"):
        make_teacher(TeacherConfig(kind="markov", options={"probabilities": "count"}), tmp_path)
    with pytest.raises(DistdataError, match=r"temperatur: .*Did you mean 'temperature'"):
        make_teacher(TeacherConfig(kind="markov", options={"temperatur": 1}), tmp_path)


@pytest.mark.parametrize("temperature", [0, -1, True, "warm"])
def test_bad_temperatures_are_refused(temperature):
    """A temperature that is none is an error that names it."""
    with pytest.raises(DistdataError, match="temperature is"):
        MarkovTeacher(temperature=temperature)


@pytest.mark.parametrize("form", ["none", "counts", "head_tail", "top_k", "dense"])
def test_records_are_what_describe_promises(requests, form):
    """In every cell the record has the declared members, its own log-probabilities, and a verdict in meta.json."""
    teacher = MarkovTeacher(probabilities=form)
    info = teacher.describe()
    assert info.kind == ("text" if form == "none" else "logits")
    for r, d in zip(requests, teacher.sample(requests), strict=True):
        assert isinstance(d, Draw)
        assert {n for n in d.members if n.endswith(".npy")} == set(info.members)
        for name, spec in info.members.items():
            value = d.members[name]
            assert value.dtype.name == spec.dtype
            assert all(want in (None, got) for want, got in zip(spec.shape, value.shape, strict=True))
        meta, ids = d.members["meta.json"], d.members["input_ids.npy"]
        assert ids[: meta["n_prompt"]].tolist() == r.params["prompt_ids"]
        said = ids[meta["n_prompt"] :]
        assert said[-1] == ID["<end>"] or len(said) == LANGUAGE.max_new_tokens
        exact = law(read_prompt(r.params["prompt_ids"])).log_probs(said)
        np.testing.assert_allclose(d.members["logprob.npy"], exact, rtol=1e-6)
        assert (meta["outcome"], meta["axes"], meta["scenario"]) == (d.outcome, dict(r.axes), r.scenario)
        assert set(meta["checks"]) == {"valid", "tool_match", "refused", "should_refuse", "correct", "stated_at"}
        assert meta["probabilities"]["biased"] == (form == "top_k")
        assert [m["role"] for m in d.members["messages.json"]] == ["user", "assistant"]
        assert "<end>" not in d.members["messages.json"][1]["content"]
        if form not in ("none", "top_k"):
            targets = sparse_targets(d.members)
            assert len(targets.offsets) == len(said) + 1
            assert targets.weights.sum() == pytest.approx(len(said), rel=1e-5)


def test_stored_counts_average_to_the_law(requests):
    """Over many draws of a request, the weights stored for the first token average to its law (chi-square)."""
    base, n, draws = requests[0], 16, 400
    chain = law(read_prompt(base.params["prompt_ids"]))
    counted = np.zeros(SIZE)
    again = [dataclasses.replace(base, k=k, rng_seed=draw_rng_seed("counts", "x", k)) for k in range(draws)]
    for d in MarkovTeacher(probabilities="counts", n_counts=n).sample(again):
        end = int(d.members["lg_off.npy"][1])
        np.add.at(counted, d.members["lg_ids.npy"][:end], d.members["lg_cnt.npy"][:end])
    expected = n * draws * chain.rows[ID["<assistant>"]]
    common = expected >= 5
    seen = [*counted[common], counted[~common].sum()]
    assert stats.chisquare(seen, [*expected[common], expected[~common].sum()]).pvalue > ALPHA


def test_equal_requests_give_equal_bytes_in_any_company(requests):
    """The same request gives the same bytes alone, in a batch, and in another order; another k gives others."""
    teacher = MarkovTeacher(probabilities="head_tail")
    batch = {d.seed_id: flat(d) for d in teacher.sample(requests)}
    alone = {
        d.seed_id: flat(d) for r in reversed(requests) for d in MarkovTeacher(probabilities="head_tail").sample([r])
    }
    assert batch == alone
    others = [dataclasses.replace(r, k=1, rng_seed=draw_rng_seed("tests", r.seed_id, 1)) for r in requests]
    assert sum(flat(d) == batch[d.seed_id] for d in teacher.sample(others)) < len(requests) / 3


def test_texts_do_not_depend_on_what_is_stored(requests):
    """The stored probabilities have random numbers of their own: every form holds the same completions."""
    said = {
        form: [d.members["input_ids.npy"].tolist() for d in MarkovTeacher(probabilities=form).sample(requests)]
        for form in ("none", "counts", "head_tail", "dense")
    }
    assert all(texts == said["none"] for texts in said.values())


def test_like_teachers_say_like_things(requests):
    """Under common noise a slightly changed teacher mostly says the same, words being chosen by the same uniforms."""
    many = [
        dataclasses.replace(r, k=k, rng_seed=draw_rng_seed("noise", r.seed_id, k)) for r in requests for k in range(5)
    ]
    a = [d.members["input_ids.npy"].tolist() for d in MarkovTeacher().sample(many)]
    changed = MarkovTeacher(constants={"more_reasons": LANGUAGE.more_reasons + 0.1})
    b = [d.members["input_ids.npy"].tolist() for d in changed.sample(many)]
    differ = sum(x != y for x, y in zip(a, b, strict=True))
    # only after a reason word, and only where the uniform falls between the two laws' borders: 3 in 100 or so
    assert 0 < differ < 0.1 * len(many)
    for r, ids in zip(many[:20], a, strict=False):
        chain = law(read_prompt(r.params["prompt_ids"]))
        assert ids[12:] == chain.choose(token_uniforms(r.rng_seed, 24)).tolist()


def test_scores_are_the_recorded_log_probabilities(requests):
    """`score` of a teacher's own completions is what its records hold; other completions are scored as well."""
    teacher = MarkovTeacher(temperature=0.7)
    draws = list(teacher.sample(requests))
    own = [d.members["input_ids.npy"][12:] for d in draws]
    for found, d in zip(teacher.score(requests, own), draws, strict=True):
        assert np.array_equal(found, d.members["logprob.npy"])
    foreign = teacher.score(requests[:1], [encode("well well with <end>")])[0]
    assert np.isfinite(foreign).all()


def test_a_students_completion_becomes_a_record(requests):
    """`record` labels another model's completion, keeps that model's log-probabilities and adds this teacher's laws."""
    teacher = MarkovTeacher(probabilities="dense")
    r = next(r for r in requests if r.scenario == "tool_call")
    words = f"call {r.params['tool']} with {r.params['amount']} <end>"
    logs = np.array([-0.1, -0.2, -0.3, -0.4, -0.5], np.float32)
    (draw,) = teacher.record([r], [encode(words)], [logs])
    assert draw.outcome == "calls_tool"
    assert draw.members["meta.json"]["checks"]["tool_match"] == 1
    assert draw.members["logprob.npy"].tolist() == logs.tolist()
    chain = law(read_prompt(r.params["prompt_ids"]))
    np.testing.assert_allclose(draw.members["all_lp.npy"], np.log(chain.at(encode(words))), atol=1e-6)
    spec = teacher.vocabulary()
    assert (spec.size, spec.end_ids, spec.max_new_tokens) == (SIZE, (ID["<end>"],), 24)
    assert teacher.prompts([r])[0].tolist() == r.params["prompt_ids"]


def test_outcomes_follow_the_law_over_the_seeds():
    """Over all seeds of a scenario type, outcome counts fit the sum of the seeds' exact chances (z per outcome)."""
    rows = [r for r in seeds(1200, "law").to_pylist() if r["scenario"] == "refusal"]
    found = [[d.outcome == o for o in OUTCOMES] for d in MarkovTeacher().sample([request(r, 0) for r in rows])]
    chances = []
    for r in rows:
        prompt = read_prompt(json.loads(r["params"])["prompt_ids"])
        exact = verdict_probabilities(prompt, law(prompt))
        chances.append([exact[o] for o in OUTCOMES])
    p = np.array(chances)
    z = (np.mean(found, 0) - p.mean(0)) / np.sqrt((p * (1 - p)).sum(0) / len(p) ** 2)
    assert (2 * stats.norm.sf(np.abs(z)) > ALPHA / len(OUTCOMES)).all(), z


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"params": {}}, r"params\['prompt_ids'\] is None"),
        ({"params": {"prompt_ids": [1, 2, 3]}}, "a prompt has 12 words, this one 3"),
        ({"scenario": "poetry"}, "the prompt says scenario .* the request 'poetry'"),
        ({"axes": {"domain": "law", "language": "en", "length": "long"}}, "domain"),
    ],
)
def test_foreign_requests_fail_with_a_reason(requests, change, reason):
    """A request that is none of this language's is one Failure, and its neighbours are answered."""
    bad = dataclasses.replace(requests[0], **change)
    first, second = MarkovTeacher().sample([bad, requests[1]])
    assert isinstance(first, Failure)
    assert first.kind == "invalid"
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(first.reason)
    assert isinstance(second, Draw)


def test_seeds_fill_the_cells_as_asked():
    """Counts add up, every cell gets its floor, the rest goes by fleet share, and a cell's seeds never change."""
    assert sum(cells().values()) == pytest.approx(1.0)
    assert len(cells()) == 3 * 2 * 2 * len(SCENARIOS) == 60
    for n in (1, 59, 60, 1000, 6400):
        assert sum(seed_counts(n).values()) == n
    counts = seed_counts(6400)
    assert min(counts.values()) >= 72
    assert max(counts, key=counts.__getitem__) == ("billing", "en", "short", "answer")
    few, many = ({r["seed_id"]: r for r in seeds(n, "s").to_pylist()} for n in (300, 900))
    assert all(many[i] == row for i, row in few.items())
    assert not set(few) & {r["seed_id"] for r in seeds(300, "t").to_pylist()}


def test_seeds_belong_to_their_cell():
    """Every prompt says its own cell, families stay within a slice with one topic, and half the refusals are due."""
    rows = seeds(3000, "s").to_pylist()
    families = {}
    for row in rows:
        params = json.loads(row["params"])
        prompt = read_prompt(params["prompt_ids"])
        assert tuple(getattr(prompt, name) for name in (*AXES, "scenario")) == tuple(
            row[n] for n in (*AXES, "scenario")
        )
        assert params["should_refuse"] == (prompt.tone == "harmful")
        assert (prompt.tone != "plain") == (row["scenario"] == "refusal")
        rare = row["scenario"] == "rare_topic"
        families.setdefault((row["group"], rare), set()).add(
            (prompt.domain, prompt.language, prompt.length, prompt.topic)
        )
    assert all(len(slices) == 1 for slices in families.values())
    due = [json.loads(r["params"])["should_refuse"] for r in rows if r["scenario"] == "refusal"]
    assert stats.binomtest(sum(due), len(due), 0.5).pvalue > ALPHA
    with pytest.raises(DistdataError, match="n is 0"):
        seeds(0, "s")
