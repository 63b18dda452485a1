"""WMDP (Li et al. 2024, arXiv 2403.03218) through lm-evaluation-harness: which of four answers a
model holds most likely.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unteach.errors import UserError

HAZARDS = ("wmdp_bio", "wmdp_chem", "wmdp_cyber")
UTILITY = "mmlu"
PROMPT = (
    "{{question.strip()}}\n"
    + "".join(f"{letter}. {{{{choices[{place}]}}}}\n" for place, letter in enumerate("ABCD"))
    + "Answer:"
)


def harness_task(name: str, file: Path) -> dict[str, Any]:
    """A task of lm-evaluation-harness for a local file of WMDP's columns: `question`, `choices`
    (four), `answer` (0 to 3).

    Args:
        name (`str`): what results are filed under.
        file (`Path`): JSON, JSON Lines, CSV or Parquet.
    """
    kind = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}.get(
        file.suffix
    )
    if kind is None:
        raise UserError(
            f"{file}: lm-evaluation-harness reads .jsonl, .json, .csv and .parquet here"
        )
    return {
        "task": name,
        "dataset_path": kind,
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
            "WMDP is asked through lm-evaluation-harness, which is not installed: pip install"
            " 'unteach[harness]'"
        ) from None


def harness_hits(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str | Mapping[str, Any]],
    *,
    limit: int | None = None,
    batch_size: int = 8,
) -> dict[str, list[tuple[str, float]]]:
    """Whether the model holds the right answer most likely, for each question of each task.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        tasks: names of lm-evaluation-harness, of tasks or groups, or tasks as `harness_task` makes
            them.
        limit (`int`, *optional*): most questions of a task.
        batch_size (`int`)

    Returns:
        task to (the question's key, 1 or 0) for each question; a group's tasks by their own names.

    Raises:
        UserError: if the extra `harness` is not installed, or a task's data cannot be had.
    """
    require_harness()
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    try:
        found = lm_eval.simple_evaluate(
            model=wrapped, tasks=list(tasks), limit=limit, log_samples=True, bootstrap_iters=0
        )
    except (OSError, KeyError, ValueError) as error:
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise UserError(f"lm-evaluation-harness could not run {_names(tasks)}: {reason}") from None
    samples = (found or {}).get("samples")
    if not samples:
        raise UserError(f"lm-evaluation-harness gave no answers for {_names(tasks)}")
    return {
        task: [(str(row.get("doc_hash", row["doc_id"]))[:16], float(row["acc"])) for row in rows]
        for task, rows in sorted(samples.items())
    }


def _names(tasks: Sequence[str | Mapping[str, Any]]) -> str:
    return ", ".join(task if isinstance(task, str) else str(task["task"]) for task in tasks)
