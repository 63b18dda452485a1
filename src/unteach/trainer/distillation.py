"""The second training of `--robust distill`: the unlearned model's distributions, stored before it
is moved towards noise, are learnt again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback

from unteach.config.unlearning import UnlearningConfig
from unteach.data.rows import Row
from unteach.robust.distillation import add_noise
from unteach.trainer.trainer import UnlearningTrainer


class _Noise(TrainerCallback):
    """Adds the noise before the first step; a checkpoint that is resumed holds it already."""

    def __init__(self, alpha: float, beta: float, seed: int) -> None:
        self.arguments = alpha, beta, seed

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`; the reference is stored by now."""
        if state.global_step == 0:
            add_noise(kwargs["model"], *self.arguments)


def distillation_trainer(
    model: Any,
    config: UnlearningConfig,
    rows: Sequence[Row],
    tokenizer: Any,
    alpha: float,
    beta: float,
) -> UnlearningTrainer:
    """A trainer whose `train` distils the model into a copy of itself that is part of the way to
    noise, in place.

    Args:
        model: the unlearned one, without an adapter; all its weights are trained.
        config (`UnlearningConfig`): with `robust.distillation.settings_of`.
        rows: prompts with the model's own answers, and retain rows.
        alpha, beta: `distill_noise` and `distill_scale`.
    """
    model.requires_grad_(True)
    noise = _Noise(alpha, beta, config.seed)
    return UnlearningTrainer(model, config, None, list(rows), tokenizer, callbacks=[noise])
