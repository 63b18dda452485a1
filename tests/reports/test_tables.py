"""The table object, and the tables that commands print."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from unteach.reports.results import Results
from unteach.reports.tables import (
    Table,
    benchmark_table,
    latex_text,
    print_evaluation,
    print_plan,
    request_table,
    search_choice,
    search_table,
    summary_table,
)


def number(value, n=20, low=None, high=None, better=False):
    return {"value": value, "n": n, "ci_low": low, "ci_high": high, "higher_is_better": better}


def printed(function, *arguments, width=200):
    console = Console(file=io.StringIO(), width=width)
    function(*arguments, console)
    return console.file.getvalue()


def test_a_markdown_table_has_a_line_of_dashes_and_its_cells_stay_cells():
    table = Table(["a", "b"], [["1", "x | <b>\ny"]], ["", "group"])
    assert table.markdown() == "| a | group: b |\n| --- | --- |\n| 1 | x \\| &lt;b> y |\n"


def test_latex_is_escaped():
    escaped = r"50\% of a\_b \textbackslash{} \textasciitilde{}"
    assert latex_text(r"50% of a_b \ ~") == escaped


def test_brackets_in_cells_are_printed_as_they_are():
    console = Console(file=io.StringIO(), width=80)
    Table(["[bold]a"], [["[red]5 [1, 20]"]]).print(console, "[title]")
    text = console.file.getvalue()
    assert "[bold]a" in text and "[red]5 [1, 20]" in text and "[title]" in text


def test_each_prompt_set_has_a_row_of_original_and_unlearned(evaluation):
    table = summary_table(Results(evaluation))
    assert table.header[:3] == ["prompt set", "n", "leak rate"]
    assert table.header[3:] == [
        "fluency (NLL)",
        "ROUGE-L recall",
        "similarity to the original's answers",
    ]
    assert [row[0] for row in table.rows] == ["forget", "forget (held out)", "retain", "normal"]
    rate = "100% [82%, 100%] -> 0% [0%, 18%]"
    assert table.rows[0] == ["forget", "17", rate, "0.50 -> NM", "-", "-"]
    assert table.rows[3] == ["normal", "20", "-", "1.25 -> 1.50", "-", "1.00 -> 0.93"]


def test_a_metric_that_one_model_lacks_is_a_dash_on_its_side(evaluation):
    del evaluation["models"]["unlearned"]["normal"]["similarity"]
    assert summary_table(Results(evaluation)).rows[3][-1] == "1.00 -> -"


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_printed_table_keeps_the_most_important_metrics_that_fit(evaluation, width):
    table = summary_table(Results(evaluation), width=width)
    assert table.width <= width or len(table.header) == 3
    assert table.header[2] == "leak rate"
    text = printed(print_evaluation, evaluation, width=width)
    assert max(map(len, text.splitlines())) <= max(width, table.width)
    assert width == 40 or all(cell in text for row in table.rows for cell in row)
    assert Results(evaluation).changes() in " ".join(text.split())


def test_at_80_characters_the_metrics_of_each_role_are_there(evaluation):
    header = summary_table(Results(evaluation), width=80).header
    assert {"leak rate", "recall", "similarity"} <= set(header)


def test_each_number_of_a_benchmark_has_a_line_with_its_direction():
    before = {
        "forget": {"probability": number(0.5, 8, 0.25, 0.75)},
        "all": {"model_utility": number(0.4, 8, better=True)},
    }
    after = {
        "forget": {"probability": number(None, 8)},
        "all": {
            "model_utility": number(0.3, 8, better=True),
            "privleak": number(-12.0, 8, better=None),
        },
    }
    table = benchmark_table({"models": {"original": before, "unlearned": after}})
    assert table.header == ["prompt set", "metric", "n", "better", "original", "unlearned"]
    assert table.rows == [
        ["forget", "probability", "8", "lower", "0.5 [0.25, 0.75]", "NM"],
        ["all", "model utility", "8", "higher", "0.4", "0.3"],
        ["all", "privleak", "8", "nearest", "-", "-12"],
    ]


def test_a_benchmark_of_one_model_has_one_column():
    sets = {"forget": {"probability": number(0.5)}}
    table = benchmark_table({"models": {"original": sets, "unlearned": sets}})
    assert "original" not in table.header and "unlearned" in table.header


def test_a_plan_is_printed_with_its_peak_and_times():
    plan = {
        "model": "m",
        "processes": 2,
        "bytes": {"weights": 2**30},
        "disk_bytes": 2**29,
        "peak_bytes": 3 * 2**29,
        "trained_parameters": 1e6,
        "parameters": 2e6,
        "tokens": 100,
        "step_flops": 1e12,
        "steps": 10,
        "seconds": {0.1: 100.0, 100.0: 0.1},
    }
    text = printed(print_plan, plan)
    assert "on each of 2 device(s)" in text and "0.50" in text and "1.50" in text
    assert "1.0 of 2.0 million parameters" in text
    assert "0.1 x 10^12 operations a second: 100 seconds" in text


def test_requests_show_the_newest_forget_rate_of_each():
    def request(number, after, earlier):
        return {
            "event": "request",
            "id": number,
            "time": "t",
            "data": {"rows": 3},
            "kind": "adapter",
            "method": "ga",
            "rounds": 1,
            "before": 1.0,
            "after": after,
            "earlier": earlier,
        }

    entries = [
        request(1, 0.1, {}),
        request(2, 0.2, {"1": 0.3}),
        {"event": "remove", "id": 2, "rates": {"1": 0.4}},
    ]
    rows = request_table(entries, {2}).rows
    assert rows[0] == ["1", "t", "3", "ga", "1", "100%", "10%", "40%", "adapter"]
    assert rows[1][-3:] == ["20%", "20%", "removed"]


def trial(method, **changes):
    known = {"settings": {"method": method, "learning_rate": 1e-5}, "note": "", "step": 3}
    known |= {"forget_rate": 0.1, "validation_rate": 0.2, "utility": 0.9, "not_meaningful": 0.0}
    return known | {"retain_kl": None, "score": 0.5, "seconds": 2.0} | changes


def test_trials_stand_best_first_and_failed_ones_with_their_reason():
    trials = [trial("a"), trial("b", note="loss is NaN"), trial("c", score=0.7, retain_kl=0.05)]
    search = {"why": "c: highest score", "trials": trials, "untried": ["d"]}
    table = search_table(search)
    assert [row[0] for row in table.rows] == ["c", "a", "b"]
    assert table.rows[0][2:] == ["3", "10%", "20%", "90%", "0%", "0.050", "0.70", "2"]
    assert table.rows[2][-2:] == ["loss is NaN", "2"]
    assert {len(row) for row in table.rows} == {len(table.header)}
    assert search_choice(search).endswith("Not tried, for lack of time: d.")
