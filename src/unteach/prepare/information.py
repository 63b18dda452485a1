"""Which words of a row are the fact: those about which its prompt tells the model what prompts of
the same kind do not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from unteach import models
from unteach.config.resolve import ResolvedConfig
from unteach.data.counterfactuals import completion_text, counterfactual, token_spans
from unteach.data.rows import Row, letters_and_digits
from unteach.data.stream import Collator
from unteach.data.subjects import OPENERS, WORD, common_subject, lower_case_words, spellings
from unteach.data.tokenization import encode_row
from unteach.evaluation.metrics import is_forget_set
from unteach.methods import DEFAULT_METHOD, Hooks, get_method
from unteach.prepare.generations import LoadedModel
from unteach.scenarios.scenario import Scenario
from unteach.scenarios.user_rows import USERS_OWN
from unteach.trainer.counterfactual import CounterfactualTokens, counterfactual_tokens
from unteach.trainer.reference import ReferenceModel
from unteach.trainer.step import StepSpec

LEAST_SPAN = 2.0
"""Nats of information from which on a run of tokens is a fact; what follows the first tokens of a
fact that is known by heart tells little more, so a run is extended to whole words."""
BESIDE_THE_BEST = 0.5
"""Share of the information of a row's best run that another one needs to be a fact, too."""
ROWS_AT_ONCE = 32


@dataclass(frozen=True)
class Span:
    """A run of completion tokens of high information.

    Args:
        text (`str`): without white space and punctuation around it.
        information (`float`): summed over its tokens, in nats.
    """

    text: str
    information: float


def informative_spans(
    model: Any, tokenizer: Any, rows: Sequence[Row], *, seed: int = 0
) -> list[list[Span]]:
    """The facts in the completions of some rows, the most informative first.

    A run of tokens counts from `LEAST_SPAN` nats on, and beside a better one from
    `BESIDE_THE_BEST` of its information; a run that the prompt holds already does not.

    Args:
        model: the causal language model that knows the rows.
        tokenizer: its tokenizer.
        rows (`Sequence[Row]`): with completions; they are each other's contexts where one has no
            name to exchange.
        seed (`int`): of the invented names.

    Returns:
        for each row its spans; none where nothing in it is information.
    """
    method = get_method("counterfactual")
    hooks = Hooks(method, None, None, None)
    spec = StepSpec(method, hooks, packed=False, budget_bytes=2**28, autocast=nullcontext)
    reference = ReferenceModel(model, spec, "stored")
    collator = Collator([], tokenizer.pad_token_id or 0, packed=False)
    lower_case = lower_case_words(row.prompt_text for row in rows)
    common = _common_words(rows)
    found: list[list[Span]] = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        group = rows[start : start + ROWS_AT_ONCE]
        items = [encode_row(row, tokenizer, None) for row in group]
        parts = [
            counterfactual(
                replace(row, secret=()),
                item,
                tokenizer,
                others=rows,
                lower_case=sorted(lower_case),
                seed=seed,
            )
            for row, item in zip(group, items, strict=True)
        ]
        with models.dropout_off(model):
            tokens = counterfactual_tokens(reference, items, parts, collator)
        for row, item, measured in zip(group, items, tokens, strict=True):
            text = completion_text(item, tokenizer)
            found.append(_spans(row, text, token_spans(item, tokenizer), measured, common))
    return found


def _spans(
    row: Row,
    text: str,
    places: Sequence[tuple[int, int]],
    tokens: CounterfactualTokens,
    common: Collection[str],
) -> list[Span]:
    runs: list[tuple[int, int, float]] = []
    last = -2
    for number, (start, end) in enumerate(places):
        if not tokens.fact[number]:
            continue
        value = float(tokens.information[number])
        if number - last <= 2 and runs:  # one token between two of a fact belongs to it
            first, _, total = runs.pop()
            runs.append((first, end, total + value))
        else:
            runs.append((start, end, value))
        last = number
    prompt = letters_and_digits(row.prompt_text)
    spans: list[Span] = []
    last_end = -1
    for start, end, value in runs:
        if start < last_end:  # the run before was extended over this one
            continue
        while start > 0 and text[start - 1].isalnum() and text[start : start + 1].isalnum():
            start -= 1
        while end < len(text) and text[end - 1].isalnum() and text[end].isalnum():
            end += 1
        end = last_end = _rest_of_fact(text, end, prompt, common)
        words = text[start:end].strip(" \t\n.,;:!?\"'()[]")
        plain = letters_and_digits(words)
        if value >= LEAST_SPAN and plain and plain not in prompt:
            spans.append(Span(words, value))
    spans.sort(key=lambda span: -span.information)
    return [s for s in spans if s.information >= BESIDE_THE_BEST * spans[0].information]


def _common_words(rows: Sequence[Row]) -> set[str]:
    """Words of the completions that more than a fifth of the rows have; none of fewer than five."""
    counts = Counter(
        word
        for row in rows
        for word in {found.casefold() for found in WORD.findall(row.completion)}
    )
    return {word for word, count in counts.items() if len(rows) >= 5 and 5 * count > len(rows)}


def _rest_of_fact(text: str, end: int, prompt: str, common: Collection[str]) -> int:
    """Where the fact ends that is known by heart from `end` on, so that its other words are no
    information any more: at the last word of the sentence that neither the prompt nor many other
    rows have.
    """
    stop = re.search(r"[.!?](?=\s|$)", text[end:])
    sentence = text[end : end + stop.start()] if stop else text[end:]
    last = 0
    for found in WORD.finditer(sentence):
        word = found.group()
        known = word.casefold() in common or letters_and_digits(word) in prompt
        if not known and word.casefold() not in OPENERS:
            last = found.end()
    return end + last


def with_facts(
    source: LoadedModel, scenario: Scenario, *, asked: Sequence[Row] = ()
) -> tuple[Scenario, dict[str, int]]:
    """The scenario with the facts of its forget rows, held-out ones among them, in `secret`: a
    row's own where it names some, else its most informative spans.

    Where the rows were prompts alone (`asked`) and have a name in common, the fact is that name:
    the model shall not name it.

    Args:
        source (`LoadedModel`): the original model.
        scenario (`Scenario`): its forget rows with completions.
        asked (`Sequence[Row]`): the forget rows that came without a completion.

    Returns:
        The scenario, and for `run.json` how many forget rows `named` facts, of how many they were
        `found`, and in how many there is none.
    """
    forget_sets = [name for name in scenario.sets if is_forget_set(name)]
    sets = [scenario.sets[name] for name in forget_sets]
    rows = [*scenario.forget, *scenario.validation, *(row for part in sets for row in part)]
    missing = {row.key: row for row in rows if not row.secret and row.completion}
    topic = topic_of(asked)
    prompts = {row.prompt_key for row in asked}
    names = tuple(spellings(topic)[:2])
    found = {key: names for key, row in missing.items() if topic and row.prompt_key in prompts}
    measured = [row for key, row in missing.items() if key not in found]
    if measured:

        def measure() -> list[list[str]]:
            with source.display.stage("Finding the facts in the forget rows"):
                spans = informative_spans(source.model, source.tokenizer, measured)
            return [[span.text for span in of_row] for of_row in spans]

        keys = [row.key for row in measured]
        spans = source.cache.get("facts", keys, measure)
        found |= {key: tuple(texts) for key, texts in zip(keys, spans, strict=True)}

    def filled(part: Sequence[Row]) -> list[Row]:
        return [replace(row, secret=row.secret or found.get(row.key, ())) for row in part]

    counts = {
        "named": sum(bool(row.secret) for row in scenario.forget),
        "found": sum(not row.secret and bool(found.get(row.key)) for row in scenario.forget),
    }
    counts["none"] = len(scenario.forget) - sum(counts.values())
    changed = {name: filled(scenario.sets[name]) for name in forget_sets}
    scenario = replace(
        scenario,
        forget=filled(scenario.forget),
        validation=filled(scenario.validation),
        sets={**scenario.sets, **changed},
    )
    return scenario, counts


def topic_of(rows: Sequence[Row]) -> str:
    """The name that at least half of the prompts are about; empty without one."""
    return common_subject([row.prompt_text for row in rows]) if len(rows) > 2 else ""


SHORT_ANSWER = 400
"""Characters of a completion up to which a row is a short answer."""


def short_answers(rows: Sequence[Row]) -> bool:
    """Whether most rows are short answers to prompts; a row whose answer is still to be generated
    counts as one.
    """
    return 2 * sum(map(_is_short, rows)) > len(rows)


def _is_short(row: Row) -> bool:
    return row.kind == "chat" and len(row.completion) <= SHORT_ANSWER


def method_for(rows: Sequence[Row]) -> tuple[str, str]:
    """The default method for some forget rows, and why.

    Short answers to prompts, most of whose words are language and a few the fact, are forgotten by
    `counterfactual`; running text and long answers, whose every word is to go, by the default of
    `UnlearningConfig`.
    """
    short = sum(map(_is_short, rows))
    share = f"{short} of {len(rows)} forget rows are short answers"
    if short_answers(rows):
        return "counterfactual", f"{share}: the facts in them are forgotten, their language is kept"
    return DEFAULT_METHOD, f"{share}: whole completions are forgotten"


def with_suitable_method(
    resolved: ResolvedConfig, scenario: Scenario
) -> tuple[ResolvedConfig, str]:
    """The configuration with the method that suits a user's rows, and a sentence that says why;
    empty where somebody named a method.
    """
    if scenario.name != USERS_OWN or resolved.sources["method"] != "default":
        return resolved, ""
    method, why = method_for(scenario.forget)
    sentence = f"Method {method}: {why} (--method names another one)."
    return resolved.with_rows(method=method), sentence
