"""When training stops and how much the retain term weighs: never decided by the forget loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

Probe = Callable[[Any], Mapping[str, float]]
"""From the current model to its rates: `forget_rate` (0 to 1, lower is better), those of
`KEPT_RATES` that it measures (higher is better), and whatever else is to be logged.
"""
USEFUL_RATES = ("utility", "neighbours")
KEPT_RATES = (*USEFUL_RATES, "readable")
"""Rates of what training may harm: each counts as a share of its value at the start."""


def probe_interval(probe_steps: float, steps: int) -> int:
    """Steps between two probes: `probe_steps`, or below 1 that share of the planned `steps`,
    rounded up.
    """
    return max(1, math.ceil(probe_steps * steps - 1e-9) if probe_steps < 1 else int(probe_steps))


@dataclass
class RetainBudget:
    """Keeps the retain KL at a budget by adapting its weight eps3.

    The weight is multiplied by `up` after a step above the budget (nats per token; `None`: never),
    by `down` after one below it, within bounds that include its first value. Above its first value
    it falls by (KL / budget)^unwinding, between 1 / up and `down`: otherwise it stays high long
    after the cause is gone (integral wind-up), and nothing more is forgotten.
    """

    budget: float | None
    weight: float
    up: float = 1.15
    down: float = 0.95
    unwinding: float = 0.2
    least: float = 0.1
    most: float = 100.0

    def __post_init__(self) -> None:
        self._first = self.weight
        self.least, self.most = min(self.least, self.weight), max(self.most, self.weight)

    def update(self, kl: float) -> float:
        """The weight for the next step, after a step whose mean retain KL was `kl`."""
        if self.budget is None or self.weight <= 0:
            return self.weight
        if kl > self.budget:
            weight = self.weight * self.up
        else:
            unwound = self.weight * max(1 / self.up, max(0.0, kl / self.budget) ** self.unwinding)
            weight = min(self.weight * self.down, max(self._first, unwound))
        self.weight = min(self.most, max(self.least, weight))
        return self.weight


@dataclass
class ForgetGrowth:
    """Makes the forget term weigh more while a probe still finds what is to be forgotten, and less
    again while what is kept falls.

    After a probe over the target rate `factor` is multiplied by `growth` (1: never). It is divided
    by it instead where less than `ENOUGH_UTILITY` is kept, and by more than `SAME` less than at the
    probe before. It stays within 1 and `most`.
    """

    growth: float = 1.0
    factor: float = 1.0
    most: float = 16.0

    def update(self, *, over: bool, kept: float, before: float) -> None:
        """After a probe: whether its rate is over the target, and the least share kept at it and at
        the probe before.
        """
        falls = kept < ENOUGH_UTILITY and kept < before - SAME
        if falls or over:
            change = 1 / self.growth if falls else self.growth
            self.factor = min(self.most, max(1.0, self.factor * change))


LOW_PROBES = 2
"""Consecutive probes with too little utility that end training."""
ENOUGH_UTILITY, RECOVERY = 0.95, 0.01
"""Training goes on below this share of the initial utility while it gains this much in a probe."""
SAME = 0.042
"""Difference between two probes that is none: one row of 24."""


@dataclass
class StopRule:
    """Early stopping on a sequence of probes; its state is plain data that goes into checkpoints.

    What is kept is the least of `KEPT_RATES`, each as a share of its initial value: broken
    neighbours or gibberish are not made up for by other answers.

    Training stops when the forget rate has been at most `target_rate` in `hold` consecutive
    probes, or when one of `USEFUL_RATES` has been below `min_utility` times its initial value in
    two consecutive probes; in neither case while what is kept is below `ENOUGH_UTILITY` and
    recovering (the KL budget corrects what the first steps overshoot). With `patience` it also
    stops when that many consecutive probes have not lowered the validation rate (`forget_rate`
    where the probe has none) below its minimum so far, the initial value included.

    The best probe keeps most, less its forget rate as a share of the initial one. Within `SAME` of
    the best so far the later one is taken: one row of a probe tells nothing, and training on after
    the rate is zero is what generalises (Yao et al. 2024, first lesson) and what brings back what
    the first steps overshot.
    """

    target_rate: float
    hold: int
    min_utility: float
    patience: int | None = None
    starts: dict[str, float] = field(default_factory=dict)
    held: int = 0
    lowest_rate: float = float("inf")
    stale: int = 0
    low: int = 0
    last_share: float = 1.0
    best_step: int = -1
    best_score: float = float("-inf")
    reason: str = ""
    history: list[dict[str, float]] = field(default_factory=list)

    def record(self, step: int, rates: Mapping[str, float]) -> bool:
        """Adds one probe; true if it is the best so far."""
        self.history.append({"step": step, **rates})
        if not self.starts:
            self.starts = _starts(rates)
        shares, rate = self.shares(rates), rates["forget_rate"]
        share = min(shares.values())
        worst = min(USEFUL_RATES, key=lambda name: shares[name])
        self.held = self.held + 1 if rate <= self.target_rate else 0
        watched = rates.get("validation_rate", rate)
        self.stale = 0 if watched < self.lowest_rate - 1e-9 else self.stale + 1
        self.lowest_rate = min(self.lowest_rate, watched)
        self.low = self.low + 1 if shares[worst] < self.min_utility else 0
        recovering = self.last_share + RECOVERY <= share < ENOUGH_UTILITY
        self.last_share = share
        self.reason = self._reason_to_stop(worst, shares[worst], recovering) or self.reason
        score = share - rate / self.starts["forget_rate"]
        better = step > 0 and score >= self.best_score - SAME - 1e-9
        if better:
            self.best_step, self.best_score = step, max(score, self.best_score)
        return better

    def shares(self, rates: Mapping[str, float]) -> dict[str, float]:
        """Each of `KEPT_RATES` as a share of its initial value, at most 1; 1 if it is not measured
        or had nothing to lose.
        """
        return {
            name: min(1.0, rates.get(name, start) / start) if start else 1.0
            for name in KEPT_RATES
            for start in (self.starts[name],)
        }

    def _reason_to_stop(self, worst: str, share: float, recovering: bool) -> str:
        if self.low >= LOW_PROBES and not recovering:
            limit = f"under the limit of {self.min_utility:.0%} in {self.low} probes in a row"
            return f"{worst} fell to {share:.0%} of its start, {limit}"
        if self.held >= self.hold and not recovering:
            return f"forget rate at most {self.target_rate:.0%} in {self.held} probes in a row"
        if self.patience and self.stale >= self.patience:
            lowest = f"{self.lowest_rate:.0%}"
            return f"validation rate not under {lowest} in {self.stale} probes in a row"
        return ""

    @property
    def should_stop(self) -> bool:
        """Whether there is a reason to stop."""
        return bool(self.reason)

    def state(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return asdict(self)

    def load(self, state: Mapping[str, Any]) -> None:
        """Restores the state of an earlier rule but keeps this one's limits."""
        limits = ("target_rate", "hold", "min_utility", "patience")
        for name, value in state.items():
            if name not in limits:
                setattr(self, name, value)
        if self.history and "forget_rate" not in self.starts:  # of an earlier version
            self.starts = _starts(self.history[0])


def _starts(rates: Mapping[str, float]) -> dict[str, float]:
    """The initial values of `KEPT_RATES` and of the forget rate, 1 instead of 0. A utility of 0
    means that the model says nothing right: training on from there is of no use.
    """
    found = {name: rates.get(name, 1.0) for name in KEPT_RATES}
    forget = rates["forget_rate"] or 1.0
    return {**found, "utility": max(found["utility"], 1e-9), "forget_rate": forget}


COLLAPSED_STEPS = 5


@dataclass
class CollapseWatch:
    """Detects a model that training has destroyed: its retain KL (nats per token) is above `limit`
    in `COLLAPSED_STEPS` consecutive steps, of which there are `count` so far.
    """

    limit: float | None
    count: int = 0

    def reason(self, step: int, means: Mapping[str, float]) -> str:
        """Why training must end after a step with these means; empty if it need not."""
        if not math.isfinite(means.get("loss", 0.0)):
            return nonfinite_loss(step, means["loss"])
        if "retain_kl" not in means:  # a step without retain rows is no evidence either way
            return ""
        kl = means["retain_kl"]
        self.count = self.count + 1 if self.limit is not None and not kl <= self.limit else 0
        if self.count < COLLAPSED_STEPS:
            return ""
        return (
            f"the model has collapsed: its retain KL was over collapse_kl ({self.limit:g} nats per"
            f" token) in {self.count} steps in a row, {kl:.3g} at step {step}; lower the learning"
            " rate, or raise retain_weight"
        )


def nonfinite_loss(step: int, loss: float) -> str:
    """The reason for ending on a loss that is not a number or infinite."""
    return f"the loss is {loss} at step {step}; lower the learning rate or set max_grad_norm"


def nonfinite_weights(step: int) -> str:
    """The reason for ending on weights that are not finite."""
    weights = f"the weights are no longer finite after step {step}"
    return f"{weights}; lower the learning rate or set max_grad_norm"
