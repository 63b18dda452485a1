"""What a model is let say before it is trained: answers to keep, other answers, what it recites;
each asked for once and kept.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unteach.data.rows import Row
from unteach.data.tokenization import encode_prompt
from unteach.errors import UserError
from unteach.evaluation.generation import generate_outputs
from unteach.evaluation.metrics import is_forget_set
from unteach.evaluation.scoring import ANSWER_TOKENS
from unteach.files.atomic import write_json
from unteach.files.folders import content_key
from unteach.prepare.alternates import with_alternates
from unteach.prepare.recitation import recited_passages, without_forget_text
from unteach.processes import broadcast_from_main
from unteach.progress import Display
from unteach.scenarios.scenario import Scenario
from unteach.scenarios.user_rows import with_unrelated
from unteach.trainer.costs import Cost


class Collection:
    """What the models of one run have been asked, in the run's work folder.

    Args:
        work (`Path`): the folder; made by the caller.
        display (`Display`)
        scenario (`Scenario`)
        seed (`int`): of draws.
        facts (`dict`): what `run.json` will say; what is counted here joins it.

    Attributes:
        model_key (`str`): hash of the model that is asked; what another one said is not taken for
            its.
        costs (`list[Cost]`): the price of what was collected.
    """

    def __init__(
        self, work: Path, display: Display, scenario: Scenario, seed: int, facts: dict[str, Any]
    ) -> None:
        self.work, self.display, self.scenario, self.seed = work, display, scenario, seed
        self.model_key = ""
        self.costs: list[Cost] = []
        self.facts = facts

    def cached(self, name: str, inputs: Any, make: Callable[[], Any]) -> Any:
        """What `make` returns (plain data), from the work folder if it was made before from the
        same inputs and the same model.
        """
        path = self.work / f"{name}-{content_key([self.model_key, inputs])}.json"
        known = broadcast_from_main(
            lambda: [json.loads(path.read_text(encoding="utf-8"))] if path.exists() else []
        )
        if known:
            return known[0]
        started = time.perf_counter()
        value = make()

        def keep() -> None:
            write_json(path.with_suffix(".seconds"), round(time.perf_counter() - started, 2))
            write_json(path, value)

        broadcast_from_main(keep)
        return value

    def collect(
        self, name: str, inputs: Any, tokenizer: Any, rows: Sequence[Row], make: Callable[[], Any]
    ) -> Any:
        """As `cached`, of what the model says to `rows` for the training (a list of texts, or of
        lists whose second is the text).

        Its price joins those of the run: the seconds are those of the time when it was made.
        """
        value = self.cached(name, inputs, make)
        path = self.work / f"{name}-{content_key([self.model_key, inputs])}.seconds"
        seconds = float(path.read_text(encoding="utf-8")) if path.exists() else 0.0
        texts = [item if isinstance(item, str) else item[1] for item in value]
        written = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
        read = sum(len(encode_prompt(row, tokenizer)) for row in rows)
        self.costs.append(Cost(name, round(seconds, 1), 0, written, 0, 0.0, read))
        return value

    def with_completions(
        self, model: Any, tokenizer: Any, rows: Sequence[Row], title: str
    ) -> list[Row]:
        """The rows, those without a completion filled with the model's own answer; a row that it
        answers with nothing is left out.
        """
        empty = [row for row in rows if not row.completion]
        if not empty:
            return list(rows)

        def ask() -> list[str]:
            with self.display.stage(title, len(empty)) as stage:
                return generate_outputs(
                    model, tokenizer, empty, max_new_tokens=ANSWER_TOKENS, progress=stage.update
                )

        outputs = self.collect("own-answers", [row.key for row in empty], tokenizer, empty, ask)
        made = {
            row.key: row.with_completion(output) for row, output in zip(empty, outputs, strict=True)
        }
        return [filled for row in rows if (filled := made.get(row.key, row)).completion.strip()]

    def answered(self, model: Any, tokenizer: Any) -> Scenario:
        """The scenario with the model's own answers to forget prompts, held-out ones among them,
        that came without a completion.

        They are what is forgotten, asked for and compared with. A row that the model answers with
        nothing is left out.

        Raises:
            UserError: if it answers none of the rows to forget with anything.
        """
        scenario = self.scenario
        asked = {name: rows for name, rows in scenario.sets.items() if is_forget_set(name)}
        every = [
            *scenario.forget,
            *scenario.validation,
            *(row for rows in asked.values() for row in rows),
        ]
        empty = {row.key: row for row in every if not row.completion}
        if not empty:
            return scenario
        title = "Collecting what the model answers to the forget prompts"
        said = {
            (row.prompt, row.kind): row
            for row in self.with_completions(model, tokenizer, list(empty.values()), title)
        }

        def filled(rows: Sequence[Row]) -> list[Row]:
            found = [row if row.completion else said.get((row.prompt, row.kind)) for row in rows]
            return [row for row in found if row is not None]

        forget = filled(scenario.forget)
        if not forget:
            raise UserError(
                "the model answers none of the forget prompts with anything: there is nothing to"
                " forget"
            )
        sets = {
            name: filled(rows) if name in asked else rows for name, rows in scenario.sets.items()
        }
        return replace(
            scenario,
            forget=forget,
            validation=filled(scenario.validation),
            sets={name: rows for name, rows in sets.items() if rows},
            leak_corpus=scenario.leak_corpus or with_unrelated(forget),
        )

    def with_alternates(self, model: Any, tokenizer: Any, rows: list[Row]) -> list[Row]:
        """The rows, each with another answer of the model's own (`unteach.prepare.alternates`)."""
        if all(row.alternate for row in rows):
            return rows

        def sample() -> list[str]:
            with self.display.stage(
                "Sampling other answers to the forget prompts", len(rows)
            ) as stage:
                settings: dict[str, Any] = {
                    "seed": self.seed,
                    "max_new_tokens": ANSWER_TOKENS,
                    "progress": stage.update,
                }
                return [
                    row.alternate for row in with_alternates(model, tokenizer, rows, **settings)
                ]

        others = self.cached(
            "alternates", [self.seed, *((row.key, row.alternate) for row in rows)], sample
        )
        return [replace(row, alternate=other) for row, other in zip(rows, others, strict=True)]

    def extend(
        self, model: Any, tokenizer: Any, forget: list[Row], retain: list[Row], tokens: int
    ) -> list[Row]:
        """The forget set and what the model recites when it goes on from its rows, by so many
        tokens.
        """

        def recite() -> list[list[str]]:
            with self.display.stage(
                "Letting the model recite on from the forget rows", len(forget)
            ) as stage:
                rows = recited_passages(
                    model, tokenizer, forget, retain, max_new_tokens=tokens, progress=stage.update
                )
            return [[row.prompt_text, row.completion, row.source] for row in rows]

        keys = [tokens, *(row.key for row in [*forget, *retain])]
        found = self.collect("recited", keys, tokenizer, forget, recite)
        recited = [Row(prompt, completion, "text", source) for prompt, completion, source in found]
        unseen = {" ".join(row.prompt_text.split()) for row in self.scenario.sets.get("unseen", [])}
        self.facts["recited_passages"] = len(recited)
        self.facts["recited_unseen_passages"] = sum(row.prompt_text in unseen for row in recited)
        return [*forget, *recited]

    def without_forget_text(
        self, own: list[Row], forget: list[Row], *, alone: bool = True
    ) -> list[Row]:
        """The model's own answers to keep, less those that recite what is to be forgotten; none may
        be left if they are not `alone`.
        """
        clean = without_forget_text(own, forget)
        self.facts["own_answers_left_out"] = len(own) - len(clean)
        if own and not clean and alone:
            raise UserError(
                "each of the model's own answers repeats a text to forget, so none is left to keep;"
                " give rows to keep (retain)"
            )
        if len(clean) < len(own):
            self.display.print(
                f"{len(own) - len(clean)} of the {len(own)} own answers repeat a text to forget and"
                " are not kept"
            )
        return clean
