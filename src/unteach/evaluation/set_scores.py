"""The values of a metric on the outputs of a prompt set; of an output with a reasoning trace the
answer and the trace are told apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from unteach.data.traces import split_trace
from unteach.evaluation.metrics import METRICS, PARTS, Answer, Metric, Role, Scorer, prompt_set
from unteach.evaluation.results import MetricResult, summarise


def metric_values(
    name: str,
    answers: Sequence[Answer],
    scorers: Mapping[str, Scorer],
    *,
    role: Role = "forget",
) -> list[float | None] | None:
    """A registered metric's value of each answer; `None` if its scorer is not among `scorers`.

    Of an output with a reasoning trace the answer behind it is measured; on forget sets what must
    not be shown is looked for in both, and the higher value counts.
    """
    metric = METRICS[name]
    parts = [split_trace(answer.output) for answer in answers]
    spoken = [
        replace(a, output=answer, original_output=split_trace(a.original_output)[1])
        for a, (_, answer) in zip(answers, parts, strict=True)
    ]
    values = _values(metric, name, spoken, scorers)
    traced = [place for place, (trace, _) in enumerate(parts) if trace]
    leaks = metric.headline or metric.opposite_elsewhere
    if values is None or not traced or not leaks or role != "forget":
        return values
    thoughts = [replace(spoken[place], output=parts[place][0]) for place in traced]
    found = _values(metric, name, thoughts, scorers) or []
    for place, value in zip(traced, found, strict=True):
        values[place] = max((v for v in (values[place], value) if v is not None), default=None)
    return values


def _values(
    metric: Metric, name: str, answers: Sequence[Answer], scorers: Mapping[str, Scorer]
) -> list[float | None] | None:
    if name in scorers:
        return list(scorers[name].scores(answers))
    return None if metric.row_value is None else [metric.row_value(answer) for answer in answers]


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
        scores = _values(METRICS[name], name, texts, scorers) if texts else None
        for place, value in zip(traced, scores or [], strict=False):
            values[place] = value
        parts.append(values)
    return parts[0], parts[1]
