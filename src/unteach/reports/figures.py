"""Figures of a run as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unteach.files.json_lines import read_json_lines
from unteach.reports.comparison import Cell, seconds_of, share_of_rlhf

FORGET, KEEP, NEUTRAL = "#b3392f", "#2b6777", "#7a7a7a"


def read_metrics(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(steps, probes) of a run's `metrics.jsonl`."""
    lines = read_json_lines(folder / "metrics.jsonl")
    return [line for line in lines if "loss" in line], [line for line in lines if "probe" in line]


def _axes(title: str, ylabel: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(7.2, 3.8), dpi=150, layout="constrained"
    )  # not pyplot's, which would keep it open
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel(ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    return figure, axes


def behaviour_figure(folder: Path, kept_step: int | None) -> Path | None:
    """Share of forget completions still said and of retain tokens still chosen, at each probe; the
    kept step is marked.
    """
    _, probes = read_metrics(folder)
    if not probes:
        return None
    figure, axes = _axes("What the model says while it unlearns", "share")
    steps = [line["step"] for line in probes]
    for key, label, colour, style in (
        ("train_rate", "still said: forget set", FORGET, "-"),
        ("validation_rate", "still said: held-out passages", FORGET, ":"),
        ("utility", "tokens kept: retain set", KEEP, "-"),
    ):
        if all(key in line["probe"] for line in probes):
            axes.plot(
                steps,
                [line["probe"][key] for line in probes],
                style,
                color=colour,
                label=label,
                marker="o",
                markersize=3.5,
            )
    if kept_step is not None:
        axes.axvline(
            kept_step, color=NEUTRAL, linewidth=1, linestyle="--", label=f"kept: step {kept_step}"
        )
    axes.set_ylim(-0.03, 1.05)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=4)
    path = folder / "figures" / "behaviour.png"
    figure.savefig(path)
    return path


def loss_figure(folder: Path, budget: float | None) -> Path | None:
    """NLL of forget and mismatch completions (left) and the retain KL against its budget (right),
    at each step.
    """
    steps, _ = read_metrics(folder)
    if not steps:
        return None
    figure, axes = _axes("Loss terms", "mean NLL, nats per token")
    x = [line["step"] for line in steps]
    for key, label, colour in (
        ("forget_nll", "forget completions", FORGET),
        ("mismatch_nll", "mismatch completions", NEUTRAL),
    ):
        if all(key in line for line in steps):
            axes.plot(x, [line[key] for line in steps], color=colour, label=label)
    axes.set_ylim(bottom=0)
    handles, labels = axes.get_legend_handles_labels()
    if all("retain_kl" in line for line in steps):
        right = axes.twinx()
        right.spines["top"].set_visible(False)
        right.set_ylabel("retain KL, nats per token", color=KEEP)
        right.plot(x, [line["retain_kl"] for line in steps], color=KEEP, label="retain KL (right)")
        if budget is not None:
            right.axhline(
                budget, color=KEEP, linewidth=1, linestyle="--", label="its budget (right)"
            )
        right.set_ylim(bottom=0)
        more = right.get_legend_handles_labels()
        handles, labels = handles + more[0], labels + more[1]
    figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside lower center", ncols=4)
    path = folder / "figures" / "losses.png"
    figure.savefig(path)
    return path


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
