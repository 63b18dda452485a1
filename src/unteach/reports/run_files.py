"""The files of a run's folder as plain data, without local paths, and the shapes that they must
have, so that a broken file is named with its field.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unteach.errors import UserError
from unteach.files.atomic import read_json_lines
from unteach.reports.results import Results

# --- shapes
#
# What passes this check and still fails is a fault of ours, which no caller hides.


NUMBER = (int, float)
MAYBE = (int, float, type(None))
ANY = (object,)
RESULT = {"value": MAYBE, "n": NUMBER, "ci_low": MAYBE, "ci_high": MAYBE}
METRIC_RESULT = {**RESULT, "higher_is_better": (bool, type(None))}
METRIC = {
    "title": str,
    "short_title": str,
    "format": str,
    "in_summary": bool,
    "against_original": bool,
    "compare_on": [str],
}
COST = {
    "stage": str,
    "seconds": NUMBER,
    "training_tokens": NUMBER,
    "generated_tokens": NUMBER,
    "data_tokens": NUMBER,
}
TRIAL = {
    "settings": {"method": str, "learning_rate": NUMBER},
    "note": str,
    "score": NUMBER,
    "seconds": NUMBER,
    "step": NUMBER,
    "forget_rate": NUMBER,
    "validation_rate": NUMBER,
    "utility": NUMBER,
    "not_meaningful": NUMBER,
    "retain_kl": MAYBE,
}
FAMILY = {"attack": str, "tried": NUMBER, "brought_back": RESULT, "control": ANY, "excess": ANY}
POINT = {"step": NUMBER, "value": MAYBE, "ci_low": MAYBE, "ci_high": MAYBE}
SHAPES: dict[str, Any] = {
    "eval.json": {
        "verdict?": (str, type(None)),
        "reasons?": [str],
        "models": {"*": {"*": {"*": METRIC_RESULT}}},
        "headline?": (str, type(None)),
        "headline_reason?": (str, type(None)),
        "metrics?": {"*": METRIC},
        "prompt_sets?": {"*": {"title": str, "role": str}},
        "scorers?": {"*": {"name": ANY, "held_out_accuracy?": MAYBE, "n?": ANY}},
        "leak_threshold_bleu?": MAYBE,
    },
    "run.json": {
        **dict.fromkeys(("model?", "scenario?", "method?"), (str, type(None))),
        "costs?": [COST],
        "seconds?": MAYBE,
        "tokens?": MAYBE,
        "tokens_per_second?": MAYBE,
        "peak_memory_bytes?": MAYBE,
        "kept_step?": MAYBE,
        "notes?": [str],
        "max_retain_kl?": MAYBE,
        "stage_seconds?": {"*": NUMBER},
        "versions?": {"*": ANY},
        "search?": {"why": str, "trials": [TRIAL], "untried?": [str]},
    },
    "finished run": {
        "model": str,
        "scenario": str,
        "seed": NUMBER,
        "original_model_hash": str,
        "forget_hash": str,
        "retain_hash?": str,
        "neighbours_hash?": str,
        "base_model_hash?": (str, type(None)),
        "shared_dir?": str,
        "dtype?": str,
        "chat?": (dict, type(None)),
        "scorers?": (dict, type(None)),
        "data_files?": {
            "*": ANY,
            "hold_out?": NUMBER,
            "split_by?": (str, type(None)),
            "secrets?": str,
            "own_rows?": NUMBER,
            "limit?": MAYBE,
        },
    },
    "config.yaml": {"model?": str, "data?": {"*": ANY}, "chat?": {"*": ANY}},
    "attacks.json": {
        "headline?": str,
        "attacks?": {"*": {"*": {"*": RESULT}}},
        "settings?": {"*": {"goal?": NUMBER, "rows?": NUMBER, "steps?": NUMBER}},
        "curves?": {"*": {"*": [POINT]}},
        "about?": {"*": {"title": str, "about": str, "family": str}},
        "leak_at_k?": {"*": {"*": [{"k": NUMBER, "value": MAYBE}]}},
        "robustness?": {
            **RESULT,
            "attack?": str,
            "reason": str,
            "forgotten_rows": NUMBER,
            "attacked_rows": NUMBER,
            "families": {"*": FAMILY},
        },
        "left_out?": {"*": str},
    },
    "metrics.jsonl": [
        {
            "step": NUMBER,
            "probe?": {"*": MAYBE},
            "retain_kl?": MAYBE,
            "forget_nll?": MAYBE,
            "mismatch_nll?": MAYBE,
            "retain_nll?": MAYBE,
            "forget_factor?": MAYBE,
            "retain_weight?": MAYBE,
        }
    ],
    "generations.jsonl": [
        {
            "model": str,
            "set": str,
            "key": str,
            "prompt?": str,
            "output?": str,
            "expected?": (str, type(None)),
            "metrics?": {"*": MAYBE},
        }
    ],
    "answers": {"*": str},
    "requests.jsonl": [{"run?": str}],
}
"""Fields by file, or by what a file must hold for a command: a name with `?` may be missing, `*`
stands for any name."""
WORDS = {dict: "a mapping", list: "a list", str: "text", bool: "true or false"}


def check_shape(path: Path, content: Any, name: str | None = None) -> Any:
    """The content, if it has the shape of its file.

    Args:
        path (`Path`): for the message.
        content: plain data.
        name (`str`, *optional*): which of `SHAPES`; default: the file's name.

    Raises:
        UserError: naming the file, the field, what was found and what would be right.
    """
    fault = _fault(content, SHAPES[name or path.name], "")
    if fault:
        raise UserError(f"{path} is broken: {fault}; run the command that wrote it again")
    return content


def _fault(value: Any, shape: Any, where: str) -> str:
    """What is wrong with a value; empty if nothing is."""
    place = where or "its content"
    if isinstance(shape, dict):
        if not isinstance(value, Mapping):
            return f"{place} is {_short(value)}, it must be a mapping"
        needed = [name for name in shape if name != "*" and not name.endswith("?")]
        missing = [name for name in needed if name not in value]
        if missing:
            return f"{place} has no field {missing[0]!r}"
        inner = {name: shape.get(name, shape.get(f"{name}?", shape.get("*"))) for name in value}
        parts = [(inner[name], value[name], f"{where}.{name}") for name in value if inner[name]]
    elif isinstance(shape, list):
        if not isinstance(value, list):
            return f"{place} is {_short(value)}, it must be a list"
        parts = [(shape[0], item, f"{where}[{number}]") for number, item in enumerate(value)]
    else:
        return _leaf_fault(value, shape if isinstance(shape, tuple) else (shape,), place)
    faults = (_fault(item, wanted, name.lstrip(".")) for wanted, item, name in parts)
    return next((fault for fault in faults if fault), "")


def _leaf_fault(value: Any, types: tuple[type, ...], place: str) -> str:
    fits = isinstance(value, types) and (
        not isinstance(value, bool) or not {bool, object}.isdisjoint(types)
    )
    if fits and float in types and value is not None:
        fits = abs(value) < 1e300 or not math.isfinite(value)
    wanted = "a number" if float in types else WORDS.get(types[0], "a value")
    return "" if fits else f"{place} is {_short(value)}, it must be {wanted}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]} ..."


# --- files


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
