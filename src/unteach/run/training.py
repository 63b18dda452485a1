"""The training stage of a run, unlearning or a baseline, and the checks of its options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PrinterCallback

from unteach import models
from unteach.baselines.pipelines import PIPELINES
from unteach.config.resolve import AUTO, ResolvedConfig, suitable_learning_rate
from unteach.config.run import RunConfig
from unteach.config.unlearning import UnlearningConfig
from unteach.data.rendered import refuse_rendered
from unteach.data.rows import Row, letters_and_digits
from unteach.errors import UserError
from unteach.evaluation.rewards import Reward
from unteach.evaluation.scorers import check_scorers
from unteach.files.atomic import read_cached, read_json_lines, write_json
from unteach.models.adapters import adapter_config
from unteach.models.parts import freeze_lower_layers, unfreeze
from unteach.models.precision import check_dtype, check_quantize
from unteach.prepare.generations import (
    LoadedModel,
    with_alternates,
    with_diverted_answers,
    with_own_answers,
)
from unteach.prepare.search import SearchContext, candidates, check_search, with_trial
from unteach.processes import broadcast_from_main, is_main_process, process_count
from unteach.progress import step_display
from unteach.robust import trains_again
from unteach.robust.distillation import settings_of
from unteach.run.model_check import check_model
from unteach.run.record import scorer_names
from unteach.scenarios.method_choice import INSTEAD
from unteach.scenarios.scenario import Scenario
from unteach.trainer.costs import (
    Cost,
    memory_bytes,
    peak_memory_mb,
    reset_peak_memory,
    total,
    unlearning_cost,
)
from unteach.trainer.distillation import distillation_trainer
from unteach.trainer.distributed import load_models_whole
from unteach.trainer.rows import check_lengths
from unteach.trainer.stopping import Probe
from unteach.trainer.trainer import UnlearningTrainer


@dataclass
class Trained:
    """The changed model, and facts about its training for `run.json`.

    Args:
        drafts (`dict[str, str]`): outputs of the kept step's probe, by a row's key.
        reward (`Reward`, *optional*): a reward model that a baseline trained.
    """

    model: Any
    facts: dict[str, Any]
    drafts: dict[str, str] = field(default_factory=dict)
    reward: Reward | None = None


def check_options(resolved: ResolvedConfig, scenario: Scenario) -> Any:
    """Raises `UserError` for options, rows and a model that no training takes, before weights are
    loaded; returns the run's tokenizer.
    """
    _check_settings(resolved, scenario)
    asked = (row for part in scenario.sets.values() for row in part)
    rows = [*scenario.forget, *scenario.retain, *scenario.neighbours, *asked]
    return check_model(resolved.run, rows)


def _check_settings(resolved: ResolvedConfig, scenario: Scenario) -> None:
    run, baseline = resolved.run, resolved.run.method in PIPELINES
    check_quantize(run.quantize, lora=run.lora)
    check_dtype(run.dtype, lora=run.lora, quantize=run.quantize)
    for option in ("quantize", "dtype"):
        if getattr(run, option) not in (None, "float32") and (baseline or scenario.teach):
            raise UserError(
                f"option {option!r} is for unlearning methods on your own rows; baselines and"
                " what a demo teaches train all weights"
            )
    rows = [*scenario.forget, *scenario.validation]
    check_scorers(scorer_names(resolved, scenario), rows)
    if baseline:
        if run.robust != "none":
            raise UserError(
                f"option 'robust' is {run.robust!r}, but {run.method!r} is a baseline; leave it out"
            )
        from unteach.baselines.run import check_baseline

        check_baseline(resolved, scenario)
        return
    check_search(resolved)
    if run.stages:
        raise UserError(
            f"option 'stages' is for the baselines ({', '.join(PIPELINES)}); an unlearning method"
            " has none"
        )
    config = first_config(resolved, scenario)
    if config.update == "directed":
        check_directed(resolved)
    if trains_again(config.robust):
        check_distilled(run, config.robust)
    if config.objective.says_instead != (run.instead is not None):
        raise UserError(
            f"option 'instead' and method {INSTEAD!r} go together: give a sentence as instead, and"
            " leave out method"
        )
    if run.instead is not None and not letters_and_digits(run.instead):
        raise UserError(f"option 'instead' is {run.instead!r}, it must be a sentence")
    config.check_training()
    _ = config.device  # initialises the process group on the device that the config names
    load_models_whole()
    if config.patience and not scenario.validation:
        raise UserError(
            "option 'patience' needs a validation split to watch, and the data has none; set"
            " hold_out, or give more rows"
        )


def check_directed(resolved: ResolvedConfig) -> None:
    """Raises `UserError` for options that a directed update would ignore."""
    if resolved.run.frozen_layers:
        raise UserError(
            "option 'frozen_layers' is for updates of all weights; with update=directed leave it"
            " out"
        )
    if resolved.run.lora and "update_rank" in resolved.training:
        raise UserError(
            "option 'update_rank' is for runs without lora; with it the rank is lora_rank"
        )


def check_distilled(run: RunConfig, robust: str) -> None:
    """Raises `UserError` for options that go with no second training of all weights."""
    kept_apart = "lora" if run.lora and not run.merge else None
    found = kept_apart or next((n for n in ("quantize", "frozen_layers") if getattr(run, n)), None)
    if found:
        with_it = "give merge=true with it" if kept_apart else "leave it out"
        raise UserError(
            f"robust is {robust!r}, which trains all weights in the end, but option {found!r} is"
            f" {getattr(run, found)!r}; {with_it}"
        )


def first_config(resolved: ResolvedConfig, scenario: Scenario) -> UnlearningConfig:
    """The config of the training; with method `auto` that of the first candidate."""
    if resolved.run.method == AUTO:
        tried = candidates(resolved.run.candidates, scenario.forget)
        resolved = with_trial(resolved, tried[0])
    return resolved.unlearning_config(Path(resolved.run.output_dir) / "checkpoints")


def check_rows(resolved: ResolvedConfig, scenario: Scenario, source: LoadedModel) -> None:
    """Raises `UserError` for a row too long or already rendered, before anything is generated."""
    if resolved.run.method in PIPELINES:
        from unteach.baselines.run import check_baseline_rows

        check_baseline_rows(resolved, scenario, source.tokenizer)
    else:
        kept = [*scenario.retain, *scenario.neighbours]
        sets = {"forget": [*scenario.forget, *scenario.validation], "retain": kept}
        refuse_rendered([row for rows in sets.values() for row in rows], source.tokenizer)
        config = first_config(resolved, scenario)
        check_lengths(sets, source.tokenizer, config, models.window(source.model))


def train(
    resolved: ResolvedConfig,
    source: LoadedModel,
    rows: Scenario,
    make_probe: Callable[..., Probe],
    costs: Sequence[Cost],
) -> Trained:
    """Unlearning, from the newest whole checkpoint if there is one.

    Args:
        source (`LoadedModel`): the original model; changed in place.
        rows (`Scenario`): with the rows that are trained on in `forget` and `retain`.
        make_probe: from `on_outputs`, called with rows and outputs, to a probe.
        costs: of the stages before.
    """
    run, folder, display = resolved.run, Path(resolved.run.output_dir), source.display
    model: Any = source.model
    peft_config = adapter_of(run, model)
    forget, retain = rows.forget, rows.retain
    facts: dict[str, Any] = {}
    frozen = [] if run.lora else freeze_lower_layers(model, run.frozen_layers)
    if run.method == AUTO:
        trials = folder / "work" / "trial"
        search = SearchContext(source, resolved, forget, retain, peft_config, make_probe, trials)
        picked, found, cost = search.pick()
        resolved, model = with_trial(resolved, picked), search.model
        facts, costs = {"search": found}, [*costs, cost]
    resolved = with_update_for(forget, resolved, source)
    config = resolved.first_training(folder / "checkpoints")
    if run.instead is not None:
        forget = [replace(row, completion=run.instead, secret=()) for row in forget]
    if config.objective.needs_alternates:
        forget = with_alternates(source, forget, run.seed)
    if config.objective.counterfactual:
        forget = with_diverted_answers(source, forget)
    elif run.instead is None and (avoided := sum(map(_avoids_its_subject, forget))):
        display.print(
            f"{avoided} of {len(forget)} forget rows have a name to avoid, which method"
            f" {config.method!r} does not read: their completions are forgotten as they are."
        )

    def keep(rows: Sequence[Row], outputs: Sequence[str]) -> None:
        if is_main_process():
            known = {row.key: output for row, output in zip(rows, outputs, strict=True)}
            write_json(probe_file(folder, trainer.state.global_step), known)

    probe = make_probe(on_outputs=keep)
    trainer = UnlearningTrainer(model, config, forget, retain, source.tokenizer, peft_config, probe)
    trainer.remove_callback(PrinterCallback)
    reset_peak_memory()
    trainer.display = display
    with display.stage("Unlearning", trainer.args.max_steps) as stage:
        trainer.on_step = step_display(stage)
        trainer.train(resume_from_checkpoint=True)
    if trainer.fault:
        best = trainer.rule.best_step
        display.print(f"Stopped: {trainer.fault}. The weights of step {best} are kept.")
    unfreeze(frozen)
    model = trainer.model
    if (config.update == "directed" and not run.lora) or (run.lora and run.merge):
        model = model.merge_and_unload()
    facts |= training_facts(trainer, config, costs)
    facts |= {"forget_rows": len(forget), "retain_rows": len(retain)}
    if trains_again(chosen := resolved.unlearning_config(folder).robust):
        unlearned = source.with_model(model)
        cost = distil(resolved, unlearned, rows.forget, retain)
        facts |= {"robust": chosen, "cost": asdict(total([Cost(**facts["cost"]), cost]))}
        facts["costs"].append(asdict(cost))
        return Trained(model, facts)
    drafts = read_cached(probe_file(folder, facts["kept_step"]))
    return Trained(model, facts, drafts[0] if drafts else {})


BYTES_OF_A_WEIGHT = 20
"""What training all weights takes for each: the weight, a gradient, two moments of AdamW and as
much for the step, in float32."""


def with_update_for(
    forget: Sequence[Row], resolved: ResolvedConfig, source: LoadedModel
) -> ResolvedConfig:
    """The settings, with an update of all weights at the rate of running text in place of a
    directed one where most forget rows are forgotten whole: they have few directions in common.
    What was set stays.
    """
    by_rule = resolved.sources.get("update"), resolved.sources.get("learning_rate")
    whole = sum(row.whole for row in forget)
    directed = resolved.training.get("update") == "directed"
    if (
        resolved.run.lora
        or by_rule != ("method", "model")
        or not directed
        or 2 * whole < len(forget)
    ):
        return resolved
    needed = BYTES_OF_A_WEIGHT * source.model.num_parameters()
    memory = broadcast_from_main(memory_bytes)  # a resumed run and each process decide the same
    if needed > memory:
        source.display.print(
            "Most rows are forgotten whole, for which training all weights is better. That takes"
            f" {needed / 2**30:.1f} GiB, and {memory / 2**30:.1f} GiB are there: the update"
            " stays directed."
        )
        return resolved
    source.display.print(
        "Most rows are forgotten whole: all weights are trained (update=directed keeps more and"
        " forgets less)."
    )
    rate = suitable_learning_rate(models.width(source.model), "divert", lora=False)
    return resolved.with_training("rows", update="all", learning_rate=rate)


def _avoids_its_subject(row: Row) -> bool:
    return bool(set(row.avoid) & set(row.secret)) and not row.whole


def distil(
    resolved: ResolvedConfig, teacher: LoadedModel, forget: Sequence[Row], retain: Sequence[Row]
) -> Cost:
    """The second training of `--robust distill`, on the unlearned model's own answers to the forget
    prompts and on retain rows; changes the model in place.
    """
    asked = list({row.prompt_key: row.with_completion("") for row in forget}.values())
    title = "Collecting the unlearned model's answers"
    answered, costs = with_own_answers(teacher, asked, title)
    folder, width = Path(resolved.run.output_dir) / "checkpoints", models.width(teacher.model)
    first = resolved.unlearning_config(folder)
    config = resolved.unlearning_config(folder / "distillation", **settings_of(first, width))
    rows, noise = [*answered, *retain], (first.distill_noise, first.distill_scale)
    trainer = distillation_trainer(teacher.model, config, rows, teacher.tokenizer, *noise)
    trainer.remove_callback(PrinterCallback)
    trainer.display = teacher.display
    with teacher.display.stage("Distilling", config.max_steps) as stage:
        trainer.on_step = step_display(stage)
        trainer.train(resume_from_checkpoint=True)
    lines = broadcast_from_main(lambda: read_json_lines(trainer.output / "metrics.jsonl"))
    read = sum(map(len, trainer.retain_rows))
    cost = unlearning_cost(
        lines, reference_tokens=read, live_reference=False, peak_mb=peak_memory_mb()
    )
    return replace(total([*costs, cost]), stage="distillation")


def probe_file(folder: Path, step: int) -> Path:
    """The outputs of the probe at `step`, by a row's key."""
    return folder / "work" / f"probe-outputs-{step}.json"


def training_facts(
    trainer: UnlearningTrainer, config: UnlearningConfig, costs: Sequence[Cost]
) -> dict[str, Any]:
    """For `run.json`: the method, what it needs and cost, how long it trained and why it ended."""
    rule, step = trainer.rule, trainer.state.global_step
    lines = broadcast_from_main(lambda: read_json_lines(trainer.output / "metrics.jsonl"))
    cost = unlearning_cost(
        lines,
        reference_tokens=sum(map(len, trainer.retain_rows)),
        live_reference=config.reference != "stored",
        peak_mb=peak_memory_mb(),
    )
    return {
        "method": config.method,
        "robust": config.robust,
        "needs": "bad answers" if config.objective.forget else "answers to keep",
        "needs_positives": False,
        "needs_preferences": False,
        "costs": [asdict(part) for part in (*costs, cost)],
        "cost": asdict(total([*costs, cost])),
        "learning_rate": config.learning_rate,
        "update": config.update,
        "steps": step,
        "kept_step": rule.best_step if rule.best_step >= 0 else step,
        "stop_reason": rule.reason or f"max_steps ({trainer.args.max_steps}) reached",
        "fault": trainer.fault or None,
        "max_retain_kl": config.max_retain_kl,
        **trainer.hooks.facts(),
        "processes": process_count(),
        "sharded_weights": trainer.sharded,
    }


def adapter_of(run: RunConfig, model: Any) -> Any:
    """PEFT's configuration of the adapter on the model that the user wants, if one."""
    return adapter_config(model, run.lora_rank, scale=2.0) if run.lora else None


def train_baseline(
    resolved: ResolvedConfig, source: LoadedModel, rows: Scenario, probe: Probe
) -> Trained:
    """SFT, DPO or RLHF instead of unlearning, on the same rows and the good answers beside them."""
    from unteach.baselines.run import run_baseline

    original = source.model, source.tokenizer, source.hash
    model, facts, reward = run_baseline(resolved, rows, *original, probe, source.display)
    return Trained(models.placed(model), facts, reward=reward)
