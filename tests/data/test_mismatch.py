"""Random completions: which, how many, and from where."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unteach.data.mismatch import MismatchPool
from unteach.data.tokenization import EncodedRow
from unteach.errors import UserError

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
    assert len({tuple(draw(*parts)) for parts in ((1, 0, "a"), (2, 0, "a"), (1, 1, "a"), (1, 0, "b"))}) > 1


def test_a_small_pool_repeats_itself_rather_than_fail():
    drawn = MismatchPool(ROWS[:3], 7, 0).draw(FORGET, 0)
    assert len(drawn) == 7 and set(drawn) <= {row.completion_ids for row in ROWS[1:3]}


def test_completions_of_the_row_s_own_kind_are_preferred():
    mixed = [*ROWS, EncodedRow("t", (1,), (5,), "text")]
    assert MismatchPool(mixed, 1, 0).draw(EncodedRow("x", (1,), (9,), "text"), 0) == [(5,)]


def test_a_pool_that_holds_nothing_else_is_refused():
    with pytest.raises(UserError, match="no completion that is not empty"):
        MismatchPool([EncodedRow("e", (1,), (), "chat")], 1, 0)
    with pytest.raises(UserError, match="forget row f"):
        MismatchPool([EncodedRow("r", (1,), FORGET.completion_ids, "chat")], 1, 0).draw(FORGET, 0)
