"""What a run's folder says: `report.md`, and with it the figures, the page and the model card."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unteach.errors import UserError
from unteach.files.atomic import write_text_atomically
from unteach.files.json_lines import read_json_lines
from unteach.reports.attacks import attack_section
from unteach.reports.card import write_card
from unteach.reports.figures import behaviour_figure, loss_figure
from unteach.reports.page import write_page
from unteach.reports.tables import (
    SEARCH_HEADER,
    SEARCH_NOTE,
    comparison_rows,
    markdown_table,
    picked,
    scorer_text,
    search_rows,
    verdict,
)


def _read(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not path.exists():
        raise UserError(f"{folder} has no {name}: it is no finished run's folder")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _quoted(text: str) -> str:
    return "> " + " ".join(text.split()) + "\n"


def examples(folder: Path, per_set: int = 2) -> str:
    """The first rows of each set whose texts may be shown: prompt, and both models' answers."""
    lines = read_json_lines(folder / "generations.jsonl")
    after = {(line["set"], line["key"]): line for line in lines if line["model"] == "unlearned"}
    shown: dict[str, int] = {}
    parts = []
    for line in lines:
        count = shown.get(line["set"], 0)
        if line["model"] != "original" or "output" not in line or count >= per_set:
            continue
        shown[line["set"]] = count + 1
        parts.append(
            f"**{line['set']}**:"
            f" {' '.join(line['prompt'].split())}\n\nbefore:\n\n{_quoted(line['output'])}\n"
        )
        parts.append(f"after:\n\n{_quoted(after[line['set'], line['key']]['output'])}\n")
    return "\n".join(parts)


def checkpoint_table(folder: Path, keys: Sequence[str] = (), rows: int = 2) -> str:
    """What the model said to a few forget prompts at each probe; empty if texts of the run may not
    be shown or none were kept.

    Args:
        folder (`Path`): a run's folder.
        keys: keys of the rows to show; default: the first `rows` of the set `unlearned` that were
            probed.
        rows (`int`)
    """
    lines = read_json_lines(folder / "generations.jsonl")
    prompts = {
        line["key"]: " ".join(line["prompt"].split())
        for line in lines
        if line["set"] == "unlearned" and "prompt" in line
    }
    said = {}
    for path in (folder / "work").glob("said-at-*.json"):
        match = re.fullmatch(r"said-at-(\d+)", path.stem)
        if match:
            said[int(match.group(1))] = json.loads(path.read_text(encoding="utf-8"))
    if not said:
        return ""
    probed = [key for key in prompts if all(key in answers for answers in said.values())]
    chosen = [key for key in keys if key in probed] or probed[:rows]
    if not chosen:
        return ""
    header = ["prompt", *("before" if step == 0 else f"step {step}" for step in sorted(said))]
    table = [
        [_cell_text(prompts[key]), *(_cell_text(said[step][key]) for step in sorted(said))]
        for key in chosen
    ]
    return markdown_table(header, table)


def _cell_text(text: str) -> str:
    """Text that fits a cell of a Markdown table; an empty answer says so."""
    return " ".join(text.split()).replace("|", "\\|") or "(nothing)"


def _training_facts(run: Mapping[str, Any]) -> list[list[str]]:
    """What is said of the training: steps and stop of unlearning, or the price of each stage of a
    baseline.
    """
    if "steps" not in run:
        return [
            ["needs", f"{run['needs']}, {run['forget_rows']} rows"],
            *(
                [
                    f"stage {cost['stage']}",
                    (
                        f"{cost['seconds']:.0f} s; tokens: {cost['data_tokens']} of data,"
                        f" {cost['generated_tokens']} generated, {cost['training_tokens']}"
                        " trained on"
                    ),
                ]
                for cost in run["costs"]
            ),
        ]
    return [
        ["steps (weights kept from step)", f"{run['steps']} ({run['kept_step']})"],
        ["why it stopped", run["stop_reason"]],
        ["forget rows, retain rows", f"{run['forget_rows']}, {run['retain_rows']}"],
        ["passages that the model recited itself", str(run.get("recited_passages", "not asked"))],
    ]


def write_report(folder: Path) -> Path:
    """Draws the figures and writes `report.md`, `report.html` and the card from what the run left.

    Returns:
        the path of `report.md`.

    Raises:
        UserError: if the folder lacks one of them.
    """
    evaluation, run = _read(folder, "eval.json"), _read(folder, "run.json")
    (folder / "figures").mkdir(exist_ok=True)
    behaviour = behaviour_figure(folder, run.get("kept_step"))
    losses = loss_figure(folder, run.get("max_retain_kl"))
    header, rows = comparison_rows(evaluation)
    facts = [
        ["model", run["model"]],
        ["method", run["method"]],
        *_training_facts(run),
        ["leak threshold (BLEU)", f"{run['leak_threshold_bleu']:.1f}"],
        [
            "seconds in all; tokens a second in training",
            f"{run['seconds']:.0f}; {run['tokens_per_second']}",
        ],
        ["peak memory", f"{run['peak_memory_bytes'] / 2**30:.1f} GiB"],
        ["seed", str(run["seed"])],
        [
            "hash of the model before, after",
            f"{run['original_model_hash'][:12]}, {run['unlearned_model_hash'][:12]}",
        ],
    ]
    parts = [
        f"# Unlearning report: {run['scenario']}\n",
        f"{verdict(evaluation)}\n",
        "## Before and after\n",
        markdown_table(header, rows),
        (
            "Leak rate: share of greedy continuations whose BLEU against the true text is above the"
            " threshold that unrelated passages reach (99th percentile). Fluency: mean NLL of the"
            " answer under the model before teaching; NM means not meaningful.\n"
        ),
    ]
    if "search" in run:
        found = run["search"]
        parts += [
            "## Why this method\n",
            f"{picked(found)}\n",
            markdown_table(SEARCH_HEADER, search_rows(found)),
            f"{SEARCH_NOTE}\n",
        ]
    if behaviour:
        parts.append(f"![behaviour](figures/{behaviour.name})\n")
    if losses:
        parts.append(f"![losses](figures/{losses.name})\n")
    parts.append(
        "\n".join(
            f"- {metric}: scored by {scorer_text(fact)}"
            for metric, fact in evaluation.get("scorers", {}).items()
        )
        + "\n"
    )
    parts += attack_section(folder)
    shown = examples(folder)
    if shown:
        parts += ["## What it says\n", shown]
    over_time = checkpoint_table(folder)
    if over_time:
        parts += ["## The same prompts while it unlearned\n", over_time]
    parts += ["## The run\n", markdown_table(["", ""], facts)]
    path = folder / "report.md"
    write_text_atomically(path, "\n".join(parts))
    write_page(folder)
    write_card(folder)
    return path
