"""The before/after table of `eval.json`, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COLUMNS = (
    ("leak_rate", "leak rate", "{:.0%}"),
    ("rouge_l_recall", "ROUGE-L recall", "{:.2f}"),
    ("longest_verbatim_run", "verbatim run (chars)", "{:.0f}"),
    ("fluency", "fluency (NLL)", "{:.2f}"),
    ("diversity", "diversity", "{:.2f}"),
    ("similarity", "similarity", "{:.2f}"),
)


NARROW = {"leak_rate": "leak rate", "rouge_l_recall": "recall", "fluency": "fluency", "similarity": "similarity"}
"""The columns that fit a terminal of 80 characters, with short titles."""


def cell(metrics: Mapping[str, Any], name: str, form: str, *, interval: bool = True) -> str:
    """A value with its interval (if wanted), `NM` where it is not meaningful, `-` where the set has no such metric."""
    result = metrics.get(name)
    if result is None:
        return "-"
    if result["value"] is None:
        return "NM"
    text = form.format(result["value"])
    if interval and name == "leak_rate" and result["ci_low"] is not None:
        text += f" [{form.format(result['ci_low'])}, {form.format(result['ci_high'])}]"
    return text


def comparison_rows(evaluation: Mapping[str, Any], *, narrow: bool = False) -> tuple[list[str], list[list[str]]]:
    """Header and rows: each prompt set with each metric as `before -> after`; `narrow`: fewer columns, no intervals."""
    before, after = evaluation["models"]["original"], evaluation["models"]["unlearned"]
    used = [
        column for column in COLUMNS if any(column[0] in metrics for metrics in before.values()) and (not narrow or column[0] in NARROW)
    ]
    header = ["prompt set", "n", *(NARROW[name] if narrow else title for name, title, _ in used)]
    rows = []
    for name, metrics in before.items():
        n = max((result["n"] for result in metrics.values()), default=0)
        cells = []
        for metric, _, form in used:
            left, right = (cell(found, metric, form, interval=not narrow) for found in (metrics, after.get(name, {})))
            cells.append("-" if left == right == "-" else f"{left} -> {right}")
        rows.append([name, str(n), *cells])
    return header, rows


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def verdict(evaluation: Mapping[str, Any]) -> str:
    """The result in one sentence, from the headline metric of each set."""
    before, after = evaluation["models"]["original"], evaluation["models"]["unlearned"]
    parts = []
    for name in ("unlearned", "unseen"):
        if "leak_rate" in before.get(name, {}):
            parts.append(f"{name} {before[name]['leak_rate']['value']:.0%} -> {after[name]['leak_rate']['value']:.0%}")
    sentence = "Leak rate: " + ", ".join(parts) if parts else "No forget set was scored"
    kept = []
    for name in ("kept", "kept_unseen"):
        if name in before and before[name]["rouge_l_recall"]["value"]:
            kept.append(f"{after[name]['rouge_l_recall']['value'] / before[name]['rouge_l_recall']['value']:.0%} of {name}")
    if kept:
        sentence += "; recall kept: " + ", ".join(kept)
    if "similarity" in after.get("normal", {}):
        sentence += f"; normal answers {after['normal']['similarity']['value']:.2f} similar to the original's"
    return sentence + "."


def print_table(evaluation: Mapping[str, Any], console: Any) -> None:
    """The comparison as a rich table."""
    from rich import box
    from rich.table import Table

    header, rows = comparison_rows(evaluation, narrow=True)
    table = Table(title="before -> after", box=box.SIMPLE_HEAD)
    for column in header:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(verdict(evaluation), highlight=False)
