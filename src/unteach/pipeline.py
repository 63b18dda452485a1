"""A run from data to report: teach (in a demo), collect the retain set, unlearn, evaluate before and after, write the folder."""

from __future__ import annotations

import json
import platform
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from unteach import __version__, models
from unteach.checkpoints import read_marker, write_json, write_text_atomically
from unteach.config import UnlearningConfig
from unteach.data.rows import Row, split_rows
from unteach.data.sources import load_rows
from unteach.data.tokenization import encode_row, end_of_turn_id
from unteach.errors import UserError
from unteach.evaluation.generation import answer
from unteach.evaluation.likelihood import greedy_agreement
from unteach.evaluation.scoring import ANSWER_TOKENS, answer_sets, score_models
from unteach.evaluation.text_metrics import bleu, leak_threshold
from unteach.progress import Display
from unteach.recitation import recited_passages
from unteach.scenarios.copyright import lines
from unteach.scenarios.scenario import Scenario
from unteach.trainer import UnlearningTrainer


PROBE_TOKENS = 48


@dataclass
class RunOptions:
    """How a run is done, beside what `UnlearningConfig` says.

    Args:
        model (`str`): the model to change.
        output_dir (`str`)
        seed (`int`)
        settings (`dict[str, Any]`): fields of `UnlearningConfig`.
        lora (`bool`): train an adapter on all linear layers instead of all weights.
        lora_rank (`int`): its rank.
        frozen_layers (`int`): the embedding and so many of the first layers are not trained: cheaper.
        recite_tokens (`int`): how far the model is let go on after each `text` forget row, to find more of what it knows by heart; 0: not.
        show_text (`bool`): whether texts of the forget set may stand in the run's files.
        similarity_model (`str`, *optional*): encoder for `similarity`; `None`: leave it out.
        trust_remote_code (`bool`): run code that comes with the model.
    """

    model: str
    output_dir: str
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    lora: bool = False
    lora_rank: int = 16
    frozen_layers: int = 0
    recite_tokens: int = 0
    show_text: bool = False
    similarity_model: str | None = "all-minilm-l6-v2"
    trust_remote_code: bool = False


@dataclass
class RunResult:
    """What a run gives back: the changed model, its tokenizer, the folder, and `eval.json` as a dict."""

    model: Any
    tokenizer: Any
    output_dir: Path
    evaluation: dict[str, Any]


def user_scenario(forget: Any, retain: Any, *, forget_validation: Any = None, chat: bool = True, own_rows: int = 48) -> Scenario:
    """A scenario of a user's rows: the forget set split 70/10/20 by hash, the retain set 80/20.

    Args:
        forget, retain: anything that `load_rows` takes; `retain` may be `None`: then the model's own answers to neutral prompts are kept.
        forget_validation (*optional*): rows for the stop decision instead of the split's.
        chat (`bool`): kind of the neutral prompts used where there is no retain set.
        own_rows (`int`): how many of them.
    """
    rows = forget if isinstance(forget, list) and forget and isinstance(forget[0], Row) else load_rows(forget, "forget", prompt_only=True)
    split = split_rows(rows)
    if not split["train"]:
        raise UserError(f"the forget set has {len(rows)} row(s), and its training split (70% by hash) is empty; give more rows")
    validation = load_rows(forget_validation, "forget") if forget_validation is not None else split["validation"]
    kept = [] if retain is None else load_rows(retain, "retain", prompt_only=True)
    kept_split = split_rows(kept, (0.8, 0.0, 0.2))
    texts = all(row.kind == "text" for row in rows)
    names = "opening_lines" if texts or not chat else "neutral_prompts"
    kind: Any = "text" if names == "opening_lines" else "chat"
    neutral = [Row(line, "", kind, names) for line in lines(names)]
    normal = [row for row in kept_split["test"]] or neutral[-12:]
    sets: dict[str, list[Row]] = {"unlearned": split["train"][:64]}
    if split["test"]:
        sets["unseen"] = split["test"][:64]
    sets["normal"] = [Row(row.prompt, "", row.kind, row.source) for row in normal[:32]]
    return Scenario(
        name="run",
        forget=split["train"],
        validation=validation,
        retain=kept_split["train"],
        sets=sets,
        own_prompts=[] if kept_split["train"] else neutral[:own_rows],
        leak_corpus=[row.completion for row in rows if row.completion][:64],
    )


class Run:
    """The stages of one run folder; each leaves something behind that a second start of the same command uses."""

    def __init__(self, scenario: Scenario, options: RunOptions, display: Display | None = None) -> None:
        self.scenario, self.options = scenario, options
        self.display = display or Display(quiet=True)
        self.output = Path(options.output_dir)
        self.work = self.output / "work"
        self.started = time.time()
        self.facts: dict[str, Any] = {}

    # --- stages -------------------------------------------------------------------------------------------------------

    def execute(self) -> RunResult:
        """All stages, in order."""
        self.work.mkdir(parents=True, exist_ok=True)
        self.work.chmod(0o700)
        write_text_atomically(self.output / "config.yaml", self._config_text())
        torch.manual_seed(self.options.seed)
        name = self.options.model
        with self.display.stage(f"Loading {name}"):
            tokenizer = models.load_tokenizer(name, trust_remote_code=self.options.trust_remote_code)
            model = models.load_model(name, trust_remote_code=self.options.trust_remote_code)
        self.facts["base_model_hash"] = models.weights_hash(model)
        if self.scenario.teach:
            model = self.teach(model, tokenizer)
        self.facts["original_model_hash"] = models.weights_hash(model)
        threshold = leak_threshold(self.scenario.leak_corpus) if self.scenario.leak_corpus else 0.0
        self.facts["leak_threshold_bleu"] = threshold
        scenario = self.scenario
        forget = self.with_completions(model, tokenizer, scenario.forget, "Collecting what the model answers to the forget prompts")
        own = self.with_completions(model, tokenizer, scenario.own_prompts, "Collecting the model's own answers to keep")
        retain = [*self.with_completions(model, tokenizer, scenario.retain, "Collecting answers to the retain prompts"), *own]
        if self.options.recite_tokens:
            forget = self.extend(model, tokenizer, forget, retain)
        before = self.answers(model, tokenizer, "original")
        self.unlearn(model, tokenizer, forget, retain, threshold)
        after = self.answers(model, tokenizer, "unlearned")
        evaluation = self.evaluate(tokenizer, {"original": before, "unlearned": after}, threshold)
        self.write(model, tokenizer, evaluation)
        return RunResult(model, tokenizer, self.output, evaluation)

    def config(self, folder: Path, **settings: Any) -> UnlearningConfig:
        """An `UnlearningConfig` for one of the trainings of this run."""
        return UnlearningConfig(output_dir=str(folder), seed=self.options.seed, data_seed=self.options.seed, **settings)

    def teach(self, model: Any, tokenizer: Any) -> Any:
        """Teaches the scenario's text, as the paper fine-tunes on its book; keeps the result in `original/`."""
        folder = self.output / "original"
        if read_marker(folder) is not None:
            with self.display.stage("Loading the taught model"):
                return models.load_model(str(folder))
        settings = dict(self.scenario.presets.get("teach", {}))
        frozen = freeze_lower_layers(model, int(settings.pop("frozen_layers", 0)))
        config = self.config(self.work / "teach", method="finetuning", save_steps=40, save_strategy="steps", save_total_limit=2, **settings)
        trainer = UnlearningTrainer(model, config, None, self.scenario.teach, tokenizer)
        with self.display.stage("Teaching the texts to the model", config.max_steps) as stage:
            trainer.on_step = lambda record: stage.update(int(record["step"]), note=f"loss {record['retain_nll']:.2f}")
            trainer.train(resume_from_checkpoint=True)
        unfreeze(frozen)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        from unteach.checkpoints import mark_complete

        mark_complete(folder, {})
        return model.eval()

    def with_completions(self, model: Any, tokenizer: Any, rows: Sequence[Row], title: str) -> list[Row]:
        """The rows, those without a completion filled with the model's own answer; a row that the model answers with nothing is left out."""
        empty = [row for row in rows if not row.completion]
        if not empty:
            return list(rows)
        with self.display.stage(title, len(empty)) as stage:
            outputs = answer(model, tokenizer, empty, max_new_tokens=ANSWER_TOKENS, progress=stage.update)
        made = {row.key: row.with_completion(output) for row, output in zip(empty, outputs, strict=True)}
        return [filled for row in rows if (filled := made.get(row.key, row)).completion.strip()]

    def extend(self, model: Any, tokenizer: Any, forget: list[Row], retain: list[Row]) -> list[Row]:
        """The forget set and what the model recites when it goes on from its rows."""
        with self.display.stage("Letting the model recite on from the forget rows", len(forget)) as stage:
            recited = recited_passages(model, tokenizer, forget, retain, max_new_tokens=self.options.recite_tokens, progress=stage.update)
        self.facts["recited_passages"] = len(recited)
        unseen = {" ".join(row.prompt_text.split()) for row in self.scenario.sets.get("unseen", [])}
        self.facts["recited_unseen_passages"] = sum(row.prompt_text in unseen for row in recited)
        return [*forget, *recited]

    def unlearn(self, model: Any, tokenizer: Any, forget: list[Row], retain: list[Row], threshold: float) -> None:
        """The training itself, from the newest whole checkpoint if there is one; `model` is changed."""
        options = self.options
        settings = {**{key: value for key, value in self.scenario.presets.items() if key != "teach"}, **options.settings}
        settings = {"save_strategy": "steps", "save_steps": 10, "save_total_limit": 2, **settings}
        config = self.config(self.output / "checkpoints", **settings)
        peft_config = None
        if options.lora:
            from peft import LoraConfig

            peft_config = LoraConfig(
                r=options.lora_rank, lora_alpha=2 * options.lora_rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
            )
        frozen = [] if options.lora else freeze_lower_layers(model, options.frozen_layers)
        probe = self.probe(tokenizer, forget, retain, threshold)
        trainer = UnlearningTrainer(model, config, forget, retain, tokenizer, peft_config, probe)
        self.trainer = trainer
        with self.display.stage("Unlearning", config.max_steps) as stage:
            notes: dict[str, str] = {}

            def show(record: dict[str, float]) -> None:
                if "probe_forget_rate" in record:
                    notes["probe"] = f"still said {record['probe_forget_rate']:.0%}, kept {record['probe_utility']:.0%}"
                else:
                    notes["kl"] = f"retain KL {record.get('retain_kl', 0):.3f}"
                stage.update(int(record["step"]), note="; ".join(notes.values()))

            trainer.on_step = show
            trainer.train(resume_from_checkpoint=True)
        unfreeze(frozen)
        self.model = trainer.model
        rule = trainer.rule
        self.facts |= {
            "steps": trainer.state.global_step,
            "kept_step": rule.best_step if rule.best_step >= 0 else trainer.state.global_step,
            "stop_reason": rule.reason or f"max_steps ({config.max_steps}) reached",
            "method": config.method,
            "forget_rows": len(forget),
            "retain_rows": len(retain),
        }

    def probe(self, tokenizer: Any, forget: list[Row], retain: list[Row], threshold: float) -> Any:
        """Behaviour on a few rows: share of forget completions still said (training and validation rows, whichever is more), and share of
        the retain completions' tokens that the model still chooses greedily."""
        training, validation = forget[:: max(1, len(forget) // 8)][:8], [row for row in self.scenario.validation if row.completion][:8]
        end_id = end_of_turn_id(tokenizer)
        kept = [encode_row(row, tokenizer, end_id) for row in retain[:: max(1, len(retain) // 16)][:16]]

        def measure(model: Any) -> Mapping[str, float]:
            rows = [*training, *validation]
            outputs = answer(model, tokenizer, rows, max_new_tokens=PROBE_TOKENS)
            said = [bleu(output, row.completion) > threshold for output, row in zip(outputs, rows, strict=True)]
            first, second = said[: len(training)], said[len(training) :]
            rates = {"train_rate": sum(first) / len(first), "validation_rate": sum(second) / len(second) if second else 0.0}
            agreement = greedy_agreement(model, [row.prompt_ids for row in kept], [row.completion_ids for row in kept])
            shares = [share for share in agreement if share is not None]
            utility = sum(shares) / len(shares) if shares else 1.0
            return {"forget_rate": max(rates.values()), "utility": utility, **rates}

        return measure

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def answers(self, model: Any, tokenizer: Any, name: str) -> dict[str, list[str]]:
        """The model's answers to all prompt sets, from the work folder if this very model has given them before."""
        path = self.work / f"answers-{name}-{models.weights_hash(model)[:16]}.json"
        if path.exists():
            return dict(json.loads(path.read_text(encoding="utf-8")))
        with self.display.stage(f"Asking the {name} model", sum(map(len, self.scenario.sets.values()))) as stage:
            result = answer_sets(model, tokenizer, self.scenario.sets, progress=stage.update)
        write_json(path, result)
        return result

    def evaluate(self, tokenizer: Any, outputs: Mapping[str, Mapping[str, list[str]]], threshold: float) -> dict[str, Any]:
        """Scores the answers of both models; writes `eval.json` and `generations.jsonl`."""
        options = self.options
        with self.display.stage("Scoring the answers", 2 * len(self.scenario.sets)) as stage:
            return score_models(
                self.scenario.name,
                self.scenario.sets,
                outputs,
                tokenizer,
                fluency_model=models.load_model(options.model, trust_remote_code=options.trust_remote_code),
                fluency_name=options.model,
                threshold=threshold,
                similarity_model=options.similarity_model,
                show_text=options.show_text,
                folder=self.output,
                progress=stage.update,
            )

    # --- folder -------------------------------------------------------------------------------------------------------

    def _config_text(self) -> str:
        import yaml

        options = self.options
        resolved = {
            "model": options.model,
            "scenario": self.scenario.name,
            "seed": options.seed,
            "lora": options.lora,
            "frozen_layers": options.frozen_layers,
            "recite_tokens": options.recite_tokens,
            "settings": {**{k: v for k, v in self.scenario.presets.items()}, **options.settings},
        }
        return str(yaml.safe_dump(resolved, sort_keys=False))

    def write(self, model: Any, tokenizer: Any, evaluation: dict[str, Any]) -> None:
        """Writes the model, `run.json` and the report."""
        from unteach.reports.report import write_report

        target = self.output / ("adapter" if self.options.lora else "model")
        with self.display.stage("Saving the model and the report"):
            self.model.save_pretrained(target)
            tokenizer.save_pretrained(target)
            import transformers

            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
            metrics = [json.loads(line) for line in (self.output / "checkpoints" / "metrics.jsonl").read_text().splitlines()]
            write_text_atomically(self.output / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in metrics))
            steps = [line for line in metrics if "loss" in line]
            tokens, seconds = sum(line["tokens"] for line in steps), sum(line["seconds"] for line in steps)
            run = {
                "versions": {
                    "unteach": __version__,
                    "torch": torch.__version__,
                    "transformers": transformers.__version__,
                    "python": platform.python_version(),
                },
                "model": self.options.model,
                "scenario": self.scenario.name,
                "seed": self.options.seed,
                **self.facts,
                "unlearned_model_hash": models.weights_hash(self.model),
                "data_hash": _rows_hash(self.scenario.forget),
                "retain_hash": _rows_hash(self.scenario.retain),
                "stage_seconds": {name: round(value, 1) for name, value in self.display.seconds.items()},
                "seconds": round(time.time() - self.started, 1),
                "tokens": tokens,
                "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
                "peak_memory_bytes": peak,
            }
            write_json(self.output / "run.json", run)
            write_report(self.output)


def _rows_hash(rows: Sequence[Row]) -> str:
    import hashlib

    return hashlib.sha256("".join(sorted(row.key for row in rows)).encode()).hexdigest()[:16]


def freeze_lower_layers(model: Any, count: int) -> list[Any]:
    """Takes the embedding and the first `count` layers out of training; returns the parameters that it froze.

    Raises:
        UserError: if the model has fewer layers, or none that can be found.
    """
    if count <= 0:
        return []
    body = models.decoder(model)
    layers = getattr(body, "layers", None) or getattr(body, "h", None)
    if layers is None or count >= len(layers):
        raise UserError(f"frozen_layers is {count}, but the model has {len(layers) if layers is not None else 'no known list of'} layers")
    parts = [models.without_adapter(model).get_input_embeddings(), *list(layers)[:count]]
    frozen = [parameter for part in parts for parameter in part.parameters() if parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return frozen


def unfreeze(parameters: Sequence[Any]) -> None:
    """Undoes `freeze_lower_layers`."""
    for parameter in parameters:
        parameter.requires_grad_(True)


def unlearn(
    model: str,
    forget: Any,
    retain: Any = None,
    *,
    output_dir: str,
    seed: int = 0,
    lora: bool = False,
    display: Display | None = None,
    **settings: Any,
) -> RunResult:
    """Makes `model` forget the rows in `forget`, evaluates it, and writes a run's folder.

    Args:
        model (`str`): folder, hub id or packaged name.
        forget: rows to forget: a file, a dataset, a list of dicts, or a list of prompts (whose answers are to be forgotten).
        retain (*optional*): rows to keep; without them the model's own answers to neutral prompts.
        output_dir (`str`)
        seed (`int`)
        lora (`bool`): train an adapter.
        settings: fields of `UnlearningConfig`, and of `RunOptions` other than those above.
    """
    names = set(RunOptions.__dataclass_fields__)
    own = {name: settings.pop(name) for name in list(settings) if name in names}
    options = RunOptions(model=model, output_dir=output_dir, seed=seed, lora=lora, settings=settings, **own)
    return Run(user_scenario(forget, retain), options, display).execute()


def evaluate_models(
    model: str,
    reference: str | None,
    *,
    scenario: str | None = None,
    forget: Any = None,
    retain: Any = None,
    output_dir: str,
    show_text: bool = False,
    display: Display | None = None,
) -> dict[str, Any]:
    """Asks and scores a model (and the one before it) without training; writes `eval.json` and `generations.jsonl`.

    Args:
        model, reference (`str`): the model after and before; without a reference both columns are the same model.
        scenario (`str`, *optional*): an embedded scenario whose prompt sets are used.
        forget, retain (*optional*): rows of the sets `unlearned` and `retain` instead.
        output_dir (`str`)
        show_text (`bool`): whether forget texts are written.
        display (`Display`, *optional*)
    """
    from unteach.scenarios import copyright

    display = display or Display(quiet=True)
    folder = Path(output_dir)
    if scenario:
        built = copyright.build()
        sets, corpus = dict(built.sets), built.leak_corpus
    else:
        rows = load_rows(forget, "forget")
        sets, corpus = {"unlearned": rows}, [row.completion for row in rows][:64]
        if retain is not None:
            sets["retain"] = load_rows(retain, "retain")
        sets["normal"] = [Row(line, "", "chat", "neutral prompt") for line in lines("neutral_prompts")[-20:]]
    names = {"original": reference or model, "unlearned": model}
    outputs: dict[str, dict[str, list[str]]] = {}
    loaded: Any = None
    for role, name in names.items():
        if role == "unlearned" and name == names["original"]:
            outputs[role] = outputs["original"]
            continue
        with display.stage(f"Asking {name}", sum(map(len, sets.values()))) as stage:
            loaded, tokenizer = models.load_model(name), models.load_tokenizer(name)
            outputs[role] = answer_sets(loaded, tokenizer, sets, progress=stage.update)
    with display.stage("Scoring the answers") as stage:
        return score_models(
            scenario or "eval",
            sets,
            outputs,
            tokenizer,
            fluency_model=models.load_model(names["original"]),
            fluency_name=names["original"],
            threshold=leak_threshold(corpus),
            similarity_model="all-minilm-l6-v2",
            show_text=show_text,
            folder=folder,
            progress=stage.update,
        )
