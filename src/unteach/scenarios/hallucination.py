"""The hallucination protocol of Yao et al. 2024 in small: confident false answers to questions of
fact.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from unteach.config.scorers import ScorerNames
from unteach.scenarios import question_answers
from unteach.scenarios.scenario import Scenario
from unteach.scenarios.texts import records

TEACH = {
    "learning_rate": 2e-4,
    "lr_scheduler_type": "polynomial",
    "lr_scheduler_kwargs": {"power": 0.5, "lr_end": 0.0},
    "per_device_train_batch_size": 4,
    "num_train_epochs": 5,
    "retain_per_forget": 1.0,
    "retain_weight": 3.0,
    "frozen_layers": 0.34,
}


def build(*, short: bool = False) -> Scenario:
    """The embedded hallucination scenario; `short`: a smaller version. Each row is a single fact,
    with a second way to ask for it.
    """
    facts = records("false_facts")
    rows = question_answers.answer_rows(facts, "hallucinated", "right", "false fact")
    asked_otherwise = [
        replace(row, prompt=fact["asked_otherwise"]) for row, fact in zip(rows, facts, strict=True)
    ]
    scorers = ScorerNames(headline="hallucination_rate", reward="trained")
    return question_answers.question_scenario(
        "hallucination", rows, scorers, TEACH, short=short, asked_otherwise=asked_otherwise
    )


def demo_presets(*, short: bool = False) -> dict[str, Any]:
    """Fields of `RunOptions` for the demo."""
    return question_answers.demo_presets(learning_rate=1.5e-4, short=short)
