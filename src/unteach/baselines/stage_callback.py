"""What happens around each optimiser step of a TRL trainer: the clock, the behaviour probe, the
stop, the marking of checkpoints.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from unteach.baselines.stages import TokenCounter
from unteach.files.checkpoints import mark_complete
from unteach.trainer.checkpoints import BestWeights, save_under_model_names
from unteach.trainer.stopping import Probe, StopRule, probe_interval

OnStage = Callable[[str, int, int], None]
"""Called with (stage, step, steps)."""


class StageCallback(TrainerCallback):
    """Times the steps, probes, stops by the rule and keeps the best probe's weights; marks each
    checkpoint as whole, with all it knows.

    Args:
        stage (`str`)
        output_dir (`Path`): the folder of the checkpoints.
        counter (`TokenCounter`)
        before: what the marker of the checkpoint says that training goes on from; empty for a fresh
            start.
        unwrap (`Callable`): from the trainer's model to the model itself.
        on_stage (`Callable`, *optional*)
        probe (`Probe`, *optional*): as for `UnlearningTrainer`.
        rule (`StopRule`, *optional*): decides on what the probe says.
        probe_steps (`float`): as in `UnlearningConfig`.
    """

    def __init__(
        self,
        stage: str,
        output_dir: Path,
        counter: TokenCounter,
        before: Mapping[str, Any],
        unwrap: Callable[[Any], Any],
        *,
        on_stage: OnStage | None = None,
        probe: Probe | None = None,
        rule: StopRule | None = None,
        probe_steps: float = 10,
    ) -> None:
        self.stage, self.counter, self.unwrap, self.on_stage = stage, counter, unwrap, on_stage
        self.output_dir, self.best = output_dir, BestWeights(output_dir)
        self.probe, self.rule, self.probe_steps = probe, rule, probe_steps
        self.seconds, self.probe_seconds = (
            float(before.get("seconds", 0.0)),
            float(before.get("probe_seconds", 0.0)),
        )
        counter.count = int(before.get("generated", 0))
        if rule and before.get("rule"):
            rule.load(before["rule"])
        self._began = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measures the start, once."""
        if self.rule and not self.rule.history:
            self._measure(kwargs["model"], 0)
            self.rule.reason = ""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Stops the clock; probes where it is time."""
        self.seconds += time.perf_counter() - self._began
        if self.on_stage:
            self.on_stage(self.stage, state.global_step, state.max_steps)
        last = state.global_step >= state.max_steps
        if self.rule and (
            last or state.global_step % probe_interval(self.probe_steps, state.max_steps) == 0
        ):
            self._measure(kwargs["model"], state.global_step)
            control.should_training_stop = control.should_training_stop or self.rule.should_stop
        return control

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Marks the checkpoint."""
        known = {
            "step": state.global_step,
            "max_steps": state.max_steps,
            "seconds": self.seconds,
            "probe_seconds": self.probe_seconds,
            "generated": self.counter.count,
            "rule": self.rule.state() if self.rule else None,
        }
        folder = self.output_dir / f"checkpoint-{state.global_step}"
        save_under_model_names(self.unwrap(kwargs["model"]), folder)
        mark_complete(folder, known)
        if self.rule:
            self.best.keep_only({self.rule.best_step})

    def _measure(self, wrapped: Any, step: int) -> None:
        assert self.probe is not None and self.rule is not None
        started, model = time.perf_counter(), self.unwrap(wrapped)
        training = model.training
        model.eval()
        rates = self.probe(model)
        model.train(training)
        if self.rule.record(step, rates):
            self.best.write(model, step)
        self.probe_seconds += time.perf_counter() - started
