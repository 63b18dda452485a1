"""What the objective needs to know about the tokens of each role in a batch, from one forward."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from torch import Tensor

from unteach import models
from unteach.losses.state import state_drift, steering_vector
from unteach.losses.statistics import TokenStatistics
from unteach.methods import ROLES, RoleTokens
from unteach.models.output_head import OutputHead
from unteach.models.token_statistics import token_statistics, vocabulary_statistics
from unteach.trainer.parallel import through_head
from unteach.trainer.role_references import states_of_layer

if TYPE_CHECKING:
    from unteach.trainer.trainer import UnlearningTrainer


@dataclass(frozen=True)
class _Asked:
    """What the reference says of a batch. It is fetched before the forward pass is started, as
    fetching waits for the GPU.

    Args:
        forget, retain (`Tensor` of shape (tokens, hidden), *optional*): its hidden states on the
            tokens of that role.
        logp (`dict[str, Tensor]`): its log p(y), by role.
        inner (`Tensor` of shape (tokens, hidden), *optional*): its states at the steering layer, on
            the retain tokens.
    """

    forget: Tensor | None
    retain: Tensor | None
    logp: dict[str, Tensor]
    inner: Tensor | None


def _ask(trainer: UnlearningTrainer, batch: dict[str, Tensor], sizes: dict[str, int]) -> _Asked:
    kept, others, device = trainer._reference, trainer._references, batch["target"].device
    return _Asked(
        None if others.forget is None else others.forget.hidden(batch, device),
        None if kept is None else kept.hidden(batch, device),
        {role: values.at(batch, device) for role, values in others.logp.items() if sizes[role]},
        others.states.at(batch, device) if others.states is not None and sizes["retain"] else None,
    )


def role_statistics(
    trainer: UnlearningTrainer, model: Any, batch: dict[str, Tensor]
) -> dict[str, RoleTokens]:
    """One forward over the batch; per-token statistics of each role that it holds."""
    sizes = batch["role"].bincount(minlength=len(ROLES)).tolist()
    asked = _ask(trainer, batch, dict(zip(ROLES, sizes, strict=True)))
    inner: Tensor | None = None
    if trainer.method.level == "state":
        hidden, inner = states_of_layer(
            model, trainer.layer, batch, lambda: trainer.states(model, batch)
        )
    else:
        hidden = trainer.states(model, batch)
    with trainer.accelerator.autocast():
        parts = through_head(
            models.output_layer(model),
            lambda states: _statistics_of_roles(
                trainer, states, batch["target"], asked, sizes, models.output_head(model)
            ),
            hidden,
        )
    ends = list(accumulate(sizes))
    roles: dict[str, RoleTokens] = {}
    for role, statistics, end, size in zip(ROLES, parts, ends, sizes, strict=True):
        if not size:
            continue
        chosen = slice(end - size, end)
        if role in asked.logp:
            statistics = replace(statistics, reference_logp=asked.logp[role])
        if inner is not None:
            statistics = replace(
                statistics, extra=_state_loss(trainer, role, inner[chosen], asked.inner)
            )
        roles[role] = RoleTokens(statistics, batch["weight"][chosen], batch["sequence"][chosen])
    return roles


def _statistics_of_roles(
    trainer: UnlearningTrainer,
    hidden: Tensor,
    targets: Tensor,
    asked: _Asked,
    sizes: list[int],
    head: OutputHead,
) -> list[TokenStatistics]:
    """The statistics of each role's tokens, which follow each other in the batch: of all at once,
    as far as that goes.
    """
    kept, budget = trainer._reference, trainer.config.logits_budget_mb * 2**20
    first: list[TokenStatistics] = []
    if trainer.method.vocabulary_loss is not None:
        forget, forgotten = trainer._references.forget, sizes[0]
        first = [
            vocabulary_statistics(
                hidden[:forgotten],
                targets[:forgotten],
                head,
                trainer.method.vocabulary_loss,
                reference_hidden=asked.forget,
                reference_head=None if forget is None else forget.head,
                budget_bytes=budget,
            )
        ]
        hidden, targets = hidden[forgotten:], targets[forgotten:]
    others = token_statistics(
        hidden,
        targets,
        head,
        complement=trainer.method.needs_complement,
        reference_hidden=asked.retain,
        reference_head=None if kept is None else kept.head,
        budget_bytes=budget,
    )
    return first + others.split(sizes[len(first) :])


def _state_loss(
    trainer: UnlearningTrainer, role: str, states: Tensor, reference_states: Tensor | None
) -> Tensor | None:
    """The loss on hidden states at the steering layer, shape (tokens,), where the role has one."""
    if role == "forget" and trainer.method.forget is not None:
        return trainer.method.forget(
            states,
            steering_vector(
                states.shape[-1], trainer.config.steering_coefficient, trainer.args.seed
            ),
        )
    if role == "retain" and reference_states is not None:
        return state_drift(states, reference_states)
    return None
