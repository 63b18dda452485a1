"""Text that the original model generates before training: cached by the model's hash and the
inputs, with its cost.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unteach.data.rows import Row
from unteach.data.tokenization import encode_prompt
from unteach.evaluation.generation import generate_outputs
from unteach.evaluation.scoring import ANSWER_TOKENS
from unteach.files.atomic import write_json
from unteach.files.folders import content_key
from unteach.processes import broadcast_from_main
from unteach.progress import Display
from unteach.trainer.costs import Cost


@dataclass(frozen=True)
class GenerationCache:
    """What one model generated, as JSON files in a folder.

    Args:
        folder (`Path`): exists already.
        model_hash (`str`): of the model's weights; part of every key.
    """

    folder: Path
    model_hash: str

    def get(self, name: str, inputs: Any, make: Callable[[], Any]) -> Any:
        """The plain data that `make` returned for these inputs; calls it if nothing is cached.

        Args:
            name (`str`): first part of the file's name.
            inputs: plain data that the value depends on, beside the model.
            make: called in every process of a distributed run, or in none.
        """
        path = self._path(name, inputs)
        cached = broadcast_from_main(
            lambda: [json.loads(path.read_text(encoding="utf-8"))] if path.exists() else []
        )
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
        path = self._path(name, inputs).with_suffix(".seconds")
        return float(path.read_text(encoding="utf-8")) if path.exists() else 0.0

    def _path(self, name: str, inputs: Any) -> Path:
        return self.folder / f"{name}-{content_key([self.model_hash, inputs])}.json"


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, its tokenizer, and the cache of what it generates."""

    model: Any
    tokenizer: Any
    cache: GenerationCache
    display: Display

    def cost(self, name: str, inputs: Any, prompts: Sequence[Row], texts: Sequence[str]) -> Cost:
        """The cost of the cached generations `name`: seconds of when they were made, tokens."""
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
        source (`LoadedModel`)
        rows (`Sequence[Row]`)
        title (`str`): of the stage on the display.

    Returns:
        The rows, without those to which the model's answer is empty, and what generating cost.
    """
    empty = [row for row in rows if not row.completion]
    if not empty:
        return list(rows), []

    def generate() -> list[str]:
        with source.display.stage(title, len(empty)) as stage:
            return generate_outputs(
                source.model,
                source.tokenizer,
                empty,
                max_new_tokens=ANSWER_TOKENS,
                progress=stage.update,
            )

    keys = [row.key for row in empty]
    texts = source.cache.get("own-answers", keys, generate)
    filled = {row.key: row.with_completion(text) for row, text in zip(empty, texts, strict=True)}
    answered = [filled.get(row.key, row) for row in rows]
    cost = source.cost("own-answers", keys, empty, texts)
    return [row for row in answered if row.completion.strip()], [cost]
