"""Token losses against TRL, against hand-worked two-point laws, and what each of them makes of two modes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.special import rel_entr

from distdata.catalogs.errors import DistdataError
from distdata.train_min.token_losses import (
    checked_loss,
    cross_entropy,
    dense_loss,
    forward_kl,
    generalised_jsd,
    mean_over_tokens,
    refuse_from_samples,
    reverse_kl,
    sparse_cross_entropy,
)


def laws(seed, shape=(3, 5), n_ids=11, spread=3.0):
    """Return student logits and teacher log-probabilities, float64, of random laws."""
    import torch

    rng = np.random.default_rng(seed)
    student, teacher = rng.normal(0, spread, (2, *shape, n_ids))
    return torch.tensor(student), torch.tensor(teacher).log_softmax(-1)


def softmax(x):
    """Return the law of logits, independently of torch."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.fixture
def trl_jsd(monkeypatch):
    """TRL's own generalised JSD."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")  # it warns that its place may move
    from trl.experimental.gkd import GKDTrainer

    return GKDTrainer.generalized_jsd_loss


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_equal_to_trl(trl_jsd, beta, temperature):
    """JSD of any beta equals TRL's to 1e-6, value and gradient; beta 0 and 1 are forward and reverse KL.

    TRL leaves the T^2 to its caller.
    """
    import torch

    student, teacher = laws(0)
    ours_in, trl_in = student.clone().requires_grad_(), student.clone().requires_grad_()
    ours = generalised_jsd(ours_in, teacher, beta, temperature)
    theirs = temperature**2 * trl_jsd(trl_in, teacher, beta=beta, temperature=temperature, reduction="none").sum(-1)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)
    ours.sum().backward()
    theirs.sum().backward()
    assert torch.allclose(ours_in.grad, trl_in.grad, rtol=0, atol=1e-6)
    named = {0.0: forward_kl, 1.0: reverse_kl}
    if beta in named:
        assert torch.equal(ours, named[beta](student, teacher, temperature))


def test_masked_mean_is_trls(trl_jsd):
    """One sample's mean over its unmasked positions is TRL's over its labels that are not -100."""
    import torch

    student, teacher = laws(1, shape=(1, 6))
    labels = torch.tensor([[-100, -100, 4, 1, 7, -100]])
    ours = mean_over_tokens(generalised_jsd(student, teacher, 0.3), labels != -100)
    assert ours.item() == pytest.approx(trl_jsd(student, teacher, labels=labels, beta=0.3).item(), abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_equal_to_scipy(temperature):
    """Every divergence equals its textbook sum (scipy's rel_entr in float64) times T^2 to 1e-6."""
    student, teacher = laws(2)
    q, p = softmax(student.numpy() / temperature), softmax(teacher.numpy() / temperature)
    m = 0.25 * p + 0.75 * q
    expected = {
        forward_kl: rel_entr(p, q).sum(-1),
        reverse_kl: rel_entr(q, p).sum(-1),
        lambda s, t, T: generalised_jsd(s, t, 0.25, T): (0.25 * rel_entr(p, m) + 0.75 * rel_entr(q, m)).sum(-1),
    }
    for loss, value in expected.items():
        np.testing.assert_allclose(loss(student, teacher, temperature), temperature**2 * value, rtol=0, atol=1e-6)


def test_two_points_by_hand():
    """Laws (1/2, 1/2) and (3/4, 1/4) give the values that one works out on paper."""
    import torch

    teacher, student = torch.tensor([0.5, 0.5]).double().log(), torch.tensor([0.75, 0.25]).double().log()
    # KL(p || q) = (ln(2/3) + ln 2) / 2 = ln(4/3) / 2
    assert forward_kl(student, teacher).item() == pytest.approx(math.log(4 / 3) / 2, abs=1e-12)
    # KL(q || p) = 3/4 ln(3/2) + 1/4 ln(1/2) = 3/4 ln 3 - ln 2
    assert reverse_kl(student, teacher).item() == pytest.approx(0.75 * math.log(3) - math.log(2), abs=1e-12)
    # m = (5/8, 3/8): KL(p || m) = (ln(4/5) + ln(4/3)) / 2, KL(q || m) = 3/4 ln(6/5) + 1/4 ln(2/3)
    halves = (math.log(4 / 5) + math.log(4 / 3)) / 2 + 0.75 * math.log(6 / 5) + 0.25 * math.log(2 / 3)
    assert generalised_jsd(student, teacher, 0.5).item() == pytest.approx(halves / 2, abs=1e-12)
    # at T = 2 the student's law is (sqrt 3, 1) / (1 + sqrt 3), the teacher's stays: 4 KL
    root = math.sqrt(3)
    flat = math.log(0.5 * (1 + root) / root) / 2 + math.log(0.5 * (1 + root)) / 2
    assert forward_kl(student, teacher, 2.0).item() == pytest.approx(4 * flat, abs=1e-12)
    # -ln(3/4)
    assert cross_entropy(student, torch.tensor(0)).item() == pytest.approx(math.log(4 / 3), abs=1e-12)


def test_opposite_points():
    """Laws on different ids have forward KL and JSD that are finite numbers, with finite gradients."""
    import torch

    teacher = torch.tensor([1.0, 0.0, 0.0]).double().log()  # holds -inf
    student = torch.tensor([-40.0, 0.0, -40.0], dtype=torch.float64, requires_grad=True)
    # -ln q_0 = 40 up to e^-40; and the JSD of laws without common ground is ln 2
    forward, jsd = forward_kl(student, teacher), generalised_jsd(student, teacher, 0.5)
    assert forward.item() == pytest.approx(40.0, abs=1e-9)
    assert jsd.item() == pytest.approx(math.log(2), abs=1e-9)
    assert reverse_kl(student, teacher).item() == math.inf
    (forward + jsd).backward()
    assert torch.isfinite(student.grad).all()


def test_temperature_keeps_the_gradient():
    """At a high temperature T^2 KL has the gradient of half the squared distance of centred logits, as Hinton shows.

    T^2 KL -> sum_v ((z_v - mean z) - (t_v - mean t))^2 / (2 V), with an error of O(1/T).
    """
    import torch

    student, teacher = laws(3, shape=(), n_ids=4, spread=1.0)
    student.requires_grad_()
    forward_kl(student, teacher, 1e4).backward()
    z, t = student.detach(), teacher
    limit = ((z - z.mean()) - (t - t.mean())) / 4
    assert torch.allclose(student.grad, limit, rtol=0, atol=1e-3)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 3.0])
def test_sparse_from_whole_laws_is_the_divergence(temperature):
    """With the tempered law itself as weights the sparse loss is the forward KL plus T^2 times the law's entropy."""
    import torch

    student, teacher = laws(9)
    p = softmax(teacher.numpy() / temperature)
    ids = torch.arange(p.shape[-1]).expand(p.shape)
    sparse = sparse_cross_entropy(student, ids, torch.tensor(p), temperature)
    entropy = -(p * np.log(p)).sum(-1)
    expected = forward_kl(student, teacher, temperature) + temperature**2 * torch.tensor(entropy)
    assert torch.allclose(sparse, expected, rtol=0, atol=1e-6)


def multinomials(n, n_ids):
    """Yield every vector of counts that n draws can give, with the number of orders that give it."""
    for counts in itertools.product(range(n + 1), repeat=n_ids):
        if sum(counts) == n:
            yield counts, math.factorial(n) / math.prod(map(math.factorial, counts))


def sparse_gradient(student, ids, weights):
    """Return the gradient of the sparse cross-entropy by the student's logits."""
    import torch

    leaf = student.clone().requires_grad_()
    sparse_cross_entropy(leaf, torch.tensor(ids), torch.tensor(weights, dtype=torch.float64)).backward()
    return leaf.grad


def dense_gradient(student, teacher):
    """Return the gradient of the forward KL by the student's logits."""
    leaf = student.clone().requires_grad_()
    forward_kl(leaf, teacher).backward()
    return leaf.grad


def test_counts_gradient_is_unbiased():
    """Over all outcomes of N = 2 draws the counts' gradient averages to the dense one to 1e-6, and so does the value.

    Five ids, every multinomial outcome enumerated with its probability, no simulation. The value is KL + H(p).
    """
    import torch

    student, teacher = laws(4, shape=(), n_ids=5)
    p = teacher.exp().numpy()
    mean, value, total = torch.zeros(5, dtype=torch.float64), 0.0, 0.0
    for counts, orders in multinomials(2, 5):
        chance = orders * float(np.prod(p ** np.array(counts)))
        weights = torch.tensor(counts).double() / 2
        mean += chance * sparse_gradient(student, range(5), list(weights))
        value += chance * sparse_cross_entropy(student, torch.arange(5), weights).item()
        total += chance
    assert total == pytest.approx(1.0, abs=1e-12)
    assert torch.allclose(mean, dense_gradient(student, teacher), rtol=0, atol=1e-6)
    entropy = -float((p * np.log(p)).sum())
    assert value == pytest.approx(forward_kl(student, teacher).item() + entropy, abs=1e-6)


def test_head_and_tail_gradient_is_unbiased():
    """An exact head of 2 and 2 draws of the renormalised tail average to the dense gradient to 1e-6."""
    import torch

    student, teacher = laws(5, shape=(), n_ids=5)
    p = teacher.exp().numpy()
    order = np.argsort(-p)
    head, tail = order[:2], order[2:]
    residual = p[tail].sum()
    mean = torch.zeros(5, dtype=torch.float64)
    for counts, orders in multinomials(2, 3):
        chance = orders * float(np.prod((p[tail] / residual) ** np.array(counts)))
        weights = [*p[head], *(np.array(counts) * residual / 2)]
        mean += chance * sparse_gradient(student, [*head, *tail], weights)
    assert torch.allclose(mean, dense_gradient(student, teacher), rtol=0, atol=1e-6)


def test_head_and_drawn_token_gradient_is_unbiased():
    """An exact head and the drawn token, with weight 1 where it lies outside, average to the dense gradient to 1e-6."""
    import torch

    student, teacher = laws(6, shape=(), n_ids=5)
    p = teacher.exp().numpy()
    head = np.argsort(-p)[:2]
    mean = torch.zeros(5, dtype=torch.float64)
    for drawn in range(5):
        weights = [*p[head], 0.0 if drawn in head else 1.0]
        mean += p[drawn] * sparse_gradient(student, [*head, drawn], weights)
    assert torch.allclose(mean, dense_gradient(student, teacher), rtol=0, atol=1e-6)


@pytest.mark.parametrize("renormalised", [False, True])
def test_top_k_gradient_is_biased(renormalised):
    """The 2 largest of 5 probabilities give another gradient, renormalised or not: it is not zero where q = p.

    By hand, with head mass s: the gradient is (s q - w), so at q = p it is (s - 1) p on the head (or p - p / s when
    renormalised) and s p (or p) on the tail: the tail is pushed to nothing.
    """
    import torch

    _, teacher = laws(7, shape=(), n_ids=5, spread=1.0)
    p = teacher.exp()
    head = p.argsort(descending=True)[:2]
    s = float(p[head].sum())
    weights = p[head] / s if renormalised else p[head]
    gradient = sparse_gradient(teacher, head.tolist(), weights.tolist())
    mass = 1.0 if renormalised else s
    expected = mass * p
    expected[head] -= weights
    assert torch.allclose(gradient, expected, rtol=0, atol=1e-12)
    assert float(gradient.abs().max()) > 0.05
    assert torch.allclose(dense_gradient(teacher, teacher), torch.zeros(5).double(), atol=1e-12)


def gaussian_fit(loss, start):
    """Fit one discretised Gaussian (mean, log width) to two equal modes at 10 and 30 of 41 ids by `loss`."""
    import torch

    ids = torch.arange(41, dtype=torch.float64)
    modes = [(-((ids - c) ** 2) / (2 * 2.0**2)) for c in (10.0, 30.0)]
    teacher = torch.logaddexp(*modes).log_softmax(-1)
    parameters = torch.tensor([start, math.log(4.0)], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        value = loss(-((ids - parameters[0]) ** 2) / (2 * parameters[1].exp() ** 2), teacher)
        value.backward()
        return value

    optimiser.step(closure)
    mean, log_width = parameters.detach().tolist()
    return mean, math.exp(log_width), teacher.exp()


def test_forward_covers_and_reverse_seeks():
    """A one-mode student covers both modes under the forward KL and sits on one under the reverse KL.

    Forward: moments match. The teacher's mean is 20 and its variance 100 + 4 (within +-0.05: the ids end 5 widths from
    a mode); the fitted law, cut at the ends of the ids, must have these moments (exponential family). Reverse: a copy
    of one mode, mean 10, width 2, whose KL is ln 2: the other mode's half is never visited (up to e^-12).
    """
    import torch

    ids = torch.arange(41, dtype=torch.float64)
    mean, width, p = gaussian_fit(forward_kl, 12.0)
    q = (-((ids - mean) ** 2) / (2 * width**2)).softmax(-1)
    for law in (p, q):
        assert float((law * ids).sum()) == pytest.approx(20.0, abs=1e-3)
        assert float((law * (ids - 20) ** 2).sum()) == pytest.approx(104.0, abs=0.05)
    assert float(q[15:26].sum()) > 0.3 > 0.05 > float(p[15:26].sum())  # the ghost between the modes
    mean, width, p = gaussian_fit(reverse_kl, 12.0)
    assert (mean, width) == (pytest.approx(10.0, abs=0.01), pytest.approx(2.0, abs=0.01))
    kl = reverse_kl(-((ids - mean) ** 2) / (2 * width**2), p.log())
    assert float(kl) == pytest.approx(math.log(2), abs=1e-3)


def test_mask_keeps_positions_out():
    """What is masked moves neither value nor gradient, even when it is infinite; an empty sample gives 0."""
    import torch

    per_token = torch.tensor([[1.0, 3.0, math.inf], [math.nan, 5.0, 1.0], [7.0, 7.0, 7.0]], requires_grad=True)
    mask = torch.tensor([[True, True, False], [False, True, False], [False, False, False]])
    means = mean_over_tokens(per_token, mask)
    assert means.tolist() == [2.0, 5.0, 0.0]
    means.sum().backward()
    assert per_token.grad.tolist() == [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_settings_name_the_loss():
    """`dense_loss` gives what its name says, with beta and temperature."""
    import torch

    student, teacher = laws(8)
    named = {
        "forward": forward_kl(student, teacher, 2.0),
        "reverse": reverse_kl(student, teacher, 2.0),
        "jsd": generalised_jsd(student, teacher, 0.2, 2.0),
    }
    for name, value in named.items():
        assert torch.equal(dense_loss({"loss": name, "beta": 0.2, "temperature": 2.0})(student, teacher), value)
    assert checked_loss({}) == ("forward", 0.5, 1.0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"loss": "revers"}, "Did you mean 'reverse'"),
        ({"beta": 1.5}, "beta is 1.5"),
        ({"beta": float("nan")}, "beta is nan"),
        ({"temperature": 0}, "temperature is 0"),
        ({"temperature": True}, "temperature is True"),
    ],
)
def test_wrong_settings_are_named(settings, says):
    """A loss that there is not, and numbers out of range, are errors that name the setting and its value."""
    with pytest.raises(DistdataError, match=says):
        checked_loss(settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"loss": "reverse"}, "loss = 'reverse' needs all of the teacher's probabilities"),
        ({"loss": "jsd", "beta": 0.5}, "loss = 'jsd' needs all"),
        ({"temperature": 2.0}, "temperature = 2 needs all"),
    ],
)
def test_samples_refuse_what_they_cannot_do(settings, says):
    """Reverse KL, JSD and another temperature are refused from samples; the forward KL at theirs is not."""
    with pytest.raises(DistdataError, match=says):
        refuse_from_samples(settings, 1.0, "sampled counts")
    refuse_from_samples({"loss": "forward", "temperature": 1.0}, 1.0, "sampled counts")
    refuse_from_samples({"loss": "forward", "temperature": 2.0}, 2.0, "sampled counts")
