"""The options of `unteach attack`, and the budgets of its two levels. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from unteach.config.run import option
from unteach.errors import UserError

BUDGETS: dict[str, dict[str, Any]] = {
    "quick": {"prompts": 12, "steps": 20, "every": 10, "samples": 16, "candidates": 12, "soft": 16},
    "full": {
        "prompts": 100,
        "steps": 100,
        "every": 10,
        "samples": 64,
        "candidates": 64,
        "soft": 150,
    },
}
"""Level to the options that are not given."""


def by_level(name: str, text: str) -> Any:
    """An option whose default is that of the level."""
    quick, full = (BUDGETS[level][name] for level in ("quick", "full"))
    return option(None, f"{text} (default: {quick}, at level full {full})")


@dataclass(frozen=True)
class AttackOptions:
    """The options of `unteach attack`; each field's meaning is the `help` of its metadata.

    `only` is a tuple of names, or a string of names separated by commas.

    Raises:
        UserError: for a number out of range, or both `retrain` and `retrained`.
    """

    only: str | tuple[str, ...] = option(
        (),
        "attacks or families to run, separated by commas; default: all of the level",
        metavar="NAMES",
    )
    level: Literal["quick", "full"] = option(
        "quick", "which attacks run and with what budgets: quick, or full (hours on a CPU)"
    )
    prompts: int = by_level(
        "prompts", "most forget rows per attack: those that the original model shows"
    )
    steps: int = by_level("steps", "optimiser steps of each relearning")
    every: int = by_level("every", "steps between two measurements in relearning")
    rows: int = option(4, "training rows of each relearning")
    learning_rate: float = option(5e-5, "learning rate of relearning")
    samples: int = by_level("samples", "answers sampled for each prompt")
    temperature: float = option(1.0, "temperature of the samples")
    top_p: float = option(0.9, "likeliest part of the distribution that sampling_top_p draws from")
    max_new_tokens: int | None = option(
        None, "most tokens of a generated answer; default: as in the run"
    )
    candidates: int = by_level("candidates", "prompts that the prompt search tries for each row")
    soft: int = by_level("soft", "optimiser steps of each soft prompt")
    retrain: bool = option(
        False, "train the base model of a demo without the forget set, to compare with"
    )
    retrained: str | None = option(
        None, "model that was trained without the forget set, to compare with", metavar="MODEL"
    )
    seed: int = option(0, "seed of samples, searches and the order of rows in relearning")

    def __post_init__(self) -> None:
        if isinstance(self.only, str):
            names = [name.strip().replace("-", "_") for name in self.only.split(",")]
            object.__setattr__(self, "only", tuple(name for name in names if name))
            if not self.only:
                raise UserError("option --only is empty: name attacks or families, or leave it out")
        if self.level not in BUDGETS:
            raise UserError(f"option --level is {self.level!r}, it must be quick or full")
        for name, value in BUDGETS[self.level].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        numbers = ("rows", "learning_rate", "temperature", "top_p", "max_new_tokens")
        for name in (*BUDGETS["quick"], *numbers):
            value = getattr(self, name)
            if value is not None and not value > 0:  # false for NaN too
                raise UserError(
                    f"option --{name.replace('_', '-')} is {value}, it must be positive"
                )
        if self.top_p > 1:
            raise UserError(f"option --top-p is {self.top_p}, it must be at most 1")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"option --seed is {self.seed}, it must be at least 0 and under 2**32")
        if self.retrain and self.retrained:
            raise UserError("options --retrain and --retrained exclude each other: give one")

    @property
    def thorough(self) -> bool:
        """Whether the level is the higher one."""
        return BUDGETS[self.level] is BUDGETS["full"]
