"""What a wrapper is: changes to how the gradient of a method's forget part is taken, whatever the
method.

The forget part of a micro-batch is its forget prompts with their completions (those to forget,
mismatch and preferred ones); the rest are retain rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol

from torch import Tensor

from unteach.data.packing import ROLE_IDS
from unteach.errors import UserError

Term = Literal["forget", "likelihood"]
"""eps1 times the forget term, as the objective has it; or the summed NLL of the completions to
forget, whose minimum is where the model knows them.
"""
FORGET_SIDE = tuple(role for role in ROLE_IDS if role != "retain")
"""Roles of the completions of forget prompts."""


class Step(Protocol):
    """What a trainer lends to the wrappers during one optimiser step.

    Attributes:
        model: the model without its data-parallel wrapper.
        number (`int`): of the step, counted from 0.
        weights (`list[Tensor]`): the trained weights, of each the part that this process holds;
            writing to them changes the model.
    """

    @property
    def model(self) -> Any: ...

    @property
    def number(self) -> int: ...

    @property
    def weights(self) -> list[Tensor]: ...

    def add_gradient(self, term: Term, scale: float = 1.0) -> None:
        """Adds the gradient of a term over the whole step, times `scale`, to `.grad`, at the
        weights as they are now.
        """

    def take_gradient(self, term: Term) -> list[Tensor]:
        """The gradient of a term over the whole step (all micro-batches and processes), one tensor
        for each of `weights`, up to a common factor; `.grad` is empty before and after.
        """

    def total(self, value: Tensor) -> Tensor:
        """The sum of a number over the processes that hold different parts of the weights."""

    def loss(self, batch: dict[str, Tensor], term: Term) -> Tensor:
        """A term on one batch, for gradients by other things than weights."""


class Wrapper:
    """What is done to the forget part of each optimiser step; one object for each training. It has
    no state that a step leaves to the next, so a checkpoint holds nothing of it.

    Args:
        config (`UnlearningConfig`): its fields that begin with the wrapper's name are its own.
        layers (`Sequence` of modules, *optional*): the decoder's; `None` where they are unknown.
    """

    after = False
    """Whether it is a second training after the method's own, and does nothing in its steps."""
    shards = True
    """Whether it works on weights that FSDP shards."""
    adapter_off = True
    """Whether a reference that is the model with its adapter off stays what it is."""

    def __init__(self, config: Any, layers: Sequence[Any] | None) -> None:
        self.config = config

    @classmethod
    def check(cls, name: str, config: Any) -> None:
        """Raises `UserError` for options that the wrapper `name` does not work with."""
        method = config.objective
        if method.forget is None or not method.hooks.probes_training:
            raise UserError(
                f"robust is {name!r}, but method {config.method!r} does not train towards"
                " forgetting; leave robust out"
            )
        if config.fp16 or config.uses_deepspeed:
            what = "fp16, whose loss is scaled" if config.fp16 else "DeepSpeed's engine"
            raise UserError(
                f"robust is {name!r}, which takes gradients beside the step's own and so does not"
                f" work with {what}; use bf16 or float32, in one process, DDP or FSDP2"
            )
        if config.uses_fsdp and not cls.shards:
            raise UserError(
                f"robust is {name!r}, which reads whole layers; it does not work with FSDP: train"
                " in one process or with DDP"
            )
        if config.reference == "adapter_off" and not cls.adapter_off:
            raise UserError(
                f"robust is {name!r}, which changes the weights under the adapter too; with it"
                " reference must be 'stored'"
            )

    def begin(self, step: Step) -> None:
        """Called before the first micro-batch of an optimiser step."""

    def around_forget(self, step: Step, batch: dict[str, Tensor]) -> AbstractContextManager[Any]:
        """What is changed while the forget part of a micro-batch has its forward and backward
        pass.
        """
        return nullcontext()


Run = Callable[[dict[str, Tensor]], Tensor]
"""Forward and backward pass of a batch; returns its loss."""
