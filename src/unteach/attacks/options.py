"""How hard the attacks try."""

from __future__ import annotations

from dataclasses import dataclass

from unteach.errors import UserError, did_you_mean

ATTACKS = (
    "paraphrase",
    "prefix",
    "role_play",
    "few_shot",
    "sampling",
    "quantization",
    "traces",
    "relearning",
    "distance",
)
"""Their names, in the order in which they run: cheap ones first."""


@dataclass(frozen=True)
class AttackOptions:
    """What `unteach attack` can be told.

    Args:
        only (`tuple[str, ...]`): names in `ATTACKS`; empty: all that the folder allows.
        prompts (`int`): at most so many forget rows are asked by each attack, at even distances.
        steps (`int`): most optimiser steps of each relearning.
        every (`int`): steps between two measurements of a relearning.
        rows (`int`): how many rows each relearning is given.
        learning_rate (`float`): of the relearning.
        samples (`int`): answers drawn for each prompt.
        temperature (`float`): at which they are drawn.
        retrain (`bool`): teach the base model anew without the forget set, to compare with.
        retrained (`str`, *optional*): a model that was trained without the forget set, instead.
        seed (`int`): of samples, and of the order in relearning.

    Raises:
        UserError: for an unknown attack, or a number that is out of range.
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
        for name in self.only:
            if name not in ATTACKS:
                raise did_you_mean(name, list(ATTACKS), "attack")
        for name in (
            "prompts",
            "steps",
            "every",
            "rows",
            "learning_rate",
            "samples",
            "temperature",
        ):
            if not getattr(self, name) > 0:
                raise UserError(
                    f"option --{name.replace('_', '-')} is {getattr(self, name)}, it must be"
                    " positive"
                )
        if not 0 <= self.seed < 2**32:
            raise UserError(f"option --seed is {self.seed}, it must be at least 0 and under 2**32")
        if self.retrain and self.retrained:
            raise UserError(
                "give either --retrain (teach one anew) or --retrained MODEL (one that is there),"
                " not both"
            )
