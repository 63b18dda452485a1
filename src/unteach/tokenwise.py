"""Per-token statistics from final hidden states: log-probability, log-complement and exact KL.

Nothing here knows a model. A hidden state that predicts a token goes in with the output head, one number per token
comes out. The (tokens, vocabulary) matrix is made in chunks that fit a budget and is never kept whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LOGITS_BUDGET_BYTES = 256 * 2**20

VocabularyLoss = Callable[[Tensor, Tensor | None, Tensor], Tensor]
"""From logits (tokens, vocabulary), the reference's logits (or `None`) and targets (tokens,) to one number for each token."""


@dataclass(frozen=True)
class OutputHead:
    """The map from final hidden states to logits: `softcap * tanh(scale * (h W^T + b) / softcap)`.

    Args:
        weight (`Tensor` of shape (vocabulary, hidden)): output embedding.
        bias (`Tensor` of shape (vocabulary,), *optional*): output bias.
        scale (`float`, *optional*, defaults to 1.0): factor on the logits (Cohere's, Granite's).
        softcap (`float`, *optional*): bound of the logits (Gemma's).
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of shape (tokens, vocabulary) for hidden states (tokens, hidden), in float32 or wider."""
        weight = self.weight
        if not torch.is_autocast_enabled(hidden.device.type):
            hidden = hidden.to(weight.dtype)
        logits = torch.nn.functional.linear(hidden, weight, self.bias)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits

    def frozen(self) -> OutputHead:
        """A copy that later training steps do not change."""
        bias = None if self.bias is None else self.bias.detach().clone()
        return OutputHead(self.weight.detach().clone(), bias, self.scale, self.softcap)


@dataclass(frozen=True)
class TokenStatistics:
    """What the objectives need to know about each predicted token; every field has shape (tokens,).

    Args:
        logp: log p(y), in nats.
        log_complement: log(1 - p(y)), exact also where p(y) rounds to 1; `None` where nobody asked for it.
        kl: KL(reference || model) at this position in nats; `None` where there is no reference.
        extra: a loss of the whole distribution or of inner states; `None` where nobody asked for one.
        reference_logp: the reference's log p(y), in nats; `None` where nobody asked for it.
    """

    logp: Tensor
    log_complement: Tensor | None = None
    kl: Tensor | None = None
    extra: Tensor | None = None
    reference_logp: Tensor | None = None


def log_probability(logits: Tensor, targets: Tensor) -> Tensor:
    """log p(target), equal to `log_softmax(logits, -1).gather(-1, targets)` without keeping the log-softmax.

    Args:
        logits (`Tensor` of shape (tokens, vocabulary))
        targets (`Tensor` of shape (tokens,))
    """
    chosen = logits.gather(-1, targets[:, None]).squeeze(-1)
    return chosen - logits.logsumexp(-1)


def log_complement(logits: Tensor, targets: Tensor) -> Tensor:
    """log(1 - p(target)) as logsumexp over all *other* tokens minus logsumexp over all.

    Equal to `log(1 - softmax(logits).gather(targets))`, but finite, with a gradient bounded by 1, where p rounds to 1.
    """
    others = logits.scatter(-1, targets[:, None], float("-inf"))
    return others.logsumexp(-1) - logits.logsumexp(-1)


def forward_kl(reference_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(reference || model) over the whole vocabulary, one value per token, in nats.

    This is the retain term of Yao et al. 2024 (L_nor): sum_v p(v) (log p(v) - log q(v)), in log space throughout,
    with 0 log 0 = 0. Both arguments have shape (tokens, vocabulary).
    """
    log_p = reference_logits.log_softmax(-1)
    log_q = logits.log_softmax(-1)
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)


def _chunk_statistics(
    hidden: Tensor,
    targets: Tensor,
    reference_hidden: Tensor | None,
    head: OutputHead,
    reference_head: OutputHead | None,
    complement: bool,
    extra: VocabularyLoss | None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    logits = head.logits(hidden)
    kl = reference_logits = None
    if reference_hidden is not None and reference_head is not None:
        with torch.no_grad():
            reference_logits = reference_head.logits(reference_hidden)
        kl = forward_kl(reference_logits.to(logits.dtype), logits)
    more = None if extra is None else extra(logits, reference_logits, targets)
    return log_probability(logits, targets), log_complement(logits, targets) if complement else None, kl, more


def token_statistics(
    hidden: Tensor,
    targets: Tensor,
    head: OutputHead,
    *,
    complement: bool = False,
    reference_hidden: Tensor | None = None,
    reference_head: OutputHead | None = None,
    budget_bytes: int = LOGITS_BUDGET_BYTES,
    extra: VocabularyLoss | None = None,
) -> TokenStatistics:
    """Statistics of every predicted token; logits exist for one chunk at a time and are made again in the backward pass.

    Args:
        hidden (`Tensor` of shape (tokens, hidden)): the final hidden states that predict `targets`.
        targets (`Tensor` of shape (tokens,)): token ids.
        head (`OutputHead`): the model's output head.
        complement (`bool`, *optional*, defaults to `False`): also compute log(1 - p).
        reference_hidden (`Tensor` of shape (tokens, hidden), *optional*): the reference model's states at the same positions.
        reference_head (`OutputHead`, *optional*): the reference model's head; needed with `reference_hidden`.
        budget_bytes (`int`, *optional*, defaults to 256 MiB): most bytes of one (tokens, vocabulary) matrix.
        extra (`VocabularyLoss`, *optional*): called with each chunk's logits, the reference's logits and targets; differentiated as it is.
    """
    vocabulary = head.weight.shape[0]
    rows = max(1, budget_bytes // (vocabulary * 4))
    pieces = []
    for start in range(0, hidden.shape[0], rows):
        part = slice(start, start + rows)
        reference_part = None if reference_hidden is None else reference_hidden[part]
        arguments = (hidden[part], targets[part], reference_part, head, reference_head, complement, extra)
        if torch.is_grad_enabled() and hidden.shape[0] > rows:
            pieces.append(checkpoint(_chunk_statistics, *arguments, use_reentrant=False))
        else:
            pieces.append(_chunk_statistics(*arguments))
    if not pieces:
        empty = hidden.new_zeros(0)
        asked = (complement, reference_hidden is not None, extra is not None)
        return TokenStatistics(empty, *(empty if wanted else None for wanted in asked))

    def joined(index: int) -> Tensor | None:
        return None if pieces[0][index] is None else torch.cat([piece[index] for piece in pieces])

    logp = joined(0)
    assert logp is not None
    return TokenStatistics(logp, joined(1), joined(2), joined(3))


def weighted_sum_and_count(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """(sum of weighted values, sum of weights): kept apart so that micro-batches and processes divide only once."""
    weights = weights.to(values.dtype)
    return (values * weights).sum(), weights.sum()
