"""Judges: trained on labelled answers, or a text-classification model."""

from __future__ import annotations

import numpy as np
import pytest

from unteach.errors import UserError
from unteach.evaluation import judges
from unteach.evaluation.judges import (
    ClassifierJudge,
    LabelledAnswer,
    TrainedJudge,
    harmful_columns,
    load_judge,
    logistic_regression,
)


def bag_of_words(texts, encoder=None):
    """Stands in for a sentence encoder: counts of hashed words, length 1."""
    vectors = np.zeros((len(texts), 64))
    for row, text in enumerate(texts):
        for word in text.lower().split():
            vectors[row, sum(map(ord, word)) % 64] += 1
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


@pytest.fixture
def labelled(monkeypatch):
    monkeypatch.setattr(judges, "embeddings", bag_of_words)
    rude = [
        LabelledAnswer(f"May I number {i}?", f"Nobody cares, you fool, about {i}.", True)
        for i in range(20)
    ]
    kind = [
        LabelledAnswer(f"May I number {i}?", f"Please take your time with {i}.", False)
        for i in range(20)
    ]
    return [*rude, *kind]


def test_a_trained_judge_tells_the_kinds_apart_and_states_its_accuracy(labelled):
    judge = load_judge("trained", labelled)
    assert (
        isinstance(judge, TrainedJudge)
        and judge.held_out_n == 40
        and judge.held_out_accuracy > 0.95
    )
    assert judge.flags(
        ["May I?", "May I?"], ["Nobody cares, you fool.", "Please take your time."]
    ) == [True, False]
    assert "40 labelled answers" in judge.name and judge.flags([], []) == []


def test_the_accuracy_is_held_out_and_prompts_are_never_divided(monkeypatch):
    """Labels that nothing but the prompt's own noise explains: seen answers would be 100%, held-out
    ones are chance.
    """
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 200))
    labels = [bool(i % 2) for i in range(60)]
    classifier, accuracy = logistic_regression(features, labels, [f"p{i // 2}" for i in range(60)])
    assert classifier.score(features, labels) == 1.0 and accuracy < 0.75
    twins = np.repeat(rng.normal(size=(30, 200)), 2, axis=0)
    same = [bool(i // 2 % 2) for i in range(60)]
    assert logistic_regression(twins, same, [f"p{i // 2}" for i in range(60)])[1] < 0.75, (
        "a twin on the other side gives 1.0"
    )


@pytest.mark.parametrize("nothing", ["", "   ", "!!!!!!!!"])
def test_an_answer_that_means_nothing_is_not_flagged(labelled, nothing):
    judge = TrainedJudge(labelled)
    judge.scores = lambda prompts, answers: [1.0] * len(answers)
    assert judge.flags(["May I?", "May I?"], [nothing, "Fool."]) == [False, True]


def test_too_few_labelled_answers_are_counted(labelled):
    with pytest.raises(
        UserError, match=r"10 labelled answers of each kind, there are 5 bad and 20 good"
    ):
        TrainedJudge(labelled[15:])


@pytest.mark.parametrize(
    ("labels", "label", "columns"),
    [
        ({0: "safe", 1: "unsafe"}, None, [1]),
        ({0: "toxic", 1: "non-toxic"}, None, [0]),
        ({0: "toxic"}, None, [0]),
        ({0: "insult", 1: "threat", 2: "neutral"}, None, [0, 1]),
        ({0: "insult", 1: "threat", 2: "obscene"}, None, [0, 1, 2]),
        ({0: "LABEL_0", 1: "LABEL_1"}, "label_1", [1]),
    ],
)
def test_which_outputs_mean_harmful(labels, label, columns):
    assert harmful_columns(labels, label, "m") == columns


@pytest.mark.parametrize(
    ("labels", "label", "sentence"),
    [
        ({0: "LABEL_0", 1: "LABEL_1"}, None, "say which means harmful: judge=m#LABEL"),
        ({0: "yes", 1: "no"}, None, "has the labels yes, no"),
        ({0: "safe", 1: "unsafe"}, "toxic", "no label 'toxic'; it has safe, unsafe"),
    ],
)
def test_labels_that_do_not_say_it_are_asked_for(labels, label, sentence):
    with pytest.raises(UserError, match=sentence):
        harmful_columns(labels, label, "m")


@pytest.fixture
def classifier(tmp_path, tokenizer):
    """A tiny BERT with labels, saved as a folder."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    def save(labels, problem=None):
        torch.manual_seed(0)
        names = {
            "id2label": dict(enumerate(labels)),
            "label2id": {text: i for i, text in enumerate(labels)},
        }
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = BertConfig(
            vocab_size=len(tokenizer), intermediate_size=16, problem_type=problem, **sizes, **names
        )
        folder = tmp_path / "-".join(labels)
        BertForSequenceClassification(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return save


def test_a_classifier_is_asked_in_batches_as_it_would_be_one_by_one(classifier):
    judge = load_judge(classifier(["safe", "unsafe"]), [])
    assert isinstance(judge, ClassifierJudge) and judge.held_out_accuracy is None
    prompts, answers = [f"Who is {i}?" for i in range(20)], ["word " * (i + 1) for i in range(20)]
    alone = [
        judge.scores([prompt], [answer])[0] for prompt, answer in zip(prompts, answers, strict=True)
    ]
    assert judge.scores(prompts, answers) == pytest.approx(alone, abs=1e-5) and all(
        0 < score < 1 for score in alone
    )


def test_independent_labels_are_harmful_when_any_is(classifier):
    judge = ClassifierJudge(
        classifier(["insult", "threat", "neutral"], "multi_label_classification")
    )
    insult, threat = (
        ClassifierJudge(judge.name, label=label).scores(["a"], ["b"])[0]
        for label in ("insult", "threat")
    )
    assert judge.scores(["a"], ["b"])[0] == pytest.approx(max(insult, threat))


def test_an_unknown_judge_is_named():
    with pytest.raises(UserError, match="model 'nobody/nothing' could not be loaded"):
        load_judge("nobody/nothing", [])


def test_a_long_prompt_loses_its_beginning_and_the_answer_stays_whole(tokenizer):
    from unteach.evaluation.judges import shortened

    prompt, answer = (
        "Every morning she carried bread to the harbour. " * 20 + "Who rang the bell?",
        "The ferryman rang it twice.",
    )
    length = len(tokenizer(answer, add_special_tokens=False)["input_ids"])
    left = shortened(tokenizer, prompt, answer, room=length + 24, around=4)
    assert (
        prompt.endswith(left.strip())
        and 0 < len(tokenizer(left, add_special_tokens=False)["input_ids"]) <= 22
    )
    assert shortened(tokenizer, "Who?", answer, room=500) == "Who?"
    assert shortened(tokenizer, prompt, answer, room=length) == ""
