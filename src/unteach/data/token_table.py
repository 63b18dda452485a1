"""Rows as token ids in memory, four bytes a token."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import overload

from unteach.data.tokenization import EncodedRow


class TokenTable(Sequence[EncodedRow]):
    """Encoded rows; stands wherever a list of them does, in a fraction of its memory. A row is put together when it is asked for.

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

    @overload
    def __getitem__(self, number: int) -> EncodedRow: ...
    @overload
    def __getitem__(self, number: slice) -> list[EncodedRow]: ...
    def __getitem__(self, number: int | slice) -> EncodedRow | list[EncodedRow]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        key = self._keys[number]  # raises IndexError, also to end an iteration
        first = 3 * (number % len(self))
        ends = self._ends[first : first + 4]
        prompt, completion, preferred = (tuple(self._tokens[start:end]) for start, end in pairwise(ends))
        return EncodedRow(key, prompt, completion, self._kinds[number], preferred)
