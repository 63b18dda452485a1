"""Twelve families of models, tiny and from a config, as their users have them on disk: in bfloat16,
with settings of generation that transformers itself would not write.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from tiny_models import byte_level_bpe

TEXT = {
    "vocab_size": 512,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 3,
}
EYES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
GENERATION = {"temperature": 0.6, "top_p": 0.9, "eos_token_id": [0, 2], "pad_token_id": 3}
"""A temperature without `do_sample`: published so, and refused by `GenerationConfig` when it is
saved after a change.
"""


def _text(name: str, **more: Any) -> Callable[[], Any]:
    return lambda: getattr(transformers, name)(**{**TEXT, **more})


def _seeing(name: str, text: str, eyes: str | None, **more: Any) -> Callable[[], Any]:
    vision = {**EYES, **({"model_type": eyes} if eyes else {})}
    return lambda: getattr(transformers, name)(
        text_config={**TEXT, "model_type": text}, vision_config=vision, **more
    )


FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": _text("LlamaConfig", tie_word_embeddings=True),
    "qwen3": _text("Qwen3Config"),
    "mistral": _text("MistralConfig", sliding_window=64),
    "phi3": _text("Phi3Config"),
    "gemma2": _text("Gemma2Config", sliding_window=64),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=512, n_embd=32, n_layer=2, n_head=4, n_positions=512, eos_token_id=0
    ),
    "gpt_neox": _text("GPTNeoXConfig"),
    "mixtral": _text("MixtralConfig", num_local_experts=4),
    "mamba": lambda: transformers.MambaConfig(
        vocab_size=512, hidden_size=32, num_hidden_layers=2, state_size=8, eos_token_id=0
    ),
    "gemma3": _seeing("Gemma3Config", "gemma3_text", None, mm_tokens_per_image=4),
    "llava": _seeing("LlavaConfig", "llama", "clip_vision_model"),
    "mistral3": _seeing("Mistral3Config", "mistral", "pixtral"),
}
WITH_IMAGES = ("gemma3", "llava", "mistral3")


def save_family(name: str, folder: Path) -> str:
    """Writes the tiny model of that family and its tokenizer; returns the folder."""
    from unteach.models.loading import auto_class

    torch.manual_seed(0)
    config = FAMILIES[name]()
    model = auto_class(config).from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for part, weight in model.named_parameters():
            if weight.dim() > 1 and "conv1d" not in part and "A_log" not in part:
                weight.normal_(0, 0.2)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="60KB")
    byte_level_bpe().save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION), encoding="utf-8")
    return str(folder)
