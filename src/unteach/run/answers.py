"""What a run's models answer to its prompt sets, forget prompts in other words among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from unteach.evaluation.scorers import Scorers
from unteach.evaluation.scoring import Generations, generate_sets
from unteach.prepare.generations import LoadedModel
from unteach.prepare.paraphrases import Paraphrases, find_paraphrases
from unteach.scenarios.scenario import Scenario


def generate(
    source: LoadedModel, scenario: Scenario, name: str, drafts: Mapping[str, str]
) -> Generations:
    """The model's outputs for all prompt sets; `drafts` are verified, which saves time."""
    sets = scenario.sets

    def make() -> dict[str, Any]:
        count = sum(map(len, sets.values()))
        with source.display.stage(f"Prompting the {name} model", count) as stage:
            found = generate_sets(
                source.model, source.tokenizer, sets, drafts=drafts, progress=stage.update
            )
        return asdict(found)

    keys = {set_name: [row.key for row in rows] for set_name, rows in sets.items()}
    return Generations(**source.cache.get(f"answers-{name}", keys, make))


def with_paraphrases(
    source: LoadedModel, rows: Scenario, before: Generations, scorers: Scorers, most: int
) -> tuple[Scenario, Generations, Paraphrases]:
    """The scenario with the prompt set `paraphrased`, if there is one, and the original model's
    outputs with those to it.
    """
    known = rows.sets["unlearned"], before.outputs["unlearned"]
    found = find_paraphrases(source, *known, scorers, most=most)
    if found.note:
        source.display.print(found.note)
    if not found.rows:
        return rows, before, found
    part = replace(rows, sets={"paraphrased": found.rows})
    drafts = dict(zip((row.key for row in found.rows), found.outputs, strict=True))
    more = generate(source, part, "original", drafts)
    first = [name for name in ("unlearned", "unseen") if name in rows.sets]
    sets = {name: rows.sets[name] for name in first} | dict(part.sets) | dict(rows.sets)
    parts = [{**asdict(before)[name], **values} for name, values in asdict(more).items()]
    return replace(rows, sets=sets), Generations(*parts), found


def outputs_by_row(scenario: Scenario, generations: Generations) -> dict[str, str]:
    """The outputs by a row's key."""
    return {
        row.key: output
        for name, rows in scenario.sets.items()
        for row, output in zip(rows, generations.outputs[name], strict=True)
    }
