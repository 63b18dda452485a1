"""The probe of a run: what the model says now, measured on a few rows while it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unteach.data.rows import Row
from unteach.data.tokenization import encode_row, end_of_turn_id
from unteach.evaluation.generation import answer
from unteach.evaluation.likelihood import greedy_agreement

PROBE_TOKENS = 48
StillSaid = Callable[[Sequence[Row], Sequence[str]], Sequence[bool]]
OnOutputs = Callable[[Sequence[Row], Sequence[str]], None]


def spread(rows: Sequence[Row], count: int) -> list[Row]:
    """At most `count` of the rows, at even distances."""
    count = min(count, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def behaviour_probe(
    tokenizer: Any,
    training: Sequence[Row],
    validation: Sequence[Row],
    retain: Sequence[Row],
    *,
    still_said: StillSaid,
    forget_rows: int = 24,
    expected: Mapping[str, str] | None = None,
    on_outputs: OnOutputs | None = None,
) -> Callable[[Any], Mapping[str, float]]:
    """A function from the current model to its rates.

    `forget_rate` is the share of forget prompts whose greedy answer still says what it must not,
    mean of training and validation rows' shares. `utility` is the share of the retain completions'
    tokens that the model still chooses greedily.

    Args:
        tokenizer: the model's tokenizer.
        training, validation, retain: rows with completions; of each at most `forget_rows`.
        still_said: from rows and answers to whether each answer still says it: the scenario's
            headline metric.
        forget_rows (`int`)
        expected (*optional*): by a row's key, what the first probe may well hear, which saves time;
            later ones expect what was heard.
        on_outputs (*optional*): is given the forget rows asked and their answers, at each probe.
    """
    asked, held_out = (
        spread(training, forget_rows),
        spread([row for row in validation if row.completion], forget_rows),
    )
    end_id = end_of_turn_id(tokenizer)
    kept = [encode_row(row, tokenizer, end_id) for row in spread(retain, forget_rows)]
    drafts = dict(expected or {})

    def measure(model: Any) -> Mapping[str, float]:
        rows = [*asked, *held_out]
        outputs = answer(model, tokenizer, rows, max_new_tokens=PROBE_TOKENS, expected=drafts)
        drafts.update({row.key: output for row, output in zip(rows, outputs, strict=True)})
        if on_outputs:
            on_outputs(rows, outputs)
        said = still_said(rows, outputs)
        first, second = said[: len(asked)], said[len(asked) :]
        rates = {"train_rate": sum(first) / len(first)}
        if second:
            rates["validation_rate"] = sum(second) / len(second)
        agreement = greedy_agreement(
            model, [row.prompt_ids for row in kept], [row.completion_ids for row in kept]
        )
        shares = [share for share in agreement if share is not None]
        utility = sum(shares) / len(shares) if shares else 1.0
        forget_rate = sum(rates.values()) / len(rates)
        return {"forget_rate": forget_rate, "utility": utility, **rates}

    return measure
