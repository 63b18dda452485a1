"""Reasoning traces: what a model thinks in writing before it answers.

In rows and outputs a trace stands before its answer as `<think>` ... `</think>`, whatever markers
the model's own template has.
"""

from __future__ import annotations

import re

OPEN, CLOSE = "<think>", "</think>"


def split_trace(text: str) -> tuple[str, str]:
    """(the trace without its markers, stripped; the answer without the line breaks before it, or
    the spaces where there are none). A text without a trace is its answer as it is. Where the trace
    does not end there is no answer.
    """
    if CLOSE not in text and not text.lstrip().startswith(OPEN):
        return "", text
    trace, _, answer = text.partition(CLOSE)
    answer = re.sub(r"^\s+$|^\s*\n|^\s+", "", answer)
    return trace.strip().removeprefix(OPEN).strip(), answer


def with_trace(trace: str, answer: str, *, ended: bool = True) -> str:
    """The text of a trace and its answer; `ended=False`: the trace was cut off."""
    if not trace.strip():
        return answer if ended else ""
    return f"{OPEN}\n{trace.strip()}" + (f"\n{CLOSE}\n\n{answer}" if ended else "")
