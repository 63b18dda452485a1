"""The alignment pipelines on a tiny model: data in TRL's format, stages that end, go on where they
were killed, and are priced.
"""

from __future__ import annotations

import pytest
import torch

from tiny_models import TOKENIZERS, tiny_model
from unteach.baselines import stages
from unteach.baselines.alignment import align
from unteach.baselines.pipelines import (
    PIPELINES,
    STAGE_SETTINGS,
    check_good_answers,
    stage_settings,
)
from unteach.baselines.stages import CONFIGS, make_trainer, stage_config, stage_records
from unteach.data.chat import ChatSettings, use_chat_settings
from unteach.data.rows import Row
from unteach.data.tokenization import encode_prompt, encode_row, end_of_turn_id, shared
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


TEMPLATES = {
    "none": None,
    "a space before the answer": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
    "[ASK] {{ m.content }} [/ASK]{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}",
    "an empty think block before it": "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("kind", ["byte-level BPE", "SentencePiece-like"])
def test_the_baselines_train_on_the_token_ids_that_unlearning_trains_on(
    name, kind, tmp_path, monkeypatch
):
    """What TRL's own data loaders give, and what its reward model is asked about."""
    tokenizer = TOKENIZERS[kind]()
    tokenizer.chat_template = TEMPLATES[name]
    use_chat_settings(tokenizer, ChatSettings("Be brief." if name == "none" else ""))
    end = end_of_turn_id(tokenizer)
    items = [
        [
            encode_row(row.with_completion(text), tokenizer, end)
            for text in (row.right, row.completion)
        ]
        for row in ROWS
    ]
    good, bad = (
        sorted(pair[place].prompt_ids + pair[place].completion_ids for pair in items)
        for place in (0, 1)
    )
    asked = {encode_prompt(row, tokenizer) for row in ROWS}
    seen, inner = [], stages.score

    def score(model, ids):
        seen.append(tuple(ids))
        return inner(model, ids)

    monkeypatch.setattr(stages, "score", score)
    tiny_model(vocab_size=512).save_pretrained(tmp_path / "sft")
    for stage in CONFIGS:
        chosen = {**FAST[stage], "per_device_train_batch_size": 4, "max_steps": 1, "beta": 0.1}
        chosen |= {"use_cpu": True, "save_strategy": "no"}
        if stage in ("sft", "reward"):
            del chosen["beta"]
        config = stage_config(stage, chosen, tmp_path / "work", 0)
        start = tiny_model(vocab_size=512) if stage == "sft" else tmp_path / "sft"
        trainer, _ = make_trainer(stage, config, start, tmp_path / "sft", tokenizer, ROWS)
        if stage == "rl":
            trainer.train()
            assert seen and all(any(ids[: len(one)] == one for one in asked) for ids in seen)
            assert end in trainer.eos_token_ids
            continue
        batch = next(iter(trainer.get_train_dataloader()))
        rows = zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True)
        given = [tuple(token for token, kept in zip(*row, strict=True) if kept) for row in rows]
        assert sorted(given[:4]) == good
        if stage == "sft":
            trained = [[t for t in row if t != -100] for row in batch["labels"].tolist()]
            assert sorted(trained) == sorted([*pair[0].completion_ids] for pair in items)
        else:
            assert sorted(given[4:]) == bad
        if stage == "dpo":
            starts = [shared(*(item.prompt_ids for item in pair)) for pair in items]
            counts = batch["completion_mask"].sum(1).tolist()
            wanted = [len(pair[0]) - start for pair, start in zip(items, starts, strict=True)]
            assert sorted(counts[:4]) == sorted(wanted)


def test_a_row_that_trl_would_cut_is_refused_by_name(tokenizer):
    with pytest.raises(UserError, match=r"a, row 1: .* more than max_length 5 of stage 'sft'"):
        stage_records("sft", ROWS, tokenizer, 5)


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
