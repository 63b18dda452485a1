"""When to stop and how hard to hold: decided by behaviour and by the retain loss, never by the
forget loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

Probe = Callable[[Any], Mapping[str, float]]
"""From the current model to rates: `forget_rate` (0 to 1, lower is better), `utility` (higher is
better), and what else is to be logged.
"""


@dataclass
class RetainBudget:
    """Holds the retain KL at a budget by adapting its weight eps3.

    A weight that has been driven up comes down again as fast as it went up where the KL is far
    under the budget, down to the weight that it started from: else it stays high long after there
    is reason to (integral wind-up), and nothing more is forgotten.

    Args:
        budget (`float`, *optional*): nats per token; `None`: the weight stays.
        weight (`float`): eps3 now.
        up, down (`float`): factors after a step above and below the budget.
        unwinding (`float`): above the first weight the factor after a step below is (KL /
            budget)^unwinding, between 1 / up and `down`.
        least, most (`float`): bounds of the weight; the first weight is never outside them.
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


def probe_interval(probe_steps: float, steps: int) -> int:
    """Steps between two probes: `probe_steps`; under 1 that share of the planned `steps`, rounded
    up.
    """
    return max(1, math.ceil(probe_steps * steps - 1e-9) if probe_steps < 1 else int(probe_steps))


@dataclass
class DualWeight:
    """eps3 as the dual variable of "forget as far as you can, with the retain loss at most at a
    limit" (Entesari et al. 2025).

    After each step: weight <- max(0, weight + step_size * (retain loss - limit)).

    Args:
        limit (`float`, *optional*): most retain loss, in nats per token; known once the reference
            is there.
        weight (`float`): the dual variable now.
        step_size (`float`): of its ascent.
        wait (`int`): steps that are still to go before the first update.
    """

    limit: float | None
    weight: float
    step_size: float
    wait: int = 0

    def update(self, retain_loss: float) -> float:
        """The weight for the next step, after a step whose mean retain loss was `retain_loss`."""
        assert self.limit is not None, "the limit is set before the first step"
        if self.wait > 0:
            self.wait -= 1
        else:
            self.weight = max(0.0, self.weight + self.step_size * (retain_loss - self.limit))
        return self.weight


LOW_PROBES = 2
"""Probes in a row with too little utility that end a training."""
ENOUGH_UTILITY = 0.95
"""Share of the start's utility under which a training that is still winning some back goes on."""
RECOVERY = 0.01
"""Least gain in that share, from one probe to the next, that counts as winning back."""


@dataclass
class StopRule:
    """Decides on a sequence of probes; its whole state is plain data that goes into the checkpoint.

    Training stops when the forget rate has been at or under the target for `hold` probes in a row,
    when utility has been under `min_utility` times its start in two probes in a row, but in neither
    case while utility is under `ENOUGH_UTILITY` of its start and coming back (the KL budget pulls
    back what the first steps overshoot), or, with `patience`, when that many probes in a row
    brought no validation rate (`forget_rate`, where the probe has none) under the lowest so far,
    the start's included. The best probe is the one with the largest utility share minus forget
    rate; a tie goes to the later one, as going on after the rate is zero is what generalises (Yao
    et al. 2024, first lesson).
    """

    target_rate: float
    hold: int
    min_utility: float
    patience: int | None = None
    start_utility: float | None = None
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
        """Takes one probe; true if it is the best so far."""
        self.history.append({"step": step, **rates})
        utility, rate = rates.get("utility", 1.0), rates["forget_rate"]
        if self.start_utility is None:
            self.start_utility = max(utility, 1e-9)
        share = min(1.0, utility / self.start_utility)
        self.held = self.held + 1 if rate <= self.target_rate else 0
        watched = rates.get("validation_rate", rate)
        self.stale = 0 if watched < self.lowest_rate - 1e-9 else self.stale + 1
        self.lowest_rate = min(self.lowest_rate, watched)
        self.low = self.low + 1 if share < self.min_utility else 0
        recovering = self.last_share + RECOVERY <= share < ENOUGH_UTILITY
        self.last_share = share
        if self.low >= LOW_PROBES and not recovering:
            limit = f"under the limit of {self.min_utility:.0%} in {self.low} probes in a row"
            self.reason = f"utility fell to {share:.0%} of its start, {limit}"
        elif self.held >= self.hold and not recovering:
            self.reason = (
                f"forget rate at most {self.target_rate:.0%} in {self.held} probes in a row"
            )
        elif self.patience and self.stale >= self.patience:
            self.reason = (
                f"validation rate not under {self.lowest_rate:.0%} in {self.stale} probes in a row"
            )
        score = share - rate
        better = step > 0 and score >= self.best_score - 1e-9
        if better:
            self.best_step, self.best_score = step, score
        return better

    @property
    def should_stop(self) -> bool:
        """Whether a reason to stop has come up."""
        return bool(self.reason)

    def state(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return asdict(self)

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from the state of an earlier rule, with this one's limits."""
        limits = ("target_rate", "hold", "min_utility", "patience")
        for name, value in state.items():
            if name not in limits:
                setattr(self, name, value)
