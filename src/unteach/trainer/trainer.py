"""`UnlearningTrainer`: transformers' `Trainer` with one fused forward over forget, mismatch and
retain completions.
"""

from __future__ import annotations

import copy
import pickle
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainerState, get_scheduler
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.trainer_utils import TrainOutput

from unteach import models
from unteach.config.unlearning import UnlearningConfig
from unteach.data.stream import Collator, StreamItem, TrainingStream
from unteach.data.token_table import longest_row
from unteach.errors import TrainingFault, UserError
from unteach.files import checkpoints
from unteach.methods import ROLES, objective_terms, step_counts, total_loss
from unteach.models.forwards import with_forward
from unteach.models.kernels import compiled_layers, steady_attention
from unteach.models.layers import freeze_all_but, layer_list, unfreeze
from unteach.trainer.callback import StepCallback
from unteach.trainer.distributed import (
    WholeCopy,
    check_sharding,
    is_sharded,
    keep_output_precision,
    load_models_whole,
    shard_on_cpus,
    shards_weights,
    through_wrapper,
)
from unteach.trainer.reference import (
    Reference,
    ReferenceModel,
    StoredReference,
    build_reference,
)
from unteach.trainer.rows import check_rows, encoded_rows, mismatch_pool
from unteach.trainer.self_check import check_fast_path, check_stored_reference
from unteach.trainer.step import StepMeans, StepSpec, role_tokens
from unteach.trainer.stopping import (
    CollapseWatch,
    Probe,
    RetainBudget,
    StopRule,
    nonfinite_loss,
)

ALREADY_FORGOTTEN = (
    "before the first step the forget rate of the probe is at or under target_rate, so the stop"
    " rule cannot see it fall; check that the headline rate suits these rows and that the model"
    " knows them"
)
StepHook = Callable[[dict[str, float]], None]


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
        args = copy.copy(args) if args else UnlearningConfig(output_dir="unteach-output")
        if isinstance(model, str):
            processing_class = processing_class or models.load_tokenizer(model)
            model = models.load_model(model)
        if processing_class is None:
            raise UserError("processing_class is missing: give the model's tokenizer")
        if peft_config is not None:
            model = _with_adapter(model, peft_config)
        if args.reference == "adapter_off" and not hasattr(model, "peft_config"):
            raise UserError(
                "reference is 'adapter_off', but the model has no adapter; give peft_config or use"
                " 'stored'"
            )
        self.config, self.method, self.weights = args, args.objective, args.weights
        self.probe, self.on_step = probe, on_step
        self.window = models.window(model)
        tokenization = processing_class, args
        forget = forget_dataset if self.method.forget else None
        self.forget_rows = encoded_rows(forget, *tokenization, "forget", self.window)
        self.retain_rows = encoded_rows(retain_dataset, *tokenization, "retain", self.window)
        check_rows(args, self.forget_rows, self.retain_rows)
        pad = processing_class.pad_token_id
        pad_id = 0 if pad is None else pad
        self.collator = Collator(self.retain_rows, pad_id, args.packing, args.row_tokens)
        processes = max(1, args.world_size)
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
        self.items_per_step = batch * processes
        rows = len(self.forget_rows) or len(self.retain_rows)
        args.max_steps = args.planned_steps(rows, processes)

        self.output = Path(str(args.output_dir))
        layers = layer_list(model)
        logs_kl = self.method.reference_values.get("retain") == "hidden"
        budget = RetainBudget(args.max_retain_kl if logs_kl else None, self.weights["retain"])
        self.hooks = self.method.hooks(self.method, args, layers, budget)
        self.means = StepMeans()
        self.rule = StopRule(args.target_rate, args.hold, args.min_utility, args.patience)
        self.steps = StepCallback(
            self.output,
            self.rule,
            probe,
            args.probe_steps,
            hooks=self.hooks,
            take_means=self.take_means,
            watch=CollapseWatch(args.collapse_kl),
            on_step=lambda record: self.on_step(record) if self.on_step else None,
            unwrap=lambda _: self._unwrapped(),
            whole_model=self._whole_model,
        )
        self.reference: Reference | None = None
        self.whole: WholeCopy | None = None
        self.sharded = False
        self._own_forward: Any = None
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
        check_sharding(self.accelerator, args)
        where = layers, args.device.type, args.world_size
        self.compiled = compiled_layers(*where) if args.compile_layers else None

    def create_accelerator_and_postprocess(self) -> None:
        """As in `Trainer`, with FSDP on CPUs too."""
        super().create_accelerator_and_postprocess()
        if shard_on_cpus(self.accelerator, self.args.fsdp_plugin_args):
            self.is_fsdp_enabled = True
        keep_output_precision(self.accelerator)

    @property
    def fault(self) -> str:
        """Why training had to end, other than by the stop rule; empty if it did not."""
        return self.steps.fault

    def _unwrapped(self) -> Any:
        return self.accelerator.unwrap_model(self.model)

    # --- data ---

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

    # --- the step ---

    @property
    def spec(self) -> StepSpec:
        """What a micro-batch is computed with."""
        return StepSpec(
            self.method,
            self.hooks,
            self.collator.packed,
            self.config.logits_budget_mb * 2**20,
            self.accelerator.autocast,
            self.compiled,
        )

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """The micro-batches of one optimiser step, and what the sum of each role is divided by,
        shape (roles,): see `step_counts`.
        """
        samples = [
            batch for _ in range(num_batches) if (batch := next(epoch_iterator, None)) is not None
        ]
        counts = torch.zeros(len(ROLES), dtype=torch.float64)
        for batch in samples:
            counts += step_counts(self.method, batch)
        counts = counts.to(torch.float32).to(device) if device.type == "mps" else counts.to(device)
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, "sum")
        return samples, counts

    def training_step(
        self, model: Any, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of one micro-batch."""
        one_process = self.args.world_size == 1
        shared = self.method.uses_head and one_process and not self.is_deepspeed_enabled
        lookup = models.shared_lookup(self._unwrapped()) if shared else nullcontext()
        with steady_attention(), lookup:
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        # checked once the backward pass has started, as the check waits for the GPU; several
        # processes must end together, so they check after the step
        if one_process and not torch.isfinite(loss):
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
        number of processes over which gradients are averaged.
        """
        inner = self.accelerator.unwrap_model(model)
        reference, spec = self.reference, self.spec
        roles = through_wrapper(model, inner, lambda: role_tokens(inner, inputs, reference, spec))
        counts = num_items_in_batch
        if not isinstance(counts, Tensor) or counts.numel() != len(ROLES):
            counts = step_counts(self.method, inputs).to(self.args.device)
        terms = objective_terms(self.method, roles)
        weights = self.weights | {"retain": self.hooks.budget.weight}
        counts_by_role = dict(zip(ROLES, counts, strict=True))
        loss = total_loss(terms, weights, counts_by_role) * self.args.world_size
        self.means.add(roles, inputs["tree"], loss / self.args.world_size, terms)
        return (loss, roles) if return_outputs else loss

    def take_means(self) -> dict[str, float]:
        """The metrics of the step just done, over all micro-batches and processes; clears them."""

        def reduce(sums: Tensor) -> Tensor:
            return cast(Tensor, self.accelerator.reduce(sums, "sum"))

        return self.means.take(reduce if self.args.world_size > 1 else None)

    # --- the run ---

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
            if not self.retain_rows or self.method.reference_values.get("retain") != "hidden":
                return
            if isinstance(self.reference, StoredReference):
                number = longest_row(self.retain_rows)
                row = self.retain_rows[number]
                check_stored_reference(model, self.reference, row, number, autocast=autocast)
            self.steps.reference_seconds = time.perf_counter() - started

    def prepare_references(self) -> None:
        """Everything that the method reads of the model before training."""
        model = self._unwrapped()
        reference = ReferenceModel(model, self.spec, self.config.reference)
        with models.dropout_off(model):
            self.reference = build_reference(
                reference,
                {"forget": self.forget_rows, "retain": self.retain_rows},
                self.collator,
                folder=self.output / "reference",
                dtype=torch.bfloat16 if self.config.reference_dtype == "bfloat16" else None,
                precision=str(self.args.bf16),
            )
            self.hooks.prepare(model, lambda: reference.mean_nll(self.retain_rows, self.collator))

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
                newest whole one in `output_dir`. A run that its stop rule has ended is not
                continued.
            trial, ignore_keys_for_eval: as in `Trainer`.

        Raises:
            TrainingFault: if the loss or the weights are no longer finite or the model collapses,
                and no probe has weights to return to. With such weights training ends with them in
                the model and the reason in `fault`.
            UserError: for a checkpoint that is damaged or holds more than data, and for an output
                folder that is gone.
        """
        try:
            checkpoint = self._checkpoint(resume_from_checkpoint)
            return self._train_from(checkpoint, trial, ignore_keys_for_eval)
        except TrainingFault as fault:
            self.steps.fail(str(fault))
            if self.rule.best_step < 0:
                raise
            model = self._take_whole()
            if self.steps.best:
                self.steps.best.load(model, self.rule.best_step)
            return TrainOutput(self.state.global_step, float("nan"), {})
        except Exception:
            if self.is_world_process_zero():
                checkpoints.remove_unfinished(self.output)
            raise

    def _checkpoint(self, wanted: str | bool | None) -> str | None:
        """The checkpoint to resume from, whole."""
        if wanted is True:
            assert self.steps.best is not None
            with self.accelerator.main_process_first():
                found = self.steps.best.latest_checkpoint()
            return str(found) if found else None
        if wanted and (wrong := checkpoints.damage(wanted)):
            raise UserError(
                f"checkpoint {wanted} is damaged: {wrong}; take an earlier one, or"
                " resume_from_checkpoint=True to have one chosen"
            )
        return wanted or None

    def _train_from(self, checkpoint: str | None, *arguments: Any) -> TrainOutput:
        """Trains from a checkpoint or from the start; `arguments` are further ones of `train`."""
        model, rule = self._unwrapped(), self.rule
        self._own_forward = vars(model).get("forward")
        with models.dropout_off(model):
            self.prepare()
            state = checkpoints.marked_state(checkpoint) if checkpoint else {}
            if state:
                self.steps.load_state(state)
            if self.is_world_process_zero():
                self.output.mkdir(parents=True, exist_ok=True, mode=0o700)
                metrics = self.output / "metrics.jsonl"
                metrics.touch()
                checkpoints.truncate_metrics(metrics, state.get("step", -1))
            self.means.clear()
            ended = state and (rule.should_stop or state["step"] >= self.args.max_steps)
            if ended and self.steps.probe:
                saved = Path(str(checkpoint)) / "trainer_state.json"
                self.state = TrainerState.load_from_json(str(saved))
                assert self.steps.best is not None
                self.steps.best.load(model, rule.best_step)
                self.sharded = shards_weights(self.accelerator)
                load_models_whole()
                return TrainOutput(self.state.global_step, float("nan"), {})
            first = not rule.history
            self.steps.measure_start(model)
            start = rule.history[0]["forget_rate"] if first and rule.history else 1.0
            if start <= rule.target_rate and self.is_world_process_zero():
                warnings.warn(ALREADY_FORGOTTEN, stacklevel=2)
            only = self.hooks.trained_layers
            frozen = [] if only is None else freeze_all_but(model, only)
            self.whole = WholeCopy(model) if shards_weights(self.accelerator) else None
            try:
                with with_forward(model, self._own_forward):
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
        reason = self.hooks.finish(model, self._measure_finished if self.probe else None)
        if reason:
            rule.best_step, rule.reason = self.state.global_step, reason
        self.steps.load_best(model, self.state.global_step)
        return result

    def _measure_finished(self, number: int, facts: Mapping[str, float]) -> bool:
        step = {"step": self.state.global_step}
        return self.steps.measure_finished(self._unwrapped(), number, step | dict(facts))

    @contextmanager
    def _whole_model(self, model: Any) -> Iterator[Any]:
        """The model with all its weights in every process and without autocast around its forward,
        for the time of the block.
        """
        if self.whole is not None and is_sharded(model):
            with self.whole.filled(model) as whole:
                yield whole
        elif self.whole is not None:
            yield model
        else:
            with with_forward(model, self._own_forward):
                yield model

    def _take_whole(self) -> Any:
        """The model after training, whole in every process."""
        model = self._unwrapped()
        if self.whole is not None and is_sharded(model):
            self.model = self.model_wrapped = model = self.whole.fill(model)
            self.whole, self.sharded = None, True
            load_models_whole()
        return model


def _with_adapter(model: Any, peft_config: Any) -> Any:
    from peft import get_peft_model

    with warnings.catch_warnings():  # PEFT uses a name that transformers has deprecated
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return get_peft_model(model, peft_config)


NEED_THE_MODEL = ("galore", "apollo", "lomo")
"""Optimisers that cannot be created without the model."""


def check_training_settings(config: UnlearningConfig) -> None:
    """Creates reporters, optimiser and schedule as `Trainer` would, on one parameter, before
    anything is loaded.

    Raises:
        UserError: with the error of transformers or torch.
    """
    try:
        get_reporting_integration_callbacks(config.report_to)
        if any(name in str(config.optim) for name in NEED_THE_MODEL):
            return
        kind, options = Trainer.get_optimizer_cls_and_kwargs(config)
        optimizer = kind([torch.nn.Parameter(torch.zeros(1))], **options)
        steps = max(1, config.max_steps)
        get_scheduler(
            config.lr_scheduler_type,
            optimizer,
            num_warmup_steps=config.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=cast("dict[str, Any]", config.lr_scheduler_kwargs or {}),
        )
    except Exception as error:  # each has its own types
        message = " ".join(str(error).split())[:300]
        raise UserError(f"an option that training refuses: {message}") from None
