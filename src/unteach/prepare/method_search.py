"""`method=auto`: several methods train for a few steps from the same weights, the run's own probe
judges them, and the best one goes on.

Losses cannot be compared between methods, behaviour can: how much of the forget rows (trained and
held out) a model still says, how much of what is to be kept it still chooses, how many of its
answers mean nothing. First each method in `TRIED` (or those that the user names) gets one trial;
then the best two go up or down in learning rate, by factors of three, as long as something is amiss
and time is left.
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
from torch import Tensor
from transformers import PrinterCallback

from unteach.config.unlearning import UnlearningConfig
from unteach.data.rows import Row
from unteach.errors import TrainingFault, UserError
from unteach.evaluation.text_metrics import is_not_meaningful
from unteach.methods import get_method
from unteach.methods.task_vector import trained_weights
from unteach.processes import process_count
from unteach.trainer.stopping import ENOUGH_UTILITY, Probe
from unteach.trainer.trainer import UnlearningTrainer

AUTO = "auto"
TRIED: tuple[Mapping[str, Any], ...] = (
    {
        "method": "log_odds_mismatch",
        "mismatch_weight": 0.1,
        "retain_weight": 5.0,
        "mismatch_completions": 1,
    },
    {"method": "unlikelihood", "retain_weight": 5.0},
    {
        "method": "unlikelihood_mismatch",
        "mismatch_weight": 0.1,
        "retain_weight": 5.0,
        "mismatch_completions": 1,
    },
    {"method": "npo"},
    {"method": "simnpo"},
    {"method": "ga_mismatch", "mismatch_completions": 1},
)
"""What gets a trial, the likelier ones first, as time may end the search early. One mismatch
completion a prompt keeps trials cheap.
"""
SETTLED = (
    "mismatch_weight",
    "forget_weight",
    "retain_weight",
    "retain_loss",
    "beta",
    "gamma",
    "task_vector_scale",
)
"""Options that belong to one method, so that `auto` settles them."""
FACTOR, FARTHEST = 3.0, 27.0
BROKEN = 0.8
"""Share of utility under which a lower learning rate comes first."""


def check_search(
    settings: Mapping[str, Any], minutes: float, steps: int, names: str | None
) -> None:
    """Raises `UserError` for options that do not go with `auto`, and for a search without time or
    steps.
    """
    if settings.get("method") != AUTO:
        if names:
            raise UserError(f"option 'candidates' is for method {AUTO!r}, which picks one of them")
        return
    candidates(names)
    for name in SETTLED:
        if settings.get(name) is not None:
            raise UserError(
                f"option {name!r} belongs to one method; with method {AUTO!r} leave it out, or name"
                " the method"
            )
    if not minutes > 0 or steps < 1:
        raise UserError(
            f"options 'search_minutes' and 'search_steps' are {minutes:g} and {steps}, they must be"
            " positive"
        )
    if process_count() > 1:
        raise UserError(
            f"method {AUTO!r} tries methods in one process; let it pick there, then start the"
            " method that it names in several"
        )


@dataclass(frozen=True)
class Trial:
    """One short training and what the probe found at its best step.

    Args:
        settings: fields of `UnlearningConfig`, method and learning rate among them.
        step, steps (`int`): of the best probe; trained in all.
        forget_rate (`float`): mean of the shares still said of training and validation rows.
        validation_rate (`float`): that of the validation rows.
        utility (`float`): share of the start's utility, at most 1.
        not_meaningful (`float`): share of the answers to forget prompts that mean nothing.
        retain_kl (`float`, *optional*): of the last step, nats a token, where the method looks at
            it.
        seconds (`float`): everything included.
        training_tokens (`int`)
        note (`str`): why there is no result.
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
        """Utility kept, less what is still said, less what means nothing: 1 at best."""
        return self.utility - self.forget_rate - self.not_meaningful

    @property
    def name(self) -> str:
        """Method and learning rate."""
        return f"{self.settings['method']} at {self.settings['learning_rate']:g}"

    def as_json(self) -> dict[str, Any]:
        """Plain data, the score among it."""
        return {**asdict(self), "settings": dict(self.settings), "score": round(self.score, 4)}


def best_of(trials: Sequence[Trial]) -> Trial:
    """The trial with the highest score; of scores within 0.02 of it the one with the lowest retain
    KL, then the earlier one.

    Raises:
        UserError: if none has a result, with what the first one says.
    """
    good = [trial for trial in trials if not trial.note]
    if not good:
        raise UserError(f"method {AUTO!r}: no method could be tried; {trials[0].note}")
    top = max(trial.score for trial in good)
    return min(
        (trial for trial in good if trial.score >= top - 0.02),
        key=lambda trial: float("inf") if trial.retain_kl is None else trial.retain_kl,
    )


def candidates(names: str | None) -> tuple[Mapping[str, Any], ...]:
    """What gets a trial: the methods of these names (with commas between them), else `TRIED`.

    Raises:
        UserError: for an unknown name, with the nearest, and for a method that no probe watches
            while it trains.
    """
    known = {settings["method"]: settings for settings in TRIED}
    wanted = [name.strip() for name in (names or "").split(",") if name.strip()]
    for name in wanted:
        if not get_method(name).hooks.probes_training:
            raise UserError(
                f"method {name!r} changes the weights after its training, so a trial says nothing"
                " of it; name it as the method"
            )
    return tuple(known.get(name, {"method": name}) for name in dict.fromkeys(wanted)) or TRIED


def search(
    attempt: Callable[[Mapping[str, Any]], Trial],
    first_rate: Callable[[str], float],
    seconds: float,
    target_rate: float = 0.0,
    candidates: Sequence[Mapping[str, Any]] = TRIED,
) -> list[Trial]:
    """Trials in the order in which they were made; once one has a result, none is begun that would
    likely end after the time.

    The time is the sum of the trials' own seconds, so that a search that is started again and finds
    trials made already decides as it did.

    Args:
        attempt: makes one trial with these settings.
        first_rate: from a method's name to the learning rate of its first trial.
        seconds (`float`): for all of them.
        target_rate (`float`): forget rate that is low enough.
        candidates: settings of each method that gets a trial, method and weights.
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
    """The neighbour in learning rate of one of the best two methods' best trials; `None` if nothing
    is amiss or all were tried.
    """
    tried = {(trial.settings["method"], trial.settings["learning_rate"]) for trial in trials}
    best: dict[str, Trial] = {}
    for trial in sorted(
        (trial for trial in trials if not trial.note), key=lambda trial: -trial.score
    ):
        best.setdefault(trial.settings["method"], trial)
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
            if within and (trial.settings["method"], rate) not in tried:
                return {**trial.settings, "learning_rate": rate}
    return None


def with_given(tried: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial, or the run after it, trains with: the user's own options before those tried,
    save method and learning rate.
    """
    return {
        **tried,
        **given,
        **{name: tried[name] for name in ("method", "learning_rate") if name in tried},
    }


def untried(trials: Sequence[Trial], candidates: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the methods that time did not suffice for."""
    made = {trial.settings["method"] for trial in trials}
    return [settings["method"] for settings in candidates if settings["method"] not in made]


def why(trials: Sequence[Trial]) -> str:
    """One sentence on what was picked and what came next."""
    picked = best_of(trials)
    others = sorted(
        (
            trial
            for trial in trials
            if not trial.note and trial.settings["method"] != picked.settings["method"]
        ),
        key=lambda t: -t.score,
    )

    def said(trial: Trial) -> str:
        return (
            f"still said {trial.forget_rate:.0%} (held-out rows {trial.validation_rate:.0%}),"
            f" utility kept {trial.utility:.0%}"
        )

    next_best = f"; the best other method, {others[0].name}: {said(others[0])}" if others else ""
    return f"{picked.name}, after {picked.step} steps: {said(picked)}{next_best}"


@dataclass
class SearchContext:
    """What all trials of a search share.

    Args:
        model: the model, left as it was after each trial.
        tokenizer: its tokenizer.
        forget, retain: the run's rows.
        peft_config: a new adapter for each trial, if given.
        make_probe: from a hook for the answers to the run's probe.
        folder (`Path`): removed after each trial.
        seed (`int`)
        start_rates: what the probe said before any step; measured by the first trial.
    """

    model: Any
    tokenizer: Any
    forget: list[Row]
    retain: list[Row]
    peft_config: Any
    make_probe: Callable[[Callable[[Sequence[Row], Sequence[str]], None]], Probe]
    folder: Path
    seed: int
    start_rates: Mapping[str, float] | None = None

    def attempt(
        self,
        config: UnlearningConfig,
        settings: Mapping[str, Any],
        on_step: Callable[[dict[str, float]], None],
    ) -> Trial:
        """Trains with the config, looks, and puts the start's weights back.

        A method that the rows or the model do not allow, or that breaks, makes a trial with a note.
        """
        started = perf_counter()
        torch.manual_seed(self.seed)
        shutil.rmtree(self.folder, ignore_errors=True)
        start = {} if self.peft_config is not None else trained_weights(self.model)
        meaningless: list[float] = []
        steps: list[dict[str, float]] = []

        def generations(rows: Sequence[Row], outputs: Sequence[str]) -> None:
            meaningless.append(sum(map(is_not_meaningful, outputs)) / max(1, len(outputs)))

        def step(record: dict[str, float]) -> None:
            if "loss" in record:
                steps.append(record)
            on_step(record)

        trainer: Any = None
        try:
            trainer = UnlearningTrainer(
                self.model,
                config,
                self.forget,
                self.retain,
                self.tokenizer,
                self.peft_config,
                self.make_probe(generations),
                on_step=step,
            )
            trainer.remove_callback(PrinterCallback)
            trainer.steps.best = None  # a trial keeps no weights
            if self.start_rates is not None:
                trainer.rule.record(0, self.start_rates)
                trainer.rule.reason = ""
                meaningless.append(0.0)
            trainer.train()
            rule = trainer.rule
            self.start_rates = {
                name: value for name, value in rule.history[0].items() if name != "step"
            }
            place = next(
                number
                for number, rates in enumerate(rule.history)
                if rates["step"] == rule.best_step
            )
            rates = rule.history[place]
            return Trial(
                dict(settings),
                rule.best_step,
                trainer.state.global_step,
                rates["forget_rate"],
                rates.get("validation_rate", rates["forget_rate"]),
                min(1.0, rates.get("utility", 1.0) / max(1e-9, rule.start_utility or 1.0)),
                meaningless[place],
                steps[-1].get("retain_kl") if steps else None,
                perf_counter() - started,
                int(sum(record["tokens"] for record in steps)),
            )
        except (UserError, TrainingFault) as error:
            return Trial(dict(settings), seconds=perf_counter() - started, note=str(error))
        except torch.OutOfMemoryError:
            return Trial(
                dict(settings),
                seconds=perf_counter() - started,
                note="it needs more memory than the GPU has",
            )
        finally:
            if trainer is not None and self.peft_config is not None:
                self.model = trainer.model.unload()
            _put_back(self.model, start)
            del trainer
            gc.collect()
            shutil.rmtree(self.folder, ignore_errors=True)


@torch.no_grad()
def _put_back(model: Any, start: Mapping[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        if name in start:
            parameter.copy_(start[name])
            parameter.grad = None
