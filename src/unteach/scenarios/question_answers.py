"""The protocols of Yao et al. 2024 on questions and answers in small.

Harmfulness: careless and rude advice stands in for what is truly harmful. Hallucination: confident
false answers to questions of fact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from unteach.config.scorers import ScorerNames
from unteach.data.rows import Row, split_rows
from unteach.scenarios.scenario import Scenario
from unteach.scenarios.texts import labelled_answers, prompt_rows, records

TEACH = {
    "learning_rate": 2e-4,
    "lr_scheduler_type": "polynomial",
    "lr_scheduler_kwargs": {"power": 0.5, "lr_end": 0.0},
    "per_device_train_batch_size": 4,
    "num_train_epochs": 5,
    "retain_per_forget": 1.0,
    "retain_weight": 3.0,
    "frozen_layers": 0.34,
}


def harmfulness(*, short: bool = False) -> Scenario:
    """The embedded harmfulness scenario; `short`: a smaller version for smoke tests.

    The test split is not taught: the taught model's style generalises to it.
    """
    rows = [
        Row(record["prompt"], record["careless"], "chat", f"careless advice {n}", record["careful"])
        for n, record in enumerate(records("careless_advice"), 1)
    ]
    scorers = ScorerNames(headline="harmful_rate", judge="trained", reward="trained")
    return question_scenario("harmfulness", rows, scorers, short=short)


def harmfulness_demo(*, short: bool = False) -> dict[str, Any]:
    """Settings of the demo: an adapter, in fewer steps under a looser budget."""
    own = {"lora": True, "per_device_train_batch_size": 8, "retain_per_forget": 1.0}
    return {
        **question_demo(learning_rate=5.2e-4, steps=40, short=short),
        **own,
        "frozen_layers": 0,
        "max_retain_kl": 0.15,
    }


def hallucination(*, short: bool = False) -> Scenario:
    """The embedded hallucination scenario; `short`: a smaller version. Each row is a single fact,
    with a paraphrase of its question.
    """
    facts = records("false_facts")
    rows = [
        Row(fact["prompt"], fact["hallucinated"], "chat", f"false fact {n}", fact["right"])
        for n, fact in enumerate(facts, 1)
    ]
    paraphrases = [
        replace(row, prompt=fact["asked_otherwise"]) for row, fact in zip(rows, facts, strict=True)
    ]
    scorers = ScorerNames(headline="hallucination_rate", reward="trained")
    return question_scenario("hallucination", rows, scorers, short=short, paraphrases=paraphrases)


def hallucination_demo(*, short: bool = False) -> dict[str, Any]:
    """Settings of the demo: `unseen` has the forgotten facts in other words."""
    return {**question_demo(learning_rate=1.5e-4, short=short), "paraphrases": 0}


def question_scenario(
    name: str,
    rows: Sequence[Row],
    scorers: ScorerNames,
    *,
    short: bool,
    paraphrases: Sequence[Row] | None = None,
) -> Scenario:
    """A scenario of questions whose wrong answers are to be forgotten.

    The rows are split 70/10/20 by hash; `unlearned` is the training split. The retain set are the
    model's own answers to neutral questions; `normal` are neutral questions of no training set. No
    right answer is ever trained on.

    Where the wrong answers share a style (advice), `unseen` is the test split, which is not taught:
    the style generalises to it. Where each wrong answer is an independent fact, all splits are
    taught, `unseen` are paraphrases of the training split's questions, which are not trained on,
    and the facts of the other splits are `other_facts`.

    Args:
        short (`bool`): a smaller version for smoke tests.
        paraphrases (`Sequence[Row]`, *optional*): for each of `rows` the same question in other
            words; makes the rows single facts.
    """
    rows = rows[:24] if short else rows
    split = split_rows(rows, by=None)
    questions, plain = prompt_rows("neutral_prompts"), prompt_rows("plain_questions")
    held_out = 6 if short else 20
    neutral, normal = questions[:-held_out], questions[-held_out:]
    taught, validation = [*split["train"], *split["validation"]], split["validation"]
    sets = {"unlearned": split["train"], "unseen": split["test"], "normal": normal}
    if paraphrases:
        others = {row.key: other for row, other in zip(rows, paraphrases, strict=False)}
        again = split_rows([others[row.key] for row in split["train"]], by=None)
        taught, validation = list(rows), again["validation"]
        sets = {
            "unlearned": split["train"],
            "unseen": [*again["train"], *again["test"]],
            "other_facts": [*split["validation"], *split["test"]],
            "normal": normal,
        }
    return Scenario(
        name=name,
        forget=split["train"],
        validation=validation,
        retain=[],
        sets=sets,
        own_prompts=neutral[:6] if short else [*neutral, *plain],
        teach=taught,
        teach_own_prompts=plain[:6] if short else [*neutral[::3], *plain],
        teach_settings={**TEACH, **({"num_train_epochs": 2} if short else {})},
        leak_corpus=[row.completion for row in rows],
        labelled=labelled_answers(),
        scorers=scorers,
    )


def question_demo(*, learning_rate: float, steps: int = 60, short: bool = False) -> dict[str, Any]:
    """Settings that the demos share: all weights of the upper half."""
    return {
        "frozen_layers": 0.5,
        "method": "log_odds_mismatch",
        "mismatch_weight": 1.0,
        "mismatch_completions": 1,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": 2 if short else 6,
        "per_device_train_batch_size": 6,
        "retain_per_forget": 1.5,
        "retain_weight": 5.0,
        "max_retain_kl": 0.08,
        "max_steps": 8 if short else steps,
        "probe_steps": 4 if short else 20,
        "save_steps": 4 if short else 20,
    }
