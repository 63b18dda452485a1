"""Fine-tuning on a few rows until what was forgotten is back: how many steps it takes, beside a
model that never knew.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback

from unteach.config.unlearning import UnlearningConfig
from unteach.data.rows import Row
from unteach.evaluation.results import MetricResult
from unteach.files.atomic import write_json
from unteach.files.checkpoints import latest_checkpoint
from unteach.trainer.trainer import UnlearningTrainer

SOURCES = ("forget", "related", "unrelated")
LONGEST = 1_000_000
"""Most tokens of a row: whatever the run itself took is taken."""
SAVE_EVERY = 50
"""Steps between two checkpoints of a relearning, so that a long one goes on after an interruption."""

Point = dict[str, Any]
Measure = Callable[[Any], MetricResult]


@dataclass(frozen=True)
class Relearning:
    """The settings of one relearning.

    Args:
        steps (`int`): most optimiser steps.
        every (`int`): steps between two measurements.
        learning_rate (`float`)
        goal (`float`): the rate at which what was forgotten counts as back: half of the original's.
        batch_size (`int`)
        seed (`int`)
    """

    steps: int
    every: int
    learning_rate: float
    goal: float
    batch_size: int = 4
    seed: int = 0


class _Curve(TrainerCallback):
    """Measures every few steps, keeps the points in a file, and ends the training at the goal."""

    def __init__(
        self, path: Path, settings: Relearning, measure: Measure, points: list[Point]
    ) -> None:
        self.path, self.settings, self.measure, self.points = path, settings, measure, points

    def record(self, step: int, model: Any) -> bool:
        """Measures now; `True` if the goal is reached."""
        training = model.training
        model.eval()
        result = self.measure(model)
        model.train(training)
        self.points.append({"step": step, **result.as_json()})
        write_json(self.path, self.points)
        return reached(self.points[-1], self.settings.goal)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """See `TrainerCallback`."""
        last = state.global_step >= self.settings.steps
        if last:
            control.should_save = False  # nobody goes on from the end
        due = state.global_step % self.settings.every == 0 or last
        if due and self.record(state.global_step, kwargs["model"]):
            control.should_training_stop = True
        return control


def reached(point: Mapping[str, Any], goal: float) -> bool:
    """Whether a point of the curve is at the goal."""
    return point["value"] is not None and point["value"] >= goal


def relearn(
    model: Any,
    tokenizer: Any,
    rows: list[Row],
    measure: Measure,
    folder: Path,
    settings: Relearning,
    on_step: Callable[[int, str], None] | None = None,
) -> list[Point]:
    """The rate after every few steps of plain fine-tuning (AdamW, all weights, cross-entropy on the
    completions).

    Args:
        model: a copy of a model; it is changed.
        tokenizer: its tokenizer.
        rows (`list[Row]`): what it is fine-tuned on.
        measure (`Callable`): from the model to its rate on rows that are not among `rows`.
        folder (`Path`): for checkpoints and the points so far; removed at the end.
        settings (`Relearning`)
        on_step (`Callable`, *optional*): called with the step and a note.

    Returns:
        points `{"step", "value", "n", "ci_low", "ci_high", "higher_is_better"}`, the first at step
        0; the last is the first at the goal, or that of the last step.
    """
    path = folder / "points.json"
    newest = latest_checkpoint(folder) if folder.exists() else None
    done = int(newest.name.rpartition("-")[2]) if newest else 0
    points: list[Point] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    curve = _Curve(path, settings, measure, [point for point in points if point["step"] <= done])
    if not curve.points:
        curve.record(0, model)
    if not reached(curve.points[-1], settings.goal):
        config = UnlearningConfig(
            output_dir=str(folder),
            method="finetuning",
            learning_rate=settings.learning_rate,
            per_device_train_batch_size=min(settings.batch_size, len(rows)),
            max_steps=settings.steps,
            max_length=LONGEST,
            save_strategy="steps",
            save_steps=SAVE_EVERY,
            save_total_limit=2,
            seed=settings.seed,
            data_seed=settings.seed,
        )
        trainer = UnlearningTrainer(model, config, None, rows, tokenizer, callbacks=[curve])
        trainer.remove_callback(PrinterCallback)
        if on_step:
            trainer.on_step = lambda record: on_step(
                int(record["step"]), f"rate {curve.points[-1]['value'] or 0:.0%}"
            )
        trainer.train(resume_from_checkpoint=True)
        del trainer
        # a trainer and its callbacks hold each other, and with them the optimiser's moments
        gc.collect()
    shutil.rmtree(folder, ignore_errors=True)
    return curve.points


def steps_to(points: list[Point], goal: float) -> int | None:
    """The first measured step at which the goal is reached; `None` if it is not."""
    return next((int(point["step"]) for point in points if reached(point, goal)), None)
