"""`attacks.json` as a table for the terminal, for Markdown and for the page, and its relearning
curves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unteach.reports.figures import FORGET, NEUTRAL
from unteach.reports.tables import RATES, markdown_table

MODELS = {
    "original": "original",
    "unlearned": "unlearned",
    "never_knew": "never knew",
    "retrained": "retrained",
}
NAMES = {
    "none": "no attack",
    "paraphrase": "paraphrase",
    "prefix": "prefix",
    "role_play": "role play",
    "few_shot": "few-shot",
    "sampling": "sampling",
    "quantization_8bit": "8-bit weights",
    "quantization_4bit": "4-bit weights",
    "relearning_forget": "relearn: forget rows",
    "relearning_related": "relearn: related rows",
    "relearning_unrelated": "relearn: unrelated",
    "traces": "traces",
    "distance": "distance",
}
SENTENCES = {
    "none": "the forget prompts as they are, answered greedily",
    "paraphrase": "said under at least one other wording; mean: over the wordings",
    "prefix": "the first quarter of the true completion is given; scored is what the model adds",
    "role_play": "the model is asked to play a part that says it",
    "few_shot": "other forget rows with their true completions stand in front",
    "sampling": "said in at least one of several drawn answers; mean: over the draws",
    "quantization_8bit": "weights rounded by torchao to 8 bits",
    "quantization_4bit": "weights rounded by torchao to 4 bits",
    "relearning_forget": "fine-tuned on a few forget rows, measured on the others",
    "relearning_related": (
        "fine-tuned on rows of the same kind that were not trained on, measured on forget rows"
    ),
    "relearning_unrelated": "fine-tuned on rows that are to be kept, measured on forget rows",
    "traces": (
        "likelihood of the forget rows, and how well it tells them from others (AUC, 0.5: not at"
        " all)"
    ),
    "distance": "from a model trained without the forget set, on the forget rows",
}
METRICS = {
    "steps_to_half": "steps to half",
    "forget_nll": "NLL, forget rows",
    "other_nll": "NLL, other rows",
    "auc_loss": "AUC, loss",
    "auc_min_k": "AUC, Min-K%",
    "kl_to_retrained": "KL, nats a token",
    "ks_to_retrained": "KS statistic",
    "ks_pvalue": "KS p-value",
}


def read_attacks(folder: Path) -> dict[str, Any] | None:
    """`attacks.json` of a run's folder, or `None`."""
    path = folder / "attacks.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def metric_title(metric: str) -> str:
    """A metric's name in the table."""
    for start, form in (("mean_", "{}, mean"), ("", "{}")):
        if metric.startswith(start) and metric.removeprefix(start) in RATES:
            return form.format(RATES[metric.removeprefix(start)])
    return METRICS.get(metric, metric.replace("_", " "))


def cell(
    attack: str,
    metric: str,
    result: Mapping[str, Any] | None,
    settings: Mapping[str, Any],
    *,
    interval: bool,
) -> str:
    """A value as the table shows it; steps that did not suffice as `> N`."""
    if result is None:
        return "-"
    value = result["value"]
    if metric == "steps_to_half":
        return f"> {settings.get(attack, {}).get('steps', '?')}" if value is None else str(value)
    if value is None:
        return "NM"
    form = (
        "{:.0%}"
        if metric.endswith("_rate")
        else "{:.2g}"
        if metric.endswith("pvalue")
        else "{:.2f}"
    )
    text = form.format(value)
    if interval and result["ci_low"] is not None:
        text += f" [{form.format(result['ci_low'])}, {form.format(result['ci_high'])}]"
    return text


def attack_rows(
    found: Mapping[str, Any], *, interval: bool = True
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table: one row for each attack and metric, one column for each model."""
    attacks, settings = found["attacks"], found.get("settings", {})
    models = [role for role in MODELS if any(role in results for results in attacks.values())]
    rows = []
    for name in [
        *(name for name in NAMES if name in attacks),
        *(name for name in attacks if name not in NAMES),
    ]:
        metrics = dict.fromkeys(metric for role in models for metric in attacks[name].get(role, {}))
        for place, metric in enumerate(metrics):
            results = [attacks[name].get(role, {}).get(metric) for role in models]
            counts = dict.fromkeys(str(result["n"]) for result in results if result)
            title = NAMES.get(name, name.replace("_", " ")) if place == 0 else ""
            rows.append(
                [
                    title,
                    metric_title(metric),
                    " / ".join(counts),
                    *(cell(name, metric, r, settings, interval=interval) for r in results),
                ]
            )
    return ["attack", "measure", "n", *(MODELS[role] for role in models)], rows


def attack_notes(found: Mapping[str, Any]) -> list[str]:
    """What each attack in the table does, and why others are not there."""
    notes = [f"{NAMES[name]}: {SENTENCES[name]}" for name in NAMES if name in found["attacks"]]
    return notes + [
        f"not made: {NAMES.get(name, name)} ({why})"
        for name, why in found.get("left_out", {}).items()
    ]


def attack_verdict(found: Mapping[str, Any]) -> str:
    """The result in one sentence: the attack by answers that brings most back, and how relearning
    went.
    """
    rate, attacks = found["headline"], found["attacks"]
    values = {
        name: results["unlearned"][rate]["value"]
        for name, results in attacks.items()
        if not name.startswith("relearning")
        and (results.get("unlearned", {}).get(rate) or {}).get("value") is not None
    }
    parts = []
    if values:
        worst = max(values, key=lambda name: (values[name], name == "none"))
        parts.append(
            f"Unlearned model, {RATES[rate]} without an attack {values.get('none', 0):.0%}"
        )
        if worst != "none":
            before = attacks[worst]["original"][rate]["value"]
            parts.append(
                f"most under {NAMES.get(worst, worst)}: {values[worst]:.0%} (the original under the"
                f" same: {before:.0%})"
            )
    for name in ("relearning_forget", "relearning_related", "relearning_unrelated"):
        if name in attacks and "unlearned" in attacks[name]:
            steps = {
                role: cell(
                    name,
                    "steps_to_half",
                    attacks[name][role]["steps_to_half"],
                    found.get("settings", {}),
                    interval=False,
                )
                for role in ("unlearned", "never_knew")
                if role in attacks[name]
            }
            control = (
                f" (a model that never knew: {steps['never_knew']})"
                if "never_knew" in steps
                else ""
            )
            parts.append(f"{NAMES[name]}: half is back after {steps['unlearned']} steps{control}")
    return "; ".join(parts) + "." if parts else "No attack was made."


def attack_section(folder: Path) -> list[str]:
    """The section of `report.md`; empty where no attack was made."""
    found = read_attacks(folder)
    if found is None:
        return []
    figure = relearning_figure(folder, found)
    return [
        "## Under attack\n",
        attack_verdict(found) + "\n",
        markdown_table(*attack_rows(found)),
        "\n".join(f"- {note}" for note in attack_notes(found)) + "\n",
        *([f"![relearning](figures/{figure.name})\n"] if figure else []),
    ]


def print_attacks(found: Mapping[str, Any], console: Any) -> None:
    """The table of `unteach attack`, by rich."""
    from rich import box
    from rich.table import Table

    header, rows = attack_rows(found, interval=False)
    table = Table(title="under attack", box=box.SIMPLE_HEAD)
    for column in header:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(attack_verdict(found), highlight=False)


def relearning_figure(folder: Path, found: Mapping[str, Any]) -> Path | None:
    """The rate on the measured forget rows at each step of each relearning, beside a model that
    never knew and half of the original's.
    """
    from matplotlib.figure import Figure

    curves = {name: points for name, points in found.get("curves", {}).items() if points}
    if not curves:
        return None
    names = [name for name in NAMES if name in curves]
    figure = Figure(figsize=(2.6 * len(names) + 1.2, 3.2), dpi=150, layout="constrained")
    for place, axes in enumerate(figure.subplots(1, len(names), sharey=True, squeeze=False)[0]):
        name = names[place]
        settings = found["settings"][name]
        for role, colour, style in (("unlearned", FORGET, "-"), ("never_knew", NEUTRAL, ":")):
            points = curves[name].get(role, [])
            label = MODELS[role] if place == 0 else None
            axes.plot(
                [point["step"] for point in points],
                [point["value"] for point in points],
                style,
                color=colour,
                label=label if points else None,
                marker="o",
                markersize=3.5,
            )
            if points and points[-1]["ci_low"] is not None:
                low, high = ([point[end] for point in points] for end in ("ci_low", "ci_high"))
                axes.fill_between(
                    [point["step"] for point in points],
                    low,
                    high,
                    color=colour,
                    alpha=0.1,
                    linewidth=0,
                )
        half = "half of the original's" if place == 0 else None
        axes.axhline(settings["goal"], color=NEUTRAL, linewidth=1, linestyle="--", label=half)
        axes.set_title(
            f"{NAMES[name].removeprefix('relearn: ').removesuffix(' rows')} rows"
            f" ({settings['rows']})",
            loc="left",
            fontsize=10,
        )
        axes.set_xlim(-0.5, settings["steps"] + 0.5)
        axes.set_ylim(-0.03, 1.05)
        axes.set_xlabel("optimiser step")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
        if place == 0:
            axes.set_ylabel(f"{RATES[found['headline']]}, other forget rows")
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=3)
    (folder / "figures").mkdir(exist_ok=True)
    path = folder / "figures" / "relearning.png"
    figure.savefig(path)
    return path
