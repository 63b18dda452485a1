"""A baseline instead of unlearning: which options and rows it takes, and what it writes into the
run's folder.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from unteach.baselines.alignment import Aligned, Watch, align
from unteach.baselines.pipelines import (
    PIPELINES,
    STOP_FIELDS,
    check_good_answers,
    stage_settings,
    stop_settings,
)
from unteach.baselines.stages import answers_of, stage_config, stage_records
from unteach.config.resolve import ResolvedConfig
from unteach.config.unlearning import UnlearningConfig
from unteach.data.chat import ChatSettings, chat_settings
from unteach.data.rendered import refuse_rendered
from unteach.data.rows import rows_hash
from unteach.errors import UserError
from unteach.evaluation.generation import answer_limit
from unteach.evaluation.rewards import ModelReward
from unteach.files.checkpoints import read_marker
from unteach.files.folders import content_key
from unteach.processes import process_count
from unteach.progress import Display
from unteach.scenarios.scenario import Scenario
from unteach.trainer.costs import total
from unteach.trainer.stopping import Probe

REWARD_NAME = "the reward model of rlhf, which rlhf's own policy was trained to please"


def check_baseline(resolved: ResolvedConfig, scenario: Scenario) -> None:
    """Raises `UserError` for options that the pipeline does not take, and for rows that it cannot
    learn from.
    """
    options, pipeline = resolved.run, resolved.run.method
    if process_count() > 1:
        raise UserError(
            f"method {pipeline!r} trains in one process; start it without a launcher of several"
        )
    output = Path(options.output_dir)
    watched = stop_settings(resolved.chosen)
    UnlearningConfig(output_dir=str(output), **watched)
    for name in ("lora", "frozen_layers", "recite_tokens"):
        if getattr(options, name):
            raise UserError(
                f"option {name!r} is one of unlearning; method {pipeline!r} trains all weights, on"
                " the rows as they are"
            )
    for stage, settings in stage_settings(pipeline, options.stages).items():
        stage_config(stage, settings, output, options.seed)
    check_good_answers(pipeline, scenario.forget)
    if watched:
        check_good_answers(pipeline, scenario.validation)
        if not scenario.validation:
            raise UserError(
                f"option {next(iter(watched))!r} needs a validation split to watch, and the data"
                " has none; set hold_out, or give more rows"
            )


def check_baseline_rows(resolved: ResolvedConfig, scenario: Scenario, tokenizer: Any) -> None:
    """Raises `UserError` for a row that is rendered already, or too long for a stage."""
    options = resolved.run
    rows = [*scenario.forget, *scenario.validation]
    refuse_rendered(rows, tokenizer)
    for stage, settings in stage_settings(options.method, options.stages).items():
        config = stage_config(stage, settings, Path(options.output_dir), options.seed)
        stage_records(stage, rows, tokenizer, getattr(config, "max_length", None))


def run_baseline(
    resolved: ResolvedConfig,
    scenario: Scenario,
    model: Any,
    tokenizer: Any,
    model_hash: str,
    probe: Probe,
    display: Display,
) -> tuple[Any, dict[str, Any], ModelReward | None]:
    """Trains the pipeline's stages in the run's folder.

    Args:
        resolved (`ResolvedConfig`): its method is a name in `PIPELINES`. With a shared folder,
            pipelines with the same SFT settings share that stage.
        scenario (`Scenario`): its rows to forget have good answers too.
        model, tokenizer: the original model, whose memory is freed.
        model_hash (`str`): of its weights.
        probe (`Probe`): behaviour of a policy; used only if the settings say when to stop.

    Returns:
        The model, facts for `run.json`, and the reward model as a scorer, if the pipeline trained
        one and the user named none.
    """
    options, pipeline = resolved.run, resolved.run.method
    settings = stage_settings(pipeline, options.stages)
    if "rl" in settings and "max_completion_length" not in dict(options.stages).get("rl", {}):
        answers = [row.with_completion(text) for row in scenario.forget for text in answers_of(row)]
        settings["rl"]["max_completion_length"] = answer_limit(tokenizer, answers, model)
    chosen = stop_settings(resolved.chosen)
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
        key = content_key([model_hash, options.seed, data, settings["sft"], chosen])
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
    reward = None
    if options.reward_model is None and "reward" in result.folders:
        reward = trained_reward(result.folders["reward"], chat_settings(tokenizer))
    return result.model, _facts(pipeline, result, len(scenario.forget)), reward


def _facts(pipeline: str, result: Aligned, rows: int) -> dict[str, Any]:
    """For `run.json`: what the pipeline needs and cost, and why its stages ended."""
    preferences = PIPELINES[pipeline].needs_preferences
    stops = {
        name: {
            "kept_step": rule["best_step"],
            "reason": rule["reason"],
            "probes": len(rule["history"]),
            "curve": result.curves[name],
        }
        for name, rule in result.rules.items()
        if rule
    }
    return {
        "method": pipeline,
        "needs": "good and bad answers" if preferences else "good answers",
        "needs_positives": True,
        "needs_preferences": preferences,
        "forget_rows": rows,
        "costs": [asdict(cost) for cost in result.costs],
        "cost": asdict(total(result.costs)),
        "stops": stops,
    }


def trained_reward(folder: Path, chat: ChatSettings) -> ModelReward:
    """The reward model of a pipeline's stage in `folder`, as a scorer of usefulness, with the chat
    settings of its run.

    If the stage had early stopping, the name says how many held-out pairs it ranks right.
    """
    known = read_marker(folder) or {}
    rule, pairs = known.get("rule") or {}, known.get("pairs", 0)
    reward = ModelReward(str(folder), chat)
    reward.name = REWARD_NAME
    for probe in rule.get("history", []):
        if probe["step"] == rule["best_step"]:
            right = round(pairs * (1 - probe["forget_rate"]))
            reward.name = f"{REWARD_NAME}; it ranks {right} of {pairs} held-out pairs right"
    return reward
