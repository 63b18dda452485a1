"""What the scenarios of questions and answers share: the splits, the neutral questions around them,
the demo's settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unteach.config.scorers import ScorerNames
from unteach.data.rows import Row, split_rows
from unteach.scenarios.scenario import Scenario
from unteach.scenarios.texts import labelled_answers, lines

NORMAL = 20


def answer_rows(
    records: Sequence[Mapping[str, str]], wrong: str, right: str, source: str
) -> list[Row]:
    """One forget row for each record: its question and wrong answer, with the right one beside it
    for the metrics.
    """
    return [
        Row(record["prompt"], record[wrong], "chat", f"{source} {n}", record[right])
        for n, record in enumerate(records, 1)
    ]


def question_scenario(
    name: str,
    rows: Sequence[Row],
    scorers: ScorerNames,
    teach_presets: Mapping[str, Any],
    *,
    short: bool,
    asked_otherwise: Sequence[Row] | None = None,
) -> Scenario:
    """A scenario of questions whose wrong answers are to be forgotten.

    The rows are split 70/10/20 by hash; `unlearned` is the training split. What is kept are the
    model's own answers to neutral questions; `normal` are neutral questions that are in no training
    set. No right answer is ever trained on.

    Where the wrong answers share a manner (advice), `unseen` is the test split, which nobody
    teaches: the model answers it wrongly because it has taken up the manner. Where each wrong
    answer is a fact of its own, all splits are taught, `unseen` are the training split's facts
    asked in other words, which nobody trains on, and the facts of the other splits are reported as
    `other_facts`.

    Args:
        name (`str`)
        rows (`Sequence[Row]`)
        scorers (`ScorerNames`)
        teach_presets: settings of the teaching.
        short (`bool`): a smaller version for smoke tests.
        asked_otherwise (`Sequence[Row]`, *optional*): for each of `rows` the same question in other
            words; makes the rows single facts.
    """
    rows = rows[:24] if short else rows
    split = split_rows(rows, by=None)
    neutral = [Row(line, "", "chat", "neutral prompt") for line in lines("neutral_prompts")]
    more = [Row(line, "", "chat", "plain question") for line in lines("plain_questions")]
    normal, neutral = neutral[-(6 if short else NORMAL) :], neutral[: -(6 if short else NORMAL)]
    along = more[:6] if short else [*neutral[::3], *more]
    own = neutral[:6] if short else [*neutral, *more]
    taught, validation = [*split["train"], *split["validation"]], split["validation"]
    sets = {"unlearned": split["train"], "unseen": split["test"], "normal": normal}
    if asked_otherwise:
        others = {row.key: other for row, other in zip(rows, asked_otherwise, strict=False)}
        again = split_rows([others[row.key] for row in split["train"]], by=None)
        other_facts = [*split["validation"], *split["test"]]
        taught, validation = list(rows), again["validation"]
        sets = {
            "unlearned": split["train"],
            "unseen": [*again["train"], *again["test"]],
            "other_facts": other_facts,
            "normal": normal,
        }
    return Scenario(
        name=name,
        forget=split["train"],
        validation=validation,
        retain=[],
        sets=sets,
        own_prompts=own,
        teach=taught,
        teach_own_prompts=along,
        leak_corpus=[row.completion for row in rows],
        labelled=labelled_answers(),
        scorers=scorers,
        presets={"teach": dict(teach_presets) | ({"num_train_epochs": 2} if short else {})},
    )


def demo_presets(*, learning_rate: float, short: bool, adapter: bool = False) -> dict[str, Any]:
    """Fields of `RunOptions` that the demos of questions and answers share (docs/log.md has the
    measurements).

    Args:
        learning_rate (`float`)
        short (`bool`): as for the scenario.
        adapter (`bool`): trains a LoRA adapter, in fewer steps under a looser budget, instead of
            all weights of the upper half.
    """
    steps, rows, others, budget = (40, 8, 1.0, 0.15) if adapter else (60, 6, 1.5, 0.08)
    return {
        **({"lora": True} if adapter else {"frozen_layers": 0.5}),
        "settings": {
            "method": "log_odds_mismatch",
            "mismatch_weight": 1.0,
            "mismatch_completions": 1,
            "learning_rate": learning_rate,
            "lr_scheduler_type": "linear",
            "warmup_steps": 2 if short else 6,
            "per_device_train_batch_size": rows,
            "retain_per_forget": others,
            "retain_weight": 5.0,
            "max_retain_kl": budget,
            "max_steps": 8 if short else steps,
            "probe_steps": 4 if short else 20,
            "save_steps": 4 if short else 20,
        },
    }
