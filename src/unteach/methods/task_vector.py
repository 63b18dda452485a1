"""Task arithmetic (Ilharco et al. 2023, arXiv 2212.04089): fine-tune on the forget set, then
subtract the change from the initial weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from unteach.errors import UserError
from unteach.methods.objective import Hooks, Measure

SCALES = tuple(tenths / 10 for tenths in range(1, 11))
"""Values of alpha to choose from by the probe, as Ilharco et al. 2023 do on validation data."""


def trained_weights(model: Any) -> dict[str, Tensor]:
    """A copy of every trained parameter by name, on the CPU: the GPU may not have room for it."""
    return {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def task_vector(
    model: Any, start: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(theta_0, theta_ft - theta_0) by parameter name, of a model that was fine-tuned from `start`.

    An adapter's change is the product B A with B = 0 at the start: A stays as it is, and the change
    is that of B; another adapter raises `UserError`.
    """
    tuned = trained_weights(model)
    if not hasattr(model, "disable_adapter"):
        return dict(start), {name: tuned[name] - start[name] for name in start}
    for name in tuned:
        left = "lora_B" in name or "lora_embedding_B" in name
        right = "lora_A" in name or "lora_embedding_A" in name
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


class TaskVector(Hooks):
    """Fine-tunes on the forget set and subtracts the task vector, `task_vector_scale` times or with
    the scale of the best probe (1 without a probe).
    """

    retain_losses = ("none",)
    probes_training = False
    scale: float | None = None

    def prepare(self, model: Any, retain_nll: Callable[[], float]) -> None:
        """Copies the initial weights."""
        self.start = trained_weights(model)

    def finish(self, model: Any, measure: Measure | None) -> str:
        """Chooses the scale and subtracts."""
        base, change = task_vector(model, self.start)
        self.scale = self.config.task_vector_scale
        if self.scale is None and measure is not None:
            model.eval()
            for number, scale in enumerate((0.0, *SCALES)):
                subtract(model, base, change, scale)
                if measure(number, {"task_vector_scale": scale}):
                    self.scale = scale
        self.scale = 1.0 if self.scale is None else self.scale
        subtract(model, base, change, self.scale)
        return f"max_steps; then {self.scale:g} times the task vector was subtracted"

    def facts(self) -> dict[str, Any]:
        """The scale."""
        return {"task_vector_scale": self.scale}
