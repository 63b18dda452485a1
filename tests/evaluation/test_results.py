"""Means, their numbers of rows and their intervals."""

from __future__ import annotations

import math

import pytest

from unteach.evaluation.results import MetricResult, bootstrap_interval, summarise, wilson_interval


@pytest.mark.parametrize(
    ("successes", "n"), [(0, 7), (7, 7), (1, 3), (17, 40), (999, 1000), (0, 1)]
)
def test_wilson_interval_equals_its_closed_formula(successes, n):
    """(p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n) with z = 1.95996."""
    z, p = 1.959963984540054, successes / n
    middle = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    wanted = ((middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n))
    assert wilson_interval(successes, n) == pytest.approx(wanted, abs=1e-9)


def test_bootstrap_interval_is_the_same_each_time_and_holds_the_mean():
    values = [0.1, 0.9, 0.4, 0.4, 0.7, 2.0, -1.0]
    low, high = bootstrap_interval(values)
    assert (low, high) == bootstrap_interval(values)
    assert min(values) <= low < sum(values) / len(values) < high <= max(values)


def test_bootstrap_interval_narrows_with_more_rows():
    few, many = bootstrap_interval([0.0, 1.0] * 5), bootstrap_interval([0.0, 1.0] * 500)
    assert many[1] - many[0] < 0.2 * (few[1] - few[0])


def test_bootstrap_interval_of_values_without_spread_is_their_mean_and_one_value_has_none():
    assert bootstrap_interval([0.3, 0.3, 0.3]) == pytest.approx((0.3, 0.3))
    assert bootstrap_interval([0.3]) == (None, None)


def test_rows_without_a_value_count_neither_for_the_mean_nor_for_n():
    result = summarise([1.0, None, 3.0, float("nan")], higher_is_better=True)
    assert (result.value, result.n, result.higher_is_better) == (2.0, 2, True)
    assert len(result.rows) == 4 and result.rows[1] is None


@pytest.mark.parametrize("rows", [[], [None, None], [float("nan")]])
def test_no_values_give_no_number_and_no_interval(rows):
    result = summarise(rows, higher_is_better=False)
    assert (result.value, result.n, result.ci_low, result.ci_high) == (None, 0, None, None)


def test_a_rate_has_wilson_s_interval_and_a_mean_the_bootstrap_s():
    rows = [1.0, 0.0, 0.0, 1.0, 0.0]
    rate, mean = (
        summarise(rows, higher_is_better=False, interval="wilson"),
        summarise(rows, higher_is_better=False),
    )
    assert rate.value == mean.value == pytest.approx(0.4)
    assert (rate.ci_low, rate.ci_high) == wilson_interval(2, 5)
    assert (mean.ci_low, mean.ci_high) == bootstrap_interval(rows)


def test_a_result_s_json_has_the_five_fields_and_no_rows():
    wanted = {"value": 0.5, "n": 2, "ci_low": 0.1, "ci_high": 0.9, "higher_is_better": True}
    assert MetricResult(0.5, 2, 0.1, 0.9, True, (0.0, 1.0)).as_json() == wanted
