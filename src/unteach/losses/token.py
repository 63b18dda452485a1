"""Losses of single tokens, to be minimised: from `TokenStatistics` to one number for each token, in
nats; one that reads statistics that were not computed raises a `ValueError`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, relu

from unteach.losses.statistics import TokenStatistics


def negative_log_likelihood(tokens: TokenStatistics) -> Tensor:
    """-log p(y): the cross-entropy of Yao et al. 2024, their L before the sum over tokens."""
    return -tokens.logp


def gradient_ascent(tokens: TokenStatistics) -> Tensor:
    """log p(y): minimising it is gradient ascent on the cross-entropy (L_fgt of Yao et al. 2024).
    Unbounded below.

    Its gradient by the logit of y is 1 - p(y): next to nothing on what is known by heart, and at
    its full strength once y is forgotten.
    """
    return tokens.logp


def _log_complement(tokens: TokenStatistics, name: str) -> Tensor:
    if tokens.log_complement is None:
        raise ValueError(f"{name} needs token statistics computed with complement=True")
    return tokens.log_complement


def unlikelihood(tokens: TokenStatistics) -> Tensor:
    """-log(1 - p(y)) (Welleck et al. 2020): bounded below by 0, steepest where p is near 1, flat
    once y is forgotten.
    """
    return -_log_complement(tokens, "unlikelihood")


FORGOTTEN_PROBABILITY = 0.1


def clamped_log_odds(tokens: TokenStatistics) -> Tensor:
    """max(0, log p(y)/(1 - p(y)) - log 0.1/0.9): the log-odds of y, minimised until p(y) is at most
    0.1, where the loss is 0.

    Its gradient by the logit of y is 1 as long as y is not forgotten, whatever p: neither near 0
    where the model is sure, as gradient ascent's 1 - p, nor fading before y stops being the
    likeliest token, as unlikelihood's p. Ours.
    """
    floor = math.log(FORGOTTEN_PROBABILITY / (1 - FORGOTTEN_PROBABILITY))
    return relu(tokens.logp - _log_complement(tokens, "clamped_log_odds") - floor)


def weighted_gradient_ascent(tokens: TokenStatistics, *, beta: float) -> Tensor:
    """w log p(y) with the weight w = p(y)^beta held constant (WGA; Wang et al. 2025, arXiv
    2502.19301).

    The weight takes out the 1/p with which gradient ascent runs away on tokens that are forgotten
    already. beta = 0 is gradient ascent.
    """
    return (beta * tokens.logp).exp().detach() * tokens.logp


def saturation_importance(tokens: TokenStatistics, *, beta: float, gamma: float) -> Tensor:
    """w log p(y) with the weight w = p(y)^beta (1 - p(y))^gamma held constant (SatImp; Yang et al.
    2025, arXiv 2505.11953).

    The first factor leaves out what is forgotten (saturation), the second weighs down what the
    model says anyway (importance).
    """
    complement = _log_complement(tokens, "saturation_importance")
    weight = (beta * tokens.logp + gamma * complement).exp().detach()
    return weight * tokens.logp


def forward_kl_to_reference(tokens: TokenStatistics) -> Tensor:
    """KL(reference || model) per token over the whole vocabulary (L_nor of Yao et al. 2024)."""
    if tokens.kl is None:
        raise ValueError("the KL retain term needs token statistics computed with a reference")
    return tokens.kl


def state_distance(states: Tensor, reference: Tensor) -> Tensor:
    """||h - h_ref||^2 / ||h_ref||^2 of each token's final hidden state: (tokens,) from two tensors
    of shape (tokens, hidden).

    Where the reference is sure of a token the KL is flat: its gradient is next to nothing until
    the token is nearly lost. The distance of states grows with the first step away. The distance is
    RMU's retain term (Li et al. 2024), here of the last layer, relative, and beside the KL.
    """
    if states.dtype.itemsize < 4:
        states = states.float()
    known = reference.to(states.dtype)
    tiny = torch.finfo(states.dtype).tiny
    return (states - known).square().sum(-1) / known.square().sum(-1).clamp_min(tiny)


def extra_loss(tokens: TokenStatistics) -> Tensor:
    """The per-token loss that was computed beside the statistics, where it needs more than one
    number a token.
    """
    if tokens.extra is None:
        raise ValueError("this term needs token statistics computed with an extra loss")
    return tokens.extra
