"""The alignment pipelines: their stages, settings and data. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unteach.data.rows import Row
from unteach.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Pipeline:
    """Stages in order, and whether they need pairs of a good and a bad answer or good ones."""

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

COMMON = {"per_device_train_batch_size": 8, "num_train_epochs": 3}
STAGE_SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {**COMMON, "learning_rate": 2e-5},
    "dpo": {**COMMON, "learning_rate": 5e-6, "beta": 0.1},
    "reward": {**COMMON, "learning_rate": 2e-5},
    "rl": {
        **COMMON,
        "learning_rate": 5e-6,
        "beta": 0.05,
        "num_generations": 4,
    },
}
"""Defaults of each stage; `stages` overrides any field of TRL's config. `max_completion_length` of
`rl` is the limit of answers in the evaluation.
"""


def stage_settings(pipeline: str, chosen: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The settings of each stage of `pipeline`: the user's over the defaults.

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


def check_good_answers(pipeline: str, rows: Sequence[Row]) -> None:
    """Raises `UserError` naming the first row without the good answer that `pipeline` needs."""
    for row in rows:
        if not row.right.strip():
            raise UserError(
                f"{row.source}: method {pipeline!r} learns from good answers, and this row has"
                " none; give preference rows (prompt, chosen, rejected), or unlearn, which needs"
                " bad answers only"
            )


STOP_FIELDS = ("probe_steps", "target_rate", "hold", "min_utility", "patience")
"""Fields of `UnlearningConfig` that a baseline takes too: probes and early stopping."""


def stop_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of probes and early stopping.

    Raises:
        UserError: for any other setting, as no baseline takes it.
    """
    for name in settings:
        if name not in STOP_FIELDS and name != "method":
            raise UserError(
                f"option {name!r} is one of unlearning; method {settings.get('method')!r} takes its"
                f" settings by stage, in 'stages', and beside them only {', '.join(STOP_FIELDS)}"
            )
    return {name: settings[name] for name in STOP_FIELDS if name in settings}
