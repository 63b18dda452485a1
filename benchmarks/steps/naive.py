"""The step as it is commonly written: a row for each pair of prompt and completion, three forwards,
full logits, a second model.

It has the same loss as ours to the last decimals, which the benchmarks check before they measure
anything.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unteach.data.packing import Tree

Pair = tuple[tuple[int, ...], tuple[int, ...], float]


class NaiveStep:
    """GA + mismatch + forward KL with a frozen copy of the model beside it, and plain AdamW.

    Args:
        model: a causal language model; trained where its parameters ask for it.
        weights: eps1, eps2, eps3.
        bf16 (`bool`): forward under bfloat16 autocast.
        learning_rate (`float`)
    """

    def __init__(
        self, model: Any, weights: Sequence[float], *, bf16: bool, learning_rate: float
    ) -> None:
        self.model = model
        self.reference = copy.deepcopy(model).eval().requires_grad_(False)
        self.weights = tuple(weights)
        self.bf16 = bf16
        self.device = next(model.parameters()).device
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=learning_rate, weight_decay=0.0)

    def _padded(self, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        width = max(len(prompt) + len(completion) for prompt, completion, _ in pairs)
        ids, mask = (
            torch.zeros(len(pairs), width, dtype=torch.long),
            torch.zeros(len(pairs), width, dtype=torch.long),
        )
        for row, (prompt, completion, _) in enumerate(pairs):
            size = len(prompt) + len(completion)
            ids[row, :size] = torch.tensor(prompt + completion)
            mask[row, :size] = 1
        return ids.to(self.device), mask.to(self.device)

    def _logits(self, model: Any, pairs: Sequence[Pair]) -> Tensor:
        ids, mask = self._padded(pairs)
        context: Any = (
            torch.autocast(self.device.type, torch.bfloat16)
            if self.bf16
            else contextlib.nullcontext()
        )
        with context:
            return model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()

    def _log_likelihood(self, pairs: Sequence[Pair]) -> Tensor:
        """Mean log p of the completion tokens, each weighted by its pair's weight: log-softmax
        everywhere, then what is wanted of it.
        """
        logp = self._logits(self.model, pairs).log_softmax(-1)
        total, count = torch.zeros((), device=self.device), 0.0
        for row, (prompt, completion, weight) in enumerate(pairs):
            part = logp[row, len(prompt) - 1 : len(prompt) + len(completion) - 1]
            total = (
                total
                + weight
                * part.gather(-1, torch.tensor(completion, device=self.device)[:, None]).sum()
            )
            count += weight * len(completion)
        return total / count

    def _kl(self, pairs: Sequence[Pair]) -> Tensor:
        with torch.no_grad():
            log_p = self._logits(self.reference, pairs).log_softmax(-1)
        log_q = self._logits(self.model, pairs).log_softmax(-1)
        per_token = (log_p.exp() * (log_p - log_q)).sum(-1)
        total, count = torch.zeros((), device=self.device), 0
        for row, (prompt, completion, _) in enumerate(pairs):
            total = (
                total + per_token[row, len(prompt) - 1 : len(prompt) + len(completion) - 1].sum()
            )
            count += len(completion)
        return total / count

    def loss(self, trees: Sequence[Tree]) -> Tensor:
        """eps1 * mean log p(forget) - eps2 * mean log p(mismatch) + eps3 * mean KL of the retain
        rows.
        """
        pairs: dict[str, list[Pair]] = {"forget": [], "mismatch": [], "retain": []}
        for tree in trees:
            for branch in tree.branches:
                pairs[branch.role].append((tree.prompt_ids, branch.ids, branch.weight))
        forget, mismatch, retain = self.weights
        return (
            forget * self._log_likelihood(pairs["forget"])
            - mismatch * self._log_likelihood(pairs["mismatch"])
            + retain * self._kl(pairs["retain"])
        )

    def __call__(self, trees: Sequence[Tree]) -> float:
        """One whole step; returns the loss."""
        loss = self.loss(trees)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())
