"""Leak@k: the estimator against exact fractions, and its curve."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from unteach.attacks.decoding import leak_at, leak_curve, powers_to


@pytest.mark.parametrize("samples", [1, 4, 16, 64])
def test_it_is_the_share_of_subsets_with_a_leak(samples):
    for leaks in range(samples + 1):
        for k in powers_to(samples):
            none = Fraction(math.comb(samples - leaks, k), math.comb(samples, k))
            assert leak_at(samples, leaks, k) == pytest.approx(float(1 - none), abs=1e-14)


@pytest.mark.parametrize("chance", [0.01, 0.2, 0.9])
def test_its_mean_over_draws_is_the_chance_of_a_leak_in_k(chance):
    """Unbiased: sum over c of P(c leaks of n) leak_at(n, c, k) = 1 - (1 - p)^k."""
    samples = 24
    for k in (1, 5, 24):
        mean = math.fsum(
            math.comb(samples, leaks)
            * chance**leaks
            * (1 - chance) ** (samples - leaks)
            * leak_at(samples, leaks, k)
            for leaks in range(samples + 1)
        )
        assert mean == pytest.approx(1 - (1 - chance) ** k, abs=1e-12)


def test_large_numbers_of_samples_do_not_overflow():
    assert 0 < leak_at(5000, 1, 64) < 0.02


def test_the_curve_rises_from_the_mean_to_any_and_says_its_rows():
    """Four samples of three rows, 4, 1 and 0 of which leak: leak@1 = (1 + 1/4) / 3, leak@2 = (1 +
    1/2) / 3, leak@4 = 2/3.
    """
    points = leak_curve({0: 4, 5: 1, 6: 0}, 4)
    assert [(point["k"], point["n"]) for point in points] == [(1, 3), (2, 3), (4, 3)]
    assert [point["value"] for point in points] == pytest.approx([5 / 12, 1 / 2, 2 / 3])


def test_k_doubles_up_to_the_number_of_samples():
    assert powers_to(64) == [1, 2, 4, 8, 16, 32, 64] and powers_to(6) == [1, 2, 4, 6]
    assert powers_to(1) == [1]
