"""Per-token statistics that losses read, and the weighted sum and count that reductions keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

ROLES = ("forget", "mismatch", "preferred", "retain")
"""Roles of completions, in the order of their ids. Preferred ones enter the forget term."""


@dataclass(frozen=True)
class TokenStatistics:
    """What losses read of each predicted token; every field has shape (tokens,), in nats, and is
    `None` where no term needs it.

    Args:
        logp: log p(y).
        log_complement: log(1 - p(y)), exact also where p(y) rounds to 1.
        kl: KL(reference || model) at this position.
        extra: a loss of the whole distribution or of inner states.
        reference_logp: the reference's log p(y).
    """

    logp: Tensor
    log_complement: Tensor | None = None
    kl: Tensor | None = None
    extra: Tensor | None = None
    reference_logp: Tensor | None = None

    def split(self, sizes: Sequence[int]) -> list[TokenStatistics]:
        """The statistics of consecutive groups of tokens; `kl` is of the last tokens, which are
        whole groups.
        """
        parts = [TokenStatistics(logp) for logp in self.logp.split(list(sizes))]
        if self.log_complement is not None:
            rests = self.log_complement.split(list(sizes))
            parts = [replace(part, log_complement=r) for part, r in zip(parts, rests, strict=True)]
        if self.kl is not None:
            start, first = 0, len(self.logp) - len(self.kl)
            for number, size in enumerate(sizes):
                if size and start >= first:
                    own = self.kl[start - first : start - first + size]
                    parts[number] = replace(parts[number], kl=own)
                start += size
        return parts


def weighted_sum_and_count(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """(sum of weighted values, sum of weights): kept apart so that micro-batches and processes
    divide only once.
    """
    weights = weights.to(values.dtype)
    return (values * weights).sum(), weights.sum()
