"""Folders for one's own eyes, and folders known by what they hold: one that holds something else is
set aside.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def private_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder, made if it is not there, open to its owner only."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    return folder


def content_key(value: Any) -> str:
    """16 hexadecimal digits that name plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def free_name(path: Path) -> Path:
    """The path, or the first free `PATH-N`."""
    number, target = 0, path
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}-{number}")
    return target


def set_aside(folder: str | os.PathLike[str], name: str, text: str) -> Path | None:
    """Renames a folder whose file `name` holds another text than `text`, to the first free
    `FOLDER-N`; returns the new name, if any.
    """
    folder = Path(folder).absolute()
    file = folder / name
    if not file.exists() or file.read_text(encoding="utf-8", errors="replace") == text:
        return None
    target = free_name(folder)
    os.rename(folder, target)
    return target
