"""Files as records: a reader for each format, and the encodings and archives around them."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from unteach.data.columns import KNOWN, plain_name
from unteach.data.passages import book_passages, has_layout, text_passages
from unteach.errors import UserError, one_line

Records = Iterator[tuple[dict[str, Any], str]]
"""Pairs of a record's fields and its place, for messages."""
OnError = Callable[[UserError], None]
"""Takes the error of one row where reading is to go on with the next."""

MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""First bytes of a file in one of the wide encodings, which `codecs` skips when it decodes."""
DELIMITERS = ",;\t|"
ARCHIVE = b"\x1f\x8b"
"""First bytes of a gzip archive."""


NOT_ROWS = {
    b"version https://git-lfs": "a pointer of Git LFS and not the file: fetch it (git lfs pull)",
    b"%PDF-": "a PDF: save its text as .txt",
    b"PK\x03\x04": "an archive: unpack it",
}
"""First bytes of files that hold no rows, and what to do."""


def _opened(path: Path) -> BinaryIO:
    """The file's bytes, those within a gzip archive unpacked.

    Raises:
        UserError: for one of `NOT_ROWS`.
    """
    with path.open("rb") as file:
        head = file.read(32)
    packed = head.startswith(ARCHIVE)
    for start, what in NOT_ROWS.items():
        if head.startswith(start):
            raise UserError(f"{path}: this is {what}")
    return cast(BinaryIO, gzip.open(path, "rb") if packed else path.open("rb"))


def _encoding(head: bytes) -> str:
    """UTF-16 or UTF-32 by their mark, or by the zero bytes that each Latin letter has; else
    UTF-8.
    """
    for mark, name in MARKS:
        if head.startswith(mark):
            return name
    even, odd = head[::2], head[1::2]
    if len(head) >= 8 and odd.count(0) > 0.4 * len(odd) and even.count(0) < 0.1 * len(even):
        return "utf-16-le"
    if len(head) >= 8 and even.count(0) > 0.4 * len(even) and odd.count(0) < 0.1 * len(odd):
        return "utf-16-be"
    return "utf-8"


def _decoded(raw: bytes, path: Path, first_line: int = 1, encoding: str = "utf-8") -> str:
    utf8 = encoding == "utf-8"
    try:
        return raw.decode("utf-8-sig" if utf8 and first_line == 1 else encoding)
    except UnicodeDecodeError as error:
        line = first_line + raw[: error.start].count(b"\n")
        what = f"byte 0x{raw[error.start]:02x} is not" if utf8 else "this is no whole"
        raise UserError(
            f"{path}, line {line}: {what} {encoding.upper()} (wrong encoding); save the file as"
            " UTF-8"
        ) from None


def _text_of(path: Path) -> str:
    try:
        with _opened(path) as file:
            raw = file.read()
    except (EOFError, OSError, zlib.error) as error:
        raise _unreadable(path, error) from None
    if not raw.strip():
        raise UserError(f"{path}: the file is empty")
    return _decoded(raw, path, 1, _encoding(raw[:4096]))


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = one_line(error)
    return UserError(f"{path}: the file could not be read ({reason})")


def _lines(path: Path, on_error: OnError) -> Iterator[tuple[int, str]]:
    """(number, text) of each line, one at a time: the file may be larger than memory. A line that
    cannot be decoded is reported and left out.
    """
    try:
        with _opened(path) as file:
            encoding = _encoding(file.read(4096))
            file.seek(0)
            if encoding == "utf-8":
                for number, raw in enumerate(file, 1):
                    try:
                        line = _decoded(raw, path, number)
                    except UserError as error:
                        on_error(error)
                    else:
                        yield number, line
                return
            number = 0
            try:
                for number, line in enumerate(
                    io.TextIOWrapper(file, encoding=encoding, newline="\n"), 1
                ):
                    yield number, line
            except UnicodeError:
                on_error(
                    UserError(
                        f"{path}, line {number + 1}: this is no whole {encoding.upper()} (wrong"
                        " encoding); save the file as UTF-8"
                    )
                )
    except (EOFError, OSError, zlib.error) as error:
        raise _unreadable(path, error) from None


def _parsed(text: str) -> Any:
    """JSON; too deep nesting, too long numbers and a name that an object has twice raise a
    `JSONDecodeError` too.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise json.JSONDecodeError(f"an object has the name {twice[:40]!r} twice", text, 0)
        return found

    try:
        return json.loads(text, object_pairs_hook=once)
    except (RecursionError, ValueError) as error:
        if isinstance(error, json.JSONDecodeError):
            raise
        deep = isinstance(error, RecursionError)
        message = "too deeply nested" if deep else "a number is too long"
        raise json.JSONDecodeError(message, text, 0) from None


def _json_lines(path: Path, on_error: OnError) -> Records:
    """One object a line; a file that is one list of objects after all is read as such."""
    empty = True
    for number, line in _lines(path, on_error):
        if not line.strip():
            continue
        if empty and line.lstrip().startswith("[") and (items := _list_in(path)) is not None:
            yield from _items(items, path, on_error)
            return
        empty = False
        where = f"{path}, line {number}"
        try:
            record = _parsed(line)
        except json.JSONDecodeError as error:
            on_error(UserError(f"{where}: not valid JSON ({error.msg} at column {error.colno})"))
        else:
            if isinstance(record, dict):
                yield record, where
            else:
                kind = type(record).__name__
                on_error(UserError(f"{where}: a row must be a JSON object, found {kind}"))
    if empty:
        _text_of(path)  # raises for an empty file


def _list_in(path: Path) -> list[Any] | None:
    """The list that the whole file is, if it is a list with an object."""
    try:
        value = _parsed(_text_of(path))
    except (json.JSONDecodeError, UserError):
        return None
    return value if isinstance(value, list) and any(isinstance(v, dict) for v in value) else None


def _items(items: list[Any], path: Path, on_error: OnError) -> Records:
    for number, record in enumerate(items, 1):
        where = f"{path}, row {number}"
        if isinstance(record, dict):
            yield record, where
        else:
            kind = type(record).__name__
            on_error(UserError(f"{where}: a row must be a JSON object, found {kind}"))


def _json_array(path: Path, on_error: OnError) -> Records:
    """One list of objects; a file with one object a line is read as such."""
    text = _text_of(path)
    try:
        records = _parsed(text)
    except json.JSONDecodeError as error:
        first = text.lstrip("\ufeff \t\r\n").partition("\n")[0]
        try:
            lines = isinstance(_parsed(first), dict)
        except json.JSONDecodeError:
            lines = False
        if lines:
            yield from _json_lines(path, on_error)
            return
        raise UserError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}); one object a line is"
            " .jsonl"
        ) from None
    if not isinstance(records, list) or not any(isinstance(item, dict) for item in records):
        found = type(records).__name__
        if isinstance(records, dict):
            found = (
                f"an object with {', '.join(repr(str(name)[:40]) for name in list(records)[:6])}"
            )
        raise UserError(f"{path}: a .json file must hold one list of objects (found {found})")
    yield from _items(records, path, on_error)


def _delimiter(header: str, default: str) -> str:
    """The delimiter under which the header line names the most known columns."""

    def known(delimiter: str) -> int:
        try:
            names = next(csv.reader([header], delimiter=delimiter), [])
        except csv.Error:
            return 0
        return sum(plain_name(name) in KNOWN for name in names)

    delimiters: list[str] = [default, *DELIMITERS]
    return max(delimiters, key=known)


def _table(path: Path, on_error: OnError) -> Records:
    text = _text_of(path)
    default = "\t" if ".tsv" in path.suffixes else ","
    csv.field_size_limit(2**31 - 1)  # a cell may hold a whole document
    header = text.lstrip("\r\n").partition("\n")[0].rstrip("\r")
    delimiter = _delimiter(header, default)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = list(reader.fieldnames or ())
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise UserError(f"{path}: the header names the column {twice[0][:40]!r} twice")
        for record in reader:
            where = f"{path}, line {reader.line_num}"
            if None in record:
                on_error(UserError(f"{where}: more cells than the header has columns"))
            elif any(cell is None for cell in record.values()):
                on_error(UserError(f"{where}: fewer cells than the header has columns"))
            else:
                yield dict(record), where
    except csv.Error as error:
        where = f"{path}, line {reader.line_num + 1}"
        raise UserError(f"{where}: not a readable table ({error})") from None


def _parquet(path: Path, on_error: OnError) -> Records:
    import pyarrow.parquet

    try:
        records = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, ValueError, OverflowError, NotImplementedError, MemoryError) as error:
        reason = one_line(error)
        raise UserError(f"{path}: not a readable Parquet file ({reason})") from None
    for number, record in enumerate(records, 1):
        yield record, f"{path}, row {number}"


def _book(path: Path, on_error: OnError) -> Records:
    """The passages of a text, those of code with its white space; a short text is one row."""
    text = _text_of(path)
    passages = [] if has_layout(text) else book_passages(text)
    for number, (prompt, completion) in enumerate(passages or text_passages(text), 1):
        where = f"{path}, passage {number}"
        if prompt:
            yield {"prompt": prompt, "completion": completion, "kind": "text"}, where
        else:
            yield {"text": completion}, where


READERS: dict[str, Callable[[Path, OnError], Records]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_array,
    ".csv": _table,
    ".tsv": _table,
    ".parquet": _parquet,
    ".txt": _book,
}
SUFFIXES = tuple(READERS)


def suffix_of(name: str | Path) -> str:
    """The suffix that names a file's format, without that of a gzip archive; empty if none does.

    >>> suffix_of("rows.JSONL.gz"), suffix_of("notes.md")
    ('.jsonl', '')
    """
    plain = str(name).lower()
    unpacked = plain.removesuffix(".gz")
    suffix = Path(unpacked).suffix
    return suffix if suffix in READERS and (plain == unpacked or suffix != ".parquet") else ""
