"""Atomic writes: a reader, or a crash, sees the old content or the new one; JSON files."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_text_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Writes a file so that a reader, or a crash, sees the old content or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    write_text_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json_lines(path: Path) -> list[Any]:
    """The JSON values of a file, one a line.

    Lines end at line feeds alone: `str.splitlines` would also cut at separators that a text may
    hold (U+2028, U+2029, U+0085).

    Raises:
        ValueError: for a line that is no JSON.
    """
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def read_cached(path: Path) -> list[Any]:
    """The JSON value of a cache file, alone in a list; empty where the file is missing or damaged,
    so that its value is made anew.
    """
    try:
        return [json.loads(path.read_text(encoding="utf-8"))]
    except (FileNotFoundError, ValueError, RecursionError):
        return []


def write_folder_atomically(folder: str | os.PathLike[str], write: Callable[[Path], None]) -> None:
    """Calls `write` on a new folder, which then replaces `folder`; if `write` fails, `folder` stays
    as it was.

    Between the old folder and the new one there is a moment without either, never one with a part.
    """
    folder = Path(folder)
    part = folder.with_name(f".{folder.name}.part")
    old = folder.with_name(f".{folder.name}.old.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        write(part)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.rename(folder, old)
        os.rename(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
