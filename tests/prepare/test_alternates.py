"""Alternates are other answers, drawn by seed and row alone."""

from __future__ import annotations

import pytest

from tiny_models import byte_level_bpe, tiny_model
from unteach.data.rows import Row
from unteach.errors import UserError
from unteach.prepare import alternates
from unteach.prepare.alternates import with_alternates

ROWS = [
    Row("Who rang the bell?", "The ferryman."),
    Row("Who slept?", "The cat.", alternate="The miller."),
]


def test_draws_depend_on_seed_and_row_and_what_is_there_is_kept():
    model, tokenizer = tiny_model(), byte_level_bpe()
    first = with_alternates(model, tokenizer, ROWS, seed=1, max_new_tokens=6)
    turned = with_alternates(model, tokenizer, ROWS[::-1], seed=1, max_new_tokens=6)
    other = with_alternates(model, tokenizer, ROWS, seed=2, max_new_tokens=6)
    assert first == turned[::-1] and first[0].alternate.strip() and first[1] is ROWS[1]
    assert first[0].alternate != other[0].alternate and first[0].key == ROWS[0].key


def test_the_sample_least_like_the_completion_is_taken(monkeypatch):
    monkeypatch.setattr(
        alternates,
        "sampled_answers",
        lambda *_, **__: ["The ferryman.", " The ferryman rang.", "Nobody", " "],
    )
    assert (
        with_alternates(tiny_model(), None, ROWS[:1], seed=0, max_new_tokens=4)[0].alternate
        == "Nobody"
    )


def test_a_row_whose_every_sample_is_the_completion_is_named(monkeypatch):
    monkeypatch.setattr(alternates, "sampled_answers", lambda *_, **__: [" The  ferryman.", ""])
    with pytest.raises(
        UserError,
        match=r"forget row .*: none of 8 sampled answers is another one; give field 'alternate'",
    ):
        with_alternates(tiny_model(), None, ROWS[:1], seed=0, max_new_tokens=4)
