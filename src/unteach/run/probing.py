"""Which rows the probe of a run reads: of no training set, as far as there are any."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from unteach.data.rows import Row, evenly_spaced
from unteach.evaluation.metrics import prompt_set
from unteach.evaluation.probe import make_probe
from unteach.evaluation.readability import degeneration_limit
from unteach.evaluation.scorers import Scorers
from unteach.evaluation.scoring import Generations
from unteach.evaluation.text_metrics import says
from unteach.scenarios.scenario import Scenario
from unteach.trainer.stopping import Probe

NEIGHBOURS_SHARE = 1 / 3
"""Share of neighbours in the rows that a probe reads, where there are neighbours."""
SHORT_ANSWER = 100
"""Most characters of an answer that is one fact."""


@dataclass(frozen=True)
class KeptRows:
    """Rows with completions that a probe reads.

    Args:
        facts: for `run.json`: how many rows of which prompt set, and whether all are `held_out`.
    """

    utility: list[Row]
    neighbours: list[Row]
    facts: Mapping[str, Any] = field(default_factory=dict)


def kept_rows(rows: Scenario, before: Generations, most: int) -> KeptRows:
    """At most `most` rows to keep: half of the utility rows from the retain set's held-out part,
    half everyday prompts with the original model's answers; neighbours beside them.

    Only where no retain row was held out are trained ones read, and own answers that are trained on
    only where there is nothing else. Of rows that name their facts those are taken that the
    original model says.

    Args:
        rows (`Scenario`): with the rows that are trained on in `retain`.
        before (`Generations`): the original model's outputs.
        most: see above.
    """
    near = _known(rows, before, "neighbours")
    near = evenly_spaced(near, max(1, round(most * NEIGHBOURS_SHARE)))
    sets = [name for name in rows.sets if prompt_set(name).role == "kept" and name != "neighbours"]
    held_out = [name for name in sets if name != "kept"]
    parts = {name: _known(rows, before, name) for name in held_out or sets}
    for name, part in rows.sets.items():
        if prompt_set(name).role == "normal" and prompt_set(name).similar_at:
            answers = zip(part, before.outputs[name], strict=True)
            parts[name] = [row.with_completion(text) for row, text in answers if text.strip()]
    if not any(parts.values()):
        parts = {"trained": list(rows.retain)}
    parts = {name: part for name, part in parts.items() if part}
    left = max(1, most - len(near))
    chosen: dict[str, list[Row]] = {}
    for done, (name, part) in enumerate(sorted(parts.items(), key=lambda item: len(item[1]))):
        share = (left - sum(map(len, chosen.values()))) / (len(parts) - done)
        chosen[name] = evenly_spaced(part, max(1, round(share)))
    counts = {name: len(part) for name, part in chosen.items()}
    facts = {
        "utility": counts,
        "neighbours": len(near),
        "held_out": not {"trained", "kept"} & set(chosen),
    }
    return KeptRows([row for part in chosen.values() for row in part], near, facts)


def _known(rows: Scenario, before: Generations, name: str) -> list[Row]:
    """The set's rows, without those whose facts the original model does not give.

    A short answer to keep that the original model gives word for word is a fact as a whole: of a
    name or a number that is lost, most tokens stay right.
    """
    part: Sequence[Row] = rows.sets.get(name, [])
    outputs = before.outputs.get(name, [])
    found = []
    for row, output in zip(part, outputs, strict=True):
        if not row.completion or (row.secret and not says(output, row.secret)):
            continue
        short = row.kind == "chat" and len(row.completion) <= SHORT_ANSWER and name != "neighbours"
        whole = short and not row.secret and says(output, [row.completion])
        found.append(replace(row, secret=(row.completion,)) if whole else row)
    return found


def _seen(part: Sequence[Row], rows: Scenario) -> list[Row]:
    """The forget rows that can be seen to be forgotten; all where there are no such rows."""
    return [row for row in part if row.key not in rows.unknown] or list(part)


def run_probe(
    tokenizer: Any,
    rows: Scenario,
    before: Generations,
    scorers: Scorers,
    *,
    forget_rows: int,
    drafts: Mapping[str, str],
) -> tuple[Callable[..., Probe], dict[str, Any]]:
    """(from `on_outputs` to the run's probe, facts about its rows for `run.json`).

    Args:
        tokenizer: the model's.
        rows (`Scenario`): with all that is trained on.
        before (`Generations`): the original model's outputs.
        scorers (`Scorers`): their headline metric is that of the probe.
        forget_rows (`int`): forget rows, and rows to keep, in a probe.
        drafts: by a row's key, the original model's output.
    """
    kept = kept_rows(rows, before, forget_rows)
    everyday = [
        output
        for name, outputs in before.outputs.items()
        if prompt_set(name).role == "normal"
        for output in outputs
    ]
    make = partial(
        make_probe,
        tokenizer,
        _seen(rows.forget, rows),
        _seen(rows.validation, rows),
        kept.utility,
        neighbours=kept.neighbours,
        shows_forgotten=scorers.shows_forgotten,
        forget_rows=forget_rows,
        degenerate_over=degeneration_limit(everyday),
        drafts=drafts,
    )
    return make, dict(kept.facts)
