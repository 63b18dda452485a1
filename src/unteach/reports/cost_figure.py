"""The figure of what each method costs: run time on a log scale with its share of the full RLHF
pipeline (Figure 1 of Yao et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unteach.reports.comparison import Cell, seconds_of, share_of_rlhf

OURS, BASELINE = "#2b6777", "#b3392f"


def bars(cells: Sequence[Cell]) -> list[tuple[str, float, str, bool]]:
    """(name, seconds, label, whether the method learns from bad answers alone) of each run whose
    time is known, the longest last.
    """
    several = len({cell.model for cell in cells}) > 1
    found = []
    for cell in cells:
        seconds = seconds_of(cell)
        if not seconds:
            continue
        share = share_of_rlhf(cell, cells)
        label = f"{seconds:,.0f} s" + (
            "" if share is None else f", {share:.2g}%" if share < 1 else f", {share:.0f}%"
        )
        name = f"{cell.method} ({cell.model})" if several else cell.method
        found.append((name, seconds, label, not cell.run.get("needs_positives", False)))
    return sorted(found, key=lambda bar: bar[1])


def cost_figure(folder: Path, cells: Sequence[Cell]) -> Path | None:
    """Draws `cost.png` into `folder`; nothing where fewer than two runs have a time."""
    shown = bars(cells)
    if len(shown) < 2:
        return None
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure = Figure(
        figsize=(7.2, 1.2 + 0.42 * len(shown)), dpi=150, layout="constrained"
    )  # not pyplot's, which would keep it open
    axes = figure.subplots()
    places = range(len(shown))
    for place, (_, seconds, label, ours) in zip(places, shown, strict=True):
        axes.barh(place, seconds, color=OURS if ours else BASELINE, height=0.62)
        axes.annotate(
            label,
            (seconds, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(list(places), [name for name, *_ in shown], fontsize=8)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    times = [seconds for _, seconds, *_ in shown]
    axes.set_xlim(min(times) / 2, max(times) * 4)
    axes.set_xlabel("seconds of training (log scale)")
    axes.set_title(
        "Run time by method" + (", and its share of full RLHF" if "%" in shown[0][2] else ""),
        loc="left",
        fontsize=11,
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    kinds = {
        ours: colour
        for ours, colour in ((True, OURS), (False, BASELINE))
        if any(bar[3] == ours for bar in shown)
    }
    if len(kinds) > 1:
        from matplotlib.patches import Patch

        names = {True: "from bad answers alone", False: "needs good answers"}
        patches = [Patch(color=colour, label=names[ours]) for ours, colour in kinds.items()]
        figure.legend(
            handles=patches, frameon=False, fontsize=8, loc="outside lower center", ncols=2
        )
    path = folder / "cost.png"
    figure.savefig(path)
    return path
