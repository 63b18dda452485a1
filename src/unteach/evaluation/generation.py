"""Batched generation with left padding, sorted by length: greedy, or sampled at a temperature."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from operator import itemgetter
from typing import Any, Protocol

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from unteach import models
from unteach.data.answers import answer_format, read_answer
from unteach.data.chat import chat_settings, has_template
from unteach.data.rows import Row
from unteach.data.tokenization import encode_row, end_of_turn_id, fitting_prompt
from unteach.errors import UserError
from unteach.evaluation.likelihood import greedy_matches, prefix_cache, repeated_cache
from unteach.models.kernels import steady_attention
from unteach.processes import gather_shards, process_shard

Progress = Callable[[int, int], None]
ANSWER_TOKENS, MORE_TOKENS, MOST_TOKENS = 56, 16, 256
"""Least limit of an answer; tokens beyond the longest completion, as an answer may begin with
other words; highest limit that completions set."""
TRACE_TOKENS = 512
"""More tokens where the model may think before it answers."""
STRIDE = 8
"""Finished sequences are removed from the batch every so many new tokens."""
MIN_BATCH, MAX_BATCH = 24, 192
"""Bounds of the default batch size, in prompts."""
CACHE_MB = 1024
"""On a CPU: largest KV cache, in MiB, of a default batch of more than `MIN_BATCH` prompts."""
GPU_SHARE = 0.3
"""On a GPU: largest share of its free memory for the KV cache of a default batch."""


@torch.no_grad()
@steady_attention()
def generate_ids(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    pad_id: int,
    end_ids: Sequence[int],
    batch_size: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    avoid: Sequence[int] = (),
    processors: Sequence[LogitsProcessor] = (),
    starts: Sequence[Sequence[int]] | None = None,
    progress: Progress | None = None,
    on_batch: Callable[[dict[int, list[int]]], None] | None = None,
) -> list[list[int]]:
    """Continuations, without the end token and what follows it.

    Args:
        prompts: token ids of each prompt.
        max_new_tokens: token limit of a continuation.
        pad_id: the padding token.
        end_ids: tokens that end an answer.
        batch_size: prompts per batch; default: `batch_that_fits`.
        temperature: 0 is greedy decoding; above 0 torch's global generator samples at it.
        top_p: samples come from the fewest likeliest tokens with this probability; 1: from all.
        avoid: tokens that no continuation holds.
        processors: change the scores of each next token; their `input_ids` end as the prompt and
            its continuation do, with padding before.
        starts: for each prompt, verified tokens (`agreed_starts`) from which to continue.
        progress: called with (done, of) prompts.
        on_batch: called with the finished continuations, by index of the prompt.
    """
    known = [list(start)[:max_new_tokens] for start in starts] if starts else [[] for _ in prompts]
    outputs = [until_end(start, end_ids) for start in known]
    unfinished = [i for i, ids in enumerate(outputs) if len(ids) == len(known[i]) < max_new_tokens]
    order = sorted(unfinished, key=lambda i: (len(known[i]), len(prompts[i])))
    training = model.training
    model.eval()
    sampling: dict[str, Any] = {"do_sample": temperature > 0}
    if temperature > 0:  # top_k is named because transformers fills in 50 where it is None
        sampling |= {"temperature": temperature, "top_k": 0, "top_p": top_p}
    if avoid:
        sampling["suppress_tokens"] = list(avoid)
    if processors:
        sampling["logits_processor"] = LogitsProcessorList(processors)
    if on_batch and len(order) < len(prompts):
        on_batch({i: outputs[i] for i in sorted(set(range(len(prompts))) - set(order))})
    done = len(prompts) - len(order)
    size = batch_size or batch_that_fits(model, max(map(len, prompts), default=0) + max_new_tokens)
    for start in range(0, len(order), size):
        part = {i: [*prompts[i], *known[i]] for i in order[start : start + size]}
        ends_at = {i: len(prompts[i]) + max_new_tokens for i in part}
        for finished in _finished_rows(model, part, ends_at, pad_id, end_ids, sampling):
            made = {i: until_end(ids[len(prompts[i]) :], end_ids) for i, ids in finished.items()}
            for i, ids in made.items():
                outputs[i] = ids
            done += len(made)
            if on_batch:
                on_batch(made)
            if progress:
                progress(done, len(prompts))
    model.train(training)
    return outputs


def _finished_rows(
    model: Any,
    texts: Mapping[int, Sequence[int]],
    ends_at: Mapping[int, int],
    pad_id: int,
    end_ids: Sequence[int],
    sampling: Mapping[str, Any],
) -> Iterator[dict[int, list[int]]]:
    """Continues one batch of token sequences; yields the finished ones, by key, every `STRIDE`
    tokens and removes them from the batch and its KV cache.

    The prefix that all share (a system prompt) is forwarded once, padding stands after it; so is
    each distinct prompt where they are repeated, as for samples.
    """
    rows = {key: list(ids) for key, ids in texts.items()}
    width, device = max(map(len, rows.values())), next(model.parameters()).device
    distinct = list(dict.fromkeys(map(tuple, rows.values())))
    repeated = 1 < len(distinct) <= len(rows) / 2  # one alone is the prefix that all share
    start, cache = prefix_cache(model, distinct if repeated else list(rows.values()))
    gaps = {key: width - len(given) for key, given in rows.items()}
    ids = torch.tensor(
        [given[:start] + [pad_id] * gaps[key] + given[start:] for key, given in rows.items()],
        device=device,
    )
    mask = torch.tensor(
        [[1] * start + [0] * gaps[key] + [1] * (len(given) - start) for key, given in rows.items()],
        device=device,
    )
    if repeated:
        places = [distinct.index(tuple(given)) for given in rows.values()]
        chosen = torch.tensor([places.index(number) for number in range(len(distinct))])
        first = ids[chosen.to(device)], mask[chosen.to(device)]
        cache = repeated_cache(model, *first, cache, torch.tensor(places, device=device), pad_id)
    while rows:
        with models.neutral_generation(model):
            made = model.generate(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=cache,
                num_beams=1,
                max_new_tokens=min(
                    STRIDE, max(ends_at[key] - len(given) for key, given in rows.items())
                ),
                pad_token_id=pad_id,
                eos_token_id=list(end_ids) or None,
                synced_gpus=False,  # each process has prompts of its own, and their number differs
                return_dict_in_generate=True,
                **sampling,
            )
        new, finished, stay = made.sequences[:, ids.shape[1] :].tolist(), {}, []
        for place, (key, tokens) in enumerate(zip(list(rows), new, strict=True)):
            rows[key] = [*rows[key], *tokens][: ends_at[key]]
            if len(rows[key]) == ends_at[key] or any(token in end_ids for token in tokens):
                finished[key] = rows.pop(key)
            else:
                stay.append(place)
        kept = torch.tensor(stay, dtype=torch.long, device=device)
        cache = made.get("past_key_values")
        if cache is not None and len(stay) < len(new) and rows:
            cache.batch_select_indices(kept)
        ids = made.sequences[kept]
        mask = torch.cat([mask[kept], mask.new_ones(len(stay), len(new[0]))], dim=1)
        if finished:
            yield finished


def batch_that_fits(model: Any, length: int) -> int:
    """Prompts per batch whose KV cache, over `length` tokens each, stays within `CACHE_MB`, between
    `MIN_BATCH` and `MAX_BATCH`; on a GPU within `GPU_SHARE` of the free memory, at least 1.
    """
    device = next(model.parameters()).device
    budget, fewest = CACHE_MB * 2**20, MIN_BATCH
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        budget, fewest = int(GPU_SHARE * (torch.cuda.mem_get_info(device)[0] + unused)), 1
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        return MIN_BATCH
    size = (getattr(config, "head_dim", None) or config.hidden_size // heads) * (
        getattr(config, "num_key_value_heads", None) or heads
    )
    row_bytes = int(
        2 * config.num_hidden_layers * size * next(model.parameters()).element_size() * length
    )
    return max(fewest, min(MAX_BATCH, budget // max(1, row_bytes)))


def until_end(ids: Sequence[int], end_ids: Sequence[int]) -> list[int]:
    """The tokens before the first that ends an answer."""
    return list(
        ids[: next((place for place, token in enumerate(ids) if token in end_ids), len(ids))]
    )


def agreed_starts(
    drafts: Sequence[Sequence[int]], matches: Sequence[Sequence[bool] | None]
) -> list[list[int]]:
    """The longest prefix of each draft whose tokens are all the model's greedy choice.

    This is the verification step of speculative decoding (Leviathan et al. 2023) with a given text
    (the expected completion, an earlier output) as the draft: one forward (`greedy_matches`)
    replaces one for each verified token.

    Args:
        drafts: token ids of each draft; empty where there is none.
        matches: for each draft's tokens, whether they are the greedy choice; `None`: no draft.
    """
    return [
        [token for token, _ in takewhile(itemgetter(1), zip(draft, found or (), strict=False))]
        for draft, found in zip(drafts, matches, strict=True)
    ]


Starts = Callable[[Sequence[int]], Sequence[Sequence[int]]]
"""From indices of prompts to verified tokens from which their continuations are generated."""


def end_ids(tokenizer: Any, model: Any = None) -> list[int]:
    """Tokens at which an answer ends: end-of-sequence, the chat template's end of an answer, and
    those of the model's `generation_config`.

    Raises:
        UserError: where these are no numbers.
    """
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    of_model = named if isinstance(named, list | tuple) else [named]
    if wrong := [token for token in of_model if not isinstance(token, int | None)]:
        raise UserError(
            f"generation_config.json names {wrong[0]!r} as eos_token_id, it must be a token's"
            " number, or a list of numbers"
        )
    found = (tokenizer.eos_token_id, end_of_turn_id(tokenizer), *of_model)
    return sorted({token for token in found if token is not None})


def answer_limit(tokenizer: Any, rows: Sequence[Row], model: Any = None) -> int:
    """Most tokens of an answer to these rows: what the settings say, else room for the longest
    completion, and for a reasoning trace where the template has a place for one; at most half of
    the model's window.
    """
    if chosen := chat_settings(tokenizer).max_new_tokens:
        return chosen
    texts = [row.completion for row in rows if row.completion]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    longest = max(map(len, ids), default=0)
    limit = max(ANSWER_TOKENS, min(longest + MORE_TOKENS, MOST_TOKENS)) + trace_room(tokenizer)
    return limit if model is None else max(1, min(limit, models.window(model) // 2))


def trace_room(tokenizer: Any) -> int:
    """Tokens for a reasoning trace before an answer: 0 where the template has no place for one."""
    return TRACE_TOKENS if answer_format(tokenizer).reasons else 0


class Generator(Protocol):
    """Greedy generation: by the model itself, through a cache, or by another engine."""

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        starts: Starts | None = None,
        progress: Progress | None = None,
    ) -> list[list[int]]:
        """Continuations as token ids, without the end token. `starts` is called only for what is
        generated; it saves work and changes no output.
        """


@dataclass(frozen=True)
class TransformersGenerator:
    """Generation by transformers, in this process.

    Args:
        batch_size: prompts per batch; default: `batch_that_fits`.
        on_batch: called with the finished continuations, by index of the prompt.
    """

    model: Any
    tokenizer: Any
    batch_size: int | None = None
    on_batch: Callable[[dict[int, list[int]]], None] | None = None

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        starts: Starts | None = None,
        progress: Progress | None = None,
    ) -> list[list[int]]:
        """See `Generator`."""
        return generate_ids(
            self.model,
            prompts,
            starts=starts(range(len(prompts))) if starts else None,
            max_new_tokens=max_new_tokens,
            pad_id=self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0,
            end_ids=end_ids(self.tokenizer, self.model),
            batch_size=self.batch_size,
            progress=progress,
            on_batch=self.on_batch,
        )


class SharedGenerator(TransformersGenerator):
    """Generation by transformers where each process of a run generates a share of the prompts and
    gathers all outputs. Every process holds the whole model.
    """

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        starts: Starts | None = None,
        progress: Progress | None = None,
    ) -> list[list[int]]:
        """See `Generator`."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        share = list(process_shard(order))
        outputs = super().__call__(
            [prompts[i] for i in share],
            max_new_tokens=max_new_tokens,
            starts=starts_of(share, starts),
            progress=progress,
        )
        made = gather_shards(outputs, len(prompts))
        return [ids for _, ids in sorted(zip(order, made, strict=True))]


def starts_of(share: Sequence[int], starts: Starts | None) -> Starts | None:
    """`starts` for the prompts at the indices `share`."""
    return starts and (lambda places: starts([share[place] for place in places]))


def generate_outputs(model: Any, tokenizer: Any, rows: Sequence[Row], **options: Any) -> list[str]:
    """The texts of `generate_answers`, whose arguments these are."""
    return [text for text, _ in generate_answers(model, tokenizer, rows, **options)]


def generate_answers(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    *,
    max_new_tokens: int,
    generator: Generator | None = None,
    drafts: Mapping[str, str] | None = None,
    matches: Sequence[Sequence[bool] | None] | None = None,
    progress: Progress | None = None,
) -> list[tuple[str, bool]]:
    """(the model's greedy output to each row's prompt, with its leading space if it has one;
    whether it met the token limit).

    Args:
        rows: rows with prompts; a completion is the draft of the output (`agreed_starts`).
        max_new_tokens: token limit of an output.
        generator: generates the outputs; default: the model itself.
        drafts: by row key, drafts to use instead of the rows' completions, such as earlier outputs.
        matches: `greedy_matches` of the rows' completions, if known; saves a forward.
        progress: called with (done, of) prompts.
    """
    prompts = fitting_prompts(model, tokenizer, rows, max_new_tokens)
    end_id = end_of_turn_id(tokenizer)
    texts = [(drafts or {}).get(row.key, row.completion) for row in rows]
    drafted = [
        draft(*item, tokenizer, end_id)[:max_new_tokens]
        for item in zip(rows, prompts, texts, strict=True)
    ]

    def starts(places: Sequence[int]) -> list[list[int]]:
        found: dict[int, Sequence[bool] | None] = {}
        if matches:
            same = (i for i in places if texts[i] == rows[i].completion)
            found = {i: matches[i] for i in same if _answers(rows[i], prompts[i], tokenizer)}
        todo = [i for i in places if drafted[i] and i not in found]
        if todo:
            ids = [prompts[i] for i in todo], [drafted[i] for i in todo]
            found |= dict(zip(todo, greedy_matches(model, *ids), strict=True))
        return agreed_starts(
            [drafted[i] for i in places], [found[i] if drafted[i] else None for i in places]
        )

    generator = generator or SharedGenerator(model, tokenizer)
    outputs = generator(prompts, max_new_tokens=max_new_tokens, starts=starts, progress=progress)
    pairs = zip(prompts, outputs, strict=True)
    return [
        (continuation_text(tokenizer, prompt, ids), len(ids) >= max_new_tokens)
        for prompt, ids in pairs
    ]


def fitting_prompts(
    model: Any, tokenizer: Any, rows: Sequence[Row], max_new_tokens: int
) -> list[tuple[int, ...]]:
    """Token ids of the rows' prompts, truncated at their beginning where prompt and answer would
    exceed the model's context window.
    """
    room = max(1, models.window(model) - max_new_tokens)
    return [fitting_prompt(row, tokenizer, room) for row in rows]


def _answers(row: Row, prompt: Sequence[int], tokenizer: Any) -> bool:
    """Whether the row's completion begins where generation from the prompt does."""
    with contextlib.suppress(UserError):
        item = encode_row(row, tokenizer, end_of_turn_id(tokenizer))
        return item.prompt_ids == tuple(prompt)
    return False


def draft(
    row: Row, prompt: Sequence[int], text: str, tokenizer: Any, end_id: int | None
) -> tuple[int, ...]:
    """Tokens of a text as the row's answer, with what the chat template writes before it; empty for
    an empty text, and where the full render does not begin with the prompt.
    """
    if text.strip():
        with contextlib.suppress(UserError):
            item = encode_row(row.with_completion(text), tokenizer, end_id)
            whole = item.prompt_ids + item.completion_ids
            if whole[: len(prompt)] == tuple(prompt):
                return whole[len(prompt) :]
    return ()


def continuation_text(tokenizer: Any, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """Text of `ids` after `prompt`; a reasoning trace before the answer stands in `<think>` and
    `</think>` (`read_answer`). Decoded alone, the first token of SentencePiece tokenizers (Llama)
    would lose its leading space.
    """
    plain = not has_template(tokenizer)  # with a template special tokens have a meaning

    def text(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(list(tokens), skip_special_tokens=plain))

    before, whole = text(prompt), text([*prompt, *ids])
    made = whole[len(before) :] if whole.startswith(before) else text(ids)
    return read_answer(made, tokenizer, before)
