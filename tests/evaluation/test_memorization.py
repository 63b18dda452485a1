"""Exact memorisation and extraction strength, by hand and against a loop of one token at a time."""

from __future__ import annotations

import numpy as np
import pytest

from unteach.evaluation.memorization import exact_memorization, extraction_strength


@pytest.mark.parametrize(
    ("correct", "exact", "strength"),
    [
        ([True], 1.0, 1.0),
        ([False], 0.0, 0.0),
        ([True, True, True, True], 1.0, 1.0),
        ([False, True, True, True], 0.75, 0.75),
        ([True, False, True, True], 0.75, 0.5),
        ([True, True, True, False], 0.75, 0.0),
        ([False, False, False], 0.0, 0.0),
    ],
)
def test_by_hand(correct, exact, strength):
    """A wrong one-token answer has strength 0, which a known implementation gives 1.0."""
    assert (exact_memorization(correct), extraction_strength(np.array(correct))) == (
        exact,
        strength,
    )


def test_extraction_strength_is_its_definition():
    for number in range(64):
        correct = [bool(number >> bit & 1) for bit in range(6)]
        smallest = next(k for k in range(7) if all(correct[k:]))
        assert extraction_strength(correct) == pytest.approx(1 - smallest / 6)


@pytest.mark.parametrize("bad", [[], [[True]], [1.0, 0.0], [1, 0]])
def test_anything_but_a_row_of_booleans_is_refused(bad):
    with pytest.raises(ValueError, match="correct"):
        exact_memorization(bad)
    with pytest.raises(ValueError, match="correct"):
        extraction_strength(bad)
