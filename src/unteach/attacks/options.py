"""The options of `unteach attack`. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from unteach.config.run import option
from unteach.errors import UserError


@dataclass(frozen=True)
class AttackOptions:
    """The options of `unteach attack`; each field's meaning is the `help` of its metadata.

    `only` is a tuple of names, or a string of names separated by commas.

    Raises:
        UserError: for a number out of range, or both `retrain` and `retrained`.
    """

    only: str | tuple[str, ...] = option(
        (), "attacks to run, separated by commas; default: all", metavar="NAMES"
    )
    prompts: int = option(24, "most forget rows per attack, at even distances")
    steps: int = option(20, "most optimiser steps of each relearning")
    every: int = option(4, "steps between two measurements in relearning")
    rows: int = option(4, "training rows of each relearning")
    learning_rate: float = option(5e-5, "learning rate of relearning")
    samples: int = option(8, "answers sampled for each prompt")
    temperature: float = option(1.0, "temperature of the samples")
    max_new_tokens: int | None = option(
        None, "most tokens of a generated answer; default: as in the run"
    )
    retrain: bool = option(
        False, "train the base model of a demo without the forget set, to compare with"
    )
    retrained: str | None = option(
        None, "model that was trained without the forget set, to compare with", metavar="MODEL"
    )
    seed: int = option(0, "seed of samples and of the order of rows in relearning")

    def __post_init__(self) -> None:
        if isinstance(self.only, str):
            names = [name.strip().replace("-", "_") for name in self.only.split(",")]
            object.__setattr__(self, "only", tuple(name for name in names if name))
        numbers = ("prompts", "steps", "every", "rows", "learning_rate", "samples", "temperature")
        for name in (*numbers, "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and not value > 0:  # false for NaN too
                raise UserError(
                    f"option --{name.replace('_', '-')} is {value}, it must be positive"
                )
        if not 0 <= self.seed < 2**32:
            raise UserError(f"option --seed is {self.seed}, it must be at least 0 and under 2**32")
        if self.retrain and self.retrained:
            raise UserError("options --retrain and --retrained exclude each other: give one")
