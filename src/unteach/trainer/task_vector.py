"""Task-vector negation: what fine-tuning on the forget set has changed is taken off the weights
that it started from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from unteach.errors import UserError
from unteach.trainer.stopping import Probe, StopRule

SCALES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Values of alpha that are tried on the probe, as Ilharco et al. 2023 choose theirs on validation
data.
"""


def trained_weights(model: Any) -> dict[str, Tensor]:
    """A copy of every parameter that is trained, by name, on the CPU: beside training a GPU may not
    have the room.
    """
    return {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def task_vector(
    model: Any, start: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(theta_0, theta_ft - theta_0), by parameter name, of a model that was fine-tuned from
    `start`.

    An adapter's change is the product B A, with B = 0 at the start: its A stays as it is, and the
    change is that of B.

    Raises:
        UserError: for an adapter whose change is not of that form.
    """
    tuned = trained_weights(model)
    if not hasattr(model, "peft_config"):
        return dict(start), {name: tuned[name] - start[name] for name in start}
    for name in tuned:
        left, right = (
            "lora_B" in name or "lora_embedding_B" in name,
            "lora_A" in name or "lora_embedding_A" in name,
        )
        if not (left or right) or (left and bool(start[name].any())):
            raise UserError(
                "method 'task_vector' takes plain LoRA whose B starts at zero, or all weights;"
                " leave the other adapter out"
            )
    base = {
        name: torch.zeros_like(value) if "_B" in name else value for name, value in tuned.items()
    }
    return base, {name: tuned[name] - base[name] for name in tuned}


@torch.no_grad()
def subtract(
    model: Any, base: Mapping[str, Tensor], change: Mapping[str, Tensor], scale: float
) -> None:
    """Sets the model to theta_0 - alpha (theta_ft - theta_0), alpha = `scale` (Ilharco et al. 2023,
    section 3).
    """
    for name, parameter in model.named_parameters():
        if name in base:
            parameter.copy_(base[name] - scale * change[name])


def negate(
    model: Any,
    start: Mapping[str, Tensor],
    scale: float | None,
    probe: Probe | None,
    rule: StopRule,
    on_probe: Callable[[float, Mapping[str, float]], None],
) -> float:
    """Takes the task vector off the model; returns alpha.

    Args:
        model: the fine-tuned model, changed in place.
        start: `trained_weights` before fine-tuning.
        scale (`float`, *optional*): alpha; else the one of `SCALES` with the best probe, or 1 where
            there is no probe.
        probe (`Probe`, *optional*): measures behaviour.
        rule (`StopRule`): scores the probes, the start's first.
        on_probe (`Callable`): told of each alpha and its rates.
    """
    base, change = task_vector(model, start)
    if scale is None and probe is not None:
        model.eval()
        for number, tried in enumerate((0.0, *SCALES)):
            subtract(model, base, change, tried)
            rates = dict(probe(model))
            if rule.record(number, rates):
                scale = tried
            on_probe(tried, rates)
    chosen = 1.0 if scale is None else scale
    subtract(model, base, change, chosen)
    return chosen
