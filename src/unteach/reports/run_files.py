"""The files of a run's folder as plain data, without local paths."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unteach.errors import UserError
from unteach.files.atomic import read_json_lines
from unteach.reports.results import Results
from unteach.reports.shapes import check_shape

HUB_IDS = {"smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""Hub ids of the packaged models."""
PRIVATE = ("data_files", "shared_dir", "scorers")
"""Fields of `run.json` that later commands need and a reader does not: file names are private."""
COSTS = {
    "seconds": ("seconds in all", "{:,.1f}", 1),
    "tokens": ("tokens trained on", "{:,.0f}", 1),
    "tokens_per_second": ("tokens per second in training", "{:,.1f}", 1),
    "peak_memory_bytes": ("peak memory", "{:.2f} GiB", 2**30),
}
STAGE_COST = (
    "{seconds:,.1f} s; tokens: {training_tokens:,} trained on, {generated_tokens:,} generated,"
    " {data_tokens:,} of desired answers"
)


@dataclass(frozen=True)
class RunFiles:
    """The files of a run, local paths cut to their last part: `eval.json`, `run.json`,
    `config.yaml`, `attacks.json` (empty if missing), the steps and probes in `metrics.jsonl`, the
    lines of `generations.jsonl`; and the model's hub id, `None` if it came from a local folder.
    """

    name: str
    results: Results
    run: dict[str, Any]
    config: dict[str, Any]
    attacks: dict[str, Any]
    steps: list[dict[str, Any]]
    probes: list[dict[str, Any]]
    records: list[dict[str, Any]]
    hub_id: str | None = None


def read_files(folder: Path) -> RunFiles:
    """Reads a run's folder.

    Raises:
        UserError: if `eval.json` is missing, or a file cannot be parsed.
    """
    if not (folder / "eval.json").exists():
        raise UserError(f"{folder} has no eval.json: it is not the folder of a finished run")
    evaluation, run, config = (
        read_output(folder / n) for n in ("eval.json", "run.json", "config.yaml")
    )
    names = [run.get("model"), config.get("model"), evaluation.get("fluency_model")]
    local = {name for name in names if isinstance(name, str) and last_name(name) != name}
    paths = sorted(local, key=len, reverse=True)
    metrics = read_output(folder / "metrics.jsonl")
    return RunFiles(
        name=folder.resolve().name,
        results=Results(without_paths(evaluation, paths)),
        run=without_paths(run, paths),
        config=without_paths(config, paths),
        attacks=read_output(folder / "attacks.json"),
        steps=[line for line in metrics if "loss" in line],
        probes=[line for line in metrics if "probe" in line],
        records=read_output(folder / "generations.jsonl"),
        hub_id=base_model(run.get("model") or config.get("model")),
    )


def read_output(path: Path, shape: str | None = None) -> Any:
    """The content of a file that a command of ours wrote; empty where it is missing.

    Args:
        path (`Path`)
        shape (`str`, *optional*): which of `SHAPES` it must have; default: that of its name.

    Raises:
        UserError: for a file that cannot be parsed or has another shape.
    """
    import yaml

    lines = path.suffix == ".jsonl"
    if not path.exists():
        return [] if lines else {}
    try:
        text = path.read_text(encoding="utf-8")
        if lines:
            content: Any = read_json_lines(path)
        else:
            content = (yaml.safe_load(text) or {}) if path.suffix == ".yaml" else json.loads(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} cannot be read ({reason}); run the command that wrote it again"
        ) from None
    return check_shape(path, content, shape)


def base_model(name: Any) -> str | None:
    """The hub id to name as base model; `None` for a local folder."""
    if not isinstance(name, str):
        return None
    known = HUB_IDS.get(name.lower(), name)
    hub_like = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", known) and last_name(known) == known
    return known if hub_like and not Path(known).exists() else None


def last_name(text: str) -> str:
    """The last part of a local path; any other text, a hub id too, unchanged."""
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


def leaves(value: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    """(dotted name, text) of each leaf of nested settings."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        plain = isinstance(value, str | int | float) and not isinstance(value, bool)
        yield prefix, str(value) if plain else json.dumps(value, ensure_ascii=False)


def fact_groups(files: RunFiles) -> dict[str, list[tuple[str, str]]]:
    """Titles with (name, text) pairs: the run, its cost, hashes, versions, settings."""
    run, config = dict(files.run), dict(files.config)
    for name in (*PRIVATE, "cost"):
        run.pop(name, None)
    versions, stages, _ = (run.pop(name, {}) for name in ("versions", "stage_seconds", "search"))
    cost = [
        (f"stage {stage['stage']}", STAGE_COST.format(**stage)) for stage in run.pop("costs", [])
    ]
    for key, (title, form, unit) in COSTS.items():
        value = run.pop(key, None)
        if value is not None:
            cost.append((title, form.format(value / unit)))
    hashes = {key: str(run.pop(key)) for key in list(run) if key.endswith("_hash")}
    hashes |= {f"data: {name}": text for name, text in leaves(config.pop("data", {}))}
    run_facts = {name.replace("_", " "): text for name, text in leaves(run)}
    groups = {
        "The run": list(run_facts.items()),
        "Cost": cost,
        "Seconds by stage": [(stage, f"{seconds:,.1f}") for stage, seconds in stages.items()],
        "Versions": [(name, str(text)) for name, text in versions.items()],
        "Hashes": [(n.replace("_", " ").replace(".", ", "), text) for n, text in hashes.items()],
        "Settings": list(leaves(config)),
    }
    return {title: pairs for title, pairs in groups.items() if pairs}
