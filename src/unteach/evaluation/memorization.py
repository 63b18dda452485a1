"""How much of a text a model knows by heart, token by token (the metrics' definitions: docs/methods.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from unteach import models
from unteach.data.packing import Branch, Tree, make_batch
from unteach.evaluation.likelihood import Tokens, rows_by_length

Correct = Sequence[bool] | npt.NDArray[np.bool_]


def _checked(correct: Correct) -> npt.NDArray[np.bool_]:
    array = np.asarray(correct)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"correct has shape {array.shape}, it must be one row of at least one token")
    if array.dtype != np.bool_:
        raise ValueError(f"correct is {array.dtype}, it must be boolean")
    return array


def exact_memorization(correct: Correct) -> float:
    """Share of a completion's tokens that the model predicts right, each given the true tokens before it (Tirumala et al. 2022).

    >>> exact_memorization([True, False, True, True])
    0.75

    Args:
        correct: shape (tokens,), boolean.

    Raises:
        ValueError: for anything that is not one non-empty row of booleans.
    """
    return float(_checked(correct).mean())


def extraction_strength(correct: Correct) -> float:
    """1 - k/n for the smallest prefix length k after which the whole rest of n tokens is predicted right (Carlini et al. 2021).

    A model that predicts the last token wrong has 0: no prefix makes it say the rest.

    >>> extraction_strength([False, True, True, True])
    0.75
    >>> extraction_strength([False])
    0.0

    Args:
        correct: shape (tokens,), boolean.

    Raises:
        ValueError: for anything that is not one non-empty row of booleans.
    """
    wrong = np.flatnonzero(~_checked(correct))
    return 1.0 if not wrong.size else 1.0 - (int(wrong[-1]) + 1) / len(correct)


@torch.no_grad()
def greedy_matches(model: Any, prompts: Tokens, completions: Tokens, *, tokens_per_batch: int = 2048) -> list[npt.NDArray[np.bool_] | None]:
    """For each completion's tokens, whether the model would choose them greedily, given the prompt and the true tokens before.

    Args:
        model: a causal language model.
        prompts, completions: token ids; a prompt has at least one.
        tokens_per_batch (`int`): rows are batched up to so many tokens.

    Returns:
        shape (tokens,) for each row; `None` for one without completion.
    """
    found: list[npt.NDArray[np.bool_] | None] = [None] * len(prompts)
    device, head = next(model.parameters()).device, models.output_head(model)
    for part in rows_by_length(prompts, completions, tokens_per_batch):
        trees = [Tree(tuple(prompts[i]), (Branch("retain", tuple(completions[i])),)) for i in part]
        batch = {name: tensor.to(device) for name, tensor in make_batch(trees, packed=False, pad_id=0).items()}
        hidden = models.predicting_states(model, batch, packed=False)
        chosen = torch.cat([head.logits(piece).argmax(-1) for piece in hidden.split(512)])
        right = (chosen == batch["target"]).cpu().split([len(completions[i]) for i in part])
        for index, row in zip(part, right, strict=True):
            found[index] = row.numpy()
    return found
