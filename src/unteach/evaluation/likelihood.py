"""Numbers from a model's likelihood of given texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from unteach import models
from unteach.data.packing import Branch, Tree, make_batch
from unteach.tokenwise import token_statistics


@torch.no_grad()
def mean_nll(
    model: Any, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], *, tokens_per_batch: int = 2048
) -> list[float | None]:
    """Mean negative log-likelihood of each completion's tokens after its prompt, in nats; `None` for an empty one.

    Args:
        model: a causal language model.
        prompts, completions: token ids; a prompt has at least one.
        tokens_per_batch (`int`): rows are batched up to so many tokens.
    """
    results: list[float | None] = [None] * len(prompts)
    order = sorted((i for i in range(len(prompts)) if completions[i]), key=lambda i: len(prompts[i]) + len(completions[i]))
    device = next(model.parameters()).device
    head = models.output_head(model)
    while order:
        part: list[int] = []
        while order and (not part or (len(part) + 1) * (len(prompts[order[0]]) + len(completions[order[0]])) <= tokens_per_batch):
            part.append(order.pop(0))
        trees = [Tree(tuple(prompts[i]), (Branch("retain", tuple(completions[i])),)) for i in part]
        batch = {name: tensor.to(device) for name, tensor in make_batch(trees, packed=False, pad_id=0).items()}
        hidden = models.predicting_states(model, batch, packed=False)
        logp = token_statistics(hidden, batch["target"], head).logp.double().cpu()
        for index, values in zip(part, logp.split([len(completions[i]) for i in part]), strict=True):
            results[index] = float(-values.mean())
    return results
