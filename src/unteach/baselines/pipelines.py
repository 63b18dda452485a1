"""The alignment pipelines by name, what data each needs, and the settings of their stages. No torch
here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unteach.data.rows import Row
from unteach.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Pipeline:
    """Stages in their order, and whether the data must have good answers alone, or pairs of a good
    and a bad one.
    """

    stages: tuple[str, ...]
    needs_preferences: bool
    source: str


PIPELINES: dict[str, Pipeline] = {
    "sft": Pipeline(("sft",), False, "supervised fine-tuning on good answers"),
    "dpo": Pipeline(
        ("sft", "dpo"), True, "Rafailov et al. 2023: SFT, then direct preference optimisation"
    ),
    "rlhf": Pipeline(
        ("sft", "reward", "rl"),
        True,
        "Ouyang et al. 2022: SFT, a reward model, RL with a KL penalty",
    ),
}
"""RL is REINFORCE leave-one-out (RLOO, Ahmadian et al. 2024): TRL has no PPO trainer any more."""

STAGE_SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {"learning_rate": 2e-5, "per_device_train_batch_size": 8, "num_train_epochs": 3},
    "dpo": {
        "learning_rate": 5e-6,
        "per_device_train_batch_size": 8,
        "num_train_epochs": 3,
        "beta": 0.1,
    },
    "reward": {"learning_rate": 2e-5, "per_device_train_batch_size": 8, "num_train_epochs": 3},
    "rl": {
        "learning_rate": 5e-6,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 56,
        "num_train_epochs": 3,
        "beta": 0.05,
    },
}
"""What each stage starts from; any field of TRL's config for that stage may stand in its place."""


def stage_settings(pipeline: str, chosen: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The settings of each stage of `pipeline`: the defaults, those of the user in their place.

    Raises:
        UserError: for a stage that the pipeline has not, and for settings that are no mapping.
    """
    stages = PIPELINES[pipeline].stages
    if chosen is not None and not isinstance(chosen, Mapping):
        raise UserError(
            f"option 'stages' is {chosen!r}; it must map stages of {pipeline} to settings, as in"
            " {sft: {max_steps: 9}}"
        )
    for name, fields in (chosen or {}).items():
        if name not in stages:
            raise did_you_mean(name, list(stages), f"stage of {pipeline}")
        if not isinstance(fields, Mapping):
            raise UserError(
                f"option 'stages' holds {fields!r} for stage {name!r}; it must map names of"
                " settings to values"
            )
    return {name: STAGE_SETTINGS[name] | dict((chosen or {}).get(name, {})) for name in stages}


def rows_with_right_answers(pipeline: str, rows: Sequence[Row]) -> list[Row]:
    """The rows, if each has the good answer that `pipeline` learns from.

    Raises:
        UserError: naming the first row without one.
    """
    for row in rows:
        if not row.right.strip():
            raise UserError(
                f"{row.source}: method {pipeline!r} learns from good answers, and this row has"
                " none; give preference rows (prompt, chosen, rejected), or unlearn, which needs"
                " bad answers only"
            )
    return list(rows)


STOP_FIELDS = ("probe_steps", "target_rate", "hold", "min_utility", "patience")
"""Fields of `UnlearningConfig` that a baseline takes too: when to probe and when to stop."""


def stop_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings of a run that say when to probe and when to stop.

    Raises:
        UserError: naming a setting that is neither and that no baseline takes.
    """
    for name in settings:
        if name not in STOP_FIELDS and name != "method":
            raise UserError(
                f"option {name!r} is one of unlearning; method {settings.get('method')!r} takes its"
                f" settings by stage, in 'stages', and beside them only {', '.join(STOP_FIELDS)}"
            )
    return {name: settings[name] for name in STOP_FIELDS if name in settings}
