"""The table of methods by models."""

from __future__ import annotations

import csv
import io
import json

import pytest

from unteach.reports.comparison import (
    Cell,
    as_csv,
    as_latex,
    columns,
    comparison_table,
    escaped,
    shown,
    write_comparison,
)
from unteach.reports.figures import bars, cost_figure


def number(value, low=None, high=None, better=False):
    return {"value": value, "n": 20, "ci_low": low, "ci_high": high, "higher_is_better": better}


def sets(rate, fluency, similarity):
    return {
        "unlearned": {
            "harmful_rate": number(rate, 0.01, 0.2),
            "diversity": number(0.5),
            "fluency": number(fluency),
        },
        "unseen": {"harmful_rate": number(rate), "fluency": number(fluency)},
        "normal": {
            "similarity": number(similarity, better=True),
            "utility_reward": number(-1.5, -2.0, -1.0, True),
        },
    }


@pytest.fixture
def cells():
    return [
        Cell("a/b_c", "original", sets(0.9, 2.0, 1.0)),
        Cell("a/b_c", "ga", sets(0.05, None, 0.5), {"stage_seconds": {"Unlearning": 61.4}}),
        Cell("other", "original", sets(0.8, 2.0, 1.0)),
    ]


EVALUATION = {
    "headline": "harmful_rate",
    "scorers": {"harmful_rate": {"name": "trained judge", "held_out_accuracy": 0.93, "n": 120}},
}


def test_forget_sets_show_the_rate_and_normal_ones_the_use(cells):
    assert columns(cells, "harmful_rate") == [
        ("unlearned", "harmful_rate"),
        ("unlearned", "diversity"),
        ("unlearned", "fluency"),
        ("unseen", "harmful_rate"),
        ("unseen", "fluency"),
        ("normal", "utility_reward"),
        ("normal", "similarity"),
    ]


def test_a_value_is_shown_with_its_interval_rates_in_percent():
    assert shown(number(0.05, 0.011, 0.196), "harmful_rate") == "5 [1, 20]"
    assert shown(number(-1.5, -2.0, -1.0), "utility_reward") == "-1.50 [-2.00, -1.00]"
    assert shown(number(0.4567), "diversity") == "0.457"
    assert (shown(number(None), "fluency"), shown(None, "fluency")) == ("NM", "-")


def test_the_original_is_not_compared_with_itself(cells):
    header, rows = comparison_table(cells, "harmful_rate", interval=False)
    assert (
        header[:3] == ["model", "method", "unlearned: harmful rate (%)"] and header[-1] == "seconds"
    )
    assert rows[0] == ["a/b_c", "original", "90", "0.500", "2.00", "90", "2.00", "-1.50", "-", "-"]
    assert rows[1] == ["a/b_c", "ga", "5", "0.500", "NM", "5", "NM", "-1.50", "0.50", "61"]


def test_the_csv_keeps_every_digit_and_a_line_for_each_number(cells):
    lines = list(csv.DictReader(io.StringIO(as_csv(cells))))
    assert len(lines) == 3 * 7
    first = lines[0]
    assert (
        first["model"],
        first["prompt_set"],
        first["metric"],
        first["value"],
        first["ci_low"],
    ) == (
        "a/b_c",
        "unlearned",
        "harmful_rate",
        "0.9",
        "0.01",
    )
    assert [
        line["value"] for line in lines if line["method"] == "ga" and line["metric"] == "fluency"
    ] == ["", ""]


def test_latex_is_escaped_and_its_columns_add_up(cells):
    text = as_latex(cells, "harmful_rate")
    assert r"a/b\_c & ga" in text and r"harmful rate (\%)" in text and text.count(r"\midrule") == 2
    body = [
        line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line
    ]
    assert {line.count(" & ") for line in body} == {9}
    assert r"\multicolumn{3}{c}{unlearned}" in text
    assert escaped(r"50% of a_b \ ~") == r"50\% of a\_b \textbackslash{} \textasciitilde{}"


def test_all_four_files_are_written_and_name_the_scorers(cells, tmp_path):
    write_comparison(tmp_path, cells, EVALUATION)
    markdown = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "held-out accuracy 93% on 120 answers" in markdown and "| a/b_c | ga |" in markdown
    assert json.loads((tmp_path / "comparison.json").read_text())["cells"][1]["method"] == "ga"
    assert (tmp_path / "comparison.csv").exists() and (tmp_path / "comparison.tex").exists()


def run_of(method, seconds, positives, preferences=False):
    cost = {
        "seconds": seconds,
        "data_tokens": 5,
        "generated_tokens": 6,
        "training_tokens": 7,
        "peak_memory_mb": 8.4,
    }
    return {
        "method": method,
        "cost": cost,
        "needs_positives": positives,
        "needs_preferences": preferences,
    }


@pytest.fixture
def priced():
    numbers = sets(0.1, 2.0, 0.9)
    return [
        Cell("m", "original", numbers),
        Cell("m", "ours", numbers, run_of("ga", 2.0, False)),
        Cell("m", "full", numbers, run_of("rlhf", 80.0, True, True)),
        Cell("n", "ours", numbers, run_of("ga", 4.0, False)),
    ]


def test_beside_a_baseline_the_cost_is_split_and_the_needs_are_said(priced):
    header, rows = comparison_table(priced, "harmful_rate")
    assert header[-8:-4] == ["seconds", "% of rlhf", "data tokens", "generated tokens"]
    assert rows[0][-8:] == ["-"] * 8
    assert rows[1][-8:] == ["2", "2.5", "5", "6", "7", "8", "no", "no"]
    assert rows[2][-8:] == ["80", "100.0", "5", "6", "7", "8", "yes", "yes"]
    assert rows[3][-7] == "-", "the share is of the same model's RLHF, and this model has none"
    body = [
        line
        for line in as_latex(priced, "harmful_rate").splitlines()
        if line.endswith(r"\\") and "multicolumn" not in line
    ]
    assert {line.count(" & ") for line in body} == {len(header) - 1}


def test_without_a_baseline_the_table_has_the_seconds_alone(priced):
    assert comparison_table(priced[:2], "harmful_rate")[0][-1] == "seconds"


def test_the_figure_names_the_share_of_rlhf_and_is_sorted_by_time(priced, tmp_path):
    assert bars(priced[:3]) == [("ours", 2.0, "2 s, 2%", True), ("full", 80.0, "80 s, 100%", False)]
    assert [bar[:1] for bar in bars(priced)] == [("ours (m)",), ("ours (n)",), ("full (m)",)]
    assert cost_figure(tmp_path, priced[:2]) is None and not (tmp_path / "cost.png").exists()
    assert cost_figure(tmp_path, priced).read_bytes().startswith(b"\x89PNG")
