"""The before/after table and the verdict."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from unteach.reports.tables import (
    cell,
    comparison_rows,
    markdown_table,
    print_table,
    scorer_text,
    verdict,
)


def number(value, n=20, low=None, high=None, better=False):
    return {"value": value, "n": n, "ci_low": low, "ci_high": high, "higher_is_better": better}


@pytest.fixture
def evaluation():
    before = {
        "unlearned": {
            "leak_rate": number(1.0, 17, 0.82, 1.0),
            "rouge_l_recall": number(0.99, 17),
            "fluency": number(0.5, 17),
        },
        "unseen": {"leak_rate": number(0.8, 5, 0.38, 0.96), "fluency": number(0.6, 5)},
        "kept": {
            "leak_rate": number(1.0, 12, 0.76, 1.0, True),
            "rouge_l_recall": number(0.8, 12, better=True),
        },
        "normal": {"similarity": number(1.0, 20, 1.0, 1.0, True), "fluency": number(1.25, 20)},
    }
    after = {
        "unlearned": {
            "leak_rate": number(0.0, 17, 0.0, 0.18),
            "rouge_l_recall": number(0.12, 17),
            "fluency": number(None, 0),
        },
        "unseen": {"leak_rate": number(0.2, 5, 0.04, 0.62), "fluency": number(2.0, 5)},
        "kept": {
            "leak_rate": number(1.0, 12, 0.76, 1.0, True),
            "rouge_l_recall": number(0.6, 12, better=True),
        },
        "normal": {"similarity": number(0.93, 20, 0.9, 0.95, True), "fluency": number(1.5, 20)},
    }
    return {
        "schema_version": 1,
        "scenario": "copyright",
        "models": {"original": before, "unlearned": after},
    }


def test_a_cell_is_a_value_nm_or_a_dash():
    metrics = {"fluency": number(None, 0), "diversity": number(0.456)}
    assert cell(metrics, "diversity", "{:.2f}") == "0.46"
    assert cell(metrics, "fluency", "{:.2f}") == "NM"
    assert cell(metrics, "similarity", "{:.2f}") == "-"


def test_a_leak_rate_is_shown_with_its_interval():
    assert (
        cell({"leak_rate": number(0.25, 20, 0.112, 0.469)}, "leak_rate", "{:.0%}")
        == "25% [11%, 47%]"
    )
    assert cell({"leak_rate": number(0.25)}, "leak_rate", "{:.0%}") == "25%"


def test_each_prompt_set_has_a_row_of_before_and_after(evaluation):
    header, rows = comparison_rows(evaluation)
    assert header == [
        "prompt set",
        "n",
        "leak rate",
        "ROUGE-L recall",
        "fluency (NLL)",
        "similarity",
    ]
    assert rows[0] == [
        "unlearned",
        "17",
        "100% [82%, 100%] -> 0% [0%, 18%]",
        "0.99 -> 0.12",
        "0.50 -> NM",
        "-",
    ]
    assert rows[3] == [
        "normal",
        "20",
        "-",
        "-",
        "1.25 -> 1.50",
        "1.00 [1.00, 1.00] -> 0.93 [0.90, 0.95]",
    ]
    assert [row[0] for row in rows] == ["unlearned", "unseen", "kept", "normal"]


def test_a_metric_that_one_model_lacks_is_a_dash_on_its_side(evaluation):
    del evaluation["models"]["unlearned"]["normal"]["similarity"]
    assert comparison_rows(evaluation)[1][3][-1] == "1.00 [1.00, 1.00] -> -"


def test_a_markdown_table_has_a_line_of_dashes_under_its_header():
    assert markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"


def test_the_verdict_says_what_is_forgotten_kept_and_alike(evaluation):
    assert (
        verdict(evaluation)
        == "Leak rate: unlearned 100% -> 0%, unseen 80% -> 20%; recall kept: 75% of kept; normal"
        " answers 0.93 similar to the original's."
    )


def test_the_verdict_admits_that_nothing_was_scored():
    sets = {"normal": {"fluency": number(1.0)}}
    assert verdict({"models": {"original": sets, "unlearned": sets}}) == "No forget set was scored."


def test_the_terminal_s_table_shows_the_narrow_cells_and_the_verdict(evaluation):
    console = Console(file=io.StringIO(), width=200)
    print_table(evaluation, console)
    printed = console.file.getvalue()
    for row in comparison_rows(evaluation, narrow=True)[1]:
        assert all(text in printed for text in row)
    assert verdict(evaluation) in " ".join(printed.split())


@pytest.mark.parametrize("rate", ["harmful_rate", "hallucination_rate"])
def test_the_verdict_and_the_narrow_table_follow_the_headline(evaluation, rate):
    for sets in evaluation["models"].values():
        for name in ("unlearned", "unseen"):
            sets[name][rate] = sets[name]["leak_rate"]
    evaluation["headline"] = rate
    assert verdict(evaluation).startswith(
        f"{rate.replace('_', ' ').capitalize()}: unlearned 100% -> 0%, unseen 80% -> 20%"
    )
    header, rows = comparison_rows(evaluation, narrow=True)
    assert (
        header[2] in ("harmful rate", "hallucination")
        and "recall" not in header
        and rows[0][2] == "100% -> 0%"
    )


def test_a_trained_scorer_is_named_with_its_held_out_accuracy():
    assert (
        scorer_text({"name": "judge", "held_out_accuracy": 0.944, "n": 180})
        == "judge (held-out accuracy 94% on 180 answers)"
    )
    assert scorer_text({"name": "BLEU over 5.1"}) == "BLEU over 5.1"
