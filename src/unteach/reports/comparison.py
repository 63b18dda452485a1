"""Methods by models in one table, shaped as Tables 1 to 3 of Yao et al. 2024."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unteach.evaluation.results import FIELDS
from unteach.files.atomic import write_json, write_text_atomically
from unteach.reports.results import MISSING, Results, Sets
from unteach.reports.run_files import without_paths
from unteach.reports.tables import Table

COSTS = {
    "data tokens": "data_tokens",
    "generated tokens": "generated_tokens",
    "training tokens": "training_tokens",
    "peak memory (MiB)": "peak_memory_mb",
}
NEEDS = {"needs positives": "needs_positives", "needs preferences": "needs_preferences"}
COST_NOTE = """\
Seconds are those of the optimiser steps and of generating training data, without loading, probes
and checkpoints. Data tokens: desired answers that people wrote. Generated tokens: written by the
model, for RL or as its own answers to keep. Peak memory: of the process.
"""
PLACE = ("model", "method", "prompt_set", "metric")


@dataclass(frozen=True)
class Cell:
    """One model under one method: its results by prompt set, its `run.json` (empty for the
    original), and the verdict on it with its reasons (none for the original and in older files).
    """

    model: str
    method: str
    sets: Sets
    run: Mapping[str, Any] = field(default_factory=dict)
    verdict: str = ""
    reasons: Sequence[str] = ()

    @property
    def seconds(self) -> float | None:
        """Seconds of training and of generating data for it."""
        unlearning = self.run.get("stage_seconds", {}).get("Unlearning")
        seconds = self.run.get("cost", {}).get("seconds", unlearning)
        return None if seconds is None else float(seconds)


def share_of_rlhf(cell: Cell, cells: Sequence[Cell]) -> float | None:
    """Seconds in percent of the same model's `rlhf` run; `None` where either is missing."""
    same = [other for other in cells if other.model == cell.model]
    whole = [other.seconds for other in same if other.run.get("method") == "rlhf"]
    if cell.seconds is None or not whole or not whole[0]:
        return None
    return 100 * cell.seconds / whole[0]


def comparison_results(cells: Sequence[Cell], facts: Mapping[str, Any]) -> Results:
    """What one evaluation states (headline, scorers, metrics), completed for the cells' metrics."""
    parts = ("metrics", "prompt_sets")
    models = {f"{cell.model}, {cell.method}": cell.sets for cell in cells}
    plain = {name: value for name, value in facts.items() if name not in parts}
    content = Results({**plain, "models": models}).content
    stated = {name: {**content[name], **facts.get(name, {})} for name in parts}
    return Results({**content, **stated})


def comparison_columns(cells: Sequence[Cell], results: Results) -> list[tuple[str, str]]:
    """(prompt set, metric) of each column of results."""
    sets = cells[0].sets
    return [(name, m) for name in sets for m in results.compare_metrics(name, sets[name])]


def comparison_table(cells: Sequence[Cell], results: Results, *, intervals: bool = True) -> Table:
    """A row for each cell; a rate's percent sign stands in its title."""
    write = results.shown if intervals else results.value
    columns = [("", "model", [cell.model for cell in cells])]
    columns.append(("", "method", [cell.method for cell in cells]))
    if any(cell.verdict for cell in cells):
        columns.append(("", "verdict", [cell.verdict or MISSING for cell in cells]))
    for name, metric in comparison_columns(cells, results):
        found = [cell.sets.get(name, {}).get(metric) for cell in cells]
        if results.metrics[metric]["against_original"]:
            pairs = zip(found, cells, strict=True)
            found = [None if cell.method == "original" else result for result, cell in pairs]
        texts = [write(metric, result).replace("%", "") for result in found]
        unit = " (%)" if results.form(metric).endswith("%") else ""
        columns.append((results.set_title(name), results.title(metric, short=True) + unit, texts))
    columns += [("", title, texts) for title, texts in _costs(cells).items()]
    groups, header, by_column = zip(*columns, strict=True)
    rows = [list(row) for row in zip(*by_column, strict=True)]
    return Table(list(header), rows, groups, text_columns=["model", "method", "verdict", *NEEDS])


def _costs(cells: Sequence[Cell]) -> dict[str, list[str]]:
    """The columns of costs: seconds; beside a baseline also the share of full RLHF's time, the
    other costs, and which data a method needs.
    """

    def column(values: Iterable[float | None], form: str) -> list[str]:
        return [MISSING if value is None else format(value, form) for value in values]

    columns = {"seconds": column((cell.seconds for cell in cells), ".0f")}
    if not any(cell.run.get("needs_positives") for cell in cells):
        return columns
    shares = [share_of_rlhf(cell, cells) for cell in cells]
    if any(shares):
        columns["% of rlhf"] = column(shares, ".1f")
    for title, key in COSTS.items():
        columns[title] = column((cell.run.get("cost", {}).get(key) for cell in cells), ".0f")
    words = {True: "yes", False: "no", None: MISSING}
    for title, key in NEEDS.items():
        columns[title] = [words[cell.run.get(key)] for cell in cells]
    return columns


def as_csv(cells: Sequence[Cell]) -> str:
    """One line for each model, method, prompt set and metric, with every digit."""
    out = io.StringIO()
    fields = (*PLACE, *FIELDS, "verdict")
    writer = csv.DictWriter(out, fields, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for cell in cells:
        for name, metrics in cell.sets.items():
            place = {"model": cell.model, "method": cell.method, "prompt_set": name}
            place |= {"verdict": cell.verdict}
            writer.writerows({**place, "metric": m, **result} for m, result in metrics.items())
    return out.getvalue()


def _verdicts(cells: Sequence[Cell]) -> list[str]:
    """Lines of Markdown: each verdict with its first reasons, which decided it."""
    lines = [
        f"- {cell.model}, {cell.method}: **{cell.verdict}**: {'; '.join(cell.reasons[:3])}"
        for cell in cells
        if cell.verdict
    ]
    return ["", "Verdicts, with what decided them:", "", *lines] if lines else []


def write_comparison(folder: Path, cells: Sequence[Cell], evaluation: Mapping[str, Any]) -> Table:
    """Writes `comparison.md`, `.csv`, `.tex` and `.json`; returns the table without intervals.

    Metrics and scorers are those of one of the evaluations.
    """
    results = comparison_results(cells, without_paths(evaluation))
    table = comparison_table(cells, results)
    parts = [
        table.markdown(),
        "In brackets: 95% intervals over rows. NM: not meaningful. Seconds: the training alone.\n",
        *([COST_NOTE] if set(NEEDS) & set(table.header) else []),
        *(f"- {title}: {text}" for title, text in results.scorers().items()),
        *_verdicts(cells),
    ]
    write_text_atomically(folder / "comparison.md", "\n".join(parts).rstrip() + "\n")
    write_text_atomically(folder / "comparison.csv", as_csv(cells))
    write_text_atomically(folder / "comparison.tex", table.latex())
    content = {"schema_version": 2, "headline": results.headline}
    content |= {"metrics": results.metrics, "prompt_sets": results.sets}
    content |= {"cells": [asdict(cell) for cell in cells]}
    write_json(folder / "comparison.json", content)
    return comparison_table(cells, results, intervals=False)
