"""Checkpoints that are either whole or do not count, and files that are replaced in one go."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

MARKER = "unteach_state.json"


def write_text_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Writes a file so that a reader, or a crash, sees the old content or the new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """`value` as indented JSON, atomically."""
    write_text_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, sort_keys=False) + "\n")


def mark_complete(folder: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Puts the marker, with the trainer's own state and the size of each file, into a checkpoint whose files are all written."""
    folder = Path(folder)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file() and path.name != MARKER}
    write_json(folder / MARKER, {"state": state, "files": sizes})


def read_marker(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The state in a checkpoint's marker, or `None` if the checkpoint is not whole."""
    folder = Path(folder)
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in marker["files"].items())
    return dict(marker["state"]) if whole else None


def latest_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """The newest whole `checkpoint-N` in a folder; those that are not whole are removed."""
    found = []
    for path in Path(folder).glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if not match or not path.is_dir():
            continue
        if read_marker(path) is None:
            shutil.rmtree(path, ignore_errors=True)
        else:
            found.append((int(match.group(1)), path))
    return max(found)[1] if found else None


def truncate_metrics(path: str | os.PathLike[str], last_step: int) -> None:
    """Drops the lines of a metrics file that are later than `last_step` or were cut off in the middle."""
    path = Path(path)
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if int(json.loads(line)["step"]) <= last_step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    write_text_atomically(path, "".join(line + "\n" for line in kept))


def content_key(value: Any) -> str:
    """16 hexadecimal digits that name plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def set_aside(folder: str | os.PathLike[str], name: str, text: str) -> Path | None:
    """Renames a folder whose file `name` holds another text than `text`, to the first free `FOLDER-N`; returns the new name, if any."""
    folder = Path(folder).absolute()
    file = folder / name
    if not file.exists() or file.read_text(encoding="utf-8") == text:
        return None
    number = 1
    while (target := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    os.rename(folder, target)
    return target
