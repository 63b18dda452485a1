"""Running parts of a model inside the forward of the module that wraps or shards it, and the whole
of a sharded model.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from unteach.losses.statistics import TokenStatistics
from unteach.methods import RoleTokens
from unteach.models.forwards import set_forward, with_forward

FIELDS = [item.name for item in fields(TokenStatistics)]


def inside_forward(
    called: nn.Module, replaced: nn.Module, compute: Callable[[Tensor], Any], argument: Tensor
) -> Any:
    """`compute(argument)`, run in the place of `replaced.forward` while `called(argument)` runs,
    and with all hooks of both.

    Wrappers prepare the exchange of gradients, and sharding brings the weights together, in what
    surrounds a module's forward; they find the outputs in what it returns, which must be tensors in
    tuples, lists or dicts.

    Args:
        called (`nn.Module`): `replaced` itself, or a wrapper that calls it.
        replaced (`nn.Module`)
        compute (`Callable`)
        argument (`Tensor`)
    """
    own = vars(replaced).get("forward")

    def forward(given: Tensor) -> Any:
        set_forward(replaced, own)
        return compute(given)

    with with_forward(replaced, forward):
        return called(argument)


def through_wrapper(
    wrapped: nn.Module, inner: nn.Module, compute: Callable[[], dict[str, RoleTokens]]
) -> dict[str, RoleTokens]:
    """Runs `compute`, which calls parts of `inner`, inside the forward of the module that wraps it,
    or of a sharded one itself.
    """
    if wrapped is inner and not is_sharded(inner):
        return compute()

    def flat(_: Tensor) -> list[tuple[str, list[Tensor | None], Tensor, Tensor | None]]:
        return [
            (
                role,
                [getattr(tokens.statistics, name) for name in FIELDS],
                tokens.weights,
                tokens.sequence,
            )
            for role, tokens in compute().items()
        ]

    found = inside_forward(wrapped, inner, flat, torch.zeros(()))
    return {
        role: RoleTokens(TokenStatistics(*values), weights, sequence)
        for role, values, weights, sequence in found
    }


def through_head(
    layer: nn.Module, compute: Callable[[Tensor], list[TokenStatistics]], hidden: Tensor
) -> list[TokenStatistics]:
    """Runs `compute(hidden)`, which reads the weight of the output layer, inside that layer's
    forward.
    """

    def flat(states: Tensor) -> list[list[Tensor | None]]:
        return [[getattr(statistics, name) for name in FIELDS] for statistics in compute(states)]

    return [TokenStatistics(*values) for values in inside_forward(layer, layer, flat, hidden)]


def is_sharded(model: Any) -> bool:
    """Whether FSDP2 or DeepSpeed's ZeRO stage 3 has sharded the model."""
    return isinstance(model, FSDPModule) or any(map(_in_zero_3, model.parameters()))


def local(parameter: Tensor) -> Tensor:
    """The part of a parameter that this process holds: all of it, if it is not sharded."""
    if _in_zero_3(parameter):
        part = parameter.ds_tensor  # type: ignore[attr-defined]
        whole = parameter.ds_numel  # type: ignore[attr-defined]
        share = -(-whole // torch.distributed.get_world_size())
        there = whole - torch.distributed.get_rank() * share  # the last shares end in padding
        return part[: max(0, there)]  # type: ignore[no-any-return]
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def whole_parameter(parameter: Tensor) -> Tensor:
    """A copy of all of a parameter; where it is sharded, all processes call it."""
    if _in_zero_3(parameter):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.detach().clone()


def _in_zero_3(parameter: Tensor) -> bool:
    return hasattr(
        parameter, "ds_id"
    )  # DeepSpeed's mark on a parameter whose values it takes apart


class WholeCopy:
    """A copy of a model that is about to be sharded; it holds weights only while somebody needs all
    of them.

    Args:
        model: the model, not sharded yet. Its parameters are not copied.
    """

    def __init__(self, model: nn.Module) -> None:
        memo: dict[int, Any] = {
            id(parameter): nn.Parameter(
                torch.empty(0, dtype=parameter.dtype, device=parameter.device),
                parameter.requires_grad,
            )
            for parameter in model.parameters()
        }
        self.model: Any = copy.deepcopy(model, memo)

    @torch.no_grad()
    def fill(self, sharded: nn.Module) -> Any:
        """Brings the weights of the sharded model together, in every process, and returns the whole
        one; all processes call it.
        """
        own = dict(self.model.named_parameters())
        for name, parameter in sharded.named_parameters():
            own[name].data = whole_parameter(parameter)
        return self.model

    def empty(self) -> None:
        """Lets go of the weights."""
        for parameter in self.model.parameters():
            parameter.data = parameter.data.new_empty(0)

    @contextlib.contextmanager
    def filled(self, sharded: nn.Module) -> Iterator[Any]:
        """The whole model for the time of the block."""
        try:
            yield self.fill(sharded)
        finally:
            self.empty()
