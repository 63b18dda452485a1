"""The rows of a run as token ids, and the pool that mismatch completions are drawn from."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from unteach.config.unlearning import UnlearningConfig
from unteach.data.completions import REFUSAL, MismatchPool, with_preferred
from unteach.data.counterfactuals import Counterfactual, counterfactual
from unteach.data.ngrams import ForgottenRuns, is_passage
from unteach.data.rendered import refuse_rendered
from unteach.data.rows import Row, evenly_spaced
from unteach.data.sources import load_rows
from unteach.data.subjects import lower_case_words
from unteach.data.token_store import TokenStore, TokenTable
from unteach.data.tokenization import EncodedRow, encode_row, encode_rows, end_of_turn_id
from unteach.errors import UserError

POOL_ROWS = 10_000
NO_WINDOW = 2**30
NO_CONTEXT = (
    "{lost} of the {rows} forget rows have no name to exchange and no other prompt to compare with:"
    " what is the fact in them is not known, and nothing in them is forgotten; give more rows, or"
    " another method"
)


def check_lengths(
    sets: Mapping[str, Sequence[Row]],
    tokenizer: Any,
    config: UnlearningConfig,
    window: int = NO_WINDOW,
) -> None:
    """Checks the length of rows that have a completion, before anything is generated or trained.

    Raises:
        UserError: for a row longer than `max_length` or the model's window, where `long_rows` is
            `error`.
    """
    if config.long_rows != "error":
        return
    limits: dict[str, Any] = {"max_length": config.max_length, "window": window}
    for name, rows in sets.items():
        complete = [row for row in rows if row.completion]
        if complete:
            encode_rows(complete, tokenizer, long_rows="error", name=name, **limits)


def encoded_rows(
    dataset: Any, tokenizer: Any, config: UnlearningConfig, name: Any, window: int = NO_WINDOW
) -> Sequence[EncodedRow]:
    """The rows of one set as token ids, each forget row with its preferred completion where the
    method has one.

    Forget rows come without the token that ends an answer unless `forget_end_of_turn` is on.

    Args:
        dataset: anything that `load_rows` reads, rows, encoded rows (a list or a `TokenTable`), or
            a `TokenStore`; `None` gives no rows.
        tokenizer: a Hugging Face tokenizer.
        name (`"forget"` or `"retain"`)
        window (`int`): most tokens that the model takes (`models.window`).

    Raises:
        UserError: for a row that is too long, or whose prompt is rendered already.
    """
    if dataset is None:
        return []
    keeps_end = name == "retain" or config.forget_end_of_turn
    end_id = None if keeps_end else end_of_turn_id(tokenizer)
    if isinstance(dataset, TokenStore):
        _check_store(config, name)
        return dataset if end_id is None else TokenStore(dataset.folder, end_id)
    rows: Sequence[Any] = dataset
    if not isinstance(dataset, list | tuple | TokenTable):
        rows = load_rows(dataset, name)
    if rows and not isinstance(rows[0], Row | EncodedRow):
        rows = load_rows(rows, name)
    encoded, texts = rows, []
    if not rows or isinstance(rows[0], Row):
        refuse_rendered(rows, tokenizer)
        limits: dict[str, Any] = {"max_length": config.max_length, "window": window}
        encoded = encode_rows(rows, tokenizer, long_rows=config.long_rows, name=name, **limits)
        texts = list(rows)
    preferred = config.objective.preferred if name == "forget" else None
    complete: Iterable[EncodedRow]
    if preferred:
        limit = min(config.max_length, window)
        options: dict[str, Any] = {
            "method": config.method,
            "max_length": limit,
            "seed": config.seed,
        }
        complete = with_preferred(encoded, texts, preferred, tokenizer, **options)
    else:
        complete = (replace(row, preferred_ids=()) if row.preferred_ids else row for row in encoded)
    return TokenTable(row.without_end(end_id) for row in complete)


def _check_store(config: UnlearningConfig, name: str) -> None:
    if name == "forget" and "preferred" in config.objective.roles:
        raise UserError(
            f"method {config.method!r} needs preferred completions, which a token store does not"
            " hold; give a list of rows"
        )
    if config.reference == "stored":
        raise UserError(
            "reference is 'stored', which keeps states of every row; with a token store use"
            " adapter_off or live"
        )


def check_rows(
    config: UnlearningConfig, forget: Sequence[EncodedRow], retain: Sequence[EncodedRow]
) -> None:
    """Raises `UserError` where the method needs a set that has no rows."""
    roles = config.objective.roles
    if "forget" in roles and not forget:
        raise UserError(f"method {config.method!r} needs forget_dataset")
    from_retain = "mismatch" in roles and config.mismatch_source == "retain"
    if ("retain" in roles or from_retain) and not retain:
        raise UserError(
            f"method {config.method!r} needs retain_dataset (its terms: {', '.join(roles)})"
        )


def counterfactuals_of(
    dataset: Any,
    encoded: Sequence[EncodedRow],
    retain: Any,
    config: UnlearningConfig,
    tokenizer: Any,
) -> list[Counterfactual]:
    """The contexts of each encoded forget row, from the text of the rows.

    Args:
        dataset: what the rows were read from, as in `encoded_rows`.
        retain: the retain set, whose prompts serve a forget row without names where the forget set
            has no other prompt.
        tokenizer: a Hugging Face tokenizer.

    Raises:
        UserError: for rows that are given without their text.
    """
    texts = {row.key: row for row in _with_text(dataset, "forget", config)}
    others = list(texts.values())
    if len({row.prompt_key for row in others}) < 2 and not isinstance(retain, TokenStore | None):
        others += _with_text(retain, "retain", config)
    lower_case = lower_case_words(row.prompt_text for row in texts.values())
    passages = [item for item in encoded if is_passage(texts[item.key])]
    runs = ForgottenRuns((row.prompt_ids + row.completion_ids for row in passages), tokenizer)
    options: dict[str, Any] = {
        "others": others,
        "lower_case": lower_case,
        "near": config.update == "directed",
        "seed": config.seed,
        "runs": runs,
    }
    parts = [counterfactual(texts[item.key], item, tokenizer, **options) for item in encoded]
    if lost := sum(not part.contexts and not part.avoid for part in parts):
        warnings.warn(NO_CONTEXT.format(lost=lost, rows=len(parts)), stacklevel=3)
    return parts


def _with_text(dataset: Any, name: Any, config: UnlearningConfig) -> list[Row]:
    rows = dataset
    if not isinstance(rows, list | tuple | TokenTable) or (rows and isinstance(rows[0], dict)):
        rows = load_rows(rows, name)
    if any(not isinstance(row, Row) for row in rows[:1]):
        raise UserError(
            f"method {config.method!r} with update={config.update} reads the text of the {name}"
            " rows, which encoded rows do not hold; give the rows themselves"
        )
    return list(rows)


def _spread(rows: Sequence[EncodedRow]) -> Sequence[EncodedRow]:
    """All rows, or `POOL_ROWS` of a token store at even distances."""
    if not isinstance(rows, TokenStore):
        return rows
    return evenly_spaced(rows, POOL_ROWS)


def mismatch_pool(
    config: UnlearningConfig,
    forget: Sequence[EncodedRow],
    retain: Sequence[EncodedRow],
    tokenizer: Any,
    window: int = NO_WINDOW,
) -> MismatchPool | None:
    """The pool that mismatch completions are drawn from; `None` for a method without them."""
    if not config.objective.mismatch:
        return None
    rows, end_id = _spread(retain), end_of_turn_id(tokenizer)
    if config.mismatch_source == "refusal":
        kinds = sorted({row.kind for row in _spread(forget)})
        rows = []
        for kind in kinds:
            text = f" {REFUSAL}" if kind == "text" else REFUSAL
            answer = Row("Question", text, kind)  # type: ignore[arg-type]
            rows.append(encode_row(answer, tokenizer, end_id))
    return MismatchPool(
        rows,
        config.mismatch_completions,
        config.seed,
        end_id=end_id,
        max_length=min(config.max_length, window),
    )
