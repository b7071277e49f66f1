"""A language student in the markov teacher's place: common noise, exact scores, the teacher's records, batches."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from distdata.catalogs.errors import DistdataError
from distdata.catalogs.hashing import draw_rng_seed, token_uniforms
from distdata.catalogs.protocol import Draw, Failure, Request, Scorer, Teacher, TokenSpec
from distdata.generate.teachers.markov.language import AXES, ID, SCENARIOS, SIZE, TOPICS, Prompt, prompt_ids
from distdata.generate.teachers.markov.teacher import TOKENIZER_HASH, MarkovTeacher
from distdata.generate.teachers.transformers import TransformersTeacher
from distdata.train_min.checkpoint import CURVE, network_weights, write_student
from distdata.train_min.curves import read_curve
from distdata.train_min.job import TrainJob
from distdata.train_min.language_learner import language_network
from distdata.train_min.language_student import LanguageStudent, complete, token_log_probs
from distdata.train_min.loop import train
from distdata.train_min.quantise import write_int8
from distdata.train_min.recipes import find_recipe
from distdata.train_min.student import open_student

NETWORK = {
    "architecture": "llama", "vocabulary": SIZE, "width": 16, "depth": 2, "heads": 2, "tokenizer": "",
    "temperature": 1.0, "top_p": 1.0,
}  # fmt: skip


def request(i, k=0):
    """Return the i-th request of a mixed list."""
    cells = list(itertools.product(*AXES.values(), SCENARIOS))
    domain, language, length, scenario = cells[i % len(cells)]
    topic = TOPICS[domain][3 if scenario == "rare_topic" else 0]
    prompt = Prompt(domain, language, length, scenario, topic, "plain", "partial", i % 10)
    return Request(
        seed_id=f"s{i}",
        k=k,
        rng_seed=draw_rng_seed("tests", f"s{i}", k),
        axes={"domain": domain, "language": language, "length": length},
        scenario=scenario,
        params={"prompt_ids": prompt_ids(prompt).tolist()},
    )


def network(seed=3, spread=0.5, **changed):
    """Return a network with random weights, spread wide enough to have opinions, the end more likely."""
    import torch

    torch.manual_seed(seed)
    found = language_network(NETWORK | changed).eval()
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, spread)
    return found


def write(folder, net, **changed):
    """Write a network as a finished student."""
    header = {"family": "causal_lm", "recipe": "word_kd", "network": NETWORK, "precision": "float32"}
    return write_student(folder, network_weights(net), header | changed)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A student with random weights, and its folder's header."""
    folder = tmp_path_factory.mktemp("student")
    header = write(folder, network())
    return LanguageStudent(path=str(folder), decoder=MarkovTeacher(), usd_per_gpuh=0.5), header


def completions_of(draws):
    """Return the completions of draws."""
    return [d.members["input_ids.npy"][d.members["meta.json"]["n_prompt"] :] for d in draws]


def test_description(student):
    """The student is a teacher and a scorer; hash and version are its artefact's, kind and labels the teacher's."""
    who, header = student
    info, teacher = who.describe(), MarkovTeacher().describe()
    assert isinstance(who, Teacher)
    assert isinstance(who, Scorer)
    assert (info.id, info.version, info.content_hash) == ("student", header["artefact"][:8], header["artefact"])
    assert (info.kind, info.outcomes, info.members) == (teacher.kind, teacher.outcomes, teacher.members)
    assert (info.reproducible, info.joint_batches, info.usd_per_gpuh) == ("exact", True, 0.5)


def test_records_are_the_teachers(student):
    """Every request is answered once, with the teacher's members, label and prompt, by the student's own tokens."""
    who, _ = student
    requests = [request(i) for i in range(40)]
    draws = list(who.sample(requests))
    assert [(d.seed_id, d.k) for d in draws] == [(r.seed_id, r.k) for r in requests]
    teacher = MarkovTeacher()
    for r, draw, completion in zip(requests, draws, completions_of(draws), strict=True):
        assert isinstance(draw, Draw)
        prompt = draw.members["input_ids.npy"][: draw.members["meta.json"]["n_prompt"]]
        assert prompt.tolist() == r.params["prompt_ids"]
        (same,) = teacher.record([r], [completion], [draw.members["logprob.npy"]])
        assert draw.outcome == same.outcome
        assert draw.members.keys() == same.members.keys()
        ends = np.flatnonzero(completion == ID["<end>"])
        assert ends.tolist() == [len(completion) - 1] or (ends.size == 0 and len(completion) == 24)
    assert len({len(c) for c in completions_of(draws)}) > 1, "lengths vary, or ending early is not tested"


def test_the_same_batch_gives_the_same_bytes(student):
    """Asked again, or by a student loaded again, a batch has the same ids and the same bits of log-probability."""
    who, _ = student
    requests = [request(i) for i in range(6)]
    again = LanguageStudent(path=str(who._folder), decoder=MarkovTeacher())
    first, second, third = list(who.sample(requests)), list(who.sample(requests)), list(again.sample(requests))
    for a, b, c in zip(first, second, third, strict=True):
        for name in ("input_ids.npy", "logprob.npy"):
            assert a.members[name].tobytes() == b.members[name].tobytes() == c.members[name].tobytes()


def test_recorded_log_probs_are_the_scores(student):
    """Log-probabilities recorded step by step, with kept keys and values, equal one pass over all to 1e-4 nats."""
    who, _ = student
    requests = [request(i) for i in range(20)]
    draws = list(who.sample(requests))
    scores = who.score(requests, completions_of(draws))
    for draw, score in zip(draws, scores, strict=True):
        assert score.dtype == np.float32
        np.testing.assert_allclose(draw.members["logprob.npy"], score, atol=1e-4)


def naive(net, prompt, rng_seed, spec):
    """Complete one prompt as the definition says: one pass per token, no padding, nothing kept."""
    import torch

    ids, uniforms = list(prompt), token_uniforms(rng_seed, spec.max_new_tokens)
    for u in uniforms:
        with torch.no_grad():
            p = net(input_ids=torch.tensor([ids])).logits[0, -1].double().softmax(-1).numpy()
        ids.append(int(np.searchsorted(np.cumsum(p), u, side="right")))
        if ids[-1] in spec.end_ids:
            break
    return ids[len(prompt) :]


def test_batches_of_unequal_prompts_are_completed_as_one_by_one():
    """Prompts of 1 to 9 ids, padded and cached, give the tokens of the plain definition, each by its own uniforms."""
    net, rng = network(), np.random.default_rng(0)
    prompts = [rng.integers(0, SIZE, n) for n in (4, 1, 9, 2, 7, 7)]
    spec = TokenSpec(size=SIZE, end_ids=(1, 2), max_new_tokens=12, tokenizer_hash="")
    seeds = [11, 12, 13, 14, 15, 15]
    completions, log_probs = complete(net, prompts, seeds, spec)
    expected = [naive(net, p, s, spec) for p, s in zip(prompts, seeds, strict=True)]
    assert [c.tolist() for c in completions] == expected
    for one, score in zip(log_probs, token_log_probs(net, prompts, completions), strict=True):
        np.testing.assert_allclose(one, score, atol=1e-4)
    with pytest.raises(ValueError, match="a prompt has no token"):
        complete(net, [np.zeros(0, np.int64)], [1], spec)


def test_like_laws_choose_like_tokens():
    """Under common noise a network and one moved by 0.1% of its logits choose nearly all tokens alike.

    The chance that a uniform falls between the two cumulatives is at most their total variation, here below 0.01, so of
    64 first tokens fewer than 5 differ (P < 1e-3 even at 0.01); with other uniforms most differ.
    """
    import torch

    one, other = network(), network()
    with torch.no_grad():
        other.lm_head.weight.mul_(1.001)
    prompts = [np.array([i % SIZE, 5]) for i in range(64)]
    spec = TokenSpec(size=SIZE, end_ids=(), max_new_tokens=1, tokenizer_hash="")
    mine, _ = complete(one, prompts, range(64), spec)
    theirs, _ = complete(other, prompts, range(64), spec)
    unlike, _ = complete(other, prompts, range(1000, 1064), spec)
    assert sum(a[0] != b[0] for a, b in zip(mine, theirs, strict=True)) < 5
    assert sum(a[0] != b[0] for a, b in zip(mine, unlike, strict=True)) > 20


def test_tokens_follow_the_law():
    """First tokens of 4,000 seeds have the shares of the network's own law (chi-square, one false alarm in 10,000)."""
    import torch
    from scipy.stats import chi2

    net = network(spread=0.3)
    prompt = np.array([3, 14, 15])
    spec = TokenSpec(size=SIZE, end_ids=(), max_new_tokens=1, tokenizer_hash="")
    found, _ = complete(net, [prompt] * 4_000, range(4_000), spec)
    with torch.no_grad():
        p = net(input_ids=torch.tensor(prompt)[None]).logits[0, -1].double().softmax(-1).numpy()
    common = p * 4_000 >= 5
    counts = np.bincount(np.concatenate(found), minlength=SIZE)
    observed = np.append(counts[common], counts[~common].sum())
    expected = 4_000 * np.append(p[common], p[~common].sum())
    assert common.sum() > 5
    statistic = ((observed - expected) ** 2 / expected)[expected > 0].sum()
    assert statistic < chi2.ppf(1 - 1e-4, len(expected) - 1)


def test_a_bad_request_is_a_failure_of_its_own(student):
    """A request that is none of the language's fails by itself; its siblings are answered."""
    who, _ = student
    bad = Request(seed_id="bad", k=0, rng_seed=1, axes={}, scenario="answer", params={"prompt_ids": [1, 2]})
    answers = {a.seed_id: a for a in who.sample([request(0), bad, request(1)])}
    assert isinstance(answers["bad"], Failure)
    assert answers["bad"].kind == "invalid"
    assert isinstance(answers["s0"], Draw)
    assert isinstance(answers["s1"], Draw)
    assert [type(a) for a in who.sample([bad])] == [Failure]


@pytest.mark.parametrize(("recipe", "choice"), [("word_kd", (0.8, 1.0)), ("seq_kd", (1.0, 1.0))])
def test_a_trained_student_is_served(corpus, tmp_path, recipe, choice):
    """What `train` writes opens as a teacher, and has learned: its loss falls by half a nat in 40 steps.

    It chooses tokens at the teacher's temperature where it learned the teacher's law (here 0.8), and at 1 where it
    learned from completions chosen so.
    """
    teacher = MarkovTeacher(probabilities="counts", temperature=0.8)
    requests = [request(i, k) for i in range(60) for k in range(2)]
    draws = [d.members for d in teacher.sample(requests)]
    storage, frame = corpus(draws, per_shard=50, kind=["logits"] * len(draws))
    job = TrainJob(
        out=tmp_path / "student", storage=storage, frame=frame, recipe=find_recipe(recipe), device="cpu", n_workers=0,
        header={"snapshot_id": "0" * 16, "teacher": {"id": "markov", "version": "1", "content_hash": "0" * 16}},
        settings={"width": 16, "depth": 1, "heads": 2, "vocabulary": SIZE, "steps": 40, "batch": 16, "log_every": 5},
    )  # fmt: skip
    trained = train(job)
    losses = read_curve(job.out / CURVE)["loss"]
    assert losses[0] - losses[-1] > 0.5
    network = trained.header["network"]
    assert (network["temperature"], network["top_p"], network["tokenizer"]) == (*choice, TOKENIZER_HASH)
    student = open_student(path=str(job.out), decoder=teacher)
    assert isinstance(student, LanguageStudent)
    assert student.describe().content_hash == trained.artefact
    assert all(isinstance(d, Draw) for d in student.sample(requests[:8]))


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.5, 0.8)])
def test_a_copy_of_the_teacher_draws_its_records(tmp_path, temperature, top_p):
    """A student with the weights of a transformers teacher draws the same records under the same noise.

    Prompts of unequal length, at the teacher's own temperature and top_p; log-probabilities agree to 1e-4 nats. So a
    difference between two records is a difference between two models.
    """
    net = network()
    net.save_pretrained(tmp_path / "teacher")
    teacher = TransformersTeacher(
        path=str(tmp_path / "teacher"), temperature=temperature, top_p=top_p, max_new_tokens=10, end_ids=[1, 2, 3]
    )
    write(tmp_path / "student", net, network=NETWORK | {"temperature": temperature, "top_p": top_p})
    student = LanguageStudent(path=str(tmp_path / "student"), decoder=teacher)
    rng = np.random.default_rng(2)
    requests = [
        Request(
            seed_id=f"r{i}", k=0, rng_seed=i, axes={}, scenario="any",
            params={"prompt_ids": rng.integers(0, SIZE, 3 + i % 4).tolist()},
        )
        for i in range(24)
    ]  # fmt: skip
    for mine, theirs in zip(student.sample(requests), teacher.sample(requests), strict=True):
        assert mine.members["input_ids.npy"].tolist() == theirs.members["input_ids.npy"].tolist()
        np.testing.assert_allclose(mine.members["logprob.npy"], theirs.members["logprob.npy"], atol=1e-4)


def test_int8_copy_is_served(tmp_path):
    """The int8 copy has a hash of its own, loads, and scores as a network whose weights moved by half a scale at most.

    Not as the float32 one does: rounding to 255 steps shows in the scores.
    """
    import torch

    net, decoder = network(), MarkovTeacher()
    whole, copy = write(tmp_path, net), write_int8(tmp_path)
    student = LanguageStudent(path=str(tmp_path / "int8"), decoder=decoder)
    assert student.describe().content_hash == copy["artefact"] != whole["artefact"]
    requests = [request(i) for i in range(4)]
    draws = list(student.sample(requests))
    scores = student.score(requests, completions_of(draws))
    for draw, score in zip(draws, scores, strict=True):
        np.testing.assert_allclose(draw.members["logprob.npy"], score, atol=1e-4)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.Linear):
                scale = module.weight.abs().amax(1, keepdim=True) / 127
                module.weight.copy_((module.weight / scale).round() * scale)
    prompts = [np.array(r.params["prompt_ids"]) for r in requests]
    rounded = token_log_probs(net, prompts, completions_of(draws))
    plain = LanguageStudent(path=str(tmp_path), decoder=decoder).score(requests, completions_of(draws))
    np.testing.assert_allclose(np.concatenate(scores), np.concatenate(rounded), atol=1e-4)
    assert np.abs(np.concatenate(scores) - np.concatenate(plain)).max() > 1e-3


def test_what_is_no_student_is_refused(tmp_path, student):
    """No student, one of another family, another vocabulary, a decoder without tokens: errors that say so."""
    who, _ = student
    with pytest.raises(DistdataError, match="no finished student"):
        LanguageStudent(path=str(tmp_path), decoder=MarkovTeacher()).describe()
    with pytest.raises(DistdataError, match="vocabulary, prompts and record; LanguageStudent has not"):
        LanguageStudent(path=str(tmp_path), decoder=who)
    write(tmp_path / "a", network(), family="denoiser")
    with pytest.raises(DistdataError, match="family 'denoiser'"):
        LanguageStudent(path=str(tmp_path / "a"), decoder=MarkovTeacher()).describe()
    write(tmp_path / "b", network(vocabulary=7), network=NETWORK | {"vocabulary": 7})
    with pytest.raises(DistdataError, match=f"knows 7 token ids, its teacher {SIZE}"):
        LanguageStudent(path=str(tmp_path / "b"), decoder=MarkovTeacher()).load()
    write(tmp_path / "c", network(), network=NETWORK | {"tokenizer": "0123"})
    with pytest.raises(DistdataError, match="trained on tokenizer 0123, its teacher has"):
        LanguageStudent(path=str(tmp_path / "c"), decoder=MarkovTeacher()).load()
