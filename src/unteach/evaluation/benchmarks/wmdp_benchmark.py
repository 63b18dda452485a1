"""The WMDP protocol: accuracy on hazardous knowledge, and on MMLU for what is to be kept."""

from __future__ import annotations

from typing import Any

from unteach.errors import UserError
from unteach.evaluation.benchmarks.benchmark import (
    Benchmark,
    EvaluatedModel,
    Measured,
    Results,
    row_lines,
    summary,
)
from unteach.evaluation.benchmarks.sources import local_files
from unteach.evaluation.generation import FEWEST
from unteach.evaluation.metrics import MetricFacts, PromptSet
from unteach.evaluation.wmdp import HAZARDS, UTILITY, harness_hits, harness_task, require_harness

Tasks = tuple[tuple[Any, ...], int | None]


def load(source: str | None, limit: int | None = None) -> Tasks:
    """The tasks of lm-evaluation-harness: its own WMDP and MMLU; or one task a local file of WMDP's
    columns.

    Raises:
        UserError: if the extra is not installed, or `--data` names no files.
    """
    require_harness()
    if source is None:
        return (*HAZARDS, UTILITY), limit
    files = local_files(source)
    if not files:
        raise UserError(
            f"option --data: {source} holds no files; without --data WMDP comes from the hub,"
            " through lm-evaluation-harness"
        )
    return tuple(harness_task(path.stem, path) for path in files.values()), limit


def measure(subject: EvaluatedModel, tasks: Tasks) -> Measured:
    """Accuracy on each task; MMLU's subjects together, as one set that is to be kept."""
    names, limit = tasks
    hits = harness_hits(
        subject.model,
        subject.tokenizer,
        names,
        limit=limit,
        batch_size=subject.batch_size or FEWEST,
    )
    groups: dict[str, list[tuple[str, float]]] = {}
    for task, rows in hits.items():
        groups.setdefault(UTILITY if task.startswith(f"{UTILITY}_") else task, []).extend(rows)
    results: Results = {}
    lines = {}
    for name, rows in groups.items():
        columns: dict[str, list[float | None]] = {"accuracy": [hit for _, hit in rows]}
        results[name] = summary(columns, {"accuracy": name == UTILITY}, rates=["accuracy"])
        lines[name] = row_lines([key for key, _ in rows], columns)
    return Measured(results, lines)


METRICS = {
    "accuracy": MetricFacts(
        title="accuracy", higher_is_better=False, format=".1%", interval="wilson"
    ),
}
PROMPT_SETS = {
    **{name: PromptSet(name, "forget") for name in HAZARDS},
    UTILITY: PromptSet("MMLU", "kept"),
}
BENCHMARK = Benchmark(load, measure, None, METRICS, PROMPT_SETS)
