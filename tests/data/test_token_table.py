"""Rows in a table are the rows of a list, and take a fraction of its memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from unteach.data.token_table import TokenTable, longest_row
from unteach.data.tokenization import EncodedRow

ROWS = [
    EncodedRow("first", (1, 2, 3), (70_000,), "chat"),
    EncodedRow("second, with a longer key", (4,), (5, 6), "text", (7, 8, 9)),
    EncodedRow("third", (), (1,), "chat"),
]


def test_the_longest_row_is_the_first_of_several():
    rows = [*ROWS, EncodedRow("fourth", (1, 2), (5, 6), "chat")]
    assert longest_row(TokenTable(rows)) == longest_row(rows) == 0
    assert longest_row(TokenTable(rows[1:])) == longest_row(rows[1:]) == 2


def test_a_table_gives_the_rows_of_a_list():
    table = TokenTable(iter(ROWS))
    assert (
        list(table) == ROWS
        and len(table) == 3
        and table[-1] == ROWS[-1]
        and table[1:] == ROWS[1:]
        and table[::-2] == ROWS[::-2]
    )
    for number in (3, -4):
        with pytest.raises(IndexError):
            table[number]
    assert not TokenTable([]) and list(TokenTable([])) == []


def test_a_table_takes_a_fraction_of_the_memory():
    draw = np.random.default_rng(0)
    tokens = draw.integers(300, 49_000, (500, 60))

    def rows():
        for number, ids in enumerate(tokens):
            yield EncodedRow(
                f"{number:016x}", tuple(ids[:20].tolist()), tuple(ids[20:].tolist()), "chat"
            )

    sizes = []
    for made in (list, TokenTable):
        tracemalloc.start()
        kept = made(rows())
        sizes.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        assert len(kept) == 500
    assert sizes[1] < 0.25 * sizes[0], sizes
