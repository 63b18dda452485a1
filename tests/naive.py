"""Slow and obvious twins: one row, one token at a time, in float64, straight from the formulas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unteach.models.parts import layer_list

Ids = Sequence[int]


def distributions(model: Any, prompt: Ids, completion: Ids) -> list[Tensor]:
    """log p(. | prompt, completion so far) before each completion token, each of shape
    (vocabulary,), from one unpadded forward.
    """
    ids = torch.tensor([[*prompt, *completion]])
    logits = model(input_ids=ids, use_cache=False).logits[0]
    first = len(prompt) - 1
    return [logits[first + i].double().log_softmax(-1) for i in range(len(completion))]


def nll(model: Any, prompt: Ids, completion: Ids) -> Tensor:
    """sum_i -log p(y_i)."""
    return sum(
        (
            -logp[token]
            for logp, token in zip(
                distributions(model, prompt, completion), completion, strict=True
            )
        ),
        torch.zeros(()),
    )


def unlikelihood(model: Any, prompt: Ids, completion: Ids) -> Tensor:
    """sum_i -log(1 - p(y_i))."""
    return sum(
        (
            -torch.log(1 - logp[token].exp())
            for logp, token in zip(
                distributions(model, prompt, completion), completion, strict=True
            )
        ),
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
    return sum(
        ((p.exp() * (p - q)).sum() for p, q in zip(wanted, found, strict=True)), torch.zeros(())
    )


def logits_before(model: Any, prompt: Ids, completion: Ids) -> list[Tensor]:
    """Logits before each completion token, each (V,), from one unpadded forward."""
    ids = torch.tensor([[*prompt, *completion]])
    logits = model(input_ids=ids, use_cache=False).logits[0]
    return [logits[len(prompt) - 1 + i].double() for i in range(len(completion))]


def states_before(model: Any, prompt: Ids, completion: Ids, layer: int) -> list[Tensor]:
    """Output of layer `layer` (from 0) before each completion token, each (hidden,)."""
    ids, found = torch.tensor([[*prompt, *completion]]), []
    # not `output_hidden_states`, whose last entry is what the final norm makes of the last layer's
    handle = (layer_list(model) or [])[layer].register_forward_hook(
        lambda module, inputs, output: found.append(output)
    )
    model(input_ids=ids, use_cache=False)
    handle.remove()
    states = found[0][0] if isinstance(found[0], tuple) else found[0]
    states = states[0]
    return [states[len(prompt) - 1 + i].double() for i in range(len(completion))]


def weighted_ascent(model: Any, prompt: Ids, completion: Ids, beta: float, gamma: float) -> Tensor:
    """sum_i w_i log p(y_i), w_i = p(y_i)^beta (1 - p(y_i))^gamma a constant."""
    total = torch.zeros(())
    for logp, token in zip(distributions(model, prompt, completion), completion, strict=True):
        p = logp[token].exp().item()
        total = total + p**beta * (1 - p) ** gamma * logp[token]
    return total


def undial(model: Any, reference: Any, prompt: Ids, completion: Ids, gamma: float) -> Tensor:
    """sum_i sum_v -q(v) log p(v), q the reference's softmax with gamma subtracted at y_i."""
    with torch.no_grad():
        wanted = logits_before(reference, prompt, completion)
    total = torch.zeros(())
    for logits, logp, token in zip(
        wanted, distributions(model, prompt, completion), completion, strict=True
    ):
        changed = logits.clone()
        changed[token] = changed[token] - gamma
        total = total - (torch.exp(changed) / torch.exp(changed).sum() * logp).sum()
    return total


def cross_entropy_unlearning(model: Any, prompt: Ids, completion: Ids) -> Tensor:
    """sum_i sum_{v != y_i} -q(v) log p(v), q(v) = p(v) / (1 - p(y_i)) a constant."""
    total = torch.zeros(())
    for logp, token in zip(distributions(model, prompt, completion), completion, strict=True):
        q = logp.exp().detach().clone()
        q[token] = 0
        total = total - (q / q.sum() * logp).sum()
    return total


def margin(model: Any, prompt: Ids, completion: Ids) -> Tensor:
    """sum_i (largest logit - mean logit)^2."""
    return sum(
        ((z.max() - z.sum() / len(z)) ** 2 for z in logits_before(model, prompt, completion)),
        torch.zeros(()),
    )


def steering(model: Any, prompt: Ids, completion: Ids, layer: int, direction: Tensor) -> Tensor:
    """sum_i ||h_i - c u||^2."""
    return sum(
        (((h - direction) ** 2).sum() for h in states_before(model, prompt, completion, layer)),
        torch.zeros(()),
    )


def adaptive_steering(
    model: Any, reference: Any, prompt: Ids, completion: Ids, options: dict[str, Any]
) -> Tensor:
    """sum_i ||h_i - beta ||h_i of the reference|| u||^2."""
    unit, total = options["direction"] / options["direction"].norm(), torch.zeros(())
    with torch.no_grad():
        wanted = states_before(reference, prompt, completion, options["layer"])
    found = states_before(model, prompt, completion, options["layer"])
    for h, known in zip(found, wanted, strict=True):
        total = total + ((h - options["beta"] * known.norm() * unit) ** 2).sum()
    return total


def rerouting(model: Any, reference: Any, prompt: Ids, completion: Ids, layer: int) -> Tensor:
    """sum_i max(0, cos(h_i, h_i of the reference))."""
    with torch.no_grad():
        wanted = states_before(reference, prompt, completion, layer)
    found, total = states_before(model, prompt, completion, layer), torch.zeros(())
    for h, known in zip(found, wanted, strict=True):
        total = total + torch.clamp((h * known).sum() / (h.norm() * known.norm()), min=0)
    return total


def distance(model: Any, reference: Any, prompt: Ids, completion: Ids, layer: int) -> Tensor:
    """sum_i ||h_i - h_i of the reference||."""
    with torch.no_grad():
        wanted = states_before(reference, prompt, completion, layer)
    found = states_before(model, prompt, completion, layer)
    return sum(((h - w).norm() for h, w in zip(found, wanted, strict=True)), torch.zeros(()))


def drift(model: Any, reference: Any, prompt: Ids, completion: Ids, layer: int) -> Tensor:
    """sum_i ||h_i - h_i of the reference||^2."""
    with torch.no_grad():
        wanted = states_before(reference, prompt, completion, layer)
    found = states_before(model, prompt, completion, layer)
    return sum((((h - w) ** 2).sum() for h, w in zip(found, wanted, strict=True)), torch.zeros(()))


def log_ratio(model: Any, reference: Any, prompt: Ids, completion: Ids) -> Tensor:
    """log p(y | x) - log p_reference(y | x)."""
    with torch.no_grad():
        before = -nll(reference, prompt, completion)
    return -nll(model, prompt, completion) - before


def sequence_loss(
    method: str,
    model: Any,
    reference: Any,
    prompt: Ids,
    completion: Ids,
    preferred: Ids,
    beta: float,
    gamma: float,
) -> Tensor:
    """The loss of one whole completion, by the formula of each paper."""
    if method == "npo":
        return (
            2
            / beta
            * torch.log(1 + torch.exp(beta * log_ratio(model, reference, prompt, completion)))
        )
    if method == "simnpo":
        return (
            -2
            / beta
            * torch.log(
                torch.sigmoid(beta * nll(model, prompt, completion) / len(completion) - gamma)
            )
        )
    better, worse = (log_ratio(model, reference, prompt, y) for y in (preferred, completion))
    return -1 / beta * torch.log(torch.sigmoid(beta * better - beta * worse))


SEQUENCE_METHODS = ("npo", "simnpo", "dpo_right", "dpo_idk", "altpo")


def forget_loss(
    method: str, model: Any, reference: Any, prompt: Ids, completion: Ids, options: dict[str, Any]
) -> Tensor:
    """The summed forget loss of one completion under a method whose loss is one of tokens."""
    beta, gamma = options.get("beta", 0.0), options.get("gamma", 0.0)
    if method.startswith(("ga", "grad_diff")):
        return -nll(model, prompt, completion)
    if method.startswith("unlikelihood"):
        return unlikelihood(model, prompt, completion)
    if method in ("instead", "teaching", "task_vector"):
        return nll(model, prompt, completion)
    if method.startswith("log_odds"):
        return clamped_log_odds(model, prompt, completion)
    if method in ("wga", "satimp"):
        return weighted_ascent(model, prompt, completion, beta, gamma)
    if method == "undial":
        return undial(model, reference, prompt, completion, gamma)
    if method == "ceu":
        return cross_entropy_unlearning(model, prompt, completion)
    if method == "pdu":
        return margin(model, prompt, completion)
    if method == "rmu":
        return steering(model, prompt, completion, options["layer"], options["direction"])
    if method == "adaptive_rmu":
        return adaptive_steering(model, reference, prompt, completion, options)
    if method == "circuit_breaker":
        return rerouting(model, reference, prompt, completion, options["layer"])
    raise ValueError(method)


def step_loss(
    method: str,
    model: Any,
    reference: Any,
    forget: Sequence[tuple[Ids, Ids, Sequence[Ids]]],
    retain: Sequence[tuple[Ids, Ids]],
    weights: dict[str, float],
    preferred: Sequence[Ids] = (),
    options: dict[str, Any] | None = None,
) -> Tensor:
    """eps1 * forget + eps2 * mismatch + eps3 * retain, each a mean over its completion tokens (over
    completions for NPO and its kind).

    Args:
        method: a name in METHODS.
        model, reference: causal language models.
        forget: (prompt, completion, its K mismatch completions) of each forget row.
        retain: (prompt, completion) of each retain row.
        weights: eps1, eps2, eps3 by role.
        preferred: the preferred completion of each forget row, for the methods that have one.
        options: `beta`, `gamma`, RMU's `layer` and `direction`; `retain`, the term that holds the
            retain set.
    """
    options = options or {}
    total = torch.zeros((), dtype=torch.float64)
    if method in SEQUENCE_METHODS:
        values = [
            sequence_loss(
                method,
                model,
                reference,
                prompt,
                y,
                preferred[i] if preferred else (),
                options["beta"],
                options.get("gamma", 0.0),
            )
            for i, (prompt, y, _) in enumerate(forget)
        ]
        total = total + weights["forget"] * sum(values) / len(forget)
    elif method != "finetuning":
        tokens = sum(len(completion) for _, completion, _ in forget)
        values = [
            forget_loss(method, model, reference, prompt, completion, options)
            for prompt, completion, _ in forget
        ]
        total = total + weights["forget"] * sum(values) / tokens
    if "mismatch" in method:
        value: Any = 0.0
        count = 0.0
        for prompt, _, others in forget:
            for other in others:
                value = value + nll(model, prompt, other) / len(others)
                count += len(other) / len(others)
        total = total + weights["mismatch"] * value / count
    term = options.get("retain")
    if term == "nll":
        total = total + weights["retain"] * sum(nll(model, *row) for row in retain) / sum(
            len(row[1]) for row in retain
        )
    elif term == "states":
        apart = distance if method == "circuit_breaker" else drift
        value = sum(apart(model, reference, *row, options["layer"]) for row in retain)
        total = total + weights["retain"] * value / sum(len(row[1]) for row in retain)
    elif term == "kl":
        kl = sum(forward_kl(model, reference, *row) for row in retain)
        total = total + weights["retain"] * kl / sum(len(row[1]) for row in retain)
    return total


def gradients(loss: Tensor, model: Any) -> dict[str, Tensor]:
    """d loss / d parameter, by parameter name, as float64."""
    names, parameters = zip(
        *[(n, p) for n, p in model.named_parameters() if p.requires_grad], strict=True
    )
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {
        name: (torch.zeros_like(parameter) if gradient is None else gradient).double()
        for name, parameter, gradient in zip(names, parameters, found, strict=True)
    }
