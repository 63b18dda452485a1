"""The rows of a run as token ids, and the pool that mismatch completions are drawn from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from unteach.config.unlearning import UnlearningConfig
from unteach.data.mismatch import REFUSAL, MismatchPool
from unteach.data.preferred import with_preferred
from unteach.data.rows import Row
from unteach.data.sources import load_rows
from unteach.data.token_store import TokenStore
from unteach.data.token_table import TokenTable
from unteach.data.tokenization import EncodedRow, encode_row, encode_rows, end_of_turn_id
from unteach.errors import UserError
from unteach.methods import ROLES, Method

POOL_ROWS = 10_000
NO_WINDOW = 2**30


def used_roles(method: Method) -> list[str]:
    """The roles that a method's terms read."""
    used = {
        "forget": method.forget,
        "mismatch": method.mismatch,
        "retain": method.retain,
        "preferred": method.preferred,
    }
    return [role for role in ROLES if used[role]]


def check_lengths(
    sets: Mapping[str, Sequence[Row]],
    tokenizer: Any,
    config: UnlearningConfig,
    window: int = NO_WINDOW,
) -> None:
    """Looks at rows that have a completion before anything is asked or trained.

    Raises:
        UserError: for a row longer than `max_length` or the model's window, where `long_rows` is
            `error`.
    """
    for name, rows in sets.items():
        whole = [row for row in rows if row.completion]
        if whole and config.long_rows == "error":
            encode_rows(
                whole,
                tokenizer,
                max_length=config.max_length,
                window=window,
                long_rows="error",
                name=name,
            )


def encoded_rows(
    dataset: Any, tokenizer: Any, config: UnlearningConfig, name: Any, window: int = NO_WINDOW
) -> Sequence[EncodedRow]:
    """The rows of one set as token ids, each forget row with its preferred completion where the
    method has one.

    Forget rows come without the token that ends an answer unless `forget_end_of_turn` is on.

    Args:
        dataset: anything that `load_rows` reads, rows, rows that are encoded already (a list or a
            `TokenTable`), or a `TokenStore`; `None` gives no rows.
        tokenizer: a Hugging Face tokenizer.
        config (`UnlearningConfig`)
        name (`"forget"` or `"retain"`)
        window (`int`): most tokens that the model takes (`models.window`).
    """
    if dataset is None:
        return []
    method = config.objective
    end_id = (
        end_of_turn_id(tokenizer) if name == "forget" and not config.forget_end_of_turn else None
    )
    if isinstance(dataset, TokenStore):
        if name == "forget" and method.preferred:
            raise UserError(
                f"method {config.method!r} needs preferred completions, which a token store does"
                " not hold; give a list of rows"
            )
        if config.reference == "stored":
            raise UserError(
                "reference is 'stored', which keeps states of every row; with a token store use"
                " adapter_off or live"
            )
        return dataset if end_id is None else TokenStore(dataset.folder, end_id)
    rows: Sequence[Any] = (
        dataset if isinstance(dataset, list | tuple | TokenTable) else load_rows(dataset, name)
    )
    if rows and not isinstance(rows[0], Row | EncodedRow):
        rows = load_rows(rows, name)
    ready = bool(rows) and isinstance(rows[0], EncodedRow)
    limits: dict[str, Any] = {
        "max_length": config.max_length,
        "window": window,
        "long_rows": config.long_rows,
        "name": name,
    }
    encoded = rows if ready else encode_rows(rows, tokenizer, **limits)
    if name == "forget" and method.preferred:
        settings: dict[str, Any] = {
            "method": config.method,
            "max_length": min(config.max_length, window),
            "seed": config.seed,
        }
        complete: Iterable[EncodedRow] = with_preferred(
            encoded, [] if ready else rows, method.preferred, tokenizer, **settings
        )
    else:
        complete = (replace(row, preferred_ids=()) if row.preferred_ids else row for row in encoded)
    return TokenTable(row.without_end(end_id) for row in complete)


def check_rows(
    config: UnlearningConfig, forget: Sequence[EncodedRow], retain: Sequence[EncodedRow]
) -> None:
    """Raises `UserError` where the method needs a set that has no rows."""
    method = config.objective
    if method.forget and not forget:
        raise UserError(f"method {config.method!r} needs forget_dataset")
    if (method.retain or (method.mismatch and config.mismatch_source == "retain")) and not retain:
        raise UserError(
            f"method {config.method!r} needs retain_dataset (its terms:"
            f" {', '.join(used_roles(method))})"
        )


def _spread(rows: Sequence[EncodedRow]) -> list[EncodedRow]:
    count = min(POOL_ROWS, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def mismatch_pool(
    config: UnlearningConfig,
    forget: Sequence[EncodedRow],
    retain: Sequence[EncodedRow],
    tokenizer: Any,
    window: int = NO_WINDOW,
) -> MismatchPool | None:
    """Where mismatch completions are drawn from (of a token store: `POOL_ROWS` rows at even
    distances); `None` for a method without.
    """
    if not config.objective.mismatch:
        return None
    rows: Sequence[EncodedRow] = _spread(retain) if isinstance(retain, TokenStore) else retain
    if config.mismatch_source == "refusal":
        kinds = {
            row.kind for row in (_spread(forget) if isinstance(forget, TokenStore) else forget)
        }
        end_id = end_of_turn_id(tokenizer)
        answers: list[Row] = [
            Row("Question", (" " if kind == "text" else "") + REFUSAL, kind)  # type: ignore[arg-type]
            for kind in sorted(kinds)
        ]
        rows = [encode_row(answer, tokenizer, end_id) for answer in answers]
    most = min(config.max_length, window)
    return MismatchPool(
        rows,
        config.mismatch_completions,
        config.seed,
        end_id=end_of_turn_id(tokenizer),
        max_length=most,
    )
