"""`UnlearningTrainer`: transformers' `Trainer` with one fused forward over forget, mismatch and
retain completions.
"""

from __future__ import annotations

import copy
import pickle
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer_utils import TrainOutput

from unteach import models
from unteach.config.unlearning import UnlearningConfig, check_trackers
from unteach.data.counterfactuals import Counterfactual
from unteach.data.stream import Collator, StreamItem, TrainingStream
from unteach.data.token_store import longest_row
from unteach.errors import TrainingFault, UserError
from unteach.files import checkpoints
from unteach.losses.statistics import ROLES
from unteach.methods.objective import RoleTokens, objective_terms, step_counts, total_loss
from unteach.models.kernels import compiled_layers, with_forward
from unteach.models.parts import freeze_all_but, layer_list, unfreeze
from unteach.progress import Display
from unteach.robust import trains_again
from unteach.trainer import distributed
from unteach.trainer.callback import StepCallback, StepHook
from unteach.trainer.counterfactual import store_counterfactuals
from unteach.trainer.directed import adapted, set_directions
from unteach.trainer.reference import (
    Reference,
    ReferenceModel,
    StoredReference,
    StoredValues,
    build_reference,
)
from unteach.trainer.robustness import RobustSteps
from unteach.trainer.rows import check_rows, counterfactuals_of, encoded_rows, mismatch_pool
from unteach.trainer.self_check import check_fast_path, check_stored_reference
from unteach.trainer.step import StepMeans, StepSpec, role_tokens
from unteach.trainer.stopping import Probe, RetainBudget, nonfinite_loss

ALREADY_FORGOTTEN = (
    "before the first step the forget rate of the probe is at or under target_rate, so the stop"
    " rule cannot see it fall; check that the headline rate suits these rows and that the model"
    " knows them"
)


class UnlearningTrainer(Trainer):
    """Makes a causal language model forget completions; used like TRL's trainers.

    Args:
        model (`PreTrainedModel`, `PeftModel` or `str`): the model to change, or what `load_model`
            takes.
        args (`UnlearningConfig`, *optional*): not changed; `trainer.args` is a copy.
        forget_dataset: rows to forget: anything `load_rows` reads (file, dataset, list of dicts) or
            encoded rows.
        retain_dataset (*optional*): rows to keep, the same; needed by methods with a retain or a
            mismatch term.
        processing_class: the tokenizer; loaded with the model if `model` is a name.
        peft_config (`PeftConfig`, *optional*): trains adapters instead of all weights.
        probe (`Callable`, *optional*): measures behaviour for early stopping, see
            `unteach.trainer.stopping.Probe`.
        on_step (`Callable`, *optional*): called with each step's metrics, for progress displays.
        callbacks (*optional*): as in `Trainer`, as everything else.

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
        args = copy.copy(args) if args else UnlearningConfig(output_dir="unteach-output")
        check_trackers(args.report_to)
        if isinstance(model, str):
            processing_class = processing_class or models.load_tokenizer(model)
            model = models.load_model(model)
        if processing_class is None:
            raise UserError("processing_class is missing: give the model's tokenizer")
        if trains_again(args.robust):
            raise UserError(
                f"robust is {args.robust!r}, but a second training is none of this trainer's: call"
                " `trainer.distillation.distillation_trainer` after it, or `unlearn`, which does"
                " both"
            )
        method = args.objective
        self.config, self.method, self.weights = args, method, args.weights
        self.probe, self.on_step, self.output = probe, on_step, Path(str(args.output_dir))
        self.window = models.window(model)
        encode = partial(encoded_rows, tokenizer=processing_class, config=args, window=self.window)
        self.forget_rows = encode(forget_dataset if method.forget else None, name="forget")
        self.retain_rows = encode(retain_dataset, name="retain")
        check_rows(args, self.forget_rows, self.retain_rows)
        self.counterfactuals: Sequence[Counterfactual] = []
        if method.counterfactual or args.update == "directed":
            others = retain_dataset, args, processing_class
            self.counterfactuals = counterfactuals_of(forget_dataset, self.forget_rows, *others)
        model = adapted(model, args, peft_config, self.counterfactuals)
        if args.reference == "adapter_off" and not hasattr(model, "disable_adapter"):
            raise UserError(
                "reference is 'adapter_off', but the model has no adapter; give peft_config or use"
                " 'stored'"
            )
        for rows in (self.forget_rows, self.retain_rows):
            models.check_vocabulary(model, rows)
        pad_id = processing_class.pad_token_id or 0
        apart = bool(args.robustness)
        self.collator = Collator(self.retain_rows, pad_id, args.packing, args.row_tokens, apart)
        processes = max(1, args.world_size)
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
        self.items_per_step = batch * processes
        rows = self.forget_rows or self.retain_rows
        args.max_steps = args.planned_steps(len(rows), processes)

        layers = layer_list(model)
        self.logs_kl = bool(self.retain_rows) and method.reference_values.get("retain") == "hidden"
        budget = RetainBudget(args.max_retain_kl if self.logs_kl else None, self.weights["retain"])
        self.hooks = method.hooks(method, args, layers, budget)
        kinds = args.robustness.values()
        self.robust = RobustSteps(self, [kind(args, layers) for kind in kinds])
        self.means, self.display = StepMeans(), Display(quiet=True)
        self.whole: distributed.WholeModel | None = None
        self.reference: Reference | None = None
        self.steps = StepCallback(
            args,
            probe,
            self.hooks,
            self.take_means,
            on_step=lambda record: self.on_step(record) if self.on_step else None,
            log=lambda record: self.log(dict(record)) if args.report_to else None,
            unwrap=lambda _: self._unwrapped(),
            whole_model=lambda model: self.whole.of(model) if self.whole else nullcontext(model),
        )
        self.rule = self.steps.rule
        self.steps.batch = [self.items_per_step, args.max_steps]
        caches = getattr(model.config, "use_cache", False)
        super().__init__(
            model=model,
            args=args,
            data_collator=self.collator,
            processing_class=processing_class,
            callbacks=[self.steps, *(callbacks or [])],
            optimizers=optimizers,
        )
        model.config.use_cache = caches  # `Trainer` sets its own, which would be saved
        distributed.check_sharding(self.accelerator, args)
        where = layers, args.device.type, args.world_size
        self.compiled = compiled_layers(*where) if args.compile_layers else None

    def create_accelerator_and_postprocess(self) -> None:
        """As in `Trainer`, with FSDP on CPUs too."""
        super().create_accelerator_and_postprocess()
        if distributed.shard_on_cpus(self.accelerator, self.args.fsdp_plugin_args):
            self.is_fsdp_enabled = True
        distributed.keep_output_precision(self.accelerator)

    @property
    def fault(self) -> str:
        """Why training had to end, other than by the stop rule; empty if it did not."""
        return self.steps.fault

    @property
    def sharded(self) -> bool:
        """Whether training shards the weights."""
        return distributed.shards_weights(self.accelerator)

    @property
    def spec(self) -> StepSpec:
        """What a micro-batch is computed with."""
        budget, autocast = self.config.logits_budget_mb * 2**20, self.accelerator.autocast
        packed = self.collator.packed
        return StepSpec(self.method, self.hooks, packed, budget, autocast, self.compiled)

    def _unwrapped(self) -> Any:
        return self.accelerator.unwrap_model(self.model)

    def _sum(self, values: Tensor) -> Tensor:
        """The sum over processes."""
        if self.args.world_size == 1:
            return values
        total: Tensor = self.accelerator.reduce(values, "sum")
        return total

    def training_stream(self) -> TrainingStream:
        """All items of the run, in order."""
        rows = self.forget_rows, self.retain_rows
        return TrainingStream(
            *rows,
            mismatch_pool(self.config, *rows, self.processing_class, self.window),
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

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """The micro-batches of one optimiser step, and what the sum of each role is divided by,
        shape (roles,): see `step_counts`.
        """
        batches = (next(epoch_iterator, None) for _ in range(num_batches))
        samples = [batch for batch in batches if batch is not None]
        counts = torch.zeros(len(ROLES), dtype=torch.float64)
        for batch in samples:
            counts += step_counts(self.method, batch)
        counts = self._sum(counts.to(device))
        self.robust.begin(samples, counts)
        self.steps.seconds_before = self.robust.seconds
        return samples, counts

    def training_step(
        self, model: Any, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of one micro-batch."""
        run = partial(super().training_step, model, num_items_in_batch=num_items_in_batch)
        if self.robust.wrappers:
            loss = self.robust.micro_batch(inputs, run)
        else:
            with self.robust.kernels():
                loss = run(inputs)
        # checked once the backward pass has started, as the check waits for the GPU; several
        # processes must end together, so they check after the step
        if self.args.world_size == 1 and not torch.isfinite(loss):
            raise TrainingFault(nonfinite_loss(self.state.global_step + 1, loss.item()))
        return loss

    def role_tokens(self, model: Any, inputs: dict[str, Tensor]) -> dict[str, RoleTokens]:
        """Statistics of a batch by role, see `unteach.trainer.step.role_tokens`, through the
        data-parallel wrapper `model`.
        """
        inner = self.accelerator.unwrap_model(model)
        step = partial(role_tokens, inner, inputs, self.reference, self.spec)
        return distributed.through_wrapper(model, inner, step)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective of one micro-batch, divided by the counts of the whole step, times the
        number of processes over which gradients are averaged.
        """
        roles, processes = self.role_tokens(model, inputs), self.args.world_size
        counts = num_items_in_batch
        if not isinstance(counts, Tensor) or counts.numel() != len(ROLES):
            counts = step_counts(self.method, inputs).to(self.args.device)
        terms = objective_terms(self.method, roles)
        weights = self.weights | {
            "forget": self.weights["forget"] * self.steps.growth.factor,
            "retain": self.hooks.budget.weight,
        }
        loss = total_loss(terms, weights, dict(zip(ROLES, counts, strict=True))) * processes
        self.means.add(roles, inputs["tree"], loss / processes, terms)
        return (loss, roles) if return_outputs else loss

    def take_means(self) -> dict[str, float]:
        """The metrics of the step just done, over all micro-batches and processes; clears them."""
        return self.means.take(self._sum)

    def prepare(self) -> None:
        """Checks the fast path on the longest and the first rows of the stream, and builds the
        reference from the weights as they are now.
        """
        stream = self.training_stream()
        few = self.collator.trees([stream.longest(), stream[0]])
        model = models.placed(self._unwrapped(), self.args.device)
        autocast = self.accelerator.autocast
        with models.dropout_off(model):
            check_fast_path(model, few, self.collator, autocast=autocast)
            started = time.perf_counter()
            self.prepare_references()
            if self.logs_kl and isinstance(self.reference, StoredReference):
                number = longest_row(self.retain_rows)
                row = self.retain_rows[number]
                check_stored_reference(model, self.reference, row, number, autocast=autocast)
        if self.logs_kl:
            self.steps.reference_seconds = time.perf_counter() - started

    def prepare_references(self) -> None:
        """Everything that the method reads of the model before training."""
        model, config = self._unwrapped(), self.config
        reference = ReferenceModel(model, self.spec, config.reference)
        with models.dropout_off(model):
            rows = {"forget": self.forget_rows, "retain": self.retain_rows}
            collator = self.collator
            store = partial(self._store_counterfactuals, reference)
            values = store if self.method.counterfactual else None
            with self.display.stage("Reading the reference model"):
                self.reference = build_reference(reference, rows, collator, config, values)
            if config.update == "directed":
                stage = self.display.stage("Finding the directions of the update")
                parts = self.counterfactuals
                with models.adapter_off(model), stage as shown:  # the adapter adds nothing yet
                    set_directions(model, rows, parts, self.spec, collator, shown.update)
            self.hooks.prepare(model, partial(reference.mean_nll, self.retain_rows, self.collator))

    def _store_counterfactuals(self, reference: ReferenceModel, stored: StoredValues) -> None:
        rows = self.forget_rows, self.counterfactuals, self.collator
        with self.display.stage("Reading it where it cannot know", len(rows[0])) as stage:
            found = store_counterfactuals(stored, reference, *rows, stage.update)
        share, self.counterfactuals = found
        self.weights["forget"] = self.config.weights["forget"] / share

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Trains; afterwards the model holds the weights of the best probe, or without a probe
        those of the last step.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): a checkpoint, or `True` for the
                newest whole one in `output_dir`. A run that its stop rule has ended is not
                continued.
            trial, ignore_keys_for_eval: as in `Trainer`.

        Raises:
            TrainingFault: if loss or weights are not finite or the model collapses, before a probe
                has kept weights. With such weights they are loaded and `fault` says why.
            UserError: for a checkpoint that is damaged or holds more than data.
        """
        give_back = models.set_aside_generation(self._unwrapped())
        try:
            with self.accelerator.main_process_first():
                checkpoint = self.steps.checkpoint(resume_from_checkpoint)
            return self._train_from(checkpoint, trial, ignore_keys_for_eval)
        except TrainingFault as fault:
            self.steps.fail(str(fault))
            if self.rule.best_step < 0:
                raise
            self.steps.load_best(self._take_whole(), -1)
            return TrainOutput(self.state.global_step, float("nan"), {})
        except Exception:
            if self.is_world_process_zero():
                checkpoints.remove_unfinished(self.output)
            raise
        finally:
            give_back(self._unwrapped())

    def _train_from(self, checkpoint: str | None, *arguments: Any) -> TrainOutput:
        """Trains from a checkpoint or from the start; `arguments` are further ones of `train`."""
        model, rule = self._unwrapped(), self.rule
        state = checkpoints.marked_state(checkpoint) if checkpoint else {}
        self._keep_batch(*state.get("batch") or self.steps.batch)
        with models.dropout_off(model):
            self.prepare()
            self.steps.begin(state)
            ended = state and (rule.should_stop or state["step"] >= self.args.max_steps)
            if ended and self.steps.probe:
                saved = Path(str(checkpoint)) / "trainer_state.json"
                self.state = TrainerState.load_from_json(str(saved))
                self.steps.load_best(model, -1)
                distributed.load_models_whole()
                return TrainOutput(self.state.global_step, float("nan"), {})
            self.whole = distributed.WholeModel(model, sharded=self.sharded)
            if self.steps.measure_start(model) and rule.held and self.is_world_process_zero():
                warnings.warn(ALREADY_FORGOTTEN, stacklevel=2)
            only = self.hooks.trained_layers
            frozen = [] if only is None else freeze_all_but(model, only)
            try:
                with with_forward(model, self.whole.forward):
                    result = super().train(checkpoint, *arguments)
            except pickle.UnpicklingError:
                raise UserError(
                    f"checkpoint {checkpoint} holds something other than tensors and plain data; it"
                    " is not loaded"
                ) from None
            finally:
                unfreeze(frozen)
        model = self._take_whole()
        if self.fault:
            raise TrainingFault(self.fault)
        measure = partial(self.steps.measure_finished, model) if self.probe else None
        if reason := self.hooks.finish(model, measure):
            rule.best_step, rule.reason = self.state.global_step, reason
        self.steps.load_best(model, self.state.global_step)
        return result

    def _keep_batch(self, items: int, steps: int) -> None:
        """Takes the rows of a step and the number of steps from the training that is resumed, which
        may have been begun with another number of processes.

        Raises:
            UserError: if the processes there are now cannot share that many rows.
        """
        if items == self.items_per_step:
            return
        args, processes = self.args, max(1, self.args.world_size)
        at_once = args.per_device_train_batch_size * processes
        if items % at_once:
            raise UserError(
                f"the training was begun with {items} rows a step, which {processes} process(es) of"
                f" per_device_train_batch_size {args.per_device_train_batch_size} cannot make up:"
                f" take another number of processes, or a size that divides {items / processes:g}"
            )
        args.gradient_accumulation_steps = items // at_once
        self.items_per_step, args.max_steps = items, steps
        self.steps.batch = [items, steps]

    def _take_whole(self) -> Any:
        """The model after training, whole in every process."""
        model = self._unwrapped()
        if self.whole and self.whole.is_apart(model):
            self.model = self.model_wrapped = model = self.whole.take(model)
        return model
