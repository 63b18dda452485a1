"""The table of a benchmark's `eval.json`: one line a number, one column a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unteach.reports.tables import markdown_table

DIRECTIONS = {True: "higher", False: "lower", None: "nearest"}
"""Which value is better; `nearest`: to the retrained model's, or to 0 for PrivLeak."""


def benchmark_rows(evaluation: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows; a model that is another one's column again is left out."""
    models = dict(evaluation["models"])
    if models.get("original") == models.get("unlearned"):
        models.pop("original", None)
    header = ["set", "metric", "n", "better", *models]
    places = dict.fromkeys(
        (name, metric)
        for sets in models.values()
        for name, metrics in sets.items()
        for metric in metrics
    )
    rows = []
    for name, metric in sorted(
        places,
        key=lambda place: list(dict.fromkeys(set_name for set_name, _ in places)).index(place[0]),
    ):
        found = [sets.get(name, {}).get(metric) for sets in models.values()]
        known = next(result for result in found if result is not None)
        rows.append(
            [
                name,
                metric,
                str(known["n"]),
                DIRECTIONS[known["higher_is_better"]],
                *map(_cell, found),
            ]
        )
    return header, rows


def _cell(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return "-"
    if result["value"] is None:
        return "NM"
    text = f"{result['value']:.3g}"
    return (
        text
        if result["ci_low"] is None
        else f"{text} [{result['ci_low']:.3g}, {result['ci_high']:.3g}]"
    )


def benchmark_markdown(evaluation: Mapping[str, Any]) -> str:
    """The table in Markdown."""
    return markdown_table(*benchmark_rows(evaluation))


def print_benchmark(evaluation: Mapping[str, Any], console: Any) -> None:
    """The table on a rich console."""
    from rich import box
    from rich.table import Table

    header, rows = benchmark_rows(evaluation)
    table = Table(title=str(evaluation["scenario"]).upper(), box=box.SIMPLE_HEAD)
    for column in header:
        table.add_column(column, no_wrap=column in ("set", "metric"))
    for row in rows:
        table.add_row(*row)
    console.print(table)
