"""Settings that transformers looks at only when training begins, looked at before anything is
loaded.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import Trainer, get_scheduler
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from unteach.config.unlearning import UnlearningConfig
from unteach.errors import UserError

NEED_THE_MODEL = ("galore", "apollo", "lomo")
"""Optimisers that cannot be made without it."""


def check_training_settings(config: UnlearningConfig) -> None:
    """Makes what `Trainer` would make of these settings, on one parameter: reporters, optimiser,
    schedule.

    Raises:
        UserError: with what transformers or torch say.
    """
    try:
        get_reporting_integration_callbacks(config.report_to)
        if any(name in str(config.optim) for name in NEED_THE_MODEL):
            return
        kind, options = Trainer.get_optimizer_cls_and_kwargs(config)
        optimizer = kind([torch.nn.Parameter(torch.zeros(1))], **options)
        steps, schedule = (
            max(1, config.max_steps),
            cast("dict[str, Any]", config.lr_scheduler_kwargs or {}),
        )
        get_scheduler(
            config.lr_scheduler_type,
            optimizer,
            num_warmup_steps=config.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=schedule,
        )
    except Exception as error:  # each has its own types
        raise UserError(
            f"an option that training refuses: {' '.join(str(error).split())[:300]}"
        ) from None
