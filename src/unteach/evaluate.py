"""`unteach eval`: evaluation of a model without training, on prompt sets or on a benchmark."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from unteach import models
from unteach.config.scorers import ScorerNames
from unteach.data.chat import (
    CHAT_OPTIONS,
    ChatSettings,
    chat_record,
    chosen_settings,
    with_chat_settings,
)
from unteach.data.public_sets import Role
from unteach.data.rows import Row
from unteach.data.secrets import with_secrets
from unteach.data.sources import load_rows
from unteach.errors import UserError
from unteach.evaluation.benchmarks import load_benchmark
from unteach.evaluation.benchmarks.benchmark import EvaluatedModel, Measured
from unteach.evaluation.eval_json import as_eval_json
from unteach.evaluation.generation import Generator, TransformersGenerator, end_ids
from unteach.evaluation.generators import CachedGenerator, VllmGenerator
from unteach.evaluation.metrics import is_forget_set, prompt_set
from unteach.evaluation.scorers import build_scorers, check_scorers
from unteach.evaluation.scoring import FluencyModel, generate_sets, score_models
from unteach.files.atomic import write_json, write_text_atomically
from unteach.files.folders import FolderLock, private_folder
from unteach.models.adapters import is_adapter
from unteach.models.precision import dtype_of
from unteach.prepare.generations import LoadedModel, completed_scenario
from unteach.processes import is_main_process
from unteach.progress import Display
from unteach.reports.tables import benchmark_table
from unteach.run.folder import recorded_chat
from unteach.run.model_check import check_places
from unteach.scenarios import build_scenario
from unteach.scenarios.scenario import Scenario
from unteach.scenarios.texts import labelled_answers, prompt_rows
from unteach.scenarios.user_rows import with_unrelated

T = TypeVar("T")
Evaluate = Callable[[str, Any, Any, Generator], T]
"""From a role, its model, the model's tokenizer and generator to results."""


@dataclass(frozen=True)
class EvalOptions:
    """Options of both kinds of evaluation.

    Args:
        output_dir: where files are written; `work/` in it caches the outputs.
        engine: `transformers`, or `vllm`.
        batch_size: prompts per batch; default: by the size of their KV cache.
        show_text: whether forget texts are written.
        trust_remote_code: run code that comes with a model.
        dtype: of the weights, `float32` or `bfloat16`.
        system, chat_template_kwargs, chat_date, max_new_tokens: see `ChatSettings`; default: those
            that a run recorded beside the model after unlearning.
        display: shows progress; default: none.
    """

    output_dir: str
    engine: str = "transformers"
    batch_size: int | None = None
    show_text: bool = False
    trust_remote_code: bool = False
    dtype: str = "float32"
    system: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    chat_date: str | None = None
    max_new_tokens: int | None = None
    display: Display = field(default_factory=lambda: Display(quiet=True))

    @property
    def folder(self) -> Path:
        """`output_dir` as a path."""
        return Path(self.output_dir)

    def load(self, name: str) -> tuple[Any, Any]:
        """A model and its tokenizer."""
        trust, dtype = self.trust_remote_code, dtype_of(self.dtype)
        tokenizer = self.tokenizer(name)  # refuses chat settings before weights are loaded
        model = models.load_model(name, trust_remote_code=trust, dtype=dtype)
        return models.placed(model), tokenizer

    def tokenizer(self, name: str) -> Any:
        """A model's tokenizer, with the chat settings."""
        found = models.load_tokenizer(name, trust_remote_code=self.trust_remote_code)
        return with_chat_settings(found, chosen_settings(ChatSettings(), **self._chat))

    @property
    def _chat(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in CHAT_OPTIONS}

    def as_recorded(self, name: str) -> EvalOptions:
        """The same options, those of the chat that nobody chose as the run that made the model
        recorded them.
        """
        known = recorded_chat(name)
        found = chosen_settings(known or ChatSettings(), **self._chat)
        if self.chat_template_kwargs:
            self.tokenizer(name)  # refuses what its template does not read, before all else
        if known is None:
            return self
        self.display.print(f"Chat settings that are not given are those of the run of {name}.")
        return replace(
            self,
            system=found.system,
            chat_template_kwargs=found.template_kwargs,
            chat_date=found.date,
            max_new_tokens=found.max_new_tokens or None,
        )

    def generator(self, name: str, model: Any, tokenizer: Any) -> Generator:
        """The engine with a cache of the model's outputs."""
        inner: Generator = TransformersGenerator(model, tokenizer, self.batch_size)
        if self.engine == "vllm":
            if is_adapter(models.resolve(name)):
                raise UserError(
                    f"engine vllm takes whole models, and {name!r} is an adapter: leave --engine"
                    " out, or run with --merge"
                )
            ends = end_ids(tokenizer, model)
            inner = VllmGenerator(models.resolve(name), tokenizer, ends=ends)
        work, model_hash = self.folder / "work", models.weights_hash(model)
        return CachedGenerator(inner, work, model_hash, self.engine)

    def each(self, roles: Mapping[str, str], evaluate: Evaluate[T]) -> dict[str, T]:
        """The result of `evaluate` by role, from the models' names by role; a model in two roles is
        evaluated once. One model at a time is in memory, unless `evaluate` keeps it.
        """
        found: dict[str, T] = {}
        for role, name in roles.items():
            same = next((earlier for earlier in found if roles[earlier] == name), None)
            if same:
                found[role] = found[same]
                continue
            model, tokenizer = self.load(name)
            found[role] = evaluate(role, model, tokenizer, self.generator(name, model, tokenizer))
            del model
        return found


# --- prompt sets


def evaluation_scenario(
    scenario: str | None,
    forget: Any,
    retain: Any,
    secrets: str = "patterns",
    *,
    unseen: Any = None,
    neighbours: Any = None,
) -> Scenario:
    """The prompt sets to evaluate and their scorers; arguments are those of `evaluate_models`."""
    built = build_scenario(scenario) if scenario else None
    others = {"unseen": unseen, "neighbours": neighbours, "retain": retain}
    for name, source in others.items():
        if forget is None and source is not None:
            raise UserError(
                f"option --{name} needs --forget: an embedded scenario has rows of its own"
            )
    if built and forget is None:
        return built
    rows = with_secrets(load_rows(forget, "forget", prompt_only=True), secrets)
    sets = {"unlearned": rows}
    for name, source in others.items():
        if source is not None:
            role: Role = "forget" if name == "unseen" else "retain"
            sets[name] = with_secrets(load_rows(source, role, prompt_only=True), secrets)
    sets["normal"] = prompt_rows("neutral_prompts")[-20:]
    return Scenario(
        name=scenario or "eval",
        forget=rows,
        validation=[],
        retain=[],
        sets=sets,
        leak_corpus=with_unrelated(rows),
        labelled=labelled_answers(),
        scorers=built.scorers if built else ScorerNames(),
    )


def evaluate_models(
    model: str,
    reference: str | None,
    *,
    scenario: str | None = None,
    forget: Any = None,
    retain: Any = None,
    unseen: Any = None,
    neighbours: Any = None,
    secrets: str = "patterns",
    scorers: Mapping[str, Any] = MappingProxyType({}),
    **options: Any,
) -> dict[str, Any]:
    """Generates and scores the outputs of a model (and of the one before it) without training;
    writes `eval.json` and `generations.jsonl`.

    Outputs are cached: evaluated again, with another scorer or after an interruption, no output is
    generated twice by the same model.

    Args:
        model (`str`): the model after unlearning.
        reference (`str`, *optional*): the model before it; without one both are the same model.
        scenario: an embedded scenario whose prompt sets and scorers are used.
        forget: rows of the set `unlearned` instead of the scenario's; a row without a completion
            stands for the reference's own answer.
        retain: rows of the set `retain`, the same.
        unseen: rows of the set of this name.
        neighbours: rows of the set of this name.
        secrets: what finds the secrets of these rows where they name none, see `with_secrets`.
        scorers: fields of `ScorerNames` that replace the scenario's.
        options: fields of `EvalOptions`.

    Returns:
        the content of `eval.json`; empty in all processes but the first.

    Raises:
        UserError: for retain rows without forget rows, and for a model that cannot be loaded.
    """
    inference = EvalOptions(**options).as_recorded(model)
    display, folder = inference.display, inference.folder
    roles = {"original": reference or model, "unlearned": model}
    check_places(folder, *roles.values(), kind="evaluation")
    with FolderLock(folder):
        built = evaluation_scenario(
            scenario, forget, retain, secrets, unseen=unseen, neighbours=neighbours
        )
        reason = {"headline_reason": "named by the option headline"}
        chosen = {**scorers, **(reason if scorers.get("headline") else {})}
        names = replace(built.scorers, **chosen)
        check_scorers(names, _forget_rows(built))
        built = _with_answers(built, reference, inference)
        sets, forget_rows = built.sets, _forget_rows(built)
        with display.stage("Preparing the scorers"):
            ready = build_scorers(
                names, built.leak_corpus, built.labelled, display.print, rows=forget_rows
            )

        def evaluate(role: str, loaded: Any, tokenizer: Any, generator: Generator) -> Any:
            count = sum(map(len, sets.values()))
            with display.stage(f"Evaluating {roles[role]}", count) as stage:
                update = stage.update
                return generate_sets(loaded, tokenizer, sets, generator=generator, progress=update)

        generations = inference.each(roles, evaluate)
        if not is_main_process():
            return {}
        fluency = names.fluency or roles["original"]
        plain = replace(inference, system=None, chat_template_kwargs=None)
        reader = inference if fluency in roles.values() else plain
        with display.stage("Scoring the outputs") as stage:
            return score_models(
                built.name,
                sets,
                generations,
                inference.tokenizer(model),
                ready,
                fluency=FluencyModel(fluency, *reader.load(fluency)),
                show_text=inference.show_text,
                folder=folder,
                judged=reference is not None,
                progress=stage.update,
            )


def _forget_rows(built: Scenario) -> list[Row]:
    return [row for name, rows in built.sets.items() if is_forget_set(name) for row in rows]


def _with_answers(built: Scenario, reference: str | None, inference: EvalOptions) -> Scenario:
    """The scenario, rows without a completion with the reference model's own answer."""
    sets = [rows for name, rows in built.sets.items() if prompt_set(name).role != "normal"]
    empty = [row for rows in (built.forget, *sets) for row in rows if not row.completion]
    if not empty:
        return built
    if reference is None:
        raise UserError(
            f"{empty[0].source}: a row without a completion stands for what the model before"
            " unlearning answers; name it with --reference, or give the completion"
        )
    model, tokenizer = inference.load(reference)
    work = private_folder(inference.folder / "work")
    source = LoadedModel.of(model, tokenizer, work, inference.display)
    return completed_scenario(source, built)[0]


# --- benchmarks


def evaluate_benchmark(
    benchmark: str,
    model: str,
    reference: str | None = None,
    *,
    retrained: str | None = None,
    data: str | None = None,
    limit: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Evaluates models on a benchmark; writes `eval.json`, `generations.jsonl` and `benchmark.md`.

    Args:
        benchmark: `tofu`, `muse`, `wmdp`, `rwku`, or another entry of `BENCHMARKS`.
        model: the model after unlearning.
        reference: the one before; without it both columns are the same model.
        retrained: a model trained without the forget set, for the numbers that need one.
        data: a folder, files separated by commas, or a dataset id; default: the benchmark's own on
            the hub.
        limit: at most so many rows of each set.
        options: fields of `EvalOptions`.

    Returns:
        the content of `eval.json`; empty in all processes but the first.

    Raises:
        UserError: for an unknown benchmark, data that does not fit it, or a model that cannot be
            loaded.
    """
    protocol = load_benchmark(benchmark)
    if limit is not None and limit < 1:
        raise UserError(f"option --limit is {limit}, it must be positive")
    compare = protocol.against_retrained
    if retrained and not compare:
        raise UserError(
            f"option --retrained: benchmark {benchmark!r} has no number that needs a retrained"
            " model"
        )
    inference = EvalOptions(**options)
    own_limits = inference.max_new_tokens  # the protocol's, whatever a run recorded
    inference = replace(inference.as_recorded(model), max_new_tokens=own_limits)
    display, folder = inference.display, inference.folder
    with display.stage(f"Reading {benchmark}"):
        data_sets = protocol.load(data, limit)
    roles = {"original": reference or model, "unlearned": model}
    roles |= {"retrained": retrained} if retrained else {}
    check_places(folder, *roles.values(), kind="evaluation")
    kept: dict[str, Any] = {}  # the original model stays in memory for the others

    def evaluate(role: str, loaded: Any, tokenizer: Any, generator: Generator) -> Measured:
        before = kept.get("original")
        with display.stage(f"Evaluating {roles[role]}") as stage:
            size = inference.batch_size
            subject = EvaluatedModel(loaded, tokenizer, generator, before, stage.update, size)
            found = protocol.measure(subject, data_sets)
        if role == "original":
            kept[role] = loaded
        return found

    with FolderLock(folder):
        measured = inference.each(roles, evaluate)
        if not is_main_process():
            return {}
        if missing := "" if retrained else protocol.without_retrained():
            display.print(missing)
        results = {role: protocol.results(found) for role, found in measured.items()}
        if compare and retrained:
            for role in ("original", "unlearned"):
                for name, aggregates in compare(measured[role], measured["retrained"]).items():
                    results[role].setdefault(name, {}).update(aggregates)
        evaluation = as_eval_json(
            benchmark,
            results,
            metrics=protocol.facts(),
            sets={name: protocol.prompt_set(name) for name in results["unlearned"]},
            names=roles,
            limit=limit,
            notes=[missing] if missing else [],
            chat=chat_record(inference.tokenizer(model)),
        )
        write_text_atomically(folder / "generations.jsonl", _lines(measured, inference.show_text))
        write_json(folder / "eval.json", evaluation)
        table = benchmark_table(evaluation).markdown() + (missing and f"\n{missing}\n")
        write_text_atomically(folder / "benchmark.md", table)
    return evaluation


def _lines(measured: Mapping[str, Measured], show_text: bool) -> str:
    """`generations.jsonl` of a benchmark: one line for each model, set and row."""
    lines = []
    for role, found in measured.items():
        for name, values in found.sets.items():
            for place, key in enumerate(values.keys):
                record: dict[str, Any] = {"model": role, "set": name, "key": key}
                if show_text:
                    record |= {column: texts[place] for column, texts in values.texts.items()}
                columns = values.columns.items()
                record["metrics"] = {metric: column[place] for metric, column in columns}
                lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    return "".join(lines)
