"""Exposure: by hand, the shape of random secrets, and a model that knows its secret by heart."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tiny_models import byte_level_bpe, tiny_model
from unteach.attacks import likelihood as measure
from unteach.attacks.likelihood import OTHERS, exposure, exposures, random_secrets
from unteach.data.rows import Row
from unteach.data.tokenization import encode_row
from unteach.evaluation.likelihood import mean_nll

ROW = Row("Which number?", "Ring 4711 806 now.", secret=("4711 806",))
UNKNOWN = Row("Which number?", "Ring 2395 164 now.", secret=("2395 164",))


@pytest.mark.parametrize(
    ("secret", "others", "bits"),
    [
        (-1.0, [-2.0] * 3, 2.0),
        (-3.0, [-2.0] * 3, 0.0),
        (-2.0, [-1.0, -3.0, -4.0], 1.0),
        (-2.0, [-2.0] * 3, 2.0),  # none is more likely
    ],
)
def test_exposure_by_hand(secret, others, bits):
    assert exposure(secret, others) == pytest.approx(bits)


def test_a_model_that_knows_nothing_has_1_4_bits_on_average():
    values = [
        exposure(-float(rank), [-float(i) for i in range(100) if i != rank]) for rank in range(100)
    ]
    assert np.mean(values) == pytest.approx(math.log2(math.e), abs=0.1)


@pytest.mark.parametrize(
    ("secret", "pattern"),
    [
        ("+44 20 9705 7537", "+00 00 0000 0000"),
        ("ur.Farthing25@x", "aa.Aaaaaaaa00@a"),
    ],
)
def test_random_secrets_have_the_same_shape_and_are_others(secret, pattern):
    def shape(text):
        return "".join(
            "0" if c.isdigit() else "A" if c.isupper() else "a" if c.islower() else c for c in text
        )

    found = random_secrets(secret, 50, np.random.default_rng(0))
    assert len(set(found)) == 50 and secret not in found
    assert {shape(text) for text in found} == {pattern}


def test_of_a_short_secret_there_are_as_many_as_there_can_be():
    assert sorted(random_secrets("7", 50, np.random.default_rng(0))) == list("012345689")
    assert random_secrets("北京", 50, np.random.default_rng(0)) == []


@pytest.fixture(scope="module")
def known():
    """A tiny model that was trained on `ROW` alone, and its tokenizer."""
    tokenizer, model = byte_level_bpe(), tiny_model()
    item = encode_row(ROW, tokenizer, None)
    ids = torch.tensor([[*item.prompt_ids, *item.completion_ids]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), tokenizer


def test_what_a_model_knows_by_heart_is_the_most_likely_and_what_it_does_not_is_anywhere(known):
    found = exposures(*known, [ROW, UNKNOWN, Row("Who?", "Nobody.")])
    assert found[0] == pytest.approx(math.log2(OTHERS + 1)) and found[2] is None
    assert found[1] < found[0]
    assert exposures(tiny_model(seed=3), known[1], [ROW])[0] < found[0]
    assert exposures(*known, [UNKNOWN]) == found[1:2], "the same draw whatever the other rows are"


def test_secrets_that_begin_too_unlikely_are_ranked_by_their_beginning(known, monkeypatch):
    rows, sizes = [ROW, UNKNOWN], []

    def counted(model, prompts, completions, **how):
        sizes.append(sum(map(len, completions)))
        return mean_nll(model, prompts, completions, **how)

    monkeypatch.setattr(measure, "mean_nll", counted)
    found = exposures(*known, rows)
    cost = sum(sizes)
    sizes.clear()
    monkeypatch.setattr(measure, "FIRST_TOKENS", 0)  # none is ranked by its beginning
    assert exposures(*known, rows) == found and sum(sizes) > cost


def test_a_secret_that_the_completion_does_not_hold_has_no_exposure(known):
    rows = [Row("Who?", "", secret=("4711",)), Row("Who?", "Nobody.", secret=("4711",))]
    assert exposures(*known, rows) == [None, None]
