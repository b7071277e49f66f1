"""Losses between two laws over tokens, one value per position in nats: each is headed by its equation and paper.

`p` is the teacher's law, `q` the student's, both over V ids. The teacher comes as log-probabilities (dense) or as a few
ids with weights whose expectation is `p` (sparse); the student as logits. A temperature T flattens both laws to
p^(1/T) / sum p^(1/T), and losses are multiplied by T^2, which keeps the size of their gradients (Hinton et al. 2015,
arXiv:1503.02531, section 2.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..catalogs.errors import DistdataError, nearest

if TYPE_CHECKING:
    from torch import Tensor

LOSSES = ("forward", "reverse", "jsd")
"""What a student may be trained by: KL(p || q), KL(q || p), or the generalised Jensen-Shannon divergence."""


def forward_kl(student_logits: Tensor, teacher_log_probs: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(p || q) = sum_v p_v (ln p_v - ln q_v): covers every mode of p.

    Hinton et al. 2015 (arXiv:1503.02531); at every token of a sequence Kim & Rush 2016 (arXiv:1606.07947, eq. 4).
    [..., V] -> [...]. A teacher's probability of zero adds nothing.
    """
    log_q, log_p = _tempered(student_logits, teacher_log_probs, temperature)
    return temperature**2 * _expected_log_ratio(log_p, log_q)


def reverse_kl(student_logits: Tensor, teacher_log_probs: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(q || p) = sum_v q_v (ln q_v - ln p_v): seeks one mode of p.

    The token-level objective of MiniLLM (Gu et al. 2023, arXiv:2306.08543). [..., V] -> [...]. Infinite where the
    teacher's probability is zero, as every q is positive.
    """
    log_q, log_p = _tempered(student_logits, teacher_log_probs, temperature)
    return temperature**2 * (log_q.exp() * (log_q - log_p)).sum(-1)


def generalised_jsd(
    student_logits: Tensor, teacher_log_probs: Tensor, beta: float = 0.5, temperature: float = 1.0
) -> Tensor:
    """JSD_beta(p, q) = beta KL(p || m) + (1 - beta) KL(q || m), with the mixture m = beta p + (1 - beta) q.

    GKD (Agarwal et al. 2023, arXiv:2306.13649, eq. 1). [..., V] -> [...]. As there, beta 0 and 1 stand for the limits
    of JSD / beta and JSD / (1 - beta): the forward and the reverse KL. For all between it is at most T^2 ln 2.
    """
    if beta == 0.0:
        return forward_kl(student_logits, teacher_log_probs, temperature)
    if beta == 1.0:
        return reverse_kl(student_logits, teacher_log_probs, temperature)
    log_q, log_p = _tempered(student_logits, teacher_log_probs, temperature)
    log_m = (log_p + math.log(beta)).logaddexp(log_q + math.log1p(-beta))
    of_teacher, of_student = _expected_log_ratio(log_p, log_m), (log_q.exp() * (log_q - log_m)).sum(-1)
    return temperature**2 * (beta * of_teacher + (1 - beta) * of_student)


def sparse_cross_entropy(student_logits: Tensor, ids: Tensor, weights: Tensor, temperature: float = 1.0) -> Tensor:
    """CE = -sum_e w_e ln q(id_e), whose expectation is sum_v p_v (-ln q_v) = KL(p || q) + H(p) when E[w] = p.

    Sparse logit sampling (Anshumann et al. 2025, arXiv:2503.16870): with w = count / N of N ids drawn from p, or an
    exact head and a sampled tail, value and gradient are unbiased; H(p) does not move with the student. With the
    largest k probabilities alone as weights, E[w] is not p and the gradient is biased.

    student_logits [..., V], ids int64 and weights [..., E] -> [...]. Weights of zero pad. `temperature` is the one at
    which the ids were drawn.
    """
    log_q = (student_logits / temperature).log_softmax(-1)
    return -(temperature**2) * (weights * log_q.gather(-1, ids)).sum(-1)


def cross_entropy(student_logits: Tensor, tokens: Tensor) -> Tensor:
    """-ln q(token): plain maximum likelihood, and on a teacher's completions sequence-level distillation.

    Kim & Rush 2016 (arXiv:1606.07947, section 3.2). [..., V] and int64 [...] -> [...].
    """
    return -student_logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def mean_over_tokens(per_token: Tensor, mask: Tensor) -> Tensor:
    """Average the positions of each sample that `mask` (bool) names, [B, T] -> [B], nats per token.

    What the mask leaves out has no gradient, whatever its value; a sample without positions gives 0.
    """
    kept = per_token.where(mask, 0.0)
    return kept.sum(-1) / mask.sum(-1).clamp(min=1)


def dense_loss(settings: Mapping[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss of (student logits, teacher log-probabilities) that `settings` name: loss, beta, temperature.

    Raises DistdataError for a loss, beta or temperature that there is not.
    """
    name, beta, temperature = checked_loss(settings)
    if name == "forward":
        return lambda logits, log_p: forward_kl(logits, log_p, temperature)
    if name == "reverse":
        return lambda logits, log_p: reverse_kl(logits, log_p, temperature)
    return lambda logits, log_p: generalised_jsd(logits, log_p, beta, temperature)


def checked_loss(settings: Mapping[str, Any]) -> tuple[str, float, float]:
    """Return loss, beta and temperature of `settings` (defaults forward, 0.5, 1), or raise DistdataError."""
    name, beta = settings.get("loss", "forward"), settings.get("beta", 0.5)
    temperature = settings.get("temperature", 1.0)
    if name not in LOSSES:
        raise DistdataError(f"loss is {name!r}; it can be {', '.join(LOSSES)}.{nearest(str(name), LOSSES)}")
    if not (_is_number(beta) and 0.0 <= beta <= 1.0):
        raise DistdataError(f"beta is {beta!r}; it weighs teacher against student in the mixture: 0 to 1, default 0.5.")
    if not (_is_number(temperature) and temperature > 0.0):
        raise DistdataError(f"temperature is {temperature!r}; it must be a positive number, default 1.")
    return str(name), float(beta), float(temperature)


def refuse_from_samples(settings: Mapping[str, Any], sampled_at: float, source: str) -> None:
    """Refuse what sampled ids can't train without bias, by name: only the forward KL at the sampling temperature can.

    Reverse KL and JSD are no linear function of p, and neither is p^(1/T): the expectation over samples of such a loss
    is not the loss of the expectation.

    Raises DistdataError.
    """
    name, _, temperature = checked_loss(settings)
    way_out = "Generate with dense probabilities, or set `live` to the teacher's folder."
    if name != "forward":
        raise DistdataError(
            f"loss = {name!r} needs all of the teacher's probabilities, and the snapshot holds {source}: from these "
            f"it would be biased by an unknown amount. {way_out} From what is stored, loss = 'forward' is exact on "
            "average."
        )
    if not math.isclose(temperature, sampled_at, rel_tol=1e-6):
        raise DistdataError(
            f"temperature = {temperature:g} needs all of the teacher's probabilities, and the snapshot holds {source}, "
            f"drawn at temperature {sampled_at:g}: another one can't be had from these without bias. {way_out} Or set "
            f"temperature = {sampled_at:g}."
        )


def _tempered(student_logits: Tensor, teacher_log_probs: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return (student_logits / temperature).log_softmax(-1), (teacher_log_probs / temperature).log_softmax(-1)


def _expected_log_ratio(log_p: Tensor, log_r: Tensor) -> Tensor:
    """Return sum_v p_v (ln p_v - ln r_v), where p_v = 0 adds nothing."""
    p = log_p.exp()
    return (p * (log_p - log_r).where(p > 0, 0.0)).sum(-1)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
