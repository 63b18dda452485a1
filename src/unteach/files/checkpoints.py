"""Checkpoints with a marker of every file's size and SHA-256: whole, or they do not count."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unteach.files.atomic import write_json, write_text_atomically
from unteach.files.folders import free_name

MARKER = "unteach_state.json"
Accept = Callable[[Mapping[str, Any]], str]
"""From a marker's state to what is wrong with files elsewhere that the checkpoint needs; empty if
nothing is.
"""

logger = logging.getLogger(__name__)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _marker_sum(state: Any, files: Any) -> str:
    return hashlib.sha256(json.dumps([state, files], sort_keys=True).encode()).hexdigest()


def mark_complete(folder: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Writes the marker of a folder whose files are all written: the caller's state, and the size
    and SHA-256 of each file.
    """
    folder = Path(folder)
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in paths
        if path != folder / MARKER
    }
    state = json.loads(json.dumps(state))  # as it will be read: a tuple becomes a list
    marker = {"state": state, "files": files, "sha256": _marker_sum(state, files)}
    write_json(folder / MARKER, marker)


def _read_marker(folder: Path) -> tuple[dict[str, Any], str]:
    """(state, what is wrong): the state is empty if something is."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        state, files, digest = marker["state"], marker["files"], marker["sha256"]
    except FileNotFoundError:
        return {}, f"{MARKER} is missing, so it was never finished"
    except (OSError, ValueError, KeyError, TypeError):
        return {}, f"{MARKER} cannot be read"
    if _marker_sum(state, files) != digest:
        return {}, f"{MARKER} is not as it was written"
    for name, facts in files.items():
        path = folder / name
        if not path.is_file():
            return {}, f"{name} is missing"
        if path.stat().st_size != facts["bytes"]:
            return {}, f"{name} has {path.stat().st_size} bytes instead of {facts['bytes']}"
    for name, facts in files.items():  # once all sizes are right, as this takes longer
        if file_sha256(folder / name) != facts["sha256"]:
            return {}, f"{name} is not as it was written (another SHA-256)"
    return dict(state), ""


def read_marker(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The state in a folder's marker, or `None` if any of its files is not as it was written."""
    state, wrong = _read_marker(Path(folder))
    return None if wrong else state


def damage(folder: str | os.PathLike[str]) -> str:
    """What is wrong with a marked folder, as a clause; empty if it is whole."""
    return _read_marker(Path(folder))[1]


def marked_state(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The state in a marker, files unchecked; empty for a marker that cannot be read."""
    try:
        return dict(json.loads((Path(folder) / MARKER).read_text(encoding="utf-8"))["state"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _numbered(folder: str | os.PathLike[str]) -> list[tuple[int, Path]]:
    """(step, folder) of each `checkpoint-STEP`, the newest first."""
    found = [
        (re.fullmatch(r"checkpoint-(\d+)", path.name), path)
        for path in Path(folder).glob("checkpoint-*")
        if path.is_dir()
    ]
    return sorted(((int(match.group(1)), path) for match, path in found if match), reverse=True)


def kept_states(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """`marked_state` of all finished checkpoints of a folder, newest first."""
    return [state for _, path in _numbered(folder) if (state := marked_state(path))]


def latest_checkpoint(folder: str | os.PathLike[str], accept: Accept | None = None) -> Path | None:
    """The newest whole `checkpoint-N` in a folder.

    One whose writing was interrupted is removed. A damaged one is renamed to
    `damaged-checkpoint-N` with a warning in the log, and the one before it counts.

    Args:
        accept (`Callable`, *optional*): what is wrong with files elsewhere that it needs.
    """
    for step, path in _numbered(folder):
        if not (path / MARKER).exists():
            shutil.rmtree(path, ignore_errors=True)
            continue
        state, wrong = _read_marker(path)
        wrong = wrong or (accept(state) if accept else "")
        if not wrong:
            return path
        target = free_name(path.with_name(f"damaged-{path.name}"))
        os.rename(path, target)
        logger.warning(
            "checkpoint %d is damaged: %s; it is set aside as %s, and the one before it counts",
            step,
            wrong,
            target.name,
        )
    return None


def remove_unfinished(folder: str | os.PathLike[str]) -> None:
    """Removes checkpoints without a marker, and other parts that a failed write has left."""
    unfinished = [path for _, path in _numbered(folder) if not (path / MARKER).exists()]
    for path in [*unfinished, *Path(folder).glob(".*.part")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def truncate_metrics(path: str | os.PathLike[str], last_step: int) -> None:
    """Drops the lines of a metrics file that are later than `last_step` or incomplete."""
    path = Path(path)
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if int(json.loads(line)["step"]) <= last_step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    write_text_atomically(path, "".join(line + "\n" for line in kept))
