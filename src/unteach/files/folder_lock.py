"""The lock on an output folder: one process writes into it at a time."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from unteach.errors import UserError
from unteach.files.atomic import write_json

LOCK = ".unteach.lock"
HOLDER = ".unteach.lock.json"


class FolderLock:
    """Holds a folder for the time of a `with` block; of several processes of one run only the first
    takes it.

    The operating system drops the lock when its process dies, however it dies, so a run that was
    killed leaves nothing to clean up:
    the next one takes the lock over.

    Args:
        folder (path): made if it is not there.

    Raises:
        UserError: if another process holds the folder, naming it.
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
        """Takes the folder under its present name. If this lock held a folder of that name that was
        renamed since, that one is let go.
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
        write_json(
            self.folder / HOLDER,
            {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            },
        )

    def release(self) -> None:
        """Lets the folder go; one in which nothing was written is removed."""
        if self._lock is None:
            return
        with contextlib.suppress(OSError):
            (self.folder / HOLDER).unlink(missing_ok=True)
            if {path.name for path in self.folder.iterdir()} == {LOCK}:
                (self.folder / LOCK).unlink()
                self.folder.rmdir()
        self._lock.release()
        self._lock = None


def _holder(folder: Path) -> str:
    try:
        holder = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        where = "" if holder["host"] == socket.gethostname() else f" on {holder['host']}"
        return (
            f"process {holder['pid']}{where}, which has been writing into it since"
            f" {holder['since']}"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
