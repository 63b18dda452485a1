"""A finished run's folder as a target: its rows, its scorers and fresh copies of its models,
rebuilt from what the run left.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from unteach import models
from unteach.config.run import RunOptions
from unteach.config.scorers import ScorerNames
from unteach.data.rows import Row, rows_hash
from unteach.data.tokenization import encode_row
from unteach.errors import UserError
from unteach.evaluation.behaviour import spread
from unteach.evaluation.scorers import Scorers, build_scorers
from unteach.models.precision import DTYPES
from unteach.progress import Display
from unteach.run.pipeline import Run
from unteach.scenarios.registry import SCENARIOS, build_scenario
from unteach.scenarios.scenario import Scenario
from unteach.scenarios.user_rows import user_scenario, with_unrelated

NEVER_KNEW = "never_knew"
RETRAINED = "retrained"


def read_record(folder: Path) -> dict[str, Any]:
    """`run.json` of a finished run.

    Raises:
        UserError: if the folder holds none, or no evaluation.
    """
    for name in ("run.json", "eval.json"):
        if not (folder / name).exists():
            raise UserError(f"{folder} has no {name}: it is no finished run's folder")
    return dict(json.loads((folder / "run.json").read_text(encoding="utf-8")))


def rebuilt_scenario(record: Mapping[str, Any], forget: Any = None, retain: Any = None) -> Scenario:
    """The scenario of a run, checked by the hashes of its rows.

    Args:
        record: its `run.json`.
        forget, retain (*optional*): where the rows of a user's run are now; default: where they
            were.

    Raises:
        UserError: if the rows cannot be found, or are others than those of the run.
    """
    name, wanted = record["scenario"], record["forget_hash"]
    if name in SCENARIOS:
        for short in (False, True):
            scenario = build_scenario(name, short=short)
            if rows_hash(scenario.forget) == wanted:
                return scenario
        raise UserError(
            f"the run's forget set is not that of the embedded scenario {name!r}: another version"
            " of unteach made it"
        )
    # a run of an older version, which split each row by its own key, has no split_by
    files: dict[str, Any] = {"split_by": None, **(record.get("data_files") or {})}
    files |= {
        key: value for key, value in (("forget", forget), ("retain", retain)) if value is not None
    }
    if files.get("forget") is None:
        raise UserError(
            "the run's folder does not say where its forget rows are (they were given in Python);"
            " name them with --forget"
        )
    scenario = user_scenario(**files)
    if rows_hash(scenario.forget) != wanted:
        raise UserError(
            f"the rows in {files['forget']} are not those that this run forgot; name their file"
            " with --forget"
        )
    if (
        files.get("retain") is not None
        and rows_hash([*scenario.retain, *scenario.own_prompts]) != record["retain_hash"]
    ):
        raise UserError(
            f"the rows in {files['retain']} are not those that this run kept; name their file with"
            " --retain"
        )
    return scenario


class Target:
    """What the attacks are made on.

    Args:
        folder (`Path`): a finished run's folder.
        prompts (`int`): at most so many forget rows are asked.
        forget, retain (*optional*): where a user's rows are now.
        trust_remote_code (`bool`): run code that comes with the model.
        display (`Display`, *optional*)

    Raises:
        UserError: if the folder is no finished run's, or something of it is missing or changed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        prompts: int = 24,
        forget: Any = None,
        retain: Any = None,
        trust_remote_code: bool = False,
        display: Display | None = None,
    ) -> None:
        self.folder, self.record = folder, read_record(folder)
        self.display = display or Display(quiet=True)
        self.scenario = rebuilt_scenario(self.record, forget, retain)
        shared = folder / self.record.get("shared_dir", ".")
        options = RunOptions(
            model=self.record["model"],
            output_dir=str(folder),
            seed=self.record["seed"],
            shared_dir=str(shared),
            trust_remote_code=trust_remote_code,
            dtype=self.record.get("dtype", "float32"),
        )
        self.run = Run(self.scenario, options, self.display)
        self.work = folder / "work" / "attacks"
        for part in (folder / "work", self.run.work, self.work):
            part.mkdir(parents=True, exist_ok=True)
            part.chmod(0o700)
        self.places = self._places(shared)
        self.hashes: dict[str, str] = {}
        self.tokenizer = models.load_tokenizer(
            self.places["unlearned"], trust_remote_code=trust_remote_code
        )
        original = self.load("original")
        if self.record.get("quantize"):
            self.display.say(
                "The run held its base in 4 bits; what is attacked are the whole weights with its"
                " adapter."
            )
        elif self.hashes["original"] != self.record["original_model_hash"]:
            raise UserError(
                f"the model in {self.places['original']} is not the one that this run started from"
                " (its hash differs)"
            )
        self.run.collection.model_key = self.hashes["original"]
        title = "Collecting what the original model answers to the forget prompts"
        self.known = self.run.collection.with_completions(
            original, self.tokenizer, self.scenario.forget, title
        )
        self.scorers = self._scorers()
        self.forget = spread(self.known, prompts)

    def _places(self, shared: Path) -> dict[str, str]:
        """Role of each model to where it is; `never_knew` only where the original was taught."""
        after = next(
            (self.folder / name for name in ("model", "adapter") if (self.folder / name).is_dir()),
            None,
        )
        if after is None:
            raise UserError(
                f"{self.folder} has neither model/ nor adapter/: it is no finished run's folder"
            )
        base = str(self.record["model"])
        if not self.scenario.teach:
            return {"original": base, "unlearned": str(after)}
        taught = shared / "original"
        if not taught.is_dir():
            raise UserError(
                f"{taught} is missing: without the taught model there is nothing to compare with"
            )
        return {"original": str(taught), "unlearned": str(after), NEVER_KNEW: base}

    def _scorers(self) -> Scorers:
        """The scorer of the headline rate, as the run had it."""
        evaluation = json.loads((self.folder / "eval.json").read_text(encoding="utf-8"))
        names = self.record.get("scorers")
        kept = (
            ScorerNames(**names)
            if names
            else replace(self.scenario.scorers, headline=evaluation.get("headline", "leak_rate"))
        )
        with self.display.stage("Preparing the scorer"):
            wanted = replace(
                kept,
                similarity=None,
                reward=None,
                judge=kept.judge if kept.headline == "harmful_rate" else None,
            )
            return build_scorers(
                wanted,
                self.scenario.leak_corpus or with_unrelated(self.known),
                self.scenario.labelled,
                self.display.say,
            )

    @property
    def rate(self) -> str:
        """Name of the headline rate."""
        return self.scorers.names.headline

    def load(self, role: str, *, exact: bool = False) -> Any:
        """A fresh copy of a model, from disk: what an attack does to it reaches nobody else. An
        adapter is merged into its base.

        Args:
            role (`str`)
            exact (`bool`): in float32, for what changes its weights, instead of the precision that
                the run held it in.
        """
        place = self.places[role]
        load_kwargs: dict[str, Any] = {
            "trust_remote_code": self.run.options.trust_remote_code,
            "dtype": DTYPES[self.run.options.dtype],
        }
        if role == "unlearned" and (Path(place) / "adapter_config.json").exists():
            from peft import PeftModel

            base = models.load_model(
                self.places["original"], **load_kwargs
            )  # as the run knows it, whatever the adapter names
            model: Any = PeftModel.from_pretrained(base, place)
        else:
            model = models.load_model(place, **load_kwargs)
        if hasattr(model, "merge_and_unload"):
            model = (
                model.merge_and_unload().eval().requires_grad_(True)
            )  # PEFT has frozen the base, and relearning trains it
        if role not in self.hashes:
            self.hashes[role] = models.weights_hash(model)
        return models.placed(model.float() if exact else model)

    def hash_of(self, role: str) -> str:
        """Hash of a model's weights; loads it if nobody has yet."""
        if role not in self.hashes:
            self.load(role)
        return self.hashes[role]

    # --- rows
    # ---------------------------------------------------------------------------------------------------------

    def related(self) -> list[Row]:
        """Rows of the same kind that the run did not train on, with completions; where each row is
        a fact of its own, other facts.
        """
        sets = self.scenario.sets
        rows = [
            row
            for row in sets.get("other_facts") or sets.get("unseen") or self.scenario.validation
            if row.completion
        ]
        forgotten = {row.key for row in self.known}
        return self._whole([row for row in rows if row.key not in forgotten])

    def unrelated(self, original: Any) -> list[Row]:
        """Rows that are to be kept: the retain set, else the original model's own answers to
        neutral prompts.
        """
        rows = self.scenario.retain or self.scenario.own_prompts
        return self._whole(
            self.run.collection.with_completions(
                original, self.tokenizer, rows, "Collecting the model's own answers"
            )
        )

    def _whole(self, rows: list[Row]) -> list[Row]:
        """The rows whose prompt and completion do not become one token where they meet."""
        kept = []
        for row in rows:
            with contextlib.suppress(UserError):
                encode_row(row, self.tokenizer, None)
                kept.append(row)
        return kept

    def second_wordings(self) -> dict[str, list[Row]]:
        """For each forget row's key, rows of the scenario that ask the same in other words (the
        same completions, other prompts).
        """
        rows = [
            *(row for part in self.scenario.sets.values() for row in part),
            *self.scenario.validation,
        ]
        found: dict[str, list[Row]] = {}
        for row in self.forget:
            others = {
                other.prompt_text: other
                for other in rows
                if (other.completion, other.right) == (row.completion, row.right)
            }
            found[row.key] = [
                other for text, other in others.items() if text != row.prompt_text and row.right
            ]
        return found
