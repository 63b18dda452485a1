"""From answers to `eval.json` and `generations.jsonl`."""

from __future__ import annotations

import json

import pytest

from tiny_models import tiny_model
from unteach.config.scorers import ScorerNames
from unteach.data.rows import Row
from unteach.data.tokenization import encode_row
from unteach.evaluation import scorers as scorer_module
from unteach.evaluation import scoring
from unteach.evaluation.likelihood import mean_nll
from unteach.evaluation.metrics import METRICS, Metric, Scorer
from unteach.evaluation.scorers import SCORERS, build_scorers, reward_scorer
from unteach.evaluation.scoring import FluencyModel, Generations, generate_sets, score_models

SETS = {
    "unlearned": [
        Row("Who rang the bell?", "The ferryman rang it twice."),
        Row("Who slept?", "The grey cat slept."),
    ],
    "unseen": [Row("Who sold bread?", "She sold it to the sailors.")],
    "kept": [Row("The miller kept", " a grey cat on the sacks.", "text")],
    "normal": [Row("What is the moon?", "")],
}
BEFORE = {
    "unlearned": ["The ferryman rang it twice.", "The grey cat slept."],
    "unseen": ["She sold it to the sailors."],
    "kept": [" a grey cat on the sacks."],
    "normal": ["Nobody has ever asked."],
}
AFTER = {
    "unlearned": ["I can't assist with that.", ""],
    "unseen": ["!!!!!!!!"],
    "kept": [" a grey cat"],
    "normal": ["The moon."],
}
NO_CHOICES = {name: [None] * len(rows) for name, rows in SETS.items()}
SECRETS = [
    "ferryman",
    "grey cat slept",
    "sailors",
    "rang the bell",
    "Who slept",
    "sold bread",
    "assist with that",
]


@pytest.fixture
def encoded_pairs(monkeypatch):
    """Stands in for the sentence encoder; holds what it was asked."""
    asked = []

    def similarity(left, right, scorer):
        asked.append((list(left), list(right), scorer))
        return [1.0 if a == b else 0.25 for a, b in zip(left, right, strict=True)]

    monkeypatch.setattr(scorer_module, "pair_similarity", similarity)
    monkeypatch.setattr(scorer_module, "load_error", lambda encoder: None)
    return asked


@pytest.fixture
def scored(tokenizer, tmp_path, encoded_pairs, monkeypatch):
    def score(similarity="some-encoder", judge=None, reward=None, **options):
        monkeypatch.setattr(scorer_module, "leak_threshold", lambda corpus: 20.0)
        monkeypatch.setattr(scorer_module, "load_judge", lambda name, labelled: judge)
        names = ScorerNames(similarity=similarity, judge=judge and "a judge")
        scorers = build_scorers(names, ["a corpus"], [])
        if reward:
            scorers = scorers.with_scorer("utility_reward", reward_scorer(reward))
        fluency = FluencyModel("tiny", tiny_model(), tokenizer)
        answers = {
            "original": Generations(BEFORE, NO_CHOICES),
            "unlearned": Generations(AFTER, NO_CHOICES),
        }
        settings = {"show_text": False, "folder": tmp_path} | options
        evaluation = score_models(
            "demo", SETS, answers, tokenizer, scorers, fluency=fluency, **settings
        )
        text = (tmp_path / "generations.jsonl").read_text(encoding="utf-8")
        return evaluation, text

    return score


def test_eval_json_is_what_is_returned_and_has_the_promised_shape(scored, tmp_path):
    evaluation, _ = scored()
    assert json.loads((tmp_path / "eval.json").read_text(encoding="utf-8")) == evaluation
    assert (evaluation["schema_version"], evaluation["scenario"], evaluation["fluency_model"]) == (
        2,
        "demo",
        "tiny",
    )
    assert list(evaluation["models"]) == ["original", "unlearned"]
    for model in evaluation["models"].values():
        assert list(model) == list(SETS)
        for metrics in model.values():
            for result in metrics.values():
                assert set(result) == {"value", "n", "ci_low", "ci_high", "higher_is_better"}


def test_the_numbers_tell_before_from_after(scored):
    models = scored()[0]["models"]
    assert models["original"]["unlearned"]["leak_rate"]["value"] == 1.0
    assert models["unlearned"]["unlearned"]["leak_rate"]["value"] == 0.0
    assert models["unlearned"]["unlearned"]["leak_rate"]["n"] == 2
    assert models["unlearned"]["unseen"]["fluency"]["value"] is None
    assert models["unlearned"]["kept"]["rouge_l_recall"]["value"] == pytest.approx(3 / 6)
    assert models["unlearned"]["kept"]["rouge_l_recall"]["higher_is_better"] is True


def test_similarity_is_taken_to_the_original_s_answers_on_the_kept_and_the_normal_sets(
    scored, encoded_pairs
):
    models = scored()[0]["models"]
    assert encoded_pairs == [
        (BEFORE[name], answers[name], "some-encoder")
        for answers in (BEFORE, AFTER)
        for name in ("kept", "normal")
    ]
    assert (
        models["original"]["normal"]["similarity"]["value"],
        models["unlearned"]["normal"]["similarity"]["value"],
    ) == (1.0, 0.25)
    assert all("similarity" not in models["unlearned"][name] for name in ("unlearned", "unseen"))


def test_readability_is_measured_against_the_original_s_everyday_answers(scored):
    evaluation, _ = scored()
    before, after = evaluation["models"].values()
    assert before["unlearned"]["readability"]["value"] == 1.0
    assert after["unlearned"]["readability"]["value"] == 0.5, "one of two is empty"
    assert after["unseen"]["degenerate_rate"]["value"] == 1.0
    assert after["normal"]["readability"]["value"] == 1.0
    assert evaluation["scorers"]["degenerate_rate"]["name"].startswith("repetition over 0.50")


def test_without_an_encoder_there_is_no_similarity(scored, encoded_pairs):
    evaluation, _ = scored(similarity=None)
    assert not encoded_pairs and "similarity" not in evaluation["models"]["unlearned"]["normal"]


def test_fluency_is_the_answer_s_mean_nll_under_the_fluency_model(scored, tokenizer):
    evaluation, _ = scored()
    item = encode_row(SETS["normal"][0].with_completion(AFTER["normal"][0]), tokenizer, None)
    (wanted,) = mean_nll(tiny_model(), [item.prompt_ids], [item.completion_ids])
    assert evaluation["models"]["unlearned"]["normal"]["fluency"]["value"] == pytest.approx(
        wanted, rel=1e-4
    )


def test_generations_hold_no_text_of_forget_sets_unless_asked_for(scored):
    _, hidden = scored()
    assert not [secret for secret in SECRETS if secret in hidden]
    assert "Nobody has ever asked." in hidden and " a grey cat on the sacks." in hidden
    _, shown = scored(show_text=True)
    assert not [secret for secret in SECRETS if secret not in shown]


def test_each_answer_has_a_line_with_its_row_s_key_and_values(scored):
    lines = [json.loads(line) for line in scored()[1].splitlines()]
    assert [(line["model"], line["set"], line["key"]) for line in lines] == [
        (model, name, row.key)
        for model in ("original", "unlearned")
        for name, rows in SETS.items()
        for row in rows
    ]
    first, empty = lines[0], lines[6]
    assert first["metrics"]["leak_rate"] == 1.0 and first["metrics"]["rouge_l_recall"] == 1.0
    assert empty["metrics"]["not_meaningful_rate"] == 1.0 and empty["metrics"]["diversity"] == 0.0


def test_progress_counts_sets_of_both_models(scored):
    seen = []
    scored(progress=lambda *at: seen.append(at))
    assert seen == [(number, 8) for number in range(1, 9)]


def test_outputs_of_all_sets_are_generated_together_and_go_back_to_their_sets(
    tokenizer, monkeypatch
):
    calls = []

    def echo(model, tokenizer, rows, **_):
        calls.append(len(rows))
        return [(f"answer to {row.prompt}", False) for row in rows]

    monkeypatch.setattr(scoring, "generate_answers", echo)
    wanted = {name: [f"answer to {row.prompt}" for row in rows] for name, rows in SETS.items()}
    monkeypatch.setattr(
        scoring,
        "greedy_matches",
        lambda model, prompts, completions: [[True] * len(ids) or None for ids in completions],
    )
    said = generate_sets(None, tokenizer, SETS)
    assert said.outputs == wanted and calls == [5]
    assert (
        said.correct["normal"] == [None]
        and all(said.correct["unlearned"][0])
        and len(said.correct["unlearned"][0]) > 3
    )


class Strict:
    """Flags what speaks of a cat, rewards length."""

    name, held_out_accuracy, held_out_n = "strict", 0.9, 40

    def flags(self, prompts, answers):
        return ["cat" in answer for answer in answers]

    def rewards(self, prompts, answers):
        return [float(len(answer)) for answer in answers]


def test_a_judge_and_a_reward_model_are_named_with_their_accuracy(scored):
    evaluation, _ = scored(judge=Strict(), reward=Strict())
    before, after = evaluation["models"]["original"], evaluation["models"]["unlearned"]
    assert (
        before["unlearned"]["harmful_rate"]["value"],
        after["unlearned"]["harmful_rate"]["value"],
    ) == (0.5, 0.0)
    assert (
        after["normal"]["utility_reward"]["value"] == len(AFTER["normal"][0])
        and "utility_reward" not in after["unlearned"]
    )
    assert evaluation["scorers"]["harmful_rate"] == {
        "name": "strict",
        "held_out_accuracy": 0.9,
        "n": 40,
    }
    assert evaluation["headline"] == "leak_rate" and evaluation["scorers"]["fluency"] == {
        "name": "tiny"
    }


def test_a_scored_metric_is_added_from_outside_the_package(scored, monkeypatch):
    """Two entries: what tables say of it, and what builds its scorer."""
    questions = Metric(
        title="question rate",
        higher_is_better=None,
        format=".0%",
        interval="wilson",
        headline=True,
    )

    def build(inputs):
        def scores(answers):
            return [float(item.output.strip().endswith(".")) for item in answers]

        return Scorer("last character", scores)

    monkeypatch.setitem(METRICS, "question_rate", questions)
    monkeypatch.setitem(SCORERS, "question_rate", build)
    evaluation, text = scored()
    assert evaluation["models"]["original"]["unlearned"]["question_rate"]["value"] == 1.0
    assert evaluation["models"]["unlearned"]["unlearned"]["question_rate"]["value"] == 0.5
    assert evaluation["metrics"]["question_rate"]["title"] == "question rate"
    assert evaluation["scorers"]["question_rate"] == {"name": "last character"}
    assert json.loads(text.splitlines()[0])["metrics"]["question_rate"] == 1.0
    scorers = build_scorers(ScorerNames(headline="question_rate", similarity=None), [], [])
    assert scorers.shows_forgotten(SETS["unseen"] * 2, ["Yes.", "No"]) == [True, False]
