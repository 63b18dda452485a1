"""The benchmark table, from `eval.json` alone."""

from __future__ import annotations

from unteach.reports.tables import benchmark_markdown, benchmark_rows


def result(value, better, low=None, high=None):
    return {"value": value, "n": 8, "ci_low": low, "ci_high": high, "higher_is_better": better}


def test_each_number_has_a_line_with_its_direction_and_each_model_a_column():
    before = {
        "forget": {"probability": result(0.5, False, 0.25, 0.75)},
        "all": {"model_utility": result(0.4, True)},
    }
    after = {
        "forget": {"probability": result(None, False)},
        "all": {"model_utility": result(0.3, True), "privleak": result(-12.0, None)},
    }
    header, rows = benchmark_rows({"models": {"original": before, "unlearned": after}})
    assert header == ["set", "metric", "n", "better", "original", "unlearned"]
    assert rows == [
        ["forget", "probability", "8", "lower", "0.5 [0.25, 0.75]", "NM"],
        ["all", "model_utility", "8", "higher", "0.4", "0.3"],
        ["all", "privleak", "8", "nearest", "-", "-12"],
    ]


def test_without_a_model_before_there_is_one_column():
    sets = {"forget": {"probability": result(0.5, False)}}
    assert "original" not in benchmark_markdown({"models": {"original": sets, "unlearned": sets}})
