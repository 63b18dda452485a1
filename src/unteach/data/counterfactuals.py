"""Contexts in which a model cannot know what a row says, aligned with the row's own tokens.

For a row about somebody: the same prompt and completion with the names exchanged for invented ones.
For running text: the few tokens before each piece of it. What the reference predicts there is what
it would say if it had the language and not the fact.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from unteach.data.ngrams import ForgottenRuns, is_passage
from unteach.data.rows import Row, evenly_spaced
from unteach.data.subjects import (
    exchange,
    find_subjects,
    invented_names,
    mapping_to,
    neighbouring_names,
)
from unteach.data.tokenization import EncodedRow, encode_row
from unteach.errors import UserError

CONTEXTS = 6
"""Contexts of each row."""
WINDOW, STRIDE = 8, 8
"""Running text: tokens before each piece, and tokens of a piece."""


@dataclass(frozen=True)
class Context:
    """One context of a row.

    Args:
        prompt_ids (`tuple[int, ...]`), completion_ids (`tuple[int, ...]`)
        places (`tuple[tuple[int, int], ...]`): pairs of the number of a token in the row's
            completion and of the one in this completion that is predicted at the same place of the
            text.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    places: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Counterfactual:
    """A forget row's contexts.

    Args:
        contexts (`tuple[Context, ...]`): empty where none was found.
        fact (`tuple[bool, ...]`, *optional*): for each token of the completion whether it belongs
            to a `secret` of the row; `None` for a row without one, whose facts are the tokens of
            high information.
        avoid (`tuple[tuple[int, ...], ...]`): for each token of the completion those that shall not
            stand in its place: they begin a name that no answer shall hold, or repeat a passage.
            Empty where there are none.
        names (`tuple[bool, ...]`): for each token whether it belongs to an exchanged name, which is
            no fact unless a secret holds it; empty where no name was exchanged.
        near (`tuple`): (prompt ids, completion ids) of the row under names that share a word with
            its own: what must be kept beside it.
        prompted (`tuple[Context, ...]`): the completion under other rows' prompts: contexts for a
            row that the model answers in the same way whatever names stand in its prompt.
        whole (`bool`): the row is known to be such a one.
    """

    contexts: tuple[Context, ...]
    fact: tuple[bool, ...] | None = None
    names: tuple[bool, ...] = ()
    avoid: tuple[tuple[int, ...], ...] = ()
    near: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()
    prompted: tuple[Context, ...] = ()
    whole: bool = False

    def without_names(self) -> Counterfactual:
        """The same with the contexts of a row whose names make no difference."""
        return replace(self, contexts=self.prompted, prompted=(), names=(), near=())


def token_spans(item: EncodedRow, tokenizer: Any) -> list[tuple[int, int]]:
    """Start and end of each completion token in the text of the completion, in characters; special
    tokens and parts of a character are empty spans.
    """
    before = item.prompt_ids[-1:]

    def length(count: int) -> int:
        ids = [*before, *item.completion_ids[:count]]
        text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return len(text.rstrip("\ufffd"))

    ends = [length(count) for count in range(len(item.completion_ids) + 1)]
    for number in range(1, len(ends)):
        ends[number] = max(ends[number], ends[number - 1])
    return [(start - ends[0], end - ends[0]) for start, end in pairwise(ends)]


def completion_text(item: EncodedRow, tokenizer: Any) -> str:
    """The text that `token_spans` counts in."""
    ids = [*item.prompt_ids[-1:], *item.completion_ids]
    whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    first = tokenizer.decode(ids[:1], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(whole)[len(str(first).rstrip("\ufffd")) :]


def occurrences(text: str, parts: Sequence[str]) -> list[tuple[int, int]]:
    """Start and end of every occurrence of some strings in a text."""
    found = []
    for part in parts:
        start = text.find(part) if part else -1
        while start >= 0:
            found.append((start, start + len(part)))
            start = text.find(part, start + 1)
    return sorted(found)


@dataclass(frozen=True)
class _Text:
    """A completion's text, and start and end of each of its tokens in it."""

    text: str
    spans: list[tuple[int, int]]

    @classmethod
    def of(cls, item: EncodedRow, tokenizer: Any) -> _Text:
        return cls(completion_text(item, tokenizer), token_spans(item, tokenizer))

    def overlapping(self, parts: Sequence[tuple[int, int]]) -> tuple[bool, ...]:
        """For each token whether it shares a character with one of these spans."""
        return tuple(
            any(start < last and end > first for first, last in parts) for start, end in self.spans
        )

    @property
    def real(self) -> list[tuple[int, int]]:
        """(number, start) of each token that holds a character."""
        return [(number, start) for number, (start, end) in enumerate(self.spans) if end > start]


def fact_tokens(row: Row, item: EncodedRow, tokenizer: Any) -> tuple[bool, ...] | None:
    """For each completion token whether it overlaps a secret; `None` without secrets."""
    return _facts(row, _Text.of(item, tokenizer)) if row.secret else None


def _facts(row: Row, own: _Text) -> tuple[bool, ...] | None:
    return own.overlapping(occurrences(own.text, row.secret)) if row.secret else None


def counterfactual(
    row: Row,
    item: EncodedRow,
    tokenizer: Any,
    *,
    others: Sequence[Row] = (),
    lower_case: Collection[str] = frozenset(),
    near: bool = False,
    seed: int = 0,
    runs: ForgottenRuns | None = None,
) -> Counterfactual:
    """The contexts of a row.

    Args:
        item (`EncodedRow`): its tokens.
        tokenizer: a Hugging Face tokenizer.
        others (`Sequence[Row]`): rows whose prompts are the contexts of a row without names.
        lower_case (set of `str`): words that the file's texts have in lower case.
        near (`bool`): also find the row under names near its own.
        seed (`int`): of the invented names.
        runs (`ForgottenRuns`, *optional*): of the passages to forget.
    """
    if runs is not None and (row.diverted or is_passage(row)) and row.kind == "text":
        return Counterfactual((), avoid=runs.along(item.prompt_ids, item.completion_ids))
    own = _Text.of(item, tokenizer)
    facts = _facts(row, own)
    begun = first_tokens(row.avoid, tokenizer)
    avoid = (begun,) * len(item.completion_ids) if begun else ()
    if row.kind == "text" and not row.prompt_text:
        return Counterfactual(_windows(item), facts, avoid=avoid)
    if row.whole and avoid:  # without these words the model says something else by itself
        return Counterfactual((), facts, avoid=avoid, whole=not row.diverted)
    names = find_subjects(row.prompt_text, lower_case)
    subject = row.avoid[:1] if set(row.avoid) & set(row.secret) else ()
    names += [name for name in subject if name not in names]
    choices = name_choices(names, CONTEXTS, seed, row.key)
    contexts = _exchanged(row, own, tokenizer, choices) if names else ()
    prompts = [other for other in others if other.prompt_key != row.prompt_key]
    if row.diverted or (subject and contexts):
        prompts = []
    prompted = _prompted(row, item, tokenizer, evenly_spaced(prompts, CONTEXTS))
    if not contexts:
        return Counterfactual(prompted, facts, avoid=avoid)
    named = own.overlapping(exchange(own.text, choices[0]).changed)
    beside = _near(row, tokenizer, names, seed) if near else ()
    return Counterfactual(contexts, facts, named, avoid, beside, prompted)


def first_tokens(names: Sequence[str], tokenizer: Any) -> tuple[int, ...]:
    """The tokens with which some names, and each word of them, begin, with and without a space.

    A space of its own and a part of a character begin too many other words, and are none of them.
    """
    words = {word for name in names for word in (name, *name.split())}
    texts = sorted(f"{before}{word}" for word in words for before in (" ", ""))
    found = set()
    for text in texts:
        for token in tokenizer.encode(text, add_special_tokens=False):
            if begun := tokenizer.decode([token]).strip():
                found |= set() if "\ufffd" in begun else {token}
                break
    return tuple(sorted(found))


def _near(
    row: Row, tokenizer: Any, names: Sequence[str], seed: int
) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """(prompt ids, completion ids) of the row under names near its own."""
    found = []
    for pairs in name_choices(names, CONTEXTS, seed + 1, row.key, neighbouring_names):
        with suppress(UserError):  # prompt and completion became one token
            item = encode_row(with_names(row, pairs), tokenizer, None)
            found.append((item.prompt_ids, item.completion_ids))
    return tuple(found)


def with_names(row: Row, pairs: dict[str, str]) -> Row:
    """The row with names exchanged in its prompt and its completion."""
    prompt: Any = row.prompt
    if isinstance(prompt, str):
        prompt = exchange(prompt, pairs).text
    else:
        prompt = tuple((role, exchange(content, pairs).text) for role, content in prompt)
    completion = exchange(row.completion, pairs).text
    return replace(row, prompt=prompt, completion=completion, secret=(), right="", alternate="")


def name_choices(
    names: Sequence[str],
    count: int,
    seed: int,
    key: str,
    draw: Callable[..., list[str]] = invented_names,
) -> list[dict[str, str]]:
    """Ways to exchange all of some names for invented ones, which `draw` makes of a name."""
    drawn = [draw(name, count, seed, f"{key}{place}") for place, name in enumerate(names)]
    choices = []
    for number in range(count):
        pairs: dict[str, str] = {}
        for name, others in zip(names, drawn, strict=True):
            pairs = mapping_to(name, others[number]) | pairs
        choices.append(pairs)
    return choices


def _exchanged(
    row: Row, own: _Text, tokenizer: Any, choices: Sequence[dict[str, str]]
) -> tuple[Context, ...]:
    made = []
    for pairs in choices:
        try:
            item = encode_row(with_names(row, pairs), tokenizer, None)
        except UserError:  # prompt and completion became one token
            continue
        other, changed = _Text.of(item, tokenizer), exchange(own.text, pairs)
        if other.text != changed.text:
            continue
        starts: dict[int | None, int] = {start: number for number, start in other.real}
        found = [(number, changed.position(start)) for number, start in own.real]
        places = tuple((number, starts[place]) for number, place in found if place in starts)
        made.append(Context(item.prompt_ids, item.completion_ids, places))
    return tuple(made)


def _prompted(
    row: Row, item: EncodedRow, tokenizer: Any, prompts: Sequence[Row]
) -> tuple[Context, ...]:
    """The row's completion under other rows' prompts."""
    made = []
    for other in prompts:
        try:
            found = encode_row(replace(row, prompt=other.prompt), tokenizer, None)
        except UserError:
            continue
        size = min(len(found.completion_ids), len(item.completion_ids))
        if found.completion_ids[:size] == item.completion_ids[:size]:
            places = tuple((number, number) for number in range(size))
            made.append(Context(found.prompt_ids, found.completion_ids[:size], places))
    return tuple(made)


def _windows(item: EncodedRow) -> tuple[Context, ...]:
    """Each piece of the completion after the few tokens before it."""
    whole, first = item.prompt_ids + item.completion_ids, len(item.prompt_ids)
    begin = whole[:1]
    made = []
    for start in range(first, len(whole), STRIDE):
        end = min(start + STRIDE, len(whole))
        before = whole[max(1, start - WINDOW) : start]
        places = tuple((number - first, number - start) for number in range(start, end))
        made.append(Context(begin + before, whole[start:end], places))
    return tuple(made)
