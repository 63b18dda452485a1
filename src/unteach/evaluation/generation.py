"""Answers in batches, left-padded, sorted by length: greedy ones, or drawn at a temperature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from unteach.data.rows import Row
from unteach.data.tokenization import encode_prompt, end_of_turn_id
from unteach.processes import from_shares, own_share

Progress = Callable[[int, int], None]
HABITS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "min_length",
    "min_new_tokens",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "sequence_bias",
    "forced_bos_token_id",
    "forced_eos_token_id",
)
"""What a model's own `generation_config` may bend its answers with; a greedy answer has none of it."""


@torch.no_grad()
def generate_ids(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    pad_id: int,
    end_ids: Sequence[int],
    batch_size: int = 24,
    temperature: float = 0.0,
    progress: Progress | None = None,
    on_batch: Callable[[dict[int, list[int]]], None] | None = None,
) -> list[list[int]]:
    """Continuations, without the end token and what follows it.

    Args:
        model: a causal language model.
        prompts: token ids of each prompt.
        max_new_tokens (`int`)
        pad_id (`int`)
        end_ids: tokens that end an answer.
        batch_size (`int`)
        temperature (`float`): 0: greedy; above: drawn, with torch's global generator, from the whole distribution at that temperature.
        progress (`Callable`, *optional*): called with (done, of) prompts.
        on_batch (`Callable`, *optional*): given each batch's continuations by the prompt's place, as soon as they are there.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    outputs: list[list[int]] = [[] for _ in prompts]
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    # top_k is named because transformers fills in 50 where it is None
    drawn = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        width = max(len(prompts[i]) for i in part)
        ids = torch.full((len(part), width), pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, index in enumerate(part):
            ids[row, width - len(prompts[index]) :] = torch.tensor(list(prompts[index]))
            mask[row, width - len(prompts[index]) :] = 1
        made = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            do_sample=temperature > 0,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad_id,
            eos_token_id=list(end_ids) or None,
            **(dict.fromkeys(HABITS) | drawn),
        )
        for row, index in enumerate(part):
            continuation = made[row, width:].tolist()
            ends = [place for place, token in enumerate(continuation) if token in end_ids]
            outputs[index] = continuation[: ends[0]] if ends else continuation
        if on_batch:
            on_batch({index: outputs[index] for index in part})
        if progress:
            progress(min(start + batch_size, len(order)), len(order))
    model.train(training)
    return outputs


def end_ids(tokenizer: Any) -> list[int]:
    """Tokens at which an answer ends: end-of-sequence and the chat template's end of turn."""
    return sorted({token for token in (tokenizer.eos_token_id, end_of_turn_id(tokenizer)) if token is not None})


class Generator(Protocol):
    """Something that continues prompts greedily: the model itself, a cache before it, another engine."""

    def __call__(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, progress: Progress | None = None) -> list[list[int]]:
        """Continuations of token ids, without the end token."""


@dataclass(frozen=True)
class TransformersGenerator:
    """Generation by transformers, in this process.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        batch_size (`int`)
    """

    model: Any
    tokenizer: Any
    batch_size: int = 24
    on_batch: Callable[[dict[int, list[int]]], None] | None = None

    def __call__(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, progress: Progress | None = None) -> list[list[int]]:
        """See `Generator`."""
        return generate_ids(
            self.model,
            prompts,
            max_new_tokens=max_new_tokens,
            pad_id=self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0,
            end_ids=end_ids(self.tokenizer),
            batch_size=self.batch_size,
            progress=progress,
            on_batch=self.on_batch,
        )


@dataclass(frozen=True)
class SharedGenerator:
    """Generation by transformers of which each process of a run does its share, and has the whole in the end.

    Args:
        model: a causal language model, whole in every process.
        tokenizer: its tokenizer.
        batch_size (`int`)
    """

    model: Any
    tokenizer: Any
    batch_size: int = 24

    def __call__(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, progress: Progress | None = None) -> list[list[int]]:
        """See `Generator`."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        generate = TransformersGenerator(self.model, self.tokenizer, self.batch_size)
        share = [prompts[i] for i in own_share(order)]
        made = from_shares(generate(share, max_new_tokens=max_new_tokens, progress=progress), len(prompts))
        return [ids for _, ids in sorted(zip(order, made, strict=True))]


def answer(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    *,
    max_new_tokens: int,
    generator: Generator | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """The model's greedy answer to each row's prompt, as text that goes on where the prompt ends (with its space, if it has one)."""
    prompts = [encode_prompt(row, tokenizer) for row in rows]
    generator = generator or SharedGenerator(model, tokenizer)
    outputs = generator(prompts, max_new_tokens=max_new_tokens, progress=progress)
    return [continuation_text(tokenizer, prompt, ids) for prompt, ids in zip(prompts, outputs, strict=True)]


def continuation_text(tokenizer: Any, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """Text of `ids` after `prompt`. Decoded alone they would lose the space in front where pieces begin with a word boundary (Llama)."""
    before = str(tokenizer.decode(list(prompt), skip_special_tokens=True))
    whole = str(tokenizer.decode([*prompt, *ids], skip_special_tokens=True))
    return whole[len(before) :] if whole.startswith(before) else str(tokenizer.decode(list(ids), skip_special_tokens=True))
