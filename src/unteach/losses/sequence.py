"""Losses of whole completions, to be minimised: from log-probabilities of sequences to one number
for each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from unteach.losses.statistics import TokenStatistics


@dataclass(frozen=True)
class Sequences:
    """Completions as wholes, in the order of the batch's prompts; fields have shape (sequences,).

    Args:
        logp: log p(y | x), the sum over the completion's tokens, in nats.
        length: number of its tokens.
        reference_logp: the reference's log p(y | x); `None` where the method needs none.
    """

    logp: Tensor
    length: Tensor
    reference_logp: Tensor | None = None

    @property
    def log_ratio(self) -> Tensor:
        """log p(y | x) - log p_reference(y | x); a `ValueError` without the reference's."""
        if self.reference_logp is None:
            raise ValueError("this loss needs the reference's log-probability of each completion")
        return self.logp - self.reference_logp


def sums_by_sequence(tokens: TokenStatistics, sequence: Tensor) -> Sequences:
    """Sums over the tokens of each completion.

    Args:
        tokens (`TokenStatistics`): of one role.
        sequence (`Tensor` of shape (tokens,)): the number of each token's completion; numbers grow
            with the prompts of the batch.
    """
    numbers, place = sequence.unique(sorted=True, return_inverse=True)

    def sums(values: Tensor) -> Tensor:
        return values.new_zeros(len(numbers)).index_add(0, place, values)

    logp, reference = tokens.logp, tokens.reference_logp
    known = None if reference is None else sums(reference.to(logp.dtype))
    return Sequences(sums(logp), sums(torch.ones_like(logp)), known)


def negative_preference(forget: Sequences, preferred: Sequences | None, *, beta: float) -> Tensor:
    """(2/beta) log(1 + (p(y|x)/p_ref(y|x))^beta) (NPO; Zhang et al. 2024, arXiv 2404.05868).

    Gradient ascent whose step shrinks as y grows less likely than it was: the weight of log p(y|x)
    is 2 r/(1 + r) with r the ratio to the power beta. For beta towards 0 it is gradient ascent on
    the sum over the completion's tokens. Bounded below by 0.
    """
    return -2 / beta * logsigmoid(-beta * forget.log_ratio)


def simple_negative_preference(
    forget: Sequences, preferred: Sequences | None, *, beta: float, gamma: float
) -> Tensor:
    """-(2/beta) log sigmoid(-(beta/|y|) log p(y|x) - gamma) (SimNPO; Fan et al. 2024, arXiv
    2410.07163).

    NPO with the length-normalised log-probability in the place of the ratio: no reference, and a
    short answer weighs as much as a long one.
    """
    return -2 / beta * logsigmoid(-beta * forget.logp / forget.length - gamma)


def direct_preference(forget: Sequences, preferred: Sequences | None, *, beta: float) -> Tensor:
    """-(1/beta) log sigmoid(beta (log p(y+|x)/p_ref(y+|x) - log p(y|x)/p_ref(y|x))), y+ the
    preferred and y the completion to forget.

    DPO (Rafailov et al. 2023, eq. 7) with the factor 1/beta of Zhang et al. 2024: the gradient at
    the start is then independent of beta.

    Raises:
        ValueError: if there is not one preferred completion for each to forget.
    """
    if preferred is None or preferred.logp.shape != forget.logp.shape:
        raise ValueError(
            "a preference loss needs one preferred completion for each completion to forget"
        )
    return -1 / beta * logsigmoid(beta * (preferred.log_ratio - forget.log_ratio))
