"""Files and folders that are replaced in one go: a reader, or a crash, sees the old or the new."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_text_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Writes a file so that a reader, or a crash, sees the old content or the new one, never a
    part.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """`value` as indented JSON, atomically."""
    write_text_atomically(
        path, json.dumps(value, indent=2, ensure_ascii=False, sort_keys=False) + "\n"
    )


def write_folder_atomically(folder: str | os.PathLike[str], write: Callable[[Path], None]) -> None:
    """Lets `write` fill a new folder and puts it in the place of `folder`; if `write` fails,
    `folder` is as it was.

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
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
