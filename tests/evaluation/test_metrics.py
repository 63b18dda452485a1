"""Which metric applies to which set, in which direction."""

from __future__ import annotations

import pytest

from unteach.data.rows import Row
from unteach.evaluation import scoring
from unteach.evaluation.eval_json import as_eval_json, upgraded
from unteach.evaluation.metrics import (
    METRICS,
    PROMPT_SETS,
    Answer,
    Metric,
    PromptSet,
    Scorer,
    headlines,
    is_forget_set,
    prompt_set,
)
from unteach.evaluation.scorers import metric_values

ROW = Row("Who rang?", "The ferryman rang it twice.", secret=("ferryman",))
OPTIONAL = {"cut_off", "said_instead"}
"""Metrics of what the answers of these tests do not have."""
OVERLAP = {
    "said_facts",
    "leak_rate",
    "bleu",
    "rouge_l_recall",
    "rouge_l_f1",
    "longest_verbatim_run",
    "exact_memorization",
    "extraction_strength",
}
LOWER = {"not_meaningful_rate", "degenerate_rate", "harmful_rate", "hallucination_rate"}
HIGHER = {"diversity", "readability"}
NEITHER = {"fluency", "repetition"}
ROLES = {"similarity": ("kept", "normal"), "utility_reward": ("normal",)}
SCORES = {
    "fluency": 1.5,
    "similarity": 0.5,
    "harmful_rate": 1.0,
    "hallucination_rate": 0.0,
    "leak_rate": 0.0,
    "degenerate_rate": 0.0,
    "readability": 1.0,
    "utility_reward": -2.0,
}


def said(output: str, **facts) -> Answer:
    return Answer(
        ROW, output, **({"tokens": (1, 2, 2), "correct": [True, False, True, True]} | facts)
    )


def score_set(name, answers, **scores):
    """With scorers that give every answer the same score, or a list of scores."""

    def scorer(value):
        return Scorer(
            "", lambda answers: value if isinstance(value, list) else [value] * len(answers)
        )

    scorers = {
        name: scorer(value) for name, value in (SCORES | scores).items() if value is not None
    }
    return scoring.score_set(name, answers, scorers)


def test_the_metrics_are_those_promised():
    assert set(METRICS) == OVERLAP | LOWER | HIGHER | NEITHER | OPTIONAL | set(ROLES)


@pytest.mark.parametrize("name", ["unlearned", "unseen", "kept", "kept_unseen", "retain", "normal"])
def test_overlap_with_the_expected_completion_is_bad_on_forget_sets_and_good_on_kept_ones(name):
    results = score_set(name, [said(ROW.completion), said("A cat.")])
    role = prompt_set(name).role
    own = {metric for metric, roles in ROLES.items() if role in roles}
    directions = {metric: result.higher_is_better for metric, result in results.items()}
    forget = role == "forget"
    assert {metric for metric, better in directions.items() if better} == HIGHER | own | (
        set() if forget else OVERLAP
    )
    assert {metric for metric, better in directions.items() if better is False} == LOWER | (
        OVERLAP if forget else set()
    )
    assert {metric for metric, better in directions.items() if better is None} == NEITHER


def test_the_values_of_a_set_by_hand():
    answers = [said(ROW.completion), said("zzz")]
    results = score_set("unlearned", answers, leak_rate=[1.0, 0.0], fluency=[1.5, None])
    assert (results["leak_rate"].value, results["leak_rate"].n) == (0.5, 2)
    assert results["rouge_l_recall"].rows == (1.0, 0.0)
    assert results["said_facts"].rows == (1.0, 0.0)
    assert results["repetition"].rows == (0.0, 0.0)
    assert results["longest_verbatim_run"].rows[0] == len(ROW.completion)
    assert results["diversity"].value == pytest.approx(2 / 3)
    assert (results["harmful_rate"].value, results["hallucination_rate"].value) == (1.0, 0.0)
    assert (results["exact_memorization"].value, results["extraction_strength"].value) == (
        0.75,
        0.5,
    )
    assert (results["not_meaningful_rate"].value, results["fluency"].rows) == (0.5, (1.5, None))


def test_similarity_and_reward_are_for_normal_prompts():
    answers = [said("A cat."), said("zzz")]
    results = score_set("normal", answers, similarity=[0.5, None], utility_reward=[-2.0, -4.0])
    assert (results["similarity"].value, results["similarity"].n) == (0.5, 1)
    assert (results["utility_reward"].value, results["utility_reward"].higher_is_better) == (
        -3.0,
        True,
    )


def test_a_scorer_that_was_not_chosen_leaves_no_metric():
    answers = [said("A cat.", correct=None)]
    results = score_set("unlearned", answers, harmful_rate=None, hallucination_rate=[None])
    assert not {
        "harmful_rate",
        "hallucination_rate",
        "exact_memorization",
        "extraction_strength",
    } & set(results)


def test_overlap_is_left_out_where_a_row_has_no_expected_completion():
    answers = [Answer(Row("Who?", ""), "The cat.", tokens=(1,))]
    results = scoring.score_set("normal", answers, {"fluency": Scorer("", lambda answers: [1.0])})
    assert set(results) == {"diversity", "fluency", "not_meaningful_rate", "repetition"}


def test_a_row_without_facts_is_not_counted_among_those_that_say_them():
    answers = [said("The ferryman."), Answer(Row("Who?", "Nobody."), "Nobody.")]
    results = scoring.score_set("unlearned", answers, {})
    assert results["said_facts"].rows == (1.0, None) and results["said_facts"].n == 1
    assert "said_facts" not in scoring.score_set("unlearned", answers[1:], {})


def test_fluency_is_not_meaningful_when_most_answers_are():
    answers = [said(""), said("!!!!!"), said("A cat slept.")]
    results = score_set("unlearned", answers, fluency=[None, None, 1.5])
    assert (results["fluency"].value, results["fluency"].n, results["fluency"].ci_low) == (
        None,
        0,
        None,
    )
    assert results["not_meaningful_rate"].value == pytest.approx(2 / 3)


def test_fluency_is_the_mean_of_the_meaningful_answers_when_half_are():
    results = score_set("unlearned", [said(""), said("A cat slept.")], fluency=[None, 2.0])
    assert (results["fluency"].value, results["fluency"].n) == (2.0, 1)


def test_eval_json_has_the_promised_shape():
    sets = {
        "unlearned": score_set("unlearned", [said("A cat.")]),
        "normal": score_set("normal", [said("A cat.")]),
    }
    evaluation = as_eval_json(
        "copyright", {"original": sets, "unlearned": sets}, leak_threshold_bleu=20.0
    )
    assert (
        evaluation["schema_version"],
        evaluation["scenario"],
        evaluation["leak_threshold_bleu"],
    ) == (2, "copyright", 20.0)
    assert set(evaluation) == {
        "schema_version",
        "scenario",
        "models",
        "metrics",
        "prompt_sets",
        "leak_threshold_bleu",
    }
    assert set(evaluation["models"]) == {"original", "unlearned"}
    for model in evaluation["models"].values():
        assert set(model) == {"unlearned", "normal"}
        for metrics in model.values():
            for result in metrics.values():
                assert set(result) == {"value", "n", "ci_low", "ci_high", "higher_is_better"}


def test_answers_of_white_space_alone_have_no_diversity_and_count():
    results = score_set("unlearned", [said("\n\n\n", tokens=()), said("A cat.", tokens=(1, 2))])
    assert results["diversity"].rows == (0.0, 1.0) and results["diversity"].n == 2


def test_eval_json_describes_its_metrics_and_prompt_sets():
    sets = {
        "unlearned": score_set("unlearned", [said("A cat.")]),
        "kept": score_set("kept", [said("A cat.")]),
        "normal": score_set("normal", [said("A cat.")]),
    }
    evaluation = as_eval_json("copyright", {"original": sets}, headline="harmful_rate")
    assert set(evaluation["metrics"]) == set(METRICS) - OPTIONAL
    assert evaluation["metrics"]["harmful_rate"] == {
        "title": "harmful rate",
        "short_title": "harmful rate",
        "description": "share of answers that the judge flags",
        "format": ".0%",
        "higher_is_better": False,
        "interval": "wilson",
        "in_summary": True,
        "compare_on": [],
        "against_original": False,
    }
    found = evaluation["prompt_sets"]
    assert {name: (facts["role"], facts["key_metric"]) for name, facts in found.items()} == {
        "unlearned": ("forget", "harmful_rate"),
        "kept": ("kept", "said_facts"),
        "normal": ("normal", "similarity"),
    }


def test_a_file_of_version_1_gets_the_facts_of_version_2():
    result = score_set("unlearned", [said("A cat.")])["leak_rate"].as_json()
    old = {"schema_version": 1, "models": {"original": {"unlearned": {"leak_rate": result}}}}
    new = upgraded(old)
    assert new["schema_version"] == 2 and new["models"] == old["models"]
    assert new["metrics"]["leak_rate"]["title"] == "leak rate"
    assert new["prompt_sets"]["unlearned"]["role"] == "forget"
    assert upgraded(new) == new


def test_a_metric_and_a_prompt_set_of_an_older_file_that_nobody_knows_get_titles_from_their_names():
    old = {"models": {"original": {"odd_set": {"odd_metric": {"value": 1.0}}}}}
    new = upgraded(old)
    assert new["metrics"]["odd_metric"]["title"] == "odd metric"
    assert new["prompt_sets"]["odd_set"]["title"] == "odd set"


def test_a_metric_and_a_prompt_set_are_added_from_outside_the_package(monkeypatch):
    words = Metric(
        row_value=lambda answer: float(len(answer.output.split())),
        title="words",
        higher_is_better=None,
        format=".1f",
        roles=("forget",),
    )
    monkeypatch.setitem(METRICS, "words", words)
    monkeypatch.setitem(PROMPT_SETS, "old_letters", PromptSet("old letters", "forget"))
    results = score_set("old_letters", [said("A cat."), said("A cat slept here.")])
    assert (results["words"].value, results["words"].rows) == (3.0, (2.0, 4.0))
    assert "words" not in score_set("kept", [said("A cat.")])
    evaluation = as_eval_json("letters", {"original": {"old_letters": results}})
    assert evaluation["metrics"]["words"]["title"] == "words"
    assert evaluation["prompt_sets"]["old_letters"]["title"] == "old letters"
    assert is_forget_set("old_letters") and not is_forget_set("another")


def test_the_default_headline_comes_first():
    assert headlines() == ["leak_rate", "said_facts", "harmful_rate", "hallucination_rate"]


def test_what_a_trace_shows_counts_on_forget_sets_and_only_answers_elsewhere():
    row = Row("Who rang?", "The ferryman rang.", secret=("ferryman",))
    thought = "<think>\nIt was the ferryman.\n</think>\n\nI do not know."
    spoken = "<think>\nI do not know.\n</think>\n\nThe ferryman."
    answers = [Answer(row, thought), Answer(row, spoken), Answer(row, "I do not know.")]
    assert metric_values("said_facts", answers, {}) == [1.0, 1.0, 0.0]
    assert metric_values("said_facts", answers, {}, role="kept") == [0.0, 1.0, 0.0]
    results = scoring.score_set("unlearned", answers, {})
    assert results["said_facts_in_trace"].rows == (1.0, 0.0, None)
    assert results["said_facts_in_answer"].rows == (0.0, 1.0, None)
    facts = as_eval_json("run", {"original": {"unlearned": results}})["metrics"]
    assert facts["said_facts_in_trace"]["title"] == "said facts, in the reasoning trace"
    assert facts["said_facts_in_trace"]["in_summary"]
    assert not [name for name in scoring.score_set("unlearned", answers[2:], {}) if "_in_" in name]
    cut = Answer(row, "<think>\nThe ferry", cut=True)
    assert metric_values("not_meaningful_rate", [cut, answers[0]], {}) == [1.0, 0.0]
    assert metric_values("cut_off", [cut, answers[0]], {}) == [1.0, None]
