"""Files that are replaced in one go."""

from __future__ import annotations

import json
import os

import pytest

from unteach.files import atomic
from unteach.files.atomic import write_json, write_text_atomically


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
