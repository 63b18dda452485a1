"""Wrappers that take the forget part's gradient at other weights than the model's own (the sharpest
near ones, rounded ones, those that relearning leads to) or under perturbed hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from unteach.data.packing import ROLE_IDS
from unteach.errors import UserError
from unteach.robust.wrapper import Step, Wrapper
from unteach.seeding import row_generator

# --- at other weights


GROUP = 32
"""Weights of a row that share scale and zero point at 4 bits; halved until it divides the row."""


@torch.no_grad()
def swap(weights: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """Exchanges the contents of tensors pair by pair, so that swapping twice changes no bit."""
    for weight, other in zip(weights, others, strict=True):
        kept = weight.clone()
        weight.copy_(other)
        other.copy_(kept)


class SharpnessAware(Wrapper):
    """Sharpness-aware minimisation of the forget part:

        min over theta of  L_f(theta + delta) + L_r(theta),  delta = rho g / ||g||,
        g = the gradient of the forget term at theta

    SAM (Foret et al. 2021, arXiv 2010.01412) with the perturbation of the forget loss only, as Fan
    et al. 2025 (arXiv 2502.05374) have it against relearning. The mismatch term is on the forget
    prompts too and is taken at theta + delta with it.
    """

    moved: list[Tensor]

    def begin(self, step: Step) -> None:
        """Finds theta + delta."""
        self.moved = step.take_gradient("forget")
        squares = torch.stack([part.double().square().sum() for part in self.moved]).sum()
        length = float(step.total(squares).sqrt())
        scale = self.config.sam_radius / length if length > 0 else 0.0
        for weight, part in zip(step.weights, self.moved, strict=True):
            part.mul_(scale).add_(weight.detach())

    @contextmanager
    def around_forget(self, step: Step, batch: dict[str, Tensor]) -> Iterator[None]:
        """The forget part at theta + delta."""
        swap(step.weights, self.moved)
        try:
            yield
        finally:
            swap(step.weights, self.moved)


class Relearning(Wrapper):
    """A simulated relearning attack in every step, as TAR (Tamirisa et al. 2024, arXiv 2408.00761),
    to first order:

        theta_0 = theta,  theta_{k+1} = theta_k - a sign(gradient of NLL_f at theta_k)
        gradient = that of the objective at theta + lambda * that of eps1 L_f at theta_K

    The inner step is the first that Adam makes, whose length does not depend on the loss; a is
    `relearn_rate` times the learning rate. Their tamper-resistance loss is the method's own forget
    loss; the rows of the attack are those of the step.
    """

    @torch.no_grad()
    def begin(self, step: Step) -> None:
        """Leaves lambda times the gradient after the attack in `.grad`."""
        weights, config = step.weights, self.config
        kept = [weight.clone() for weight in weights]
        length = config.relearn_rate * config.learning_rate
        for _ in range(config.relearn_steps):
            for weight, part in zip(weights, step.take_gradient("likelihood"), strict=True):
                weight.sub_(part.sign_(), alpha=length)
        step.add_gradient("forget", config.relearn_weight)
        for weight, own in zip(weights, kept, strict=True):
            weight.copy_(own)


def group_size(length: int) -> int:
    """`GROUP`, or the largest half, quarter, ... of it that divides a row of this length."""
    size = GROUP
    while length % size:
        size //= 2
    return size


def rounded(weight: Tensor, bits: int) -> Tensor:
    """A linear layer's weight after rounding to nearest, shape (out, in), in its dtype.

    8 bits: one scale per row, symmetric. 4 bits: scale and zero point for each `GROUP` weights of a
    row, asymmetric. Both as the attack's quantiser has them (`attacks.weights`).
    """
    wide = weight.float() if weight.dtype.itemsize < 4 else weight
    tiny = torch.finfo(torch.float32).eps
    if bits == 8:
        scale = (wide.abs().amax(-1, keepdim=True) / 127.5).clamp_min(tiny)
        found: Tensor = scale * (wide * (1.0 / scale)).round().clamp(-128, 127)
        return found.to(weight.dtype)
    groups = wide.unflatten(-1, (-1, group_size(wide.shape[-1])))
    low = groups.amin(-1, keepdim=True).clamp_max(0.0)
    high = groups.amax(-1, keepdim=True).clamp_min(0.0)
    scale = ((high - low) / 15).clamp_min(tiny)
    zero = (-low / scale).round()
    steps = ((groups * (1.0 / scale)).round() + zero).clamp(0, 15)
    found = ((steps - zero) * scale).flatten(-2)
    return found.to(weight.dtype)


class Rounding(Wrapper):
    """The forget part at the weights after rounding to 8 or 4 bits, with the gradient applied to
    the weights themselves: the straight-through estimator (Bengio et al. 2013, arXiv 1308.3432).

    Rounding brings unlearned knowledge back where an update is smaller than half a step of the grid
    (Zhang et al. 2024, arXiv 2410.16454); here an update that rounding undoes lowers no loss. All
    linear layers but the output head are rounded, an adapter merged into them first.
    """

    shards = False
    adapter_off = False

    @contextmanager
    def around_forget(self, step: Step, batch: dict[str, Tensor]) -> Iterator[None]:
        """The forget part at the rounded weights."""
        bits, weights, others = self.config.rounding_bits, [], []
        with torch.no_grad():
            for layer in rounded_layers(step.model):
                weight = layer.weight
                change = merged_change(layer)
                other = rounded(weight if change is None else weight + change, bits)
                weights.append(weight.data)
                others.append(other if change is None else other - change)
        swap(weights, others)
        try:
            yield
        finally:
            swap(weights, others)


def rounded_layers(model: Any) -> list[Any]:
    """The linear layers, or their adapters' wrappers, of a model but the output head.

    Raises:
        UserError: where there is none, or their weights are rounded already.
    """
    head = model.get_output_embeddings()
    found = [
        module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "base_layer", module), nn.Linear)
        and module is not head
        and not name.endswith("base_layer")
        and ".lora_" not in name
    ]
    if not found or any(not layer.weight.is_floating_point() for layer in found):
        raise UserError(
            "robust is 'rounding', but the model has no linear layers in 16 or 32 bits to round"
        )
    return found


def merged_change(layer: Any) -> Tensor | None:
    """What an adapter adds to a linear layer's weight, shape (out, in), in its dtype; `None`
    without one.
    """
    if not hasattr(layer, "get_delta_weight") or not layer.active_adapters:
        return None
    changes = [layer.get_delta_weight(name) for name in layer.active_adapters]
    return torch.stack(changes).sum(0).to(layer.weight.dtype)


# --- under perturbed hidden states
#
# So that forgetting does not depend on a path that a small change of them brings back.


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
