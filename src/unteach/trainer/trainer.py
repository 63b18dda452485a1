"""`UnlearningTrainer`: transformers' `Trainer` with one fused forward over forget, mismatch and
retain completions.
"""

from __future__ import annotations

import json
import os
import pickle
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer_utils import TrainOutput

from unteach import models
from unteach.config.unlearning import UnlearningConfig
from unteach.data.stream import Collator, StreamItem, TrainingStream
from unteach.data.token_table import longest_row
from unteach.errors import TrainingFault, UserError
from unteach.files import checkpoints
from unteach.methods import ROLES, RoleTokens, objective_terms, step_counts, total_loss
from unteach.models.forwards import with_forward
from unteach.models.kernels import compiled_layers, steady_attention
from unteach.models.layers import freeze_all_but, layer_list, unfreeze
from unteach.processes import broadcast_from_main
from unteach.trainer import reference, task_vector
from unteach.trainer.best_weights import BestWeights
from unteach.trainer.collapse import CollapseWatch, nonfinite_loss
from unteach.trainer.parallel import WholeCopy, local, through_wrapper
from unteach.trainer.role_references import (
    RoleReferences,
    build_retain_reference,
    build_role_references,
    reference_model,
    retain_nll,
    steering_layer,
)
from unteach.trainer.role_statistics import role_statistics
from unteach.trainer.self_check import check_fast_path, check_stored_reference
from unteach.trainer.sharding import (
    check_sharding,
    exact_outputs,
    load_models_whole,
    shard_on_cpus,
    shards_weights,
    take_whole,
    whole_model,
)
from unteach.trainer.step_callback import StepCallback
from unteach.trainer.step_means import StepMeans
from unteach.trainer.stopping import DualWeight, Probe, RetainBudget, StopRule, probe_interval
from unteach.trainer.training_rows import check_rows, encoded_rows, mismatch_pool

NOTHING_SAID = (
    "before the first step the model says none of the forget rows that the probe asks, so the stop"
    " rule has nothing to see disappear; is the headline rate the right one for these rows, and"
    " does the model know them?"
)
StepHook = Callable[[dict[str, float]], None]


class UnlearningTrainer(Trainer):
    """Makes a causal language model forget completions; used like TRL's trainers.

    Args:
        model (`PreTrainedModel`, `PeftModel` or `str`): the model to change, or what `load_model`
            takes.
        args (`UnlearningConfig`, *optional*)
        forget_dataset: rows to forget: anything `load_rows` reads (file, dataset, list of dicts) or
            encoded rows.
        retain_dataset (*optional*): rows to keep, the same; needed by methods with a retain or a
            mismatch term.
        processing_class: the tokenizer; loaded with the model if `model` is a name.
        peft_config (`PeftConfig`, *optional*): trains adapters instead of all weights.
        probe (`Callable`, *optional*): measures behaviour for the stop decision, see
            `unteach.trainer.stopping.Probe`.
        on_step (`Callable`, *optional*): called with each step's metrics, for progress displays.
        callbacks, optimizers: as in `Trainer`.

    Raises:
        UserError: for rows, options or a model that do not go together.
    """

    loss_is_scaled_for_ga = True
    """The loss is already divided by the counts of the whole accumulated batch."""

    def __init__(
        self,
        model: Any,
        args: UnlearningConfig | None = None,
        forget_dataset: Any = None,
        retain_dataset: Any = None,
        processing_class: Any = None,
        peft_config: Any = None,
        probe: Probe | None = None,
        on_step: StepHook | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        args = args or UnlearningConfig(output_dir="unteach-output")
        if isinstance(model, str):
            processing_class = processing_class or models.load_tokenizer(model)
            model = models.load_model(model)
        if processing_class is None:
            raise UserError("processing_class is missing: give the model's tokenizer")
        if peft_config is not None:
            from peft import get_peft_model

            with warnings.catch_warnings():
                warnings.filterwarnings(
                    "ignore", "`is_gradient_checkpointing`", FutureWarning
                )  # PEFT asks by the name of before
                model = get_peft_model(model, peft_config)
        self.config = args
        self.method = args.objective
        self.probe = None if self.method.negate else probe
        self.scale_probe = probe
        self.task_vector_scale: float | None = None
        self.on_step = on_step
        self.window = models.window(model)
        self.forget_rows = (
            encoded_rows(forget_dataset, processing_class, args, "forget", self.window)
            if self.method.forget
            else []
        )
        self.retain_rows = encoded_rows(
            retain_dataset, processing_class, args, "retain", self.window
        )
        check_rows(args, self.forget_rows, self.retain_rows)
        if args.reference == "adapter_off" and not hasattr(model, "peft_config"):
            raise UserError(
                "reference is 'adapter_off', but the model has no adapter; give peft_config or use"
                " 'stored'"
            )
        self.output = Path(str(args.output_dir))
        self.best = BestWeights(self.output)
        self.budget: RetainBudget | DualWeight = RetainBudget(
            args.max_retain_kl if self.method.retain in ("kl", None) else None,
            args.weights["retain"],
        )
        if self.method.dual:
            self.budget = DualWeight(
                args.dual_limit, args.weights["retain"], args.dual_step_size, args.dual_wait
            )
        self.layer = (
            steering_layer(model, args.steering_layer) if self.method.level == "state" else -1
        )
        self.rule = StopRule(args.target_rate, args.hold, args.min_utility, args.patience)
        self.watch = CollapseWatch(args.collapse_kl)
        self.fault = ""
        self.weights = args.weights
        self._reference: reference.Reference | None = None
        self._references = RoleReferences()
        self.frozen: Any = None
        self.whole: WholeCopy | None = None
        self.sharded = False
        self.own_forward: Any = None
        self.reference_seconds: float | None = None
        self.means = StepMeans()
        self.step_started = time.perf_counter()
        pad = processing_class.pad_token_id
        self.collator = Collator(
            self.retain_rows, 0 if pad is None else pad, args.packing, args.row_tokens
        )
        self._plan_steps(args)
        caches = getattr(model.config, "use_cache", False)
        super().__init__(
            model=model,
            args=args,
            data_collator=self.collator,
            processing_class=processing_class,
            callbacks=[StepCallback(self), *(callbacks or [])],
            optimizers=optimizers,
        )
        model.config.use_cache = (
            caches  # `Trainer` puts its own, which would be saved with the weights
        )
        check_sharding(self)
        where = layer_list(self.model), args.device.type, args.world_size
        self.compiled = compiled_layers(*where) if args.compile_layers else None

    def create_accelerator_and_postprocess(self) -> None:
        """As in `Trainer`, with FSDP on CPUs too."""
        super().create_accelerator_and_postprocess()
        shard_on_cpus(self)
        exact_outputs(self)

    # --- data
    # -------------------------------------------------------------------------------------------------------

    def _plan_steps(self, args: UnlearningConfig) -> None:
        """Fixes `max_steps`, so that the stream has exactly the items that the run needs."""
        size = len(self.forget_rows) or len(self.retain_rows)
        self.items_per_step = (
            args.per_device_train_batch_size
            * args.gradient_accumulation_steps
            * max(1, args.world_size)
        )
        args.max_steps = args.planned_steps(size, args.world_size)
        self.probe_every = probe_interval(args.probe_steps, args.max_steps)

    def training_stream(self) -> TrainingStream:
        """All items of the run, in order."""
        return TrainingStream(
            self.forget_rows,
            self.retain_rows,
            mismatch_pool(
                self.config, self.forget_rows, self.retain_rows, self.processing_class, self.window
            ),
            length=self.args.max_steps * self.items_per_step,
            retain_ratio=self.config.retain_per_forget if self.forget_rows else 1.0,
            seed=self.args.seed,
        )

    def get_train_dataloader(self) -> DataLoader[StreamItem]:
        """A loader over the stream, in the stream's own (already shuffled) order."""
        stream = self.training_stream()
        loader: DataLoader[StreamItem] = DataLoader(
            stream,
            batch_size=self.args.per_device_train_batch_size,
            sampler=SequentialSampler(stream),
            collate_fn=self.collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
        )
        prepared: DataLoader[StreamItem] = self.accelerator.prepare_data_loader(loader)
        return prepared

    # --- reference
    # ----------------------------------------------------------------------------------------------------

    def states(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        """Final hidden states that predict the batch's completion tokens, in the precision of
        training, shape (tokens, hidden).
        """
        with self.accelerator.autocast(), self.compiled.used() if self.compiled else nullcontext():
            return models.predicting_states(model, batch, packed=self.collator.packed)

    def build_reference(self) -> reference.Reference | None:
        """The reference's distribution on the retain set, from the weights as they are now; `None`
        for methods that do not read it.
        """
        return build_retain_reference(self)

    def prepare_references(self) -> None:
        """Everything that the method needs of the reference, and a dual variable's limit, from the
        weights as they are now.
        """
        self.frozen = None
        self._reference = self.build_reference()
        with models.dropout_off(self.accelerator.unwrap_model(self.model)):
            self._references = build_role_references(self)
            if isinstance(self.budget, DualWeight) and self.budget.limit is None:
                kl = self.method.retain == "kl"
                self.budget.limit = (
                    self.config.max_retain_kl
                    if kl
                    else (1 + self.config.dual_tolerance) * retain_nll(self)
                )

    # --- the step
    # -----------------------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """The micro-batches of one optimiser step, and what the sum of each role is divided by,
        shape (roles,): see `step_counts`.
        """
        samples = []
        for _ in range(num_batches):
            batch = next(epoch_iterator, None)
            if batch is None:
                break
            samples.append(batch)
        counts = torch.zeros(len(ROLES), dtype=torch.float64)
        for batch in samples:
            counts += step_counts(self.method, batch)
        counts = counts.to(torch.float32).to(device) if device.type == "mps" else counts.to(device)
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, "sum")
        self.step_started = time.perf_counter()
        return samples, counts

    def role_statistics(self, model: Any, batch: dict[str, Tensor]) -> dict[str, RoleTokens]:
        """One forward over the batch; per-token statistics of each role that it holds."""
        return role_statistics(self, model, batch)

    def training_step(
        self, model: Any, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of one micro-batch."""
        through_the_head = (
            self.method.level != "state"
            and self.args.world_size == 1
            and not self.is_deepspeed_enabled
        )
        look_up = (
            models.shared_lookup(self.accelerator.unwrap_model(model))
            if through_the_head
            else nullcontext()
        )
        with steady_attention(), look_up:
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        # after the backward pass is started, as looking waits for the GPU; several processes must
        # end together, so they look after the step
        if self.args.world_size == 1 and not torch.isfinite(loss):
            raise TrainingFault(nonfinite_loss(self.state.global_step + 1, loss.item()))
        return loss

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective of one micro-batch, divided by the counts of the whole step, times the
        number of processes that average it.
        """
        inner = self.accelerator.unwrap_model(model)
        roles = through_wrapper(model, inner, lambda: self.role_statistics(inner, inputs))
        counts = num_items_in_batch
        if not isinstance(counts, Tensor) or counts.numel() != len(ROLES):
            counts = step_counts(self.method, inputs).to(self.args.device)
        terms = objective_terms(self.method, roles)
        weights = self.weights | {"retain": self.budget.weight}
        loss = (
            total_loss(terms, weights, dict(zip(ROLES, counts, strict=True))) * self.args.world_size
        )
        self.means.add(roles, inputs["tree"], loss / self.args.world_size, terms)
        return (loss, roles) if return_outputs else loss

    def take_means(self) -> dict[str, float]:
        """Means over the tokens of the step just done, over all micro-batches and processes; clears
        them.
        """
        return self.means.take(
            (lambda sums: self.accelerator.reduce(sums, "sum"))
            if self.args.world_size > 1
            else None
        )

    def update_budget(self, means: dict[str, float]) -> None:
        """Moves eps3 after a step with these means: towards the KL budget, or as the dual variable
        of the retain loss.
        """
        name = (
            "retain_nll"
            if isinstance(self.budget, DualWeight) and self.method.retain == "nll"
            else "retain_kl"
        )
        if name in means:
            self.budget.update(means[name])

    # --- the run
    # ------------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Checks the fast path on the longest rows and the first, and makes the reference from the
        weights as they are now.
        """
        stream = self.training_stream()
        few = [stream.longest(), stream[0]]
        model = models.placed(self.accelerator.unwrap_model(self.model), self.args.device)
        with models.dropout_off(model):
            check_fast_path(
                model, self.collator.trees(few), self.collator, autocast=self.accelerator.autocast
            )
            started = time.perf_counter()
            self.prepare_references()
            if isinstance(self._reference, reference.StoredReference):
                number = longest_row(self.retain_rows)
                check_stored_reference(
                    reference_model(self),
                    self._reference,
                    self.retain_rows[number],
                    number,
                    autocast=self.accelerator.autocast,
                )
            self.reference_seconds = (
                time.perf_counter() - started if self._reference is not None else None
            )

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Trains; afterwards the model holds the best probe's weights (or the last step's, without
        a probe).

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): a checkpoint, or `True` for the
                newest whole one in `output_dir`. A run that its stop rule has ended is not trained
                on.
            trial, ignore_keys_for_eval: as in `Trainer`.

        Raises:
            TrainingFault: if the loss or the weights stop being finite or the model collapses, and
                no probe has weights to go back to. With such weights training ends with them in the
                model and the reason in `fault`.
            UserError: for a checkpoint that is damaged or holds more than data, and for an output
                folder that has gone.
        """
        try:
            return self._train_or_resume(resume_from_checkpoint, trial, ignore_keys_for_eval)
        except TrainingFault as fault:
            self.end_with(str(fault))
            if self.rule.best_step < 0:
                raise
            self.best.load(take_whole(self), self.rule.best_step)
            return TrainOutput(self.state.global_step, float("nan"), {})
        except Exception:
            if self.is_world_process_zero():
                checkpoints.remove_unfinished(self.output)
            raise

    def end_with(self, reason: str) -> None:
        """Notes that training has to end now and why."""
        self.fault = self.rule.reason = reason

    def _checkpoint(self, wanted: str | bool | None) -> str | None:
        """The checkpoint to go on from, whole."""
        if wanted is True:
            with self.accelerator.main_process_first():
                found = checkpoints.latest_checkpoint(
                    self.output, lambda state: self.best.damage(int(state["rule"]["best_step"]))
                )
            return str(found) if found else None
        if wanted and (wrong := checkpoints.damage(wanted)):
            raise UserError(
                f"checkpoint {wanted} is damaged: {wrong}; take an earlier one, or"
                " resume_from_checkpoint=True to have one chosen"
            )
        return wanted or None

    def _train_or_resume(
        self,
        resume_from_checkpoint: str | bool | None,
        trial: Any,
        ignore_keys_for_eval: list[str] | None,
    ) -> TrainOutput:
        output = self.output
        found = self._checkpoint(resume_from_checkpoint)
        model = self.accelerator.unwrap_model(self.model)
        self.own_forward = vars(model).get("forward")
        with models.dropout_off(model):
            self.prepare()
            start = task_vector.trained_weights(model) if self.method.negate else {}
            state = checkpoints.marked_state(found) if found else {}
            if state:
                self.budget.weight = state["retain_weight"]
                if isinstance(self.budget, DualWeight):
                    self.budget.limit, self.budget.wait = state["dual_limit"], state["dual_wait"]
                self.rule.load(state["rule"])
                self.watch.count = state.get("collapsed_steps", 0)
            if self.is_world_process_zero():
                output.mkdir(parents=True, exist_ok=True, mode=0o700)
                (output / "metrics.jsonl").touch()
                checkpoints.truncate_metrics(output / "metrics.jsonl", state.get("step", -1))
            self.means.clear()
            if (
                state
                and self.probe
                and (self.rule.should_stop or state["step"] >= self.args.max_steps)
            ):
                self.state = TrainerState.load_from_json(
                    str(Path(str(found)) / "trainer_state.json")
                )
                self.best.load(model, self.rule.best_step)
                self.sharded = shards_weights(self)
                load_models_whole()
                return TrainOutput(self.state.global_step, float("nan"), {})
            if self.probe and not self.rule.history:
                self.run_probe()
                self.rule.reason = ""
                if (
                    self.rule.history[-1]["forget_rate"] <= self.config.target_rate
                    and self.is_world_process_zero()
                ):
                    warnings.warn(NOTHING_SAID, stacklevel=2)
            frozen: list[Any] = []
            if self.method.level == "state" and self.config.steering_update == "three_layers":
                frozen = freeze_all_but(model, range(max(0, self.layer - 2), self.layer + 1))
            self.whole = WholeCopy(model) if shards_weights(self) else None
            try:
                with with_forward(model, self.own_forward):
                    result = super().train(found, trial, ignore_keys_for_eval)
            except pickle.UnpicklingError:
                raise UserError(
                    f"checkpoint {found} holds something other than tensors and plain data; it is"
                    " not loaded"
                ) from None
            finally:
                unfreeze(frozen)
        model = take_whole(self)
        if self.fault:
            raise TrainingFault(self.fault)
        if self.method.negate:
            self._negate(start)
        if self.probe and self.rule.best_step not in (-1, self.state.global_step):
            self.best.load(model, self.rule.best_step)
        return result

    def _negate(self, start: dict[str, Tensor]) -> None:
        """Takes off the start what fine-tuning on the forget set has changed."""

        def record(scale: float, rates: Mapping[str, float]) -> None:
            self.write_metrics(
                {"step": self.state.global_step, "task_vector_scale": scale, "probe": dict(rates)}
            )

        model = self.accelerator.unwrap_model(self.model)
        probe = self.scale_probe if self.config.task_vector_scale is None else None
        self.task_vector_scale = task_vector.negate(
            model, start, self.config.task_vector_scale, probe, self.rule, record
        )
        self.rule.best_step = self.state.global_step
        self.rule.reason = (
            f"max_steps; then the task vector was taken off, {self.task_vector_scale:g} times"
        )

    @torch.no_grad()
    def weights_are_finite(self) -> bool:
        """Whether every trained weight is a finite number, in all processes."""
        trained = [
            local(parameter)
            for parameter in self.accelerator.unwrap_model(self.model).parameters()
            if parameter.requires_grad
        ]
        bad = torch.stack([~torch.isfinite(parameter).all() for parameter in trained]).any().float()
        if self.args.world_size > 1:
            bad = self.accelerator.reduce(bad, "sum")
        return not bool(bad)

    def run_probe(self) -> bool:
        """Measures behaviour now and records it; keeps the weights if they are the best so far.
        True if training should stop.
        """
        assert self.probe is not None
        started = time.perf_counter()
        with whole_model(self) as model:
            training = model.training
            model.eval()
            with (
                with_forward(model, self.own_forward) if self.whole is None else nullcontext()
            ):  # what is kept is asked, not its autocast
                found = dict(self.probe(model))
            model.train(training)
            rates = broadcast_from_main(
                lambda: found
            )  # one process decides, so that all stop at the same step
            better = self.rule.record(self.state.global_step, rates)
            self.write_metrics(
                {
                    "step": self.state.global_step,
                    "probe": rates,
                    "seconds": time.perf_counter() - started,
                }
            )
            if better and self.is_world_process_zero():
                self.best.write(model, self.rule.best_step)
        if self.on_step:
            self.on_step(
                {
                    "step": float(self.state.global_step),
                    **{f"probe_{name}": value for name, value in rates.items()},
                }
            )
        return self.rule.should_stop

    def write_metrics(self, record: dict[str, Any]) -> None:
        """Appends one line to `metrics.jsonl`."""
        if not self.is_world_process_zero():
            return
        path = self.output / "metrics.jsonl"
        try:
            with open(
                os.open(path, os.O_WRONLY | os.O_APPEND), "a", encoding="utf-8"
            ) as file:  # not made anew: it is there, or has gone
                file.write(json.dumps(record) + "\n")
        except FileNotFoundError:
            raise UserError(
                f"{path} has gone: the output folder was removed or moved while training; start"
                " again"
            ) from None
