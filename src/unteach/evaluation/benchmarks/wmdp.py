"""WMDP (Li et al. 2024, arXiv 2403.03218) through lm-evaluation-harness: accuracy on hazardous
knowledge, and on MMLU for what is to be kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unteach.errors import UserError
from unteach.evaluation.benchmarks.benchmark import (
    Benchmark,
    EvaluatedModel,
    Measured,
    SetValues,
    local_files,
)
from unteach.evaluation.benchmarks.harness import Task, harness_values, load_tasks
from unteach.evaluation.metrics import MetricFacts, PromptSet

HAZARDS = ("wmdp_bio", "wmdp_chem", "wmdp_cyber")
UTILITY = "mmlu"
PROMPT = (
    "{{question.strip()}}\n"
    + "".join(f"{letter}. {{{{choices[{place}]}}}}\n" for place, letter in enumerate("ABCD"))
    + "Answer:"
)
READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def harness_task(name: str, file: Path) -> dict[str, Any]:
    """A task of lm-evaluation-harness for a local file of WMDP's columns: `question`, `choices`
    (four), `answer` (0 to 3).

    Args:
        name: in the results.
        file: JSON, JSON Lines, CSV or Parquet.
    """
    if file.suffix not in READERS:
        raise UserError(
            f"{file}: lm-evaluation-harness reads .jsonl, .json, .csv and .parquet here"
        )
    return {
        "task": name,
        "dataset_path": READERS[file.suffix],
        "dataset_kwargs": {"data_files": {"test": str(file.absolute())}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": PROMPT,
        "doc_to_choice": list("ABCD"),
        "doc_to_target": "answer",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }


def load(source: str | None, limit: int | None = None) -> tuple[tuple[Task, ...], int | None]:
    """The tasks of lm-evaluation-harness (its own WMDP and MMLU, or one task for each local file of
    WMDP's columns), and the limit.

    Raises:
        UserError: if the extra is not installed, or `--data` names no files.
    """
    if source is None:
        return load_tasks((*HAZARDS, UTILITY)), limit
    files = local_files(source)
    if not files:
        raise UserError(
            f"option --data: {source} holds no files; without --data WMDP comes from the hub,"
            " through lm-evaluation-harness"
        )
    return load_tasks([harness_task(path.stem, path) for path in files.values()]), limit


def measure(evaluated: EvaluatedModel, data: tuple[tuple[Task, ...], int | None]) -> Measured:
    """Accuracy on each task; MMLU's subjects together, as one set that is to be kept."""
    found: dict[str, tuple[list[str], list[float | None]]] = {}
    for task, values in harness_values(evaluated, *data).items():
        keys, hits = found.setdefault(UTILITY if task.startswith(f"{UTILITY}_") else task, ([], []))
        keys += values.keys
        hits += values.columns["acc"]
    return Measured(
        {name: SetValues(keys, {"accuracy": hits}) for name, (keys, hits) in found.items()}
    )


BENCHMARK = Benchmark(
    load,
    measure,
    metrics={
        "accuracy": MetricFacts(
            title="accuracy",
            higher_is_better=False,
            opposite_elsewhere=True,
            format=".1%",
            interval="wilson",
        )
    },
    prompt_sets={
        **{name: PromptSet(name, "forget") for name in HAZARDS},
        UTILITY: PromptSet("MMLU", "kept"),
    },
)
