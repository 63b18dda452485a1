"""A short run of the fuzzer, and properties of the readers of data and settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz import Fuzzer, Result
from unteach.config.values import parse_settings, read_yaml
from unteach.data.check import check_files
from unteach.data.formats import SUFFIXES
from unteach.data.rows import Row, row_from_mapping
from unteach.data.sources import load_rows
from unteach.errors import UserError

FEW = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
PLAIN = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [
        "prompt",
        "completion",
        "text",
        "kind",
        "right",
        "secret",
        "question",
        "answer",
        "choices",
        "chosen",
        "rejected",
        "is_safe",
        "response",
    ]
)


@pytest.mark.timeout(900)
def test_no_broken_input_ends_in_a_traceback_a_hang_or_a_wrong_acceptance(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fuzzer = Fuzzer(tmp_path, seed=77)
    assert fuzzer.run(200) == []
    assert {
        "check_data: accepted",
        "check_data: refused",
        "run_settings: accepted",
        "run_settings: refused",
    } <= set(fuzzer.outcomes)


def test_an_interrupted_fuzz_goes_on_behind_its_last_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "log.jsonl"
    fuzzer = Fuzzer(tmp_path, seed=77)
    fuzzer.run(2, "reports", log)
    log.write_text(log.read_text() + '{"run": [77')
    fed: list[list[str]] = []
    again = Fuzzer(tmp_path, seed=77)
    monkeypatch.setattr(again, "feed", lambda argv: fed.append(argv) or Result(2, "", "unteach: x"))
    again.run(3, "reports", log)
    again.run(3, "reports", log)
    assert len(fed) == 1 and sum(again.outcomes.values()) == 6


@FEW
@given(st.dictionaries(FIELDS | st.text(max_size=8), PLAIN, max_size=5), st.booleans())
def test_a_record_is_a_whole_row_or_a_user_s_mistake(fields, prompt_only):
    try:
        row = row_from_mapping(fields, "row 7", prompt_only=prompt_only)
    except UserError as error:
        assert str(error).startswith("row 7: ") and "\n" not in str(error)
    else:
        assert (
            isinstance(row, Row)
            and row.kind in ("chat", "text")
            and (row.completion.strip() or prompt_only)
        )
        assert len(row.key) == 16 and f"{row.prompt_text}{row.completion}{row.right}".encode()


@FEW
@given(
    st.lists(st.dictionaries(FIELDS, PLAIN, max_size=5), max_size=4),
    st.sampled_from(["forget", "retain"]),
)
def test_a_list_of_records_loads_or_is_a_user_s_mistake(records, role):
    try:
        rows = load_rows(records, role)
    except UserError as error:
        assert str(error)
    else:
        assert rows and all(row.completion.strip() for row in rows)


@FEW
@given(st.binary(max_size=300), st.sampled_from(SUFFIXES))
def test_any_bytes_in_a_file_are_rows_or_a_user_s_mistake(tmp_path, data, suffix):
    path = tmp_path / f"any{suffix}"
    path.write_bytes(data)
    report = check_files(path, None)
    try:
        rows = load_rows(path, prompt_only=True)
    except UserError:
        assert report.problems
    else:
        assert len(rows) == int(report.summary[0].split()[1])


@FEW
@given(st.lists(PLAIN, min_size=1, max_size=6))
def test_every_bad_line_is_named_and_no_good_one(tmp_path, values):
    good = {"prompt": "Who?", "completion": "The ferryman."}
    lines = [json.dumps(line) for value in values for line in (value, good)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    named = " ".join(check_files(path, None).problems)
    for number, line in enumerate(lines, 1):
        bad = number % 2 == 1 and not isinstance(json.loads(line), dict)
        assert (f"{path}, line {number}:" in named) >= bad and (
            number % 2 == 1 or f"{path}, line {number}:" not in named
        )


@FEW
@given(st.text(max_size=60))
def test_any_text_as_yaml_is_plain_data_or_a_value_error(text):
    try:
        json.dumps(read_yaml(text), default=str, skipkeys=True)
    except ValueError as error:
        assert "\n" not in str(error) and str(error)


@FEW
@given(st.lists(st.text(max_size=40), max_size=4))
def test_any_words_are_settings_or_a_user_s_mistake(words):
    try:
        assert all(name.isidentifier() for name in parse_settings(words))
    except UserError as error:
        assert str(error)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]",
        "\n".join(
            ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40))]
        ),
        "a: 2001-99-99",
        "a: !!int x",
        f"a: {'9' * 5000}",
        f"a: 0x{'f' * 5000}",
        "? [a]\n: b",
        "a: !!python/object/apply:os.system [ls]",
        "[" * 3000,
    ],
    ids=[
        "alias of itself",
        "aliases that multiply",
        "no date",
        "no number",
        "long number",
        "large number",
        "list as key",
        "object",
        "deep",
    ],
)
def test_yaml_that_python_s_reader_trips_over_is_a_value_error(text):
    with pytest.raises(ValueError, match=r".") as caught:
        read_yaml(text)
    assert "\n" not in str(caught.value)


def test_bad_lines_are_all_named_up_to_a_limit(tmp_path):
    path = Path(tmp_path / "a.jsonl")
    path.write_bytes(
        b"".join(
            b'{"prompt": "a"\n' if i % 2 else b'{"prompt": "a", "completion": "\xff"}\n'
            for i in range(50)
        )
    )
    problems = check_files(path, None).problems
    assert len(problems) == 21 and problems[-1] == "... and 30 more of this kind"
    assert (
        "line 1: byte 0xff is not UTF-8" in problems[0] and "line 2: not valid JSON" in problems[1]
    )
