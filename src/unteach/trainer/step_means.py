"""Means over the tokens of an optimiser step: sums and counts of all its micro-batches and
processes, divided once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from unteach.data.packing import PADDING
from unteach.methods import ROLES, RoleTokens

SUMMED = frozenset({"loss", "tokens", "padded_tokens"})
"""What is added up over micro-batches and processes; everything else is a mean over tokens."""
NAMES = (*(f"{role}_nll" for role in ROLES), "retain_kl", "forget_loss", *sorted(SUMMED))
"""All that there may be; every process sends them all, as one may have no retain row where another
has some.
"""


class StepMeans:
    """What a step's metrics are made of: the loss, each role's NLL, the retain KL, the forget loss,
    and numbers of tokens.
    """

    def __init__(self) -> None:
        self._sums: dict[str, list[Tensor]] = {}

    def clear(self) -> None:
        """Forgets what was added."""
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
        """One micro-batch.

        Args:
            roles: the per-token statistics of each role.
            tree (`Tensor` of shape (rows, length)): which tree each position belongs to, `PADDING`
                where none.
            loss (`Tensor`, scalar): this process's share of the step's loss.
            terms: (sum, count) of each term of the objective.
        """
        one = loss.new_ones((), dtype=torch.float64)
        for role, tokens in roles.items():
            weights = tokens.weights
            self._add(
                f"{role}_nll", -(tokens.statistics.logp.double() * weights).sum(), weights.sum()
            )
            if role == "retain" and tokens.statistics.kl is not None:
                self._add(
                    "retain_kl", (tokens.statistics.kl.double() * weights).sum(), weights.sum()
                )
        if "forget" in terms:
            self._add(
                "forget_loss", terms["forget"][0].detach().double(), terms["forget"][1].double()
            )
        self._add("loss", loss.detach().double(), one)
        self._add("tokens", (tree != PADDING).sum().double(), one)
        self._add("padded_tokens", one * tree.numel(), one)

    def take(self, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """The step's means, which are cleared.

        Args:
            reduce (`Callable`, *optional*): adds up a tensor over processes.
        """
        if not self._sums:
            return {}
        nothing = [torch.zeros_like(total) for total in self._sums["loss"]]
        stacked = torch.stack([torch.stack(self._sums.get(name, nothing)) for name in NAMES])
        if reduce is not None:
            stacked = reduce(stacked)
        self.clear()
        pairs = zip(NAMES, stacked.tolist(), strict=True)
        return {
            name: value if name in SUMMED else value / count
            for name, (value, count) in pairs
            if count
        }
