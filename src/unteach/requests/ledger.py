"""The ledger of forget requests, `requests.jsonl`: lines are appended and never changed.

A line is a JSON object without the text of any row. Its field `previous` is the SHA-256 of the line
before it, and its last field `sha256` is that of the line without this field, so that a changed,
removed, inserted or moved line is detected. An incomplete last line, left by a crash, is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unteach.errors import UserError

LEDGER = "requests.jsonl"
ROWS = "rows.jsonl"
"""The rows of a request, in its folder `work/`."""
EVENTS = {
    "request": ("data", "kind", "base", "model_in", "model_out"),
    "remove": ("model_out",),
    "restore": ("model_out",),
}
"""Event to its required fields, beside `event`, `id` (of the request) and `time`."""

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Ledger:
    """A ledger as it is on disk.

    Args:
        entries (`tuple[Mapping]`): its complete lines.
        torn (`int`): bytes of an incomplete last line.
        unended (`bool`): whether the last line is complete except for its line break.
        last_hash (`str`): SHA-256 of the last complete line, or empty.
    """

    entries: tuple[Entry, ...] = ()
    torn: int = 0
    unended: bool = False
    last_hash: str = ""

    @property
    def requests(self) -> list[Entry]:
        """The lines of forget requests, in order."""
        return [entry for entry in self.entries if entry["event"] == "request"]

    @property
    def removed(self) -> set[int]:
        """Ids of the requests whose patch is removed now."""
        newest = {entry["id"]: entry["event"] for entry in self.entries}
        return {number for number, event in newest.items() if event == "remove"}

    @property
    def active(self) -> list[Entry]:
        """The requests that are not removed."""
        removed = self.removed
        return [entry for entry in self.requests if entry["id"] not in removed]

    @property
    def kind(self) -> str | None:
        """What all requests of the ledger train, `adapter` or `full`; `None` before the first."""
        return str(self.requests[0]["kind"]) if self.requests else None

    def request(self, number: int) -> Entry:
        """The request with this id; `UserError` if there is none."""
        for entry in self.requests:
            if entry["id"] == number:
                return entry
        known = ", ".join(str(entry["id"]) for entry in self.requests) or "none"
        raise UserError(f"there is no request {number} in the ledger (there are: {known})")


def read_ledger(folder: Path) -> Ledger:
    """The ledger of a folder, empty if there is no file; changes nothing.

    Raises:
        UserError: for a line that is not as it was written, with its number.
    """
    path = folder / LEDGER
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Ledger()
    *lines, rest = data.split(b"\n")
    entries: list[Entry] = []
    last = ""
    for number, line in enumerate(lines, 1):
        entry, wrong = _parsed(line, last)
        if entry is None:
            raise UserError(f"{path}, line {number}: {wrong}; restore the file from a backup")
        entries.append(entry)
        last = _sha256(line)
    if not rest:
        return Ledger(tuple(entries), last_hash=last)
    entry, _ = _parsed(rest, last)
    if entry is None:
        return Ledger(tuple(entries), torn=len(rest), last_hash=last)
    return Ledger((*entries, entry), unended=True, last_hash=_sha256(rest))


def _parsed(line: bytes, previous: str) -> tuple[Entry | None, str]:
    """(entry, what is wrong with it): the entry is `None` if something is."""
    try:
        record = dict(json.loads(line.decode("utf-8")))
        digest, event = record.pop("sha256"), record["event"]
        needed = ["id", "time", "previous", *EVENTS.get(event, ())]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None, "not a line of a ledger"
    if digest != _sha256(_encoded(record)):
        return None, "not as it was written (its SHA-256 differs)"
    if record.get("previous") != previous:
        return None, "does not follow the line before it: a line was removed, inserted or moved"
    if event not in EVENTS:
        return None, f"event {event!r} is unknown to this version of unteach"
    missing = [name for name in needed if name not in record]
    return (None, f"field {missing[0]!r} is missing") if missing else (record, "")


def _encoded(record: Entry) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def open_ledger(folder: Path, say: Callable[[str], None]) -> Ledger:
    """The ledger, ready for a new line: an incomplete last line is removed, with a message to
    `say`. The caller holds the folder's lock.
    """
    ledger = read_ledger(folder)
    path = folder / LEDGER
    if ledger.torn:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - ledger.torn)
            os.fsync(file.fileno())
        say(
            f"{path}: the last line was cut off while it was written ({ledger.torn} bytes) and is"
            " removed; start the interrupted command again, and it resumes"
        )
    elif ledger.unended:
        with path.open("ab") as file:
            file.write(b"\n")
            os.fsync(file.fileno())
    return Ledger(ledger.entries, last_hash=ledger.last_hash)


def append(
    folder: Path, ledger: Ledger, event: str, number: int, facts: Mapping[str, Any]
) -> Ledger:
    """Appends one line, synced to disk; returns the ledger with it.

    Args:
        folder (`Path`): the caller holds its lock.
        ledger (`Ledger`): from `open_ledger`.
        event (`str`): a key of `EVENTS`.
        number (`int`): id of the request.
        facts: the other fields, as plain data without the text of any row.
    """
    missing = [name for name in EVENTS[event] if name not in facts]
    assert not missing, missing
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    record = {"event": event, "id": number, "time": now, **facts, "previous": ledger.last_hash}
    record = json.loads(json.dumps(record))  # as it will be read
    line = _encoded({**record, "sha256": _sha256(_encoded(record))})
    path = folder / LEDGER
    new = not path.exists()
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(handle).st_size
        try:
            left = memoryview(line + b"\n")
            while left:
                left = left[os.write(handle, left) :]
            os.fsync(handle)
        except BaseException:
            os.ftruncate(handle, size)
            raise
    finally:
        os.close(handle)
    if new:
        _sync_folder(folder)
    return Ledger((*ledger.entries, record), last_hash=_sha256(line))


def _sync_folder(folder: Path) -> None:
    """Syncs the folder's entries to disk, if the system supports it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def superseded_models(folder: Path) -> list[Path]:
    """Full models from which a later request was trained, before its rows were forgotten."""
    try:
        requests = read_ledger(folder).requests
    except UserError:
        return []
    current = {folder / str(entry["model"]) for entry in requests[-1:] if entry.get("model")}
    found = [
        path
        for entry in requests
        for path in sorted(request_folder(folder, entry["id"]).glob("round-*/model"))
    ]
    return [path for path in found if path not in current]


def request_folder(folder: Path, number: int) -> Path:
    """The folder of a request."""
    return folder / f"request-{number:03d}"
