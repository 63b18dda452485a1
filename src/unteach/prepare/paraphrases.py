"""Forget prompts in other words, to measure how far forgetting carries: written by the original
model, or by a template, and kept only where that model still answers with the fact.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from unteach.data.rows import Row, evenly_spaced, letters_and_digits, normalised
from unteach.data.subjects import OPENERS, WORD, find_subjects
from unteach.evaluation.generation import answer_limit, generate_outputs
from unteach.evaluation.metrics import Answer
from unteach.evaluation.readability import is_degenerate
from unteach.evaluation.scorers import Scorers
from unteach.prepare.generations import LoadedModel
from unteach.trainer.costs import Cost

MODEL = "model"
Wordings = Callable[[Sequence[Row]], list[str]]
"""From rows to a wording of each one's prompt."""
REQUEST = (
    "Rewrite this in other words. Keep its meaning, its names and its numbers, and write only the"
    " new sentence.\n\n{prompt}"
)
TEMPLATES = ("Please tell me: {asked}", "I have a question for you. {prompt} What would you say?")
"""Wordings to fall back on; `asked` is the prompt with a small first letter."""
PREFACE = re.compile(
    r"^(?:sure|certainly|here|of course|the new sentence|rewritten|rephrased|question|answer)"
    r"[^:\n]{0,60}:\s*",
    re.IGNORECASE,
)
SENTENCE_END = re.compile(r"[.?!\u3002\uff1f\uff01][\"”»\u300d]?$")
LONGEST = 3
"""A paraphrase has at most so many times the letters of its prompt."""


@dataclass(frozen=True)
class Paraphrases:
    """The paraphrases that were kept.

    Args:
        rows (`list[Row]`): forget rows under another prompt.
        outputs (`list[str]`): the original model's answers to them.
        facts: for `run.json`: how many `prompts` there are, how many of them the model knows and
            was `asked` to reword, how many candidates were `written`, how many were `kept`, and how
            many of these each source wrote (`by`).
        costs: what generating cost.
    """

    rows: list[Row]
    outputs: list[str]
    facts: Mapping[str, Any]
    costs: list[Cost]

    @property
    def note(self) -> str:
        """What was made, in a sentence; empty where there was no prompt to word anew."""
        kept, asked = self.facts["kept"], self.facts["asked"]
        if not self.facts["prompts"]:
            return ""
        if not asked:
            return (
                "The original model answers no forget prompt with its fact: paraphrases are not"
                " measured."
            )
        if not kept:
            return (
                f"No other wording of the {asked} forget prompts tried is answered with the fact by"
                " the original model: paraphrases are not measured."
            )
        by_model = self.facts["by"].get(MODEL, 0)
        return (
            f"{kept} of {asked} forget prompts have another wording that the original model answers"
            f" with the fact ({by_model} written by the model, {kept - by_model} by a template)."
        )


def find_paraphrases(
    source: LoadedModel,
    forget: Sequence[Row],
    outputs: Sequence[str],
    scorers: Scorers,
    *,
    most: int,
) -> Paraphrases:
    """One paraphrase for each of at most `most` forget prompts, cached.

    A candidate is kept if it differs from the prompt, has its names and numbers, does not give the
    answer away, and if the original model's answer to it still shows what must be forgotten. The
    model's own wording comes first, then `TEMPLATES` in their order.

    Args:
        source (`LoadedModel`): the original model.
        forget: rows with completions, of which chat rows are reworded.
        outputs: the original model's outputs for them; a row whose output does not show what must
            be forgotten is passed by.
        scorers: whose headline metric says what an output shows.
    """
    shown = scorers.shows_forgotten(forget, outputs)
    chat = [row.kind == "chat" for row in forget]
    known = [row for row, *found in zip(forget, shown, chat, strict=True) if all(found)]
    rows = evenly_spaced(known, most)
    facts: dict[str, Any] = {"prompts": sum(chat), "asked": len(rows)}
    if not rows:
        return Paraphrases([], [], {**facts, "written": 0, "kept": 0, "by": {}}, [])
    texts = [row.prompt_key for row in forget]
    shows = scorers.shows_forgotten

    def make() -> dict[str, Any]:
        with source.display.stage("Wording forget prompts anew", len(rows)) as stage:
            found: dict[str, list[str]] = {}
            written = 0
            spent: list[Any] = []
            for name, texts_of in _sources(source, spent):
                left = [row for row in rows if row.key not in found]
                if not left:
                    break
                pairs = list(zip(left, texts_of(left), strict=True))
                pairs = [(row, text) for row, text in pairs if is_rewording(row, text, texts)]
                pairs = [pair for pair in pairs if not _gives_away(*pair, scorers)]
                written += len(pairs)
                asked = [reworded(row, text) for row, text in pairs]
                answers = _outputs(source, asked)
                spent += answers
                for (row, text), answer, said in zip(
                    pairs, answers, shows(asked, answers), strict=True
                ):
                    if said:
                        found[row.key] = [text, answer, name]
                stage.update(len(found))
        return {"found": found, "written": written, "spent": spent}

    inputs = [REQUEST, TEMPLATES, [row.key for row in rows], texts, scorers.identity()]
    made = source.cache.get("paraphrases", inputs, make)
    kept = [(row, *made["found"][row.key]) for row in rows if row.key in made["found"]]
    by = [name for *_, name in kept]
    facts |= {"written": made["written"], "kept": len(kept)}
    facts["by"] = {name: by.count(name) for name in dict.fromkeys(by)}
    cost = source.cost("paraphrases", inputs, rows, made["spent"])
    found = [reworded(row, text) for row, text, *_ in kept]
    return Paraphrases(found, [answer for _, _, answer, _ in kept], facts, [cost])


def _gives_away(row: Row, text: str, scorers: Scorers) -> bool:
    """Whether a wording repeats the answer, by the leak rate."""
    leak = scorers.by_metric.get("leak_rate")
    return bool(leak and leak.scores([Answer(row, text)])[0])


def reworded(row: Row, text: str) -> Row:
    """The row under another prompt; of messages the last one is exchanged."""
    if isinstance(row.prompt, str):
        return replace(row, prompt=text)
    *before, (role, _) = row.prompt
    return replace(row, prompt=(*before, (role, text)))


def is_rewording(row: Row, text: str, others: Sequence[str] = ()) -> bool:
    """Whether a text asks for the same as the row's prompt in other words, as far as letters tell:
    another text, none of `others` (normalised prompts), not much longer, readable, with each name
    and number of the prompt, and without a fact that the prompt does not name.
    """
    prompt = _asked(row)
    if not text or normalised(text) in {normalised(prompt), *others} or is_degenerate(text):
        return False
    cut_off = re.search(SENTENCE_END, prompt) and not re.search(SENTENCE_END, text)
    if cut_off or len(text) > LONGEST * len(prompt) + 60:
        return False
    letters = letters_and_digits(text)
    given = letters_and_digits(prompt)
    wanted = [*find_subjects(prompt), *re.findall(r"\w*\d\w*", prompt)]
    facts = [letters_and_digits(fact) for fact in row.secret]
    told = any(fact in letters and fact not in given for fact in facts)
    return not told and all(letters_and_digits(name) in letters for name in wanted)


def cleaned(answer: str) -> str:
    """The sentence in a model's answer to `REQUEST`: its first line without preface and quotes."""
    lines = [line.strip() for line in answer.strip().splitlines()]
    for line in lines:
        text = PREFACE.sub("", line).strip(" *\"'“”`-")
        if text and not text.endswith(":"):
            return text
    return ""


def in_template(row: Row, template: str) -> str:
    """The row's prompt in one of `TEMPLATES`."""
    prompt = _asked(row)
    first = WORD.match(prompt)
    is_name = not first or first.group() == "I" or first.group().casefold() not in OPENERS
    asked = prompt if is_name else prompt[:1].lower() + prompt[1:]
    return template.format(prompt=prompt, asked=asked)


def _asked(row: Row) -> str:
    """The prompt, or the last of its messages."""
    return row.prompt.strip() if isinstance(row.prompt, str) else row.prompt[-1][1].strip()


def _sources(source: LoadedModel, spent: list[str]) -> Iterator[tuple[str, Wordings]]:
    """(name, function from rows to a wording of each): the model, then the templates."""

    def by_model(rows: Sequence[Row]) -> list[str]:
        requests = [Row(REQUEST.format(prompt=_asked(row)), "", source=row.source) for row in rows]
        answers = _outputs(source, requests)
        spent.extend(answers)
        return [cleaned(answer) for answer in answers]

    def by_template(template: str) -> Wordings:
        return lambda rows: [in_template(row, template) for row in rows]

    yield MODEL, by_model
    for number, template in enumerate(TEMPLATES, 1):
        yield f"template {number}", by_template(template)


def _outputs(source: LoadedModel, rows: Sequence[Row]) -> list[str]:
    model, tokenizer = source.model, source.tokenizer
    limit = answer_limit(tokenizer, rows, model)
    return generate_outputs(model, tokenizer, rows, max_new_tokens=limit)
