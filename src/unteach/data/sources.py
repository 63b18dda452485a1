"""Sources of rows: files, saved data sets, hub data sets, and data in memory; one or several."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unteach.data.formats import READERS, SUFFIXES, OnError, Records, suffix_of
from unteach.data.public_sets import Role
from unteach.data.rows import Row, row_from_mapping
from unteach.data.shapes import fields_of
from unteach.errors import UserError, one_line

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?(@[\w.-]+)?")
SAVED = ("dataset_info.json", "dataset_dict.json")
"""Files of a folder that `datasets` has saved."""


def _raise(error: UserError) -> None:
    raise error


def is_data_file(name: str) -> bool:
    """Whether a name is that of a data file, which may be missing, or of a saved data set."""
    if "\0" in name or len(name) > 4096:
        return False
    return bool(suffix_of(name)) or _is_saved(_path(name))


def names_a_source(item: Any) -> bool:
    """Whether an item of a list is a file, a saved data set or a hub data set, and no prompt."""
    if isinstance(item, Path):
        return True
    if not isinstance(item, str) or not item.strip() or "\n" in item or "\0" in item:
        return False
    one_word = not any(character.isspace() for character in item)
    if one_word and (suffix_of(item) or HUB_NAME.fullmatch(item)):
        return True
    with contextlib.suppress(OSError, RuntimeError):
        return _path(item).is_file() or _is_saved(_path(item))
    return False


def several_sources(source: Any) -> list[str] | None:
    """The names of several sources; `None` for a single one and for data in memory.

    Raises:
        UserError: for a list of some names of sources and some prompts.
    """
    if not isinstance(source, list | tuple) or not source:
        return None
    found = [names_a_source(item) for item in source]
    if all(found):
        return [str(item) for item in source]
    if any(found):
        name = next(item for item, is_one in zip(source, found, strict=True) if is_one)
        raise UserError(
            f"the list holds {str(name)!r}, which is the name of a file or data set, beside rows or"
            " prompts; give the one or the others"
        )
    return None


def place(source: Any) -> str | list[str] | None:
    """Where rows can be read again: the absolute path of a file, a hub id as it is, a list of those
    of several; `None` for rows that were given in Python.
    """
    if isinstance(source, str | Path):
        found = _path(source)
        return str(found.resolve()) if found.exists() else str(source)
    names = several_sources(source)
    return None if names is None else [str(place(name)) for name in names]


def _path(source: str | Path) -> Path:
    try:
        return Path(source).expanduser()
    except RuntimeError:  # of no such user
        return Path(source)


# --- data sets


def _is_saved(folder: Path) -> bool:
    return folder.is_dir() and any((folder / name).is_file() for name in SAVED)


def _saved(folder: Path, split: str, named: str) -> Records:
    """Records of a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` has written."""
    from datasets import DatasetDict, load_from_disk

    try:
        dataset = load_from_disk(str(folder))
    except Exception as error:  # of many types, all for a damaged folder
        reason = one_line(error)
        raise UserError(f"{folder}: not a readable saved data set ({reason})") from None
    if isinstance(dataset, DatasetDict):
        splits = list(dataset)
        chosen = named or (split if split in splits else splits[0] if len(splits) == 1 else "")
        if chosen not in splits:
            raise UserError(
                f"{folder} has no split {named or split!r}; name one of {', '.join(splits)}, as in"
                f" {folder}@{splits[0]}"
            )
        dataset, folder = dataset[chosen], Path(f"{folder}[{chosen}]")
    elif named:
        raise UserError(f"{folder} has no splits; leave @{named} out")
    for number, record in enumerate(dataset, 1):
        yield dict(record), f"{folder}, row {number}"


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
        reason = one_line(error)
        raise UserError(
            f"{name!r} is no file, and as a Hugging Face dataset it could not be loaded"
            f" ({type(error).__name__}: {reason})"
        ) from None
    for number, record in enumerate(dataset, 1):
        yield dict(record), f"{rest}[{split}], row {number}"


# --- data in memory


def _table_rows(source: Any) -> Any:
    """The rows of a table of pandas, polars or Arrow; anything else as it is."""
    if hasattr(source, "columns") and hasattr(source, "to_dicts"):
        return source.to_dicts()
    if hasattr(source, "columns") and hasattr(source, "iloc"):
        names = list(source.columns)
        if len(set(names)) < len(names):
            raise UserError("the table has two columns of one name; leave one of them out")
        return source.to_dict("records")
    return source.to_pylist() if hasattr(source, "to_pylist") else source


def _in_memory(source: Any, on_error: OnError) -> Records:
    source = _table_rows(source)
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


# --- any source


def records(source: Any, split: str = "train", on_error: OnError = _raise) -> Records:
    """(fields, where) of each record of a source, with all its columns; see `load_rows`."""
    if not isinstance(source, str | Path):
        names = several_sources(source)
        if names is None:
            yield from _in_memory(source, on_error)
        for name in names or ():
            yield from records(name, split, on_error)
        return
    if "\0" in str(source):
        raise UserError(f"{str(source)!r}: a file's name cannot hold a null character")
    path = _path(source)
    suffix = suffix_of(path.name)
    if suffix and path.is_file():
        yield from READERS[suffix](path, on_error)
        return
    whole, _, named = str(path).rpartition("@")
    saved = path if _is_saved(path) else Path(whole or str(path))
    if _is_saved(saved):
        yield from _saved(saved, split, "" if saved == path else named)
        return
    if suffix or path.exists():
        raise UserError(f"{path}: {_why_not(path)}")
    yield from _hub(str(source), split)


def _why_not(path: Path) -> str:
    """Why there is nothing to read at a path."""
    if not path.exists():
        return "no such file"
    formats = f"not one of the formats {', '.join(SUFFIXES)} (also as .gz)"
    if not path.is_dir():
        return formats
    files = sorted(file.name for file in path.iterdir() if suffix_of(file.name))
    if files:
        return f"a folder; name its files, such as {path / files[0]}"
    return f"a folder, {formats}, nor one that Dataset.save_to_disk has written"


def adapted_records(
    source: Any, role: Role, split: str = "train", on_error: OnError = _raise
) -> Records:
    """(fields, where) of each row, those of records of other shapes turned into `prompt` and
    `completion`, or `text`; see `load_rows`. By default the first error of a row is raised.
    """
    for record, where in records(source, split, on_error):
        try:
            yield from fields_of(record, role, where)
        except UserError as error:
            on_error(error)


def load_rows(
    source: Any,
    role: Role = "forget",
    *,
    split: str = "train",
    prompt_only: bool = False,
    limit: int | None = None,
) -> list[Row]:
    """Rows from a file, a folder of `Dataset.save_to_disk`, a Hugging Face dataset id
    (`owner/name[:config][@split]`), a `datasets.Dataset`, a DataFrame, a list of records or
    prompts, or a list of several files and ids, whose rows come one after the other.

    Args:
        source: what to read; a `.txt` file is a book and is cut into passages.
        role (`"forget"` or `"retain"`): which answers of a known public set are meant (bad ones or
            good ones).
        split (`str`): split of a data set that names none; that of one with a single split is taken
            anyhow.
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


def name_of(source: Any) -> str | Sequence[str]:
    """A source as settings name it: its file, files or hub id, or the number of its rows."""
    if isinstance(source, str | Path):
        return str(source)
    names = several_sources(source)
    if names is not None:
        return names
    return f"{len(source)} rows" if hasattr(source, "__len__") else "rows given in Python"
