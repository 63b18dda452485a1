"""The plan of memory and arithmetic, by hand on a tiny configuration, and against itself where one
option changes.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import LlamaConfig

from tiny_models import byte_level_bpe, tiny_model
from unteach.cli import main
from unteach.config import UnlearningConfig
from unteach.errors import UserError
from unteach.plan import (
    PROCESS_BYTES,
    ModelShape,
    Plan,
    PlanOptions,
    completion_tokens,
    model_shape,
    plan_memory,
    plan_run,
    step_flops,
)

SIZES = {
    "hidden_size": 8,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
LLAMA = LlamaConfig(**SIZES, vocab_size=50, tie_word_embeddings=True)
LINEAR = 3 * (8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 20)
SEVEN_BILLION = LlamaConfig(
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    vocab_size=32000,
)
ROWS = {
    "prompt_tokens": 10,
    "completion_tokens": 6,
    "retain_prompt_tokens": 5,
    "retain_completion_tokens": 4,
    "retain_rows": 7,
}


def config(folder: Any, **settings: Any) -> UnlearningConfig:
    defaults = {
        "method": "ga_mismatch",
        "per_device_train_batch_size": 2,
        "mismatch_completions": 3,
        "max_steps": 5,
        "use_cpu": True,
    }
    return UnlearningConfig(output_dir=str(folder), **(defaults | settings))


def plan(
    folder: Any, shape: ModelShape, settings: dict[str, Any] | None = None, **where: Any
) -> Plan:
    frozen = {name: where.pop(name) for name in ("quantize", "dtype") if name in where}
    options = PlanOptions(**ROWS, **where)
    return plan_memory(shape, config(folder, **(settings or {})), options, **frozen)


def test_parameters_are_counted_without_weights():
    norms = (2 * 3 + 1) * 8
    shape = model_shape(LLAMA)
    assert (shape.linear, shape.embedding, shape.tied) == (LINEAR, 400, True)
    assert shape.parameters == shape.trained == LINEAR + 400 + norms
    assert model_shape(SEVEN_BILLION).parameters == 6_738_415_616
    adapter = model_shape(LLAMA, lora_rank=2)
    assert adapter.trained == 3 * 2 * ((8 + 8) + 2 * (8 + 4) + (8 + 8) + 3 * (8 + 20))
    assert adapter.parameters == shape.parameters + adapter.trained


def test_tokens_of_an_item_by_hand(tmp_path):
    """Inputs: 10 + 5 of the forget row, 3 x 3 of the mismatch completions, 5 + 3 of the retain row;
    predicted: 6 + 3 x 4 + 4.
    """
    assert completion_tokens(config(tmp_path), PlanOptions(**ROWS)) == (32, 22, 4)


def test_parts_by_hand(tmp_path):
    shape = model_shape(LLAMA)
    made = plan(tmp_path, shape)
    layer = 4 * ((6 + 5) * 8 + 4 * 20 + 2)
    assert made.parts["parameters"] == made.parts["gradients"] == 4 * shape.parameters
    assert made.parts["optimiser"] == 8 * shape.parameters
    assert made.parts["activations"] == 64 * 3 * layer + 64 * 16 * 8
    assert made.parts["logits"] == 2 * (22 + 4) * 50 * 4
    assert made.parts["reference states"] == 4 * 400
    assert made.disk == 7 * 4 * 8 * 4
    assert made.tokens == 64 and made.steps == 5
    assert PROCESS_BYTES < made.peak <= sum(made.parts.values()) + 4 * 400


def test_operations_by_hand():
    """Six a weight and token, and for the head of a token with a reference two more; with an
    adapter four, and six of its own.
    """
    shape = model_shape(LLAMA)
    assert step_flops(shape, 10, 4, 1) == 6 * LINEAR * 10 + 6 * 400 * 4 + 2 * 400
    assert step_flops(shape, 10, 4, 1, checkpointed=True) == 8 * LINEAR * 10 + 6 * 400 * 4 + 2 * 400
    adapter = model_shape(LLAMA, lora_rank=2)
    assert step_flops(adapter, 10, 4, 0) == 4 * LINEAR * 10 + 6 * adapter.trained * 10 + 4 * 400 * 4


def test_what_shares_shrinks_and_what_copies_grows(tmp_path):
    shape = model_shape(SEVEN_BILLION)
    alone, copied = plan(tmp_path, shape), plan(tmp_path, shape, processes=8)
    shared = plan(tmp_path, shape, processes=8, sharding="fsdp2")
    assert copied.parts["gradients"] == 2 * alone.parts["gradients"], (
        "data parallelism exchanges gradients in buckets of their size"
    )
    assert shared.parts["optimiser"] == alone.parts["optimiser"] // 8
    assert (
        alone.parts["parameters"] // 8 < shared.parts["parameters"] < alone.parts["parameters"] // 4
    )
    kept = plan(tmp_path, shape, {"gradient_checkpointing": True})
    assert kept.parts["activations"] < alone.parts["activations"] / 4


def test_seven_billion_in_four_bits_fit_a_card_of_24_gigabytes(tmp_path):
    shape = model_shape(SEVEN_BILLION, lora_rank=16)
    small = plan(tmp_path, shape, {"bf16": True}, device="gpu", quantize="4bit")
    assert small.peak < 24 * 2**30 < plan(tmp_path, shape, {"bf16": True}, device="gpu").peak


def test_sixteen_bits_halve_what_is_frozen_and_nothing_that_is_trained(tmp_path):
    shape = model_shape(LLAMA, lora_rank=8)
    full, half = (
        plan(tmp_path, shape, {"bf16": True}),
        plan(tmp_path, shape, {"bf16": True}, dtype="bfloat16"),
    )
    assert full.parts["parameters"] - half.parts["parameters"] == 2 * (
        shape.parameters - shape.trained
    )
    assert (
        full.parts["gradients"] == half.parts["gradients"]
        and full.parts["optimiser"] == half.parts["optimiser"]
    )
    assert full.parts["activations"] - half.parts["activations"] == 2 * shape.linear, (
        "autocast has nothing to round any more"
    )


@pytest.mark.parametrize(
    "where",
    [
        {"sharding": "fsdp3"},
        {"device": "tpu"},
        {"quantize": "4bit"},
        {"dtype": "bfloat16"},
        {"processes": 0},
        {"forget_rows": 0},
    ],
    ids=str,
)
def test_what_cannot_be_planned_is_refused(where, tmp_path):
    with pytest.raises(UserError):
        plan(tmp_path, model_shape(LLAMA), **where)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(made)
    byte_level_bpe().save_pretrained(made)
    (made / "model.safetensors").unlink()
    return str(made)


def test_the_command_reads_no_weights_and_prints_a_table(folder, capsys):
    assert main(["plan", "--model", folder, "--lora", "max_steps=3"]) == 0
    shown = capsys.readouterr().out
    for word in (
        "parameters",
        "gradients",
        "optimiser",
        "activations",
        "logits",
        "reference states",
        "peak",
        "Computed, not measured",
    ):
        assert word in shown


def test_the_command_gives_json_with_the_options_it_was_given(folder, capsys):
    assert (
        main(
            [
                "plan",
                "--model",
                folder,
                "--json",
                "--tflops",
                "2",
                "--processes",
                "2",
                "--sharding",
                "fsdp2",
                "max_steps=3",
            ]
        )
        == 0
    )
    shown = json.loads(capsys.readouterr().out)
    assert shown == plan_run(folder, {"max_steps": 3}, processes=2, sharding="fsdp2", tflops=2.0)
    assert shown["steps"] == 3 and list(shown["seconds"]) == ["2"]


@pytest.mark.parametrize(
    "words",
    [["--tflops", "0"], ["--quantize", "4bit"], ["--processes", "0"], ["--model", "no/such"]],
    ids=str,
)
def test_a_mistake_is_one_sentence(words, folder, capsys):
    assert main(["plan", "--model", folder, *words]) == 2
    assert capsys.readouterr().err.startswith("unteach: ")
