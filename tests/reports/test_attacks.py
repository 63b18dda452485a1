"""The table and the sentence for `attacks.json`."""

from __future__ import annotations

from unteach.reports.attacks import (
    attack_notes,
    attack_table,
    attack_verdict,
    print_attacks,
    robustness_line,
    robustness_table,
)
from unteach.reports.figures import leak_chart, relearning_chart


def result(value, n=10, low=None, high=None):
    return {"value": value, "n": n, "ci_low": low, "ci_high": high, "higher_is_better": False}


def found():
    rate = "leak_rate"
    return {
        "schema_version": 2,
        "headline": rate,
        "settings": {
            "relearning_forget": {"steps": 20, "rows": 4, "goal": 0.5},
            "quantization_4bit": {"bits": 4, "group": None},
        },
        "about": {
            "none": {"family": "none", "title": "no attack", "about": "greedy answers"},
            "quantization_4bit": {
                "family": "quantization",
                "title": "4-bit weights",
                "about": "weights rounded",
            },
            "relearning_forget": {
                "family": "relearning",
                "title": "relearn: forget",
                "about": "fine-tuned",
            },
        },
        "attacks": {
            "none": {
                "original": {rate: result(1.0)},
                "unlearned": {rate: result(0.0, low=0.0, high=0.28)},
            },
            "quantization_4bit": {
                "original": {rate: result(0.1)},
                "unlearned": {rate: result(0.3)},
            },
            "relearning_forget": {
                "original": {rate: result(1.0, 6)},
                "unlearned": {rate: result(0.2, 6), "steps_to_half": result(None, 6)},
                "never_knew": {rate: result(0.5, 6), "steps_to_half": result(12, 6)},
            },
        },
        "curves": {
            "relearning_forget": {
                "unlearned": [{"step": 0, **result(0.0)}, {"step": 20, **result(0.2)}],
                "never_knew": [{"step": 0, **result(0.0)}, {"step": 12, **result(0.5)}],
            }
        },
        "left_out": {"distance": "no model to compare with"},
    }


def test_each_attack_has_a_row_with_every_model_beside_the_original():
    table = attack_table(found())
    rows = table.rows
    assert table.header == ["attack", "measure", "n", "original", "unlearned", "never knew"]
    assert rows[0] == ["no attack", "leak rate", "10", "100%", "0% [0%, 28%]", "-"]
    assert rows[1] == ["4-bit weights", "leak rate", "10", "10%", "30%", "-"]
    assert rows[3] == ["", "steps to half", "6", "-", "> 20", "12"]


def test_the_sentence_names_the_strongest_attack_and_the_steps_of_relearning():
    text = attack_verdict(found())
    assert "highest under 4-bit weights: 30% (original model under the same attack: 10%)" in text
    assert "half is relearned after > 20 steps (a model that never knew: 12)" in text


def test_attacks_that_were_not_made_are_noted():
    assert "not made: distance (no model to compare with)" in attack_notes(found())


def test_the_relearning_curves_become_a_figure(tmp_path):
    chart = relearning_chart(tmp_path, found())
    assert (tmp_path / "figures" / "relearning.png").stat().st_size > 1000
    assert "relearn: forget (4 rows)" in chart.svg
    assert "never knew: 0.00 at step 0, 0.50 at step 12" in chart.description
    assert relearning_chart(tmp_path, found() | {"curves": {}}) is None


FAMILY = {
    "attack": "quantization_4bit",
    "tried": 2,
    "brought_back": result(0.5, 8, 0.2, 0.8),
    "control": result(0.125, 8),
    "excess": result(0.375, 8, 0.0, 0.75),
}
FIGURE = {"reason": "", "forgotten_rows": 8, "attacked_rows": 10, "control": "retrained"}


def with_figure(**changes):
    figure = {**FAMILY["excess"], "attack": "quantization_4bit", **FIGURE}
    return {**found(), "robustness": {**figure, "families": {"quantization": FAMILY}, **changes}}


def test_the_robustness_figure_names_its_attack_and_its_denominators():
    line = robustness_line(with_figure())
    assert "4-bit weights brings back 38% [0%, 75%] of the facts beyond" in line
    assert "8 rows measured; 8 forgotten of 10 attacked rows" in line
    table = robustness_table(with_figure())
    assert table is not None and table.rows == [
        ["quantization", "4-bit weights (of 2)", "8", "50% [20%, 80%]", "12%", "38% [0%, 75%]"]
    ]


def test_a_missing_figure_says_why_and_what_came_back():
    line = robustness_line(with_figure(value=None, reason="no model was given"))
    assert line.startswith("Robustness figure missing: no model was given.")
    assert "At most 50% [20%, 80%] came back." in line
    assert robustness_line(found()) == "" and robustness_table(found()) is None


def test_notes_state_the_budget():
    assert "4-bit weights: weights rounded (bits 4)" in attack_notes(found())
    assert "no attack: greedy answers" in attack_notes(found())


def test_leak_at_k_becomes_a_figure_and_a_title(tmp_path):
    points = [{"k": k, **result(k / 8)} for k in (1, 2, 4)]
    chart = leak_chart(tmp_path, {**found(), "leak_at_k": {"sampling": {"unlearned": points}}})
    assert (tmp_path / "figures" / "leak_at_k.png").stat().st_size > 1000
    assert "0.12 at k = 1, 0.50 at k = 4" in chart.description
    assert leak_chart(tmp_path, found()) is None
    sampled = {"unlearned": {"leak_at_4": result(0.5)}}
    rows = attack_table({**found(), "attacks": {"sampling": sampled}}).rows
    assert rows == [["sampling", "leak@4", "10", "50%"]]


def test_many_relearnings_stand_in_lines(tmp_path):
    content = found()
    curves = content["curves"]["relearning_forget"]
    settings = content["settings"]["relearning_forget"]
    content["curves"] = {f"relearning_{i}": curves for i in range(6)}
    content["settings"] = {f"relearning_{i}": settings for i in range(6)}
    chart = relearning_chart(tmp_path, content)
    assert chart is not None and chart.svg.count("(4 rows)") >= 6


def test_the_table_fits_a_terminal_of_100_characters(capsys):
    from rich.console import Console

    print_attacks(found(), Console(width=100))
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100
