"""RMU (Li et al. 2024, arXiv 2403.03218): hidden states at one layer are steered towards a random
direction on forget rows and held on retain rows.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from unteach.errors import UserError
from unteach.methods.objective import Hooks, Method
from unteach.seeding import row_generator


def steering_layer(count: int | None, chosen: int | None) -> int:
    """The layer to steer, counted from 0: the chosen one, or the one at 7/32 of the depth (layer 7
    of Zephyr-7B).

    Raises:
        UserError: if the model, which has `count` layers (`None`: unknown), has no such layer.
    """
    if count is None or not 0 <= (chosen or 0) < count:
        layers = "no known list of layers" if count is None else f"{count} layers, counted from 0"
        raise UserError(f"steering_layer is {chosen}, but the model has {layers}")
    return round(count * 7 / 32) if chosen is None else chosen


@cache
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


def _squared_distance(states: Tensor, target: Tensor) -> Tensor:
    """Shape (tokens,); in float32 or wider, as squares of differences lose too much in 16 bits."""
    wide = states.float() if states.dtype in (torch.float16, torch.bfloat16) else states
    return (wide - target.to(wide)).square().sum(-1)


def steering_distance(states: Tensor, direction: Tensor) -> Tensor:
    """||h - c u||^2 at a layer, for the completions to forget (RMU; Li et al. 2024, arXiv
    2403.03218), from states (tokens, hidden) and c u (hidden,), see `steering_vector`.
    """
    return _squared_distance(states, direction)


def state_drift(states: Tensor, reference_states: Tensor) -> Tensor:
    """||h - h_reference||^2 at a layer, for the completions to keep (RMU's retain loss; Li et al.
    2024), from states (tokens, hidden).
    """
    return _squared_distance(states, reference_states)


class Steering(Hooks):
    """Losses on the hidden states of the steering layer, which may be trained alone with the two
    layers before it.
    """

    retain_losses = ("kl", "nll", "states", "none")

    def __init__(self, method: Method, config: Any, layers: Any, budget: Any) -> None:
        super().__init__(method, config, layers, budget)
        count = None if layers is None else len(layers)
        layer = self.layer = steering_layer(count, config.steering_layer)
        if config.steering_update == "three_layers":
            self.trained_layers = range(max(0, layer - 2), layer + 1)

    def state_loss(self, role: str, states: Tensor, reference: Tensor | None) -> Tensor | None:
        """`steering_distance` on forget tokens, `state_drift` on retain tokens."""
        if role == "forget" and self.method.forget is not None:
            length, seed = self.config.steering_coefficient, self.config.seed
            return self.method.forget(states, steering_vector(states.shape[-1], length, seed))
        if role == "retain" and reference is not None:
            return state_drift(states, reference)
        return None
