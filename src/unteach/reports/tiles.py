"""The first part of the page: what was forgotten, what was kept, how readable the answers are, and
everyday answers, each with a few answers to read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from unteach.reports.results import Results, capitalised, printable
from unteach.reports.run_files import RunFiles

TITLES = {
    "forget": "Forgotten?",
    "kept": "Kept: neighbours and retain rows",
    "normal": "Everyday answers",
}
ROLES = tuple(TITLES)
EXAMPLES, LONGEST = 3, 180
"""Answers of a tile; characters of each text."""


def tiles(files: RunFiles) -> list[dict[str, Any]]:
    """For each role of prompt sets a tile with the key metric of each set, and one for each metric
    that is compared on all roles; none without results.

    Examples are the first rows whose texts are not hidden, of the sets in turn; of a metric on all
    roles those rows of which the unlearned model's answer has the value 0.
    """
    results = files.results
    found = []
    for role, title in TITLES.items():
        names = results.sets_of(role)
        lines = [line for name in names if (line := _line(results, name, results.key_metric(name)))]
        pairs = _in_turn([list(_pairs(files.records, name)) for name in names])
        found.append({"title": title, "lines": lines, "examples": _examples(pairs)})
    for metric, facts in results.metrics.items():
        if not set(ROLES) <= set(facts["compare_on"]):
            continue
        lines = [line for name in results.sets if (line := _line(results, name, metric))]
        pairs = [pair for name in results.sets for pair in _pairs(files.records, name)]
        broken = [pair for pair in pairs if pair[1].get("metrics", {}).get(metric) == 0]
        title = f"{capitalised(results.title(metric))}?"
        found.insert(-1, {"title": title, "lines": lines, "examples": _examples(broken)})
    return [tile for tile in found if tile["lines"]]


def _line(results: Results, name: str, metric: str) -> dict[str, str] | None:
    """A prompt set's metric before and after."""
    before, after = (sets.get(name, {}).get(metric) for sets in results.pair)
    if after is None:
        return None
    alone = bool(results.metrics[metric]["against_original"])
    change = results.change(metric, before, after)
    return {
        "set": results.set_title(name),
        "before": "" if alone or before is None else results.value(metric, before),
        "after": results.value(metric, after),
        "metric": f"{results.title(metric, short=True)}, n = {after['n']}",
        "tone": change.tone if change else "flat",
    }


Record = Mapping[str, Any]


def _pairs(records: Sequence[Record], name: str) -> Iterator[tuple[Record, Record]]:
    """The records of the original and of the unlearned model of each row of a set whose texts are
    not hidden.
    """
    after = {r["key"]: r for r in records if r["model"] == "unlearned" and r["set"] == name}
    for record in records:
        if record["model"] == "original" and record["set"] == name:
            other = after.get(record["key"], {})
            if "prompt" in record and "output" in record and "output" in other:
                yield record, other


def _in_turn(groups: Sequence[Sequence[Any]]) -> list[Any]:
    """The first of each group, then the second of each."""
    longest = max(map(len, groups), default=0)
    return [group[place] for place in range(longest) for group in groups if place < len(group)]


def _examples(pairs: Sequence[tuple[Record, Record]]) -> list[dict[str, str]]:
    return [
        {
            "prompt": _short(before["prompt"]),
            "before": _short(before["output"]) or "(empty)",
            "after": _short(after["output"]) or "(empty)",
        }
        for before, after in pairs[:EXAMPLES]
    ]


def _short(text: str) -> str:
    plain = " ".join(printable(text).split())
    return plain if len(plain) <= LONGEST else f"{plain[: LONGEST - 1].rstrip()}\u2026"
