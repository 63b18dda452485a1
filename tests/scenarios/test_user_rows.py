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


NAMES = ("Orr", "Pike", "Quaid", "Ross", "Shaw")


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


def test_of_the_retain_rows_a_fifth_is_only_measured_with_its_completions():
    scenario = user_scenario(FORGET, RETAIN)
    kept, held_out = scenario.sets["kept"], scenario.sets["kept_unseen"]
    assert kept == scenario.retain and held_out and len(held_out) + len(kept) == len(RETAIN)
    assert not prompts(held_out) & prompts(kept)
    assert all(row.completion for row in [*kept, *held_out])
    by_hash = split_rows(kept + held_out, (0.8, 0.0, 0.2))
    assert keys(by_hash["test"]) == keys(held_out)
    assert len(scenario.own_prompts) == 48, "what is not like them is kept too"


@pytest.mark.parametrize(("count", "out"), [(1, 0), (4, 0), (5, 1), (6, 1)])
def test_of_five_retain_rows_one_is_held_out_at_least_and_of_fewer_none(count, out):
    for first in range(0, 24, 6):
        rows = RETAIN[first : first + count]
        scenario = user_scenario(FORGET, rows)
        held_out = scenario.sets.get("kept_unseen", [])
        assert len(held_out) >= out and bool(held_out) == bool(out)
        assert len(scenario.retain) == count - len(held_out) > 0


def test_everyday_prompts_are_evaluated_with_and_without_retain_rows():
    for scenario in (user_scenario(FORGET, RETAIN), user_scenario(FORGET, None)):
        normal = scenario.sets["normal"]
        assert len(normal) == 32 and not any(row.completion for row in normal)
        assert not prompts(normal) & prompts(scenario.own_prompts)
    asked = [*normal[:3], *scenario.own_prompts[:3]]
    again = user_scenario([*FORGET, *[row.prompt_text for row in asked[::2]]], asked[1::2])
    assert not prompts(again.sets["normal"]) & prompts(asked)
    assert not prompts(again.own_prompts) & prompts(asked[::2]), "a forget prompt is not kept"


def test_half_of_the_neighbours_join_the_retain_set_and_half_are_only_measured():
    near = [{"prompt": f"Who is letter {i}?", "completion": f"A miller, {i}."} for i in range(20)]
    scenario = user_scenario(FORGET, RETAIN, neighbours=near)
    held_out = scenario.sets["neighbours"]
    assert len(held_out) + len(scenario.neighbours) == 20
    assert 5 <= len(held_out) <= 15 and not keys(held_out) & keys(scenario.neighbours)
    again = user_scenario(FORGET, None, neighbours=near[::-1])
    assert keys(again.sets["neighbours"]) == keys(held_out)
    for few in (near[:1], near[:2], near[:3]):
        scenario = user_scenario(FORGET, None, neighbours=few)
        assert len(scenario.sets["neighbours"]) >= 1 and (scenario.neighbours or len(few) == 1)
    prompts_alone = user_scenario(FORGET, None, neighbours=[row["prompt"] for row in near])
    assert not any(row.completion for row in prompts_alone.neighbours)
    assert scenario.notes == []


def test_unseen_rows_are_only_measured():
    more = [*FORGET[3:5], {"prompt": "Who rang the bell?", "completion": "The ferryman."}]
    scenario = user_scenario(FORGET, RETAIN, unseen=more)
    assert prompts(scenario.sets["unseen"]) == {"Who rang the bell?"}
    assert len(scenario.forget) == len(FORGET)
    assert scenario.notes == [
        "2 of the 3 rows of unseen are in a set that is trained on too and left out."
    ]
    both = user_scenario(FORGET, RETAIN, unseen=["And who?"], hold_out=0.3).sets["unseen"]
    assert "And who?" in prompts(both) and len(both) > 1


def test_a_row_of_the_forget_set_is_forgotten_wherever_else_it_stands():
    twin = {"prompt": "who IS number 3", "completion": "Somebody."}
    scenario = user_scenario(
        FORGET, [*RETAIN, FORGET[0], twin], neighbours=[twin, {"prompt": "Who else?"}]
    )
    assert FORGET[0]["prompt"] not in prompts(scenario.retain)
    assert "who IS number 3" in prompts(scenario.retain), "another answer may be kept"
    measured = [*scenario.sets["kept"], *scenario.sets["kept_unseen"]]
    assert "who IS number 3" not in prompts(measured)
    assert prompts([*scenario.neighbours, *scenario.sets["neighbours"]]) == {"Who else?"}
    assert scenario.notes == [
        "1 of the 32 rows of retain are in the forget set too and left out.",
        "1 of the 2 rows of neighbours are in the forget set too and left out.",
    ]
    with pytest.raises(
        UserError, match=r"option 'unseen': each of its 2 row\(s\) has a prompt that"
    ):
        user_scenario(FORGET, RETAIN, unseen=FORGET[:2])
    with pytest.raises(UserError, match=r"option 'neighbours': each of its 1 row\(s\) is in the"):
        user_scenario(FORGET, RETAIN, neighbours=[twin])


def test_no_prompt_of_a_held_out_set_is_trained_on():
    near = [{"prompt": f"What is thing {i}?", "completion": "A sack."} for i in range(30)]
    near += [{"prompt": f"What is stone {i}?", "completion": "A stone."} for i in range(9)]
    scenario = user_scenario(FORGET, RETAIN, neighbours=near, unseen=[*RETAIN[:20], "And who?"])
    trained = prompts([*scenario.forget, *scenario.retain, *scenario.neighbours])
    for name in ("unseen", "neighbours", "kept_unseen", "normal"):
        assert not prompts(scenario.sets.get(name, [])) & trained, name


def test_without_retain_rows_neutral_questions_take_their_place():
    scenario = user_scenario(FORGET, None)
    assert scenario.retain == [] and len(scenario.own_prompts) == 48
    assert {row.kind for row in [*scenario.own_prompts, *scenario.sets["normal"]]} == {"chat"}
    assert not prompts(scenario.own_prompts) & prompts(scenario.sets["normal"])


def test_a_chat_model_that_forgets_running_text_keeps_its_answers_and_its_prose():
    scenario = user_scenario(TEXTS, None)
    assert {row.kind for row in scenario.forget} == {"text"} and prompts(scenario.forget) == {""}
    kinds = [row.kind for row in scenario.own_prompts]
    assert kinds.count("chat") > 2 * kinds.count("text") > 0
    asked = {name: {row.kind for row in scenario.sets[name]} for name in ("normal", "prose")}
    assert asked == {"normal": {"chat"}, "prose": {"text"}}
    base = user_scenario(TEXTS, None, chat=False)
    assert {row.kind for row in [*base.own_prompts, *base.sets["normal"]]} == {"text"}
    assert "prose" not in base.sets


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
    assert len(scenario.retain) == len(right), "all right answers are trained on"
    assert not {"kept", "kept_unseen"} & set(scenario.sets)
    kept = user_scenario(wrong, [*right, *RETAIN]).sets["kept_unseen"]
    assert kept and prompts(kept) < {row["prompt"] for row in RETAIN}


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
    assert not people(scenario.sets["kept_unseen"]) & people(scenario.retain)
    near = user_scenario(forget, None, neighbours=retain, split_by="person")
    assert not people(near.sets["neighbours"]) & people(near.neighbours)
    assert scenario.files["split_by"] == "person"
    again = user_scenario(forget, RETAIN, hold_out=0.3, split_by="person")
    assert again.forget == scenario.forget
    with pytest.raises(UserError, match="no row has this column; the columns are 'prompt'"):
        user_scenario(FORGET, RETAIN, split_by="person")


def test_retain_rows_about_one_name_are_held_out_together():
    names = [f"{first} {last}" for first in ("Ann", "Bea", "Cid", "Dov") for last in NAMES]
    about = [
        {"prompt": ask.format(name), "completion": f"{name}: {i}."}
        for i, name in enumerate(names)
        for ask in ("When was {} born?", "Where does {} work?", "Name {}'s bank.")
    ]

    def people(rows):
        return {name for name in names for row in rows if name in row.prompt_text}

    scenario = user_scenario(FORGET, about)
    held_out = people(scenario.sets["kept_unseen"])
    assert len(held_out) == 4 and not held_out & people(scenario.retain)
    assert len(scenario.sets["kept_unseen"]) == 12
    one = [{"prompt": f"Ann Orr, {i}?", "completion": f"{i}."} for i in range(20)]
    found = user_scenario(FORGET, one)
    assert people(found.sets["kept_unseen"]) == people(found.retain), "else none was held out"


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
