"""Random completions: which, how many, and from where."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unteach.data.completions import REFUSAL, MismatchPool
from unteach.data.rows import Row
from unteach.data.tokenization import EncodedRow, encode_row, end_of_turn_id
from unteach.errors import UserError
from unteach.seeding import row_generator

ROWS = [EncodedRow(f"r{i}", (1,), (100 + i, 7), "chat") for i in range(12)]
FORGET = EncodedRow("f", (1, 2), (100, 7), "chat")


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(0, 10_000), st.integers(0, 50))
def test_k_different_completions_and_never_the_row_s_own(count, seed, epoch):
    drawn = MismatchPool(ROWS, count, seed).draw(FORGET, epoch)
    assert len(drawn) == len(set(drawn)) == count
    assert FORGET.completion_ids not in drawn and all(drawn)


def test_draws_depend_on_seed_epoch_and_row_alone():
    def draw(seed: int, epoch: int, key: str) -> list[tuple[int, ...]]:
        return MismatchPool(ROWS, 3, seed).draw(EncodedRow(key, (1,), (9,), "chat"), epoch)

    assert draw(1, 0, "a") == draw(1, 0, "a")
    for others in (
        [(seed, 0, "a") for seed in range(20)],
        [(1, epoch, "a") for epoch in range(20)],
        [(1, 0, key) for key in "abcdefghijkl"],
    ):
        assert len({tuple(draw(*parts)) for parts in others}) > len(others) / 2


def test_a_draw_is_the_same_in_another_process():
    """With another hash seed too: a resumed run draws what the interrupted one would have drawn."""
    drawn = MismatchPool(ROWS, 3, 5).draw(EncodedRow("pinned", (1,), (9,), "chat"), 2)
    code = (
        "from unteach.data.completions import MismatchPool; from unteach.data.tokenization import"
        " EncodedRow as E;rows = [E(f'r{i}', (1,), (100 + i, 7), 'chat') for i in"
        " range(12)];print(MismatchPool(rows, 3, 5).draw(E('pinned', (1,), (9,), 'chat'), 2))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    assert subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    ).stdout.strip() == str(drawn)


def test_every_completion_of_the_pool_comes_up_about_equally_often():
    pool = MismatchPool(ROWS, 3, 0)
    drawn = Counter(
        ids for epoch in range(400) for ids in pool.draw(EncodedRow("x", (1,), (9,), "chat"), epoch)
    )
    assert len(drawn) == len(ROWS) and max(drawn.values()) < 1.6 * min(drawn.values())


def test_a_completion_that_many_rows_share_counts_once():
    rows = [*(EncodedRow(f"s{i}", (i,), (50, 7), "chat") for i in range(30)), *ROWS[:3]]
    assert len(set(MismatchPool(rows, 4, 0).draw(EncodedRow("x", (1,), (9,), "chat"), 0))) == 4


def test_the_templated_refusal_alone_serves_every_row(tokenizer):
    refusal = encode_row(Row("Who?", REFUSAL), tokenizer, end_of_turn_id(tokenizer))
    pool = MismatchPool([refusal], 1, 0)
    drawn = {ids for row in ROWS for epoch in range(3) for ids in pool.draw(row, epoch)}
    assert drawn == {refusal.completion_ids} and "can't assist" in tokenizer.decode(drawn.pop())


def test_a_small_pool_repeats_itself_rather_than_fail():
    drawn = MismatchPool(ROWS[:3], 7, 0).draw(FORGET, 0)
    assert len(drawn) == 7 and set(drawn) <= {row.completion_ids for row in ROWS[1:3]}


def test_completions_of_the_row_s_own_kind_are_preferred():
    mixed = [*ROWS, EncodedRow("t", (1,), (5,), "text")]
    assert MismatchPool(mixed, 1, 0).draw(EncodedRow("x", (1,), (9,), "text"), 0) == [(5,)]


def test_a_row_of_a_kind_that_the_pool_lacks_takes_what_there_is():
    assert MismatchPool(ROWS, 2, 0).draw(EncodedRow("x", (1,), (9,), "text"), 0)


def test_less_than_one_completion_is_refused():
    with pytest.raises(UserError, match="mismatch_completions is 0"):
        MismatchPool(ROWS, 0, 0)


def test_a_pool_that_holds_nothing_else_is_refused():
    with pytest.raises(UserError, match="no completion that is not empty"):
        MismatchPool([EncodedRow("e", (1,), (), "chat")], 1, 0)
    with pytest.raises(UserError, match="forget row f"):
        MismatchPool([EncodedRow("r", (1,), FORGET.completion_ids, "chat")], 1, 0).draw(FORGET, 0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(["chat", "text"])), min_size=2, max_size=30
    ),
    st.integers(1, 6),
)
def test_draws_are_those_from_a_list_without_the_row_s_own_completion(retain, count):
    rows = [
        EncodedRow(f"r{i}", (1,), (70_000 + token, 7), kind)
        for i, (token, kind) in enumerate(retain)
    ]
    forget = EncodedRow("f", (1,), (70_003, 7), retain[0][1])
    of_its_kind = [row.completion_ids for row in rows if row.kind == forget.kind]
    candidates = [ids for ids in dict.fromkeys(of_its_kind) if ids != forget.completion_ids]
    if not candidates:
        with pytest.raises(UserError, match="equals its own"):
            MismatchPool(rows, count, 3).draw(forget, 2)
        return
    picks = row_generator("mismatch", 3, 2, "f").choice(
        len(candidates), size=count, replace=len(candidates) < count
    )
    assert MismatchPool(rows, count, 3).draw(forget, 2) == [candidates[pick] for pick in picks]


@pytest.mark.parametrize("end", [7, None])
def test_the_own_completion_is_known_with_its_end_and_without(end):
    """Forget rows come without the token that ends an answer, retain rows with it."""
    own = EncodedRow("f", (1, 2), (100,), "chat")
    drawn = {
        MismatchPool(ROWS, 1, seed, end_id=end).draw(own, epoch)[0]
        for seed in range(8)
        for epoch in range(12)
    }
    assert ((100, 7) in drawn) is (end is None)
    if end:
        with pytest.raises(UserError, match="equals its own"):
            MismatchPool(ROWS[:1], 1, 0, end_id=end).draw(own, 0)
