"""`report.md`, `report.html` and the model card of a run's folder; the card and the weights on the
hub.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from unteach.errors import UserError, one_line
from unteach.files.atomic import read_cached, write_text_atomically
from unteach.reports.attacks import (
    attack_notes,
    attack_table,
    attack_verdict,
    robustness_line,
    robustness_table,
)
from unteach.reports.figures import leak_chart, relearning_chart, run_charts
from unteach.reports.page import answer_pairs, encodable, page_text, rendered
from unteach.reports.run_files import RunFiles, check_shape, fact_groups, read_files
from unteach.reports.tables import SEARCH_NOTE, Table, search_choice, search_table, summary_table

# --- Markdown


def examples(records: Sequence[Mapping[str, Any]], per_set: int = 2) -> list[list[str]]:
    """(prompt set, prompt, original answer, unlearned answer) of the first rows of each set whose
    texts are not hidden.
    """
    return [
        [name, *(" ".join(text.split()) for text in (a["prompt"], a["output"], b["output"]))]
        for name in dict.fromkeys(record["set"] for record in records)
        for a, b in islice(answer_pairs(records, name), per_set)
    ]


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


# --- the hub


def push_model(folder: Path, name: str) -> str:
    """Uploads `model/` or `adapter/` of a run, the card beside the weights, to the repository
    `name`, which is created as a private one; returns its address.

    Raises:
        UserError: if the run has no model, or the hub refuses it or cannot be reached.
    """
    from huggingface_hub import HfApi

    found = next((path for kind in ("model", "adapter") if (path := folder / kind).is_dir()), None)
    if found is None:
        raise UserError(f"{folder} has neither model/ nor adapter/ to push")
    api = HfApi()
    try:
        address = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=address.repo_id, folder_path=found)
    except Exception as error:  # of the hub, of the network, of the name
        reason = one_line(error, 300)
        raise UserError(
            f"option --push-to-hub: {name!r} could not be pushed; log in by `hf auth login`, and"
            f" check the name and the network ({reason})"
        ) from None
    return str(address)
