"""The order of training is a function of seed and position."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unteach.data.mismatch import MismatchPool
from unteach.data.stream import TrainingStream
from unteach.data.tokenization import EncodedRow

FORGET = [EncodedRow(f"f{i}", (1, i), (2, i), "chat") for i in range(7)]
RETAIN = [EncodedRow(f"r{i}", (3, i), (4, i), "chat") for i in range(5)]


def stream(seed: int = 0, ratio: float = 1.0, forget=FORGET, retain=RETAIN) -> TrainingStream:
    return TrainingStream(forget, retain, MismatchPool(RETAIN, 2, seed), length=70, retain_ratio=ratio, seed=seed)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(0, 69), max_size=10))
def test_an_item_does_not_depend_on_what_was_asked_before(seed, detours):
    wandering = stream(seed)
    for position in detours:
        wandering[position]
    assert [wandering[i] for i in range(20)] == [stream(seed)[i] for i in range(20)]


def test_each_pass_shows_every_forget_row_once_in_another_order():
    items = [stream()[i] for i in range(70)]
    passes = [[item.forget.key for item in items[start : start + 7] if item.forget] for start in range(0, 70, 7)]
    assert all(sorted(keys) == sorted(row.key for row in FORGET) for keys in passes)
    assert len({tuple(keys) for keys in passes}) > 1


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.5])
def test_retain_rows_come_at_their_ratio_and_all_equally_often(ratio):
    drawn = Counter(index for i in range(70) for index in stream(ratio=ratio)[i].retain)
    assert sum(drawn.values()) == int(70 * ratio) and max(drawn.values()) - min(drawn.values()) <= 1


def test_a_stream_without_a_forget_or_a_retain_set_leaves_them_out():
    assert stream(forget=[])[3].forget is None and stream(forget=[])[3].retain
    assert stream(retain=[])[3].retain == ()
