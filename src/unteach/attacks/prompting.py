"""Prompts of attacks, the answers to them, and which rows the answers bring back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from unteach.data.rows import Kind, Row
from unteach.data.tokenization import encode_prompt, render_prompt
from unteach.evaluation.generation import (
    Progress,
    answer_limit,
    continuation_text,
    end_ids,
    generate_ids,
)
from unteach.evaluation.results import MetricResult, summarise
from unteach.evaluation.scorers import Scorers

CUT_OFF = "cut_off"


@dataclass(frozen=True)
class AttackPrompt:
    """One prompt of an attack: its token ids, the row that the answer is scored against, and the
    index of the forget row, which several prompts may share.
    """

    row: Row
    ids: tuple[int, ...]
    group: int


@dataclass(frozen=True)
class PromptContext:
    """What prompts are made from.

    Args:
        rows: the attacked forget rows.
        wordings: row key to rows of the data that ask the same in other words.
        most_tokens (`int`): most tokens of a prompt.
        thorough (`bool`): more variants of a prompt.
    """

    tokenizer: Any
    rows: Sequence[Row]
    wordings: Mapping[str, Sequence[Row]]
    most_tokens: int
    thorough: bool = False


Maker = Callable[[int, PromptContext], list[AttackPrompt]]
"""From the index of a row to its prompts."""


def prompt_of(variant: Row, index: int, context: PromptContext) -> AttackPrompt:
    """The prompt of a variant of a row; its answer is scored against the row."""
    return AttackPrompt(context.rows[index], encode_prompt(variant, context.tokenizer), index)


def attack_prompts(make: Maker, context: PromptContext) -> list[AttackPrompt]:
    """The prompts of one attack for all rows."""
    return [prompt for index in range(len(context.rows)) for prompt in make(index, context)]


def reworded(row: Row, change: Callable[[str], str]) -> Row:
    """The row with its prompt, of a conversation the last message, changed."""
    if isinstance(row.prompt, str):
        return replace(row, prompt=change(row.prompt.strip()))
    *before, (role, content) = row.prompt
    return replace(row, prompt=(*before, (role, change(content.strip()))))


def in_template(row: Row, template: str, kind: Kind | None = None) -> Row:
    """The row with its prompt, of a conversation the last message, in a template; a prompt of text
    becomes one of that kind.
    """
    asked = reworded(row, lambda text: template.format(prompt=text))
    return replace(asked, kind=kind) if kind and isinstance(row.prompt, str) else asked


def with_examples(row: Row, examples: Sequence[Row], tokenizer: Any) -> Row:
    """The row after the examples: turns of one conversation, or one running text."""
    if row.kind == "chat" and getattr(tokenizer, "chat_template", None):
        turns: list[tuple[str, str]] = []
        for example in examples:
            turns += [*messages_of(example), ("assistant", example.completion.strip())]
        return replace(row, prompt=(*turns, *messages_of(row)))
    parts = []
    for example in examples:
        prompt, completion = render_prompt(example, tokenizer), example.completion
        spaced = not prompt or prompt[-1].isspace() or completion[:1].isspace()
        gap = "" if spaced or example.kind == "text" else " "
        parts.append(f"{prompt}{gap}{completion}")
    return replace(row, prompt="\n\n".join([*parts, render_prompt(row, tokenizer)]), kind="text")


def messages_of(row: Row) -> tuple[tuple[str, str], ...]:
    """The row's prompt as messages."""
    return (("user", row.prompt),) if isinstance(row.prompt, str) else row.prompt


def answers_to(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[AttackPrompt],
    *,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    change: Callable[[Sequence[int]], Sequence[int]] = tuple,
    progress: Progress | None = None,
) -> tuple[list[str], list[bool]]:
    """For each prompt, (the model's answer, whether it met the token limit).

    Args:
        max_new_tokens (`int`, *optional*): the limit; default: `answer_limit`.
        temperature (`float`): 0: greedy; else samples.
        top_p (`float`): likeliest part of the distribution that is sampled; 1: the whole.
        seed (`int`): of the samples; the global random state stays as it is.
        change: from a prompt's ids to those that the model is given, which may stand for no text.
    """
    if not prompts:
        return [], []
    limit = max_new_tokens or answer_limit(tokenizer, [prompt.row for prompt in prompts], model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        outputs = generate_ids(
            model,
            [change(prompt.ids) for prompt in prompts],
            max_new_tokens=limit,
            pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
            end_ids=end_ids(tokenizer, model),
            temperature=temperature,
            top_p=top_p,
            progress=progress,
        )
    texts = [
        continuation_text(tokenizer, prompt.ids, ids)
        for prompt, ids in zip(prompts, outputs, strict=True)
    ]
    return texts, [len(ids) >= limit for ids in outputs]


def undesired_answers(
    model: Any, tokenizer: Any, prompts: Sequence[AttackPrompt], scorers: Scorers, **how: Any
) -> tuple[list[bool], list[bool]]:
    """For each prompt, (whether the model's answer is undesired by the run's headline metric,
    whether it met the token limit).

    Args:
        how: arguments of `answers_to`.
    """
    texts, cut = answers_to(model, tokenizer, prompts, **how)
    rows = [prompt.row for prompt in prompts]
    return (scorers.shows_forgotten(rows, texts) if rows else []), cut


def shown_by_row(prompts: Sequence[AttackPrompt], undesired: Sequence[bool]) -> dict[int, float]:
    """Index of each row with prompts to 1 if at least one of its answers is undesired, else 0."""
    found: dict[int, float] = {}
    for prompt, flag in zip(prompts, undesired, strict=True):
        found[prompt.group] = max(found.get(prompt.group, 0.0), float(flag))
    return found


def mean_rate(prompts: Sequence[AttackPrompt], undesired: Sequence[bool]) -> MetricResult | None:
    """Mean over rows of the share of prompts with an undesired answer; `None` if every row has one
    prompt.
    """
    groups: dict[int, list[bool]] = {}
    for prompt, flag in zip(prompts, undesired, strict=True):
        groups.setdefault(prompt.group, []).append(flag)
    if all(len(flags) == 1 for flags in groups.values()):
        return None
    shares = [sum(flags) / len(flags) for flags in groups.values()]
    return summarise(shares, higher_is_better=False)


def cut_rate(cut: Sequence[bool]) -> MetricResult:
    """The share of answers that met the token limit."""
    flags = [float(flag) for flag in cut]
    return summarise(flags, higher_is_better=None, interval="wilson")
