"""Methods by models in one table, shaped as Tables 1 to 3 of Yao et al. 2024."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from unteach.files.atomic import write_json, write_text_atomically
from unteach.reports.results import MISSING, Results, Sets
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
CSV_FIELDS = ("value", "n", "ci_low", "ci_high")


@dataclass(frozen=True)
class Cell:
    """One model under one method: its results by prompt set, and its `run.json` (empty for the
    original).
    """

    model: str
    method: str
    sets: Sets
    run: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float | None:
        """Seconds of training and of generating data for it."""
        unlearning = self.run.get("stage_seconds", {}).get("Unlearning")
        seconds = self.run.get("cost", {}).get("seconds", unlearning)
        return None if seconds is None else float(seconds)


def share_of_rlhf(cell: Cell, cells: Sequence[Cell]) -> float | None:
    """Seconds in percent of those of the same model's `rlhf` run; `None` where either is missing."""
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
    columns = comparison_columns(cells, results)
    titles = [_title(results, metric) for _, metric in columns]
    rows = []
    for cell in cells:
        row = [cell.model, cell.method]
        for name, metric in columns:
            result = cell.sets.get(name, {}).get(metric)
            if cell.method == "original" and results.metrics[metric]["against_original"]:
                result = None
            write = results.shown if intervals else results.value
            row.append(write(metric, result).replace("%", ""))
        rows.append(row)
    cost_titles, costs = _cost_columns(cells)
    return Table(
        ["model", "method", *titles, *cost_titles],
        [[*row, *cost] for row, cost in zip(rows, costs, strict=True)],
        ["", "", *(results.set_title(name) for name, _ in columns), *("" for _ in cost_titles)],
        text_columns=["model", "method", *NEEDS],
    )


def _title(results: Results, metric: str) -> str:
    unit = " (%)" if results.form(metric).endswith("%") else ""
    return results.title(metric, short=True) + unit


def _cost_columns(cells: Sequence[Cell]) -> tuple[list[str], list[list[str]]]:
    """Titles and cells: seconds; beside a baseline also the share of full RLHF's time, the other
    costs, and which data a method needs.
    """
    full = any(cell.run.get("needs_positives") for cell in cells)
    rows = []
    for cell in cells:
        share, cost = share_of_rlhf(cell, cells), cell.run.get("cost", {})
        row = {"seconds": MISSING if cell.seconds is None else f"{cell.seconds:.0f}"}
        if full:
            row["% of rlhf"] = MISSING if share is None else f"{share:.1f}"
            row |= {
                title: f"{cost[key]:.0f}" if key in cost else MISSING
                for title, key in COSTS.items()
            }
            words = {True: "yes", False: "no", None: MISSING}
            row |= {title: words[cell.run.get(key)] for title, key in NEEDS.items()}
        rows.append(row)
    if all(row.get("% of rlhf") == MISSING for row in rows):
        for row in rows:
            del row["% of rlhf"]
    return list(rows[0]), [list(row.values()) for row in rows]


def as_csv(cells: Sequence[Cell]) -> str:
    """One line for each model, method, prompt set and metric, with every digit."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["model", "method", "prompt_set", "metric", *CSV_FIELDS, "higher_is_better"])
    for cell in cells:
        for name, metrics in cell.sets.items():
            for metric, result in metrics.items():
                numbers = ["" if result[key] is None else result[key] for key in CSV_FIELDS]
                place = [cell.model, cell.method, name, metric]
                writer.writerow([*place, *numbers, result["higher_is_better"]])
    return out.getvalue()


def write_comparison(folder: Path, cells: Sequence[Cell], evaluation: Mapping[str, Any]) -> None:
    """Writes `comparison.md`, `.csv`, `.tex` and `.json`; metrics and scorers are those of one of
    the evaluations.
    """
    results = comparison_results(cells, evaluation)
    table = comparison_table(cells, results)
    parts = [
        table.markdown(),
        "In brackets: 95% intervals over rows. NM: not meaningful. Seconds: the training alone.\n",
        *([COST_NOTE] if set(NEEDS) & set(table.header) else []),
        *(f"- {title}: {text}" for title, text in results.scorers().items()),
    ]
    write_text_atomically(folder / "comparison.md", "\n".join(parts).rstrip() + "\n")
    write_text_atomically(folder / "comparison.csv", as_csv(cells))
    write_text_atomically(folder / "comparison.tex", table.latex())
    content = {"schema_version": 2, "headline": results.headline}
    content |= {"metrics": results.metrics, "prompt_sets": results.sets}
    content |= {"cells": [asdict(cell) for cell in cells]}
    write_json(folder / "comparison.json", content)


def print_comparison(
    cells: Sequence[Cell], evaluation: Mapping[str, Any], console: Console
) -> None:
    """Prints the table without intervals."""
    results = comparison_results(cells, evaluation)
    comparison_table(cells, results, intervals=False).print(console)
