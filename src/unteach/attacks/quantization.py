"""Weights rounded to 8 or 4 bits by torchao: rounding can undo the small changes that unlearning
made.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from unteach import models
from unteach.errors import UserError

BITS = (8, 4)
GROUP = 32
"""Weights of a row that share scale and zero point at 4 bits; halved where a row's length is no
multiple of it.
"""


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """torchao names, at its import, every GPU kernel that this machine has not."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def why_not() -> str | None:
    """Why nothing can be quantised here, or `None`."""
    try:
        with _silent():
            import torchao.quantization  # noqa: F401
    except ImportError:
        return (
            "torchao is not installed; install the extra with: pip install 'unteach[quantization]'"
        )
    return None


class NothingToRound(UserError):
    """The model has no layer of the kind that is quantised."""


def quantize(model: Any, bits: int) -> Any:
    """Rounds the weights of all linear layers but the output head, in place, and returns the model.

    torchao's weight-only quantiser: 8 bits with one scale a row (symmetric), 4 bits with a scale
    and a zero point for each 32 weights of a
    row (asymmetric, as in GGUF's Q4_1). The rounded weights are put back as floats, which computes
    the same as its kernels and runs on every machine at the usual speed. Embedding and head stay as
    they are, as is usual.

    Args:
        model: a causal language model; it is changed.
        bits (`int`): 8 or 4.

    Raises:
        UserError: if torchao is not installed.
        NothingToRound: if the model has no linear layer (GPT-2's are of another kind).
    """
    reason = why_not()
    if reason:
        raise UserError(reason)
    device = next(model.parameters()).device
    model.cpu()  # the rounding is done here, whatever kernels an accelerator has
    with _silent():
        from torchao.quantization import IntxWeightOnlyConfig, PerAxis, PerGroup, quantize_
        from torchao.quantization.quant_primitives import MappingType

        head = models.without_adapter(model).get_output_embeddings()
        layers = [
            module
            for module in model.modules()
            if isinstance(module, nn.Linear) and module is not head
        ]
        if not layers:
            raise NothingToRound(
                f"{type(model).__name__} has no linear layers that torchao knows, so nothing can be"
                " quantised"
            )
        sizes = {id(layer): group_size(layer.in_features) for layer in layers}
        for size in sorted(set(sizes.values())):
            if bits == 8:
                config = IntxWeightOnlyConfig(torch.int8, PerAxis(0))
            else:
                granularity = PerGroup(size)
                four_bits: Any = torch.int4  # type: ignore[attr-defined]
                config = IntxWeightOnlyConfig(four_bits, granularity, MappingType.ASYMMETRIC)
            quantize_(
                model, config, filter_fn=lambda module, _, size=size: sizes.get(id(module)) == size
            )
        for layer in layers:
            layer.weight = nn.Parameter(layer.weight.dequantize().detach(), requires_grad=False)
    return model.to(device)


def group_size(length: int) -> int:
    """`GROUP`, or the largest half, quarter, ... of it that divides a row of this length."""
    size = GROUP
    while length % size:
        size //= 2
    return size
