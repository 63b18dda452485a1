"""How much of a text a model knows by heart, token by token (the metrics' definitions:
docs/evaluation.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Correct = Sequence[bool] | npt.NDArray[np.bool_]


def _checked(correct: Correct) -> npt.NDArray[np.bool_]:
    array = np.asarray(correct)
    if array.ndim != 1 or not array.size:
        raise ValueError(
            f"correct has shape {array.shape}, it must be one row of at least one token"
        )
    if array.dtype != np.bool_:
        raise ValueError(f"correct is {array.dtype}, it must be boolean")
    return array


def exact_memorization(correct: Correct) -> float:
    """Share of a completion's tokens that the model predicts right, each given the true tokens
    before it (Tirumala et al. 2022).

    >>> exact_memorization([True, False, True, True])
    0.75

    Args:
        correct: shape (tokens,), boolean.

    Raises:
        ValueError: for anything that is not one non-empty row of booleans.
    """
    return float(_checked(correct).mean())


def extraction_strength(correct: Correct) -> float:
    """1 - k/n for the smallest prefix length k after which the whole rest of n tokens is predicted
    right (Carlini et al. 2021).

    A model that predicts the last token wrong has 0: no prefix makes it say the rest.

    >>> extraction_strength([False, True, True, True])
    0.75
    >>> extraction_strength([False])
    0.0

    Args:
        correct: shape (tokens,), boolean.

    Raises:
        ValueError: for anything that is not one non-empty row of booleans.
    """
    wrong = np.flatnonzero(~_checked(correct))
    return 1.0 if not wrong.size else 1.0 - (int(wrong[-1]) + 1) / len(correct)
