"""What a run would do with a user's rows, before it does: the method and why, the words that are
forgotten as facts, and the exact tokens of some rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from unteach.config.resolve import resolve
from unteach.data.rows import Row
from unteach.data.secrets import secrets_of
from unteach.data.subjects import spellings
from unteach.data.tokenization import encode_row, end_of_turn_id
from unteach.errors import UserError
from unteach.prepare.information import informative_spans, topic_of
from unteach.scenarios.method_choice import method_for, short_answers
from unteach.scenarios.user_rows import user_scenario

SHOWN_ROWS, SHOWN_TOKENS = 5, 256
"""Rows whose facts are shown, and tokens of a prompt and of a completion."""


@dataclass
class Preview:
    """Lines to show, and what deserves a warning."""

    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def preview(
    sets: dict[str, list[Row]],
    *,
    secrets: str,
    tokenizer: Any = None,
    model: Any = None,
    **split: Any,
) -> Preview:
    """What a run with nothing else set would do with these rows.

    Args:
        sets (`dict`): rows of `forget`, `retain`, `unseen` and `neighbours`.
        secrets (`str`): the finder of personal data, see `with_secrets`.
        tokenizer (*optional*): shows the tokens of two rows.
        model (*optional*): the model that knows the rows: finds facts by their information.
        split: `hold_out` and `split_by` of a run.

    Raises:
        UserError: for sets that a run refuses together.
    """
    found, rows = Preview(), sets["forget"]
    others: dict[str, Any] = {
        name: sets[name] or None for name in ("retain", "unseen", "neighbours")
    }
    retain = others.pop("retain")
    found.warnings += user_scenario(rows, retain, **others, **split, secrets=secrets).notes
    method, why = method_for(rows)
    found.lines.append(f"method: {method}, because {why}")
    _facts(rows, secrets, tokenizer, model, found)
    if tokenizer is not None:
        picked = [part[0] for part in (_complete(rows), _complete(sets["retain"])) if part]
        picked = [*picked, *_complete(rows)[1:2]][:2]
        ends = resolve({"method": method}).unlearning_config("unused").forget_end_of_turn
        for row in picked:
            found.lines += _tokens(row, tokenizer, row in rows and not ends)
    return found


def _complete(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.completion]


def _facts(rows: Sequence[Row], secrets: str, tokenizer: Any, model: Any, found: Preview) -> None:
    """A line for each of the first rows, and the count of the others by what names their facts."""
    named = {row.key: ("named in secret", row.secret) for row in rows if row.secret}
    for row in rows:
        if row.key not in named and (facts := secrets_of(row, secrets)):
            named[row.key] = (f"found by {secrets}", facts)
    asked = [row for row in rows if not row.completion]
    if topic := topic_of(asked):
        about = ("the name that the prompts are about", tuple(spellings(topic)))
        named |= {row.key: about for row in asked if row.key not in named}
    left = [row for row in _complete(rows) if row.key not in named]
    whole = not short_answers(rows)
    if model is not None and left and not whole:
        spans = informative_spans(model, tokenizer, left)
        for row, of_row in zip(left, spans, strict=True):
            if of_row:
                named[row.key] = ("information", tuple(span.text for span in of_row))
    unknown = ("nothing in it is information", ()) if model is not None else ("not known yet", ())
    if whole:
        unknown = ("the whole completion", ())
    counts: dict[str, int] = {}
    for number, row in enumerate(rows):
        answered = ("facts of the model's own answer", ())
        how, facts = named.get(row.key, unknown if row.completion else answered)
        if number < SHOWN_ROWS:
            words = ", ".join(repr(fact) for fact in facts)
            found.lines.append(f"forgotten in {row.source}: {f'{words} ({how})' if words else how}")
        else:
            counts[how] = counts.get(how, 0) + 1
    if counts:
        parts = ", ".join(f"{count} {how}" for how, count in counts.items())
        found.lines.append(f"forgotten in the other rows: {parts}")
    lost = [row for row in left if row.key not in named]
    if lost and not whole and model is not None:
        found.warnings.append(
            f"{len(lost)} of {len(rows)} forget rows (the first is {lost[0].source}): nothing in"
            " them is information that the prompt alone tells the model, which may not know them;"
            " name their facts in the field 'secret'"
        )
    elif lost and not whole:
        found.warnings.append(
            f"{len(lost)} of {len(rows)} forget rows name no fact: a run takes what only their"
            " prompt tells the model (--model shows it), or name the facts in the field 'secret'"
        )


def _tokens(row: Row, tokenizer: Any, without_end: bool) -> list[str]:
    """The tokens of a row as the training gets them: its prompt, what is trained, what ends it."""
    try:
        end_id = end_of_turn_id(tokenizer)
        item = encode_row(row, tokenizer, end_id)
    except UserError as error:
        return [f"tokens of {row.source}: {error}"]
    trained = item.without_end(end_id).completion_ids
    ending = item.completion_ids[len(trained) :]
    last = _shown(ending, tokenizer) if ending else "nothing"
    more = " (not trained in forget rows; forget_end_of_turn=true trains it)" if without_end else ""
    return [
        f"tokens of {row.source}:",
        f"  prompt ({len(item.prompt_ids)}): {_shown(item.prompt_ids, tokenizer)}",
        f"  trained ({len(trained)}): {_shown(trained, tokenizer)}",
        f"  ended by: {last}{more if ending else ''}",
    ]


def _shown(ids: Sequence[int], tokenizer: Any) -> str:
    """Each token by its text; of many the first and the last."""
    texts = [repr(str(tokenizer.decode([token]))) for token in ids]
    if len(texts) > SHOWN_TOKENS:
        half = SHOWN_TOKENS // 2
        texts = [*texts[:half], f"... {len(texts) - 2 * half} more ...", *texts[-half:]]
    return " ".join(texts)
