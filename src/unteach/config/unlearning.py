"""`UnlearningConfig`: transformers' `TrainingArguments` with what unlearning adds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from transformers import TrainingArguments

from unteach.errors import UserError
from unteach.methods import DEFAULT_METHOD, Method, get_method

NEED_THE_MODEL = ("galore", "apollo", "lomo")
"""Optimisers that cannot be created without the model."""


@dataclass
class UnlearningConfig(TrainingArguments):
    """Arguments of `UnlearningTrainer`; everything of `TrainingArguments` is there too.

    Args:
        method (`str`, *optional*, defaults to `"log_odds_mismatch"`): a name in
            `unteach.methods.METHODS`.
        forget_weight, mismatch_weight, retain_weight (`float`, *optional*): eps1, eps2, eps3;
            defaults are the method's.
        retain_loss (`"kl"`, `"nll"`, `"states"` or `"none"`, *optional*): what holds the retain
            set; default is the method's. `states` is RMU's own. With another one than the method's,
            eps3 defaults to 1.
        state_weight (`float`, *optional*, defaults to 0.0): with the retain KL, so much of the
            squared distance of final hidden states from the reference's is added to it, see
            `unteach.losses.token.state_distance`.
        beta, gamma (`float`, *optional*): parameters of the forget loss, where the method has them;
            defaults are the method's.
        steering_coefficient (`float`, *optional*, defaults to 6.5): RMU's c, the length of the
            vector that states are steered to.
        steering_layer (`int`, *optional*): RMU's layer, counted from 0; defaults to the one at 7/32
            of the depth.
        steering_update (`"all"` or `"three_layers"`, *optional*, defaults to `"all"`): what RMU
            trains; the paper: that layer and the two before it.
        dual_limit (`float`, *optional*): PDU's limit of the retain loss, in nats per token;
            defaults to `max_retain_kl` for `kl`, else to the start's loss and `dual_tolerance` of
            it.
        dual_tolerance (`float`, *optional*, defaults to 0.1): see there.
        dual_step_size (`float`, *optional*, defaults to 5.0): how much eps3 grows for each nat
            above the limit.
        dual_wait (`int`, *optional*, defaults to 0): steps before its first update.
        task_vector_scale (`float`, *optional*): alpha of `task_vector`; by default the best of ten
            on the probe.
        forget_end_of_turn (`bool`, *optional*): whether the token that ends an answer is forgotten
            with it. Default is the method's: the published ones forget every token of the row, ours
            leave the end alone, so that answers still come to one.
        mismatch_completions (`int`, *optional*, defaults to 5): K, random completions for each
            forget prompt.
        mismatch_source (`"retain"` or `"refusal"`, *optional*, defaults to `"retain"`): where they
            come from; `refusal` is the paper's templated variant with one fixed sentence.
        retain_per_forget (`float`, *optional*, defaults to 1.0): retain rows in a batch for each
            forget row.
        least_steps (`int`, *optional*, defaults to 0): where `max_steps` is not given, epochs go on
            until there were so many steps.
        max_retain_kl (`float`, *optional*, defaults to 0.15): budget of the retain KL in nats per
            token; the trainer multiplies eps3 by 1.15 after a step above it and by 0.95 after a
            step below it; above its first value it falls faster where the KL is low. `None` keeps
            eps3 as it is.
        collapse_kl (`float`, *optional*, defaults to 3.0): a retain KL over this, in nats per
            token, in five steps in a row means that the model has collapsed: training ends, and the
            best probe's weights are kept. `None`: never.
        update (`"all"` or `"directed"`, *optional*, defaults to `"all"`): what is trained: all
            weights (or the given adapter's), or an adapter that reads only the directions in which
            forget rows differ from what must be kept, see `unteach.trainer.directed`.
        update_rank (`int`, *optional*, defaults to 16): directions of each linear layer.
        max_length (`int`, *optional*, defaults to 1024): most tokens of prompt and completion
            together.
        long_rows (`"error"`, `"truncate_prompt"` or `"drop"`, *optional*, defaults to `"error"`):
            what to do with longer rows.
        reference (`"stored"`, `"adapter_off"` or `"live"`, *optional*, defaults to `"stored"`):
            where the reference's distributions come from: hidden states computed once; the policy
            with its adapter off (LoRA only); a second model in memory.
        reference_dtype (`"float32"` or `"bfloat16"`, *optional*, defaults to `"float32"`):
            precision of the stored states.
        packing (`bool`, *optional*, defaults to `True`): share each prompt among its completions
            and fill rows; checked on the first batch.
        row_tokens (`int`, *optional*, defaults to 256): length of a packed row.
        compile_layers (`bool`, *optional*, defaults to `False`): `torch.compile` of the decoder's
            layers for training, which takes about a minute and then saves time in every step; in
            one process. `torch_compile`, as transformers calls it, is taken for this.
        logits_budget_mb (`int`, *optional*, defaults to 256): most memory of one (tokens,
            vocabulary) matrix.
        probe_steps (`int` or `float`, *optional*, defaults to 10): behaviour is measured every so
            many steps (if the trainer is given a probe); under 1: after every such share of the
            planned steps.
        target_rate (`float`, *optional*, defaults to 0.0): the forget rate at or under which the
            run may stop.
        hold (`int`, *optional*, defaults to 2): probes in a row that must meet the target.
        min_utility (`float`, *optional*, defaults to 0.8): stop when utility or neighbours, as the
            probe reports them, are under this share of the start's in two probes in a row and not
            coming back, see `StopRule`.
        patience (`int`, *optional*): stop when so many probes in a row have not brought the
            validation rate under its lowest so far.

    Raises:
        UserError: for options that are out of range or exclude each other.
    """

    method: str = field(default=DEFAULT_METHOD, metadata={"help": "objective, a name in METHODS"})
    forget_weight: float | None = field(
        default=None, metadata={"help": "eps1; default: the method's"}
    )
    mismatch_weight: float | None = field(
        default=None, metadata={"help": "eps2; default: the method's"}
    )
    retain_weight: float | None = field(
        default=None, metadata={"help": "eps3; default: the method's"}
    )
    retain_loss: Literal["kl", "nll", "states", "none"] | None = field(
        default=None, metadata={"help": "kl, nll or none; default: the method's"}
    )
    state_weight: float = field(
        default=0.0, metadata={"help": "weight of the distance of states beside the retain KL"}
    )
    beta: float | None = field(
        default=None, metadata={"help": "parameter of the forget loss; default: the method's"}
    )
    gamma: float | None = field(
        default=None, metadata={"help": "parameter of the forget loss; default: the method's"}
    )
    steering_coefficient: float = field(
        default=6.5, metadata={"help": "RMU: length of the vector that states are steered to"}
    )
    steering_layer: int | None = field(
        default=None, metadata={"help": "RMU: which layer, from 0; default: at 7/32 of the depth"}
    )
    steering_update: Literal["all", "three_layers"] = field(
        default="all", metadata={"help": "RMU: what is trained"}
    )
    dual_limit: float | None = field(
        default=None, metadata={"help": "PDU: most retain loss, nats per token"}
    )
    dual_tolerance: float = field(
        default=0.1, metadata={"help": "PDU: share by which the retain loss may grow"}
    )
    dual_step_size: float = field(default=5.0, metadata={"help": "PDU: step size of eps3"})
    dual_wait: int = field(
        default=0, metadata={"help": "PDU: steps before the first update of eps3"}
    )
    task_vector_scale: float | None = field(
        default=None, metadata={"help": "task_vector: alpha; default: by the probe"}
    )
    forget_end_of_turn: bool | None = field(
        default=None, metadata={"help": "forget the end of the answer too; default: the method's"}
    )
    mismatch_completions: int = field(
        default=5, metadata={"help": "random completions for each forget prompt (K)"}
    )
    mismatch_source: Literal["retain", "refusal"] = field(
        default="retain", metadata={"help": "retain or refusal"}
    )
    retain_per_forget: float = field(
        default=1.0, metadata={"help": "retain rows for each forget row"}
    )
    least_steps: int = field(
        default=0, metadata={"help": "steps that epochs come to at least; max_steps overrides it"}
    )
    max_retain_kl: float | None = field(
        default=0.15, metadata={"help": "budget of the retain KL, nats per token"}
    )
    collapse_kl: float | None = field(
        default=3.0, metadata={"help": "retain KL that means collapse, nats per token"}
    )
    update: Literal["all", "directed"] = field(
        default="all",
        metadata={"help": "all, or directed: only what sets the forget rows apart"},
    )
    update_rank: int = field(default=16, metadata={"help": "directed: directions of each layer"})
    max_length: int = field(default=1024, metadata={"help": "most tokens of prompt and completion"})
    long_rows: Literal["error", "truncate_prompt", "drop"] = field(
        default="error", metadata={"help": "what to do with longer rows"}
    )
    reference: Literal["stored", "adapter_off", "live"] = field(
        default="stored", metadata={"help": "stored, adapter_off or live"}
    )
    reference_dtype: Literal["float32", "bfloat16"] = field(
        default="float32", metadata={"help": "precision of stored states"}
    )
    packing: bool = field(default=True, metadata={"help": "share prompts and fill rows"})
    row_tokens: int = field(default=256, metadata={"help": "length of a packed row"})
    compile_layers: bool = field(
        default=False, metadata={"help": "torch.compile of the decoder's layers for training"}
    )
    logits_budget_mb: int = field(
        default=256, metadata={"help": "most MiB of one (tokens, vocabulary) matrix"}
    )
    probe_steps: float = field(
        default=10,
        metadata={"help": "measure behaviour every so many steps; under 1: that share of all"},
    )
    target_rate: float = field(
        default=0.0, metadata={"help": "forget rate at which the run may stop"}
    )
    hold: int = field(default=2, metadata={"help": "probes in a row that must meet the target"})
    min_utility: float = field(
        default=0.8, metadata={"help": "least share of the starting utility"}
    )
    patience: int | None = field(
        default=None,
        metadata={"help": "stop when so many probes in a row have not lowered the validation rate"},
    )

    learning_rate: float = 2e-5
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    lr_scheduler_type: str = "constant"
    per_device_train_batch_size: int = 4
    logging_strategy: str = "no"
    save_strategy: str = "no"
    report_to: str | list[str] | None = "none"
    remove_unused_columns: bool = False
    disable_tqdm: bool | None = True

    def __post_init__(self) -> None:
        self._check_method_options()
        if self.bf16 is True and not torch.accelerator.is_available():
            self.use_cpu = True  # transformers wants it said where there is nothing else
        if torch.backends.mps.is_available():
            self.use_cpu = True  # sums and counts are of float64, which Apple's GPUs do not have
        if self.lr_scheduler_type == "constant" and self.warmup_steps:
            self.lr_scheduler_type = (  # the other one leaves warmup_steps out without a word
                "constant_with_warmup"
            )
        if self.torch_compile:
            self.compile_layers, self.torch_compile = (
                True,
                False,
            )  # of the whole model it would be passed by: the step calls its parts
        method = self.objective
        defaults = dict(zip(("forget", "mismatch", "retain"), method.weights, strict=True))
        for role, default in defaults.items():
            name = f"{role}_weight"
            if getattr(self, name) is None:
                setattr(self, name, default)
            elif default == 0.0 and getattr(self, name):
                raise UserError(
                    f"{name} is {getattr(self, name)}, but method {self.method!r} has no {role}"
                    " term; leave it out"
                )
            elif getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}, it must not be negative")
        if self.forget_end_of_turn is None:
            self.forget_end_of_turn = method.forgets_end
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{name} is {value}, it must be a finite number")
        positive = (
            "mismatch_completions",
            "retain_per_forget",
            "max_length",
            "row_tokens",
            "logits_budget_mb",
            "probe_steps",
            "hold",
        )
        trainers = (
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "num_train_epochs",
            "save_steps",
        )
        for name in (*positive, *trainers):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}, it must be positive")
        if self.probe_steps > 1 and self.probe_steps != int(self.probe_steps):
            raise UserError(
                f"probe_steps is {self.probe_steps}, it must be a whole number of steps or, under"
                " 1, a share of them"
            )
        for name in ("state_weight", "least_steps", "learning_rate", "weight_decay"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}, it must not be negative")
        if self.patience is not None and self.patience <= 0:
            raise UserError(f"patience is {self.patience}, it must be positive (or null)")
        choices = {
            "mismatch_source": ("retain", "refusal"),
            "steering_update": ("all", "three_layers"),
            "long_rows": ("error", "truncate_prompt", "drop"),
            "reference": ("stored", "adapter_off", "live"),
            "reference_dtype": ("float32", "bfloat16"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"{name} is {getattr(self, name)!r}, it must be one of {', '.join(allowed)}"
                )
        for name, without in (("max_retain_kl", "no budget"), ("collapse_kl", "no limit")):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise UserError(
                    f"{name} is {getattr(self, name)}, it must be positive (or null for {without})"
                )
        try:
            super().__post_init__()  # type: ignore[no-untyped-call]
        except UserError:
            raise
        except Exception as error:  # a value that it takes apart may fail in any way
            raise UserError(
                f"an option that transformers refuses: {' '.join(str(error).split())[:300]}"
            ) from None
        if self.eval_strategy != "no":
            named = getattr(self.eval_strategy, "value", self.eval_strategy)
            raise UserError(
                f"eval_strategy is {named!r}, but there is no evaluation set; a probe measures"
                " every probe_steps"
            )

    def _check_method_options(self) -> None:
        """Raises `UserError` for options of single methods that are out of range."""
        for name in ("steering_coefficient", "dual_step_size"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}, it must be positive")
        for name in ("dual_limit", "dual_tolerance", "dual_wait", "task_vector_scale"):
            if (getattr(self, name) or 0) < 0:
                raise UserError(f"{name} is {getattr(self, name)}, it must not be negative")

    def check_training(self) -> None:
        """Creates reporters, optimiser and schedule as `Trainer` would, on one parameter, before
        anything is loaded.

        Raises:
            UserError: with the error of transformers or torch.
        """
        from transformers import Trainer, get_scheduler
        from transformers.integrations.integration_utils import get_reporting_integration_callbacks

        try:
            for reporter in get_reporting_integration_callbacks(self.report_to):
                reporter()  # raises where its package is not installed
            if any(name in str(self.optim) for name in NEED_THE_MODEL):
                return
            kind, options = Trainer.get_optimizer_cls_and_kwargs(self)
            optimizer = kind([torch.nn.Parameter(torch.zeros(1))], **options)
            steps = max(1, self.max_steps)
            more = cast("dict[str, Any]", self.lr_scheduler_kwargs or {})
            warm_up = self.get_warmup_steps(steps)
            get_scheduler(self.lr_scheduler_type, optimizer, warm_up, steps, more)
        except Exception as error:  # each has its own types
            message = " ".join(str(error).split())[:300]
            raise UserError(f"an option that training refuses: {message}") from None

    def planned_steps(self, rows: int, processes: int = 1) -> int:
        """Optimiser steps of a training: `max_steps`, or else epochs, gone through until there were
        `least_steps`.

        Args:
            rows (`int`): of the set that is trained on: the forget rows, or the retain rows of a
                method that has no forget term.
            processes (`int`): each takes a batch of its own.
        """
        if self.max_steps > 0:
            return int(self.max_steps)
        items = (
            self.per_device_train_batch_size * self.gradient_accumulation_steps * max(1, processes)
        )
        return max(1, self.least_steps, math.ceil(rows * self.num_train_epochs / items))

    @property
    def n_gpu(self) -> int:
        """GPUs of this process: at most one, as several take a launcher; our step does not go with
        `nn.DataParallel`.
        """
        return min(1, int(super().n_gpu))

    @property
    def objective(self) -> Method:
        """The method with the retain term and the parameters that these options give it.

        Raises:
            UserError: for options that the method cannot take.
        """
        return get_method(self.method).configured(self.method, self)

    @property
    def weights(self) -> dict[str, float]:
        """The starting eps1, eps2, eps3 by role."""
        return {
            role: float(getattr(self, f"{role}_weight"))
            for role in ("forget", "mismatch", "retain")
        }
