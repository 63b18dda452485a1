"""The terms of an objective on a batch, each a sum and a count, and their total.

The total is eps1 * forget + eps2 * mismatch + eps3 * retain. A term is a mean over its own
completion tokens, or, for a forget loss on whole completions, over the completions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from unteach.losses.sequence import sums_by_sequence
from unteach.losses.statistics import TokenStatistics, weighted_sum_and_count
from unteach.losses.token import extra_loss, negative_log_likelihood
from unteach.methods.methods import ROLES, Method


@dataclass(frozen=True)
class RoleTokens:
    """The tokens of one role in a micro-batch.

    Args:
        statistics (`TokenStatistics`)
        weights (`Tensor` of shape (tokens,)): the weight of each token in its mean.
        sequence (`Tensor` of shape (tokens,), *optional*): which completion each token belongs to,
            for losses of whole completions.
    """

    statistics: TokenStatistics
    weights: Tensor
    sequence: Tensor | None = None


def step_counts(method: Method, batch: Mapping[str, Tensor]) -> Tensor:
    """What each role's sum in a micro-batch is to be divided by, once it is added up over the step:
    shape (roles,), float64.

    That is the weighted number of its tokens; for a forget loss of whole completions it is the
    number of completions to forget.
    """
    role, weight = batch["role"].cpu(), batch["weight"].cpu()
    counts = torch.zeros(len(ROLES), dtype=torch.float64).index_add(0, role, weight)
    if method.level == "sequence":
        counts[0] = ((role == 0) & (batch["offset"].cpu() == 0)).sum()
    return counts


def _forget_term(method: Method, roles: Mapping[str, RoleTokens]) -> tuple[Tensor, Tensor]:
    tokens, loss = roles["forget"], method.forget
    assert loss is not None
    if method.level == "token":
        return weighted_sum_and_count(loss(tokens.statistics, **method.parameters), tokens.weights)
    if method.level in ("vocabulary", "state"):
        return weighted_sum_and_count(extra_loss(tokens.statistics), tokens.weights)
    sequences = {}
    for role in ("forget", "preferred"):
        if role in roles:
            numbers = roles[role].sequence
            if numbers is None:
                raise ValueError(
                    "a loss of whole completions needs to know which completion each token"
                    " belongs to"
                )
            sequences[role] = sums_by_sequence(roles[role].statistics, numbers)
    values = loss(sequences["forget"], sequences.get("preferred"), **method.parameters)
    return weighted_sum_and_count(values, torch.ones_like(values))


def objective_terms(
    method: Method, roles: Mapping[str, RoleTokens]
) -> dict[str, tuple[Tensor, Tensor]]:
    """(sum, count) of each term that `method` uses, over the tokens (or completions) of this
    micro-batch.

    Mismatch tokens weigh 1/K for a prompt with K completions, so that the term is the paper's
    sum_x 1/|Y| sum_y L(x, y), divided by the equally weighted number of tokens.
    """
    terms: dict[str, tuple[Tensor, Tensor]] = {}
    if method.forget is not None and "forget" in roles:
        terms["forget"] = _forget_term(method, roles)
    for role, loss in (
        ("mismatch", negative_log_likelihood if method.mismatch else None),
        ("retain", method.retain_loss),
    ):
        if loss is not None and role in roles:
            terms[role] = weighted_sum_and_count(loss(roles[role].statistics), roles[role].weights)
    return terms


def total_loss(
    terms: Mapping[str, tuple[Tensor, Tensor]],
    weights: Mapping[str, float],
    counts: Mapping[str, Tensor | float],
) -> Tensor:
    """sum over roles of weight * sum / count, with `counts` those of the whole optimiser step (all
    micro-batches and processes).

    A role with count 0 contributes nothing.
    """
    total: Tensor | None = None
    for role, (value, _) in terms.items():
        count = torch.as_tensor(counts[role], dtype=value.dtype, device=value.device)
        part = weights[role] * value / count.clamp_min(torch.finfo(value.dtype).tiny)
        total = part if total is None else total + part
    if total is None:
        raise ValueError("the method has no term for any role in this batch")
    return total
