"""Prompt sets asked and scored: from models to `eval.json` and `generations.jsonl`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unteach.data.rows import Row
from unteach.data.tokenization import encode_row, end_of_turn_id
from unteach.errors import UserError
from unteach.evaluation.generation import Generator, Progress, answer
from unteach.evaluation.likelihood import greedy_matches, mean_nll
from unteach.evaluation.metrics import Answer, as_eval_json, is_forget_set, score_set
from unteach.evaluation.results import MetricResult
from unteach.evaluation.scorers import Scorers
from unteach.evaluation.similarity import pair_similarity
from unteach.files.atomic import write_json, write_text_atomically

ANSWER_TOKENS = 56
Sets = Mapping[str, Sequence[Row]]


@dataclass(frozen=True)
class Generations:
    """What a model answers to the prompt sets.

    Args:
        outputs: set name to the greedy answers.
        correct: set name to, for each row, whether the model would choose each token of the
            expected completion greedily, given those before it; `None` for a row without one.
    """

    outputs: Mapping[str, list[str]]
    correct: Mapping[str, list[list[bool] | None]]


@dataclass(frozen=True)
class ReferenceLM:
    """A language model that others' answers are read by: its name for the report, the model, its
    own tokenizer.
    """

    name: str
    model: Any
    tokenizer: Any


def ask(
    model: Any,
    tokenizer: Any,
    sets: Sets,
    *,
    generator: Generator | None = None,
    expected: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Generations:
    """The model's greedy answers to every row of every set, in one sorted sweep, and its choices
    along the expected completions.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        sets: prompt sets, name to rows.
        generator (`Generator`, *optional*): who generates; default: the model itself.
        expected (*optional*): by a row's key, what the answer may well be (another model's): it is
            not generated where the model agrees.
        progress (`Callable`, *optional*): called with (done, of) prompts.
    """
    rows = [row for part in sets.values() for row in part]
    matches = greedy_matches(
        model,
        *_encoded(rows, [row.completion for row in rows], tokenizer, end_of_turn_id(tokenizer)),
    )
    said = answer(
        model,
        tokenizer,
        rows,
        max_new_tokens=ANSWER_TOKENS,
        generator=generator,
        expected=expected,
        matches=matches,
        progress=progress,
    )
    outputs, correct = iter(said), iter(matches)
    return Generations(
        {name: [next(outputs) for _ in part] for name, part in sets.items()},
        {name: [next(correct) for _ in part] for name, part in sets.items()},
    )


def _encoded(
    rows: Sequence[Row], texts: Sequence[str], tokenizer: Any, end_id: int | None = None
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Tokens of the prompts and of the texts as their completions; none where the text is empty or
    merges with its prompt.

    With `end_id` a chat row's completion ends with it. An answer gets none: where it was cut at the
    limit none was said, and an end in the middle of a sentence costs more than all the rest.
    """
    prompts: list[tuple[int, ...]] = []
    completions: list[tuple[int, ...]] = []
    for row, text in zip(rows, texts, strict=True):
        item = None
        if text.strip():
            with contextlib.suppress(UserError):
                item = encode_row(row.with_completion(text), tokenizer, end_id)
        prompts.append(item.prompt_ids if item else ())
        completions.append(item.completion_ids if item else ())
    return prompts, completions


def score_models(
    scenario: str,
    sets: Sets,
    said: Mapping[str, Generations],
    tokenizer: Any,
    scorers: Scorers,
    *,
    fluency: ReferenceLM,
    show_text: bool,
    folder: Path,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Scores the answers of the model `original` and of others, writes `eval.json` and
    `generations.jsonl`, returns the former.

    Args:
        scenario (`str`)
        sets: prompt sets, name to rows.
        said: model name (`original`, `unlearned`, ...) to what it said.
        tokenizer: the models' tokenizer.
        scorers (`Scorers`)
        fluency (`ReferenceLM`): the language model under which the answers' NLL is taken.
        show_text (`bool`): whether texts of forget sets are written.
        folder (`Path`)
        progress (`Callable`, *optional*): called with (done, of) sets.
    """
    scored: dict[str, dict[str, dict[str, MetricResult]]] = {name: {} for name in said}
    records = []
    for done, (model_name, set_name) in enumerate(
        [(model, name) for model in said for name in sets], 1
    ):
        rows, texts, originals = (
            sets[set_name],
            said[model_name].outputs[set_name],
            said["original"].outputs[set_name],
        )
        tokens = _encoded(rows, texts, tokenizer)[1]
        nlls = mean_nll(fluency.model, *_encoded(rows, texts, fluency.tokenizer))
        prompts = [row.prompt_text for row in rows]
        normal, none = set_name == "normal", [None] * len(rows)
        columns: dict[str, Sequence[Any]] = {
            "output": texts,
            "original_output": originals,
            "tokens": tokens,
            "nll": nlls,
            "similarity": pair_similarity(originals, texts, scorer=scorers.names.similarity)
            if normal and scorers.names.similarity
            else none,
            "flagged": scorers.judge.flags(prompts, texts) if scorers.judge else none,
            "hallucinated": scorers.hallucinated(rows, texts),
            "reward": scorers.reward.rewards(prompts, texts) if normal and scorers.reward else none,
            "correct": said[model_name].correct[set_name],
        }
        answers = [
            Answer(
                row,
                **{name: column[place] for name, column in columns.items()},
                leak_threshold=scorers.threshold,
            )
            for place, row in enumerate(rows)
        ]
        results = scored[model_name][set_name] = score_set(set_name, answers)
        for position, item in enumerate(answers):
            record: dict[str, Any] = {"model": model_name, "set": set_name, "key": item.row.key}
            if show_text or not is_forget_set(set_name):
                record |= {
                    "prompt": item.row.prompt_text,
                    "expected": item.row.completion,
                    "output": item.output,
                }
            record["metrics"] = {
                metric: result.rows[position] for metric, result in results.items()
            }
            records.append(record)
        if progress:
            progress(done, len(said) * len(sets))
    evaluation = as_eval_json(
        scenario,
        scored,
        headline=scorers.names.headline,
        leak_threshold_bleu=scorers.threshold,
        fluency_model=fluency.name,
        scorers=scorers.facts(fluency.name),
    )
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_text_atomically(folder / "generations.jsonl", lines)
    write_json(folder / "eval.json", evaluation)
    return evaluation
