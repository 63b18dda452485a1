"""Forget prompts in other words: kept only where they ask the same and the original model knows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tiny_models import byte_level_bpe, tiny_model
from unteach.config.scorers import ScorerNames
from unteach.data.rows import Row
from unteach.evaluation.metrics import METRICS, prompt_set
from unteach.evaluation.scorers import Scorers, leak_scorer
from unteach.prepare import paraphrases
from unteach.prepare.generations import LoadedModel
from unteach.prepare.paraphrases import (
    REQUEST,
    TEMPLATES,
    cleaned,
    find_paraphrases,
    in_template,
    is_rewording,
    reworded,
)
from unteach.progress import Display

FACT = "0170 5544 332"
ANN = Row("What is Ann Lee's phone number?", f"It is {FACT}.", secret=(FACT,))
BOB = Row("Where did Bob Ray go in 1987?", "To Fairview.", secret=("Fairview",))
SCORERS = Scorers(ScorerNames(headline="said_facts"), {"leak_rate": leak_scorer(20.0)})


@pytest.mark.parametrize(
    ("row", "text", "right"),
    [
        (ANN, "Which number can I call to reach Ann Lee?", True),
        (ANN, "what is ann lee's phone number", False),
        (ANN, "Which number can I call to reach her?", False),
        (ANN, f"Is {FACT} the number of Ann Lee?", False),
        (ANN, "Which number can I call to reach Ann", False),
        (ANN, "Ann Lee " * 40 + "?", False),
        (ANN, "", False),
        (BOB, "Bob Ray went somewhere in 1987. Where?", True),
        (BOB, "Bob Ray went somewhere. Where?", False),
    ],
)
def test_a_paraphrase_differs_has_the_names_and_numbers_and_gives_nothing_away(row, text, right):
    assert is_rewording(row, text) == right
    assert not is_rewording(row, text, [row.with_completion("").prompt_key, "x"]) or right


def test_a_paraphrase_that_is_another_row_s_prompt_is_none():
    asked = "Which number can I call to reach Ann Lee?"
    assert not is_rewording(ANN, asked, [Row(asked, "").prompt_key])


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ('"How do I reach Ann?"', "How do I reach Ann?"),
        (
            "Sure, here is the new sentence:\n\nHow do I reach Ann?\nNote: short.",
            "How do I reach Ann?",
        ),
        ("Rewritten: **How do I reach Ann?**", "How do I reach Ann?"),
        ("  \n", ""),
    ],
)
def test_the_sentence_is_taken_from_what_the_model_says_around_it(answer, sentence):
    assert cleaned(answer) == sentence


def test_templates_keep_names_and_the_last_message_is_exchanged():
    assert in_template(ANN, TEMPLATES[0]) == "Please tell me: what is Ann Lee's phone number?"
    named = replace(ANN, prompt="Ann Lee has which number?")
    assert in_template(named, TEMPLATES[0]) == "Please tell me: Ann Lee has which number?"
    talk = replace(ANN, prompt=(("system", "Be kind."), ("user", "Who is Ann?")))
    assert reworded(talk, "And Ann?").prompt == (("system", "Be kind."), ("user", "And Ann?"))
    assert reworded(talk, "And Ann?").secret == ANN.secret


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A model that words Ann's prompt anew, repeats Bob's, and knows both facts except where a
    prompt begins with "Please".
    """
    asked = []

    def outputs(model, tokenizer, rows, **_):
        asked.append([row.prompt for row in rows])
        said = []
        for row in rows:
            prompt = row.prompt
            if prompt == REQUEST.format(prompt=ANN.prompt):
                said.append("Which number reaches Ann Lee?")
            elif prompt.startswith(REQUEST[:20]):
                said.append(BOB.prompt)
            elif prompt.startswith("Please"):
                said.append("No idea.")
            else:
                said.append(ANN.completion if "Ann" in prompt else BOB.completion)
        return said

    monkeypatch.setattr(paraphrases, "generate_outputs", outputs)
    found = LoadedModel.of(tiny_model(), byte_level_bpe(), tmp_path, Display(quiet=True))
    return found, asked


def test_the_model_s_wording_comes_first_and_a_template_takes_its_place(source):
    model, asked = source
    text = Row("Once", " upon a time.", "text")
    unknown = Row("Who is Cid?", "A miller.", secret=("miller",))
    rows = [ANN, BOB, text, unknown]
    outputs = [ANN.completion, BOB.completion, text.completion, "Who?"]
    found = find_paraphrases(model, rows, outputs, SCORERS, most=16)
    assert [row.prompt for row in found.rows] == [
        "Which number reaches Ann Lee?",
        TEMPLATES[1].format(prompt=BOB.prompt),
    ]
    assert found.outputs == [ANN.completion, BOB.completion]
    assert [row.secret for row in found.rows] == [ANN.secret, BOB.secret]
    assert found.facts == {
        "prompts": 3,
        "asked": 2,
        "written": 3,
        "kept": 2,
        "by": {"model": 1, "template 2": 1},
    }
    assert "2 of 2 forget prompts have another wording" in found.note
    assert found.costs[0].generated_tokens > 0
    calls = len(asked)
    again = find_paraphrases(model, rows, outputs, SCORERS, most=16)
    assert len(asked) == calls and again.rows == found.rows, "cached"


def test_at_most_so_many_prompts_are_reworded(source):
    found = find_paraphrases(source[0], [ANN, BOB], [FACT, "Fairview"], SCORERS, most=1)
    assert len(found.rows) == found.facts["asked"] == 1


def test_where_none_survives_a_sentence_says_so(source, monkeypatch):
    monkeypatch.setattr(
        paraphrases, "generate_outputs", lambda model, tokenizer, rows, **_: ["No."] * len(rows)
    )
    found = find_paraphrases(source[0], [BOB], ["Fairview"], SCORERS, most=16)
    assert found.rows == [] and "paraphrases are not measured" in found.note
    unknown = find_paraphrases(source[0], [BOB], ["No."], SCORERS, most=16)
    assert "answers no forget prompt" in unknown.note and unknown.facts["asked"] == 0
    text = Row("Once", " upon a time.", "text")
    assert find_paraphrases(source[0], [text], [" upon a time."], SCORERS, most=16).note == ""


def test_the_prompt_set_must_be_forgotten():
    found = prompt_set("paraphrased")
    assert (found.role, found.title) == ("forget", "forget (paraphrased)")
    assert METRICS["said_facts"].better_on(found.role) is False
