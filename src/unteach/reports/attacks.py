"""The results of `unteach attack`: tables, notes on each attack, and two sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from unteach.reports.results import MISSING, Results, capitalised, shown
from unteach.reports.tables import Table

MODELS = ("original", "unlearned", "never_knew", "retrained")
MEASURES = {
    "cut_off": ("met the token limit", ".0%"),
    "steps_to_half": ("steps to half", "d"),
    "forget_nll": ("NLL, forget rows", ".2f"),
    "other_nll": ("NLL, other rows", ".2f"),
    "auc_loss": ("AUC, loss", ".2f"),
    "auc_min_k": ("AUC, Min-K%", ".2f"),
    "exposure": ("exposure, bits", ".1f"),
    "kl_to_retrained": ("KL, nats a token", ".2f"),
    "ks_to_retrained": ("KS statistic", ".2f"),
    "ks_pvalue": ("KS p-value", ".2g"),
}
"""Title and format of the measures that `attacks.json` has and `eval.json` has not."""


def attack_title(name: str, found: Mapping[str, Any]) -> str:
    """An attack's title."""
    known = found.get("about", {}).get(name, {})
    return str(known.get("title", name.replace("_", " ")))


def rate_facts(found: Mapping[str, Any]) -> tuple[str, str]:
    """Title and format of the headline rate."""
    rate = found["headline"]
    results = Results({"headline": rate, "models": {"": {"": {rate: {}}}}})
    return results.title(rate), results.form(rate)


def _measure(metric: str, found: Mapping[str, Any]) -> tuple[str, str]:
    """Title and format of a measure."""
    title, form = rate_facts(found)
    if metric == f"mean_{found['headline']}":
        return f"{title}, mean", form
    if metric == found["headline"]:
        return title, form
    if metric.startswith("leak_at_"):
        return f"leak@{metric.removeprefix('leak_at_')}", form
    return MEASURES.get(metric, (metric.replace("_", " "), ".2f"))


def _cell(attack: str, metric: str, found: Mapping[str, Any], role: str, intervals: bool) -> str:
    """A value; steps that did not suffice as `> N`."""
    result = found["attacks"][attack].get(role, {}).get(metric)
    if result and metric == "steps_to_half":
        limit = found.get("settings", {}).get(attack, {}).get("steps", "?")
        return f"> {limit}" if result["value"] is None else str(result["value"])
    return shown(result, _measure(metric, found)[1], with_interval=intervals)


def attack_table(found: Mapping[str, Any], *, intervals: bool = True) -> Table:
    """A row for each attack and measure, a column for each model; the share of answers that met the
    token limit has one where there are any.
    """
    attacks = found["attacks"]
    models = [role for role in MODELS if any(role in results for results in attacks.values())]
    rows = []
    for name, results in attacks.items():
        measures = dict.fromkeys(
            metric
            for role in models
            for metric, value in results.get(role, {}).items()
            if metric != "cut_off"
            or any(part.get(metric, {}).get("value") for part in results.values())
        )
        for place, metric in enumerate(measures):
            known = [results[role][metric] for role in models if metric in results.get(role, {})]
            counts = " / ".join(dict.fromkeys(str(result["n"]) for result in known))
            title = attack_title(name, found) if place == 0 else ""
            cells = (_cell(name, metric, found, role, intervals) for role in models)
            rows.append([title, _measure(metric, found)[0], counts, *cells])
    names = [role.replace("_", " ") for role in models]
    return Table(["attack", "measure", "n", *names], rows)


def attack_notes(found: Mapping[str, Any]) -> list[str]:
    """What each attack in the table does, with its budget, and why others were not made."""
    made = []
    for name, about in found.get("about", {}).items():
        settings = found.get("settings", {}).get(name, {})
        stated = {key.replace("_", " "): value for key, value in settings.items()}
        budget = ", ".join(f"{key} {value}" for key, value in stated.items() if value is not None)
        text = f"{about['title']}: {about['about']}"
        made.append(f"{text} ({budget})" if budget else text)
    left = found.get("left_out", {})
    return made + [f"not made: {attack_title(name, found)} ({why})" for name, why in left.items()]


def robustness_line(found: Mapping[str, Any]) -> str:
    """The robustness figure in a sentence, or why it is missing; empty for a file without one."""
    figure = found.get("robustness")
    if not figure:
        return ""
    rows = f"{figure['forgotten_rows']} forgotten of {figure['attacked_rows']} attacked rows"
    if figure["value"] is not None:
        return (
            f"Robustness: {attack_title(figure['attack'], found)} brings back"
            f" {shown(figure, '.0%')} of the facts beyond what it gets from a model that never knew"
            f" them, the most of all families ({figure['n']} rows measured; {rows})."
        )
    shares = [entry["brought_back"] for entry in figure["families"].values()]
    worst = max(shares, key=lambda share: share["value"], default=None)
    most = f" At most {shown(worst, '.0%')} came back." if worst else ""
    return f"Robustness figure missing: {figure['reason']}.{most} ({capitalised(rows)}.)"


def robustness_table(found: Mapping[str, Any]) -> Table | None:
    """The strongest attack of each family; `None` without one."""
    families = found.get("robustness", {}).get("families", {})
    rows = [
        [
            family.replace("_", " "),
            f"{attack_title(entry['attack'], found)} (of {entry['tried']})",
            str(entry["brought_back"]["n"]),
            *(shown(entry[name], ".0%") for name in ("brought_back", "control", "excess")),
        ]
        for family, entry in families.items()
    ]
    header = ["family", "strongest attack", "n", "brought back", "never knew", "excess"]
    return Table(header, rows) if rows else None


def attack_verdict(found: Mapping[str, Any]) -> str:
    """The strongest attack on answers, and how many steps relearning takes, in one sentence."""
    attacks, rate = found["attacks"], found["headline"]
    title, form = rate_facts(found)
    values = {
        name: results["unlearned"][rate]["value"]
        for name, results in attacks.items()
        if "steps_to_half" not in results.get("unlearned", {})
        and (results.get("unlearned", {}).get(rate) or {}).get("value") is not None
    }
    parts = []
    if values:
        worst = max(values, key=lambda name: (values[name], name == "none"))
        plain = format(values.get("none", 0), form)
        parts.append(f"Unlearned model, {title} without an attack {plain}")
        if worst != "none":
            original = format(attacks[worst]["original"][rate]["value"], form)
            parts.append(
                f"highest under {attack_title(worst, found)}: {format(values[worst], form)}"
                f" (original model under the same attack: {original})"
            )
    for name, results in attacks.items():
        if "steps_to_half" in results.get("unlearned", {}):
            steps = _cell(name, "steps_to_half", found, "unlearned", False)
            control = _cell(name, "steps_to_half", found, "never_knew", False)
            text = f"{attack_title(name, found)}: half is relearned after {steps} steps"
            control_text = f" (a model that never knew: {control})"
            parts.append(text if control == MISSING else text + control_text)
    return "; ".join(parts) + "." if parts else "No attack was made."


def print_attacks(found: Mapping[str, Any], console: Console) -> None:
    """Prints the table and the sentence."""
    attack_table(found, intervals=False).print(console, "Under attack")
    for line in filter(None, (attack_verdict(found), robustness_line(found))):
        console.print(line, highlight=False, markup=False)
