"""What the reference says: its distribution on the retain set, and what some methods read of it
beside that.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unteach import models
from unteach.data.packing import Branch, Tree, make_batch
from unteach.data.stream import forget_branches, retain_branches
from unteach.data.tokenization import EncodedRow
from unteach.errors import UserError
from unteach.models.layers import layer_list, layer_outputs
from unteach.models.output_head import OutputHead
from unteach.models.token_statistics import token_statistics
from unteach.processes import process_batches
from unteach.processes import total as sum_of
from unteach.trainer import reference

if TYPE_CHECKING:
    from unteach.trainer.trainer import UnlearningTrainer


@dataclass
class RoleReferences:
    """What the method needs of the reference, each part from the weights before the first step.

    Args:
        forget (`Reference`, *optional*): its distribution on the completions to forget.
        logp (`dict[str, Values]`): its log p(y) on each token of the forget and the preferred
            completions, by role.
        states (`Values`, *optional*): its hidden states at the steering layer, on the retain
            completions.
    """

    forget: reference.Reference | None = None
    logp: dict[str, reference.Values] = field(default_factory=dict)
    states: reference.Values | None = None


def steering_layer(model: Any, chosen: int | None) -> int:
    """The layer that RMU steers: the chosen one, else the one at 7/32 of the depth (layer 7 of
    Zephyr-7B; Li et al. 2024).

    Raises:
        UserError: if the model has no such layer.
    """
    layers = layer_list(model)
    if layers is None or not 0 <= (chosen or 0) < len(layers):
        there = (
            "no list of layers that is known"
            if layers is None
            else f"{len(layers)} layers, counted from 0"
        )
        raise UserError(f"steering_layer is {chosen}, but the model has {there}")
    return round(len(layers) * 7 / 32) if chosen is None else chosen


def states_of_layer(
    model: Any, layer: int, batch: dict[str, Tensor], final_states: Callable[[], Tensor]
) -> tuple[Tensor, Tensor]:
    """(final hidden states, hidden states at `layer`) at the positions that predict a completion
    token, from one forward.

    Args:
        model: the model without its data-parallel wrapper.
        layer (`int`)
        batch: see `make_batch`.
        final_states (`Callable`): runs the forward, returns its final states of shape (tokens,
            hidden).
    """
    with layer_outputs(model, layer) as kept:
        final = final_states()
    return final, kept[-1].flatten(0, 1)[batch["predictor"]]


def row_batches(
    trainer: UnlearningTrainer,
    rows: Sequence[EncodedRow],
    branches: Callable[[EncodedRow, int], list[Branch]],
    tokens_per_batch: int = 2048,
) -> Iterator[dict[str, Tensor]]:
    """All rows, in batches of about so many tokens, short ones first, on the model's device.

    Args:
        trainer (`UnlearningTrainer`)
        rows (`Sequence[EncodedRow]`)
        branches (`Callable`): from a row and its number to its completions.
        tokens_per_batch (`int`)
    """

    def tree(number: int) -> Tree:
        return Tree(rows[number].prompt_ids, tuple(branches(rows[number], number)))

    collator, batch = trainer.collator, list[int]()
    device = next(reference_model(trainer).parameters()).device
    lengths = [len(tree(number)) for number in range(len(rows))]
    for number in [*sorted(range(len(rows)), key=lengths.__getitem__), None]:
        if batch and (
            number is None or sum(lengths[other] for other in [*batch, number]) > tokens_per_batch
        ):
            made = make_batch(
                list(map(tree, batch)),
                packed=collator.packed,
                pad_id=collator.pad_id,
                row_tokens=collator.row_tokens,
            )
            yield {name: tensor.to(device) for name, tensor in made.items()}
            batch = []
        if number is not None:
            batch.append(number)


def token_logp(
    states: Tensor, batch: dict[str, Tensor], head: OutputHead, budget_bytes: int
) -> Tensor:
    """log p(y) of every completion token of a batch, shape (tokens,)."""
    return token_statistics(states, batch["target"], head, budget_bytes=budget_bytes).logp


def once_per_batch(compute: reference.TokenValues) -> reference.TokenValues:
    """The same function, which computes a batch's values once though they are asked for in each of
    its roles.
    """
    last: list[tuple[dict[str, Tensor], Tensor]] = []

    def remembered(batch: dict[str, Tensor]) -> Tensor:
        if not last or last[0][0] is not batch:
            last[:] = [(batch, compute(batch))]
        return last[0][1]

    return remembered


def retain_batches(trainer: UnlearningTrainer) -> Iterator[dict[str, Tensor]]:
    """The whole retain set, short rows first."""
    return row_batches(trainer, trainer.retain_rows, retain_branches)


def reference_model(trainer: UnlearningTrainer) -> Any:
    """The model that is asked as the reference: a frozen copy from the first call on (`live`), or
    the model itself.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.config.reference != "live":
        return model
    if trainer.frozen is None:
        trainer.frozen = copy.deepcopy(model).eval().requires_grad_(False)
    return trainer.frozen


def ask_reference(trainer: UnlearningTrainer, batch: dict[str, Tensor]) -> Tensor:
    """The reference's final hidden states for a batch, shape (tokens, hidden)."""
    model = reference_model(trainer)
    if trainer.config.reference == "live":
        return trainer.states(model, batch)
    with models.adapter_off(model):
        return trainer.states(model, batch)


def stored_settings(
    trainer: UnlearningTrainer, rows: Sequence[EncodedRow], kind: str = "retain"
) -> dict[str, Any]:
    """Precision, folder and key with which values of these rows are stored; `kind` says which
    values they are.
    """
    dtype = torch.bfloat16 if trainer.config.reference_dtype == "bfloat16" else None
    model = trainer.accelerator.unwrap_model(trainer.model)
    contents = chain([kind], (f"{row.prompt_ids}{row.completion_ids}" for row in rows))
    key = reference.reference_key(
        models.weights_hash(model), contents, dtype or torch.float32, str(trainer.args.bf16)
    )
    return {"dtype": dtype, "folder": trainer.output / "reference", "key": key}


def build_retain_reference(trainer: UnlearningTrainer) -> reference.Reference | None:
    """The reference's distribution on the retain set, from the weights as they are now; `None` for
    methods that do not read it.
    """
    if not trainer.retain_rows or trainer.method.retain in ("nll", "states"):
        return None

    def ask(batch: dict[str, Tensor]) -> Tensor:
        return ask_reference(trainer, batch)

    head = models.output_head(reference_model(trainer))
    if trainer.config.reference != "stored":
        return reference.LiveReference(ask, head)
    with models.dropout_off(reference_model(trainer)):
        return reference.build_stored_reference(
            retain_batches(trainer),
            [len(row.completion_ids) for row in trainer.retain_rows],
            ask,
            head,
            freeze_head=head.weight.requires_grad,
            **stored_settings(trainer, trainer.retain_rows),
        )


def build_role_references(trainer: UnlearningTrainer) -> RoleReferences:
    """Everything of `RoleReferences` that the trainer's method needs, from the weights as they are
    now.
    """
    method, config = trainer.method, trainer.config
    found = RoleReferences()
    if method.reference is None and method.retain != "states":
        return found
    live = config.reference != "stored"

    def ask(batch: dict[str, Tensor]) -> Tensor:
        return ask_reference(trainer, batch)

    head = models.output_head(reference_model(trainer))
    budget = config.logits_budget_mb * 2**20
    if method.reference == "logp":
        lengths = {"forget": [len(row.completion_ids) for row in trainer.forget_rows]}
        if method.preferred:
            lengths["preferred"] = [len(row.preferred_ids) for row in trainer.forget_rows]

        def logp(batch: dict[str, Tensor]) -> Tensor:
            states = ask(batch)
            with trainer.accelerator.autocast():
                return token_logp(states, batch, head, budget)

        asked = once_per_batch(logp)
        for role, counts in lengths.items():
            found.logp[role] = (
                reference.LiveValues(asked, role)
                if live
                else reference.build_stored_values(
                    row_batches(trainer, trainer.forget_rows, forget_branches),
                    counts,
                    logp,
                    role=role,
                )
            )
    if method.reference == "logits":
        if live:
            found.forget = reference.LiveReference(ask, head, "forget")
        else:
            found.forget = reference.build_stored_reference(
                row_batches(trainer, trainer.forget_rows, forget_branches),
                [len(row.completion_ids) for row in trainer.forget_rows],
                ask,
                head,
                freeze_head=head.weight.requires_grad,
                role="forget",
                **stored_settings(trainer, trainer.forget_rows, "forget"),
            )
    if method.retain == "states":
        layer = trainer.layer

        def inner(batch: dict[str, Tensor]) -> Tensor:
            return states_of_layer(reference_model(trainer), layer, batch, lambda: ask(batch))[1]

        if live:
            found.states = reference.LiveValues(inner)
        else:
            found.states = reference.build_stored_values(
                retain_batches(trainer),
                [len(row.completion_ids) for row in trainer.retain_rows],
                inner,
                **stored_settings(trainer, trainer.retain_rows, f"layer {layer}"),
            )
    return found


@torch.no_grad()
def retain_nll(trainer: UnlearningTrainer) -> float:
    """The mean NLL of the retain set's completion tokens under the reference, in nats."""
    head = models.output_head(reference_model(trainer))
    total, count = 0.0, 0
    for batch in process_batches(retain_batches(trainer)):
        states = ask_reference(trainer, batch)
        with trainer.accelerator.autocast():
            logp = token_logp(states, batch, head, trainer.config.logits_budget_mb * 2**20)
        total -= float(logp.double().sum())
        count += len(logp)
    return sum_of(total) / sum_of(count)
