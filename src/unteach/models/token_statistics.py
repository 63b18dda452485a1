"""Per-token statistics from final hidden states: log-probability, log-complement and exact KL.

Hidden states that predict tokens and the output head go in, one number for each token comes out. Of
the (tokens, vocabulary) matrix no more than a budget of bytes is held at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from unteach.losses.statistics import TokenStatistics
from unteach.models.fused_statistics import FusedStatistics
from unteach.models.parts import OutputHead

LOGITS_BUDGET_BYTES = 256 * 2**20

VocabularyLoss = Callable[[Tensor, Tensor | None, Tensor], Tensor]
"""From logits (tokens, vocabulary), the reference's logits (or `None`) and targets (tokens,) to one
number for each token.
"""


def log_probability(logits: Tensor, targets: Tensor) -> Tensor:
    """log p(target), equal to `log_softmax(logits, -1).gather(-1, targets)` without keeping the
    log-softmax.

    Args:
        logits (`Tensor` of shape (tokens, vocabulary))
        targets (`Tensor` of shape (tokens,))
    """
    chosen = logits.gather(-1, targets[:, None]).squeeze(-1)
    return chosen - logits.logsumexp(-1)


def log_complement(logits: Tensor, targets: Tensor) -> Tensor:
    """log(1 - p(target)) as logsumexp over all *other* tokens minus logsumexp over all.

    Equal to `log(1 - softmax(logits).gather(targets))`, but finite, with a gradient bounded by 1,
    where p rounds to 1.
    """
    others = logits.scatter(-1, targets[:, None], float("-inf"))
    return others.logsumexp(-1) - logits.logsumexp(-1)


def forward_kl(reference_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(reference || model) over the whole vocabulary, one value per token, in nats.

    This is the retain term of Yao et al. 2024 (L_nor): sum_v p(v) (log p(v) - log q(v)), in log
    space throughout, with 0 log 0 = 0. Both arguments have shape (tokens, vocabulary).
    """
    log_p = reference_logits.log_softmax(-1)
    log_q = logits.log_softmax(-1)
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)


def token_statistics(
    hidden: Tensor,
    targets: Tensor,
    head: OutputHead,
    *,
    complement: bool = False,
    reference_hidden: Tensor | None = None,
    reference_head: OutputHead | None = None,
    budget_bytes: int = LOGITS_BUDGET_BYTES,
) -> TokenStatistics:
    """Statistics of every predicted token from one pass over its logits.

    Equal, in value and gradient, to `log_probability`, `log_complement` and `forward_kl` of
    `head.logits(hidden)`.

    Args:
        hidden (`Tensor` of shape (tokens, hidden)): the final hidden states that predict `targets`.
        targets (`Tensor` of shape (tokens,)): token ids.
        head (`OutputHead`): the model's output head.
        complement (`bool`, *optional*, defaults to `False`): also give log(1 - p).
        reference_hidden (`Tensor` of shape (n, hidden), *optional*): the reference model's states
            for the last n tokens; `kl` is of them.
        reference_head (`OutputHead`, *optional*): needed with `reference_hidden`.
        budget_bytes (`int`, *optional*, defaults to 256 MiB): most bytes of (tokens, vocabulary)
            matrices.
    """
    if not hidden.shape[0]:
        logp = log_rest = kl = hidden.new_zeros(0)
    else:
        logp, log_rest, kl = FusedStatistics.apply(  # type: ignore[no-untyped-call]
            hidden,
            head.weight,
            head.bias,
            targets,
            reference_hidden,
            head,
            reference_head,
            budget_bytes,
        )
    referenced = reference_hidden is not None
    return TokenStatistics(logp, log_rest if complement else None, kl if referenced else None)


def vocabulary_statistics(
    hidden: Tensor,
    targets: Tensor,
    head: OutputHead,
    loss: VocabularyLoss,
    *,
    reference_hidden: Tensor | None = None,
    reference_head: OutputHead | None = None,
    budget_bytes: int = LOGITS_BUDGET_BYTES,
) -> TokenStatistics:
    """Log-probabilities, and as `extra` a loss of the whole distribution by autograd, chunk by
    chunk.

    Args:
        hidden, targets, head, reference_head, budget_bytes: as in `token_statistics`.
        loss (`VocabularyLoss`): called with each chunk's logits, the reference's logits there, and
            the targets.
        reference_hidden (`Tensor` of shape (tokens, hidden), *optional*): the reference model's
            states, where the loss reads them.
    """

    def measure(
        states: Tensor, wanted: Tensor, reference_states: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        logits, reference_logits = head.logits(states), None
        if reference_states is not None and reference_head is not None:
            with torch.no_grad():
                reference_logits = reference_head.logits(reference_states)
        return log_probability(logits, wanted), loss(logits, reference_logits, wanted)

    rows = max(1, budget_bytes // (head.weight.shape[0] * 4))
    if hidden.shape[0] <= rows:
        logp, extra = measure(hidden, targets, reference_hidden)
        return TokenStatistics(logp, extra=extra)
    pieces = []
    for start in range(0, hidden.shape[0], rows):
        part = slice(start, start + rows)
        referenced = None if reference_hidden is None else reference_hidden[part]
        arguments = hidden[part], targets[part], referenced
        pieces.append(checkpoint(measure, *arguments, use_reentrant=False))
    logp, extra = (torch.cat(values) for values in zip(*pieces, strict=True))
    return TokenStatistics(logp, extra=extra)
