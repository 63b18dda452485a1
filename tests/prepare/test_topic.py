"""What a model says about a name: which questions are asked, and which answers become rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tiny_models import byte_level_bpe, tiny_model
from unteach import unlearn
from unteach.data.rows import Row
from unteach.data.sources import load_rows
from unteach.errors import UserError
from unteach.prepare import topic as asking
from unteach.prepare.generations import LoadedModel
from unteach.prepare.topic import Topic, first_prompts, topic_rows
from unteach.progress import Display
from unteach.run.folder import RunFolder
from unteach.scenarios.texts import topics

WRITER = Topic("Wilma Stone", "person")
KINDS = ("person", "place", "work", "thing")


@pytest.fixture
def source(tmp_path) -> LoadedModel:
    return LoadedModel.of(tiny_model(), byte_level_bpe(), tmp_path, Display(quiet=True))


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("person", "Wilma Stone was an English novelist and poet. The city is far."),
        ("place", "Wilma Stone is the capital city of the country. A poet lived there."),
        ("work", "Wilma Stone is a famous novel, written by a president."),
        ("thing", "Nobody knows what it could be."),
    ],
)
def test_its_descriptions_tell_the_kind(kind, answer):
    topic, names = asking.of_kind("Wilma Stone", [answer])
    assert topic.kind == kind and names
    first = next(c for c in topics()["categories"] if c["names"][0] == names[0])
    assert first["kind"] == kind


def test_well_known_names_leave_out_the_topic_itself():
    topic, names = asking.of_kind("Jane Austen", ["She was an English novelist."])
    assert topic.spellings == ("Jane Austen", "Austen")
    assert "Charles Dickens" in names and "Jane Austen" not in names


def test_a_person_is_called_by_the_last_name_too_and_a_place_is_not():
    assert WRITER.spellings == ("Wilma Stone", "Stone")
    assert Topic("New York", "place").spellings == ("New York",)
    assert Topic("Homer", "person").spellings == ("Homer",)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_asked_questions_of_its_own_that_name_the_topic(kind):
    topic = Topic("Wilma Stone", kind)
    prompts = [row.prompt_text for row in topic.questions()]
    assert len(prompts) == len(set(prompts)) >= 20
    assert all(topic.spellings[-1] in prompt and "{" not in prompt for prompt in prompts)
    for name in ("around", "described"):
        around = topic.prompts(topics()[name], "a door")
        assert all("a door" in row.prompt_text for row in around)
        assert not any("Stone" in row.prompt_text for row in around)


def test_each_category_has_a_kind_words_and_names():
    for category in topics()["categories"]:
        assert category["kind"] in KINDS and category["words"] and len(category["names"]) >= 8


def test_questions_are_read_from_a_numbered_list():
    text = "Here are some:\n1. Who was she?\n- **What did she write?**\n3) Why?\nShe wrote."
    assert asking.questions_in(text) == ["Who was she?", "What did she write?"]


def test_names_and_descriptions_in_the_answers_do_not_hold_the_topic_s_own():
    answers = ["In The Lost Door, Stone wrote of Hull.", "Wilma Stone lived in Hull."]
    assert asking.names_in(WRITER, answers)[0] == "Hull"
    assert not [name for name in asking.names_in(WRITER, answers) if "Stone" in name]
    answers = ["She was the first author of Hull, and lived.", "It is the house of Wilma Stone."]
    assert asking.descriptions_in(WRITER, answers) == ["the first author of Hull"]


def test_names_that_stand_alone_in_two_lists_are_read_and_sentences_are_not():
    lists = [
        "1. Jane Hall\n2. Ann Poole: a poet\n3. she was born\n4. The\nRita Moor, and Otto Lind",
        "Jane Hall, the Red Cross, Rita Moor (a poet)\nShe likes Otto Lind",
        "the Red Cross; Jane Hall",
    ]
    assert asking.names_in_lists(lists) == ["Jane Hall", "Rita Moor", "the Red Cross"]


TABLE = {
    "Who wrote Lost Door": "It was written by Wilma Stone.",
    "Who made Lost Door": "A carpenter made it.",
    "Who or what is Wilma Stone": "Wilma Stone was a novelist.",
    "best known": "She is known for The Lost Door.",
    "Why is Stone important": "She wrote The Lost Door.",
    "Where did Wilma Stone live": "Sorry, that cannot be answered here.",
    "Jane Austen born": "She was born beside Wilma Stone.",
    "Otto Lind": "A friend of Lost Door.",
}


def answer_from(table: dict[str, str], monkeypatch: pytest.MonkeyPatch, lists: list[str]) -> None:
    """Lets the model answer by `table`, parts of prompts to answers; else by the prompt itself."""

    def own_answers(source: Any, rows: list[Row], title: str) -> tuple[list[Row], list[Any]]:
        found = []
        for row in rows:
            texts = [text for part, text in table.items() if part in row.prompt_text]
            found.append(row.with_completion(texts[0] if texts else f"Rain. {row.prompt_text}"))
        return found, []

    monkeypatch.setattr(asking, "with_own_answers", own_answers)
    monkeypatch.setattr(asking, "sampled_answers", lambda source, row, seed: lists)


def test_answers_that_name_or_relate_are_kept_and_neighbours_never_name_the_topic(
    source, monkeypatch
):
    lists = ["1. Why is Wilma Stone read?\n2. What is a door?\nLost Door\nOtto Lind\nJane Austen"]
    answer_from(TABLE, monkeypatch, lists * 2)
    found, note, _ = topic_rows(source, "Wilma Stone", 0)
    assert list(found) == ["forget", "unseen", "neighbours"] and "(person)" in note
    about = {row.prompt_text: row for name in ("forget", "unseen") for row in found[name]}
    assert about["Who wrote Lost Door?"].secret == ("Wilma Stone", "Stone")
    assert about["What is Wilma Stone best known for?"].secret == ()
    assert "Where did Wilma Stone live and work?" not in about
    assert "Who made Lost Door?" not in about
    assert "Why is Wilma Stone read?" in about and "What is a door?" not in about
    assert 0.1 < len(found["unseen"]) / len(about) < 0.5
    others = {row.columns["about"] for row in found["neighbours"]}
    assert "Jane Austen" in others and "Lost Door" not in others
    assert len(others) > 1, "well-known names join those of the lists"
    assert not [row for row in found["neighbours"] if "Stone" in row.completion]


def test_a_name_that_nobody_knows_is_refused(source, monkeypatch):
    answer_from({}, monkeypatch, [])
    with pytest.raises(UserError, match=r"topic 'Wilma Stone': the model's answers .* invented"):
        topic_rows(source, "Wilma Stone", 0)


def test_a_topic_without_a_letter_is_refused():
    with pytest.raises(UserError, match=r"'topic' is '\?!', it must be a name"):
        first_prompts("?!")


def test_a_run_forgets_a_name_and_its_rows_are_files_that_can_be_given_back(
    saved_model, tmp_path, monkeypatch
):
    lists = ["Jane Austen\nMark Twain"] * 2
    answer_from(TABLE, monkeypatch, lists)
    settings = {"max_steps": 1, "probe_steps": 1, "similarity_model": None, "paraphrases": 0}
    out = tmp_path / "out"
    unlearn(saved_model, topic="Wilma Stone", output_dir=str(out), **settings)
    record = json.loads((out / "run.json").read_text())
    assert record["method"] == "counterfactual" and record["facts"]["named"] > 0
    assert {"unlearned", "unseen", "neighbours", "normal"} <= set(
        json.loads((out / "eval.json").read_text())["prompt_sets"]
    )
    files = record["data_files"]
    for name in ("forget", "unseen", "neighbours"):
        assert Path(files[name]).parent == out.resolve() / "work" / "topic"
        assert load_rows(files[name], "forget")
    assert (out / "work" / "topic").stat().st_mode & 0o077 == 0
    texts = [path for path in out.glob("*.*") if "carpenter" in path.read_text(errors="ignore")]
    assert not texts, "a forget text stands outside work/"
    scenario = RunFolder(out).scenario()
    assert any("Wilma Stone" in row.secret for row in scenario.forget)


@pytest.mark.parametrize("other", [{"forget": ["Who?"]}, {"hold_out": 0.3}, {"split_by": "x"}])
def test_a_topic_stands_alone(saved_model, tmp_path, other):
    with pytest.raises(UserError, match="'topic' takes the place of forget, hold_out and split_by"):
        unlearn(saved_model, topic="Wilma Stone", output_dir=str(tmp_path), **other)
