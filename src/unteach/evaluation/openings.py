"""What the prompts of a batch all begin with (a chat template's system prompt), forwarded once for
all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from unteach import models
from unteach.data.packing import common_prefix

WORTH_SHARING = 8
"""Tokens of an opening from which on it is forwarded once."""


def opened_cache(model: Any, prompts: Sequence[Sequence[int]]) -> tuple[int, Any]:
    """(number of tokens, their cache with a row for each prompt): the opening of two prompts or
    more.

    (0, `None`) where there is none worth it, or where the model's cache does not keep all keys and
    values: a recurrent state would run on over padding, a sliding window be filled by it.

    Args:
        model: a causal language model, in evaluation mode.
        prompts: token ids; at least one prompt.
    """
    opening = common_prefix(prompts)
    if (
        len(prompts) < 2
        or len(opening) < WORTH_SHARING
        or model.generation_config.use_cache is False
    ):
        return 0, None
    ids = torch.tensor([opening], device=next(model.parameters()).device)
    cache = models.decoder(model)(input_ids=ids, use_cache=True, return_dict=True).get(
        "past_key_values"
    )
    if not isinstance(cache, DynamicCache) or any(
        type(layer) is not DynamicLayer for layer in cache.layers
    ):
        return 0, None
    cache.batch_repeat_interleave(len(prompts))
    return len(opening), cache
