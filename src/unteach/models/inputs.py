"""Inputs of the decoder, its attention masks, and the states that predict completions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from unteach.data.packing import PADDING, visibility
from unteach.models.kernels import chosen_kernels, lookup_in_place
from unteach.models.parts import decoder, output_layer, without_adapter


def model_inputs(model: Any, batch: dict[str, Tensor], *, packed: bool) -> dict[str, Any]:
    """Arguments of the decoder: ids, positions that restart, and an attention mask.

    The mask of packed rows is 4-D and additive; where the layers differ in a window that these rows
    exceed, it is a dict by layer type, as transformers takes it. That of plain rows is 2-D, and the
    model derives its own from it.
    """
    inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}
    if not packed:
        return inputs | {"attention_mask": (batch["tree"] != PADDING).long()}
    device_type = batch["input_ids"].device.type
    dtype = next(decoder(model).parameters()).dtype
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)

    def additive(limits: dict[str, int]) -> Tensor:
        seen = visibility(batch, **limits)
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return mask.masked_fill_(~seen, torch.finfo(dtype).min)

    masks = {kind: additive(limits) for kind, limits in _attention_limits(model, batch).items()}
    return inputs | {"attention_mask": masks if len(masks) > 1 else next(iter(masks.values()))}


def _attention_limits(model: Any, batch: dict[str, Tensor]) -> dict[str, dict[str, int]]:
    """The limits of attention (arguments of `visibility`) by layer type.

    One entry without limits where the rows are too short to exceed any, or where a layer is of
    another type; whether the latter is right is for the self-check to find.
    """
    config = without_adapter(model).config.get_text_config()
    limits: dict[str, dict[str, int]] = {"full_attention": {}}
    if isinstance(size := getattr(config, "sliding_window", None), int):
        limits["sliding_attention"] = {"window": size}
    if isinstance(size := getattr(config, "attention_chunk_size", None), int):
        limits["chunked_attention"] = {"chunk": size}
    # all layers of a configuration without layer types are alike
    kinds = set(getattr(config, "layer_types", None) or [list(limits)[-1]])
    sizes = [size for kind in kinds for size in limits.get(kind, {}).values()]
    if not sizes or batch["input_ids"].shape[1] <= min(sizes) or not kinds <= set(limits):
        return {"full_attention": {}}
    return {kind: limits[kind] for kind in sorted(kinds)}


def predicting_states(
    model: Any,
    batch: dict[str, Tensor],
    *,
    packed: bool,
    shared_prefix: tuple[int, Any] = (0, None),
) -> Tensor:
    """Final hidden states at the positions that predict a completion token, shape (tokens, hidden),
    in the batch's order.

    Args:
        batch: see `make_batch`.
        packed (`bool`): its layout.
        shared_prefix: number of tokens that come before each row of a plain batch, and their
            key-value cache with an entry for each row.
    """
    body = decoder(model)
    inputs = model_inputs(model, batch, packed=packed)
    before, cache = shared_prefix
    if before:
        inputs["position_ids"] = inputs["position_ids"] + before
        inputs["attention_mask"] = pad(inputs["attention_mask"], (before, 0), value=1)
        inputs["past_key_values"] = cache
    ids = inputs["input_ids"]
    with chosen_kernels(body, ids.device.type, ids.shape[1] + before):
        hidden: Tensor = body(**inputs, use_cache=bool(before), return_dict=True).last_hidden_state
    return hidden.flatten(0, 1)[batch["predictor"]]


@contextlib.contextmanager
def dropout_off(model: nn.Module) -> Iterator[None]:
    """Dropout probabilities of 0 inside the block, in training mode too: the reference has no
    dropout, so the trained model must have none.
    """
    changed: list[tuple[nn.Module, str, float]] = []
    for module in model.modules():
        names = ["p"] if isinstance(module, nn.Dropout | nn.Dropout1d | nn.Dropout2d) else []
        names += [name for name in vars(module) if "dropout" in name or name == "layerdrop"]
        for name in names:
            value = getattr(module, name)
            if isinstance(value, float) and value > 0:
                changed.append((module, name, value))
                setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, value in changed:
            setattr(module, name, value)


def shared_lookup(model: Any) -> contextlib.AbstractContextManager[None]:
    """`lookup_in_place` for training steps inside the block, on a CPU, where input and output
    embeddings are tied; only for a loss that goes through the head, in one process.
    """
    layer = without_adapter(model).get_input_embeddings()
    weight = layer.weight
    plain = type(layer) is nn.Embedding and type(weight) is nn.Parameter
    plain = plain and layer.max_norm is None and not layer.scale_grad_by_freq
    tied = plain and weight is output_layer(model).weight
    if tied and weight.requires_grad and weight.device.type == "cpu":
        return lookup_in_place(layer)
    return contextlib.nullcontext()
