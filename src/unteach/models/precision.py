"""Precision of weights and products: a frozen base in 32, 16 or 4 bits (QLoRA, Dettmers et al.
2023), products in 32 or 16 bits.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from unteach.errors import UserError, did_you_mean

CHOICES = ("4bit",)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def dtype_of(name: str) -> torch.dtype:
    """The precision of that name, one of `DTYPES`.

    Raises:
        UserError: for another name.
    """
    if name not in DTYPES:
        raise did_you_mean(name, list(DTYPES), "dtype")
    return DTYPES[name]


def check_dtype(dtype: str, *, lora: bool, quantize: str | None = None) -> None:
    """Raises `UserError` for an unknown value, for 16 bits without an adapter, and for 16 bits
    beside 4.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}, it must be one of {', '.join(DTYPES)}")
    if dtype == "float32":
        return
    if not lora:
        raise UserError(
            f"dtype is {dtype!r}, but weights of 16 bits that are trained themselves lose most"
            " small updates to rounding: add --lora, or leave dtype out and set bf16=true"
            " (products in bfloat16, weights in float32)"
        )
    if quantize:
        raise UserError(f"dtype is {dtype!r} and quantize is {quantize!r}; give one of the two")


def check_quantize(quantize: str | None, *, lora: bool) -> None:
    """Raises `UserError` for an unknown value, without an adapter to train, and where the library
    or a GPU is missing.
    """
    if quantize is None:
        return
    if quantize not in CHOICES:
        raise UserError(
            f"quantize is {quantize!r}, it must be one of {', '.join(CHOICES)} (or null)"
        )
    reason = ""
    if not lora:
        reason = "weights of 4 bits cannot be trained themselves: add --lora"
    elif importlib.util.find_spec("bitsandbytes") is None:
        reason = (
            "bitsandbytes is not installed here; install the extra with: pip install"
            " 'unteach[qlora]'"
        )
    elif not torch.cuda.is_available():
        reason = "there is no GPU here, which 4-bit training needs; leave quantize out"
    if reason:
        raise UserError(f"quantize is '4bit', but {reason}")


def four_bit_settings() -> dict[str, Any]:
    """Arguments of `from_pretrained`: 4-bit normal floats with double quantisation, products in
    bfloat16, on this process's GPU.
    """
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    return {"quantization_config": config, "device_map": {"": device}}
