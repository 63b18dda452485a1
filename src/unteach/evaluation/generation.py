"""Answers in batches, left-padded, sorted by length: greedy ones, or drawn at a temperature."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from unteach.data.rows import Row
from unteach.data.tokenization import encode_prompt, encode_row, end_of_turn_id
from unteach.errors import UserError
from unteach.evaluation.memorization import greedy_matches
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
    starts: Sequence[Sequence[int]] | None = None,
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
        starts (*optional*): for each prompt, tokens that its continuation is known to begin with (`agreed_starts`): not generated again.
        progress (`Callable`, *optional*): called with (done, of) prompts.
        on_batch (`Callable`, *optional*): given each batch's continuations by the prompt's place, as soon as they are there.
    """
    known = [list(start)[:max_new_tokens] for start in starts] if starts else [[] for _ in prompts]
    outputs = [until_end(start, end_ids) for start in known]
    open_rows = [i for i, start in enumerate(known) if len(start) < max_new_tokens and len(outputs[i]) == len(start)]
    order = sorted(open_rows, key=lambda i: (len(known[i]), len(prompts[i])))
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    # top_k is named because transformers fills in 50 where it is None
    drawn = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
    if on_batch and len(order) < len(prompts):
        on_batch({i: outputs[i] for i in sorted(set(range(len(prompts))) - set(order))})
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        width = max(len(prompts[i]) + len(known[i]) for i in part)
        ids = torch.full((len(part), width), pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, index in enumerate(part):
            given = [*prompts[index], *known[index]]
            ids[row, width - len(given) :] = torch.tensor(given)
            mask[row, width - len(given) :] = 1
        made = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            do_sample=temperature > 0,
            num_beams=1,
            max_new_tokens=max_new_tokens - min(len(known[i]) for i in part),
            pad_token_id=pad_id,
            eos_token_id=list(end_ids) or None,
            synced_gpus=False,  # each process has prompts of its own, and their number differs
            **(dict.fromkeys(HABITS) | drawn),
        )
        for row, index in enumerate(part):
            continuation = [*known[index], *made[row, width:].tolist()][:max_new_tokens]
            outputs[index] = until_end(continuation, end_ids)
        if on_batch:
            on_batch({index: outputs[index] for index in part})
        if progress:
            progress(len(prompts) - len(order) + min(start + batch_size, len(order)), len(prompts))
    model.train(training)
    return outputs


def until_end(ids: Sequence[int], end_ids: Sequence[int]) -> list[int]:
    """The tokens before the first that ends an answer."""
    return list(ids[: next((place for place, token in enumerate(ids) if token in end_ids), len(ids))])


def agreed_starts(
    model: Any, prompts: Sequence[Sequence[int]], drafts: Sequence[Sequence[int]], *, tokens_per_batch: int = 2048
) -> list[list[int]]:
    """How far each draft is what the model itself would say: its longest beginning of tokens that are all the model's greedy choice.

    One forward over prompt and draft finds it. A greedy continuation that is expected (the text that a model is asked whether it still
    knows, the answer that it gave before) so costs one forward, not one for each token; a draft that is wrong from its first token costs
    that forward. It is the verification step of speculative decoding (Leviathan et al. 2023), a text standing in for the draft model.

    Args:
        model: a causal language model.
        prompts: token ids of each prompt.
        drafts: token ids of each draft; empty where there is none.
        tokens_per_batch (`int`): prompts and drafts are batched up to so many tokens.
    """
    training = model.training
    model.eval()
    matches = greedy_matches(model, prompts, drafts, tokens_per_batch=tokens_per_batch)
    model.train(training)
    return [
        [] if found is None else list(draft[: len(draft) if found.all() else int(found.argmin())])
        for draft, found in zip(drafts, matches, strict=True)
    ]


def end_ids(tokenizer: Any) -> list[int]:
    """Tokens at which an answer ends: end-of-sequence and the chat template's end of turn."""
    return sorted({token for token in (tokenizer.eos_token_id, end_of_turn_id(tokenizer)) if token is not None})


class Generator(Protocol):
    """Something that continues prompts greedily: the model itself, a cache before it, another engine."""

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        drafts: Sequence[Sequence[int]] | None = None,
        progress: Progress | None = None,
    ) -> list[list[int]]:
        """Continuations of token ids, without the end token. `drafts` are what they may turn out to be: they save work, change nothing."""


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

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        drafts: Sequence[Sequence[int]] | None = None,
        progress: Progress | None = None,
    ) -> list[list[int]]:
        """See `Generator`."""
        return generate_ids(
            self.model,
            prompts,
            starts=agreed_starts(self.model, prompts, drafts) if drafts and any(drafts) else None,
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

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        drafts: Sequence[Sequence[int]] | None = None,
        progress: Progress | None = None,
    ) -> list[list[int]]:
        """See `Generator`."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        generate = TransformersGenerator(self.model, self.tokenizer, self.batch_size)
        share = own_share(order)
        hints = {"drafts": [drafts[i] for i in share]} if drafts else {}
        made = from_shares(generate([prompts[i] for i in share], max_new_tokens=max_new_tokens, progress=progress, **hints), len(prompts))
        return [ids for _, ids in sorted(zip(order, made, strict=True))]


def answer(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    *,
    max_new_tokens: int,
    generator: Generator | None = None,
    expected: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """The model's greedy answer to each row's prompt, as text that goes on where the prompt ends (with its space, if it has one).

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        rows: rows with prompts; a completion is the draft of the answer (`agreed_starts`).
        max_new_tokens (`int`)
        generator (`Generator`, *optional*): who generates; default: the model itself.
        expected (*optional*): drafts by the rows' keys, before those in the rows: answers of this model or of one like it.
        progress (`Callable`, *optional*): called with (done, of) prompts.
    """
    prompts = [encode_prompt(row, tokenizer) for row in rows]
    end_id = end_of_turn_id(tokenizer)
    texts = [(expected or {}).get(row.key, row.completion) for row in rows]
    drafts = [draft(*item, tokenizer, end_id) for item in zip(rows, prompts, texts, strict=True)]
    generator = generator or SharedGenerator(model, tokenizer)
    outputs = generator(prompts, max_new_tokens=max_new_tokens, drafts=drafts, progress=progress)
    return [continuation_text(tokenizer, prompt, ids) for prompt, ids in zip(prompts, outputs, strict=True)]


def draft(row: Row, prompt: Sequence[int], text: str, tokenizer: Any, end_id: int | None) -> tuple[int, ...]:
    """Tokens of a text as the row's answer; none where it is empty or its tokens merge with the prompt's."""
    if text.strip():
        with contextlib.suppress(UserError):
            item = encode_row(row.with_completion(text), tokenizer, end_id)
            if list(item.prompt_ids) == list(prompt):
                return item.completion_ids
    return ()


def continuation_text(tokenizer: Any, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """Text of `ids` after `prompt`. Decoded alone they would lose the space in front where pieces begin with a word boundary (Llama)."""
    before = str(tokenizer.decode(list(prompt), skip_special_tokens=True))
    whole = str(tokenizer.decode([*prompt, *ids], skip_special_tokens=True))
    return whole[len(before) :] if whole.startswith(before) else str(tokenizer.decode(list(ids), skip_special_tokens=True))
