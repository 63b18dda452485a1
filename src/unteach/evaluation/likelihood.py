"""Numbers from a model's likelihood of given texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from unteach import models
from unteach.data.packing import Branch, Tree, make_batch
from unteach.output_head import OutputHead
from unteach.tokenwise import token_statistics

Tokens = Sequence[Sequence[int]]


def rows_by_length(prompts: Tokens, completions: Tokens, tokens_per_batch: int) -> Iterator[list[int]]:
    """Indices of the rows that have a completion, sorted by length and grouped so that padded batches hold about so many tokens."""
    order = sorted((i for i in range(len(prompts)) if completions[i]), key=lambda i: len(prompts[i]) + len(completions[i]))
    part: list[int] = []
    for index in order:
        if part and (len(part) + 1) * (len(prompts[index]) + len(completions[index])) > tokens_per_batch:
            yield part
            part = []
        part.append(index)
    if part:
        yield part


def _per_row(
    model: Any, prompts: Tokens, completions: Tokens, measure: Callable[[Tensor, Tensor, OutputHead], Tensor], tokens_per_batch: int
) -> list[float | None]:
    """Mean over each row's completion tokens of `measure(hidden, targets, head)`; `None` for a row without completion."""
    results: list[float | None] = [None] * len(prompts)
    device = next(model.parameters()).device
    head = models.output_head(model)
    for part in rows_by_length(prompts, completions, tokens_per_batch):
        trees = [Tree(tuple(prompts[i]), (Branch("retain", tuple(completions[i])),)) for i in part]
        batch = {name: tensor.to(device) for name, tensor in make_batch(trees, packed=False, pad_id=0).items()}
        hidden = models.predicting_states(model, batch, packed=False)
        values = measure(hidden, batch["target"], head).double().cpu()
        for index, row in zip(part, values.split([len(completions[i]) for i in part]), strict=True):
            results[index] = float(row.mean())
    return results


@torch.no_grad()
def mean_nll(model: Any, prompts: Tokens, completions: Tokens, *, tokens_per_batch: int = 2048) -> list[float | None]:
    """Mean negative log-likelihood of each completion's tokens after its prompt, in nats; `None` for an empty one.

    Args:
        model: a causal language model.
        prompts, completions: token ids; a prompt has at least one.
        tokens_per_batch (`int`): rows are batched up to so many tokens.
    """
    return _per_row(model, prompts, completions, lambda *states: -token_statistics(*states).logp, tokens_per_batch)


@torch.no_grad()
def greedy_agreement(model: Any, prompts: Tokens, completions: Tokens, *, tokens_per_batch: int = 2048) -> list[float | None]:
    """Share of each completion's tokens that the model would choose greedily, given the tokens before them; `None` for an empty one.

    Args: as for `mean_nll`.
    """

    def chosen(hidden: Tensor, targets: Tensor, head: OutputHead) -> Tensor:
        pieces = [head.logits(part).argmax(-1) for part in hidden.split(512)]
        return torch.cat(pieces) == targets

    return _per_row(model, prompts, completions, chosen, tokens_per_batch)
