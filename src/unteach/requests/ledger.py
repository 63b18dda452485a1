"""`requests.jsonl`: the forget requests that an output folder has been given, a line each, in
order; no line is ever changed.

A line is a JSON object without any row's text. Its field `previous` is the SHA-256 of the line
before it, its last field `sha256` that of the line without it: a line that was changed, taken out
or put in is noticed. A last line that a crash cut off is cut off the file, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unteach.errors import UserError

LEDGER = "requests.jsonl"
ROWS = "rows.jsonl"
"""In the `work` folder of each request: its rows."""
EVENTS = {
    "request": ("data", "kind", "base", "model_in", "model_out"),
    "remove": ("model_out",),
    "restore": ("model_out",),
}
"""What a line can tell, and the fields that it has beside `event`, `id` (of the request that it is
about) and `time`.
"""

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Ledger:
    """A ledger as it is on disk.

    Args:
        entries (`tuple[Mapping]`): its whole lines.
        torn (`int`): bytes of a last line that was cut off while it was written.
        unended (`bool`): whether the last line is whole but for the line break.
        last_hash (`str`): SHA-256 of the last whole line; empty for none.
    """

    entries: tuple[Entry, ...] = ()
    torn: int = 0
    unended: bool = False
    last_hash: str = ""

    @property
    def requests(self) -> list[Entry]:
        """The lines that are forget requests, the first one first."""
        return [entry for entry in self.entries if entry["event"] == "request"]

    @property
    def removed(self) -> set[int]:
        """Ids of requests whose patch was removed and not restored since."""
        gone: set[int] = set()
        for entry in self.entries:
            if entry["event"] == "remove":
                gone.add(entry["id"])
            elif entry["event"] == "restore":
                gone.discard(entry["id"])
        return gone

    @property
    def active(self) -> list[Entry]:
        """The requests that hold now."""
        return [entry for entry in self.requests if entry["id"] not in self.removed]

    def request(self, number: int) -> Entry:
        """The request of this id.

        Raises:
            UserError: if there is none.
        """
        for entry in self.requests:
            if entry["id"] == number:
                return entry
        known = ", ".join(str(entry["id"]) for entry in self.requests) or "none"
        raise UserError(f"there is no request {number} in the ledger (there are: {known})")


def read_ledger(folder: Path) -> Ledger:
    """The ledger of a folder, changed in nothing; an empty one where there is no file.

    Raises:
        UserError: for a line that is not as it was written, naming it.
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
        entry, wrong = _opened(line, last)
        if entry is None:
            raise UserError(
                f"{path}, line {number}: {wrong}; put back a copy of the file that is whole"
            )
        entries.append(entry)
        last = hashlib.sha256(line).hexdigest()
    if not rest:
        return Ledger(tuple(entries), last_hash=last)
    entry, _ = _opened(rest, last)
    if entry is None:
        return Ledger(tuple(entries), torn=len(rest), last_hash=last)
    return Ledger((*entries, entry), unended=True, last_hash=hashlib.sha256(rest).hexdigest())


def _opened(line: bytes, previous: str) -> tuple[Entry | None, str]:
    """(entry, what is wrong with it): there is no entry if something is."""
    try:
        record = dict(json.loads(line.decode("utf-8")))
        seal, event = record.pop("sha256"), record["event"]
        needed = ["id", "time", "previous", *EVENTS.get(event, ())]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None, "not a line of a ledger"
    if seal != _seal(record):
        return None, "not as it was written (its SHA-256 is another one)"
    if record.get("previous") != previous:
        return None, "does not follow the line before it: a line was taken out, put in or moved"
    if event not in EVENTS:
        return None, f"event {event!r} is of another version of unteach"
    missing = [name for name in needed if name not in record]
    return (None, f"field {missing[0]!r} is missing") if missing else (record, "")


def _seal(record: Entry) -> str:
    return hashlib.sha256(
        json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass")
    ).hexdigest()


def open_ledger(folder: Path, say: Callable[[str], None]) -> Ledger:
    """The ledger, ready for a new line: what a crash has left of a last one is cut off, and `say`
    is told.

    The caller holds the folder's lock.
    """
    ledger = read_ledger(folder)
    path = folder / LEDGER
    if ledger.torn:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - ledger.torn)
            os.fsync(file.fileno())
        say(
            f"{path}: the last line was cut off while it was written ({ledger.torn} bytes), and is"
            " taken out; start the command that was writing it again, it goes on where it was"
        )
    elif ledger.unended:
        with path.open("ab") as file:
            file.write(b"\n")
            os.fsync(file.fileno())
    return Ledger(ledger.entries, last_hash=ledger.last_hash)


def append(
    folder: Path, ledger: Ledger, event: str, number: int, facts: Mapping[str, Any]
) -> Ledger:
    """Writes one line to the end, on the disk before this returns; gives back the ledger with it.

    Args:
        folder (`Path`): its lock is held by the caller.
        ledger (`Ledger`): from `open_ledger`.
        event (`str`): a name in `EVENTS`.
        number (`int`): id of the request that the line is about.
        facts: the other fields, as plain data without any row's text.
    """
    missing = [name for name in EVENTS[event] if name not in facts]
    assert not missing, missing
    record = {
        "event": event,
        "id": number,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **facts,
        "previous": ledger.last_hash,
    }
    record = json.loads(json.dumps(record))  # as it will be read
    line = json.dumps({**record, "sha256": _seal(record)}, ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )
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
    return Ledger((*ledger.entries, record), last_hash=hashlib.sha256(line).hexdigest())


def _sync_folder(folder: Path) -> None:
    """Puts the folder's list of names on the disk, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def kind_of(entries: Sequence[Entry]) -> str | None:
    """`adapter` or `full`: what all requests of a ledger leave; `None` before the first."""
    return str(entries[0]["kind"]) if entries else None


def superseded_models(folder: Path) -> list[Path]:
    """Models of all weights that a later request has gone on from: each still knows what that
    request was made to forget.
    """
    try:
        requests = read_ledger(folder).requests
    except UserError:
        return []
    current = {folder / str(entry["model"]) for entry in requests[-1:] if entry.get("model")}
    found = [
        path
        for entry in requests
        for path in sorted((folder / folder_name(entry["id"])).glob("round-*/model"))
    ]
    return [path for path in found if path not in current]


def folder_name(number: int) -> str:
    """Name of a request's folder."""
    return f"request-{number:03d}"
