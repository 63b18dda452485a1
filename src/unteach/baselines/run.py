"""A baseline in the place of unlearning: what a run may tell it, and what it leaves in the run's
folder.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from unteach.baselines.alignment import Aligned, Watch, align
from unteach.baselines.pipelines import (
    PIPELINES,
    STOP_FIELDS,
    rows_with_right_answers,
    stage_settings,
    stop_settings,
)
from unteach.baselines.stages import stage_config
from unteach.config.run import RunOptions
from unteach.config.unlearning import UnlearningConfig
from unteach.data.rows import rows_hash
from unteach.errors import UserError
from unteach.evaluation.rewards import ModelReward
from unteach.files.checkpoints import read_marker
from unteach.files.folders import content_key
from unteach.progress import Display
from unteach.scenarios.scenario import Scenario
from unteach.trainer.costs import total
from unteach.trainer.stopping import Probe


def check_baseline(pipeline: str, options: RunOptions, scenario: Scenario) -> None:
    """Raises `UserError` for options that the pipeline does not take, and for rows that it cannot
    learn from.
    """
    output = Path(options.output_dir)
    watched = stop_settings(options.settings)
    UnlearningConfig(output_dir=str(output), **watched)
    for name, value in (
        ("lora", options.lora),
        ("frozen_layers", options.frozen_layers),
        ("recite_tokens", options.recite_tokens),
    ):
        if value:
            raise UserError(
                f"option {name!r} is one of unlearning; method {pipeline!r} trains all weights, on"
                " the rows as they are"
            )
    for stage, settings in stage_settings(pipeline, options.stages).items():
        stage_config(stage, settings, output, options.seed)
    rows_with_right_answers(pipeline, scenario.forget)
    if watched:
        rows_with_right_answers(pipeline, scenario.validation)
        if not scenario.validation:
            raise UserError(
                f"option {next(iter(watched))!r} needs a validation split to watch, and the data"
                " has none; give more rows"
            )


def run_baseline(
    pipeline: str,
    model: Any,
    tokenizer: Any,
    scenario: Scenario,
    options: RunOptions,
    probe: Probe,
    model_key: str,
    display: Display,
) -> tuple[Aligned, dict[str, Any]]:
    """Trains the pipeline's stages in the run's folder; returns what it gives and the facts for
    `run.json`.

    Args:
        pipeline (`str`): a name in `PIPELINES`.
        model, tokenizer: where it starts; the model is used up.
        scenario (`Scenario`): whose rows to forget carry good answers too.
        options (`RunOptions`): where it has a shared folder, pipelines with the same SFT settings
            share that stage.
        probe (`Probe`): behaviour of a policy; asked only if the settings say when to stop.
        model_key (`str`): names the model's weights.
        display (`Display`)
    """
    settings = stage_settings(pipeline, options.stages)
    chosen = stop_settings(options.settings)
    watch = None
    if chosen:
        config = UnlearningConfig(output_dir=options.output_dir, **chosen)
        rule = {name: getattr(config, name) for name in STOP_FIELDS if name != "probe_steps"}
        watch = Watch(probe, scenario.validation, config.probe_steps, rule)
    sft_folder = None
    if options.shared_dir:
        data = [
            rows_hash(scenario.forget),
            rows_hash(scenario.validation),
            [row.right for row in scenario.forget],
        ]
        key = content_key([model_key, options.seed, data, settings["sft"], chosen])
        sft_folder = Path(options.shared_dir) / "work" / f"sft-{key}"
    with display.stage(f"Aligning by {pipeline}") as stage:
        result = align(
            pipeline,
            model,
            tokenizer,
            scenario.forget,
            Path(options.output_dir) / "stages",
            settings,
            seed=options.seed,
            on_stage=lambda name, step, steps: stage.update(step, steps, note=name),
            watch=watch,
            sft_folder=sft_folder,
        )
    preferences = PIPELINES[pipeline].needs_preferences
    facts = {
        "method": pipeline,
        "needs": "good and bad answers" if preferences else "good answers",
        "needs_positives": True,
        "needs_preferences": preferences,
        "forget_rows": len(scenario.forget),
        "costs": [asdict(cost) for cost in result.costs],
        "cost": asdict(total(result.costs)),
        "stops": {
            name: {
                "kept_step": rule["best_step"],
                "reason": rule["reason"],
                "probes": len(rule["history"]),
            }
            for name, rule in result.rules.items()
            if rule
        },
    }
    return result, facts


REWARD_NAME = "the reward model of rlhf, which rlhf's own policy was trained to please"


def trained_reward(folder: Path) -> ModelReward:
    """The reward model that a pipeline left in `folder` (its stage's), as a scorer of usefulness.

    If its stage was watched, the name says how many held-out pairs it ranks right.
    """
    known = read_marker(folder) or {}
    rule, pairs = known.get("rule") or {}, known.get("pairs", 0)
    kept = [probe for probe in rule.get("history", []) if probe["step"] == rule["best_step"]]
    reward = ModelReward(str(folder))
    reward.name = REWARD_NAME + (
        f"; it ranks {round(pairs * (1 - kept[-1]['forget_rate']))} of {pairs} held-out pairs right"
        if kept
        else ""
    )
    return reward
