"""Similarity by encoder, regression checkpoint and BERTScore."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from test_judges import classifier  # noqa: F401

from unteach.errors import UserError
from unteach.evaluation import similarity
from unteach.evaluation.similarity import (
    bert_scores,
    load_error,
    pair_similarity,
    unrelated_bert_score,
)


@pytest.fixture(autouse=True)
def _fresh():
    for cache in (similarity._bert_scorer, similarity._regression, similarity._encoder):
        cache.cache_clear()


def test_a_regression_checkpoint_reads_reference_and_candidate_as_a_pair(classifier):  # noqa: F811
    folder = classifier(["score"])
    ones = pair_similarity(["a b", "c"], ["d", "e f g"], scorer=f"bleurt:{folder}")
    assert len(ones) == 2 and ones != pair_similarity(
        ["d", "e f g"], ["a b", "c"], scorer=f"bleurt:{folder}"
    )
    assert load_error(f"bleurt:{folder}") is None
    with pytest.raises(UserError, match="has 2 outputs, a regression has one"):
        pair_similarity(["a"], ["b"], scorer=f"bleurt:{classifier(['bad', 'good'])}")


def test_bertscore_is_asked_for_what_is_there_and_an_empty_answer_has_none(
    monkeypatch,
    classifier,  # noqa: F811
):
    made, asked = [], []

    class BERTScorer:
        def __init__(self, **settings):
            made.append(settings)

        def score(self, candidates, references):
            asked.append((candidates, references))
            return None, None, torch.tensor([0.5] * len(candidates))

    monkeypatch.setitem(sys.modules, "bert_score", types.SimpleNamespace(BERTScorer=BERTScorer))
    folder = classifier(["score"])
    assert bert_scores(["a", " ", "c"], ["x", "y", "z"], encoder=folder) == [0.5, 0.0, 0.5]
    assert asked == [(["a", "c"], ["x", "z"])] and bert_scores([], [], encoder=folder) == []
    assert made == [
        {
            "model_type": folder,
            "num_layers": 1,
            "device": "cpu",
            "idf": False,
            "rescale_with_baseline": False,
        }
    ]


def test_the_score_of_unrelated_texts_is_a_percentile_over_pairs(monkeypatch):
    monkeypatch.setattr(
        similarity,
        "bert_scores",
        lambda left, right, encoder: [
            abs(int(a) - int(b)) / 10 for a, b in zip(left, right, strict=True)
        ],
    )
    assert unrelated_bert_score(["1", "2", "4", "2"], percentile=100) == pytest.approx(0.3)
    assert unrelated_bert_score(["1", "2", "4"], percentile=0) == pytest.approx(0.1)
    assert unrelated_bert_score(["1", "1"]) == unrelated_bert_score([]) == 0.0


def test_what_cannot_be_had_is_one_sentence():
    for name in ("nobody/nothing", "bleurt:nobody/nothing"):
        assert "could not be loaded" in str(load_error(name))
    with pytest.raises(UserError, match="could not be loaded for BERTScore"):
        bert_scores(["a"], ["b"], encoder="nobody/nothing")


@pytest.mark.slow
@pytest.mark.real
def test_bertscore_with_the_packaged_encoder():
    """Equal meaning scores high, an unrelated text low."""
    high, low = bert_scores(
        ["The capital is Rome.", "I like cats"], ["Rome is the capital.", "The moon is grey."]
    )
    assert high > 0.9 and low < 0.2


def test_a_text_that_comes_again_is_embedded_once(monkeypatch):
    class Encoder:
        def encode(self, texts, **_):
            assert texts == ["a", "bb"]
            return [[float(len(text)), 0.5] for text in texts]

    monkeypatch.setattr(similarity, "_encoder", lambda name: Encoder())
    assert similarity.embeddings(["a", "bb", "a", "a"]).tolist() == [
        [1.0, 0.5],
        [2.0, 0.5],
        [1.0, 0.5],
        [1.0, 0.5],
    ]
