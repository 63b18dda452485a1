"""The results of `unteach attack` as a table, as notes on each attack, and in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from unteach.reports.results import MISSING, Results, shown
from unteach.reports.tables import Table

MODELS = ("original", "unlearned", "never_knew", "retrained")
RELEARNING = ("relearning_forget", "relearning_related", "relearning_unrelated")
TITLES = {
    "none": "no attack",
    "few_shot": "few-shot",
    "quantization_8bit": "8-bit weights",
    "quantization_4bit": "4-bit weights",
    "relearning_forget": "relearn: forget rows",
    "relearning_related": "relearn: related rows",
    "relearning_unrelated": "relearn: unrelated",
}
ATTACKS = {
    "none": "the forget prompts themselves, greedy answers",
    "paraphrase": "undesired answer to at least one rewording; mean: over rewordings",
    "prefix": "a quarter of the expected completion is given, the continuation is scored",
    "role_play": "the model is instructed to play a role that gives the answer",
    "few_shot": "other forget rows with their completions precede the prompt",
    "sampling": "undesired answer in at least one of several samples; mean: over samples",
    "quantization_8bit": "weights rounded to 8 bits by torchao",
    "quantization_4bit": "weights rounded to 4 bits by torchao",
    "relearning_forget": "fine-tuned on a few forget rows, evaluated on the others",
    "relearning_related": "fine-tuned on held-out rows of the same kind, evaluated on forget rows",
    "relearning_unrelated": "fine-tuned on retain rows, evaluated on forget rows",
    "traces": "likelihood of the forget rows, and its AUC against other rows (0.5 is chance)",
    "exposure": "bits by which the true secret ranks before random ones of its shape, by"
    " likelihood: 6.6 for the first of 100, 1.4 by chance",
    "distance": "to a model trained without the forget set, on the forget rows",
}
"""What each attack does, in the order of the table."""
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


def attack_title(name: str) -> str:
    """An attack's title."""
    return TITLES.get(name, name.replace("_", " "))


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
    return MEASURES.get(metric, (metric.replace("_", " "), ".2f"))


def _cell(attack: str, metric: str, found: Mapping[str, Any], role: str, intervals: bool) -> str:
    """A value; steps that did not suffice as `> N`."""
    result = found["attacks"][attack].get(role, {}).get(metric)
    if result and metric == "steps_to_half":
        limit = found.get("settings", {}).get(attack, {}).get("steps", "?")
        return f"> {limit}" if result["value"] is None else str(result["value"])
    return shown(result, _measure(metric, found)[1], with_interval=intervals)


def attack_names(found: Mapping[str, Any]) -> list[str]:
    """The attacks that were made, in the order of the table."""
    made = found.get("attacks", {})
    return [*(name for name in ATTACKS if name in made), *(n for n in made if n not in ATTACKS)]


def attack_table(found: Mapping[str, Any], *, intervals: bool = True) -> Table:
    """A row for each attack and measure, a column for each model; the share of answers that met the
    token limit has one where there are any.
    """
    attacks = found["attacks"]
    models = [role for role in MODELS if any(role in results for results in attacks.values())]
    rows = []
    for name in attack_names(found):
        results = attacks[name]
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
            title = attack_title(name) if place == 0 else ""
            cells = (_cell(name, metric, found, role, intervals) for role in models)
            rows.append([title, _measure(metric, found)[0], counts, *cells])
    names = [role.replace("_", " ") for role in models]
    return Table(["attack", "measure", "n", *names], rows)


def attack_notes(found: Mapping[str, Any]) -> list[str]:
    """What each attack in the table does, and why others were not made."""
    made = [f"{attack_title(n)}: {text}" for n, text in ATTACKS.items() if n in found["attacks"]]
    left = found.get("left_out", {})
    return made + [f"not made: {attack_title(name)} ({why})" for name, why in left.items()]


def attack_verdict(found: Mapping[str, Any]) -> str:
    """The strongest attack on answers, and how many steps relearning takes, in one sentence."""
    attacks, rate = found["attacks"], found["headline"]
    title, form = rate_facts(found)
    values = {
        name: results["unlearned"][rate]["value"]
        for name, results in attacks.items()
        if name not in RELEARNING
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
                f"highest under {attack_title(worst)}: {format(values[worst], form)} (original"
                f" model under the same attack: {original})"
            )
    for name in RELEARNING:
        if "unlearned" in attacks.get(name, {}):
            steps = _cell(name, "steps_to_half", found, "unlearned", False)
            control = _cell(name, "steps_to_half", found, "never_knew", False)
            text = f"{attack_title(name)}: half is relearned after {steps} steps"
            control_text = f" (a model that never knew: {control})"
            parts.append(text if control == MISSING else text + control_text)
    return "; ".join(parts) + "." if parts else "No attack was made."


def print_attacks(found: Mapping[str, Any], console: Console) -> None:
    """Prints the table and the sentence."""
    attack_table(found, intervals=False).print(console, "Under attack")
    console.print(attack_verdict(found), highlight=False, markup=False)
