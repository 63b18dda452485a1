"""Method `auto`: short trainings with several methods from the same weights; the run's probe picks
one, as behaviour is comparable between methods and losses are not.

The default method for the rows and each in `TRIED` (or those that the user names) get one trial.
Then the learning rate of the best two is multiplied or divided by `FACTOR`, while a number can
improve and time is left.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from transformers import PrinterCallback

from unteach.config.resolve import AUTO, BY_METHOD, SCHEDULE, ResolvedConfig
from unteach.config.unlearning import with_wrappers
from unteach.data.rows import Row, rows_hash
from unteach.errors import TrainingFault, UserError
from unteach.methods import get_method
from unteach.methods.task_vector import trained_weights
from unteach.prepare.generations import LoadedModel, with_alternates, with_diverted_answers
from unteach.processes import process_count
from unteach.progress import step_display
from unteach.robust import wrappers
from unteach.scenarios.method_choice import method_for
from unteach.trainer.costs import Cost
from unteach.trainer.stopping import ENOUGH_UTILITY, USEFUL_RATES, Probe, StopRule
from unteach.trainer.trainer import UnlearningTrainer

OURS = {"mismatch_weight": 0.1, "retain_weight": 5.0, "mismatch_completions": 1}
TRIED: tuple[Mapping[str, Any], ...] = (
    {"method": "log_odds_mismatch", **OURS},
    {"method": "unlikelihood", "retain_weight": 5.0},
    {"method": "unlikelihood_mismatch", **OURS},
    {"method": "npo"},
    {"method": "simnpo"},
    {"method": "ga_mismatch", "mismatch_completions": 1},
)
"""Settings of the trials, the most promising first, as time may end the search early. One mismatch
completion for each prompt keeps trials cheap."""
OF_ONE_METHOD = {*BY_METHOD, "task_vector_scale"} - {"forget_end_of_turn"}
"""Options that the search decides, as they belong to one method."""
FACTOR, FARTHEST = 3.0, 27.0
BROKEN = 0.8
"""Share of the start's utility under which a lower learning rate is tried first."""

MakeProbe = Callable[..., Probe]


@dataclass(frozen=True)
class Trial:
    """One short training and what the probe measured at its best step.

    Args:
        settings: fields of `UnlearningConfig`, method and learning rate among them.
        step, steps: of the best probe; trained in all.
        forget_rate, validation_rate: of all forget rows; of the held-out ones.
        utility: the lower of utility and neighbours, as a share of the initial value, at most 1.
        not_meaningful: share of outputs for forget prompts that are not readable.
        retain_kl: of the last step, nats per token; `None` where the method has none.
        note: why there is no result.
    """

    settings: Mapping[str, Any]
    step: int = 0
    steps: int = 0
    forget_rate: float = 1.0
    validation_rate: float = 1.0
    utility: float = 0.0
    not_meaningful: float = 1.0
    retain_kl: float | None = None
    seconds: float = 0.0
    training_tokens: int = 0
    note: str = ""

    @property
    def score(self) -> float:
        """Utility - forget rate - share of unreadable outputs: at most 1."""
        return self.utility - self.forget_rate - self.not_meaningful

    @property
    def name(self) -> str:
        """Method and learning rate."""
        return f"{self.method} at {self.settings['learning_rate']:g}"

    @property
    def method(self) -> str:
        """The method, and what is around it as in `npo+sam`."""
        return _named(self.settings)

    def as_json(self) -> dict[str, Any]:
        """Plain data, the score among it."""
        return {**asdict(self), "settings": dict(self.settings), "score": round(self.score, 4)}


def _named(settings: Mapping[str, Any]) -> str:
    return "+".join([settings["method"], *filter(None, [settings.get("robust")])])


def check_search(resolved: ResolvedConfig) -> None:
    """Raises `UserError` for options that exclude method `auto`, and for no time or no steps."""
    run, chosen = resolved.run, resolved.chosen
    if run.method != AUTO:
        if run.candidates is not None:
            raise UserError(f"option 'candidates' is for method {AUTO!r}, which picks one of them")
        return
    candidates(run.candidates)
    for name in sorted(OF_ONE_METHOD):
        if chosen.get(name) is not None:
            raise UserError(
                f"option {name!r} belongs to one method; with method {AUTO!r} leave it out, or name"
                " the method"
            )
    if not run.search_minutes > 0 or run.search_steps < 1:
        raise UserError(
            f"options 'search_minutes' and 'search_steps' are {run.search_minutes:g} and"
            f" {run.search_steps}, they must be positive"
        )
    if process_count() > 1:
        raise UserError(
            f"method {AUTO!r} tries methods in one process; search there, then start the method"
            " that it names in several"
        )


def candidates(names: str | None, rows: Sequence[Row] = ()) -> tuple[Mapping[str, Any], ...]:
    """Settings of the methods with these names (separated by commas, with wrappers as in
    `npo+sam`); `None`: the default method for the forget rows, if it is none of `TRIED`, and those.

    Raises:
        UserError: for an unknown name, with the nearest, for an empty one or one that stands twice,
            and for a method that changes the weights after its training, which no probe measures.
    """
    known = {_named(settings): settings for settings in TRIED}
    wanted = [] if names is None else [name.strip() for name in names.split(",")]
    for name in wanted:
        if not name or wanted.count(name) > 1:
            what = f"names {name!r} twice" if name else "holds an empty name"
            raise UserError(f"option 'candidates' is {names!r}, which {what}")
        settings = with_wrappers(name)
        wrappers(settings.get("robust", "none"))  # refuses an unknown one
        if not get_method(settings["method"]).hooks.probes_training:
            raise UserError(
                f"method {name!r} changes the weights after its training, so a trial says nothing"
                " of it; name it as the method"
            )
    if not wanted:
        wanted = [*([method_for(rows)[0]] if rows else []), *known]
    made = map(with_wrappers, dict.fromkeys(wanted))
    return tuple({**known.get(settings["method"], {}), **settings} for settings in made)


def with_trial(resolved: ResolvedConfig, settings: Mapping[str, Any]) -> ResolvedConfig:
    """The run's settings with those of a trial, except where the user set an option other than
    method and learning rate.
    """
    own = ("method", "robust", "learning_rate")
    values = {k: v for k, v in settings.items() if k in own or k not in resolved.chosen}
    return resolved.with_training("search", **values)


def search(
    attempt: Callable[[Mapping[str, Any]], Trial],
    first_rate: Callable[[str], float],
    seconds: float,
    target_rate: float = 0.0,
    candidates: Sequence[Mapping[str, Any]] = TRIED,
) -> list[Trial]:
    """Trials in order. Once one has a result, none is begun that is expected to exceed the time
    (the sum of the trials' own seconds, so that a resumed search decides as the interrupted one).

    Args:
        attempt: makes one trial with these settings.
        first_rate: from a method's name to the learning rate of its first trial.
        seconds: for all trials.
        target_rate: forget rate that is low enough.
        candidates: settings of each method that gets a trial.
    """
    trials: list[Trial] = []

    def affordable() -> bool:
        spent = sum(trial.seconds for trial in trials)
        return all(trial.note for trial in trials) or spent + spent / len(trials) <= seconds

    for settings in candidates:
        if not affordable():
            return trials
        trials.append(attempt({**settings, "learning_rate": first_rate(settings["method"])}))
    while affordable() and (further := _next(trials, first_rate, target_rate)):
        trials.append(attempt(further))
    return trials


def _next(
    trials: Sequence[Trial], first_rate: Callable[[str], float], target_rate: float
) -> Mapping[str, Any] | None:
    """One of the best two methods' best trials with the next learning rate up or down; `None` if
    nothing can improve or all were tried.
    """
    tried = {(trial.method, trial.settings["learning_rate"]) for trial in trials}
    best: dict[str, Trial] = {}
    for trial in sorted((t for t in trials if not t.note), key=lambda t: -t.score):
        best.setdefault(trial.method, trial)
    for trial in list(best.values())[:2]:
        enough, forgotten = trial.utility >= ENOUGH_UTILITY, trial.forget_rate <= target_rate
        if enough and forgotten:
            continue
        if forgotten:
            factors = [1 / FACTOR]
        elif enough:
            factors = [FACTOR]
        else:
            factors = [FACTOR, 1 / FACTOR] if trial.utility >= BROKEN else [1 / FACTOR, FACTOR]
        base = first_rate(trial.settings["method"])
        for factor in factors:
            rate = float(f"{trial.settings['learning_rate'] * factor:.2g}")
            within = base / FARTHEST <= rate * 1.05 and rate <= base * FARTHEST * 1.05
            if within and (trial.method, rate) not in tried:
                return {**trial.settings, "learning_rate": rate}
    return None


def best_of(trials: Sequence[Trial]) -> Trial:
    """The trial with the highest score; of those within 0.02 of it the one with the lowest retain
    KL, then the first. Raises `UserError` with the first note if none has a result.
    """
    good = [trial for trial in trials if not trial.note]
    if not good:
        raise UserError(f"method {AUTO!r}: no method could be tried; {trials[0].note}")
    top = max(trial.score for trial in good)
    return min(
        (trial for trial in good if trial.score >= top - 0.02),
        key=lambda trial: float("inf") if trial.retain_kl is None else trial.retain_kl,
    )


def untried(trials: Sequence[Trial], candidates: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the methods that were not tried for lack of time."""
    made = {trial.method for trial in trials}
    return [name for name in map(_named, candidates) if name not in made]


def why(trials: Sequence[Trial]) -> str:
    """One sentence on the trial that was picked and the best of another method."""
    picked = best_of(trials)
    others = [trial for trial in trials if not trial.note and trial.method != picked.method]

    def result(trial: Trial) -> str:
        rate = f"forget rate {trial.forget_rate:.0%} (held-out rows {trial.validation_rate:.0%})"
        return f"{rate}, utility {trial.utility:.0%} of the start's"

    text = f"{picked.name}, after {picked.step} steps: {result(picked)}"
    if others:
        other = max(others, key=lambda trial: trial.score)
        text += f"; the best other method, {other.name}: {result(other)}"
    return text


@dataclass
class SearchContext:
    """What the trials of a search share.

    Args:
        source: the model, whose weights are restored after each trial.
        resolved: the run's settings, its model's width known.
        forget, retain: the run's rows.
        peft_config: of a new adapter for each trial; `None`: all weights.
        make_probe: makes the run's probe.
        folder: of a trial's files; removed after each.
    """

    source: LoadedModel
    resolved: ResolvedConfig
    forget: list[Row]
    retain: list[Row]
    peft_config: Any
    make_probe: MakeProbe
    folder: Path

    def __post_init__(self) -> None:
        run, self.model = self.resolved.run, self.source.model
        self.start_rates: Mapping[str, float] = {}
        self.avoiding: Sequence[Row] = self.forget
        self.tried = candidates(run.candidates, self.forget)
        self.whole = with_trial(self.resolved, self.tried[0]).first_training(self.folder)
        planned = self.whole.max_steps
        steps = min(run.search_steps, planned) if planned > 0 else run.search_steps
        self.fixed: dict[str, Any] = {"max_steps": steps, "probe_steps": 0.5, "save_strategy": "no"}
        if not set(SCHEDULE) & set(self.resolved.chosen):
            self.fixed |= {"lr_scheduler_type": "constant", "warmup_steps": 0}
        if any(get_method(settings["method"]).needs_alternates for settings in self.tried):
            self.forget = with_alternates(self.source, self.forget, run.seed)
        if any(get_method(settings["method"]).counterfactual for settings in self.tried):
            self.avoiding = with_diverted_answers(self.source, self.forget)
        rows = rows_hash([*self.forget, *self.retain])
        self.inputs = [rows, run.lora, run.lora_rank, run.frozen_layers]

    def pick(self) -> tuple[dict[str, Any], dict[str, Any], Cost]:
        """(the settings that `auto` stands for, facts for `run.json`, cost of all trials).

        Trials are cached, so an interrupted search resumes. `model` has the start's weights again.
        """
        run, show = self.resolved.run, self.source.display.print
        seconds, target = 60 * run.search_minutes, self.whole.target_rate
        trials = search(self.attempt, self.first_rate, seconds, target, self.tried)
        picked, left = dict(best_of(trials).settings), untried(trials, self.tried)
        show(f"Picked {why(trials)}")
        if left:
            show(
                f"There was no time for {', '.join(left)}; a larger search_minutes or a smaller"
                " search_steps includes them"
            )
        torch.manual_seed(run.seed)  # cached trials drew no random numbers
        facts = {"trials": [trial.as_json() for trial in trials], "picked": picked}
        facts |= {"why": why(trials), "untried": left}
        spent = round(sum(trial.seconds for trial in trials), 1)
        tokens = sum(trial.training_tokens for trial in trials)
        return picked, facts, Cost("method search", spent, 0, 0, tokens, 0.0)

    def first_rate(self, method: str) -> float:
        """The learning rate of a method's first trial: the user's, else the method's own."""
        if rate := self.resolved.chosen.get("learning_rate"):
            return float(rate)
        return float(self.resolved.with_training("search", method=method).training["learning_rate"])

    def attempt(self, settings: Mapping[str, Any]) -> Trial:
        """The trial with these settings, cached."""
        given = {**with_trial(self.resolved, settings).training, **self.fixed}
        inputs = [dict(settings), given, *self.inputs]
        found = self.source.cache.get("trial", inputs, lambda: self.train(settings).as_json())
        return Trial(**{name: value for name, value in found.items() if name != "score"})

    def train(self, settings: Mapping[str, Any]) -> Trial:
        """Trains with these settings, then restores the weights; an error makes a trial with a
        note.
        """
        started = perf_counter()
        torch.manual_seed(self.resolved.run.seed)
        shutil.rmtree(self.folder, ignore_errors=True)
        trainable = [part for part in self.model.parameters() if part.requires_grad]
        weights = {} if self.peft_config is not None else trained_weights(self.model)
        title = f"Trying {_named(settings)} at {settings['learning_rate']:g}"
        trainer: Any = None
        steps: list[Mapping[str, float]] = []

        try:
            with self.source.display.stage(title, self.fixed["max_steps"]) as stage:
                show = step_display(stage)

                def step(record: dict[str, float]) -> None:
                    if "loss" in record:
                        steps.append(record)
                    show(record)

                resolved = with_trial(self.resolved, settings)
                config = resolved.first_training(self.folder, **self.fixed)
                trainer = UnlearningTrainer(
                    self.model,
                    config,
                    self.avoiding if config.objective.counterfactual else self.forget,
                    self.retain,
                    self.source.tokenizer,
                    self.peft_config,
                    self.make_probe(),
                    on_step=step,
                )
                trainer.remove_callback(PrinterCallback)
                trainer.display = self.source.display
                trainer.steps.best = None  # a trial keeps no weights
                if self.start_rates:
                    trainer.rule.record(0, self.start_rates)
                    trainer.rule.reason = ""
                trainer.train()
            start = trainer.rule.history[0]
            self.start_rates = {name: rate for name, rate in start.items() if name != "step"}
            return _trial(trainer.rule, settings, steps, perf_counter() - started)
        except (UserError, TrainingFault) as error:
            note = str(error)
        except torch.OutOfMemoryError:
            note = "it needs more memory than the GPU has"
        finally:
            if trainer is not None and trainer.model is not self.model:  # an adapter's wrapper
                self.model = trainer.model.unload()
            for parameter in trainable:  # PEFT freezes what it wraps
                parameter.requires_grad_(True)
            _restore(self.model, weights)
            del trainer
            gc.collect()
            shutil.rmtree(self.folder, ignore_errors=True)
        return Trial(dict(settings), seconds=perf_counter() - started, note=note)


def _trial(
    rule: StopRule,
    settings: Mapping[str, Any],
    steps: Sequence[Mapping[str, float]],
    seconds: float,
) -> Trial:
    """The trial from a stop rule's best probe and the steps' metrics."""
    rates = next(probe for probe in rule.history if probe["step"] == rule.best_step)
    shares = rule.shares(rates)
    return Trial(
        dict(settings),
        rule.best_step,
        len(steps),
        rates["forget_rate"],
        rates.get("validation_rate", rates["forget_rate"]),
        min(shares[name] for name in USEFUL_RATES),
        1.0 - rates.get("readable", 1.0),
        steps[-1].get("retain_kl") if steps else None,
        seconds,
        int(sum(record["tokens"] for record in steps)),
    )


@torch.no_grad()
def _restore(model: Any, weights: Mapping[str, Any]) -> None:
    for name, parameter in model.named_parameters():
        if name in weights:
            parameter.copy_(weights[name])
            parameter.grad = None
