"""Neighbours of the forget rows: the same prompts about other names, and beside prompts about one
name what the model says about other things of its kind.

Half of them join the retain set, so that the model goes on speaking as before about things like the
forgotten ones; the other half are evaluated only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from unteach.data.counterfactuals import name_choices, with_names
from unteach.data.rows import Row, evenly_spaced, without_prompts_of
from unteach.data.subjects import find_subjects, lower_case_words, neighbouring_names
from unteach.prepare.facts import topic_of
from unteach.prepare.generations import LoadedModel
from unteach.prepare.information import NEIGHBOUR_OF
from unteach.prepare.topic import COLUMN, others_of_its_kind
from unteach.scenarios.scenario import Scenario
from unteach.trainer.costs import Cost

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
            columns = {NEIGHBOUR_OF: row.prompt_key}
            found.setdefault(other.prompt_key, replace(other, columns=columns))
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


def with_others_of_its_kind(
    source: LoadedModel, scenario: Scenario, completed: Scenario, seed: int = 0
) -> tuple[Scenario, list[Cost]]:
    """The completed scenario with the model's answers about other things of the kind of the one
    that prompts without completions are about ("Who was Newton?" beside "Who was Einstein?").

    All of them join the retain set where the user gave neighbours to evaluate, else those about
    every second thing; the others are evaluated only.

    Args:
        source (`LoadedModel`): the original model.
        scenario (`Scenario`): as it was built.
        completed (`Scenario`): the same with the model's answers, see `completed_scenario`.
        seed (`int`): of samples.

    Returns:
        The scenario, and what asking cost.
    """
    name = topic_of([row for row in scenario.forget if not row.completion])
    if not name:
        return completed, []
    answers = [row.completion for row in completed.forget]
    rows, costs = others_of_its_kind(source, name, answers, seed)
    measured = [row for part in completed.sets.values() for row in part]
    trained = [*completed.forget, *completed.retain, *completed.neighbours]
    rows = without_prompts_of(rows, [*measured, *trained])
    things = list(dict.fromkeys(row.columns[COLUMN] for row in rows))
    held_out = set() if "neighbours" in scenario.sets else set(things[1::2])
    kept = [row for row in rows if row.columns[COLUMN] not in held_out]
    near = [row for row in rows if row.columns[COLUMN] in held_out]
    sets = dict(completed.sets)
    if near:
        sets["neighbours"] = [*sets.get("neighbours", ()), *near]
    return replace(completed, neighbours=[*completed.neighbours, *kept], sets=sets), costs
