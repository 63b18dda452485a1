"""Files of one JSON value a line."""

from __future__ import annotations

import json

import pytest

from unteach.files.json_lines import read_json_lines


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
