"""Running a part of a model inside the forward of the data-parallel module that wraps it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from unteach.objectives import RoleTokens
from unteach.tokenwise import TokenStatistics


def through_wrapper(wrapped: nn.Module, inner: nn.Module, compute: Callable[[], dict[str, RoleTokens]]) -> dict[str, RoleTokens]:
    """Runs `compute`, which calls parts of `inner`, inside the forward of the module that wraps it.

    Data-parallel wrappers prepare the gradient exchange in their forward and find the outputs in what it returns, so the forward of the
    inner module is replaced for this one call.
    """
    if wrapped is inner:
        return compute()
    original = inner.forward

    names = [item.name for item in fields(TokenStatistics)]

    def forward(*_: Any) -> list[tuple[str, list[Tensor | None], Tensor, Tensor | None]]:
        inner.forward = original
        return [
            (role, [getattr(tokens.statistics, name) for name in names], tokens.weights, tokens.sequence)
            for role, tokens in compute().items()
        ]

    inner.forward = forward
    try:
        flat = wrapped(torch.zeros(()))
    finally:
        inner.forward = original
    return {role: RoleTokens(TokenStatistics(*values), weights, sequence) for role, values, weights, sequence in flat}
