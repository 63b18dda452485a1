"""Output folders: private, named by content, renamed where another run needs the name, and locked
against a second writer; files that a page sends.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from unteach.errors import UserError
from unteach.files.atomic import write_json

LOCK = ".unteach.lock"
HOLDER = ".unteach.lock.json"


def private_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder, created if missing, with access for its owner only."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    return folder


def local_path(name: str) -> str:
    """The absolute path of a file or folder that is there, so that it means the same in every
    working folder; `~` is the user's home. Another name (a hub id) stays as it is.
    """
    path = os.path.expanduser(name)
    try:
        return os.path.abspath(path) if os.path.exists(path) else path
    except ValueError:  # a null character
        return name


def content_key(value: Any) -> str:
    """16 hexadecimal digits of a hash of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def free_name(path: Path) -> Path:
    """The path, or the first free `PATH-N`."""
    number, target = 0, path
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}-{number}")
    return target


def set_aside(folder: str | os.PathLike[str], name: str, text: str) -> Path | None:
    """Renames a folder whose file `name` holds another text than `text` to the first free
    `FOLDER-N`; returns the new name, or `None` where nothing was renamed.
    """
    folder = Path(folder).absolute()
    file = folder / name
    if not file.exists() or file.read_text(encoding="utf-8", errors="replace") == text:
        return None
    target = free_name(folder)
    os.rename(folder, target)
    return target


class FolderLock:
    """An exclusive lock on an output folder for the time of a `with` block, held by the main
    process of a run.

    The operating system drops the lock when its process dies, however it dies, so that nothing has
    to be cleaned up after a run that was killed.

    Args:
        folder (path): created if missing.

    Raises:
        UserError: if another process holds the lock, naming it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._lock: FileLock | None = None

    def __enter__(self) -> FolderLock:
        self.take()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def take(self) -> None:
        """Locks the folder that has the name now; the lock on one that had it before, and was
        renamed, is released.
        """
        if int(os.environ.get("RANK", "0") or 0) != 0:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (ValueError, FileExistsError, NotADirectoryError):
            raise UserError(
                f"{str(self.folder)!r} cannot be made a folder: a file is in its place, or no"
                " folder can have that name"
            ) from None
        lock = FileLock(self.folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"{self.folder} is in use by {_holder(self.folder)}; wait for it, or choose another"
                " folder"
            ) from None
        held, self._lock = self._lock, lock
        if held is not None:
            held.release()
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        write_json(self.folder / HOLDER, holder)

    def release(self) -> None:
        """Releases the lock; a folder in which nothing was written is removed."""
        if self._lock is None:
            return
        with contextlib.suppress(OSError):
            (self.folder / HOLDER).unlink(missing_ok=True)
            if [path.name for path in self.folder.iterdir()] == [LOCK]:
                (self.folder / LOCK).unlink()
                self.folder.rmdir()
        self._lock.release()
        self._lock = None


def _holder(folder: Path) -> str:
    try:
        holder = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        host = "" if holder["host"] == socket.gethostname() else f" on {holder['host']}"
        since = f"which has been writing into it since {holder['since']}"
        return f"process {holder['pid']}{host}, {since}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


# --- uploads
#
# Files that a page sends are kept beside the runs in a folder of their own, named by content, so
# that `unteach purge` tells them from a user's own files.


UPLOADS = "files"
"""Name of their folder."""


def keep_upload(folder: Path, name: str, data: bytes) -> Path:
    """Writes a file into `folder/files/`, readable by its owner only; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = re.sub(r"[^\w.-]", "_", Path(name).name)[-80:]
    path = private_folder(folder / UPLOADS) / f"{_digest(data)}-{plain}"
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def uploads(folder: Path) -> list[Path]:
    """The files in `folder/files/` whose name begins with the hash of their content."""
    found = (path for path in sorted((folder / UPLOADS).glob("*-*")) if path.is_file())
    return [path for path in found if path.name.startswith(f"{_digest(path.read_bytes())}-")]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:8]
