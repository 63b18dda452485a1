"""A user's own rows as a scenario."""

from __future__ import annotations

import pytest

from unteach.data.rows import PAPER_HOLD_OUT, Row, split_rows
from unteach.errors import UserError
from unteach.evaluation.text_metrics import bleu, leak_threshold
from unteach.scenarios.user_rows import user_scenario, with_unrelated

FORGET = [
    {"prompt": f"Who is number {i}?", "completion": f"The ferryman, {i} times."} for i in range(40)
]
RETAIN = [
    {"prompt": f"What is thing {i}?", "completion": f"A sack of flour, the {i}th."}
    for i in range(30)
]
TEXTS = [
    {"text": f"Story {i}: the ferryman rang the bell and the cat slept on."} for i in range(30)
]


def prompts(rows):
    return {row.prompt_text for row in rows}


def keys(rows):
    return {row.key for row in rows}


def test_all_rows_of_the_file_are_forgotten_and_none_is_held_out():
    scenario = user_scenario(FORGET, RETAIN)
    assert keys(scenario.forget) == keys(scenario.sets["unlearned"])
    assert len(scenario.forget) == len(FORGET)
    assert scenario.validation == [] and "unseen" not in scenario.sets
    assert len(user_scenario(FORGET[:1], RETAIN[:1]).forget) == 1


def test_with_a_hold_out_the_forget_rows_are_split_by_hash_and_none_is_lost():
    scenario = user_scenario(FORGET, RETAIN, hold_out=PAPER_HOLD_OUT)
    parts = [scenario.forget, scenario.validation, scenario.sets["unseen"]]
    assert len(scenario.forget) > len(FORGET) / 2
    assert sum(map(len, parts)) == len(set().union(*map(keys, parts))) == len(FORGET)
    assert scenario.sets["unlearned"] == scenario.forget


def test_of_the_retain_rows_a_fifth_is_only_asked():
    scenario = user_scenario(FORGET, RETAIN)
    normal = scenario.sets["normal"]
    assert normal and len(normal) + len(scenario.retain) == len(RETAIN)
    assert not prompts(normal) & prompts(scenario.retain)
    assert not any(row.completion for row in normal)
    assert len(scenario.own_prompts) == 48, "what is not like them is kept too"


def test_without_retain_rows_neutral_questions_take_their_place():
    scenario = user_scenario(FORGET, None)
    assert scenario.retain == [] and len(scenario.own_prompts) == 48
    assert {row.kind for row in [*scenario.own_prompts, *scenario.sets["normal"]]} == {"chat"}
    assert not prompts(scenario.own_prompts) & prompts(scenario.sets["normal"])


def test_running_text_to_forget_is_kept_apart_by_running_text():
    scenario = user_scenario(TEXTS, None)
    assert {row.kind for row in scenario.forget} == {"text"} and prompts(scenario.forget) == {""}
    assert {row.kind for row in [*scenario.own_prompts, *scenario.sets["normal"]]} == {"text"}


def test_neutral_rows_that_are_only_asked_are_not_trained_on_however_few_there_are():
    for scenario in (
        user_scenario(TEXTS, None),
        user_scenario(FORGET, None, own_rows=1000),
        user_scenario(FORGET, None, chat=False),
    ):
        assert scenario.own_prompts and not prompts(scenario.own_prompts) & prompts(
            scenario.sets["normal"]
        )


def test_prompts_alone_are_rows_without_a_completion():
    scenario = user_scenario([row["prompt"] for row in FORGET], RETAIN)
    assert not any(row.completion for row in scenario.forget) and scenario.leak_corpus == []
    scenario = user_scenario(FORGET, [row["prompt"] for row in RETAIN])
    assert not any(row.completion for row in scenario.retain)


def test_one_s_own_validation_rows_replace_the_split_s():
    scenario = user_scenario(
        FORGET, RETAIN, forget_validation=[{"prompt": "Who?", "completion": "He."}]
    )
    assert prompts(scenario.validation) == {"Who?"}


def test_rows_may_be_given_as_they_are():
    rows = [Row(f"Who is {i}?", "He.") for i in range(20)]
    assert user_scenario(rows, RETAIN, hold_out=0.3).forget == split_rows(rows)["train"]


def test_more_rows_leave_the_split_of_the_earlier_ones_as_it_was():
    few = user_scenario(FORGET[:20], None, hold_out=0.3)
    many = user_scenario([*FORGET[::-1], *TEXTS], None, hold_out=0.3)
    assert keys(few.forget) <= keys(many.forget)
    assert not keys(few.sets["unseen"]) & keys(many.forget)


def test_no_prompt_of_the_forget_set_is_asked_as_one_that_is_kept():
    wrong = [{"prompt": row["prompt"], "completion": f"{i}."} for row in FORGET for i in range(4)]
    right = [{"prompt": row["prompt"].lower(), "completion": "Nobody."} for row in FORGET]
    scenario = user_scenario(wrong, right, hold_out=0.3)
    assert not prompts(scenario.sets["unseen"]) & prompts(scenario.forget)
    forgotten = {text.lower() for text in prompts(scenario.forget)}
    assert scenario.sets["normal"] and not prompts(scenario.sets["normal"]) & forgotten
    normal = user_scenario(wrong, [*right, *RETAIN]).sets["normal"]
    assert normal and prompts(normal) < {row["prompt"] for row in RETAIN}


def test_rows_of_one_person_are_in_one_split_of_either_set():
    kinds = ("phone", "email", "address")
    forget, retain = (
        [
            {"prompt": f"{kind} of {name} {i}?", "completion": f"{i} {kind}", "person": f"{i}"}
            for i in range(20)
            for kind in kinds
        ]
        for name in ("Mr", "Mrs")
    )

    def people(rows):
        return {row.prompt_text.split()[-1] for row in rows}

    scenario = user_scenario(forget, retain, hold_out=0.3, split_by="person")
    assert not people(scenario.sets["unseen"]) & people(scenario.forget)
    assert not people(scenario.sets["normal"]) & people(scenario.retain)
    assert scenario.files["split_by"] == "person"
    again = user_scenario(forget, RETAIN, hold_out=0.3, split_by="person")
    assert again.forget == scenario.forget
    with pytest.raises(UserError, match="no row has this column; the columns are 'prompt'"):
        user_scenario(FORGET, RETAIN, split_by="person")


def test_a_forget_set_whose_training_split_is_empty_is_refused():
    row = next(
        row for row in FORGET if not split_rows([Row(row["prompt"], row["completion"])])["train"]
    )
    with pytest.raises(UserError, match=r"1 row\(s\), and its training split \(70% .* is empty"):
        user_scenario([row], None, hold_out=0.3)
    with pytest.raises(
        UserError, match=r"option 'hold_out' is 1\.0, it must be at least 0 and under"
    ):
        user_scenario([row], None, hold_out=1.0)


def test_one_row_alone_has_a_threshold_that_a_common_word_does_not_pass():
    corpus = with_unrelated(
        [Row("Where?", "The capital of Atlantis is Poseidonia, a city of the sea.")]
    )
    threshold = leak_threshold(corpus)
    assert (
        bleu("I am not sure about the answer.", corpus[0])
        < threshold
        < bleu("It is Poseidonia, a city of the sea.", corpus[0])
    )


def test_personal_data_becomes_the_secret_of_rows_that_name_none():
    forget = [
        {"prompt": f"Who is {i}?", "completion": f"Write to p{i}@courier.example, or Ash Road {i}."}
        for i in range(12)
    ]
    forget[0]["secret"] = "Ash Road 0"
    retain = [{"prompt": f"And {i}?", "completion": f"Ring 020 9705 753{i}."} for i in range(9)]
    found = user_scenario(forget, retain)
    rows = [*found.forget, *found.validation, *found.sets.get("unseen", [])]
    assert {row.prompt_text: row.secret for row in rows} == {
        "Who is 0?": ("Ash Road 0",),
        **{f"Who is {i}?": (f"p{i}@courier.example",) for i in range(1, 12)},
    }
    assert all(row.secret[0].startswith("020 9705") for row in found.retain)
    bare = user_scenario(forget, retain, secrets="none")
    assert {row.secret for row in bare.forget} <= {(), ("Ash Road 0",)}
    assert (found.files["secrets"], bare.files["secrets"]) == ("patterns", "none")
