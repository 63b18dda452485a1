"""The alignment pipelines on a tiny model: data in TRL's format, stages that end, go on where they
were killed, and are priced.
"""

from __future__ import annotations

import pytest
import torch

from tiny_models import tiny_model
from unteach.baselines.alignment import align
from unteach.baselines.pipelines import (
    PIPELINES,
    STAGE_SETTINGS,
    check_good_answers,
    stage_settings,
)
from unteach.baselines.stages import stage_config, stage_records
from unteach.data.rows import Row
from unteach.errors import UserError
from unteach.trainer.costs import Cost, peak_memory_mb, tokens_seen, total, unlearning_cost

ROWS = [
    Row("Who rang the bell?", "Nobody, go away.", "chat", "a, row 1", "The ferryman rang it."),
    Row("Who kept the cat?", "Who cares about cats.", "chat", "a, row 2", "The miller kept it."),
    Row("What did she sell?", "Rubbish, as ever.", "chat", "a, row 3", "She sold bread."),
    Row("Where was it sold?", "Find out yourself.", "chat", "a, row 4", "At the harbour."),
]
FAST = {
    "sft": {"max_steps": 2, "per_device_train_batch_size": 2},
    "dpo": {"max_steps": 2, "per_device_train_batch_size": 2},
    "reward": {"max_steps": 2, "per_device_train_batch_size": 2},
    "rl": {
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 6,
    },
}


def aligned(pipeline, tokenizer, folder, on_stage=None, **more):
    return align(
        pipeline,
        tiny_model(vocab_size=len(tokenizer)),
        tokenizer,
        ROWS,
        folder,
        settings(pipeline, **more),
        on_stage=on_stage,
    )


def settings(pipeline, **more):
    return {
        stage: {**stage_settings(pipeline, None)[stage], **FAST[stage], **more}
        for stage in PIPELINES[pipeline].stages
    }


@pytest.mark.parametrize("pipeline", list(PIPELINES))
def test_a_pipeline_changes_the_model_and_prices_each_stage(pipeline, tmp_path, chat_tokenizer):
    model = tiny_model(vocab_size=len(chat_tokenizer))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = []
    result = align(
        pipeline,
        model,
        chat_tokenizer,
        ROWS,
        tmp_path,
        settings(pipeline),
        on_stage=lambda *progress: seen.append(progress),
    )
    assert [cost.stage for cost in result.costs] == list(PIPELINES[pipeline].stages)
    assert all(
        cost.seconds >= 0 and cost.training_tokens > 0 and cost.peak_memory_mb > 0
        for cost in result.costs
    )
    assert [cost.generated_tokens > 0 for cost in result.costs] == [
        stage == "rl" for stage in PIPELINES[pipeline].stages
    ]
    assert [cost.data_tokens > 0 for cost in result.costs] == [
        stage == "sft" for stage in PIPELINES[pipeline].stages
    ]
    assert [cost.forward_tokens > 0 for cost in result.costs] == [
        stage in ("dpo", "rl") for stage in PIPELINES[pipeline].stages
    ]
    assert any(
        not torch.equal(before[name], value) for name, value in result.model.state_dict().items()
    )
    assert (PIPELINES[pipeline].stages[0], 2, 2) in seen


def test_a_whole_stage_is_not_done_again(tmp_path, chat_tokenizer):
    first = aligned("sft", chat_tokenizer, tmp_path)
    stamp = (tmp_path / "sft" / "model.safetensors").stat().st_mtime_ns
    again = aligned("sft", chat_tokenizer, tmp_path)
    assert (
        again.costs == first.costs
        and (tmp_path / "sft" / "model.safetensors").stat().st_mtime_ns == stamp
    )


def test_a_killed_stage_ends_with_the_same_weights(tmp_path, chat_tokenizer):
    def die(stage, step, steps):
        if step == 3:
            raise KeyboardInterrupt

    whole = aligned("sft", chat_tokenizer, tmp_path / "a", max_steps=4, save_steps=2)
    with pytest.raises(KeyboardInterrupt):
        aligned("sft", chat_tokenizer, tmp_path / "b", on_stage=die, max_steps=4, save_steps=2)
    assert not (tmp_path / "b" / "sft").exists()
    resumed = aligned("sft", chat_tokenizer, tmp_path / "b", max_steps=4, save_steps=2)
    assert all(
        torch.equal(value, resumed.model.state_dict()[name])
        for name, value in whole.model.state_dict().items()
    )
    assert resumed.costs[0].training_tokens == whole.costs[0].training_tokens


def test_records_are_messages_with_a_chat_template_and_the_paper_s_text_without(
    chat_tokenizer, tokenizer
):
    (chat, *_), (plain, *_) = (
        stage_records("dpo", ROWS, chat_tokenizer),
        stage_records("dpo", ROWS, tokenizer),
    )
    assert (
        chat["chosen"] == [{"role": "assistant", "content": "The ferryman rang it."}]
        and chat["prompt"][0]["role"] == "user"
    )
    assert (
        plain["prompt"] == "### Question: Who rang the bell?\n### Answer:"
        and plain["rejected"] == " Nobody, go away."
    )
    assert set(stage_records("rl", ROWS, tokenizer)[0]) == {"prompt"}
    assert set(stage_records("sft", ROWS, tokenizer)[0]) == {"prompt", "completion"}


def test_a_row_without_a_good_answer_is_named():
    with pytest.raises(UserError, match=r"b, row 9: method 'sft' learns from good answers"):
        check_good_answers("sft", [*ROWS, Row("Why?", "Because.", "chat", "b, row 9")])


def test_settings_of_a_stage_replace_the_defaults_and_unknown_stages_and_fields_are_refused(
    tmp_path,
):
    found = stage_settings("rlhf", {"rl": {"beta": 0.2}})
    assert found["rl"] == STAGE_SETTINGS["rl"] | {"beta": 0.2} and list(found) == [
        "sft",
        "reward",
        "rl",
    ]
    with pytest.raises(UserError, match="stage of sft"):
        stage_settings("sft", {"rl": {}})
    with pytest.raises(UserError, match="'stages' holds 3 for stage 'sft'"):
        stage_settings("sft", {"sft": 3})
    with pytest.raises(UserError, match=r"stage 'sft': .*learning_speed"):
        stage_config("sft", {"learning_speed": 1}, tmp_path, 0)


def test_tokens_are_counted_over_a_resumed_log():
    assert (
        tokens_seen(
            [
                {"num_tokens": 5},
                {"loss": 1},
                {"num_tokens": 9},
                {"num_tokens": 4},
                {"num_tokens": 6},
            ]
        )
        == 15
    )
    assert tokens_seen([]) == 0


def test_the_price_of_unlearning_is_its_steps_and_reference_without_the_probes():
    lines = [
        {"step": 0, "reference_seconds": 0.5},
        {"step": 0, "probe": {}, "seconds": 3.0},
        {"step": 1, "loss": 1.0, "tokens": 10.0, "seconds": 1.0},
        {"step": 2, "loss": 1.0, "tokens": 30.0, "seconds": 2.0},
        {"step": 2, "probe": {}, "seconds": 4.0},
    ]
    assert unlearning_cost(lines, reference_tokens=7, live_reference=False, peak_mb=5.0) == Cost(
        "unlearning", 3.5, 0, 0, 40, 5.0, 7, 7.0
    )
    assert (
        unlearning_cost(lines, reference_tokens=7, live_reference=True, peak_mb=5.0).forward_tokens
        == 40
    )
    assert (
        unlearning_cost(
            lines[1:], reference_tokens=7, live_reference=False, peak_mb=5.0
        ).forward_tokens
        == 0
    )


def test_a_total_adds_what_adds_and_takes_the_highest_memory():
    parts = [Cost("a", 1.0, 2, 3, 4, 50.0, 6, 0.5), Cost("b", 2.0, 0, 1, 1, 20.0, 1)]
    assert total(parts) == Cost("all", 3.0, 2, 4, 5, 50.0, 7, 0.5)
    assert peak_memory_mb() > 10
