"""The figures of a run and of a comparison. Each is drawn once, as PNG and as SVG for the page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from unteach.reports.attacks import attack_title, rate_facts
from unteach.reports.comparison import Cell, share_of_rlhf
from unteach.reports.run_files import RunFiles

FORGET, HELD, KEEP, INK, SOFT = "#a5342a", "#7a5b10", "#17606b", "#1c2024", "#59626c"
RULE = "#dfe2e5"
CSS = {FORGET: "forget", HELD: "held", KEEP: "keep", INK: "ink", SOFT: "soft", RULE: "rule"}
"""The page's variable for each colour, so that its SVG follows the page from light to dark."""
DASHES = {FORGET: "-", HELD: ":", KEEP: "--", SOFT: "-.", INK: (0, (6, 1, 1, 1, 1, 1))}
LIMIT: Any = {"color": INK, "linewidth": 1, "linestyle": (0, (2, 2))}
STYLE: Any = matplotlib.rc_params_from_file(
    Path(__file__).parent / "templates" / "figures.mplstyle", use_default_template=False
)
CHARTS: dict[str, Any] = {
    "behaviour": (
        "Forget rate, and what is kept",
        "share",
        ("train_rate", "forget rate", FORGET),
        ("validation_rate", "forget rate (held out)", HELD),
        ("utility", "utility: tokens to keep reproduced", KEEP),
        ("neighbours", "neighbours: tokens reproduced", INK),
        ("readable", "readable answers to forget prompts", SOFT),
    ),
    "retain_kl": (
        "Divergence from the original model",
        "retain KL, nats per token",
        ("retain_kl", "retain KL", KEEP),
    ),
    "losses": (
        "Loss terms",
        "mean NLL, nats per token",
        ("forget_nll", "forget completions", FORGET),
        ("mismatch_nll", "mismatch completions", HELD),
        ("retain_nll", "retain completions", KEEP),
    ),
    "retain_weight": (
        "Weight of the retain term",
        "factor",
        ("retain_weight", "weight of the retain term", KEEP),
    ),
}
"""Title, unit, and (field, label, colour) of each curve over the steps of a run."""
MAX_POINTS = 1000
PANELS = 4
"""Most panels side by side."""
MARKED_POINTS = 12
"""A curve with at most so many points has a marker at each."""


@dataclass(frozen=True)
class Curve:
    """A line of a chart: label, colour (which decides its dashes), and (step, value) points."""

    label: str
    colour: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """A figure in `figures/`: file name without extension, title, description, SVG for the page."""

    name: str
    title: str
    description: str
    svg: Markup


def curve(lines: Sequence[Mapping[str, Any]], field: str, label: str, colour: str) -> Curve:
    """The finite values of a field of lines with a `step`, thinned out to `MAX_POINTS`."""
    stride = max(1, math.ceil(len(lines) / MAX_POINTS))
    thinned = [*lines[:-1:stride], *lines[-1:]]
    pairs = [(line["step"], line.get(field)) for line in thinned]
    return Curve(label, colour, [(x, y) for x, y in pairs if y is not None and math.isfinite(y)])


def described(curves: Sequence[Curve]) -> str:
    """The first and the last value of each curve."""
    texts = []
    for one in curves:
        ends = (f"{y:.2f} at step {x:g}" for x, y in (*one.points[:1], *one.points[-1:]))
        texts += [f"{one.label}: {', '.join(ends)}"] if one.points else []
    return "; ".join(texts) + "."


def draw_curves(axes: Any, curves: Sequence[Curve]) -> None:
    """Draws curves over optimiser steps."""
    for one in curves:
        style: Any = {"color": one.colour, "linestyle": DASHES[one.colour], "label": one.label}
        style |= {"marker": "o"} if len(one.points) <= MARKED_POINTS else {}
        if one.points:
            axes.plot(*zip(*one.points, strict=True), **style, clip_on=False, zorder=3)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("optimiser step")


@matplotlib.rc_context(STYLE)
def line_chart(
    folder: Path, name: str, curves: Sequence[Curve], kept: int | None, budget: float | None
) -> Chart | None:
    """One of `CHARTS`, or `None` without a point; `kept` and `budget` are marked."""
    if not any(one.points for one in curves):
        return None
    title, unit, *_ = CHARTS[name]
    figure = Figure(figsize=(4.8, 3.0))  # not pyplot's, which would keep it open
    axes = figure.subplots()
    draw_curves(axes, curves)
    axes.set_title(title, pad=18)
    axes.set_ylabel(unit)
    steps, values = zip(*(point for one in curves for point in one.points), strict=True)
    axes.set_ylim(bottom=min(0.0, *values))
    description = described(curves)
    if budget is not None:
        axes.axhline(budget, label="budget", **LIMIT)
        description += f" Budget: {budget:g}."
    if kept is not None and min(steps) <= kept <= max(steps):
        axes.axvline(kept, color=SOFT, linewidth=1, linestyle=(0, (4, 2)))
        place: Any = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        side = "right" if kept > sum(axes.get_xlim()) / 2 else "left"
        place |= {"fontsize": 8, "color": SOFT, "ha": side}
        axes.annotate(f"kept: step {kept}", (kept, 1), (0, 3), **place)
        description += f" The weights kept are those of step {kept}."
    return saved(folder, name, f"{title}, {unit}", description, figure)


def saved(folder: Path, name: str, title: str, description: str, figure: Figure) -> Chart:
    """Adds the legend, writes `figures/NAME.png` and renders the same figure as SVG."""
    labelled: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        labelled |= dict(zip(labels, handles, strict=True))
    place: Any = {"loc": "outside lower center", "ncols": max(2, len(figure.axes))}
    figure.legend(list(labelled.values()), list(labelled), **place)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "figures" / f"{name}.png", facecolor="white")
    return Chart(name, title, description, svg_of(figure, name, title, description))


def svg_of(figure: Figure, name: str, title: str, description: str) -> Markup:
    """The figure as an inline SVG element with title and description: ids begin with `name`, the
    page's fonts and colours apply, and nothing refers to anything outside.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    head, _, body = buffer.getvalue().partition('<g id="figure_1">')
    body = re.sub(r"<!--.*?-->|<clipPath.*?</clipPath>", "", f"<g>{body}", flags=re.DOTALL)
    body = re.sub(r' clip-path="[^"]*"|(?<=<g) id="[^"]*"', "", body)
    body = re.sub(r'xlink:href="#|id="', lambda m: f"{m[0].removeprefix('xlink:')}{name}-", body)
    body = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", body)
    for colour, variable in CSS.items():
        body = body.replace(colour, f"var(--{variable})")
    box = re.search(r'viewBox="[^"]+"', head)
    text = (
        f'<svg class="chart" {box[0] if box else ""} role="img"'
        f' aria-labelledby="{name}-title {name}-description">\n<title id="{name}-title">'
        f'{escape(title)}</title>\n<desc id="{name}-description">{escape(description)}</desc>\n'
    )
    return Markup(re.sub(r"\n\s*", "\n", text + body))


def run_charts(folder: Path, files: RunFiles) -> list[Chart]:
    """The charts of a run; the retain term's weight only where it changes."""
    kept, budget = files.run.get("kept_step"), files.run.get("max_retain_kl")
    probes: list[dict[str, Any]] = [
        # the rate of training rows alone, where the probe has it
        {"train_rate": line["probe"].get("forget_rate"), "step": line["step"], **line["probe"]}
        for line in files.probes
    ]
    found = []
    for name, (_, _, *fields) in CHARTS.items():
        lines = probes if name == "behaviour" else files.steps
        curves = [curve(lines, *field) for field in fields]
        values = {y for one in curves for _, y in one.points}
        if name != "retain_weight" or len(values) > 1:
            limit = budget if name == "retain_kl" else None
            found.append(line_chart(folder, name, curves, kept, limit))
    return [chart for chart in found if chart]


@matplotlib.rc_context(STYLE)
def relearning_chart(folder: Path, found: Mapping[str, Any]) -> Chart | None:
    """The rate on the evaluated forget rows at each step of each relearning, beside a model that
    never knew and half of the original's.
    """
    names = [name for name, curves in found.get("curves", {}).items() if curves]
    if not names:
        return None
    columns = min(len(names), PANELS)
    lines = math.ceil(len(names) / columns)
    figure = Figure(figsize=(2.6 * columns + 1.2, 2.7 * lines + 0.5))
    texts, grid = [], figure.subplots(lines, columns, sharey=True, squeeze=False)
    for axes in grid.flat[len(names) :]:
        axes.remove()
    for axes, name in zip(grid.flat, names, strict=False):
        settings, curves = found["settings"][name], []
        roles = {"unlearned": ("unlearned model", FORGET), "never_knew": ("never knew", SOFT)}
        for role, (label, colour) in roles.items():
            points = found["curves"][name].get(role, [])
            curves.append(curve(points, "value", label, colour))
            bands = [(p["step"], p["ci_low"], p["ci_high"]) for p in points]
            if bands and None not in bands[-1]:
                axes.fill_between(*zip(*bands, strict=True), color=colour, alpha=0.12, linewidth=0)
        draw_curves(axes, curves)
        axes.axhline(settings["goal"], label="half of the original model's", **LIMIT)
        rows = f"{attack_title(name, found)} ({settings['rows']} rows)"
        axes.set_title(rows, fontsize=9)
        axes.set_xlim(-0.5, settings["steps"] + 0.5)
        axes.set_ylim(-0.03, 1.05)
        texts.append(f"{rows}: {described(curves)}")
    for axes in grid[:, 0]:
        axes.set_ylabel(f"{rate_facts(found)[0]}, other rows")
    return saved(folder, "relearning", "Relearning", " ".join(texts), figure)


@matplotlib.rc_context(STYLE)
def leak_chart(folder: Path, found: Mapping[str, Any]) -> Chart | None:
    """Leak@k of each model over the number of samples, a panel for each way of sampling."""
    names = [name for name, curves in found.get("leak_at_k", {}).items() if curves]
    if not names:
        return None
    figure = Figure(figsize=(3.2 * len(names) + 1.2, 3.2))
    texts, places = [], figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    colours = {"original": KEEP, "unlearned": FORGET, "never_knew": SOFT, "retrained": HELD}
    for axes, name in zip(places, names, strict=True):
        for role, points in found["leak_at_k"][name].items():
            steps = [{"step": point["k"], "value": point["value"]} for point in points]
            one = curve(steps, "value", role.replace("_", " "), colours.get(role, INK))
            draw_curves(axes, [one])
            texts.append(f"{attack_title(name, found)}, {described([one])}".replace("step", "k ="))
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
        axes.set_xlabel("samples k")
        axes.set_ylim(-0.03, 1.05)
        axes.set_title(attack_title(name, found), fontsize=9)
    places[0].set_ylabel("leak@k")
    return saved(folder, "leak_at_k", "Leak@k", " ".join(texts), figure)


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
        digits = ".0f" if share is None or share >= 1 else ".2g"
        label = f"{cell.seconds:,.0f} s" + ("" if share is None else f", {share:{digits}}%")
        name = f"{cell.method} ({cell.model})" if several else cell.method
        found.append((name, cell.seconds, label, bool(cell.run.get("needs_positives"))))
    return sorted(found, key=lambda bar: bar[1])


@matplotlib.rc_context({**STYLE, "axes.grid.axis": "x"})
def cost_figure(folder: Path, cells: Sequence[Cell]) -> Path | None:
    """Draws `cost.png` into `folder`: run time on a log scale with its share of the full RLHF
    pipeline (Figure 1 of Yao et al. 2024). `None` where fewer than two runs have a time.
    """
    bars = cost_bars(cells)
    if len(bars) < 2:
        return None
    names, seconds, labels, needs = zip(*bars, strict=True)
    figure = Figure(figsize=(7.2, 1.2 + 0.42 * len(bars)))
    axes = figure.subplots()
    colours = {False: KEEP, True: FORGET}
    drawn = axes.barh(names, seconds, color=[colours[need] for need in needs], height=0.62)
    axes.bar_label(drawn, labels, padding=4, fontsize=8)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(min(seconds) / 2, max(seconds) * 4)
    axes.set_xlabel("seconds of training (log scale)")
    share = ", and its share of full RLHF" if "%" in labels[0] else ""
    axes.set_title(f"Run time by method{share}")
    if len(set(needs)) > 1:
        texts = {False: "from undesired answers alone", True: "needs desired answers"}
        patches = [Patch(color=colours[need], label=text) for need, text in texts.items()]
        figure.legend(handles=patches, loc="outside lower center", ncols=2)
    figure.savefig(folder / "cost.png")
    return folder / "cost.png"
