"""Rows as token ids in three flat files, read row by row: as many rows as the disk holds, in memory
that does not grow with them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unteach.data.rows import row_from_mapping
from unteach.data.sources import Role, adapted_records
from unteach.data.token_table import EncodedRows
from unteach.data.tokenization import EncodedRow, LongRows, iterate_encoded
from unteach.errors import UserError

KINDS = ("chat", "text")
ENTRY = np.dtype(
    [("start", "<i8"), ("prompt", "<i4"), ("completion", "<i4"), ("key", "S16"), ("kind", "i1")]
)
"""One row in the index: where its tokens start, how many there are of either part, its key and its
kind.
"""
ENTRIES_AT_ONCE = 2**16


class TokenStore(EncodedRows):
    """Encoded rows in a folder that `write_rows` has filled; stands wherever a list of them does.

    A row is read when it is asked for, and not kept. Reading goes through file descriptors and not
    through a memory map, so that pages that were read once do not count as the process's memory.

    Args:
        folder (path)
        end_id (`int`, *optional*): a token that rows are read without where they end with it, see
            `EncodedRow.without_end`.

    Raises:
        UserError: if the folder holds no whole store.
    """

    def __init__(self, folder: str | os.PathLike[str], end_id: int | None = None) -> None:
        self.folder, self.end_id = Path(folder), end_id
        try:
            index, tokens = ((self.folder / name).stat().st_size for name in ("index", "tokens"))
        except OSError:
            raise UserError(
                f"{self.folder} holds no token store; write one with write_rows"
            ) from None
        self._length, rest = divmod(index, ENTRY.itemsize)
        last = self._entry(self._length - 1) if self._length and not rest else None
        if (
            last is None
            or (int(last["start"]) + int(last["prompt"]) + int(last["completion"])) * 4 != tokens
        ):
            raise UserError(
                f"{self.folder}: its files do not belong together or were cut off; write the store"
                " again"
            )

    def __len__(self) -> int:
        return self._length

    def _read(self, name: str, size: int, offset: int) -> bytes:
        with (self.folder / name).open("rb", buffering=0) as file:
            return os.pread(file.fileno(), size, offset)

    def _entry(self, number: int) -> np.void:
        entry: np.void = np.frombuffer(
            self._read("index", ENTRY.itemsize, number * ENTRY.itemsize), ENTRY
        )[0]
        return entry

    def longest(self) -> int:
        best, found = -1, 0
        for first in range(0, len(self), ENTRIES_AT_ONCE):
            size = ENTRY.itemsize * ENTRIES_AT_ONCE
            entries = np.frombuffer(self._read("index", size, ENTRY.itemsize * first), ENTRY)
            lengths = entries["prompt"] + entries["completion"]
            if lengths.max() > best:
                best, found = int(lengths.max()), first + int(lengths.argmax())
        return found

    def row(self, number: int) -> EncodedRow:
        entry = self._entry(number)
        prompt, completion = int(entry["prompt"]), int(entry["completion"])
        ids = np.frombuffer(
            self._read("tokens", 4 * (prompt + completion), 4 * int(entry["start"])), "<i4"
        ).tolist()
        row = EncodedRow(
            bytes(entry["key"]).decode(),
            tuple(ids[:prompt]),
            tuple(ids[prompt:]),
            KINDS[int(entry["kind"])],
        )
        return row.without_end(self.end_id)


def write_encoded(rows: Iterable[EncodedRow], folder: str | os.PathLike[str]) -> TokenStore:
    """Writes encoded rows one by one into a folder that only its owner can read; preferred
    completions are not kept.

    Raises:
        UserError: if there is no row.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    start = count = 0
    with (folder / "index.part").open("wb") as index, (folder / "tokens.part").open("wb") as tokens:
        for row in rows:
            entry = (
                start,
                len(row.prompt_ids),
                len(row.completion_ids),
                row.key.encode(),
                KINDS.index(row.kind),
            )
            index.write(np.array(entry, ENTRY).tobytes())
            tokens.write(np.array(row.prompt_ids + row.completion_ids, "<i4").tobytes())
            start, count = start + len(row), count + 1
    if not count:
        raise UserError(f"no rows to write into {folder}")
    for name in ("tokens", "index"):
        os.replace(folder / f"{name}.part", folder / name)
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
        folder (path): for the store; older files of a store in it are replaced.
        role, max_length, long_rows: as in `load_rows` and `encode_rows`.
    """

    def rows() -> Iterator[Any]:
        for fields, where in adapted_records(source, role):
            yield row_from_mapping(fields, where)

    return write_encoded(
        iterate_encoded(rows(), tokenizer, max_length=max_length, long_rows=long_rows), folder
    )
