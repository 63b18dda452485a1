"""Batches of made-up token ids in the shapes that the benchmarks measure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unteach.data.token_store import TokenTable
from unteach.data.tokenization import EncodedRow


@dataclass(frozen=True)
class Shape:
    """What a batch is made of: numbers of rows, and mean lengths in tokens (drawn between 75% and
    125% of the mean).

    Args:
        batch (`int`): forget rows, and retain rows, in a step.
        mismatch (`int`): K.
        prompt, completion (`int`): of a forget row.
        retain_prompt, retain_completion (`int`): of a retain row; its completions are the mismatch
            completions too.
        rows (`int`): rows of each set.
        opening (`int`): tokens that every prompt begins with, besides.
    """

    batch: int = 2
    mismatch: int = 5
    prompt: int = 20
    completion: int = 40
    retain_prompt: int = 20
    retain_completion: int = 13
    rows: int = 64
    shared_prefix: int = 0


PAPER = Shape()
"""The released code's default: two short questions and answers a step, K = 5; forget rows of about
60 tokens, retain rows of about 33.
"""
PROMPT_HEAVY = Shape(prompt=128, completion=24, retain_prompt=128, retain_completion=24)
CHAT = Shape(
    batch=6,
    mismatch=1,
    prompt=16,
    completion=36,
    retain_prompt=16,
    retain_completion=36,
    shared_prefix=24,
)
"""Short questions behind a chat template with a system prompt, about as the demos of questions and
answers have them.
"""


def rows(shape: Shape, vocabulary: int, seed: int = 0) -> tuple[TokenTable, TokenTable]:
    """(forget rows, retain rows) of that shape."""
    draw = np.random.default_rng(seed)

    def ids(mean: int) -> tuple[int, ...]:
        length = int(draw.integers(max(1, round(0.75 * mean)), round(1.25 * mean) + 1))
        return tuple(int(token) for token in draw.integers(3, vocabulary, length))

    shared_prefix = tuple(range(3, 3 + shape.shared_prefix))

    def row(name: str, number: int, prompt: int, completion: int) -> EncodedRow:
        return EncodedRow(
            f"{name}-{number}", (*shared_prefix, *ids(prompt)), ids(completion), "chat"
        )

    forget = TokenTable(
        row("forget", number, shape.prompt, shape.completion) for number in range(shape.rows)
    )
    retain = TokenTable(
        row("retain", number, shape.retain_prompt, shape.retain_completion)
        for number in range(shape.rows)
    )
    return forget, retain
