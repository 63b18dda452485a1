"""What happens after each optimiser step and each save of an `UnlearningTrainer`."""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy

from unteach.files import checkpoints
from unteach.trainer.best_weights import hold_names
from unteach.trainer.collapse import nonfinite_weights
from unteach.trainer.stopping import DualWeight

if TYPE_CHECKING:
    from unteach.trainer.trainer import UnlearningTrainer


class StepCallback(TrainerCallback):
    """After each step: log, adapt the retain weight, probe, end a run that has failed. After each
    save: mark the checkpoint whole.
    """

    def __init__(self, trainer: UnlearningTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Logs the step's means, moves eps3 towards the retain budget, and probes where it is time."""
        trainer = self.trainer
        means = trainer.take_means()
        reason = trainer.watch.reason(state.global_step, means)
        if reason and not math.isfinite(means["loss"]):
            return self.end(reason, control)
        record = {
            "step": state.global_step,
            **means,
            "retain_weight": trainer.budget.weight,
            "learning_rate": (
                trainer.lr_scheduler.get_last_lr()[0]
                if trainer.lr_scheduler
                else args.learning_rate
            ),
            "seconds": time.perf_counter() - trainer.step_started,
        }
        if state.global_step == 1 and trainer.reference_seconds is not None:
            record["reference_seconds"] = trainer.reference_seconds
        trainer.write_metrics(record)
        trainer.update_budget(means)
        if trainer.on_step:
            trainer.on_step({name: float(value) for name, value in record.items()})
        last = state.global_step >= args.max_steps
        probing = trainer.probe is not None and (
            last or state.global_step % trainer.probe_every == 0
        )
        if not reason and probing and not trainer.weights_are_finite():
            reason = nonfinite_weights(state.global_step)
        if reason:
            return self.end(reason, control)
        if probing and trainer.run_probe():
            control.should_training_stop = True
            control.should_save = args.save_strategy != SaveStrategy.NO
        return control

    def end(self, reason: str, control: Any) -> Any:
        """Ends a run that has failed, without saving what it has come to."""
        self.trainer.end_with(reason)
        self.trainer.write_metrics({"step": self.trainer.state.global_step, "fault": reason})
        control.should_training_stop = True
        control.should_save = False
        return control

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Writes the marker, with what the stop rule and the budget know, as the last file of a
        checkpoint.
        """
        trainer = self.trainer
        # each process writes the state of its own random numbers
        trainer.accelerator.wait_for_everyone()
        finite = trainer.weights_are_finite()
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if not finite:
            if trainer.is_world_process_zero():
                shutil.rmtree(folder, ignore_errors=True)
            return self.end(nonfinite_weights(state.global_step), control)
        if not trainer.is_world_process_zero():
            return control
        kept = {
            "step": state.global_step,
            "retain_weight": trainer.budget.weight,
            "rule": trainer.rule.state(),
            "collapsed_steps": trainer.watch.count,
        }
        if isinstance(trainer.budget, DualWeight):
            kept |= {"dual_limit": trainer.budget.limit, "dual_wait": trainer.budget.wait}
        if not trainer.sharded and trainer.whole is None:
            hold_names(trainer.accelerator.unwrap_model(trainer.model), folder)
        checkpoints.mark_complete(folder, kept)
        trainer.best.keep_only(
            {known["rule"]["best_step"] for known in checkpoints.kept_states(args.output_dir)}
        )
        return control
