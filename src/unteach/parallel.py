"""Running a part of a model inside the forward of the data-parallel module that wraps it."""

from __future__ import annotations

from collections.abc import Callable
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

    def forward(*_: Any) -> list[tuple[str, Tensor, Tensor | None, Tensor | None, Tensor]]:
        inner.forward = original
        return [
            (role, tokens.statistics.logp, tokens.statistics.log_complement, tokens.statistics.kl, tokens.weights)
            for role, tokens in compute().items()
        ]

    inner.forward = forward
    try:
        flat = wrapped(torch.zeros(()))
    finally:
        inner.forward = original
    return {role: RoleTokens(TokenStatistics(logp, complement, kl), weights) for role, logp, complement, kl, weights in flat}
