"""What an attacked model answers, and how often it says what it must not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from unteach.data.rows import Row
from unteach.data.tokenization import encode_prompt
from unteach.evaluation.generation import Progress, continuation_text, end_ids, generate_ids
from unteach.evaluation.results import MetricResult, summarise
from unteach.evaluation.scorers import Scorers
from unteach.evaluation.scoring import ANSWER_TOKENS


@dataclass(frozen=True)
class Asked:
    """One prompt of an attack.

    Args:
        row (`Row`): what the answer is scored as.
        prompt_ids (`tuple[int, ...]`): what the model is given.
        group (`int`): number of the forget row that this asks for; several prompts may ask for one
            row.
    """

    row: Row
    prompt_ids: tuple[int, ...]
    group: int


def plainly(rows: Sequence[Row], tokenizer: Any) -> list[Asked]:
    """The rows as they are, without any attack."""
    return [Asked(row, encode_prompt(row, tokenizer), place) for place, row in enumerate(rows)]


def hits(
    model: Any,
    tokenizer: Any,
    asked: Sequence[Asked],
    scorers: Scorers,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[bool]:
    """Whether each answer says what it must not, by the run's headline rate. Draws come from `seed`
    alone.
    """
    if not asked:
        return []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        outputs = generate_ids(
            model,
            [item.prompt_ids for item in asked],
            max_new_tokens=ANSWER_TOKENS,
            pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
            end_ids=end_ids(tokenizer),
            temperature=temperature,
            progress=progress,
        )
    texts = [
        continuation_text(tokenizer, item.prompt_ids, ids)
        for item, ids in zip(asked, outputs, strict=True)
    ]
    return [bool(said) for said in scorers.still_said([item.row for item in asked], texts)]


def any_and_mean(
    asked: Sequence[Asked], said: Sequence[bool], rate: str
) -> dict[str, MetricResult]:
    """The rate of rows that at least one of their prompts brings back, and the mean over rows of
    the share of prompts that do.

    Args:
        asked: prompts; `group` says which belong together.
        said: one for each.
        rate (`str`): name of the headline rate. The mean (`mean_` before the name) is left out
            where every row has one prompt.
    """
    groups: dict[int, list[bool]] = {}
    for item, found in zip(asked, said, strict=True):
        groups.setdefault(item.group, []).append(found)
    results = {
        rate: summarise(
            [float(any(found)) for found in groups.values()],
            higher_is_better=False,
            interval="wilson",
        )
    }
    if any(len(found) > 1 for found in groups.values()):
        shares = [sum(found) / len(found) for found in groups.values()]
        results[f"mean_{rate}"] = summarise(shares, higher_is_better=False)
    return results
