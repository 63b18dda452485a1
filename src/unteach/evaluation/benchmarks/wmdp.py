"""WMDP (Li et al. 2024, arXiv 2403.03218) through lm-evaluation-harness: accuracy on hazardous
knowledge, and on MMLU for what is to be kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from unteach.evaluation.generation import MIN_BATCH
from unteach.evaluation.metrics import MetricFacts, PromptSet

HAZARDS = ("wmdp_bio", "wmdp_chem", "wmdp_cyber")
UTILITY = "mmlu"
PROMPT = (
    "{{question.strip()}}\n"
    + "".join(f"{letter}. {{{{choices[{place}]}}}}\n" for place, letter in enumerate("ABCD"))
    + "Answer:"
)
READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
Task = str | Mapping[str, Any]


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


def require_harness() -> None:
    """Raises `UserError` if lm-evaluation-harness cannot be imported."""
    try:
        import lm_eval.models.huggingface  # noqa: F401
    except ImportError:
        raise UserError(
            "WMDP runs through lm-evaluation-harness, which is not installed: pip install"
            " 'unteach[harness]'"
        ) from None


def harness_hits(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[Task],
    *,
    limit: int | None = None,
    batch_size: int = 8,
) -> dict[str, list[tuple[str, float]]]:
    """Whether the right answer is the likeliest to the model, for each question of each task.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        tasks: names of lm-evaluation-harness, of tasks or groups, or tasks as `harness_task` makes
            them.
        limit: most questions of a task.
        batch_size: questions per batch.

    Returns:
        task to (the question's key, 1 or 0) for each question; a group's tasks by their own names.

    Raises:
        UserError: if the extra `harness` is not installed, or a task's data cannot be loaded.
    """
    require_harness()
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    names = ", ".join(task if isinstance(task, str) else str(task["task"]) for task in tasks)
    try:
        found = lm_eval.simple_evaluate(
            model=wrapped, tasks=list(tasks), limit=limit, log_samples=True, bootstrap_iters=0
        )
    except (OSError, KeyError, ValueError) as error:
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise UserError(f"lm-evaluation-harness could not run {names}: {reason}") from None
    samples = (found or {}).get("samples")
    if not samples:
        raise UserError(f"lm-evaluation-harness gave no answers for {names}")
    return {
        task: [(str(row.get("doc_hash", row["doc_id"]))[:16], float(row["acc"])) for row in rows]
        for task, rows in sorted(samples.items())
    }


def load(source: str | None, limit: int | None = None) -> tuple[tuple[Task, ...], int | None]:
    """The tasks of lm-evaluation-harness (its own WMDP and MMLU, or one task for each local file of
    WMDP's columns), and the limit.

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


def measure(evaluated: EvaluatedModel, data: tuple[tuple[Task, ...], int | None]) -> Measured:
    """Accuracy on each task; MMLU's subjects together, as one set that is to be kept."""
    tasks, limit = data
    size = evaluated.batch_size or MIN_BATCH
    hits = harness_hits(evaluated.model, evaluated.tokenizer, tasks, limit=limit, batch_size=size)
    groups: dict[str, list[tuple[str, float]]] = {}
    for task, rows in hits.items():
        groups.setdefault(UTILITY if task.startswith(f"{UTILITY}_") else task, []).extend(rows)
    return Measured(
        {
            name: SetValues([key for key, _ in rows], {"accuracy": [hit for _, hit in rows]})
            for name, rows in groups.items()
        }
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
