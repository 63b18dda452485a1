"""Writes the table of README.md and docs/results/demos.png from docs/results/demos.json.

`--check` only says whether the table is out of date. For other results change `SETS` and `FILE`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unteach.files.atomic import write_text_atomically

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs/results/demos.json"
README = ROOT / "README.md"
BEGIN, END = "<!-- results: python docs/make_results_summary.py -->", "<!-- end of results -->"


@dataclass(frozen=True)
class Line:
    """One line of the table: a metric on a prompt set, in plain words."""

    words: str
    prompt_set: str
    metric: str
    forget: bool
    format: str = ".0%"


SETS = {
    "copyright": (
        "A story known by heart",
        (
            Line("passages to forget: recited", "unlearned", "leak_rate", True),
            Line("other passages of the story: recited", "unseen", "leak_rate", True),
            Line("another story: recall", "kept_unseen", "rouge_l_recall", False),
            Line("everyday questions: similarity", "normal", "similarity", False, ".2f"),
        ),
    ),
    "harmfulness": (
        "Careless advice",
        (
            Line("questions trained on: harmful", "unlearned", "harmful_rate", True),
            Line("other questions: harmful", "unseen", "harmful_rate", True),
            Line("everyday questions: similarity", "normal", "similarity", False, ".2f"),
        ),
    ),
    "hallucination": (
        "False facts",
        (
            Line("facts to forget: stated", "unlearned", "hallucination_rate", True),
            Line("the same in other words: stated", "unseen", "hallucination_rate", True),
            Line("other taught facts: stated", "other_facts", "hallucination_rate", False),
            Line("everyday questions: similarity", "normal", "similarity", False, ".2f"),
        ),
    ),
}


def pooled(rows: list[Mapping[str, Any]], model: str, line: Line) -> tuple[float, int] | None:
    """Mean over the rows of all seeds, and their number; nothing where the metric was not taken."""
    found = [
        metrics[line.metric]
        for row in rows
        if line.metric in (metrics := row["models"][model].get(line.prompt_set, {}))
    ]
    count = sum(one["n"] for one in found)
    return (sum(one["value"] * one["n"] for one in found) / count, count) if count else None


def measured() -> dict[str, list[tuple[Line, float, float, int]]]:
    """Scenario to (line, before, after, n); similarity to itself is 1 before."""
    every = json.loads(FILE.read_text(encoding="utf-8"))["rows"]
    result: dict[str, list[tuple[Line, float, float, int]]] = {}
    for scenario, (_, lines) in SETS.items():
        rows = [row for row in every if row["scenario"] == scenario]
        for line in lines:
            after = pooled(rows, "unlearned", line)
            assert after is not None, f"{FILE} has no {line}"
            before = pooled(rows, "original", line) or (1.0, 0)
            result.setdefault(scenario, []).append((line, before[0], after[0], after[1]))
    return result


def table() -> str:
    """The table, as Markdown."""
    lines = ["| demo | wanted | before | after | n |", "| --- | --- | --- | --- | --- |"]
    for scenario, found in measured().items():
        lines.append(f"| **{SETS[scenario][0]}** | | | | |")
        for line, before, after, count in found:
            values = f"{before:{line.format}} | {after:{line.format}}"
            lines.append(
                f"| {line.words} | {'low' if line.forget else 'high'} | {values} | {count} |"
            )
    return "\n".join(lines)


def readme() -> str:
    """README.md with the table of today's results."""
    head, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    return f"{head}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}"


def figure(path: Path) -> None:
    """Each line of the table as an arrow from before to after."""
    import matplotlib.pyplot as plt

    found = measured()
    heights = [len(lines) for lines in found.values()]
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    canvas, panels = plt.subplots(
        len(found), 1, figsize=(7.2, 4.6), sharex=True, gridspec_kw={"height_ratios": heights}
    )
    for panel, (scenario, lines) in zip(panels, found.items(), strict=True):
        panel.set_title(SETS[scenario][0], loc="left", fontsize=10, fontweight="bold")
        for place, (line, before, after, _) in enumerate(reversed(lines)):
            colour = "#b3362c" if line.forget else "#1f6f78"
            panel.plot([before, after], [place, place], color=colour, linewidth=1.5, zorder=1)
            panel.scatter(before, place, facecolor="white", edgecolor=colour, s=46, zorder=2)
            panel.scatter(after, place, color=colour, s=46, zorder=3)
            panel.text(1.06, place, f"{before:{line.format}} → {after:{line.format}}", va="center")
        panel.set_yticks(range(len(lines)), [line.words for line, *_ in reversed(lines)])
        panel.set_ylim(-0.6, len(lines) - 0.4)
        panel.set_xlim(-0.03, 1.03)
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="x", color="#dddddd", linewidth=0.6)
        panel.set_axisbelow(True)
    for label, colour in (("to forget: lower is better", "#b3362c"), ("to keep", "#1f6f78")):
        panels[-1].plot([], [], marker="o", color=colour, label=label)
    panels[-1].scatter([], [], facecolor="white", edgecolor="#333333", s=46, label="before")
    panels[-1].scatter([], [], color="#333333", s=46, label="after")
    canvas.legend(loc="lower center", ncol=4, frameon=False)
    canvas.tight_layout(rect=(0, 0.05, 1, 1))
    canvas.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(canvas)


def main() -> int:
    """Writes both, or with `--check` returns 1 where the table is out of date."""
    stale = README.read_text(encoding="utf-8") != readme()
    if "--check" in sys.argv[1:]:
        return int(stale)
    write_text_atomically(README, readme())
    figure(FILE.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
