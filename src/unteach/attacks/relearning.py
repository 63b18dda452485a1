"""Relearning: fine-tuning on a few rows, with all weights or with an adapter (Lynch et al. 2024, Hu
et al. 2024).
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PrinterCallback, TrainerCallback

from unteach.attacks.attack import (
    Attack,
    LeftOut,
    NothingShown,
    Outcome,
    Trial,
    undesired_answers_of,
)
from unteach.attacks.options import AttackOptions
from unteach.attacks.prompting import CUT_OFF, attack_prompts, cut_rate, shown_by_row
from unteach.attacks.prompts import plain
from unteach.attacks.target import Target
from unteach.config.unlearning import UnlearningConfig
from unteach.data.rows import Row, evenly_spaced, rows_hash
from unteach.evaluation.results import MetricResult, summarise
from unteach.files.atomic import read_cached, write_json
from unteach.files.checkpoints import latest_checkpoint
from unteach.files.folders import content_key
from unteach.models.adapters import adapter_config
from unteach.run.folder import ORIGINAL
from unteach.scenarios.texts import lines
from unteach.trainer.trainer import UnlearningTrainer

LONGEST = 1_000_000
"""Most tokens of a training row: no limit but that of the run."""
SAVE_EVERY = 50
"""Steps between two checkpoints of relearning."""

Point = dict[str, Any]
Measure = Callable[[Any], Point]


def reached(point: Mapping[str, Any], goal: float) -> bool:
    """Whether a point of a relearning curve is at the goal."""
    return point["value"] is not None and point["value"] >= goal


def steps_to(points: list[Point], goal: float) -> int | None:
    """The first measured step at which the goal is reached, or `None`."""
    return next((int(point["step"]) for point in points if reached(point, goal)), None)


class _Curve(TrainerCallback):
    """Measures the rate every few steps, writes the points, and stops the training at the goal."""

    def __init__(
        self,
        path: Path,
        points: list[Point],
        measure: Measure,
        options: AttackOptions,
        goal: float | None,
    ) -> None:
        self.path, self.points, self.measure = path, points, measure
        self.options, self.goal = options, goal

    @property
    def reached(self) -> bool:
        """Whether the newest point is at the goal."""
        return self.goal is not None and bool(self.points) and reached(self.points[-1], self.goal)

    def add_point(self, step: int, model: Any) -> None:
        """Measures the model."""
        training = model.training
        model.eval()
        self.points.append({"step": step, **self.measure(model)})
        model.train(training)
        write_json(self.path, self.points)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """See `TrainerCallback`."""
        last = state.global_step >= self.options.steps
        if last:
            control.should_save = False  # nothing resumes after the last step
        if last or state.global_step % self.options.every == 0:
            self.add_point(state.global_step, kwargs["model"])
            control.should_training_stop |= self.reached
        return control


def relearn(
    model: Any,
    tokenizer: Any,
    rows: list[Row],
    measure: Measure,
    folder: Path,
    options: AttackOptions,
    *,
    goal: float | None = None,
    batch_size: int = 4,
    adapter_rank: int = 0,
    on_step: Callable[[int, str], None] | None = None,
) -> list[Point]:
    """Fine-tunes the model (AdamW, cross-entropy on completions) and measures a rate every few
    steps, until the last step or the goal.

    Args:
        model: changed in place.
        rows: training rows.
        measure: model to the rate on rows that are not trained on, as fields of a point.
        folder (`Path`): for checkpoints and points, from which an interrupted call resumes; removed
            at the end.
        options (`AttackOptions`): `steps`, `every`, `learning_rate` and `seed`.
        goal (`float`, *optional*): the rate at which training stops.
        adapter_rank (`int`): of a LoRA adapter that is trained instead of all weights; 0: none.
        on_step: called with the step and a note for the display.

    Returns:
        Points: `step` and what `measure` returned (`value` is compared with the goal), the first at
        step 0, the last at the goal or at the last step.
    """
    path = folder / "points.json"
    newest = latest_checkpoint(folder) if folder.exists() else None
    done = int(newest.name.rpartition("-")[2]) if newest else 0
    known: list[list[Point]] = read_cached(path)
    points = [point for point in (known[0] if known else []) if point["step"] <= done]
    curve = _Curve(path, points, measure, options, goal)
    if not curve.points:
        curve.add_point(0, model)
    if not curve.reached:
        config = UnlearningConfig(
            output_dir=str(folder),
            method="finetuning",
            learning_rate=options.learning_rate,
            per_device_train_batch_size=min(batch_size, len(rows)),
            max_steps=options.steps,
            max_length=LONGEST,
            save_strategy="steps",
            save_steps=SAVE_EVERY,
            save_total_limit=2,
            seed=options.seed,
            data_seed=options.seed,
        )
        adapter = adapter_config(model, adapter_rank, scale=2.0) if adapter_rank else None
        trainer = UnlearningTrainer(
            model, config, None, rows, tokenizer, peft_config=adapter, callbacks=[curve]
        )
        trainer.remove_callback(PrinterCallback)
        if on_step:
            trainer.on_step = lambda record: on_step(
                int(record["step"]), f"rate {curve.points[-1]['value'] or 0:.0%}"
            )
        trainer.train(resume_from_checkpoint=True)
        del trainer
        gc.collect()  # trainer and callbacks form a cycle that holds the optimiser's state
    shutil.rmtree(folder, ignore_errors=True)
    return curve.points


# --- the attacks

ADAPTER_RANK = 16
ADAPTER_RATE = 10.0
"""Learning rate of an adapter, as a factor on that of all weights (Hu et al. 2022, table 12)."""
NO_MEMORY = "it trains weights in float32, and this GPU has not the memory for that"
Source = Literal["forget", "related", "unrelated", "public"]


def public_rows() -> list[Row]:
    """Running text that anyone has and that no run forgets: the package's own."""
    rows = []
    for number, line in enumerate(lines("public_text")):
        words = line.split(" ")
        start = " ".join(words[: len(words) // 2])
        rows.append(Row(start, line.removeprefix(start), "text", f"public text {number}"))
    return rows


def trained_rows(target: Target, source: str) -> list[Row]:
    """The rows that a relearning trains on."""
    count = target.options.rows
    if source == "forget":
        return evenly_spaced(target.forget, min(count, len(target.forget) // 2))
    if source == "public":
        return evenly_spaced(target.encodable(public_rows()), count)
    return evenly_spaced(target.related if source == "related" else target.unrelated, count)


def measured_rows(target: Target) -> list[int]:
    """Indices of the forget rows that no relearning trains on."""
    trained = trained_rows(target, "forget")
    return [index for index, row in enumerate(target.forget) if row not in trained]


def rate_point(target: Target, model: Any, rows: Sequence[Row]) -> Point:
    """The headline rate of a model's greedy answers to the rows' own prompts, with each row's value
    in `rows`, and the share of answers that met the limit in `cut_off`.
    """
    prompts = attack_prompts(plain, replace(target.prompt_context, rows=rows))
    undesired, cut = undesired_answers_of(target, model, prompts)
    shown = list(shown_by_row(prompts, undesired).values())
    rate = summarise(shown, higher_is_better=False, interval="wilson")
    return {**rate.as_json(), CUT_OFF: cut_rate(cut).as_json(), "rows": shown}


def relearning(source: Source, *, rate: float = 1.0, adapter: bool = False, **more: Any) -> Attack:
    """Fine-tuning on rows of one kind; brought back is what any measured step brings back most.

    Args:
        source: which rows are trained on.
        rate: factor on `--learning-rate`.
        adapter: a LoRA adapter instead of all weights.
    """

    def budget(target: Target) -> dict[str, Any]:
        options, measured = target.options, measured_rows(target)
        known = target.rows_of("none", ORIGINAL)
        names = ("steps", "every", "seed")
        return {
            **{name: getattr(options, name) for name in names},
            "learning_rate": options.learning_rate * rate * (ADAPTER_RATE if adapter else 1.0),
            "adapter_rank": ADAPTER_RANK if adapter else 0,
            "rows": len(trained_rows(target, source)),
            "measured_rows": len(measured),
            "goal": sum(known[index] for index in measured) / len(measured) / 2,
        }

    def inputs(target: Target) -> Any:
        return [row.key for row in trained_rows(target, source)]

    def missing(target: Target) -> str | None:
        if len(target.forget) < 2:
            return "it needs two forget rows, one to train on and one to measure"
        if not trained_rows(target, source):
            return f"the run has no {source} rows"
        return None

    weights = "an adapter" if adapter else "all weights"
    at = f" at {rate:g} times the learning rate" if rate != 1.0 else ""
    title = f"relearn: {source}" + (", adapter" if adapter else f", rate x {rate:g}" if at else "")
    about = f"{weights} fine-tuned on a few {source} rows{at}, the other forget rows evaluated"
    return Attack(
        "relearning",
        title,
        about,
        _relearn(source),
        budget,
        inputs,
        missing=missing,
        changes=True,
        **more,
    )


def _relearn(source: str) -> Callable[[Trial], Outcome]:
    def run(trial: Trial) -> Outcome:
        """The curve of one model; interrupted, it resumes from its last checkpoint."""
        target, settings = trial.target, trial.settings
        measured = measured_rows(target)
        if trial.is_original:
            if not settings["goal"]:
                text = f"the original model's {target.rate} on the measured rows is 0 already"
                raise NothingShown(text)
            return trial.without_attack(measured)
        rows = [target.forget[index] for index in measured]
        digest = target.folder.model_hash(trial.role)
        key = [digest, dict(settings), rows_hash(trained_rows(target, source))]
        work = target.work / f"{trial.name}-{trial.role}-{content_key(key)}"
        names = ("steps", "every", "learning_rate", "seed")
        chosen = {name: settings[name] for name in names}
        try:
            points = relearn(
                trial.copy(),  # 16 bits would round small steps away
                target.tokenizer,
                trained_rows(target, source),
                lambda model: rate_point(target, model, rows),
                work,
                replace(target.options, **chosen),
                goal=1.0,  # every measured row is back
                adapter_rank=settings["adapter_rank"],
                on_step=lambda step, _: trial.progress(step, settings["steps"]),
            )
        except torch.OutOfMemoryError:
            raise LeftOut(NO_MEMORY) from None
        best = max(points, key=lambda point: point["value"])
        shown = dict(zip(measured, best["rows"], strict=True))
        half = MetricResult(steps_to(points, settings["goal"]), len(rows), None, None, True)
        curve = [{key: value for key, value in point.items() if key != "rows"} for point in points]
        cut = MetricResult(**best[CUT_OFF])
        found = trial.outcome(shown, steps_to_half=half, **{CUT_OFF: cut})
        return Outcome(found.metrics, found.rows, {"curves": curve})

    return run
