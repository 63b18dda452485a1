"""Prompt sets as tasks of lm-evaluation-harness and as datasets of Inspect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from unteach.errors import UserError
from unteach.files.atomic import write_text_atomically
from unteach.files.folders import private_folder


def write_tasks(
    folder: Path, sets: Mapping[str, Sequence[Mapping[str, str]]], forget: Sequence[str]
) -> list[Path]:
    """Writes each set as `NAME.jsonl` and, as a task on it, `NAME.yaml`; returns the tasks.

    A folder that is made, and the files with the texts, are readable by their owner alone.

    Args:
        sets: name to rows with `input`, `target` and `id`.
        forget: names of the sets that must be forgotten, in which lower is better.

    Raises:
        UserError: if no set has a row, and for a file of the same name that is no such task.
    """
    tasks = []
    for name in sets:
        task = folder / f"{name}.yaml"
        ours = task.is_file() and f"task: unteach_{name}\n" in task.read_text(errors="replace")
        taken = [path for path in (folder / f"{name}.jsonl", task) if path.exists()]
        if taken and not ours:
            raise UserError(f"{taken[0]} is there and no task of unteach: name another folder")
    if not folder.exists():
        private_folder(folder)
    for name, rows in sets.items():
        if not rows:
            continue
        data, task = folder / f"{name}.jsonl", folder / f"{name}.yaml"
        lines = [json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows]
        write_text_atomically(data, "".join(lines))
        data.chmod(0o600)
        metrics = [
            {"metric": metric, "aggregation": metric, "higher_is_better": name not in forget}
            for metric in ("bleu", "chrf")
        ]
        content = {
            "task": f"unteach_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data.absolute())}},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": "{{input}}",
            "doc_to_target": "{{target}}",
            "generation_kwargs": {"until": ["</s>"], "max_gen_toks": 128, "do_sample": False},
            "metric_list": metrics,
            "metadata": {"version": 1.0},
        }
        write_text_atomically(task, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        tasks.append(task)
    if not tasks:
        raise UserError("the run's prompt sets have no expected answers to write as tasks")
    return tasks
