"""Attacks that change the weights: rounding to 8 or 4 bits, and fine-tuning on a few rows.

Both change the model that they are given; callers pass a copy.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, TrainerCallback

from unteach import models
from unteach.attacks.options import AttackOptions
from unteach.config.unlearning import UnlearningConfig
from unteach.data.rows import Row
from unteach.errors import UserError
from unteach.files.atomic import write_json
from unteach.files.checkpoints import latest_checkpoint
from unteach.trainer.trainer import UnlearningTrainer

GROUP = 32
"""Weights that share scale and zero point at 4 bits; halved until it divides a layer's row."""
LONGEST = 1_000_000
"""Most tokens of a training row: no limit but that of the run."""
SAVE_EVERY = 50
"""Steps between two checkpoints of relearning."""

Point = dict[str, Any]
Measure = Callable[[Any], Point]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without what torchao logs at its import about GPU kernels that are missing."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def missing_torchao() -> str | None:
    """Why weights cannot be quantised here, or `None`."""
    try:
        with _silent():
            import torchao.quantization  # noqa: F401
    except ImportError:
        return "torchao is not installed; install it with: pip install 'unteach[quantization]'"
    return None


class NothingToRound(UserError):
    """The model has no layer that torchao quantises."""


def quantize(model: Any, bits: int) -> Any:
    """Rounds the weights of all linear layers except the output head, in place.

    torchao's weight-only quantiser: 8 bits with one scale per row (symmetric), 4 bits with a scale
    and a zero point per `GROUP` weights of a row (asymmetric, as GGUF's Q4_1). The rounded weights
    are stored as floats, which computes the same as torchao's kernels on every machine.

    Args:
        bits (`int`): 8 or 4.

    Raises:
        UserError: if torchao is not installed.
        NothingToRound: if the model has no linear layer (GPT-2 has `Conv1D` instead).
    """
    reason = missing_torchao()
    if reason:
        raise UserError(reason)
    device = next(model.parameters()).device
    model.cpu()  # the same rounding on every machine
    head = models.without_adapter(model).get_output_embeddings()
    layers = [
        module for module in model.modules() if isinstance(module, nn.Linear) and module is not head
    ]
    if not layers:
        raise NothingToRound(
            f"{type(model).__name__} has no linear layers, which are all that torchao quantises"
        )
    sizes = {id(layer): group_size(layer.in_features) for layer in layers}
    with _silent():
        from torchao.quantization import IntxWeightOnlyConfig, PerAxis, PerGroup, quantize_
        from torchao.quantization.quant_primitives import MappingType

        for size in sorted(set(sizes.values())):
            if bits == 8:
                config = IntxWeightOnlyConfig(torch.int8, PerAxis(0))
            else:
                four_bits: Any = torch.int4  # type: ignore[attr-defined]
                config = IntxWeightOnlyConfig(four_bits, PerGroup(size), MappingType.ASYMMETRIC)
            quantize_(
                model, config, filter_fn=lambda module, _, size=size: sizes.get(id(module)) == size
            )
        for layer in layers:
            layer.weight = nn.Parameter(layer.weight.dequantize().detach(), requires_grad=False)
    return model.to(device)


def group_size(length: int) -> int:
    """`GROUP`, or the largest half, quarter, ... of it that divides a row of this length."""
    size = GROUP
    while length % size:
        size //= 2
    return size


def reached(point: Mapping[str, Any], goal: float) -> bool:
    """Whether a point of a relearning curve is at the goal."""
    return point["value"] is not None and point["value"] >= goal


def steps_to(points: list[Point], goal: float) -> int | None:
    """The first measured step at which the goal is reached, or `None`."""
    return next((int(point["step"]) for point in points if reached(point, goal)), None)


class _Curve(TrainerCallback):
    """Measures the rate every few steps, writes the points, and stops the training at the goal."""

    def __init__(
        self, path: Path, points: list[Point], measure: Measure, options: AttackOptions, goal: float
    ) -> None:
        self.path, self.points, self.measure = path, points, measure
        self.options, self.goal = options, goal

    @property
    def reached(self) -> bool:
        """Whether the newest point is at the goal."""
        return bool(self.points) and reached(self.points[-1], self.goal)

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
    goal: float,
    batch_size: int = 4,
    on_step: Callable[[int, str], None] | None = None,
) -> list[Point]:
    """Fine-tunes the model (AdamW, all weights, cross-entropy on completions) and measures a rate
    every few steps, until the goal or the last step.

    Args:
        model: changed in place.
        rows: training rows.
        measure: model to the rate on rows that are not trained on, as fields of a point.
        folder (`Path`): for checkpoints and points, from which an interrupted call resumes; removed
            at the end.
        options (`AttackOptions`): `steps`, `every`, `learning_rate` and `seed`.
        goal (`float`): the rate at which training stops.
        on_step: called with the step and a note for the display.

    Returns:
        Points: `step` and what `measure` returned (`value` is compared with the goal), the first at
        step 0, the last at the goal or at the last step.
    """
    path = folder / "points.json"
    newest = latest_checkpoint(folder) if folder.exists() else None
    done = int(newest.name.rpartition("-")[2]) if newest else 0
    points: list[Point] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    points = [point for point in points if point["step"] <= done]
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
        trainer = UnlearningTrainer(model, config, None, rows, tokenizer, callbacks=[curve])
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
