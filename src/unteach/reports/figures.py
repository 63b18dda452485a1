"""The figures of a run and of a comparison. Each is drawn once, as PNG and as SVG for the page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from unteach.reports.attacks import attack_title, rate_facts, relearning_curves
from unteach.reports.comparison import Cell, share_of_rlhf
from unteach.reports.run_files import RunFiles

FORGET, HELD, KEEP, INK, SOFT = "#a5342a", "#7a5b10", "#17606b", "#1c2024", "#59626c"
GRID = "#dfe2e5"
CSS = {FORGET: "forget", HELD: "held", KEEP: "keep", INK: "ink", SOFT: "soft", GRID: "rule"}
"""The page's name of each colour: its SVG follows the page from light to dark."""
DASHES = {FORGET: "-", HELD: ":", KEEP: "--", SOFT: "-."}
MAX_POINTS = 1000
MARKED_POINTS = 12
"""A curve with at most so many points has a marker at each."""
Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """A line of a chart; its colour decides its dashes.

    Args:
        low, high: 95% intervals of the points, or empty.
    """

    label: str
    colour: str
    points: Sequence[Point]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Chart:
    """A figure in `figures/`: file name without extension, title, description, SVG for the page."""

    name: str
    title: str
    description: str
    svg: Markup


def curve(label: str, colour: str, lines: Sequence[Mapping[str, Any]], field: str) -> Curve:
    """The finite values of a field of lines with a `step`, thinned out to `MAX_POINTS`."""
    stride = max(1, math.ceil(len(lines) / MAX_POINTS))
    thinned = [*lines[:-1:stride], *lines[-1:]]
    pairs = [(line["step"], line.get(field)) for line in thinned]
    return Curve(label, colour, [(x, y) for x, y in pairs if y is not None and math.isfinite(y)])


def described(curves: Sequence[Curve]) -> str:
    """The first and the last value of each curve."""
    texts = [
        f"{one.label}: {one.points[0][1]:.2f} at step {one.points[0][0]:g}, {one.points[-1][1]:.2f}"
        f" at step {one.points[-1][0]:g}"
        for one in curves
        if one.points
    ]
    return "; ".join(texts) + "."


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Any, list[Any]]:
    """A figure and its axes; not pyplot's, which would keep it open."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, sharey=True, squeeze=False)[0]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.spines[["left", "bottom"]].set_color(GRID)
        one.tick_params(colors=SOFT, labelsize=8)
        one.tick_params(which="both", length=0)
        one.xaxis.label.set(color=SOFT, fontsize=9)
        one.yaxis.label.set(color=SOFT, fontsize=9)
        one.set_axisbelow(True)
    return figure, list(axes)


def draw_curves(axes: Any, curves: Sequence[Curve]) -> None:
    """Draws curves over optimiser steps."""
    from matplotlib.ticker import MaxNLocator

    for one in curves:
        if not one.points:
            continue
        steps, values = zip(*one.points, strict=True)
        marker = {"marker": "o", "markersize": 4} if len(steps) <= MARKED_POINTS else {}
        dashes = DASHES[one.colour]
        axes.plot(
            steps,
            values,
            dashes,
            color=one.colour,
            label=one.label,
            clip_on=False,
            zorder=3,
            **marker,
        )
        if one.low:
            axes.fill_between(steps, one.low, one.high, color=one.colour, alpha=0.12, linewidth=0)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("optimiser step")


def line_chart(
    folder: Path,
    name: str,
    title: str,
    unit: str,
    curves: Sequence[Curve],
    *,
    kept: int | None = None,
    budget: float | None = None,
) -> Chart | None:
    """One chart over optimiser steps, or `None` without a point; `kept` and `budget` are marked."""
    if not any(one.points for one in curves):
        return None
    figure, (axes,) = new_figure(4.8, 3.0)
    draw_curves(axes, curves)
    axes.set_title(title, loc="left", fontsize=10.5, color=INK, pad=18)
    axes.set_ylabel(unit)
    axes.margins(y=0.06)
    axes.set_ylim(bottom=min(0.0, *(y for one in curves for _, y in one.points)))
    description = described(curves)
    if budget is not None:
        axes.axhline(budget, color=INK, linewidth=1, linestyle=(0, (2, 2)), label="budget")
        description += f" Budget: {budget:g}."
    steps = [x for one in curves for x, _ in one.points]
    if kept is not None and min(steps) <= kept <= max(steps):
        axes.axvline(kept, color=SOFT, linewidth=1, linestyle=(0, (4, 2)))
        left = kept > sum(axes.get_xlim()) / 2
        place = {"xytext": (3 if left else -3, 3), "ha": "right" if left else "left"}
        axes.annotate(
            f"kept: step {kept}",
            (kept, 1),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            fontsize=8,
            color=SOFT,
            **place,
        )
        description += f" The weights kept are those of step {kept}."
    return saved(folder, name, f"{title}, {unit}", description, figure)


def saved(
    folder: Path, name: str, title: str, description: str, figure: Any, *, columns: int = 2
) -> Chart:
    """Adds the legend, writes `figures/NAME.png` and renders the same figure as SVG."""
    labelled: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        labelled |= dict(zip(labels, handles, strict=True))
    legend = {"frameon": False, "fontsize": 8, "labelcolor": SOFT, "ncols": columns}
    figure.legend(labelled.values(), labelled.keys(), loc="outside lower center", **legend)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "figures" / f"{name}.png", dpi=200, facecolor="white")
    return Chart(name, title, description, svg_of(figure, name, title, description))


def svg_of(figure: Any, name: str, title: str, description: str) -> Markup:
    """The figure as an inline SVG element with title and description: ids begin with `name`, the
    page's fonts and colours apply, and nothing refers to anything outside.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    found = re.search(r'viewBox="([^"]+)"', text)
    assert found
    body = text[text.index('<g id="figure_1">') : text.rindex("</svg>")]
    body = re.sub(r"<!--.*?-->|<clipPath.*?</clipPath>", "", body, flags=re.DOTALL)
    body = re.sub(r' clip-path="[^"]*"|(?<=<g) id="[^"]*"', "", body)
    body = re.sub(r'xlink:href="#|id="', lambda m: f"{m[0].removeprefix('xlink:')}{name}-", body)
    body = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", body)
    for colour, variable in CSS.items():
        body = body.replace(colour, f"var(--{variable})")
    head = (
        f'<svg class="chart" viewBox="{found[1]}" role="img"'
        f' aria-labelledby="{name}-title {name}-description">\n<title id="{name}-title">'
        f'{escape(title)}</title>\n<desc id="{name}-description">{escape(description)}</desc>\n'
    )
    return Markup(re.sub(r"\n\s*", "\n", head + body) + "</svg>")


def run_charts(folder: Path, files: RunFiles) -> list[Chart]:
    """Forget rate and utility at each probe, the loss terms, the retain KL with its budget, and the
    retain term's weight where it changes.
    """
    kept, budget = files.run.get("kept_step"), files.run.get("max_retain_kl")
    probes = [{"step": line["step"], **line["probe"]} for line in files.probes]
    rate = "train_rate" if any("train_rate" in line for line in probes) else "forget_rate"

    def curves(lines: Sequence[Mapping[str, Any]], *fields: tuple[str, str, str]) -> list[Curve]:
        return [curve(label, colour, lines, field) for field, label, colour in fields]

    behaviour = curves(
        probes,
        (rate, "forget rate", FORGET),
        ("validation_rate", "forget rate (held out)", HELD),
        ("utility", "utility: retain tokens reproduced", KEEP),
    )
    terms = curves(
        files.steps,
        ("forget_nll", "forget completions", FORGET),
        ("mismatch_nll", "mismatch completions", HELD),
        ("retain_nll", "retain completions", KEEP),
    )
    divergence = curves(files.steps, ("retain_kl", "retain KL", KEEP))
    weight = curves(files.steps, ("retain_weight", "weight of the retain term", KEEP))
    nats = "nats per token"
    charts = [
        line_chart(folder, "behaviour", "Forget rate and utility", "share", behaviour, kept=kept),
        line_chart(
            folder,
            "retain_kl",
            "Divergence from the original model",
            f"retain KL, {nats}",
            divergence,
            kept=kept,
            budget=budget,
        ),
        line_chart(folder, "losses", "Loss terms", f"mean NLL, {nats}", terms, kept=kept),
    ]
    if len({line.get("retain_weight") for line in files.steps}) > 1:
        title = "Weight of the retain term"
        charts.append(line_chart(folder, "retain_weight", title, "factor", weight, kept=kept))
    return [chart for chart in charts if chart]


def relearning_chart(folder: Path, found: Mapping[str, Any]) -> Chart | None:
    """The rate on the evaluated forget rows at each step of each relearning, beside a model that
    never knew and half of the original's.
    """
    names = relearning_curves(found)
    if not names:
        return None
    title, _ = rate_facts(found)
    figure, axes = new_figure(2.6 * len(names) + 1.2, 3.2, len(names))
    texts = []
    for one, name in zip(axes, names, strict=True):
        settings, curves = found["settings"][name], []
        roles = (("unlearned", "unlearned model", FORGET), ("never_knew", "never knew", SOFT))
        for role, label, colour in roles:
            points = found["curves"][name].get(role, [])
            values = curve(label, colour, points, "value").points
            ends = ([p[e] for p in points if p[e] is not None] for e in ("ci_low", "ci_high"))
            low, high = (end if len(end) == len(values) else [] for end in ends)
            curves.append(Curve(label, colour, values, low, high))
        draw_curves(one, curves)
        half = "half of the original model's"
        one.axhline(settings["goal"], color=INK, linewidth=1, linestyle=(0, (2, 2)), label=half)
        rows = attack_title(name).removeprefix("relearn: ").removesuffix(" rows")
        one.set_title(f"Relearning from {rows} rows ({settings['rows']})", fontsize=9, color=INK)
        one.set_xlim(-0.5, settings["steps"] + 0.5)
        one.set_ylim(-0.03, 1.05)
        texts.append(f"From {rows} rows: {described(curves)}")
    axes[0].set_ylabel(f"{title}, other forget rows")
    return saved(folder, "relearning", "Relearning", " ".join(texts), figure, columns=3)


def cost_bars(cells: Sequence[Cell]) -> list[tuple[str, float, str, bool]]:
    """(name, seconds, label, whether the method needs desired answers) of each run whose time is
    known, the longest last.
    """
    several = len({cell.model for cell in cells}) > 1
    found = []
    for cell in cells:
        if not cell.seconds:
            continue
        share = share_of_rlhf(cell, cells)
        label = f"{cell.seconds:,.0f} s"
        if share is not None:
            label += f", {share:.2g}%" if share < 1 else f", {share:.0f}%"
        name = f"{cell.method} ({cell.model})" if several else cell.method
        found.append((name, cell.seconds, label, bool(cell.run.get("needs_positives"))))
    return sorted(found, key=lambda bar: bar[1])


def cost_figure(folder: Path, cells: Sequence[Cell]) -> Path | None:
    """Draws `cost.png` into `folder`: run time on a log scale with its share of the full RLHF
    pipeline (Figure 1 of Yao et al. 2024). `None` where fewer than two runs have a time.
    """
    bars = cost_bars(cells)
    if len(bars) < 2:
        return None
    from matplotlib.patches import Patch
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure, (axes,) = new_figure(7.2, 1.2 + 0.42 * len(bars))
    colours = {False: KEEP, True: FORGET}
    names, seconds, labels, needs = zip(*bars, strict=True)
    drawn = axes.barh(names, seconds, color=[colours[need] for need in needs], height=0.62)
    axes.bar_label(drawn, labels, padding=4, fontsize=8)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(min(seconds) / 2, max(seconds) * 4)
    axes.set_xlabel("seconds of training (log scale)")
    share = ", and its share of full RLHF" if "%" in labels[0] else ""
    axes.set_title(f"Run time by method{share}", loc="left", fontsize=11, color=INK)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    if len(set(needs)) > 1:
        texts = {False: "from undesired answers alone", True: "needs desired answers"}
        patches = [Patch(color=colours[need], label=text) for need, text in texts.items()]
        figure.legend(
            handles=patches, loc="outside lower center", ncols=2, frameon=False, fontsize=8
        )
    path = folder / "cost.png"
    figure.savefig(path, dpi=150)
    return path
