"""When a model is beyond saving: numbers that are no longer finite, or a retain KL far over any
budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

STEPS_IN_A_ROW = 5


@dataclass
class CollapseWatch:
    """Looks at the numbers of each step; its `count` goes into the checkpoint.

    Args:
        limit (`float`, *optional*): retain KL in nats per token over which a step counts as
            collapsed; `None`: never.
        count (`int`): such steps in a row so far.
    """

    limit: float | None
    count: int = 0

    def reason(self, step: int, means: Mapping[str, float]) -> str:
        """Why training must end after a step with these means; empty if it need not."""
        if not math.isfinite(means.get("loss", 0.0)):
            return nonfinite_loss(step, means["loss"])
        if "retain_kl" not in means:  # a step without retain rows says neither
            return ""
        kl = means["retain_kl"]
        self.count = self.count + 1 if self.limit is not None and not kl <= self.limit else 0
        if self.count < STEPS_IN_A_ROW:
            return ""
        return (
            f"the model has collapsed: its retain KL was over collapse_kl ({self.limit:g} nats per"
            f" token) in {self.count} steps in a row, {kl:.3g} at step {step}; lower the learning"
            " rate, or raise retain_weight"
        )


def nonfinite_loss(step: int, loss: float) -> str:
    """The reason for ending on a loss that is not a number or infinite."""
    return f"the loss is {loss} at step {step}; lower the learning rate or set max_grad_norm"


def nonfinite_weights(step: int) -> str:
    """The reason for ending on weights that are not finite."""
    return (
        f"the weights are no longer finite after step {step}; lower the learning rate or set"
        " max_grad_norm"
    )
