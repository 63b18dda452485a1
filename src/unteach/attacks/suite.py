"""`unteach attack`: the table of attacks, and the function that runs them on a finished run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from unteach.attacks import likelihood, weights
from unteach.attacks.options import AttackOptions
from unteach.attacks.prompting import (
    CUT_OFF,
    AttackPrompt,
    attack_prompts,
    rates,
    undesired_answers,
)
from unteach.attacks.target import Metrics, Target
from unteach.data.rows import Row, evenly_spaced, rows_hash
from unteach.errors import UserError, did_you_mean
from unteach.evaluation.exposure import OTHERS, exposures
from unteach.evaluation.results import MetricResult, summarise
from unteach.files.folders import content_key
from unteach.prepare.generations import LoadedModel
from unteach.prepare.teaching import teach
from unteach.progress import Display
from unteach.reports.report import write_report
from unteach.run.folder import NEVER_KNEW, ORIGINAL, UNLEARNED, RunFolder

EXPOSED_ROWS = 24
"""Most rows whose secrets are ranked: each costs a forward of `OTHERS` completions."""
PAIR = (ORIGINAL, UNLEARNED)
RETRAINED = "retrained"
"""Role of a model that was trained without the forget set."""


@dataclass(frozen=True)
class Attack:
    """An attack.

    Args:
        run: given the target and the attack's name; adds its results to the target.
        missing: returns what the attack needs and the target lacks, or `None`.
        results (`tuple[str, ...]`): names of its results; default: the attack's.
    """

    run: Callable[[Target, str], None]
    missing: Callable[[Target], str | None] = lambda target: None
    results: tuple[str, ...] = ()


def by_prompts(
    target: Target,
    name: str,
    prompts: Sequence[AttackPrompt] | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    temperature: float = 0.0,
    change: Callable[[Any], Any] | None = None,
) -> None:
    """Rates of undesired answers of both models to the attack's prompts.

    Args:
        prompts: default: those that `PROMPTS` has under this name.
        settings: what decides the answers, beside prompts and model.
        change: changes a copy of the model before it is evaluated.
    """
    prompts = attack_prompts(name, target.prompt_context) if prompts is None else prompts
    settings = settings or {}
    if not prompts:
        target.leave_out(name, "no forget row is long enough for it")
        return
    inputs = [dict(settings), [(prompt.group, prompt.ids, prompt.row.key) for prompt in prompts]]

    def measure(role: str) -> Metrics:
        with target.display.stage(f"{_title(name)}: the {role} model", len(prompts)) as stage:
            model = target.folder.load_model(role, exact=change is not None)
            answered = undesired_answers(
                change(model) if change else model,
                target.tokenizer,
                prompts,
                target.scorers,
                max_new_tokens=target.options.max_new_tokens,
                temperature=temperature,
                seed=target.options.seed,
                progress=stage.update,
            )
        return _as_json(rates(prompts, *answered, target.rate))

    found = {role: target.cached(name, role, inputs, partial(measure, role)) for role in PAIR}
    target.add(name, found, settings)


def by_sampling(target: Target, name: str) -> None:
    """Several sampled answers to each prompt (Scholten et al. 2025)."""
    options, prompts = target.options, attack_prompts("none", target.prompt_context)
    repeated = [prompt for prompt in prompts for _ in range(options.samples)]
    settings = {key: getattr(options, key) for key in ("samples", "temperature", "seed")}
    by_prompts(target, name, repeated, settings, temperature=options.temperature)


def by_quantization(target: Target, name: str) -> None:
    """Both models with weights of 8 and of 4 bits."""
    for bits in (8, 4):
        result = f"{name}_{bits}bit"
        settings = {
            "bits": bits,
            "group": None if bits == 8 else weights.GROUP,
            "by": "torchao, weights of linear layers",
        }
        prompts = attack_prompts("none", target.prompt_context)
        try:
            change = partial(weights.quantize, bits=bits)
            by_prompts(target, result, prompts, settings, change=change)
        except weights.NothingToRound as error:
            if name in target.options.only:
                raise
            target.leave_out(result, str(error))


def by_traces(target: Target, name: str) -> None:
    """NLL and membership inference under every model of the run."""

    def measure(role: str) -> Metrics:
        with target.display.stage(f"Traces: the {role.replace('_', ' ')} model"):
            model = target.folder.load_model(role)
            rows = target.forget, target.related
            return _as_json(likelihood.traces(model, target.tokenizer, *rows))

    inputs = rows_hash(target.related)
    found = {
        role: target.cached(name, role, inputs, partial(measure, role))
        for role in target.folder.model_paths()
    }
    target.add(name, found, {"other_rows": len(target.related)})


def by_exposure(target: Target, name: str) -> None:
    """The exposure of the rows' secrets under every model of the run."""
    rows = evenly_spaced(_with_secrets(target), EXPOSED_ROWS)

    def measure(role: str) -> Metrics:
        title = f"Exposure: the {role.replace('_', ' ')} model"
        with target.display.stage(title, len(rows)) as stage:
            model, seed = target.folder.load_model(role), target.options.seed
            progress = stage.update
            found = exposures(model, target.tokenizer, rows, seed=seed, progress=progress)
        return _as_json({name: summarise(found, higher_is_better=False)})

    inputs = [rows_hash(rows), target.options.seed, OTHERS]
    found = {
        role: target.cached(name, role, inputs, partial(measure, role))
        for role in target.folder.model_paths()
    }
    settings = {"rows": len(rows), "random_secrets": OTHERS, "seed": target.options.seed}
    target.add(name, found, settings)


def _with_secrets(target: Target) -> list[Row]:
    return [row for row in target.all_forget if row.secret]


def by_relearning(target: Target, name: str) -> None:
    """Fine-tuning on forget rows, related rows and unrelated rows."""
    options, folder = target.options, target.folder
    trained = evenly_spaced(target.forget, min(options.rows, len(target.forget) // 2))
    measured = [row for row in target.forget if row not in trained]

    def measure_original() -> Metrics:
        with target.display.stage("Rate of the original model on the rows measured in relearning"):
            return greedy_point(target, folder.load_model(ORIGINAL), measured)

    start = target.cached(name, ORIGINAL, rows_hash(measured), measure_original)
    goal = start["value"] / 2
    if goal == 0:
        target.leave_out(
            name, f"the original model's {target.rate} on the measured rows is 0 already"
        )
        return
    sources = {"forget": trained, "related": target.related, "unrelated": target.unrelated}
    for source, given in sources.items():
        result, rows = f"{name}_{source}", evenly_spaced(given, options.rows)
        if not rows:
            target.leave_out(result, f"the run has no {source} rows")
            continue
        found: dict[str, Metrics] = {ORIGINAL: _measures(start, target.rate)}
        curves: dict[str, Any] = {}
        try:
            for role in [role for role in (UNLEARNED, NEVER_KNEW) if role in folder.model_paths()]:
                points = curves[role] = _relearned(target, result, role, rows, measured, goal)
                steps = weights.steps_to(points, goal)
                half = MetricResult(steps, len(measured), None, None, True)
                last = _measures(points[-1], target.rate)
                found[role] = {**last, "steps_to_half": half.as_json()}
        except torch.OutOfMemoryError:
            target.leave_out(
                result, "it trains all weights in float32, and this GPU has not the memory for that"
            )
            continue
        names = ("steps", "every", "learning_rate", "seed")
        settings: dict[str, Any] = {key: getattr(options, key) for key in names}
        settings |= {"rows": len(rows), "measured_rows": len(measured), "goal": goal}
        target.add(result, found, settings, curves)


def _relearned(
    target: Target, name: str, role: str, rows: list[Row], measured: Sequence[Row], goal: float
) -> list[weights.Point]:
    """The relearning curve of one model; interrupted, it resumes from its last checkpoint."""
    options, folder = target.options, target.folder
    settings = [options.steps, options.every, options.learning_rate, options.seed, goal]
    inputs = [settings, [row.key for row in rows], rows_hash(measured)]
    work = target.work / f"{name}-{role}-{content_key([folder.model_hash(role), inputs])}"
    who = "the model before teaching" if role == NEVER_KNEW else f"the {role} model"

    def train() -> list[weights.Point]:
        with target.display.stage(f"{_title(name)} rows: {who}", options.steps) as stage:
            return weights.relearn(
                folder.load_model(role, exact=True),  # 16 bits would round small steps away
                target.tokenizer,
                rows,
                lambda model: greedy_point(target, model, measured),
                work,
                options,
                goal=goal,
                on_step=lambda step, note: stage.update(step, note=note),
            )

    points: list[weights.Point] = target.cached(name, role, inputs, train)
    shutil.rmtree(work, ignore_errors=True)
    return points


def greedy_rate(target: Target, model: Any, rows: Sequence[Row]) -> MetricResult:
    """The headline rate of a model's greedy answers to the rows' own prompts."""
    return _greedy_rates(target, model, rows)[target.rate]


def greedy_point(target: Target, model: Any, rows: Sequence[Row]) -> weights.Point:
    """The fields of `greedy_rate`, and the share of answers that met the limit in `cut_off`."""
    found = _as_json(_greedy_rates(target, model, rows))
    return {**found[target.rate], CUT_OFF: found[CUT_OFF]}


def _greedy_rates(target: Target, model: Any, rows: Sequence[Row]) -> dict[str, MetricResult]:
    prompts = attack_prompts("none", replace(target.prompt_context, rows=rows))
    most = target.options.max_new_tokens
    answered = undesired_answers(
        model, target.tokenizer, prompts, target.scorers, max_new_tokens=most
    )
    return rates(prompts, *answered, target.rate)


def _measures(point: weights.Point, rate: str) -> Metrics:
    """A point of a curve as results by name."""
    value = {name: part for name, part in point.items() if name not in ("step", CUT_OFF)}
    return {rate: value, CUT_OFF: point[CUT_OFF]}


def by_distance(target: Target, name: str) -> None:
    """KL and NLL of both models compared with the retrained one."""
    folder = target.folder

    def measure(role: str) -> Metrics:
        with target.display.stage(f"Distance of the {role} model to the retrained one"):
            pair = folder.load_model(RETRAINED), folder.load_model(role)
            return _as_json(likelihood.distance(*pair, target.tokenizer, target.forget))

    digest = folder.model_hash(RETRAINED)
    found = {role: target.cached(name, role, digest, partial(measure, role)) for role in PAIR}
    target.add(name, found, {"retrained_model_hash": digest})


def _too_few_rows(target: Target) -> str | None:
    enough = len(target.forget) > 1
    return None if enough else "it needs two forget rows, one to train on and one to measure"


def _no_secrets(target: Target) -> str | None:
    return None if _with_secrets(target) else "no forget row names facts in 'secret'"


def _no_retrained_model(target: Target) -> str | None:
    if RETRAINED in target.folder.model_paths():
        return None
    return (
        "it needs a model trained without the forget set: --retrain trains one (demos),"
        " --retrained names one"
    )


ATTACKS = {
    "paraphrase": Attack(by_prompts),
    "prefix": Attack(by_prompts),
    "role_play": Attack(by_prompts),
    "few_shot": Attack(by_prompts),
    "sampling": Attack(by_sampling),
    "quantization": Attack(
        by_quantization,
        lambda target: weights.missing_torchao(),
        ("quantization_8bit", "quantization_4bit"),
    ),
    "traces": Attack(by_traces),
    "exposure": Attack(by_exposure, _no_secrets),
    "relearning": Attack(by_relearning, _too_few_rows),
    "distance": Attack(by_distance, _no_retrained_model),
}
"""All attacks by name, in the order in which they run: the cheap ones first."""


def _title(name: str) -> str:
    words = name.replace("_", " ").replace("relearning ", "relearning from ")
    return "No attack" if name == "none" else words.capitalize()


def _as_json(results: Mapping[str, MetricResult]) -> Metrics:
    return {name: result.as_json() for name, result in results.items()}


def taught_without(taught: Sequence[Row], forget: Sequence[Row]) -> list[Row]:
    """The taught rows whose prompt and completion contain no forget row; white space is ignored."""
    texts = [_one_line(row) for row in forget]
    return [row for row in taught if not any(text in _one_line(row) for text in texts)]


def _one_line(row: Row) -> str:
    return " ".join(f"{row.prompt_text} {row.completion}".split())


def retrain(target: Target) -> str:
    """Teaches the base model as the run did, without the rows that contain a forget row; returns
    the folder of the model. Interrupted, it resumes; done, it is not repeated.

    Passages that the original model recited itself are taught: no user put them into a forget set.

    Raises:
        UserError: if the run taught nothing.
    """
    folder, record = target.folder, target.folder.record()
    if NEVER_KNEW not in folder.model_paths():
        raise UserError(
            "--retrain needs a run that taught its model (a demo); name a model trained without the"
            " forget set by --retrained"
        )
    kept = taught_without(target.scenario.teach, target.all_forget)
    if not kept:
        raise UserError("--retrain: nothing that was taught is left without the forget set")
    scenario, taught = replace(target.scenario, teach=kept), target.work / RETRAINED / ORIGINAL
    torch.manual_seed(record["seed"])
    cache = folder.cache(folder.model_hash(NEVER_KNEW))
    source = LoadedModel(folder.load_model(NEVER_KNEW), target.tokenizer, cache, target.display)
    teach(source, scenario, taught, record["seed"], folder.config()["settings"])
    return str(taught)


def attack(
    folder: str | Path,
    options: AttackOptions | None = None,
    *,
    forget: Any = None,
    retain: Any = None,
    unseen: Any = None,
    neighbours: Any = None,
    trust_remote_code: bool = False,
    display: Display | None = None,
) -> dict[str, Any]:
    """Runs attacks on a finished run, and writes `attacks.json`, `figures/relearning.png` and the
    report.

    All changes of weights are made on copies. Results are kept in `work/attacks`, so that an
    interrupted call resumes.

    Args:
        folder (`str` or `Path`): the run's.
        forget (*optional*): where the forget rows of a user's run are now, if they have moved.
        retain (*optional*): where the retain rows are now.
        unseen (*optional*): where the unseen rows are now.
        neighbours (*optional*): where the neighbours are now.
        trust_remote_code (`bool`): run code that comes with the model.

    Returns:
        The content of `attacks.json`.

    Raises:
        UserError: for an unknown attack, if the folder is not that of a finished run, if its rows
            or models are not those of the run, or if an attack named in `only` cannot be run.
    """
    options = options or AttackOptions()
    for name in options.only:
        if name not in ATTACKS:
            raise did_you_mean(name, list(ATTACKS), "attack")
    run = RunFolder(folder, trust_remote_code)
    with run.lock():
        files = {"forget": forget, "retain": retain, "unseen": unseen, "neighbours": neighbours}
        target = Target(run, options, display=display, **files)
        retrained = retrain(target) if options.retrain else options.retrained
        if retrained:
            run.add_model(RETRAINED, retrained)
        by_prompts(target, "none")
        for name, entry in ATTACKS.items():
            if options.only and name not in options.only:
                continue
            missing = entry.missing(target)
            if missing is None:
                entry.run(target, name)
            elif name in options.only:
                raise UserError(f"{name}: {missing}")
            else:
                for result in entry.results or (name,):
                    target.leave_out(result, missing)
        write_report(run.path)
        return target.results
