"""The run that is attacked: its forget rows, scorers and models, and the results so far.

Results of finished attacks are in `attacks.json`. Their parts, one file for each model, are in
`work/attacks`, where a second start finds them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from unteach import models
from unteach.attacks.options import AttackOptions
from unteach.attacks.prompting import PromptContext
from unteach.data.chat import render_hash
from unteach.data.rows import Row, evenly_spaced, rows_hash
from unteach.data.tokenization import encode_row
from unteach.errors import UserError
from unteach.evaluation.generation import answer_limit
from unteach.evaluation.metrics import is_forget_set
from unteach.files.atomic import read_cached, write_json
from unteach.files.folders import content_key
from unteach.prepare.generations import LoadedModel, with_own_answers
from unteach.progress import Display
from unteach.reports.run_files import read_output
from unteach.run.facts import lost_facts, with_recorded_facts
from unteach.run.folder import NEVER_KNEW, ORIGINAL, UNLEARNED, RunFolder
from unteach.run.record import versions

SCHEMA_VERSION = 2
RETRAINED = "retrained"
"""Role of a model that was trained without the forget set."""
PAIR = (ORIGINAL, UNLEARNED)
KINDS = ("attacks", "settings", "about", "rows")
"""Fields of `attacks.json` by attack; a kind of curves is a further one."""


class Target:
    """A finished run under attack.

    Args:
        files (*optional*): where the rows of a user's run are now, see `RunFolder.scenario`.

    Raises:
        UserError: if rows or models of the run are missing, or are not those of the run.
    """

    def __init__(
        self,
        folder: RunFolder,
        options: AttackOptions,
        *,
        display: Display | None = None,
        **files: Any,
    ) -> None:
        self.folder, self.options = folder, options
        self.display = display or Display(quiet=True)
        scenario = folder.scenario(**files)
        self.tokenizer, self.work = folder.tokenizer(), folder.work("attacks")
        folder.model_hash(ORIGINAL)  # raises if it is another model
        if folder.record().get("quantize"):
            self.display.print(
                "The run trained on a base in 4 bits; attacked is the adapter on the whole weights."
            )
        title = "Generating the original model's answers to the forget prompts"
        answered = self._with_own_answers(scenario.forget, title)
        self.all_forget = with_recorded_facts(answered, folder.path)
        counts = folder.record().get("facts", {})
        found = counts.get("named", 0) + counts.get("found", 0)
        if lost := lost_facts(self.all_forget, found):
            self.display.print(lost)
        self.scenario = replace(scenario, forget=self.all_forget)
        with self.display.stage("Preparing the scorer"):
            self.scorers = folder.scorers(self.scenario, self.display.print)
        self.rate = self.scorers.headline
        self.forget = self._attacked()
        self.results: dict[str, Any] = {}

    def _with_own_answers(self, rows: Sequence[Row], title: str) -> list[Row]:
        """The rows, those without a completion with the original model's answer."""
        if all(row.completion for row in rows):
            return list(rows)
        model = self.folder.model(ORIGINAL)
        cache = self.folder.cache(self.folder.model_hash(ORIGINAL))
        source = LoadedModel(model, self.tokenizer, cache, self.display)
        return with_own_answers(source, rows, title)[0]

    def _attacked(self) -> list[Row]:
        """The attacked rows: at most `--prompts` of those that the original model showed in the
        run's evaluation, at even distances, and others where these are fewer.
        """
        most = self.options.prompts
        lines = self.folder.generations() if len(self.all_forget) > most else []
        known = {
            line["key"]: bool(line["metrics"].get(self.rate))
            for line in lines
            if line["model"] == ORIGINAL and is_forget_set(line["set"])
        }
        shown = evenly_spaced([row for row in self.all_forget if known.get(row.key)], most)
        others = [row for row in self.all_forget if not known.get(row.key)]
        keys = {row.key for row in [*shown, *evenly_spaced(others, most - len(shown))]}
        return [row for row in self.all_forget if row.key in keys]

    # --- models

    @cached_property
    def control(self) -> str | None:
        """The role of the model that never knew the forget rows: the retrained one, else the base
        model before a demo taught it; `None` without either.
        """
        known = self.folder.model_paths()
        return next((role for role in (RETRAINED, NEVER_KNEW) if role in known), None)

    def roles(self, which: str) -> list[str]:
        """The models that an attack is made on, see `Attack.models`."""
        named = (*PAIR, self.control if which == "control" else None)
        return [role for role in self.folder.model_paths() if which == "all" or role in named]

    # --- rows

    @cached_property
    def related(self) -> list[Row]:
        """Rows with completions of the same kind as the forget rows, which the run did not train
        on; in scenarios of single facts, other facts.
        """
        names = ("other_facts", "unseen", "neighbours")
        found = (self.scenario.sets.get(name) for name in names)
        rows = next(filter(None, found), self.scenario.validation)
        forgotten = {row.key for row in self.all_forget}
        return self.encodable(row for row in rows if row.completion and row.key not in forgotten)

    @cached_property
    def unrelated(self) -> list[Row]:
        """The retain rows, else the original model's own answers to neutral prompts."""
        rows = self.scenario.retain or self.scenario.own_prompts
        title = "Generating the original model's own answers"
        return self.encodable(self._with_own_answers(rows, title))

    def encodable(self, rows: Iterable[Row]) -> list[Row]:
        """The rows whose prompt and completion do not merge into one token."""
        kept = []
        for row in rows:
            with contextlib.suppress(UserError):
                encode_row(row, self.tokenizer, None)
                kept.append(row)
        return kept

    @cached_property
    def prompt_context(self) -> PromptContext:
        """What the prompts of attacks are made from."""
        model = self.folder.model(UNLEARNED)
        limit = self.options.max_new_tokens or answer_limit(self.tokenizer, self.forget, model)
        most = models.window(model) - limit
        wordings = self._second_wordings()
        thorough = self.options.thorough
        return PromptContext(self.tokenizer, self.forget, wordings, most, thorough)

    def _second_wordings(self) -> dict[str, list[Row]]:
        """Forget row key to rows of the scenario with the same right and wrong answers and another
        prompt.
        """
        rows = [row for part in self.scenario.sets.values() for row in part]
        rows += self.scenario.validation
        found: dict[str, list[Row]] = {}
        for row in self.forget:
            others = {
                other.prompt_text: other
                for other in rows
                if row.right and (other.completion, other.right) == (row.completion, row.right)
            }
            others.pop(row.prompt_text, None)
            found[row.key] = list(others.values())
        return found

    # --- results

    def start(self) -> None:
        """Takes up the results of earlier starts; the models to compare with are known by now."""
        self.results = self._earlier_results()

    def _earlier_results(self) -> dict[str, Any]:
        """What `attacks.json` holds of the same models and rows; else no results."""
        path = self.folder.path / "attacks.json"
        same = {
            "schema_version": SCHEMA_VERSION,
            "headline": self.rate,
            "original_model_hash": self.folder.model_hash(ORIGINAL),
            "unlearned_model_hash": self.folder.model_hash(UNLEARNED),
            "control_model_hash": self.control and self.folder.model_hash(self.control),
            "forget_rows": len(self.forget),
            "forget_rows_hash": rows_hash(self.forget),
            "max_new_tokens": self.options.max_new_tokens,
        }
        try:
            found: dict[str, Any] = read_output(path)
        except UserError:
            found = {}
            self.display.print(f"{path} is damaged and is written anew.")
        if all(found.get(name) == value for name, value in same.items()):
            return found
        record = self.folder.record()
        facts = {"scenario": record["scenario"], "versions": versions(), "chat": record.get("chat")}
        empty: dict[str, Any] = {kind: {} for kind in (*KINDS, "left_out")}
        return {**same, **facts, **empty}

    def cached(self, name: str, role: str, inputs: Any, make: Callable[[], Any]) -> Any:
        """The plain data that `make` returned for the same model, rows, scorer, template and
        inputs; calls it if there is none.
        """
        scorer, rendered = self.scorers.identity(), render_hash(self.tokenizer)
        rows, model = rows_hash(self.forget), self.folder.model_hash(role)
        limit = self.options.max_new_tokens
        key = content_key([SCHEMA_VERSION, model, rows, scorer, rendered, limit, inputs])
        path = self.work / f"{name}-{role}-{key}.json"
        if known := read_cached(path):
            return known[0]
        value = make()
        write_json(path, value)
        return value

    def rows_of(self, name: str, role: str) -> dict[int, float]:
        """Index of a forget row to whether an attack brought it back, of the rows it measured."""
        values = self.results["rows"].get(name, {}).get(role, [])
        return {index: value for index, value in enumerate(values) if value is not None}

    def add(
        self,
        name: str,
        role: str,
        about: Mapping[str, str],
        budget: Mapping[str, Any],
        found: Mapping[str, Any],
    ) -> None:
        """Writes the outcome of one attack on one model into `attacks.json`.

        Args:
            about: the attack's `family`, `title` and `about`, which reports show.
            budget: its settings.
            found: `Outcome.as_json`.
        """
        results, settings = self.results, dict(budget)
        if results["settings"].get(name) != settings:
            for kind in results.values():  # those of an earlier start with another budget
                if isinstance(kind, dict):
                    kind.pop(name, None)
        results["settings"][name], results["about"][name] = settings, dict(about)
        results["attacks"].setdefault(name, {})[role] = found["metrics"]
        if found["rows"]:
            values = [found["rows"].get(str(index)) for index in range(len(self.forget))]
            results["rows"].setdefault(name, {})[role] = values
        for kind, points in found["curves"].items():
            results.setdefault(kind, {}).setdefault(name, {})[role] = points
        results["left_out"].pop(name, None)
        self.write()

    def leave_out(self, name: str, reason: str) -> None:
        """Records why an attack was not run; an earlier result stays."""
        if name not in self.results["attacks"]:
            self.results["left_out"][name] = reason
            self.write()
        self.display.print(f"No {name.replace('_', ' ')}: {reason}")

    def write(self) -> None:
        """Writes `attacks.json`."""
        write_json(self.folder.path / "attacks.json", self.results)
