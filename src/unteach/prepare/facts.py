"""What names the facts of forget rows: the rows, a finder of personal data, the name that prompts
are about, or information. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from unteach.data.rows import Row
from unteach.data.secrets import secrets_of
from unteach.data.subjects import common_subject, spellings


@dataclass(frozen=True)
class Facts:
    """The facts of a row, perhaps none.

    Args:
        texts (`tuple[str, ...]`)
        source (`str`): a clause that says where they are from.
        whole (`bool`): the whole completion is forgotten.
        words (`tuple[str, ...]`): words of such a completion that no answer shall hold.
    """

    texts: tuple[str, ...]
    source: str
    whole: bool = False
    words: tuple[str, ...] = ()


Measure = Callable[[list[Row]], Sequence[Facts]]
"""From rows with completions to their facts by information."""


def topic_of(rows: Sequence[Row]) -> str:
    """The name that at least half of the prompts are about; empty without one."""
    return common_subject([row.prompt_text for row in rows]) if len(rows) > 2 else ""


def topic_names(forget: Iterable[Row], held_out: Iterable[Row] = ()) -> dict[str, tuple[str, ...]]:
    """The spellings of the name that forget prompts without answers are about, by `prompt_key`, for
    held-out prompts without answers too; empty where they have no name in common.
    """
    asked = [row for row in forget if not row.completion]
    topic = topic_of(asked)
    if not topic:
        return {}
    others = (row for row in held_out if not row.completion)
    return {row.prompt_key: tuple(spellings(topic)) for row in (*asked, *others)}


def named_facts(
    rows: Iterable[Row],
    topic: Mapping[str, tuple[str, ...]],
    measure: Measure | None = None,
    *,
    finder: str = "none",
) -> dict[str, Facts]:
    """The facts of forget rows, by their key; a row that nothing was asked about is absent.

    Args:
        rows (`Iterable[Row]`)
        topic: see `topic_names`.
        measure (*optional*): finds the facts of rows with completions that nothing else names.
        finder (`str`): of personal data in rows without a secret, see `secrets_of`.
    """
    named: dict[str, Facts] = {}
    left: dict[str, Row] = {}
    for row in rows:
        if row.secret:
            named[row.key] = Facts(row.secret, "named in secret")
        elif found := secrets_of(row, finder):
            named[row.key] = Facts(found, f"found by {finder}")
        elif row.prompt_key in topic:
            about = "the name that the prompts are about"
            named[row.key] = Facts(topic[row.prompt_key], about)
        elif row.completion:
            left[row.key] = row
    if measure and left:
        named |= dict(zip(left, measure(list(left.values())), strict=True))
    return named


def no_fact(lost: Sequence[Row], count: int) -> str:
    """The sentence about rows in which nothing names a fact, of `count`."""
    first = f" (the first is {lost[0].source})" if lost[0].source else ""
    return (
        f"In {len(lost)} of the {count} forget rows{first} nothing is information that the prompt"
        " alone tells the model: the model may not know them; name their facts in the field"
        " 'secret'."
    )
