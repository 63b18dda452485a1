"""The table of methods by models."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace

import pytest

from unteach.reports.comparison import (
    Cell,
    as_csv,
    comparison_columns,
    comparison_results,
    comparison_table,
    write_comparison,
)
from unteach.reports.figures import cost_bars, cost_figure


def table_of(cells, **options):
    return comparison_table(cells, comparison_results(cells, EVALUATION), **options)


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
    "scorers": {
        "harmful_rate": {"name": "trained judge", "held_out_accuracy": 0.93, "n": 120},
        "fluency": {"name": "/home/someone/model"},
    },
}


def test_forget_sets_show_the_rate_and_normal_ones_the_utility(cells):
    assert comparison_columns(cells, comparison_results(cells, EVALUATION)) == [
        ("unlearned", "harmful_rate"),
        ("unlearned", "diversity"),
        ("unlearned", "fluency"),
        ("unseen", "harmful_rate"),
        ("unseen", "fluency"),
        ("normal", "similarity"),
        ("normal", "utility_reward"),
    ]


def test_rates_are_in_percent_and_have_intervals(cells):
    table = table_of(cells)
    assert table.titles[2] == "forget: harmful rate (%)"
    assert table.rows[1][2] == "5 [1, 20]"
    assert table.rows[1][8] == "-1.50 [-2.00, -1.00]"


def test_the_original_is_not_compared_with_itself(cells):
    table = table_of(cells, intervals=False)
    assert table.header[:3] == ["model", "method", "harmful rate (%)"]
    assert table.header[-1] == "seconds"
    rows = table.rows
    assert rows[0] == ["a/b_c", "original", "90", "0.50", "2.00", "90", "2.00", "-", "-1.50", "-"]
    assert rows[1] == ["a/b_c", "ga", "5", "0.50", "NM", "5", "NM", "0.50", "-1.50", "61"]


def test_a_metric_that_the_evaluation_does_not_state_still_has_a_column(cells):
    facts = comparison_results(cells[:1], EVALUATION).content
    normal = {"odd_reward": number(1.0), "utility_reward": number(2.0)}
    more = [Cell("m", "ga", {"normal": normal})]
    facts["metrics"] = {"harmful_rate": facts["metrics"]["harmful_rate"]}
    assert comparison_columns(more, comparison_results(more, facts)) == [
        ("normal", "utility_reward")
    ]


def test_the_csv_keeps_every_digit_and_a_line_for_each_number(cells):
    lines = list(csv.DictReader(io.StringIO(as_csv(cells))))
    assert len(lines) == 3 * 7
    first = lines[0]
    names = ("model", "prompt_set", "metric", "value", "ci_low")
    assert [first[name] for name in names] == ["a/b_c", "unlearned", "harmful_rate", "0.9", "0.01"]
    fluency = [line for line in lines if line["method"] == "ga" and line["metric"] == "fluency"]
    assert [line["value"] for line in fluency] == ["", ""]


def body_of(latex):
    lines = [line for line in latex.splitlines() if line.endswith(r"\\")]
    return [line for line in lines if "multicolumn" not in line]


def test_latex_is_escaped_and_its_columns_add_up(cells):
    text = table_of(cells).latex()
    assert r"a/b\_c & ga" in text and r"harmful rate (\%)" in text
    assert text.count(r"\midrule") == 2
    assert {line.count(" & ") for line in body_of(text)} == {9}
    top = next(line for line in text.splitlines() if "multicolumn" in line)
    assert r"\multicolumn{3}{c}{forget}" in top
    spans = [int(digits) for digits in re.findall(r"multicolumn\{(\d+)\}", top)]
    assert top.count(" & ") + sum(span - 1 for span in spans) == 9


def test_all_four_files_are_written_and_name_the_scorers(cells, tmp_path):
    write_comparison(tmp_path, cells, EVALUATION)
    markdown = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "fluency (NLL): model" in markdown and "someone" not in markdown
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


def test_beside_a_baseline_the_cost_is_split_and_the_needs_are_stated(priced):
    table = table_of(priced)
    rows = table.rows
    assert table.header[-8:-4] == ["seconds", "% of rlhf", "data tokens", "generated tokens"]
    assert rows[0][-8:] == ["-"] * 8
    assert rows[1][-8:] == ["2", "2.5", "5", "6", "7", "8", "no", "no"]
    assert rows[2][-8:] == ["80", "100.0", "5", "6", "7", "8", "yes", "yes"]
    assert rows[3][-7] == "-", "the share is of the same model's RLHF, and this model has none"
    assert {line.count(" & ") for line in body_of(table.latex())} == {len(table.header) - 1}


def test_without_a_baseline_the_table_has_the_seconds_only(priced):
    assert table_of(priced[:2]).header[-1] == "seconds"


def test_the_figure_names_the_share_of_rlhf_and_is_sorted_by_time(priced, tmp_path):
    assert cost_bars(priced[:3]) == [
        ("ours", 2.0, "2 s, 2%", False),
        ("full", 80.0, "80 s, 100%", True),
    ]
    assert [bar[0] for bar in cost_bars(priced)] == ["ours (m)", "ours (n)", "full (m)"]
    assert cost_figure(tmp_path, priced[:2]) is None and not (tmp_path / "cost.png").exists()
    assert cost_figure(tmp_path, priced).read_bytes().startswith(b"\x89PNG")


def test_each_run_has_its_verdict_in_every_file(cells, tmp_path):
    judged = [
        cells[0],
        *(replace(cell, verdict="collapsed", reasons=["a b"]) for cell in cells[1:]),
    ]
    table = write_comparison(tmp_path, judged, EVALUATION)
    place = table.titles.index("verdict")
    assert [row[place] for row in table.rows] == ["-", *["collapsed"] * (len(cells) - 1)]
    assert "**collapsed**: a b" in (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "collapsed" in (tmp_path / "comparison.csv").read_text(encoding="utf-8")
    content = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    assert content["cells"][1]["verdict"] == "collapsed" and content["cells"][1]["reasons"] == [
        "a b"
    ]
