"""Alignment pipelines on TRL's trainers, stage by stage: each can be killed and resumed, and has a
cost of its own.
"""

from __future__ import annotations

import contextlib
import gc
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerState

from unteach import models
from unteach.baselines.pipelines import PIPELINES
from unteach.baselines.stages import (
    TokenCounter,
    make_trainer,
    pair_error,
    read_tokens,
    stage_config,
)
from unteach.data.rows import Row
from unteach.files.checkpoints import mark_complete, marked_state, read_marker
from unteach.trainer.callback import ProbeCallback
from unteach.trainer.checkpoints import load_weights
from unteach.trainer.costs import Cost, peak_memory_mb, reset_peak_memory, tokens_seen
from unteach.trainer.stopping import Probe, StopRule

OnStage = Callable[[str, int, int], None]
"""Called with (stage, step, steps)."""
UNLIMITED: Mapping[str, Any] = {"target_rate": 0.0, "hold": 1, "min_utility": 0.0}


@dataclass(frozen=True)
class Watch:
    """Early stopping of the stages, by the rule that ends unlearning.

    Args:
        probe (`Probe`): from the current policy to its rates, as for `UnlearningTrainer`.
        validation (`Sequence[Row]`): pairs that nothing trains on; the rate of a reward model is
            the share of them that it ranks wrong.
        probe_steps (`float`): as in `UnlearningConfig`.
        rule: fields of `StopRule`.
    """

    probe: Probe
    validation: Sequence[Row]
    probe_steps: float
    rule: Mapping[str, Any]


@dataclass(frozen=True)
class Aligned:
    """What a pipeline returns.

    Args:
        model: of the last stage.
        costs (`list[Cost]`): by stage.
        folders (`dict[str, Path]`): of each stage's model.
        rules (`dict[str, dict]`): the state of each stage's `StopRule`; empty without a `Watch`.
        curves (`dict[str, list]`): each stage's probes with the seconds of training before them.
    """

    model: Any
    costs: list[Cost]
    folders: dict[str, Path]
    rules: dict[str, dict[str, Any]] = field(default_factory=dict)
    curves: dict[str, list[dict[str, float]]] = field(default_factory=dict)


class StageCallback(ProbeCallback):
    """Times the steps of a stage beside what `ProbeCallback` does, and keeps each probe with its
    time (`curve`).

    Args:
        counter (`TokenCounter`): of generated tokens.
        options: as for `ProbeCallback`.
    """

    def __init__(
        self, stage: str, counter: TokenCounter, on_stage: OnStage | None, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.stage, self.counter, self.on_stage = stage, counter, on_stage
        self.seconds, self.max_steps = 0.0, 0
        self.curve: list[dict[str, float]] = []
        self._started = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """With the planned steps, the seconds, the generated tokens and the curve."""
        own = {"max_steps": self.max_steps, "seconds": self.seconds, "curve": self.curve}
        return {**super().state(), **own, "generated": self.counter.count}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `state` returned."""
        super().load_state(state)
        self.seconds, self.counter.count = float(state["seconds"]), int(state["generated"])
        self.curve = list(state.get("curve", []))

    def log_probe(self, step: int, rates: Mapping[str, float], seconds: float) -> None:
        """Adds a probe to the curve, with the seconds that the stage's steps had taken."""
        self.curve.append({"step": step, "seconds": round(self.seconds, 3), **rates})

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock of the step."""
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Stops the clock; then as `ProbeCallback`."""
        self.seconds += time.perf_counter() - self._started
        self.max_steps = state.max_steps
        if self.on_stage:
            self.on_stage(self.stage, state.global_step, state.max_steps)
        return super().on_step_end(args, state, control, **kwargs)


def align(
    pipeline: str,
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    folder: Path,
    settings: Mapping[str, Mapping[str, Any]],
    *,
    seed: int = 0,
    on_stage: OnStage | None = None,
    watch: Watch | None = None,
    sft_folder: Path | None = None,
) -> Aligned:
    """Trains `model` through the stages of a pipeline.

    A finished stage in `folder` is not repeated; an interrupted one resumes from its newest whole
    checkpoint.

    Args:
        pipeline (`str`): a name in `PIPELINES`.
        model: the causal language model to start from; its memory is freed after the first stage.
            Later stages hold up to three models.
        rows (`Sequence[Row]`): prompt, bad answer (`completion`) and good answer (`right`).
        folder (`Path`): each stage has a folder in it.
        settings: for each stage, fields of TRL's config (see `stage_settings`).
        watch (`Watch`, *optional*): early stopping; without it each stage trains as long as its
            settings say.
        sft_folder (`Path`, *optional*): the SFT stage's folder, where several pipelines of the same
            settings share it.

    Raises:
        UserError: for a setting that TRL's config refuses.
    """
    stages = PIPELINES[pipeline].stages
    folders = {stage: folder / stage for stage in stages}
    if sft_folder is not None:
        folders["sft"] = sft_folder
    costs, rules, curves = [], {}, {}
    for stage in stages:
        target = folders[stage]
        work = target.with_name(f"{target.name}-checkpoints")
        done = read_marker(target)
        if done is None:
            config = stage_config(stage, settings[stage], work, seed)
            start = model if stage == "sft" else folders["sft"]
            with _no_dataset_bars():
                trainer, counter = make_trainer(
                    stage, config, start, folders.get("reward", folder), tokenizer, rows
                )
            probe = _stage_probe(stage, watch, tokenizer)
            keeper = StageCallback(
                stage,
                counter,
                on_stage,
                work,
                StopRule(**(watch.rule if watch else UNLIMITED)),
                probe,
                watch.probe_steps if watch else 10,
                unwrap=trainer.accelerator.unwrap_model,
            )
            give_back = models.set_aside_generation(trainer.model)
            history = _train(trainer, keeper)
            cost = _stage_cost(stage, config, keeper, tokens_seen(history), tokenizer, rows)
            done = {
                "cost": asdict(cost),
                "rule": keeper.rule.state() if watch else {},
                "pairs": len(watch.validation) if watch else 0,
                "curve": keeper.curve,
            }
            changed = trainer.accelerator.unwrap_model(trainer.model)
            give_back(changed)
            changed.save_pretrained(target)
            tokenizer.save_pretrained(target)
            mark_complete(target, done)
            del trainer, keeper
        shutil.rmtree(work, ignore_errors=True)
        if stage == "sft":
            _free_memory(model)
        gc.collect()
        costs.append(Cost(**done["cost"]))
        rules[stage], curves[stage] = dict(done["rule"]), done.get("curve", [])
    return Aligned(models.load_model(str(folders[stages[-1]])), costs, folders, rules, curves)


def _stage_probe(stage: str, watch: Watch | None, tokenizer: Any) -> Probe | None:
    """The probe of a stage; of a reward model, which generates nothing, the rate of wrong pairs."""
    if watch is None or stage != "reward":
        return watch.probe if watch else None
    return lambda model: {"forget_rate": pair_error(model, tokenizer, watch.validation)}


def _train(trainer: Any, keeper: StageCallback) -> list[dict[str, Any]]:
    """Trains, or resumes, to the best probe's weights. Returns the trainer's log."""
    trainer.add_callback(keeper)
    trainer.remove_callback(PrinterCallback)
    reset_peak_memory()
    model = trainer.accelerator.unwrap_model(trainer.model)
    assert keeper.best is not None
    checkpoint = keeper.best.latest_checkpoint()
    known = marked_state(checkpoint) if checkpoint else {}
    if known:
        keeper.load_state(known)
    if checkpoint and (keeper.rule.should_stop or known["step"] >= known["max_steps"]):
        # a trainer that resumes from its last step would take another one
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        load_weights(model, checkpoint)
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        state = trainer.state
    keeper.load_best(model, state.global_step)
    return list(state.log_history)


def _stage_cost(
    stage: str,
    config: Any,
    keeper: StageCallback,
    seen: int,
    tokenizer: Any,
    rows: Sequence[Row],
) -> Cost:
    """The cost of a stage that has seen so many tokens; good answers are the first stage's."""
    trained, read = read_tokens(stage, config, seen, keeper.counter.count)
    good = tokenizer([row.right for row in rows], add_special_tokens=False)["input_ids"]
    return Cost(
        stage,
        round(keeper.seconds, 3),
        sum(map(len, good)) if stage == "sft" else 0,
        keeper.counter.count,
        trained,
        round(peak_memory_mb(), 1),
        read,
        round(keeper.probe_seconds, 1),
    )


@contextlib.contextmanager
def _no_dataset_bars() -> Iterator[None]:
    """Without the progress bars of the datasets library."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()


def _free_memory(model: Any) -> None:
    """Frees the weights, whatever else refers to the model."""
    for parameter in model.parameters():
        parameter.data = parameter.data.new_empty(0)
