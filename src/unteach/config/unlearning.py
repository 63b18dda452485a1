"""`UnlearningConfig`: transformers' `TrainingArguments` with what unlearning adds."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, cast, get_type_hints

import torch
from transformers import TrainingArguments

from unteach.config.run import option
from unteach.config.values import kinds
from unteach.errors import UserError, one_line
from unteach.methods import DEFAULT_METHOD, Method, get_method
from unteach.robust import Wrapper, wrappers

NEED_THE_MODEL = ("galore", "apollo", "lomo")
"""Optimisers that cannot be created without the model."""
POSITIVE = (
    *("mismatch_completions", "retain_per_forget", "max_length", "row_tokens", "logits_budget_mb"),
    *("probe_steps", "hold", "update_rank", "per_device_train_batch_size"),
    *("sam_radius", "relearn_steps", "relearn_rate", "relearn_weight", "perturb_radius"),
    *("distill_noise", "distill_steps", "distill_rate"),
    *("gradient_accumulation_steps", "num_train_epochs", "save_steps"),
)
"""Fields that must be over 0."""


@dataclass
class UnlearningConfig(TrainingArguments):
    """Arguments of `UnlearningTrainer`: those of `TrainingArguments` and the fields below, whose
    meaning is the `help` of their metadata.

    Raises:
        UserError: for options that are out of range or exclude each other.
    """

    method: str = option(DEFAULT_METHOD, "objective, a name in `unteach.methods.METHODS`")
    forget_weight: float | None = option(None, "eps1; default: the method's")
    mismatch_weight: float | None = option(None, "eps2; default: the method's")
    retain_weight: float | None = option(
        None, "eps3; default: the method's, or 1 with another `retain_loss` than the method's"
    )
    retain_loss: Literal["kl", "nll", "states", "none"] | None = option(
        None, "retain term; `states` is RMU's own; default: the method's"
    )
    state_weight: float = option(
        0.0,
        "weight of the squared distance of final hidden states from the reference's, added to the"
        " retain KL (`losses.token.state_distance`)",
    )
    beta: float | None = option(None, "parameter of the forget loss; default: the method's")
    gamma: float | None = option(None, "parameter of the forget loss; default: the method's")
    steering_coefficient: float = option(
        6.5, "RMU: c, the length of the vector that hidden states are steered to"
    )
    steering_layer: int | None = option(
        None,
        "RMU and circuit breakers: the layer, counted from 0; default: the one at 7/32 or 20/32 of"
        " the depth",
    )
    steering_update: Literal["all", "three_layers"] = option(
        "all",
        "RMU and circuit breakers: what is trained; RMU's paper: that layer and the two before it",
    )
    dual_limit: float | None = option(
        None,
        "PDU: limit of the retain loss, nats per token; default: `max_retain_kl` for `kl`, else the"
        " initial loss and `dual_tolerance` of it",
    )
    dual_tolerance: float = option(0.1, "PDU: share by which the retain loss may grow")
    dual_step_size: float = option(
        5.0, "PDU: growth of eps3 for each nat of the retain loss above its limit"
    )
    dual_wait: int = option(0, "PDU: steps before the first update of eps3")
    task_vector_scale: float | None = option(
        None, "task_vector: alpha; default: the best of ten by the probe"
    )
    robust: str = option(
        "none",
        "what makes the forgetting of the method last, names in `unteach.robust.ROBUST`, joined by"
        " `+` where there are several",
    )
    sam_radius: float = option(
        0.01, "sam: rho, the length of the step to sharper weights, over all trained ones"
    )
    relearn_steps: int = option(1, "relearn: steps of the simulated attack in each step")
    relearn_rate: float = option(1.0, "relearn: their learning rate, times the training's")
    relearn_weight: float = option(
        1.0, "relearn: weight of the forget term at the weights after the attack"
    )
    rounding_bits: Literal[8, 4] = option(4, "rounding: bits of the rounded weights")
    perturb_radius: float = option(
        0.1, "perturb: largest length of a change of a hidden state, as a share of its own"
    )
    perturb_steps: int = option(
        1, "perturb: steps of projected gradient descent of the adversary; 0: random changes"
    )
    perturb_layer: int | None = option(
        None, "perturb: the layer, counted from 0; default: the one at a quarter of the depth"
    )
    distill_noise: float = option(
        0.1, "distill: alpha, the part of the way from the unlearned weights to noise"
    )
    distill_scale: float = option(
        0.1, "distill: beta, the size of the noise as a share of a new model's weights"
    )
    distill_steps: int = option(100, "distill: optimiser steps of the second training")
    distill_rate: float = option(
        0.075, "distill: its learning rate times the hidden size; falls linearly to 0"
    )
    forget_end_of_turn: bool | None = option(
        None,
        "whether the token that ends an answer is forgotten too; default: the method's (published"
        " ones: yes; ours: no, so that answers still end)",
    )
    mismatch_completions: int = option(5, "random completions for each forget prompt (K)")
    mismatch_source: Literal["retain", "refusal"] = option(
        "retain", "where they come from; `refusal`: the paper's templated variant, one sentence"
    )
    retain_per_forget: float = option(1.0, "retain rows in a batch for each forget row")
    least_steps: int = option(
        0, "minimum number of optimiser steps, to which epochs are repeated; not with `max_steps`"
    )
    forget_growth: float = option(
        1.0,
        "factor on the forget weight after each probe over target_rate, unless what is kept falls",
    )
    max_retain_kl: float | None = option(
        0.15,
        "budget of the retain KL, nats per token, which adapts eps3 (`RetainBudget`); None: eps3 is"
        " constant",
    )
    collapse_kl: float | None = option(
        3.0,
        "retain KL, nats per token, over which for five steps in a row training ends (the best"
        " probe's weights are kept); None: never",
    )
    update: Literal["all", "directed"] = option(
        "all",
        "what is trained: all weights (or the given adapter's), or an adapter that reads only the"
        " directions in which forget rows differ from what must be kept (`trainer.directed`)",
    )
    update_rank: int | None = option(
        None,
        "directed: directions of each linear layer; default: one for each row that is forgotten as"
        " a whole, 16 to 64",
    )
    max_length: int = option(1024, "most tokens of prompt and completion together")
    long_rows: Literal["error", "truncate_prompt", "drop"] = option(
        "error", "what to do with longer rows"
    )
    reference: Literal["stored", "adapter_off", "live"] = option(
        "stored",
        "the reference's distributions: from hidden states stored once, from the policy with its"
        " adapter off (LoRA only), or from a second model in memory",
    )
    reference_dtype: Literal["float32", "bfloat16"] = option(
        "float32", "precision of the stored states"
    )
    packing: bool = option(
        True, "share each prompt among its completions and fill rows; checked on the first batch"
    )
    row_tokens: int = option(256, "length of a packed row")
    compile_layers: bool = option(
        False,
        "`torch.compile` of the decoder's layers for training, which takes about a minute; in one"
        " process. `torch_compile` means the same",
    )
    logits_budget_mb: int = option(256, "most MiB of one (tokens, vocabulary) matrix")
    probe_steps: float = option(
        10, "steps between two probes; under 1: a share of the planned steps"
    )
    target_rate: float = option(0.0, "forget rate at or under which the run may stop")
    hold: int = option(2, "probes in a row that must meet the target")
    min_utility: float = option(
        0.8,
        "stop when utility or neighbours are under this share of their initial value in two probes"
        " in a row and not recovering (`StopRule`)",
    )
    patience: int | None = option(
        None, "stop when so many probes in a row have not lowered the validation rate"
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
        self._require("steering_coefficient", "dual_step_size")
        self._require("dual_limit", "dual_tolerance", "dual_wait", "task_vector_scale", least=0)
        if self.bf16 is True and not torch.accelerator.is_available():
            self.use_cpu = True  # transformers requires it where there is no accelerator
        if torch.backends.mps.is_available():
            self.use_cpu = True  # sums and counts are of float64, which Apple's GPUs do not have
        if self.lr_scheduler_type == "constant" and self.warmup_steps:
            self.lr_scheduler_type = "constant_with_warmup"  # `constant` ignores warmup_steps
        if self.torch_compile:  # the step calls parts of the model, never the compiled whole
            self.compile_layers, self.torch_compile = True, False
        method = self.objective
        for role, default in zip(("forget", "mismatch", "retain"), method.weights, strict=True):
            name = f"{role}_weight"
            if getattr(self, name) is None:
                setattr(self, name, default)
            elif default == 0.0 and getattr(self, name):
                raise UserError(
                    f"{name} is {getattr(self, name)}, but method {self.method!r} has no {role}"
                    " term; leave it out"
                )
            self._require(name, least=0)
        if self.forget_end_of_turn is None:
            self.forget_end_of_turn = method.forgets_end
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{name} is {value}, it must be a finite number")
        self._require(*POSITIVE)
        if self.probe_steps > 1 and self.probe_steps != int(self.probe_steps):
            raise UserError(
                f"probe_steps is {self.probe_steps}, it must be a whole number of steps or, under"
                " 1, a share of them"
            )
        self._require("state_weight", "least_steps", "learning_rate", "weight_decay", least=0)
        self._require("forget_growth", least=1)
        self._require("perturb_steps", "perturb_layer", "distill_scale", least=0)
        self._require("patience", instead=" (or null)")
        for name, allowed in _choices().items():
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"{name} is {getattr(self, name)!r}, it must be one of {', '.join(allowed)}"
                )
        self._require("max_retain_kl", instead=" (or null for no budget)")
        self._require("collapse_kl", instead=" (or null for no limit)")
        for name, kind in self.robustness.items():
            kind.check(name, self)
        try:
            super().__post_init__()  # type: ignore[no-untyped-call]
        except UserError:
            raise
        except Exception as error:  # a value that it takes apart may fail in any way
            raise UserError(
                f"an option that transformers refuses: {' '.join(str(error).split())[:300]}"
            ) from None
        if self.push_to_hub:
            raise UserError(
                "push_to_hub would upload checkpoints, and early ones still know what is to be"
                " forgotten; push the finished model: unteach report DIR --push-to-hub NAME"
            )
        if self.eval_strategy != "no":
            named = getattr(self.eval_strategy, "value", self.eval_strategy)
            raise UserError(
                f"eval_strategy is {named!r}, but there is no evaluation set; a probe measures"
                " every probe_steps"
            )

    def _require(self, *names: str, least: float | None = None, instead: str = "") -> None:
        """Raises `UserError` for a field that is 0 or negative, or under `least`; `None` passes,
        and NaN, which is refused elsewhere.
        """
        for name in names:
            value = getattr(self, name)
            if value is not None and (value <= 0 if least is None else value < least):
                wanted = f"be at least {least:g}" if least else f"be positive{instead}"
                wanted = "not be negative" if least == 0 else wanted
                raise UserError(f"{name} is {value}, it must {wanted}")

    def check_training(self) -> None:
        """Creates trackers, optimiser and schedule as `Trainer` would, on one parameter, before
        anything is loaded.

        Raises:
            UserError: with the error of transformers or torch.
        """
        from transformers import Trainer, get_scheduler

        check_trackers(self.report_to)
        try:
            if any(name in str(self.optim) for name in NEED_THE_MODEL):
                return
            kind, options = Trainer.get_optimizer_cls_and_kwargs(self)
            optimizer = kind([torch.nn.Parameter(torch.zeros(1))], **options)
            steps = max(1, self.max_steps)
            more = cast("dict[str, Any]", self.lr_scheduler_kwargs or {})
            warm_up = self.get_warmup_steps(steps)
            get_scheduler(self.lr_scheduler_type, optimizer, warm_up, steps, more)
        except Exception as error:  # each has its own types
            message = one_line(error, 300)
            raise UserError(f"an option that training refuses: {message}") from None

    def planned_steps(self, rows: int, processes: int = 1) -> int:
        """Optimiser steps of a training: `max_steps`, else those of the epochs, at least
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
    def robustness(self) -> dict[str, type[Wrapper]]:
        """The wrappers of the option `robust` by name; a `UserError` for an unknown one."""
        return wrappers(self.robust)

    @property
    def uses_fsdp(self) -> bool:
        """Whether FSDP is asked for, here or by the launcher."""
        return bool(self.fsdp) or _launched_with("FSDP")

    @property
    def uses_deepspeed(self) -> bool:
        """Whether DeepSpeed is asked for, here or by the launcher."""
        return bool(self.deepspeed) or _launched_with("DEEPSPEED")

    @property
    def weights(self) -> dict[str, float]:
        """The starting eps1, eps2, eps3 by role."""
        return {
            role: float(getattr(self, f"{role}_weight"))
            for role in ("forget", "mismatch", "retain")
        }


def check_trackers(report_to: str | list[str] | None) -> None:
    """Raises `UserError` for a tracker that transformers does not know or that is not installed."""
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks

    try:
        for tracker in get_reporting_integration_callbacks(report_to):
            tracker()
    except Exception as error:  # each has its own types
        message = one_line(error, 300)
        raise UserError(f"option 'report_to' is {report_to!r}: {message}") from None


def with_wrappers(name: str) -> dict[str, str]:
    """The options that a name such as `npo+sam` stands for: a method and what is around it."""
    method, plus, robust = name.partition("+")
    return {"method": method, "robust": robust} if plus else {"method": method}


def _launched_with(name: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true"


@cache
def _choices() -> dict[str, tuple[Any, ...]]:
    """The values of each field that has a few; those of `retain_loss` depend on the method."""
    hints = get_type_hints(UnlearningConfig)
    named = [name for name in UnlearningConfig.__annotations__ if name != "retain_loss"]
    return {name: found for name in named if (found := kinds(hints[name])[1])}


UnlearningConfig.__doc__ = f"{UnlearningConfig.__doc__}\n    Args:\n" + "".join(
    f"        {name}: {UnlearningConfig.__dataclass_fields__[name].metadata['help']}\n"
    for name in UnlearningConfig.__annotations__
    if "help" in UnlearningConfig.__dataclass_fields__[name].metadata
)
