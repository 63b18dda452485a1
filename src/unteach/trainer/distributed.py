"""Several processes: parts of a model inside the forward of its wrapper, and models whose weights
are sharded by FSDP2 or DeepSpeed's ZeRO stage 3.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from unteach.errors import UserError
from unteach.losses.statistics import TokenStatistics
from unteach.methods.objective import RoleTokens
from unteach.models.kernels import set_forward, with_forward
from unteach.processes import all_gather

FIELDS = [item.name for item in fields(TokenStatistics)]


def inside_forward(
    called: nn.Module, replaced: nn.Module, compute: Callable[[Tensor], Any], argument: Tensor
) -> Any:
    """`compute(argument)`, run in place of `replaced.forward` while `called(argument)` runs, with
    the hooks of both; `called` is `replaced` or a wrapper that calls it.

    Data-parallel wrappers prepare the reduction of gradients, and sharding gathers weights, around
    a module's forward; they look for outputs in what it returns: tensors in tuples, lists or dicts.
    """
    own = vars(replaced).get("forward")

    def forward(given: Tensor) -> Any:
        set_forward(replaced, own)
        return compute(given)

    with with_forward(replaced, forward):
        return called(argument)


def _flat(statistics: TokenStatistics) -> list[Tensor | None]:
    return [getattr(statistics, name) for name in FIELDS]


def through_wrapper(
    wrapped: nn.Module, inner: nn.Module, compute: Callable[[], dict[str, RoleTokens]]
) -> dict[str, RoleTokens]:
    """Runs `compute`, which calls parts of `inner`, inside the forward of the module that wraps it,
    or of `inner` if it is sharded; one process has neither.
    """
    if wrapped is inner and not is_sharded(inner):
        return compute()

    def forward(_: Tensor) -> list[Any]:
        return [
            (role, _flat(tokens.statistics), tokens.weights, tokens.sequence)
            for role, tokens in compute().items()
        ]

    found = inside_forward(wrapped, inner, forward, torch.zeros(()))
    return {
        role: RoleTokens(TokenStatistics(*values), weights, sequence)
        for role, values, weights, sequence in found
    }


def through_head(
    layer: nn.Module, compute: Callable[[Tensor], list[TokenStatistics]], hidden: Tensor
) -> list[TokenStatistics]:
    """Runs `compute(hidden)`, which reads the output layer's weight, inside the forward of that
    layer if it is sharded.
    """
    if not is_sharded(layer):
        return compute(hidden)
    found = inside_forward(layer, layer, lambda states: [_flat(s) for s in compute(states)], hidden)
    return [TokenStatistics(*values) for values in found]


def is_sharded(model: Any) -> bool:
    """Whether FSDP2 or DeepSpeed's ZeRO stage 3 has sharded the module."""
    return isinstance(model, FSDPModule) or any(map(_in_zero_3, model.parameters()))


def _in_zero_3(parameter: Tensor) -> bool:
    return hasattr(parameter, "ds_id")  # set by DeepSpeed on parameters that it partitions


def local_part(parameter: Tensor) -> Tensor:
    """The part of a parameter that this process holds: all of it, if it is not sharded."""
    if _in_zero_3(parameter):
        part = parameter.ds_tensor  # type: ignore[attr-defined]
        whole = parameter.ds_numel  # type: ignore[attr-defined]
        share = -(-whole // torch.distributed.get_world_size())
        rest = whole - torch.distributed.get_rank() * share  # the last parts end in padding
        return part[: max(0, rest)]  # type: ignore[no-any-return]
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


@torch.no_grad()
def finite_weights(model: Any) -> bool:
    """Whether every trained weight is finite in all processes; `model` is without its data-parallel
    wrapper.
    """
    trained = [local_part(weight) for weight in model.parameters() if weight.requires_grad]
    whole = torch.stack([torch.isfinite(part).all() for part in trained]).all()
    return all(all_gather(bool(whole)))


def whole_parameter(parameter: Tensor) -> Tensor:
    """A copy of all of a parameter; a sharded one must be gathered by all processes together."""
    if _in_zero_3(parameter):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.detach().clone()


class WholeModel:
    """All weights of a model in every process, also while training shards it.

    Args:
        model: not sharded yet, with its own forward. Its parameters are not copied.
        sharded (`bool`): whether training will shard it.
    """

    def __init__(self, model: nn.Module, *, sharded: bool) -> None:
        self.forward = vars(model).get("forward")
        self._copy: Any = None
        if sharded:
            memo: dict[int, Any] = {}
            for weight in model.parameters():
                empty = weight.detach().new_empty(0)
                memo[id(weight)] = nn.Parameter(empty, weight.requires_grad)
            self._copy = copy.deepcopy(model, memo)

    def is_apart(self, model: nn.Module) -> bool:
        """Whether the model's weights are sharded now."""
        return self._copy is not None and is_sharded(model)

    @torch.no_grad()
    def _gather(self, model: nn.Module) -> Any:
        """The whole model with the sharded one's weights; all processes call it."""
        own = dict(self._copy.named_parameters())
        for name, parameter in model.named_parameters():
            own[name].data = whole_parameter(parameter)
        return self._copy

    @contextlib.contextmanager
    def of(self, model: nn.Module) -> Iterator[Any]:
        """The whole model inside the block, without autocast around its forward."""
        if not self.is_apart(model):
            with with_forward(model, self.forward):
                yield model
            return
        try:
            yield self._gather(model)
        finally:
            for parameter in self._copy.parameters():
                parameter.data = parameter.data.new_empty(0)

    def take(self, model: nn.Module) -> Any:
        """The whole model in place of a sharded one, after training."""
        load_models_whole()
        return self._gather(model)


def shard_on_cpus(accelerator: Any, plugin_args: Any) -> bool:
    """Turns FSDP on where the launcher configures it on CPUs, which accelerate silently ignores;
    true if it did. `plugin_args` are `TrainingArguments.fsdp_plugin_args`.
    """
    from accelerate.state import DistributedType, PartialState
    from accelerate.utils import FullyShardedDataParallelPlugin

    state, variable = accelerator.state, os.environ.get("ACCELERATE_USE_FSDP", "false")
    wanted = plugin_args is not None or variable.lower() == "true"
    if not wanted or state.distributed_type != DistributedType.MULTI_CPU:
        return False
    state.fsdp_plugin = FullyShardedDataParallelPlugin(**(plugin_args or {}))
    state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
    return True


def keep_output_precision(accelerator: Any) -> None:
    """Under FSDP's mixed precision, modules return their outputs uncast, and gradients are reduced
    in float32.

    accelerate would cast every output to 16 bits, and the step passes its statistics, sums of
    hundreds of log-probabilities, through the outputs of the model and of its head.
    """
    plugin = _plugin(accelerator, "fsdp")
    policy = getattr(plugin, "mixed_precision_policy", None)
    if isinstance(policy, MixedPrecisionPolicy):
        exact = replace(policy, output_dtype=None, reduce_dtype=torch.float32)
        plugin.mixed_precision_policy = exact


def _plugin(accelerator: Any, name: str) -> Any:
    return getattr(accelerator.state, f"{name}_plugin", None)


def shards_weights(accelerator: Any) -> bool:
    """Whether training will shard the weights: FSDP, or DeepSpeed's ZeRO stage 3."""
    deepspeed = _plugin(accelerator, "deepspeed")
    zero_3 = deepspeed is not None and deepspeed.zero_stage == 3
    return bool(_plugin(accelerator, "fsdp") is not None or zero_3)


def check_sharding(accelerator: Any, config: Any) -> None:
    """Raises `UserError` for options that do not go with sharded weights."""
    fsdp = _plugin(accelerator, "fsdp")
    if _plugin(accelerator, "deepspeed") is not None and (config.bf16 or config.fp16):
        raise UserError(
            "DeepSpeed holds the weights themselves in 16 bits where bf16 or fp16 is on, and"
            " unteach does not; leave it out, or use FSDP2"
        )
    if shards_weights(accelerator) and config.reference != "stored":
        raise UserError(
            f"reference is {config.reference!r}, but a model with sharded weights needs 'stored'"
        )
    if fsdp is not None and fsdp.fsdp_version != 2:
        raise UserError(
            f"fsdp_version is {fsdp.fsdp_version}, but only FSDP2 is supported: set fsdp_version: 2"
        )
    if fsdp is not None and fsdp.cpu_ram_efficient_loading:
        raise UserError(
            "fsdp_cpu_ram_efficient_loading is on, but every process reads the whole model before"
            " it is sharded: set it to false"
        )


def load_models_whole() -> None:
    """From now on every process loads whole models: under ZeRO stage 3 transformers would partition
    each while it loads.
    """
    from transformers.integrations.deepspeed import (
        is_deepspeed_zero3_enabled,
        unset_hf_deepspeed_config,
    )

    if is_deepspeed_zero3_enabled():
        unset_hf_deepspeed_config()
