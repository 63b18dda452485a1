"""QLoRA's configuration, and the sentences where it cannot run."""

from __future__ import annotations

import pytest
import torch

from unteach import four_bits
from unteach.errors import UserError
from unteach.four_bits import check_quantize, four_bit_settings


def test_the_configuration_is_qlora_s():
    settings = four_bit_settings()
    config = settings["quantization_config"]
    assert config.load_in_4bit and config.bnb_4bit_quant_type == "nf4" and config.bnb_4bit_use_double_quant
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
    monkeypatch.setattr(four_bits.importlib.util, "find_spec", lambda name: object() if library else None)
    monkeypatch.setattr(four_bits.torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=words):
        check_quantize(quantize, lora=lora)
