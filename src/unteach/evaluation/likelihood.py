"""Log-likelihoods and greedy choices of a model along given completions, in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from unteach import models
from unteach.data.packing import Branch, Tree, common_prefix, make_batch
from unteach.models.token_statistics import token_statistics

Tokens = Sequence[Sequence[int]]
SHARED_PREFIX = 8
"""Least length, in tokens, of a prefix that is forwarded once for a batch."""


def prefix_cache(model: Any, prompts: Tokens) -> tuple[int, Any]:
    """(length, KV cache with a row for each prompt) of the prefix that all prompts share, such as a
    chat template's system prompt.

    (0, `None`) for a single prompt, a short prefix, and for models whose cache does not keep all
    keys and values: padding would change a recurrent state and fill a sliding window.

    Args:
        model: a causal language model, in evaluation mode.
        prompts: token ids; at least one prompt.
    """
    prefix = common_prefix(prompts)
    if (
        len(prompts) < 2
        or len(prefix) < SHARED_PREFIX
        or model.generation_config.use_cache is False
    ):
        return 0, None
    ids = torch.tensor([prefix], device=next(model.parameters()).device)
    output = models.decoder(model)(input_ids=ids, use_cache=True, return_dict=True)
    cache = output.get("past_key_values")
    if not keeps_all(cache):
        return 0, None
    cache.batch_repeat_interleave(len(prompts))
    return len(prefix), cache


def keeps_all(cache: Any) -> bool:
    """Whether a cache keeps the keys and values of all tokens."""
    return isinstance(cache, DynamicCache) and all(
        type(layer) is DynamicLayer for layer in cache.layers
    )


def repeated_cache(
    model: Any, ids: Tensor, mask: Tensor, cache: Any, rows: Tensor, pad_id: int
) -> Any:
    """The KV cache of distinct prompts but for their last token, then one entry for each of `rows`,
    which are their indices; `None` for a model whose cache does not keep all keys and values.
    """
    with models.neutral_generation(model):
        made = model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=1,
            do_sample=False,
            pad_token_id=pad_id,
            synced_gpus=False,
            return_dict_in_generate=True,
        )
    cache = made.get("past_key_values")
    if not keeps_all(cache):
        return None
    cache.crop(-1)
    cache.batch_select_indices(rows)
    return cache


def rows_by_length(
    prompts: Tokens, completions: Tokens, tokens_per_batch: int
) -> Iterator[list[int]]:
    """Indices of the rows that have a completion, sorted by length, in batches of at most
    `tokens_per_batch` tokens with padding, and at least one row.
    """
    sizes = [len(one) + len(other) for one, other in zip(prompts, completions, strict=True)]
    part: list[int] = []
    for index in sorted((i for i, ids in enumerate(completions) if ids), key=sizes.__getitem__):
        if part and (len(part) + 1) * sizes[index] > tokens_per_batch:
            yield part
            part = []
        part.append(index)
    if part:
        yield part


@torch.no_grad()
def completion_states(
    model: Any, prompts: Tokens, completions: Tokens, tokens_per_batch: int
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """For each batch: the rows' indices, the final hidden states that predict their completions'
    tokens (shape (tokens, width), row after row), and these tokens.

    Rows without completion are skipped. A prompt is truncated at its beginning where prompt and
    completion would exceed the model's context window.

    Args:
        model: a causal language model; evaluated in evaluation mode, returned to its mode.
        prompts, completions: token ids; a prompt has at least one.
        tokens_per_batch: see `rows_by_length`.
    """
    training = model.training
    positions = models.window(model) + 1  # the last token is no input
    prompts = [
        prompt[-max(1, positions - len(completion)) :]
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    model.eval()
    try:
        for part in rows_by_length(prompts, completions, tokens_per_batch):
            chosen = [prompts[i] for i in part], [completions[i] for i in part]
            yield part, *batch_states(model, *chosen)
    finally:
        model.train(training)


def batch_states(model: Any, prompts: Tokens, completions: Tokens) -> tuple[Tensor, Tensor]:
    """(final hidden states that predict the completions' tokens, these tokens) of one batch, with
    gradients where they are enabled; shapes and arguments as in `completion_states`.
    """
    start, cache = prefix_cache(model, prompts)
    pairs = zip(prompts, completions, strict=True)
    trees = [Tree(tuple(one[start:]), (Branch("retain", tuple(other)),)) for one, other in pairs]
    made = make_batch(trees, packed=False, pad_id=0)
    batch = {name: tensor.to(next(model.parameters()).device) for name, tensor in made.items()}
    prefix = start, cache
    states = models.predicting_states(model, batch, packed=False, shared_prefix=prefix)
    return states, batch["target"]


@torch.no_grad()
def values_by_row(
    model: Any,
    prompts: Tokens,
    completions: Tokens,
    measure: Callable[[Tensor, Tensor], Tensor],
    tokens_per_batch: int = 2048,
) -> list[Tensor | None]:
    """What `measure` gives for each token of each completion, on the CPU, shape (tokens, ...);
    `None` for a row without completion.

    Args:
        prompts, completions: token ids; a prompt has at least one.
        measure: from final hidden states, shape (tokens, width), and the tokens that they predict.
        tokens_per_batch: see `rows_by_length`.
    """
    found: list[Tensor | None] = [None] * len(prompts)
    for part, hidden, targets in completion_states(model, prompts, completions, tokens_per_batch):
        values = measure(hidden, targets).cpu().split([len(completions[i]) for i in part])
        for index, row in zip(part, values, strict=True):
            found[index] = row
    return found


def token_logp(
    model: Any, prompts: Tokens, completions: Tokens, tokens_per_batch: int = 2048
) -> list[Tensor | None]:
    """The log-probability of each completion's tokens after its prompt, in nats, float64. Args and
    result: as of `values_by_row`.
    """
    head = models.output_head(model)

    def logp(hidden: Tensor, targets: Tensor) -> Tensor:
        return token_statistics(hidden, targets, head).logp.double()

    return values_by_row(model, prompts, completions, logp, tokens_per_batch)


def mean_nll(
    model: Any, prompts: Tokens, completions: Tokens, *, tokens_per_batch: int = 2048
) -> list[float | None]:
    """Mean negative log-likelihood of each completion's tokens after its prompt, in nats; `None`
    for an empty one. Args: as of `values_by_row`.
    """
    found = token_logp(model, prompts, completions, tokens_per_batch)
    return [None if row is None else float((-row).mean()) for row in found]


def greedy_matches(
    model: Any, prompts: Tokens, completions: Tokens, *, tokens_per_batch: int = 2048
) -> list[list[bool] | None]:
    """For each token of each completion, whether it is the model's greedy choice given the true
    tokens before it; `None` for a row without completion. Args: as of `values_by_row`.
    """
    head = models.output_head(model)

    def right(hidden: Tensor, targets: Tensor) -> Tensor:
        choices = torch.cat([head.logits(piece).argmax(-1) for piece in hidden.split(512)])
        return choices == targets

    found = values_by_row(model, prompts, completions, right, tokens_per_batch)
    return [None if row is None else row.tolist() for row in found]
