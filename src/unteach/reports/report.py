"""`report.md`, `report.html` and the model card of a run's folder."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from unteach.errors import UserError
from unteach.files.atomic import read_cached, write_text_atomically
from unteach.reports.attacks import (
    attack_notes,
    attack_table,
    attack_verdict,
    robustness_line,
    robustness_table,
)
from unteach.reports.figures import leak_chart, relearning_chart, run_charts
from unteach.reports.results import Results, capitalised, interval, number, printable
from unteach.reports.run_files import RunFiles, fact_groups, read_files
from unteach.reports.shapes import check_shape
from unteach.reports.tables import (
    SEARCH_NOTE,
    Table,
    markdown_text,
    search_choice,
    search_table,
    summary_table,
)
from unteach.reports.tiles import tiles

ROW_LIMIT = 200
"""Rows of one prompt set that the page lists; of a larger set, the worst ones."""
BUDGET_STEPS = 5
"""Steps over which the retain KL is averaged before it is compared with its budget."""
TEMPLATES = Path(__file__).parent / "templates"


def encodable(text: str) -> str:
    """The text with a question mark for each lone surrogate, which UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode("utf-8")


def typeset(text: str) -> str:
    """Text with arrows and minus signs instead of `->` and hyphens before digits."""
    return re.sub(r"(?<![\w.-])-(?=\d)", "\u2212", text.replace("->", "\u2192"))


def rendered(template: str, **values: Any) -> str:
    """A template of this package; HTML escapes its values."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (typeset, markdown_text, capitalised):
        environment.filters[function.__name__] = function
    return environment.get_template(template).render(**values)


# --- the page's content


def set_tables(results: Results) -> list[dict[str, Any]]:
    """For each prompt set its metrics, the key metric first; for each metric a cell of each model:
    value, interval and change.
    """
    tables = []
    first, *_ = results.models.values()
    for name in dict.fromkeys(name for sets in results.models.values() for name in sets):
        found = [sets.get(name, {}) for sets in results.models.values()]
        key, rows = results.key_metric(name), []
        metrics = dict.fromkeys(metric for metrics in found for metric in metrics)
        for metric in sorted(metrics, key=lambda metric: metric != key):
            before, form, cells = first.get(name, {}).get(metric), results.form(metric), []
            for result in (metrics.get(metric) for metrics in found):
                changed = None if result is before else results.change(metric, before, result)
                value = number(result["value"], form) if result else "\u2013"
                cells.append(
                    {"value": value, "interval": interval(result, form), "change": changed}
                )
            known = [metrics[metric] for metrics in found if metric in metrics]
            counts = " / ".join(dict.fromkeys(str(result["n"]) for result in known))
            directions = {True: "higher is better", False: "lower is better", None: ""}
            row = {"title": results.title(metric), "n": counts, "cells": cells}
            rows.append({**row, "direction": directions[known[0]["higher_is_better"]]})
        note = results.sets.get(name, {}).get("description", "")
        tables.append({"title": results.set_title(name), "note": note, "rows": rows})
    return tables


def status(files: RunFiles) -> list[tuple[str, str, str]]:
    """(tone, word, text): what improved and what got worse, whether the budget of the retain KL was
    kept, why training stopped, and notes on the rows.
    """
    results, run = files.results, files.run
    found: dict[str, dict[str, list[str]]] = {"good": {}, "bad": {}}
    for (name, metric), both in results.compared().items():
        change = results.change(metric, *both)
        if change and change.tone in found:
            titles = found[change.tone].setdefault(results.title(metric), [])
            titles.append(results.set_title(name))
    lines = []
    for tone, word in (("good", "Improved"), ("bad", "Worse")):
        text = "; ".join(f"{title} ({', '.join(names)})" for title, names in found[tone].items())
        lines.append((tone if text else "flat", word, text or "nothing: all intervals overlap"))
    budget, kept = run.get("max_retain_kl"), run.get("kept_step") or math.inf
    steps = [line for line in files.steps if "retain_kl" in line and line["step"] <= kept]
    if budget is not None and steps:
        recent = [line["retain_kl"] for line in steps[-BUDGET_STEPS:]]
        mean = sum(recent) / len(recent)
        tone, word = ("good", "Budget held") if mean <= budget else ("bad", "Budget exceeded")
        text = (
            f"retain KL {mean:.3f} nats per token (mean of the last {len(recent)} steps kept),"
            f" budget {budget:g}; highest step {max(line['retain_kl'] for line in steps):.3f}"
        )
        lines.append((tone, word, text))
    if reason := run.get("stop_reason"):
        place = f"step {run.get('kept_step', '?')} of {run.get('steps', '?')}"
        lines.append(("flat", "Stopped", f"{reason}; the weights are those of {place}"))
    return [*lines, *(("flat", "Note", note) for note in run.get("notes", []))]


def row_lists(files: RunFiles, limit: int = ROW_LIMIT) -> list[dict[str, Any]]:
    """For each prompt set its rows, worst answer of the last model first: short key, metrics of all
    models, texts if they are not hidden.
    """
    results, models = files.results, list(dict.fromkeys(r["model"] for r in files.records))
    groups: dict[str, dict[tuple[str, int], dict[str, Any]]] = {}
    places: dict[tuple[str, ...], Any] = {}
    for record in files.records:
        # a row that stands in a set twice has the same key twice
        place = places.setdefault((record["model"], record["set"], record["key"]), count())
        rows = groups.setdefault(record["set"], {})
        rows.setdefault((record["key"], next(place)), {})[record["model"]] = record
    lists = []
    for name, rows in groups.items():
        records = [record for row in rows.values() for record in row.values()]
        metrics = dict.fromkeys(metric for r in records for metric in r.get("metrics", {}))
        key = results.key_metric(name)
        scored = [sets.get(name, {}).get(key) for sets in results.models.values()]
        sign = 1 if any(result and result["higher_is_better"] for result in scored) else -1

        def badness(row: Mapping[str, Any], key: str = key, sign: int = sign) -> float:
            value = row.get(models[-1], {}).get("metrics", {}).get(key)
            return -math.inf if value is None else sign * float(value)

        ordered = [*(m for m in metrics if m == key), *(m for m in metrics if m != key)]
        worst = sorted(rows.items(), key=lambda item: badness(item[1]))[:limit]
        listed = [
            {
                "key": row_key[:12],
                "values": [_row_values(results, metric, row, models) for metric in ordered],
                "texts": _texts([row[model] for model in models if "output" in row.get(model, {})]),
            }
            for (row_key, _), row in worst
        ]
        titles = [results.title(metric) for metric in ordered]
        entry = {"title": results.set_title(name), "total": len(rows)}
        lists.append({**entry, "rows": listed, "metrics": titles})
    return lists


def _row_values(
    results: Results, metric: str, row: Mapping[str, Any], models: Sequence[str]
) -> str:
    texts = []
    for model in models:
        metrics = row.get(model, {}).get("metrics", {})
        value = metrics.get(metric)
        if metric not in metrics:
            texts.append("\u2013")
        elif results.is_rate(metric) and value in (0, 1):
            texts.append("yes" if value else "no")
        else:
            texts.append(number(value, results.form(metric)))
    return " -> ".join(texts)


def _texts(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    if not records:
        return []
    texts = [(name, records[0].get(name, "")) for name in ("prompt", "expected")]
    texts += [(record["model"], record["output"] or "(empty)") for record in records]
    return [(name.replace("_", " "), printable(text.strip())) for name, text in texts if text]


def page_text(files: RunFiles, content: Mapping[str, Any]) -> str:
    """`report.html`: one page that fetches nothing and opens from disk."""
    results = files.results
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8").strip()
    text = rendered(
        "page.html.j2",
        **content,
        status=status(files),
        models=[name.replace("_", " ") for name in results.models],
        tiles=tiles(files),
        tables=set_tables(results),
        lists=row_lists(files),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    # an answer may end its lines in spaces, which validators of HTML object to
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return encodable(text)


# --- Markdown


def examples(records: Sequence[Mapping[str, Any]], per_set: int = 2) -> list[list[str]]:
    """(prompt set, prompt, original answer, unlearned answer) of the first rows of each set whose
    texts are not hidden.
    """
    after = {(r["set"], r["key"]): r for r in records if r["model"] == "unlearned"}
    chosen: dict[str, list[list[str]]] = {}
    for record in records:
        rows = chosen.setdefault(record["set"], [])
        texts = [record.get("prompt"), record.get("output")]
        texts.append(after.get((record["set"], record["key"]), {}).get("output"))
        if record["model"] == "original" and None not in texts and len(rows) < per_set:
            rows.append([record["set"], *(" ".join(str(text).split()) for text in texts)])
    return [row for rows in chosen.values() for row in rows]


def probe_table(folder: Path, records: Sequence[Mapping[str, Any]], rows: int = 2) -> Table | None:
    """Answers to a few forget prompts at each probe, after Table 6 of Yao et al. 2024; `None` if
    texts are hidden or no answers were stored.
    """
    prompts = {
        record["key"]: record["prompt"]
        for record in records
        if record["set"] == "unlearned" and "prompt" in record
    }
    answers = {}
    for path in (folder / "work").glob("*-*.json"):
        if match := re.fullmatch(r"(?:probe-outputs|said-at)-(\d+)", path.stem):
            for content in read_cached(path):
                answers[int(match[1])] = check_shape(path, content, "answers")
    probed = [key for key in prompts if all(key in found for found in answers.values())][:rows]
    if not answers or not probed:
        return None
    steps = sorted(answers)
    cells = [[prompts[key], *(answers[step][key] for step in steps)] for key in probed]
    header = ["prompt", *(f"step {step}" if step else "original" for step in steps)]
    return Table(header, [[text if text.strip() else "(empty)" for text in row] for row in cells])


def card_text(folder: Path, files: RunFiles) -> str:
    """`README.md`: metadata for the hub and Markdown, without the text of any prompt or answer."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    results, run = files.results, files.run
    adapter = (folder / "adapter").is_dir()
    scenario = str(results.content.get("scenario", "unlearning"))
    scores = [
        EvalResult(
            task_type="text-generation",
            dataset_type=scenario,
            dataset_name=f"{scenario}: {results.set_title(name)}",
            metric_type=metric,
            metric_value=round(both[1]["value"], 4),
            metric_name=results.title(metric),
        )
        for (name, metric), both in results.compared().items()
    ]
    taught = run.get("original_model_hash") != run.get("base_model_hash")
    base: dict[str, Any] = {}
    if files.hub_id and not (taught and adapter):  # an adapter of a taught model fits no hub model
        relation = "adapter" if adapter else "finetune"
        base = {"base_model": files.hub_id, "base_model_relation": relation}
    data = ModelCardData(
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["unlearning", "unteach"],
        metrics=list(dict.fromkeys(score.metric_type for score in scores)) or None,
        model_name=files.name,
        eval_results=scores or None,
        **base,
    )
    body = rendered(
        "card.md.j2",
        name=files.name,
        model=run.get("model") or files.config.get("model"),
        scenario=scenario,
        run=run,
        taught=taught,
        adapter=adapter,
        results=results,
        robustness=robustness_line(files.attacks),
        summary=summary_table(results),
        facts=fact_groups(files),
    )
    return encodable(str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}")))


# --- files


def report_content(folder: Path, files: RunFiles) -> dict[str, Any]:
    """What the page and `report.md` both show; draws the figures."""
    search, attacks = files.run.get("search"), files.attacks
    found = {"choice": search_choice(search), "table": search_table(search)} if search else None
    attacked: dict[str, Any] | None = None
    if attacks:
        verdict, notes = attack_verdict(attacks), attack_notes(attacks)
        attacked = {"verdict": verdict, "table": attack_table(attacks), "notes": notes}
        attacked |= {"robustness": robustness_line(attacks), "families": robustness_table(attacks)}
        charts = leak_chart(folder, attacks), relearning_chart(folder, attacks)
        attacked["charts"] = [chart for chart in charts if chart]
    return {
        "name": files.name,
        "run": files.run,
        "results": files.results,
        "charts": run_charts(folder, files),
        "search": found,
        "search_note": SEARCH_NOTE,
        "attacks": attacked,
        "facts": fact_groups(files),
    }


def write_page(folder: Path) -> Path:
    """Draws the figures and writes `report.html` from the files of a folder."""
    files = read_files(folder)
    write_text_atomically(folder / "report.html", page_text(files, report_content(folder, files)))
    return folder / "report.html"


def write_card(folder: Path) -> Path:
    """Writes `README.md`, also beside the weights, so that a push of their folder carries it."""
    text = card_text(folder, read_files(folder))
    for target in (folder, folder / "model", folder / "adapter"):
        if target.is_dir():
            write_text_atomically(target / "README.md", text)
    return folder / "README.md"


def write_report(folder: Path) -> Path:
    """Draws the figures and writes `report.md`, `report.html` and the card; returns the first.

    Raises:
        UserError: if `eval.json` or `run.json` is missing, or a file cannot be read.
    """
    if not (folder / "run.json").exists():
        raise UserError(f"{folder} has no run.json: it is not the folder of a finished run")
    files = read_files(folder)
    content = report_content(folder, files)
    text = rendered(
        "report.md.j2",
        **content,
        summary=summary_table(files.results),
        examples=examples(files.records),
        probes=probe_table(folder, files.records),
    )
    write_text_atomically(folder / "report.md", encodable(text))
    write_text_atomically(folder / "report.html", page_text(files, content))
    write_card(folder)
    return folder / "report.md"
