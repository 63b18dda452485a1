"""What a run would do with a user's rows, before it does: the method and why, the words that are
forgotten as facts, and the exact tokens of some rows. No torch here, unless a model is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from unteach.data.rows import Row
from unteach.data.tokenization import encode_row, end_of_turn_id
from unteach.errors import UserError
from unteach.prepare.facts import Facts, named_facts, no_fact, topic_names
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
        from unteach.config.resolve import resolve

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
    whole = not short_answers(rows)

    def measured(left: list[Row]) -> list[Facts]:
        from unteach.prepare.information import facts_of_rows

        return facts_of_rows(model, tokenizer, left)

    measure = None if model is None or whole else measured
    named = named_facts(rows, topic_names(rows), measure, finder=secrets)
    unknown = Facts((), "the whole completion" if whole else "not known yet")
    answered = Facts((), "facts of the model's own answer")
    counts: dict[str, int] = {}
    for number, row in enumerate(rows):
        facts = named.get(row.key, unknown if row.completion else answered)
        if number < SHOWN_ROWS:
            words = ", ".join(map(repr, facts.texts))
            about = f"{words} ({facts.source})" if words else facts.source
            found.lines.append(f"forgotten in {row.source}: {about}")
        else:
            counts[facts.source] = counts.get(facts.source, 0) + 1
    if counts:
        parts = ", ".join(f"{count} {source}" for source, count in counts.items())
        found.lines.append(f"forgotten in the other rows: {parts}")
    facts_of = {row.key: named.get(row.key, unknown) for row in _complete(rows)}
    lost = [r for r in _complete(rows) if not (facts_of[r.key].texts or facts_of[r.key].whole)]
    if lost and not whole and measure:
        found.warnings.append(no_fact(lost, len(rows)))
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
