"""The forget part under perturbed hidden states, so that forgetting does not depend on a path that
a small change of them brings back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from unteach.data.packing import ROLE_IDS
from unteach.errors import UserError
from unteach.robust.wrapper import Step, Wrapper
from unteach.seeding import row_generator

States = Callable[[Tensor], Tensor]
"""From hidden states (positions, hidden) to what is added to them, the same shape."""


class Perturbation(Wrapper):
    """Latent adversarial training (Sheshadri et al. 2024, arXiv 2407.15549) of the forget part:

        min over theta of  L_f(theta; h + delta) + L_r(theta),
        delta = argmin of NLL_f(theta; h + delta)  with  ||delta_i|| <= r ||h_i||  for each token i

    The adversary adds delta to the output of one layer at the positions that predict the
    completions to forget, and brings these back as far as it can. It takes `perturb_steps` steps of
    projected gradient descent from 0, each of length 2 r ||h_i|| / (steps + 1) along the token's
    own gradient. With 0 steps delta is a random direction of length r ||h_i||, as in random
    smoothing.
    """

    shards = False

    def __init__(self, config: Any, layers: Sequence[Any] | None) -> None:
        super().__init__(config, layers)
        number, count = config.perturb_layer, 0 if layers is None else len(layers)
        if layers is None or (number is not None and number >= count):
            known = f"{count} layers, counted from 0" if count else "no known list of layers"
            raise UserError(f"perturb_layer is {number}, but the model has {known}")
        self.layer = layers[count // 4 if number is None else number]

    @contextmanager
    def around_forget(self, step: Step, batch: dict[str, Tensor]) -> Iterator[None]:
        """The forget part under delta."""
        chosen = batch["role"] == ROLE_IDS["forget"]
        places = batch["predictor"][chosen]
        if self.config.perturb_steps:
            found = self.worst(step, batch, places)
        else:
            found = self.random(step, batch["row"][chosen], batch["offset"][chosen])
        with self.added(places, found):
            yield

    @contextmanager
    def added(self, places: Tensor, change: States) -> Iterator[None]:
        """Adds `change(h)` to the layer's output h at these flat positions."""

        def add(module: Any, inputs: Any, output: Any) -> Any:
            states = output[0] if isinstance(output, tuple) else output
            flat = states.flatten(0, 1)
            flat = flat.index_add(0, places, change(flat[places]).to(flat.dtype))
            states = flat.view_as(states)
            return (states, *output[1:]) if isinstance(output, tuple) else states

        handle = self.layer.register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()

    def worst(self, step: Step, batch: dict[str, Tensor], places: Tensor) -> States:
        """The delta that projected gradient descent on the NLL finds."""
        radius, steps = self.config.perturb_radius, self.config.perturb_steps
        limits = delta = torch.zeros(0)

        def add(states: Tensor) -> Tensor:
            nonlocal limits, delta
            if not delta.numel():
                limits = radius * states.detach().norm(dim=-1, keepdim=True)
                delta = torch.zeros_like(states).requires_grad_()
            return delta

        for _ in range(steps):
            with self.added(places, add):
                (slope,) = torch.autograd.grad(step.loss(batch, "likelihood"), delta)
            with torch.no_grad():
                length = 2 / (steps + 1) * limits
                moved = delta - length * torch.nn.functional.normalize(slope, dim=-1)
                excess = moved.norm(dim=-1, keepdim=True) / limits.clamp_min(1e-30)
                delta = (moved / excess.clamp_min(1.0)).requires_grad_()
        found = delta.detach()
        return lambda states: found

    def random(self, step: Step, rows: Tensor, offsets: Tensor) -> States:
        """A random direction for each token, a function of seed, step, row and place alone."""
        seed, numbers = self.config.seed, rows.tolist()

        def add(states: Tensor) -> Tensor:
            with torch.no_grad():
                width, longest = states.shape[-1], int(offsets.max()) + 1
                drawn = {
                    row: torch.from_numpy(
                        row_generator("perturb", seed, step.number, row).standard_normal(
                            (longest, width)
                        )
                    )
                    for row in set(numbers)
                }
                noise = torch.stack(
                    [drawn[row][at] for row, at in zip(numbers, offsets.tolist(), strict=True)]
                ).to(states)
                noise = torch.nn.functional.normalize(noise, dim=-1)
                limits: Tensor = self.config.perturb_radius * states.norm(dim=-1, keepdim=True)
                return limits * noise

        return add
