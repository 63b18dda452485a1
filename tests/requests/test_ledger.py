"""The ledger of requests: lines are appended and never changed, and damage is detected."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from unteach.errors import UserError
from unteach.requests.ledger import LEDGER, append, open_ledger, read_ledger, superseded_models

FACTS = {"kind": "full", "base": "m", "model_in": "a", "model_out": "b"}
FACTS |= {"data": {"completed_hash": "d", "rows": 3}}


def filled(folder: Path, count: int = 3) -> Path:
    ledger = open_ledger(folder, pytest.fail)
    for number in range(1, count + 1):
        facts = FACTS | {"model": f"request-{number:03d}/round-1/model"}
        ledger = append(folder, ledger, "request", number, facts)
    assert read_ledger(folder).entries == ledger.entries and len(ledger.requests) == count
    return folder / LEDGER


def test_a_folder_without_a_ledger_has_an_empty_one(tmp_path):
    assert read_ledger(tmp_path).entries == () and not (tmp_path / LEDGER).exists()


def test_lines_are_added_and_the_ones_before_stay_byte_for_byte(tmp_path):
    path = filled(tmp_path)
    before = path.read_bytes()
    append(tmp_path, open_ledger(tmp_path, pytest.fail), "remove", 2, {"model_out": "c"})
    assert path.read_bytes().startswith(before)
    assert [entry["id"] for entry in read_ledger(tmp_path).active] == [1, 3]
    append(tmp_path, open_ledger(tmp_path, pytest.fail), "restore", 2, {"model_out": "b"})
    assert [entry["id"] for entry in read_ledger(tmp_path).active] == [1, 2, 3]


def test_a_line_cut_off_anywhere_is_noticed_by_readers_and_taken_out_by_the_next_writer(tmp_path):
    path = filled(tmp_path, 2)
    whole = path.read_bytes()
    first = whole[: whole.index(b"\n") + 1]
    for length in range(len(first) + 1, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert read_ledger(tmp_path).torn == length - len(first)
        assert path.read_bytes() == whole[:length]
    said: list[str] = []
    ledger = open_ledger(tmp_path, said.append)
    assert path.read_bytes() == first and len(said) == 1
    assert "cut off" in said[0] and "start the interrupted command again" in said[0]
    append(tmp_path, ledger, "request", 2, FACTS)
    assert [entry["id"] for entry in read_ledger(tmp_path).requests] == [1, 2]


def test_a_last_line_that_lacks_its_line_break_alone_counts(tmp_path):
    path = filled(tmp_path, 2)
    path.write_bytes(path.read_bytes()[:-1])
    append(tmp_path, open_ledger(tmp_path, pytest.fail), "request", 3, FACTS)
    assert [entry["id"] for entry in read_ledger(tmp_path).requests] == [1, 2, 3]


def test_a_changed_line_is_named(tmp_path):
    path = filled(tmp_path)
    path.write_text(path.read_text().replace('"id": 2', '"id": 9'))
    with pytest.raises(UserError, match="line 2: not as it was written"):
        read_ledger(tmp_path)


@pytest.mark.parametrize("order", [[0, 2], [1, 2], [0, 2, 1], [0, 0, 1, 2]])
def test_a_line_that_was_taken_out_moved_or_repeated_is_noticed(tmp_path, order):
    path = filled(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[i] for i in order))
    with pytest.raises(UserError, match="does not follow the line before it"):
        read_ledger(tmp_path)


@pytest.mark.parametrize("line", [b"", b"{}", b"[1]", b"\xff\xfe", b"[" * 9999, b"null"])
def test_what_is_no_line_of_a_ledger_is_named(tmp_path, line):
    path = filled(tmp_path, 1)
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(UserError, match="line 2: not a line of a ledger"):
        read_ledger(tmp_path)


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = filled(tmp_path)
    before, write = path.read_bytes(), os.write

    def full(handle, data):
        write(handle, bytes(data)[:7])
        raise OSError(28, "No space left on device")

    ledger = open_ledger(tmp_path, pytest.fail)
    monkeypatch.setattr("unteach.requests.ledger.os.write", full)
    with pytest.raises(OSError):
        append(tmp_path, ledger, "request", 4, FACTS)
    assert path.read_bytes() == before


def test_an_unknown_request_is_answered_with_the_known_ones(tmp_path):
    filled(tmp_path, 2)
    with pytest.raises(UserError, match=r"no request 7 .*1, 2"):
        read_ledger(tmp_path).request(7)


def test_models_that_later_requests_went_on_from_are_found(tmp_path):
    filled(tmp_path, 2)
    for name in ("request-001/round-1/model", "request-002/round-1/model"):
        (tmp_path / name).mkdir(parents=True)
    assert superseded_models(tmp_path) == [tmp_path / "request-001/round-1/model"]


def test_every_line_is_plain_json(tmp_path):
    assert all(json.loads(line)["sha256"] for line in filled(tmp_path).read_text().splitlines())
