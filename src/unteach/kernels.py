"""Which kernels a training step's forward pass runs on, where the libraries' own choice is not the fastest."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

LONGEST_WRITTEN_OUT = 512
"""Longest row whose attention is written out: its scores are kept for the backward pass, heads x length^2 of them."""


def recomputes_activations(model: nn.Module) -> bool:
    """Whether parts of the model run again in the backward pass, where they must find what they found in the forward one."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


@contextlib.contextmanager
def chosen_kernels(model: nn.Module, device_type: str, width: int) -> Iterator[None]:
    """For a forward pass under autocast over rows of `width` tokens: faster kernels with the same result up to rounding.

    - An adapter's input stays as it is: autocast casts it anyhow, and casting it to the adapter's float32 first moves it twice.
    - On a CPU attention over short rows is written out: the backward pass of torch's flash kernel for bfloat16 is slow there.

    Without autocast, or where activations are computed again in the backward pass, nothing changes.

    Args:
        model (`nn.Module`)
        device_type (`str`): of the inputs.
        width (`int`): tokens in a row.
    """
    if not torch.is_autocast_enabled(device_type) or recomputes_activations(model):
        yield
        return
    with contextlib.ExitStack() as stack:
        if any(hasattr(module, "cast_input_dtype_enabled") for module in model.modules()):
            from peft.helpers import disable_input_dtype_casting

            stack.enter_context(disable_input_dtype_casting(model))
        if device_type == "cpu" and width <= LONGEST_WRITTEN_OUT:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield
