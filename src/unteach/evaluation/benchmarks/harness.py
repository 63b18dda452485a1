"""lm-evaluation-harness (extra `harness`): its tasks, run on a loaded model, as a benchmark of
general capability before and after (`unteach eval --harness arc_easy,hellaswag`); and the prompt
sets of a run as tasks of it and as datasets of Inspect.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from unteach.errors import UserError, did_you_mean, one_line
from unteach.evaluation.benchmarks.benchmark import Benchmark, EvaluatedModel, Measured, SetValues
from unteach.evaluation.generation import MIN_BATCH
from unteach.evaluation.metrics import MetricFacts
from unteach.files.atomic import write_text_atomically
from unteach.files.folders import private_folder

TITLES = {
    "acc": "accuracy",
    "acc_norm": "accuracy by length",
    "exact_match": "exact match",
    "em": "exact match of the answer",
    "f1": "F1",
}
"""Metrics of the harness that are a number for each question, with titles; higher is better."""
Task = str | Mapping[str, Any]


def load_tasks(tasks: Sequence[Task]) -> tuple[Task, ...]:
    """The tasks, once the harness has them and their data.

    Args:
        tasks: names of tasks, groups or tags, or configurations of tasks.

    Raises:
        UserError: if the extra is not installed, for an unknown task, and for data that cannot be
            had.
    """
    try:
        import lm_eval.models.huggingface  # noqa: F401
        from lm_eval.tasks import get_task_dict
    except ImportError:
        raise UserError(
            "lm-evaluation-harness is not installed: pip install 'unteach[harness]'"
        ) from None
    manager = _manager()
    for name in tasks:
        if isinstance(name, str) and name not in manager.all_tasks:
            raise did_you_mean(name, manager.all_tasks, "task of lm-evaluation-harness")
    try:
        get_task_dict([task if isinstance(task, str) else dict(task) for task in tasks], manager)
    except Exception as error:  # a task is a program of its own
        reason = one_line(error)
        raise UserError(
            f"the data of {_names(tasks)} cannot be had; it comes from the hub or its cache"
            f" ({reason})"
        ) from None
    return tuple(tasks)


@cache
def _manager() -> Any:
    """The harness's index of its tasks, which takes it many seconds to read."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _names(tasks: Sequence[Task]) -> str:
    return ", ".join(task if isinstance(task, str) else str(task["task"]) for task in tasks)


def harness_values(
    evaluated: EvaluatedModel, tasks: Sequence[Task], limit: int | None = None
) -> dict[str, SetValues]:
    """What the harness measures for each question of each task.

    Args:
        tasks: as `load_tasks` returns them.
        limit: most questions of a task, the first ones.

    Returns:
        task to the values of the metrics in `TITLES`; a group's tasks by their own names, and a
        task with several ways to read an answer once for each, named `TASK_FILTER`.

    Raises:
        UserError: if a task cannot be run, or has none of these metrics.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    size = evaluated.batch_size or MIN_BATCH
    wrapped = HFLM(pretrained=evaluated.model, tokenizer=evaluated.tokenizer, batch_size=size)
    options: dict[str, Any] = {"limit": limit, "log_samples": True, "bootstrap_iters": 0}
    options["task_manager"] = _manager()
    try:
        found = lm_eval.simple_evaluate(model=wrapped, tasks=list(tasks), **options)
    except (OSError, KeyError, ValueError) as error:
        reason = one_line(error)
        raise UserError(f"lm-evaluation-harness could not run {_names(tasks)}: {reason}") from None
    values: dict[str, SetValues] = {}
    for task, samples in sorted(((found or {}).get("samples") or {}).items()):
        filters = dict.fromkeys(str(sample.get("filter", "none")) for sample in samples)
        for kind in filters:
            rows = [sample for sample in samples if str(sample.get("filter", "none")) == kind]
            columns = {
                name: [float(row[name]) for row in rows] for name in TITLES if name in rows[0]
            }
            if not columns:
                has = ", ".join(rows[0].get("metrics", ()))
                raise UserError(
                    f"task {task!r} has no number for each question that is read here ({has});"
                    f" known are {', '.join(TITLES)}"
                )
            keys = [str(row.get("doc_hash", row["doc_id"]))[:16] for row in rows]
            values[task if kind == "none" else f"{task}_{kind}"] = SetValues(keys, columns)
    if not values:
        raise UserError(f"lm-evaluation-harness gave no answers for {_names(tasks)}")
    return values


def load(source: str | None, limit: int | None = None) -> tuple[tuple[Task, ...], int | None]:
    """The tasks in `source`, separated by commas, and the limit; see `load_tasks`."""
    names = [name.strip() for name in (source or "").split(",") if name.strip()]
    if not names:
        raise UserError("name tasks of lm-evaluation-harness: --harness arc_easy,hellaswag")
    return load_tasks(names), limit


def measure(evaluated: EvaluatedModel, data: tuple[tuple[Task, ...], int | None]) -> Measured:
    """The metrics of each task, which is to be kept."""
    return Measured(harness_values(evaluated, *data))


BENCHMARK = Benchmark(
    load,
    measure,
    metrics={
        name: MetricFacts(
            title=title,
            higher_is_better=True,
            format=".1%",
            interval="wilson" if name in ("acc", "acc_norm", "exact_match") else "bootstrap",
        )
        for name, title in TITLES.items()
    },
    role="kept",
)


# --- prompt sets as tasks


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
