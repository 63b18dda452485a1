"""Whether the fast path holds on this architecture: compared on real rows before the first step,
not assumed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from unteach import models
from unteach.data.packing import Tree, make_batch
from unteach.data.stream import Collator
from unteach.errors import UserError
from unteach.models.kernels import chosen_kernels
from unteach.models.token_statistics import token_statistics

EXACT_TOLERANCE = 1e-3
"""Largest accepted difference of a log-probability, in nats, of weights in full precision."""
MEAN_TOLERANCE = 0.05
"""Largest accepted mean absolute difference of the log-probabilities, in nats, of weights of 16 or
fewer bits ...
"""
TIMES_ROUNDING = 3.0
"""... or this many times what another attention kernel changes on the same rows.

On SmolLM2 in bfloat16 rounding alone makes 0.02 to 0.05 nats, positions that do not restart 0.3 to
0.4.
"""


@torch.no_grad()
def check_fast_path(
    model: Any,
    trees: Sequence[Tree],
    collator: Collator,
    *,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> None:
    """Compares packed rows with plain padded ones, and those with the model's own logits.

    Where the packed ones differ, training goes on with plain rows, and a warning says so. Weights
    in full precision are compared without autocast, whose rounding would hide what the check looks
    for; weights of 16 bits by the mean difference, as single tokens differ by tenths of a nat from
    the order of additions alone; how much that makes is measured with another attention kernel.

    Args:
        model: the model without its data-parallel wrapper.
        trees (`Sequence[Tree]`): what to compare on.
        collator (`Collator`): its `packed` becomes false where packing does not hold.
        autocast (`Callable`): makes the precision context of the training step.

    Raises:
        UserError: where even plain rows differ, as then the output head is not what it is taken
            for.
    """
    device = next(model.parameters()).device
    exact = all(
        parameter.dtype in (torch.float32, torch.float64) for parameter in model.parameters()
    )
    precision = nullcontext if exact else autocast
    tolerance = EXACT_TOLERANCE if exact else MEAN_TOLERANCE

    def batch_of(packed: bool) -> dict[str, Tensor]:
        batch = make_batch(
            trees, packed=packed, pad_id=collator.pad_id, row_tokens=collator.row_tokens
        )
        return {name: tensor.to(device) for name, tensor in batch.items()}

    plain = batch_of(packed=False)

    def from_logits(kernels: AbstractContextManager[Any]) -> Tensor:
        with precision():
            inputs = models.model_inputs(plain, packed=False, dtype=model.dtype)
            with kernels:
                logits = (
                    model(**inputs, use_cache=False)
                    .logits.flatten(0, 1)[plain["predictor"]]
                    .float()
                )
        logp: Tensor = logits.log_softmax(-1).gather(-1, plain["target"][:, None]).squeeze(-1)
        return logp

    wanted = from_logits(chosen_kernels(model, device.type, plain["input_ids"].shape[1]))
    if not exact:
        rounding = (
            (from_logits(nullcontext()) - from_logits(sdpa_kernel(SDPBackend.MATH))).abs().mean()
        )
        tolerance = max(tolerance, TIMES_ROUNDING * float(rounding))

    def difference(batch: dict[str, Tensor], *, packed: bool) -> float:
        with precision():
            hidden = models.predicting_states(model, batch, packed=packed)
            ours = token_statistics(hidden, batch["target"], models.output_head(model)).logp
        apart = (ours - wanted).abs()
        return float(apart.max() if exact else apart.mean())

    if not difference(plain, packed=False) <= tolerance:
        raise UserError(
            f"{type(models.without_adapter(model)).__name__}: its logits are not its final hidden"
            " states times its output embedding; this architecture is not supported"
        )
    if not collator.packed:
        return
    try:
        found = difference(batch_of(packed=True), packed=True)
    except (RuntimeError, ValueError, TypeError, IndexError):
        found = float("inf")
    if not found <= tolerance:
        collator.packed = False
        warnings.warn(
            f"packed rows give other log-probabilities than plain ones on {type(model).__name__}"
            f" (difference {found:.2g}); training goes on with plain rows, which is slower",
            stacklevel=2,
        )
