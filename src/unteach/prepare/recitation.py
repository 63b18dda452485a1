"""More passages to forget, found by letting the model continue the forget rows.

A forget set is rarely all that a model has memorised of its source. Greedy decoding from a forget
row reaches the first words of the next passage, which nobody had to supply; from these words alone
a model that has memorised the passage recites it. Such a passage joins the forget set if the model
is nearly sure of each token (recitation, not invention) and if it shares no long run of characters
with the retain set. Passages found in one round are continued in the next.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from unteach.data.passages import book_passages, sentences
from unteach.data.rows import Row
from unteach.data.tokenization import EncodedRow, encode_row
from unteach.errors import UserError
from unteach.evaluation.generation import Progress, SharedGenerator, generate_outputs
from unteach.evaluation.likelihood import mean_nll
from unteach.evaluation.metrics import prompt_set
from unteach.evaluation.text_metrics import longest_verbatim_run, says
from unteach.prepare.generations import LoadedModel, with_own_answers
from unteach.scenarios.scenario import Scenario
from unteach.trainer.costs import Cost

FIRST_WORDS = 8
COMPARED_CHARS = 100
PASSAGE_TOKENS = 72
ROUNDS = 2
MOST_SHARED_CHARS = 60
"""Longest run of characters that a text to keep and a text to forget may share."""


def without_forget_text(
    rows: Sequence[Row], forget: Sequence[Row], *, most_shared_chars: int = MOST_SHARED_CHARS
) -> list[Row]:
    """The rows whose completion shares no run of more than `most_shared_chars` with a forget text.

    A model that has memorised a text may recite it anywhere; such an answer in the retain set would
    keep what is to be forgotten. White space is normalised. Time is linear in the forget texts.

    Args:
        rows (`Sequence[Row]`): the model's own answers.
    """
    size = most_shared_chars + 1
    holders: dict[str, set[int]] = {}
    for place, row in enumerate(rows):
        text = _plain(row.completion)
        for start in range(len(text) - size + 1):
            holders.setdefault(text[start : start + size], set()).add(place)
    found: set[int] = set()
    for row in forget if holders else ():
        text = _plain(f"{row.prompt_text if row.kind == 'text' else ''}{row.completion}")
        for start in range(len(text) - size + 1):
            found |= holders.get(text[start : start + size], set())
    return [row for place, row in enumerate(rows) if place not in found]


def collect_retain(
    source: LoadedModel, scenario: Scenario, completed: Scenario
) -> tuple[Scenario, int, list[Cost]]:
    """The scenario with its whole retain set: the given rows, neighbours among them, and the
    model's own answers, without those that recite a text or say a fact to forget.

    Such an answer is in no prompt set to keep either.

    Args:
        source (`LoadedModel`): the original model.
        scenario (`Scenario`): as it was built.
        completed (`Scenario`): the same with the model's answers, see `completed_scenario`.

    Returns:
        The scenario, the number of own answers left out, and what generating cost.

    Raises:
        UserError: if no row is left.
    """
    kept_sets = [name for name in completed.sets if prompt_set(name).role == "kept"]
    measured = [row for name in kept_sets for row in scenario.sets.get(name, ())]
    rows = [*scenario.retain, *scenario.neighbours, *measured]
    asked = {(row.prompt, row.kind) for row in rows if not row.completion}
    title = "Collecting the model's own answers to keep"
    answers, costs = with_own_answers(source, scenario.own_prompts, title)
    rows = [*completed.retain, *completed.neighbours]
    given = [row for row in rows if (row.prompt, row.kind) not in asked]
    own = [*answers, *(row for row in rows if (row.prompt, row.kind) in asked)]
    clean = without_forgotten(own, completed.forget)
    left_out = len(own) - len(clean)
    if own and not clean and not given:
        raise UserError(
            "each of the model's own answers repeats what is to be forgotten, so none is left to"
            " keep; give rows to keep (retain)"
        )
    if left_out:
        source.display.print(
            f"{left_out} of the {len(own)} own answers repeat what is to be forgotten and are not"
            " kept"
        )
    sets = dict(completed.sets)
    for name in kept_sets:
        part = sets[name]
        answers = [row for row in part if (row.prompt, row.kind) in asked]
        lost = {row.key for row in answers}
        lost -= {row.key for row in without_forgotten(answers, completed.forget)}
        sets[name] = [row for row in part if row.key not in lost]
    sets = {name: part for name, part in sets.items() if part}
    return replace(completed, retain=[*given, *clean], sets=sets), left_out, costs


def without_forgotten(rows: Sequence[Row], forget: Sequence[Row]) -> list[Row]:
    """The rows whose completion neither repeats a forget text nor says a fact to forget."""
    facts = [fact for row in forget for fact in row.secret]
    return [row for row in without_forget_text(rows, forget) if not says(row.completion, facts)]


def recitation_facts(recited: Sequence[Row], scenario: Scenario) -> dict[str, int]:
    """For `run.json`: how many passages the model recited, and how many of them are held out."""
    unseen = {" ".join(row.prompt_text.split()) for row in scenario.sets.get("unseen", [])}
    found = sum(row.prompt_text in unseen for row in recited)
    return {"recited_passages": len(recited), "recited_unseen_passages": found}


def recited_rows(
    source: LoadedModel, forget: Sequence[Row], retain: Sequence[Row], max_new_tokens: int
) -> tuple[list[Row], Cost]:
    """`recited_passages`, cached by the model and the rows, and what generating cost."""

    def recite() -> list[list[str]]:
        title = "Continuing the forget rows to find more that the model recites"
        with source.display.stage(title, len(forget)) as stage:
            rows = recited_passages(
                source.model,
                source.tokenizer,
                forget,
                retain,
                max_new_tokens=max_new_tokens,
                progress=stage.update,
            )
        return [[row.prompt_text, row.completion, row.source] for row in rows]

    inputs = [max_new_tokens, *(row.key for row in [*forget, *retain])]
    found = source.cache.get("recited", inputs, recite)
    rows = [Row(prompt, completion, "text", place) for prompt, completion, place in found]
    return rows, source.cost("recited", inputs, forget, [row.completion for row in rows])


def recited_passages(
    model: Any,
    tokenizer: Any,
    forget: Sequence[Row],
    retain: Sequence[Row],
    *,
    max_new_tokens: int = 64,
    least_probability: float = 0.7,
    most_shared_chars: int = MOST_SHARED_CHARS,
    progress: Progress | None = None,
) -> list[Row]:
    """New `text` rows from the model's greedy continuations of the forget rows.

    Args:
        model: the model before unlearning.
        tokenizer: its tokenizer.
        forget (`Sequence[Row]`): only its `text` rows are continued.
        retain (`Sequence[Row]`): passages that share a run of more than `most_shared_chars` with
            one of these are left out.
        max_new_tokens (`int`): length of the continuation in which the next passage may begin.
        least_probability (`float`): geometric mean probability of a passage's tokens under the
            model from which on it counts as recited.
        progress (`Callable`, *optional*): called with (done, of) rows; `of` grows with what is
            found.
    """
    found: list[Row] = []
    known = {_plain(row.prompt_text) for row in forget}
    texts = [_plain(f"{row.prompt_text}{row.completion}") for row in forget]
    tried: set[str] = set()
    news, done = [row for row in forget if row.kind == "text"], 0
    limit = -math.log(least_probability)

    def is_new(prompt: str, completion: str) -> bool:
        begins = _plain(f"{prompt}{completion}")[:COMPARED_CHARS]
        return _plain(prompt) not in known and not any(begins in text for text in texts)

    for _ in range(ROUNDS):
        if not news:
            break
        starts = _passage_starts(model, tokenizer, news, max_new_tokens)
        starts = [row for row in starts if row.prompt not in tried]
        tried |= {str(row.prompt) for row in starts}
        done += len(news)
        outputs = generate_outputs(model, tokenizer, starts, max_new_tokens=PASSAGE_TOKENS)
        candidates: dict[str, Row] = {}
        for start, output in zip(starts, outputs, strict=True):
            for prompt, completion in book_passages(f"{start.prompt}{output}")[:1]:
                if is_new(prompt, completion) and all(
                    longest_verbatim_run(completion, f"{row.prompt_text}{row.completion}")
                    <= most_shared_chars
                    for row in retain
                ):
                    row = Row(prompt, completion, "text", start.source)
                    candidates.setdefault(_plain(prompt), row)
        rows, encoded = _encodable(list(candidates.values()), tokenizer)
        prompts = [row.prompt_ids for row in encoded]
        surprise = mean_nll(model, prompts, [row.completion_ids for row in encoded])
        news = [
            row for row, nll in zip(rows, surprise, strict=True) if nll is not None and nll <= limit
        ]
        known |= {_plain(row.prompt_text) for row in news}
        found += news
        if progress:
            progress(done, done + len(news))
    return found


def _plain(text: str) -> str:
    return " ".join(text.split())


def _passage_starts(
    model: Any, tokenizer: Any, rows: Sequence[Row], max_new_tokens: int
) -> list[Row]:
    """Prompt-only rows: the first words of each paragraph that begins in a row's continuation; of
    each sentence where no paragraph begins.
    """
    rows, encoded = _encodable(rows, tokenizer)
    prompts = [row.prompt_ids + row.completion_ids for row in encoded]
    outputs = SharedGenerator(model, tokenizer)(prompts, max_new_tokens=max_new_tokens)
    found: dict[str, Row] = {}
    for row, ids in zip(rows, outputs, strict=True):
        text = str(tokenizer.decode(ids, skip_special_tokens=True))
        for part in text.split("\n\n")[1:] or sentences(text)[1:]:
            words = part.split()[:FIRST_WORDS]
            if len(words) >= FIRST_WORDS // 2:
                start = " ".join(words)
                found.setdefault(start, Row(start, "", "text", f"recited after {row.source}"))
    return list(found.values())


def _encodable(rows: Sequence[Row], tokenizer: Any) -> tuple[list[Row], list[EncodedRow]]:
    """The rows that tokenise at the end of their prompt, and their tokens."""
    kept, encoded = [], []
    for row in rows:
        with contextlib.suppress(UserError):
            encoded.append(encode_row(row, tokenizer, None))
            kept.append(row)
    return kept, encoded
