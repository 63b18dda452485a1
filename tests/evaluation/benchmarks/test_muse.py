"""MUSE: its numbers by hand, and its protocol."""

from __future__ import annotations

import math

import pytest

from tiny_models import tiny_model
from unteach.data.rows import Row
from unteach.errors import UserError
from unteach.evaluation.benchmarks.benchmark import EvaluatedModel
from unteach.evaluation.benchmarks.muse import BENCHMARK, overlaps, privleak, question_rows
from unteach.evaluation.generation import TransformersGenerator
from unteach.evaluation.membership import min_k, token_moments


def test_privleak_by_hand():
    assert privleak(0.5, 0.5) == 0.0
    assert privleak(0.0, 0.5) == -100.0, "still known by heart"
    assert privleak(1.0, 0.5) == 100.0, "pushed too far"
    assert privleak(0.6, 0.48) == pytest.approx(25.0)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ((1.1, 0.5), "auc is"),
        ((-0.1, 0.5), "auc is"),
        ((math.nan, 0.5), "auc is"),
        ((0.5, 0.0), "auc_retrain is"),
        ((0.5, math.nan), "auc_retrain"),
    ],
)
def test_values_that_no_auc_can_have_are_named(values, name):
    with pytest.raises(ValueError, match=name):
        privleak(*values)


def test_verbmem_is_f1_without_stemmer():
    """`walks` is not `walked` here; four of five words of the one, four of the other's five: F1 =
    0.8.
    """
    assert overlaps(["the cat walks by night"], ["the cat walked by night"]) == pytest.approx([0.8])
    assert overlaps(["one two three four"], ["two"]) == pytest.approx([2 / 5]), "rambling costs"
    assert overlaps(["", "Mr Brown"], ["Mr Brown", "Mr Brown"]) == [0.0, 1.0]


def test_an_empty_truth_and_sets_of_different_size_are_refused():
    with pytest.raises(ValueError, match="references has no words at row 1"):
        overlaps(["a", "b"], ["a", " "])
    with pytest.raises(ValueError, match="references has 1 texts"):
        overlaps(["a", "b"], ["a"])


def test_through_the_command_line(tmp_path, saved, write, evaluate):
    folder = tmp_path / "muse"
    write(
        folder / "verbmem" / "forget.jsonl",
        [{"prompt": "The miller kept", "gt": "a grey cat that slept."}] * 2,
    )
    for name in ("forget_qa", "retain_qa", "forget_qa_icl"):
        write(
            folder / "knowmem" / f"{name}.jsonl",
            [{"question": "Who rang the bell?", "answer": "The ferryman"}] * 2,
        )
    for name, text in (
        ("forget", "The miller kept a grey cat."),
        ("holdout", "Every morning she carried bread."),
    ):
        write(folder / "privleak" / f"{name}.jsonl", [{"text": f"{text} {i}"} for i in range(4)])
    options = [
        "--model",
        saved[0],
        "--reference",
        saved[1],
        "--retrained",
        saved[2],
        "--data",
        str(folder),
    ]
    evaluation, lines = evaluate("muse", *options)
    before, after = evaluation["models"]["original"], evaluation["models"]["unlearned"]
    assert list(after) == ["verbmem", "knowmem_forget", "knowmem_retain", "membership"]
    attacks = {
        f"auc_{name}" for name in ("loss", "zlib", "min_k", "min_k_plus_plus", "gradient_norm")
    }
    assert set(after["membership"]) == attacks | {"auc_reference", "privleak"} and set(
        before["membership"]
    ) == attacks | {"privleak"}
    assert (
        after["membership"]["privleak"]["higher_is_better"] is None
        and after["membership"]["auc_loss"]["n"] == 8
    )
    ours, theirs = (
        1 - evaluation["models"][name]["membership"]["auc_min_k"]["value"]
        for name in ("unlearned", "retrained")
    )
    assert after["membership"]["privleak"]["value"] == pytest.approx(100 * (ours - theirs) / theirs)
    assert {line["set"] for line in lines} == {
        "verbmem",
        "knowmem_forget",
        "knowmem_retain",
        "membership_forget",
        "membership_holdout",
    }


def test_forget_and_holdout_texts_are_needed_together(tmp_path, write):
    write(tmp_path / "privleak" / "forget.jsonl", [{"text": "a b c"}])
    with pytest.raises(UserError, match="one of them is not there"):
        BENCHMARK.load(str(tmp_path), None)


def test_example_questions_go_before_the_question():
    examples = [({"question": "Q1?", "answer": "A1"}, "x")]
    (row,) = question_rows([({"question": "Q2?", "answer": "A2"}, "x")], examples)
    assert (
        row.prompt == "Question: Q1?\nAnswer: A1\n\nQuestion: Q2?\nAnswer:" and row.kind == "text"
    )
    (row,) = question_rows([({"question": "Q2?", "answer": "A2"}, "x")], [])
    assert (row.prompt, row.kind) == ("Q2?", "chat")


def test_min_k_takes_the_share_of_tokens_of_the_paper(tokenizer):
    """40%, not the default of Min-K% (20%)."""
    model = tiny_model()
    text = "The miller kept a grey cat that slept on the flour sacks all day."
    subject = EvaluatedModel(model, tokenizer, TransformersGenerator(model, tokenizer))
    sets = {name: [({"text": text}, "x")] for name in ("membership_forget", "membership_holdout")}
    found = BENCHMARK.measure(subject, sets).sets["membership_forget"].columns["min_k"][0]
    ((logp, *_),) = token_moments(model, *subject.encoded([Row("", text, "text")]))
    assert found == pytest.approx(min_k(logp, 0.4), rel=1e-4)
    assert found != pytest.approx(min_k(logp), rel=1e-4)
