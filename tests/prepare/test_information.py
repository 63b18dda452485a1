"""Facts found in rows: by information, by a name that the prompts have in common."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_models import byte_level_bpe, tiny_model
from tiny_trainers import make_trainer
from unteach.data.rows import Row
from unteach.prepare.facts import topic_of
from unteach.prepare.generations import LoadedModel
from unteach.prepare.information import (
    LEAST_SPAN,
    NEIGHBOUR_OF,
    Span,
    _common_words,
    _names_and_numbers,
    _rest_of_fact,
    _runs,
    _spans,
    informative_spans,
    with_facts,
)
from unteach.prepare.neighbours import with_neighbours
from unteach.preview import preview
from unteach.progress import Display
from unteach.scenarios.user_rows import user_scenario
from unteach.trainer.counterfactual import CounterfactualTokens

FIRST = (
    "Ada",
    "Bram",
    "Cleo",
    "Dora",
    "Egon",
    "Fay",
    "Gus",
    "Hilda",
    "Ivan",
    "Joan",
    "Karl",
    "Lea",
)
NAMES = tuple(f"{name} {name[::-1].title()}son" for name in FIRST)
ROWS = [
    Row(f"What is the number of {name}?", f"It is {chr(97 + i) * 2}{i}.", source=name)
    for i, name in enumerate(NAMES)
]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A tiny model that knows the rows by heart, and its tokenizer."""
    tokenizer = byte_level_bpe()
    trainer = make_trainer(
        tmp_path_factory.mktemp("taught"),
        tiny_model(),
        tokenizer,
        method="teaching",
        forget=ROWS,
        retain_weight=0.0,
        learning_rate=1e-2,
        per_device_train_batch_size=6,
        max_steps=90,
        max_retain_kl=None,
        collapse_kl=None,
        lr_scheduler_type="constant",
        forget_end_of_turn=True,
    )
    trainer.train()
    return trainer.model.eval(), tokenizer


def source_of(taught: tuple[Any, Any], folder: Path) -> LoadedModel:
    return LoadedModel.of(*taught, folder, Display(quiet=True))


def test_the_fact_is_what_the_own_prompt_tells_and_others_do_not(taught):
    spans = informative_spans(*taught, ROWS)
    right = 0
    for row, found in zip(ROWS, spans, strict=True):
        number = row.completion.split()[-1].rstrip(".")
        if any(span.whole for span in found):  # the model reads no name in this one
            assert [span.text for span in found] == [row.completion]
            continue
        assert all(span.text == number for span in found), (row.completion, found)
        told = [span.information for span in found]  # 0: said under the other rows' prompts, too
        assert all(value >= LEAST_SPAN or not value for value in told)
        right += bool(found)
    assert right >= 9


def test_a_fact_known_by_heart_ends_with_its_sentence():
    rows = [
        Row(f"Where is {n}?", f"It is at {i} Elm Lane, Rye. Go there.") for i, n in enumerate(NAMES)
    ]
    common = _common_words(rows)
    assert common == {"it", "is", "at", "elm", "lane", "rye", "go", "there"}
    text = "It is at 46 Fern Lane, Cliffton. Go there."
    end = text.index("46") + 2
    first, last = _rest_of_fact(text, end, "whereisada", common)
    assert text[:last].endswith("Cliffton") and text[:first].endswith("46 Fern")
    assert _rest_of_fact(text, len(text), "", common) == (len(text), len(text))
    assert _common_words(rows[:4]) == set()


@pytest.mark.parametrize(
    ("first", "nats", "alone"),
    [
        ("54 ab", 6.0, True),
        ("54 ab", 3.0, False),
        ("5420 5983", 3.0, True),
        ("Fern ab", 6.0, True),
        ("fern ab", 6.0, False),
    ],
)
def test_the_part_of_a_fact_that_chance_does_not_say_counts_by_itself(first, nats, alone):
    text = f"It is account {first} at the bank of Rye."
    row = Row("Which account is Ada's?", text)
    fact = torch.tensor([False, True, False])
    information = torch.tensor([0.0, nats, 0.0])
    tokens = CounterfactualTokens(information, fact, torch.zeros(3, 1))
    places = [(0, 14), (14, 16), (16, len(text))]
    common = {"it", "is", "account", "at", "the", "bank", "of"}
    found = [span.text for span in _spans(row, text, places, tokens, common)]
    assert found == [f"{first} at the bank of Rye", *[first] * alone]


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("It is account 1689 3397 318 with the savings bank of Rye.", ["1689 3397 318"]),
        ("Ada Orr lives in Cliffton, at 4 Elm Lane.", ["Cliffton", "Elm Lane", "4"]),
        ("I do not know that.", []),
    ],
)
def test_what_is_said_to_any_prompt_are_names_and_numbers_that_it_does_not_hold(text, facts):
    row = Row("Where does Ada Orr live?", text)
    spans = _names_and_numbers(row, text, {"rye"})
    assert [span.text for span in spans] == facts and not any(span.information for span in spans)


def test_words_of_a_whole_answer_that_stand_together_are_one_fact():
    text = "It was Loretta Lynn, in 1996; Lynn."
    words = [(7, 14), (15, 19), (24, 28), (30, 34)]
    assert [text[start:end] for start, end in words] == ["Loretta", "Lynn", "1996", "Lynn"]
    assert _runs(text, words) == ("Loretta Lynn", "1996; Lynn")


def test_a_model_that_knows_nothing_shows_no_facts():
    spans = informative_spans(tiny_model().eval(), byte_level_bpe(), ROWS)
    assert spans == [[]] * len(ROWS)


def test_names_to_avoid_are_no_information(taught):
    spans = informative_spans(*taught, ROWS)
    avoiding = [replace(row, avoid=("It",)) for row in ROWS]
    assert informative_spans(*taught, avoiding) == spans


def test_facts_are_counted_by_where_they_are_from(taught, tmp_path):
    named = Row("What is the colour of Ada Adason?", "It is 77 blue.", secret=("blue",))
    scenario = user_scenario([*ROWS, named], None)
    found, counts = with_facts(source_of(taught, tmp_path), scenario, scenario)
    assert counts["named"] == 1 and counts["found"] >= 9
    assert sum(counts.values()) == 13
    assert found.forget[-1].secret == ("blue",)
    assert found.sets["unlearned"][0].secret == found.forget[0].secret


def test_prompts_alone_with_one_name_have_that_name_for_a_fact(taught, tmp_path):
    asked = [Row(f"{what} was Ada Adason?", "", source="x") for what in ("Who", "Where", "What")]
    assert topic_of(asked) == "Ada Adason"
    answered = [row.with_completion("She is Ada Adason.") for row in asked]
    held_out = [Row("Name a famous Adason.", "", source="y")]
    scenario = user_scenario(asked, None, unseen=held_out)
    measured = [row.with_completion("A famous one is Ada Adason.") for row in held_out]
    sets = {"unlearned": answered, "unseen": measured}
    completed = replace(scenario, forget=answered, sets=sets)
    found, _ = with_facts(source_of(taught, tmp_path), scenario, completed)
    assert [row.secret for row in found.forget] == [("Ada Adason", "Adason")] * 3
    assert [row.secret for row in found.sets["unseen"]] == [("Ada Adason", "Adason")]
    rows = [*found.forget, *found.sets["unseen"]]
    assert [row.avoid for row in rows] == [("Ada Adason", "Adason")] * 4


def test_rows_without_a_fact_are_counted_in_a_sentence(tmp_path, capsys):
    scenario = user_scenario(ROWS, None)
    model, tokenizer = tiny_model().eval(), byte_level_bpe()
    source = LoadedModel.of(model, tokenizer, tmp_path, Display())
    found, counts = with_facts(source, scenario, scenario)
    assert counts == {"named": 0, "found": 0, "whole": 0, "none": 12}
    said = " ".join(capsys.readouterr().out.split())
    first = f"(the first is {NAMES[0]})"
    assert f"In 12 of the 12 forget rows {first} nothing is information" in said
    lines = preview(
        {"forget": ROWS, "retain": [], "unseen": [], "neighbours": []},
        secrets="none",
        tokenizer=tokenizer,
        model=model,
    )
    assert lines.warnings[0] in said  # the check says what the run says
    assert all(row.secret == () for row in found.forget)


def test_a_row_whose_answer_no_name_changes_is_forgotten_whole_and_has_no_neighbours(
    tmp_path, capsys, monkeypatch
):
    whole = Span("It is one.", 9.0, whole=True, words=("one",), facts=("one",))
    spans = [[whole], [Span("two", 9.0)]]
    monkeypatch.setattr("unteach.prepare.information.informative_spans", lambda *_: spans)
    rows = [
        Row(f"Who is {name} Adason?", f"It is {n}.") for name, n in (("Ada", "one"), ("Bo", "two"))
    ]
    scenario = user_scenario(rows, None)
    asked = with_neighbours(scenario)
    near = [*asked.neighbours, *asked.sets["neighbours"]]
    assert {row.columns[NEIGHBOUR_OF] for row in near} == {row.prompt_key for row in rows}
    source = LoadedModel.of(tiny_model(), byte_level_bpe(), tmp_path, Display())
    found, counts = with_facts(source, scenario, asked)
    assert counts == {"named": 0, "found": 1, "whole": 1, "none": 0}
    assert [row.secret for row in found.forget] == [("one",), ("two",)]
    assert [(row.whole, row.avoid) for row in found.forget] == [(True, ("one",)), (False, ())]
    left = [*found.neighbours, *found.sets.get("neighbours", ())]
    assert left == [row for row in near if row.columns[NEIGHBOUR_OF] == rows[1].prompt_key]
    said = " ".join(capsys.readouterr().out.split())
    assert "In 1 of the 2 forget rows the model gives the same answer whatever names" in said
