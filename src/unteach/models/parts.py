"""The parts of a causal language model: decoder, layers, output layer, and the map to logits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from unteach.errors import UserError

LOGIT_FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
"""Names in configurations of a factor on the logits (Cohere, Falcon-H1, Muse)."""
LOGITS_TIMES_SCALING = ("hyperclovax",)
"""Model types that multiply by `logits_scaling`; the others (Granite) divide by it."""
NORMS = ("norm", "final_layer_norm", "ln_f", "final_layernorm", "norm_f")
"""Names of the norm behind the last layer."""


def without_adapter(model: Any) -> Any:
    """The causal language model in a PEFT model (adapters stay injected), or the model itself."""
    adapted = hasattr(model, "peft_config") and hasattr(model, "get_base_model")
    return model.get_base_model() if adapted else model


@contextlib.contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """A context in which a PEFT model computes what its base model does. Parameters that are not
    trained stay so, where PEFT would have all of the adapter's trained again.
    """
    if not hasattr(model, "disable_adapter"):
        yield
        return
    fixed = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    try:
        with model.disable_adapter():
            yield
    finally:
        for parameter in fixed:
            parameter.requires_grad_(False)


def decoder(model: Any) -> nn.Module:
    """The part of the model that ends in final hidden states, before the output layer."""
    base = without_adapter(model)
    whole: nn.Module = base.base_model
    inner: nn.Module = base.get_decoder() if hasattr(base, "get_decoder") else whole
    return whole if inner is base else inner


def width(model: Any) -> int:
    """The hidden size: the configuration's, or that of the embedding where it has another name."""
    size = getattr(model.config.get_text_config(), "hidden_size", None)
    return int(size or model.get_input_embeddings().weight.shape[1])


def window(model: Any) -> int:
    """The most positions of the model; 2**30 where its configuration has no number."""
    config = getattr(model, "config", None)
    config = None if config is None else config.get_text_config()
    names = ("max_position_embeddings", "n_positions")
    return int(next((size for name in names if (size := getattr(config, name, None))), 2**30))


@dataclass(frozen=True)
class OutputHead:
    """The map from final hidden states to logits: `softcap * tanh(scale * (h W^T + b) / softcap)`.

    Args:
        weight (`Tensor` of shape (vocabulary, hidden)): output embedding.
        bias (`Tensor` of shape (vocabulary,), *optional*)
        scale (`float`, *optional*, defaults to 1.0): factor on the logits (Cohere's, Granite's).
        softcap (`float`, *optional*): bound of the logits (Gemma's).
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Logits of shape (tokens, vocabulary) in float32 or wider.

        Args:
            hidden (`Tensor` of shape (tokens, hidden))
            out (`Tensor` of shape (tokens, vocabulary), *optional*): where they are written;
                without gradients.
        """
        if not torch.is_autocast_enabled(hidden.device.type):
            hidden = hidden.to(self.weight.dtype)
        if out is not None and out.dtype == hidden.dtype == self.weight.dtype:
            torch.mm(hidden, self.weight.T, out=out)
            logits = out if self.bias is None else out.add_(self.bias)
        else:
            logits = nn.functional.linear(hidden, self.weight, self.bias)
            logits = logits if out is None else out.copy_(logits)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        if self.scale != 1.0:
            logits = torch.mul(logits, self.scale, out=out)
        if self.softcap is not None:
            logits = torch.tanh(torch.div(logits, self.softcap, out=out), out=out)
            logits = torch.mul(logits, self.softcap, out=out)
        return logits

    def slope(self, logits: Tensor) -> Tensor | float | None:
        """d logits / d (h W^T + b) at these logits, shape (tokens, vocabulary); `None` for 1."""
        if self.softcap is not None:
            return (1 - (logits / self.softcap).square()).mul_(self.scale)
        return None if self.scale == 1.0 else self.scale

    def cast(self, hidden: Tensor) -> OutputHead:
        """The head in autocast's precision where that is on for the device of `hidden`."""
        device_type = hidden.device.type
        if not torch.is_autocast_enabled(device_type):
            return self
        return self.to(torch.get_autocast_dtype(device_type))

    def to(self, place: torch.device | torch.dtype) -> OutputHead:
        """The head on that device, or in that precision."""
        bias = None if self.bias is None else self.bias.to(place)
        return replace(self, weight=self.weight.to(place), bias=bias)

    def frozen(self) -> OutputHead:
        """A copy that later training steps do not change."""
        bias = None if self.bias is None else self.bias.detach().clone()
        return replace(self, weight=self.weight.detach().clone(), bias=bias)


def output_layer(model: Any) -> Any:
    """The module that holds the output embedding.

    Raises:
        UserError: if the model has none: it is not a causal language model.
    """
    base = without_adapter(model)
    layer = base.get_output_embeddings()
    if layer is None:
        raise UserError(
            f"{type(base).__name__} has no output embedding: it is not a causal language model"
        )
    return layer


def output_head(model: Any) -> OutputHead:
    """The model's map from final hidden states to logits, with its logit scale and soft cap.

    Raises:
        UserError: if the model has no output embedding.
    """
    layer = output_layer(model)
    config = without_adapter(model).config.get_text_config()
    scale = 1.0
    for name in LOGIT_FACTORS:
        scale *= float(getattr(config, name, None) or 1.0)
    scaling = float(getattr(config, "logits_scaling", None) or 1.0)
    scale = scale * scaling if config.model_type in LOGITS_TIMES_SCALING else scale / scaling
    softcap = getattr(config, "final_logit_softcapping", None)
    return OutputHead(layer.weight, getattr(layer, "bias", None), scale, softcap)


def layer_list(model: Any) -> list[nn.Module] | None:
    """The decoder's layers, first to last; `None` where they are in no list of a known name."""
    body = decoder(model)
    layers = getattr(body, "layers", None) or getattr(body, "h", None)
    return None if layers is None else list(layers)


def final_norm(model: Any) -> nn.Module | None:
    """The norm behind the decoder's last layer; `None` where it has no known name."""
    body = decoder(model)
    found = (getattr(body, name, None) for name in NORMS)
    return next((norm for norm in found if isinstance(norm, nn.Module)), None)


def _no_such_layer(option: str, value: float, layers: list[nn.Module] | None) -> UserError:
    found = "no list of layers that is known" if layers is None else f"{len(layers)} layers"
    counted = "" if layers is None else ", counted from 0"
    return UserError(f"{option} is {value}, but the model has {found}{counted}")


@contextlib.contextmanager
def layer_outputs(model: Any, layer: int) -> Iterator[list[Tensor]]:
    """Collects the outputs of that layer at each forward inside the block: tensors of shape (rows,
    length, hidden).

    Raises:
        UserError: if the model has no such layer.
    """
    layers = layer_list(model)
    if layers is None or not 0 <= layer < len(layers):
        raise _no_such_layer("steering_layer", layer, layers)
    outputs: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handle = layers[layer].register_forward_hook(keep)
    try:
        yield outputs
    finally:
        handle.remove()


def freeze_all_but(model: Any, layers: Sequence[int]) -> list[nn.Parameter]:
    """Freezes everything but these layers; returns the parameters that it froze."""
    found = layer_list(model) or []
    kept = {id(parameter) for number in layers for parameter in found[number].parameters()}
    return _freeze(parameter for parameter in model.parameters() if id(parameter) not in kept)


def freeze_lower_layers(model: Any, count: float) -> list[nn.Parameter]:
    """Freezes the embedding and the first layers; returns the parameters that it froze.

    Args:
        count (`int` or `float`): how many layers; under 1: that share of them.

    Raises:
        UserError: if the model has fewer layers, or no list of a known name.
    """
    if count <= 0:
        return []
    layers = layer_list(model)
    if layers is not None and count < 1:
        count = int(count * len(layers))
    if layers is None or count >= len(layers):
        raise _no_such_layer("frozen_layers", count, layers)
    parts = [without_adapter(model).get_input_embeddings(), *layers[: int(count)]]
    return _freeze(parameter for part in parts for parameter in part.parameters())


def _freeze(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    frozen = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return frozen


def unfreeze(parameters: Sequence[nn.Parameter]) -> None:
    """Undoes `freeze_lower_layers` and `freeze_all_but`."""
    for parameter in parameters:
        parameter.requires_grad_(True)
