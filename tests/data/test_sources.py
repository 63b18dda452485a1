"""Every format, every known public set, and every way in which a file can be wrong."""

from __future__ import annotations

import json

import pytest

from unteach.data.passages import book_passages, sentences
from unteach.data.sources import load_rows
from unteach.errors import UserError

RECORDS = [
    {"prompt": "Who rang?", "completion": "The ferryman, äöü."},
    {"prompt": "Who slept?", "completion": 'The "cat", twice.'},
]


def write(path, text: str, encoding: str = "utf-8") -> str:
    path.write_text(text, encoding=encoding)
    return str(path)


def as_jsonl(records) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def pairs(rows) -> list[tuple[object, str]]:
    return [(row.prompt, row.completion) for row in rows]


def test_every_format_gives_the_same_rows(tmp_path):
    import csv

    import pyarrow
    import pyarrow.parquet
    from datasets import Dataset

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), tmp_path / "a.parquet")
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with (tmp_path / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["prompt", "completion"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(RECORDS)
    table = (tmp_path / "a.csv").read_text(encoding="utf-8")
    sources = [
        write(tmp_path / "bom.csv", table, "utf-8-sig"),
        write(tmp_path / "bom.json", json.dumps(RECORDS), "utf-8-sig"),
        write(tmp_path / "crlf.jsonl", as_jsonl(RECORDS).replace("\n", "\r\n")),
        write(tmp_path / "blank_lines.jsonl", as_jsonl(RECORDS).replace("\n", "\n\n")),
        (record for record in RECORDS),
        write(tmp_path / "a.jsonl", as_jsonl(RECORDS)),
        write(tmp_path / "bom.jsonl", as_jsonl(RECORDS), "utf-8-sig"),
        write(tmp_path / "a.json", json.dumps(RECORDS)),
        *(tmp_path / name for name in ("a.parquet", "a.csv", "a.tsv")),
        RECORDS,
        Dataset.from_list(RECORDS),
    ]
    for source in sources:
        assert pairs(load_rows(source)) == pairs(load_rows(RECORDS)), source


def test_a_cell_keeps_line_breaks_that_only_unicode_knows(tmp_path):
    """`str.splitlines` also splits at these; a table's rows end at line feeds alone."""
    cells = ["one\u2028two", "one\x0ctwo", "one\x85two"]
    table = "prompt,completion\n" + "".join(f"q,{cell}\n" for cell in cells) + 'q,"two\nlines"\n'
    assert [row.completion for row in load_rows(write(tmp_path / "a.csv", table))] == [
        *cells,
        "two\nlines",
    ]


def test_text_rows_and_message_lists_survive_a_parquet_file(tmp_path):
    import pyarrow
    import pyarrow.parquet

    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"prompt": messages, "completion": "Me."}]),
        tmp_path / "a.parquet",
    )
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"text": "Once upon a time."}]), tmp_path / "b.parquet"
    )
    assert pairs(load_rows(tmp_path / "a.parquet")) == [
        ((("system", "Be brief."), ("user", "Who?")), "Me.")
    ]
    assert load_rows(tmp_path / "b.parquet")[0].kind == "text"


def test_no_more_rows_are_read_than_the_limit_says():
    def endless():
        while True:
            yield RECORDS[0]

    assert len(load_rows(endless(), limit=3)) == 3


def test_a_list_of_questions_is_rows_to_be_answered():
    assert pairs(load_rows(["Who?", "When?"], prompt_only=True)) == [("Who?", ""), ("When?", "")]


SETS = {
    "PKU-SafeRLHF": (
        {
            "prompt": "q",
            "response_0": "bad",
            "response_1": "good",
            "is_response_0_safe": False,
            "is_response_1_safe": True,
        },
        ["bad"],
        ["good"],
    ),
    "BeaverTails": ({"prompt": "q", "response": "bad", "is_safe": False}, ["bad"], []),
    "TruthfulQA, file": (
        {"Question": "q", "Best Answer": "good", "Incorrect Answers": "bad; worse"},
        ["bad", "worse"],
        ["good"],
    ),
    "TruthfulQA, hub": (
        {"question": "q", "best_answer": "good", "incorrect_answers": ["bad"]},
        ["bad"],
        ["good"],
    ),
    "HaluEval QA": (
        {"knowledge": "k", "question": "q", "right_answer": "good", "hallucinated_answer": "bad"},
        ["bad"],
        ["good"],
    ),
    "TOFU": ({"question": "q", "answer": "a"}, ["a"], ["a"]),
    "PKU-SafeRLHF, both bad": (
        {
            "prompt": "q",
            "response_0": "bad",
            "response_1": "worse",
            "is_response_0_safe": False,
            "is_response_1_safe": False,
        },
        ["bad", "worse"],
        [],
    ),
    "BeaverTails, safe": ({"prompt": "q", "response": "good", "is_safe": True}, [], ["good"]),
    "BeaverTails, from a table": (
        {"prompt": "q", "response": "bad", "is_safe": "False"},
        ["bad"],
        [],
    ),
    "TruthfulQA, nothing wrong known": (
        {"question": "q", "best_answer": "good", "incorrect_answers": None},
        [],
        ["good"],
    ),
    "WMDP": ({"question": "q", "choices": ["x", "y"], "answer": 1}, ["y"], ["y"]),
}


@pytest.mark.parametrize("name", list(SETS))
def test_a_public_set_is_known_by_its_own_columns(name):
    record, forget, retain = SETS[name]
    for role, wanted in (("forget", forget), ("retain", retain)):
        if wanted:
            assert pairs(load_rows([record], role)) == [("q", answer) for answer in wanted]
        else:
            with pytest.raises(UserError, match=f"no rows for the {role} set"):
                load_rows([record], role)


def test_a_row_that_is_already_in_our_columns_is_left_alone():
    row = {"prompt": "Question: q", "completion": "c, c", "question": "q", "answer": "c"}
    assert pairs(load_rows([row])) == [("Question: q", "c, c")]
    with pytest.raises(UserError, match="column 'answer' has another text"):
        load_rows([{**row, "answer": "a b"}])


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"question": "q", "choices": ["x", "y"], "answer": 7}, "row 2: .*'answer' is 7"),
        (
            {"question": "q", "choices": ["x", "y"], "answer": "B"},
            "row 2: not a row of the public set",
        ),
        ({"question": "q", "choices": "['x', 'y']", "answer": 1}, "row 2: .*the list 'choices'"),
        (
            {"prompt": 7, "response": "a", "is_safe": True},
            "row 2: .*'prompt' must be a text that is not empty",
        ),
        (
            {"prompt": " ", "response": "a", "is_safe": True},
            "row 2: field 'prompt' is empty or not a string",
        ),
        (
            {"prompt": "q", "response": "a", "is_safe": "perhaps"},
            "row 2: .*'perhaps' is neither true nor false",
        ),
        (
            {"question": "q", "right_answer": None, "hallucinated_answer": None},
            "row 2: field 'completion' is empty",
        ),
        (3, "row 2: a row must be a dict or a prompt, found int"),
        ([{"role": "user", "content": "x"}], "row 2: a row must be a dict or a prompt, found list"),
    ],
)
def test_a_bad_record_of_a_list_is_named(record, sentence):
    with pytest.raises(UserError, match=sentence):
        load_rows([RECORDS[0], record])


def test_a_dataset_of_several_splits_is_refused_with_their_names():
    from datasets import Dataset, DatasetDict

    with pytest.raises(UserError, match=r"DatasetDict.*take one of 'train'"):
        load_rows(DatasetDict(train=Dataset.from_list(RECORDS)))
    with pytest.raises(UserError, match="NoneType"):
        load_rows(None)


def test_sentences_keep_their_closing_quotes():
    assert sentences('He said "no." Then left. Why?  Go!') == [
        'He said "no."',
        "Then left.",
        "Why?",
        "Go!",
    ]


def test_a_book_is_cut_into_passages_that_start_at_sentences_and_give_the_text_back(tmp_path):
    text = " ".join(
        f"Sentence number {i} tells of the miller and of his {i} grey cats." for i in range(40)
    )
    passages = book_passages(text)
    assert passages and all(
        prompt.startswith("Sentence number") and prompt.endswith("cats.") for prompt, _ in passages
    )
    for prompt, completion in passages:
        assert prompt + completion in text and 200 <= len(completion) < 215
    rows = load_rows(write(tmp_path / "book.txt", text))
    assert [row.kind for row in rows] == ["text"] * len(passages) and "passage 2" in rows[1].source


def test_passages_do_not_cross_paragraphs_that_are_long_enough():
    paragraph = "It was night. " + "The river ran on and on past the mill. " * 8
    passages = book_passages(paragraph + "\n\n" + paragraph.replace("night", "day"))
    assert passages[0][0] == "It was night." and "day" not in passages[0][1]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", b"", "the file is empty"),
        (
            "a.jsonl",
            b'{"prompt": "a", "completion": "b"}\n{"prompt": "\xe9"}\n',
            r"line 2: byte 0xe9 is not UTF-8 \(wrong encoding\)",
        ),
        ("a.jsonl", b'{"prompt": "a", "completion": "b"}\n{"prompt": \n', "line 2: not valid JSON"),
        ("a.jsonl", b"[1]\n", "line 1: a row must be a JSON object, found list"),
        (
            "a.jsonl",
            b'{"prompt": "a", "completion": "b"}\n{"question": "x"}\n',
            "line 2: column 'prompt' is missing",
        ),
        ("a.json", b'{"prompt": "a"}', "must hold one list"),
        ("a.csv", b"prompt,completion\na,b\nc,d,e\n", "line 3: more cells"),
        ("a.csv", b"prompt,completion\na,\n", "line 2: field 'completion' is empty"),
        ("a.csv", b"prompt,completion\na\n", "line 2: fewer cells"),
        ("a.csv", b"prompt,completion\n", "no rows for the forget set"),
        (
            "a.csv",
            b'prompt,completion\na,b\nc,"never closed\nd,e\n',
            "line 3: not a readable table",
        ),
        ("a.json", b'[{"prompt": "a",\n "completion" "b"}]', "line 2: not valid JSON"),
        (
            "a.json",
            b'[{"prompt": "a", "completion": "b"}, {"prompt": "c"}]',
            "row 2: column 'completion' is missing",
        ),
        ("a.jsonl", b"\xef\xbb\xbf\n\n", "no rows for the forget set"),
        ("a.parquet", b"", "not a readable Parquet file"),
        ("a.parquet", b"no parquet", "not a readable Parquet file"),
        ("a.docx", b"x", "not one of the formats"),
    ],
)
def test_a_bad_file_is_one_sentence_with_its_line(name, content, sentence, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=sentence) as caught:
        load_rows(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_and_an_unknown_dataset_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_rows(tmp_path / "nothing.jsonl")
    with pytest.raises(UserError, match="as a Hugging Face dataset it could not be loaded"):
        load_rows("nobody/nothing")
    with pytest.raises(UserError, match="not one of the formats"):
        load_rows(tmp_path)


def test_a_hub_dataset_is_asked_for_its_configuration_and_split(monkeypatch):
    asked = []

    def load_dataset(name, configuration, *, split):
        asked.append((name, configuration, split))
        if configuration == "none":
            raise ValueError("No such configuration.\nThere are:\n- a")
        return RECORDS

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert pairs(load_rows("owner/name:part", split="test")) == pairs(load_rows(RECORDS))
    assert load_rows("owner/name")[1].source == "owner/name[train], row 2"
    assert asked == [("owner/name", "part", "test"), ("owner/name", None, "train")]
    with pytest.raises(UserError) as caught:
        load_rows("owner/name:none")
    assert "ValueError: No such configuration. There are: - a" in str(caught.value)


def test_a_hub_dataset_may_name_its_split_and_one_that_has_only_another_gives_that(monkeypatch):
    splits = {"owner/one": ["validation"], "owner/two": ["test", "dev"]}

    def load_dataset(name, configuration, *, split):
        if split not in splits[name]:
            raise ValueError(f'Unknown split "{split}".')
        return RECORDS

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr(
        "datasets.get_dataset_split_names", lambda name, configuration: splits[name]
    )
    assert load_rows("owner/one")[1].source == "owner/one[validation], row 2"
    assert load_rows("owner/two@dev")[0].source == "owner/two[dev], row 1"
    with pytest.raises(
        UserError,
        match="'owner/two' has no split 'train'; name one of test, dev, as in owner/two@test",
    ):
        load_rows("owner/two")
    with pytest.raises(UserError, match="'owner/two@train' has no split 'train'"):
        load_rows("owner/two@train")


def test_other_columns_of_a_public_set_can_group_its_rows(tmp_path):
    path = tmp_path / "truthfulqa.csv"
    path.write_text(
        "Type,Category,Question,Best Answer,Incorrect Answers\nAdversarial,Myths,Who?,Me,You; Him\n"
    )
    rows = load_rows(path)
    assert [row.completion for row in rows] == ["You", "Him"]
    assert all(row.columns == {"Type": "Adversarial", "Category": "Myths"} for row in rows)


def test_a_public_set_s_record_keeps_its_secret_beside_the_answer_that_holds_it():
    tofu = {"question": "q", "answer": "He lives in Harrow.", "secret": "Harrow"}
    pair = {"prompt": "q", "rejected": "It is 4711.", "chosen": "No.", "secret": ["4711"]}
    for role in ("forget", "retain"):
        assert load_rows([tofu], role)[0].secret == ("Harrow",)
    assert load_rows([pair], "forget")[0].secret == ("4711",)
    assert load_rows([pair], "retain")[0].secret == ()
    with pytest.raises(UserError, match="row 1: field 'secret' does not occur"):
        load_rows([{**pair, "secret": "4712"}])


def test_a_table_s_secret_may_be_missing_in_some_rows(tmp_path):
    table = "prompt,completion,secret\nq,It is 4711.,4711\nr,Nothing.,\n"
    assert [row.secret for row in load_rows(write(tmp_path / "a.csv", table))] == [("4711",), ()]
