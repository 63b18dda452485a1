"""Cases of `step_time.py` and `memory.py`: batch shape, precision, all weights or an adapter."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from steps import shapes
from steps.naive import NaiveStep
from steps.ours import OurStep, adapter
from unteach import models

MODEL = "smollm2-135m-instruct"
WEIGHTS = (0.5, 1.0, 1.0)
LEARNING_RATE = 1e-7
"""So small that both sides keep the same weights while they are measured."""


@dataclass(frozen=True)
class Case:
    """One row of the tables.

    Args:
        name (`str`)
        shape (`Shape`)
        bf16 (`bool`): under bfloat16 autocast, on both sides.
        lora (`bool`): an adapter on all linear layers instead of all weights, on both sides. With
            `bf16`, our side holds the frozen weights in bfloat16 (`--dtype bfloat16`); autocast
            would round them at every step.
        compiled (`bool`): our side's layers are compiled (`compile_layers=true`) before timing.
    """

    name: str
    shape: shapes.Shape
    bf16: bool = False
    lora: bool = False
    compiled: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """What our side holds the weights in."""
        return torch.bfloat16 if self.bf16 and self.lora else torch.float32


CASES = [
    Case("full-fp32", shapes.PAPER),
    Case("full-bf16", shapes.PAPER, bf16=True),
    Case("lora-fp32", shapes.PAPER, lora=True),
    Case("lora-bf16", shapes.PAPER, bf16=True, lora=True),
    Case("prompt-heavy-fp32", shapes.PROMPT_HEAVY),
    Case("chat-fp32", shapes.CHAT),
    Case("chat-bf16", shapes.CHAT, bf16=True),
    Case("full-bf16-compiled", shapes.PAPER, bf16=True, compiled=True),
    Case("lora-bf16-compiled", shapes.PAPER, bf16=True, lora=True, compiled=True),
]


def has_bf16() -> bool:
    """Whether the processor has bfloat16 instructions; without them autocast slows a step down."""
    known = torch.cpu.get_capabilities()
    return torch.cuda.is_available() or any(
        known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16")
    )


def our_step(case: Case, model: Any, **settings: Any) -> OurStep:
    """Our side of a case, which trains `model` itself."""
    forget, retain = shapes.rows(case.shape, model.config.vocab_size)
    peft_config = adapter() if case.lora else None
    defaults = {
        "method": "ga_mismatch",
        "mismatch_completions": case.shape.mismatch,
        "per_device_train_batch_size": case.shape.batch,
        "learning_rate": LEARNING_RATE,
        "bf16": case.bf16,
        "compile_layers": case.compiled,
    }
    return OurStep(model, forget, retain, peft_config, **(defaults | settings))


def naive_step(case: Case, model: Any, *, bf16: bool | None = None) -> NaiveStep:
    """The naive side; `model` has its adapter already."""
    return NaiveStep(
        model, WEIGHTS, bf16=case.bf16 if bf16 is None else bf16, learning_rate=LEARNING_RATE
    )


def pair(case: Case) -> tuple[OurStep, NaiveStep]:
    """Both sides of a case on copies of the same weights; the naive side holds them in float32."""
    ours = our_step(case, models.load_model(MODEL, dtype=case.dtype))
    ours.trainer.prepare()
    return ours, naive_step(case, copy.deepcopy(ours.model).float())


def chosen(names: Sequence[str] | None) -> list[Case]:
    """The cases of these names, or all of them."""
    return [case for case in CASES if not names or case.name in names]
