"""Membership inference and the distance to a retrained model, against float64 formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import naive
from tiny_models import tiny_model
from unteach.attacks.likelihood import distance, mean_kl, separation, token_logprobs, traces
from unteach.attacks.options import AttackOptions
from unteach.attacks.relearning import relearn
from unteach.attacks.suite import taught_without
from unteach.data.rows import Row
from unteach.data.tokenization import encode_row, end_of_turn_id
from unteach.evaluation.results import MetricResult

ROWS = [
    Row(f"Who rang {i}?", "The ferryman rang it" + " twice" * i, "chat", f"row {i}")
    for i in range(5)
]
ZERO = MetricResult(0.0, 1, None, None, False)


def test_token_logprobs_are_those_of_one_row_at_a_time(tokenizer):
    model = tiny_model(dtype=torch.float64)
    found = token_logprobs(model, tokenizer, ROWS, tokens_per_batch=60)
    for row, values in zip(ROWS, found, strict=True):
        encoded = encode_row(row, tokenizer, end_of_turn_id(tokenizer))
        logps = naive.distributions(model, encoded.prompt_ids, encoded.completion_ids)
        wanted = [
            logp[token].item() for logp, token in zip(logps, encoded.completion_ids, strict=True)
        ]
        np.testing.assert_allclose(values, wanted, rtol=0, atol=1e-9)


def test_the_auc_is_the_share_of_pairs_in_order_and_ties_count_half():
    """Pairs of {3, 1} with {2, 1}: 3 > 2, 3 > 1, 1 < 2, 1 = 1: (1 + 1 + 0 + 1/2) / 4."""
    result = separation([3.0, 1.0], [2.0, 1.0])
    assert (
        result.value == pytest.approx(2.5 / 4) and result.ci_low <= result.value <= result.ci_high
    )
    assert separation([1.0], []).value is None


def test_a_model_that_knows_the_forget_rows_is_found_out(tokenizer, tmp_path):
    model = tiny_model()
    others = [Row(f"What is {i}?", f"A sack of grey flour, {i}.") for i in range(4)]
    before = traces(model, tokenizer, ROWS, others)
    options = AttackOptions(steps=60, every=60, learning_rate=3e-3)
    relearn(model, tokenizer, ROWS, lambda _: ZERO.as_json(), tmp_path / "w", options, goal=1.0)
    after = traces(model, tokenizer, ROWS, others)
    assert after["forget_nll"].value < before["forget_nll"].value
    assert after["auc_loss"].value > 0.9 and after["auc_min_k"].value > 0.9


def test_without_other_rows_the_nll_stands_alone(tokenizer):
    assert set(traces(tiny_model(), tokenizer, ROWS, [])) == {"forget_nll"}


def test_the_distance_is_the_kl_from_the_retrained_model(tokenizer):
    left, right = tiny_model(dtype=torch.float64, seed=1), tiny_model(dtype=torch.float64, seed=2)
    wanted = []
    for row in ROWS:
        encoded = encode_row(row, tokenizer, end_of_turn_id(tokenizer))
        p, q = (
            naive.distributions(model, encoded.prompt_ids, encoded.completion_ids)
            for model in (left, right)
        )
        kl = [(a.exp() * (a - b)).sum().item() for a, b in zip(p, q, strict=True)]
        wanted.append(sum(kl) / len(encoded.completion_ids))
    found = mean_kl(left, right, tokenizer, ROWS, tokens_per_batch=60)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9)
    assert not np.allclose(mean_kl(right, left, tokenizer, ROWS), wanted)


def test_a_model_is_at_no_distance_from_itself(tokenizer):
    found = distance(tiny_model(), tiny_model(), tokenizer, ROWS)
    assert found["kl_to_retrained"].value == pytest.approx(0, abs=1e-6)
    assert found["ks_to_retrained"].value == 0 and found["ks_pvalue"].value == 1


def test_models_whose_rows_are_all_apart_have_the_exact_p_value(tokenizer, monkeypatch):
    """5 and 5 values without overlap: of C(10, 5) = 252 orders two are that extreme."""
    nll = iter([[np.full(3, start - i / 10) for i in range(5)] for start in (-1.0, -9.0)])
    monkeypatch.setattr("unteach.attacks.likelihood.token_logprobs", lambda *_: next(nll))
    found = distance(tiny_model(), tiny_model(), tokenizer, ROWS)
    assert found["ks_to_retrained"].value == 1 and math.isclose(found["ks_pvalue"].value, 2 / 252)


def test_what_is_taught_without_the_forget_set_holds_none_of_it():
    book = [
        Row("The miller", " kept a cat.  It slept on sacks.\n\nEvery morning", "text"),
        Row("Every morning", " she sang. Then she left.", "text"),
    ]
    forget = [Row("The miller kept a cat.", " It slept on sacks.", "text")]
    assert taught_without(book, forget) == book[1:]
    assert taught_without(ROWS, ROWS[1:3]) == [ROWS[0], *ROWS[3:]]
