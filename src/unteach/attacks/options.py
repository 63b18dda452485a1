"""The options of `unteach attack`."""

from __future__ import annotations

from dataclasses import dataclass

from unteach.errors import UserError


@dataclass(frozen=True)
class AttackOptions:
    """The options of `unteach attack`.

    Args:
        only (`tuple[str, ...]`): names in `ATTACKS` of `unteach.attacks.suite`; empty: all.
        prompts (`int`): most forget rows per attack, at even distances.
        steps (`int`): most optimiser steps of each relearning.
        every (`int`): steps between two measurements in relearning.
        rows (`int`): training rows of each relearning.
        learning_rate (`float`): of relearning.
        samples (`int`): answers sampled for each prompt.
        temperature (`float`): of the samples.
        retrain (`bool`): train the base model without the forget set, to compare with.
        retrained (`str`, *optional*): a model that was trained without the forget set.
        seed (`int`): of samples, and of the order of rows in relearning.

    Raises:
        UserError: for a number out of range, or both `retrain` and `retrained`.
    """

    only: tuple[str, ...] = ()
    prompts: int = 24
    steps: int = 20
    every: int = 4
    rows: int = 4
    learning_rate: float = 5e-5
    samples: int = 8
    temperature: float = 1.0
    retrain: bool = False
    retrained: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        numbers = ("prompts", "steps", "every", "rows", "learning_rate", "samples", "temperature")
        for name in numbers:
            value = getattr(self, name)
            if not value > 0:  # false for NaN too
                raise UserError(
                    f"option --{name.replace('_', '-')} is {value}, it must be positive"
                )
        if not 0 <= self.seed < 2**32:
            raise UserError(f"option --seed is {self.seed}, it must be at least 0 and under 2**32")
        if self.retrain and self.retrained:
            raise UserError("options --retrain and --retrained exclude each other: give one")
