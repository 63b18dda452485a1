"""What a run takes where the user names no learning rate and no length: rules that fit small models and large ones, few rows and many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unteach.config import UnlearningConfig

RATE_TIMES_WIDTH = 0.075
"""Learning rate times the model's width, all weights trained: 1.3e-4 at 576, where it was measured (docs/log.md), 1.8e-5 at 4,096.

For Adam the rate that suits goes with one over the width (Yang et al. 2022, arXiv 2203.03466).
"""
ADAPTER_FACTOR = 8.0
"""An adapter takes about ten times the rate of all weights."""
LEAST_STEPS = 100
"""Steps of the longest run on few rows; what ends it before is the model's behaviour."""
EPOCHS = 3.0


def suitable_learning_rate(width: int, config: UnlearningConfig, *, lora: bool) -> float:
    """The learning rate of a run whose user names none, to two digits.

    Args:
        width (`int`): the model's hidden size.
        config: its method says what share of the rule's rate it stands.
        lora (`bool`): whether an adapter is trained.
    """
    rate = RATE_TIMES_WIDTH / width * (ADAPTER_FACTOR if lora else 1.0) * config.objective.rate
    return float(f"{rate:.2g}")


def complete(config: UnlearningConfig, given: Mapping[str, Any], *, width: int | None, rows: int, lora: bool, processes: int) -> None:
    """Fills in what was not given: the learning rate by the model's width, and epochs that come to `LEAST_STEPS` steps or more.

    Args:
        config: is changed.
        given: the settings that somebody chose.
        width (`int`, *optional*): the model's hidden size; unknown: the rate stays.
        rows (`int`): forget rows.
        lora (`bool`)
        processes (`int`): each takes a batch of its own.
    """
    if "learning_rate" not in given and width:
        config.learning_rate = suitable_learning_rate(width, config, lora=lora)
    if not {"max_steps", "num_train_epochs"} & set(given):
        items = config.per_device_train_batch_size * config.gradient_accumulation_steps * processes
        config.num_train_epochs = max(EPOCHS, LEAST_STEPS * items / max(1, rows))
