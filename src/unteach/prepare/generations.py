"""Text that the original model generates before training: own answers to prompts, and alternates.

Each is cached by the model's hash and the inputs, and returned together with its cost.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import LogitsProcessor

from unteach import models
from unteach.data.chat import ChatSettings, render_hash, use_chat_settings
from unteach.data.columns import labels_of
from unteach.data.counterfactuals import first_tokens
from unteach.data.ngrams import RUN, ForgottenRuns, is_passage
from unteach.data.rows import Row
from unteach.data.tokenization import encode_prompt, encode_row
from unteach.errors import UserError
from unteach.evaluation.generation import (
    answer_limit,
    continuation_text,
    end_ids,
    generate_ids,
    generate_outputs,
)
from unteach.evaluation.metrics import prompt_set
from unteach.evaluation.text_metrics import rouge_l
from unteach.files.atomic import read_cached, write_json
from unteach.files.folders import content_key
from unteach.processes import broadcast_from_main
from unteach.progress import Display
from unteach.scenarios.scenario import Scenario
from unteach.scenarios.user_rows import with_unrelated
from unteach.seeding import row_generator
from unteach.trainer.costs import Cost

ALTERNATES = 8
"""Answers sampled for each row, at temperature 1."""


@dataclass(frozen=True)
class GenerationCache:
    """What one model generated, as JSON files in a folder.

    Args:
        folder (`Path`): exists already.
        model_hash (`str`): of the model's weights; part of every key.
        rendered (`str`): names what the chat template makes of prompts (`render_hash`); part of
            every key.
    """

    folder: Path
    model_hash: str
    rendered: str = ""

    def get(self, name: str, inputs: Any, make: Callable[[], Any]) -> Any:
        """The plain data that `make` returned for these inputs; calls it if nothing is cached.

        Args:
            name (`str`): first part of the file's name.
            inputs: plain data that the value depends on, beside the model.
            make: called in every process of a distributed run, or in none.
        """
        path = self._path(name, inputs)
        cached = broadcast_from_main(lambda: read_cached(path))
        if cached:
            return cached[0]
        started = time.perf_counter()
        value = make()

        def write() -> None:
            write_json(path.with_suffix(".seconds"), round(time.perf_counter() - started, 2))
            write_json(path, value)

        broadcast_from_main(write)
        return value

    def seconds(self, name: str, inputs: Any) -> float:
        """Seconds that `make` took when the value was made; 0 if that is not recorded."""
        found = read_cached(self._path(name, inputs).with_suffix(".seconds"))
        return float(found[0]) if found else 0.0

    def _path(self, name: str, inputs: Any) -> Path:
        return self.folder / f"{name}-{content_key([self.model_hash, self.rendered, inputs])}.json"


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, its tokenizer, and the cache of what it generates."""

    model: Any
    tokenizer: Any
    cache: GenerationCache
    display: Display

    @classmethod
    def of(cls, model: Any, tokenizer: Any, folder: Path, display: Display) -> LoadedModel:
        """A model whose generations are cached in `folder` under the hash of its weights now."""
        cache = GenerationCache(folder, models.weights_hash(model), render_hash(tokenizer))
        return cls(model, tokenizer, cache, display)

    @property
    def hash(self) -> str:
        """Hash of the weights that the cache belongs to."""
        return self.cache.model_hash

    def with_model(self, model: Any) -> LoadedModel:
        """The same with another model, whose generations are cached beside this one's."""
        return LoadedModel.of(model, self.tokenizer, self.cache.folder, self.display)

    def with_chat(self, settings: ChatSettings) -> LoadedModel:
        """The same model under other chat settings; what it generates is cached by them."""
        tokenizer = use_chat_settings(copy.copy(self.tokenizer), settings)
        cache = replace(self.cache, rendered=render_hash(tokenizer))
        return replace(self, tokenizer=tokenizer, cache=cache)

    def cost(self, name: str, inputs: Any, prompts: Sequence[Row], texts: Sequence[str]) -> Cost:
        """The cost of the cached generations `name`: tokens, and seconds of when they were made."""
        written = sum(
            len(self.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts
        )
        read = sum(len(encode_prompt(row, self.tokenizer)) for row in prompts)
        seconds = round(self.cache.seconds(name, inputs), 1)
        return Cost(name, seconds, 0, written, 0, 0.0, read)


def with_own_answers(
    source: LoadedModel, rows: Sequence[Row], title: str
) -> tuple[list[Row], list[Cost]]:
    """Rows without a completion get the model's own greedy answer.

    Args:
        title (`str`): of the stage on the display.

    Returns:
        The rows, without those to which the model's answer is empty, and what generating cost.
    """
    empty = [row for row in rows if not row.completion]
    if not empty:
        return list(rows), []
    if labels := labels_of(empty):
        source.display.print(f"{len(empty)} row(s) have no completion{labels}.")

    def generate() -> list[str]:
        with source.display.stage(title, len(empty)) as stage:
            return generate_outputs(
                source.model,
                source.tokenizer,
                empty,
                max_new_tokens=answer_limit(source.tokenizer, rows, source.model),
                progress=stage.update,
            )

    keys = [row.key for row in empty]
    texts = source.cache.get("own-answers", keys, generate)
    filled = {row.key: row.with_completion(text) for row, text in zip(empty, texts, strict=True)}
    answered = [filled.get(row.key, row) for row in rows]
    cost = source.cost("own-answers", keys, empty, texts)
    return [row for row in answered if row.completion.strip()], [cost]


def completed_scenario(source: LoadedModel, scenario: Scenario) -> tuple[Scenario, list[Cost]]:
    """The scenario, its rows without a completion filled with the model's own answers: those to
    forget and to keep, and those of all prompt sets but everyday prompts.

    Rows to which the model's answer is empty are left out.

    Returns:
        The scenario, and what generating cost.

    Raises:
        UserError: if no row to forget is left.
    """
    with_completions = [name for name in scenario.sets if prompt_set(name).role != "normal"]
    measured = [row for name in with_completions for row in scenario.sets[name]]
    kept = [*scenario.retain, *scenario.neighbours]
    rows = [*scenario.forget, *scenario.validation, *measured, *kept]
    empty = {row.key: row for row in rows if not row.completion}
    if not empty:
        return scenario, []
    title = "Collecting what the model answers to prompts without a completion"
    answered, costs = with_own_answers(source, list(empty.values()), title)
    by_prompt = {(row.prompt, row.kind): row for row in answered}

    def filled(rows: Sequence[Row]) -> list[Row]:
        found = [row if row.completion else by_prompt.get((row.prompt, row.kind)) for row in rows]
        return [row for row in found if row is not None]

    forget = filled(scenario.forget)
    if not forget:
        raise UserError(
            "the model's answers to all forget prompts are empty: there is nothing to forget"
        )
    sets = {
        name: filled(rows) if name in with_completions else rows
        for name, rows in scenario.sets.items()
    }
    completed = replace(
        scenario,
        forget=forget,
        validation=filled(scenario.validation),
        retain=filled(scenario.retain),
        neighbours=filled(scenario.neighbours),
        sets={name: rows for name, rows in sets.items() if rows},
        leak_corpus=scenario.leak_corpus or with_unrelated(forget),
    )
    return completed, costs


def with_alternates(source: LoadedModel, rows: Sequence[Row], seed: int) -> list[Row]:
    """The rows, each with the field `alternate`: another answer of the model's own.

    Of `ALTERNATES` samples it is the one least like the completion to forget, by ROUGE-L F1. A row
    that has an alternate keeps it.

    Args:
        source (`LoadedModel`): the model before unlearning.
        seed (`int`): samples depend on it and on the row, not on the order of the rows.

    Raises:
        UserError: naming a row whose samples are all empty or equal to the completion.
    """
    if all(row.alternate for row in rows):
        return list(rows)

    def sample() -> list[str]:
        title = "Sampling other answers to the forget prompts"
        with source.display.stage(title, len(rows)) as stage:
            found = []
            for number, row in enumerate(rows, 1):
                found.append(row.alternate or _least_like(row, sampled_answers(source, row, seed)))
                stage.update(number)
            return found

    inputs = [seed, *((row.key, row.alternate) for row in rows)]
    texts = source.cache.get("alternates", inputs, sample)
    return [replace(row, alternate=text) for row, text in zip(rows, texts, strict=True)]


class _NoRun(LogitsProcessor):
    """Lets no token complete a run of a forgotten text."""

    def __init__(self, runs: ForgottenRuns) -> None:
        self.runs = runs

    def __call__(self, input_ids: torch.LongTensor, scores: Any) -> Any:
        for row, ids in enumerate(input_ids[:, 1 - RUN :].tolist()):
            if banned := self.runs.completing(ids):
                scores[row, list(banned)] = -torch.inf
        return scores


@torch.no_grad()
def with_diverted_answers(source: LoadedModel, rows: Sequence[Row]) -> list[Row]:
    """The rows, and after them for each prompt with names to `avoid`, or of a passage, what the
    model says where it can say neither those names nor `RUN` tokens of a passage in a row: on it
    stand the places at which it would.
    """
    passages = [row for row in rows if is_passage(row)]
    wanted = [row for row in rows if row.avoid and row.kind == "chat"] + passages
    asked = [row for row in {row.prompt_key: row for row in wanted}.values() if row.prompt]
    if not asked:
        return list(rows)
    tokenizer = source.tokenizer
    prompts = [encode_prompt(row, tokenizer) for row in asked]

    def generate() -> list[str]:
        made: dict[int, str] = {}
        whole = [encode_row(row, tokenizer, None) for row in passages]
        runs = ForgottenRuns((row.prompt_ids + row.completion_ids for row in whole), tokenizer)
        limit = answer_limit(tokenizer, rows, source.model)
        with source.display.stage("Collecting what the model says instead", len(asked)) as stage:
            for avoid, passage in sorted({(row.avoid, is_passage(row)) for row in asked}):
                chosen = [
                    number
                    for number, row in enumerate(asked)
                    if (row.avoid, is_passage(row)) == (avoid, passage)
                ]
                found = generate_ids(
                    source.model,
                    [prompts[number] for number in chosen],
                    max_new_tokens=limit,
                    pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
                    end_ids=end_ids(tokenizer, source.model),
                    avoid=first_tokens(avoid, tokenizer),
                    processors=[_NoRun(runs)] if passage else [],
                )
                for number, ids in zip(chosen, found, strict=True):
                    made[number] = continuation_text(tokenizer, prompts[number], ids)
                stage.update(len(made))
        return [made[number] for number in range(len(asked))]

    keys = [[row.key, row.avoid] for row in [*asked, *passages]]
    texts = source.cache.get("diverted-answers", keys, generate)
    diverted = [
        replace(row, completion=text, diverted=True)
        for row, text in zip(asked, texts, strict=True)
        if text.strip()
    ]
    return [*rows, *diverted]


@torch.no_grad()
def sampled_answers(source: LoadedModel, row: Row, seed: int) -> list[str]:
    """`ALTERNATES` answers to the row's prompt at temperature 1, drawn by seed and row alone."""
    prompt, tokenizer = encode_prompt(row, source.tokenizer), source.tokenizer
    device = next(source.model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(row_generator("alternate", seed, row.key).integers(2**31)))
        samples = generate_ids(
            source.model,
            [prompt] * ALTERNATES,
            max_new_tokens=answer_limit(tokenizer, [row], source.model),
            pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
            end_ids=end_ids(tokenizer, source.model),
            temperature=1.0,
        )
    return [continuation_text(tokenizer, prompt, ids) for ids in samples]


def _least_like(row: Row, samples: Sequence[str]) -> str:
    """The sample with the lowest ROUGE-L F1 with the row's completion."""
    others = [text for text in samples if text.strip() and text.split() != row.completion.split()]
    if not others:
        raise UserError(
            f"{row.source or 'forget row ' + row.key}: all {len(samples)} sampled answers are empty"
            " or equal to the completion; give field 'alternate'"
        )
    return min(others, key=lambda text: rouge_l(text, row.completion)[1])
