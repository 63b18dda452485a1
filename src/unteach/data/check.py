"""Checks of a forget and a retain file: every finding names its row."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import mean, median, pstdev
from typing import Any

from unteach.data.columns import labels_of
from unteach.data.public_sets import Role
from unteach.data.rendered import MARK, already_rendered, rendered_mark, turn_marks
from unteach.data.rows import Row, normalised, row_from_mapping, split_rows, split_shares
from unteach.data.sources import adapted_records
from unteach.data.tokenization import encode_row, end_of_turn_id
from unteach.errors import UserError

MOST_NAMED = 20
TRUNCATED = "truncation would cut the completion"


@dataclass
class CheckReport:
    """`problems` would stop a run or spoil it, `warnings` are worth a look, `summary` is what was
    read, `rows` are the good rows of each set.
    """

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    summary: list[str] = field(default_factory=list)
    rows: dict[str, list[Row]] = field(default_factory=dict)


def check_files(
    forget_source: Any,
    retain_source: Any,
    tokenizer: Any = None,
    *,
    unseen: Any = None,
    neighbours: Any = None,
    max_length: int = 1024,
    hold_out: float = 0.0,
    split_by: str = "prompt",
) -> CheckReport:
    """Reads both sets as a run would and reports every row that is wrong.

    Args:
        forget_source, retain_source: what `load_rows` takes; `retain_source` may be `None`.
        tokenizer (*optional*): also checks token lengths and the boundary between prompt and
            completion; without it, lengths are estimated at four characters a token.
        unseen, neighbours (*optional*): the same of the sets that are measured too.
        max_length (`int`): most tokens of prompt and completion together.
        hold_out (`float`): share of the forget rows that a run would hold out.
        split_by (`str`): see `split_rows`.

    Raises:
        UserError: if no forget row has the column `split_by`.
    """
    report = CheckReport()
    forget = _rows(forget_source, "forget", report)
    retain = [] if retain_source is None else _rows(retain_source, "retain", report)
    sets = {"forget": forget, "retain": retain}
    sets["unseen"] = [] if unseen is None else _rows(unseen, "forget", report)
    sets["neighbours"] = [] if neighbours is None else _rows(neighbours, "retain", report)
    report.rows = sets
    for name, rows in sets.items():
        if not rows:
            continue
        report.problems += _capped(list(_rendered(rows, tokenizer)))
        splits = ""
        if name == "forget":
            parts = split_rows(rows, split_shares(hold_out), by=split_by)
            sizes = {split: len(part) for split, part in parts.items()}
            if hold_out:
                splits = f" ({', '.join(f'{split} {size}' for split, size in sizes.items())})"
            if not sizes["train"]:
                report.problems.append(
                    f"forget set: none of its {len(rows)} row(s) falls into the training split"
                    f" ({1 - hold_out:.0%} by hash); give more rows, or a smaller hold_out"
                )
        empty = [row for row in rows if not row.completion]
        answered = f"; {len(empty)} without a completion: what the model answers takes its place"
        answered = answered + labels_of(empty) if empty else ""
        report.summary.append(f"{name}: {len(rows)} rows{splits}{answered}")
        if twins := len(rows) - len({row.key for row in rows}):
            report.warnings.append(f"{name} set: {twins} row(s) occur more than once")
        report.problems += _capped(list(_length_problems(rows, tokenizer, max_length)))
    report.problems += _capped(list(_duplicates(forget, retain)))
    if forget and retain and (differences := format_mismatches(forget, retain)):
        report.problems.append(
            f"format mismatch between forget ({forget[0].source}) and retain ({retain[0].source}),"
            f" a shortcut that the model would learn instead: {'; '.join(differences)}"
        )
    return report


def _rows(source: Any, role: Role, report: CheckReport) -> list[Row]:
    """All good rows of a source; every bad one becomes a problem."""
    rows: list[Row] = []
    found: list[str] = []

    def note(error: UserError) -> None:
        found.append(str(error))

    try:
        for fields, where in adapted_records(source, role, on_error=note):
            try:
                rows.append(row_from_mapping(fields, where, prompt_only=True))
            except UserError as error:
                note(error)
    except UserError as error:  # of the whole file: there is no next row
        note(error)
    if not rows and not found:
        found.append(f"{source}: no rows for the {role} set")
    report.problems += _capped(found)
    return rows


def _capped(findings: list[str]) -> list[str]:
    rest = len(findings) - MOST_NAMED
    return findings if rest <= 0 else [*findings[:MOST_NAMED], f"... and {rest} more of this kind"]


def _length_problems(rows: Sequence[Row], tokenizer: Any, max_length: int) -> Iterator[str]:
    end_id = None if tokenizer is None else end_of_turn_id(tokenizer)
    for row in rows:
        tokens = (len(row.prompt_text) + len(row.completion)) // 4
        if tokenizer is None and tokens >= max_length:
            yield (
                f"{row.source}: about {tokens} tokens, more than max_length {max_length}:"
                f" {TRUNCATED} (give --model for an exact count)"
            )
        if tokenizer is None or not row.completion:
            continue
        try:
            item = encode_row(row, tokenizer, end_id)
        except UserError as error:
            yield str(error)
            continue
        if len(item) > max_length:
            yield (
                f"{row.source}: {len(item)} tokens ({len(item.completion_ids)} of them completion),"
                f" more than max_length {max_length}: {TRUNCATED}"
            )


def _rendered(rows: Sequence[Row], tokenizer: Any) -> Iterator[str]:
    """Prompts that are rendered already: by what the template writes, else by tokens of turns."""
    marks = None if tokenizer is None else turn_marks(tokenizer)
    for row in rows:
        found = MARK.search(row.prompt_text) if marks is None and row.kind == "chat" else None
        mark = found.group() if found else rendered_mark(row, marks or ())
        if mark:
            yield f"{row.source}: {already_rendered(mark)}"


def _duplicates(forget: Sequence[Row], retain: Sequence[Row]) -> Iterator[str]:
    def content(row: Row) -> tuple[str, str]:
        return normalised(row.prompt_text), normalised(row.completion)

    whole = {content(row): row for row in forget}
    prompts = {content(row)[0]: row for row in forget if row.prompt_text}
    for row in retain:
        if twin := whole.get(content(row)):
            yield (
                f"{row.source}: the same row is in the forget set ({twin.source}); it cannot be"
                " both forgotten and kept"
            )
        elif other := prompts.get(content(row)[0]):
            yield (
                f"{row.source}: the same prompt is in the forget set ({other.source}) with another"
                " completion"
            )


def _shape(rows: Sequence[Row]) -> dict[str, float]:
    """Shares of rows by which two formats differ."""
    prompts = [row.prompt_text.rstrip() for row in rows]
    return {
        "rows without a prompt": mean(not prompt for prompt in prompts),
        "rows of kind text": mean(row.kind == "text" for row in rows),
        "prompts that are message lists": mean(not isinstance(row.prompt, str) for row in rows),
        "prompts that end in a question mark": mean(prompt.endswith("?") for prompt in prompts),
    }


def format_mismatches(forget: Sequence[Row], retain: Sequence[Row]) -> list[str]:
    """Ways in which the retain set's format differs from the forget set's, each as a clause.

    Yao et al. 2024, third lesson: with another format the model learns to distinguish the sets by
    format alone.
    """
    found = []
    left, right = _shape(forget), _shape(retain)
    for name, share in left.items():
        if abs(share - right[name]) > 0.5:
            found.append(f"{name}: {share:.0%} of forget, {right[name]:.0%} of retain")
    for what in ("prompt_text", "completion"):
        lengths = [
            [len(getattr(row, what)) for row in rows if getattr(row, what)]
            for rows in (forget, retain)
        ]
        if not all(lengths):
            continue
        logs = [[math.log1p(length) for length in part] for part in lengths]
        spread = max(0.35, *map(pstdev, logs))
        if abs(mean(logs[0]) - mean(logs[1])) > max(2.0 * spread, 1.1):
            typical = [median(part) for part in lengths]
            found.append(
                f"median {what.removesuffix('_text')} length: {typical[0]:.0f} characters in"
                f" forget, {typical[1]:.0f} in retain"
            )
    return found
