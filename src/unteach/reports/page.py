"""The HTML pages: `report.html`, and the record of one deletion request."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from unteach.files.atomic import write_text_atomically
from unteach.reports.attacks import attack_verdict, robustness_line
from unteach.reports.results import Results, capitalised, interval, number, printable
from unteach.reports.run_files import RunFiles, last_name, read_files
from unteach.reports.tables import markdown_text

ROW_LIMIT = 200
"""Rows of one prompt set that the page lists; of a larger set, the worst ones."""
BUDGET_STEPS = 5
"""Steps over which the retain KL is averaged before it is compared with its budget."""
TEMPLATES = Path(__file__).parent / "templates"


# --- text for the templates


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


# --- the tiles at the head of the page


TILE_TITLES = {
    "forget": "Forgotten?",
    "kept": "Kept: neighbours and retain rows",
    "normal": "Everyday answers",
}
ROLES = tuple(TILE_TITLES)
EXAMPLES, LONGEST = 3, 180
"""Answers of a tile; characters of each text."""


def tiles(files: RunFiles) -> list[dict[str, Any]]:
    """For each role of prompt sets a tile with the key metric of each set, and one for each metric
    that is compared on all roles; none without results.

    Examples are the first rows whose texts are not hidden, of the sets in turn; of a metric on all
    roles those rows of which the unlearned model's answer has the value 0.
    """
    results = files.results
    found = []
    for role, title in TILE_TITLES.items():
        names = results.sets_of(role)
        lines = [line for name in names if (line := _line(results, name, results.key_metric(name)))]
        pairs = _in_turn([list(answer_pairs(files.records, name)) for name in names])
        found.append({"title": title, "lines": lines, "examples": _examples(pairs)})
    for metric, facts in results.metrics.items():
        if not set(ROLES) <= set(facts["compare_on"]):
            continue
        lines = [line for name in results.sets if (line := _line(results, name, metric))]
        pairs = [pair for name in results.sets for pair in answer_pairs(files.records, name)]
        broken = [pair for pair in pairs if pair[1].get("metrics", {}).get(metric) == 0]
        title = f"{capitalised(results.title(metric))}?"
        found.insert(-1, {"title": title, "lines": lines, "examples": _examples(broken)})
    return [tile for tile in found if tile["lines"]]


def _line(results: Results, name: str, metric: str) -> dict[str, str] | None:
    """A prompt set's metric before and after."""
    before, after = (sets.get(name, {}).get(metric) for sets in results.pair)
    if after is None:
        return None
    alone = bool(results.metrics[metric]["against_original"])
    change = results.change(metric, before, after)
    return {
        "set": results.set_title(name),
        "before": "" if alone or before is None else results.value(metric, before),
        "after": results.value(metric, after),
        "metric": f"{results.title(metric, short=True)}, n = {after['n']}",
        "tone": change.tone if change else "flat",
    }


Record = Mapping[str, Any]


def answer_pairs(records: Sequence[Record], name: str) -> Iterator[tuple[Record, Record]]:
    """The records of the original and of the unlearned model of each row of a set whose texts are
    not hidden.
    """
    after = {r["key"]: r for r in records if r["model"] == "unlearned" and r["set"] == name}
    for record in records:
        if record["model"] == "original" and record["set"] == name:
            other = after.get(record["key"], {})
            if "prompt" in record and "output" in record and "output" in other:
                yield record, other


def _in_turn(groups: Sequence[Sequence[Any]]) -> list[Any]:
    """The first of each group, then the second of each."""
    longest = max(map(len, groups), default=0)
    return [group[place] for place in range(longest) for group in groups if place < len(group)]


def _examples(pairs: Sequence[tuple[Record, Record]]) -> list[dict[str, str]]:
    return [
        {
            "prompt": _short(before["prompt"]),
            "before": _short(before["output"]) or "(empty)",
            "after": _short(after["output"]) or "(empty)",
        }
        for before, after in pairs[:EXAMPLES]
    ]


def _short(text: str) -> str:
    plain = " ".join(printable(text).split())
    return plain if len(plain) <= LONGEST else f"{plain[: LONGEST - 1].rstrip()}\u2026"


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


# --- the record of a deletion request


NOT_KNOWN = "not recorded"
KINDS = {
    "adapter": "an adapter, which can be removed again",
    "full": "all weights",
}


def write_audit(
    folder: Path,
    entry: Mapping[str, Any],
    *,
    newest: float,
    state: str,
    lines: int,
    last_hash: str,
    now: str,
) -> Path:
    """Writes `audit.html` for a request into its folder: what was forgotten, from which model, how
    it was verified, and the place in the ledger; who asked is left to be filled in. It holds no
    text of a row and no local path.

    Args:
        folder (`Path`): of the ledger.
        entry: the request's line.
        newest: the request's forget rate, 0 to 1, as measured last.
        state: whether its patch is in the model.
        lines, last_hash: of the ledger, whose chain has been verified.
        now: time of writing.
    """
    run = folder / str(entry["run"])
    files = read_files(run)
    record, results, data = files.run, files.results, entry["data"]
    versions = record.get("versions", {})
    measured = [
        (results.set_title(name), results.title(metric), str(after[name][metric]["n"]), change)
        for after in results.pair[1:]
        for name in results.sets
        if (metric := results.key_metric(name))
        and metric in after.get(name, {})
        and (change := results.before_after(name, metric, with_interval=True))
    ]
    earlier = [f"request {number}: {rate:.0%}" for number, rate in entry["earlier"].items()]
    attacks = files.attacks
    groups = {
        "What had to be forgotten": [
            ("rows", str(data["rows"])),
            ("hash of the rows as given", str(data["hash"])),
            ("hash with their completions", str(data["completed_hash"])),
        ],
        "From which model, and how": [
            ("model before the first request", last_name(str(entry["base"]))),
            ("SHA-256 of the weights before", str(entry["model_in"])),
            ("SHA-256 of the weights after", str(entry["model_out"])),
            ("changed", KINDS.get(str(entry["kind"]), str(entry["kind"]))),
            ("method", str(entry["method"])),
            ("rounds of training", f"{entry['rounds']}; steps of the last: {record.get('steps')}"),
            ("seed", str(record.get("seed", NOT_KNOWN))),
            ("versions", ", ".join(f"{name} {text}" for name, text in versions.items())),
        ],
        "In the ledger": [
            ("completed", str(entry["time"])),
            ("state", state),
            ("SHA-256 of the line before", str(entry["previous"]) or "none: it is the first"),
            ("SHA-256 of the last line", last_hash),
            ("lines, each verified", str(lines)),
        ],
    }
    page = rendered(
        "audit.html.j2",
        entry=entry,
        groups=groups,
        rates=[f"{rate:.0%}" for rate in (entry["before"], entry["after"], newest)],
        metric=results.title(str(entry["metric"])),
        results=results,
        measured=measured,
        earlier=earlier,
        attacks=[attack_verdict(attacks), robustness_line(attacks)] if attacks else [],
        now=now,
    )
    path = folder / f"request-{entry['id']:03d}" / "audit.html"
    write_text_atomically(path, encodable(page))
    return path
