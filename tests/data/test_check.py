"""`unteach check` names every row that is wrong."""

from __future__ import annotations

import json
import re

import pytest

from unteach.cli import main
from unteach.data.check import check_files
from unteach.data.rows import row_from_mapping, split_of

FORGET = [
    {"prompt": f"Who is number {i}?", "completion": f"The ferryman, {i} times."} for i in range(12)
]
RETAIN = [
    {"prompt": f"What is thing {i}?", "completion": f"A sack of flour, {i}."} for i in range(12)
]


def file(path, records, extra: bytes = b"") -> str:
    path.write_bytes("".join(json.dumps(record) + "\n" for record in records).encode() + extra)
    return str(path)


@pytest.fixture
def good(tmp_path):
    return file(tmp_path / "forget.jsonl", FORGET), file(tmp_path / "retain.jsonl", RETAIN)


def test_a_good_pair_has_nothing_wrong(good, tokenizer, capsys):
    report = check_files(*good, tokenizer)
    assert not report.problems and not report.warnings
    assert report.summary[0] == "forget: 12 rows"
    split = check_files(*good, hold_out=0.3).summary[0]
    assert split.startswith("forget: 12 rows (train ")
    assert main(["check", "--forget", good[0], "--retain", good[1]]) == 0
    assert "Nothing wrong found" in capsys.readouterr().out


CASES = {
    "missing column": (
        [*FORGET, {"question": "Who?"}],
        RETAIN,
        b"",
        r"forget.jsonl, line 13: column 'prompt' is missing \(found: 'question'\)",
    ),
    "empty completion": (
        [*FORGET, {"prompt": "Who?", "completion": " "}],
        RETAIN,
        b"",
        r"forget.jsonl, line 13: field 'completion' is empty",
    ),
    "cut completion": (
        [*FORGET, {"prompt": "Who?", "completion": "word " * 200}],
        RETAIN,
        b"",
        (
            r"forget.jsonl, line 13: .* tokens.*more than max_length 128: truncation would cut the"
            r" completion"
        ),
    ),
    "same row in both": (
        FORGET,
        [*RETAIN, FORGET[3]],
        b"",
        r"retain.jsonl, line 13: the same row is in the forget set \(.*forget.jsonl, line 4\)",
    ),
    "same prompt in both": (
        FORGET,
        [*RETAIN, {"prompt": "who is  number 3?", "completion": "No one."}],
        b"",
        r"retain.jsonl, line 13: the same prompt is in the forget set",
    ),
    "bad JSON": (FORGET, RETAIN, b'{"prompt": "a"\n', r"forget.jsonl, line 13: not valid JSON"),
    "half a character": (
        [*FORGET, {"prompt": "Who?", "completion": "a \ud83d"}],
        RETAIN,
        b"",
        r"forget.jsonl, line 13: field 'completion' holds '\\ud83d'",
    ),
    "wrong encoding": (
        FORGET,
        RETAIN,
        b'{"prompt": "caf\xe9", "completion": "x"}\n',
        r"forget.jsonl, line 13: byte 0xe9 is not UTF-8",
    ),
    "format mismatch": (
        FORGET,
        [
            {"text": "The river ran on and on past the mill, and nobody asked where it went. " * 4}
            for _ in range(9)
        ],
        b"",
        (
            r"format mismatch between forget \(.*line 1\) and retain \(.*line 1\).*rows of kind"
            r" text: 0% of forget, 100% of retain"
        ),
    ),
}


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_a_fault_is_found_and_its_row_named(name, with_tokenizer, tmp_path, tokenizer):
    forget, retain, extra, sentence = CASES[name]
    paths = file(tmp_path / "forget.jsonl", forget, extra), file(tmp_path / "retain.jsonl", retain)
    report = check_files(*paths, tokenizer if with_tokenizer else None, max_length=128)
    assert any(re.search(sentence, problem) for problem in report.problems), report.problems


def test_all_bad_rows_are_named_and_not_the_first_alone(tmp_path):
    rows = [*FORGET, {"prompt": "a"}, {"prompt": "b", "completion": ""}, {"completion": "c"}]
    problems = check_files(file(tmp_path / "forget.jsonl", rows), None).problems
    assert len(problems) == 2 and "line 14" in problems[0] and "line 15" in problems[1], (
        "a prompt alone stands for the model's own answer"
    )


def test_rows_that_occur_twice_are_worth_a_warning(tmp_path):
    assert (
        "1 row(s) occur more than once"
        in check_files(file(tmp_path / "forget.jsonl", [*FORGET, FORGET[0]]), None).warnings[0]
    )


def test_the_command_ends_with_two_where_something_is_wrong(tmp_path, capsys):
    path = file(tmp_path / "forget.jsonl", [*FORGET, {"prompt": "a", "completion": ""}])
    assert main(["check", "--forget", path]) == 2
    assert "line 13" in capsys.readouterr().out


def test_answers_of_quite_another_length_are_a_mismatch_of_format(tmp_path):
    retain = [
        {
            "prompt": f"What is thing {i}?",
            "completion": "A sack of flour that stood in the mill for years. " * 12,
        }
        for i in range(12)
    ]
    (problem,) = check_files(
        file(tmp_path / "f.jsonl", FORGET), file(tmp_path / "r.jsonl", retain)
    ).problems
    assert re.search(r"median completion length: \d+ characters in forget, \d+ in retain", problem)


def test_answers_of_somewhat_different_lengths_are_not(tmp_path):
    retain = [
        record | {"completion": record["completion"] + " It is old." * (i % 3)}
        for i, record in enumerate(RETAIN)
    ]
    assert not check_files(
        file(tmp_path / "f.jsonl", FORGET), file(tmp_path / "r.jsonl", retain)
    ).problems


def test_a_merged_boundary_is_found_with_a_tokenizer(tmp_path, tokenizer):
    rows = [{"prompt": "The mill", "completion": "er kept a cat.", "kind": "text"}]
    found = check_files(file(tmp_path / "f.jsonl", rows), None, tokenizer).problems[-1]
    assert "line 1: the end of the prompt and the start of the completion" in found


def test_bad_rows_of_a_retain_set_are_named_too(good, tmp_path):
    path = file(tmp_path / "retain.jsonl", [*RETAIN, {"completion": "alone"}])
    (problem,) = check_files(good[0], path).problems
    assert "retain.jsonl, line 13: column 'prompt' is missing" in problem


def test_hundreds_of_findings_of_one_kind_are_cut_short(tmp_path):
    rows = [{"prompt": f"Who is {i}?", "completion": "word " * 50} for i in range(120)]
    problems = check_files(file(tmp_path / "f.jsonl", rows), None, max_length=20).problems
    assert len(problems) == 21 and problems[-1] == "... and 100 more of this kind"


def test_an_empty_file_and_a_missing_one_are_problems_and_no_crash(tmp_path):
    report = check_files(file(tmp_path / "empty.jsonl", []), tmp_path / "none.jsonl")
    assert (
        "empty.jsonl: the file is empty" in report.problems[0]
        and "none.jsonl: no such file" in report.problems[1]
    )


def test_square_brackets_of_names_and_columns_are_printed_as_they_are(tmp_path, capsys):
    path = file(tmp_path / "forget[red].jsonl", [{"[/b]": 1}])
    assert main(["check", "--forget", path]) == 2
    printed = capsys.readouterr().out
    assert "forget[red].jsonl, line 1" in printed and "'[/b]'" in printed


def test_columns_beside_a_prompt_alone_are_named(tmp_path):
    path = file(tmp_path / "f.jsonl", [{"prompt": "Who?", "note": "Anna", "group": 1}, *FORGET])
    (line,) = check_files(path, None).summary
    assert line.endswith("takes its place, column(s) 'group', 'note' only label the prompt")


def test_what_a_run_takes_and_refuses_check_takes_and_refuses_too(tmp_path, good):
    questions = file(tmp_path / "questions.jsonl", [{"prompt": row["prompt"]} for row in RETAIN])
    report = check_files(good[0], questions)
    assert not [problem for problem in report.problems if "completion" in problem], (
        "a run lets the model answer them"
    )
    assert "12 without a completion: what the model answers takes its place" in report.summary[1]
    held_out = next(
        row for row in FORGET if split_of(row_from_mapping(row, "").prompt_key) != "train"
    )
    few = file(tmp_path / "few.jsonl", [held_out])
    assert "none of its 1 row(s) falls into the training split" in " ".join(
        check_files(few, None, hold_out=0.3).problems
    )
    assert not check_files(few, None).problems, "a run forgets all rows"
