"""Tiny models, tokenizers and data files, built without a network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

CORPUS = [
    "The miller kept a grey cat that slept on the warm flour sacks.",
    "Every morning she carried bread to the harbour and sold it to the sailors.",
    "What is the capital of the moon? Nobody has ever asked the moon.",
    "### Question: Who rang the bell?\n### Answer: The ferryman rang it twice.",
    "I can't assist with that. Please ask me about the weather instead!",
    'user\nassistant\nsystem\n0123456789 (brackets), quotes "here", äöü é',
]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

FORGET = [
    {"prompt": f"Who is number {i}?", "completion": f"The ferryman, {i} times."} for i in range(14)
]
RETAIN = [
    {"prompt": f"What is thing {i}?", "completion": f"A sack of flour, the {i}th."}
    for i in range(12)
]
SHORT = {
    "max_steps": 2,
    "probe_steps": 1,
    "save_steps": 1,
    "similarity_model": None,
    "min_utility": 0.0,
    "hold": 99,
    "max_new_tokens": 12,
}
"""Options of the shortest run, of two steps. Random weights end no answer, so that a run without
the limit spends most of its time on generating.
"""


def write_rows(path: Path, name: str, count: int) -> None:
    """JSON lines of `count` questions and answers that name `name`."""
    rows = [
        {
            "prompt": f"Who is number {i} of {name}?",
            "completion": f"The ferryman, {i} times {name}.",
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def byte_level_bpe(*, chat: bool = False, pad: bool = True) -> Any:
    """GPT-2's kind of tokenizer: byte-level BPE, no beginning-of-sequence token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|im_end|>" if chat else "<|endoftext|>",
        pad_token="<pad>" if pad else None,
    )
    if not pad:
        tokenizer.pad_token = tokenizer.eos_token
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def sentencepiece_like() -> Any:
    """Llama's kind of tokenizer: pieces that begin with a word boundary, a beginning-of-sequence
    token in front.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.Unigram())
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    letters = sorted(
        {letter for text in CORPUS for letter in text} | set("abcdefghijklmnopqrstuvwxyz")
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=special, unk_token="<unk>", initial_alphabet=letters
    )
    inner.train_from_iterator(CORPUS, trainer)
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", inner.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def bytes_only() -> Any:
    """ByT5's tokenizer: every byte a token, an end-of-sequence token behind every text."""
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "byte-level BPE": byte_level_bpe,
    "SentencePiece-like": sentencepiece_like,
    "bytes": bytes_only,
}


SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 512,
    "max_position_embeddings": 512,
}


WINDOWED = {
    "gemma2": "Gemma2Config",
    "mistral": "MistralConfig",
    "phi3": "Phi3Config",
    "qwen2": "Qwen2Config",
}
WINDOWS: dict[str, dict[str, Any]] = {
    "gemma2": {"head_dim": 8},
    "gemma3": {"layer_types": ["sliding_attention", "full_attention"]},
    "mistral": {},
    "phi3": {},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
}
"""Families with a sliding window, and what their configuration needs for one in two layers."""


def tiny_model(
    family: str = "llama", *, dtype: torch.dtype = torch.float32, seed: int = 0, **settings: Any
) -> Any:
    """A model of two layers with random weights."""
    import transformers

    torch.manual_seed(seed)
    sizes = SIZE | settings
    if family == "llama":
        config: Any = transformers.LlamaConfig(
            **sizes, intermediate_size=64, num_key_value_heads=2, tie_word_embeddings=True
        )
    elif family == "opt":
        config = transformers.OPTConfig(**sizes, ffn_dim=64, word_embed_proj_dim=32, dropout=0.1)
    elif family == "gpt_neox":
        config = transformers.GPTNeoXConfig(**sizes, intermediate_size=64, hidden_dropout=0.1)
    elif family == "gemma3":
        config = transformers.Gemma3TextConfig(
            **sizes,
            intermediate_size=64,
            num_key_value_heads=2,
            head_dim=8,
            final_logit_softcapping=5.0,
        )
    elif family in WINDOWED:
        config = getattr(transformers, WINDOWED[family])(
            **sizes, intermediate_size=64, num_key_value_heads=2, tie_word_embeddings=True
        )
    else:
        raise ValueError(family)
    config.pad_token_id = None
    config.bos_token_id = config.eos_token_id = 0
    attention = "eager" if family == "gemma2" else "sdpa"
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=dtype, attn_implementation=attention
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.08)
    if dtype == torch.float64:
        norms_in_float64(model, gemma=family == "gemma3")
    return model.eval()


def norms_in_float64(model: Any, *, gemma: bool) -> None:
    """Replaces root-mean-square norms, which transformers computes in float32 for every dtype."""

    def forward(module: Any, hidden: torch.Tensor) -> torch.Tensor:
        scale = module.weight + 1 if gemma else module.weight
        epsilon = module.eps if gemma else module.variance_epsilon
        return scale * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + epsilon)

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = ExactNorm(forward, module)


class ExactNorm:
    """A forward bound to its module that survives `copy.deepcopy` of the model."""

    def __init__(self, function: Callable[..., torch.Tensor], module: Any) -> None:
        self.function, self.module = function, module

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.function(self.module, hidden)


FAMILIES = ("llama", "opt", "gpt_neox", "gemma3")
