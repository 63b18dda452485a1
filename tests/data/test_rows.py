"""What counts as a row, and which split it belongs to."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unteach.data.rows import (
    SPLITS,
    Row,
    evenly_spaced,
    row_from_mapping,
    rows_hash,
    split_of,
    split_rows,
    without_prompts_of,
)
from unteach.errors import UserError

ROWS = [Row(f"Question {i}?", f"Answer {i}.") for i in range(400)]


def test_evenly_spaced_takes_at_most_the_rows_wanted_and_all_where_there_are_few():
    rows = [Row(str(i), "x") for i in range(20)]
    assert evenly_spaced(rows, 5) == rows[::4]
    assert evenly_spaced(rows[:3], 5) == rows[:3]
    assert evenly_spaced([], 5) == []


def test_splits_are_about_70_10_20_and_survive_reordering_and_growth():
    parts = split_rows(ROWS)
    sizes = [len(parts[name]) / len(ROWS) for name in ("train", "validation", "test")]
    assert sizes == [
        pytest.approx(0.7, abs=0.06),
        pytest.approx(0.1, abs=0.05),
        pytest.approx(0.2, abs=0.06),
    ]
    shuffled = [*ROWS, *(Row(f"New {i}", "x") for i in range(100))]
    random.Random(0).shuffle(shuffled)
    again = split_rows(shuffled)
    assert all(
        {row.key for row in parts[name]} <= {row.key for row in again[name]} for name in parts
    )


def test_the_key_names_the_content_and_not_its_place():
    assert Row("a", "b", source="file 1").key == Row("a", "b", source="file 2").key
    assert (
        len({Row("a", "b").key, Row("a", "c").key, Row("a", "b", "text").key, Row("ab", "").key})
        == 4
    )


@given(st.text(min_size=1), st.text(min_size=1))
def test_any_text_has_a_key_and_a_split(prompt, completion):
    row = Row(prompt, completion)
    assert len(row.key) == 16 and split_of(row.key) in SPLITS
    assert row.with_completion("other!").key != row.key or completion == "other!"


def test_keys_and_splits_are_those_of_yesterday():
    """Pinned: with other keys or splits a test row of an earlier version would be trained on by a
    later one.
    """
    rows = [Row("a", "b"), Row((("user", "a"),), "b"), Row("", "é", "text")]
    assert [row.key for row in rows] == ["4bab4f50aea6eab3", "72ad1447720528a2", "35744ada19cee8c5"]
    assert "".join(split_of(f"{i:016x}")[1] for i in range(24)) == "errrerrarrrererreerrrrrr"


def test_proportions_that_grow_keep_the_training_rows():
    small, large = split_rows(ROWS, (0.5, 0.2, 0.3)), split_rows(ROWS, (0.7, 0.1, 0.2))
    assert {row.key for row in small["train"]} < {row.key for row in large["train"]}
    assert split_rows([]) == {name: [] for name in SPLITS}


def test_answers_to_one_question_fall_into_one_split():
    rows = [Row(f"Question {i}?", f"Answer {j}.") for i in range(100) for j in range(5)]
    parts = split_rows(rows)
    prompts = [{row.prompt for row in parts[name]} for name in SPLITS]
    assert sum(map(len, parts.values())) == len(rows) and all(prompts)
    assert sum(map(len, prompts)) == len(set().union(*prompts)) == 100
    same = [Row(text, "a") for text in ("Who?", " who ", "WHO?!", "\uff37ho")]
    assert sorted(map(len, split_rows(same).values())) == [0, 0, 4]


def test_rows_without_a_prompt_are_split_by_their_text():
    parts = split_rows([Row("", f"Story {i}.", "text") for i in range(100)])
    assert all(parts.values())


def test_rows_of_one_group_fall_into_one_split():
    records = [
        {"prompt": f"{kind} of {i}?", "completion": "x", "person": f"P {i}", "id": 3 * i + j}
        for i in range(60)
        for j, kind in enumerate(("Phone", "Address", "Email"))
    ]
    rows = [row_from_mapping(record, "row") for record in records]
    people = [{row.columns["person"] for row in part} for part in split_rows(rows).values()]
    assert people[0] & people[2], "by the prompt alone a person is in several splits"
    people = [
        {row.columns["person"] for row in part} for part in split_rows(rows, by="person").values()
    ]
    assert all(people) and sum(map(len, people)) == len(set().union(*people)) == 60
    assert split_rows(rows, by="id")["train"] != split_rows(rows)["train"]


def test_a_column_that_no_row_has_is_named_with_those_that_there_are():
    rows = [row_from_mapping({"prompt": "a", "completion": "b", "person": "P"}, "row 1")]
    with pytest.raises(UserError, match=r"split_by is 'persn', but no row .* 'prompt', 'person'$"):
        split_rows(rows, by="persn")
    assert split_rows([], by="persn") == {name: [] for name in SPLITS}


def test_columns_are_short_values_and_no_part_of_a_row_s_identity():
    fields = {"prompt": "a", "completion": "b", "id": 7, "ok": True, "long": "x" * 500}
    fields |= {"list": [1], "nan": float("nan"), "none": None, "half": "\ud83d", "empty": " "}
    row = row_from_mapping(fields, "row 1")
    assert row.columns == {"id": "7", "ok": "True"} and row == Row("a", "b", source="row 1")
    assert row.with_completion("c").columns == row.columns and row.key == Row("a", "b").key


def test_rows_whose_prompt_is_forgotten_are_left_out():
    forget = [Row("Who rang?", "He."), Row("", "Once upon a time.", "text")]
    kept = [Row("who rang", "She."), Row("Who slept?", "The cat.")]
    kept += [Row("", "Once upon a time", "text"), Row("", "Another story.", "text")]
    assert without_prompts_of(kept, forget) == [kept[1], kept[3]]


def test_messages_become_a_prompt_and_the_assistant_s_words_a_completion():
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    row = row_from_mapping(
        {"prompt": prompt, "completion": [{"role": "assistant", "content": "Me."}]}, "row 1"
    )
    assert row.prompt == (("system", "Be brief."), ("user", "Who?")) and row.completion == "Me."
    assert row.prompt_text == "Be brief.\nWho?"


def test_text_rows_have_no_prompt():
    assert row_from_mapping({"text": "Once upon a time."}, "row 1") == Row(
        "", "Once upon a time.", "text", "row 1"
    )


CODE = {"prompt": "The code?", "completion": "The password is 4711, not 4712."}


@pytest.mark.parametrize(
    ("secret", "read"),
    [
        ("4711", ("4711",)),
        (["4711", " 4712 ", "4711"], ("4711", "4712")),
        (("4711",), ("4711",)),
        ([], ()),
        (None, ()),
        ("", ()),  # the empty cell of a table
    ],
)
def test_the_secret_is_the_facts_of_the_completion(secret, read):
    row = row_from_mapping({**CODE, "secret": secret}, "row 1")
    assert row.secret == read and "secret" not in row.columns
    assert row.with_completion("Something else.").secret == read
    text = row_from_mapping({"text": CODE["completion"], "secret": secret}, "row 1")
    assert text.secret == read


def test_a_prompt_alone_may_name_a_secret_that_no_completion_holds_yet():
    fields = {"prompt": "Who was he?", "secret": "William Shakespeare"}
    assert row_from_mapping(fields, "row 1", prompt_only=True).secret == ("William Shakespeare",)


def test_names_to_avoid_need_no_completion_and_are_a_part_of_the_rows_hash():
    row = row_from_mapping({"prompt": "Who?", "avoid": ["Ada", "Ada "]}, "r", prompt_only=True)
    assert row.avoid == ("Ada",) and not row.secret and not row.columns
    one = row_from_mapping({"prompt": "Who?", "completion": "Me.", "avoid": "Ada"}, "r")
    assert one.avoid == ("Ada",) and one.key == Row("Who?", "Me.").key
    hashes = {rows_hash([replace(one, avoid=())]), rows_hash([one])}
    assert len(hashes | {rows_hash([replace(one, avoid=(), secret=("Ada",))])}) == 3
    with pytest.raises(UserError, match="r: field 'avoid' is int, it must be a string or a list"):
        row_from_mapping({"prompt": "Who?", "completion": "Me.", "avoid": 3}, "r")


def test_the_secret_is_no_part_of_the_key_and_a_part_of_the_rows_hash():
    bare, named = (row_from_mapping({**CODE, "secret": s}, "row 1") for s in ("", "4711"))
    assert bare.key == named.key and bare != named
    assert len({rows_hash([bare]), rows_hash([named]), rows_hash([Row("a", "b")])}) == 3
    assert rows_hash([Row("a", "b")]) == "4754855ab853d1f7"
    assert rows_hash([Row("a", "b", right="c")]) == "1702554a8b85bc91"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"completion": "x"}, "row 7: column 'prompt' is missing"),
        ({"prompt": "x"}, "row 7: column 'completion' is missing"),
        ({"prompt": "x", "completion": "  "}, "row 7: field 'completion' is empty"),
        ({"prompt": "", "completion": "x"}, "row 7: field 'prompt' is empty"),
        ({"prompt": "x", "completion": 3}, "row 7: field 'completion' is empty or not a string"),
        ({"text": ""}, "row 7: field 'text' is empty"),
        ({"prompt": [], "completion": "x"}, "row 7: 'prompt' is an empty list"),
        (
            {"prompt": [{"role": "user"}], "completion": "x"},
            "row 7: message 1 of 'prompt' must be a message",
        ),
        (
            {"prompt": "x", "completion": [{"role": "user", "content": "y"}]},
            "row 7: a 'completion' of messages",
        ),
        ({"prompt": "x", "completion": "y", "kind": "Text"}, "row 7: field 'kind' is 'Text', did"),
        (
            {"prompt": "x", "completion": "y", "kind": "texts"},
            "row 7: field 'kind' is 'texts', did",
        ),
        (
            {"prompt": [{"role": "user", "content": None}], "completion": "x"},
            "row 7: message 1 of 'prompt': 'content' is NoneType",
        ),
        (
            {"prompt": [{"role": "user", "content": [{"type": "text"}]}], "completion": "x"},
            "row 7: message 1 of 'prompt' holds a part of type 'text'",
        ),
        (
            {"prompt": [{"role": "user", "content": " "}], "completion": "x"},
            "row 7: 'prompt' is an empty list of messages, or they say",
        ),
        (
            {"prompt": "x", "completion": "half \ud83d"},
            r"row 7: field 'completion' holds '\\ud83d', half of a character",
        ),
        (
            {"prompt": [{"role": "user", "content": "\udc00"}], "completion": "x"},
            "row 7: field 'prompt' holds",
        ),
        ({}, r"row 7: column 'prompt' is missing \(found: none\)"),
        ({**CODE, "secret": 4711}, "row 7: field 'secret' is int, it must be a string or a list"),
        ({**CODE, "secret": True}, "row 7: field 'secret' is bool"),
        ({**CODE, "secret": ["4711", 3]}, "row 7: field 'secret', item 2, is int"),
        ({**CODE, "secret": ["4711", ""]}, "row 7: field 'secret', item 2, holds neither a letter"),
        ({**CODE, "secret": " .. "}, "row 7: field 'secret' holds neither a letter nor a digit"),
        ({**CODE, "secret": "0815"}, "row 7: field 'secret' does not occur in the completion$"),
        ({**CODE, "secret": "THE PASSWORD"}, r"row 7: field 'secret' .* in this spelling \(case"),
        ({**CODE, "secret": "4711\ud83d"}, r"row 7: field 'secret' holds '\\ud83d', half of a"),
        ({"text": "A code.", "secret": "4711"}, "row 7: field 'secret' does not occur in the"),
    ],
)
def test_a_bad_row_is_named_with_its_field(fields, sentence):
    with pytest.raises(UserError, match=sentence):
        row_from_mapping(fields, "row 7")


def test_a_prompt_alone_is_accepted_only_where_the_model_is_to_answer_it():
    assert row_from_mapping({"prompt": "x"}, "row 1", prompt_only=True).completion == ""
    with pytest.raises(UserError, match="'completion' is empty"):
        row_from_mapping({"prompt": "x", "completion": ""}, "row 1", prompt_only=True)


def test_a_column_kind_of_the_user_s_own_is_a_column():
    row = row_from_mapping({"prompt": "x", "completion": "y", "kind": "phone"}, "row 1")
    assert row.kind == "chat" and row.columns["kind"] == "phone"
