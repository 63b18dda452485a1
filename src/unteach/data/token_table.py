"""Rows as token ids in memory, four bytes a token."""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import overload

import numpy as np

from unteach.data.tokenization import EncodedRow


class EncodedRows(Sequence[EncodedRow]):
    """Encoded rows that are put together when they are asked for; stands wherever a list of them
    does.
    """

    @abstractmethod
    def row(self, number: int) -> EncodedRow:
        """The row of that number, from 0 to `len(self) - 1`."""

    @abstractmethod
    def longest(self) -> int:
        """The number of the row with most tokens of prompt and completion, the first of several;
        there must be one.
        """

    @overload
    def __getitem__(self, number: int) -> EncodedRow: ...
    @overload
    def __getitem__(self, number: slice) -> list[EncodedRow]: ...
    def __getitem__(self, number: int | slice) -> EncodedRow | list[EncodedRow]:
        if isinstance(number, slice):
            return [self.row(i) for i in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        return self.row(number % len(self))


class TokenTable(EncodedRows):
    """Encoded rows in a fraction of a list's memory.

    Args:
        rows (`Iterable[EncodedRow]`)
    """

    def __init__(self, rows: Iterable[EncodedRow]) -> None:
        self._tokens, self._ends = array("i"), array("q", [0])
        self._keys: list[str] = []
        self._kinds: list[str] = []
        for row in rows:
            for part in (row.prompt_ids, row.completion_ids, row.preferred_ids):
                self._tokens.extend(part)
                self._ends.append(len(self._tokens))
            self._keys.append(row.key)
            self._kinds.append(row.kind)

    def __len__(self) -> int:
        return len(self._keys)

    def longest(self) -> int:
        ends = np.asarray(self._ends)
        return int((ends[2::3] - ends[:-1:3]).argmax())

    def row(self, number: int) -> EncodedRow:
        ends = self._ends[3 * number : 3 * number + 4]
        prompt, completion, preferred = (
            tuple(self._tokens[start:end]) for start, end in pairwise(ends)
        )
        return EncodedRow(self._keys[number], prompt, completion, self._kinds[number], preferred)


def longest_row(rows: Sequence[EncodedRow]) -> int:
    """The number of the row with most tokens, the first of several."""
    if isinstance(rows, EncodedRows):
        return rows.longest()
    return max(range(len(rows)), key=lambda number: len(rows[number]))
