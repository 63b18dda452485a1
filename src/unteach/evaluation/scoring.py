"""Outputs to prompt sets, and their scores: from models to `eval.json` and `generations.jsonl`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unteach.data.chat import chat_record
from unteach.data.rows import Row
from unteach.data.tokenization import encode_row, end_of_turn_id
from unteach.data.traces import split_trace
from unteach.errors import UserError
from unteach.evaluation.eval_json import as_eval_json
from unteach.evaluation.generation import Generator, Progress, answer_limit, generate_answers
from unteach.evaluation.likelihood import greedy_matches, mean_nll
from unteach.evaluation.metrics import METRICS, PARTS, Answer, Scorer, is_forget_set, prompt_set
from unteach.evaluation.readability import degeneration_limit, is_degenerate, is_not_meaningful
from unteach.evaluation.results import MetricResult, summarise
from unteach.evaluation.scorers import Scorers, metric_values, values_of
from unteach.evaluation.verdict import verdict
from unteach.files.atomic import write_json, write_text_atomically

NO_VERDICT = {
    "verdict": None,
    "reasons": ["no model before unlearning was evaluated, so there is nothing to compare with"],
}
"""The verdict's fields of `eval.json` where a single model was evaluated."""
Sets = Mapping[str, Sequence[Row]]


@dataclass(frozen=True)
class Generations:
    """A model's outputs to the prompt sets.

    Args:
        outputs: prompt set to the greedy outputs.
        correct: prompt set to, for each row, whether each token of the expected completion is the
            model's greedy choice given those before it; `None` for a row without completion.
        cut: prompt set to, for each output, whether it met the token limit.
    """

    outputs: Mapping[str, list[str]]
    correct: Mapping[str, list[list[bool] | None]]
    cut: Mapping[str, list[bool]] = field(default_factory=dict)


@dataclass(frozen=True)
class FluencyModel:
    """The language model for the outputs' NLL: its name in the report, the model, its tokenizer."""

    name: str
    model: Any
    tokenizer: Any


def fluency_scorer(fluency: FluencyModel) -> Scorer:
    """Mean NLL of each output's tokens; `None` for an output that is not meaningful."""

    def scores(answers: Sequence[Answer]) -> list[float | None]:
        rows, outputs = [item.row for item in answers], [item.output for item in answers]
        nlls = mean_nll(fluency.model, *_encoded(rows, outputs, fluency.tokenizer))
        return [
            None if is_not_meaningful(output) else nll
            for output, nll in zip(outputs, nlls, strict=True)
        ]

    return Scorer(fluency.name, scores)


def readability_scorers(limit: float) -> dict[str, Scorer]:
    """The scorers of `degenerate_rate` and of `readability`, its complement.

    Args:
        limit: repetition above which an answer is degenerate, see `degeneration_limit`.
    """

    def degenerate(answers: Sequence[Answer]) -> list[float]:
        return [float(is_degenerate(item.output, limit)) for item in answers]

    def readable(answers: Sequence[Answer]) -> list[float]:
        return [1.0 - value for value in degenerate(answers)]

    name = f"repetition over {limit:.2f}, loops, empty answers"
    settings = {"limit": limit}
    return {
        "degenerate_rate": Scorer(name, degenerate, settings),
        "readability": Scorer(f"not: {name}", readable, settings),
    }


def score_set(
    name: str, answers: Sequence[Answer], scorers: Mapping[str, Scorer]
) -> dict[str, MetricResult]:
    """The result of every metric that applies to the outputs of one prompt set.

    Args:
        name: the prompt set's.
        answers: its outputs.
        scorers: by metric; one that is not there leaves its metric out.

    Of outputs with a reasoning trace the rates that decide have a rate for the trace and one for
    the answer too (`PARTS`).
    """
    role = prompt_set(name).role
    completions = all(answer.row.completion for answer in answers)
    results = {}
    for metric_name, metric in METRICS.items():
        if role not in metric.roles or (metric.needs_completion and not completions):
            continue
        values = metric_values(metric_name, answers, scorers, role=role)
        if values is None:
            continue
        better = metric.better_on(role)
        result = summarise(values, higher_is_better=better, interval=metric.interval)
        if result.n < metric.min_share * len(values):
            result = MetricResult(None, 0, None, None, better, tuple(values))
        if result.n or metric.min_share:
            results[metric_name] = result
        if metric.headline and role == "forget":
            for ending, part in zip(
                PARTS, _part_values(metric_name, answers, scorers), strict=True
            ):
                found = summarise(part, higher_is_better=better, interval=metric.interval)
                results |= {metric_name + ending: found} if found.n else {}
    return results


def _part_values(
    name: str, answers: Sequence[Answer], scorers: Mapping[str, Scorer]
) -> tuple[list[float | None], list[float | None]]:
    """The values of the traces alone, and of the answers behind them; `None` without a trace."""
    traced = [place for place, answer in enumerate(answers) if split_trace(answer.output)[0]]
    parts = []
    for part in (0, 1):
        texts = [
            replace(a, output=split_trace(a.output)[part]) for a in map(answers.__getitem__, traced)
        ]
        values: list[float | None] = [None] * len(answers)
        scores = values_of(name, texts, scorers) if texts else None
        for place, value in zip(traced, scores or [], strict=False):
            values[place] = value
        parts.append(values)
    return parts[0], parts[1]


def generate_sets(
    model: Any,
    tokenizer: Any,
    sets: Sets,
    *,
    generator: Generator | None = None,
    drafts: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Generations:
    """The model's greedy outputs to every row of every set, generated together, and its greedy
    choices along the expected completions.

    Args:
        sets: prompt sets, name to rows.
        generator: generates the outputs; default: the model itself.
        drafts: by row key, drafts of the outputs, such as another model's.
        progress: called with (done, of) prompts.
    """
    rows = [row for part in sets.values() for row in part]
    completions = [row.completion for row in rows]
    matches = greedy_matches(
        model, *_encoded(rows, completions, tokenizer, end_of_turn_id(tokenizer))
    )
    generated = generate_answers(
        model,
        tokenizer,
        rows,
        max_new_tokens=answer_limit(tokenizer, rows, model),
        generator=generator,
        drafts=drafts,
        matches=matches,
        progress=progress,
    )
    texts, limits = ([item[place] for item in generated] for place in (0, 1))

    def by_set(values: Sequence[Any]) -> dict[str, list[Any]]:
        remaining = iter(values)
        return {name: [next(remaining) for _ in part] for name, part in sets.items()}

    return Generations(by_set(texts), by_set(matches), by_set(limits))


def _encoded(
    rows: Sequence[Row], texts: Sequence[str], tokenizer: Any, end_id: int | None = None
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Token ids of the prompts, and of the texts as their completions; none where a text is empty
    or its first token merges with the prompt's last.

    With `end_id` a chat row's completion ends with it. An output has none: it may be truncated at
    the token limit, where an end token has a high NLL.
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
    generations: Mapping[str, Generations],
    tokenizer: Any,
    scorers: Scorers,
    *,
    fluency: FluencyModel,
    show_text: bool,
    folder: Path,
    judged: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Scores the outputs of the model `original` and of others; writes `eval.json`, with the
    verdict, and `generations.jsonl`.

    Args:
        scenario: its name.
        sets: prompt sets, name to rows.
        generations: by model's name (`original`, `unlearned`, ...).
        tokenizer: the models'.
        scorers: all but the scorer of fluency.
        fluency: the language model for the outputs' NLL.
        show_text: whether texts of forget sets are written.
        folder: where the files are written.
        judged: whether `original` is the model before unlearning; without it no verdict.
        progress: called with (done, of) sets.

    Returns:
        the content of `eval.json`.
    """
    everyday = [name for name in sets if prompt_set(name).role == "normal"]
    originals = generations["original"].outputs
    limit = degeneration_limit([output for name in everyday for output in originals[name]])
    own = {"fluency": fluency_scorer(fluency), **readability_scorers(limit)}
    by_metric = {**scorers.by_metric, **own}
    scored: dict[str, dict[str, dict[str, MetricResult]]] = {name: {} for name in generations}
    records: list[dict[str, Any]] = []
    pairs = [(model, name) for model in generations for name in sets]
    for done, (model, name) in enumerate(pairs, 1):
        rows, outputs = sets[name], generations[model].outputs[name]
        unknown: list[Any] = [None] * len(rows)
        limits: Mapping[str, list[Any]] = generations[model].cut
        columns = zip(
            rows,
            outputs,
            originals[name],
            _encoded(rows, outputs, tokenizer)[1],
            generations[model].correct[name],
            limits.get(name, unknown),
            strict=True,
        )
        answers = [Answer(*column) for column in columns]
        results = scored[model][name] = score_set(name, answers, by_metric)
        with_text = show_text or not is_forget_set(name)
        for position, item in enumerate(answers):
            record = {"model": model, "set": name, "key": item.row.key}
            if with_text:
                record["prompt"] = item.row.prompt_text
                trace, answer = split_trace(item.output)
                record |= {"expected": item.row.completion, "output": answer}
                record |= {"trace": trace} if trace else {}
            values = {metric: result.rows[position] for metric, result in results.items()}
            records.append({**record, "metrics": values})
        if progress:
            progress(done, len(pairs))
    used = {metric for found in scored.values() for results in found.values() for metric in results}
    evaluation = as_eval_json(
        scenario,
        scored,
        headline=scorers.headline,
        headline_reason=scorers.names.headline_reason,
        leak_threshold_bleu=scorers.threshold,
        fluency_model=fluency.name,
        chat=chat_record(tokenizer),
        scorers={name: found.as_json() for name, found in by_metric.items() if name in used},
    )
    evaluation |= verdict(evaluation) if judged else NO_VERDICT
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_text_atomically(folder / "generations.jsonl", lines)
    write_json(folder / "eval.json", evaluation)
    return evaluation
