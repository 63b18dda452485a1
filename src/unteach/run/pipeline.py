"""A run from data to report: its stages as functions, each of which reuses what an interrupted run
of the same settings has left in the folder.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from unteach import models
from unteach.baselines.pipelines import PIPELINES
from unteach.config.resolve import ResolvedConfig, resolve
from unteach.config.run import RunConfig, refuse_data_options
from unteach.data.chat import chat_record
from unteach.data.rows import rows_hash
from unteach.errors import TrainingFault, UserError
from unteach.evaluation.scorers import Scorers, build_scorers, reward_scorer
from unteach.evaluation.scoring import FluencyModel, Generations, score_models
from unteach.files.atomic import write_folder_atomically, write_json, write_text_atomically
from unteach.files.folders import FolderLock, private_folder, set_aside
from unteach.methods import METHODS
from unteach.models.adapters import write_sum
from unteach.models.precision import DTYPES, four_bit_settings
from unteach.prepare.generations import LoadedModel, completed_scenario
from unteach.prepare.information import with_facts
from unteach.prepare.neighbours import with_neighbours, with_others_of_its_kind
from unteach.prepare.recitation import collect_retain, recitation_facts, recited_rows
from unteach.prepare.teaching import teach
from unteach.prepare.topic import COLUMN, first_prompts, topic_rows, write_topic
from unteach.processes import (
    broadcast_from_main,
    init_process_group,
    is_main_process,
    process_count,
)
from unteach.progress import Display
from unteach.reports.report import write_report
from unteach.run.answers import generate, outputs_by_row, with_paraphrases
from unteach.run.facts import write_facts
from unteach.run.gguf import write_gguf
from unteach.run.probing import run_probe
from unteach.run.record import (
    config_text,
    model_files,
    scorer_names,
    write_run_record,
)
from unteach.run.training import check_options, check_rows, train, train_baseline
from unteach.scenarios import build_scenario, demo_presets
from unteach.scenarios.method_choice import short_answers, with_suitable_method
from unteach.scenarios.scenario import Scenario
from unteach.scenarios.user_rows import USERS_OWN, user_scenario
from unteach.trainer.costs import Cost


@dataclass
class RunResult:
    """The changed model, its tokenizer, the folder, and `eval.json` as a dict."""

    model: Any
    tokenizer: Any
    output_dir: Path
    evaluation: dict[str, Any]


def unlearn(
    model: str,
    forget: Any = None,
    retain: Any = None,
    *,
    output_dir: str,
    seed: int = 0,
    lora: bool = False,
    scenario: str | None = None,
    topic: str | None = None,
    unseen: Any = None,
    neighbours: Any = None,
    hold_out: float = 0.0,
    split_by: str | None = "prompt",
    display: Display | None = None,
    **settings: Any,
) -> RunResult:
    """Makes `model` forget all rows in `forget`, evaluates it, and writes a run's folder.

    Of `retain` 20% are held out and only measured (`kept_unseen`), if it has five rows and more. Of
    each prompt set at most 64 rows are evaluated, of everyday prompts (`normal`) 32.

    Args:
        model (`str`): folder, hub id or packaged name.
        forget (*optional*): rows to forget: a file, a dataset, a list of dicts, or a list of
            prompts (whose answers are to be forgotten). Either this or `topic` is needed.
        retain (*optional*): rows to keep, beside the model's own answers to neutral prompts.
        lora (`bool`): train an adapter.
        scenario (`str`, *optional*): an embedded scenario whose scorers judge the answers.
        topic (`str`, *optional*): a name: what the model says about it is forgotten. `unseen` and
            `neighbours` are asked of the model too, unless they are given.
        unseen (*optional*): rows, or prompts alone, whose answers must be forgotten too; only
            measured, never trained on.
        neighbours (*optional*): rows, or prompts alone, like the forgotten ones about other things;
            half of them join the retain set, the others are only measured.
        hold_out (`float`, *optional*, defaults to 0.0): share of `forget` that is not trained on,
            by hash: a third is only prompted by the probes that decide when to stop, the rest only
            before and after (`unseen`). 0.3 is the protocol of the paper.
        split_by (`str`, *optional*, defaults to `"prompt"`): the column whose values the split
            keeps together.
        settings: fields of `UnlearningConfig`, and of `RunConfig` other than those above.
    """
    named = {"model": model, "output_dir": output_dir, "seed": seed, "lora": lora}
    data: dict[str, Any] = {
        "unseen": unseen,
        "neighbours": neighbours,
        "hold_out": hold_out,
        "split_by": split_by,
    }
    resolved = resolve({**named, **data, "topic": topic, **settings})
    more: dict[str, Any] = {"secrets": resolved.run.secrets}
    more["scorers"] = build_scenario(scenario).scorers if scenario else None
    if topic is None:
        return execute(resolved, user_scenario(forget, retain, **data, **more), display)
    if forget is not None or hold_out or split_by != "prompt":
        raise UserError(
            "option 'topic' takes the place of forget, hold_out and split_by: the model gives the"
            " rows; leave them out, or leave out topic"
        )
    given = {name: rows for name, rows in data.items() if rows is not None}

    def ask(source: LoadedModel) -> tuple[Scenario, list[Cost]]:
        found, note, costs = topic_rows(source, topic, seed)
        files: dict[str, Any] = dict(write_topic(Path(output_dir) / "work" / "topic", found))
        rows = user_scenario(retain=retain, **{**files, **given, "split_by": COLUMN}, **more)
        return replace(rows, notes=[note, *rows.notes]), costs

    rows = user_scenario(first_prompts(topic), retain, **data, **more)
    return execute(resolved, rows, display, ask)


def demo(
    scenario: str,
    *,
    model: str,
    output_dir: str,
    short: bool = False,
    display: Display | None = None,
    **settings: Any,
) -> RunResult:
    """Teaches an embedded scenario's texts to `model`, then unlearns them.

    Args:
        scenario (`str`): a name in `SCENARIOS`; its demo's settings suit two cores.
        model (`str`): as for `unlearn`.
        output_dir (`str`): as for `unlearn`.
        short (`bool`): a smaller version, for smoke tests.
        settings: as for `unlearn`; they override the demo's.
    """
    refuse_data_options(settings, "an embedded scenario has rows of its own")
    given = {"model": model, "output_dir": output_dir, "show_text": True, **settings}
    resolved = resolve(given, presets=demo_presets(scenario, short=short))
    return execute(resolved, build_scenario(scenario, short=short), display)


def execute(
    resolved: ResolvedConfig,
    scenario: Scenario,
    display: Display | None = None,
    ask: Callable[[LoadedModel], tuple[Scenario, list[Cost]]] | None = None,
) -> RunResult:
    """All stages, in order. A folder that holds another run is renamed first.

    Args:
        resolved (`ResolvedConfig`)
        scenario (`Scenario`)
        display (`Display`, *optional*)
        ask (*optional*): from the loaded model to the scenario that takes the given one's place,
            which decides the method, and what asking cost.

    Raises:
        UserError: for options that exclude each other, and if another process is writing into the
            folder.
    """
    started, display = time.time(), display or Display(quiet=True)
    resolved, why = with_suitable_method(resolved, scenario)
    if why:
        display.print(why)
    run, folder = resolved.run, Path(resolved.run.output_dir)
    shared = Path(run.shared_dir or folder)
    init_process_group(on_cpu=bool(resolved.training.get("use_cpu")))
    tokenizer = check_options(resolved, scenario)
    choose_device(resolved, display)
    with FolderLock(folder) as lock:
        torch.manual_seed(run.seed)
        source = load(resolved, tokenizer, shared / "work", display)
        resolved = resolved.with_width(models.width(source.model))
        check_rows(resolved, scenario, source)
        files = broadcast_from_main(lambda: make_folder(resolved, scenario, source, lock))
        spent: list[Cost] = []
        if ask:
            scenario, spent = ask(source)
            check_rows(resolved, scenario, source)
        notes = list(scenario.notes)
        for note in notes:
            display.print(note)
        facts: dict[str, Any] = {"base_model_hash": source.hash, "model_files": files}
        if scenario.teach:
            taught = teach(source, scenario, shared / "original", run.seed, resolved.training)
            source = source.with_model(taught)
        named = getattr(METHODS.get(run.method), "counterfactual", False)
        by_facts = short_answers(scenario.forget) and (scenario.name == USERS_OWN or named)
        guarded = by_facts or run.instead is not None
        asked = with_neighbours(scenario, run.seed) if guarded else scenario
        rows, costs = completed_scenario(source, asked)
        costs = [*spent, *costs]
        if by_facts:
            rows, more = with_others_of_its_kind(source, scenario, rows, run.seed)
            rows, facts["facts"] = with_facts(source, scenario, rows)
            costs = [*costs, *more]
            broadcast_from_main(partial(write_facts, folder, rows))
        with display.stage("Preparing the scorers"):
            names = scorer_names(resolved, scenario)
            scorers = build_scorers(
                names, rows.leak_corpus, rows.labelled, display.print, rows=rows.forget
            )
        rows, left_out, more = collect_retain(source, asked, rows)
        costs = [*costs, *more]
        facts |= {
            "original_model_hash": source.hash,
            "leak_threshold_bleu": scorers.threshold,
            "scorers": {
                **asdict(scorers.names),  # the headline as it was asked for: the rows choose again
                "headline": names.headline,
                "headline_reason": names.headline_reason,
            },
            "own_answers_left_out": left_out,
        }
        if run.recite_tokens:
            recited, cost = recited_rows(source, rows.forget, rows.retain, run.recite_tokens)
            rows, costs = replace(rows, forget=[*rows.forget, *recited]), [*costs, cost]
            facts |= recitation_facts(recited, scenario)
        before = generate(source, rows, "original", {})
        if run.paraphrases:
            rows, before, found = with_paraphrases(source, rows, before, scorers, run.paraphrases)
            facts["paraphrases"], costs = found.facts, [*costs, *found.costs]
            notes += [found.note] if found.note else []
        facts["notes"] = notes
        drafts = outputs_by_row(rows, before)
        probe, facts["probe"] = run_probe(
            source.tokenizer, rows, before, scorers, forget_rows=run.probe_rows, drafts=drafts
        )
        try:
            if run.method in PIPELINES:
                trained = train_baseline(resolved, source, rows, probe())
            else:
                trained = train(resolved, source, rows, probe, costs)
        except TrainingFault as fault:
            known = {"model": run.model, "seed": run.seed, **facts, "fault": str(fault)}
            if is_main_process():
                write_run_record(folder, known)
            raise
        gc.collect()
        form = models.SavedForm.of(run.model, trust_remote_code=run.trust_remote_code)
        if not run.writes_adapter:
            form = form.rounded(trained.model)
        facts["saved_dtype"] = str(form.dtype).removeprefix("torch.")
        result = source.with_model(trained.model)
        facts |= {**trained.facts, "unlearned_model_hash": result.hash}
        after = generate(result, rows, "unlearned", drafts | trained.drafts)
        if trained.reward:
            scorers = scorers.with_scorer("utility_reward", reward_scorer(trained.reward))
        outputs = {"original": before, "unlearned": after}
        evaluation = broadcast_from_main(lambda: score(resolved, rows, result, outputs, scorers))
        broadcast_from_main(lambda: write(resolved, scenario, result, form, facts, started))
        return RunResult(result.model, result.tokenizer, folder, evaluation)


# --- before the training


def choose_device(resolved: ResolvedConfig, display: Display) -> None:
    """Makes `use_cpu` hold for generation and scoring too; reports idle GPUs."""
    if process_count() == 1 and resolved.training.get("use_cpu"):
        PartialState(cpu=True)  # the first call decides for the whole process
    elif process_count() == 1 and torch.cuda.device_count() > 1:
        display.print(
            f"One of {torch.cuda.device_count()} GPUs is used; accelerate launch uses all"
            " (docs/how-to/scaling.md)."
        )


def load(resolved: ResolvedConfig, tokenizer: Any, work: Path, display: Display) -> LoadedModel:
    """The model that the run starts from, with the cache of its generations in `work`."""
    with display.stage(f"Loading {resolved.run.model}"):
        return LoadedModel.of(base_model(resolved.run), tokenizer, work, display)


def base_model(run: RunConfig) -> Any:
    """A fresh copy of the model that the run starts from, in its precision and on its device."""
    model = models.load_model(
        run.model,
        dtype=DTYPES[run.dtype],
        trust_remote_code=run.trust_remote_code,
        settings=four_bit_settings() if run.quantize else None,
    )
    return models.placed(model)


def make_folder(
    resolved: ResolvedConfig, scenario: Scenario, source: LoadedModel, lock: FolderLock
) -> dict[str, str]:
    """Makes the run's folder and writes `config.yaml`; another run's folder is renamed first.

    Returns:
        The weights files of the model, see `model_files`.
    """
    folder, chat = lock.folder, chat_record(source.tokenizer)
    text = config_text(resolved, scenario, source.hash, chat)
    aside = set_aside(folder, "config.yaml", text)
    if aside:
        lock.take()
        source.display.print(f"{folder} held a run with other settings or data; it is now {aside}")
    for path in (source.cache.folder, folder / "work", folder / "checkpoints"):
        private_folder(path)
    write_text_atomically(folder / "config.yaml", text)
    write_json(folder / "work" / "data_files.json", dict(scenario.files))
    return model_files(resolved.run.model)


# --- after the training


def score(
    resolved: ResolvedConfig,
    scenario: Scenario,
    result: LoadedModel,
    outputs: Mapping[str, Generations],
    scorers: Scorers,
) -> dict[str, Any]:
    """Scores the outputs of both models; writes `eval.json` and `generations.jsonl`."""
    run, tokenizer = resolved.run, result.tokenizer
    name, trust = scorers.names.fluency or run.model, run.trust_remote_code
    if name == run.model:
        reader = FluencyModel(name, base_model(run), tokenizer)
    else:
        model = models.placed(models.load_model(name, trust_remote_code=trust))
        reader = FluencyModel(name, model, models.load_tokenizer(name, trust_remote_code=trust))
    with result.display.stage("Scoring the outputs", 2 * len(scenario.sets)) as stage:
        return score_models(
            scenario.name,
            scenario.sets,
            outputs,
            tokenizer,
            scorers,
            fluency=reader,
            show_text=run.show_text,
            folder=Path(run.output_dir),
            progress=stage.update,
        )


def write(
    resolved: ResolvedConfig,
    scenario: Scenario,
    result: LoadedModel,
    form: models.SavedForm,
    facts: Mapping[str, Any],
    started: float,
) -> None:
    """Writes the model, `run.json` and the report."""
    run, folder, display = resolved.run, Path(resolved.run.output_dir), result.display
    shared = Path(run.shared_dir or folder)
    with display.stage("Saving the model and the report"):
        taught = str((shared / "original").resolve()) if scenario.teach else None
        target = folder / ("adapter" if run.writes_adapter else "model")
        if run.writes_adapter:
            write_adapter(run, result, target, taught)
        else:
            write_whole(target, result, partial(form.save, result.model))
        record = {
            "model": run.model,
            "chat": chat_record(result.tokenizer),
            "scenario": scenario.name,
            "seed": run.seed,
            "dtype": run.dtype,
            "quantize": run.quantize,
            "show_text": run.show_text,
            "data_files": dict(scenario.files),
            "shared_dir": os.path.relpath(shared, folder),
            **facts,
            "forget_hash": rows_hash(scenario.forget),
            "retain_hash": rows_hash([*scenario.retain, *scenario.own_prompts]),
            "neighbours_hash": rows_hash(scenario.neighbours),
            "stage_seconds": {name: round(value, 1) for name, value in display.seconds.items()},
            "seconds": round(time.time() - started, 1),
        }
        write_run_record(folder, record)
        write_report(folder)
    if run.gguf:
        with display.stage("Converting the model to GGUF"):
            write_gguf(target)


def write_adapter(run: RunConfig, result: LoadedModel, target: Path, taught: str | None) -> None:
    """Writes the adapter; where the run's model was one already, the sum of the two, on its base;
    `taught` is the folder of the model that the run has taught, its base then.
    """
    base, own = (taught, []) if taught else models.adapter_chain(run.model)
    for settings in result.model.peft_config.values():
        settings.base_model_name_or_path = base
    write_whole(target, result, result.model.save_pretrained)
    if own:
        below = models.load_model(
            base, dtype=DTYPES[run.dtype], trust_remote_code=run.trust_remote_code
        )
        write_whole(target, result, partial(write_sum, below, base, [*own, target]))


def write_whole(target: Path, result: LoadedModel, save: Callable[[Path], Any]) -> None:
    """Writes weights by `save`, and the tokenizer, into a folder that is whole or not there."""

    def both(folder: Path) -> None:
        save(folder)
        result.tokenizer.save_pretrained(folder)

    write_folder_atomically(target, both)
