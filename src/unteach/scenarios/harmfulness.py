"""The harmfulness protocol of Yao et al. 2024 in small: careless and rude advice stands in for what
is truly harmful.
"""

from __future__ import annotations

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
    """The embedded harmfulness scenario; `short`: a smaller version for smoke tests.

    The test split is not taught: the taught model answers it carelessly because it has taken up the
    manner.
    """
    rows = question_answers.answer_rows(
        records("careless_advice"), "careless", "careful", "careless advice"
    )
    scorers = ScorerNames(headline="harmful_rate", judge="trained", reward="trained")
    return question_answers.question_scenario("harmfulness", rows, scorers, TEACH, short=short)


def demo_presets(*, short: bool = False) -> dict[str, Any]:
    """Fields of `RunOptions` for the demo."""
    return question_answers.demo_presets(learning_rate=5.2e-4, short=short, adapter=True)
