"""What a method is: its forget loss with default weights, the terms of its objective on a batch,
and hooks around the optimiser steps.

The objective is eps1 * forget + eps2 * mismatch + eps3 * retain. A term is a mean over its own
completion tokens, or over completions for a forget loss of whole completions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from unteach.errors import UserError
from unteach.losses.sequence import sums_by_sequence
from unteach.losses.statistics import ROLES, TokenStatistics, weighted_sum_and_count
from unteach.losses.token import extra_loss, forward_kl_to_reference, negative_log_likelihood

RETAIN_LOSSES = {
    "kl": forward_kl_to_reference,
    "nll": negative_log_likelihood,
    "states": extra_loss,
}
RetainTerm = Literal["kl", "nll", "states"]
Measure = Callable[[int, Mapping[str, float]], bool]
"""Probes the model as it is now; takes a number for the probe and what to log with it, and returns
whether this probe is the best so far.
"""


class Hooks:
    """What a method does around the optimiser steps, one object for each training; this base class
    keeps the retain KL at its budget.

    Args:
        method (`Method`): with the options' retain term and parameters.
        layers (`Sequence` of modules, *optional*): the decoder's; `None` where they are unknown.
        budget (`RetainBudget`): holds eps3 as `weight` and adapts it to the retain KL.
    """

    retain_losses: tuple[str, ...] = ("kl", "nll", "none")
    """Values of `retain_loss` that the method can take."""
    probes_training = True
    """Whether a probe during training measures what training ends with."""
    layer: int | None = None
    """The decoder layer whose output `state_loss` reads, counted from 0."""
    trained_layers: Sequence[int] | None = None
    """The only layers that are trained; `None`: all weights."""

    def __init__(self, method: Method, config: Any, layers: Any, budget: Any) -> None:
        self.method, self.config, self.budget = method, config, budget

    @classmethod
    def check(cls, method: Method, config: Any) -> None:
        """Raises `UserError` for options that exclude each other."""

    def prepare(self, model: Any, retain_nll: Callable[[], float]) -> None:
        """Called before the first step; `retain_nll` computes the mean NLL on the retain set."""

    def state_loss(self, role: str, states: Tensor, reference: Tensor | None) -> Tensor | None:
        """The loss of a role's tokens, shape (tokens,), from their hidden states at `layer` and
        those of the reference, both (tokens, hidden); `None` for roles without one.
        """

    def after_step(self, means: Mapping[str, float]) -> None:
        """Adapts eps3 after a step with these metrics."""
        if "retain_kl" in means:
            self.budget.update(means["retain_kl"])

    def finish(self, model: Any, measure: Measure | None) -> str:
        """Called after the last step with the whole model; may change its weights and then says
        how. `measure` is `None` without a probe.
        """
        return ""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold, as plain data."""
        return {"retain_weight": self.budget.weight}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `state` returned."""
        self.budget.weight = state["retain_weight"]

    def facts(self) -> dict[str, Any]:
        """What run.json records of the method beside its options."""
        return {}


@dataclass(frozen=True)
class Method:
    """A named objective with its default weights.

    Args:
        forget (`Callable`, *optional*): loss on the completions to forget; `None`: no such term.
        retain (`"kl"`, `"nll"`, `"states"` or `None`): the retain term: forward KL to the
            reference, cross-entropy, or distance to the reference's hidden states at one layer.
        weights (`tuple[float, float, float]`): default eps1, eps2, eps3.
        source (`str`): publication.
        mismatch (`bool`): also train random completions on the forget prompts by cross-entropy.
        level (`str`): whether `forget` reads `TokenStatistics` (`"token"`), `Sequences`
            (`"sequence"`), logits (`"vocabulary"`) or hidden states (`"state"`).
        parameters (`Mapping[str, float]`): keyword arguments of `forget` with their defaults.
        complement (`bool`): `forget` reads log(1 - p).
        reference (`"logp"`, `"logits"`, `"counterfactual"`, `"layer"` or `None`): what `forget`
            reads of the reference; counterfactual values are those of `trainer.counterfactual`,
            `layer` hidden states at `Hooks.layer`.
        preferred (`"right"`, `"idk"`, `"alternate"` or `None`): what is preferred to the completion
            to forget: the row's right answer, a sentence of not knowing, another sampled answer.
        forgets_end (`bool`): by default the token that ends an answer is forgotten too.
        says_instead (`bool`): a run trains the forget prompts towards the sentence of the option
            `instead`.
        state_weight (`float`): added to a token's retain KL is so much of `losses.token`'s
            `state_distance`, which is the token's extra loss.
        rate (`float`): factor on the default learning rate of a run.
        hooks (`type[Hooks]`): what happens around the optimiser steps.
        settings (`Mapping`): fields of `UnlearningConfig` that a run with this method sets where
            nobody else does; they are what the method was found with (docs/log.md).
    """

    forget: Callable[..., Tensor] | None
    retain: RetainTerm | None = "kl"
    weights: tuple[float, float, float] = (1.0, 0.0, 1.0)
    source: str = ""
    mismatch: bool = False
    level: Literal["token", "sequence", "vocabulary", "state"] = "token"
    parameters: Mapping[str, float] = field(default_factory=dict)
    complement: bool = False
    reference: Literal["logp", "logits", "counterfactual", "layer"] | None = None
    preferred: Literal["right", "idk", "alternate"] | None = None
    forgets_end: bool = True
    says_instead: bool = False
    state_weight: float = 0.0
    rate: float = 1.0
    hooks: type[Hooks] = Hooks
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of the completions that its terms read."""
        used = (self.forget, self.mismatch, self.preferred, self.retain)
        return tuple(role for role, term in zip(ROLES, used, strict=True) if term)

    @property
    def needs_alternates(self) -> bool:
        """Whether forget rows need another sampled answer (field `alternate`)."""
        return self.preferred == "alternate"

    @property
    def uses_head(self) -> bool:
        """Whether gradients of every term pass through the output head."""
        return self.level != "state"

    @property
    def reference_values(self) -> dict[str, Literal["hidden", "logp", "layer"]]:
        """What is read of the reference on the tokens of each role: final hidden states (for its
        distribution), log p(y), or hidden states at `Hooks.layer`.

        Without a retain term the retain KL is computed all the same, to be logged.
        """
        values: dict[str, Literal["hidden", "logp", "layer"]] = {}
        if self.reference == "logp":
            values = {role: "logp" for role in ("forget", "preferred") if role in self.roles}
        elif self.reference in ("logits", "counterfactual"):
            values["forget"] = "hidden"
        elif self.reference == "layer":
            values["forget"] = "layer"
        if self.retain != "nll":
            values["retain"] = "layer" if self.retain == "states" else "hidden"
        return values

    @property
    def counterfactual(self) -> bool:
        """Whether the reference's distributions on the forget tokens are those of contexts in which
        it cannot know the row's facts.
        """
        return self.reference == "counterfactual"

    @property
    def vocabulary_loss(self) -> Callable[..., Tensor] | None:
        """The forget loss as a function of logits, reference logits and targets, if it reads
        logits.
        """
        if self.level != "vocabulary" or self.forget is None:
            return None
        return partial(self.forget, **self.parameters)

    def with_retain(self, retain: RetainTerm | None) -> Method:
        """The same forget loss with another retain term, whose default weight is 1 (0 for none)."""
        if retain == self.retain:
            return self
        return replace(self, retain=retain, weights=(*self.weights[:2], 1.0 if retain else 0.0))

    def configured(self, name: str, config: Any) -> Method:
        """The method with the `retain_loss`, `beta` and `gamma` of a config.

        Args:
            name (`str`): the method's, for messages.

        Raises:
            UserError: for options that the method cannot take.
        """
        retain, method = config.retain_loss, self
        choices = [choice for choice in self.hooks.retain_losses if self.forget or choice != "none"]
        if retain is not None and retain not in choices:
            allowed = f"it must be one of {', '.join(choices)} with method {name!r}"
            raise UserError(f"retain_loss is {retain!r}, {allowed}")
        if retain is not None:
            method = self.with_retain(None if retain == "none" else retain)
        self.hooks.check(method, config)
        parameters = dict(self.parameters)
        for option in ("beta", "gamma"):
            value = getattr(config, option)
            if value is None:
                continue
            if option not in parameters:
                has = " and ".join(parameters) or "neither beta nor gamma"
                raise UserError(f"{option} is {value}, but method {name!r} has {has}; leave it out")
            if value < 0 or (value == 0 and option == "beta" and self.level == "sequence"):
                raise UserError(f"{option} is {value}, it must be positive")
            parameters[option] = float(value)
        if config.state_weight and method.retain != "kl":
            raise UserError(
                f"state_weight is {config.state_weight}, but it goes with retain_loss=kl only;"
                " leave it out"
            )
        return replace(method, parameters=parameters, state_weight=config.state_weight)


@dataclass(frozen=True)
class RoleTokens:
    """The tokens of one role in a micro-batch: their statistics, the weight of each in its mean,
    and the number of its completion (for losses of whole completions); shapes (tokens,).
    """

    statistics: TokenStatistics
    weights: Tensor
    sequence: Tensor | None = None


def step_counts(method: Method, batch: Mapping[str, Tensor]) -> Tensor:
    """Each role's count in a micro-batch, shape (roles,), float64: its sum is divided by the count
    of the whole step.

    That is the weighted number of tokens, or for a forget loss of whole completions their number.
    """
    role, weight = batch["role"].cpu(), batch["weight"].cpu()
    counts = torch.zeros(len(ROLES), dtype=torch.float64).index_add(0, role, weight)
    if method.level == "sequence":
        counts[0] = ((role == 0) & (batch["offset"].cpu() == 0)).sum()
    return counts


def _forget_term(method: Method, roles: Mapping[str, RoleTokens]) -> tuple[Tensor, Tensor]:
    tokens, loss = roles["forget"], method.forget
    assert loss is not None
    if method.level == "token":
        return weighted_sum_and_count(loss(tokens.statistics, **method.parameters), tokens.weights)
    if method.level in ("vocabulary", "state"):
        return weighted_sum_and_count(extra_loss(tokens.statistics), tokens.weights)
    sequences = {}
    for role in ("forget", "preferred"):
        if role in roles:
            numbers = roles[role].sequence
            assert numbers is not None, "a loss of whole completions needs their numbers"
            sequences[role] = sums_by_sequence(roles[role].statistics, numbers)
    values = loss(sequences["forget"], sequences.get("preferred"), **method.parameters)
    return weighted_sum_and_count(values, torch.ones_like(values))


def _retain_loss(method: Method) -> Callable[[TokenStatistics], Tensor] | None:
    if method.retain is None or not method.state_weight:
        return RETAIN_LOSSES[method.retain] if method.retain else None
    return lambda t: forward_kl_to_reference(t) + method.state_weight * extra_loss(t)


def objective_terms(
    method: Method, roles: Mapping[str, RoleTokens]
) -> dict[str, tuple[Tensor, Tensor]]:
    """(sum, count) of each term of `method` over the tokens (or completions) of this micro-batch.

    Mismatch tokens weigh 1/K for a prompt with K completions, so that the term is the paper's
    sum_x 1/|Y| sum_y L(x, y), divided by the equally weighted number of tokens.
    """
    terms: dict[str, tuple[Tensor, Tensor]] = {}
    if method.forget is not None and "forget" in roles:
        terms["forget"] = _forget_term(method, roles)
    mismatch = negative_log_likelihood if method.mismatch else None
    retain = _retain_loss(method)
    for role, loss in (("mismatch", mismatch), ("retain", retain)):
        if loss is not None and role in roles:
            terms[role] = weighted_sum_and_count(loss(roles[role].statistics), roles[role].weights)
    return terms


def total_loss(
    terms: Mapping[str, tuple[Tensor, Tensor]],
    weights: Mapping[str, float],
    counts: Mapping[str, Tensor | float],
) -> Tensor:
    """sum over roles of weight * sum / count, with `counts` those of the whole optimiser step (all
    micro-batches and processes).

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
