"""PDU (Entesari et al. 2025, arXiv 2506.05314): forgetting with a bound on the retain loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from unteach.errors import UserError
from unteach.methods.objective import Hooks, Method


class DualWeight(Hooks):
    """eps3 as the dual variable of "forget as far as possible, with the retain loss at most at a
    limit" (Entesari et al. 2025).

    After each step: weight <- max(0, weight + step_size * (retain loss - limit)).
    """

    retain_losses = ("kl", "nll")

    def __init__(self, method: Method, config: Any, layers: Any, budget: Any) -> None:
        super().__init__(method, config, layers, budget)
        self.limit: float | None = config.dual_limit
        self.wait: int = config.dual_wait

    @classmethod
    def check(cls, method: Method, config: Any) -> None:
        """Raises `UserError` for a KL constraint without a limit."""
        if method.retain == "kl" and config.dual_limit is None and config.max_retain_kl is None:
            raise UserError(
                f"method {config.method!r} with retain_loss 'kl' needs a limit: set dual_limit or"
                " max_retain_kl"
            )

    def prepare(self, model: Any, retain_nll: Callable[[], float]) -> None:
        """Sets a limit that the options leave open: the KL budget, or the initial NLL and
        `dual_tolerance` of it.
        """
        if self.limit is None and self.method.retain == "kl":
            self.limit = self.config.max_retain_kl
        elif self.limit is None:
            self.limit = (1 + self.config.dual_tolerance) * retain_nll()

    def after_step(self, means: Mapping[str, float]) -> None:
        """Updates the dual variable after the first `dual_wait` steps."""
        name = f"retain_{self.method.retain}"
        if name not in means:
            return
        assert self.limit is not None, "the limit is set before the first step"
        if self.wait > 0:
            self.wait -= 1
            return
        step = self.config.dual_step_size * (means[name] - self.limit)
        self.budget.weight = max(0.0, self.budget.weight + step)

    def state(self) -> dict[str, Any]:
        """With the limit and the steps left to wait."""
        return {**super().state(), "dual_limit": self.limit, "dual_wait": self.wait}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `state` returned."""
        super().load_state(state)
        self.limit, self.wait = state["dual_limit"], state["dual_wait"]
