"""Exposure of a row's secret: its rank by likelihood among random secrets of the same format.

Carlini, Liu, Erlingsson, Kos, Song: *The Secret Sharer* (2019, arXiv 1802.08232), section 4.
"""

from __future__ import annotations

import contextlib
import math
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from unteach.data.packing import common_prefix
from unteach.data.rows import Row
from unteach.data.tokenization import encode_row
from unteach.errors import UserError
from unteach.evaluation.likelihood import mean_nll
from unteach.seeding import row_generator

OTHERS = 99
"""Number of random secrets; the exposure of the most likely secret is log2 100 = 6.6 bits."""
ALPHABETS = (string.digits, string.ascii_lowercase, string.ascii_uppercase)
FIRST_TOKENS = 2
"""Tokens of a random secret by which most are ranked after a known one."""
TOKENS_PER_BATCH = 8192
"""Most tokens of a batch of one row's sequences, which share most of their tokens."""


def exposure(secret: float, others: Sequence[float]) -> float:
    """log2 |R| - log2 rank, in bits: R are the true secret and the others; rank 1 is the most
    likely. The mean over random ranks is 1.4 bits.

    >>> exposure(-1.0, [-2.0, -3.0, -4.0])
    2.0

    Args:
        secret: log-likelihood of the true secret, in any unit.
        others: those of the random ones.
    """
    rank = 1 + sum(other > secret for other in others)
    return math.log2(len(others) + 1) - math.log2(rank)


def random_secrets(secret: str, count: int, generator: np.random.Generator) -> list[str]:
    """At most `count` different secrets of the same format: each ASCII digit and letter is drawn
    from the digits or the letters of its case; other characters stay. A short secret has fewer.
    """
    kinds = [next((a for a in ALPHABETS if letter in a), letter) for letter in secret]
    possible = math.prod(min(len(kind), count + 1) for kind in kinds)
    drawn: dict[str, None] = {}
    for _ in range(20 * count):
        if len(drawn) == min(count, possible - 1):
            break
        text = "".join(kind[int(generator.integers(len(kind)))] for kind in kinds)
        if text != secret:
            drawn[text] = None
    return list(drawn)


def exposures(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[float | None]:
    """For each row the exposure of its most exposed secret in its completion; `None` where it has
    none, or none with a digit or a letter from a to z.

    The likelihood is that of the completion up to the end of the secret.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        rows: their secrets and completions.
        seed: of the random secrets, which depend on it and on the row.
        progress: called with (done, of) rows.
    """
    found: list[float | None] = []
    for row in rows:
        values = [_exposure(model, tokenizer, row, secret, seed) for secret in row.secret]
        found.append(max((value for value in values if value is not None), default=None))
        if progress:
            progress(len(found), len(rows))
    return found


def _exposure(model: Any, tokenizer: Any, row: Row, secret: str, seed: int) -> float | None:
    place = row.completion.find(secret)
    others = random_secrets(secret, OTHERS, row_generator("exposure", seed, row.key, secret))
    if place < 0 or not others:
        return None
    sequences = []
    for text in (secret, *others):
        with contextlib.suppress(UserError):  # its first token merges with the prompt's last
            item = encode_row(row.with_completion(row.completion[:place] + text), tokenizer, None)
            sequences.append((text, (*item.prompt_ids, *item.completion_ids)))
    if len(sequences) < 2 or sequences[0][0] != secret:
        return None
    ids = [tokens for _, tokens in sequences]
    shared = len(common_prefix(ids))

    def log_likelihoods(texts: Sequence[tuple[int, ...]]) -> list[float]:
        rests = [text[shared:] for text in texts]
        prompts = [ids[0][:shared]] * len(texts)
        means = mean_nll(model, prompts, rests, tokens_per_batch=TOKENS_PER_BATCH)
        return [-float(mean or 0.0) * len(rest) for mean, rest in zip(means, rests, strict=True)]

    # one whose first tokens are less likely than the whole secret ranks after it
    starts = [text[: shared + FIRST_TOKENS] for text in ids[1:]]
    distinct = list(dict.fromkeys(starts))
    true, *found = log_likelihoods([ids[0], *distinct])
    bounds = dict(zip(distinct, found, strict=True))
    near = [text for text, start in zip(ids[1:], starts, strict=True) if bounds[start] > true]
    least = [-math.inf] * (len(starts) - len(near))
    return exposure(true, [*least, *log_likelihoods(near)])
