"""One micro-batch: a forward pass gives per-token statistics by role; a step's metrics are their
means over all micro-batches and processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from unteach import models
from unteach.data.packing import PADDING
from unteach.losses.statistics import ROLES, TokenStatistics
from unteach.losses.token import state_distance
from unteach.methods.objective import Hooks, Method, RoleTokens
from unteach.models.kernels import CompiledLayers
from unteach.models.parts import OutputHead, layer_outputs
from unteach.models.token_statistics import token_statistics, vocabulary_statistics
from unteach.trainer.distributed import through_head

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class StepSpec:
    """What one micro-batch is computed with.

    Args:
        method (`Method`), hooks (`Hooks`): the objective; the hooks have losses on hidden states.
        packed (`bool`): layout of the batches, see `make_batch`.
        budget_bytes (`int`): most memory of one (tokens, vocabulary) matrix.
        autocast (`Callable`): makes the precision context of the forward pass.
        compiled (`CompiledLayers`, *optional*): layers that run compiled while training.
    """

    method: Method
    hooks: Hooks
    packed: bool
    budget_bytes: int
    autocast: Callable[[], AbstractContextManager[Any]]
    compiled: CompiledLayers | None = None


class ReferenceValues(Protocol):
    """The reference model: its frozen output head, and its values on a batch."""

    @property
    def head(self) -> OutputHead | None:
        """Maps final hidden states to its logits."""

    def at(self, batch: Batch) -> dict[str, Tensor]:
        """By role, what `Method.reference_values` names, shape (tokens, ...), in batch order."""


def final_states(model: Any, batch: Batch, spec: StepSpec) -> Tensor:
    """Final hidden states that predict the completion tokens, shape (tokens, hidden)."""
    with spec.autocast(), spec.compiled.used() if spec.compiled else nullcontext():
        return models.predicting_states(model, dict(batch), packed=spec.packed)


def states_with_layer(model: Any, batch: Batch, spec: StepSpec) -> tuple[Tensor, Tensor]:
    """(final hidden states, hidden states after layer `spec.hooks.layer`) that predict the
    completion tokens, from one forward pass.
    """
    assert spec.hooks.layer is not None, "the method reads no layer"
    with layer_outputs(model, spec.hooks.layer) as outputs:
        final = final_states(model, batch, spec)
    return final, outputs[-1].flatten(0, 1)[batch["predictor"]]


def role_tokens(
    model: Any, batch: Batch, reference: ReferenceValues | None, spec: StepSpec
) -> dict[str, RoleTokens]:
    """Per-token statistics of each role in a batch of `make_batch`, from one forward pass.

    Args:
        model: a causal language model without its data-parallel wrapper.
        batch: of `make_batch`.
        reference (`ReferenceValues`, *optional*): the statistics of roles without reference values
            have none.
    """
    # the reference comes first: reading stored values waits for the GPU
    values = reference.at(batch) if reference else {}
    by_kind: dict[str, dict[str, Tensor]] = {"hidden": {}, "logp": {}, "layer": {}}
    for role, value in values.items():
        by_kind[spec.method.reference_values[role]][role] = value
    inner: Tensor | None = None
    if spec.hooks.layer is None:
        hidden = final_states(model, batch, spec)
    else:
        hidden, inner = states_with_layer(model, batch, spec)
    sizes = batch["role"].bincount(minlength=len(ROLES)).tolist()
    known, reference_head = by_kind["hidden"], reference.head if reference else None

    def statistics_of(states: Tensor) -> list[TokenStatistics]:
        head, targets = models.output_head(model), batch["target"]
        return _statistics_by_role(states, targets, sizes, head, known, reference_head, spec)

    with spec.autocast():
        parts = through_head(models.output_layer(model), statistics_of, hidden)
    roles: dict[str, RoleTokens] = {}
    end = 0
    for role, statistics, size in zip(ROLES, parts, sizes, strict=True):
        tokens = slice(end, end := end + size)
        if not size:
            continue
        if role in by_kind["logp"]:
            statistics = replace(statistics, reference_logp=values[role])
        if role == "retain" and role in known and spec.method.state_weight:
            statistics = replace(statistics, extra=state_distance(hidden[tokens], known[role]))
        if inner is not None:
            loss = spec.hooks.state_loss(role, inner[tokens], by_kind["layer"].get(role))
            statistics = replace(statistics, extra=loss)
        roles[role] = RoleTokens(statistics, batch["weight"][tokens], batch["sequence"][tokens])
    return roles


def _statistics_by_role(
    hidden: Tensor,
    targets: Tensor,
    sizes: list[int],
    head: OutputHead,
    reference: Mapping[str, Tensor],
    reference_head: OutputHead | None,
    spec: StepSpec,
) -> list[TokenStatistics]:
    """The statistics of each role, whose tokens follow each other; all that read no whole
    distribution from one pass over the logits.
    """
    forget: list[TokenStatistics] = []
    if (loss := spec.method.vocabulary_loss) is not None:
        size = sizes[0]
        statistics = vocabulary_statistics(
            hidden[:size],
            targets[:size],
            head,
            loss,
            reference_hidden=reference.get("forget"),
            reference_head=reference_head,
            budget_bytes=spec.budget_bytes,
        )
        forget, hidden, targets = [statistics], hidden[size:], targets[size:]
    measure = partial(
        token_statistics,
        head=head,
        complement=spec.method.complement,
        reference_head=reference_head,
        budget_bytes=spec.budget_bytes,
    )
    known, first = reference.get("retain"), len(forget)
    if not forget and "forget" in reference:
        size, known_forget = sizes[0], reference["forget"]
        if sum(sizes) == size + sizes[-1]:  # nothing between the two roles with a reference
            known = known_forget if known is None else torch.cat([known_forget, known])
        else:
            forget = [measure(hidden[:size], targets[:size], reference_hidden=known_forget)]
            hidden, targets, first = hidden[size:], targets[size:], 1
    others = measure(hidden, targets, reference_hidden=known)
    return forget + others.split(sizes[first:])


SUMMED = frozenset({"loss", "tokens", "padded_tokens"})
"""Metrics that are summed over micro-batches and processes; all others are means over tokens."""
METRICS = (*(f"{role}_nll" for role in ROLES), "retain_kl", "forget_loss", *sorted(SUMMED))
"""Every process sends all of them: one may have no retain row where another has some."""


class StepMeans:
    """The metrics of an optimiser step: sums and counts over its micro-batches and processes,
    divided once.
    """

    def __init__(self) -> None:
        self._sums: dict[str, list[Tensor]] = {}

    def clear(self) -> None:
        """Discards what was added."""
        self._sums = {}

    def _add(self, name: str, value: Tensor, count: Tensor) -> None:
        total = self._sums.setdefault(name, [torch.zeros_like(value), torch.zeros_like(count)])
        total[0] += value
        total[1] += count

    @torch.no_grad()
    def add(
        self,
        roles: Mapping[str, RoleTokens],
        tree: Tensor,
        loss: Tensor,
        terms: Mapping[str, tuple[Tensor, Tensor]],
    ) -> None:
        """Adds one micro-batch: statistics by role, each position's tree or `PADDING`, shape (rows,
        length), this process's share of the step's loss, and (sum, count) of each term.
        """
        one = loss.new_ones((), dtype=torch.float64)
        for role, tokens in roles.items():
            weights, kl = tokens.weights, tokens.statistics.kl
            nll = -(tokens.statistics.logp.double() * weights).sum()
            self._add(f"{role}_nll", nll, weights.sum())
            if role == "retain" and kl is not None:
                self._add("retain_kl", (kl.double() * weights).sum(), weights.sum())
        if "forget" in terms:
            value, count = terms["forget"]
            self._add("forget_loss", value.detach().double(), count.double())
        self._add("loss", loss.detach().double(), one)
        self.add_tokens(tree)

    def add_tokens(self, tree: Tensor) -> None:
        """Counts the tokens of a batch that has a forward and a backward pass, see `add`."""
        one = torch.ones((), dtype=torch.float64, device=tree.device)
        self._add("tokens", (tree != PADDING).sum().double(), one)
        self._add("padded_tokens", one * tree.numel(), one)

    def take(self, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """The step's metrics, which are cleared; `reduce` sums a tensor over processes."""
        if not self._sums:
            return {}
        zero = [torch.zeros_like(total) for total in self._sums["loss"]]
        stacked = torch.stack([torch.stack(self._sums.get(name, zero)) for name in METRICS])
        if reduce is not None:
            stacked = reduce(stacked)
        self.clear()
        return {
            name: value if name in SUMMED else value / count
            for name, (value, count) in zip(METRICS, stacked.tolist(), strict=True)
            if count
        }
