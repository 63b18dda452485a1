"""`config.yaml` and `run.json`: what decides a run's result, and what the run did."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml

from unteach import __version__, models
from unteach.baselines.pipelines import PIPELINES
from unteach.config.resolve import AUTO, CPU_FACTS, ResolvedConfig
from unteach.config.run import RunConfig
from unteach.config.scorers import ScorerNames
from unteach.data.chat import (
    CHAT_OPTIONS,
    ChatSettings,
    chat_record,
    chosen_settings,
    with_chat_settings,
)
from unteach.data.rows import rows_hash
from unteach.errors import UserError
from unteach.files.atomic import read_json_lines, write_json, write_text_atomically
from unteach.files.checkpoints import file_sha256
from unteach.reports.run_files import read_output
from unteach.scenarios.method_choice import with_suitable_method
from unteach.scenarios.scenario import Scenario


def scorer_names(resolved: ResolvedConfig, scenario: Scenario) -> ScorerNames:
    """The scenario's scorers, replaced by those that the user named."""
    run = resolved.run
    chosen = {
        "headline": run.headline,
        "judge": run.judge,
        "reward": run.reward_model,
        "fluency": run.fluency_model,
        "instead": run.instead,
    }
    named = {name: value for name, value in chosen.items() if value is not None}
    if run.headline:
        named["headline_reason"] = "named by the option headline"
    return replace(scenario.scorers, similarity=run.similarity_model, **named)


def run_tokenizer(run: RunConfig) -> Any:
    """The tokenizer of the run's model with the run's chat settings. A date that nobody chose is
    the one that the folder's `config.yaml` records, else today.

    Raises:
        UserError: for chat settings where the tokenizer has no chat template.
    """
    tokenizer = models.load_tokenizer(run.model, trust_remote_code=run.trust_remote_code)
    day = ""
    with contextlib.suppress(UserError):  # a broken file is another run's, which is set aside
        recorded = read_output(Path(run.output_dir) / "config.yaml")
        day = str(recorded.get("chat", {}).get("date", ""))
    chosen = {name: getattr(run, name) for name in CHAT_OPTIONS}
    return with_chat_settings(tokenizer, chosen_settings(ChatSettings(date=day), **chosen))


def config_text(
    resolved: ResolvedConfig,
    scenario: Scenario,
    model_hash: str | None,
    chat: Mapping[str, Any] | None = None,
) -> str:
    """All that decides a run's result, as YAML; other contents of `config.yaml` mean another run.

    Args:
        scenario (`Scenario`): its rows enter by their hashes, never as text.
        model_hash (`str`, *optional*): hash of the weights that the run starts from.
        chat (mapping, *optional*): `chat_record` of the run's tokenizer.
    """
    run, staged = resolved.run, resolved.run.method in PIPELINES
    names = scorer_names(resolved, scenario)
    contents: dict[str, Any] = {
        "model": run.model,
        "model_hash": model_hash,
        "scenario": scenario.name,
        "seed": run.seed,
        "lora": run.lora,
        "lora_rank": run.lora_rank if run.lora else None,
        **({"merge": True} if run.merge else {}),
        **({"chat": dict(chat)} if chat else {}),
        "quantize": run.quantize,
        "dtype": run.dtype,
        "frozen_layers": run.frozen_layers,
        "recite_tokens": run.recite_tokens,
        "probe_rows": run.probe_rows,
        "paraphrases": run.paraphrases,
        "headline": names.headline,
        "settings": {"teach": dict(scenario.teach_settings), **resolved.chosen},
        "data": {
            "forget": rows_hash(scenario.forget),
            **({"topic": run.topic} if run.topic else {}),
            "retain": rows_hash([*scenario.retain, *scenario.own_prompts]),
            "neighbours": rows_hash(scenario.neighbours) if scenario.neighbours else None,
            "hold_out": scenario.files.get("hold_out"),
            "prompt_sets": {name: rows_hash(rows) for name, rows in scenario.sets.items()},
            "taught": rows_hash(scenario.teach) if scenario.teach else None,
        },
    }
    if names.headline == "harmful_rate":
        contents["judge"] = names.judge
    if run.instead:
        contents["instead"] = run.instead
    if run.method == AUTO:
        contents["search"] = [run.search_minutes, run.search_steps, run.candidates]
    if staged:
        contents["stages"] = dict(run.stages)
    elif resolved.filled_in:
        contents["filled_in"] = resolved.filled_in
    return str(yaml.safe_dump(contents, sort_keys=False))


def model_files(model: str) -> dict[str, str]:
    """Name and SHA-256 of each weights file of a local model, of an adapter's base and of each
    adapter before it too, their names after their number in the chain; empty for a hub id.
    """
    base, adapters = models.adapter_chain(model)
    return {
        f"adapter {number}/{path.name}" if number else path.name: file_sha256(path)
        for number, folder in enumerate((base, *adapters))
        for path in sorted(Path(folder).glob("*.safetensors"))
    }


def finished_evaluation(resolved: ResolvedConfig, scenario: Scenario) -> dict[str, Any] | None:
    """`eval.json` of this very run if its folder holds it, else `None`.

    The settings and rows must be those in `config.yaml`; the weights files, the scorers and
    `show_text` those in `run.json`.
    """
    folder, (resolved, _) = Path(resolved.run.output_dir), with_suitable_method(resolved, scenario)
    config, record, evaluation = (
        folder / name for name in ("config.yaml", "run.json", "eval.json")
    )
    if not (config.exists() and record.exists() and evaluation.exists()):
        return None
    try:
        facts, found = read_output(record), read_output(evaluation)
    except UserError:  # a damaged file, which the run writes again
        return None
    scorers = asdict(scorer_names(resolved, scenario))
    if (facts.get("scorers") or {}).get("similarity") is None:
        scorers["similarity"] = None  # it was not available
    chat = chat_record(run_tokenizer(resolved.run))
    text = config_text(resolved, scenario, facts.get("base_model_hash"), chat)
    same = (
        config.read_text(encoding="utf-8", errors="replace") == text
        and facts.get("scorers") == scorers
        and facts.get("show_text", False) == resolved.run.show_text
        and facts.get("model_files") == model_files(resolved.run.model)
    )
    return dict(found) if same else None


def versions() -> dict[str, str]:
    """Versions that a run's numbers depend on."""
    return {
        "unteach": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def machine() -> dict[str, Any]:
    """The hardware that a run's seconds depend on."""
    facts = CPU_FACTS.read_text(encoding="utf-8", errors="replace") if CPU_FACTS.exists() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", facts, re.MULTILINE)
    return {
        "processor": name[1] if name else platform.processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def peak_memory_bytes() -> int:
    """The most memory that this process has held: on the GPU if one was used, else resident."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def write_run_record(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Copies `metrics.jsonl` from the checkpoints and writes `run.json`: versions, machine, the
    given facts, tokens and memory.

    A baseline writes no `metrics.jsonl`: its tokens are those in `facts["cost"]`.

    Args:
        folder (`Path`): the run's folder.
        facts: plain data about the run.
    """
    metrics = folder / "checkpoints" / "metrics.jsonl"
    lines = read_json_lines(metrics) if metrics.exists() else []
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_text_atomically(folder / "metrics.jsonl", text)
    steps = [line for line in lines if "loss" in line]
    tokens, seconds = sum(line["tokens"] for line in steps), sum(line["seconds"] for line in steps)
    if "cost" in facts and not steps:
        tokens, seconds = facts["cost"]["training_tokens"], facts["cost"]["seconds"]
    record = {
        "versions": versions(),
        "machine": machine(),
        **facts,
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
        "peak_memory_bytes": peak_memory_bytes(),
    }
    write_json(folder / "run.json", record)
    return record
