"""Unlearn, noise, distil: a second training that starts part of the way to random weights and
learns from the unlearned model's own answers.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from unteach.errors import UserError
from unteach.robust.wrapper import Wrapper
from unteach.seeding import row_generator


class Distillation(Wrapper):
    """UNDO (Lee et al. 2025, arXiv 2506.06278): after the training by the method, whose result is
    the teacher p_t, the student starts at

        theta = (1 - alpha) theta_t + alpha beta N,  N by Glorot and Bengio for matrices, else 0

    and minimises KL(p_t || p) along the teacher's own answers to the forget prompts and along the
    retain rows, by `distill_steps` steps of all weights. What the teacher only hides is in its
    weights and not in its answers, so the noise takes it and nothing brings it back.

    Whatever trains it, the second training takes weights, gradients and optimiser state of the
    whole model; the teacher is stored as final hidden states, not as a second model.
    """

    after = True
    shards = False

    @classmethod
    def check(cls, name: str, config: Any) -> None:
        """Raises `UserError` for options that the wrapper does not work with."""
        if config.objective.forget is None:
            raise UserError(
                f"robust is {name!r}, but method {config.method!r} forgets nothing; leave robust"
                " out"
            )
        if config.uses_deepspeed or config.uses_fsdp:
            raise UserError(
                f"robust is {name!r}, which adds noise to whole weights; it does not work with"
                " DeepSpeed or FSDP: train in one process or with DDP"
            )
        if not config.distill_noise < 1:
            raise UserError(f"distill_noise is {config.distill_noise}, it must be under 1")


def settings_of(config: Any, width: int) -> dict[str, Any]:
    """The fields of `UnlearningConfig` in which the second training differs from the first.

    Args:
        config (`UnlearningConfig`): of the first.
        width (`int`): the model's hidden size, to which the learning rate is inverse.
    """
    of_a_method = ("forget_weight", "mismatch_weight", "retain_weight", "beta", "gamma")
    return {
        **dict.fromkeys((*of_a_method, "max_retain_kl", "collapse_kl", "patience")),
        "method": "finetuning",
        "retain_loss": "kl",
        "robust": "none",
        "update": "all",
        "reference": "stored",
        "state_weight": 0.0,
        "least_steps": 0,
        "max_steps": config.distill_steps,
        "learning_rate": config.distill_rate / width,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,
    }


@torch.no_grad()
def add_noise(model: Any, alpha: float, beta: float, seed: int) -> None:
    """Moves each trained weight to (1 - alpha) theta + alpha beta N, in place. N of a matrix (of
    each of a stack of them) is uniform within sqrt(6 / (rows + columns)), and 0 of a vector; it
    depends on seed and name alone.
    """
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        wide = weight.double() * (1 - alpha)
        if weight.dim() > 1:
            bound = math.sqrt(6 / sum(weight.shape[-2:]))
            drawn = row_generator("distill", seed, name).uniform(-bound, bound, tuple(weight.shape))
            wide += alpha * beta * torch.from_numpy(drawn).to(weight.device)
        weight.copy_(wide)
