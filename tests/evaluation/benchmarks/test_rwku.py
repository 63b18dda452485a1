"""RWKU: its numbers by hand, where a known implementation goes wrong, and its protocol."""

from __future__ import annotations

import math
import random

import pytest

from unteach.cli import main
from unteach.errors import UserError
from unteach.evaluation.benchmarks.rwku import (
    BENCHMARK,
    PROBES,
    ngram_entropy,
    probe_prompt,
    probe_recall,
)


def test_recall_does_not_hang_on_the_case_of_letters():
    assert probe_recall(["STEPHEN KING"], ["Stephen King"]) == [1.0]


def test_recall_counts_words_as_often_as_they_stand_there_and_in_order():
    """Over sets `no` alone would have recall 1 against `no no no`, and any order would do."""
    assert probe_recall(["no"], ["no no no"]) == pytest.approx([1 / 3])
    assert probe_recall(["king stephen"], ["stephen king"]) == pytest.approx([1 / 2])


@pytest.mark.parametrize("bad", [None, RuntimeError("out of memory")])
def test_what_is_no_answer_never_counts_as_forgotten(bad):
    with pytest.raises(ValueError, match=r"answers holds .* at row 1"):
        probe_recall(["a", bad], ["a", "b"])


def test_an_empty_truth_and_sets_of_different_size_are_refused():
    with pytest.raises(ValueError, match="right_answers has no words at row 0"):
        probe_recall(["a"], [""])
    with pytest.raises(ValueError, match="right_answers has 2 texts"):
        probe_recall(["a"], ["a", "b"])


def test_an_empty_answer_has_recall_0():
    assert probe_recall([""], ["Stephen King"]) == [0.0]


def test_entropy_by_hand():
    """`a b c`: one trigram, two bigrams: (2/3 * 1 + 4/3 * 0) / 2 bits. One word again and again: no
    entropy.
    """
    assert ngram_entropy("a b c") == pytest.approx(1 / 3)
    assert ngram_entropy("no no no no no") == 0.0
    assert ngram_entropy("a b a b a b") == pytest.approx(
        (2 / 3 * -(0.6 * math.log2(0.6) + 0.4 * math.log2(0.4)) + 4 / 3 * 1.0) / 2
    )
    assert ngram_entropy("two words") is None and ngram_entropy("") is None


def test_random_words_score_highest_so_entropy_is_never_used_alone():
    sentence = (
        "The miller kept a grey cat that slept on the flour sacks, and the cat slept on the sacks"
        " all day."
    )
    draw = random.Random(0)
    noise = " ".join("".join(draw.choices("bcdfghjklm", k=6)) for _ in sentence.split())
    assert ngram_entropy(noise + " x y z") > ngram_entropy(sentence)
    assert "Never to be used alone" in (ngram_entropy.__doc__ or "")


def test_every_probe_holds_its_query():
    assert all("Who? {___}" in probe_prompt(kind, "Who? {___}") for kind in PROBES)
    assert probe_prompt("adversarial", "Sure, here is:") == "Sure, here is:"


def test_through_the_command_line(tmp_path, saved, write, evaluate):
    folder = tmp_path / "rwku"
    for name in ("forget_level1", "forget_level2", "forget_level3", "neighbor_level1"):
        write(
            folder / f"{name}.jsonl",
            [{"query": "Who rang ___?", "answer": "The ferryman", "type": "x"}] * 2,
        )
    write(folder / "utility_fluency.jsonl", [{"instruction": "Tell me about the moon."}])
    evaluation, _ = evaluate(
        "rwku", "--model", saved[0], "--reference", saved[1], "--data", str(folder)
    )
    found = evaluation["models"]["unlearned"]
    assert list(found) == [
        "fill_in_blank",
        "question_answer",
        "adversarial",
        "neighbor_fill_in_blank",
        "fluency",
    ]
    assert found["fill_in_blank"]["rouge_l_recall"]["higher_is_better"] is False
    assert found["neighbor_fill_in_blank"]["rouge_l_recall"]["higher_is_better"] is True
    metrics = {"ngram_entropy", "fluency", "not_meaningful_rate", "cut_off"}
    assert metrics == set(found["fluency"]), "entropy never stands alone"


def test_generation_that_fails_ends_the_evaluation_instead_of_counting_as_forgotten(
    tmp_path, saved, write, monkeypatch
):
    write(tmp_path / "rwku" / "forget_level1.jsonl", [{"query": "Who?", "answer": "The ferryman"}])

    def fails(*_, **__):
        raise RuntimeError("the device is gone")

    monkeypatch.setattr("unteach.evaluation.generation.generate_ids", fails)
    with pytest.raises(RuntimeError, match="the device is gone"):
        main(
            [
                "eval",
                "--benchmark",
                "rwku",
                "--model",
                saved[0],
                "--data",
                str(tmp_path / "rwku"),
                "--out",
                str(tmp_path / "out"),
            ]
        )
    assert not (tmp_path / "out" / "eval.json").exists()


def test_data_without_probes_of_what_is_forgotten_is_refused(tmp_path, write):
    write(tmp_path / "neighbor_level1.jsonl", [{"query": "Who?", "answer": "The ferryman"}])
    with pytest.raises(UserError, match="RWKU needs at least one of forget_level1"):
        BENCHMARK.load(str(tmp_path), None)
