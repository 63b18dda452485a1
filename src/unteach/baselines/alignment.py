"""Runs an alignment pipeline stage by stage on TRL's trainers; each stage can be killed and goes
on, and is priced on its own.
"""

from __future__ import annotations

import contextlib
import gc
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerState

from unteach import models
from unteach.baselines.pipelines import PIPELINES
from unteach.baselines.stage_callback import OnStage, StageCallback
from unteach.baselines.stages import make_trainer, pair_error, read_tokens, stage_config
from unteach.data.rows import Row
from unteach.files.checkpoints import latest_checkpoint, mark_complete, read_marker
from unteach.trainer.checkpoints import load_weights
from unteach.trainer.costs import Cost, peak_memory_mb, reset_peak_memory, tokens_seen
from unteach.trainer.stopping import Probe, StopRule


@dataclass(frozen=True)
class Watch:
    """How the stages are watched, so that each ends by the rule by which unlearning ends.

    Args:
        probe (`Probe`): from the current policy to its rates, as for `UnlearningTrainer`; asked in
            every stage that changes the policy.
        validation (`Sequence[Row]`): pairs that nothing trains on; their share that the reward
            model gets wrong is the rate of its stage.
        probe_steps (`float`): as in `UnlearningConfig`.
        rule: fields of `StopRule`.
    """

    probe: Probe
    validation: Sequence[Row]
    probe_steps: float
    rule: Mapping[str, Any]


@dataclass(frozen=True)
class Aligned:
    """The model that a pipeline ends with; by stage its price, its folder, and what its stop rule
    saw (empty where nobody watched).

    A `rules` entry is the state of a `StopRule`: `best_step`, `reason`, `history`.
    """

    model: Any
    costs: list[Cost]
    folders: dict[str, Path]
    rules: dict[str, dict[str, Any]] = field(default_factory=dict)


def align(
    pipeline: str,
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    folder: Path,
    settings: Mapping[str, Mapping[str, Any]],
    *,
    seed: int = 0,
    on_stage: OnStage | None = None,
    watch: Watch | None = None,
    sft_folder: Path | None = None,
) -> Aligned:
    """Trains `model` through the stages of a pipeline.

    A stage that is whole in `folder` is not done again; one that was interrupted goes on from its
    newest whole checkpoint.

    Args:
        pipeline (`str`): a name in `PIPELINES`.
        model: the causal language model to start from; it is used up: after the first stage it
            holds no weights, for the later ones keep up to three models in memory.
        tokenizer: its tokenizer.
        rows (`Sequence[Row]`): prompt, bad answer (`completion`) and good answer (`right`).
        folder (`Path`): one folder for each stage is made here.
        settings: for each stage, fields of TRL's config (see `stage_settings`).
        seed (`int`)
        on_stage (`Callable`, *optional*)
        watch (`Watch`, *optional*): probes while training and stops by behaviour; else each stage
            trains as long as its settings say.
        sft_folder (`Path`, *optional*): the SFT stage's folder, where several pipelines of the same
            settings share it.

    Raises:
        UserError: without TRL, and for a setting that TRL's config refuses.
    """
    stages = PIPELINES[pipeline].stages
    folders = {stage: folder / stage for stage in stages}
    if sft_folder is not None:
        folders["sft"] = sft_folder
    costs, rules = [], {}
    for stage in stages:
        target = folders[stage]
        work = target.with_name(f"{target.name}-checkpoints")
        done = read_marker(target)
        if done is None:
            config = stage_config(stage, settings[stage], work, seed)
            start = model if stage == "sft" else folders["sft"]
            with _silent_datasets():
                trainer, counter = make_trainer(
                    stage, config, start, folders.get("reward", folder), tokenizer, rows
                )
            probe, rule = _watched(stage, watch, tokenizer)
            found = latest_checkpoint(work)
            before = (read_marker(found) or {}) if found else {}
            keeper = StageCallback(
                stage,
                work,
                counter,
                before,
                trainer.accelerator.unwrap_model,
                on_stage=on_stage,
                probe=probe,
                rule=rule,
                probe_steps=watch.probe_steps if watch else 10,
            )
            history = _train(trainer, keeper, found, before)
            trained, read = read_tokens(stage, config, tokens_seen(history), counter.count)
            cost = Cost(
                stage,
                round(keeper.seconds, 3),
                _good_tokens(tokenizer, rows) if stage == "sft" else 0,
                counter.count,
                trained,
                round(peak_memory_mb(), 1),
                read,
                round(keeper.probe_seconds, 1),
            )
            done = {
                "cost": asdict(cost),
                "rule": rule.state() if rule else {},
                "pairs": len(watch.validation) if watch else 0,
            }
            trainer.accelerator.unwrap_model(trainer.model).save_pretrained(target)
            tokenizer.save_pretrained(target)
            mark_complete(target, done)
            del trainer, keeper
        shutil.rmtree(work, ignore_errors=True)
        if stage == "sft":
            _use_up(model)
        gc.collect()
        costs.append(Cost(**done["cost"]))
        rules[stage] = dict(done["rule"])
    return Aligned(models.load_model(str(folders[stages[-1]])), costs, folders, rules)


@contextlib.contextmanager
def _silent_datasets() -> Iterator[None]:
    """Without the bars that the preparation of the data draws."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()


def _watched(
    stage: str, watch: Watch | None, tokenizer: Any
) -> tuple[Probe | None, StopRule | None]:
    """The probe of a stage and its rule. The rate of a reward model is its share of wrong pairs: it
    says nothing that could be judged.
    """
    if watch is None:
        return None, None
    rule = StopRule(**watch.rule)
    if stage == "reward":
        return (lambda model: {"forget_rate": pair_error(model, tokenizer, watch.validation)}), rule
    return watch.probe, rule


def _train(
    trainer: Any, keeper: StageCallback, found: Path | None, before: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Trains, or goes on from the checkpoint `found`; afterwards the model holds the best probe's
    weights. Returns the trainer's log.
    """
    trainer.add_callback(keeper)
    trainer.remove_callback(PrinterCallback)
    reset_peak_memory()
    model = trainer.accelerator.unwrap_model(trainer.model)
    ended = found is not None and (
        before["step"] >= before["max_steps"] or bool(keeper.rule and keeper.rule.should_stop)
    )
    if (
        found is not None and ended
    ):  # a trainer that goes on from its last step would take another one
        state = TrainerState.load_from_json(str(found / "trainer_state.json"))
        load_weights(model, found)
    else:
        trainer.train(resume_from_checkpoint=str(found) if found else None)
        state = trainer.state
    if keeper.rule and keeper.rule.best_step not in (-1, state.global_step):
        keeper.best.load(model, keeper.rule.best_step)
    return list(state.log_history)


def _good_tokens(tokenizer: Any, rows: Sequence[Row]) -> int:
    return sum(
        len(ids)
        for ids in tokenizer([row.right for row in rows], add_special_tokens=False)["input_ids"]
    )


def _use_up(model: Any) -> None:
    """Frees the weights, wherever else the model is still held."""
    for parameter in model.parameters():
        parameter.data = parameter.data.new_empty(0)
