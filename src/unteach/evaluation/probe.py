"""The probe: forget rate and utility of a model in training, measured on a few rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unteach.data.rows import Row
from unteach.data.tokenization import encode_row, end_of_turn_id
from unteach.evaluation.generation import generate_outputs
from unteach.evaluation.likelihood import greedy_agreement

PROBE_TOKENS = 48
ShowsForgotten = Callable[[Sequence[Row], Sequence[str]], Sequence[bool]]
OnOutputs = Callable[[Sequence[Row], Sequence[str]], None]


def evenly_spaced(rows: Sequence[Row], count: int) -> list[Row]:
    """At most `count` of the rows, at even distances."""
    count = min(count, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def make_probe(
    tokenizer: Any,
    training: Sequence[Row],
    validation: Sequence[Row],
    retain: Sequence[Row],
    *,
    shows_forgotten: ShowsForgotten,
    forget_rows: int = 24,
    drafts: Mapping[str, str] | None = None,
    on_outputs: OnOutputs | None = None,
) -> Callable[[Any], Mapping[str, float]]:
    """A function from the current model to its rates.

    `forget_rate` is the share of forget prompts whose greedy output still shows what must be
    forgotten: the mean of the shares of training and of validation rows. `utility` is the share of
    the retain completions' tokens that are the model's greedy choice.

    Args:
        tokenizer: the model's.
        training, validation, retain: rows with completions; of each at most `forget_rows`.
        shows_forgotten: the scenario's headline metric: for each row and output, whether the output
            still shows what must be forgotten.
        forget_rows: most rows of each kind.
        drafts: by a row's key, an output to verify in the first probe, which saves time; later
            probes verify the outputs of the probe before.
        on_outputs: is given the forget rows and their outputs, at each probe.
    """
    trained = evenly_spaced(training, forget_rows)
    held_out = evenly_spaced([row for row in validation if row.completion], forget_rows)
    rows = [*trained, *held_out]
    end_id = end_of_turn_id(tokenizer)
    kept = [encode_row(row, tokenizer, end_id) for row in evenly_spaced(retain, forget_rows)]
    kept_prompts = [row.prompt_ids for row in kept]
    kept_completions = [row.completion_ids for row in kept]
    latest = dict(drafts or {})

    def measure(model: Any) -> Mapping[str, float]:
        outputs = generate_outputs(
            model, tokenizer, rows, max_new_tokens=PROBE_TOKENS, drafts=latest
        )
        latest.update({row.key: output for row, output in zip(rows, outputs, strict=True)})
        if on_outputs:
            on_outputs(rows, outputs)
        shown = shows_forgotten(rows, outputs)
        rates = {"train_rate": sum(shown[: len(trained)]) / len(trained)}
        if held_out:
            rates["validation_rate"] = sum(shown[len(trained) :]) / len(held_out)
        agreement = greedy_agreement(model, kept_prompts, kept_completions)
        shares = [share for share in agreement if share is not None]
        utility = sum(shares) / len(shares) if shares else 1.0
        return {"forget_rate": sum(rates.values()) / len(rates), "utility": utility, **rates}

    return measure
