"""Losses on hidden states inside the model: from states (tokens, hidden) to one number for each
token, to be minimised.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unteach.data.mismatch import row_generator


def steering_vector(size: int, length: float, seed: int) -> Tensor:
    """c u: a random direction u of length 1, its entries uniform in [0, 1) before it is normalised,
    times c (Li et al. 2024, section 4).

    Args:
        size (`int`): width of the hidden states.
        length (`float`): c.
        seed (`int`): the same seed gives the same direction on any machine.

    Returns:
        `Tensor` of shape (size,), float64.
    """
    entries = torch.from_numpy(row_generator("steering", seed).random(size))
    direction: Tensor = length * entries / entries.norm()
    return direction


def _wide(states: Tensor) -> Tensor:
    """In float32 or wider: squares of differences of half-precision numbers lose what they are to
    hold.
    """
    return states.float() if states.dtype in (torch.float16, torch.bfloat16) else states


def steering_distance(states: Tensor, direction: Tensor) -> Tensor:
    """||h - c u||^2 at a layer, for the completions to forget (RMU; Li et al. 2024, arXiv
    2403.03218).

    Args:
        states (`Tensor` of shape (tokens, hidden)): the model's hidden states at that layer.
        direction (`Tensor` of shape (hidden,)): c u, see `steering_vector`.
    """
    return (_wide(states) - direction.to(_wide(states))).square().sum(-1)


def state_drift(states: Tensor, reference_states: Tensor) -> Tensor:
    """||h - h_reference||^2 at a layer, for the completions to keep (RMU's retain loss; Li et al.
    2024).

    Args:
        states, reference_states (`Tensor` of shape (tokens, hidden)): the model's and the
            reference's hidden states at that layer.
    """
    return (_wide(states) - reference_states.to(_wide(states))).square().sum(-1)
