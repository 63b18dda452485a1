"""Neighbours of the forget rows: the same prompts about other names, answered by the model itself.

Half of them join the retain set, so that the model goes on speaking as before about things like the
forgotten ones; the other half are evaluated only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from unteach.data.counterfactuals import name_choices, with_names
from unteach.data.rows import Row
from unteach.data.subjects import find_subjects, lower_case_words, neighbouring_names
from unteach.evaluation.text_metrics import says
from unteach.prepare.generations import LoadedModel, with_own_answers
from unteach.trainer.costs import Cost

NEIGHBOURS = 48
"""Prompts under other names, at most."""


def prompts_under_other_names(rows: Sequence[Row], count: int, seed: int = 0) -> list[Row]:
    """Prompts of the rows with their names exchanged for invented ones, each once; fewer than
    `count` where the rows have few prompts with names.

    Args:
        rows (`Sequence[Row]`): the forget rows.
        count (`int`)
        seed (`int`): of the names.
    """
    lower_case = lower_case_words(row.prompt_text for row in rows)
    named = [(row, find_subjects(row.prompt_text, lower_case)) for row in rows]
    named = [(row, names) for row, names in named if names]
    if not named:
        return []
    each = -(-count // len(named))
    chosen = [
        named[i * len(named) // min(count, len(named))] for i in range(min(count, len(named)))
    ]
    choices = {
        row.key: name_choices(names, 3 * each, seed + 1, f"neighbour {row.key}", neighbouring_names)
        for row, names in chosen
    }
    found: dict[str, Row] = {}
    for number in range(each):
        for place, (row, _) in enumerate(chosen):
            pairs = choices[row.key][3 * number + place % 3]
            other = with_names(row.with_completion(""), pairs)
            found.setdefault(other.prompt_key, replace(other, columns={}))
    return list(found.values())[:count]


def made_neighbours(
    source: LoadedModel, rows: Sequence[Row], seed: int = 0, count: int = NEIGHBOURS
) -> tuple[list[Row], list[Row], list[Cost]]:
    """Rows under other names with the model's own answers: (to train on, only to evaluate, cost).
    An answer that says a fact to forget is left out.

    Args:
        source (`LoadedModel`): the original model.
        rows (`Sequence[Row]`): the forget rows.
        seed (`int`): of the names.
        count (`int`): of both parts together.
    """
    prompts = prompts_under_other_names(rows, count, seed)
    answered, costs = with_own_answers(source, prompts, "Collecting answers under other names")
    facts = [secret for row in rows for secret in row.secret]
    clean = [row for row in answered if not says(row.completion, facts)]
    return clean[::2], clean[1::2], costs
