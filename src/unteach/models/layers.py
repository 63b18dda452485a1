"""The layers of a decoder: finding them, reading what they put out, taking them out of training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from unteach import models
from unteach.errors import UserError


def layer_list(model: Any) -> list[nn.Module] | None:
    """The decoder's layers, first to last; `None` where they are in no list that is known."""
    body = models.decoder(model)
    layers = getattr(body, "layers", None) or getattr(body, "h", None)
    return None if layers is None else list(layers)


@contextlib.contextmanager
def layer_outputs(model: Any, layer: int) -> Iterator[list[Tensor]]:
    """Collects what that layer puts out at each forward inside the block: tensors of shape (rows,
    length, hidden).

    Raises:
        UserError: if the model has no such layer.
    """
    layers = layer_list(model)
    if layers is None or not 0 <= layer < len(layers):
        there = (
            "no list of layers that is known"
            if layers is None
            else f"{len(layers)} layers, counted from 0"
        )
        raise UserError(f"steering_layer is {layer}, but the model has {there}")
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)

    handle = layers[layer].register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


def freeze_all_but(model: Any, layers: Sequence[int]) -> list[nn.Parameter]:
    """Takes everything but these layers out of training; returns the parameters that it froze."""
    found = layer_list(model) or []
    kept = {id(parameter) for number in layers for parameter in found[number].parameters()}
    frozen = [
        parameter
        for parameter in model.parameters()
        if parameter.requires_grad and id(parameter) not in kept
    ]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return frozen


def freeze_lower_layers(model: Any, count: float) -> list[nn.Parameter]:
    """Takes the embedding and the first layers out of training; returns the parameters that it
    froze.

    Args:
        model: a causal language model.
        count (`int` or `float`): how many layers; under 1: that share of them.

    Raises:
        UserError: if the model has fewer layers, or none that can be found.
    """
    if count <= 0:
        return []
    layers = layer_list(model)
    if layers is not None and count < 1:
        count = int(count * len(layers))
    if layers is None or count >= len(layers):
        there = "no list of layers that is known" if layers is None else f"{len(layers)} layers"
        raise UserError(f"frozen_layers is {count}, but the model has {there}")
    parts = [models.without_adapter(model).get_input_embeddings(), *layers[: int(count)]]
    frozen = [
        parameter for part in parts for parameter in part.parameters() if parameter.requires_grad
    ]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return frozen


def unfreeze(parameters: Sequence[nn.Parameter]) -> None:
    """Undoes `freeze_lower_layers` and `freeze_all_but`."""
    for parameter in parameters:
        parameter.requires_grad_(True)
