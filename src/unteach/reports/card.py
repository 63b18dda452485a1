"""The facts of a run's folder, without local paths, and the model card that carries them to the
hub: `README.md`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unteach.errors import UserError
from unteach.files.atomic import write_text_atomically
from unteach.files.json_lines import read_json_lines
from unteach.reports.tables import comparison_rows, markdown_table, scorer_text, verdict

HUB_IDS = {"smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""Where the packaged models live on the hub."""


@dataclass(frozen=True)
class RunFolder:
    """What the files of a run say, without local paths; empty where a file is missing.

    Args:
        name (`str`): the folder's last name.
        evaluation, run, config (`dict`): `eval.json`, `run.json`, `config.yaml`.
        steps, probes (`list`): lines of `metrics.jsonl`.
        records (`list`): lines of `generations.jsonl`.
        hub_id (`str`, *optional*): the model's id on the hub; `None` if it was read from a local
            folder.
    """

    name: str
    evaluation: dict[str, Any]
    run: dict[str, Any]
    config: dict[str, Any]
    steps: list[dict[str, Any]]
    probes: list[dict[str, Any]]
    records: list[dict[str, Any]]
    hub_id: str | None = None


def read_folder(folder: Path) -> RunFolder:
    """Reads a run's folder.

    Args:
        folder (`Path`)

    Raises:
        UserError: if `eval.json` is missing, or a file cannot be read as what its name says.
    """
    import yaml

    if not (folder / "eval.json").exists():
        raise UserError(f"{folder} has no eval.json: it is no finished run's folder")
    found: dict[str, Any] = {}
    for name in ("eval.json", "run.json", "config.yaml", "metrics.jsonl", "generations.jsonl"):
        path = folder / name
        try:
            if not path.exists():
                found[name] = [] if name.endswith("l") and "json" in name else {}
            elif name.endswith(".jsonl"):
                found[name] = read_json_lines(path)
            else:
                text = path.read_text(encoding="utf-8")
                found[name] = (
                    (yaml.safe_load(text) or {}) if name.endswith(".yaml") else json.loads(text)
                )
        except (ValueError, yaml.YAMLError) as error:
            raise UserError(
                f"{path} cannot be read ({str(error).splitlines()[0]}); run the command that wrote"
                " it again"
            ) from None
    names = [
        found["run.json"].get("model"),
        found["config.yaml"].get("model"),
        found["eval.json"].get("fluency_model"),
    ]
    paths = sorted(
        {name for name in names if isinstance(name, str) and last_name(name) != name},
        key=len,
        reverse=True,
    )
    metrics = found["metrics.jsonl"]
    return RunFolder(
        name=folder.resolve().name,
        evaluation=without_paths(found["eval.json"], paths),
        run=without_paths(found["run.json"], paths),
        config=without_paths(found["config.yaml"], paths),
        steps=[line for line in metrics if "loss" in line],
        probes=[line for line in metrics if "probe" in line],
        records=found["generations.jsonl"],
        hub_id=base_model(found["run.json"].get("model") or found["config.yaml"].get("model")),
    )


def last_name(text: str) -> str:
    """The last part of a local path; any other text, a hub id too, as it is."""
    rooted = re.match(r"(?:[A-Za-z]:[\\/]|~|\.{0,2}[\\/])", text)
    nested = len(re.findall(r"[\\/]", text)) > 1 and not re.search(r"\s|://", text)
    return re.split(r"[\\/]+", text.rstrip("\\/"))[-1] if rooted or nested else text


def without_paths(value: Any, paths: Sequence[str] = ()) -> Any:
    """Plain data in which each local path, alone or within a sentence, is cut to its last part;
    `paths`: those known to occur.
    """
    if isinstance(value, dict):
        return {
            without_paths(key, paths): without_paths(item, paths) for key, item in value.items()
        }
    if isinstance(value, list):
        return [without_paths(item, paths) for item in value]
    if not isinstance(value, str):
        return value
    for path in paths:
        value = value.replace(path, last_name(path))
    rooted = r"(?<![\w.:/\\~-])(?:[A-Za-z]:[\\/]|~[\\/]|\.{0,2}[\\/])[^\s\"'`,;()]+"
    return last_name(re.sub(rooted, lambda match: last_name(match.group()), value))


def flat(value: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    """(dotted name, text) of each leaf of nested settings."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from flat(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield (
            prefix,
            (
                json.dumps(value, ensure_ascii=False)
                if isinstance(value, list | dict | bool) or value is None
                else str(value)
            ),
        )


def fact_groups(run: RunFolder) -> list[dict[str, Any]]:
    """Titles with (name, text) pairs: the run, its cost, hashes, versions, settings."""
    record, config = dict(run.run), dict(run.config)
    versions, stages = record.pop("versions", {}), record.pop("stage_seconds", {})
    for name in (
        "data_files",
        "shared_dir",
        "scorers",
    ):  # for a later `unteach attack`; a file's name is nobody else's business
        record.pop(name, None)
    record.pop("cost", None)
    cost = [
        (
            f"stage {stage['stage']}",
            (
                f"{stage['seconds']:,.1f} s; tokens: {stage['training_tokens']:,} trained on,"
                f" {stage['generated_tokens']:,} generated, {stage['data_tokens']:,} of good"
                " answers"
            ),
        )
        for stage in record.pop("costs", [])
    ]
    for key, name, form in (
        ("seconds", "seconds in all", "{:,.1f}"),
        ("tokens", "tokens trained on", "{:,.0f}"),
        ("tokens_per_second", "tokens a second in training", "{:,.1f}"),
        ("peak_memory_bytes", "peak memory", "{:.2f} GiB"),
    ):
        value = record.pop(key, None)
        if value is not None:
            cost.append((name, form.format(value / 2**30 if key == "peak_memory_bytes" else value)))
    hashes = [
        (key.replace("_", " "), str(record.pop(key)))
        for key in list(record)
        if key.endswith("_hash")
    ]
    hashes += [
        (f"data: {name.replace('_', ' ').replace('.', ', ')}", text)
        for name, text in flat(config.pop("data", {}))
        if name
    ]
    groups = [
        ("The run", [(name.replace("_", " "), text) for name, text in flat(record) if name]),
        ("Cost", cost),
        ("Seconds by stage", [(stage, f"{seconds:,.1f}") for stage, seconds in stages.items()]),
        ("Versions", [(name, str(text)) for name, text in versions.items()]),
        ("Hashes", hashes),
        ("Settings", [(name, text) for name, text in flat(config) if name]),
    ]
    return [{"title": name, "pairs": pairs} for name, pairs in groups if pairs]


def paired(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The evaluation of two models alone: `original` (or the first), and `unlearned` (or the last)."""
    models = evaluation["models"]
    pair = {
        "original": models.get("original", next(iter(models.values()))),
        "unlearned": models.get("unlearned", list(models.values())[-1]),
    }
    return {**evaluation, "models": pair}


def scored(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The evaluation of two models, cut to the metrics for which both have a value."""
    pair = paired(evaluation)["models"]
    before, after = pair["original"], pair["unlearned"]
    both = {
        name: [
            m
            for m in before[name]
            if m in after[name] and None not in (before[name][m]["value"], after[name][m]["value"])
        ]
        for name in before
        if name in after
    }
    cut = {
        model: {name: {m: sets[name][m] for m in kept} for name, kept in both.items()}
        for model, sets in pair.items()
    }
    return {**evaluation, "models": cut}


# --- the card
# ---------------------------------------------------------------------------------------------------------


def base_model(name: Any) -> str | None:
    """The hub id to name as base model; `None` for a local folder."""
    if not isinstance(name, str):
        return None
    known = HUB_IDS.get(name.lower(), name)
    hub_like = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", known) and last_name(known) == known
    return known if hub_like and not Path(known).exists() else None


def card_text(folder: Path) -> str:
    """The card: YAML metadata and Markdown, with no text of any prompt or answer.

    Args:
        folder (`Path`): a run's folder.

    Raises:
        UserError: if `eval.json` is missing or a file cannot be read.
    """
    import jinja2
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    run = read_folder(folder)
    model = run.run.get("model") or run.config.get("model")
    base, adapter = run.hub_id, (folder / "adapter").is_dir()
    evaluation = scored(run.evaluation)
    scenario = str(evaluation.get("scenario", "unlearning"))
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=scenario,
            dataset_name=f"{scenario}: {name.replace('_', ' ')}",
            metric_type=metric,
            metric_value=round(result["value"], 4),
            metric_name=metric.replace("_", " "),
        )
        for name, metrics in evaluation["models"]["unlearned"].items()
        for metric, result in metrics.items()
    ]
    taught = run.run.get("original_model_hash") != run.run.get("base_model_hash")
    named = base and not (
        taught and adapter
    )  # an adapter on a model that was taught first fits no model of the hub
    extra: dict[str, Any] = (
        {"base_model": base, "base_model_relation": "adapter" if adapter else "finetune"}
        if named
        else {}
    )
    data = ModelCardData(
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["unlearning", "unteach"],
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        model_name=run.name,
        eval_results=results or None,
        **extra,
    )
    header, rows = comparison_rows(paired(run.evaluation))
    groups = [
        {
            **group,
            "table": markdown_table(
                ["", ""], [[plain(name), plain(text)] for name, text in group["pairs"]]
            ),
        }
        for group in fact_groups(run)
    ]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("unteach.reports"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    body = environment.get_template("card.md.j2").render(
        name=plain(run.name),
        model=plain(str(model)) if model else None,
        scenario=plain(scenario),
        run=run.run,
        taught=taught,
        adapter=adapter,
        verdict=plain(verdict(evaluation)),
        table=markdown_table(
            [plain(text) for text in header], [[plain(text) for text in row] for row in rows]
        ),
        scorers=[
            (metric.replace("_", " "), plain(scorer_text(fact)))
            for metric, fact in evaluation.get("scorers", {}).items()
        ],
        evaluation=evaluation,
        groups=groups,
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def plain(text: str) -> str:
    """Text that Markdown and HTML take as it is, on one line."""
    return " ".join(text.split()).replace("->", "\u2192").replace("<", "&lt;").replace("|", "\\|")


def write_card(folder: Path) -> Path:
    """Writes `README.md`, also beside the weights, so that a push of their folder carries it.

    Args:
        folder (`Path`): a run's folder.

    Raises:
        UserError: if `eval.json` is missing or a file cannot be read.
    """
    text = card_text(folder)
    for target in (folder, folder / "model", folder / "adapter"):
        if target.is_dir():
            write_text_atomically(target / "README.md", text)
    return folder / "README.md"
