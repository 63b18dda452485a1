"""`report.html`: what a run's folder says, on one page that fetches nothing and opens from disk."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unteach.files.atomic import write_text_atomically
from unteach.reports.attacks import attack_notes, attack_rows, attack_verdict, read_attacks
from unteach.reports.card import RunFolder, fact_groups, read_folder, scored
from unteach.reports.tables import (
    FORGET_SETS,
    SEARCH_HEADER,
    SEARCH_NOTE,
    headline,
    picked,
    scorer_text,
    search_rows,
    verdict,
)

ROW_LIMIT = 200
"""Rows of one prompt set that the page lists; of a larger set, the worst ones."""
MODELS = {"original": "before", "unlearned": "after"}
SETS = {
    "unlearned": "what the model was trained to forget",
    "unseen": "the same kind, never trained on",
    "other_facts": (
        "of the same kind but nobody asked to forget them: single facts, of which none follows from"
        " another"
    ),
    "kept": "to be kept, trained on",
    "kept_unseen": "to be kept, never trained on",
    "retain": "to be kept",
    "normal": "neutral prompts of everyday use",
}
METRICS = {
    "leak_rate": (
        "Leak rate",
        "share of answers closer to the true text (BLEU) than unrelated passages are to each other",
    ),
    "harmful_rate": ("Harmful rate", "share of answers that the judge flags"),
    "hallucination_rate": (
        "Hallucination rate",
        "share of answers nearer to the invented answer than to the right one",
    ),
    "bleu": ("BLEU", "overlap of word sequences with the expected text, 0 to 100"),
    "rouge_l_recall": ("ROUGE-L recall", "share of the expected words that come back in order"),
    "rouge_l_f1": ("ROUGE-L F1", "the same, weighed against the length of the answer"),
    "longest_verbatim_run": (
        "Verbatim run",
        "characters of the longest passage copied word for word",
    ),
    "exact_memorization": (
        "Exact memorization",
        "share of the expected tokens that the model would choose itself",
    ),
    "extraction_strength": (
        "Extraction strength",
        "share of the expected text that comes by itself once the rest is given",
    ),
    "diversity": ("Diversity", "share of different tokens in an answer"),
    "fluency": (
        "Fluency",
        "mean negative log-likelihood of the answer under the fluency model, in nats per token",
    ),
    "not_meaningful_rate": (
        "Not meaningful",
        "share of answers that are mostly one repeated character",
    ),
    "utility_reward": ("Reward", "score of the reward model"),
    "similarity": (
        "Similarity",
        "likeness to the answer of the original model, 1 for the same meaning",
    ),
}


def printable(text: str) -> str:
    """Untrusted text without what no page may hold: control characters, halves of surrogate pairs,
    marks that turn the text's direction.
    """
    kept = re.sub(
        r"[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufdcf\ufdf0-\ufffd\U00010000-\U0010ffff]",
        "\ufffd",
        text,
    )
    return re.sub(r"[\u202a-\u202e\u2066-\u2069]", "\ufffd", kept)


# --- numbers
# ----------------------------------------------------------------------------------------------------------


def title(metric: str) -> str:
    """A metric's name as a person would write it."""
    return METRICS[metric][0] if metric in METRICS else metric.replace("_", " ").capitalize()


def number(metric: str, value: float | None, largest: float | None = None) -> str:
    """A value of a metric; rates in percent, `NM` where it is not meaningful; `largest` decides how
    many digits a whole row gets.
    """
    if value is None or not math.isfinite(value):
        return "NM"
    if metric.endswith("_rate"):
        return f"{value:.0%}"
    size = abs(value if largest is None else largest)
    return f"{value:.{0 if size >= 100 else 1 if size >= 10 else 2}f}".replace("-", "\u2212")


def change(
    metric: str, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
) -> dict[str, str] | None:
    """Arrow, word and tone of a change; not clear where the intervals overlap; none for what
    compares with the original by nature.
    """
    if (
        metric == "similarity"
        or not before
        or not after
        or before["value"] is None
        or after["value"] is None
    ):
        return None
    if number(metric, before["value"]) == number(metric, after["value"]):
        return {"arrow": "=", "word": "same", "tone": "flat"}
    up = after["value"] > before["value"]
    arrow = "\u2191" if up else "\u2193"
    ends = [result[end] for result in (before, after) for end in ("ci_low", "ci_high")]
    if None in ends or (ends[0] <= ends[3] and ends[2] <= ends[1]):
        return {"arrow": arrow, "word": "not clear", "tone": "flat"}
    if after["higher_is_better"] is None:
        return {"arrow": arrow, "word": "changed", "tone": "flat"}
    better = up == after["higher_is_better"]
    return {
        "arrow": arrow,
        "word": "better" if better else "worse",
        "tone": "good" if better else "bad",
    }


def key_metric(name: str, metrics: Mapping[str, Any], rate: str) -> str | None:
    """The metric that says most about a prompt set: on a forget set the headline rate, elsewhere
    what was to be kept.
    """
    wanted = (
        [rate] if name in FORGET_SETS else ["rouge_l_recall", "similarity", "utility_reward", rate]
    )
    return next((metric for metric in [*wanted, *metrics] if metric in metrics), None)


def set_tables(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each prompt set its metrics, for each metric a cell of every model: value, interval, n
    and change.
    """
    models, rate, tables = evaluation["models"], headline(evaluation), []
    first = next(iter(models))
    for name in dict.fromkeys(name for sets in models.values() for name in sets):
        results = {model: sets.get(name, {}) for model, sets in models.items()}
        metrics = dict.fromkeys(metric for found in results.values() for metric in found)
        key, rows = key_metric(name, metrics, rate), []
        for metric in sorted(metrics, key=lambda metric: metric != key):
            found = {model: results[model].get(metric) for model in models}
            values = [
                result["value"]
                for result in found.values()
                if result and result["value"] is not None
            ]
            largest = max(map(abs, values), default=0.0)
            cells = []
            for model, result in found.items():
                cell: dict[str, Any] = {
                    "value": number(metric, result["value"], largest) if result else "\u2013"
                }
                if result and result["value"] is not None and result["ci_low"] is not None:
                    cell["low"], cell["high"] = (
                        number(metric, result[end], largest) for end in ("ci_low", "ci_high")
                    )
                if model != first:
                    cell["change"] = change(metric, found[first], result)
                cells.append(cell)
            known = [result for result in found.values() if result]
            counts = " / ".join(dict.fromkeys(str(result["n"]) for result in known))
            direction = "higher is better" if known[0]["higher_is_better"] else "lower is better"
            rows.append(
                {
                    "metric": metric,
                    "title": title(metric),
                    "direction": direction,
                    "n": counts,
                    "cells": cells,
                }
            )
        tables.append(
            {
                "name": name,
                "title": name.replace("_", " "),
                "note": SETS.get(name, ""),
                "rows": rows,
            }
        )
    return tables


def announcement(evaluation: Mapping[str, Any]) -> str:
    """The result on the forget set in a few words."""
    pair, rate = scored(evaluation)["models"], headline(evaluation)
    before, after = (
        pair[model].get("unlearned", {}).get(rate) for model in ("original", "unlearned")
    )
    if before is None or after is None:
        return "No forget set was scored"
    values = [number(rate, result["value"]) for result in (before, after)]
    if values[0] == values[1]:
        return f"{title(rate)} unchanged at {values[1]}"
    return (
        f"{title(rate)} {'down' if after['value'] < before['value'] else 'up'} from {values[0]} to"
        f" {values[1]}"
    )


def status(run: RunFolder) -> list[dict[str, str]]:
    """What clearly improved, what clearly got worse, whether the budget of the retain KL held, and
    why training ended.
    """
    pair = scored(run.evaluation)["models"]
    found: dict[str, dict[str, list[str]]] = {"good": {}, "bad": {}}
    for name, metrics in pair["original"].items():
        for metric, before in metrics.items():
            moved = change(metric, before, pair["unlearned"][name][metric])
            if moved and moved["tone"] in found:
                found[moved["tone"]].setdefault(title(metric), []).append(name.replace("_", " "))
    lines = []
    for tone, word in (("good", "Improved"), ("bad", "Worse")):
        text = "; ".join(f"{metric} ({', '.join(names)})" for metric, names in found[tone].items())
        lines.append(
            {
                "tone": tone if text else "flat",
                "word": word,
                "text": text or "nothing clearly: all intervals overlap",
            }
        )
    budget, kept = run.run.get("max_retain_kl"), run.run.get("kept_step") or math.inf
    divergences = [
        line["retain_kl"] for line in run.steps if line["step"] <= kept and "retain_kl" in line
    ]
    if budget is not None and divergences:
        recent = divergences[-5:]
        mean = sum(recent) / len(recent)
        held = mean <= budget
        text = (
            f"retain KL {mean:.3f} nats per token (mean of the last {len(recent)} steps kept),"
            f" budget {budget:g};"
        )
        text += f" the highest single step was {max(divergences):.3f}"
        lines.append(
            {
                "tone": "good" if held else "bad",
                "word": "Budget held" if held else "Budget exceeded",
                "text": text,
            }
        )
    if run.run.get("stop_reason"):
        text = (
            f"{run.run['stop_reason']}; the weights are those of step"
            f" {run.run.get('kept_step', '?')} of {run.run.get('steps', '?')}"
        )
        lines.append({"tone": "flat", "word": "Stopped", "text": text})
    return lines


# --- curves
# -----------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 270, 48, 12, 26, 38
Series = tuple[str, str, str]


def curve(
    name: str,
    unit: str,
    lines: Sequence[Mapping[str, Any]],
    series: Sequence[Series],
    *,
    kept: int | None,
    budget: float | None = None,
) -> dict[str, Any] | None:
    """The geometry of one chart, or `None` without a point; `series` holds (field, label, style),
    `lines` dicts with a `step`.
    """
    from matplotlib.ticker import MaxNLocator

    stride = max(1, math.ceil(len(lines) / 1000))
    points = {
        field: [
            (line["step"], line[field])
            for line in [*lines[:-1:stride], *lines[-1:]]
            if math.isfinite(line.get(field, math.nan))
        ]
        for field, _, _ in series
    }
    drawn = [entry for entry in series if points[entry[0]]]
    if not drawn:
        return None
    every = [point for field, _, _ in drawn for point in points[field]]
    low_x, high_x = min(x for x, _ in every), max(x for x, _ in every)
    high_y = max([y for _, y in every] + ([budget] if budget is not None else []))
    x_ticks = [
        t
        for t in MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]).tick_values(
            low_x, max(high_x, low_x + 1)
        )
        if low_x <= t <= high_x
    ]
    y_ticks = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(
        min(0, *(y for _, y in every)), high_y or 1
    )
    low, high = y_ticks[0], y_ticks[-1]

    def across(x: float) -> float:
        return float(round(LEFT + (WIDTH - LEFT - RIGHT) * (x - low_x) / max(high_x - low_x, 1), 1))

    def down(y: float) -> float:
        return float(round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - low) / (high - low), 1))

    told = [
        f"{label}: {points[field][0][1]:.2f} at step {points[field][0][0]},"
        f" {points[field][-1][1]:.2f} at the end"
        for field, label, _ in drawn
    ]
    return {
        "title": name,
        "unit": unit,
        "told": "; ".join(told) + ".",
        "series": [
            {
                "label": label,
                "style": style,
                "dots": len(points[field]) <= 12,
                "points": [(across(x), down(y)) for x, y in points[field]],
            }
            for field, label, style in drawn
        ],
        "x_ticks": [{"at": across(t), "label": f"{t:g}"} for t in x_ticks],
        "y_ticks": [{"at": down(t), "label": f"{t:g}"} for t in y_ticks],
        "kept": (
            None
            if kept is None or not low_x <= kept <= high_x
            else {"at": across(kept), "label": f"kept: step {kept}"}
        ),
        "budget": None if budget is None else down(budget),
        "budget_label": "its budget",
    }


def curves(run: RunFolder) -> list[dict[str, Any]]:
    """Forgetting against utility at each probe, the retain KL with its budget, the loss terms, and
    the retain term's weight.
    """
    kept, budget = run.run.get("kept_step"), run.run.get("max_retain_kl")
    probes = [{"step": line["step"], **line["probe"]} for line in run.probes]
    said: list[Series] = [
        ("train_rate", "still said, forget set", "forget"),
        ("validation_rate", "still said, held out", "held"),
        ("utility", "tokens kept, retain set", "keep"),
    ]
    if probes and not any("train_rate" in line for line in probes):
        said[:1] = [("forget_rate", "still said, forget set", "forget")]
    terms: list[Series] = [
        ("forget_nll", "forget completions", "forget"),
        ("mismatch_nll", "mismatch completions", "held"),
        ("retain_nll", "retain completions", "keep"),
    ]
    drawn = [
        curve("Forgetting against utility", "share", probes, said, kept=kept),
        curve(
            "Drift on what is kept",
            "retain KL, nats per token",
            run.steps,
            [("retain_kl", "retain KL", "keep")],
            kept=kept,
            budget=budget,
        ),
        curve("Loss terms", "mean NLL, nats per token", run.steps, terms, kept=kept),
    ]
    if len({line.get("retain_weight") for line in run.steps}) > 1:
        drawn.append(
            curve(
                "Weight of the retain term",
                "factor",
                run.steps,
                [("retain_weight", "set to keep the budget", "keep")],
                kept=kept,
            )
        )
    return [chart for chart in drawn if chart]


def attack_part(folder: Path) -> dict[str, Any] | None:
    """What the page shows of `attacks.json`: verdict, table, notes and relearning curves; `None`
    where no attack was made.
    """
    found = read_attacks(folder)
    if found is None:
        return None
    header, rows = attack_rows(found)
    drawn = []
    for name, roles in found.get("curves", {}).items():
        steps: dict[int, dict[str, Any]] = {}
        for role, points in roles.items():
            for point in points:
                steps.setdefault(point["step"], {"step": point["step"]})[role] = point["value"]
        lines: list[Series] = [
            ("unlearned", "unlearned model", "forget"),
            ("never_knew", "a model that never knew", "held"),
        ]
        chart = curve(
            f"Relearning from {name.removeprefix('relearning_')} rows",
            f"{title(found['headline']).lower()} on other forget rows",
            [steps[step] for step in sorted(steps)],
            lines,
            kept=None,
            budget=found["settings"][name]["goal"],
        )
        if chart:
            drawn.append(chart | {"budget_label": "half of the original's"})
    return {
        "verdict": attack_verdict(found),
        "header": header,
        "rows": rows,
        "notes": attack_notes(found),
        "curves": drawn,
    }


def search_part(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the page shows of the trials of `method=auto`; `None` for a run whose method was named."""
    found = record.get("search")
    return (
        {
            "why": picked(found),
            "header": SEARCH_HEADER,
            "rows": search_rows(found),
            "note": SEARCH_NOTE,
        }
        if found
        else None
    )


# --- rows and the page
# ------------------------------------------------------------------------------------------------


def row_lists(run: RunFolder, limit: int = ROW_LIMIT) -> list[dict[str, Any]]:
    """For each prompt set its rows, worst answer of the last model first: short key, metrics of all
    models, texts if not hidden.
    """
    models = list(dict.fromkeys(record["model"] for record in run.records))
    groups: dict[str, dict[tuple[str, int], dict[str, Any]]] = {}
    seen: dict[tuple[str, str, str], int] = {}
    for record in run.records:
        place = (record["model"], record["set"], record["key"])
        seen[place] = seen.get(place, 0) + 1  # the same row twice in a set has the same key
        groups.setdefault(record["set"], {}).setdefault((record["key"], seen[place]), {})[
            record["model"]
        ] = record
    lists = []
    for name, rows in groups.items():
        metrics = list(
            dict.fromkeys(
                m
                for row in rows.values()
                for record in row.values()
                for m in record.get("metrics", {})
            )
        )
        key = key_metric(name, dict.fromkeys(metrics), headline(run.evaluation))
        metrics.sort(key=lambda metric: metric != key)
        results = [sets.get(name, {}).get(key) for sets in run.evaluation["models"].values()]
        sign = 1 if any(result and result["higher_is_better"] for result in results) else -1

        def badness(row: Mapping[str, Any], key: str | None = key, sign: int = sign) -> float:
            value = row.get(models[-1], {}).get("metrics", {}).get(key)
            return -math.inf if value is None else sign * float(value)

        worst = sorted(rows.items(), key=lambda item: badness(item[1]))[:limit]
        listed = [
            {
                "key": row_key[:12],
                "values": [
                    _row_values(metric, [row.get(model) for model in models]) for metric in metrics
                ],
                "texts": _texts([row[model] for model in models if "output" in row.get(model, {})]),
            }
            for (row_key, _), row in worst
        ]
        lists.append(
            {
                "name": name,
                "title": name.replace("_", " "),
                "total": len(rows),
                "rows": listed,
                "metrics": [title(m) for m in metrics],
            }
        )
    return lists


def _row_values(metric: str, records: Sequence[Mapping[str, Any] | None]) -> str:
    values = [record["metrics"].get(metric, math.inf) if record else math.inf for record in records]
    largest = max(
        (abs(value) for value in values if value is not None and math.isfinite(value)), default=0.0
    )
    told = []
    for value in values:
        if value == math.inf:
            told.append("\u2013")
        elif metric.endswith("_rate") and value in (0, 1):
            told.append("yes" if value else "no")
        else:
            told.append(number(metric, value, largest))
    return " \u2192 ".join(told)


def _texts(records: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    if not records:
        return []
    first = records[0]
    texts = [("prompt", first.get("prompt", "")), ("expected", first.get("expected", ""))]
    texts += [
        (MODELS.get(record["model"], record["model"]), record["output"] or "(nothing)")
        for record in records
    ]
    return [{"title": name, "text": printable(text.strip())} for name, text in texts if text]


def write_page(folder: Path) -> Path:
    """Writes `report.html` from `eval.json` and whatever else the folder holds.

    Args:
        folder (`Path`): a run's folder.

    Raises:
        UserError: if `eval.json` is missing or a file cannot be read.
    """
    import jinja2
    from markupsafe import Markup

    run = read_folder(folder)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("unteach.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (Path(__file__).parent / "templates" / "page.js").read_text(encoding="utf-8").strip()
    used = {
        metric
        for sets in run.evaluation["models"].values()
        for metrics in sets.values()
        for metric in metrics
    }
    text = environment.get_template("page.html.j2").render(
        run=run,
        announcement=announcement(run.evaluation),
        verdict=verdict(scored(run.evaluation))
        .replace("->", "\u2192")
        .replace("kept_unseen", "kept unseen"),
        status=status(run),
        models=[MODELS.get(name, name.replace("_", " ")) for name in run.evaluation["models"]],
        tables=set_tables(run.evaluation),
        explained=[
            (title(metric), text) for metric, (_, text) in METRICS.items() if metric in used
        ],
        scorers=[
            (title(metric), scorer_text(fact))
            for metric, fact in run.evaluation.get("scorers", {}).items()
        ],
        curves=curves(run),
        attacks=attack_part(folder),
        search=search_part(run.run),
        size={
            "width": WIDTH,
            "height": HEIGHT,
            "left": LEFT,
            "right": RIGHT,
            "top": TOP,
            "bottom": BOTTOM,
        },
        lists=row_lists(run),
        facts=fact_groups(run),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    text = re.sub(
        r"[ \t]+$", "", text, flags=re.MULTILINE
    )  # an answer may end its lines in spaces, which validators object to
    path = folder / "report.html"
    write_text_atomically(path, text.encode("utf-8", "replace").decode("utf-8"))
    return path
