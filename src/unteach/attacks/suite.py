"""`unteach attack`: runs the attacks on a finished run's folder, each on copies and each kept, and
writes `attacks.json` and the report.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from unteach import models
from unteach.attacks import distance, quantization
from unteach.attacks.answers import Asked, any_and_mean, hits, plainly
from unteach.attacks.options import ATTACKS, AttackOptions
from unteach.attacks.prompting import PROMPTS, Surroundings, attack_prompts
from unteach.attacks.relearning import SOURCES, Relearning, relearn, steps_to
from unteach.attacks.results import Metrics, Results
from unteach.attacks.sampling import repeated
from unteach.attacks.target import NEVER_KNEW, RETRAINED, Target, read_record
from unteach.attacks.traces import traces
from unteach.data.rows import Row, rows_hash
from unteach.errors import UserError
from unteach.evaluation.behaviour import spread
from unteach.evaluation.results import MetricResult
from unteach.evaluation.scoring import ANSWER_TOKENS
from unteach.files.folder_lock import FolderLock
from unteach.files.folders import content_key
from unteach.progress import Display
from unteach.reports.report import write_report

PAIR = ("original", "unlearned")


class Suite:
    """The attacks on one target."""

    def __init__(self, target: Target, options: AttackOptions) -> None:
        self.target, self.options = target, options
        self.display, self.results = target.display, Results(target)

    # --- asking
    # -------------------------------------------------------------------------------------------------------

    def asked(
        self,
        name: str,
        prompts: Sequence[Asked],
        settings: Mapping[str, Any],
        *,
        temperature: float = 0.0,
        change: Callable[[Any], Any] | None = None,
    ) -> None:
        """Lets both models answer the prompts of an attack, changed by `change` if given, and adds
        both rates.

        Args:
            name (`str`): the attack.
            prompts (`Sequence[Asked]`)
            settings: what decides the answers beside prompts and model.
            temperature (`float`)
            change (`Callable`, *optional*): from a copy of a model to the one that is asked.
        """
        if not prompts:
            self.results.leave_out(name, "no forget row is long enough for it")
            return
        inputs = [dict(settings), [(item.group, item.prompt_ids, item.row.key) for item in prompts]]
        found: dict[str, Metrics] = {}
        for role in PAIR:

            def make(role: str = role) -> Metrics:
                with self.display.stage(f"{_title(name)}: the {role} model", len(prompts)) as stage:
                    model = self.target.load(role, exact=change is not None)
                    said = hits(
                        change(model) if change else model,
                        self.target.tokenizer,
                        prompts,
                        self.target.scorers,
                        temperature=temperature,
                        seed=self.options.seed,
                        progress=stage.update,
                    )
                return _as_json(any_and_mean(prompts, said, self.target.rate))

            found[role] = self.results.kept(name, role, inputs, make)
        self.results.add(name, found, settings)

    def rate_of(self, model: Any, rows: Sequence[Row]) -> MetricResult:
        """The headline rate of greedy answers to the rows as they are."""
        asked = plainly(rows, self.target.tokenizer)
        return any_and_mean(
            asked, hits(model, self.target.tokenizer, asked, self.target.scorers), self.target.rate
        )[self.target.rate]

    # --- the attacks
    # --------------------------------------------------------------------------------------------------

    def none(self) -> None:
        """The rows as they are, as a start for the table."""
        self.asked("none", plainly(self.target.forget, self.target.tokenizer), {})

    def prompting(self, name: str) -> None:
        """One of `PROMPTS`."""
        target = self.target
        room = models.window(target.load("unlearned")) - ANSWER_TOKENS
        around = Surroundings(target.tokenizer, target.forget, target.second_wordings(), room)
        self.asked(name, attack_prompts(name, around), {})

    def sampling(self) -> None:
        """Drawn answers."""
        options = self.options
        prompts = repeated(plainly(self.target.forget, self.target.tokenizer), options.samples)
        settings = {
            "samples": options.samples,
            "temperature": options.temperature,
            "seed": options.seed,
        }
        self.asked("sampling", prompts, settings, temperature=options.temperature)

    def quantization(self) -> None:
        """Both models with rounded weights."""
        reason = quantization.why_not()
        if reason and "quantization" in self.options.only:
            raise UserError(reason)
        for bits in quantization.BITS:
            name = f"quantization_{bits}bit"
            if reason:
                self.results.leave_out(name, reason)
                continue
            settings = {
                "bits": bits,
                "group": None if bits == 8 else quantization.GROUP,
                "by": "torchao, weights of linear layers",
            }
            prompts = plainly(self.target.forget, self.target.tokenizer)
            try:
                self.asked(
                    name, prompts, settings, change=partial(quantization.quantize, bits=bits)
                )
            except quantization.NothingToRound as error:
                if "quantization" in self.options.only:
                    raise
                self.results.leave_out(name, str(error))

    def traces(self) -> None:
        """Likelihoods under every model that there is."""
        target = self.target
        others = target.related()
        found = {}
        for role in target.places:

            def make(role: str = role) -> Metrics:
                with self.display.stage(f"Traces: the {role.replace('_', ' ')} model"):
                    return _as_json(
                        traces(target.load(role), target.tokenizer, target.forget, others)
                    )

            found[role] = self.results.kept("traces", role, rows_hash(others), make)
        self.results.add("traces", found, {"other_rows": len(others)})

    def relearning(self) -> None:
        """Fine-tuning on rows of three kinds."""
        target, options = self.target, self.options
        if len(target.forget) < 2:
            self.results.leave_out(
                "relearning", "it needs at least two forget rows, one to learn and one to measure"
            )
            return
        shown = spread(target.forget, min(options.rows, len(target.forget) // 2))
        rest = [row for row in target.forget if row not in shown]
        start = self.results.kept(
            "relearning", "original", rows_hash(rest), lambda: self._measured("original", rest)
        )
        goal = start["value"] / 2
        if goal == 0:
            self.results.leave_out(
                "relearning",
                "the original model says none of the rows that would be measured, so nothing can"
                " come back",
            )
            return
        original = target.load("original")
        sources = {
            "forget": shown,
            "related": target.related(),
            "unrelated": target.unrelated(original),
        }
        del original
        settings = Relearning(
            options.steps, options.every, options.learning_rate, goal, seed=options.seed
        )
        for source in SOURCES:
            name = f"relearning_{source}"
            rows = spread(sources[source], options.rows)
            if not rows:
                self.results.leave_out(name, f"the run has no {source} rows")
                continue
            try:
                found, curves = self._brought_back(name, rows, rest, settings)
            except torch.OutOfMemoryError:
                self.results.leave_out(
                    name,
                    "it trains all weights in float32, and this GPU has not the memory for that",
                )
                continue
            facts = {
                "steps": options.steps,
                "every": options.every,
                "learning_rate": options.learning_rate,
                "seed": options.seed,
            }
            measured = {"original": {target.rate: start}, **found}
            self.results.add(
                name,
                measured,
                {**facts, "rows": len(rows), "measured_rows": len(rest), "goal": goal},
                curves,
            )

    def _brought_back(
        self, name: str, rows: list[Row], rest: Sequence[Row], settings: Relearning
    ) -> tuple[dict[str, Metrics], dict[str, Any]]:
        """(the last rate and the steps to the goal, the curve) of each model that is trained, by
        role.
        """
        target = self.target
        found: dict[str, Metrics] = {}
        curves: dict[str, Any] = {}
        for role in ("unlearned", NEVER_KNEW):
            if role not in target.places:
                continue
            points = curves[role] = self._relearned(name, role, rows, rest, settings)
            last = {key: value for key, value in points[-1].items() if key != "step"}
            ends = MetricResult(
                steps_to(points, settings.goal), len(rest), None, None, True
            ).as_json()
            found[role] = {target.rate: last, "steps_to_half": ends}
        return found, curves

    def _measured(self, role: str, rows: Sequence[Row]) -> Metrics:
        with self.display.stage(f"Asking the {role} model what relearning is to bring back"):
            return self.rate_of(self.target.load(role), rows).as_json()

    def _relearned(
        self, name: str, role: str, rows: list[Row], rest: Sequence[Row], settings: Relearning
    ) -> list[Any]:
        target, inputs = self.target, [repr(settings), [row.key for row in rows], rows_hash(rest)]
        folder = target.work / f"{name}-{role}-{content_key([target.hash_of(role), inputs])}"

        def make() -> list[Any]:
            with self.display.stage(f"{_title(name)} rows: {_who(role)}", settings.steps) as stage:
                return relearn(
                    target.load(role, exact=True),  # 16 bits would round its steps away
                    target.tokenizer,
                    rows,
                    lambda model: self.rate_of(model, rest),
                    folder,
                    settings,
                    on_step=lambda step, note: stage.update(step, note=note),
                )

        points: list[Any] = self.results.kept(name, role, inputs, make)
        shutil.rmtree(folder, ignore_errors=True)
        return points

    def retrained(self) -> None:
        """Makes the model that never saw the forget rows a model of the target, if one is asked
        for.
        """
        target, options = self.target, self.options
        place = distance.retrain(target) if options.retrain else options.retrained
        if place:
            target.places[RETRAINED] = place

    def distance(self) -> None:
        """KL and NLL of both models against the retrained one."""
        target = self.target
        if RETRAINED not in target.places:
            why = (
                "it needs a model trained without the forget set: --retrain teaches one (demos),"
                " --retrained names one"
            )
            if "distance" in self.options.only:
                raise UserError(f"distance: {why}")
            self.results.leave_out("distance", why)
            return
        found = {}
        for role in PAIR:

            def make(role: str = role) -> Metrics:
                with self.display.stage(f"Distance of the {role} model to the retrained one"):
                    return _as_json(
                        distance.distance(
                            target.load(RETRAINED),
                            target.load(role),
                            target.tokenizer,
                            target.forget,
                        )
                    )

            found[role] = self.results.kept("distance", role, target.hash_of(RETRAINED), make)
        self.results.add("distance", found, {"retrained_model_hash": target.hash_of(RETRAINED)})

    def execute(self) -> dict[str, Any]:
        """All attacks that were asked for; returns what `attacks.json` holds."""
        self.retrained()
        self.none()
        others = {
            "sampling": self.sampling,
            "quantization": self.quantization,
            "traces": self.traces,
            "relearning": self.relearning,
            "distance": self.distance,
        }
        for name in ATTACKS:
            if self.options.only and name not in self.options.only:
                continue
            if name in PROMPTS:
                self.prompting(name)
            else:
                others[name]()
        return self.results.found


def _title(name: str) -> str:
    words = (
        "no attack"
        if name == "none"
        else name.replace("_", " ").replace("relearning ", "relearning from ")
    )
    return words[0].upper() + words[1:]


def _who(role: str) -> str:
    return "a model that never knew" if role == NEVER_KNEW else f"the {role} model"


def _as_json(results: Mapping[str, MetricResult]) -> Metrics:
    return {name: result.as_json() for name, result in results.items()}


def attack(
    folder: str | Path,
    options: AttackOptions | None = None,
    *,
    forget: Any = None,
    retain: Any = None,
    trust_remote_code: bool = False,
    display: Display | None = None,
) -> dict[str, Any]:
    """Tries to bring back what a run made its model forget; writes `attacks.json`,
    `figures/relearning.png` and the report anew.

    Every change of weights happens on copies. What is done is kept in `work/attacks`, so a second
    start goes on where the first one ended.

    Args:
        folder (`str` or `Path`): a finished run's folder.
        options (`AttackOptions`, *optional*)
        forget, retain (*optional*): where the rows of a user's run are now, if they have moved.
        trust_remote_code (`bool`): run code that comes with the model.
        display (`Display`, *optional*)

    Returns:
        what `attacks.json` holds.

    Raises:
        UserError: if the folder is no finished run's, its rows or models are not those of the run,
            or an attack asked for cannot be made.
    """
    folder, options = Path(folder), options or AttackOptions()
    read_record(folder)  # what is no run's folder is left as it is, without a lock in it
    with FolderLock(folder):
        where = {"forget": forget, "retain": retain}
        target = Target(
            folder,
            prompts=options.prompts,
            trust_remote_code=trust_remote_code,
            display=display,
            **where,
        )
        result = Suite(target, options).execute()
        write_report(folder)
        return result
