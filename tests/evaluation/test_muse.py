"""MUSE's numbers, by hand."""

from __future__ import annotations

import math

import pytest

from unteach.evaluation.muse import first_line, knowmem, privleak, verbmem


def test_privleak_by_hand():
    assert privleak(0.5, 0.5) == 0.0
    assert privleak(0.0, 0.5) == -100.0, "still known by heart"
    assert privleak(1.0, 0.5) == 100.0, "pushed too far"
    assert privleak(0.6, 0.48) == pytest.approx(25.0)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ((1.1, 0.5), "auc is"),
        ((-0.1, 0.5), "auc is"),
        ((math.nan, 0.5), "auc is"),
        ((0.5, 0.0), "auc_retrain is"),
        ((0.5, math.nan), "auc_retrain"),
    ],
)
def test_values_that_no_auc_can_have_are_named(values, name):
    with pytest.raises(ValueError, match=name):
        privleak(*values)


def test_verbmem_is_f1_without_stemmer():
    """`walks` is not `walked` here; four of five words of the one, four of the other's five: F1 =
    0.8.
    """
    assert verbmem(["the cat walks by night"], ["the cat walked by night"]) == pytest.approx([0.8])
    assert verbmem(["one two three four"], ["two"]) == pytest.approx([2 / 5]), "rambling costs"
    assert knowmem(["", "Mr Brown"], ["Mr Brown", "Mr Brown"]) == [0.0, 1.0]


def test_an_empty_truth_and_sets_of_different_size_are_refused():
    with pytest.raises(ValueError, match="references has no words at row 1"):
        verbmem(["a", "b"], ["a", " "])
    with pytest.raises(ValueError, match="references has 1 texts"):
        knowmem(["a", "b"], ["a"])


def test_an_answer_ends_at_its_first_line_break():
    assert first_line("  Paris.\n\nQuestion: And Rome?") == "Paris." and first_line("") == ""
