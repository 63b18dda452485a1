"""The scenario of a user's own rows: what to forget, perhaps what to keep, and the prompt sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from unteach.config.scorers import ScorerNames
from unteach.data.public_sets import Role
from unteach.data.rows import (
    Row,
    held_out_groups,
    held_out_rows,
    split_rows,
    split_shares,
    without_prompts_of,
)
from unteach.data.secrets import with_secrets
from unteach.data.sources import load_rows, place
from unteach.data.subjects import longest_names
from unteach.errors import UserError
from unteach.scenarios.scenario import Scenario
from unteach.scenarios.texts import labelled_answers, prompt_rows

USERS_OWN = "run"
"""Name of the scenario of a user's rows."""
MOST_EVALUATED, MOST_NORMAL = 64, 32
"""Most rows of a prompt set, and most everyday prompts."""
LEAST_NORMAL = 12
"""Everyday prompts that are held out from the own answers at least."""
KEPT_HELD_OUT, NEIGHBOURS_HELD_OUT = 0.2, 0.5
"""Shares of the retain and of the neighbour rows that are only measured."""


def user_scenario(
    forget: Any,
    retain: Any,
    *,
    unseen: Any = None,
    neighbours: Any = None,
    forget_validation: Any = None,
    chat: bool = True,
    own_rows: int = 48,
    scorers: ScorerNames | None = None,
    teach: Mapping[str, Any] | None = None,
    limit: int | None = None,
    hold_out: float = 0.0,
    split_by: str | None = "prompt",
    secrets: str = "patterns",
) -> Scenario:
    """A scenario of a user's rows: all rows of the forget set but the share `hold_out` are trained
    on. By hash a fifth of the retain rows and half of the neighbour rows are held out; of retain
    rows that name somebody in their prompts, all rows about a fifth of the names.

    The forget set takes precedence: its rows are removed from the other sets, and `notes` states
    it. No prompt occurs both in a held-out and in a training set.

    Args:
        forget, retain: anything that `load_rows` takes; `retain` may be `None`. The model's own
            answers to neutral prompts are kept too: with rows of one kind alone, answers of other
            kinds drift towards it.
        unseen (*optional*): rows or prompts whose answers must be forgotten too, only measured.
        neighbours (*optional*): rows or prompts like the forgotten ones about other things.
        forget_validation (*optional*): rows for early stopping instead of the split's.
        chat (`bool`): whether the model answers chat prompts, see `neutral_rows`.
        own_rows (`int`): at most so many of them.
        scorers (`ScorerNames`, *optional*): default: said facts or leak rate, by the
            rows, and similarity.
        teach (mapping, *optional*): settings with which all forget rows are taught first, to a
            model that does not know them.
        limit (`int`, *optional*): take at most so many forget rows.
        hold_out (`float`): share of the forget rows that is not trained on, see `split_shares`.
        split_by (`str`, *optional*): rows with the same prompt, or the same value of this column,
            fall into the same split, see `split_rows`.

    Raises:
        UserError: for a set of which no row is left.
    """
    rows = _rows(forget, "forget", secrets)[:limit]
    split = split_rows(rows, split_shares(hold_out), by=split_by)
    if not split["train"]:
        raise UserError(
            f"the forget set has {len(rows)} row(s), and its training split"
            f" ({1 - hold_out:.0%} by hash) is empty; give more rows, or a smaller hold_out"
        )
    validation = split["validation"]
    if forget_validation is not None:
        validation = with_secrets(load_rows(forget_validation, "forget"), secrets)
    notes: list[str] = []
    kept, kept_unseen = _kept(_rows(retain, "retain", secrets), rows, split_by, notes)
    given = _rows(neighbours, "retain", secrets)
    near, near_unseen = _neighbours(given, rows, split_by, notes)
    trained = [*kept, *near]
    given = _rows(unseen, "forget", secrets)
    more = _others(given, without_prompts_of(given, [*rows, *trained]), "unseen", notes)
    texts = all(row.kind == "text" for row in rows)
    neutral = without_prompts_of(neutral_rows(texts=texts, chat=chat), rows)
    own = min(own_rows, len(neutral) - LEAST_NORMAL)
    asked = without_prompts_of(neutral[own:], trained)[-MOST_NORMAL:]
    prose, normal = (
        [row for row in asked if (chat and row.kind == "text") is continued]
        for continued in (True, False)
    )
    sets = {
        "unlearned": split["train"],
        "unseen": [*split["test"], *more],
        "neighbours": without_prompts_of(near_unseen, trained),
        "kept": without_prompts_of(kept, rows),
        "kept_unseen": without_prompts_of(kept_unseen, trained),
        "normal": normal,
        "prose": prose,
    }
    return Scenario(
        name=USERS_OWN,
        forget=split["train"],
        validation=validation,
        retain=kept,
        neighbours=near,
        sets={name: part[:MOST_EVALUATED] for name, part in sets.items() if part},
        teach=[] if teach is None else rows,
        teach_own_prompts=[] if teach is None else prompt_rows("plain_questions")[:20],
        teach_settings=dict(teach or {}),
        own_prompts=neutral[:own],
        labelled=labelled_answers(),
        scorers=scorers or ScorerNames(),
        leak_corpus=with_unrelated(rows),
        notes=notes,
        files={
            "forget": place(forget),
            "retain": place(retain),
            "unseen": place(unseen),
            "neighbours": place(neighbours),
            "forget_validation": place(forget_validation),
            "chat": chat,
            "own_rows": own_rows,
            "teach": None if teach is None else dict(teach),
            "limit": limit,
            "hold_out": hold_out,
            "split_by": split_by,
            "secrets": secrets,
        },
    )


def neutral_rows(*, texts: bool, chat: bool) -> list[Row]:
    """Prompts about nothing in particular: questions to a chat model; first lines of texts to
    another one; to a chat model that forgets running text both, three questions to each line.
    """
    lines = prompt_rows("opening_lines")
    if not chat:
        return lines
    questions = prompt_rows("neutral_prompts")
    if not texts:
        return questions
    threes = [questions[start : start + 3] for start in range(0, len(questions), 3)]
    pairs = zip(threes, lines, strict=False)  # there are more lines than these
    return [row for three, line in pairs for row in (*three, line)]


def _rows(source: Any, role: Role, secrets: str) -> list[Row]:
    """The rows of a source, or of none, with what `secrets` finds in those that name no secret;
    rows that were read already are not read again.
    """
    if source is None:
        return []
    read = isinstance(source, list) and source and isinstance(source[0], Row)
    return with_secrets(source if read else load_rows(source, role, prompt_only=True), secrets)


def _kept(
    given: list[Row], forget: Sequence[Row], split_by: str | None, notes: list[str]
) -> tuple[list[Row], list[Row]]:
    """The retain rows to train on and those held out. One with the prompt of a forget row is
    trained on: it is another answer to that prompt and no measure of what is kept.
    """
    forgotten = {row.key for row in forget}
    rows = _others(given, [row for row in given if row.key not in forgotten], "retain", notes)
    measured = without_prompts_of(rows, forget)
    if groups := _subjects(measured) if split_by == "prompt" else None:
        _, held_out = held_out_groups(measured, groups, KEPT_HELD_OUT)
    else:
        _, held_out = held_out_rows(measured, KEPT_HELD_OUT, by=split_by)
    out = {row.key for row in held_out}
    return [row for row in rows if row.key not in out], held_out


def _subjects(rows: Sequence[Row]) -> list[str] | None:
    """What each row is about: the longest name in its prompt, else the prompt. `None` where no name
    groups rows, or one is in too many of them.

    Held-out rows about somebody of whom other rows are trained on would say nothing about those
    whom no file names.
    """
    names = longest_names([row.prompt_text if row.kind == "chat" else "" for row in rows])
    groups = [name or row.prompt_key for name, row in zip(names, rows, strict=True)]
    largest = max(Counter(groups).values(), default=0)
    return groups if 1 < largest <= KEPT_HELD_OUT * len(rows) else None


def _neighbours(
    given: list[Row], forget: Sequence[Row], split_by: str | None, notes: list[str]
) -> tuple[list[Row], list[Row]]:
    """The neighbour rows to train on and those held out; a single one is only measured."""
    rows = _others(given, without_prompts_of(given, forget), "neighbours", notes)
    kept, held_out = held_out_rows(rows, NEIGHBOURS_HELD_OUT, by=split_by, fewest=2)
    return (kept, held_out) if held_out else ([], kept)


def _others(given: list[Row], left: list[Row], name: str, notes: list[str]) -> list[Row]:
    """The rows that are left of a set, with a note on those that are in a set that is trained on.

    Raises:
        UserError: if none is left of some.
    """
    if given and not left:
        what = "is in the forget set too" if name != "unseen" else "has a prompt that is trained on"
        raise UserError(f"option {name!r}: each of its {len(given)} row(s) {what}; give other rows")
    if lost := len(given) - len(left):
        where = "the forget set" if name != "unseen" else "a set that is trained on"
        notes.append(f"{lost} of the {len(given)} rows of {name} are in {where} too and left out.")
    return left


def with_unrelated(rows: Sequence[Row]) -> list[str]:
    """Texts for the leak threshold: the rows' completions and unrelated answers, as few rows, or
    rows of one form, are no sample of unrelated texts.
    """
    completions = [row.completion for row in rows if row.completion][:64]
    unrelated = [item.answer for item in labelled_answers()]
    return completions + unrelated[: max(16, 64 - len(completions))] if completions else []
