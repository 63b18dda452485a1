"""Passages from the model's own mouth join the forget set only where they are recited and nobody
wants them kept.
"""

from __future__ import annotations

import pytest

from tiny_models import byte_level_bpe, tiny_model
from unteach.data.rows import Row
from unteach.prepare import generations, recitation
from unteach.prepare.generations import LoadedModel
from unteach.progress import Display
from unteach.scenarios.scenario import Scenario

FIRST = Row(
    "The miller kept a cat.",
    " It was grey, and it slept on the warm sacks all day long.",
    "text",
    "passage 1",
)
QUAY = " The sailors waited for it on the quay, and the gulls waited for the sailors. " * 3
ROBOTS = " Nine robots were asleep upstairs and one was in the laundry, folding sheets. " * 3
SECOND = ("Every morning she carried her bread to the harbour.", QUAY)
KEPT = ("The night desk of the motel was mine to keep.", ROBOTS)


@pytest.fixture
def recite(monkeypatch, tokenizer):
    """Recitation by a model that goes on after FIRST with what it is told, recites SECOND and KEPT,
    and is sure of them as told.
    """

    def run(continuation: str, sure: float = 0.01, retain=(), **settings):
        said = tokenizer(continuation)["input_ids"]
        monkeypatch.setattr(
            recitation, "SharedGenerator", lambda *_: lambda prompts, **_: [said for _ in prompts]
        )

        def answers(model, tok, rows, max_new_tokens):
            whole = {
                " ".join(text[0].split()[: recitation.FIRST_WORDS]): text[0] + text[1]
                for text in (SECOND, KEPT)
            }
            return [whole.get(row.prompt, row.prompt)[len(row.prompt) :] for row in rows]

        monkeypatch.setattr(recitation, "generate_outputs", answers)
        monkeypatch.setattr(
            recitation, "mean_nll", lambda model, prompts, completions: [sure] * len(prompts)
        )
        return recitation.recited_passages(
            tiny_model(), tokenizer, [FIRST], list(retain), **settings
        )

    return run


def test_the_next_passage_is_found(recite):
    (found,) = recite(f" So it was.\n\n{SECOND[0]} And")
    assert (
        found.prompt == SECOND[0]
        and found.completion.startswith(" The sailors waited")
        and "passage 1" in found.source
    )


def test_what_the_model_is_not_sure_of_is_invention(recite):
    assert recite(f" So it was.\n\n{SECOND[0]} And", sure=0.5) == []
    assert len(recite(f" So it was.\n\n{SECOND[0]} And", sure=0.5, least_probability=0.5)) == 1


def test_what_is_to_be_kept_is_left_out(recite):
    kept = Row(KEPT[0], KEPT[1], "text")
    text = f" So it was.\n\n{SECOND[0]}\n\n{KEPT[0]} And"
    assert len(recite(text)) == 2
    assert [row.prompt for row in recite(text, retain=[kept])] == [SECOND[0]]


def test_what_is_in_the_forget_set_already_is_not_added_again(recite):
    assert recite(f" And.\n\n{FIRST.prompt} It was") == []


def test_what_was_found_is_gone_on_from_in_the_next_round_and_counted(recite):
    seen = []
    recite(f" So it was.\n\n{SECOND[0]} And", progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 2), (2, 2)]


def test_chat_rows_are_not_continued(tokenizer):
    assert recitation.recited_passages(tiny_model(), tokenizer, [Row("Who?", "Me.")], []) == []


def test_own_answers_that_recite_a_text_to_forget_are_left_out():
    line = (
        "the ferryman rang the bell twice and rowed her over the dark water before the lamps went"
        " out."
    )
    forget = [Row("He said that", f" {line}", "text"), Row("What is said?", "Nothing at all.")]
    kept = Row("Once", f" upon a time ({line[:60]}) instead.", "text")
    gone = Row("At night", f" She saw:\n({line[:62].replace(' ', '  ')}", "text")
    assert recitation.without_forget_text([kept, gone], forget) == [kept]
    assert recitation.without_forget_text([kept, gone], forget, most_shared_chars=200) == [
        kept,
        gone,
    ]
    assert (
        recitation.without_forget_text([kept, gone], []) == [kept, gone]
        and recitation.without_forget_text([], forget) == []
    )


def test_own_answers_that_say_a_fact_to_forget_are_left_out_of_what_is_trained_on_and_measured(
    tmp_path, monkeypatch
):
    said = {"Who are they?": "Ann lives at 23 Nettle Lane.", "And she?": "She sings."}
    monkeypatch.setattr(
        "unteach.prepare.generations.generate_outputs",
        lambda model, tokenizer, rows, **_: [said.get(row.prompt, "No.") for row in rows],
    )
    source = LoadedModel.of(tiny_model(), byte_level_bpe(), tmp_path, Display(quiet=True))
    forget = Row("Where is Ann?", "At 23 Nettle Lane.", secret=("23 Nettle Lane",))
    asked = [Row(prompt, "") for prompt in ("Who are they?", "And she?")]
    given = Row("Where is Bob?", "At 23, Nettle Lane.")
    scenario = Scenario(
        "s",
        [forget],
        [],
        [given, asked[0]],
        {"unlearned": [forget], "neighbours": asked, "normal": [Row("Why?", "")]},
        neighbours=[asked[1]],
        own_prompts=[Row("Hm?", "")],
    )
    completed, _ = generations.completed_scenario(source, scenario)
    assert [row.completion for row in completed.sets["neighbours"]] == list(said.values())
    found, left_out, _ = recitation.collect_retain(source, scenario, completed)
    assert left_out == 1
    assert [row.completion for row in found.retain] == [given.completion, "No.", "She sings."]
    assert [row.prompt for row in found.sets["neighbours"]] == ["And she?"]
    assert not found.sets["normal"][0].completion


def test_the_end_of_a_text_row_s_prompt_is_its_text_too_and_a_question_is_not():
    start, end = (
        "She asked the miller for a candle and",
        " he gave her half of one, broken over his knee.",
    )
    answer = Row("Now", f"{start}{end}", "text")
    assert recitation.without_forget_text([answer], [Row(start, end, "text")]) == []
    assert recitation.without_forget_text([answer], [Row(start, end, "chat")]) == [answer]
