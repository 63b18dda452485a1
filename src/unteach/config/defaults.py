"""What a run takes where the user names no learning rate and no length: rules that fit small models
and large ones, few rows and many.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unteach.config.unlearning import UnlearningConfig
from unteach.methods import DEFAULT_METHOD, get_method

RATE_TIMES_WIDTH = 0.075
"""Learning rate times the model's width, all weights trained: 1.3e-4 at 576, where it was found
(docs/log.md), 1.8e-5 at 4,096.

For Adam the rate that suits goes with one over the width (Yang et al. 2022, arXiv 2203.03466).
"""
ADAPTER_FACTOR = 4.0
"""How much more an adapter takes than all weights."""
SCHEDULE = {"lr_scheduler_type": "linear", "warmup_steps": 0.1}
BY_DEFAULT: dict[str, Any] = {"mismatch_completions": 1, "retain_weight": 5.0, **SCHEDULE}
"""What the default method was found with (docs/log.md): a rate that falls to 0 lets what is kept
come back before the end.
"""
LEAST_STEPS = 100
"""Steps of the longest run on few rows; what ends it before is the model's behaviour."""


def suitable_learning_rate(width: int, method: str, *, lora: bool) -> float:
    """The learning rate of a run whose user names none, to two digits.

    Args:
        width (`int`): the model's hidden size.
        method (`str`): takes its share, `Method.rate`, of what the width says.
        lora (`bool`): whether an adapter is trained.
    """
    rate = RATE_TIMES_WIDTH / width * (ADAPTER_FACTOR if lora else 1.0) * get_method(method).rate
    return float(f"{rate:.2g}")


def names_a_length(given: Mapping[str, Any]) -> bool:
    """Whether somebody chose how long to train."""
    return (
        bool({"num_train_epochs", "least_steps"} & set(given)) or (given.get("max_steps") or 0) > 0
    )


def by_default(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run with the default method that nobody chose."""
    if given.get("method", DEFAULT_METHOD) != DEFAULT_METHOD:
        return {}
    left = set(BY_DEFAULT) - set(given)
    if set(given) & set(SCHEDULE):
        left -= set(SCHEDULE)  # half of a schedule is another one
    return {name: value for name, value in BY_DEFAULT.items() if name in left}


def complete(
    config: UnlearningConfig, given: Mapping[str, Any], *, width: int | None, lora: bool
) -> None:
    """Fills in what was not given: the learning rate by the model's width, `LEAST_STEPS`, and what
    goes with the default method.

    Args:
        config: is changed.
        given: the settings that somebody chose.
        width (`int`, *optional*): the model's hidden size; unknown: the rate stays.
        lora (`bool`)
    """
    if "learning_rate" not in given and width:
        config.learning_rate = suitable_learning_rate(width, config.method, lora=lora)
    if not names_a_length(given):
        config.least_steps = LEAST_STEPS
    for name, value in by_default(given).items():
        setattr(config, name, value)


def rules(given: Mapping[str, Any], *, lora: bool) -> dict[str, Any]:
    """What decides in the place of settings that were not given, as plain data: part of what a run
    is.
    """
    found: dict[str, Any] = {}
    if "learning_rate" not in given:
        name = given.get("method", DEFAULT_METHOD)
        share = {} if name == "auto" else {"share": get_method(name).rate}
        found["learning_rate"] = {
            "times_width": RATE_TIMES_WIDTH * (ADAPTER_FACTOR if lora else 1.0),
            **share,
        }
    found |= by_default(given)
    return found if names_a_length(given) else {**found, "least_steps": LEAST_STEPS}
