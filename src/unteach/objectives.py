"""The losses of unlearning as pure functions on per-token statistics, and the dict `METHODS` that names them.

Every per-token loss maps `TokenStatistics` to a tensor of shape (tokens,), in nats, to be minimised. A method says which of
them is used on the completions to forget, whether mismatch completions are drawn, and what holds the retain set.
The total is eps1 * forget + eps2 * mismatch + eps3 * retain, each term a mean over its own completion tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unteach.errors import did_you_mean
from unteach.tokenwise import TokenStatistics, weighted_sum_and_count

TokenLoss = Callable[[TokenStatistics], Tensor]
ROLES = ("forget", "mismatch", "retain")


def negative_log_likelihood(tokens: TokenStatistics) -> Tensor:
    """-log p(y): the cross-entropy of Yao et al. 2024, their L before the sum over tokens."""
    return -tokens.logp


def gradient_ascent(tokens: TokenStatistics) -> Tensor:
    """log p(y): minimising it is gradient ascent on the cross-entropy (L_fgt of Yao et al. 2024). Unbounded below."""
    return tokens.logp


def unlikelihood(tokens: TokenStatistics) -> Tensor:
    """-log(1 - p(y)) (Welleck et al. 2020): bounded below by 0, steepest where p is near 1, silent once y is forgotten.

    Raises:
        ValueError: if the statistics were computed without the log-complement.
    """
    if tokens.log_complement is None:
        raise ValueError("unlikelihood needs token statistics computed with complement=True")
    return -tokens.log_complement


FORGOTTEN_PROBABILITY = 0.1


def clamped_log_odds(tokens: TokenStatistics) -> Tensor:
    """max(0, log p(y)/(1 - p(y)) - log 0.1/0.9): the log-odds of y, minimised until p(y) is at most 0.1, where the loss is 0.

    Its gradient by the logit of y is 1 as long as y is not forgotten, whatever p: neither near 0 where the model is sure, as gradient
    ascent's 1 - p, nor fading before y stops being the likeliest token, as unlikelihood's p. Ours.

    Raises:
        ValueError: if the statistics were computed without the log-complement.
    """
    if tokens.log_complement is None:
        raise ValueError("clamped_log_odds needs token statistics computed with complement=True")
    floor = math.log(FORGOTTEN_PROBABILITY / (1 - FORGOTTEN_PROBABILITY))
    return torch.relu(tokens.logp - tokens.log_complement - floor)


def forward_kl_to_reference(tokens: TokenStatistics) -> Tensor:
    """KL(reference || model) per token over the whole vocabulary (L_nor of Yao et al. 2024).

    Raises:
        ValueError: if the statistics were computed without a reference.
    """
    if tokens.kl is None:
        raise ValueError("the KL retain term needs token statistics computed with a reference")
    return tokens.kl


@dataclass(frozen=True)
class Method:
    """A named objective with its default weights.

    Args:
        forget (`TokenLoss`, *optional*): per-token loss on the completions to forget; `None`: they are not used.
        mismatch (`bool`): whether random completions on the forget prompts are trained by cross-entropy.
        retain (`"kl"`, `"nll"` or `None`): what holds the retain set.
        weights (`tuple[float, float, float]`): default eps1, eps2, eps3.
        source (`str`): where the method is from.
    """

    forget: TokenLoss | None
    mismatch: bool
    retain: Literal["kl", "nll"] | None
    weights: tuple[float, float, float]
    source: str

    @property
    def needs_complement(self) -> bool:
        """Whether the forget loss reads log(1 - p)."""
        return self.forget in (unlikelihood, clamped_log_odds)

    @property
    def retain_loss(self) -> TokenLoss | None:
        """The per-token loss on the retain set."""
        return {"kl": forward_kl_to_reference, "nll": negative_log_likelihood, None: None}[self.retain]


PAPER = "Yao et al. 2024 (arXiv 2310.10683)"
METHODS: dict[str, Method] = {
    "ga": Method(gradient_ascent, False, "kl", (0.5, 0.0, 1.0), PAPER),
    "ga_no_retain": Method(gradient_ascent, False, None, (0.5, 0.0, 0.0), PAPER + ", without its retain term"),
    "ga_mismatch": Method(gradient_ascent, True, "kl", (0.5, 1.0, 1.0), PAPER),
    "ga_mismatch_no_retain": Method(gradient_ascent, True, None, (0.5, 1.0, 0.0), PAPER + ", without its retain term"),
    "unlikelihood": Method(unlikelihood, False, "kl", (1.0, 0.0, 1.0), "Welleck et al. 2020, with KL on the retain set"),
    "unlikelihood_mismatch": Method(
        unlikelihood, True, "kl", (1.0, 0.5, 1.0), "Welleck et al. 2020, with the mismatch and KL terms of Yao et al. 2024"
    ),
    "log_odds": Method(clamped_log_odds, False, "kl", (1.0, 0.0, 1.0), "ours: log-odds until forgotten, with the KL term of the paper"),
    "log_odds_mismatch": Method(clamped_log_odds, True, "kl", (1.0, 0.5, 1.0), "ours, with the mismatch and KL terms of the paper"),
    "teaching": Method(negative_log_likelihood, False, "kl", (1.0, 0.0, 1.0), "the reverse: makes a model know what a demo then forgets"),
    "finetuning": Method(None, False, "nll", (0.0, 0.0, 1.0), PAPER + ", baseline: fine-tuning on the retain set only"),
}
DEFAULT_METHOD = "unlikelihood"


def get_method(name: str) -> Method:
    """The method of that name; an unknown name raises `UserError` with the nearest known one."""
    if name not in METHODS:
        raise did_you_mean(name, list(METHODS), "method")
    return METHODS[name]


@dataclass(frozen=True)
class RoleTokens:
    """The tokens of one role in a micro-batch: their statistics and the weight of each in its mean, shape (tokens,)."""

    statistics: TokenStatistics
    weights: Tensor


def objective_terms(method: Method, roles: Mapping[str, RoleTokens]) -> dict[str, tuple[Tensor, Tensor]]:
    """(sum, count) of each term that `method` uses, over the tokens of this micro-batch.

    Mismatch tokens weigh 1/K for a prompt with K completions, so that the term is the paper's
    sum_x 1/|Y| sum_y L(x, y), divided by the equally weighted number of tokens.
    """
    losses: dict[str, TokenLoss | None] = {
        "forget": method.forget,
        "mismatch": negative_log_likelihood if method.mismatch else None,
        "retain": method.retain_loss,
    }
    return {
        role: weighted_sum_and_count(loss(roles[role].statistics), roles[role].weights)
        for role, loss in losses.items()
        if loss is not None and role in roles
    }


def total_loss(terms: Mapping[str, tuple[Tensor, Tensor]], weights: Mapping[str, float], counts: Mapping[str, Tensor | float]) -> Tensor:
    """sum over roles of weight * sum / count, with `counts` those of the whole optimiser step (all micro-batches and processes).

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
