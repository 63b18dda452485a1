"""Where a benchmark's sets lie: in a folder, in files that are named, or on the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from unteach.data.sources import records
from unteach.errors import UserError

Record = tuple[Mapping[str, Any], str]
SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")


@dataclass(frozen=True)
class SetFile:
    """One set of a benchmark.

    Args:
        name (`str`): what results call it.
        files (`tuple[str, ...]`): patterns of its path below the folder, without suffix; the first
            that fits counts.
        config (`str`), split (`str`): the same on the hub.
        columns (`tuple[str, ...]`): what each row must have.
        optional (`bool`): whether the benchmark does without it.
    """

    name: str
    files: tuple[str, ...]
    config: str
    split: str
    columns: tuple[str, ...]
    optional: bool = True


def local_files(source: str) -> dict[str, Path] | None:
    """Path below the folder, without suffix, to file; or the stems of several files, separated by
    commas. `None` for what is on the hub.

    Raises:
        UserError: for a file that is not there.
    """
    folder = Path(source)
    if folder.is_dir():
        return {
            path.relative_to(folder).with_suffix("").as_posix(): path
            for path in sorted(folder.rglob("*"))
            if path.suffix in SUFFIXES
        }
    paths = [Path(part.strip()) for part in source.split(",") if part.strip()]
    if not any(path.suffix in SUFFIXES for path in paths):
        return None
    for path in paths:
        if not path.is_file():
            raise UserError(f"option --data: {path} is no file")
    return {path.with_suffix("").as_posix(): path for path in paths}


def matching(files: Mapping[str, Path], wanted: SetFile) -> Path | None:
    """The file of a set, by the first pattern that fits any.

    Raises:
        UserError: where one pattern fits several.
    """
    for pattern in wanted.files:
        found = [
            path
            for name, path in files.items()
            if fnmatch(name, pattern) or fnmatch(name, f"*/{pattern}")
        ]
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise UserError(
                f"option --data: several files may be the set {wanted.name!r} ({names}); name the"
                " files, separated by commas"
            )
        if found:
            return found[0]
    return None


def load_sets(
    source: str | None, hub_id: str, wanted: Sequence[SetFile], limit: int | None = None
) -> dict[str, list[Record]]:
    """The rows of each set, as they stand there.

    Args:
        source (`str`, *optional*): a folder, files separated by commas, or a dataset id; default:
            the benchmark's own.
        hub_id (`str`): the benchmark's dataset.
        wanted: its sets.
        limit (`int`, *optional*): at most so many rows of each, at even distances.

    Raises:
        UserError: naming the set that is not there, or the row and the column.
    """
    files = local_files(source) if source else None
    sets: dict[str, list[Record]] = {}
    rows: list[Record]
    for part in wanted:
        if files is None:
            rows = list(records(f"{source or hub_id}:{part.config}", part.split))
        else:
            path = matching(files, part)
            if path is None:
                if part.optional:
                    continue
                raise UserError(
                    f"option --data: no file for the set {part.name!r}; it is called"
                    f" {part.files[0]}.jsonl (.json, .parquet)"
                )
            rows = list(records(path))
        for fields, where in rows:
            for column in part.columns:
                if not fields.get(column):
                    raise UserError(
                        f"{where}: column {column!r} of the set {part.name!r} is missing or empty"
                    )
        if not rows:
            raise UserError(f"option --data: the set {part.name!r} has no rows")
        count = min(limit or len(rows), len(rows))
        sets[part.name] = [rows[place * len(rows) // count] for place in range(count)]
    if not sets:
        known = ", ".join(part.files[0] for part in wanted)
        raise UserError(
            f"option --data: {source} holds no set of this benchmark; known are {known}"
        )
    return sets


def text_of(fields: Mapping[str, Any], column: str, where: str) -> str:
    """A column that must be text.

    Raises:
        UserError: naming row and column, for anything else.
    """
    value = fields[column]
    if not isinstance(value, str) or not value.strip():
        raise UserError(
            f"{where}: column {column!r} is {type(value).__name__}, it must be text that is not"
            " empty"
        )
    return value
