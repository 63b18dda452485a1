"""The probe: forget rate, utility and readability of a model during training."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from statistics import fmean
from typing import Any

from unteach.data.chat import chat_settings
from unteach.data.counterfactuals import fact_tokens
from unteach.data.rows import Row, evenly_spaced
from unteach.data.tokenization import EncodedRow, encode_row, end_of_turn_id
from unteach.errors import UserError
from unteach.evaluation.generation import MORE_TOKENS, generate_answers, trace_room
from unteach.evaluation.likelihood import greedy_matches
from unteach.evaluation.readability import LEAST_LIMIT, is_degenerate

PROBE_TOKENS = 48
"""Longest output of a probe, in tokens."""
KEPT_TOKENS = 32
"""Tokens of a retain completion that are compared, from its beginning."""
ShowsForgotten = Callable[[Sequence[Row], Sequence[str]], Sequence[bool]]
OnOutputs = Callable[[Sequence[Row], Sequence[str]], None]


def make_probe(
    tokenizer: Any,
    training: Sequence[Row],
    validation: Sequence[Row],
    kept: Sequence[Row],
    *,
    shows_forgotten: ShowsForgotten,
    neighbours: Sequence[Row] = (),
    forget_rows: int = 24,
    degenerate_over: float = LEAST_LIMIT,
    drafts: Mapping[str, str] | None = None,
    on_outputs: OnOutputs | None = None,
) -> Callable[[Any], Mapping[str, float]]:
    """A function from the current model to its rates.

    - `forget_rate`: share of forget prompts whose greedy output still shows what must be forgotten,
      the mean of `train_rate` and, where there are validation rows, `validation_rate`.
    - `readable`, `cut_off`: shares of these outputs that are not degenerate, and that met the token
      limit.
    - `utility`, `neighbours`: share of the tokens of retain completions that are the model's greedy
      choice, mean over rows; for a row with facts, whether all tokens of the facts are. From one
      forward pass, without generation. `neighbours` is missing without such rows.

    Args:
        training, validation: forget rows with completions; at most `forget_rows` in all, of which
            validation rows are up to a half.
        kept, neighbours: rows with completions, preferably not trained on.
        shows_forgotten: the headline metric: for each row and output, whether the output still
            shows what must be forgotten.
        degenerate_over: see `degeneration_limit`.
        drafts: by row key, drafts of the outputs for the first probe; later probes take the outputs
            of the probe before.
        on_outputs: called with the forget rows and their outputs at each probe.
    """
    held_out = evenly_spaced([row for row in validation if row.completion], forget_rows // 2)
    trained = evenly_spaced(training, forget_rows - len(held_out))
    rows = [*trained, *held_out]
    texts = [row.completion for row in rows]
    lengths = map(len, tokenizer(texts, add_special_tokens=False)["input_ids"])
    most_tokens = min(PROBE_TOKENS, max(lengths) + MORE_TOKENS) + trace_room(tokenizer)
    most_tokens = chat_settings(tokenizer).max_new_tokens or most_tokens
    sets = {"utility": kept, "neighbours": neighbours}
    parts = {name: _read_rows(part, tokenizer) for name, part in sets.items()}
    latest = dict(drafts or {})

    def measure(model: Any) -> Mapping[str, float]:
        answers = generate_answers(
            model, tokenizer, rows, max_new_tokens=most_tokens, drafts=latest
        )
        outputs = [output for output, _ in answers]
        latest.update({row.key: output for row, output in zip(rows, outputs, strict=True)})
        if on_outputs:
            on_outputs(rows, outputs)
        shown = shows_forgotten(rows, outputs)
        rates = {"train_rate": sum(shown[: len(trained)]) / len(trained)}
        if held_out:
            rates["validation_rate"] = sum(shown[len(trained) :]) / len(held_out)
        agreed = iter(_agreement(model, [item for part in parts.values() for item in part]))
        shares = {name: [next(agreed) for _ in part] for name, part in parts.items()}
        found = {name: fmean(values) for name, values in shares.items() if values}
        readable = fmean(not is_degenerate(output, degenerate_over) for output in outputs)
        forget_rate = fmean(rates.values())
        first = {"forget_rate": forget_rate, "utility": 1.0}
        cut_off = fmean(cut for _, cut in answers)
        return {**first, **found, "readable": readable, "cut_off": cut_off, **rates}

    return measure


def _read_rows(
    rows: Sequence[Row], tokenizer: Any
) -> list[tuple[EncodedRow, Sequence[bool] | None]]:
    """The rows that tokenise, and which of the first `KEPT_TOKENS` completion tokens are compared;
    `None`: all.
    """
    end_id = end_of_turn_id(tokenizer)
    found: list[tuple[EncodedRow, Sequence[bool] | None]] = []
    for row in rows:
        with contextlib.suppress(UserError):
            item = encode_row(row, tokenizer, end_id)
            facts = (fact_tokens(row, item, tokenizer) or ())[:KEPT_TOKENS]
            found.append((item, facts if any(facts) else None))
    return found


def _agreement(
    model: Any, items: Sequence[tuple[EncodedRow, Sequence[bool] | None]]
) -> list[float]:
    """Share of each row's tokens that are the model's greedy choice given those before them; for a
    row with facts 1 if all their tokens are, else 0.
    """
    prompts = [item.prompt_ids for item, _ in items]
    completions = [item.completion_ids[:KEPT_TOKENS] for item, _ in items]
    found = []
    for (_, read), matches in zip(items, greedy_matches(model, prompts, completions), strict=True):
        right = list(compress(matches or (), read or [True] * len(matches or ())))
        found.append(float(all(right)) if read else fmean(right))
    return found
