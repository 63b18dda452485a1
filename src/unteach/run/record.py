"""`run.json` and the rest of a finished run's folder."""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml

from unteach import __version__
from unteach.config.resolve import ResolvedConfig
from unteach.config.run import RunOptions
from unteach.config.scorers import ScorerNames
from unteach.data.rows import rows_hash
from unteach.files.atomic import read_json_lines, write_json, write_text_atomically
from unteach.models.precision import CPU_FACTS
from unteach.scenarios.scenario import Scenario


def config_text(
    options: RunOptions,
    resolved: ResolvedConfig,
    scenario: Scenario,
    scorers: ScorerNames,
    *,
    model_hash: str | None,
    searched: bool,
    staged: bool,
) -> str:
    """What decides a run's result, as YAML; a folder whose `config.yaml` says otherwise holds
    another run.

    Args:
        options, resolved: the run's.
        scenario: its rows enter by their hashes, never as text.
        scorers: who says what is still said, which decides when a run stops.
        model_hash (`str`, *optional*): hash of the weights that it starts from.
        searched (`bool`): whether the method is searched for.
        staged (`bool`): whether a baseline of several stages stands in the place of unlearning.
    """
    search = [options.search_minutes, options.search_steps, options.candidates]
    settings = {
        **scenario.presets,
        **options.settings,
        **({"stages": options.stages} if staged else {}),
    }
    judge = {"judge": scorers.judge} if scorers.headline == "harmful_rate" else {}
    contents = {
        "model": options.model,
        "model_hash": model_hash,
        "scenario": scenario.name,
        "seed": options.seed,
        "lora": options.lora,
        "lora_rank": options.lora_rank if options.lora else None,
        **({"quantize": options.quantize} if options.quantize else {}),
        **({"dtype": options.dtype} if options.dtype != "float32" else {}),
        "frozen_layers": options.frozen_layers,
        "recite_tokens": options.recite_tokens,
        **({"search": search} if searched else {}),
        "probe_rows": options.probe_rows,
        "said_by": {"headline": scorers.headline, **judge},
        "settings": settings,
        **({} if staged or not (own := resolved.filled_in) else {"by_itself": own}),
        "data": {
            "forget": rows_hash(scenario.forget),
            "retain": rows_hash([*scenario.retain, *scenario.own_prompts]),
            "prompt_sets": {name: rows_hash(rows) for name, rows in scenario.sets.items()},
            "taught": rows_hash(scenario.teach) if scenario.teach else None,
        },
    }
    return str(yaml.safe_dump(contents, sort_keys=False))


def versions() -> dict[str, str]:
    """Versions of what decides a run's numbers."""
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
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def write_run_record(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Copies `metrics.jsonl` up from the checkpoints and writes `run.json`: versions, the given
    facts, tokens and memory.

    A baseline leaves no steps of ours: its tokens are those in `facts["cost"]`.

    Args:
        folder (`Path`): the run's folder.
        facts: what the run knows about itself, as plain data.
    """
    metrics = folder / "checkpoints" / "metrics.jsonl"
    lines = read_json_lines(metrics) if metrics.exists() else []
    write_text_atomically(
        folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines)
    )
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
