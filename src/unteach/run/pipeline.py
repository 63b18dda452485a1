"""A run from data to report: teach (in a demo), collect the retain set, unlearn, evaluate before
and after, write the folder.
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PrinterCallback

from unteach import models
from unteach.baselines.pipelines import PIPELINES
from unteach.config.resolve import RUN_FIELDS, ResolvedConfig, resolve, suitable_learning_rate
from unteach.config.run import RunOptions
from unteach.config.scorers import ScorerNames
from unteach.config.unlearning import UnlearningConfig
from unteach.data.rows import Row, rows_hash
from unteach.errors import TrainingFault, UserError
from unteach.evaluation.probe import OnOutputs, make_probe
from unteach.evaluation.rewards import Reward
from unteach.evaluation.scorers import (
    Scorers,
    build_scorers,
    check_right_answers,
    reward_scorer,
)
from unteach.evaluation.scoring import FluencyModel, Generations, generate_sets, score_models
from unteach.files.atomic import write_folder_atomically, write_json, write_text_atomically
from unteach.files.folders import FolderLock, private_folder, set_aside
from unteach.methods import get_method
from unteach.models.parts import freeze_lower_layers, unfreeze
from unteach.models.precision import DTYPES, check_dtype, check_quantize, four_bit_settings
from unteach.prepare.collecting import Collection
from unteach.prepare.method_picking import pick
from unteach.prepare.method_search import AUTO, SearchContext, candidates, check_search
from unteach.prepare.teaching import teach
from unteach.processes import (
    broadcast_from_main,
    init_process_group,
    is_main_process,
    process_count,
)
from unteach.progress import Display, step_display
from unteach.reports.report import write_report
from unteach.run.record import config_text, write_run_record
from unteach.scenarios.registry import build_scenario
from unteach.scenarios.scenario import Scenario
from unteach.scenarios.user_rows import user_scenario
from unteach.trainer.costs import peak_memory_mb, reset_peak_memory, total, unlearning_cost
from unteach.trainer.distributed import load_models_whole
from unteach.trainer.rows import check_lengths
from unteach.trainer.stopping import Probe
from unteach.trainer.trainer import UnlearningTrainer


@dataclass
class RunResult:
    """What a run gives back: the changed model, its tokenizer, the folder, and `eval.json` as a
    dict.
    """

    model: Any
    tokenizer: Any
    output_dir: Path
    evaluation: dict[str, Any]


class Run:
    """The stages of one run folder; each leaves something behind that a second start of the same
    command uses.
    """

    def __init__(
        self, scenario: Scenario, options: RunOptions, display: Display | None = None
    ) -> None:
        self.scenario, self.options = scenario, options
        self.display = display or Display(quiet=True)
        self.asked = scenario
        """The scenario with the model's own answers where forget rows came without a completion."""
        self.output = Path(options.output_dir)
        self.shared = Path(options.shared_dir or options.output_dir)
        self.work = self.shared / "work"
        self.started = time.time()
        self.facts: dict[str, Any] = {}
        self.collection = Collection(self.work, self.display, scenario, options.seed, self.facts)
        self.reward: Reward | None = None
        self.picked: Mapping[str, Any] | None = None
        self.width: int | None = None
        self.generations: dict[str, str] = {}
        """What the original answered, by a row's key: a draft of what others will."""

    # --- stages
    # -------------------------------------------------------------------------------------------------------

    def execute(self) -> RunResult:
        """All stages, in order. A folder that holds a run with other settings is set aside under
        another name first.

        Raises:
            UserError: for options that do not go together, and if another process is writing into
                the folder.
        """
        init_process_group(on_cpu=bool(self.options.settings.get("use_cpu")))
        self.check_options()  # a wrong option is found before anything is loaded or written
        if process_count() > 1 and self.baseline is not None:
            raise UserError(
                f"method {self.baseline!r} trains in one process; start it without a launcher of"
                " several"
            )
        self._choose_device()
        with FolderLock(self.output) as lock:
            return self._execute(lock)

    def _choose_device(self) -> None:
        """Lets `use_cpu` hold for everything that is asked and scored, too; says where GPUs are
        left idle.
        """
        if self.options.settings.get("use_cpu"):
            if process_count() == 1:
                PartialState(cpu=True)  # what the first to ask for the state says holds for all
        elif process_count() == 1 and torch.cuda.device_count() > 1:
            self.display.print(
                f"One of {torch.cuda.device_count()} GPUs is used; accelerate launch uses all"
                " (docs/scaling.md)."
            )

    def _execute(self, lock: FolderLock) -> RunResult:
        torch.manual_seed(self.options.seed)
        name, scenario = self.options.model, self.scenario
        with self.display.stage(f"Loading {name}"):
            tokenizer = models.load_tokenizer(
                name, trust_remote_code=self.options.trust_remote_code
            )
            model = self.load_base()
        self.width = models.width(model)
        if self.baseline is None:
            sets = {"forget": [*scenario.forget, *scenario.validation], "retain": scenario.retain}
            check_lengths(sets, tokenizer, self.unlearning_config(), models.window(model))
        collection = self.collection
        collection.model_key = self.facts["base_model_hash"] = models.weights_hash(model)
        broadcast_from_main(lambda: self.make_folder(lock))
        if scenario.teach:
            model = teach(
                model,
                tokenizer,
                scenario,
                collection,
                self.teaching_config,
                self.shared,
                self.display,
            )
            collection.costs = []
            collection.model_key = models.weights_hash(model)
        self.facts["original_model_hash"] = collection.model_key
        self.asked = collection.answered(model, tokenizer)
        forget = list(self.asked.forget)
        scorers = self.scorers()
        self.facts |= {"leak_threshold_bleu": scorers.threshold, "scorers": asdict(scorers.names)}
        own = collection.with_completions(
            model, tokenizer, scenario.own_prompts, "Collecting the model's own answers to keep"
        )
        unanswered = [row for row in scenario.retain if not row.completion]
        own += collection.with_completions(
            model, tokenizer, unanswered, "Collecting answers to the retain prompts"
        )
        given = [row for row in scenario.retain if row.completion]
        retain = [*given, *collection.without_forget_text(own, forget, alone=not given)]
        if self.options.recite_tokens:
            forget = collection.extend(model, tokenizer, forget, retain, self.options.recite_tokens)
        before = self.answers(model, tokenizer, "original", collection.model_key)
        for set_name, rows in self.asked.sets.items():
            self.generations |= {
                row.key: text for row, text in zip(rows, before.outputs[set_name], strict=True)
            }
        model = self.unlearn(model, tokenizer, forget, retain, scorers)
        gc.collect()
        self.facts["unlearned_model_hash"] = models.weights_hash(model)
        after = self.answers(model, tokenizer, "unlearned", self.facts["unlearned_model_hash"])
        if self.reward:
            scorers = scorers.with_scorer("utility_reward", reward_scorer(self.reward))
        evaluation = broadcast_from_main(
            lambda: self.evaluate(tokenizer, {"original": before, "unlearned": after}, scorers)
        )
        broadcast_from_main(lambda: self.write(model, tokenizer))
        return RunResult(model, tokenizer, self.output, evaluation)

    def load_base(self) -> Any:
        """The model that the run starts from, in the precision that it is held in."""
        settings = four_bit_settings() if self.options.quantize else None
        dtype, trust = DTYPES[self.options.dtype], self.options.trust_remote_code
        return self.placed(
            models.load_model(
                self.options.model, dtype=dtype, trust_remote_code=trust, settings=settings
            )
        )

    def placed(self, model: Any) -> Any:
        """The model on this process's GPU, where there is one and the settings do not say
        `use_cpu`.
        """
        return model if self.options.settings.get("use_cpu") else models.placed(model)

    def make_folder(self, lock: FolderLock) -> None:
        """The run's folder and what stands in it from the start; another run's folder is set aside."""
        text = self._config_text(self.facts["base_model_hash"])
        aside = set_aside(self.output, "config.yaml", text)
        if aside:
            lock.take()
            self.display.print(
                f"{self.output} held a run with other settings or data; it is now {aside}"
            )
        for folder in {self.work, self.output / "work"}:
            private_folder(folder)
        private_folder(self.output / "checkpoints")
        write_text_atomically(self.output / "config.yaml", text)

    def finished(self) -> dict[str, Any] | None:
        """`eval.json` of this very run, if its folder holds it whole, scored as it would be now, of
        weights that are not newer than it.
        """
        config, record, evaluation = (
            self.output / name for name in ("config.yaml", "run.json", "eval.json")
        )
        if not record.exists() or not evaluation.exists():
            return None
        facts = json.loads(record.read_text(encoding="utf-8"))
        written = config.stat().st_mtime
        newer = any(
            file.stat().st_mtime > written
            for file in Path(self.options.model).glob("*.safetensors")
        )
        same = config.read_text(encoding="utf-8") == self._config_text(facts.get("base_model_hash"))
        wanted = asdict(self.scorer_names())
        if (facts.get("scorers") or {}).get("similarity") is None:
            wanted["similarity"] = None  # it could not be had
        scored = (
            facts.get("scorers") == wanted
            and facts.get("show_text", False) == self.options.show_text
        )
        return (
            dict(json.loads(evaluation.read_text(encoding="utf-8")))
            if same and scored and not newer
            else None
        )

    def config(self, folder: Path, **settings: Any) -> UnlearningConfig:
        """An `UnlearningConfig` for one of the trainings of this run."""
        return UnlearningConfig(
            output_dir=str(folder), seed=self.options.seed, data_seed=self.options.seed, **settings
        )

    def teaching_config(self, folder: Path, **settings: Any) -> UnlearningConfig:
        """The same for what is taught first, with products in the precision of the unlearning."""
        precision = {
            name: value
            for name in ("bf16", "fp16", "use_cpu")
            if (value := self.options.settings.get(name)) is not None
        }
        return self.config(folder, **precision, **settings)

    @property
    def baseline(self) -> str | None:
        """The alignment pipeline that stands in the place of unlearning, if the method names one."""
        method = self.options.settings.get("method")
        return method if method in PIPELINES else None

    def check_options(self) -> None:
        """Raises `UserError` for options that no training of this run takes."""
        options = self.options
        for name, least in (
            ("lora_rank", 1),
            ("frozen_layers", 0),
            ("recite_tokens", 0),
            ("seed", 0),
        ):
            if not least <= getattr(options, name) < 2**32:
                raise UserError(
                    f"option {name!r} is {getattr(options, name)}, it must be at least {least} and"
                    " under 2**32"
                )
        check_quantize(options.quantize, lora=options.lora)
        check_dtype(options.dtype, lora=options.lora, quantize=options.quantize)
        for option in ("quantize", "dtype"):
            if getattr(options, option) not in (None, "float32") and (
                self.baseline is not None or self.scenario.teach
            ):
                raise UserError(
                    f"option {option!r} is for unlearning methods on your own rows; baselines and"
                    " what a demo teaches train all weights"
                )
        check_right_answers(self.scorer_names(), [*self.scenario.forget, *self.scenario.validation])
        if self.baseline is None:
            check_search(
                options.settings, options.search_minutes, options.search_steps, options.candidates
            )
            config = self.unlearning_config()
            config.check_training()
            _ = (
                config.device
            )  # the processes of a run meet here, on the device that the config says
            load_models_whole()
            if config.patience and not self.scenario.validation:
                raise UserError(
                    "option 'patience' needs a validation split to watch, and the data has none;"
                    " give more rows"
                )
            if self.options.stages:
                raise UserError(
                    f"option 'stages' is for the baselines ({', '.join(PIPELINES)}); an unlearning"
                    " method has none"
                )
            return
        from unteach.baselines.run import check_baseline

        check_baseline(self.baseline, self.options, self.scenario)

    def unlearning_config(self) -> UnlearningConfig:
        """The config of the training; for method `auto` with what was picked, or the first
        candidate.
        """
        resolved = self.resolved()
        if resolved.run.method == AUTO:
            tried = self.picked or candidates(self.options.candidates)[0]
            own = ("method", "learning_rate")  # the user's other options come before the tried
            settings = {k: v for k, v in tried.items() if k in own or k not in resolved.chosen}
            resolved = resolved.with_training("search", **settings)
        return resolved.unlearning_config(self.output / "checkpoints")

    def resolved(self) -> ResolvedConfig:
        """The settings of the run, merged and filled in."""
        return resolve(self.options.given(), presets=self.scenario.presets, width=self.width)

    def first_rate(self, method: str) -> float:
        """The learning rate of a method's first trial: the one named, or that which a run with this
        method takes by itself.
        """
        named = {**self.scenario.presets, **self.options.settings}.get("learning_rate")
        if named is not None:
            return float(named)
        assert self.width is not None, "the model is loaded before anything is tried"
        return suitable_learning_rate(self.width, method, lora=self.options.lora)

    def unlearn(
        self, model: Any, tokenizer: Any, forget: list[Row], retain: list[Row], scorers: Scorers
    ) -> Any:
        """The training itself, from the newest whole checkpoint if there is one; returns the
        changed model.
        """
        if self.baseline is not None:
            return self.align(self.baseline, model, tokenizer, forget, retain, scorers)
        options, peft_config = self.options, self.adapter()
        frozen = [] if options.lora else freeze_lower_layers(model, options.frozen_layers)
        if options.settings.get("method") == AUTO:
            bench = SearchContext(
                model,
                tokenizer,
                forget,
                retain,
                peft_config,
                lambda generations: self.probe(tokenizer, forget, retain, scorers, generations),
                self.output / "work" / "trial",
                options.seed,
            )
            self.picked = pick(
                bench,
                self.collection,
                options,
                self.scenario.presets,
                self.unlearning_config(),
                self.first_rate,
                self.config,
            )
            model = bench.model
        config = self.unlearning_config()
        if config.objective.needs_alternates:
            forget = self.collection.with_alternates(model, tokenizer, forget)

        def keep(rows: Sequence[Row], outputs: Sequence[str]) -> None:
            said = {row.key: output for row, output in zip(rows, outputs, strict=True)}
            if is_main_process():
                write_json(self.output / "work" / f"said-at-{trainer.state.global_step}.json", said)

        probe = self.probe(tokenizer, forget, retain, scorers, keep)
        trainer = UnlearningTrainer(model, config, forget, retain, tokenizer, peft_config, probe)
        trainer.remove_callback(PrinterCallback)
        reset_peak_memory()
        with self.display.stage("Unlearning", trainer.args.max_steps) as stage:
            trainer.on_step = step_display(stage)
            try:
                trainer.train(resume_from_checkpoint=True)
            except TrainingFault as fault:
                if is_main_process():
                    write_run_record(
                        self.output,
                        {
                            "model": options.model,
                            "seed": options.seed,
                            **self.facts,
                            "fault": str(fault),
                        },
                    )
                raise
        if trainer.fault:
            self.display.print(
                f"Stopped: {trainer.fault}. What is kept are the weights of step"
                f" {trainer.rule.best_step}."
            )
        unfreeze(frozen)
        rule = trainer.rule
        text = broadcast_from_main(
            lambda: (trainer.output / "metrics.jsonl").read_text(encoding="utf-8")
        )
        lines = [json.loads(line) for line in text.splitlines()]
        training = unlearning_cost(
            lines,
            reference_tokens=sum(map(len, trainer.retain_rows)),
            live_reference=config.reference != "stored",
            peak_mb=peak_memory_mb(),
        )
        costs = [*self.collection.costs, training]
        self.facts |= {
            "method": config.method,
            "needs": "bad answers" if get_method(config.method).forget else "answers to keep",
            "needs_positives": False,
            "needs_preferences": False,
            "costs": [asdict(cost) for cost in costs],
            "cost": asdict(total(costs)),
            "learning_rate": config.learning_rate,
            "steps": trainer.state.global_step,
            "kept_step": rule.best_step if rule.best_step >= 0 else trainer.state.global_step,
            "stop_reason": rule.reason or f"max_steps ({trainer.args.max_steps}) reached",
            "fault": trainer.fault or None,
            "max_retain_kl": config.max_retain_kl,
            **trainer.hooks.facts(),
            "forget_rows": len(forget),
            "retain_rows": len(retain),
            "processes": process_count(),
            "sharded_weights": trainer.sharded,
        }
        return trainer.model

    def adapter(self) -> Any:
        """The adapter's configuration, if one is to be trained."""
        if not self.options.lora:
            return None
        from peft import LoraConfig

        rank = self.options.lora_rank
        return LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )

    def probe(
        self,
        tokenizer: Any,
        forget: list[Row],
        retain: list[Row],
        scorers: Scorers,
        keep: OnOutputs | None = None,
    ) -> Probe:
        """What the model says now, on a few rows; the same for every method."""
        return make_probe(
            tokenizer,
            forget,
            self.asked.validation,
            retain,
            shows_forgotten=scorers.shows_forgotten,
            forget_rows=self.options.probe_rows,
            drafts=self.generations,
            on_outputs=keep,
        )

    def align(
        self,
        pipeline: str,
        model: Any,
        tokenizer: Any,
        forget: list[Row],
        retain: list[Row],
        scorers: Scorers,
    ) -> Any:
        """A baseline in the place of unlearning, on the same rows and the good answers beside them;
        returns the changed model.
        """
        from unteach.baselines.run import run_baseline, trained_reward

        probe = self.probe(tokenizer, forget, retain, scorers)
        key = self.collection.model_key
        result, facts = run_baseline(
            pipeline, model, tokenizer, self.scenario, self.options, probe, key, self.display
        )
        self.facts |= facts
        if self.options.reward_model is None and "reward" in result.folders:
            self.reward = trained_reward(result.folders["reward"])
        return self.placed(result.model)

    # --- evaluation
    # ---------------------------------------------------------------------------------------------------

    def scorer_names(self) -> ScorerNames:
        """The scenario's scorers, those of the user in their place."""
        options = self.options
        chosen = {
            "headline": options.headline,
            "judge": options.judge,
            "reward": options.reward_model,
            "fluency": options.fluency_model,
        }
        named = {name: value for name, value in chosen.items() if value is not None}
        return replace(self.scenario.scorers, similarity=options.similarity_model, **named)

    def scorers(self) -> Scorers:
        """Those scorers, ready."""
        with self.display.stage("Preparing the scorers"):
            return build_scorers(
                self.scorer_names(),
                self.asked.leak_corpus,
                self.scenario.labelled,
                self.display.print,
            )

    def answers(self, model: Any, tokenizer: Any, name: str, model_hash: str) -> Generations:
        """The model's answers to all prompt sets. What the probe of its step heard, or else the
        original, is a draft of them.
        """
        sets, drafts = self.asked.sets, dict(self.generations)
        probed = self.output / "work" / f"said-at-{self.facts.get('kept_step')}.json"
        drafts |= json.loads(probed.read_text(encoding="utf-8")) if probed.exists() else {}

        def make() -> dict[str, Any]:
            with self.display.stage(
                f"Asking the {name} model", sum(map(len, sets.values()))
            ) as stage:
                return asdict(
                    generate_sets(model, tokenizer, sets, drafts=drafts, progress=stage.update)
                )

        keys = {set_name: [row.key for row in rows] for set_name, rows in sets.items()}
        return Generations(**self.collection.cached(f"answers-{name}", [model_hash, keys], make))

    def evaluate(
        self, tokenizer: Any, said: Mapping[str, Generations], scorers: Scorers
    ) -> dict[str, Any]:
        """Scores the answers of both models; writes `eval.json` and `generations.jsonl`."""
        options = self.options
        fluency, trust = scorers.names.fluency or options.model, options.trust_remote_code
        own = fluency == options.model
        reader = FluencyModel(
            fluency,
            (
                self.load_base()
                if own
                else self.placed(models.load_model(fluency, trust_remote_code=trust))
            ),
            tokenizer if own else models.load_tokenizer(fluency, trust_remote_code=trust),
        )
        with self.display.stage("Scoring the answers", 2 * len(self.asked.sets)) as stage:
            return score_models(
                self.asked.name,
                self.asked.sets,
                said,
                tokenizer,
                scorers,
                fluency=reader,
                show_text=options.show_text,
                folder=self.output,
                progress=stage.update,
            )

    # --- folder
    # -------------------------------------------------------------------------------------------------------

    def _config_text(self, model_hash: str | None) -> str:
        searched, staged = self.options.settings.get("method") == AUTO, self.baseline is not None
        return config_text(
            self.options,
            self.resolved(),
            self.scenario,
            self.scorer_names(),
            model_hash=model_hash,
            searched=searched,
            staged=staged,
        )

    def write(self, model: Any, tokenizer: Any) -> None:
        """Writes the model, `run.json` and the report."""
        with self.display.stage("Saving the model and the report"):
            target = self.output / ("adapter" if self.options.lora else "model")
            if self.options.lora and self.scenario.teach:
                for settings in model.peft_config.values():
                    settings.base_model_name_or_path = str(
                        (self.shared / "original").resolve()
                    )  # what it was trained on

            def save(folder: Path) -> None:
                model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)

            write_folder_atomically(target, save)
            options, scenario = self.options, self.scenario
            facts = {
                "model": options.model,
                "scenario": scenario.name,
                "seed": options.seed,
                "dtype": options.dtype,
                "quantize": options.quantize,
                "show_text": options.show_text,
                "data_files": dict(scenario.files),
                "shared_dir": os.path.relpath(self.shared, self.output),
                **self.facts,
                "forget_hash": rows_hash(scenario.forget),
                "retain_hash": rows_hash([*scenario.retain, *scenario.own_prompts]),
                "stage_seconds": {
                    name: round(value, 1) for name, value in self.display.seconds.items()
                },
                "seconds": round(time.time() - self.started, 1),
            }
            write_run_record(self.output, facts)
            write_report(self.output)


def unlearn(
    model: str,
    forget: Any,
    retain: Any = None,
    *,
    output_dir: str,
    seed: int = 0,
    lora: bool = False,
    scenario: str | None = None,
    split_by: str = "prompt",
    display: Display | None = None,
    **settings: Any,
) -> RunResult:
    """Makes `model` forget the rows in `forget`, evaluates it, and writes a run's folder.

    Rows are held back, by hash, to show what was done: about 70% of `forget` are unlearned, 10% are
    only asked by the probes that decide when to stop, and 20% only before and after (`unseen`); of
    `retain` 20% are only asked (`normal`). Of the unlearned, unseen and normal rows at most 64, 64
    and 32 are asked. `unteach.requests.forget_requests.forget_request` forgets all rows.

    Args:
        model (`str`): folder, hub id or packaged name.
        forget: rows to forget: a file, a dataset, a list of dicts, or a list of prompts (whose
            answers are to be forgotten).
        retain (*optional*): rows to keep, beside the model's own answers to neutral prompts.
        output_dir (`str`)
        seed (`int`)
        lora (`bool`): train an adapter.
        scenario (`str`, *optional*): an embedded scenario whose scorers judge the answers.
        split_by (`str`): rows with the same prompt, or the same value of this column, fall into the
            same split.
        settings: fields of `UnlearningConfig`, and of `RunOptions` other than those above.
    """
    named = {"model": model, "output_dir": output_dir, "seed": seed, "lora": lora}
    resolved = resolve({**named, **settings})
    own = {name: getattr(resolved.run, name) for name in RUN_FIELDS if name != "method"}
    options = RunOptions(**own, settings=resolved.chosen)
    scorers = build_scenario(scenario).scorers if scenario else None
    rows = user_scenario(forget, retain, scorers=scorers, split_by=split_by)
    return Run(rows, options, display).execute()
