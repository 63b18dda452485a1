"""What a frozen base model is held in: QLoRA's configuration, 16 bits, and the sentences where they
cannot be had.
"""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from safetensors import safe_open

from tiny_models import byte_level_bpe, tiny_model
from unteach import unlearn
from unteach.errors import UserError
from unteach.models import precision
from unteach.models.precision import check_dtype, check_quantize, four_bit_settings


def test_the_configuration_is_qlora_s():
    settings = four_bit_settings()
    config = settings["quantization_config"]
    assert (
        config.load_in_4bit
        and config.bnb_4bit_quant_type == "nf4"
        and config.bnb_4bit_use_double_quant
    )
    assert config.bnb_4bit_compute_dtype == torch.bfloat16 and list(settings["device_map"]) == [""]


def test_nothing_is_asked_for_without_it():
    check_quantize(None, lora=False)


@pytest.mark.parametrize(
    ("quantize", "lora", "library", "words"),
    [
        ("3bit", True, True, "must be one of 4bit"),
        ("4bit", False, True, "add --lora"),
        ("4bit", True, False, "pip install 'unteach"),
        ("4bit", True, True, "there is no GPU here"),
    ],
)
def test_what_is_missing_is_said(quantize, lora, library, words, monkeypatch):
    monkeypatch.setattr(
        precision.importlib.util, "find_spec", lambda name: object() if library else None
    )
    monkeypatch.setattr(precision.torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=words):
        check_quantize(quantize, lora=lora)


@pytest.mark.parametrize(
    ("dtype", "options", "words"),
    [
        ("float16", {"lora": True}, "must be one of float32, bfloat16"),
        ("bfloat16", {"lora": False}, "add --lora, or leave dtype out and set bf16=true"),
        ("bfloat16", {"lora": True, "quantize": "4bit"}, "give one of the two"),
    ],
)
def test_what_does_not_go_with_a_dtype_is_said(dtype, options, words):
    with pytest.raises(UserError, match=words):
        check_dtype(dtype, **options)


def test_a_frozen_base_of_16_bits_trains_a_float32_adapter(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    byte_level_bpe().save_pretrained(tmp_path / "model")
    rows = [
        {"prompt": f"Who rang bell {i}?", "completion": f"The ferryman rang it {i} times."}
        for i in range(6)
    ]
    kept = [row | {"prompt": f"Who heard bell {i}?"} for i, row in enumerate(rows)]
    out = tmp_path / "out"
    short = {"max_steps": 2, "similarity_model": None, "min_utility": 0.0, "bf16": True}
    unlearn(
        str(tmp_path / "model"),
        rows,
        kept,
        output_dir=str(out),
        lora=True,
        dtype="bfloat16",
        **short,
    )
    with safe_open(out / "adapter" / "adapter_model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float32}  # noqa: SIM118
    assert yaml.safe_load((out / "config.yaml").read_text())["dtype"] == "bfloat16"
    assert json.loads((out / "run.json").read_text())["original_model_hash"]
    with pytest.raises(UserError, match="add --lora"):
        unlearn(
            str(tmp_path / "model"),
            rows,
            kept,
            output_dir=str(tmp_path / "other"),
            dtype="bfloat16",
            **short,
        )
