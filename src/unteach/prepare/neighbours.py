"""Neighbours of the forget rows: the same prompts about other names.

Half of them join the retain set, so that the model goes on speaking as before about things like the
forgotten ones; the other half are evaluated only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from unteach.data.counterfactuals import name_choices, with_names
from unteach.data.rows import Row, evenly_spaced
from unteach.data.subjects import find_subjects, lower_case_words, neighbouring_names
from unteach.scenarios.scenario import Scenario

NEIGHBOURS = 48
"""Prompts under other names, at most."""


def prompts_under_other_names(rows: Sequence[Row], count: int, seed: int = 0) -> list[Row]:
    """Prompts of the rows with their names exchanged for invented ones, each once; fewer than
    `count` where the rows have few prompts with names.

    Args:
        rows (`Sequence[Row]`): the forget rows.
        seed (`int`): of the names.
    """
    lower_case = lower_case_words(row.prompt_text for row in rows)
    named = [(row, find_subjects(row.prompt_text, lower_case)) for row in rows]
    chosen = evenly_spaced([(row, names) for row, names in named if names], count)
    if not chosen:
        return []
    each = -(-count // len(chosen))
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


def with_neighbours(scenario: Scenario, seed: int = 0) -> Scenario:
    """A scenario without neighbours with prompts under other names for them, half in the retain set
    and half in the prompt set. The model's own answers become their completions, and those that say
    a fact to forget are left out, as everywhere (`completed_scenario`, `collect_retain`).

    Args:
        seed (`int`): of the names.
    """
    prompts = prompts_under_other_names(scenario.forget, NEIGHBOURS, seed)
    if scenario.neighbours or "neighbours" in scenario.sets or not prompts:
        return scenario
    sets = {**scenario.sets, "neighbours": prompts[1::2]}
    return replace(scenario, neighbours=prompts[::2], sets=sets)
