"""The wrappers of `unteach.robust` in `UnlearningTrainer`'s steps: each micro-batch in two parts,
and gradients beside the step's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from unteach import models
from unteach.data.packing import part
from unteach.losses.statistics import weighted_sum_and_count
from unteach.losses.token import negative_log_likelihood
from unteach.methods.objective import RoleTokens, objective_terms
from unteach.models.kernels import steady_attention
from unteach.processes import all_gather
from unteach.robust.wrapper import FORGET_SIDE, Run, Term, Wrapper
from unteach.trainer.distributed import is_sharded, local_part

Batch = dict[str, Tensor]


class RobustSteps:
    """What the wrappers do in each step of a trainer; a `unteach.robust.wrapper.Step`.

    Args:
        trainer (`UnlearningTrainer`): whose steps they are.
        wrappers (`Sequence[Wrapper]`): in the order in which they apply.
    """

    def __init__(self, trainer: Any, wrappers: Sequence[Wrapper]) -> None:
        self.trainer, self.wrappers = trainer, wrappers
        self.seconds = 0.0
        self._samples: list[Batch] = []
        self._counts = torch.zeros(())

    @property
    def model(self) -> Any:
        """The model without its data-parallel wrapper."""
        return self.trainer.accelerator.unwrap_model(self.trainer.model)

    @property
    def number(self) -> int:
        """Of the step, counted from 0."""
        return int(self.trainer.state.global_step)

    def _trained(self) -> list[torch.nn.Parameter]:
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    @property
    def weights(self) -> list[Tensor]:
        """This process's part of each trained weight."""
        return [local_part(weight.data) for weight in self._trained()]

    def begin(self, samples: Sequence[Batch], counts: Tensor) -> None:
        """Before the first micro-batch of a step, whose gradients are empty."""
        if not self.wrappers or not samples:
            return
        started = perf_counter()
        parts = [part(self._on_device(batch), FORGET_SIDE) for batch in samples]
        self._samples, self._counts = [found for found in parts if found is not None], counts
        self.trainer.model_wrapped.train()
        for wrapper in self.wrappers:
            wrapper.begin(self)
        self._samples = []
        self.seconds = perf_counter() - started

    def micro_batch(self, batch: Batch, run: Run) -> Tensor:
        """The loss of a micro-batch in two parts, whose gradients are added; `run` does that for a
        batch.
        """
        batch = self._on_device(batch)
        forget, kept = part(batch, FORGET_SIDE), part(batch, ["retain"])
        losses = []
        if forget is not None:
            with ExitStack() as stack:
                for wrapper in self.wrappers:
                    stack.enter_context(wrapper.around_forget(self, forget))
                losses.append(self._run(run, forget))
        if kept is not None and self.trainer.method.retain is not None:
            losses.append(self._run(run, kept))
        elif kept is not None:
            self._measure(kept)
        return torch.stack(losses).sum()

    @torch.no_grad()
    def _measure(self, batch: Batch) -> None:
        """Adds a part that no term trains to the step's metrics."""
        trainer = self.trainer
        with trainer.compute_loss_context_manager():
            roles = trainer.role_tokens(trainer.model_wrapped, batch)
        trainer.means.add(roles, batch["tree"], torch.zeros((), device=batch["tree"].device), {})

    def _run(self, run: Run, batch: Batch) -> Tensor:
        with self.kernels():
            return run(batch)

    def _on_device(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.trainer.args.device) for name, tensor in batch.items()}

    @contextmanager
    def kernels(self) -> Iterator[None]:
        """Attention computes the same in each call, and a lookup's gradient is added in place."""
        trainer = self.trainer
        alone = trainer.args.world_size == 1 and not trainer.is_deepspeed_enabled
        shared = trainer.method.uses_head and alone
        lookup = models.shared_lookup(self.model) if shared else nullcontext()
        with steady_attention(), lookup:
            yield

    def loss(self, batch: Batch, term: Term) -> Tensor:
        """A term on one batch, see `Term`."""
        trainer = self.trainer
        with trainer.compute_loss_context_manager():
            roles = trainer.role_tokens(trainer.model_wrapped, batch)
        trainer.means.add_tokens(batch["tree"])
        return self._term(roles, term)

    def _term(self, roles: dict[str, RoleTokens], term: Term) -> Tensor:
        trainer = self.trainer
        if term == "likelihood":
            tokens = roles["forget"]
            values = negative_log_likelihood(tokens.statistics)
            return weighted_sum_and_count(values, tokens.weights)[0]
        value, _ = objective_terms(trainer.method, roles)["forget"]
        share = trainer.weights["forget"] * trainer.args.world_size / self._counts[0]
        scaled: Tensor = value * share.to(value.dtype)
        return scaled

    def add_gradient(self, term: Term, scale: float = 1.0) -> None:
        """Adds the gradient of a term over the whole step, times `scale`, to `.grad`."""
        for batch in self._samples:
            with torch.enable_grad(), self.kernels():
                self.trainer.accelerator.backward(self.loss(batch, term) * scale)

    def take_gradient(self, term: Term) -> list[Tensor]:
        """The gradient of a term over the whole step, for each of `weights`."""
        self.add_gradient(term)
        found = []
        for weight in self._trained():
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
            found.append(local_part(gradient.detach()))
            weight.grad = None
        return found

    def total(self, value: Tensor) -> Tensor:
        """The sum over processes where each has a part of the weights."""
        if not is_sharded(self.model):
            return value
        return value.new_tensor(sum(all_gather(value.item())))
