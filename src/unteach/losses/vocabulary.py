"""Losses of single tokens that read the whole distribution: from logits (tokens, vocabulary) to one
number for each token.

`models.token_statistics.vocabulary_statistics` calls them chunk by chunk, so that a (tokens,
vocabulary) matrix is never in memory as a whole.
"""

from __future__ import annotations

from torch import Tensor


def _cross_entropy(wanted: Tensor, logits: Tensor) -> Tensor:
    """-sum_v q(v) log p(v) with q = softmax(wanted), p = softmax(logits); q is held constant. Shape
    (tokens,).
    """
    return -(wanted.detach().softmax(-1) * logits.log_softmax(-1)).sum(-1)


def adjusted_self_distillation(
    logits: Tensor, reference_logits: Tensor | None, targets: Tensor, *, gamma: float
) -> Tensor:
    """-sum_v q(v) log p(v) with q = softmax(reference logits - gamma at y) (UNDIAL; Dong et al.
    2025, arXiv 2402.10052).

    Self-distillation: the target is the reference with the token to forget pushed down, fixed from
    the start, so that training ends there.
    """
    if reference_logits is None:
        raise ValueError("UNDIAL needs the reference's distribution on the completions to forget")
    penalty = reference_logits.new_full((len(targets), 1), -gamma)
    return _cross_entropy(
        reference_logits.scatter_add(-1, targets[:, None], penalty).to(logits.dtype), logits
    )


def cross_entropy_unlearning(
    logits: Tensor, reference_logits: Tensor | None, targets: Tensor
) -> Tensor:
    """-sum_v q(v) log p(v) with q the model's own softmax without y, held constant (CE-U; Yang
    2025, arXiv 2503.01224).

    The gradient by the logit of y is p(y), and the other tokens share it in proportion to their
    probabilities: the one of unlikelihood, -log(1 - p(y)), exactly. The values differ: this one
    holds the entropy of the other tokens too.
    """
    return _cross_entropy(logits.scatter(-1, targets[:, None], float("-inf")), logits)


def logit_margin_flattening(
    logits: Tensor, reference_logits: Tensor | None, targets: Tensor
) -> Tensor:
    """(max_v z(v) - mean_v z(v))^2 over the logits z (PDU; Entesari et al. 2025, arXiv 2506.05314).

    Zero where the distribution is uniform. No softmax, so that its gradient does not vanish where
    the model is sure.
    """
    return (logits.max(-1).values - logits.mean(-1)).square()
