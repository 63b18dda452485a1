"""Values, changes and sentences from an `eval.json`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import unteach.reports
from unteach.evaluation.metrics import METRICS, PROMPT_SETS
from unteach.reports.results import Results, capitalised, shown


def number(value, n=20, low=None, high=None, better=False):
    return {"value": value, "n": n, "ci_low": low, "ci_high": high, "higher_is_better": better}


def test_a_value_has_the_format_and_the_interval_of_its_metric():
    assert shown(number(0.25, 20, 0.112, 0.469), ".0%") == "25% [11%, 47%]"
    assert shown(number(0.25, 20, 0.112, 0.469), ".0%", with_interval=False) == "25%"
    assert shown(number(0.456), ".2f") == "0.46"
    assert shown(number(None, 0), ".2f") == "NM"
    assert shown(number(float("nan")), ".2f") == "NM"
    assert shown(None, ".2f") == "-"


def test_before_and_after_are_one_dash_where_both_are_missing(evaluation):
    results = Results(evaluation)
    assert results.before_after("normal", "leak_rate") == "-"
    assert results.before_after("unlearned", "fluency") == "0.50 -> NM"
    del evaluation["models"]["unlearned"]["unlearned"]
    assert results.before_after("unlearned", "fluency") == "0.50 -> -"


def test_a_change_within_the_intervals_is_not_clear(evaluation):
    results = Results(evaluation)

    def word(before, after):
        return results.change("fluency", before, after).word

    before, after = number(4.0, low=3.8, high=4.2), number(3.5, low=3.4, high=3.9)
    clear = after | {"ci_high": 3.6}
    assert word(before, after) == "not clear"
    assert (word(before, clear), word(clear, before), word(before, before)) == (
        "better",
        "worse",
        "same",
    )
    assert results.change("fluency", before, clear).arrow == "\u2193"
    neither = {"higher_is_better": None}
    assert word(before | neither, clear | neither) == "changed"


def test_a_metric_that_compares_with_the_original_has_no_change(evaluation):
    before, after = number(1.0, low=0.9, high=1.0), number(0.5, low=0.4, high=0.6)
    assert Results(evaluation).change("similarity", before, after) is None


def test_the_verdict_has_the_key_metric_of_each_prompt_set(evaluation):
    assert Results(evaluation).changes() == (
        "Leak rate: forget 100% -> 0%, forget (held out) 80% -> 20%; ROUGE-L recall: retain 0.80 ->"
        " 0.60; similarity to the original's answers: normal 0.93."
    )


def test_the_verdict_admits_that_no_forget_set_was_scored():
    sets = {"normal": {"fluency": number(1.0)}}
    results = Results({"models": {"original": sets, "unlearned": sets}})
    assert results.changes().startswith("No forget set was scored")
    assert results.announcement() == "No forget set was scored"


@pytest.mark.parametrize("rate", ["harmful_rate", "hallucination_rate"])
def test_verdict_and_announcement_follow_the_headline(evaluation, rate):
    for sets in evaluation["models"].values():
        for name in ("unlearned", "unseen"):
            sets[name][rate] = sets[name].pop("leak_rate")
    results = Results(evaluation | {"headline": rate})
    title = capitalised(METRICS[rate].title)
    assert results.changes().startswith(f"{title}: forget 100% -> 0%, forget (held out) 80%")
    assert results.announcement() == f"{title} down from 100% to 0%"


@pytest.mark.parametrize(
    ("word", "tone"),
    [
        ("forgotten", "good"),
        ("forgotten with damage", "bad"),
        ("not forgotten", "bad"),
        ("collapsed", "bad"),
    ],
)
def test_the_judgement_stands_before_the_numbers(evaluation, word, tone):
    results = Results(evaluation | {"verdict": word, "reasons": ["a", "b"]})
    assert results.judgement().startswith(f"{capitalised(word)}: ") and results.tone == tone
    assert results.announcement() == f"{capitalised(word)}: leak rate down from 100% to 0%"
    assert results.reason_lines == ["a", "b"]


def test_without_a_model_before_there_is_no_verdict_and_the_reason_is_said(evaluation):
    results = Results(evaluation | {"verdict": None, "reasons": ["nothing to compare with"]})
    assert results.judgement() == "No verdict: nothing to compare with."
    assert results.announcement() == "Leak rate down from 100% to 0%" and not results.reason_lines
    assert Results(evaluation).judgement() == "" and Results(evaluation).tone == "flat"


def test_titles_and_formats_come_from_the_file(evaluation):
    results = Results(evaluation)
    facts = {**results.metrics, "leak_rate": {**results.metrics["leak_rate"], "title": "odd name"}}
    facts["leak_rate"]["format"] = ".3f"
    changed = Results({**results.content, "metrics": facts})
    assert changed.changes().startswith("Odd name: forget 1.000 -> 0.000")


def test_a_trained_scorer_is_named_with_its_held_out_accuracy(evaluation):
    judge = {"name": "judge", "held_out_accuracy": 0.944, "n": 180}
    content = evaluation | {"scorers": {"harmful_rate": judge}, "leak_threshold_bleu": 5.1}
    assert Results(content).scorers() == {
        "harmful rate": "judge (held-out accuracy 94% on 180 answers)",
        "leak threshold": "BLEU above 5.10 against the expected text",
    }


def test_no_report_names_a_metric_or_a_prompt_set():
    roles_of_models = {"unlearned"}
    names = (METRICS.keys() | PROMPT_SETS.keys()) - roles_of_models
    # words of other uses: roles, a step that was kept, a rate of the probe, a field of attacks.json
    names -= {"retain", "normal", "kept", "neighbours", "cut_off"}
    for path in Path(unteach.reports.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert not names & {text for text in strings if isinstance(text, str)}, path.name
