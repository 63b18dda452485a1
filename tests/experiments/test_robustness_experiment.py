"""The table of robustness, from results that are given."""

from __future__ import annotations

import pytest

SCRIPT = "robustness.py"


def row(name, figure, neighbours, seconds, seed=0):
    return {
        "row": name,
        "seed": seed,
        "figure": figure,
        "neighbours": neighbours,
        "seconds": seconds,
    }


ROWS = [
    row("default", 0.6, 0.9, 10.0),
    row("default", 0.4, 1.0, 20.0, seed=1),
    row("sam", 0.2, 0.95, 30.0),
    row("npo", 0.7, 0.5, 6.0),
    row("rmu", 0.1, 0.2, 7.5),
    row("perturb", None, 0.9, 9.0),
]


def test_rows_are_means_over_seeds_and_cost_is_relative_to_the_default(experiment):
    table = experiment.table_of(ROWS)
    assert table["default"]["figure"] == pytest.approx(0.5) and table["default"]["seeds"] == 2
    assert table["sam"]["cost"] == pytest.approx(2.0) and table["npo"]["cost"] == 0.4
    page = experiment.page_of(table, "privacy")
    assert "**sam**" in page and "| npo" in page and "| perturb" in page


def test_on_the_front_is_what_no_other_beats_in_both(experiment, tmp_path):
    table = experiment.table_of(ROWS)
    assert experiment.on_the_front(table) == {"sam", "rmu"}
    experiment.draw_front(table, tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 1000


def test_what_came_back_is_counted_beyond_the_control_on_measured_rows(experiment):
    assert experiment.back([1.0, 1.0, 0.0, None], [0.0, 1.0, 0.0, 1.0]) == pytest.approx(1 / 3)
    assert experiment.back([None], [None]) is None


def test_a_row_is_the_demo_with_a_wrapper_or_a_published_method(experiment):
    assert experiment.settings_of("privacy", "sam", True)["robust"] == "sam"
    assert experiment.settings_of("privacy", "npo", True)["method"] == "npo"
    assert "robust" not in experiment.settings_of("privacy", "default", True)
