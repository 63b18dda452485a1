"""Which words of a row are the fact: those about which its prompt tells the model what prompts of
the same kind do not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

from unteach import models
from unteach.data.counterfactuals import completion_text, counterfactual, token_spans
from unteach.data.ngrams import is_passage
from unteach.data.packing import Tree
from unteach.data.rows import Row, letters_and_digits
from unteach.data.stream import Collator, forget_branches
from unteach.data.subjects import JOINERS, OPENERS, WORD, find_subjects, lower_case_words
from unteach.data.tokenization import encode_row
from unteach.evaluation.metrics import is_forget_set
from unteach.methods import Hooks, get_method
from unteach.prepare.facts import Facts, named_facts, no_fact, topic_names
from unteach.prepare.generations import LoadedModel
from unteach.scenarios.scenario import Scenario
from unteach.trainer.counterfactual import (
    KNOWN_BY_HEART,
    LEAST_INFORMATION,
    CounterfactualTokens,
    counterfactual_tokens,
    groups,
)
from unteach.trainer.reference import ReferenceModel
from unteach.trainer.self_check import check_fast_path
from unteach.trainer.step import StepSpec

LEAST_SPAN = 2.0
"""Nats of information from which on a run of tokens is a fact; what follows the first tokens of a
fact that is known by heart tells little more, so a run is extended to whole words."""
BESIDE_THE_BEST = 0.5
"""Share of the information of a row's best run that another one needs to be a fact, too."""
ALONE, ALONE_DIGITS = 5.0, 5
"""Nats, where a word has a capital or a digit, or else digits, from which on the words up to the
first that other rows share are a fact by themselves: an account's number is said although another
bank is named with it. By chance that is said in less than 1% of the answers."""

NUMBER = re.compile(r"(?<!\w)\w*\d\w*(?:[ .,:/+-]\w*\d\w*)*")
"""A number, a date, a code or an account as it is written."""

NEIGHBOUR_OF = "neighbour of"
"""A neighbour's column with the `prompt_key` of the forget row whose names were exchanged."""

WHOLE = (
    "In {whole} of the {rows} forget rows the model gives the same answer whatever names stand in"
    " the prompt: there the whole answer is forgotten."
)


@dataclass(frozen=True)
class Span:
    """A run of completion tokens of high information.

    Args:
        text (`str`): without white space and punctuation around it.
        information (`float`): summed over its tokens, in nats.
        whole (`bool`): it is the whole completion, which the model gives by the rest of the prompt
            whatever names stand in it.
        words (`tuple[str, ...]`): of a whole completion those that no answer shall hold.
        facts (`tuple[str, ...]`): of a whole completion its names and numbers, else its telling
            words, those together that stand together.
    """

    text: str
    information: float
    whole: bool = False
    words: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()


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
    collator = Collator([], tokenizer.pad_token_id or 0)
    encoded = [encode_row(row, tokenizer, None) for row in rows]
    longest = sorted(encoded, key=lambda row: -len(row.prompt_ids + row.completion_ids))[:2]
    trees = [Tree(row.prompt_ids, tuple(forget_branches(row, 0))) for row in longest]
    with models.dropout_off(model):
        check_fast_path(model, trees, collator, autocast=nullcontext)
    spec = StepSpec(method, hooks, packed=collator.packed, budget_bytes=2**28, autocast=nullcontext)
    reference = ReferenceModel(model, spec, "stored")
    lower_case = lower_case_words(row.prompt_text for row in rows)
    common = _common_words(rows)
    found: list[list[Span]] = []
    for numbers in groups(len(rows)):
        group = [rows[number] for number in numbers]
        items = [encoded[number] for number in numbers]
        parts = [
            counterfactual(
                replace(row, secret=(), avoid=()),
                item,
                tokenizer,
                others=rows,
                lower_case=lower_case,
                seed=seed,
            )
            for row, item in zip(group, items, strict=True)
        ]
        with models.dropout_off(model):
            tokens = counterfactual_tokens(reference, items, parts, collator)
        for row, item, measured in zip(group, items, tokens, strict=True):
            text = completion_text(item, tokenizer)
            if measured.by_prompt:
                facts = tuple(span.text for span in _names_and_numbers(row, text, common))
                if not facts:
                    places = token_spans(item, tokenizer)
                    facts = _runs(text, _telling_words(row, text, places, measured))
                words = _words_not_in(row.prompt_text, facts)
                found.append([Span(text.strip(), measured.told, True, words, facts)])
                continue
            spans = _spans(row, text, token_spans(item, tokenizer), measured, common)
            known = measured.sureness >= KNOWN_BY_HEART
            found.append(spans or (_names_and_numbers(row, text, common) if known else []))
    return found


def _names_and_numbers(row: Row, text: str, common: Collection[str]) -> list[Span]:
    """The names and numbers of a completion that the prompt does not hold: its facts where the
    model knows it by heart and would say the same to any prompt.
    """
    parts = [*find_subjects(text, common), *NUMBER.findall(text)]
    prompt, said = letters_and_digits(row.prompt_text), list[str]()
    for part in dict.fromkeys(parts):
        plain = letters_and_digits(part)
        if plain not in prompt and plain not in common and not any(part in one for one in said):
            said.append(part)
    return [Span(part, 0.0) for part in said]


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
        first, end = _rest_of_fact(text, end, prompt, common)
        last_end = end
        digits = sum(map(str.isdigit, text[start:first]))
        named = any(word[:1].isupper() for word in _words_of_own(text[start:first]))
        told = value >= ALONE and (named or digits > 0)
        alone = first < end and (told or digits >= ALONE_DIGITS)
        for stop in [end, first] if alone else [end]:
            words = text[start:stop].strip(" \t\n.,;:!?\"'()[]")
            plain = letters_and_digits(words)
            if value >= LEAST_SPAN and plain and plain not in prompt:
                spans.append(Span(words, value))
    spans.sort(key=lambda span: -span.information)
    return [s for s in spans if s.information >= BESIDE_THE_BEST * spans[0].information]


def _words_of_own(text: str) -> list[str]:
    """Its words without those that open sentences."""
    return [word for word in WORD.findall(text) if word.casefold() not in OPENERS]


def _telling_words(
    row: Row, text: str, places: Sequence[tuple[int, int]], tokens: CounterfactualTokens
) -> list[tuple[int, int]]:
    """Start and end of the informative words of a completion that the prompt does not hold."""
    prompt, found = letters_and_digits(row.prompt_text), []
    for match in WORD.finditer(text):
        inside = [
            number
            for number, (start, end) in enumerate(places)
            if start < match.end() and end > match.start()
        ]
        told = float(tokens.information[inside].sum()) if inside else 0.0
        word = match.group()
        new = letters_and_digits(word) not in prompt and word.casefold() not in OPENERS
        if new and told >= LEAST_SPAN:
            found.append(match.span())
    return found


def _words_not_in(prompt: str, facts: Sequence[str]) -> tuple[str, ...]:
    """The words of some facts that a prompt does not hold, each once, without `JOINERS`."""
    known = {word.casefold() for word in WORD.findall(prompt)} | JOINERS
    words = (word for fact in facts for word in WORD.findall(fact))
    return tuple(dict.fromkeys(word for word in words if word.casefold() not in known))


def _runs(text: str, words: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    """The texts of words that follow each other without another word between them."""
    runs: list[tuple[int, int]] = []
    for start, end in words:
        joined = bool(runs) and not WORD.search(text, runs[-1][1], start)
        runs = [*runs[:-1], (runs[-1][0], end)] if joined else [*runs, (start, end)]
    return tuple(dict.fromkeys(text[start:end] for start, end in runs))


def _common_words(rows: Sequence[Row]) -> set[str]:
    """Words of the completions that more than a fifth of the rows have; none of fewer than five."""
    counts = Counter(
        word
        for row in rows
        for word in {found.casefold() for found in WORD.findall(row.completion)}
    )
    return {word for word, count in counts.items() if len(rows) >= 5 and 5 * count > len(rows)}


def _rest_of_fact(text: str, end: int, prompt: str, common: Collection[str]) -> tuple[int, int]:
    """Where the fact ends that is known by heart from `end` on, so that its other words are no
    information any more: at the last word of the sentence that neither the prompt nor many other
    rows have. Before it, where the first of these ends at a word that they do have.
    """
    stop = re.search(r"[.!?](?=\s|$)", text[end:])
    sentence = text[end : end + stop.start()] if stop else text[end:]
    first = last = 0
    unbroken = True
    for found in WORD.finditer(sentence):
        word = found.group()
        known = word.casefold() in common or letters_and_digits(word) in prompt
        if known or word.casefold() in OPENERS:
            unbroken = False
        else:
            last = found.end()
            first = last if unbroken else first
    return end + first, end + last


def facts_of_rows(model: Any, tokenizer: Any, rows: Sequence[Row]) -> list[Facts]:
    """What is the fact in some rows with completions, by information; in a passage its wording."""
    measured = [row for row in rows if not is_passage(row)]
    spans = iter(informative_spans(model, tokenizer, measured) if measured else [])
    found = []
    for row in rows:
        of_row = [] if is_passage(row) else next(spans)
        texts = tuple(t for span in of_row for t in (span.facts if span.whole else [span.text]))
        words = tuple(word for span in of_row for word in span.words)
        whole = is_passage(row) or any(span.whole for span in of_row)
        told = any(span.information for span in of_row)
        clause = "the whole completion" if whole else "nothing in it is information"
        if texts and not whole:
            clause = "information" if told else "known by heart, to any prompt"
        found.append(Facts(texts, clause, whole, words))
    return found


def with_facts(
    source: LoadedModel, scenario: Scenario, completed: Scenario
) -> tuple[Scenario, dict[str, int]]:
    """The completed scenario with the facts of its forget rows, held-out ones among them, in
    `secret`: a row's own where it names some, else its most informative spans.

    Where the rows were prompts alone and have a name in common, the fact is that name, in the
    held-out prompts too, and no answer to these prompts shall hold it (`avoid`).

    Args:
        source (`LoadedModel`): the original model.
        scenario (`Scenario`): as it was built.
        completed (`Scenario`): the same with the model's answers, see `completed_scenario`.

    Returns:
        The scenario, and for `run.json` how many forget rows `named` facts, of how many they were
        `found`, how many are forgotten `whole`, and in how many there is `none`; the display says
        the last two.
    """
    forget_sets = [name for name in completed.sets if is_forget_set(name)]
    sets = [completed.sets[name] for name in forget_sets]
    rows = [*completed.forget, *completed.validation, *(row for part in sets for row in part)]
    held_out = [row for name in forget_sets for row in scenario.sets.get(name, ())]
    topic = topic_names(scenario.forget, held_out)

    def measure(measured: list[Row]) -> list[dict[str, Any]]:
        with source.display.stage("Finding the facts in the forget rows"):
            return list(map(asdict, facts_of_rows(source.model, source.tokenizer, measured)))

    def cached(measured: list[Row]) -> list[Facts]:
        limits = [LEAST_INFORMATION, LEAST_SPAN, BESIDE_THE_BEST, ALONE, ALONE_DIGITS]
        keys = [[row.key for row in measured], limits, KNOWN_BY_HEART, NUMBER.pattern]
        made = source.cache.get("row-facts", keys, lambda: measure(measured))
        return [Facts(tuple(f["texts"]), f["source"], f["whole"], tuple(f["words"])) for f in made]

    none = Facts((), "")
    found = named_facts((row for row in rows if row.completion), topic, cached)

    def filled(part: Sequence[Row]) -> list[Row]:
        return [
            replace(
                row,
                secret=row.secret or found.get(row.key, none).texts,
                avoid=topic.get(row.prompt_key, row.avoid or found.get(row.key, none).words),
                whole=found.get(row.key, none).whole and not is_passage(row),
            )
            for row in part
        ]

    def unknown(part: Iterable[Row]) -> list[Row]:
        return [row for row in part if not (row.secret or found.get(row.key, none).whole)]

    forget, validation = filled(completed.forget), filled(completed.validation)
    named = sum(bool(row.secret) for row in completed.forget)
    whole = [row for row in forget if found.get(row.key, none).whole]
    if lost := unknown(forget):
        source.display.print(no_fact(lost, len(forget)))
    if same := {row.prompt_key for row in whole if not is_passage(row)}:
        completed = without_neighbours_of(completed, same)
        count = sum(row.prompt_key in same for row in whole)
        source.display.print(WHOLE.format(whole=count, rows=len(forget)))
    changed = {name: filled(completed.sets[name]) for name in forget_sets}
    with_secrets = replace(
        completed,
        forget=forget,
        validation=validation,
        sets={**completed.sets, **changed},
        unknown=frozenset(row.key for row in (*lost, *unknown(validation))),
    )
    left = len(forget) - named - len(whole) - len(lost)
    return with_secrets, {"named": named, "found": left, "whole": len(whole), "none": len(lost)}


def without_neighbours_of(completed: Scenario, prompts: Collection[str]) -> Scenario:
    """The scenario without the neighbours of forget rows whose answer is the same whatever names
    stand in the prompt: it is what shall be forgotten.

    Args:
        prompts: each such row's `prompt_key`.
    """
    kept, held_out = (
        [row for row in part if row.columns.get(NEIGHBOUR_OF) not in prompts]
        for part in (completed.neighbours, completed.sets.get("neighbours", ()))
    )
    sets = {**completed.sets, "neighbours": held_out}
    left = {name: part for name, part in sets.items() if part}
    return replace(completed, neighbours=kept, sets=left)
