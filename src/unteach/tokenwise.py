"""Per-token statistics from final hidden states: log-probability, log-complement and exact KL.

Nothing here knows a model. A hidden state that predicts a token goes in with the output head, one number per token
comes out. The (tokens, vocabulary) matrix is made in chunks that fit a budget and is never kept whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid
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
        if not torch.is_autocast_enabled(hidden.device.type):
            hidden = hidden.to(self.weight.dtype)
        logits = torch.nn.functional.linear(hidden, self.weight, self.bias)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits

    def slope(self, logits: Tensor) -> Tensor | float | None:
        """d logits / d (h W^T + b) at these logits, shape (tokens, vocabulary); `None` where it is 1."""
        if self.softcap is not None:
            return (1 - (logits / self.softcap).square()).mul_(self.scale)
        return None if self.scale == 1.0 else self.scale

    def cast(self, hidden: Tensor) -> OutputHead:
        """The head as it multiplies hidden states of this device: in autocast's precision where that is on."""
        if not torch.is_autocast_enabled(hidden.device.type):
            return self
        dtype = torch.get_autocast_dtype(hidden.device.type)
        return OutputHead(self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype), self.scale, self.softcap)

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

    def split(self, sizes: Sequence[int]) -> list[TokenStatistics]:
        """The statistics of groups of tokens that follow each other; `kl` is that of the last group."""
        rests = [None] * len(sizes) if self.log_complement is None else self.log_complement.split(list(sizes))
        parts = [TokenStatistics(logp, rest) for logp, rest in zip(self.logp.split(list(sizes)), rests, strict=True)]
        return [*parts[:-1], replace(parts[-1], kl=self.kl)]


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


class _FusedStatistics(torch.autograd.Function):
    """(logp, log_complement, kl) of every token from one pass over each chunk of logits, with the backward written out.

    With s the softmax over all tokens but y, m = z_y - logsumexp of the others, p = sigmoid(m), and upstream gradients a, b, c of logp,
    log_complement and kl, the gradient by the logits is

        z_y:           g + c p            with g = a (1 - p) - b p
        z_v, v != y:   s_v (c (1 - p) - g)
        and, where there is a reference with probabilities r, - c r_v everywhere.

    The logits are kept for the backward pass where all of them fit the budget, and made again chunk by chunk where they do not.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        reference_hidden: Tensor | None,
        head: OutputHead,
        reference_head: OutputHead | None,
        budget_bytes: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `token_statistics`; the reference's states belong to the last tokens."""
        total = hidden.shape[0]
        referenced = 0 if reference_hidden is None else reference_hidden.shape[0]
        row_bytes = weight.shape[0] * max(4, weight.element_size())
        wants = hidden.requires_grad or weight.requires_grad
        ctx.kept = [] if wants and (total + referenced) * row_bytes <= budget_bytes else None
        ctx.rows = total if ctx.kept is not None else max(1, budget_bytes // (2 * row_bytes if referenced else row_bytes))
        ctx.head, ctx.reference_head = head.cast(hidden), None if reference_head is None else reference_head.cast(hidden)
        ctx.shapes = total, referenced
        ctx.save_for_backward(hidden, weight, targets, reference_hidden)
        pieces = []
        for start in range(0, total, ctx.rows):
            logits, reference = _FusedStatistics.chunk(ctx, hidden, reference_hidden, start)
            pieces.append(_FusedStatistics.measure(logits, targets[start : start + ctx.rows], reference))
            if ctx.kept is not None:
                ctx.kept.append((logits, reference))
        logp, complement, kl, others = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        ctx.margin = logp, complement, others
        return logp, complement, kl

    @staticmethod
    def chunk(ctx: Any, hidden: Tensor, reference_hidden: Tensor | None, start: int) -> tuple[Tensor, Tensor | None]:
        """(logits of the tokens from `start` on, the reference's log-probabilities of the last of them, if it has any there)."""
        total, referenced = ctx.shapes
        stop = min(start + ctx.rows, total)
        logits = ctx.head.logits(hidden[start:stop])
        first = max(start, total - referenced) - (total - referenced)
        if reference_hidden is None or stop <= total - referenced:
            return logits, None
        reference = ctx.reference_head.logits(reference_hidden[first : stop - (total - referenced)])
        return logits, reference.to(logits.dtype)

    @staticmethod
    def measure(logits: Tensor, targets: Tensor, reference: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(logp, log_complement, kl of the last rows, logsumexp over all tokens but the target)."""
        index = targets[:, None]
        chosen = logits.gather(-1, index)
        logits.scatter_(-1, index, float("-inf"))
        others = logits.logsumexp(-1)
        logits.scatter_(-1, index, chosen)
        margin = chosen.squeeze(-1) - others
        kl = logits.new_zeros(0) if reference is None else forward_kl(reference, logits[logits.shape[0] - reference.shape[0] :])
        return logsigmoid(margin), logsigmoid(-margin), kl, others

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        """See the class."""
        hidden, weight, targets, reference_hidden = ctx.saved_tensors
        by_logp, by_complement, by_kl = upstream
        logp, complement, others = ctx.margin
        total, referenced = ctx.shapes
        p, rest = logp.exp(), complement.exp()
        force = by_logp * rest - by_complement * p
        pull = torch.cat([torch.zeros_like(force[: total - referenced]), by_kl]) if referenced else torch.zeros_like(force)
        at_target, elsewhere = force + pull * p, pull * rest - force
        kept, ctx.kept = ctx.kept, None
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        to_hidden = torch.empty_like(hidden) if needs_hidden else None
        to_weight = to_bias = None
        for number, start in enumerate(range(0, total, ctx.rows)):
            part = slice(start, min(start + ctx.rows, total))
            logits, reference = kept[number] if kept else _FusedStatistics.chunk(ctx, hidden, reference_hidden, start)
            slope = ctx.head.slope(logits)
            index = targets[part, None]
            logits.scatter_(-1, index, float("-inf")).sub_(others[part, None]).exp_().mul_(elsewhere[part, None])
            logits.scatter_(-1, index, at_target[part, None])
            if reference is not None:
                size = reference.shape[0]
                logits[-size:].addcmul_(reference.softmax(-1), pull[part][-size:, None], value=-1)
            gradient = (logits if slope is None else logits.mul_(slope)).to(ctx.head.weight.dtype)
            if to_hidden is not None:
                to_hidden[part] = gradient @ ctx.head.weight
            if needs_weight:
                step = gradient.T @ hidden[part].to(gradient.dtype)
                to_weight = step if to_weight is None else to_weight.add_(step)
            if needs_bias:
                to_bias = gradient.sum(0) if to_bias is None else to_bias + gradient.sum(0)
        to_weight = None if to_weight is None else to_weight.to(weight.dtype)
        return to_hidden, to_weight, to_bias, None, None, None, None, None


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
    """Statistics of every predicted token from one pass over its logits, which never take more than a budget of memory.

    Equal, in value and gradient, to `log_probability`, `log_complement` and `forward_kl` of `head.logits(hidden)`.

    Args:
        hidden (`Tensor` of shape (tokens, hidden)): the final hidden states that predict `targets`.
        targets (`Tensor` of shape (tokens,)): token ids.
        head (`OutputHead`): the model's output head.
        complement (`bool`, *optional*, defaults to `False`): also give log(1 - p).
        reference_hidden (`Tensor` of shape (n, hidden), *optional*): the reference model's states for the last n tokens; `kl` is of them.
        reference_head (`OutputHead`, *optional*): the reference model's head; needed with `reference_hidden`.
        budget_bytes (`int`, *optional*, defaults to 256 MiB): most bytes of (tokens, vocabulary) matrices.
    """
    if not hidden.shape[0]:
        empty = hidden.new_zeros(0)
        return TokenStatistics(empty, empty if complement else None, None if reference_hidden is None else empty)
    logp, log_rest, kl = _FusedStatistics.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, targets, reference_hidden, head, reference_head, budget_bytes
    )
    return TokenStatistics(logp, log_rest if complement else None, None if reference_hidden is None else kl)


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
    """Log-probabilities, and as `extra` a loss of the whole distribution, differentiated as it is written, chunk by chunk.

    Args:
        hidden, targets, head, budget_bytes: as in `token_statistics`.
        loss (`VocabularyLoss`): called with each chunk's logits, the reference's logits there, and the targets.
        reference_hidden (`Tensor` of shape (tokens, hidden), *optional*): the reference model's states, where the loss reads them.
        reference_head (`OutputHead`, *optional*): needed with `reference_hidden`.
    """

    def measure(part: Tensor, wanted: Tensor, reference_part: Tensor | None) -> tuple[Tensor, Tensor]:
        logits, reference_logits = head.logits(part), None
        if reference_part is not None and reference_head is not None:
            with torch.no_grad():
                reference_logits = reference_head.logits(reference_part)
        return log_probability(logits, wanted), loss(logits, reference_logits, wanted)

    rows = max(1, budget_bytes // (head.weight.shape[0] * 4))
    if hidden.shape[0] <= rows:
        logp, extra = measure(hidden, targets, reference_hidden)
        return TokenStatistics(logp, extra=extra)
    pieces = []
    for start in range(0, hidden.shape[0], rows):
        part = slice(start, start + rows)
        arguments = (hidden[part], targets[part], None if reference_hidden is None else reference_hidden[part])
        pieces.append(checkpoint(measure, *arguments, use_reentrant=False))
    logp, extra = (torch.cat(values) for values in zip(*pieces, strict=True))
    return TokenStatistics(logp, extra=extra)


def weighted_sum_and_count(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """(sum of weighted values, sum of weights): kept apart so that micro-batches and processes divide only once."""
    weights = weights.to(values.dtype)
    return (values * weights).sum(), weights.sum()
