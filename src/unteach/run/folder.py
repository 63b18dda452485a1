"""The folder of a finished run: its files, its rows, its scorers and fresh copies of its models."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from unteach import models
from unteach.config.scorers import ScorerNames
from unteach.data.chat import ChatSettings, render_hash, settings_from, use_chat_settings
from unteach.data.rows import PAPER_HOLD_OUT, rows_hash
from unteach.errors import UserError
from unteach.evaluation.scorers import Scorers, build_scorers
from unteach.files.folders import FolderLock, private_folder
from unteach.models.adapters import is_adapter, is_quantized, merged_adapter
from unteach.models.precision import DTYPES
from unteach.prepare.generations import GenerationCache
from unteach.reports.run_files import read_output
from unteach.run.record import model_files
from unteach.scenarios import SCENARIOS, build_scenario
from unteach.scenarios.scenario import Scenario
from unteach.scenarios.user_rows import user_scenario, with_unrelated

ORIGINAL, UNLEARNED, NEVER_KNEW = "original", "unlearned", "never_knew"
"""Roles of a run's models: before unlearning, after it, and before a demo taught its texts."""
KNOWN = {
    "data_files": set(inspect.signature(user_scenario).parameters) | {"whole"},
    "scorers": set(ScorerNames.__dataclass_fields__),
}
"""The names that fields of `run.json` may hold."""
KEPT_MODELS = 2
"""Models for reading that stay in memory, so that comparing two reads each of them once."""


class QuantizedWeights(UserError):
    """Weights were to be changed that are quantised."""


def recorded_chat(model: str) -> ChatSettings | None:
    """The chat settings of the run, or of the newest forget request, whose folder holds a model's
    folder; `None` where there is none.
    """
    place = Path(model).expanduser()
    if not place.is_dir():
        return None
    above, run = place.resolve().parent, "."
    if (above / "requests.jsonl").exists():
        entries = read_output(above / "requests.jsonl")
        run = next((str(entry["run"]) for entry in reversed(entries) if "run" in entry), ".")
    chat = read_output(above / run / "run.json").get("chat")
    return settings_from(chat) if chat else None


class RunFolder:
    """What a finished run left on disk; read when it is needed.

    Args:
        path (`str` or `Path`)
        trust_remote_code (`bool`): run code that comes with the models.

    Raises:
        UserError: if the folder has no `run.json` or no `eval.json`.
    """

    def __init__(self, path: str | Path, trust_remote_code: bool = False) -> None:
        self.path, self.trust_remote_code = Path(path), trust_remote_code
        for name in ("run.json", "eval.json"):
            if not (self.path / name).exists():
                raise UserError(
                    f"{self.path} has no {name}: it is not the folder of a finished run"
                )
        self._hashes: dict[str, str] = {}
        self._models: dict[str, Any] = {}

    # --- files

    @cached_property
    def _run(self) -> dict[str, Any]:
        found: dict[str, Any] = read_output(self.path / "run.json", "finished run")
        for field, known in KNOWN.items():
            if unknown := sorted(set(found.get(field) or {}) - known):
                raise UserError(
                    f"{self.path / 'run.json'}: field {field!r} holds {unknown[0]!r}, which this"
                    " version of unteach does not know"
                )
        return found

    def record(self) -> dict[str, Any]:
        """`run.json`."""
        return self._run

    def evaluation(self) -> dict[str, Any]:
        """`eval.json`."""
        found: dict[str, Any] = read_output(self.path / "eval.json")
        return found

    def config(self) -> dict[str, Any]:
        """`config.yaml`."""
        found: dict[str, Any] = read_output(self.path / "config.yaml")
        return found

    def generations(self) -> list[dict[str, Any]]:
        """The lines of `generations.jsonl`."""
        found: list[dict[str, Any]] = read_output(self.path / "generations.jsonl")
        return found

    @property
    def shared(self) -> Path:
        """The folder that runs with other settings share: the taught model, generations."""
        return self.path / str(self.record().get("shared_dir", "."))

    def work(self, name: str = "") -> Path:
        """A folder for intermediate files that only its owner can read; made if it is missing."""
        private_folder(self.path / "work")
        return private_folder(self.path / "work" / name)

    def cache(self, model_hash: str) -> GenerationCache:
        """What the model with these weights generated in this run."""
        rendered = render_hash(self.tokenizer())
        return GenerationCache(private_folder(self.shared / "work"), model_hash, rendered)

    def lock(self) -> FolderLock:
        """A context manager during which no other process writes into the folder."""
        return FolderLock(self.path)

    # --- rows and scorers

    def scenario(self, **given: Any) -> Scenario:
        """The run's scenario, rebuilt and checked by the hashes of its rows.

        Args:
            given (*optional*): where the rows of a user's run are now: `forget`, `retain`, `unseen`
                and `neighbours`; default: where the run read them.

        Raises:
            UserError: if the rows are not there, or are not those of the run.
        """
        record = self.record()
        name, wanted = record["scenario"], record["forget_hash"]
        if name in SCENARIOS:
            for short in (False, True):
                scenario = build_scenario(name, short=short)
                if rows_hash(scenario.forget) == wanted:
                    return scenario
            raise UserError(
                f"the run's forget set is not that of the embedded scenario {name!r}: another"
                " version of unteach made it"
            )
        files = dict(record.get("data_files") or {})
        earlier = "hold_out" not in files  # a run made before the option, which kept other rows
        if earlier:
            files["hold_out"] = 0.0 if files.pop("whole", False) else PAPER_HOLD_OUT
        files = {"split_by": None, "secrets": "none", **files}  # nor these
        files |= {name: rows for name, rows in given.items() if rows is not None}
        if files.get("forget") is None:
            raise UserError(
                "run.json does not name the file of the forget rows (they were given in Python);"
                " name it with --forget"
            )
        scenario = user_scenario(**files)
        if rows_hash(scenario.forget) != wanted:
            raise UserError(
                f"the rows in {files['forget']} are not those that this run forgot; name their file"
                " with --forget"
            )
        hashes = {
            "retain": rows_hash([*scenario.retain, *scenario.own_prompts]),
            "neighbours": rows_hash(scenario.neighbours),
        }
        for name, found in hashes.items():
            if files.get(name) is not None and not earlier and found != record[f"{name}_hash"]:
                raise UserError(
                    f"the rows in {files[name]} are not those that this run kept; name their file"
                    f" with --{name}"
                )
        return scenario

    def scorers(self, scenario: Scenario, say: Callable[[str], None] = lambda _: None) -> Scorers:
        """The scorer of the run's headline rate.

        Args:
            scenario (`Scenario`): the run's, its forget rows with completions.
            say: called with a sentence about a scorer that cannot be loaded.
        """
        recorded = self.record().get("scorers") or vars(scenario.scorers)
        headline = str(self.evaluation().get("headline", "leak_rate"))
        names = ScorerNames(**{**recorded, "headline": headline, "similarity": None})
        names = replace(names, reward=None)
        if names.headline != "harmful_rate":
            names = replace(names, judge=None)
        corpus = scenario.leak_corpus or with_unrelated(scenario.forget)
        return build_scorers(names, corpus, scenario.labelled, say)

    # --- models

    @cached_property
    def _paths(self) -> dict[str, str]:
        record, base = self.record(), str(self.record()["model"])
        found = [path for name in ("model", "adapter") if (path := self.path / name).is_dir()]
        if not found:
            raise UserError(
                f"{self.path} has neither model/ nor adapter/: it is not the folder of a finished"
                " run"
            )
        if record.get("base_model_hash", "") in ("", record["original_model_hash"]):
            return {ORIGINAL: base, UNLEARNED: str(found[0])}
        taught = self.shared / "original"
        if not taught.is_dir():
            raise UserError(
                f"{taught} is missing: without the taught model there is nothing to compare with"
            )
        return {ORIGINAL: str(taught), UNLEARNED: str(found[0]), NEVER_KNEW: base}

    def model_paths(self) -> dict[str, str]:
        """The folder or name of each model by role; `never_knew` only if the run taught texts.

        Raises:
            UserError: if a model's folder is missing.
        """
        return self._paths

    def model_path(self, role: str) -> str:
        """The folder or name of a model."""
        return self._paths[role]

    def add_model(self, role: str, path: str) -> None:
        """Makes another model available under `role`, for example one that was retrained."""
        self._paths[role] = path

    @cached_property
    def _tokenizer(self) -> Any:
        path = self.model_path(UNLEARNED)
        found = models.load_tokenizer(path, trust_remote_code=self.trust_remote_code)
        return use_chat_settings(found, settings_from(self.record().get("chat")))

    def tokenizer(self) -> Any:
        """The tokenizer of the unlearned model."""
        return self._tokenizer

    def model_hash(self, role: str) -> str:
        """Hash of a model's weights, an adapter merged; loads the model if necessary."""
        if role not in self._hashes:
            self.model(role)
        return self._hashes[role]

    def model(self, role: str) -> Any:
        """A model for reading only: callers share it and leave its weights as they are.

        It stays in memory, as do at most `KEPT_MODELS` such models.

        Args:
            role (`str`): a key of `model_paths()`.

        Raises:
            UserError: if the original model's weights are not those that the run started from.
        """
        if role in self._models:
            self._models[role] = self._models.pop(role)  # the most recently used is the last
            return self._models[role]
        while len(self._models) >= KEPT_MODELS:
            del self._models[next(iter(self._models))]
        self._models[role] = models.placed(self._checked(role)).eval().requires_grad_(False)
        return self._models[role]

    def load_model(self, role: str, *, exact: bool = False) -> Any:
        """A model of the caller's own, read from disk, an adapter merged into its base; changes to
        it reach no other. Models for reading leave memory.

        Args:
            role (`str`): a key of `model_paths()`.
            exact (`bool`): in float32, for changes of the weights, instead of the run's precision.

        Raises:
            UserError: if the original model's weights are not those that the run started from.
            QuantizedWeights: if weights that are quantised shall be changed.
        """
        self._models.clear()
        model = self._checked(role)
        if exact and is_quantized(model.config):
            raise QuantizedWeights(
                "the run's model holds quantised weights, which stay as they are"
            )
        return models.placed(model.float() if exact else model)

    def _checked(self, role: str) -> Any:
        """The model as it is on disk, if it is the run's."""
        model = self._read(role)
        digest = self._hashes.get(role) or models.weights_hash(model)
        self._hashes[role] = digest
        record, place = self.record(), self.model_path(role)
        other = digest != record["original_model_hash"] and not record.get("quantize")
        if is_adapter(place):  # merging may round differently on another machine
            other = other and record.get("model_files") != model_files(place)
        if role == ORIGINAL and other:
            raise UserError(
                f"the model in {place} is not the one that this run started from (its hash differs)"
            )
        return model

    def _read(self, role: str) -> Any:
        place = self.model_path(role)
        load_kwargs: dict[str, Any] = {
            "trust_remote_code": self.trust_remote_code,
            "dtype": DTYPES[self.record().get("dtype", "float32")],
        }
        if role != UNLEARNED or not is_adapter(place):
            return models.load_model(place, **load_kwargs)
        # the run's own base, whatever the adapter's configuration names
        root, _ = models.adapter_chain(self.model_path(ORIGINAL))
        return merged_adapter(models.load_model(root, **load_kwargs), place)
