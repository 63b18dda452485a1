"""Atomic writes, and JSON lines."""

from __future__ import annotations

import json
import os

import pytest

from unteach.files import atomic
from unteach.files.atomic import read_json_lines, write_json, write_text_atomically


def test_a_write_replaces_the_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"a": "äöü"})
    write_json(path, {"a": [1, None]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [1, None]}
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


def test_a_write_that_is_cut_off_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text_atomically(path, "old")

    def crash(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(atomic.os, "fsync", crash)
        write_text_atomically(path, "new")
    assert path.read_text() == "old"
    write_text_atomically(path, "newer")
    assert path.read_text() == "newer" and os.listdir(tmp_path) == ["a.txt"]


def test_separators_inside_a_text_do_not_cut_its_line(tmp_path):
    values = [{"text": "a\u2028b\u0085c\u2029d\x0be"}, {"text": "next"}]
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values) + "\n",
        encoding="utf-8",
    )
    assert read_json_lines(path) == values


def test_a_line_that_is_no_json_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n{\n")
    with pytest.raises(ValueError, match="Expecting property name"):
        read_json_lines(tmp_path / "a.jsonl")
