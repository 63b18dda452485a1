"""Methods on hidden states at one layer, which are moved on forget rows and held on retain rows:
RMU (Li et al. 2024, arXiv 2403.03218), adaptive RMU and circuit breakers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from unteach.errors import UserError
from unteach.methods.objective import Hooks, Method
from unteach.seeding import row_generator


def steering_layer(count: int | None, chosen: int | None, depth: float = 7 / 32) -> int:
    """The layer to steer, counted from 0: the chosen one, or the one at that share of the depth
    (RMU's is layer 7 of the 32 of Zephyr-7B).

    Raises:
        UserError: if the model, which has `count` layers (`None`: unknown), has no such layer.
    """
    if count is None or not 0 <= (chosen or 0) < count:
        layers = "no known list of layers" if count is None else f"{count} layers, counted from 0"
        raise UserError(f"steering_layer is {chosen}, but the model has {layers}")
    return round(count * depth) if chosen is None else chosen


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
    depth = 7 / 32

    def __init__(self, method: Method, config: Any, layers: Any, budget: Any) -> None:
        super().__init__(method, config, layers, budget)
        count = None if layers is None else len(layers)
        layer = self.layer = steering_layer(count, config.steering_layer, self.depth)
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


def adaptive_steering_distance(
    states: Tensor, reference_states: Tensor, direction: Tensor, *, beta: float
) -> Tensor:
    """||h - beta ||h_reference|| u||^2 at a layer, for the completions to forget (adaptive RMU;
    Dang et al. 2024, arXiv 2408.06223), from states (tokens, hidden) and u (hidden,) of length 1.

    The target is as long as `beta` times the token's own state, so that one setting fits every
    layer and model.
    """
    length = reference_states.to(torch.promote_types(states.dtype, torch.float32)).norm(dim=-1)
    return _squared_distance(states, beta * length[:, None] * direction.to(length))


class AdaptiveSteering(Steering):
    """RMU's losses with a target whose length follows that of the reference's state."""

    def state_loss(self, role: str, states: Tensor, reference: Tensor | None) -> Tensor | None:
        """`adaptive_steering_distance` on forget tokens, `state_drift` on retain tokens."""
        if role != "forget" or self.method.forget is None or reference is None:
            return super().state_loss(role, states, reference)
        direction = steering_vector(states.shape[-1], 1.0, self.config.seed)
        return self.method.forget(states, reference, direction, **self.method.parameters)


def rerouting(states: Tensor, reference_states: Tensor) -> Tensor:
    """max(0, cos(h, h_reference)) at a layer, for the completions to forget (circuit breakers; Zou
    et al. 2024, arXiv 2406.04313), from states (tokens, hidden): 0 once a state is orthogonal to
    what it was, whatever direction it took.
    """
    wide = torch.promote_types(states.dtype, torch.float32)
    return torch.cosine_similarity(states.to(wide), reference_states.to(wide), dim=-1).relu()


class CircuitBreaker(Steering):
    """Representation rerouting: `rerouting` on forget tokens, ||h - h_reference|| on retain tokens,
    at the layer at 20/32 of the depth.

    eps3 is that of the options times t / (2T - t) in step t of T: the ratio of the paper's weights
    alpha t / 2T and alpha (1 - t / 2T).
    """

    depth = 20 / 32
    step = 0

    def __init__(self, method: Method, config: Any, layers: Any, budget: Any) -> None:
        super().__init__(method, config, layers, budget)
        self.steps: int = config.max_steps

    def prepare(self, model: Any, retain_nll: Callable[[], float]) -> None:
        """Sets eps3 for the first step."""
        self._weigh()

    def _weigh(self) -> None:
        share = self.step / max(1, 2 * self.steps - self.step)
        self.budget.weight = self.config.retain_weight * share

    def state_loss(self, role: str, states: Tensor, reference: Tensor | None) -> Tensor | None:
        """The loss of a role's tokens, shape (tokens,)."""
        if role == "forget" and self.method.forget is not None and reference is not None:
            return self.method.forget(states, reference)
        if role == "retain" and reference is not None:
            tiny = torch.finfo(torch.float32).tiny
            return state_drift(states, reference).clamp_min(tiny).sqrt()
        return None

    def after_step(self, means: Mapping[str, float]) -> None:
        """Sets eps3 for the next step."""
        self.step += 1
        self._weigh()

    def state(self) -> dict[str, Any]:
        """With the number of steps done and that of all."""
        return {**super().state(), "rerouting": [self.step, self.steps]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `state` returned."""
        super().load_state(state)
        self.step, self.steps = state["rerouting"]
