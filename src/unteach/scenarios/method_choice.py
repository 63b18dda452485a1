"""The default method for a user's forget rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from unteach.config.run import RunConfig
from unteach.data.ngrams import is_passage
from unteach.data.rows import Row
from unteach.scenarios.scenario import Scenario
from unteach.scenarios.user_rows import USERS_OWN

if TYPE_CHECKING:  # imports torch, which choosing a method does not need
    from unteach.config.resolve import ResolvedConfig

SHORT_ANSWER = 400
"""Characters of a completion up to which a row is a short answer."""

INSTEAD = "instead"
"""The method of the option of that name."""


def short_answers(rows: Sequence[Row]) -> bool:
    """Whether most rows are short answers to prompts; a row whose answer is still to be generated
    counts as one.
    """
    return 2 * sum(map(_is_short, rows)) > len(rows)


def _is_short(row: Row) -> bool:
    return row.kind == "chat" and len(row.completion) <= SHORT_ANSWER


def method_for(rows: Sequence[Row]) -> tuple[str, str]:
    """The default method for some forget rows, and why.

    `counterfactual` for short answers, of which a few words are the fact; `divert` for running
    text, whose wording is what shall go; the default of `UnlearningConfig` for long answers to
    prompts, of which neither holds.
    """
    short, passages = sum(map(_is_short, rows)), sum(map(is_passage, rows))
    if 2 * short > len(rows):
        why = "short answers: the facts in them are forgotten, their language is kept"
        return "counterfactual", f"{short} of {len(rows)} forget rows are {why}"
    if 2 * (short + passages) > len(rows):
        why = "passages: their wording is forgotten, the language is kept"
        return "divert", f"{passages} of {len(rows)} forget rows are {why}"
    share = f"only {short} of {len(rows)} forget rows are short answers and {passages} passages"
    return RunConfig().method, f"{share}: whole completions are forgotten"


def with_suitable_method(
    resolved: ResolvedConfig, scenario: Scenario
) -> tuple[ResolvedConfig, str]:
    """The configuration with the default method for a user's rows, and a sentence with the reason;
    empty where a method was named.
    """
    if resolved.run.instead:
        return resolved.with_rows(method=INSTEAD), ""
    if scenario.name != USERS_OWN:
        return resolved, ""
    method, why = method_for(scenario.forget)
    made = resolved.with_rows(method=method)
    return made, "" if made is resolved else f"Method {method}: {why} (--method names another one)."
