"""What all benchmarks share: the model that is measured, what was found, and greedy answers that
fit its window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unteach.data.rows import Row
from unteach.data.tokenization import encode_row, end_of_turn_id
from unteach.evaluation.generation import Generator, Progress, continuation_text, fitting_prompts
from unteach.evaluation.metrics import MetricFacts, PromptSet
from unteach.evaluation.results import MetricResult, summarise
from unteach.evaluation.text_metrics import rouge_l

Results = dict[str, dict[str, MetricResult]]


@dataclass(frozen=True)
class EvaluatedModel:
    """A model that is measured.

    Args:
        model, tokenizer: a causal language model and its tokenizer.
        generator (`Generator`): who generates its answers.
        before (`Any`, *optional*): the model before any change, with the same tokenizer: the
            reference of one attack, and the language model under which fluency is taken. `None` if
            it is the subject itself.
        progress (`Callable`, *optional*): called with (done, of) prompts.
        batch_size (`int`, *optional*): prompts at a time; default: by the size of their cache
    """

    model: Any
    tokenizer: Any
    generator: Generator
    before: Any = None
    progress: Progress | None = None
    batch_size: int | None = None


@dataclass(frozen=True)
class Line:
    """One row of a set: its key, the numbers that it contributes, and its texts (only written on
    request).
    """

    key: str
    metrics: Mapping[str, float | None]
    texts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """What a benchmark found for one model.

    Args:
        results: prompt set to metric to result.
        lines: prompt set to its rows.
    """

    results: Results
    lines: Mapping[str, Sequence[Line]]


@dataclass(frozen=True)
class Benchmark:
    """A protocol.

    Args:
        load: from (`--data` or `None`, limit) to its sets; whatever they are, `measure` takes them.
        measure: one model on the sets.
        against_retrained (*optional*): from what was found for a model and for one retrained
            without the forget set to further results.
        metrics, sets (*optional*): facts about its own metrics and prompt sets, for tables.
    """

    load: Callable[[str | None, int | None], Any]
    measure: Callable[[EvaluatedModel, Any], Measured]
    against_retrained: Callable[[Measured, Measured], Results] | None = None
    metrics: Mapping[str, MetricFacts] = field(default_factory=dict)
    sets: Mapping[str, PromptSet] = field(default_factory=dict)


def answers(subject: EvaluatedModel, rows: Sequence[Row], max_new_tokens: int) -> list[str]:
    """Greedy answers, without surrounding space; a prompt that leaves no room for its answer loses
    its beginning.
    """
    prompts = fitting_prompts(subject.model, subject.tokenizer, rows, max_new_tokens)
    outputs = subject.generator(prompts, max_new_tokens=max_new_tokens, progress=subject.progress)
    return [
        continuation_text(subject.tokenizer, prompt, ids).strip()
        for prompt, ids in zip(prompts, outputs, strict=True)
    ]


def encoded(
    rows: Sequence[Row], tokenizer: Any, *, ended: bool = True
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Token ids of the prompts and of the completions, each ended as generation ends it; not
    `ended`: answers, which may have been cut.
    """
    end_id = end_of_turn_id(tokenizer) if ended else None
    items = [encode_row(row, tokenizer, end_id) for row in rows]
    return [item.prompt_ids for item in items], [item.completion_ids for item in items]


def overlap(outputs: Sequence[str], rights: Sequence[str]) -> dict[str, list[float | None]]:
    """ROUGE-L recall with stemmer, which rewards rambling, and F1, which does not."""
    pairs = [rouge_l(output, right) for output, right in zip(outputs, rights, strict=True)]
    return {
        "rouge_l_recall": [recall for recall, _ in pairs],
        "rouge_l_f1": [f1 for _, f1 in pairs],
    }


def summary(
    columns: Mapping[str, Sequence[float | None]],
    better: Mapping[str, bool],
    rates: Sequence[str] = (),
) -> dict[str, MetricResult]:
    """Each column's mean with its interval and direction."""
    return {
        name: summarise(
            values,
            higher_is_better=better[name],
            interval="wilson" if name in rates else "bootstrap",
        )
        for name, values in columns.items()
    }


def row_lines(
    keys: Sequence[str],
    columns: Mapping[str, Sequence[float | None]],
    texts: Mapping[str, Sequence[str]] | None = None,
) -> list[Line]:
    """One line a row, from columns."""
    return [
        Line(
            key,
            {name: values[place] for name, values in columns.items()},
            {name: values[place] for name, values in (texts or {}).items()},
        )
        for place, key in enumerate(keys)
    ]
