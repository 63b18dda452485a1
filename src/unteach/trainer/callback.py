"""Callbacks of transformers' trainers: probes of behaviour with early stopping, and the log of
`UnlearningTrainer`'s steps.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy

from unteach.config.unlearning import UnlearningConfig
from unteach.errors import UserError
from unteach.files import checkpoints
from unteach.methods import Hooks
from unteach.processes import barrier, broadcast_from_main, is_main_process
from unteach.trainer.checkpoints import BestWeights, save_under_model_names
from unteach.trainer.distributed import finite_weights, is_sharded
from unteach.trainer.stopping import (
    CollapseWatch,
    ForgetGrowth,
    Probe,
    StopRule,
    nonfinite_weights,
    probe_interval,
)

StepHook = Callable[[dict[str, float]], None]


class ProbeCallback(TrainerCallback):
    """Early stopping on behaviour, for any trainer of transformers or TRL.

    Probes the model before the first step, every `probe_steps` steps and after the last; the stop
    rule ends training, and the weights of the best probe are kept. Marks each checkpoint as whole,
    with `state()`, and removes one whose weights are not finite. A subclass extends the methods of
    `TrainerCallback`, and `state` and `load_state` for what else a checkpoint must hold.

    Args:
        output_dir (`str` or path): the folder of the checkpoints.
        rule (`StopRule`): decides on the probes.
        probe (`Probe`, *optional*): without one nothing is measured.
        probe_steps (`float`): as in `UnlearningConfig`.
        unwrap (`Callable`, *optional*): from the trainer's model to the model without its
            data-parallel wrapper (`accelerator.unwrap_model`).
        whole_model (`Callable`, *optional*): from that to a context with the model to probe, all of
            its weights in this process.

    Attributes:
        best (`BestWeights`, *optional*): set it to `None` to keep no weights.
        fault (`str`): why training had to end, other than by the rule; empty if it did not.
        probe_seconds (`float`): wall clock of the probes.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        rule: StopRule,
        probe: Probe | None = None,
        probe_steps: float = 10,
        *,
        unwrap: Callable[[Any], Any] = lambda model: model,
        whole_model: Callable[[Any], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.rule, self.probe, self.probe_steps = rule, probe, probe_steps
        self.unwrap, self.whole_model = unwrap, whole_model
        self.best: BestWeights | None = BestWeights(self.output_dir)
        self.fault = ""
        self.probe_seconds = 0.0

    def state(self) -> dict[str, Any]:
        """What a checkpoint's marker holds beside the step, as plain data."""
        return {"rule": self.rule.state(), "probe_seconds": self.probe_seconds}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `state` returned."""
        self.rule.load(state.get("rule") or {})
        self.probe_seconds = float(state.get("probe_seconds", 0.0))

    def log_probe(self, step: int, rates: Mapping[str, float], seconds: float) -> None:
        """Called after each probe, before its weights are kept."""

    def measure(self, model: Any, step: int) -> None:
        """Probes the trainer's model after `step` steps; keeps the weights of the best probe."""
        assert self.probe is not None, "there is no probe"
        started = time.perf_counter()
        with self.whole_model(self.unwrap(model)) as whole:
            training = whole.training
            whole.eval()
            found = dict(self.probe(whole))
            whole.train(training)
            # one process decides, so that all stop at the same step
            rates = broadcast_from_main(lambda: found)
            better = self.rule.record(step, rates)
            seconds = time.perf_counter() - started
            self.probe_seconds += seconds
            self.log_probe(step, rates, seconds)
            if better and self.best and is_main_process():
                self.best.write(whole, step)

    def measure_start(self, model: Any) -> bool:
        """The probe before the first step, which ends nothing; true if it was not done before."""
        if self.probe is None or self.rule.history:
            return False
        self.measure(model, 0)
        self.rule.reason = ""
        return True

    def load_best(self, model: Any, last_step: int) -> None:
        """Loads the weights of the best probe, if they are other than the last step's."""
        if self.probe is not None and self.best and self.rule.best_step not in (-1, last_step):
            self.best.load(model, self.rule.best_step)

    def checkpoint(self, wanted: str | bool | None) -> str | None:
        """The whole checkpoint to resume from, `None` for the start: a named one, which must not be
        damaged, or with `True` the newest.
        """
        if wanted is True:
            found = BestWeights(self.output_dir).latest_checkpoint()
            return str(found) if found else None
        if wanted and (wrong := checkpoints.damage(wanted)):
            raise UserError(
                f"checkpoint {wanted} is damaged: {wrong}; take an earlier one, or"
                " resume_from_checkpoint=True to have one chosen"
            )
        return wanted or None

    def fail(self, reason: str) -> None:
        """Records that training has to end now and why."""
        self.fault = self.rule.reason = reason

    def end(self, reason: str, step: int, control: Any) -> Any:
        """Ends training that has failed, without a checkpoint."""
        self.fail(reason)
        control.should_training_stop, control.should_save = True, False
        return control

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Probes the start."""
        self.measure_start(kwargs["model"])
        return control

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Probes where it is time, and stops by the rule."""
        step, steps = state.global_step, state.max_steps
        due = step >= steps or step % probe_interval(self.probe_steps, steps) == 0
        if self.probe is None or not due:
            return control
        if not finite_weights(self.unwrap(kwargs["model"])):
            return self.end(nonfinite_weights(step), step, control)
        self.measure(kwargs["model"], step)
        if self.rule.should_stop:
            control.should_training_stop = True
            control.should_save = args.save_strategy != SaveStrategy.NO
        return control

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Marks the checkpoint; removes best weights that no whole checkpoint refers to."""
        barrier()  # each process writes the state of its own random numbers
        model, step = self.unwrap(kwargs["model"]), state.global_step
        folder = self.output_dir / f"checkpoint-{step}"
        finite = finite_weights(model)
        if is_main_process():
            if finite:
                if not is_sharded(model):
                    save_under_model_names(model, folder)
                checkpoints.mark_complete(folder, {"step": step, **self.state()})
                if self.best:
                    self.best.keep_referenced()
            else:
                shutil.rmtree(folder, ignore_errors=True)
        return control if finite else self.end(nonfinite_weights(step), step, control)


class StepCallback(ProbeCallback):
    """What `UnlearningTrainer` does after each step: write its metrics, adapt eps3, probe, end a
    run that has failed.

    Args:
        config (`UnlearningConfig`): of the output folder, the stop rule and the probes.
        hooks (`Hooks`): the method's.
        take_means (`Callable`): returns the metrics of the step just done.
        on_step (`Callable`): called with the numbers of each step and of each probe.
        log (`Callable`, *optional*): called with the same once training has begun, for trackers.
        options: as in `ProbeCallback`.

    Attributes:
        batch (`list[int]`): rows of a step and steps of the training, for a checkpoint's marker.
        reference_seconds (`float`, *optional*): time that the reference took before the first step.
        seconds_before (`float`): time of a step before its first micro-batch.
    """

    def __init__(
        self,
        config: UnlearningConfig,
        probe: Probe | None,
        hooks: Hooks,
        take_means: Callable[[], dict[str, float]],
        on_step: StepHook,
        log: StepHook = lambda record: None,
        **options: Any,
    ) -> None:
        rule = StopRule(config.target_rate, config.hold, config.min_utility, config.patience)
        in_training = probe if hooks.probes_training else None
        folder = str(config.output_dir)
        super().__init__(folder, rule, in_training, config.probe_steps, **options)
        self.hooks, self.take_means, self.on_step, self.log = hooks, take_means, on_step, log
        self.final_probe, self.watch = probe, CollapseWatch(config.collapse_kl)
        self.growth = ForgetGrowth(config.forget_growth)
        self.reference_seconds: float | None = None
        self.batch: list[int] = []
        self.seconds_before = 0.0
        self._started = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """With the weights of the forget and retain terms and the steps of a collapse."""
        own = {"collapsed_steps": self.watch.count, "batch": self.batch, **self.hooks.state()}
        own["forget_factor"] = self.growth.factor
        return {**super().state(), **own}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `state` returned."""
        super().load_state(state)
        self.watch.count = state.get("collapsed_steps", 0)
        self.growth.factor = state.get("forget_factor", 1.0)
        self.hooks.load_state(state)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock of the step."""
        self._started = time.perf_counter() - self.seconds_before

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Writes the step's metrics and adapts eps3; then as `ProbeCallback`."""
        step, means, scheduler = state.global_step, self.take_means(), kwargs.get("lr_scheduler")
        self.last_step = step
        reason = self.watch.reason(step, means)
        if reason and not math.isfinite(means["loss"]):
            return self.end(reason, step, control)
        record = {
            "step": step,
            **means,
            "forget_factor": self.growth.factor,
            "retain_weight": self.hooks.budget.weight,
            "learning_rate": scheduler.get_last_lr()[0] if scheduler else args.learning_rate,
            "seconds": time.perf_counter() - self._started,
        }
        if step == 1 and self.reference_seconds is not None:
            record["reference_seconds"] = self.reference_seconds
        self.write_metrics(record)
        self.hooks.after_step(means)
        self.report({name: float(value) for name, value in record.items()})
        if reason:
            return self.end(reason, step, control)
        return super().on_step_end(args, state, control, **kwargs)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Reports the probe that came before, when the trackers had not begun."""
        if state.global_step == 0 and self.rule.history:
            self.log(_probe_record(self.rule.history[0]))
        return super().on_train_begin(args, state, control, **kwargs)

    def measure(self, model: Any, step: int) -> None:
        """With the weight of the forget term, which follows the probes of training."""
        super().measure(model, step)
        if step:
            before, now = self.rule.history[-2:]
            shares = [min(self.rule.shares(rates).values()) for rates in (before, now)]
            over = now["forget_rate"] > self.rule.target_rate
            self.growth.update(over=over, kept=shares[1], before=shares[0])

    def log_probe(self, step: int, rates: Mapping[str, float], seconds: float) -> None:
        """Writes the rates to the metrics."""
        self.write_metrics({"step": step, "probe": dict(rates), "seconds": seconds})
        self.report(_probe_record({"step": float(step), **rates}))

    def report(self, record: dict[str, float]) -> None:
        """Hands one record to the display and, after the start, to the trackers."""
        self.on_step(record)
        if record["step"] > 0:
            self.log(record)

    def begin(self, state: Mapping[str, Any]) -> None:
        """Prepares the output folder for training from a checkpoint's state; empty: the start."""
        self.take_means()
        self.last_step = state.get("step", 0)
        if state:
            self.load_state(state)
        if is_main_process():
            self.output_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            metrics = self.output_dir / "metrics.jsonl"
            metrics.touch()
            checkpoints.truncate_metrics(metrics, state.get("step", -1))

    def measure_finished(self, model: Any, number: int, facts: Mapping[str, float]) -> bool:
        """Probes weights that are made after training; see `unteach.methods.objective.Measure`."""
        assert self.final_probe is not None, "there is no probe"
        rates = dict(self.final_probe(model))
        self.write_metrics({"step": self.last_step, **facts, "probe": rates})
        return self.rule.record(number, rates)

    def end(self, reason: str, step: int, control: Any) -> Any:
        """Ends training that has failed, and writes why to the metrics."""
        self.write_metrics({"step": step, "fault": reason})
        return super().end(reason, step, control)

    def write_metrics(self, record: Mapping[str, Any]) -> None:
        """Appends one line to `metrics.jsonl`."""
        if not is_main_process():
            return
        path = self.output_dir / "metrics.jsonl"
        try:
            # not created here: it exists since training began, or the folder is gone
            with open(os.open(path, os.O_WRONLY | os.O_APPEND), "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except FileNotFoundError:
            raise UserError(
                f"{path} has gone: the output folder was removed or moved while training; start"
                " again"
            ) from None


def _probe_record(rates: Mapping[str, float]) -> dict[str, float]:
    """A probe's rates, with names that do not meet those of a step."""
    return {name if name == "step" else f"probe_{name}": rates[name] for name in rates}
