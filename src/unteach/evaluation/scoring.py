"""Prompt sets asked and scored: from models to `eval.json` and `generations.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unteach.checkpoints import write_json, write_text_atomically
from unteach.data.rows import Row
from unteach.data.tokenization import EncodedRow, encode_row, end_of_turn_id
from unteach.errors import UserError
from unteach.evaluation.generation import Progress, answer
from unteach.evaluation.likelihood import mean_nll
from unteach.evaluation.metrics import Answer, as_eval_json, score_set
from unteach.evaluation.results import MetricResult
from unteach.evaluation.similarity import embedding_similarity

ANSWER_TOKENS = 56
FORGET_SETS = ("unlearned", "unseen")
Sets = Mapping[str, Sequence[Row]]


def answer_sets(model: Any, tokenizer: Any, sets: Sets, *, progress: Progress | None = None) -> dict[str, list[str]]:
    """The model's greedy answers to every row of every set, in one sorted sweep."""
    rows = [row for part in sets.values() for row in part]
    outputs = iter(answer(model, tokenizer, rows, max_new_tokens=ANSWER_TOKENS, progress=progress))
    return {name: [next(outputs) for _ in part] for name, part in sets.items()}


def _encoded_answer(row: Row, text: str, tokenizer: Any, end_id: int | None) -> EncodedRow | None:
    if not text.strip():
        return None
    try:
        return encode_row(row.with_completion(text), tokenizer, end_id)
    except UserError:  # an answer that merges with its prompt has no tokens of its own to score
        return None


def score_models(
    scenario: str,
    sets: Sets,
    outputs: Mapping[str, Mapping[str, list[str]]],
    tokenizer: Any,
    *,
    fluency_model: Any,
    fluency_name: str,
    threshold: float,
    similarity_model: str | None,
    show_text: bool,
    folder: Path,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Scores the answers of `original` and `unlearned`, writes `eval.json` and `generations.jsonl`, returns the former.

    Args:
        scenario (`str`)
        sets: prompt sets, name to rows.
        outputs: model name (`original`, `unlearned`), set name, answers.
        tokenizer: the models' tokenizer.
        fluency_model, fluency_name: the language model under which answers' NLL is taken, and what it is called.
        threshold (`float`): leak threshold in BLEU.
        similarity_model (`str`, *optional*): sentence encoder for the set `normal`.
        show_text (`bool`): whether texts of forget sets are written.
        folder (`Path`)
        progress (`Callable`, *optional*): called with (done, of) sets.
    """
    end_id = end_of_turn_id(tokenizer)
    scored: dict[str, dict[str, dict[str, MetricResult]]] = {name: {} for name in outputs}
    records = []
    for done, (model_name, set_name) in enumerate([(model, name) for model in outputs for name in sets], 1):
        rows, texts, originals = sets[set_name], outputs[model_name][set_name], outputs["original"][set_name]
        encoded = [_encoded_answer(row, text, tokenizer, end_id) for row, text in zip(rows, texts, strict=True)]
        tokens = [item.completion_ids if item else () for item in encoded]
        nlls = mean_nll(fluency_model, [item.prompt_ids if item else () for item in encoded], tokens)
        alike: Sequence[float | None] = [None] * len(rows)
        if similarity_model and set_name == "normal":
            alike = embedding_similarity(texts, originals, encoder=similarity_model)
        answers = [
            Answer(row, text, original, ids, nll, similar, threshold)
            for row, text, original, ids, nll, similar in zip(rows, texts, originals, tokens, nlls, alike, strict=True)
        ]
        results = scored[model_name][set_name] = score_set(set_name, answers)
        for position, item in enumerate(answers):
            record: dict[str, Any] = {"model": model_name, "set": set_name, "key": item.row.key}
            if show_text or set_name not in FORGET_SETS:
                record |= {"prompt": item.row.prompt_text, "expected": item.row.completion, "output": item.output}
            record["metrics"] = {metric: result.rows[position] for metric, result in results.items()}
            records.append(record)
        if progress:
            progress(done, len(outputs) * len(sets))
    evaluation = as_eval_json(scenario, scored, leak_threshold_bleu=threshold, fluency_model=fluency_name)
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_text_atomically(folder / "generations.jsonl", lines)
    write_json(folder / "eval.json", evaluation)
    return evaluation
