"""Numbers from a model's likelihood of given texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from unteach import models
from unteach.data.packing import Branch, Tree, make_batch
from unteach.evaluation.openings import opened_cache
from unteach.models.token_statistics import token_statistics

Tokens = Sequence[Sequence[int]]


def rows_by_length(
    prompts: Tokens, completions: Tokens, tokens_per_batch: int
) -> Iterator[list[int]]:
    """Indices of the rows that have a completion, sorted by length and grouped so that padded
    batches hold about so many tokens.
    """
    order = sorted(
        (i for i in range(len(prompts)) if completions[i]),
        key=lambda i: len(prompts[i]) + len(completions[i]),
    )
    part: list[int] = []
    for index in order:
        if (
            part
            and (len(part) + 1) * (len(prompts[index]) + len(completions[index])) > tokens_per_batch
        ):
            yield part
            part = []
        part.append(index)
    if part:
        yield part


@torch.no_grad()
def completion_states(
    model: Any, prompts: Tokens, completions: Tokens, tokens_per_batch: int
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Batch for batch: the rows' indices, the final hidden states that predict their completions'
    tokens, these tokens, row after row.

    What the prompts of a batch all begin with is forwarded once. Rows without completion are in no
    batch. A prompt that leaves no room in the model's window for its completion loses its
    beginning.

    Args:
        model: a causal language model; measured in evaluation mode, left in the mode that it was
            in.
        prompts, completions: token ids; a prompt has at least one.
        tokens_per_batch (`int`): rows are batched up to so many tokens.
    """
    device, training = next(model.parameters()).device, model.training
    positions = models.window(model) + 1  # the last token is no input
    prompts = [
        prompt[-max(1, positions - len(completion)) :]
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    model.eval()
    try:
        for part in rows_by_length(prompts, completions, tokens_per_batch):
            start, cache = opened_cache(model, [prompts[i] for i in part])
            trees = [
                Tree(tuple(prompts[i][start:]), (Branch("retain", tuple(completions[i])),))
                for i in part
            ]
            batch = {
                name: tensor.to(device)
                for name, tensor in make_batch(trees, packed=False, pad_id=0).items()
            }
            yield (
                part,
                models.predicting_states(model, batch, packed=False, shared_prefix=(start, cache)),
                batch["target"],
            )
    finally:
        model.train(training)


@torch.no_grad()
def mean_nll(
    model: Any, prompts: Tokens, completions: Tokens, *, tokens_per_batch: int = 2048
) -> list[float | None]:
    """Mean negative log-likelihood of each completion's tokens after its prompt, in nats; `None`
    for an empty one.

    Args:
        model: a causal language model.
        prompts, completions: token ids; a prompt has at least one.
        tokens_per_batch (`int`): rows are batched up to so many tokens.
    """
    means: list[float | None] = [None] * len(prompts)
    head = models.output_head(model)
    for part, hidden, targets in completion_states(model, prompts, completions, tokens_per_batch):
        nll = -token_statistics(hidden, targets, head).logp.double().cpu()
        for index, row in zip(part, nll.split([len(completions[i]) for i in part]), strict=True):
            means[index] = float(row.mean())
    return means


@torch.no_grad()
def greedy_matches(
    model: Any, prompts: Tokens, completions: Tokens, *, tokens_per_batch: int = 2048
) -> list[list[bool] | None]:
    """For each completion's tokens, whether the model would choose them greedily, given the prompt
    and the true tokens before.

    Args: as for `mean_nll`.

    Returns:
        as many as the completion's tokens for each row; `None` for one without completion.
    """
    found: list[list[bool] | None] = [None] * len(prompts)
    head = models.output_head(model)
    for part, hidden, targets in completion_states(model, prompts, completions, tokens_per_batch):
        right = torch.cat([head.logits(piece).argmax(-1) for piece in hidden.split(512)]) == targets
        for index, row in zip(
            part, right.cpu().split([len(completions[i]) for i in part]), strict=True
        ):
            found[index] = row.tolist()
    return found


def greedy_agreement(
    model: Any, prompts: Tokens, completions: Tokens, *, tokens_per_batch: int = 2048
) -> list[float | None]:
    """Share of each completion's tokens that the model would choose greedily, given the tokens
    before them; `None` for an empty one.

    Args: as for `mean_nll`.
    """
    matches = greedy_matches(model, prompts, completions, tokens_per_batch=tokens_per_batch)
    return [None if found is None else sum(found) / len(found) for found in matches]
