"""Language learners on the markov teacher's own records: losses, masks, what is unbiased and what is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from distdata.catalogs.errors import DistdataError
from distdata.catalogs.hashing import draw_rng_seed
from distdata.catalogs.protocol import Request
from distdata.generate.teachers.markov.language import AXES, ID, SCENARIOS, SIZE, TOPICS, Prompt, prompt_ids
from distdata.generate.teachers.markov.teacher import MarkovTeacher
from distdata.train_min.job import Facts
from distdata.train_min.language_learner import build_seq_kd, build_word_kd, completion_logits

SETTINGS = {"width": 16, "depth": 1, "heads": 2, "vocabulary": SIZE}


def request(i, k=0):
    """Return the i-th request of a mixed list."""
    cells = list(itertools.product(*AXES.values(), SCENARIOS))
    domain, language, length, scenario = cells[i % len(cells)]
    topic = TOPICS[domain][3 if scenario == "rare_topic" else 0]
    tone = "harmful" if scenario == "refusal" else "plain"
    prompt = Prompt(domain, language, length, scenario, topic, tone, "partial", i % 10)
    return Request(
        seed_id=f"s{i}",
        k=k,
        rng_seed=draw_rng_seed("tests", f"s{i}", k),
        axes={"domain": domain, "language": language, "length": length},
        scenario=scenario,
        params={"prompt_ids": prompt_ids(prompt).tolist()},
    )


def records(n, form="counts", **options):
    """Return n samples of the markov teacher as the loader hands them out."""
    draws = MarkovTeacher(probabilities=form, **options).sample([request(i) for i in range(n)])
    return [{**draw.members, "weight": 1.0, "clean": False, "row": i} for i, draw in enumerate(draws)]


def facts(samples, **changed):
    """Return what one pass over these samples finds."""
    none = np.zeros(0)
    return Facts(
        **{
            "n_samples": len(samples), "kind": "logits", "latent": (), "mean": none, "std": none, "n_conditions": 0,
            "cond_mean": none, "cond_std": none, "vocabulary": 0,
            "max_token": max(int(s["input_ids.npy"].max()) for s in samples),
            "max_tokens": max(len(s["input_ids.npy"]) for s in samples),
            "sample": samples[0], "teacher": {},
        }
        | changed
    )  # fmt: skip


def word_kd(samples, **settings):
    """Build a word_kd learner for samples, its weights always the same."""
    import torch

    torch.manual_seed(0)
    return build_word_kd({**SETTINGS, **settings}, facts(samples))


def student_laws(learner, sample):
    """Return the learner's log-probabilities at each completion token of one sample, asked without padding."""
    import torch

    ids, n_prompt = torch.tensor(sample["input_ids.npy"]), sample["meta.json"]["n_prompt"]
    with torch.no_grad():
        logits = learner.network(input_ids=ids[None]).logits[0]
    return logits.double().log_softmax(-1)[n_prompt - 1 : -1].numpy()


def teacher_laws(sample, i):
    """Return the markov law at each completion token of the i-th sample, by closed form."""
    completion = sample["input_ids.npy"][sample["meta.json"]["n_prompt"] :]
    return MarkovTeacher().law_of(request(i)).at(completion)


def test_dense_loss_is_the_divergence_of_the_laws():
    """Each sample's loss is its mean KL over completion tokens, prompt and padding out, to 1e-5 of the closed form."""
    samples = records(6, "dense")
    learner = word_kd(samples)
    losses, logged = learner.loss(learner.collate(samples), None)
    lengths = {len(s["input_ids.npy"]) for s in samples}
    assert len(lengths) > 1, "samples of unequal lengths, or there is no padding to test"
    expected = [
        (p * (np.log(p) - student_laws(learner, s))).sum(1).mean()
        for i, s in enumerate(samples)
        for p in [teacher_laws(s, i)]
    ]
    np.testing.assert_allclose(losses.detach().numpy(), expected, atol=1e-5)
    assert logged["kl"] == pytest.approx(np.mean(expected), abs=1e-5)


def test_counted_loss_is_the_cross_entropy_of_the_counts():
    """From counts each sample's loss is -sum (count / 16) ln q, averaged over its tokens, to 1e-5."""
    samples = records(6, "counts", n_counts=16)
    learner = word_kd(samples)
    losses, _ = learner.loss(learner.collate(samples), None)
    for sample, loss in zip(samples, losses.tolist(), strict=True):
        log_q = student_laws(learner, sample)
        rows = np.repeat(np.arange(len(log_q)), np.diff(sample["lg_off.npy"]))
        total = -(sample["lg_cnt.npy"] / 16 * log_q[rows, sample["lg_ids.npy"]]).sum() / len(log_q)
        assert loss == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize("form", ["counts", "head_tail", "top_k"])
def test_samples_train_towards_the_dense_gradient(form):
    """The gradient averaged over 400 draws of what is stored is that of the whole law, within 4.5 standard errors.

    The first token after one prompt; the output layer's gradient by 12 random projections: over 3 forms a false alarm
    once in 4,000 runs, seeds fixed. ``top_k`` is trained with the drawn token beside it, so that token is drawn anew.
    """
    import torch

    teacher = MarkovTeacher(probabilities=form, n_counts=4, head=3)
    base = request(3)
    completion = teacher.law_of(base).choose(np.array([0.2, 0.5, 0.5, 0.99, 0.5, 0.5, 0.5, 0.5]))[:1]
    rng, laws = np.random.default_rng(1), teacher.law_of(base).at(completion)

    def redrawn(i):
        again = Request(seed_id="s3", k=0, rng_seed=i, axes=base.axes, scenario=base.scenario, params=base.params)
        token = completion if form != "top_k" else rng.choice(SIZE, 1, p=laws[0])
        (draw,) = teacher.record([again], [token], [np.zeros(1, np.float32)])
        return {**draw.members, "weight": 1.0, "clean": False, "row": i}

    samples = [redrawn(i) for i in range(400)]
    learner = word_kd(samples)
    head = learner.network.lm_head.weight
    directions = torch.tensor(rng.normal(size=(12, head.numel())), dtype=torch.float32)

    def projected(learner_, batch):
        loss, _ = learner_.loss(batch, None)
        return torch.stack([
            directions @ torch.autograd.grad(one, learner_.network.lm_head.weight, retain_graph=True)[0].flatten()
            for one in loss
        ]).double().numpy()  # fmt: skip

    found = projected(learner, learner.collate(samples))
    whole = MarkovTeacher(probabilities="dense")
    (draw,) = whole.record([base], [completion], [np.zeros(1, np.float32)])
    one = [{**draw.members, "weight": 1.0, "clean": False, "row": 0}]
    dense = projected(word_kd(one), word_kd(one).collate(one))[0]
    error = found.std(0, ddof=1) / np.sqrt(len(found))
    assert (error > 0).all()
    assert (np.abs(found.mean(0) - dense) < 4.5 * error).all()


def test_logged_kl_from_counts_is_unbiased():
    """The KL logged from counts averages to the exact one of the same student, within 4 standard errors, 600 samples.

    False alarm once in 15,000 runs; the seeds are fixed.
    """
    samples = records(600, "counts", n_counts=4)
    learner = word_kd(samples)
    exact = np.array([
        (p * (np.log(p) - student_laws(learner, s))).sum(1).mean()
        for i, s in enumerate(samples)
        for p in [teacher_laws(s, i)]
    ])  # fmt: skip
    logged = np.array([learner.loss(learner.collate([s]), None)[1]["kl"] for s in samples])
    difference = logged - exact
    assert abs(difference.mean()) < 4 * difference.std(ddof=1) / np.sqrt(len(samples))


def test_padding_and_company_move_nothing():
    """A sample's loss is the same alone and beside longer ones, to 1e-6, in every form."""
    for form in ("counts", "head_tail", "dense"):
        samples = records(8, form)
        learner = word_kd(samples)
        together = learner.loss(learner.collate(samples), None)[0].tolist()
        alone = [learner.loss(learner.collate([s]), None)[0].item() for s in samples]
        np.testing.assert_allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize("form", ["counts", "dense"])
def test_clean_samples_give_their_own_cross_entropy(form):
    """A clean sample of the batch needs no probabilities and its loss is that of seq_kd; teacher samples' stay."""
    import torch

    samples = records(4, form)
    clean = {k: v for k, v in samples[1].items() if k in ("meta.json", "input_ids.npy", "weight", "row")}
    mixed = [samples[0], {**clean, "clean": True}, *samples[2:]]
    learner = word_kd(samples)
    before = learner.loss(learner.collate(samples), None)[0].tolist()
    after = learner.loss(learner.collate(mixed), None)[0].tolist()
    torch.manual_seed(0)
    plain = build_seq_kd(SETTINGS, facts(samples))
    completions = plain.loss(plain.collate(mixed), None)[0].tolist()
    assert after[1] == pytest.approx(completions[1], abs=1e-6)
    assert [after[i] for i in (0, 2, 3)] == pytest.approx([before[i] for i in (0, 2, 3)], abs=1e-6)


def test_sequence_loss_is_the_completions_likelihood():
    """seq_kd's loss is -ln q of the completion over its length, by the network asked without padding, to 1e-5."""
    samples = records(5, "none")
    learner = build_seq_kd(SETTINGS, facts(samples))
    losses, logged = learner.loss(learner.collate(samples), None)
    for sample, loss in zip(samples, losses.tolist(), strict=True):
        completion = sample["input_ids.npy"][sample["meta.json"]["n_prompt"] :]
        log_q = student_laws(learner, sample)
        assert loss == pytest.approx(-log_q[np.arange(len(completion)), completion].mean(), abs=1e-5)
    assert logged == {"cross_entropy": pytest.approx(float(losses.detach().mean()))}


def test_a_live_teacher_gives_dense_laws(tmp_path):
    """`live` asks a transformers model for its laws: the loss is the KL to it, and reverse KL is allowed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    teacher = LlamaForCausalLM(LlamaConfig(vocab_size=SIZE, **size)).eval()
    teacher.save_pretrained(tmp_path)
    samples = records(3, "none")
    for loss in ("forward", "reverse"):
        learner = word_kd(samples, live=str(tmp_path), loss=loss, vocabulary=0)
        assert learner.members == ("meta.json", "input_ids.npy")
        losses, _ = learner.loss(learner.collate(samples), None)
        for sample, value in zip(samples, losses.tolist(), strict=True):
            log_q = student_laws(learner, sample)
            ids, n_prompt = torch.tensor(sample["input_ids.npy"]), sample["meta.json"]["n_prompt"]
            with torch.no_grad():
                log_p = teacher(input_ids=ids[None]).logits[0].double().log_softmax(-1)[n_prompt - 1 : -1].numpy()
            a, b = (log_p, log_q) if loss == "forward" else (log_q, log_p)
            assert value == pytest.approx((np.exp(a) * (a - b)).sum(1).mean(), abs=1e-5)
    with pytest.raises(DistdataError, match=r"holds no config\.json"):
        word_kd(samples, live=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("form", "settings", "says"),
    [
        ("counts", {"loss": "reverse"}, "loss = 'reverse' needs all .* the snapshot holds sampled counts"),
        ("head_tail", {"loss": "jsd"}, "an exact head and a sampled tail"),
        ("top_k", {"loss": "jsd"}, "the largest probabilities and the drawn token"),
        ("counts", {"temperature": 2.0}, r"temperature = 2 needs all .* drawn at temperature 1:"),
        ("none", {}, "recipe seq_kd"),
        ("counts", {"probabilities": "dense"}, r"all_lp\.npy, which the samples don't hold"),
        ("counts", {"vocabulary": 0}, "don't say how many token ids there are"),
        ("counts", {"vocabulary": 10}, "a vocabulary of 10 ends before it"),
        ("dense", {"vocabulary": SIZE + 1}, f"the teacher's laws are over {SIZE} ids"),
        ("counts", {"width": 20, "heads": 4}, "a multiple of twice the heads"),
    ],
)
def test_what_would_be_wrong_is_refused(form, settings, says):
    """Losses that need whole laws, other temperatures, sizes and vocabularies that don't fit: errors at the start."""
    with pytest.raises(DistdataError, match=says):
        word_kd(records(4, form), **settings)


def test_dense_laws_allow_every_loss():
    """Reverse KL, JSD and temperatures train from whole laws; reverse KL is refused where these hold zeros."""
    samples = records(2, "dense")
    for settings in ({"loss": "reverse"}, {"loss": "jsd", "beta": 0.3}, {"temperature": 3.0}):
        losses, _ = (learner := word_kd(samples, **settings)).loss(learner.collate(samples), None)
        assert (losses > 0).all()
    zeros = [{**s, "all_lp.npy": np.where(s["all_lp.npy"] < -5, np.float32(-1e4), s["all_lp.npy"])} for s in samples]
    for settings in ({"loss": "reverse"}, {"loss": "jsd", "beta": 1.0}):
        with pytest.raises(DistdataError, match=f"'{settings['loss']}'.* is infinite"):
            word_kd(zeros, **settings)
        learner = word_kd(samples, **settings)  # the first sample has no zero, a later one has
        with pytest.raises(DistdataError, match="is infinite"):
            learner.collate([samples[0], zeros[1]])
    losses, _ = (learner := word_kd(zeros)).loss(learner.collate(zeros), None)
    assert losses.isfinite().all()


def test_description_builds_the_network_again():
    """`describe` is JSON-able and gives a network of the same shapes, on which the same weights give the same bits."""
    import json

    import torch

    from distdata.train_min.language_learner import language_network

    samples = records(3)
    learner = word_kd(samples)
    again = language_network(json.loads(json.dumps(learner.describe())))
    again.load_state_dict(learner.network.state_dict())
    batch = learner.collate(samples)
    assert torch.equal(completion_logits(again, batch), completion_logits(learner.network, batch))
    assert learner.describe()["vocabulary"] == SIZE > max(ID.values())
