"""The content of `eval.json`: results, and the properties of their metrics and prompt sets. No
import of torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from unteach.evaluation.metrics import (
    METRICS,
    PROMPT_SETS,
    MetricFacts,
    PromptSet,
    part_facts,
    prompt_set,
)
from unteach.evaluation.results import MetricResult

SCHEMA_VERSION = 2


def facts_of(
    models: Mapping[str, Mapping[str, Iterable[str]]],
    headline: str,
    metrics: Mapping[str, MetricFacts] = METRICS,
    sets: Mapping[str, PromptSet] = PROMPT_SETS,
) -> dict[str, Any]:
    """The fields `metrics` and `prompt_sets` of `eval.json`.

    Args:
        models: model to prompt set to its metrics' names.
        headline: the headline rate.
        metrics, sets: registries; an unregistered name gets default properties.
    """
    used: dict[str, dict[str, None]] = {}
    for found in models.values():
        for name, names in found.items():
            used.setdefault(name, {}).update(dict.fromkeys(names))
    known = {
        metric: metrics.get(metric)
        or part_facts(metric)
        or MetricFacts(title=metric.replace("_", " "), higher_is_better=None, format=".3g")
        for names in used.values()
        for metric in names
    }
    facts = {}
    for name, names in used.items():
        part = sets.get(name) or prompt_set(name)
        wanted = [headline] if part.role == "forget" else []
        wanted += [metric for metric in metrics if part.role in metrics[metric].key_for]
        key = next((metric for metric in [*wanted, headline, *names] if metric in names), None)
        facts[name] = {**part.as_json(), "key_metric": key}
    return {
        "metrics": {metric: found.as_json() for metric, found in known.items()},
        "prompt_sets": facts,
    }


def as_eval_json(
    scenario: str,
    models: Mapping[str, Mapping[str, Mapping[str, MetricResult]]],
    *,
    metrics: Mapping[str, MetricFacts] = METRICS,
    sets: Mapping[str, PromptSet] = PROMPT_SETS,
    **facts: Any,
) -> dict[str, Any]:
    """`eval.json`: model, prompt set, metric, and then value, n, interval and direction.

    Args:
        scenario: its name, or the benchmark's.
        models: results by model, prompt set and metric.
        metrics, sets: their registries.
        facts: further fields of the file.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "scenario": scenario,
        "models": {
            model: {
                name: {metric: result.as_json() for metric, result in results.items()}
                for name, results in found.items()
            }
            for model, found in models.items()
        },
        **facts_of(models, facts.get("headline", "leak_rate"), metrics, sets),
        **facts,
    }


def upgraded(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The content of an `eval.json` of version 1, which had no `metrics` and `prompt_sets`, or 2 as
    of version 2.
    """
    if "metrics" in evaluation and "prompt_sets" in evaluation:
        return dict(evaluation)
    headline = evaluation.get("headline", "leak_rate")
    facts = facts_of(evaluation.get("models", {}), headline)
    return {**evaluation, "schema_version": SCHEMA_VERSION, **facts}
