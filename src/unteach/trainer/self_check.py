"""The self-check before the first step: packed rows are compared with plain rows and with the
model's own logits, on the longest rows of the run.
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
from unteach.data.packing import PADDING, Branch, Tree, make_batch
from unteach.data.stream import Collator
from unteach.data.tokenization import EncodedRow
from unteach.errors import UserError, is_out_of_memory
from unteach.models.kernels import chosen_kernels
from unteach.models.token_statistics import token_statistics
from unteach.trainer.reference import StoredReference

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
Autocast = Callable[[], AbstractContextManager[Any]]
"""Makes the precision context of the training step."""


@torch.no_grad()
def check_fast_path(
    model: Any, trees: Sequence[Tree], collator: Collator, *, autocast: Autocast
) -> None:
    """Compares plain padded rows, and packed ones, with the model's own logits on unpadded rows.

    Where the packed ones differ, training uses plain rows, and a warning says so. Weights in full
    precision are compared without autocast, whose rounding would hide what the check looks for;
    weights of 16 bits by the mean difference, as the order of additions alone changes single tokens
    by tenths of a nat.

    Args:
        model: the model without its data-parallel wrapper.
        trees (`Sequence[Tree]`): what to compare on; the longest rows, as limits of attention show
            only there.
        collator (`Collator`): its `packed` becomes false where packing does not hold.

    Raises:
        UserError: where even plain rows differ: the output head is not what it is taken for.
    """
    exact = _full_precision(model)
    precision = nullcontext if exact else autocast

    def batch_of(packed: bool) -> dict[str, Tensor]:
        return _on_device(model, collator.batch(trees, packed=packed))

    plain = batch_of(packed=False)
    with precision():
        wanted = _own_logp(model, plain)
        tolerance = EXACT_TOLERANCE if exact else _rounding(model, plain)

    def difference(batch: dict[str, Tensor], *, packed: bool) -> float:
        with precision():
            hidden = models.predicting_states(model, batch, packed=packed)
            ours = token_statistics(hidden, batch["target"], models.output_head(model)).logp
        return _apart(ours, wanted, exact=exact)

    if wanted.isnan().any():
        raise UserError(
            "the model's logits are no numbers: its weights are broken (NaN or infinite)"
        )
    if not difference(plain, packed=False) <= tolerance:
        raise UserError(
            f"{type(models.without_adapter(model)).__name__}: its logits are not its final hidden"
            " states times its output embedding; this architecture is not supported"
        )
    if not collator.packed:
        return
    try:
        found = difference(batch_of(packed=True), packed=True)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        found = float("inf")
    if not found <= tolerance:
        collator.packed = False
        warnings.warn(
            f"packed rows give other log-probabilities than plain ones on {type(model).__name__}"
            f" (difference {found:.2g}); training goes on with plain rows, which is slower",
            stacklevel=2,
        )


@torch.no_grad()
def check_stored_reference(
    model: Any, stored: StoredReference, row: EncodedRow, number: int, *, autocast: Autocast
) -> None:
    """Compares what is stored of one retain row with the model's own logits on the plain row.

    Args:
        model: the reference model, or the trained one before its first step.
        row (`EncodedRow`), number (`int`): the row and its number in the reference.

    Raises:
        UserError: where they differ.
    """
    assert stored.head is not None, "states are stored"
    branch = Branch("retain", row.completion_ids, reference_row=number)
    plain = _on_device(model, make_batch([Tree(row.prompt_ids, (branch,))], packed=False, pad_id=0))
    values, device = stored.values["retain"], plain["target"].device
    with models.adapter_off(model), autocast():
        exact = _full_precision(model) and not torch.is_autocast_enabled(device.type)
        exact = exact and values.dtype != torch.bfloat16
        wanted = _own_logp(model, plain)
        tolerance = EXACT_TOLERANCE if exact else _rounding(model, plain)
        found = token_statistics(values.at(plain), plain["target"], stored.head).logp
    if not (apart := _apart(found, wanted, exact=exact)) <= tolerance:
        raise UserError(
            f"the stored reference gives other log-probabilities than the model (difference"
            f" {apart:.2g}, on retain row {row.key}); remove the folder 'reference' of the output"
            " folder, or set packing to false"
        )


def _full_precision(model: Any) -> bool:
    return all(p.dtype in (torch.float32, torch.float64) for p in model.parameters())


def _on_device(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _apart(ours: Tensor, wanted: Tensor, *, exact: bool) -> float:
    difference = (ours - wanted).abs()
    return float(difference.max() if exact else difference.mean())


def _own_logp(
    model: Any,
    plain: dict[str, Tensor],
    kernels: Callable[[], AbstractContextManager[Any]] | None = None,
) -> Tensor:
    """log p(y) of each completion token of plain rows from the model's logits, shape (tokens,); row
    by row, so that memory holds the logits of one row.
    """
    rows, width = plain["input_ids"].shape
    logp = torch.empty(len(plain["target"]), device=plain["target"].device)
    for row in range(rows):
        tokens = plain["predictor"] // width == row
        length = int((plain["tree"][row] != PADDING).sum())
        ids = plain["input_ids"][row : row + 1, :length]
        with kernels() if kernels else chosen_kernels(model, ids.device.type, length):
            logits = model(input_ids=ids, use_cache=False).logits[0]
        predicting = logits[plain["predictor"][tokens] - row * width].float()
        chosen = predicting.log_softmax(-1).gather(-1, plain["target"][tokens][:, None])
        logp[tokens] = chosen.squeeze(-1)
    return logp


def _rounding(model: Any, plain: dict[str, Tensor]) -> float:
    """The largest mean difference that rounding may make on these rows."""
    one, other = (
        _own_logp(model, plain, kernels)
        for kernels in (nullcontext, lambda: sdpa_kernel(SDPBackend.MATH))
    )
    return max(MEAN_TOLERANCE, TIMES_ROUNDING * _apart(one, other, exact=False))
