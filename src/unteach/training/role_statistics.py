"""What the objective needs to know about the tokens of each role in a batch, from one forward."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from torch import Tensor

from unteach import models
from unteach.compute.output_head import OutputHead
from unteach.objectives import ROLES, RoleTokens
from unteach.objectives.state_losses import state_drift, steering_vector
from unteach.tokenwise import TokenStatistics, token_statistics, vocabulary_statistics
from unteach.training.parallel import through_head
from unteach.training.role_references import states_of_layer

if TYPE_CHECKING:
    from unteach.trainer import UnlearningTrainer


def role_statistics(trainer: UnlearningTrainer, model: Any, batch: dict[str, Tensor]) -> dict[str, RoleTokens]:
    """One forward over the batch; per-token statistics of each role that it holds."""
    inner: Tensor | None = None
    if trainer.method.level == "state":
        hidden, inner = states_of_layer(model, trainer.layer, batch, lambda: trainer.states(model, batch))
    else:
        hidden = trainer.states(model, batch)
    sizes = batch["role"].bincount(minlength=len(ROLES)).tolist()
    with trainer.accelerator.autocast():
        parts = through_head(
            models.output_layer(model),
            lambda states: _statistics_of_roles(trainer, states, batch, sizes, models.output_head(model)),
            hidden,
        )
    ends = list(accumulate(sizes))
    roles: dict[str, RoleTokens] = {}
    for role, statistics, end, size in zip(ROLES, parts, ends, sizes, strict=True):
        if not size:
            continue
        chosen = slice(end - size, end)
        if role in trainer._references.logp:
            statistics = replace(statistics, reference_logp=trainer._references.logp[role].at(batch, hidden.device))
        if inner is not None:
            statistics = replace(statistics, extra=_state_loss(trainer, role, inner[chosen], batch))
        roles[role] = RoleTokens(statistics, batch["weight"][chosen], batch["sequence"][chosen])
    return roles


def _statistics_of_roles(
    trainer: UnlearningTrainer, hidden: Tensor, batch: dict[str, Tensor], sizes: list[int], head: OutputHead
) -> list[TokenStatistics]:
    """The statistics of each role's tokens, which follow each other in the batch: of all at once, as far as that goes."""
    targets, kept, budget = batch["target"], trainer._reference, trainer.config.logits_budget_mb * 2**20
    first: list[TokenStatistics] = []
    if trainer.method.vocabulary_loss is not None:
        asked, forgotten = trainer._references.forget, sizes[0]
        first = [
            vocabulary_statistics(
                hidden[:forgotten],
                targets[:forgotten],
                head,
                trainer.method.vocabulary_loss,
                reference_hidden=None if asked is None else asked.hidden(batch, hidden.device),
                reference_head=None if asked is None else asked.head,
                budget_bytes=budget,
            )
        ]
        hidden, targets = hidden[forgotten:], targets[forgotten:]
    others = token_statistics(
        hidden,
        targets,
        head,
        complement=trainer.method.needs_complement,
        reference_hidden=None if kept is None else kept.hidden(batch, hidden.device),
        reference_head=None if kept is None else kept.head,
        budget_bytes=budget,
    )
    return first + others.split(sizes[len(first) :])


def _state_loss(trainer: UnlearningTrainer, role: str, states: Tensor, batch: dict[str, Tensor]) -> Tensor | None:
    """The loss on hidden states at the steering layer, shape (tokens,), where the role has one."""
    if role == "forget" and trainer.method.forget is not None:
        return trainer.method.forget(states, steering_vector(states.shape[-1], trainer.config.steering_coefficient, trainer.args.seed))
    if role == "retain" and trainer._references.states is not None:
        return state_drift(states, trainer._references.states.at(batch, states.device))
    return None
