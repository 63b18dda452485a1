"""Sources of rows: a reader for each shape of file or data."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from unteach.data.public_sets import Fields, Role, adapted
from unteach.data.rows import Row, row_from_mapping
from unteach.errors import UserError

Records = Iterator[tuple[Fields, str]]
"""Pairs of a record's fields and its place, for messages."""
OnError = Callable[[UserError], None]
"""Takes the error of one row where reading is to go on with the next."""


def _raise(error: UserError) -> None:
    raise error


def _decoded(raw: bytes, path: Path, first_line: int = 1) -> str:
    try:
        return raw.decode("utf-8-sig" if first_line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line = first_line + raw[: error.start].count(b"\n")
        raise UserError(
            f"{path}, line {line}: byte 0x{raw[error.start]:02x} is not UTF-8 (wrong encoding);"
            " save the file as UTF-8"
        ) from None


def _text_of(path: Path) -> str:
    raw = path.read_bytes()
    if not raw.strip():
        raise UserError(f"{path}: the file is empty")
    return _decoded(raw, path)


def _parsed(text: str) -> Any:
    """JSON; too deep nesting and too long numbers raise a `JSONDecodeError` too."""
    try:
        return json.loads(text)
    except (RecursionError, ValueError) as error:
        if isinstance(error, json.JSONDecodeError):
            raise
        deep = isinstance(error, RecursionError)
        message = "too deeply nested" if deep else "a number is too long"
        raise json.JSONDecodeError(message, text, 0) from None


def _json_lines(path: Path, on_error: OnError) -> Records:
    """Line by line: the file may be larger than memory."""
    empty = True
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            where = f"{path}, line {number}"
            empty = empty and not raw.strip()
            try:
                line = _decoded(raw, path, number)
                record = _parsed(line) if line.strip() else None
            except json.JSONDecodeError as error:
                reason = f"{error.msg} at column {error.colno}"
                on_error(UserError(f"{where}: not valid JSON ({reason})"))
            except UserError as error:
                on_error(error)
            else:
                if isinstance(record, dict):
                    yield record, where
                elif line.strip():
                    kind = type(record).__name__
                    on_error(UserError(f"{where}: a row must be a JSON object, found {kind}"))
    if empty:
        raise UserError(f"{path}: the file is empty")


def _json_array(path: Path, on_error: OnError) -> Records:
    try:
        records = _parsed(_text_of(path))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}); one object a line is"
            " .jsonl"
        ) from None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise UserError(f"{path}: a .json file must hold one list of objects")
    for number, record in enumerate(records, 1):
        yield record, f"{path}, row {number}"


def _table(path: Path, on_error: OnError) -> Records:
    text = io.StringIO(_text_of(path), newline="")
    reader = csv.DictReader(text, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    try:
        for record in reader:
            where = f"{path}, line {reader.line_num}"
            if None in record:
                on_error(UserError(f"{where}: more cells than the header has columns"))
            else:
                yield {name: cell for name, cell in record.items() if cell is not None}, where
    except csv.Error as error:
        where = f"{path}, line {reader.line_num + 1}"
        raise UserError(f"{where}: not a readable table ({error})") from None


def _parquet(path: Path, on_error: OnError) -> Records:
    import pyarrow.parquet

    try:
        records = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, ValueError, OverflowError, NotImplementedError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a readable Parquet file ({reason})") from None
    for number, record in enumerate(records, 1):
        yield record, f"{path}, row {number}"


def sentences(text: str) -> list[str]:
    """Sentences of running text: each ends after `.`, `!` or `?`, and closing quotes or brackets,
    before white space.
    """
    ends = r".+?(?:[.!?][\"')\]]*(?=\s)|$)"
    return [part.strip() for part in re.findall(ends, " ".join(text.split()))]


def book_passages(
    text: str, *, prompt_chars: int = 100, completion_chars: int = 200
) -> list[tuple[str, str]]:
    """(prompt, completion) passages of a book, after the extraction protocol of Yao et al. 2024.

    A passage starts at a sentence start; its prompt is that sentence, cut at a word after at most
    `prompt_chars` characters; its completion is what follows, to the end of the word at
    `completion_chars`. Passages do not overlap. In a text with blank lines a passage does not cross
    a paragraph unless the paragraph is too short.
    """
    passages: list[tuple[str, str]] = []
    rest = ""
    for paragraph in re.split(r"\n\s*\n", text):
        rest = f"{rest} {' '.join(paragraph.split())}".strip()
        while first := sentences(rest)[:1]:
            prompt = first[0]
            if len(prompt) > prompt_chars:
                prompt = prompt[:prompt_chars].rsplit(" ", 1)[0]
            following = rest[len(prompt) :]
            if len(following) < completion_chars:
                break
            end = re.search(r"\s|$", following[completion_chars:])
            completion = following[: completion_chars + (end.start() if end else 0)]
            passages.append((prompt, completion))
            rest = " ".join(sentences(rest[len(prompt) + len(completion) :])[1:])
    return passages


def _book(path: Path, on_error: OnError) -> Records:
    passages = book_passages(_text_of(path))
    if not passages:
        size = "one passage of a prompt and 200 characters"
        raise UserError(f"{path}: the text is too short for {size}")
    for number, (prompt, completion) in enumerate(passages, 1):
        fields = {"prompt": prompt, "completion": completion, "kind": "text"}
        yield fields, f"{path}, passage {number}"


READERS: dict[str, Callable[[Path, OnError], Records]] = {
    ".jsonl": _json_lines,
    ".json": _json_array,
    ".csv": _table,
    ".tsv": _table,
    ".parquet": _parquet,
    ".txt": _book,
}
SUFFIXES = tuple(READERS)


def _hub(name: str, split: str) -> Records:
    """Records of a Hugging Face dataset; without a named split, `split` or the only one."""
    from datasets import get_dataset_split_names, load_dataset

    rest, _, named = name.partition("@")
    identifier, _, part = rest.partition(":")
    split, configuration, splits = named or split, part or None, list[str]()
    try:
        try:
            dataset = load_dataset(identifier, configuration, split=split)
        except ValueError:
            with contextlib.suppress(Exception):  # the reason of the first error is the better one
                splits = list(get_dataset_split_names(identifier, configuration))
            if not splits or split in splits:
                raise
            if named or len(splits) > 1:
                raise UserError(
                    f"{name!r} has no split {split!r}; name one of {', '.join(splits)}, as in"
                    f" {rest}@{splits[0]}"
                ) from None
            split = splits[0]
            dataset = load_dataset(identifier, configuration, split=split)
    except UserError:
        raise
    except Exception as error:  # the hub client raises many types, all for a dataset not available
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{name!r} is no file, and as a Hugging Face dataset it could not be loaded"
            f" ({type(error).__name__}: {reason})"
        ) from None
    for number, record in enumerate(dataset, 1):
        yield dict(record), f"{rest}[{split}], row {number}"


def _in_memory(source: Any, on_error: OnError) -> Records:
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        names = ", ".join(map(repr, source)) if isinstance(source, Mapping) else ""
        raise UserError(
            f"the data is a {type(source).__name__}, it must be a file, a dataset or a list of"
            f" rows{f'; take one of {names}' if names else ''}"
        )
    for number, record in enumerate(source, 1):
        if isinstance(record, str | Mapping):
            yield {"prompt": record} if isinstance(record, str) else dict(record), f"row {number}"
        else:
            kind = type(record).__name__
            on_error(UserError(f"row {number}: a row must be a dict or a prompt, found {kind}"))


def records(source: Any, split: str = "train", on_error: OnError = _raise) -> Records:
    """(fields, where) of each record of a file, a Hugging Face dataset id or a list, with all its
    columns.
    """
    if not isinstance(source, str | Path):
        return _in_memory(source, on_error)
    if "\0" in str(source):
        raise UserError(f"{str(source)!r}: a file's name cannot hold a null character")
    path = Path(source)
    if path.suffix in READERS and path.is_file():
        return READERS[path.suffix](path, on_error)
    if path.suffix in READERS or path.exists():
        reason = (
            f"not one of the formats {', '.join(SUFFIXES)}" if path.exists() else "no such file"
        )
        raise UserError(f"{path}: {reason}")
    return _hub(str(source), split)


def adapted_records(
    source: Any, role: Role, split: str = "train", on_error: OnError = _raise
) -> Records:
    """(fields, where) of each record, those of known public sets turned into `prompt` and
    `completion`; see `load_rows`. By default the first error of a row is raised.
    """
    for record, where in records(source, split, on_error):
        try:
            found = adapted(record, role)
        except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
            # the words of other errors may hold the row's text
            reason = str(error) if isinstance(error, ValueError) else type(error).__name__
            on_error(
                UserError(f"{where}: not a row of the public set that its columns name ({reason})")
            )
            continue
        for fields in found:
            yield fields, where


def load_rows(
    source: Any,
    role: Role = "forget",
    *,
    split: str = "train",
    prompt_only: bool = False,
    limit: int | None = None,
) -> list[Row]:
    """Rows from a file, a Hugging Face dataset id (`owner/name[:config][@split]`), a
    `datasets.Dataset`, or a list of records or prompts.

    Args:
        source: what to read; a `.txt` file is a book and is cut into passages.
        role (`"forget"` or `"retain"`): which answers of a known public set are meant (bad ones or
            good ones).
        split (`str`): split of a hub dataset that names none; that of one with a single split is
            taken anyhow.
        prompt_only (`bool`): accept rows without a completion.
        limit (`int`, *optional*): read at most so many rows.

    Raises:
        UserError: naming the file, the row and the field, for anything that is not such a row.
    """
    rows: list[Row] = []
    for fields, where in adapted_records(source, role, split):
        rows.append(row_from_mapping(fields, where, prompt_only=prompt_only))
        if limit is not None and len(rows) >= limit:
            break
    if not rows:
        name = source if isinstance(source, str | Path) else "the data"
        raise UserError(f"{name}: no rows for the {role} set")
    return rows[:limit]
