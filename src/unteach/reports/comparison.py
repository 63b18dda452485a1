"""Methods by models in one table, shaped as Tables 1 to 3 of Yao et al. 2024: Markdown, CSV, LaTeX,
terminal.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unteach.files.atomic import write_json, write_text_atomically
from unteach.reports.tables import FORGET_SETS, markdown_table, scorer_text

TITLES = {
    "leak_rate": "leak rate",
    "harmful_rate": "harmful rate",
    "hallucination_rate": "hallucination rate",
    "diversity": "diversity",
    "fluency": "fluency",
    "rouge_l_recall": "recall",
    "utility_reward": "reward",
    "similarity": "similarity",
}
PERCENT = ("leak_rate", "harmful_rate", "hallucination_rate")


@dataclass(frozen=True)
class Cell:
    """One model under one method: its metrics by prompt set, and its `run.json` (empty for the
    original).
    """

    model: str
    method: str
    sets: Mapping[str, Mapping[str, Mapping[str, Any]]]
    run: Mapping[str, Any] = field(default_factory=dict)


def columns(cells: Sequence[Cell], headline: str) -> list[tuple[str, str]]:
    """(prompt set, metric) of the table: on forget sets the headline rate, diversity, fluency; on
    others reward, similarity, recall.
    """
    found = []
    for name, metrics in cells[0].sets.items():
        if name in FORGET_SETS:
            wanted = [headline, "diversity", "fluency"]
        elif name == "normal":
            wanted = ["utility_reward", "similarity", "diversity", "fluency"]
        else:
            wanted = [headline, "rouge_l_recall"] if headline == "leak_rate" else [headline]
        found += [(name, metric) for metric in wanted if metric in metrics]
    return found


def shown(result: Mapping[str, Any] | None, metric: str, *, interval: bool = True) -> str:
    """A value with its interval; `NM` where it is not meaningful, `-` where there is none."""
    if result is None:
        return "-"
    if result["value"] is None:
        return "NM"
    scale, form = (
        (100, "{:.0f}")
        if metric in PERCENT
        else (1, "{:.3f}" if metric == "diversity" else "{:.2f}")
    )
    text = form.format(scale * result["value"])
    if interval and result["ci_low"] is not None:
        text += (
            f" [{form.format(scale * result['ci_low'])}, {form.format(scale * result['ci_high'])}]"
        )
    return text


def comparison_table(
    cells: Sequence[Cell], headline: str, *, interval: bool = True
) -> tuple[list[str], list[list[str]]]:
    """Header and rows; rates in percent."""
    chosen = columns(cells, headline)
    header = ["model", "method"]
    header += [
        f"{name}: {TITLES[metric]}{' (%)' if metric in PERCENT else ''}" for name, metric in chosen
    ]
    rows = []
    for cell in cells:
        values = [
            shown(cell.sets.get(name, {}).get(metric), metric, interval=interval)
            for name, metric in chosen
        ]
        if cell.method == "original":  # its similarity to itself says nothing
            values = [
                "-" if metric == "similarity" else value
                for value, (_, metric) in zip(values, chosen, strict=True)
            ]
        rows.append([cell.model, cell.method, *values])
    titles, paid = prices(cells)
    return [*header, *titles], [[*row, *price] for row, price in zip(rows, paid, strict=True)]


SPLIT = {
    "data tokens": "data_tokens",
    "generated tokens": "generated_tokens",
    "training tokens": "training_tokens",
    "peak memory (MiB)": "peak_memory_mb",
}
NEEDS = {"needs positives": "needs_positives", "needs preferences": "needs_preferences"}
"""The last columns: the time of training; beside a baseline also the share of full RLHF's, the
other costs, the data taken.
"""


COST_NOTE = """\
Seconds are those of the optimiser steps and of what the model wrote to be trained on, without loading, probes and checkpoints. Data
tokens: good answers that someone had to write. Generated tokens: written by the model, for RL or as its own answers to keep. Peak
memory: of the process.
"""


def seconds_of(cell: Cell) -> float | None:
    """Seconds of training (and of what the model wrote for it)."""
    seconds = cell.run.get("cost", {}).get(
        "seconds", cell.run.get("stage_seconds", {}).get("Unlearning")
    )
    return None if seconds is None else float(seconds)


def share_of_rlhf(cell: Cell, cells: Sequence[Cell]) -> float | None:
    """Seconds in percent of those of the same model's `rlhf` run; `None` where either is missing."""
    whole = [
        seconds_of(other)
        for other in cells
        if other.model == cell.model and other.run.get("method") == "rlhf"
    ]
    seconds = seconds_of(cell)
    return None if seconds is None or not whole or not whole[0] else 100 * seconds / whole[0]


def prices(cells: Sequence[Cell]) -> tuple[list[str], list[list[str]]]:
    """Titles and values of the columns of cost: the seconds alone, or everything where a run is
    that of a baseline.
    """
    full = any(cell.run.get("needs_positives") for cell in cells)
    shares = [share_of_rlhf(cell, cells) for cell in cells]
    with_share = full and any(share is not None for share in shares)
    titles = [
        "seconds",
        *(["% of rlhf"] if with_share else []),
        *([*SPLIT, *NEEDS] if full else []),
    ]
    rows = []
    for cell, share in zip(cells, shares, strict=True):
        seconds, cost = seconds_of(cell), cell.run.get("cost", {})
        known = {
            "seconds": "-" if seconds is None else f"{seconds:.0f}",
            "% of rlhf": "-" if share is None else f"{share:.1f}",
        }
        known |= {title: f"{cost[key]:.0f}" if key in cost else "-" for title, key in SPLIT.items()}
        known |= {
            title: {True: "yes", False: "no"}.get(cell.run.get(key, ""), "-")
            for title, key in NEEDS.items()
        }
        rows.append([known[title] for title in titles])
    return titles, rows


def as_csv(cells: Sequence[Cell]) -> str:
    """One line for each model, method, prompt set and metric, every digit kept."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            "model",
            "method",
            "prompt_set",
            "metric",
            "value",
            "n",
            "ci_low",
            "ci_high",
            "higher_is_better",
        ]
    )
    for cell in cells:
        for name, metrics in cell.sets.items():
            for metric, result in metrics.items():
                numbers = [
                    "" if result[key] is None else result[key]
                    for key in ("value", "n", "ci_low", "ci_high")
                ]
                writer.writerow(
                    [cell.model, cell.method, name, metric, *numbers, result["higher_is_better"]]
                )
    return out.getvalue()


def escaped(text: str) -> str:
    """Text in which LaTeX's special characters stand for themselves."""
    table = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    table |= {character: f"\\{character}" for character in "&%$#_{}"}
    return "".join(table.get(character, character) for character in text)


def as_latex(cells: Sequence[Cell], headline: str) -> str:
    """A `tabular` in booktabs' style: prompt sets over their metrics, a rule between models."""
    chosen = columns(cells, headline)
    header, rows = comparison_table(cells, headline)
    extra = header[2 + len(chosen) :]
    sets = list(dict.fromkeys(name for name, _ in chosen))
    spans = [sum(name == group for name, _ in chosen) for group in sets]
    groups = [
        rf"\multicolumn{{{span}}}{{c}}{{{escaped(name)}}}"
        for name, span in zip(sets, spans, strict=True)
    ]
    top = " & ".join(["", "", *groups, *("" for _ in extra)])
    titles = [f"{TITLES[metric]}{' (%)' if metric in PERCENT else ''}" for _, metric in chosen]
    lines = [
        "% needs \\usepackage{booktabs}",
        (
            rf"\begin{{tabular}}{{ll{'r' * len(chosen)}{''.join('l' if title in NEEDS else 'r' for title in extra)}}}"
        ),
        r"\toprule",
        top + r" \\",
        " & ".join(escaped(title) for title in ["model", "method", *titles, *extra]) + r" \\",
        r"\midrule",
    ]
    for number, row in enumerate(rows):
        if number and row[0] != rows[number - 1][0]:
            lines.append(r"\midrule")
        lines.append(" & ".join(escaped(value) for value in row) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def write_comparison(folder: Path, cells: Sequence[Cell], evaluation: Mapping[str, Any]) -> None:
    """Writes `comparison.md`, `.csv`, `.tex` and `.json`; the scorers of one evaluation stand for
    all.
    """
    headline = str(evaluation.get("headline", "leak_rate"))
    header, rows = comparison_table(cells, headline)
    parts = [
        markdown_table(header, rows),
        "In brackets: 95% intervals over rows. NM: not meaningful. Seconds: the training alone.\n",
    ]
    if "needs positives" in header:
        parts.append(COST_NOTE)
    parts += [
        f"- {metric}: {scorer_text(fact)}" for metric, fact in evaluation.get("scorers", {}).items()
    ]
    write_text_atomically(folder / "comparison.md", "\n".join(parts).rstrip() + "\n")
    write_text_atomically(folder / "comparison.csv", as_csv(cells))
    write_text_atomically(folder / "comparison.tex", as_latex(cells, headline))
    plain = [
        {"model": cell.model, "method": cell.method, "sets": cell.sets, "run": cell.run}
        for cell in cells
    ]
    write_json(
        folder / "comparison.json", {"schema_version": 1, "headline": headline, "cells": plain}
    )


def print_comparison(cells: Sequence[Cell], evaluation: Mapping[str, Any], console: Any) -> None:
    """The table on a terminal, without intervals."""
    from rich import box
    from rich.table import Table

    header, rows = comparison_table(
        cells, str(evaluation.get("headline", "leak_rate")), interval=False
    )
    table = Table(box=box.SIMPLE_HEAD)
    for column in header:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    console.print(table)
