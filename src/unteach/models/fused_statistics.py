"""Log-probability, its complement and the KL to the reference of every token, from one pass over
its logits, under a budget of memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

from unteach.models.parts import OutputHead

CPU_BLOCK = 1024
"""Columns of the vocabulary that a CPU processes at a time: so few that they stay in its cache."""


@dataclass
class _Logits:
    """Logits of some rows as blocks of columns, each (rows, block), and those of the reference for
    the last n of the rows (no blocks for n = 0); in the precision of the product that made them.

    Args:
        chosen (`Tensor` of shape (rows,)): the logit of the target.
        others (`Tensor` of shape (rows,)): logsumexp over all columns but the target's.
        norm, reference_norm (`Tensor` of shape (n,)): logsumexp over all columns, of the rows that
            have a reference.
    """

    blocks: list[Tensor]
    reference: list[Tensor]
    chosen: Tensor
    others: Tensor
    norm: Tensor
    reference_norm: Tensor


class _Scratch:
    """Memory that is reused for every block of columns; allocating tensors of some megabytes anew
    for each block is slower than the work on them.

    Args:
        like (`Tensor`): the device, and the default precision.
        size (`int`): entries of the largest block.
    """

    def __init__(self, like: Tensor, size: int) -> None:
        self.like, self.size = like, size
        self.flat: dict[tuple[int, torch.dtype], Tensor] = {}

    def __call__(
        self, shape: torch.Size, number: int = 0, dtype: torch.dtype | None = None
    ) -> Tensor:
        """A tensor of this shape in the memory of that number."""
        key = number, dtype or self.like.dtype
        if key not in self.flat:
            self.flat[key] = self.like.new_empty(self.size, dtype=key[1])
        return self.flat[key][: shape[0] * shape[1]].view(shape)

    def logsumexp(self, block: Tensor) -> Tensor:
        """Over the columns, shape (rows,)."""
        most = block.amax(-1, keepdim=True)
        most = torch.where(most.isinf(), 0.0, most)  # a block that is -inf all over
        space = torch.sub(block, most, out=self(block.shape)).exp_()
        return space.sum(-1).log_().add_(most[:, 0])

    def wide(self, block: Tensor, number: int) -> Tensor:
        """The block in the default precision: itself, or a copy in the memory of that number."""
        if block.dtype == self.like.dtype:
            return block
        return self(block.shape, number).copy_(block)


class FusedStatistics(torch.autograd.Function):
    """(logp, log_complement, kl) of every token from one pass over its logits, with the backward
    written out; see `token_statistics`.

    With s the softmax over all tokens but y, m = z_y - logsumexp of the others, p = sigmoid(m), and
    upstream gradients a, b, c of logp, log_complement and kl, the gradient by the logits is

        z_y:           g + c p            with g = a (1 - p) - b p
        z_v, v != y:   s_v (c (1 - p) - g)
        and, where there is a reference with probabilities r, - c r_v everywhere.

    Logits are computed, and turned into their gradient in place, in blocks of columns. They are
    kept for the backward pass where all of them fit the budget, and computed again, some rows at a
    time, where they do not.
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
        """The reference's states are those of the last tokens."""
        total, vocabulary = len(hidden), len(weight)
        referenced = 0 if reference_hidden is None else len(reference_hidden)
        block = CPU_BLOCK if hidden.device.type == "cpu" else vocabulary
        ctx.columns = [
            slice(start, min(start + block, vocabulary)) for start in range(0, vocabulary, block)
        ]
        ctx.head = _HeadBlocks(head, hidden, ctx.columns)
        row_bytes = vocabulary * ctx.head.kept.itemsize
        needs_gradient = hidden.requires_grad or weight.requires_grad
        fits = (total + referenced) * row_bytes <= budget_bytes
        rows = max(1, budget_bytes // (2 * row_bytes if referenced else row_bytes))
        ctx.kept = [] if needs_gradient and fits else None
        ctx.rows = rows if ctx.kept is None else total
        if reference_head is not None:
            ctx.reference_head = _HeadBlocks(reference_head, hidden, ctx.columns)
        ctx.unreferenced = total - referenced
        logp, complement, kl = [], [], []
        for start in range(0, total, ctx.rows):
            made = FusedStatistics.logits(ctx, hidden, targets, reference_hidden, start)
            margin = made.chosen - made.others
            logp.append(logsigmoid(margin))
            complement.append(logsigmoid(-margin))
            kl.append(_divergence(made))
            if ctx.kept is not None:
                ctx.kept.append(made)
        statistics = torch.cat(logp), torch.cat(complement)
        # an output that is an attribute of ctx itself would never be freed
        ctx.save_for_backward(hidden, weight, targets, reference_hidden, *statistics)
        return *statistics, torch.cat(kl)

    @staticmethod
    def logits(
        ctx: Any, hidden: Tensor, targets: Tensor, reference_hidden: Tensor | None, start: int
    ) -> _Logits:
        """The logits of the rows from `start` on."""
        stop, first = min(start + ctx.rows, len(hidden)), ctx.unreferenced
        rows, wanted = hidden[start:stop], targets[start:stop]
        blocks = ctx.head.logits(rows)
        chosen = torch.empty(len(rows), dtype=ctx.head.wide, device=rows.device)
        reference: list[Tensor] = []
        if reference_hidden is not None and stop > first:
            states = reference_hidden[max(start, first) - first : stop - first]
            reference = ctx.reference_head.logits(states)
        size, scratch = len(reference[0]) if reference else 0, _Scratch(chosen, blocks[0].numel())
        others, norms, reference_norms = [], [], []
        for number, (columns, block) in enumerate(zip(ctx.columns, blocks, strict=True)):
            logits = scratch.wide(block, 1)
            row, column = _inside(wanted, columns, len(ctx.columns))
            chosen[row] = logits[row, column]
            if size:
                norms.append(scratch.logsumexp(logits[-size:]))
                reference_norms.append(scratch.logsumexp(scratch.wide(reference[number], 2)))
            logits[row, column] = float("-inf")
            others.append(scratch.logsumexp(logits))
            logits[row, column] = chosen[row]
        norm = reference_norm = chosen.new_zeros(0)
        if size:
            norm = torch.stack(norms).logsumexp(0)
            reference_norm = torch.stack(reference_norms).logsumexp(0)
        other = torch.stack(others).logsumexp(0)
        return _Logits(blocks, reference, chosen, other, norm, reference_norm)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        """See the class."""
        hidden, weight, targets, reference_hidden, *statistics = ctx.saved_tensors
        by_logp, by_complement, by_kl = upstream
        p, rest = (values.exp() for values in statistics)
        force = by_logp * rest - by_complement * p
        pull = torch.cat([torch.zeros_like(force[: ctx.unreferenced]), by_kl])
        at_target, elsewhere = force + pull * p, (pull * rest - force)[:, None]
        kept, ctx.kept = ctx.kept, None
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        head, dtype = ctx.head.head, ctx.head.dtype
        to_hidden = to_weight = to_bias = None
        if needs_hidden:
            wide = torch.promote_types(hidden.dtype, torch.float32)
            to_hidden = torch.zeros_like(hidden, dtype=wide)
        if needs_weight:
            to_weight = torch.empty_like(weight)
        if needs_bias:
            to_bias = torch.zeros_like(head.bias)
        for number, start in enumerate(range(0, len(hidden), ctx.rows)):
            part = slice(start, min(start + ctx.rows, len(hidden)))
            if kept:
                made = kept[number]
            else:
                made = FusedStatistics.logits(ctx, hidden, targets, reference_hidden, start)
            states, size = hidden[part].to(dtype), len(made.reference_norm)
            scratch = _Scratch(made.chosen, made.blocks[0].numel())
            for index, (columns, narrow) in enumerate(zip(ctx.columns, made.blocks, strict=True)):
                block = scratch.wide(narrow, 1)
                slope = head.slope(block)
                row, column = _inside(targets[part], columns, len(ctx.columns))
                block[row, column] = float("-inf")
                block.sub_(made.others[:, None]).exp_().mul_(elsewhere[part])
                block[row, column] = at_target[part][row]
                if size:
                    likely = scratch.wide(made.reference[index], 2)
                    likely = likely.sub_(made.reference_norm[:, None]).exp_()
                    block[-size:].addcmul_(likely, pull[part][-size:, None], value=-1)
                gradient = block if slope is None else block.mul_(slope)
                if gradient.dtype != dtype:
                    gradient = scratch(block.shape, dtype=dtype).copy_(gradient)
                if to_hidden is not None and to_hidden.dtype == dtype:
                    to_hidden[part].addmm_(gradient, ctx.head.weight(columns))
                elif to_hidden is not None:
                    to_hidden[part] += gradient @ ctx.head.weight(columns)
                if to_weight is not None:
                    _add_product(to_weight[columns], gradient, states, first=start == 0)
                if to_bias is not None:
                    to_bias[columns] += gradient.sum(0)
        by_hidden = None if to_hidden is None else to_hidden.to(hidden.dtype)
        return by_hidden, to_weight, to_bias, None, None, None, None, None


def _inside(targets: Tensor, columns: slice, blocks: int) -> tuple[Tensor, Tensor]:
    """(rows whose target lies in these columns, its column among them)."""
    if blocks == 1:
        return torch.arange(len(targets), device=targets.device), targets
    row = ((targets >= columns.start) & (targets < columns.stop)).nonzero().squeeze(-1)
    return row, targets[row] - columns.start


class _HeadBlocks:
    """A head in blocks of columns, in autocast's precision where that is on.

    With several blocks each is rounded to that precision when it is needed, into one memory, which
    stays in the processor's cache; a rounded copy of the whole head would be new memory each step.
    """

    def __init__(self, head: OutputHead, hidden: Tensor, columns: list[slice]) -> None:
        self.head = head.cast(hidden) if len(columns) == 1 else head
        self.columns = columns
        autocast = torch.is_autocast_enabled(hidden.device.type)
        self.dtype = torch.get_autocast_dtype(hidden.device.type) if autocast else head.weight.dtype
        self.space: Tensor | None = None
        self.wide = torch.promote_types(self.dtype, torch.float32)
        plain = head.scale == 1.0 and head.softcap is None and len(columns) > 1
        self.kept = self.dtype if plain else self.wide
        """Precision of the logits that `logits` returns."""

    def weight(self, columns: slice) -> Tensor:
        """Rows of the output embedding in the precision of the product; until the next call."""
        found = self.head.weight.detach()[columns]
        if found.dtype == self.dtype:
            return found
        if self.space is None:  # the first block is the largest
            self.space = torch.empty(
                self.columns[0].stop, found.shape[1], dtype=self.dtype, device=found.device
            )
        return self.space[: len(found)].copy_(found)

    def logits(self, hidden: Tensor) -> list[Tensor]:
        """The logits of these rows in blocks, in one memory where there are several."""
        if len(self.columns) == 1:
            return [self.head.logits(hidden)]
        rows, bias, blocks = len(hidden), self.head.bias, []
        memory = torch.empty(rows * self.columns[-1].stop, dtype=self.kept, device=hidden.device)
        narrow = hidden.to(self.kept) if self.kept != self.wide else None
        for part in self.columns:
            place = memory[rows * part.start : rows * part.stop].view(rows, part.stop - part.start)
            weight = self.weight(part)
            own = None if bias is None else bias[part].to(self.dtype)
            if narrow is None:
                head = replace(self.head, weight=weight, bias=own)
                blocks.append(head.logits(hidden, out=place))
            elif own is None:
                blocks.append(torch.mm(narrow, weight.T, out=place))
            else:
                blocks.append(torch.addmm(own, narrow, weight.T, out=place))
        return blocks


def _add_product(to: Tensor, gradient: Tensor, states: Tensor, *, first: bool) -> None:
    """Adds gradient^T states to rows `to` of a weight's gradient; the first is written there."""
    if to.dtype == states.dtype:
        torch.mm(gradient.T, states, out=to) if first else to.addmm_(gradient.T, states)
        return
    product = gradient.T @ states
    to.copy_(product) if first else to.add_(product)


def _divergence(made: _Logits) -> Tensor:
    """KL(reference || model) of the rows that have a reference, shape (n,)."""
    kl = torch.zeros_like(made.norm)
    if not made.reference:
        return kl
    scratch = _Scratch(made.chosen, made.reference[0].numel())
    for kept, block in zip(made.reference, made.blocks, strict=True):
        shape = kept.shape
        reference, logits = scratch.wide(kept, 2), scratch.wide(block[-len(kept) :], 3)
        r = torch.sub(reference, made.reference_norm[:, None], out=scratch(shape))
        q = torch.sub(logits, made.norm[:, None], out=scratch(shape, 1))
        ratio = torch.sub(r, q, out=q)
        r.exp_()
        kl += ratio.mul_(r).masked_fill_(r == 0, 0.0).sum(-1)
    return kl
