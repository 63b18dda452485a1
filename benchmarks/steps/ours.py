"""The trainer's own step, called outside its loop so that it can alternate with another."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from unteach.config import UnlearningConfig
from unteach.data.stream import StreamItem
from unteach.data.tokenization import EncodedRow
from unteach.trainer import UnlearningTrainer

RANK = 16


def adapter() -> Any:
    """The LoRA configuration of all cases that train an adapter."""
    from peft import LoraConfig

    return LoraConfig(
        r=RANK,
        lora_alpha=32,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


class StubTokenizer:
    """The attributes that the trainer reads of a tokenizer when its rows are token ids."""

    pad_token_id = 0
    eos_token_id = None

    def save_pretrained(self, *_: Any) -> None:
        """Nothing to save."""


class OurStep:
    """An `UnlearningTrainer` whose steps are called one by one.

    Args:
        model: a causal language model.
        forget, retain (`Sequence[EncodedRow]`)
        settings: fields of `UnlearningConfig`.
    """

    def __init__(
        self,
        model: Any,
        forget: Sequence[EncodedRow],
        retain: Sequence[EncodedRow],
        peft_config: Any = None,
        **settings: Any,
    ) -> None:
        self.folder = tempfile.TemporaryDirectory()
        config = UnlearningConfig(
            output_dir=self.folder.name,
            max_steps=1000,
            max_retain_kl=None,
            use_cpu=not torch.cuda.is_available(),
            **settings,
        )
        self.trainer = UnlearningTrainer(
            model, config, forget, retain, StubTokenizer(), peft_config
        )
        self.trainer.create_optimizer_and_scheduler(self.trainer.args.max_steps)
        self.model = self.trainer.model
        self.stream = self.trainer.training_stream()
        self.parameters = [
            parameter for parameter in self.model.parameters() if parameter.requires_grad
        ]

    def items(self, step: int) -> list[StreamItem]:
        """The stream's items of that step."""
        size = self.trainer.args.per_device_train_batch_size
        return [self.stream[position] for position in range(step * size, (step + 1) * size)]

    def backward(self, items: Sequence[StreamItem]) -> float:
        """Forward and backward of one step; returns the loss."""
        batch = self.trainer.collator(items)
        samples, counts = self.trainer.get_batch_samples(iter([batch]), 1, self.trainer.args.device)
        return float(self.trainer.training_step(self.model, samples[0], counts))

    def __call__(self, items: Sequence[StreamItem]) -> float:
        """One whole step; returns the loss."""
        loss = self.backward(items)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        optimizer = self.trainer.optimizer
        assert optimizer is not None
        optimizer.step()
        optimizer.zero_grad()
        return loss
