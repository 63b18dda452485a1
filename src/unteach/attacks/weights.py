"""Attacks that change the weights without training: rounding to 8 or 4 bits, pruning, and merging
back towards the original model. They change the model that they are given; callers pass a copy.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from unteach import models
from unteach.attacks.attack import Attack, LeftOut, Outcome, Trial
from unteach.attacks.prompting import attack_prompts
from unteach.attacks.prompts import plain
from unteach.attacks.target import Target
from unteach.errors import UserError
from unteach.robust.perturbations import GROUP, group_size
from unteach.run.folder import ORIGINAL


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without what torchao logs at its import about GPU kernels that are missing."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def missing_torchao() -> str | None:
    """Why weights cannot be quantised here, or `None`."""
    try:
        with _silent():
            import torchao.quantization  # noqa: F401
    except ImportError:
        return "torchao is not installed; install it with: pip install 'unteach[quantization]'"
    return None


class NothingToRound(LeftOut):
    """The model has no layer that torchao quantises."""


def quantize(model: Any, bits: int) -> Any:
    """Rounds the weights of all linear layers except the output head, in place.

    torchao's weight-only quantiser: 8 bits with one scale per row (symmetric), 4 bits with a scale
    and a zero point per `GROUP` weights of a row (asymmetric, as GGUF's Q4_1). The rounded weights
    are stored as floats, which computes the same as torchao's kernels on every machine.

    Args:
        bits (`int`): 8 or 4.

    Raises:
        UserError: if torchao is not installed.
        NothingToRound: if the model has no linear layer (GPT-2 has `Conv1D` instead).
    """
    reason = missing_torchao()
    if reason:
        raise UserError(reason)
    device = next(model.parameters()).device
    model.cpu()  # the same rounding on every machine
    layers = _linear_layers(model)
    if not layers:
        raise NothingToRound(
            f"{type(model).__name__} has no linear layers, which are all that torchao quantises"
        )
    sizes = {id(layer): group_size(layer.in_features) for layer in layers}
    with _silent():
        from torchao.quantization import IntxWeightOnlyConfig, PerAxis, PerGroup, quantize_
        from torchao.quantization.quant_primitives import MappingType

        for size in sorted(set(sizes.values())):
            if bits == 8:
                config = IntxWeightOnlyConfig(torch.int8, PerAxis(0))
            else:
                four_bits: Any = torch.int4  # type: ignore[attr-defined]
                config = IntxWeightOnlyConfig(four_bits, PerGroup(size), MappingType.ASYMMETRIC)
            quantize_(
                model, config, filter_fn=lambda module, _, size=size: sizes.get(id(module)) == size
            )
        for layer in layers:
            layer.weight = nn.Parameter(layer.weight.dequantize().detach(), requires_grad=False)
    return model.to(device)


def _linear_layers(model: Any) -> list[nn.Linear]:
    """All linear layers but the output head."""
    head = models.without_adapter(model).get_output_embeddings()
    return [
        module for module in model.modules() if isinstance(module, nn.Linear) and module is not head
    ]


@torch.no_grad()
def prune(model: Any, share: float) -> Any:
    """Sets the smallest weights of each linear layer but the output head to 0, in place.

    Args:
        share (`float`): of a layer's weights; the smallest by magnitude.

    Raises:
        LeftOut: if the model has no linear layer.
    """
    layers = _linear_layers(model)
    if not layers:
        raise LeftOut(f"{type(model).__name__} has no linear layers to prune")
    for layer in layers:
        count = int(share * layer.weight.numel())
        if count:
            sizes = layer.weight.abs()
            layer.weight[sizes <= sizes.flatten().kthvalue(count).values] = 0.0
    return model


@torch.no_grad()
def merge_back(model: Any, original: Any, share: float) -> Any:
    """Moves all weights by `share` of the way to those of another model of the same shape, in
    place.
    """
    for weight, other in zip(model.parameters(), original.parameters(), strict=True):
        weight.lerp_(other.to(weight), share)
    return model


def _changed(trial: Trial, change: Callable[[Any], Any]) -> Outcome:
    """The model's greedy answers after a change of its weights."""
    prompts = attack_prompts(plain, trial.target.prompt_context)
    return trial.scored_answers(change(trial.copy()), prompts, progress=trial.progress)


def quantization(bits: int) -> Attack:
    """Weights of 8 or 4 bits."""

    def budget(target: Target) -> dict[str, Any]:
        group = None if bits == 8 else GROUP
        return {"bits": bits, "group": group, "by": "torchao, weights of linear layers"}

    return Attack(
        "quantization",
        f"{bits}-bit weights",
        f"weights rounded to {bits} bits by torchao",
        lambda trial: _changed(trial, partial(quantize, bits=bits)),
        budget,
        missing=lambda target: missing_torchao(),
        changes=True,
    )


def pruning(share: float, **more: Any) -> Attack:
    """The smallest weights set to 0."""
    return Attack(
        "pruning",
        f"pruning {share:.0%}",
        f"the smallest {share:.0%} of each layer's weights set to 0",
        lambda trial: _changed(trial, partial(prune, share=share)),
        lambda target: {"share": share, "by": "magnitude, in each linear layer"},
        changes=True,
        **more,
    )


def merging(share: float, **more: Any) -> Attack:
    """Weights part of the way back to the original's, whose holder needs no attack: only what
    comes back beyond a model that never knew was left in the unlearned one.
    """

    def run(trial: Trial) -> Outcome:
        if trial.is_original:
            return trial.without_attack()
        folder = trial.target.folder
        return _changed(trial, lambda model: merge_back(model, folder.model(ORIGINAL), share))

    title, about = f"merging {share:.0%}", f"weights moved {share:.0%} of the way to the original's"
    return Attack(
        "merging", title, about, run, lambda target: {"share": share}, changes=True, **more
    )
