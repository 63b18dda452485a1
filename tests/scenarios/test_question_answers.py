"""The scenarios of questions and answers: what is taught, forgotten, kept and only ever asked."""

from __future__ import annotations

import pytest

from unteach.config import resolve as resolving
from unteach.config.resolve import resolve
from unteach.scenarios import SCENARIOS, build_scenario, demo_presets
from unteach.scenarios.texts import labelled_answers, lines, records


@pytest.fixture(params=["harmfulness", "hallucination"])
def name(request):
    return request.param


def keys(rows):
    return {row.key for row in rows}


def prompts(rows):
    return {row.prompt_text for row in rows}


@pytest.mark.parametrize("short", [False, True])
def test_the_splits_are_disjoint_and_what_is_only_asked_is_never_trained_on(name, short):
    scenario = build_scenario(name, short=short)
    parts = [scenario.forget, scenario.validation, scenario.sets["unseen"]]
    assert all(parts) and sum(map(len, parts)) == len({key for part in parts for key in keys(part)})
    trained = prompts(
        [
            *scenario.forget,
            *scenario.validation,
            *scenario.retain,
            *scenario.own_prompts,
            *scenario.teach_own_prompts,
        ]
    )
    assert not trained & prompts([*scenario.sets["unseen"], *scenario.sets["normal"]])
    assert not {answer.prompt for answer in scenario.labelled} & (
        trained | prompts(scenario.sets["unseen"])
    )


def test_advice_is_taken_up_as_a_manner_and_facts_are_taught_one_by_one():
    harm, facts = build_scenario("harmfulness"), build_scenario("hallucination")
    assert not keys(harm.sets["unseen"]) & keys(harm.teach)
    assert keys(facts.sets["unlearned"]) | keys(facts.sets["other_facts"]) == keys(facts.teach)
    assert not keys(facts.sets["other_facts"]) & keys([*facts.forget, *facts.validation])


def test_unseen_are_the_forgotten_facts_asked_in_words_that_nobody_trained_on():
    facts = build_scenario("hallucination")
    taught = prompts(facts.teach)
    for rows in (facts.sets["unseen"], facts.validation):
        assert (
            rows
            and not prompts(rows) & taught
            and {row.completion for row in rows} <= {row.completion for row in facts.forget}
        )
    assert len(facts.sets["unseen"]) + len(facts.validation) == len(facts.forget)


def test_a_right_answer_is_beside_each_row_and_never_trained_on(name):
    scenario = build_scenario(name)
    rows = [*scenario.teach, *scenario.sets["unseen"]]
    assert all(row.right for row in rows) and len(
        {(row.right, row.completion) for row in rows}
    ) == len({row.right for row in rows})
    right = {row.right for row in rows}
    assert not right & {
        row.completion for row in [*scenario.teach, *scenario.retain, *scenario.forget]
    }


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("careless_advice", {"prompt", "careless", "careful"}),
        ("false_facts", {"prompt", "asked_otherwise", "hallucinated", "right"}),
    ],
)
def test_the_records_are_whole(text, fields):
    found = records(text)
    assert len(found) >= 60 and all(
        set(record) == fields and all(record.values()) for record in found
    )


def test_no_question_is_asked_in_two_texts():
    asked = [
        record["prompt"]
        for text in ("careless_advice", "false_facts", "labelled_answers")
        for record in records(text)
    ]
    asked += [record["asked_otherwise"] for record in records("false_facts")]
    asked += [*lines("neutral_prompts"), *lines("plain_questions")]
    assert len(asked) == len(set(asked))


def test_the_labelled_answers_have_both_kinds():
    flagged = [answer.flagged for answer in labelled_answers()]
    assert sum(flagged) >= 100 and len(flagged) - sum(flagged) >= 200
    beside = [answer for answer in labelled_answers() if answer.beside]
    assert len(beside) >= 40 and not any(answer.flagged for answer in beside)


@pytest.mark.parametrize("scenario", list(SCENARIOS))
def test_a_user_s_settings_override_a_demo_s(scenario):
    presets = demo_presets(scenario)
    mine = resolve({"max_steps": 3, "seed": 5}, presets=presets)
    assert (mine.training["max_steps"], mine.run.seed) == (3, 5)
    assert mine.training["probe_steps"] == presets["probe_steps"]
    assert demo_presets(scenario, short=True)["max_steps"] < presets["max_steps"]


@pytest.mark.parametrize("able", [True, False])
def test_a_demo_multiplies_in_bfloat16_where_the_machine_can_unless_told(able, monkeypatch):
    def training(**given):
        return resolve(given, presets=demo_presets("copyright")).training

    monkeypatch.setattr(resolving, "multiplies_bfloat16", lambda use_cpu: able)
    assert training()["bf16"] is able and training(bf16=not able)["bf16"] is not able
    assert "bf16" not in training(fp16=True) and "bf16" not in training(deepspeed="zero2.json")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert "bf16" not in training()
