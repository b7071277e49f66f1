"""The transformers teacher on small Llamas: its laws, draws and records, and a whole plan in the markov language."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from distdata.catalogs import store
from distdata.catalogs.codec import decode_member
from distdata.catalogs.errors import DistdataError
from distdata.catalogs.hashing import draw_rng_seed, token_uniforms
from distdata.catalogs.project import Project
from distdata.catalogs.protocol import Draw, Failure, Request, Scorer, Teacher, TokenTeacher
from distdata.catalogs.shards import read_sample
from distdata.catalogs.token_probs import sparse_targets
from distdata.generate.teachers.markov.language import AXES, ID, OUTCOMES, SIZE, read_prompt
from distdata.generate.teachers.markov.law import entropy, law
from distdata.generate.teachers.markov.seeds import seeds
from distdata.generate.teachers.markov.teacher import MarkovTeacher
from distdata.generate.teachers.transformers import TransformersTeacher
from distdata.projects import init_project

LABELLER = "distdata.generate.teachers.markov.verify:label"
ALPHA = 1e-4
"""False-alarm rate of each statistical test below."""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Keep torch to one thread: tiny tensors only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def llama(size, **changes):
    """Return a small Llama with random weights of a fixed seed, larger than usual so that its laws are uneven."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3}  # fmt: skip
    ends = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=size, **{**config, **ends, **changes})).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a saved model of 23 ids without a tokenizer."""
    path = tmp_path_factory.mktemp("llama") / "m"
    llama(23).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """Return a saved model with a tokenizer of ten words that has a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("spoken") / "m"
    words = ["<pad>", "<end>", "<user>", "<bot>", "how", "are", "you", "fine", "thanks", "<unk>"]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>", eos_token="<end>")
    tokenizer.chat_template = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% endfor %}<bot>"
    llama(len(words)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def request(i, prompt, k=0, scenario="answer", axes=None):
    given = {"prompt": prompt} if isinstance(prompt, str) or isinstance(prompt[0], dict) else {"prompt_ids": prompt}
    rng_seed = draw_rng_seed("tests", f"s{i}", k)
    return Request(seed_id=f"s{i}", k=k, rng_seed=rng_seed, axes=axes or {"a": "x"}, scenario=scenario, params=given)


PROMPTS = [[2, 5, 9], [2, 7], [2, 11, 3, 4, 20, 6, 6], [13]]


def reference(folder, ids, n_prompt):
    """Return the model's log-laws of the tokens after the prompt, in float64, without padding or cache."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    with torch.no_grad():
        logits = model(torch.tensor(ids)[None]).logits[0, n_prompt - 1 : -1]
    return logits.log_softmax(-1).numpy()


def test_describe_is_cheap(folder):
    """Making and describing the teacher imports neither torch nor transformers."""
    code = (
        "import sys; from distdata.generate.teachers.transformers import TransformersTeacher; "
        f"TransformersTeacher(path={str(folder)!r}, probabilities='dense').describe(); "
        "print([m for m in ('torch', 'transformers', 'scipy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_describe_tells_versions_apart(folder, tmp_path):
    """Other weights, choices, labels or records are another teacher; another place or price is not."""
    teacher = TransformersTeacher(path=str(folder))
    info = teacher.describe()
    assert isinstance(teacher, Teacher)
    assert isinstance(teacher, TokenTeacher)
    assert isinstance(teacher, Scorer)
    assert (info.id, info.kind, info.reproducible, info.joint_batches) == ("m", "text", "exact", True)
    other = llama(23)
    other.lm_head.weight.data[0, 0] += 1e-3
    other.save_pretrained(tmp_path / "other")
    same = llama(23)
    same.save_pretrained(tmp_path / "same")
    changes = [
        {"path": str(tmp_path / "other")}, {"temperature": 0.5}, {"top_p": 0.9}, {"max_new_tokens": 8},
        {"probabilities": "counts"}, {"labeller": LABELLER}, {"end_ids": [4]}, {"dtype": "bfloat16"},
    ]  # fmt: skip
    hashes = [TransformersTeacher(**{"path": str(folder), **c}).describe().content_hash for c in changes]
    assert len({info.content_hash, *hashes}) == 1 + len(changes)
    assert TransformersTeacher(path=str(tmp_path / "same"), usd_per_gpuh=9).describe().content_hash == info.content_hash


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "org/name"}, "needs revision = the commit to use, 40 hex digits; none was given"),
        ({"path": "org/name", "revision": "main"}, "'main' could move"),
        ({"path": "nowhere"}, "is no folder here, and no hub id"),
        ({"temperature": 0}, "temperature is 0; it must be a number above 0"),
        ({"top_p": 1.5}, "top_p is 1.5; it must be a number above 0 and at most 1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"probabilities": "all"}, "'all': unknown"),
    ],
)
def test_bad_options_are_refused(folder, options, message):
    """A wrong option is an error that names it; a hub id is only taken with a commit, which can't move."""
    with pytest.raises(DistdataError, match=message):
        TransformersTeacher(**{"path": str(folder), **options})


def test_folders_without_a_model_are_refused(tmp_path):
    """A folder without config.json, or with one of no language model, is an error and no traceback."""
    with pytest.raises(DistdataError, match=r"no config\.json"):
        TransformersTeacher(path=str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "none_such"}')
    with pytest.raises(DistdataError, match="can't be loaded as a causal language model"):
        TransformersTeacher(path=str(tmp_path)).load()


def test_stored_laws_are_the_models(folder):
    """Dense probabilities equal the softmax of the model's logits to 1e-6, in a padded batch and on a cache."""
    teacher = TransformersTeacher(path=str(folder), probabilities="dense", max_new_tokens=12)
    asked = [request(i, p) for i, p in enumerate(PROMPTS)]
    for r, d in zip(asked, teacher.sample(asked), strict=True):
        assert isinstance(d, Draw)
        ids, n = d.members["input_ids.npy"], d.members["meta.json"]["n_prompt"]
        assert ids[:n].tolist() == r.params["prompt_ids"]
        exact = reference(folder, ids, n)
        np.testing.assert_allclose(np.exp(d.members["all_lp.npy"]), np.exp(exact), atol=1e-6)
        np.testing.assert_allclose(d.members["logprob.npy"], exact[np.arange(len(exact)), ids[n:]], atol=1e-5)
        assert ids[-1] == 1 or len(ids) - n == 12
        assert 1 not in ids[n:-1]


def other_model(kind):
    """Return a small model of another architecture, with random weights of a fixed seed."""
    import torch
    import transformers

    torch.manual_seed(1)
    ids = {"vocab_size": 23, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "initializer_range": 0.3}
    if kind == "absolute positions":
        config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **ids)
        return transformers.GPT2LMHeadModel(config).eval()
    if kind == "no positions":
        return transformers.BloomForCausalLM(
            transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4, **ids)
        ).eval()
    config = transformers.MistralConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        sliding_window=4, max_position_embeddings=64, **ids,
    )  # fmt: skip
    return transformers.MistralForCausalLM(config).eval()


@pytest.mark.parametrize("kind", ["absolute positions", "no positions", "sliding window"])
def test_padding_and_cache_suit_other_architectures(kind, tmp_path):
    """However a model knows positions and whatever its cache keeps, a padded batch stores its own laws to 1e-6."""
    path = tmp_path / "m"
    other_model(kind).save_pretrained(path)
    teacher = TransformersTeacher(path=str(path), probabilities="dense", max_new_tokens=12)
    for prompt, d in zip(PROMPTS, teacher.sample([request(i, p) for i, p in enumerate(PROMPTS)]), strict=True):
        exact = reference(path, d.members["input_ids.npy"], len(prompt))
        np.testing.assert_allclose(np.exp(d.members["all_lp.npy"]), np.exp(exact), atol=1e-6)


def test_models_without_a_cache_are_refused(tmp_path):
    """A state-space model, which keeps no keys and values, is an error that says so."""
    import torch
    import transformers

    torch.manual_seed(1)
    config = transformers.MambaConfig(vocab_size=23, hidden_size=16, num_hidden_layers=1, eos_token_id=1)
    transformers.MambaForCausalLM(config).save_pretrained(tmp_path / "m")
    with pytest.raises(DistdataError, match="MambaForCausalLM keeps no cache of keys and values"):
        list(TransformersTeacher(path=str(tmp_path / "m")).sample([request(0, [2, 5])]))


def test_tokens_are_chosen_under_common_noise(folder):
    """Every token is the first whose cumulative probability exceeds the draw's own uniform."""
    teacher = TransformersTeacher(path=str(folder), max_new_tokens=10)
    asked = [request(i, PROMPTS[i % 4], k=i) for i in range(12)]
    for r, d in zip(asked, teacher.sample(asked), strict=True):
        ids, n = d.members["input_ids.npy"], d.members["meta.json"]["n_prompt"]
        cumulative = np.cumsum(np.exp(reference(folder, ids, n)), 1)
        for t, u in enumerate(token_uniforms(r.rng_seed, len(ids) - n)):
            assert cumulative[t, ids[n + t]] > u - 1e-6
            assert ids[n + t] == 0 or cumulative[t, ids[n + t] - 1] <= u + 1e-6


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.0, 0.7), (1.5, 0.8)])
def test_draws_follow_the_models_law(folder, temperature, top_p):
    """The first token's shares fit the model's law, tempered and cut to its nucleus as asked (chi-square)."""
    n = 1500
    options = {"path": str(folder), "temperature": temperature, "top_p": top_p, "max_new_tokens": 1}
    found = np.zeros(23)
    for d in TransformersTeacher(**options).sample([request(0, PROMPTS[0], k=k) for k in range(n)]):
        found[d.members["input_ids.npy"][3]] += 1
    p = np.exp(reference(folder, [*PROMPTS[0], 0], 3)[0]) ** (1 / temperature)
    p /= p.sum()
    # the nucleus by hand: largest first, until what came before reaches top_p
    kept, mass = [], 0.0
    for i in sorted(range(23), key=lambda i: -p[i]):
        if mass < top_p:
            kept.append(i)
            mass += p[i]
    assert found.sum() == found[kept].sum() == n
    p = p[kept] / p[kept].sum()
    common = n * p >= 5
    seen = [*found[kept][common], found[kept][~common].sum()]
    expected = [*n * p[common], n * p[~common].sum()]
    if expected[-1] == 0:
        seen, expected = seen[:-1], expected[:-1]
    assert stats.chisquare(seen, expected).pvalue > ALPHA / 4


def test_other_temperatures_store_the_law_at_one(folder):
    """A cooler teacher's records carry log-probabilities and laws at temperature 1, and say how tokens were chosen."""
    teacher = TransformersTeacher(path=str(folder), probabilities="dense", temperature=0.5, top_p=0.9, max_new_tokens=6)
    (d,) = teacher.sample([request(0, PROMPTS[0])])
    ids, meta = d.members["input_ids.npy"], d.members["meta.json"]
    np.testing.assert_allclose(np.exp(d.members["all_lp.npy"]), np.exp(reference(folder, ids, 3)), atol=1e-6)
    assert (meta["temperature"], meta["top_p"], meta["probabilities"]["temperature"]) == (0.5, 0.9, 1.0)


def flat(draw):
    """Return a draw as bytes by member, so that equality means equal bytes."""
    return {
        name: (v.dtype.str, v.shape, v.tobytes()) if isinstance(v, np.ndarray) else json.dumps(v, sort_keys=True)
        for name, v in draw.members.items()
    }


def test_equal_batches_give_equal_bytes(folder):
    """The same micro-batch gives the same bytes from a freshly loaded model; alone, values agree within rounding."""
    asked = [request(i, PROMPTS[i % 4], k=i) for i in range(8)]
    options = {"path": str(folder), "probabilities": "head_tail", "head": 5, "max_new_tokens": 8}
    first, second = (list(TransformersTeacher(**options).sample(asked)) for _ in range(2))
    assert [flat(d) for d in first] == [flat(d) for d in second]
    teacher = TransformersTeacher(**options)
    for r, d in zip(asked, first, strict=True):
        (alone,) = teacher.sample([r])
        assert alone.members["input_ids.npy"].tolist() == d.members["input_ids.npy"].tolist()
        np.testing.assert_allclose(alone.members["logprob.npy"], d.members["logprob.npy"], atol=1e-5)
        np.testing.assert_allclose(alone.members["top_lp.npy"], d.members["top_lp.npy"], atol=1e-5)


@pytest.mark.parametrize("form", ["counts", "head_tail", "top_k"])
def test_records_can_be_trained_on(folder, form):
    """Members are as declared, and weights of unbiased forms sum to 1 at every token."""
    teacher = TransformersTeacher(path=str(folder), probabilities=form, head=4, max_new_tokens=8)
    specs = teacher.describe().members
    for d in teacher.sample([request(i, p) for i, p in enumerate(PROMPTS)]):
        assert {n for n in d.members if n.endswith(".npy")} == set(specs)
        for name, spec in specs.items():
            assert d.members[name].dtype.name == spec.dtype
            assert all(w in (None, g) for w, g in zip(spec.shape, d.members[name].shape, strict=True))
        _, weights, offsets = sparse_targets(d.members)
        assert len(offsets) == len(d.members["logprob.npy"]) + 1
        totals = np.add.reduceat(weights, offsets[:-1])
        assert (np.abs(totals - 1) < 1e-5).all() if form != "top_k" else (totals < 1).all()


def test_scores_and_foreign_records(folder):
    """`score` is the reference's log-probability; `record` keeps a student's own and adds this model's laws."""
    teacher = TransformersTeacher(path=str(folder), probabilities="dense", max_new_tokens=8)
    asked = [request(i, p) for i, p in enumerate(PROMPTS)]
    said = [np.array(c) for c in ([4, 5, 1], [1], [22, 0, 3, 3, 1], [7, 7])]
    scores = teacher.score(asked, said)
    own = [np.full(len(c), -2.5, np.float32) for c in said]
    draws = list(teacher.record(asked, said, own))
    for prompt, c, score, d in zip(PROMPTS, said, scores, draws, strict=True):
        exact = reference(folder, [*prompt, *c], len(prompt))
        np.testing.assert_allclose(score, exact[np.arange(len(c)), c], atol=1e-5)
        assert score.dtype == np.float32
        np.testing.assert_allclose(np.exp(d.members["all_lp.npy"]), np.exp(exact), atol=1e-6)
        assert (d.members["logprob.npy"] == -2.5).all()
    assert teacher.score([], []) == []
    spec = teacher.vocabulary()
    assert (spec.size, spec.end_ids, spec.max_new_tokens) == (23, (1,), 8)
    assert [p.tolist() for p in teacher.prompts(asked)] == PROMPTS


def test_a_student_is_recorded_without_the_weights(folder):
    """Prompts, vocabulary and plain records read the small files only: a teacher's weights are not loaded for them."""
    teacher = TransformersTeacher(path=str(folder), max_new_tokens=8)
    teacher.vocabulary()
    (draw,) = teacher.record([request(0, [2, 5])], [np.array([4, 1])], [np.zeros(2, np.float32)])
    assert draw.members["input_ids.npy"].tolist() == [2, 5, 4, 1]
    assert teacher._model is None
    assert teacher.load() is teacher._model


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({}, "params['prompt_ids'] is missing, and"),
        ({"prompt_ids": []}, "the prompt's ids are []"),
        ({"prompt_ids": [2, 23]}, "one or more from 0 to 22"),
        ({"prompt_ids": [2] * 57}, "a prompt of 57 tokens leaves no room for 8 more in 64 positions"),
    ],
)
def test_prompts_that_can_not_be_used_fail_alone(folder, params, reason):
    """A bad prompt is a Failure that says why, and its neighbours are answered."""
    teacher = TransformersTeacher(path=str(folder), max_new_tokens=8)
    found = {
        d.seed_id: d for d in teacher.sample([request(0, [2]), dataclasses.replace(request(1, [2]), params=params)])
    }
    assert isinstance(found["s0"], Draw)
    assert isinstance(found["s1"], Failure)
    assert found["s1"].kind == "invalid"
    assert reason in found["s1"].reason


def test_texts_go_through_the_tokenizer(spoken):
    """A text or messages go through the chat template, or plainly; the completion's text leaves the end token out."""
    teacher = TransformersTeacher(path=str(spoken), max_new_tokens=6)
    messages = [{"role": "user", "content": "how are you"}]
    text, chat = teacher.sample([request(0, "how are you"), request(0, messages)])
    # <user> how are you <bot>
    assert text.members["input_ids.npy"][:5].tolist() == [2, 4, 5, 6, 3]
    assert flat(text)["input_ids.npy"] == flat(chat)["input_ids.npy"]
    said = text.members["messages.json"]
    assert said[0] == messages[0]
    assert said[1]["role"] == "assistant"
    assert "<end>" not in said[1]["content"]
    plain = TransformersTeacher(path=str(spoken), max_new_tokens=6, chat=False)
    (d,) = plain.sample([request(0, "how are you")])
    assert d.members["input_ids.npy"][:3].tolist() == [4, 5, 6]
    (failed,) = plain.sample([request(0, messages)])
    assert "no chat template" in failed.reason


def test_a_labeller_beside_the_project_labels(folder, tmp_path):
    """A project's own function labels completions; what it refuses is a Failure; a missing one is named."""
    (tmp_path / "my_labels.py").write_text(
        "def label(request, prompt, completion):\n"
        "    if len(prompt) == 1:\n"
        "        raise ValueError('too short to judge')\n"
        "    return ('even' if int(completion[0]) % 2 == 0 else 'odd'), {'length': len(completion)}\n"
    )
    options = {"path": str(folder), "labeller": "my_labels:label", "outcomes": ["even", "odd"], "max_new_tokens": 4}
    teacher = TransformersTeacher(**options, project_dir=str(tmp_path))
    assert teacher.describe().outcomes == ("even", "odd")
    *draws, failed = teacher.sample([request(i, p) for i, p in enumerate(PROMPTS)])
    for d in draws:
        said = d.members["input_ids.npy"][d.members["meta.json"]["n_prompt"] :]
        assert d.outcome == d.members["meta.json"]["outcome"] == ("odd" if said[0] % 2 else "even")
        assert d.members["meta.json"]["checks"] == {"length": len(said)}
    assert failed.reason == "my_labels:label: too short to judge"
    with pytest.raises(DistdataError, match=r"teacher\.options\.labeller"):
        TransformersTeacher(**{**options, "labeller": "my_labels:lable"}, project_dir=str(tmp_path)).describe()


def markov_requests(n, ks, salt):
    """Return requests over the markov language's seeds, spread over its cells."""
    rows = seeds(n, salt).to_pylist()
    return [
        Request(
            seed_id=r["seed_id"], k=k, rng_seed=draw_rng_seed(salt, r["seed_id"], k), axes={a: r[a] for a in AXES},
            scenario=r["scenario"], params=json.loads(r["params"]),
        )
        for r in rows for k in range(ks)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Return a saved Llama trained for some seconds on 3,600 markov completions."""
    import torch

    ids = [d.members["input_ids.npy"] for d in MarkovTeacher().sample(markov_requests(1800, 2, "train"))]
    x = torch.zeros(len(ids), 36, dtype=torch.int64)
    y = torch.full_like(x, -100)
    for i, row in enumerate(ids):
        x[i, : len(row)] = torch.from_numpy(row)
        y[i, 12 : len(row)] = torch.from_numpy(row[12:])
    model = llama(SIZE, hidden_size=48, intermediate_size=96, initializer_range=0.02).train()
    steps = 160
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps)
    draw = torch.Generator().manual_seed(0)
    for _ in range(steps):
        b = torch.randint(0, len(x), (32,), generator=draw)
        logits = model(x[b]).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y[b][:, 1:].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    path = tmp_path_factory.mktemp("learned") / "m"
    model.eval().save_pretrained(path)
    return path


def test_a_small_model_learns_the_language(learned):
    """Seconds of training bring the divergence from the markov law far below its entropy, and labels beside its own."""
    asked = markov_requests(240, 1, "gate")
    teacher = MarkovTeacher()
    said = [d.members["input_ids.npy"][12:] for d in teacher.sample(asked)]
    student = TransformersTeacher(path=str(learned), labeller=LABELLER, outcomes=OUTCOMES, max_new_tokens=24)
    apart = np.concatenate(teacher.score(asked, said)) - np.concatenate(student.score(asked, said))
    exact = [law(read_prompt(r.params["prompt_ids"])) for r in asked]
    per_token = sum(map(entropy, exact)) / sum(chain.visits().sum() for chain in exact)
    # a model that knows nothing is ln 82 - entropy = 3.5 nats away
    assert apart.mean() < 0.5 * per_token
    valid = [d.members["meta.json"]["checks"]["valid"] for d in student.sample(asked)]
    assert np.mean(valid) > 0.8


def test_a_plan_runs_on_it_end_to_end(tiny, learned, tmp_path):
    """A project whose teacher is this model plans, generates and stores records that the markov labeller judged."""
    from distdata.cycle.purchases import plan_purchase, save_purchase

    root = tmp_path / "p"
    init_project(root, "language")
    file = root / "distdata.toml"
    text = file.read_text()
    options = f'path = "{learned}"\nlabeller = "{LABELLER}"\noutcomes = {json.dumps(OUTCOMES)}\nmax_new_tokens = 24\n'
    text = text.replace('kind = "markov"', 'kind = "transformers"').replace(
        "[teacher.options]\n", f"[teacher.options]\n{options}"
    )
    file.write_text(text)
    project = Project.open(root)
    save_purchase(project, plan_purchase(project, budget="480samples"))
    result = tiny.run(project)
    assert (result.generated, result.failed) == (480, 0)
    with store.read(project.catalog_path) as con:
        rows = con.sql('SELECT outcome, kind, shard, "offset", n_bytes FROM samples_wide').pl()
    assert set(rows["outcome"]) <= set(OUTCOMES)
    assert rows["outcome"].n_unique() >= 4
    row = rows.row(0, named=True)
    with project.storage.open(row["shard"]) as f:
        members = {n: decode_member(n, b) for n, b in read_sample(f, row["offset"], row["n_bytes"]).items()}
    assert members["input_ids.npy"][11] == ID["<assistant>"]
    assert members["meta.json"]["outcome"] == row["outcome"]
    assert len(sparse_targets(members).offsets) == len(members["logprob.npy"]) + 1
