"""The rows of a run that is given a name alone: what the model itself says about it, and about
other things of its kind.

The prompts are those of `scenarios/texts/topics.toml`, questions that the model writes, and
questions about names and descriptions in its answers ("Who wrote Hamlet?").
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unteach.data.rows import Row, held_out_rows, letters_and_digits
from unteach.data.subjects import exchange, find_subjects, invented_names, mapping_to
from unteach.errors import UserError
from unteach.evaluation.readability import is_degenerate
from unteach.evaluation.text_metrics import says
from unteach.files.atomic import write_text_atomically
from unteach.files.folders import private_folder
from unteach.prepare.generations import LoadedModel, sampled_answers, with_own_answers
from unteach.prepare.information import informative_spans
from unteach.processes import broadcast_from_main
from unteach.scenarios.texts import topics
from unteach.trainer.costs import Cost

COLUMN = "about"
"""The column of a topic's rows that names what they are about."""
MOST_SELF_ASKED, MOST_NAMES, MOST_DESCRIPTIONS = 24, 16, 8
UNSEEN_SHARE = 0.25
"""Share of the rows about the topic that are only measured."""
NEIGHBOURS, QUESTIONS, NAMES = 10, 6, 2
"""Other things of the kind; questions about each; names in its answers that lead back to it."""
KNOWN_QUESTIONS, LEAST_KNOWN = 8, 1.5
"""A name is known where the answers to so many questions hold this many times the information of
those about an invented name."""
DESCRIPTION = re.compile(r"\b(?:is|was) ((?:an?|the|one of the) [^.,;:!?()\n]{4,60})")


@dataclass(frozen=True)
class Topic:
    """A name, and the kind of thing that it names: `person`, `place`, `work` or `thing`."""

    name: str
    kind: str = "thing"

    @property
    def spellings(self) -> tuple[str, ...]:
        """How texts call it; a person by the last word of the name, too."""
        words = self.name.split()
        return (self.name, words[-1]) if self.kind == "person" and words[1:] else (self.name,)

    def prompts(self, templates: Iterable[str], item: str = "") -> list[Row]:
        """Prompts about it; `item` is a name or a description in answers about it."""
        words = {"name": self.name, "short": self.spellings[-1], "item": item}
        return [self.prompt(template.format(**words)) for template in templates]

    def prompt(self, text: str) -> Row:
        """A row without an answer, whose column `COLUMN` is the name."""
        return Row(text, "", source=f"about {self.name}", columns={COLUMN: self.name})

    def questions(self) -> list[Row]:
        """The questions that name it: for any kind of thing, and for its own."""
        asked = topics()["questions"]
        return self.prompts([*asked["any"], *asked[self.kind]])

    def overlaps(self, name: str) -> bool:
        """Whether one of the two names holds the other, or a spelling of it."""
        return says(name, self.spellings) or says(self.name, [name])


def first_prompts(name: str) -> list[Row]:
    """The prompts that a name alone gives.

    Raises:
        UserError: for a name without a letter or digit.
    """
    if not letters_and_digits(name):
        raise UserError(f"option 'topic' is {name!r}, it must be a name")
    return Topic(name).prompts(topics()["questions"]["any"])


# --- what the answers tell


def of_kind(name: str, answers: Sequence[str]) -> tuple[Topic, list[str]]:
    """The topic, of the kind whose words its descriptions in the answers hold most often, and
    well-known names of that kind, those of the nearest category first.
    """
    texts = descriptions_in(Topic(name), answers) or answers
    counts = Counter(re.findall(r"[^\W\d_]+", " ".join(texts).lower()))
    weights = [sum(map(counts.__getitem__, c["words"].split())) for c in topics()["categories"]]
    ranked = sorted(zip(weights, topics()["categories"], strict=True), key=lambda pair: -pair[0])
    topic = Topic(name, ranked[0][1]["kind"] if ranked[0][0] else "thing")
    names = [other for _, c in ranked if c["kind"] == topic.kind for other in c["names"]]
    return topic, [other for other in names if not topic.overlaps(other)]


def descriptions_in(topic: Topic, answers: Iterable[str]) -> list[str]:
    """What the topic is called in answers about it: "a renowned English playwright"."""
    found = [match[1].strip() for answer in answers for match in DESCRIPTION.finditer(answer)]
    return [text for text in dict.fromkeys(found) if not says(text, topic.spellings)]


def names_in(topic: Topic, answers: Iterable[str], least: int = 1) -> list[str]:
    """Other names in at least so many answers about the topic, those in most first."""
    counts = Counter(name for answer in answers for name in find_subjects(answer))
    return [
        name
        for name, count in counts.most_common()
        if count >= least and len(letters_and_digits(name)) > 2 and not topic.overlaps(name)
    ]


def questions_in(text: str) -> list[str]:
    """The questions on lines of their own, without numbers and bullets."""
    lines = [re.sub(r"^\W*(?:\d+\W+)?", "", line).strip(" *_\"'") for line in text.splitlines()]
    return [line for line in lines if line.endswith("?") and 3 <= len(line.split()) <= 24]


def names_in_lists(lists: Iterable[str]) -> list[str]:
    """Names that stand alone between commas or line breaks in at least two lists, those in most
    lists first.
    """
    counts: Counter[str] = Counter()
    for text in lists:
        parts = [re.sub(r"^\W*(?:\d+\W+)?(?:and |or )?", "", p) for p in re.split(r"[\n,;]", text)]
        heads = [re.split(r"\s[-\u2013\u2014(]|[.:(]", part)[0].strip(" *_\"'") for part in parts]
        found = [head for head in heads if re.sub("^[Tt]he ", "", head) in find_subjects(head)]
        counts.update({head for head in found if len(head.split()) <= 5})
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [name for name, count in ranked if count > 1]


def distinct(rows: Iterable[Row]) -> list[Row]:
    """The rows without those that ask or answer the same as one before."""
    seen: set[str] = set()
    found = []
    for row in rows:
        keys = [row.prompt_key, f"= {letters_and_digits(row.completion)}"]
        keys = keys if row.completion else keys[:1]
        if not seen & set(keys):
            found.append(row)
        seen.update(keys)
    return found


# --- asking the model


@dataclass
class Interview:
    """Asks the model, and adds up what that costs.

    Args:
        source (`LoadedModel`): the original model.
        seed (`int`): of samples and of invented names.
        costs (`list[Cost]`)
    """

    source: LoadedModel
    seed: int
    costs: list[Cost]

    def answered(self, rows: Iterable[Row], title: str) -> list[Row]:
        """Different rows with the model's own answers, without degenerate ones."""
        found, costs = with_own_answers(self.source, distinct(rows), title)
        self.costs += costs
        return [row for row in distinct(found) if not is_degenerate(row.completion)]

    def sampled(self, topic: Topic, templates: Sequence[str]) -> list[str]:
        """Several answers to each prompt about the topic, drawn at random."""
        prompts = topic.prompts(templates)

        def draw() -> list[str]:
            title = f"Drawing lists about {topic.name}"
            with self.source.display.stage(title, len(prompts)) as stage:
                drawn = []
                for number, row in enumerate(prompts, 1):
                    drawn += sampled_answers(self.source, row, self.seed)
                    stage.update(number)
            return drawn

        keys = [[row.key for row in prompts], self.seed]
        texts = list(self.source.cache.get("topic-lists", keys, draw))
        self.costs.append(self.source.cost("topic-lists", keys, prompts, texts))
        return texts

    def about(
        self, things: Sequence[Topic], direct: Sequence[Row], *, names: int, title: str
    ) -> list[Row]:
        """Answers to prompts about things, and to prompts about at most so many names in the
        answers about each: of the latter those that name the thing, which is their secret.
        """
        rows = self.answered(direct, title)
        around = []
        for topic in things:
            texts = [row.completion for row in rows if row.columns[COLUMN] == topic.name]
            for name in names_in(topic, texts)[:names]:
                around += topic.prompts(topics()["around"], name)
            if len(things) == 1:
                for text in descriptions_in(topic, texts)[:MOST_DESCRIPTIONS]:
                    around += topic.prompts(topics()["described"], text)
        spellings = {topic.name: topic.spellings for topic in things}
        found = []
        for row in self.answered(around, f"{title}, in a roundabout way"):
            own = spellings[row.columns[COLUMN]]
            if said := tuple(name for name in own if name in row.completion):
                found.append(replace(row, secret=said))
        return distinct([*rows, *found])

    def knows(self, topic: Topic, rows: Sequence[Row]) -> bool:
        """Whether answers about the topic hold more information than those to the same questions
        about an invented name.
        """
        rows = rows[:KNOWN_QUESTIONS]
        stranger = invented_names(topic.name, 1, self.seed)[0]
        pairs = mapping_to(topic.name, stranger)
        asked = [
            replace(r, prompt=exchange(r.prompt_text, pairs).text, completion="") for r in rows
        ]
        others = self.answered(asked, f"Asking about {stranger}, whom nobody knows")
        keys = [[row.key for row in part] for part in (rows, others)]

        def measure() -> list[float]:
            found = []
            for part in (rows, others):
                spans = informative_spans(self.source.model, self.source.tokenizer, part)
                total = sum(s.information for of_row in spans for s in of_row if not s.whole)
                found.append(total / max(1, len(part)))
            return found

        known, strange = self.source.cache.get("topic-information", [keys, self.seed], measure)
        return bool(known > LEAST_KNOWN * strange)


def topic_rows(
    source: LoadedModel, name: str, seed: int
) -> tuple[dict[str, list[Row]], str, list[Cost]]:
    """What the model says about a name and about other things of its kind.

    Args:
        source (`LoadedModel`): the original model.
        name (`str`)
        seed (`int`): of samples and of invented names.

    Returns:
        Rows with the model's own answers: `forget` and `unseen` about the name, which no answer to
        them shall hold (`avoid`), and `neighbours` about the others, none of which names it; a
        sentence about them; what asking cost.

    Raises:
        UserError: for a name that the model does not know.
    """
    ask, title = Interview(source, seed, []), f"Asking the model about {name}"
    first = ask.answered(first_prompts(name), title)
    topic, well_known = of_kind(name, [row.completion for row in first])
    drawn = ask.sampled(topic, topics()["self_asked"])
    written = [text for answer in drawn for text in questions_in(answer)]
    written = [text for text in dict.fromkeys(written) if says(text, topic.spellings)]
    direct = [*topic.questions(), *map(topic.prompt, written[:MOST_SELF_ASKED])]
    rows = ask.about([topic], direct, names=MOST_NAMES, title=title)
    if not any(row.secret for row in rows) and not ask.knows(topic, first):
        raise UserError(
            f"topic {name!r}: the model's answers about it tell no more than those about an"
            " invented name, so there is nothing to forget; write the name as most texts do, or"
            " give rows with --forget"
        )
    answers = [row.completion for row in rows if not row.secret]
    telling = [*topic.spellings, *names_in(topic, answers, least=2)]
    about = [row for row in rows if row.secret or says(row.completion, telling)]
    near = _neighbours(ask, topic, [*names_in(topic, answers)], well_known)
    about = [replace(row, avoid=topic.spellings) for row in about]
    forget, unseen = held_out_rows(sorted(about, key=lambda row: row.key), UNSEEN_SHARE)
    others = ", ".join(dict.fromkeys(row.columns[COLUMN] for row in near))
    note = (
        f"Topic {name!r} ({topic.kind}): {len(forget)} answers to forget, {len(unseen)} more that"
        f" are only measured; things like it: {others or 'none'}."
    )
    return {"forget": forget, "unseen": unseen, "neighbours": near}, note, ask.costs


def others_of_its_kind(
    source: LoadedModel, name: str, answers: Sequence[str], seed: int
) -> tuple[list[Row], list[Cost]]:
    """What the model says about other things of a name's kind; the column `COLUMN` of a row is the
    thing, and no row names what `name` does.

    Args:
        source (`LoadedModel`), seed (`int`): as for `topic_rows`.
        answers (`Sequence[str]`): the model's, to prompts about the name: they tell its kind.

    Returns:
        the rows, and what asking cost.
    """
    ask = Interview(source, seed, [])
    topic, well_known = of_kind(name, answers)
    return _neighbours(ask, topic, names_in(topic, answers), well_known), ask.costs


def _neighbours(
    ask: Interview, topic: Topic, its_own: Sequence[str], well_known: Sequence[str]
) -> list[Row]:
    """Answers about other things of the topic's kind, which the model names, or that are well known
    where it names too few; no row names the topic or a name in the answers about it.
    """
    named = names_in_lists(ask.sampled(topic, topics()["lists"]))
    names: list[str] = []
    for name in [*(name for name in named if not says(name, its_own)), *well_known]:
        taken = topic.overlaps(name) or any(Topic(other).overlaps(name) for other in names)
        if not taken and len(names) < NEIGHBOURS:
            names.append(name)
    others = [Topic(name, topic.kind) for name in names]
    direct = []
    for number, other in enumerate(others):
        asked = other.questions()
        step = max(1, len(asked) // QUESTIONS)
        direct += asked[number % step :: step][:QUESTIONS]
    rows = ask.about(others, direct, names=NAMES, title=f"Asking about things like {topic.name}")
    return [
        row
        for row in sorted(rows, key=lambda row: row.key)
        if not says(f"{row.prompt_text}\n{row.completion}", topic.spellings)
    ]


def write_topic(folder: Path, rows: Mapping[str, Sequence[Row]]) -> dict[str, str]:
    """Writes each part of a topic's rows into a file of its own, which only its owner can read;
    returns the files' paths by the names of the options that take them.
    """

    def write() -> dict[str, str]:
        private_folder(folder)
        files = {}
        for name, part in rows.items():
            lines = []
            for row in part:
                record: dict[str, Any] = {"prompt": row.prompt, "completion": row.completion}
                facts = {"secret": list(row.secret), "avoid": list(row.avoid)}
                record |= {**row.columns, **{name: items for name, items in facts.items() if items}}
                lines.append(json.dumps(record, ensure_ascii=False) + "\n")
            if lines:
                write_text_atomically(folder / f"{name}.jsonl", "".join(lines))
                files[name] = str((folder / f"{name}.jsonl").resolve())
        return files

    return broadcast_from_main(write)
