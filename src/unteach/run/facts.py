"""The facts of a run's forget rows, kept in its `work/`, so that attacks and later requests count
what the run counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from unteach.data.rows import Row
from unteach.evaluation.metrics import is_forget_set
from unteach.files.atomic import read_cached, write_json
from unteach.scenarios.scenario import Scenario

FACTS = Path("work") / "facts.json"
"""Facts by a row's key, within a run's folder; readable by its owner only, and purged with it."""


def write_facts(folder: Path, scenario: Scenario) -> None:
    """Writes the facts of all forget rows, held-out ones among them.

    Args:
        folder (`Path`): the run's.
        scenario (`Scenario`): its forget rows complete, with their facts in `secret`.
    """
    sets = (part for name, part in scenario.sets.items() if is_forget_set(name))
    rows = [*scenario.forget, *scenario.validation, *(row for part in sets for row in part)]
    write_json(folder / FACTS, {row.key: list(row.secret) for row in rows if row.secret})


def with_recorded_facts(rows: Iterable[Row], folder: Path) -> list[Row]:
    """The rows, those without facts with the ones that the run in `folder` found in them; as they
    are where it recorded none.
    """
    found = read_cached(folder / FACTS)
    known = found[0] if found and isinstance(found[0], dict) else {}
    return [replace(row, secret=row.secret or tuple(known.get(row.key, ()))) for row in rows]


def lost_facts(rows: Sequence[Row], found: int) -> str:
    """A sentence where a run found facts in more rows than are known now; else empty.

    Args:
        rows (`Sequence[Row]`): forget rows with the facts that are known.
        found (`int`): forget rows in which the run named or found facts.
    """
    known = sum(bool(row.secret) for row in rows)
    if known >= found:
        return ""
    return (
        f"{found - known} forget rows have no facts any more, as the run's work/ is gone: they are"
        " counted by leak rate."
    )
