"""The scenarios of questions and answers: what is taught, forgotten, kept and only ever asked."""

from __future__ import annotations

import pytest

from unteach.config.run import RunOptions
from unteach.errors import UserError
from unteach.models import precision
from unteach.run.pipeline import Run
from unteach.scenarios.registry import SCENARIOS, build_scenario, demo_options, embedded
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
def test_a_user_s_settings_win_over_a_demo_s_and_another_method_drops_its_weights(scenario):
    plain = demo_options(scenario, model="m", output_dir="o")
    mine = demo_options(scenario, model="m", output_dir="o", settings={"max_steps": 3})
    assert mine["settings"] == plain["settings"] | {"max_steps": 3}
    other = demo_options(scenario, model="m", output_dir="o", settings={"method": "ga"})["settings"]
    assert other["method"] == "ga" and not [name for name in other if name.endswith("_weight")]
    assert (
        demo_options(scenario, model="m", output_dir="o", short=True)["settings"]["max_steps"]
        < plain["settings"]["max_steps"]
    )


@pytest.mark.parametrize("able", [True, False])
def test_a_demo_multiplies_in_bfloat16_where_the_machine_can_unless_told(able, monkeypatch):
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda use_cpu: able)
    assert demo_options("copyright", model="m", output_dir="o")["settings"]["bf16"] is able
    told = demo_options("copyright", model="m", output_dir="o", settings={"bf16": not able})[
        "settings"
    ]
    assert told["bf16"] is not able
    for other in ({"fp16": True}, {"deepspeed": "zero2.json"}):
        assert (
            "bf16"
            not in demo_options("copyright", model="m", output_dir="o", settings=other)["settings"]
        )
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert "bf16" not in demo_options("copyright", model="m", output_dir="o")["settings"]


@pytest.mark.parametrize("precision", [{}, {"bf16": True}, {"bf16": False}])
def test_what_is_taught_first_is_multiplied_as_what_is_unlearned(precision, tmp_path):
    run = Run(
        build_scenario("copyright", short=True),
        RunOptions(model="m", output_dir=str(tmp_path), settings=precision),
    )
    assert bool(run.teaching_config(tmp_path, learning_rate=1e-4).bf16) is precision.get(
        "bf16", False
    )
    assert bool(run.config(tmp_path).bf16) is False


def test_an_unknown_scenario_is_named_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'harmfulness'"):
        embedded("harmfullness")
