"""What an attack is: a family, a function of one model of a run, and a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from unteach.attacks.prompting import (
    CUT_OFF,
    AttackPrompt,
    Maker,
    answers_to,
    attack_prompts,
    cut_rate,
    mean_rate,
    shown_by_row,
    undesired_answers,
)
from unteach.attacks.target import Target
from unteach.errors import UserError
from unteach.evaluation.results import MetricResult, summarise
from unteach.run.folder import ORIGINAL, QuantizedWeights


class LeftOut(UserError):
    """The attack cannot be made on this run; the message says why."""


class NothingShown(LeftOut):
    """The original model shows none of the measured rows: there is nothing to bring back."""


@dataclass(frozen=True)
class Outcome:
    """What an attack found on one model.

    Args:
        metrics: by name.
        rows: index of an attacked forget row to 1 if its content came back, else 0; rows that the
            attack did not measure are missing.
        curves: name of a field of `attacks.json` to points.
    """

    metrics: Mapping[str, MetricResult]
    rows: Mapping[int, float] = field(default_factory=dict)
    curves: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        metrics = {name: result.as_json() for name, result in self.metrics.items()}
        rows = {str(index): value for index, value in self.rows.items()}
        return {"metrics": metrics, "rows": rows, "curves": dict(self.curves)}


@dataclass(frozen=True)
class Trial:
    """One attack on one model of a run.

    Args:
        settings: the attack's budget.
        progress: called with (done, of).
    """

    target: Target
    name: str
    role: str
    settings: Mapping[str, Any]
    progress: Callable[[int, int], None]

    def model(self) -> Any:
        """The model, shared with other attacks: it must be left as it is."""
        return self.target.folder.model(self.role)

    def copy(self) -> Any:
        """The model as the attack's own, in float32, for changes of its weights. No other model is
        in memory then.

        Raises:
            LeftOut: where quantised weights cannot be changed.
        """
        try:
            return self.target.folder.load_model(self.role, exact=True)
        except QuantizedWeights as error:
            raise LeftOut(str(error)) from None

    def outcome(self, rows: Mapping[int, float], **more: Any) -> Outcome:
        """The run's headline rate over these rows, and other metrics."""
        rate = summarise(list(rows.values()), higher_is_better=False, interval="wilson")
        return Outcome({self.target.rate: rate, **more}, rows)

    def without_attack(self, rows: Sequence[int] | None = None) -> Outcome:
        """What the model's own greedy answers show, of all rows or of these."""
        found = self.target.rows_of("none", self.role)
        cut = self.target.results["attacks"]["none"][self.role][CUT_OFF]
        kept = {i: found[i] for i in found if rows is None or i in rows}
        return self.outcome(kept, **{CUT_OFF: MetricResult(**cut)})

    def answers(
        self, model: Any, prompts: Sequence[AttackPrompt], **how: Any
    ) -> tuple[list[str], list[bool]]:
        """See `answers_to`; the token limit is the user's."""
        limit = self.target.options.max_new_tokens
        return answers_to(model, self.target.tokenizer, prompts, max_new_tokens=limit, **how)

    def scored_answers(self, model: Any, prompts: Sequence[AttackPrompt], **how: Any) -> Outcome:
        """The outcome of the model's answers to prompts, `how` as in `answers_to`."""
        return scored(self, prompts, *undesired_answers_of(self.target, model, prompts, **how))

    @property
    def is_original(self) -> bool:
        """Whether the model is the one before unlearning."""
        return self.role == ORIGINAL


@dataclass(frozen=True)
class Attack:
    """An attack.

    Args:
        family: attacks of one family need the same access; the strongest of each counts in the
            robustness figure. Those of `likelihood` bring nothing back and do not count.
        run: makes one trial; raises `LeftOut` where the run does not allow it.
        title, about: what reports call it, and what it does.
        budget: the settings that bound and decide it, which reports state.
        inputs: plain data that decide it beside model, rows, scorer and budget.
        level: the least level at which it runs.
        missing: what it needs and the target lacks, or `None`.
        models: the roles on which it is made: `pair` of original and unlearned, with the `control`
            that never knew the rows, or `all` of the run.
        changes (`bool`): works on a copy of the weights.
    """

    family: str
    title: str
    about: str
    run: Callable[[Trial], Outcome]
    budget: Callable[[Target], Mapping[str, Any]] = lambda target: {}
    inputs: Callable[[Target], Any] = lambda target: None
    level: Literal["quick", "full"] = "quick"
    missing: Callable[[Target], str | None] = lambda target: None
    models: Literal["pair", "control", "all"] = "control"
    changes: bool = False


def prompt_attack(title: str, about: str, make: Maker, *, family: str = "prompts") -> Attack:
    """An attack by fixed prompts and greedy answers.

    Args:
        title, about, family: see `Attack`.
        make: the prompts of one row.
    """

    def run(trial: Trial) -> Outcome:
        target = trial.target
        prompts = attack_prompts(make, target.prompt_context)
        if not prompts:
            raise LeftOut("no forget row is long enough for it")
        return trial.scored_answers(trial.model(), prompts, progress=trial.progress)

    def prompt_ids(target: Target) -> Any:
        found = attack_prompts(make, target.prompt_context)
        return [(prompt.group, prompt.ids, prompt.row.key) for prompt in found]

    def budget(target: Target) -> dict[str, Any]:
        return {"prompts": len(attack_prompts(make, target.prompt_context))}

    return Attack(family, title, about, run, budget, prompt_ids)


def scored(
    trial: Trial, prompts: Sequence[AttackPrompt], undesired: Sequence[bool], cut: Sequence[bool]
) -> Outcome:
    """The outcome of answers to prompts: a row counts if at least one of its answers is
    undesired.

    Args:
        undesired, cut: for each prompt, whether its answer is undesired and met the token limit.
    """
    mean = mean_rate(prompts, undesired)
    more = {f"mean_{trial.target.rate}": mean} if mean else {}
    return trial.outcome(shown_by_row(prompts, undesired), **more, **{CUT_OFF: cut_rate(cut)})


def undesired_answers_of(
    target: Target, model: Any, prompts: Sequence[AttackPrompt], **how: Any
) -> tuple[list[bool], list[bool]]:
    """`undesired_answers` with the target's tokenizer, scorers and token limit."""
    limit = target.options.max_new_tokens
    rest = target.tokenizer, prompts, target.scorers
    return undesired_answers(model, *rest, max_new_tokens=limit, **how)
