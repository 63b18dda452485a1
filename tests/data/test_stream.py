"""The order of training is a function of seed and position."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unteach.data.completions import MismatchPool
from unteach.data.stream import Collator, TrainingStream
from unteach.data.tokenization import EncodedRow

FORGET = [EncodedRow(f"f{i}", (1, i), (2, i), "chat") for i in range(7)]
RETAIN = [EncodedRow(f"r{i}", (3, i), (4, i), "chat") for i in range(5)]
RETAIN_MANY = [EncodedRow(f"m{i}", (3, i), (4, i), "chat") for i in range(9)]


def stream(seed: int = 0, ratio: float = 1.0, forget=FORGET, retain=RETAIN) -> TrainingStream:
    return TrainingStream(
        forget, retain, MismatchPool(RETAIN, 2, seed), length=70, retain_ratio=ratio, seed=seed
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(0, 69), max_size=10))
def test_an_item_does_not_depend_on_what_was_asked_before(seed, detours):
    wandering = stream(seed)
    for position in detours:
        wandering[position]
    assert [wandering[i] for i in range(20)] == [stream(seed)[i] for i in range(20)]


def test_each_pass_shows_every_forget_row_once_in_another_order():
    items = [stream()[i] for i in range(70)]
    passes = [
        [item.forget.key for item in items[start : start + 7] if item.forget]
        for start in range(0, 70, 7)
    ]
    assert all(sorted(keys) == sorted(row.key for row in FORGET) for keys in passes)
    assert len({tuple(keys) for keys in passes}) > 1


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.5])
def test_retain_rows_come_at_their_ratio_and_all_equally_often(ratio):
    drawn = Counter(index for i in range(70) for index in stream(ratio=ratio)[i].retain)
    assert sum(drawn.values()) == int(70 * ratio) and max(drawn.values()) - min(drawn.values()) <= 1


def test_a_stream_without_a_forget_or_a_retain_set_leaves_them_out():
    assert stream(forget=[])[3].forget is None and stream(forget=[])[3].retain
    assert stream(retain=[])[3].retain == ()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.floats(0.05, 4), st.integers(0, 99))
def test_retain_rows_go_round_without_gap_or_repeat(size, ratio, seed):
    """Item after item the retain rows are one endless sequence of shuffled passes: nothing is
    skipped where one item's share ends.
    """
    items = stream(seed, ratio, retain=RETAIN_MANY[:size])
    sequence = [index for i in range(70) for index in items[i].retain]
    assert len(sequence) == int(70 * ratio)
    for start in range(0, len(sequence) - size + 1, size):
        assert sorted(sequence[start : start + size]) == list(range(size))


def test_a_longer_forget_set_than_retain_set_is_used_whole():
    """The released code zips the two loaders without shuffling: only as many forget rows as there
    are retain rows are ever used.
    """
    forget = [EncodedRow(f"l{i}", (1, i), (2, i), "chat") for i in range(60)]
    items = stream(forget=forget, retain=RETAIN[:2])
    assert {items[i].forget.key for i in range(60)} == {row.key for row in forget}


def test_seeds_give_other_orders_and_other_mismatch_completions():
    orders = {tuple(stream(seed)[i].forget.key for i in range(7)) for seed in range(8)}
    draws = {tuple(stream(seed)[i].mismatch for i in range(7)) for seed in range(8)}
    assert len(orders) > 6 and len(draws) > 6


def test_mismatch_completions_change_from_pass_to_pass_for_the_same_row():
    items = [stream()[i] for i in range(70)]
    draws = {item.mismatch for item in items if item.forget and item.forget.key == "f0"}
    assert len(draws) > 3


def test_the_length_of_a_run_does_not_change_its_beginning():
    short, long = (
        TrainingStream(
            FORGET, RETAIN, MismatchPool(RETAIN, 2, 0), length=n, retain_ratio=1.5, seed=0
        )
        for n in (10, 70)
    )
    assert len(short) == 10 and [short[i] for i in range(10)] == [long[i] for i in range(10)]


def test_a_batch_keeps_each_row_s_prompt_once_and_shares_the_mismatch_weight():
    collator = Collator(RETAIN, pad_id=0)
    item = stream()[0]
    forget, retain = collator.trees([item])
    assert forget.prompt_ids == item.forget.prompt_ids and [
        branch.role for branch in forget.branches
    ] == ["forget", "mismatch", "mismatch"]
    assert sum(
        branch.weight for branch in forget.branches if branch.role == "mismatch"
    ) == pytest.approx(1)
    assert (
        retain.branches[0].reference_row == item.retain[0]
        and retain.prompt_ids == RETAIN[item.retain[0]].prompt_ids
    )
