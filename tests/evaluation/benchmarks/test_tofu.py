"""TOFU: its numbers by hand, where a known implementation goes wrong, and its protocol."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.stats import ks_2samp

from tiny_models import tiny_model
from unteach.data.rows import Row
from unteach.data.tokenization import encode_row, end_of_turn_id
from unteach.errors import UserError
from unteach.evaluation.benchmarks import tofu
from unteach.evaluation.benchmarks.benchmark import EvaluatedModel
from unteach.evaluation.generation import TransformersGenerator
from unteach.evaluation.likelihood import mean_nll


def test_the_truth_ratio_by_hand():
    """p(paraphrased) = e^-2; geometric mean of e^-1 and e^-3 is e^-2: R = 1. In the second row R =
    e^(1 - 3) = e^-2.
    """
    assert tofu.truth_ratio([2.0, 1.0], [[1.0, 3.0], [2.0, 4.0]]) == pytest.approx(
        [1.0, math.exp(-2)]
    )


def test_the_truth_ratio_is_that_of_probabilities():
    draw = np.random.default_rng(0)
    paraphrased, perturbed = draw.uniform(0.1, 3, 7), draw.uniform(0.1, 3, (7, 5))
    naive = np.prod(np.exp(-perturbed), axis=1) ** (1 / 5) / np.exp(-paraphrased)
    assert tofu.truth_ratio(paraphrased, perturbed) == pytest.approx(naive, rel=1e-12)


def test_the_truth_ratio_of_a_collapsed_model_is_exact():
    """At a loss of 25 everywhere R is 1; 1e-10 added to both probabilities outside log space made
    it 0.122.
    """
    assert tofu.truth_ratio([25.0], [[25.0] * 5]).tolist() == [1.0]
    assert tofu.truth_ratio([900.0], [[901.0]]) == pytest.approx([math.exp(-1)], rel=1e-12)
    assert tofu.truth_ratio([2000.0], [[1.0]]).tolist() == [math.inf] and tofu.truth_ratio(
        [1.0], [[2000.0]]
    ).tolist() == [0.0]


def test_the_scores_by_hand():
    r = [0.5, 2.0, 1.0, 4.0]
    assert tofu.forget_truth_scores(r).mean() == pytest.approx((0.5 + 0.5 + 1 + 0.25) / 4)
    assert tofu.kept_truth_scores(r).mean() == pytest.approx(0.5 / 4)
    assert tofu.forget_truth_scores([0.0, math.inf]).tolist() == [0.0, 0.0]
    assert tofu.kept_truth_scores([0.0, math.inf]).tolist() == [1.0, 0.0]


def test_probability_is_the_mean_of_exp_not_exp_of_the_mean():
    found = tofu.answer_probabilities([0.0, math.log(4)])
    assert (
        found == pytest.approx([1.0, 0.25])
        and found.mean() == pytest.approx(0.625)
        and found.mean() != pytest.approx(0.5)
    )


def test_the_choice_probability_by_hand_and_at_losses_where_every_probability_is_0():
    """p = 1/2 against three of 1/8: 1/2 / (1/2 + 3/8) = 4/7; adding 1,000 nats changes nothing."""
    right, wrong = np.array([math.log(2)]), np.full((1, 3), math.log(8))
    assert tofu.choice_probabilities(right, wrong) == pytest.approx([4 / 7], rel=1e-12)
    assert tofu.choice_probabilities(right + 1000, wrong + 1000) == pytest.approx([4 / 7], rel=1e-9)
    assert tofu.choice_probabilities([3000.0], [[0.0]]).tolist() == [
        0.0
    ] and tofu.choice_probabilities([0.0], [[3000.0]]).tolist() == [1.0]


def test_model_utility_is_the_harmonic_mean_and_0_with_any_0():
    assert tofu.model_utility([1.0, 0.5]) == pytest.approx(2 / 3)
    assert tofu.model_utility({"a": 0.2, "b": 0.4, "c": 0.8}) == pytest.approx(3 / (5 + 2.5 + 1.25))
    assert tofu.model_utility([0.9, 0.0, 0.9]) == 0.0
    assert tofu.model_utility([5e-324, 1.0]) >= 0.0
    assert tofu.model_utility(value for value in (0.5, 0.5)) == 0.5


def test_forget_quality_is_the_exact_test():
    draw = np.random.default_rng(0)
    left, right = draw.uniform(0, 1, 40), draw.uniform(0.2, 1.2, 40)
    found, wanted = tofu.forget_quality(left, right), ks_2samp(left, right, method="exact")
    assert (found.statistic, found.pvalue, found.n) == (wanted.statistic, wanted.pvalue, 40)
    assert tofu.forget_quality(left, left).pvalue == 1.0


def test_forget_quality_by_hand():
    """Three against three, all of one below all of the other: D = 1, and 2 of the C(6, 3) = 20
    orders are that far apart.
    """
    found = tofu.forget_quality([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    assert (found.statistic, found.pvalue) == (1.0, pytest.approx(2 / 20))


def test_forget_quality_pairs_questions_by_key_in_any_order():
    left = {"a": 0.1, "b": 0.5, "c": 0.9}
    assert tofu.forget_quality(left, {"c": 0.2, "a": 0.3, "b": 0.4}) == tofu.forget_quality(
        [0.1, 0.5, 0.9], [0.3, 0.4, 0.2]
    )


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ({"a": 1.0}, {"b": 1.0}),
        ({"a": 1.0, "b": 2.0}, {"a": 1.0}),
        ({"a": 1.0}, {"a": 1.0, "b": 2.0}),
        ({"a": 1.0}, [1.0]),
        ([1.0, 2.0], [1.0]),
    ],
)
def test_forget_quality_refuses_sets_that_are_not_the_same_questions(left, right):
    with pytest.raises(ValueError, match="r_retrained"):
        tofu.forget_quality(left, right)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: tofu.truth_ratio([], [[1.0]]), "paraphrased_nll"),
        (lambda: tofu.truth_ratio([math.nan], [[1.0]]), "paraphrased_nll"),
        (lambda: tofu.truth_ratio([1.0], [[math.nan]]), "perturbed_nll"),
        (lambda: tofu.truth_ratio([1.0], [[]]), "perturbed_nll"),
        (lambda: tofu.truth_ratio([1.0], [1.0]), "perturbed_nll"),
        (lambda: tofu.truth_ratio([1.0, 2.0], [[1.0]]), "perturbed_nll has 1 rows"),
        (lambda: tofu.truth_ratio([1.0, 2.0], [[1.0], [1.0, 2.0]]), "perturbed_nll"),
        (lambda: tofu.truth_ratio([math.inf], [[math.inf]]), "infinite at row 0"),
        (lambda: tofu.forget_truth_scores([-1.0]), "r is negative"),
        (lambda: tofu.kept_truth_scores([]), "r has shape"),
        (lambda: tofu.answer_probabilities(["x"]), "nll"),
        (lambda: tofu.choice_probabilities([1.0], [[math.inf]]), "wrong_nll"),
        (lambda: tofu.choice_probabilities([1.0, 1.0], [[1.0]]), "wrong_nll"),
        (lambda: tofu.model_utility([]), "scores"),
        (lambda: tofu.model_utility([math.nan]), "scores"),
        (lambda: tofu.model_utility({"a": -0.1}), "scores"),
        (lambda: tofu.forget_quality([math.nan], [1.0]), "r_unlearned"),
        (lambda: tofu.forget_quality([1.0], []), "r_retrained"),
    ],
)
def test_empty_nan_and_ill_fitting_inputs_are_named(call, name):
    with pytest.raises(ValueError, match=name):
        call()


@pytest.fixture
def tofu_data(tmp_path, write):
    folder = tmp_path / "tofu"
    for name, wrong in (
        ("forget10_perturbed", 5),
        ("retain_perturbed", 5),
        ("real_authors_perturbed", 3),
        ("world_facts_perturbed", 3),
    ):
        rows = [
            {
                "question": f"Who rang bell {i}?",
                "answer": f"The ferryman rang it {i} times.",
                "perturbed_answer": [f"Cat {j}" for j in range(wrong)],
            }
            for i in range(4)
        ]
        if wrong == 5:
            rows = [
                row | {"paraphrased_answer": f"It was rung by the ferryman, {i}."}
                for i, row in enumerate(rows)
            ]
        write(folder / f"{name}.jsonl", rows)
    return folder


def test_through_the_command_line(tmp_path, saved, tofu_data, evaluate, monkeypatch, capsys):
    monkeypatch.setattr(tofu, "ANSWER_TOKENS", 6)
    options = [
        "--model",
        saved[0],
        "--reference",
        saved[1],
        "--retrained",
        saved[2],
        "--data",
        str(tofu_data),
        "--limit",
        "3",
    ]
    evaluation, lines = evaluate("tofu", *options)
    assert (
        list(evaluation["models"]) == ["original", "unlearned", "retrained"]
        and evaluation["scenario"] == "tofu"
    )
    found = evaluation["models"]["unlearned"]
    assert (
        list(found) == ["forget", "retain", "real_authors", "world_facts", "all"]
        and found["forget"]["probability"]["n"] == 3
    )
    assert [found[name]["probability"]["higher_is_better"] for name in ("forget", "retain")] == [
        False,
        True,
    ]
    assert (
        0 < found["all"]["forget_quality"]["value"] <= 1
        and "forget_quality" not in evaluation["models"]["retrained"]["all"]
    )
    scores = [
        found[name][metric]["value"]
        for name in tofu.UTILITY_SETS
        for metric in tofu.UTILITY_METRICS
    ]
    wanted = 0.0 if min(scores) == 0 else len(scores) / sum(1 / score for score in scores)
    assert found["all"]["model_utility"]["value"] == pytest.approx(wanted)
    assert len(lines) == 3 * 4 * 3 and set(lines[0]) == {"model", "set", "key", "metrics"}
    assert "ferryman" not in (tmp_path / "out" / "generations.jsonl").read_text()
    assert (
        "forget quality" in capsys.readouterr().out
        and "model utility" in (tmp_path / "out" / "benchmark.md").read_text()
    )


def test_texts_are_written_on_request_and_without_a_reference_there_is_one_column(
    tmp_path, saved, tofu_data, evaluate, monkeypatch, capsys
):
    monkeypatch.setattr(tofu, "ANSWER_TOKENS", 3)
    evaluation, lines = evaluate(
        "tofu",
        "--model",
        saved[0],
        "--data",
        str(tofu_data),
        "--limit",
        "1",
        "--show-text",
    )
    missing = "Missing: forget quality (p) and "
    assert missing in " ".join(capsys.readouterr().out.split())
    assert missing in (tmp_path / "out" / "benchmark.md").read_text()
    assert evaluation["notes"][0].startswith(missing)
    assert evaluation["models"]["original"] == evaluation["models"]["unlearned"]
    assert "ferryman" in lines[0]["expected"] and "output" in lines[0]
    assert "original" not in (tmp_path / "out" / "benchmark.md").read_text()


def test_the_truth_ratio_is_that_of_each_answer_evaluated_alone(tofu_data, tokenizer, monkeypatch):
    """Paraphrase against perturbed answers on the forget set; the answer itself against the wrong
    ones on world facts.
    """
    monkeypatch.setattr(tofu, "ANSWER_TOKENS", 2)
    model = tiny_model()
    sets = tofu.load(str(tofu_data), 2)
    found = tofu.measure(
        EvaluatedModel(model, tokenizer, TransformersGenerator(model, tokenizer)), sets
    )

    def alone(question, text):
        item = encode_row(Row(question.row.prompt, text), tokenizer, end_of_turn_id(tokenizer))
        return mean_nll(model, [item.prompt_ids], [item.completion_ids])[0]

    for name in ("forget", "world_facts"):
        columns = found.sets[name].columns
        for place, question in enumerate(sets[name]):
            right = alone(
                question, question.row.completion if name == "world_facts" else question.paraphrased
            )
            wanted = tofu.truth_ratio(
                [right], [[alone(question, text) for text in question.perturbed]]
            )[0]
            assert columns["truth_ratio"][place] == pytest.approx(wanted, rel=1e-3)
            wanted = math.exp(-alone(question, question.row.completion))
            if name == "forget":
                assert columns["probability"][place] == pytest.approx(wanted, rel=1e-3)


def test_rows_that_could_not_be_compared_are_refused(tofu_data, write):
    rows = [
        json.loads(line) for line in (tofu_data / "retain_perturbed.jsonl").read_text().splitlines()
    ]
    write(tofu_data / "retain_perturbed.jsonl", [*rows, rows[0]])
    with pytest.raises(UserError, match="a question of the set 'retain' is there twice"):
        tofu.load(str(tofu_data))
    write(
        tofu_data / "retain_perturbed.jsonl", [*rows[:1], rows[1] | {"perturbed_answer": ["one"]}]
    )
    with pytest.raises(
        UserError, match="line 2: column 'perturbed_answer' has 1 answers, the rows before have 5"
    ):
        tofu.load(str(tofu_data))
    write(
        tofu_data / "retain_perturbed.jsonl",
        [rows[0] | {"perturbed_answer": ["a", "", "b", "c", "d"]}],
    )
    with pytest.raises(UserError, match="must be a list of answers that are not empty"):
        tofu.load(str(tofu_data))
