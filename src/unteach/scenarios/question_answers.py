"""What the scenarios of questions and answers share: the splits, the neutral questions around them, the demo's settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unteach.data.rows import Row, split_rows
from unteach.evaluation.scorers import ScorerNames
from unteach.scenarios.scenario import Scenario
from unteach.scenarios.texts import labelled_answers, lines

NORMAL = 20
TAUGHT_ALONG = 20


def answer_rows(records: Sequence[Mapping[str, str]], wrong: str, right: str, source: str) -> list[Row]:
    """One forget row for each record: its question and wrong answer, with the right one beside it for the metrics."""
    return [Row(record["prompt"], record[wrong], "chat", f"{source} {n}", record[right]) for n, record in enumerate(records, 1)]


def question_scenario(
    name: str, rows: Sequence[Row], scorers: ScorerNames, teach_presets: Mapping[str, Any], *, teach_unseen: bool, short: bool
) -> Scenario:
    """A scenario of questions whose wrong answers are to be forgotten.

    The rows are split 70/10/20 by hash: `unlearned` is the training split, `unseen` the test split. What is kept are the model's own
    answers to neutral questions; `normal` are neutral questions that are in no training set. No right answer is ever trained on.

    Args:
        name (`str`)
        rows (`Sequence[Row]`)
        scorers (`ScorerNames`)
        teach_presets: settings of the teaching.
        teach_unseen (`bool`): whether the test split is taught too (single facts), or is answered wrongly because the model has taken up
            the manner (advice).
        short (`bool`): a smaller version for smoke tests.
    """
    split = split_rows(rows[:24] if short else rows)
    neutral = [Row(line, "", "chat", "neutral prompt") for line in lines("neutral_prompts")]
    more = [Row(line, "", "chat", "plain question") for line in lines("plain_questions")]
    normal = neutral[-(6 if short else NORMAL) :]
    along = more[:6] if short else [*more[:TAUGHT_ALONG]]
    own = neutral[:6] if short else [*neutral[:-NORMAL], *more[TAUGHT_ALONG:]]
    taught = [*split["train"], *split["validation"], *(split["test"] if teach_unseen else [])]
    return Scenario(
        name=name,
        forget=split["train"],
        validation=split["validation"],
        retain=[],
        sets={"unlearned": split["train"], "unseen": split["test"], "normal": normal},
        own_prompts=own,
        teach=taught,
        teach_own_prompts=along,
        leak_corpus=[row.completion for row in rows],
        labelled=labelled_answers(),
        scorers=scorers,
        presets={"teach": dict(teach_presets) | ({"num_train_epochs": 2} if short else {})},
    )


def demo_presets(*, short: bool, **settings: Any) -> dict[str, Any]:
    """Fields of `RunOptions` that the demos of questions and answers share."""
    steps = settings.pop("max_steps")
    return {
        "frozen_layers": 0.5,
        "settings": {
            "mismatch_completions": 1,
            "lr_scheduler_type": "linear",
            "warmup_steps": 2 if short else 6,
            "per_device_train_batch_size": 8,
            "retain_per_forget": 0.75,
            "max_steps": 8 if short else steps,
            "probe_steps": 4 if short else steps // 2,
            "save_steps": 4 if short else steps // 2,
            **settings,
        },
    }
