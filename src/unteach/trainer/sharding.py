"""A run whose weights are sharded: what goes with that, where the model lies before it, and the
whole model while and after.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy

from unteach.errors import UserError
from unteach.trainer.parallel import is_sharded

if TYPE_CHECKING:
    from unteach.trainer.trainer import UnlearningTrainer


def shard_on_cpus(trainer: UnlearningTrainer) -> None:
    """Turns FSDP on where the launcher asks for it on CPUs: accelerate then trains with whole
    weights and does not say so.
    """
    from accelerate.state import DistributedType, PartialState
    from accelerate.utils import FullyShardedDataParallelPlugin

    state, asked = trainer.accelerator.state, trainer.args.fsdp_plugin_args
    wanted = asked is not None or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if not wanted or state.distributed_type != DistributedType.MULTI_CPU:
        return
    state.fsdp_plugin = FullyShardedDataParallelPlugin(**(asked or {}))
    state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
    trainer.is_fsdp_enabled = True


def exact_outputs(trainer: UnlearningTrainer) -> None:
    """Under FSDP's mixed precision: modules hand out what they have computed as it is, and
    gradients are summed in float32.

    accelerate would have every output cast to 16 bits, and the step hands its statistics, sums of
    hundreds of log-probabilities, through the outputs of the model and of its head.
    """
    policy = getattr(
        getattr(trainer.accelerator.state, "fsdp_plugin", None), "mixed_precision_policy", None
    )
    if isinstance(policy, MixedPrecisionPolicy):
        exact = replace(policy, output_dtype=None, reduce_dtype=torch.float32)
        trainer.accelerator.state.fsdp_plugin.mixed_precision_policy = exact


def check_sharding(trainer: UnlearningTrainer) -> None:
    """Raises `UserError` for options that do not go with sharded weights."""
    config = trainer.config
    if trainer.is_deepspeed_enabled and (config.bf16 or config.fp16):
        raise UserError(
            "DeepSpeed holds the weights themselves in 16 bits where bf16 or fp16 is on, and"
            " unteach does not; leave it out, or use FSDP2"
        )
    if shards_weights(trainer) and config.reference != "stored":
        raise UserError(
            f"reference is {config.reference!r}, but a model whose weights are sharded needs"
            " 'stored'"
        )
    if not trainer.is_fsdp_enabled:
        return
    plugin = trainer.accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise UserError(
            f"fsdp_version is {plugin.fsdp_version}, but only FSDP2 is supported: set"
            " fsdp_version: 2"
        )
    if plugin.cpu_ram_efficient_loading:
        raise UserError(
            "fsdp_cpu_ram_efficient_loading is on, but every process asks the whole model before it"
            " is sharded: set it to false"
        )


def shards_weights(trainer: UnlearningTrainer) -> bool:
    """Whether training will take the weights apart: FSDP, or DeepSpeed's ZeRO stage 3."""
    zero_3 = (
        trainer.is_deepspeed_enabled and trainer.accelerator.state.deepspeed_plugin.zero_stage == 3
    )
    return bool(trainer.is_fsdp_enabled or zero_3)


def load_models_whole() -> None:
    """Models loaded from now on are whole in every process: under ZeRO stage 3 transformers would
    take each apart while it loads.
    """
    from transformers.integrations.deepspeed import (
        is_deepspeed_zero3_enabled,
        unset_hf_deepspeed_config,
    )

    if is_deepspeed_zero3_enabled():
        unset_hf_deepspeed_config()


@contextlib.contextmanager
def whole_model(trainer: UnlearningTrainer) -> Iterator[Any]:
    """The trainer's model without its wrapper and with all its weights in every process, for the
    time of the block.
    """
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.whole is None or not is_sharded(model):
        yield model
        return
    with trainer.whole.filled(model) as whole:
        yield whole


def take_whole(trainer: UnlearningTrainer) -> Any:
    """The trainer's model after training: whole in every process, also where training has sharded
    it.
    """
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.whole is not None and is_sharded(model):
        trainer.model = trainer.model_wrapped = trainer.whole.fill(model)
        model, trainer.whole, trainer.sharded = trainer.model, None, True
        load_models_whole()
    return model
