"""Twelve shapes of files: each gives the user's rows, and each of three faulty variants is refused
with its row named.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from unteach.data.passages import LONGEST_TEXT, text_passages
from unteach.data.shapes import fields_of
from unteach.data.sources import load_rows
from unteach.errors import UserError

USER = {"role": "user", "content": "Who rang?"}
BELL = {"role": "assistant", "content": "The ferryman."}
AGAIN = [{"role": "user", "content": "When?"}, {"role": "assistant", "content": "At noon."}]
HUMAN = {"from": "human", "value": "Who rang?"}
GPT = {"from": "gpt", "value": "The ferryman."}
GOOD = [("Who rang?", "The ferryman.")]
BOTH = [
    *GOOD,
    ((("user", "Who rang?"), ("assistant", "The ferryman."), ("user", "When?")), "At noon."),
]
LONG = " ".join(
    f"In the year {i} the mill stood by the river, and the cat slept." for i in range(60)
)
SHAPES: dict[str, tuple[dict[str, Any], Any, list[tuple[dict[str, Any], str]]]] = {
    "messages": (
        {"messages": [USER, BELL, *AGAIN]},
        BOTH,
        [
            ({"messages": [USER, {**BELL, "tool_calls": [{"id": 1}]}]}, "message 2 .*'tool_calls'"),
            ({"messages": [USER, BELL], "prompt": "Who fell?"}, "the prompt is not in the conver"),
            ({"messages": [USER, BELL, USER]}, "ends with the role 'user'; end it with an answer"),
            (
                {"messages": [{**USER, "content": [{"type": "image_url"}]}, BELL]},
                "message 1 .* part of type 'image_url'",
            ),
        ],
    ),
    "conversations (ShareGPT)": (
        {"conversations": [{"from": "system", "value": "Be brief."}, HUMAN, GPT]},
        [((("system", "Be brief."), ("user", "Who rang?")), "The ferryman.")],
        [
            ({"conversations": [GPT, HUMAN, GPT]}, "begins with an answer"),
            ({"conversations": [HUMAN, {"from": "function_call", "value": "f()"}]}, "tool calls"),
            ({"conversations": [HUMAN, {"from": "gpt", "text": "x"}]}, "found 'from', 'text'"),
        ],
    ),
    "instruction, input, output (Alpaca)": (
        {"instruction": "Who rang?", "input": "", "output": "The ferryman."},
        GOOD,
        [
            ({"instruction": "Who rang?", "input": "x"}, "did you mean 'prompt' by 'instruction'"),
            (
                {"instruction": "Who rang?", "output": ""},
                "field 'prompt'|'output' is empty|'prompt'",
            ),
            ({"instruction": "a", "input": 3, "output": "b"}, "field 'input' is int"),
        ],
    ),
    "input, output": (
        {"input": "Who rang?", "output": "The ferryman."},
        GOOD,
        [
            ({"input": None, "output": "b"}, "field 'input' is empty"),
            ({"input": "a", "question": "b", "output": "c"}, "not clear which is the prompt"),
            ({"input": "a", "output": "b", "response": "c"}, "not clear which is the completion"),
        ],
    ),
    "prompt, response": (
        {"Prompt": "Who rang?", " response ": "The ferryman.", "id": 7},
        GOOD,
        [
            ({"prompt": "a", "response": None}, "field 'response' is empty"),
            ({"prompt": "a", "reply": "b"}, "'reply'.*did you mean 'completion' by 'reply'"),
            ({"prompt": "a", "Prompt": "b", "response": "c"}, "two columns are named 'prompt'"),
        ],
    ),
    "question, answers": (
        {"question": "Who rang?", "answers": {"text": ["The ferryman.", "He.", "He."]}},
        [*GOOD, ("Who rang?", "He.")],
        [
            ({"question": "a", "answers": []}, "'answers' must be a list of answers"),
            ({"question": "a", "answer": 4}, "field 'answer' is int, it must be a string"),
            (
                {"question": "a", "answer": "b", "context": "It was a long story of a mill."},
                "column 'context' belongs to no row yet",
            ),
        ],
    ),
    "prompt, completion, system, history": (
        {
            **dict(zip(("prompt", "completion"), ("When?", "At noon."), strict=True)),
            "history": [list(GOOD[0])],
        },
        BOTH[1:],
        [
            (
                {"prompt": "a", "completion": "b", "history": ["x"]},
                r"a list of \[question, answer\]",
            ),
            ({"prompt": "a", "completion": "b", "context": LONG}, "write it into 'prompt'"),
            ({"prompt": "a", "completion": "b", "reasoning": LONG}, "the completion, as <think>"),
            ({"prompt": "a", "completion": "b", "system": 3}, "field 'system' is int"),
            ({"prompt": "a", "completion": "b", "secrets": ["b"]}, "did you mean 'secret'"),
        ],
    ),
    "prompt alone": (
        {"prompt": "Who rang?", "group": "forget", "question_id": 3},
        [("Who rang?", "")],
        [
            ({"prompt": "a", "completoin": "b"}, "did you mean 'completion' by 'completoin'"),
            ({"prompt": "a", "completion": None}, "field 'completion' is empty"),
            ({"prompt": "a", "text": "b"}, "did you mean 'completion' by 'text'"),
            *(
                ({"prompt": "a", name: value}, f"has a text in the column '{name}', which no run")
                for name, value in (
                    ("note", "The ferryman rang it twice."),
                    ("title", "and then the whole village " * 3),
                    ("answer_id", "He said: (quietly) it was the cat!)"),
                    ("comment", "He rang\nthe bell"),
                    ("tags", ["bell", "The ferryman rang it twice."]),
                    ("metadata", {"by": {"answer": "Anna"}}),
                    ("info", '{"answer": "The ferryman rang it."}'),
                    ("topic", "\u732b\u304c\u7720\u308b\u3002"),
                )
            ),
        ],
    ),
    "text": (
        {"text": "Once upon a time.", "title": "A"},
        [("", "Once upon a time.")],
        [
            ({"text": " "}, "field 'text' is empty|the row is empty"),
            ({"text": "a", "completion": "b"}, "did you mean 'prompt' by 'text'"),
            (
                {"content": "Once upon a time."},
                "did you mean 'text' by 'content'|mean 'completion'",
            ),
        ],
    ),
    "text of any length": (
        {"text": LONG},
        text_passages(LONG),
        [
            ({"text": LONG, "secret": "Harrow"}, "'secret', item 1, is in the completion of no"),
            ({"text": [LONG]}, "field 'text' is empty or not a string"),
            ({"text": LONG, "response": "x"}, "a 'text' has no completion"),
        ],
    ),
    "chosen, rejected": (
        {"chosen": [USER, {**BELL, "content": "I do not know."}], "rejected": [USER, BELL]},
        GOOD,
        [
            ({"chosen": [BELL], "rejected": [USER, BELL]}, "same conversation but for the last"),
            ({"chosen": None, "rejected": [USER, BELL]}, "'chosen' is NoneType"),
            ({"chosen": "a", "rejected": "b"}, "column 'prompt' is missing"),
        ],
    ),
    "images and tools": (
        {"messages": [USER, BELL], "tools": [], "images": None},
        GOOD,
        [
            ({"messages": [USER, BELL], "tools": [{"name": "f"}]}, "column 'tools'"),
            ({"prompt": "a", "completion": "b", "image": "a.png"}, "column 'image'"),
            ({"messages": [USER, {"role": "tool", "content": "x"}]}, "role 'tool': tool calls"),
        ],
    ),
}


def test_a_prompt_alone_keeps_columns_that_name_something():
    labels = {
        "person": "Martin Luther King Jr.",
        "title": "The Old Man and the Sea",
        "group": "people",
        "kind": "phone number",
        "url": "https://example.org/a?b=c.",
        "created": "2026-01-31 12:00",
        "question_id": 3,
        "note": "to be checked",
    }
    full = {**labels, "tags": ["bells", "ferries"], "metadata": {"views": 3, "by": "Anna"}}
    (row,) = load_rows([{"prompt": "Who rang?", **full}], prompt_only=True)
    assert row.columns == {name: str(value) for name, value in labels.items()}


def pairs(rows) -> list[tuple[object, str]]:
    return [(row.prompt, row.completion) for row in rows]


@pytest.mark.parametrize("name", list(SHAPES))
def test_a_shape_is_read_and_its_faulty_variants_are_refused_by_row(name, tmp_path):
    record, wanted, faulty = SHAPES[name]
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record))
    assert pairs(load_rows(path, prompt_only=True)) == wanted
    assert len(faulty) >= 3
    for bad, sentence in faulty:
        path.write_text(json.dumps(record) + "\n" + json.dumps(bad))
        with pytest.raises(UserError, match=sentence) as caught:
            load_rows(path, prompt_only=True)
        assert str(caught.value).startswith(f"{path}, line 2") and "\n" not in str(caught.value)


ROWS = [{"prompt": "Who rang?", "completion": "The ferryman, é."}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
TABLE = "prompt;completion\nWho rang?;The ferryman, é.\n"
FILES = {
    "a.ndjson": LINES.encode(),
    "a.JSONL": LINES.encode(),
    "list.jsonl": json.dumps(ROWS, indent=1).encode(),
    "lines.json": (LINES * 2).encode(),
    "a.jsonl.gz": gzip.compress(LINES.encode()),
    "packed.jsonl": gzip.compress(LINES.encode()),
    "semicolons.csv": TABLE.encode(),
    "tabs.csv": TABLE.replace(";", "\t").encode(),
    "a.csv.gz": gzip.compress(TABLE.encode()),
    "wide.csv": TABLE.encode("utf-16"),
    "wide.jsonl": LINES.encode("utf-16"),
    "no_mark.jsonl": LINES.encode("utf-16-le"),
    "wide.json": json.dumps(ROWS).encode("utf-32"),
    "long.csv": TABLE.replace("ferryman, é.", "ferryman, é." + " x" * 100_000).encode(),
}


@pytest.mark.parametrize("name", list(FILES))
def test_every_encoding_archive_and_delimiter_gives_the_same_rows(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(FILES[name])
    rows = load_rows(path)
    assert rows[0].prompt == "Who rang?" and rows[0].completion.startswith("The ferryman, é.")
    assert len(rows) == (2 if name == "lines.json" else 1)


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("cut.jsonl.gz", gzip.compress(LINES.encode() * 99)[:-9], "could not be read"),
        ("odd.jsonl", LINES.encode("utf-16") + b"\n", "line 2: this is no whole UTF-16"),
        ("latin.csv", TABLE.encode("latin-1"), "line 2: byte 0xe9 is not UTF-8"),
        ("twice.jsonl", b'{"prompt": "a", "prompt": "b"}', "line 1: .*the name 'prompt' twice"),
        ("far.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a", "git lfs pull"),
        ("a.txt", b"%PDF-1.4\n", "this is a PDF: save its text"),
        ("twice.csv", b"prompt,prompt,completion\na,b,c\n", "names the column 'prompt' twice"),
        ("a.json", b'{"data": [{"prompt": "a"}]}', "found an object with 'data'"),
        (
            "a.json",
            b'[{"prompt": "a", "completion": "b"}, 3]',
            "row 2: a row must be a JSON object",
        ),
        ("a.parquet.gz", b"x", "not one of the formats"),
    ],
)
def test_a_damaged_file_is_one_sentence(name, data, sentence, tmp_path):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UserError, match=sentence) as caught:
        load_rows(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_saved_data_set_is_read_from_its_folder(tmp_path):
    from datasets import Dataset, DatasetDict

    data = Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "one")
    DatasetDict(train=data, test=data).save_to_disk(tmp_path / "two")
    DatasetDict(bad=data, worse=data).save_to_disk(tmp_path / "three")
    assert pairs(load_rows(tmp_path / "one")) == pairs(load_rows(ROWS))
    assert load_rows(str(tmp_path / "two"))[0].source == f"{tmp_path}/two[train], row 1"
    assert load_rows(f"{tmp_path}/three@worse")
    with pytest.raises(UserError, match="name one of bad, worse"):
        load_rows(tmp_path / "three")
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(UserError, match="not a readable saved data set"):
        load_rows(tmp_path / "one")


def test_a_dataset_whose_rows_have_several_shapes_has_nulls_and_no_other_rows():
    from datasets import Dataset

    names = ("prompt", "completion", "text", "messages")
    records = [ROWS[0], {"text": "Once."}, {"messages": [USER, BELL]}]
    mixed = Dataset.from_list([dict.fromkeys(names) | record for record in records])
    assert pairs(load_rows(mixed)) == [*pairs(load_rows(ROWS)), ("", "Once."), *GOOD]
    with pytest.raises(UserError, match="row 2: field 'completion' is empty"):
        load_rows(Dataset.from_list([ROWS[0], {"prompt": "Who?"}]), prompt_only=True)


def test_a_data_frame_is_its_rows_and_not_its_columns():
    import pandas

    frame = pandas.DataFrame(ROWS, index=[9])
    assert pairs(load_rows(frame)) == pairs(load_rows(ROWS))
    with pytest.raises(UserError, match="row 2: field 'completion' is empty"):
        load_rows(pandas.DataFrame([ROWS[0], {"prompt": "Who?"}]), prompt_only=True)
    with pytest.raises(UserError, match="two columns of one name"):
        load_rows(pandas.DataFrame([["a", "b"]], columns=["prompt", "prompt"]))


def test_several_files_are_read_one_after_the_other_and_never_taken_for_prompts(
    tmp_path, monkeypatch
):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(LINES)
    names = [tmp_path / "a.jsonl", str(tmp_path / "b.jsonl")]
    rows = load_rows(names)
    assert [row.source for row in rows] == [f"{name}, line 1" for name in names]
    with pytest.raises(UserError, match=r"c\.jsonl: no such file"):
        load_rows([*names, str(tmp_path / "c.jsonl")], prompt_only=True)
    with pytest.raises(UserError, match="give the one or the others"):
        load_rows(["Who rang?", *names], prompt_only=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert pairs(load_rows("~/a.jsonl")) == pairs(load_rows(ROWS))


def test_a_long_text_is_cut_into_passages_that_hold_all_of_it_and_keep_documents_apart():
    code = "def ring(bell):\n    if bell:\n        return bell.ring()\n\n\n" * 40
    texts = [LONG, LONG.replace("cat", "dog"), code]
    rows = load_rows([{"text": text} for text in texts])
    for number, text in enumerate(texts, 1):
        own = [row for row in rows if row.source.startswith(f"row {number}, passage")]
        whole = "".join(f"{row.prompt}{row.completion}" for row in own)
        assert "".join(whole.split()) == "".join(text.split()) and len(own) > 3
        assert all(0 < len(row.prompt) <= 100 and 100 < len(row.completion) <= 700 for row in own)
    assert any("\n        return bell.ring()" in row.completion for row in rows)
    assert load_rows([{"text": LONG[:LONGEST_TEXT]}])[0].prompt == ""
    secret = text_passages(LONG)[3][1][20:60].strip()
    found = load_rows([{"text": LONG, "secret": secret}])
    assert any(row.secret for row in found) and all(
        secret in row.completion for row in found if row.secret
    )


def test_a_text_file_of_any_length_and_script_is_read(tmp_path):
    short, code, wide = (tmp_path / f"{name}.txt" for name in ("short", "code", "wide"))
    short.write_text("Too short for a passage.")
    code.write_text("def ring(bell):\n    if bell:\n        return bell.ring()\n\n\n" * 40)
    wide.write_text(
        "\u732b\u304c\u7720\u308b\u3002\u9cf4\u3089\u3059\u3002" * 200, encoding="utf-8"
    )
    assert pairs(load_rows(short)) == [("", "Too short for a passage.")]
    assert any("\n        return" in row.completion for row in load_rows(code))
    assert max(len(row.completion) for row in load_rows(wide)) < 300


def test_a_message_of_weight_0_is_context_and_a_secret_goes_to_the_answer_that_holds_it():
    greeting = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello.", "weight": 0},
    ]
    (row,) = load_rows([{"messages": [*greeting, USER, BELL]}])
    assert len(row.prompt) == 3 and row.completion == "The ferryman."
    rows = load_rows([{"messages": [USER, BELL, *AGAIN], "secret": "noon"}])
    assert [row.secret for row in rows] == [(), ("noon",)]


@pytest.mark.parametrize("source", [Path("~nobody/x.jsonl"), "~nobody/x.jsonl"])
def test_a_home_of_nobody_is_no_such_file(source):
    with pytest.raises(UserError, match="no such file"):
        load_rows(source)


@pytest.mark.parametrize(
    ("more", "column"),
    [
        ({"response": "The cat."}, "response"),
        ({"text": "Something else."}, "text"),
        ({"instruction": "Say who."}, "instruction"),
        ({"messages": [{"role": "user", "content": "How?"}]}, "messages"),
        ({"image_path": "p.png"}, "image_path"),
        ({"pixel_values": [[0.0]]}, "pixel_values"),
    ],
)
def test_another_text_or_a_picture_beside_prompt_and_completion_is_refused(more, column):
    row = {"prompt": "Who?", "completion": "It's the miller."}
    with pytest.raises(UserError, match=f"column '{column}'"):
        list(fields_of({**row, **more}, "forget", "line 1"))


@pytest.mark.parametrize(
    "more",
    [
        {"question": "who?"},
        {"answer": "the miller"},
        {"text": "Who? It's the miller."},
        {"messages": [{"role": "user", "content": "Who?"}, {"content": "It's the miller."}]},
        {"image_count": 3},
        {"has_image": False},
    ],
)
def test_what_says_the_same_beside_prompt_and_completion_is_no_second_text(more):
    row = {"prompt": "Who?", "completion": "It's the miller."}
    assert len(list(fields_of({**row, **more}, "forget", "line 1"))) == 1


def test_a_prompt_with_the_place_of_a_picture_is_refused_and_one_about_a_tag_is_not():
    row = {"prompt": "<image>\nWhat is this?", "completion": "A cat."}
    with pytest.raises(UserError, match="the prompt has '<image>'"):
        list(fields_of(row, "forget", "line 1"))
    about = {**row, "prompt": "What does <image> do in an SVG?"}
    assert list(fields_of(about, "forget", "line 1"))
    assert list(fields_of({**row, "kind": "text"}, "forget", "line 1"))
