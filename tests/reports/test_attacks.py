"""The table and the sentence for `attacks.json`."""

from __future__ import annotations

from unteach.reports.attacks import (
    attack_notes,
    attack_table,
    attack_verdict,
    print_attacks,
)
from unteach.reports.figures import relearning_chart


def result(value, n=10, low=None, high=None):
    return {"value": value, "n": n, "ci_low": low, "ci_high": high, "higher_is_better": False}


def found():
    rate = "leak_rate"
    return {
        "schema_version": 1,
        "headline": rate,
        "settings": {"relearning_forget": {"steps": 20, "rows": 4, "goal": 0.5}},
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
    assert "Relearning from forget rows (4)" in chart.svg
    assert "never knew: 0.00 at step 0, 0.50 at step 12" in chart.description
    assert relearning_chart(tmp_path, found() | {"curves": {}}) is None


def test_the_table_fits_a_terminal_of_100_characters(capsys):
    from rich.console import Console

    print_attacks(found(), Console(width=100))
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100
