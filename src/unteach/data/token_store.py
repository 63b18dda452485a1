"""Encoded rows as Arrow record batches: in memory at four bytes a token, or in a file from which
one batch at a time is read, so that memory does not grow with the number of rows.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, overload

import pyarrow as pa
import pyarrow.compute as pc

from unteach.data.public_sets import Role
from unteach.data.rows import row_from_mapping
from unteach.data.sources import adapted_records
from unteach.data.tokenization import EncodedRow, LongRows, iterate_encoded
from unteach.errors import UserError

FILE = "rows.arrow"
BATCH = 64
"""Rows of a record batch, all of which are read for one of them."""
TOKENS = ("prompt_ids", "completion_ids", "preferred_ids")
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("kind", pa.string()),
        *((name, pa.list_(pa.int32())) for name in TOKENS),
        *((name, pa.int32()) for name in ("ending", "trace")),
    ]
)


def _batches(rows: Iterable[EncodedRow]) -> Iterator[Any]:
    remaining = iter(rows)
    while part := list(islice(remaining, BATCH)):
        yield pa.RecordBatch.from_pylist([vars(row) for row in part], schema=SCHEMA)


class TokenTable(Sequence[EncodedRow]):
    """Encoded rows in a fraction of a list's memory; takes the place of a list of them."""

    def __init__(self, rows: Iterable[EncodedRow]) -> None:
        self._kept = list(_batches(rows))
        self._count = len(self._kept)

    def _batch(self, number: int) -> Any:
        return self._kept[number]

    def __len__(self) -> int:
        return (self._count - 1) * BATCH + len(self._batch(self._count - 1)) if self._count else 0

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

    def row(self, number: int) -> EncodedRow:
        """The row of that number, from 0 to `len(self) - 1`."""
        fields = self._batch(number // BATCH).slice(number % BATCH, 1).to_pylist()[0]
        return EncodedRow(**fields | {name: tuple(fields[name]) for name in TOKENS})

    def longest(self) -> int:
        """The number of the row with most tokens of prompt and completion, the first of several;
        there must be one.
        """
        most, found = -1, 0
        for number in range(self._count):
            prompts, completions = (self._batch(number).column(name) for name in TOKENS[:2])
            lengths = pc.add(pc.list_value_length(prompts), pc.list_value_length(completions))
            if (longest := pc.max(lengths).as_py()) > most:
                most, found = longest, number * BATCH + pc.index(lengths, longest).as_py()
        return found

    def highest_token(self) -> int:
        """The highest token id of any row; -1 without one."""
        batches = map(self._batch, range(self._count))
        columns = (batch.column(name) for batch in batches for name in TOKENS)
        highest = (pc.max(column.flatten()).as_py() for column in columns)
        return max((token for token in highest if token is not None), default=-1)


def longest_row(rows: Sequence[EncodedRow]) -> int:
    """The number of the row with most tokens, the first of several."""
    if isinstance(rows, TokenTable):
        return rows.longest()
    return max(range(len(rows)), key=lambda number: len(rows[number]))


class TokenStore(TokenTable):
    """Encoded rows in a folder that `write_rows` has filled.

    Reading goes through a file descriptor and not through a memory map, so that pages that were
    read once do not count as the process's memory.

    Args:
        end_id (`int`, *optional*): a token that rows are read without where they end with it, see
            `EncodedRow.without_end`.

    Raises:
        UserError: if the folder holds no whole store.
    """

    def __init__(self, folder: str | os.PathLike[str], end_id: int | None = None) -> None:
        self.folder, self.end_id = Path(folder), end_id
        try:
            self._reader = pa.ipc.open_file(pa.OSFile(str(self.folder / FILE)))
        except FileNotFoundError:
            raise UserError(
                f"{self.folder} holds no token store; write one with write_rows"
            ) from None
        except (pa.ArrowInvalid, OSError):
            raise UserError(
                f"{self.folder}: {FILE} was cut off or is no token store; write it again"
            ) from None
        if self._reader.schema != SCHEMA:
            raise UserError(f"{self.folder}: {FILE} is of another version; write it again")
        self._count = self._reader.num_record_batches

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStore, (self.folder, self.end_id)

    def _batch(self, number: int) -> Any:
        return self._reader.get_batch(number)

    def row(self, number: int) -> EncodedRow:
        return super().row(number).without_end(self.end_id)


def write_encoded(rows: Iterable[EncodedRow], folder: str | os.PathLike[str]) -> TokenStore:
    """Writes encoded rows one by one into a folder that only its owner can read.

    Raises:
        UserError: if there is no row.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = folder / f"{FILE}.part"
    with pa.OSFile(str(part), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        for batch in _batches(rows):
            writer.write_batch(batch)
        count = writer.stats.num_record_batches
    if not count:
        raise UserError(f"no rows to write into {folder}")
    os.replace(part, folder / FILE)
    return TokenStore(folder)


def write_rows(
    source: Any,
    tokenizer: Any,
    folder: str | os.PathLike[str],
    role: Role = "forget",
    *,
    max_length: int | None = None,
    long_rows: LongRows = "error",
) -> TokenStore:
    """Reads, tokenises and writes rows one by one, however many there are.

    Args:
        source: as in `load_rows`; JSON lines, hub data sets and `datasets.Dataset` are read row by
            row, other formats whole.
        tokenizer: a Hugging Face tokenizer.
        folder (path): for the store; an older store in it is replaced.
        role (`str`): as in `load_rows`.
        max_length (`int`, *optional*): as in `encode_rows`.
        long_rows (`str`): as in `encode_rows`.
    """
    rows = (row_from_mapping(fields, where) for fields, where in adapted_records(source, role))
    encoded = iterate_encoded(rows, tokenizer, max_length=max_length, long_rows=long_rows)
    return write_encoded(encoded, folder)
