"""Rows as token ids in memory, four bytes a token."""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import overload

from unteach.data.tokenization import EncodedRow


class EncodedRows(Sequence[EncodedRow]):
    """Encoded rows that are put together when they are asked for; stands wherever a list of them
    does.
    """

    @abstractmethod
    def row(self, number: int) -> EncodedRow:
        """The row of that number, from 0 to `len(self) - 1`."""

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

    def row(self, number: int) -> EncodedRow:
        ends = self._ends[3 * number : 3 * number + 4]
        prompt, completion, preferred = (
            tuple(self._tokens[start:end]) for start, end in pairwise(ends)
        )
        return EncodedRow(self._keys[number], prompt, completion, self._kinds[number], preferred)
