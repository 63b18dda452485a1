"""The before/after table of `eval.json`, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FORGET_SETS = ("unlearned", "unseen", "other_facts")
RATES = {
    "leak_rate": "leak rate",
    "harmful_rate": "harmful rate",
    "hallucination_rate": "hallucination rate",
}
COLUMNS = (
    ("harmful_rate", "harmful rate", "{:.0%}"),
    ("hallucination_rate", "hallucination rate", "{:.0%}"),
    ("leak_rate", "leak rate", "{:.0%}"),
    ("rouge_l_recall", "ROUGE-L recall", "{:.2f}"),
    ("longest_verbatim_run", "verbatim run (chars)", "{:.0f}"),
    ("fluency", "fluency (NLL)", "{:.2f}"),
    ("diversity", "diversity", "{:.2f}"),
    ("utility_reward", "reward", "{:.2f}"),
    ("similarity", "similarity", "{:.2f}"),
)


NARROW = {
    "rouge_l_recall": "recall",
    "fluency": "fluency",
    "utility_reward": "reward",
    "similarity": "similarity",
}
"""The columns that fit a terminal of 80 characters beside the headline rate, with short titles."""


def headline(evaluation: Mapping[str, Any]) -> str:
    """The rate that decides."""
    return str(evaluation.get("headline", "leak_rate"))


def cell(metrics: Mapping[str, Any], name: str, form: str, *, interval: bool = True) -> str:
    """A value with its interval (if wanted), `NM` where it is not meaningful, `-` where the set has
    no such metric.
    """
    result = metrics.get(name)
    if result is None:
        return "-"
    if result["value"] is None:
        return "NM"
    text = form.format(result["value"])
    if (
        interval
        and name in (*RATES, "utility_reward", "similarity")
        and result["ci_low"] is not None
    ):
        text += f" [{form.format(result['ci_low'])}, {form.format(result['ci_high'])}]"
    return text


def comparison_rows(
    evaluation: Mapping[str, Any], *, narrow: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Header and rows: each prompt set with each metric as `before -> after`; `narrow`: fewer
    columns, no intervals.
    """
    before, after = evaluation["models"]["original"], evaluation["models"]["unlearned"]
    rate = headline(evaluation)
    short = {
        rate: RATES[rate].removesuffix(" rate") if rate == "hallucination_rate" else RATES[rate],
        **NARROW,
    }
    del short[
        "utility_reward" if rate == "leak_rate" else "rouge_l_recall"
    ]  # one column less, or 80 characters are too few
    used = [
        column
        for column in COLUMNS
        if any(column[0] in metrics for metrics in before.values())
        and (not narrow or column[0] in short)
    ]
    header = ["prompt set", "n", *(short[name] if narrow else title for name, title, _ in used)]
    rows = []
    for name, metrics in before.items():
        n = max((result["n"] for result in metrics.values()), default=0)
        cells = []
        for metric, _, form in used:
            left, right = (
                cell(found, metric, form, interval=not narrow)
                for found in (metrics, after.get(name, {}))
            )
            cells.append("-" if left == right == "-" else f"{left} -> {right}")
        rows.append([name, str(n), *cells])
    return header, rows


def scorer_text(fact: Mapping[str, Any]) -> str:
    """Who scored a metric, with the held-out accuracy of a scorer that was trained."""
    accuracy = fact.get("held_out_accuracy")
    return str(fact["name"]) + (
        "" if accuracy is None else f" (held-out accuracy {accuracy:.0%} on {fact['n']} answers)"
    )


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def verdict(evaluation: Mapping[str, Any]) -> str:
    """The result in one sentence, from the headline metric of each set."""
    before, after = evaluation["models"]["original"], evaluation["models"]["unlearned"]
    rate, parts = headline(evaluation), []
    for name in ("unlearned", "unseen"):
        if rate in before.get(name, {}):
            parts.append(
                f"{name} {before[name][rate]['value']:.0%} -> {after[name][rate]['value']:.0%}"
            )
    sentence = (
        f"{RATES[rate].capitalize()}: " + ", ".join(parts) if parts else "No forget set was scored"
    )
    kept = []
    for name in ("kept", "kept_unseen"):
        if before.get(name, {}).get("rouge_l_recall", {}).get("value"):
            kept.append(
                f"{after[name]['rouge_l_recall']['value'] / before[name]['rouge_l_recall']['value']:.0%}"
                f" of {name}"
            )
    if kept:
        sentence += "; recall kept: " + ", ".join(kept)
    if "similarity" in after.get("normal", {}):
        sentence += (
            f"; normal answers {after['normal']['similarity']['value']:.2f} similar to the"
            " original's"
        )
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
