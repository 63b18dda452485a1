"""The slow and obvious twins: one row, one token at a time, in float64, straight from the formulas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Ids = Sequence[int]


def distributions(model: Any, prompt: Ids, completion: Ids) -> list[Tensor]:
    """log p(. | prompt, completion so far) before each completion token, each of shape (vocabulary,), from one unpadded forward."""
    ids = torch.tensor([[*prompt, *completion]])
    logits = model(input_ids=ids, use_cache=False).logits[0]
    first = len(prompt) - 1
    return [logits[first + i].double().log_softmax(-1) for i in range(len(completion))]


def nll(model: Any, prompt: Ids, completion: Ids) -> Tensor:
    """sum_i -log p(y_i)."""
    return sum((-logp[token] for logp, token in zip(distributions(model, prompt, completion), completion, strict=True)), torch.zeros(()))


def unlikelihood(model: Any, prompt: Ids, completion: Ids) -> Tensor:
    """sum_i -log(1 - p(y_i))."""
    return sum(
        (-torch.log(1 - logp[token].exp()) for logp, token in zip(distributions(model, prompt, completion), completion, strict=True)),
        torch.zeros(()),
    )


def clamped_log_odds(model: Any, prompt: Ids, completion: Ids) -> Tensor:
    """sum_i max(0, log(p / (1 - p)) - log(0.1 / 0.9))."""
    floor = math.log(0.1 / 0.9)
    total = torch.zeros(())
    for logp, token in zip(distributions(model, prompt, completion), completion, strict=True):
        p = logp[token].exp()
        total = total + torch.clamp(torch.log(p / (1 - p)) - floor, min=0)
    return total


def forward_kl(model: Any, reference: Any, prompt: Ids, completion: Ids) -> Tensor:
    """sum_i sum_v p(v) (log p(v) - log q(v)), p the reference's."""
    with torch.no_grad():
        wanted = distributions(reference, prompt, completion)
    found = distributions(model, prompt, completion)
    return sum(((p.exp() * (p - q)).sum() for p, q in zip(wanted, found, strict=True)), torch.zeros(()))


def step_loss(
    method: str,
    model: Any,
    reference: Any,
    forget: Sequence[tuple[Ids, Ids, Sequence[Ids]]],
    retain: Sequence[tuple[Ids, Ids]],
    weights: dict[str, float],
) -> Tensor:
    """eps1 * forget + eps2 * mismatch + eps3 * retain, each a mean over its completion tokens.

    Args:
        method: a name in METHODS.
        model, reference: causal language models.
        forget: (prompt, completion, its K mismatch completions) of each forget row.
        retain: (prompt, completion) of each retain row.
        weights: eps1, eps2, eps3 by role.
    """
    total = torch.zeros((), dtype=torch.float64)
    tokens = sum(len(completion) for _, completion, _ in forget)
    if method.startswith("ga"):
        total = total + weights["forget"] * sum(-nll(model, prompt, completion) for prompt, completion, _ in forget) / tokens
    elif method.startswith("unlikelihood"):
        total = total + weights["forget"] * sum(unlikelihood(model, prompt, completion) for prompt, completion, _ in forget) / tokens
    elif method == "teaching":
        total = total + weights["forget"] * sum(nll(model, prompt, completion) for prompt, completion, _ in forget) / tokens
    elif method.startswith("log_odds"):
        total = total + weights["forget"] * sum(clamped_log_odds(model, prompt, completion) for prompt, completion, _ in forget) / tokens
    if "mismatch" in method:
        value: Any = 0.0
        count = 0.0
        for prompt, _, others in forget:
            for other in others:
                value = value + nll(model, prompt, other) / len(others)
                count += len(other) / len(others)
        total = total + weights["mismatch"] * value / count
    if method == "finetuning":
        total = total + weights["retain"] * sum(nll(model, *row) for row in retain) / sum(len(row[1]) for row in retain)
    elif not method.endswith("no_retain"):
        kl = sum(forward_kl(model, reference, *row) for row in retain)
        total = total + weights["retain"] * kl / sum(len(row[1]) for row in retain)
    return total


def gradients(loss: Tensor, model: Any) -> dict[str, Tensor]:
    """d loss / d parameter, by parameter name, as float64."""
    names, parameters = zip(*[(n, p) for n, p in model.named_parameters() if p.requires_grad], strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {
        name: (torch.zeros_like(parameter) if gradient is None else gradient).double()
        for name, parameter, gradient in zip(names, parameters, found, strict=True)
    }
